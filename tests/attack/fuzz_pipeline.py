"""Rows of every kind of value in every container, through the pipeline.

What must hold: each row gets a finite probability, or there is one error that names the field; and the text of a value is the
same beside any neighbours and in any container that holds it.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import math
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import walk_tb
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from data_scripts.text_model import write as write_text_model
from modeling_flip import CtrPredictionPipeline, Field, FlipForCTR, FlipProcessor
from modeling_flip.cell_text import KINDS_OF_TEXT
from modeling_flip.fields import TYPES
from modeling_flip.row_reader import read_column, read_columns

Rng = np.random.Generator
NUMERIC_TYPES = ("integer", "number", "date", "timestamp")
FIELDS = [
    *(Field(name=f"{type} category", type=type) for type in TYPES),
    Field(name="word for word", missing_words=False),
    *(Field(name=f"{type} number", type=type, kind="numeric") for type in NUMERIC_TYPES),
    *(
        Field(name=f"{type} list", type=type, kind="list", separator="|" if type == "string" else None)
        for type in TYPES
    ),
    Field(name="text", kind="text", max_words=8),
    Field(name="note", kind="ignored"),
]
READ = [field for field in FIELDS if field.kind != "ignored"]
# A row that is scored by itself may be off by the noise of another shape of its batch.
NOISE = 2e-6


# ---- values


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(str):
    pass


WORDS = [
    *("", " ", "\t\n", "a", "Rome", "東京物語", "مدينة", "\u202eabc", "👩‍👩‍👧"),
    *("e\u0301", "\x00", "\x1f", "a\x1fb", "\ud800", "\ufeffa", "\u00a0"),
    *("x" * 3000, "[MASK]", "[CLS] a [SEP]", "NA", "null", "None", "nan", "NaN", "true", "False", "Y", "0", "1", "7", "007"),
    *("+7", "7.", ".5", "7.0", "7e0", "1e400", "-1e400", "1_000", "1,000", "3,5", "0x10", "٣", "½"),
    *("１２", "inf", "-Infinity", "-0"),
    *("9" * 30, "1" * 400, "2024-01-31", "2024-02-30", "2024-01-31T12:30:00Z", "2024-01-31 12:30:00+01:00", "20240131"),
    *("2024-W05-3", "31.01.2024", "0001-01-01", "9999-12-31T23:59:59.999999", "10000-01-01", "0000-01-01", "12:30", "24:00"),
    *("1700000000", "1700000000123", "-1700000000", "1700000000.5", "99999999999999999999", "2024-01-31T12:30:00.1234567"),
    *("2024-01-31T25:00:00", "2024-01-31 12:30:00+25:00", "0001-01-01T00:00:00+01:00", "9999-12-31 23:59:59-12:00"),
    *("a|b", "|", "a,b", ",", "[1, 2]", "['a', 'b']", "[", "[]", "[[1]]", '{"a": 1}'),
    *('["a", null, 1.5, true]', "[1e999]", "[NaN]"),
    *("(1, 2)", "[1,", "['\\ud800']", '["\\ud800"]', "[b'x']", "[" + "9" * 5000 + "]", "[1j]", "[2024-01-31]"),
]  # fmt: skip
ZONES = [None, dt.UTC, dt.timezone(dt.timedelta(hours=14)), dt.timezone(dt.timedelta(hours=-12, minutes=-3))]
UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "as")


def _int(rng: Rng) -> int:
    bits = int(rng.integers(1, 80))
    return int(rng.integers(2 ** min(bits, 62))) * 2 ** max(0, bits - 62) * int(rng.choice([-1, 1]))


def _float(rng: Rng) -> float:
    special = [
        0.0,
        -0.0,
        math.nan,
        math.inf,
        -math.inf,
        1e300,
        5e-324,
        0.1,
        1 / 3,
        2.0**53,
        1.7e9,
        -1.7e12,
        1e22,
        65504.0,
    ]
    return float(rng.choice([*special, rng.normal(), float(np.float32(rng.normal())), rng.integers(-9, 99) / 4]))


def _moment(rng: Rng) -> dt.datetime:
    ends = [
        dt.datetime.min,
        dt.datetime.max,
        dt.datetime(1970, 1, 1),
        dt.datetime(2024, 2, 29),
        dt.datetime(1969, 12, 31, 23),
    ]
    ends += [dt.datetime(2024, 1, 31) + dt.timedelta(microseconds=int(rng.integers(-(10**15), 10**15)))]
    return ends[rng.integers(len(ends))].replace(tzinfo=ZONES[rng.integers(len(ZONES))])


def _pandas(rng: Rng) -> Any:
    try:
        return pd.Timestamp(_moment(rng))
    except (ValueError, OverflowError):
        return pd.NaT


SCALARS: dict[str, Callable[[Rng], Any]] = {
    "none": lambda rng: None,
    "text": lambda rng: WORDS[rng.integers(len(WORDS))],
    "bool": lambda rng: bool(rng.integers(2)),
    "int": _int,
    "float": _float,
    "decimal": lambda rng: decimal.Decimal(
        str(
            rng.choice(["7.00", "0.1", "1E+3", "NaN", "sNaN", "Infinity", "-0.00", "1E-30", "9" * 40, "1E+400", "2.50"])
        )
    ),
    "float16": lambda rng: np.float16(rng.choice([0.1, 7, 65504, np.nan, np.inf, -0.0, 6e-8])),
    "float32": lambda rng: np.float32(rng.choice([0.1, 7, 1e38, np.nan, -np.inf, 1e-45, 16777217])),
    "float64": lambda rng: np.float64(_float(rng)),
    "longdouble": lambda rng: np.longdouble(_float(rng)),
    "int8": lambda rng: np.int8(rng.integers(-128, 128)),
    "uint64": lambda rng: np.uint64(rng.choice(np.array([0, 7, 2**53 + 1, 2**64 - 1], np.uint64))),
    "bool_": lambda rng: np.bool_(rng.integers(2)),
    "str_": lambda rng: np.str_(WORDS[rng.integers(14)]),
    "datetime64": lambda rng: np.datetime64(int(rng.choice([0, 1, 54, 19753, -1, 2**40, -(2**63)])), rng.choice(UNITS)),
    "date": lambda rng: _moment(rng).date(),
    "datetime": _moment,
    "time": lambda rng: _moment(rng).time() if rng.integers(3) else _moment(rng).timetz(),
    "Timestamp": _pandas,
    "NA": lambda rng: (pd.NA, pd.NaT, np.datetime64("NaT"), math.nan)[rng.integers(4)],
    "uuid": lambda rng: uuid.UUID(int=int(rng.integers(9))),
    "IntEnum": lambda rng: Level.HIGH,
    "str subclass": lambda rng: Word("Rome"),
}
# Of these there is no text.
TEXTLESS: dict[str, Callable[[Rng], Any]] = {
    "bytes": lambda rng: b"x",
    "Enum": lambda rng: Colour.RED,
    "timedelta": lambda rng: dt.timedelta(1),
    "timedelta64": lambda rng: np.timedelta64(5, "s"),
    "Timedelta": lambda rng: pd.Timedelta(1, "s"),
    "Period": lambda rng: pd.Period("2024-01"),
    "Interval": lambda rng: pd.Interval(0, 1),
    "complex": lambda rng: (1j, np.complex64(1j))[rng.integers(2)],
    "dict": lambda rng: ({"a": 1}, {"a": 10**5000})[rng.integers(2)],
    "list": lambda rng: (["a"], [], ("a",), {"a"}, np.array(["a"]))[rng.integers(5)],
    "array without dimensions": lambda rng: np.array(5),
    "huge": lambda rng: 10**5000,
    "object": lambda rng: (object(), len, Ellipsis, NotImplemented, Field)[rng.integers(5)],
    "fraction": lambda rng: fractions.Fraction(1, 3),
    "Arrow scalar": lambda rng: pa.scalar("a"),
    "bytes_": lambda rng: np.bytes_(b"a"),
    "void": lambda rng: np.void(b"ab"),
}


def pool(makers: dict[str, Callable[[Rng], Any]], size: int = 6) -> dict[str, list[Any]]:
    """Some values of each kind: so few that each can be read by itself, too."""
    rng = np.random.default_rng(0)
    return {kind: [make(rng) for _ in range(size)] for kind, make in makers.items()} | {"text": WORDS}


def _some(rng: Rng, kinds: list[str]) -> Any:
    values = POOL[kinds[rng.integers(len(kinds))]]
    return values[rng.integers(len(values))]


def _list(rng: Rng) -> Any:
    kinds = list(rng.choice(list(SCALARS), rng.integers(1, 5)))
    members = [_some(rng, kinds) for _ in range(rng.integers(5))]
    shape = rng.integers(6)
    if shape == 0:
        return tuple(members)
    if shape == 1:
        try:
            return set(members)
        except TypeError:
            return members
    if shape == 2:
        made = np.empty(len(members), object)
        made[:] = members
        return made
    return members


def python_column(rng: Rng, rows: int, is_list: bool) -> list[Any]:
    """Values of some kinds, mixed."""
    names = list(SCALARS)
    kinds = list(rng.choice(names, rng.integers(1, 5))) if rng.random() < 0.7 else names
    if rng.random() < 0.03:
        kinds = [*kinds, str(rng.choice(list(TEXTLESS)))]
    if is_list:
        kinds = [*kinds, *["lists"] * 4 * len(kinds)]
    return [_some(rng, kinds) for _ in range(rows)]


POOL = pool(SCALARS | TEXTLESS)
POOL |= pool({"lists": _list}, 60)
FLOATS = np.array([*POOL["float"], *POOL["float32"], *POOL["float16"]], np.float64)


# ---- Arrow


def _scalar_type(rng: Rng) -> pa.DataType:
    zones = [None, "UTC", "Asia/Tokyo", "+05:30", "America/New_York"]
    unit, zone = str(rng.choice(["s", "ms", "us", "ns"])), zones[rng.integers(len(zones))]
    scale = int(rng.integers(-3, 12))
    types = [
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.bool_()),
        *(pa.float16(), pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.string_view(), pa.null()),
        *(pa.timestamp(unit, zone), pa.timestamp(unit, zone), pa.date32(), pa.date64()),
        *(pa.decimal32(9, min(scale, 9)), pa.decimal64(18, scale), pa.decimal128(38, scale), pa.decimal256(76, scale)),
        pa.time32("s" if unit in ("s", "us") else "ms"),
        pa.time64("us" if unit in ("s", "us") else "ns"),
        pa.uuid(),
    ]
    return types[rng.integers(len(types))]


def textless_type(rng: Rng) -> pa.DataType:
    types = [
        *(
            pa.binary(),
            pa.large_binary(),
            pa.binary(4),
            pa.binary_view(),
            pa.duration("s"),
            pa.month_day_nano_interval(),
        ),
        *(pa.struct({"a": pa.int8()}), pa.map_(pa.string(), pa.int8()), pa.run_end_encoded(pa.int32(), pa.int64())),
        *(pa.bool8(), pa.json_(), pa.fixed_shape_tensor(pa.int8(), [2]), pa.opaque(pa.int8(), "a", "b")),
        *(pa.list_(pa.list_(pa.int8())), pa.list_view(pa.int8()), pa.large_list_view(pa.string())),
        pa.dense_union([pa.field("a", pa.int8())]),
    ]
    return types[rng.integers(len(types))]


def arrow_array(rng: Rng, kind: pa.DataType, rows: int) -> pa.Array:
    """Random values of a type, its extremes among them."""
    mask = rng.random(rows) < rng.choice([0, 0.2, 1], p=[0.3, 0.6, 0.1])
    if pa.types.is_null(kind):
        return pa.nulls(rows)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = rng.integers(0, 5, rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        members = arrow_array(rng, kind.value_type, int(offsets[-1]))
        make, width = (pa.ListArray, pa.int32()) if pa.types.is_list(kind) else (pa.LargeListArray, pa.int64())
        return make.from_arrays(pa.array(offsets, width), members, mask=pa.array(mask))
    if pa.types.is_fixed_size_list(kind):
        members = arrow_array(rng, kind.value_type, rows * kind.list_size)
        return pa.FixedSizeListArray.from_arrays(members, kind.list_size, mask=pa.array(mask))
    if kind in (pa.string(), pa.large_string(), pa.string_view()):
        words = [w for w in WORDS if "\ud800" not in w]
        return pa.array([None if m else words[rng.integers(len(words))] for m in mask], kind)
    if pa.types.is_boolean(kind):
        return pa.array(rng.integers(0, 2, rows).astype(bool), mask=mask)
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):
            return pa.array(rng.choice(FLOATS, rows).astype(kind.to_pandas_dtype()), kind, mask=mask)
    if pa.types.is_decimal(kind):
        some = [int("9" * int(rng.integers(0, kind.precision + 1)) or 0) // divisor for divisor in (1, 7, 10)]
        decimals = [decimal.Decimal(some[i]).scaleb(-kind.scale, CONTEXT) for i in rng.integers(3, size=rows)]
        try:
            return pa.array([None if m else n for m, n in zip(mask, decimals, strict=True)], kind)
        except pa.ArrowException:
            return pa.nulls(rows, kind)
    if isinstance(kind, pa.UuidType):
        return pa.array([None if m else bytes([i % 3] * 16) for i, m in enumerate(mask)], pa.binary(16)).cast(kind)
    if pa.types.is_time(kind):
        a_day = 86_400 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        numbers = rng.choice([0, 1, a_day - 1, a_day // 2, 12_345_678_901 % a_day], rows)
        return pa.array(numbers, mask=mask).cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)
    if pa.types.is_date64(kind):
        return arrow_array(rng, pa.date32(), rows).cast(kind)
    is_moment = pa.types.is_temporal(kind)
    width = kind.bit_width
    integers = np.iinfo(f"{'u' if pa.types.is_unsigned_integer(kind) else ''}int{width}")
    special = [0, 1, 7, 54, 100, integers.max, integers.min, integers.max // 2**11, 1_700_000_000, 1_700_000_000_123]
    fits = np.array([n for n in special if integers.min <= n <= integers.max], integers.dtype)
    numbers = pa.array(
        rng.choice(fits, rows) if rng.random() < 0.5 else rng.integers(0, 100, rows).astype(integers.dtype), mask=mask
    )
    return numbers.cast(pa.int32() if width == 32 else pa.int64()).cast(kind) if is_moment else numbers


CONTEXT = decimal.Context(prec=100)


def arrow_column(rng: Rng, rows: int, is_list: bool) -> pa.Array:
    if rng.random() < 0.01:
        no_utf_8 = pa.array([b"a\xc0"] * rows, pa.binary())
        return pa.Array.from_buffers(pa.string(), rows, no_utf_8.buffers())
    kind = _scalar_type(rng)
    if is_list and rng.random() < 0.8 and not isinstance(kind, pa.UuidType):
        kind = [pa.list_(kind), pa.large_list(kind), pa.list_(kind, 2)][rng.integers(3)]
    if rng.random() < 0.02:
        kind = textless_type(rng)
        return pa.nulls(rows, kind) if not pa.types.is_union(kind) else pa.nulls(rows, pa.int8())
    return arrow_array(rng, kind, rows)


# ---- containers: what they make of columns must be the same values


def _chunks(rng: Rng, column: pa.Array, encode: bool) -> pa.ChunkedArray:
    cut = int(rng.integers(len(column) + 1))
    pieces = [column[:cut], column[cut:cut], column[cut:]]
    return pa.chunked_array([p.dictionary_encode() for p in pieces] if encode else pieces)


def _can_encode(column: pa.Array) -> bool:
    try:
        column.dictionary_encode()
    except pa.ArrowException:
        return False
    return True


def of_arrow(rng: Rng, columns: dict[str, pa.Array]) -> tuple[str, Any]:
    """A container of Arrow columns, and its name."""
    how = str(
        rng.choice(["table", "chunks", "dictionaries", "sliced", "ArrowDtype", "Dataset", "batch of text", "dicts"])
    )
    if how == "chunks":
        return how, pa.table({name: _chunks(rng, column, encode=False) for name, column in columns.items()})
    if how == "dictionaries":
        return how, pa.table({n: _chunks(rng, c, encode=True) if _can_encode(c) else c for n, c in columns.items()})
    if how == "sliced":
        made = {
            name: pa.concat_arrays([c[-1:], c, c[:1]])[len(c[-1:]) : len(c[-1:]) + len(c)]
            for name, c in columns.items()
        }
        return how, pa.table(made)
    table = pa.table(columns)
    try:
        if how == "ArrowDtype":
            return how, table.to_pandas(types_mapper=pd.ArrowDtype)
        if how == "Dataset":
            return how, datasets.Dataset(table)
        if how == "dicts":
            return how, table.to_pylist()
    except Exception:  # that container cannot hold them
        pass
    return "table", table


def of_python(rng: Rng, columns: dict[str, list[Any]]) -> tuple[str, Any]:
    """A container of Python values as they are, and its name."""
    how = str(
        rng.choice(["dicts", "tuple of dicts", "DataFrame", "DataFrame of another index", "generator", "ragged dicts"])
    )
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if how == "ragged dicts":
        return how, [
            {name: value for name, value in row.items() if value is not None or rng.random() < 0.5} for row in rows
        ]
    if how == "tuple of dicts":
        return how, tuple(rows)
    if how.startswith("DataFrame"):
        index = None if how == "DataFrame" else [0] * len(rows)
        made = {}
        for name, values in columns.items():
            cells = np.empty(len(values), object)
            for i, value in enumerate(values):
                cells[i] = value
            made[name] = pd.Series(cells, index, dtype=object)
        return how, pd.DataFrame(made)
    return how, iter(rows) if how == "generator" else rows


# ---- what must hold


def is_ours(error: BaseException) -> bool:
    """Whether the error is raised by this project, and not by a library that it calls."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return frames[-1].f_globals["__name__"].partition(".")[0] == "modeling_flip"


