"""Files and folders of rows as Arrow record batches, raw: what is written is what is handed over.

A CSV's cells are text exactly as they are written ("02897" and identifiers of 19 digits stay), empty cells are null and nothing
else is interpreted. Parquet keeps its types. JSON lines keep theirs where a column has one; a column of several is text, each
cell as it would be spelled alone. Memory is bounded: files are read in parts, in place, and nothing is copied into a cache.

    table = open_table("clicks.csv")
    table.schema             # names and types
    for batch in table.batches(): ...
    table.to_table()         # all of it

What cannot be read is an error; rows of text files can be left out instead, and counted: see `Quarantine`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import logging
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from .fields import did_you_mean
from .quarantine import NO_TEXT, BadRowError, Quarantine

logger = logging.getLogger(__name__)

ROWS_PER_BATCH = 32_768
BLOCK, LONGEST_ROW = (
    1 << 20,
    1 << 26,
)  # bytes of a CSV that are parsed at once, and up to how many where a row is longer
KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    **{f"{suffix}.gz": suffix[1:] for suffix in (".csv", ".tsv")},
    **{f"{suffix}.gz": "json" for suffix in (".jsonl", ".ndjson", ".json")},
}
READ = ".csv, .tsv, .jsonl, .ndjson, .json (one object a line; all of these also with .gz) and .parquet"
DELIMITERS = ",;\t|"
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLIT_NAMES |= {"dev": "validation", "test": "test"}
NO_ROWS = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}  # files of `datasets` about others
BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ENCODING_SAMPLE = 1 << 24


@dataclass(frozen=True)
class TableFile:
    """A file, or a folder of files, that has been opened and not yet read.

    Attributes:
        path: where it is, for messages.
        schema: its columns.
        read: the rows' columns of these names, in this order; called as often as the rows are asked for.
        num_rows: how many there are, where that is known without reading them.
    """

    path: Path
    schema: pa.Schema
    read: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
    num_rows: int | None = None

    def batches(self, names: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, some at a time; with `names` these columns alone are read, in this order.

        Raises:
            ValueError: there is no such column, with the nearest that there is.
        """
        names = self.schema.names if names is None else list(names)
        for name in names:
            if name not in self.schema.names:
                known = list(self.schema.names)
                raise ValueError(
                    f"{self.path} has no column {name!r}; its columns are {known}{did_you_mean(name, known)}"
                )
        return self.read(names)

    def to_table(self, names: Sequence[str] | None = None) -> pa.Table:
        """All rows in memory (those of a `save_to_disk` folder stay on disk, mapped); with `names` these columns alone."""
        batches = self.batches(names)
        schema = self.schema if names is None else pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_batches(batches, schema)


def open_table(
    path: str | Path,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    quarantine: Quarantine | None = None,
) -> TableFile:
    """Open a file, a folder of files of one kind, or a folder that `datasets` has saved.

    Args:
        path: .csv, .tsv, .jsonl, .ndjson, .json (one object a line; all also with .gz), .parquet, or a folder of them.
        delimiter: of a CSV; by default the one of `,` `;` tab `|` that cuts the header and the next rows alike.
        encoding: of text; by default what a byte order mark says, UTF-8 where it is valid, else cp1252, with a warning.
        quarantine: takes the rows of CSV and JSON lines that cannot be read; by default they are errors. Damaged gzip and Parquet
            files, a header that cannot be read, and a quote that is never closed always are: how many rows they cost is unknown.

    Raises:
        FileNotFoundError: there is none, with the nearest name in its folder.
        ValueError: it cannot be read; with file, line or row, column, and remedy. What lies further in is found by
            `batches`.
    """
    found = open_splits(path, delimiter=delimiter, encoding=encoding, quarantine=quarantine)
    if None not in found:
        raise ValueError(
            f"{path} holds the splits {', '.join(map(str, found))}, each a table of its own: name one of them"
        )
    return found[None]


