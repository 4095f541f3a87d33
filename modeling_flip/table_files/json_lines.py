"""JSON lines. A column keeps its type where it has one; a column of several is text, each cell as it would be spelled alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..quarantine import NO_TEXT, BadRowError, Quarantine
from .table_file import ROWS_PER_BATCH, TableFile, check_names
from .text_stream import LONGEST_ROW, detect_encoding, utf8_stream


def open_json_lines(files: list[Path], path: Path, encoding: str | None, quarantine: Quarantine | None) -> TableFile:
    """Files of JSON lines as one table. They are read once for their columns' types: a type must not depend on where in a file a
    batch begins."""
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
    check_names(schema.names, path)

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
        with utf8_stream(path, encoding, quarantine is not None) as (stream, raw):
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
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"it has more than one key {_cut(name)}")
            seen.add(name)
    return found


JSON = json.JSONDecoder(object_pairs_hook=each_key_once).decode


def _shown(line: bytes) -> str:
    return _cut(line.decode().strip())


def _cut(text: str) -> str:
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
