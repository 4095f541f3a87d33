"""GoodReads (UCSD Book Graph) as click data: one row per rating, with what is known of the book before it, split by time.

    python -m data_scripts.goodreads --raw_dir DIR --output_dir DIR [--push_to_hub OWNER/NAME]

Ratings above 3 become label 1, others label 0; interactions without a rating are dropped. Rows are ordered by the time at which
the user added the book to a shelf; the last tenth is the test split, the last tenth of what remains the validation split.

DuckDB reads the five files of JSON lines, joins and sorts them, on disk where they outgrow its memory (`MEMORY`), so that memory
grows with neither rows nor books. It is in the extra `data`: pip install -c constraints.txt -e '.[data]'.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict

if __name__ == "__main__":  # run as a file, python looks for modules in the file's folder, not in the one above it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data_scripts import raw_files, registry
from data_scripts.publishing import finished_folder, one_line_errors, parser_of, publish
from modeling_flip.commands import installs
from modeling_flip.training.splits import earlier_part

BASE_URL = "https://mcauleylab.ucsd.edu/public_datasets/gdrive/goodreads"
MEMORY = "1GB"  # DuckDB's; Python, Arrow and a batch of rows come on top

# name of the file: its md5 (none is published; these are what LensKit's book data tools had), and what is read of a record
FILES: dict[str, tuple[str | None, dict[str, str]]] = {
    "goodreads_interactions_dedup.json": (
        None,
        {"user_id": "VARCHAR", "book_id": "VARCHAR", "rating": "INTEGER", "date_added": "VARCHAR"},
    ),
    "goodreads_books.json": (
        "01b40c70a00fb6aa321ee478f0fd0d6b",
        {
            "book_id": "VARCHAR",
            "title": "VARCHAR",
            "authors": "STRUCT(author_id VARCHAR)[]",
            **dict.fromkeys(("work_id", "publisher", "publication_year", "language_code"), "VARCHAR"),
            **dict.fromkeys(("num_pages", "is_ebook", "format"), "VARCHAR"),
        },
    ),
    "goodreads_book_authors.json": ("b193c3febd961fb69443b65ba05b83a7", {"author_id": "VARCHAR", "name": "VARCHAR"}),
    "goodreads_book_works.json": (
        "e80738a88d02d2b0081cd249d9b4f081",
        {"work_id": "VARCHAR", "media_type": "VARCHAR", "original_publication_year": "VARCHAR"},
    ),
    "goodreads_book_genres_initial.json": (
        "99ee3d1cadd68818c3dd0ef0d2f10602",
        {"book_id": "VARCHAR", "genres": "MAP(VARCHAR, BIGINT)"},
    ),
}
_KEYS = {"books": "book_id", "authors": "author_id", "works": "work_id", "genres": "book_id"}
TABLES = dict(zip(("interactions", *_KEYS), FILES, strict=True))

DATE = "%a %b %d %H:%M:%S %z %Y"
_LONGEST = 64 * 2**20  # of a record, in bytes

COLUMNS = [
    *("user_id", "book_id", "title", "genres", "author_id", "author_name", "num_pages", "is_ebook", "format"),
    *("publisher", "publication_year", "work_id", "media_type", "language_code", "original_publication_year", "label"),
]
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS[:-1]] + [("label", pa.int64())])

# The first author is the book's own. Genres stand in the order of their votes: names hold commas.
_BOOKS = """
CREATE TABLE described AS SELECT
    book_id,
    nullif(title, '') AS title,
    nullif(array_to_string(list_transform(
        list_sort(list_transform(map_entries(genres), lambda e: {'votes': -e.value, 'name': e.key})), lambda e: e.name
    ), '; '), '') AS genres,
    nullif(books.authors[1].author_id, '') AS author_id,
    nullif(authors.name, '') AS author_name,
    nullif(num_pages, '') AS num_pages,
    nullif(is_ebook, '') AS is_ebook,
    nullif(format, '') AS format,
    nullif(publisher, '') AS publisher,
    nullif(publication_year, '') AS publication_year,
    nullif(books.work_id, '') AS work_id,
    nullif(media_type, '') AS media_type,
    nullif(language_code, '') AS language_code,
    nullif(original_publication_year, '') AS original_publication_year
