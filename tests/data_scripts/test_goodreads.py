"""GoodReads from records of the public form: some made by hand, some generated, and the join against one in plain Python."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from huggingface_hub import DatasetCard

from benchmarks import goodreads_join, goodreads_like

pytest.importorskip("duckdb", reason="DuckDB is in the extra 'data'")
from data_scripts import goodreads

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDS = REPOSITORY.parent / "shared" / "datasets" / "goodreads" / "records.json"
INTERACTIONS, BOOKS, AUTHORS, WORKS, GENRES = (f"{name}.gz" for name in goodreads.FILES)

Records = dict[str, list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More rows than DuckDB hands over at once, and books that the books file lacks."""
    return goodreads_like.write(tmp_path_factory.mktemp("raw"), interactions=25_000, books=600, seed=1)


def interaction(user: str, book: str, rating: int, at: str, date: str = "Thu Aug 17 {} -0700 2017") -> dict[str, Any]:
    return {"user_id": user, "book_id": book, "rating": rating, "is_read": True, "date_added": date.format(at)}


def records() -> Records:
    """A few books with all that may be missing, and the times of interactions in several zones."""
    book = {"average_rating": "4.29", "ratings_count": "7", "text_reviews_count": "4", "is_ebook": "false"}
    return {
        INTERACTIONS: [
            interaction("u1", "1", 5, "15:15:28"),
            interaction("u2", "1", 4, "15:15:28"),
            interaction("u1", "2", 3, "15:15:27"),
            interaction("u1", "3", 1, "23:15:27", "Thu Aug 17 {} +0100 2017"),  # the same moment
            interaction("u3", "1", 0, "10:00:00"),
            interaction("u3", "9", 5, "10:00:00"),
            interaction("u3", "2", 5, "10:00:00", "some day"),
            interaction("u0", "2", 5, "00:00:00", "Fri Aug 18 {} -0700 2017"),
        ],
        BOOKS: [
            book
            | {
                "book_id": "1",
                "title": "Jump, Little Wood Ducks",
                "authors": [{"author_id": "11"}, {"author_id": "12"}],
            }
            | {"work_id": "21", "publisher": "Adventurekeen", "publication_year": "2016", "language_code": "eng"}
            | {"num_pages": "36", "format": "Hardcover"},
            book | {"book_id": "2", "title": "", "authors": [], "work_id": "", "publisher": "", "publication_year": ""},
            book | {"book_id": "3", "title": "東京", "authors": [{"author_id": "99"}], "work_id": "99"},
        ],
        AUTHORS: [
            {"author_id": "12", "name": "Second"},
            {"author_id": "11", "name": "First", "average_rating": "3.51"},
        ],
        WORKS: [{"work_id": "21", "media_type": "book", "original_publication_year": "1999", "ratings_sum": "57"}],
        GENRES: [
            {"book_id": "1", "genres": {"poetry": 1, "history, historical fiction, biography": 4, "children": 4}},
            {"book_id": "2", "genres": {}},
        ],
    }