def open_splits(
    path: str | Path,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    quarantine: Quarantine | None = None,
) -> dict[str | None, TableFile]:
    """Open what `open_table` does, or a folder of splits: files or subfolders named train, validation (valid, val, dev) and
    test, or a saved `DatasetDict`.

    Returns:
        `{"train": …, "validation": …, "test": …}`, those that are there; `{None: …}` where nothing is named so.

    Raises:
        FileNotFoundError, ValueError: as `open_table`.
    """
    path = Path(path)
    open_files = partial(
        _open_files,
        path=path,
        delimiter=_delimiter(delimiter),
        encoding=_encoding(encoding),
        quarantine=quarantine,
    )
    if path.is_file():
        return {None: open_files([path])}
    if not path.is_dir():
        neighbours = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"{path} does not exist{did_you_mean(path.name, neighbours)}")
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _open_saved(path)
    return {split: open_files(files) for split, files in _split_files(path).items()}


def split_of(name: str) -> str | None:
    """The split that a file or folder is named for, such as train.csv or dev-00000-of-00002.parquet; None if for none."""
    stem = name.lower().removesuffix(_suffix(name) or "")
    match = re.fullmatch(rf"({'|'.join(SPLIT_NAMES)})([-_.]\d+)?(-of-\d+)?", stem)
    return SPLIT_NAMES[match[1]] if match else None


def _suffix(name: str) -> str | None:
    return next((suffix for suffix in sorted(KINDS, key=len, reverse=True) if name.lower().endswith(suffix)), None)


def _kind(path: Path) -> str:
    suffix = _suffix(path.name)
    if suffix is None:
        raise ValueError(f"{path} ends in {path.suffix or 'no suffix'!r}, which is not supported; supported are {READ}")
    return KINDS[suffix]


def _split_files(folder: Path) -> dict[str | None, list[Path]]:
    """The readable files of a folder, by split, in the order of their names."""
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith((".", "_")))
    files = [p for p in inside if p.is_file() and _suffix(p.name) and p.name not in NO_ROWS]
    folders = [p for p in inside if p.is_dir() and split_of(p.name)]
    if files and folders:
        raise ValueError(f"{folder} holds both {files[0].name} and a folder {folders[0].name}: move one of them out")
    if folders:
        files = [
            p for f in folders for p in sorted(f.iterdir()) if p.is_file() and _suffix(p.name) and p.name[0] not in "._"
        ]
        names = {p: p.parent.name for p in files}
    elif not files and (folder / "data").is_dir():  # a clone of a Hub dataset
        return _split_files(folder / "data")
    else:
        names = {p: p.name for p in files}
    if not files:
        raise ValueError(f"{folder} holds no supported file ({READ}); it holds {[p.name for p in inside][:10]}")
    found: dict[str | None, list[Path]] = {}
    for file in files:
        found.setdefault(split_of(names[file]), []).append(file)
    if None in found and len(found) > 1:
        one = next(file for file in files if split_of(names[file]))
        raise ValueError(
            f"{folder} holds {one.name}, which is named after a split, and {found[None][0].name}, which is not: move one of "
            "them out"
        )
    for split, named in found.items():
        words = {names[file].lower().partition(".")[0].rstrip("-_0123456789of"): names[file] for file in named}
        if split is not None and len(words) > 1:
            raise ValueError(
                f"{folder} holds {' and '.join(words.values())}, all named after split {split}: move one of them out"
            )
    order = ["train", "validation", "test", None]
    return {split: found[split] for split in order if split in found}


def _open_files(
    files: list[Path],
    path: Path,
    delimiter: str | None,
    encoding: str | None,
    quarantine: Quarantine | None,
) -> TableFile:
    """One table of files of one kind."""
    kinds = {_kind(file): file for file in files}
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise ValueError(
            f"{path} holds {one.name} and {other.name}: one table is made of files of one kind; name one file"
        )
    (kind,) = kinds
    if kind == "json":
        return _open_json(files, path, encoding, quarantine)
    if kind == "parquet":
        tables = [_open_parquet(file) for file in files]
    else:
        tables = [
            _open_csv(file, "\t" if kind == "tsv" and delimiter is None else delimiter, encoding, quarantine)
            for file in files
        ]
    return tables[0] if len(tables) == 1 else _one_after_the_other(tables, path)