FROM books
LEFT JOIN authors ON authors.author_id = books.authors[1].author_id
LEFT JOIN works ON works.work_id = books.work_id
LEFT JOIN genres USING (book_id)
"""
_RATED = "FROM interactions WHERE rating > 0 AND time IS NOT NULL"
# User and book decide between ratings of one second, so that the order is the same whatever DuckDB does first.
_ROWS = f"""
SELECT {", ".join(COLUMNS[:-1])}, (rating > 3)::BIGINT AS label, time
FROM (SELECT * {_RATED}) JOIN described USING (book_id) ORDER BY time, user_id, book_id, rating
"""


def load(dataset_name: str = "goodreads", raw_dir: str | Path | None = None) -> DatasetDict:
    """Return the splits train, validation and test, in time order, mapped from files in the cache of `datasets`.

    Columns: those of `COLUMNS`, strings (None where the record has an empty one) but for label (int64, 0 or 1). `raw_dir` holds
    the published files, each plain or gzipped; without it they are downloaded once into the cache of `datasets`, and their
    checksums verified where one is known. Files that have not changed are not read again.

    Raises ValueError for a damaged file or record, FileNotFoundError for a missing folder or file, ConnectionError where a file
    cannot be had, ImportError without DuckDB.
    """
    return read(raw_dir)[0]


def read(raw_dir: str | Path | None = None) -> tuple[DatasetDict, dict[str, int]]:
    """Return what `load` does, and the counts of each step."""
    files = {name: _find(file, raw_dir) for name, file in TABLES.items()}
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files.values()]
    key = hashlib.sha256(json.dumps([_BOOKS, _ROWS, states]).encode()).hexdigest()[:16]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / f"goodreads-{key}"
    if not folder.exists():
        with finished_folder(folder) as unfinished:
            join(files, unfinished)
    splits = {split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in ("train", "validation", "test")}
    return DatasetDict(splits), json.loads((folder / "counts.json").read_text())


def _find(name: str, raw_dir: str | Path | None) -> Path:
    if raw_dir is None:
        return raw_files.download(
            f"{BASE_URL}/{name}.gz", FILES[name][0], "the folder of the files goodreads_*.json.gz"
        )
    folder = raw_files.folder_of(raw_dir, lambda: Path())
    return Path(str(raw_files.find(folder, [name])))


def join(files: dict[str, Path], folder: Path) -> None:
    """Write the splits and the counts of each step into `folder`."""
    try:
        import duckdb
    except ImportError as error:
        raise ImportError(f"GoodReads is joined by DuckDB: {installs('data')}") from error
    scratch = folder / "scratch"
    scratch.mkdir()
    with duckdb.connect(str(scratch / "tables.duckdb")) as db:
        try:
            db.execute(f"SET memory_limit = '{MEMORY}'")
            for table, file in files.items():
                _read(db, table, file, scratch)
            counts = _counts(db)
            db.execute(_BOOKS)
            _write(db.sql(_ROWS).to_arrow_reader(50_000), counts["rows"], folder)
        except duckdb.Error as error:
            raise ValueError(f"the GoodReads files cannot be joined: {_one_line(error)}") from error
    shutil.rmtree(scratch)
    (folder / "counts.json").write_text(json.dumps(counts))


def _read(db: Any, table: str, file: Path, scratch: Path) -> None:
    """Read what is needed of each record of the file into a table; ValueError, with the line, for what is no such record."""
    import duckdb

    columns = FILES[TABLES[table]][1]
    link = scratch / table  # whose name holds nothing that DuckDB takes for a pattern
    link.symlink_to(file.absolute())
    given = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
    values = ", ".join(columns)
    if table == "interactions":
        values = (
            f"user_id, book_id, rating::TINYINT AS rating, epoch(try_strptime(date_added, '{DATE}'))::BIGINT AS time"
        )
    required = [name for name in ("user_id", "rating", _KEYS.get(table, "book_id")) if name in columns]
    try:
        _check_gzip(file)
        db.execute(
            f"CREATE TABLE {table} AS SELECT {values} FROM read_json(?, compression = ?, format = 'newline_delimited', "
            f"maximum_object_size = {_LONGEST}, columns = {{{given}}})",
            [str(link), "gzip" if _is_gzip(file) else "none"],
        )
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException) or "No space left" in str(error):
            raise
        raise _bad_record(file, required, _one_line(error)) from error
    bad = " OR ".join(f"{name} IS NULL" for name in required)
    bad += " OR rating NOT BETWEEN 0 AND 5" if "rating" in columns else ""
    ((number,),) = db.execute(f"SELECT count(*) FROM {table} WHERE {bad}").fetchall()
    if number:
        raise _bad_record(file, required, f"{number} records with nothing in {' or '.join(required)}")
    if table in _KEYS:
        key = _KEYS[table]
        twice = db.execute(f"SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) > 1 LIMIT 1").fetchall()
        if twice:
            raise ValueError(f"{str(file)!r} has two records of {key} {twice[0][0]!r}: take the file as published")


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(2) == b"\x1f\x8b"


def _check_gzip(file: Path) -> None:
    """Raise ValueError for a damaged file: DuckDB does not compare checksums."""
    if not _is_gzip(file):
        return
    try:
        with gzip.open(file) as content:
            while content.read(1 << 20):
                pass
    except raw_files.NOT_GZIP as error:
        raise raw_files.not_gzip(file, error) from error


def _bad_record(file: Path, required: Sequence[str], found: str) -> ValueError:
    """What to raise where DuckDB could not read a file: with the first line that is no record, if one can be named."""
    with gzip.open(file) if _is_gzip(file) else file.open("rb") as content:
        for number, line in enumerate(content, start=1):
            if line.strip() and (wrong := _wrong(line, required)):
                return ValueError(f"line {number} of {str(file)!r} is {wrong}: fetch the file again, or mend that line")
    return ValueError(f"{str(file)!r} cannot be read ({found}): take the file as published")


def _wrong(line: bytes, required: Sequence[str]) -> str | None:
    """Return what is wrong with a line of JSON, None where it is a record."""
    try:
        record = json.loads(line)
    except ValueError as error:  # not UTF-8, too
        return f"no JSON ({error})"
    absent = [name for name in required if not isinstance(record, dict) or record.get(name) is None]
    if absent:
        return f"no record with {', '.join(absent)}"
    if record.get("rating", 0) not in range(6):
        return f"a record with rating {record['rating']!r}, not 0 to 5"
    return None


def _counts(db: Any) -> dict[str, int]:
    """Return how many interactions there are, are dropped for each reason, and are left; ValueError where none is."""
    ((total, unrated, undated, unknown, rows),) = db.execute(
        """
        SELECT
            count(*),
            count(*) FILTER (rating = 0),
            count(*) FILTER (rating > 0 AND time IS NULL),
            count(*) FILTER (rating > 0 AND time IS NOT NULL AND books.book_id IS NULL),
            count(*) FILTER (rating > 0 AND time IS NOT NULL AND books.book_id IS NOT NULL)
        FROM interactions LEFT JOIN books USING (book_id)
        """
    ).fetchall()
    tables = {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in _KEYS}
    return tables | {
        "interactions": total,
        "dropped: not rated": unrated,
        "dropped: date_added is no date": undated,
        "dropped: the books file lacks the book": unknown,
        "rows": rows,
    }


def _write(batches: pa.RecordBatchReader, rows: int, folder: Path) -> None:
    """Write so many rows, which come in time order, as the Arrow files of the splits.

    Raises RuntimeError where they do not: with `preserve_insertion_order` off, DuckDB 2.0.1 gives even an ordered result in any
    order.
    """
    fitted = earlier_part(rows)
    train = earlier_part(fitted)
    spans = {"train": (0, train), "validation": (train, fitted), "test": (fitted, rows)}
    with ExitStack() as stack:
        files = {
            split: stack.enter_context(pa.ipc.new_stream(str(folder / f"{split}.arrow"), SCHEMA)) for split in spans
        }
        at, last = 0, None
        for batch in batches:
            time, batch = batch["time"].to_numpy(), batch.drop_columns("time")
            if len(time) and ((last is not None and time[0] < last) or (np.diff(time) < 0).any()):
                raise RuntimeError("DuckDB did not give the rows in time order: use the version in constraints.txt")
            last = time[-1] if len(time) else last
            for split, span in spans.items():
                start, end = (min(max(place - at, 0), len(batch)) for place in span)
                if start < end:
                    files[split].write_batch(batch.slice(start, end - start).cast(SCHEMA))
            at += len(batch)
    if at != rows:
        raise RuntimeError(f"DuckDB joined {at} rows and counted {rows}: use the version in constraints.txt")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


_CARD = """
Ratings of GoodReads as clicks: `label` is 1 for a rating above 3 and 0 for a lower one. Interactions without a rating, and
ratings of books without a record, are dropped.

