"""One reading of rows, for training and for scoring: any container, each cell as its field's type says.

A value's text is a function of the value and its field's type alone. It depends neither on the values beside it nor on the
container it comes in: the integer 7, "007" of a CSV, 7.0 of a pandas column with a gap and Decimal("7.00") are all "7" in a
field of integers. Identifiers stay text to the digit.
"""

from __future__ import annotations

import ast
import datetime
import decimal
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .fields import Field, did_you_mean

# Words for a missing value, as pandas reads them in a CSV; in any container, so that all are read alike.
MISSING_WORDS = pa.array(
    [
        *("", "#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "n/a", "NA", "NULL", "null", "None"),
        *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    ]
)
TRUE_WORDS, FALSE_WORDS = (
    pa.array(["true", "t", "yes", "y", "1", "1.0"]),
    pa.array(["false", "f", "no", "n", "0", "0.0"]),
)
INTEGER = r"^[+-]?[0-9]+(\.0*)?$"
PLAIN_INTEGER = r"^(0|-?[1-9][0-9]*)$"  # as it is written
SHORT_INTEGER = r"^(0|-?[1-9][0-9]{0,5})$"  # which a 32-bit float holds
INFINITY = r"^[+-]?(?i:inf(inity)?)$"
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
ISO = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?)?$"
# Other spellings of a moment that are read in bulk, not one by one.
ZONED = (
    r"^[12][0-9]{3}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])$"
)
SINCE_1970 = r"^[1-9][0-9]{8,17}$"
# Between the members of a list in its canonical text; no member holds it.
MEMBER_SEPARATOR = "\x1f"
# Moments lie within this many seconds of 1970, some 28,000 years in all; Arrow writes no others.
LAST_SECOND = 9 * 10**11
MOST_DIGITS = 4300  # as Python has it for integers
# Below this, a float holds every whole number exactly.
EXACT = 2.0**53
OF_LISTS = "declare it as kind: list, whose members are single values"


class UnreadableError(TypeError, ValueError):
    """Rows, or a cell, of a type that cannot be written as text."""


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


def open_rows(rows: Any, schema: Sequence[Field] | None = None) -> tuple[Sequence[Any], int, Callable[[str], Any]]:
    """The names of a table's columns, its number of rows, and a function that returns a raw column.

    Raises:
        TypeError: it is not a table.
        ValueError: it has two columns of one name.
    """
    if hasattr(rows, "with_format"):  # datasets.Dataset
        present = list(rows.column_names)
        wanted = present if schema is None else [f.name for f in schema if f.name in present]
        table = rows.select_columns(wanted).with_format("arrow")[:] if wanted else pa.table({})
        return present, len(rows), table.column
    if isinstance(rows, Mapping):
        of_lists = {name: False for name in rows} if schema is None else {f.name: f.kind == "list" for f in schema}
        if not _holds_columns(rows, of_lists):
            rows = [rows]
        else:
            wanted = [name for name in rows if schema is None or any(field.name == name for field in schema)]
            return list(rows), len(rows[wanted[0]]), rows.__getitem__
    if isinstance(rows, (list, tuple)) and all(isinstance(row, Mapping) for row in rows):
        present = list(dict.fromkeys(key for row in rows for key in row))
        if not rows:
            present = [field.name for field in schema or []]
        return present, len(rows), lambda name: [row.get(name) for row in rows]
    if isinstance(rows, (pa.Table, pa.RecordBatch)):
        _check_unique(rows.schema.names)
        return rows.schema.names, rows.num_rows, rows.column
    if hasattr(rows, "columns") and hasattr(rows, "to_numpy"):  # pandas.DataFrame
        _check_unique(list(rows.columns))
        return list(rows.columns), len(rows), rows.__getitem__
    found = str(type(rows))
    if isinstance(rows, (list, tuple)):
        found += f" of {', '.join(sorted({type(row).__name__ for row in rows}))}"
    raise UnreadableError(
        f"rows must be a dict, a list of dicts, a DataFrame, an Arrow table or a Dataset, not {found}"
    )


