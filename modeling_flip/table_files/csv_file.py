"""CSV, whose cells stay the text that they are, empty ones null."""

from __future__ import annotations

import csv
import io
import itertools
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from ..quarantine import NO_TEXT, BadRowError, Quarantine
from .table_file import TableFile, check_names, one_line
from .text_stream import BLOCK, LONGEST_ROW, detect_encoding, utf8_stream

DELIMITERS = ",;\t|"


def known_delimiter(delimiter: str | None) -> str | None:
    """A delimiter as one character, tab by its name too; raises ValueError where it cannot be one."""
    delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter or "", delimiter)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0' or not delimiter.isascii()):
        raise ValueError(f"delimiter is {delimiter!r}; it must be one ASCII character, such as , ; | or tab")
    return delimiter


def open_csv(
    path: Path,
    delimiter: str | None,
    encoding: str | None,
    quarantine: Quarantine | None,
) -> TableFile:
    """A CSV file. Its beginning is read for the header and, where they are not given, delimiter and encoding.

    Raises:
        ValueError: it is empty, or its header cannot be read.
    """
    encoding = encoding or detect_encoding(path)
    with utf8_stream(path, encoding, quarantine is not None) as (stream, _):
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
    check_names(names, path)
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
    with _cells_of_any_length():
        rows.extend(itertools.islice(reader, 100))
        if not whole and next(reader, None) is None:
            rows.pop()
    return rows


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Python's `csv` refuses cells of more than 131,072 characters."""
    limit = csv.field_size_limit(LONGEST_ROW)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


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
                utf8_stream(path, encoding, marks) as (stream, raw),
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
                empty = raw.end[len(raw.end.rstrip("\r\n")) :].count("\n") - 1  # lines at the end
                num_read = skipped + 1 + seen + len(ragged)
                if raw.lines - empty > num_read:  # some cell has several lines, or a line has none
                    _check_quotes(path, encoding, delimiter, marks)
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


def _check_quotes(path: Path, encoding: str, delimiter: str, marks: bool) -> None:
    """Raises ValueError where a quote is closed by one that opens a later cell: all rows between them would be one cell, which
    Arrow does not mind. A slower reader reads the rows once more."""
    before = 0
    with _cells_of_any_length(), utf8_stream(path, encoding, marks) as (stream, _):
        lines = io.TextIOWrapper(stream, "utf-8", newline="")
        while True:
            reader, start = csv.reader(lines, delimiter=delimiter, strict=True), 1
            try:
                for _ in reader:
                    start = reader.line_num + 1
                return
            except csv.Error:
                if reader.line_num > start:
                    raise ValueError(
                        f"{path}, line {before + start}: a quote that opens in this row is closed only in line "
                        f"{before + reader.line_num}, where another cell begins; close it, or double it where it is meant as a "
                        "character"
                    ) from None
                before += reader.line_num  # a stray quote within one line takes no other row with it


def _csv_error(
    path: Path, encoding: str, delimiter: str, names: list[str], error: Exception, marks: bool
) -> ValueError:
    """What is wrong, and in which line: the rows are read once more, by a slower reader that counts lines."""
    start = line = 1
    with _cells_of_any_length(), utf8_stream(path, encoding, marks) as (stream, _):
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
    if "quote is not closed" in str(error) or "straddl" in str(error):
        return ValueError(
            f"{path}, line {start}: a quote that opens in this row is not closed (or a row is longer than "
            f"{LONGEST_ROW >> 20} MiB); close it, or double it where it is meant as a character"
        )
    return ValueError(f"{path} cannot be read: {one_line(error)}")
