"""One reading of rows, for training and for scoring: any container, each cell as its field's type says."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .cell_text import KINDS_OF_TEXT, canonical_text, holds_text
from .fields import Field, did_you_mean
from .row_containers import OF_LISTS, UnreadableError, arrow_or_cells, decoded, is_container, of_one_type, open_rows

# Between the members of a list in its canonical text; no member holds it.
MEMBER_SEPARATOR = "\x1f"
# A numpy array as pandas writes it to a CSV: ['rock' 'jazz'], [1 2 3].
NUMPY_MEMBER = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+]?(?:[0-9][0-9.eE+-]*|nan|inf)""")
NUMPY_ARRAY = re.compile(rf"\[\s*(?:{NUMPY_MEMBER.pattern})(?:\s+(?:{NUMPY_MEMBER.pattern}))+\s*\]")


def read_columns(
    rows: Any, schema: Sequence[Field], *, strict: bool = True
) -> tuple[dict[str, pa.DictionaryArray], list[str]]:
    """The fields of any table-like thing as columns of canonical text.

    Args:
        rows: a dict (one row, or columns), a list of dicts, a pandas DataFrame, an Arrow table or record batch, or a
            `datasets.Dataset`.
        schema: the fields wanted, none of them ignored.
        strict: whether an absent field is an error; otherwise its column is null throughout.

    Returns:
        `{name: (N,) dictionary-encoded strings}` without unused entries, and the names of the absent fields. A list's text is
        its members, separated by `MEMBER_SEPARATOR`; an empty list is missing.

    Raises:
        ValueError: a field is absent and `strict`, with the nearest column that exists; or columns differ in length.
        TypeError: `rows` is none of the above, or a cell has no text, such as bytes or a dict.

    Example:
        >>> columns, _ = read_columns([{"age": "007"}, {"age": 7.0}], [Field(name="age", type="integer")])
        >>> columns["age"].to_pylist()
        ['7', '7']
    """
    names = [field.name for field in schema]
    present, length, column_of = open_rows(rows, schema)
    absent = [name for name in names if name not in present]
    if absent and strict:
        known = sorted(map(str, present))
        raise ValueError(f"column {absent[0]!r} is missing; the columns are {known}{did_you_mean(absent[0], known)}")
    columns = {}
    for field in schema:
        values = pa.nulls(length) if field.name in absent else column_of(field.name)
        columns[field.name] = read_column(values, field)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length: {lengths}; give every row a value, or None")
    return columns, absent


def read_column(values: Any, field: Field) -> pa.DictionaryArray:
    """One column, (N,) canonical text: an Arrow array, a pandas Series, a numpy array or a sequence of Python values."""
    read = _read_lists if field.kind == "list" else _read_scalars
    column = read(values, field)
    if field.kind == "text":
        column = _mapped(column, lambda texts: _cut_words(texts, field.max_words))
    return column


def read_clicks(rows: Any, name: str) -> np.ndarray:
    """(N,) float32 clicks of a column that holds 0 and 1, or false and true.

    Raises:
        ValueError: the column is absent, or a value is missing or not a label.
    """
    columns, _ = read_columns(rows, [Field(name=name)])
    column = _mapped(columns[name], pc.utf8_lower)
    clicks = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0}
    names = column.dictionary.to_pylist()
    wrong = [i for i, text in enumerate(names) if text not in clicks]
    indices = pc.fill_null(column.indices, -1).to_numpy()
    if wrong or column.null_count:
        where = int(np.flatnonzero(indices == (wrong[0] if wrong else -1))[0])
        shown = repr(columns[name][where].as_py()) if wrong else "a missing value"
        raise ValueError(
            f"label column {name!r} holds {shown} (row {where}); labels are 0 or 1: drop such rows or turn them into clicks first"
        )
    return np.asarray([clicks[text] for text in names], np.float32)[indices]