def _one_after_the_other(tables: list[TableFile], path: Path) -> TableFile:
    """Tables of the same column names as one; their types are widened to a common one."""
    first = tables[0]
    fields = {field.name: field for field in first.schema}
    for table in tables[1:]:
        for name in first.schema.names:
            if name not in table.schema.names:
                near = did_you_mean(name, set(table.schema.names) - set(fields))
                raise ValueError(f"{table.path} has no column {name!r}, which {first.path} has{near}")
        for field in table.schema:
            if field.name not in fields:
                raise ValueError(f"{table.path} has a column {field.name!r}, which {first.path} does not have")
            try:
                both = pa.unify_schemas(
                    [pa.schema([pa.field(f.name, f.type)]) for f in (fields[field.name], field)],
                    promote_options="permissive",
                )
            except pa.ArrowException as error:
                raise ValueError(
                    f"column {field.name!r} is {field.type} in {table.path} and {fields[field.name].type} in the files before "
                    "it: write it with one type"
                ) from error
            fields[field.name] = both.field(0)
    schema = pa.schema(list(fields.values()))

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        chosen = pa.schema([schema.field(name) for name in names])
        for table in tables:
            for batch in table.batches(names):
                yield pa.RecordBatch.from_arrays([_cast(batch[f.name], f, table.path) for f in chosen], schema=chosen)

    counts = [table.num_rows for table in tables]
    return TableFile(path, schema, read, None if None in counts else sum(c for c in counts if c is not None))


def _cast(column: pa.Array, field: pa.Field, path: Path) -> pa.Array:
    try:
        return column if column.type == field.type else column.cast(field.type)
    except pa.ArrowException as error:
        raise ValueError(
            f"column {field.name!r} of {path} is {column.type} and cannot be {field.type}, as beside it: {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_names(names: Sequence[str], path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{path} has more than one column {name!r}; rename one")
        seen.add(name)


# ---- text: any encoding, plain or gzipped, as a stream of checked UTF-8


def _encoding(encoding: str | None) -> str | None:
    try:
        "a".encode(encoding or "utf-8")  # looked up alone, there is base64 too, which is none of text
        return encoding and codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"encoding is {encoding!r}, which Python does not know; use utf-8, utf-16, cp1252, …"
        ) from error


def _delimiter(delimiter: str | None) -> str | None:
    delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter or "", delimiter)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0' or not delimiter.isascii()):
        raise ValueError(f"delimiter is {delimiter!r}; it must be one ASCII character, such as , ; | or tab")
    return delimiter


@contextmanager
def _bytes_of(path: Path) -> Iterator[BinaryIO]:
    with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
        yield file  # type: ignore[misc]