def _check_unique(names: Sequence[Any]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the rows have more than one column {twice!r}; rename one")


def _holds_columns(rows: Mapping[str, Any], of_lists: Mapping[str, bool]) -> bool:
    """Whether a dict holds columns; otherwise it is one row, in which a list is the members of a list field (`of_lists` names
    those)."""
    arrays = (pa.Array, pa.ChunkedArray)
    wanted = [(rows[name], is_list) for name, is_list in of_lists.items() if name in rows]
    scalars = [values for values, is_list in wanted if not is_list]
    if scalars:
        return all(isinstance(values, arrays) or _is_sequence(values) for values in scalars)
    return bool(wanted) and all(
        isinstance(values, arrays) or (_is_sequence(values) and any(v is None or _is_container(v) for v in values))
        for values, _ in wanted
    )


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


# ---- containers to Arrow


def arrow_or_cells(values: Any) -> pa.Array | list[Any]:
    """A column as one Arrow array if it has one type; otherwise its cells."""
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays([_plain(chunk) for chunk in values.chunks] or [pa.nulls(0, values.type)])
    if isinstance(values, pa.ExtensionArray) and values.type.extension_name == "arrow.uuid":
        return values.to_pylist()
    if isinstance(values, pa.Array):
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        # Arrow supports few computations on these types.
        if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
            return _plain(values).cast(pa.decimal128(kind.precision, kind.scale))
        return _plain(values).cast(pa.string()) if pa.types.is_string_view(kind) else values
    if hasattr(values, "cat") and len(set(map(type, values.cat.categories))) > 1:
        values = values.astype(object)  # Arrow would cast all categories to one type
    if hasattr(values, "dtype") and hasattr(values, "array") and values.dtype != object:  # pandas.Series
        try:
            return arrow_or_cells(pa.Array.from_pandas(values))
        except pa.ArrowException:  # categories of mixed types, float16
            values = values.astype(object)
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype != object:
        if values.dtype.kind == "M":
            return _moments_of(values)
        try:
            return pa.array(values.astype(np.float32) if values.dtype == np.float16 else values, from_pandas=True)
        except (pa.ArrowException, UnicodeError):  # complex numbers, lone surrogates
            pass
    return list(values)


def _pieces(values: Any, field: Field) -> list[tuple[pa.Array, np.ndarray | None]]:
    """A column as Arrow arrays of one type each, with the rows that each holds; None for all rows."""
    values = arrow_or_cells(values)
    if isinstance(values, pa.Array):
        return [(values, None)]
    types = {type(value) for value in values}
    if len(types - {type(None)}) <= 1:
        return [(to_arrow(values, field), None)]
    kinds = np.fromiter(map(id, map(type, values)), np.int64, len(values))
    pieces: list[tuple[pa.Array, np.ndarray | None]] = []
    for kind in types:
        rows = np.flatnonzero(kinds == id(kind))
        pieces.append((to_arrow([values[i] for i in rows], field), rows))
    return pieces


def _plain(chunk: pa.Array) -> pa.Array:
    # Chunks may have dictionaries of their own, which do not concatenate.
    if not pa.types.is_dictionary(chunk.type):
        return chunk
    for is_view, kind in ((pa.types.is_string_view, pa.string()), (pa.types.is_binary_view, pa.binary())):
        if is_view(chunk.type.value_type):  # Arrow cannot decode it
            chunk = pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(kind))
    return chunk.dictionary_decode()