def fault_of(error: Exception, names: list[str]) -> str | None:
    """What is wrong with an error; None where it is one line of ours that names a field."""
    said = f"{type(error).__name__}: {str(error)[:200]}"
    if not isinstance(error, (TypeError, ValueError)) or not is_ours(error):
        return f"not our error: {said}"
    if not any(repr(name) in str(error) for name in names):
        return f"names no field: {said}"
    return None if "\n" not in str(error) else f"several lines: {said}"


def _key(value: Any) -> str | bytes:
    try:
        return value.encode(errors="surrogatepass") if isinstance(value, str) else repr(value)
    except ValueError:  # an integer of very many digits
        return "huge"


class Alone:
    """The text of each value by itself, or that there is none."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, type, str | bytes], str | type | None] = {}

    def __call__(self, value: Any, field: Field) -> Any:
        key = (field.name, type(value), _key(value))
        if key not in self.known:
            try:
                self.known[key] = read_column([value], field).to_pylist()[0]
            except (TypeError, ValueError) as error:
                if fault_of(error, [field.name]):
                    raise
                self.known[key] = TypeError
        return self.known[key]


def make_pipeline(folder: Path) -> CtrPredictionPipeline:
    """A random model of all kinds and types, with both towers."""
    rng = np.random.default_rng(0)
    cells: dict[str, list[Any]] = {
        "string": ["Rome", "7", "東京", "true"],
        "integer": [7, -3, 100, 2**60],
        "number": [2.5, 0.1, -12.25, 3],
        "boolean": [True, False],
        "date": [dt.date(2024, 1, 31), dt.date(1969, 12, 31), dt.date(2000, 2, 29)],
        "timestamp": [dt.datetime(2024, 1, 31, 12, 30), dt.datetime(1970, 1, 1), dt.datetime(2000, 2, 29, 1)],
    }

    def cell(field: Field) -> Any:
        values = cells[field.type]
        picked = [values[i] for i in rng.integers(len(values), size=3)]
        return picked if field.kind == "list" else " ".join(map(str, picked)) if field.kind == "text" else picked[0]

    rows = [{field.name: cell(field) for field in FIELDS} for _ in range(40)]
    texts = FlipProcessor.fit(rows, FIELDS).texts(rows)
    write_text_model(folder, texts, max_length=16)
    from transformers import AutoTokenizer

    processor = FlipProcessor.fit(rows, FIELDS, AutoTokenizer.from_pretrained(folder), max_length=16)
    torch.manual_seed(0)
    model = FlipForCTR.from_text_pretrained(str(folder), processor, embedding_size=4, hidden_sizes=[8])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return CtrPredictionPipeline(model.eval(), processor, device="cpu", batch_size=64)


def cases(seed: int, rows: int, only: int | None = None) -> Iterator[tuple[int, Rng, int]]:
    """Number, random numbers and size of each batch."""
    number = 0
    while rows > 0:
        rng = np.random.default_rng([seed, number])
        size = min(rows, int(rng.choice([1, 2, 7, 100, 400, 700])))
        rows -= size
        if only in (None, number):
            yield number, rng, size
        number += 1


def fuzz(pipe: CtrPredictionPipeline, seed: int, rows: int, only: int | None = None) -> list[str]:
    """So many rows through the pipeline; what did not hold, one line each."""
    faults: list[str] = []
    alone = Alone()
    for number, rng, size in cases(seed, rows, only):
        try:
            found = _one_batch(pipe, rng, size, alone)
        except Exception as error:
            found = [f"{type(error).__name__}: {str(error)[:300]}"]
        faults += [f"pipeline --seed {seed} --only {number}: {fault}" for fault in found]
    return faults


def _one_batch(pipe: CtrPredictionPipeline, rng: Rng, size: int, alone: Alone) -> list[str]:
    chosen = [field for field in READ if rng.random() < 0.7] or READ[:1]
    extra = {"note": 5, "another": object()} if rng.random() < 0.3 else {}
    if rng.random() < 0.5:
        columns = {field.name: arrow_column(rng, size, field.kind == "list") for field in chosen}
        how, rows = of_arrow(rng, columns)
        values = {name: _cells(column) for name, column in columns.items()}
    else:
        values = {field.name: python_column(rng, size, field.kind == "list") for field in chosen}
        how, rows = of_python(rng, values | {name: [cell] * size for name, cell in extra.items()})
    faults = []
    expected: dict[str, list[Any]] = {}
    for field in chosen:
        cells = values[field.name]
        if cells is not None:
            expected[field.name] = [alone(cell, field) for cell in cells]
    textless = [name for name, texts in expected.items() if TypeError in texts]
    unsure = [field.name for field in chosen if values[field.name] is None]
    made = list(rows) if how == "generator" else rows
    try:
        scored = list(pipe(iter(made) if how == "generator" else rows))
    except Exception as error:
        if fault := fault_of(error, textless + unsure):
            faults.append(f"{how}: {fault}")
        for field in chosen:  # each column by itself, so that one does not hide the others
            if field.name in expected:
                faults += _compare(made, how, field, expected[field.name])
        return faults
    probabilities = [row["probability"] for row in scored]
    if textless:
        faults.append(f"{how}: {textless} have no text alone, and were scored here")
    if len(probabilities) != size or not all(0 <= p <= 1 for p in probabilities):
        faults.append(f"{how}: {size} rows gave {len(probabilities)} probabilities: {probabilities[:5]}")
    for field in chosen:
        if field.name in expected:
            faults += _compare(made, how, field, expected[field.name])
    at = int(rng.integers(size))
    row = {name: cells[at] for name, cells in values.items() if cells is not None}
    if len(row) == len(values):
        one = pipe([row])[0]["probability"]
        if abs(one - probabilities[at]) > NOISE:
            faults.append(f"{how}: row {at} is {probabilities[at]!r} here and {one!r} alone: {str(row)[:300]}")
    return faults


def _cells(column: pa.Array) -> list[Any] | None:
    """A column's values in Python, where Python has them."""
    if not has_text(column.type):
        return None
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, NotImplementedError):
        return None


def has_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return any(is_kind(kind) for is_kind in KINDS_OF_TEXT) or isinstance(kind, pa.UuidType)


def _compare(rows: Any, how: str, field: Field, expected: list[Any]) -> list[str]:
    try:
        texts = read_columns(rows, [field], strict=False)[0][field.name].to_pylist()
    except Exception as error:
        fault = fault_of(error, [field.name])
        if fault is None and TypeError not in expected:
            fault = f"refused here, and not alone: {error}"
        return [f"{how}, {field.name!r}: {fault}"] if fault else []
    wrong = [i for i, (text, one) in enumerate(zip(texts, expected, strict=True)) if text != one]
    if not wrong:
        return []
    i = wrong[0]
    cell = rows[i].get(field.name) if isinstance(rows, (list, tuple)) else None
    kind = rows.schema.field(field.name).type if isinstance(rows, pa.Table) else type(cell).__name__
    return [f"{how}, {field.name!r} row {i} ({kind} {cell!r:.80}): {texts[i]!r:.80} here, {expected[i]!r:.80} alone"]
