"""Containers of rows: whatever holds a table, its columns as Arrow arrays."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .cell_text import microseconds_since_1970, moments_of, without_zeros
from .fields import Field

MOST_DIGITS = 4300  # as Python has it for integers
OF_LISTS = "declare it as kind: list, whose members are single values"


class UnreadableError(TypeError, ValueError):
    """Rows, or a cell, of a type that cannot be written as text."""


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
        return present, len(rows), _columns_of(table)
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
        return rows.schema.names, rows.num_rows, _columns_of(rows)
    if hasattr(rows, "columns") and hasattr(rows, "to_numpy"):  # pandas.DataFrame
        _check_unique(list(rows.columns))
        return list(rows.columns), len(rows), rows.__getitem__
    found = str(type(rows))
    if isinstance(rows, (list, tuple)):
        found += f" of {', '.join(sorted({type(row).__name__ for row in rows}))}"
    raise UnreadableError(
        f"rows must be a dict, a list of dicts, a DataFrame, an Arrow table or a Dataset, not {found}"
    )


def _columns_of(table: pa.Table | pa.RecordBatch) -> Callable[[str], Any]:
    classes = _classes_of(table.schema)

    def column_of(name: str) -> pa.Array | pa.ChunkedArray:
        column = table.column(name)
        return _with_names(column, name, classes[name]) if name in classes else column

    return column_of


def _check_unique(names: Sequence[Any]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the rows have more than one column {twice!r}; rename one")


def _holds_columns(rows: Mapping[str, Any], of_lists: Mapping[str, bool]) -> bool:
    """Whether a dict holds columns; otherwise it is one row, in which a list is the members of a list field (`of_lists` names
    those). Where all its fields are list fields, its other columns tell, and where it has none, whether lists hold lists."""
    arrays = (pa.Array, pa.ChunkedArray)
    wanted = [(rows[name], is_list) for name, is_list in of_lists.items() if name in rows]
    scalars = [values for values, is_list in wanted if not is_list]
    scalars = scalars or [values for name, values in rows.items() if name not in of_lists]
    if wanted and scalars:
        return all(isinstance(values, arrays) or _is_sequence(values) for values in scalars)
    return bool(wanted) and all(
        isinstance(values, arrays) or (_is_sequence(values) and any(is_container(v) for v in values))
        for values, _ in wanted
    )


def with_class_names(table: pa.Table) -> pa.Table:
    """A table of `datasets` with the names of its classes in place of their numbers, as Arrow dictionaries; null where there is
    no class, which `datasets` writes as -1.

    Raises:
        ValueError: a number has no name.
    """
    for name, classes in _classes_of(table.schema).items():
        if name in table.column_names:
            named = _with_names(table[name], name, classes)
            table = table.set_column(table.column_names.index(name), name, named)
    return table


def _classes_of(schema: pa.Schema) -> dict[str, pa.Array]:
    """The names of the classes of each column of `datasets.ClassLabel`s, or of lists of these."""
    try:  # what `datasets` writes into the schema of each of its tables
        features = dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (LookupError, TypeError, ValueError):
        return {}
    found = {}
    for name, feature in features.items():
        member = feature[0] if isinstance(feature, list) and feature else feature
        member = member.get("feature", member) if isinstance(member, dict) else None
        if isinstance(member, dict) and member.get("_type") == "ClassLabel" and member.get("names"):
            found[name] = pa.array(member["names"], pa.string())
    return found


def _with_names(column: Any, name: str, classes: pa.Array) -> Any:
    """(N,) numbers of classes, or lists of them → the same with their names."""
    kind = column.type
    if isinstance(column, pa.ChunkedArray):
        chunks = column.chunks or [pa.array([], kind)]
        return pa.chunked_array([_with_names(chunk, name, classes) for chunk in chunks])
    if pa.types.is_fixed_size_list(kind):
        return _with_names(column.cast(pa.list_(kind.value_type)), name, classes)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = column.offsets
        members = column.values[offsets[0].as_py() : offsets[-1].as_py()]
        named = _with_names(members, name, classes)
        return type(column).from_arrays(pc.subtract(offsets, offsets[0]), named, mask=column.is_null())
    if not pa.types.is_integer(kind):  # somebody has put something else in its place
        return column
    if pc.any(is_none := pc.equal(column, -1)).as_py():
        column = pc.if_else(is_none, None, column)
    try:
        return pa.DictionaryArray.from_arrays(column, classes)
    except pa.ArrowException as error:
        ends = pc.min_max(column).as_py()
        wrong = ends["min"] if ends["min"] < 0 else ends["max"]
        raise ValueError(
            f"column {name!r} holds class {wrong}, but its ClassLabel names {len(classes)}, from 0: cast the column to a "
            "ClassLabel that names all of them, or to integers"
        ) from error


def arrow_or_cells(values: Any) -> pa.Array | list[Any]:
    """A column as one Arrow array if it has one type; otherwise its cells."""
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays([decoded(chunk) for chunk in values.chunks] or [pa.nulls(0, values.type)])
    if isinstance(values, pa.ExtensionArray) and values.type.extension_name == "arrow.uuid":
        return values.to_pylist()
    if isinstance(values, pa.Array):
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        # Arrow supports few computations on these types.
        if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
            return decoded(values).cast(pa.decimal128(kind.precision, kind.scale))
        return decoded(values).cast(pa.string()) if pa.types.is_string_view(kind) else values
    if hasattr(values, "cat") and len(set(map(type, values.cat.categories))) > 1:
        values = values.astype(object)  # Arrow would cast all categories to one type
    if hasattr(values, "dtype") and hasattr(values, "array") and values.dtype != object:  # pandas.Series
        try:
            return arrow_or_cells(pa.Array.from_pandas(values))
        except pa.ArrowException:  # categories of mixed types, float16
            values = values.astype(object)
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype != object:
        if values.dtype.kind == "M":
            return moments_of(values)
        try:
            return pa.array(values.astype(np.float32) if values.dtype == np.float16 else values, from_pandas=True)
        except (pa.ArrowException, UnicodeError):  # complex numbers, lone surrogates
            pass
    return list(values)


def of_one_type(values: Any, field: Field) -> list[tuple[pa.Array, np.ndarray | None]]:
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


def decoded(chunk: pa.Array) -> pa.Array:
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
        return without_zeros(pa.array([None if v is None else _decimal_text(v, field) for v in values], pa.string()))
    if hasattr(first, "asm8"):  # pandas.Timestamp: in UTC, without zone
        return to_arrow([None if v is None else v.asm8 for v in values], field)
    if isinstance(first, np.datetime64):
        if len({value.dtype for value in values if value is not None}) > 1:  # units of differing reach
            return pa.concat_arrays([to_arrow([value], field).cast(pa.timestamp("us")) for value in values])
        return moments_of(np.asarray(values, first.dtype))
    if isinstance(first, datetime.datetime):
        return pa.array([None if v is None else microseconds_since_1970(v) for v in values], pa.int64()).cast(
            pa.timestamp("us")
        )
    if isinstance(first, datetime.date):
        return pa.array(values, pa.date32())
    if isinstance(first, datetime.time):
        return pa.array(values, pa.time64("us"))
    if isinstance(first, uuid.UUID):
        return pa.array([None if v is None else str(v) for v in values], pa.string())
    remedy = OF_LISTS if is_container(first) else "turn it into text or numbers first"
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


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def is_container(value: Any) -> bool:
    return _is_sequence(value) or isinstance(value, (set, frozenset))


def _shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # such as of an integer of very many digits, or in whatever else somebody's object has there
        return "which cannot be shown"
    return text if len(text) <= 60 else text[:59] + "…"