def to_arrow(values: Sequence[Any], field: Field) -> pa.Array:
    """Python values of one type (and None) as an Arrow array."""
    first = next((value for value in values if value is not None), None)
    if first is None or type(first).__name__ in ("NAType", "NaTType"):
        return pa.nulls(len(values))
    if isinstance(first, str):
        try:
            return pa.array(values, pa.string())
        except UnicodeEncodeError:  # a lone surrogate has no UTF-8
            return pa.array([v if v is None else v.encode(errors="replace").decode() for v in values], pa.string())
    if isinstance(first, (bool, np.bool_)):
        return pa.array([None if v is None else bool(v) for v in values], pa.bool_())
    if isinstance(first, (int, np.integer)) and not isinstance(first, np.timedelta64):
        try:
            return pa.array([None if v is None else int(v) for v in values], pa.int64())
        except (OverflowError, pa.ArrowInvalid):  # more than 64 bits
            pass
        try:
            return pa.array([None if v is None else str(int(v)) for v in values], pa.string())
        except ValueError:
            raise UnreadableError(
                f"field {field.name!r} holds an integer with too many digits; turn it into text first"
            ) from None
    if isinstance(first, (float, np.floating)):
        wide = isinstance(first, float) or first.dtype.itemsize > 4
        numbers = [None if v is None else float(v) for v in values]
        return pa.array(numbers, pa.float64() if wide else pa.float32(), from_pandas=True)
    if isinstance(first, decimal.Decimal):
        return _without_zeros(pa.array([None if v is None else _decimal_text(v, field) for v in values], pa.string()))
    if hasattr(first, "asm8"):  # pandas.Timestamp: in UTC, without zone
        return to_arrow([None if v is None else v.asm8 for v in values], field)
    if isinstance(first, np.datetime64):
        if len({value.dtype for value in values if value is not None}) > 1:  # units of differing reach
            return pa.concat_arrays([to_arrow([value], field).cast(pa.timestamp("us")) for value in values])
        return _moments_of(np.asarray(values, first.dtype))
    if isinstance(first, datetime.datetime):
        return pa.array([None if v is None else _microseconds_since_1970(v) for v in values], pa.int64()).cast(
            pa.timestamp("us")
        )
    if isinstance(first, datetime.date):
        return pa.array(values, pa.date32())
    if isinstance(first, datetime.time):
        return pa.array(values, pa.time64("us"))
    if isinstance(first, uuid.UUID):
        return pa.array([None if v is None else str(v) for v in values], pa.string())
    remedy = OF_LISTS if _is_container(first) else "turn it into text or numbers first"
    raise UnreadableError(f"field {field.name!r} holds a {type(first).__name__}, {_shown(first)}; {remedy}")


def _decimal_text(number: decimal.Decimal, field: Field) -> str | None:
    """All its digits; as a float's of what is no finite number."""
    if number.is_nan():
        return None
    if number.is_infinite():
        return str(float(number))
    if not number:
        return "0"
    if abs(number.adjusted()) > MOST_DIGITS:
        raise UnreadableError(f"field {field.name!r} holds a number with too many digits; turn it into text first")
    return format(number, "f")


def _moments_of(values: np.ndarray) -> pa.Array:
    """(N,) datetime64 of any unit → (N,) timestamps; null in years that have no text."""
    if np.datetime_data(values.dtype)[0] in ("Y", "M", "W", "D", "h", "m", "s", "ms", "us"):
        last = np.datetime64(LAST_SECOND, "s").astype(values.dtype).astype(np.int64)
        values = np.where(np.abs(values.astype(np.int64)) <= last, values, np.datetime64("NaT"))
    return pa.array(values.astype("datetime64[us]"))


def _microseconds_since_1970(moment: datetime.datetime) -> int:
    """In UTC, where the year may be 0 or 10000, which `datetime` does not allow."""
    since = moment.replace(tzinfo=None) - datetime.datetime(1970, 1, 1)
    return (since - (moment.utcoffset() or datetime.timedelta())) // datetime.timedelta(microseconds=1)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _is_container(value: Any) -> bool:
    return _is_sequence(value) or isinstance(value, (set, frozenset))


def _shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # such as of an integer of very many digits, or in whatever else somebody's object has there
        return "which cannot be shown"
    return text if len(text) <= 60 else text[:59] + "…"


# ---- Arrow to canonical text


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