Rows are in the order of `date_added`, when the user put the book on a shelf: `test` is the last tenth of all rows, `validation`
the last tenth of the rows before it. What is known only after the rating is left out: a book's average rating and its numbers of
ratings and reviews, and whatever else the user did with it. In their place stand the language and the year in which the work
first came out. Genres are the shelves that readers put the book on, most frequent first; the author is the first one.

Made by `data_scripts/goodreads.py` of modeling-flip from the UCSD Book Graph ({url}), collected in 2017 from
public shelves. It is for academic use alone and may not be redistributed or used commercially. Cite Mengting Wan and Julian
McAuley. 2018. Item Recommendation on Monotonic Behavior Chains. RecSys '18. https://doi.org/10.1145/3240323.3240369; and Mengting
Wan, Rishabh Misra, Ndapa Nakashole, and Julian McAuley. 2019. Fine-Grained Spoiler Detection from Large-Scale Review Corpora.
ACL '19. https://doi.org/10.18653/v1/P19-1248
"""

DATASET = registry.Dataset(
    names=("goodreads",),
    load=load,
    fields=dict.fromkeys(COLUMNS[:-1], "categorical"),
    item_fields=tuple(COLUMNS[1:-1]),
    card=_CARD,
    license="other",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the dataset as Parquet files with a dataset card, and push it where that is asked for."""
    options = parser_of("GoodReads").parse_args(arguments)
    with one_line_errors("goodreads.py"):
        dataset, counts = read(options.raw_dir)
        publish(
            dataset,
            counts,
            options,
            DATASET.card.format(url=BASE_URL),
            item_fields=DATASET.item_fields,
            train="configuration/goodreads/dcnv2.yaml",
            pretty_name="GoodReads",
            license=DATASET.license,
            license_name="academic-use",
            license_link="https://cseweb.ucsd.edu/~jmcauley/datasets/goodreads.html",
        )


if __name__ == "__main__":
    main()