def write(folder: Path, files: Records, *, packed: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        name, content = (name, gzip.compress(content)) if packed else (name.removesuffix(".gz"), content)
        (folder / name).write_bytes(content)
    return folder


def rows_of(dataset: datasets.DatasetDict) -> list[dict[str, Any]]:
    return [row for split in ("train", "validation", "test") for row in dataset[split]]


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_records_are_joined_into_the_fields(packed: bool, tmp_path: Path) -> None:
    dataset, counts = goodreads.read(write(tmp_path / "raw", records(), packed=packed))
    rows = rows_of(dataset)
    assert [(row["user_id"], row["book_id"], row["label"]) for row in rows] == [
        *[("u1", "2", 0), ("u1", "3", 0), ("u1", "1", 1), ("u2", "1", 1), ("u0", "2", 1)]
    ]
    assert rows[2] == {
        "user_id": "u1",
        "book_id": "1",
        "title": "Jump, Little Wood Ducks",
        "genres": "children; history, historical fiction, biography; poetry",  # by votes, then by name
        "author_id": "11",
        "author_name": "First",
        "num_pages": "36",
        "is_ebook": "false",
        "format": "Hardcover",
        "publisher": "Adventurekeen",
        "publication_year": "2016",
        "work_id": "21",
        "media_type": "book",
        "language_code": "eng",
        "original_publication_year": "1999",
        "label": 1,
    }
    bare = dict.fromkeys(goodreads.COLUMNS)
    assert rows[0] == bare | {"user_id": "u1", "book_id": "2", "is_ebook": "false", "label": 0}
    known = {"user_id": "u1", "book_id": "3", "title": "東京", "author_id": "99", "work_id": "99"}
    assert rows[1] == bare | known | {"is_ebook": "false", "label": 0}
    assert list(counts.values()) == [3, 2, 1, 2, 8, 1, 1, 1, 5]
    assert len(goodreads.DATASET.fields) == 15
    leaks = {
        "average_rating",
        "ratings_count",
        "text_reviews_count",
        "reviews_count",
        "ratings_sum",
        "rating_dist",
        "is_read",
    }
    assert not leaks & set(goodreads.COLUMNS)
    for split in dataset.values():
        assert {n: f.dtype for n, f in split.features.items()} == dict.fromkeys(goodreads.COLUMNS, "string") | {
            "label": "int64"
        }


def read_lines(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_the_join_is_what_plain_python_makes_of_the_files(generated: Path) -> None:
    dataset, counts = goodreads.read(generated)
    books = {book["book_id"]: book for book in read_lines(generated / BOOKS)}
    authors = {author["author_id"]: author["name"] for author in read_lines(generated / AUTHORS)}
    works = {work["work_id"]: work for work in read_lines(generated / WORKS)}
    genres = {book["book_id"]: book["genres"] for book in read_lines(generated / GENRES)}
    expected = []
    for seen in read_lines(generated / INTERACTIONS):
        if seen["rating"] == 0 or seen["book_id"] not in books:
            continue
        book = books[seen["book_id"]]
        work, votes = works.get(book["work_id"], {}), genres[seen["book_id"]]
        author = book["authors"][0]["author_id"]
        values = {**book, **work, "user_id": seen["user_id"], "author_id": author, "author_name": authors[author]}
        values["genres"] = "; ".join(sorted(votes, key=lambda name: (-votes[name], name)))
        row = {name: values.get(name) or None for name in goodreads.COLUMNS} | {"label": int(seen["rating"] > 3)}
        time = datetime.strptime(seen["date_added"], goodreads.DATE).timestamp()
        expected.append(((time, seen["user_id"], seen["book_id"], seen["rating"]), row))
    assert rows_of(dataset) == [row for _, row in sorted(expected, key=lambda pair: pair[0])]
    rows = len(expected)
    assert counts["rows"] == rows > 12_000 and counts["dropped: the books file lacks the book"] > 0
    assert counts["interactions"] == 25_000 == rows + sum(n for step, n in counts.items() if step.startswith("dropped"))
    train = 9 * (9 * rows // 10) // 10
    assert dataset.num_rows == {"train": train, "validation": 9 * rows // 10 - train, "test": rows - 9 * rows // 10}


def test_rows_out_of_time_order_are_refused(tmp_path: Path) -> None:
    schema = goodreads.SCHEMA.append(pa.field("time", pa.int64()))
    for times in ([1, 0], [[1], [0]]):
        batches = [
            pa.RecordBatch.from_pylist([{"label": 0, "time": time} for time in batch], schema)
            for batch in (times if isinstance(times[0], list) else [times])
        ]
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        with pytest.raises(RuntimeError, match="did not give the rows in time order"):
            goodreads._write(reader, 2, tmp_path)


def test_files_that_have_not_changed_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write(tmp_path / "raw", records())
    first = goodreads.read(raw)
    with monkeypatch.context() as patch:
        patch.setattr(goodreads, "join", lambda *_: pytest.fail("read again"))
        again = goodreads.read(raw)
    assert (rows_of(again[0]), again[1]) == (rows_of(first[0]), first[1])
    changed = records()
    changed[INTERACTIONS] = changed[INTERACTIONS][:1]
    assert len(rows_of(goodreads.load("goodreads", write(raw, changed)))) == 1


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (BOOKS, lambda line: line[:20], r"no JSON \(.*\): fetch the file again, or mend that line$"),
        (BOOKS, lambda line: line.replace(b"Little", b"Littl\xe9"), r"no JSON \(.*utf-8.*\)"),
        (WORKS, lambda line: b"[1, 2]", "no record with work_id"),
        (AUTHORS, lambda line: b'{"name": "A"}', "no record with author_id"),
        (GENRES, lambda line: b'{"book_id": null, "genres": {}}', "no record with book_id"),
        (INTERACTIONS, lambda line: line.replace(b'"user_id"', b'"user"'), "no record with user_id"),
        (INTERACTIONS, lambda line: line.replace(b'"rating": 5', b'"rating": 6'), "a record with rating 6, not 0 to 5"),
        (
            INTERACTIONS,
            lambda line: line.replace(b'"rating": 5', b'"rating": "x"'),
            "a record with rating 'x', not 0 to 5",
        ),
    ],
)
def test_a_broken_line_is_named(file: str, damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", records())
    lines = [json.dumps(record).encode() for record in records()[file]]
    first = {"book_id": "0", "author_id": "0", "work_id": "0", "genres": {}, "user_id": "u", "rating": 1}
    (raw / file).write_bytes(gzip.compress(b"\n".join([json.dumps(first).encode(), b"", damage(lines[0]), *lines[1:]])))
    with pytest.raises(ValueError, match=message) as error:
        goodreads.read(raw)
    assert str(error.value).startswith(f"line 3 of {str(raw / file)!r} is ")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*"))  # nothing that could be taken for a finished one


def test_a_book_told_twice_would_double_its_rows(tmp_path: Path) -> None:
    files = records()
    files[AUTHORS].append(files[AUTHORS][0])
    with pytest.raises(ValueError, match=r"goodreads_book_authors\.json\.gz' has two records of author_id '12'"):
        goodreads.read(write(tmp_path / "raw", files))


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b[:-6] + bytes([b[-6] ^ 1]) + b[-5:]], ids=["cut", "bit"]
)
def test_damaged_gzip_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", records())
    (raw / INTERACTIONS).write_bytes(damage((raw / INTERACTIONS).read_bytes()))
    with pytest.raises(ValueError, match=r"goodreads_interactions_dedup\.json\.gz' is not a complete gzip file"):
        goodreads.read(raw)


def test_missing_files_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write(tmp_path / "raw", records())
    (raw / WORKS).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no goodreads_book_works\.json in .*and goodreads_book_works\.json\.gz"
    ):
        goodreads.read(raw)
    with pytest.raises(FileNotFoundError, match=r"raw_dir '.*nowhere' is not a folder"):
        goodreads.read(tmp_path / "nowhere")
    with pytest.raises(ConnectionError, match=r"cannot download .*goodreads_interactions_dedup\.json\.gz .*--raw_dir"):
        goodreads.read()
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ImportError, match=r"GoodReads is joined by DuckDB: pip install .*\[data\]"):
        goodreads.read(write(raw, records()))