def _read_scalars(values: Any, field: Field) -> pa.DictionaryArray:
    pieces = of_one_type(values, field)
    read = [_mapped(_encoded(piece, field), lambda texts: canonical_text(texts, field)) for piece, _ in pieces]
    return _joined(read, [rows for _, rows in pieces])


def _joined(columns: Sequence[pa.DictionaryArray], rows: Sequence[np.ndarray | None]) -> pa.DictionaryArray:
    """Joins columns that each hold some of the rows."""
    if len(columns) == 1:
        return columns[0]
    back = np.argsort(np.concatenate([r for r in rows if r is not None]), kind="stable")
    return pa.concat_arrays([decoded(column) for column in columns]).take(pa.array(back)).dictionary_encode()


def _encoded(values: pa.Array, field: Field) -> pa.DictionaryArray:
    """Dictionary-encoded, so that each distinct value is read once; without entries that no row has.

    Raises:
        TypeError: the values cannot be written as text: lists, structs, bytes, durations, or invalid text.
    """
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not any(is_kind(kind) for is_kind in KINDS_OF_TEXT):
        remedy = OF_LISTS if _is_list(kind) else "turn it into text or numbers first"
        raise UnreadableError(f"field {field.name!r} has type {kind}; {remedy}")
    if not pa.types.is_dictionary(values.type):
        column = (values.cast(pa.string()) if pa.types.is_null(kind) else values).dictionary_encode()
    else:  # in order of first appearance, as of any other column, whatever order the categories have
        by_row = values.indices.dictionary_encode()
        named = values.dictionary.take(
            by_row.dictionary
        ).dictionary_encode()  # it may name a value twice, or a missing one
        column = pa.DictionaryArray.from_arrays(named.indices.take(by_row.indices), named.dictionary)
    if holds_text(kind):
        try:
            column.dictionary.validate(full=True)
        except pa.ArrowInvalid:
            raise UnreadableError(f"field {field.name!r} holds text that is not UTF-8; write it in UTF-8") from None
    return column


def _mapped(column: pa.DictionaryArray, read: Callable[[pa.Array], pa.Array]) -> pa.DictionaryArray:
    """Applies `read` to the distinct values of a column; equal results are merged, nulls become missing."""
    distinct = column.dictionary
    texts = read(distinct)
    if texts is distinct:  # nothing to merge; such calls are most of the time that a single row takes
        return column
    texts = texts.dictionary_encode()
    indices = texts.indices.take(column.indices)
    return pa.DictionaryArray.from_arrays(indices.cast(pa.int32()), texts.dictionary)


def _cut_words(texts: pa.Array, max_words: int) -> pa.Array:
    """The first words, at most this many, with one space between them; only spaces count as missing."""
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
    return _nothing_is_missing(pc.binary_join(pc.list_slice(words, 0, max_words), " "))


def _nothing_is_missing(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(texts, ""), None, texts)


# ---- lists


def _read_lists(values: Any, field: Field) -> pa.DictionaryArray:
    """Lists as the text of their members, one after the other."""
    values = arrow_or_cells(values)
    if isinstance(values, pa.Array) and _is_list(values.type):
        return _from_lists(values, field).dictionary_encode()
    if not isinstance(values, pa.Array):
        containers = np.fromiter((is_container(value) for value in values), bool, len(values))
        if containers.any():
            rows, others = np.flatnonzero(containers), np.flatnonzero(~containers)
            of_lists = _from_containers([values[i] for i in rows], field).dictionary_encode()
            if not len(others):
                return of_lists
            rest = _read_lists([values[i] for i in others], field)
            return _joined([of_lists, rest], [rows, others])
    # Text, or single values, which are lists of one.
    pieces = of_one_type(values, field)
    read = [_mapped(_encoded(piece, field), lambda cells: _from_cells(cells, field)) for piece, _ in pieces]
    return _joined(read, [rows for _, rows in pieces])


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _from_lists(lists: pa.Array, field: Field) -> pa.Array:
    """(N,) Arrow lists → (N,) text."""
    if pa.types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.list_(lists.type.value_type))
    # A null may hide members, which `list_flatten` leaves out but `list_parent_indices` does not.
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    parents = np.repeat(np.arange(len(lists)), lengths)
    return _from_members(read_column(pc.list_flatten(lists), _member(field)), parents, len(lists), field)