def _not_gzip(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a complete gzip file ({error}): copy or download it again")


def detect_encoding(path: Path) -> str:
    """What the byte order mark says; UTF-8 where the first 16 MiB are, or hold more of its characters than other bytes; else
    cp1252, with a warning.

    Raises:
        ValueError: the file is empty, or no whole gzip file.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    size = characters = wrong = 0

    def count(text: str) -> None:
        nonlocal characters, wrong
        if not text.isascii():
            bad = len(text) - len(text.encode("utf-8", "ignore").decode())
            wrong, characters = wrong + bad, characters + len(text) - len(text.encode("ascii", "ignore")) - bad

    try:
        with _bytes_of(path) as file:
            while size < ENCODING_SAMPLE and (chunk := file.read(BLOCK)):
                if size == 0:
                    for mark, encoding in BOMS.items():
                        if chunk.startswith(mark):
                            return encoding
                    if chunk.count(0) > len(chunk) // 4:
                        raise ValueError(f"{path} is not UTF-8: set its encoding, such as utf-16-le")
                size += len(chunk)
                count(decoder.decode(chunk))
                if wrong > characters + 100:  # no need to look further
                    break
            if size < ENCODING_SAMPLE:
                count(decoder.decode(b"", final=True))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _not_gzip(path, error) from error
    if wrong > characters:
        logger.warning(f"{path} is not UTF-8 and is read as cp1252 (Windows); if that is wrong, set its encoding")
        return "cp1252"
    if size == 0:
        raise ValueError(f"{path} is empty")
    return "utf-8"


class _Utf8(io.RawIOBase):
    """A file's text as UTF-8 bytes without byte order mark.

    Args:
        path, file, encoding: where it is.
        marks: hand over NO_TEXT for bytes that are not of the encoding; `has_marks` tells whether there were any.

    Raises:
        ValueError: while it is read, where bytes are not of the encoding, with line and offset.
    """

    def __init__(self, path: Path, file: BinaryIO, encoding: str, marks: bool):
        self.path, self.file, self.encoding, self.marks = path, file, encoding, marks
        self.has_marks = False
        self.decoder = codecs.getincrementaldecoder(encoding)("modeling_flip.no_text" if marks else "strict")
        self.offset = self.lines = 0
        self.started = self.ended = False
        self.waiting = b""
        self.end = ""  # the last of what has been read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.waiting and not self.ended:
            self.waiting = self._next().encode()
        part, self.waiting = self.waiting[: len(buffer)], self.waiting[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _next(self) -> str:
        try:
            chunk = self.file.read(BLOCK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _not_gzip(self.path, error) from error
        self.ended = not chunk
        try:
            text = self.decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            offset = self.offset + len(chunk) - len(error.object) + error.start
            line = self.lines + before.decode(self.encoding, "replace").count("\n") + 1
            wrong = error.object[error.start : error.start + 1].hex()
            other = "cp1252" if self.encoding == "utf-8" else "latin-1"
            raise ValueError(
                f"{self.path}, line {line} (byte {offset}): 0x{wrong} is not {self.encoding}; set the file's encoding, such as "
                f"{other}"
            ) from error
        except UnicodeError as error:  # such as a byte order mark that is not there
            raise ValueError(f"{self.path} is not {self.encoding} ({error}); set the file's encoding") from error
        self.offset += len(chunk)
        if not self.started and text:
            self.started, text = True, text.removeprefix("\ufeff")
        self.lines += text.count("\n")
        self.has_marks = self.has_marks or (self.marks and NO_TEXT in text)
        self.end = (self.end + text)[-(1 << 16) :]
        return text


@contextmanager
def _utf8(path: Path, encoding: str, marks: bool = False) -> Iterator[tuple[io.BufferedReader, _Utf8]]:
    with _bytes_of(path) as file:
        raw = _Utf8(path, file, encoding, marks)
        yield io.BufferedReader(raw, BLOCK), raw


# ---- CSV


def _open_csv(
    path: Path,
    delimiter: str | None,
    encoding: str | None,
    quarantine: Quarantine | None,
) -> TableFile:
    encoding = encoding or detect_encoding(path)
    with _utf8(path, encoding, quarantine is not None) as (stream, _):
        head = stream.read(BLOCK)
        whole = not stream.read(1)
    text = head.decode(errors="ignore")  # the last character may be cut
    if not text.strip():
        raise ValueError(f"{path} is empty: it has no header")
    delimiter = delimiter or detect_delimiter(text, whole)
    rows = _some_rows(text, delimiter, whole)
    skipped = next((i for i, row in enumerate(rows) if row), None)
    if skipped is None:
        raise ValueError(f"{path}, line 1: a quote in the header is not closed")
    # A column without a name is what pandas calls it: an index that was written along.
    names = [name or f"Unnamed: {i}" for i, name in enumerate(rows[skipped])]
    if whole and len(rows) == skipped + 1 and "\n" in names[-1] and not text.rstrip().endswith('"'):
        raise ValueError(f"{path}, line {skipped + 1}: a quote in the header is not closed")
    if quarantine is not None and any(NO_TEXT in name for name in names):
        raise ValueError(f"{path}, line {skipped + 1}: the header is not {encoding}; set the file's encoding")
    _check_names(names, path)
    schema = pa.schema([pa.field(name, pa.string()) for name in names])
    if whole and not any(rows[skipped + 1 :]):
        return TableFile(path, schema, lambda _: iter(()), 0)

    def read(wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return _csv_batches(path, names, wanted, delimiter, encoding, skipped, quarantine)

    return TableFile(path, schema, read)


def detect_delimiter(text: str, whole: bool = True) -> str:
    """The one of `,` `;` tab `|` that cuts the header and the next rows into the same number of cells, more than one; the
    most cells win. Where none does, the one that cuts the header into most, and a comma where none does that either."""
    best = (False, 1, ",")
    for delimiter in DELIMITERS:
        rows = [row for row in _some_rows(text, delimiter, whole) if row][:20]
        cells = len(rows[0]) if rows else 0
        found = (cells > 1 and all(len(row) == cells for row in rows), cells, delimiter)
        if cells > 1 and found[:2] > best[:2]:
            best = found
    return best[2]


def _some_rows(text: str, delimiter: str, whole: bool) -> list[list[str]]:
    """Up to 100 rows of the beginning of a file; a row that may be cut is left out."""
    rows: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows.extend(itertools.islice(reader, 100))
        if not whole and next(reader, None) is None:
            rows.pop()
    except csv.Error:  # a cell that is too long for this reader
        pass
    return rows


def _csv_batches(
    path: Path,
    names: list[str],
    some: Sequence[str],
    delimiter: str,
    encoding: str,
    skipped: int,
    quarantine: Quarantine | None,
) -> Iterator[pa.RecordBatch]:
    wanted, marks = list(some), quarantine is not None
    # The last column is always read: a quote that is never closed shows in it. Any may hold what is no text.
    read = names if marks else wanted if names[-1] in wanted else [*wanted, names[-1]]
    convert = arrow_csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        null_values=[""],
        strings_can_be_null=True,
        include_columns=read,
        check_utf8=False,  # the stream has done so
    )
    block, done = BLOCK, 0
    while True:
        options = arrow_csv.ReadOptions(
            use_threads=False,  # it would not tell the row of an error
            block_size=block,
            column_names=names,
            skip_rows_after_names=skipped + 1,
        )
        ragged = array("q")  # numbers of rows

        def leave_out(row: Any, ragged: array[int] = ragged) -> str:
            if quarantine is None or _is_many_lines(row.text):
                return "error"
            error = _ragged(path, f"row {row.number}", row.actual_columns, len(names), row.text, delimiter)
            quarantine.add(path, _csv_place(row.number), row.text, error, row.number)
            ragged.append(row.number)
            try:  # Arrow would swallow the error: it is raised below
                quarantine.check(path, row.number, so_far=True)
            except ValueError:
                return "error"
            return "skip"

        parse = arrow_csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=leave_out if marks else None
        )
        seen, batch = 0, None
        try:
            with (
                _utf8(path, encoding, marks) as (stream, raw),
                arrow_csv.open_csv(stream, options, parse, convert) as reader,
            ):
                for batch in reader:
                    seen += len(batch)
                    if seen > done:
                        new, done = batch.slice(len(batch) - (seen - done)), seen
                        if quarantine is not None and raw.has_marks:
                            # Rows are numbered as Arrow numbers them: from 1, with the header, and without empty lines.
                            at = np.arange(seen - len(new), seen)
                            before = np.asarray(ragged) - (skipped + 2) - np.arange(len(ragged))
                            numbers = skipped + 2 + at + np.searchsorted(before, at, "right")
                            new = _without_marks(new, numbers, path, encoding, delimiter, quarantine)
                        if len(new):
                            yield new.select(wanted)
                ends_left_out = ragged and ragged[-1] == skipped + 1 + seen + len(ragged)
                last = "" if batch is None or not len(batch) or ends_left_out else batch[names[-1]][-1].as_py() or ""
                if batch is not None and not ends_left_out and _is_open(last, raw.end, delimiter):
                    raise pa.ArrowInvalid("a quote is not closed")
                if quarantine is not None:
                    quarantine.check(path, seen + len(ragged))
                return
        except pa.ArrowInvalid as error:
            if "straddl" not in str(error) or block == LONGEST_ROW:
                if quarantine is not None and ragged:
                    quarantine.check(path, ragged[-1], so_far=True)
                raise _csv_error(path, encoding, delimiter, names, error, marks) from error
            block *= 8  # a row is longer than a block: start again with a larger one and skip what has been read


def _csv_place(number: int) -> str:
    return f"row {number}, of which the header is the first"


def _is_many_lines(text: str) -> bool:
    """Whether a row that has the wrong number of cells has lines that may be rows of their own, behind a quote that is not
    closed."""
    return "\n" in text or "\r" in text


def _without_marks(
    batch: pa.RecordBatch, numbers: np.ndarray, path: Path, encoding: str, delimiter: str, quarantine: Quarantine
) -> pa.RecordBatch:
    """The rows that are text; `numbers` (N,) are those of all rows in the file."""
    marked = np.zeros(len(batch), bool)
    for column in batch.columns:
        marked |= pc.fill_null(pc.match_substring(column, NO_TEXT), False).to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(marked).tolist():
        text = delimiter.join(cell or "" for cell in batch.slice(i, 1).to_pylist()[0].values())
        error = BadRowError(
            f"{path}, row {numbers[i]}: it holds bytes that are not {encoding}; set the file's encoding",
            f"not {encoding}",
        )
        quarantine.add(path, _csv_place(numbers[i]), text, error, int(numbers[i]))
    quarantine.check(path, int(numbers[-1]), so_far=True)
    return batch.filter(pa.array(~marked))


def _ragged(
    path: Path, where: str, cells: int, expected: int, text: str, delimiter: str, hint: str = ""
) -> BadRowError:
    shown = repr(text if len(text) <= 80 else f"{text[:80]}…")
    return BadRowError(
        f"{path}, {where}: {cells} cells where the header has {expected}: {shown}{hint}; quote cells that hold {delimiter!r}, "
        "or set the delimiter",
        "wrong number of cells",
    )


def _is_open(last_cell: str, end: str, delimiter: str) -> bool:
    """Whether the quote that opens in a file's last cell is never closed, which Arrow does not mind."""
    if "\n" in last_cell:
        return not end.rstrip("\r\n").endswith('"')
    opened = '"' + last_cell.replace('"', '""')
    return end.endswith((delimiter + opened, "\n" + opened))


def _csv_error(
    path: Path, encoding: str, delimiter: str, names: list[str], error: Exception, marks: bool
) -> ValueError:
    """What is wrong, and in which line: the rows are read once more, by a slower reader that counts lines."""
    limit = csv.field_size_limit(LONGEST_ROW)
    start = line = 1
    try:
        with _utf8(path, encoding, marks) as (stream, _):
            reader = csv.reader(io.TextIOWrapper(stream, "utf-8", newline=""), delimiter=delimiter)
            try:
                for row in reader:
                    line, start = start, reader.line_num + 1
                    text = delimiter.join(row)
                    if row and len(row) != len(names) and (not marks or _is_many_lines(text)):
                        hint = "; a quote in it may not be closed" if "\n" in text else ""
                        return _ragged(path, f"line {line}", len(row), len(names), text, delimiter, hint)
                start = line
            except csv.Error:
                pass
    finally:
        csv.field_size_limit(limit)
    if "quote is not closed" in str(error) or "straddl" in str(error):
        return ValueError(
            f"{path}, line {start}: a quote that opens in this row is not closed (or a row is longer than "
            f"{LONGEST_ROW >> 20} MiB); close it, or double it where it is meant as a character"
        )
    return ValueError(f"{path} cannot be read: {_one_line(error)}")


# ---- JSON lines


def _open_json(files: list[Path], path: Path, encoding: str | None, quarantine: Quarantine | None) -> TableFile:
    """Reads the files once for their columns' types: a type must not depend on where in a file a batch begins."""
    encodings = [encoding or detect_encoding(file) for file in files]
    types: dict[str, pa.DataType] = {}
    count = 0
    for rows in _json_rows(files, encodings, quarantine):
        count += len(rows)
        for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
            types[name] = _common(types.get(name, pa.null()), _json_type([row.get(name) for row in rows]))
    if not types:
        raise ValueError(f"{path} is empty: it has no JSON object")
    schema = pa.schema([pa.field(_whole_text(name), _without_null(kind)) for name, kind in types.items()])
    _check_names(schema.names, path)

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        keys, fields = dict(zip(schema.names, types, strict=True)), pa.schema([schema.field(name) for name in names])
        for rows in _json_rows(files, encodings, quarantine):
            arrays = [_json_array([row.get(keys[field.name]) for row in rows], field.type) for field in fields]
            yield pa.RecordBatch.from_arrays(arrays, schema=fields)

    return TableFile(path, schema, read, count)


def _json_rows(
    files: Iterable[Path], encodings: Iterable[str], quarantine: Quarantine | None
) -> Iterator[list[dict[str, Any]]]:
    for path, encoding in zip(files, encodings, strict=True):
        with _utf8(path, encoding, quarantine is not None) as (stream, raw):
            rows: list[dict[str, Any]] = []
            count = 0
            for number in itertools.count(1):
                line = stream.readline(LONGEST_ROW)
                if not line:
                    break
                if line.isspace():
                    continue
                count += 1
                try:
                    rows.append(_json_row(line, path, number, encoding if raw.has_marks else None))
                except BadRowError as error:
                    if quarantine is None:
                        raise
                    quarantine.add(path, f"line {number}", line.decode(errors="ignore").strip(), error, number)
                    quarantine.check(path, count, so_far=True)
                while len(line) == LONGEST_ROW and not line.endswith(b"\n"):  # the rest of one that is too long
                    line = stream.readline(LONGEST_ROW)
                if len(rows) == ROWS_PER_BATCH:
                    yield rows
                    rows = []
            if quarantine is not None:
                quarantine.check(path, count)
            if rows:
                yield rows


def _json_row(line: bytes, path: Path, number: int, marked: str | None) -> dict[str, Any]:
    """The object of a line; `marked` is the encoding that NO_TEXT stands in for bytes of another, if it does."""
    here = f"{path}, line {number}"
    if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
        raise BadRowError(f"{here}: longer than {LONGEST_ROW >> 20} MiB; write one object a line", "too long")
    text = line.decode()
    if marked is not None and NO_TEXT in text:
        raise BadRowError(f"{here}: it holds bytes that are not {marked}; set the file's encoding", f"not {marked}")
    try:
        row = JSON(text)
    except (ValueError, RecursionError) as error:
        raise BadRowError(
            f"{here}: {_shown(line)} is not a JSON object ({getattr(error, 'msg', error)}); write one object a line",
            "not a JSON object",
        ) from error
    if not isinstance(row, dict):
        raise BadRowError(
            f"{here}: {_shown(line)} is not a JSON object but {_json_word(row)}; write one object a line",
            "not a JSON object",
        )
    return row


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a key that stands in it twice, Python's reader would keep the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has more than one key {next(name for name in names if names.count(name) > 1)!r}")
    return found


JSON = json.JSONDecoder(object_pairs_hook=each_key_once).decode


def _shown(line: bytes) -> str:
    text = line.decode().strip()
    return repr(text if len(text) <= 80 else f"{text[:80]}…")


def _json_word(value: Any) -> str:
    words = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return words.get(type(value), "a number")


def _json_type(values: list[Any]) -> pa.DataType:
    """The type of a column's cells; text where they are of several, or objects."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.null()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {float}:
        return pa.float64()
    if kinds == {int}:
        numbers = [value for value in values if value is not None]
        return pa.int64() if min(numbers) >= -(2**63) and max(numbers) < 2**63 else pa.string()
    if kinds == {list}:
        return pa.list_(_json_type([item for value in values if value is not None for item in value]))
    return pa.string()


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_common(one.value_type, other.value_type))
    return pa.string()


def _without_null(kind: pa.DataType) -> pa.DataType:
    """A column, or lists, without any value are text."""
    if pa.types.is_list(kind):
        return pa.list_(_without_null(kind.value_type))
    return pa.string() if pa.types.is_null(kind) else kind


def _json_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError):
        return pa.array([_fitted(value, kind) for value in values], kind)


def _fitted(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [_fitted(item, kind.value_type) for item in value]
    return _spelled(value) if pa.types.is_string(kind) else value


def _spelled(value: Any) -> str | None:
    """A JSON value as text: 25 and 25.0 are 25, NaN is missing, arrays and objects are their JSON."""
    if isinstance(value, str):
        return _whole_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if value != value:
            return None
        whole = value.is_integer() and abs(value) < 2**53
        return str(int(value)) if whole else str(pa.scalar(value).cast(pa.string()))
    return _whole_text(json.dumps(value, ensure_ascii=False))


def _whole_text(text: str) -> str:
    return text.encode(errors="replace").decode()  # a lone surrogate has no UTF-8


# ---- Parquet, and what `datasets` has saved


def _open_parquet(path: Path) -> TableFile:
    try:
        with pq.ParquetFile(path) as file:
            schema, num_rows = file.schema_arrow.remove_metadata(), file.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeError) as error:
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty") from error
        raise ValueError(
            f"{path} is not a complete Parquet file ({_one_line(error)}): copy or download it again"
        ) from error
    _check_names(schema.names, path)

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS_PER_BATCH, columns=names):
                    batch.validate(full=True)  # text of a damaged file may be no UTF-8
                    yield batch.select(names).replace_schema_metadata(None)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise ValueError(f"{path} cannot be read ({_one_line(error)}): copy or download it again") from error

    return TableFile(path, schema, read, num_rows)


def _open_saved(path: Path) -> dict[str | None, TableFile]:
    """The Arrow tables of a folder that `save_to_disk` wrote, memory-mapped where they lie."""
    import datasets  # nothing else here needs it, and it takes a while

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # each layer below has exceptions of its own
        raise ValueError(
            f"{path} cannot be read as what save_to_disk writes ({_one_line(error)}): save it again"
        ) from error
    parts: dict[str | None, Any] = dict(saved) if isinstance(saved, datasets.DatasetDict) else {None: saved}
    tables = {SPLIT_NAMES.get(split, split) if split else None: as_arrow(part) for split, part in parts.items()}
    return {split: in_memory(table, path) for split, table in tables.items()}


def in_memory(table: pa.Table, path: Path) -> TableFile:
    """A table that is there already; `path` names it in messages."""

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from table.select(names).to_batches(ROWS_PER_BATCH)

    return TableFile(path, table.schema, read, table.num_rows)


def in_parts(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows; the last may be shorter."""
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    for batch in batches:
        waiting.append(batch)
        num_waiting += len(batch)
        if num_waiting >= size:
            table = pa.Table.from_batches(waiting)
            whole = len(table) - len(table) % size
            yield from (table[first : first + size] for first in range(0, whole, size))
            waiting, num_waiting = table[whole:].to_batches(), len(table) - whole
    if any(map(len, waiting)):
        yield pa.Table.from_batches(waiting)


def as_arrow(dataset: Any) -> pa.Table:
    """The Arrow table of a `datasets.Dataset`, where it lies; rows that were picked are gathered."""
    if dataset._indices is not None:
        dataset = dataset.flatten_indices()
    return dataset.data.table.replace_schema_metadata(None)