# The Arrow types that can be written as text.
KINDS_OF_TEXT = (
    *(_is_text, pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    *(pa.types.is_date, pa.types.is_timestamp, pa.types.is_time),
)


def _read_scalars(values: Any, field: Field) -> pa.DictionaryArray:
    pieces = _pieces(values, field)
    read = [_mapped(_encoded(piece, field), lambda texts: canonical_text(texts, field)) for piece, _ in pieces]
    return _joined(read, [rows for _, rows in pieces])


def _joined(columns: Sequence[pa.DictionaryArray], rows: Sequence[np.ndarray | None]) -> pa.DictionaryArray:
    """Joins columns that each hold some of the rows."""
    if len(columns) == 1:
        return columns[0]
    back = np.argsort(np.concatenate([r for r in rows if r is not None]), kind="stable")
    return pa.concat_arrays([_plain(column) for column in columns]).take(pa.array(back)).dictionary_encode()


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
    if _is_text(kind):
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


def canonical_text(values: pa.Array, field: Field) -> pa.Array:
    """(N,) values of any Arrow type that has a text → (N,) their text as the field's type writes it, null where missing.

    What cannot be read as that type keeps its own text, and so counts as an unseen value.
    """
    kind = values.type
    is_text = _is_text(kind)
    if is_text:
        if kind != pa.string():
            values = values.cast(pa.string())
        if field.type != "string":
            values = pc.utf8_trim_whitespace(values)
        # An empty cell of a CSV is a missing value, whoever reads it.
        missing = MISSING_WORDS if field.missing_words else MISSING_WORDS[:1]
        is_missing = pc.is_in(values, missing)
        if is_missing.true_count:
            values = pc.if_else(is_missing, None, values)
    elif pa.types.is_decimal(kind):
        values, is_text = _text_of_decimals(values), True
    elif pa.types.is_floating(kind):
        values = values.cast(pa.float32()) if pa.types.is_float16(kind) else values
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    if pa.types.is_boolean(kind) and field.type in ("integer", "number"):
        return values.cast(pa.int8()).cast(pa.string())
    if pa.types.is_temporal(kind):
        return _moment_text(values, "date" if field.type == "date" else "timestamp")
    if is_text:
        return _READ_TEXT[field.type](values)
    if field.type == "number" and pa.types.is_integer(kind):
        values = values.cast(pa.float64(), safe=False)
    text = _number_text(values, short=field.type == "number")
    return text if field.type in ("string", "integer", "number") else _READ_TEXT[field.type](text)


def _number_text(values: pa.Array, *, short: bool) -> pa.Array:
    """Numbers as people write them: 25.0 is 25. A number that a 32-bit float holds has the digits that it has there, whatever
    it comes in. `short`: of any fraction, so that 0.1 is "0.1" whether it comes with 32 bits or with 64."""
    texts = values.cast(pa.string())
    if not pa.types.is_floating(values.type):
        return texts
    narrow = values.cast(pa.float32(), safe=False)
    fits = pc.is_finite(narrow) if short else pc.equal(narrow.cast(values.type), values)
    texts = pc.if_else(fits, narrow.cast(pa.string()), texts)
    if short:
        values = pc.if_else(pc.and_not(fits, _is_whole(values)), narrow.cast(values.type), values)
    is_whole = _is_whole(values)
    whole = pc.if_else(is_whole, values, pa.scalar(0, values.type)).cast(pa.int64())
    return pc.if_else(is_whole, whole.cast(pa.string()), texts)


def _is_whole(values: pa.Array) -> pa.Array:
    return pc.and_(pc.equal(values, pc.floor(values)), pc.less(pc.abs(values), EXACT))


def _where(mask: pa.Array, read: Callable[[pa.Array], pa.Array], values: pa.Array) -> pa.Array:
    """Applies `read` to the values where `mask` is true."""
    mask = pc.fill_null(mask, False)
    return pc.replace_with_mask(values, mask, read(values.filter(mask)))


def _integers_of_text(texts: pa.Array) -> pa.Array:
    """ "007", "+7" and "7.0" are "7", to any number of digits."""
    if _all_match(texts, PLAIN_INTEGER):
        return texts
    is_integer = pc.match_substring_regex(texts, INTEGER)

    def read(found: pa.Array) -> pa.Array:
        found = pc.replace_substring_regex(found, r"^\+?(-?)0*([0-9]+?)(\.0*)?$", r"\1\2")
        return pc.if_else(pc.equal(found, "-0"), "0", found)

    texts = _where(is_integer, read, texts)
    is_other = pc.and_not(_is_number(texts), is_integer)
    return _where(is_other, lambda found: _number_text(_floats(found), short=False), texts)


def _numbers_of_text(texts: pa.Array) -> pa.Array:
    if _all_match(texts, SHORT_INTEGER):
        return texts
    return _where(_is_number(texts), lambda found: _number_text(_floats(found), short=True), texts)


def _all_match(texts: pa.Array, pattern: str) -> bool:
    """Whether all that are not missing do. Who asks saves a dozen calls of Arrow, most of the time that a single row takes."""
    return pc.match_substring_regex(texts, pattern).false_count == 0


def _is_number(texts: pa.Array) -> pa.Array:
    return pc.or_(pc.match_substring_regex(texts, NUMBER), pc.match_substring_regex(texts, INFINITY))


def _floats(texts: pa.Array) -> pa.Array:
    return pc.utf8_ltrim(texts, "+").cast(pa.float64())


def _as_booleans(texts: pa.Array) -> pa.Array:
    lower = pc.utf8_lower(texts)
    texts = pc.if_else(pc.is_in(lower, TRUE_WORDS), "true", texts)
    return pc.if_else(pc.is_in(lower, FALSE_WORDS), "false", texts)


def _without_zeros(texts: pa.Array) -> pa.Array:
    """2.50 is 2.5, 2.00 is 2."""
    return pc.utf8_rtrim(pc.replace_substring_regex(texts, r"(\.[0-9]*?)0+$", r"\1"), ".")


def _text_of_decimals(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    # Arrow writes 3E-8 of small ones.
    small = pc.match_substring(texts, "E")
    texts = _where(
        small, lambda t: pa.array([format(decimal.Decimal(v), "f") for v in t.to_pylist()], pa.string()), texts
    )
    return _without_zeros(texts)


def _moments_of_text(values: pa.Array, kind: str) -> pa.Array:
    """Dates and times in one spelling, in UTC: "2024-01-31", "2024-01-31 12:30:00", with fractions where there are some."""
    is_iso = pc.match_substring_regex(values, ISO)

    def read(found: pa.Array) -> pa.Array:
        return pc.coalesce(_moment_text(_timestamps(found), kind), found)

    is_zoned = pc.match_substring_regex(values, ZONED)
    is_count = pc.match_substring_regex(values, SINCE_1970)
    known = pc.or_(pc.or_(is_iso, is_zoned), is_count)
    other = pc.and_(pc.invert(pc.fill_null(known, False)), values.is_valid())
    values = _where(is_iso, read, values)
    values = _where(is_zoned, lambda found: _zoned_text(found, kind), values)
    values = _where(is_count, lambda found: _moment_text(_since_1970(found), kind), values)
    return _where(other, lambda found: pa.array([_moment(t, kind) for t in found.to_pylist()], pa.string()), values)


def _zoned_text(texts: pa.Array, kind: str) -> pa.Array:
    try:
        return _moment_text(texts.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us")), kind)
    except pa.ArrowInvalid:  # one of them is such as 2024-02-30
        return pa.array([_moment(text, kind) for text in texts.to_pylist()], pa.string())


def _since_1970(texts: pa.Array) -> pa.Array:
    """(N,) whole numbers of seconds, milli-, micro- or nanoseconds, whichever so large a number must be → (N,) timestamps."""
    count = texts.cast(pa.int64()).to_numpy()
    unit = np.searchsorted(np.array([10**11, 10**14, 10**17]), count, side="right")
    with np.errstate(over="ignore"):  # in the units that are not chosen
        return pa.array(np.choose(unit, [count * 10**6, count * 10**3, count, count // 10**3])).cast(pa.timestamp("us"))


def _timestamps(texts: pa.Array) -> pa.Array:
    """(N,) text in the spelling of `ISO` → (N,) timestamps in microseconds, null of a day that there is not."""
    try:
        return texts.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:  # one of them is such as 2024-02-30
        return pa.array([_microseconds(text) for text in texts], pa.int64()).cast(pa.timestamp("us"))


def _microseconds(text: pa.Scalar) -> int | None:
    try:
        return text.cast(pa.timestamp("us")).value
    except pa.ArrowInvalid:
        return None


def _moment(text: str, kind: str) -> str:
    """One moment in any ISO 8601 spelling, or in seconds, milliseconds, … since 1970; other text as it is."""
    try:
        if not re.match(NUMBER, text):
            moment = _microseconds_since_1970(datetime.datetime.fromisoformat(text))
        else:
            number = decimal.Decimal(text)
            if not 1e8 <= abs(number) < 1e20:  # no moment, such as a year
                return _number_text(pa.array([float(text)]), short=False)[0].as_py()
            scale = next((s for bound, s in ((1e11, 1), (1e14, 10**3), (1e17, 10**6)) if abs(number) < bound), 10**9)
            moment = int(number * 10**6 / scale)
    except (ValueError, ArithmeticError):  # no moment, or of more digits than a Decimal or a moment has
        return text
    return _moment_text(pa.array([moment], pa.int64()).cast(pa.timestamp("us")), kind)[0].as_py()


_READ_TEXT: dict[str, Callable[[pa.Array], pa.Array]] = {
    "string": lambda texts: texts,
    "integer": _integers_of_text,
    "number": _numbers_of_text,
    "boolean": _as_booleans,
    "date": lambda texts: _moments_of_text(texts, "date"),
    "timestamp": lambda texts: _moments_of_text(texts, "timestamp"),
}


def _moment_text(values: pa.Array, kind: str) -> pa.Array:
    """Moments to the microsecond; null in years that have no text."""
    if pa.types.is_time(values.type):
        return _without_zeros(values.cast(pa.time64("us"), safe=False).cast(pa.string()))
    if pa.types.is_date(values.type):
        values = values.cast(pa.date32())
        counts, last = values.cast(pa.int32()), LAST_SECOND // 86_400
    else:
        second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[values.type.unit]
        counts, last = values.cast(pa.int64()), min(LAST_SECOND * second, 2**63 - 1)
    has_text = pc.and_(pc.less_equal(counts, last), pc.greater_equal(counts, -last))
    values = pc.if_else(has_text, values, pa.scalar(None, values.type))
    if pa.types.is_date(values.type) and kind == "date":
        return values.cast(pa.string())
    texts = values.cast(pa.timestamp("us"), safe=False).cast(pa.string())
    texts = _without_zeros(texts)
    return pc.replace_substring_regex(texts, " 00:00:00$", "") if kind == "date" else texts


def as_numbers(texts: pa.Array, kind: str) -> np.ndarray:
    """(N,) canonical text of a numeric field of type `kind` → (N,) float64: the number, days or seconds since 1970; NaN where it
    is none."""
    numbers = np.full(len(texts), np.nan)
    if kind in ("date", "timestamp"):
        found = pc.fill_null(pc.match_substring_regex(texts, ISO), False)
        moments = (
            _timestamps(texts.filter(found))
            .cast(pa.int64())
            .cast(pa.float64(), safe=False)
            .to_numpy(zero_copy_only=False)
        )
        numbers[found.to_numpy(zero_copy_only=False)] = moments / (86_400e6 if kind == "date" else 1e6)
        return numbers
    found = pc.fill_null(pc.match_substring_regex(texts, NUMBER), False)
    numbers[found.to_numpy(zero_copy_only=False)] = _floats(texts.filter(found)).to_numpy()
    return numbers


# ---- text


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
        containers = np.fromiter((_is_container(value) for value in values), bool, len(values))
        if containers.any():
            rows, others = np.flatnonzero(containers), np.flatnonzero(~containers)
            of_lists = _from_containers([values[i] for i in rows], field).dictionary_encode()
            if not len(others):
                return of_lists
            rest = _read_lists([values[i] for i in others], field)
            return _joined([of_lists, rest], [rows, others])
    # Text, or single values, which are lists of one.
    pieces = _pieces(values, field)
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
    if not _is_text(cells.type):
        return _from_members(read_column(cells, _member(field)), np.arange(len(cells)), len(cells), field)
    cells = cells.cast(pa.string())
    is_json = pc.fill_null(pc.match_substring_regex(cells, r"(?s)^\s*\[.*\]\s*$"), False).to_numpy(zero_copy_only=False)
    out = _from_lists(pc.split_pattern(cells, field.separator or ","), field)
    if is_json.any():
        loaded = [_json_list(text) for text in cells.filter(pa.array(is_json)).to_pylist()]
        out = pc.replace_with_mask(out, pa.array(is_json), _from_containers(loaded, field))
    return out


def _json_list(text: str) -> list[Any]:
    for read in (json.loads, ast.literal_eval):  # a Python list in a CSV has single quotes
        try:
            return list(read(text.strip()))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return [member.strip().strip("'\"") for member in text.strip()[1:-1].split(",")]


def _member(field: Field) -> Field:
    return Field(name=field.name, type=field.type, missing_words=field.missing_words)


def _from_members(members: pa.DictionaryArray, parents: np.ndarray, length: int, field: Field) -> pa.Array:
    """Members and which list each of them is in, in order → (length,) text of the lists, null where one is empty."""
    texts = pc.utf8_trim_whitespace(pc.replace_substring(_plain(members), MEMBER_SEPARATOR, " "))
    texts = _nothing_is_missing(texts)
    is_there = texts.is_valid().to_numpy(zero_copy_only=False)
    parents, texts = parents[is_there], texts.filter(pa.array(is_there))
    position = np.arange(len(parents)) - np.searchsorted(parents, parents)
    fits = position < field.max_items
    offsets = np.concatenate([[0], np.cumsum(np.bincount(parents[fits], minlength=length))])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts.filter(pa.array(fits)))
    return _nothing_is_missing(pc.binary_join(lists, MEMBER_SEPARATOR))