def _from_containers(lists: Sequence[Any], field: Field) -> pa.Array:
    """(N,) Python lists, tuples, sets and numpy arrays → (N,) text; a set's members in the order of their text."""
    ordered = [sorted(v, key=str) if isinstance(v, (set, frozenset)) else list(v) for v in lists]
    lengths = np.fromiter(map(len, ordered), np.int64, len(ordered))
    members = read_column([member for values in ordered for member in values], _member(field))
    return _from_members(members, np.repeat(np.arange(len(ordered)), lengths), len(ordered), field)


def _from_cells(cells: pa.Array, field: Field) -> pa.Array:
    """(N,) text, or single values → (N,) text: a JSON array, or members with the field's separator between them."""
    if not holds_text(cells.type):
        return _from_members(read_column(cells, _member(field)), np.arange(len(cells)), len(cells), field)
    cells = cells.cast(pa.string())
    is_json = pc.fill_null(pc.match_substring_regex(cells, r"(?s)^\s*\[.*\]\s*$"), False).to_numpy(zero_copy_only=False)
    separator = field.separator or ","
    pieces = pc.split_pattern(cells, separator)
    # Trimmed first, so that a missing word is one wherever it stands: "rock, nan".
    trimmed = pc.utf8_trim_whitespace(pieces.flatten())
    lengths = pc.fill_null(pc.list_value_length(pieces), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    out = _from_lists(pa.ListArray.from_arrays(pa.array(offsets), trimmed), field)
    if is_json.any():
        places = np.flatnonzero(is_json)
        loaded = [_bracketed_list(text, separator) for text in cells.filter(pa.array(is_json)).to_pylist()]
        is_json[places] = [members is not None for members in loaded]
        members = [members for members in loaded if members is not None]
        out = pc.replace_with_mask(out, pa.array(is_json), _from_containers(members, field))
    return out


def _bracketed_list(text: str, separator: str) -> list[Any] | None:
    """The members of a text in square brackets: JSON, a list of Python, or a numpy array as pandas writes it. None where it is
    none of these and has a separator of its own: then the brackets belong to the members."""
    text = text.strip()
    if NUMPY_ARRAY.fullmatch(text):  # which Python would read as one text, put together of several
        return [quoted[1:-1] if quoted[0] in "'\"" else quoted for quoted in NUMPY_MEMBER.findall(text[1:-1])]
    for read in (json.loads, ast.literal_eval):  # a Python list in a CSV has single quotes
        try:
            return list(read(text))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return [member.strip().strip("'\"") for member in text[1:-1].split(",")] if separator == "," else None


def _member(field: Field) -> Field:
    return Field(name=field.name, type=field.type, missing_words=field.missing_words)


def _from_members(members: pa.DictionaryArray, parents: np.ndarray, length: int, field: Field) -> pa.Array:
    """Members and which list each of them is in, in order → (length,) text of the lists, null where one is empty."""
    texts = pc.utf8_trim_whitespace(pc.replace_substring(decoded(members), MEMBER_SEPARATOR, " "))
    texts = _nothing_is_missing(texts)
    is_there = texts.is_valid().to_numpy(zero_copy_only=False)
    parents, texts = parents[is_there], texts.filter(pa.array(is_there))
    position = np.arange(len(parents)) - np.searchsorted(parents, parents)
    fits = position < field.max_items
    offsets = np.concatenate([[0], np.cumsum(np.bincount(parents[fits], minlength=length))])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts.filter(pa.array(fits)))
    return _nothing_is_missing(pc.binary_join(lists, MEMBER_SEPARATOR))