def test_the_written_folder_says_what_became_of_the_rows(
    generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    goodreads.main(["--raw_dir", str(generated), "--output_dir", str(output)])
    assert "      25,000 interactions\n" in capsys.readouterr().out
    assert sorted(p.name for p in output.iterdir()) == [
        "README.md",
        *(f"{s}.parquet" for s in ("test", "train", "validation")),
    ]
    card = DatasetCard.load(output / "README.md")
    assert "| interactions | 25,000 |\n" in card.text and "https://doi.org/10.1145/3240323.3240369" in card.text
    assert "train.py configuration/goodreads/dcnv2.yaml" in card.text and "average rating" in card.text
    assert (card.data.license, card.data.license_name, card.data.pretty_name) == ("other", "academic-use", "GoodReads")
    reloaded = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert rows_of(reloaded) == rows_of(goodreads.load("goodreads", generated))


def test_generated_records_have_the_public_form(generated: Path) -> None:
    if not RECORDS.is_file():
        pytest.skip(f"the GoodReads records are not at {RECORDS}")
    for name, record in json.loads(RECORDS.read_text()).items():
        if name == "note":
            continue
        for made in read_lines(generated / name)[:200]:
            assert list(made) == list(record), name
            assert {key: type(value) for key, value in made.items()} == {
                key: type(value) for key, value in record.items()
            }


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = goodreads_like.write(tmp_path / name, interactions=50, books=10, seed=seed)
        texts.append({file.name: gzip.decompress(file.read_bytes()) for file in folder.iterdir()})
    assert texts[0] == texts[1]
    assert all(texts[0][name] != texts[2][name] for name in texts[0] if name != AUTHORS)


def test_polars_gives_the_same_rows(generated: Path, tmp_path: Path) -> None:
    pytest.importorskip("polars", reason="Polars is only measured")
    sums = []
    for name, engine in goodreads_join.ENGINES.items():
        (tmp_path / name).mkdir()
        engine(generated, tmp_path / name)
        sums.append(goodreads_join.checksum(tmp_path / name))
    assert sums[0] == sums[1]
