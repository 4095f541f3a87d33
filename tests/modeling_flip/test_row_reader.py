"""The reader: a cell's text is a function of the cell and its field's type, whatever container or column it stands in."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import functools
import io
import itertools
import json
import math
import random
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from modeling_flip import FeatureVocabulary, Field, FlipProcessor
from modeling_flip.fields import TYPES
from modeling_flip.row_reader import MEMBER_SEPARATOR, _moment, as_numbers, read_clicks, read_column, read_columns

D = decimal.Decimal
UTC, ROME = dt.UTC, dt.timezone(dt.timedelta(hours=1))


def texts_of(values: Any, type: str = "string", **options: Any) -> list[str | None]:
    """The canonical text of one column."""
    return read_column(values, Field(name="a", type=type, **options)).to_pylist()


def lists_of(values: Any, type: str = "string", **options: Any) -> list[list[str] | None]:
    """The members of each list of one column."""
    texts = texts_of(values, type, kind="list", **options)
    return [None if text is None else text.split(MEMBER_SEPARATOR) for text in texts]


# ---- the same cells in every container

CELLS: dict[str, list[Any]] = {
    "string": ["Rome", "東京", None, "007", "a b", "Rome", "it's, or", "2.50"],
    "integer": [7, -3, None, 0, 100, 7, 99, 8],
    "number": [2.5, -0.125, None, 3.0, 1999.0, 2.5, 0.0, -12.25],
    "boolean": [True, False, None, False, True, True, False, True],
    "date": [
        *(dt.date(2024, 1, 31), dt.date(1960, 12, 31), None, dt.date(2024, 2, 1)),
        *(dt.date(1995, 1, 1), dt.date(2024, 1, 31), dt.date(2100, 1, 1), dt.date(2000, 2, 29)),
    ],
    "timestamp": [
        *(dt.datetime(2024, 1, 31, 12, 30), dt.datetime(1960, 12, 31, 23, 59, 59), None, dt.datetime(2024, 2, 1)),
        *(
            dt.datetime(1995, 1, 1, 0, 0, 1),
            dt.datetime(2024, 1, 31, 12, 30),
            dt.datetime(2000, 1, 1, 1),
            dt.datetime(2030, 1, 1),
        ),
    ],
}
ARROW_TYPES: dict[str, list[pa.DataType]] = {
    "string": [pa.string(), pa.large_string(), pa.string_view()],
    "integer": [
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float16(), pa.float32(), pa.float64()),
        *(pa.decimal128(9, 0), pa.decimal128(9, 3), pa.decimal256(40, 2), pa.string(), pa.large_string()),
    ],
    "number": [
        *(pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 3), pa.decimal256(40, 5), pa.string()),
    ],
    "boolean": [pa.bool_(), pa.int8(), pa.uint64(), pa.float64(), pa.string()],
    "date": [pa.date32(), pa.date64(), *(pa.timestamp(u, z) for u in ("s", "ms", "us", "ns") for z in (None, "UTC"))],
    "timestamp": [pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Asia/Tokyo")],
}
NUMPY_SCALARS: dict[str, Callable[[Any], Any]] = {
    "string": np.str_,
    "integer": np.int16,
    "number": np.float32,
    "boolean": np.bool_,
    "date": np.datetime64,
    "timestamp": np.datetime64,
}


def each(values: Sequence[Any], of: Callable[[Any], Any]) -> list[Any]:
    """`of` each value of a column, or of each member of its lists."""
    return [None if v is None else each(v, of) if isinstance(v, (list, tuple)) else of(v) for v in values]


def arrow(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values, or lists of them, as an Arrow array whose values are of this type."""
    if any(isinstance(value, list) for value in values):
        lengths = [0 if v is None else len(v) for v in values]
        flat = arrow([member for value in values for member in value or ()], kind)
        mask = pa.array([v is None for v in values])
        return pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), flat, mask=mask
        )
    if pa.types.is_floating(kind):
        return pa.array(each(values, float), pa.float64()).cast(kind)
    if pa.types.is_decimal(kind):
        return pa.array(each(values, lambda v: D(str(v))), kind)
    if pa.types.is_integer(kind):
        return pa.array(each(values, int), kind)
    if kind in (pa.string(), pa.large_string(), pa.string_view()):
        return pa.array(each(values, str), kind)
    if pa.types.is_timestamp(kind):
        moments = each(values, lambda v: v if isinstance(v, dt.datetime) else dt.datetime.combine(v, dt.time()))
        return pa.array(moments, pa.timestamp("us")).cast(pa.timestamp(kind.unit)).cast(kind)
    return pa.array(values, kind)


def arrow_table(values: list[Any], kind: pa.DataType) -> pa.Table:
    return pa.table({"a": arrow(values, kind)})


def as_csv(values: list[Any]) -> list[dict[str, str]]:
    """What `csv.DictReader` gives of the file that pandas writes."""
    text = io.StringIO(newline="")
    pd.DataFrame({"a": pd.Series(values, dtype=object), "b": 1}).to_csv(text, index=False)
    text.seek(0)
    return list(csv.DictReader(text))


def as_parquet(values: Any) -> pa.Table:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": values}), sink)
    return pq.read_table(pa.BufferReader(sink.getvalue()))


def as_pandas_json(values: list[Any]) -> list[dict[str, Any]]:
    return json.loads(pd.DataFrame({"a": values}).to_json(orient="records"))


def as_json_rows(values: list[Any]) -> list[dict[str, Any]]:
    return [json.loads(json.dumps({"a": value}, default=str)) for value in values]


def in_chunks(column: pa.Array, encode: bool) -> pa.Table:
    """Chunks, each with a dictionary of its own."""
    pieces = [column.slice(0, 3), column.slice(3, 0), column.slice(3)]
    return pa.table({"a": pa.chunked_array([p.dictionary_encode() if encode else p for p in pieces])})


def backwards_and_back(column: pa.Array) -> datasets.Dataset:
    """The rows in order, through an indices mapping over rows stored backwards."""
    rows = list(range(len(column)))[::-1]
    return datasets.Dataset(pa.table({"a": column.take(pa.array(rows))})).select(rows)


def containers(kind: str, values: list[Any]) -> dict[str, Callable[[], Any]]:
    """Every container that can hold these cells of a type, as they would come in it."""
    first = ARROW_TYPES[kind][0]
    default = pa.float64() if kind == "number" else pa.int64() if kind == "integer" else first
    column = arrow(values, default)

    def unused_dictionary() -> dict[str, pa.Array]:
        encoded = arrow([values[-1], *values], default).dictionary_encode()
        return {"a": encoded.slice(1)}

    made: dict[str, Callable[[], Any]] = {
        "CSV": lambda: as_csv(values),
        "dicts": lambda: [{"a": value} for value in values],
        "dicts of text": lambda: [{"a": value} for value in each(values, str)],
        "dicts of numpy scalars": lambda: [{"a": value} for value in each(values, NUMPY_SCALARS[kind])],
        "JSON": lambda: as_json_rows(values),
        "JSON of pandas": lambda: as_pandas_json(values),
        "dict of columns": lambda: {"a": values},
        "dict of a numpy array of objects": lambda: {"a": np.array(values, object)},
        "DataFrame": lambda: pd.DataFrame({"a": values}),
        "DataFrame of objects": lambda: pd.DataFrame({"a": pd.Series(values, dtype=object)}),
        "DataFrame with another index": lambda: pd.DataFrame({"a": values}, index=range(20, 12, -1)),
        "DataFrame, convert_dtypes": lambda: pd.DataFrame({"a": values}).convert_dtypes(),
        "DataFrame of Arrow": lambda: pa.table({"a": column}).to_pandas(types_mapper=pd.ArrowDtype),
        "DataFrame, category": lambda: pd.DataFrame({"a": pd.Series(values).astype("category")}),
        "Parquet": lambda: as_parquet(column),
        "Parquet through pandas": lambda: as_parquet(column).to_pandas(),
        "sliced": lambda: {"a": arrow([values[-1], *values], default).slice(1)},
        "record batch": lambda: pa.record_batch({"a": column}),
        "chunks": lambda: in_chunks(column, encode=False),
        "dictionary": lambda: pa.table({"a": column.dictionary_encode()}),
        "sliced dictionary": unused_dictionary,
        "chunks of other dictionaries": lambda: in_chunks(column, encode=True),
        "Dataset": lambda: datasets.Dataset(pa.table({"a": column})),
        "Dataset, selected": lambda: backwards_and_back(column),
        "Dataset, torch": lambda: datasets.Dataset(pa.table({"a": column})).with_format("torch"),
    }
    made |= {f"Arrow {t}": functools.partial(arrow_table, values, t) for t in ARROW_TYPES[kind]}
    if kind in ("integer", "number"):
        made["dicts of Decimal"] = lambda: [{"a": v} for v in each(values, lambda v: D(str(v)).quantize(D("0.000")))]
    if kind == "integer":
        gap = pd.DataFrame({"a": values})
        assert gap["a"].dtype == float  # a gap makes integers floats
        made["float text"] = lambda: [{"a": value} for value in each(values, lambda v: f" {float(v)} ")]
        made["zeros in front"] = lambda: [{"a": v} for v in each(values, lambda v: f"{v:04d}")]
        unsigned = [v if v is None or v >= 0 else None for v in values]
        assert texts_of(arrow(unsigned, pa.uint8()), kind) == texts_of(unsigned, kind)
    if kind == "number":
        made["digits of all kinds"] = lambda: [
            {"a": v} for v in each(values, lambda v: f"+{v:.6f}" if v > 0 else f"{v:e}")
        ]
    if kind == "boolean":

        def said(*words: Any) -> Callable[[], Any]:
            return lambda: [{"a": v} for v in each(values, lambda v: words[v])]

        made |= {
            f"words {true}": said(false, true)
            for false, true in (("no", "yes"), ("N", "Y"), ("FALSE", "TRUE"), ("f", "t"), ("0", "1"), ("0.0", "1.0"))
        }
        made |= {f"numbers {true!r}": said(false, true) for false, true in ((0, 1), (0.0, 1.0), (D(0), D("1.0")))}
    if kind in ("date", "timestamp"):
        made["Timestamps"] = lambda: [{"a": v} for v in each(values, pd.Timestamp)]
        made["Timestamps of objects"] = lambda: pd.DataFrame({"a": pd.Series(each(values, pd.Timestamp), dtype=object)})
        made["numpy, other units"] = lambda: {"a": np.array(values, "M8[s]")}
        made["T between"] = lambda: [{"a": v} for v in each(values, lambda v: pd.Timestamp(v).isoformat())]
    if kind == "timestamp":
        in_utc = each(values, lambda v: v.replace(tzinfo=UTC))
        made["aware"] = lambda: [{"a": value} for value in in_utc]
        made["of another zone"] = lambda: [{"a": v} for v in each(in_utc, lambda v: v.astimezone(ROME))]
        made["text of another zone"] = lambda: [
            {"a": v} for v in each(in_utc, lambda v: v.astimezone(ROME).isoformat())
        ]
        made["Z"] = lambda: [{"a": v} for v in each(values, lambda v: v.isoformat() + "Z")]
        made["DataFrame of a zone"] = lambda: pd.DataFrame({"a": pd.Series(in_utc).dt.tz_convert("Asia/Tokyo")})
        late = each(values, lambda v: v if v.year > 1980 else None)
        seconds = each(late, lambda v: int(v.replace(tzinfo=UTC).timestamp()))
        for name, unit in (("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)):
            since = [None if s is None else s * unit for s in seconds]
            for spelled in (since, each(since, str), each(since, float)):
                assert texts_of(spelled, kind) == texts_of(late, kind), name
    return made


def list_containers(kind: str, values: list[Any]) -> dict[str, Callable[[], Any]]:
    """Every container that can hold these lists, all of two members or missing."""
    default = pa.float64() if kind == "number" else pa.int64() if kind == "integer" else ARROW_TYPES[kind][0]
    column = arrow(values, default)
    frame = pd.DataFrame({"a": values})

    def joined(by: str) -> list[dict[str, str]]:
        return [{"a": "" if v is None else by.join("" if m is None else str(m) for m in v)} for v in values]

    return {
        "lists": lambda: [{"a": value} for value in values],
        "tuples": lambda: [{"a": None if value is None else tuple(value)} for value in values],
        "lists of text": lambda: [{"a": value} for value in each(values, str)],
        "numpy arrays": lambda: [{"a": None if value is None else np.array(value, object)} for value in values],
        "numpy scalars": lambda: {"a": each(values, NUMPY_SCALARS[kind])},
        "text": lambda: joined("|"),
        "text with spaces": lambda: joined(" | "),
        "CSV": lambda: as_csv([row["a"] for row in joined("|")]),
        "JSON text": lambda: [{"a": None if v is None else json.dumps(v, default=str)} for v in values],
        "JSON text over lines": lambda: [
            {"a": None if v is None else json.dumps(v, default=str, indent=1)} for v in values
        ],
        "text of Python": lambda: [{"a": None if v is None else str([v[0], v[1]])} for v in each(values, str)],
        "JSON": lambda: as_json_rows(values),
        "some lists, some text": lambda: [
            {"a": v if i % 2 else row["a"]} for i, (v, row) in enumerate(zip(values, joined("|"), strict=True))
        ],
        "DataFrame": lambda: frame,
        "DataFrame of text": lambda: pd.DataFrame(joined("|")),
        "DataFrame of Arrow": lambda: pa.table({"a": column}).to_pandas(types_mapper=pd.ArrowDtype),
        "large list": lambda: pa.table({"a": column.cast(pa.large_list(column.type.value_type))}),
        "fixed-size list": lambda: pa.table({"a": column.cast(pa.list_(column.type.value_type, 2))}),
        "sliced fixed-size list": lambda: {
            "a": arrow([values[0], *values], default).cast(pa.list_(column.type.value_type, 2)).slice(1)
        },
        "masked list": lambda: pa.table({"a": masked_lists(values, default)}),
        "list of dictionaries": lambda: pa.table({"a": dictionary_members(column)}),
        "text dictionary": lambda: pa.table({"a": pa.array([row["a"] for row in joined("|")]).dictionary_encode()}),
        "text view": lambda: pa.table({"a": pa.array([row["a"] for row in joined("|")], pa.string_view())}),
        "sliced": lambda: {"a": arrow([values[-1], *values], default).slice(1)},
        "chunks": lambda: in_chunks(column, encode=False),
        "Parquet": lambda: as_parquet(column),
        "Parquet through pandas": lambda: as_parquet(column).to_pandas(),
        "Dataset": lambda: datasets.Dataset(pa.table({"a": column})),
        "Dataset, selected": lambda: backwards_and_back(column),
    } | {f"Arrow {t}": functools.partial(arrow_table, values, t) for t in ARROW_TYPES[kind]}


def masked_lists(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The lists, with members behind the missing ones too."""
    flat = arrow([m for v in values for m in (v or values[0])], kind)
    mask = pa.array([v is None for v in values])
    return pa.ListArray.from_arrays(pa.array(range(0, 2 * len(values) + 1, 2), pa.int32()), flat, mask=mask)


def dictionary_members(column: pa.Array) -> pa.Array:
    members = column.values.dictionary_encode()
    return pa.ListArray.from_arrays(column.offsets, members, mask=column.is_null())


KINDS_AND_TYPES = [
    *(("categorical", kind) for kind in TYPES),
    *(("numeric", kind) for kind in ("integer", "number", "date", "timestamp")),
    *(("list", kind) for kind in TYPES),
    *(("text", kind) for kind in TYPES),
]


def cells_of(kind: str, type: str) -> list[Any]:
    cells = CELLS[type]
    if kind != "list":
        return cells
    return [cells[:2], None, [cells[2], cells[3]], cells[4:6], cells[:2], None, [cells[5], cells[6]], cells[6:]]


# In files of pandas and JSON a date that is one of a list's members has no spelling of its own.
CROSSED = [
    (kind, type, container)
    for kind, type in KINDS_AND_TYPES
    for container in (list_containers if kind == "list" else containers)(type, cells_of(kind, type))
]


def field_of(kind: str, type: str) -> Field:
    options: dict[str, dict[str, Any]] = {"list": {"separator": "|", "min_count": 2}, "numeric": {"num_buckets": 3}}
    return Field(name="a", kind=kind, type=type, **options.get(kind, {}))


@pytest.fixture(scope="module")
def crossed_processors(wordpiece: PreTrainedTokenizerFast) -> dict[tuple[str, str], FlipProcessor]:
    """Of each kind and type a processor that was fitted to the first five rows as Python values."""
    return {
        (kind, type): FlipProcessor.fit([{"a": v} for v in cells_of(kind, type)[:5]], [field_of(kind, type)], wordpiece)
        for kind, type in KINDS_AND_TYPES
    }


@pytest.mark.parametrize(("kind", "type", "container"), CROSSED, ids=lambda value: str(value))
def test_the_same_cells_are_read_to_the_same_bits(
    crossed_processors: dict[tuple[str, str], FlipProcessor], kind: str, type: str, container: str
) -> None:
    processor, field, cells = crossed_processors[kind, type], field_of(kind, type), cells_of(kind, type)
    plain = [{"a": value} for value in cells]
    rows = (list_containers if kind == "list" else containers)(type, cells)[container]()
    ours, theirs = (read_columns(r, [field])[0]["a"] for r in (rows, plain))
    assert ours.to_pylist() == theirs.to_pylist()
    assert ours.dictionary.to_pylist() == theirs.dictionary.to_pylist()
    assert sum(text is None for text in ours.to_pylist()) == sum(cell is None for cell in cells) > 0
    assert FeatureVocabulary.fit(rows, [field]) == FeatureVocabulary.fit(plain, [field])
    ours, theirs = processor.encode(rows), processor.encode(plain)
    assert ours.value_ids.tolist() == theirs.value_ids.tolist()
    assert ours.local.texts.equals(theirs.local.texts)
    ours, theirs = processor(rows), processor(plain)
    assert set(ours) == set(theirs)
    assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_what_the_cells_are_read_as() -> None:
    """The right side of the comparison above, by hand."""
    read = {type: texts_of(cells, type) for type, cells in CELLS.items()}
    assert read == {
        "string": ["Rome", "東京", None, "007", "a b", "Rome", "it's, or", "2.50"],
        "integer": ["7", "-3", None, "0", "100", "7", "99", "8"],
        "number": ["2.5", "-0.125", None, "3", "1999", "2.5", "0", "-12.25"],
        "boolean": ["true", "false", None, "false", "true", "true", "false", "true"],
        "date": [
            *("2024-01-31", "1960-12-31", None, "2024-02-01", "1995-01-01", "2024-01-31", "2100-01-01", "2000-02-29"),
        ],
        "timestamp": [
            *("2024-01-31 12:30:00", "1960-12-31 23:59:59", None, "2024-02-01 00:00:00", "1995-01-01 00:00:01"),
            *("2024-01-31 12:30:00", "2000-01-01 01:00:00", "2030-01-01 00:00:00"),
        ],
    }
    assert lists_of(cells_of("list", "date"), "date") == [
        *(["2024-01-31", "1960-12-31"], None, ["2024-02-01"], ["1995-01-01", "2024-01-31"]),
        *(["2024-01-31", "1960-12-31"], None, ["2024-01-31", "2100-01-01"], ["2100-01-01", "2000-02-29"]),
    ]


# ---- a value's text does not depend on its neighbours

POOL: list[Any] = [
    *(
        None,
        "",
        "a",
        "7",
        "007",
        "7.0",
        " 7 ",
        "true",
        "NA",
        "2024-01-31",
        "2024-01-31T12:30:00Z",
        "\ud800",
        "1e3",
        "inf",
    ),
    *(7, -7, 0, 1, 2**53 + 1, 2**60, 2**70, -(2**70), 1234567890123456789, 1700000000, 1700000000123, True, False),
    *(2.5, 7.0, -0.0, 0.1, 1e300, 2.0**60, float("nan"), float("inf"), 1700000000.5),
    *(
        np.float16(0.1),
        np.float32(0.1),
        np.float64(0.1),
        np.int8(7),
        np.uint64(2**64 - 1),
        np.bool_(True),
        np.str_("a"),
    ),
    *(np.datetime64("2024-01-31"), np.datetime64("2024-01-31T12:30:00.123456789"), np.datetime64("NaT")),
    *(D("7.00"), D("0.1"), D("1E+3"), D("NaN"), D("123456789012345678901234567890")),
    *(dt.date(2024, 1, 31), dt.datetime(2024, 1, 31), dt.datetime(2024, 1, 31, 12, 30, tzinfo=ROME), dt.time(12, 30)),
    *(pd.Timestamp("2024-01-31 12:30:00.000000001"), pd.NaT, pd.NA, uuid.UUID(int=5)),
]


@functools.cache
def texts_alone(type: str) -> list[str | None]:
    """The text of each value of the pool, read alone."""
    return [texts_of([value], type)[0] for value in POOL]


@pytest.mark.parametrize("type", TYPES)
def test_no_value_changes_the_text_of_another(type: str) -> None:
    alone = texts_alone(type)
    wrong = [
        (POOL[i], POOL[j])
        for i, j in itertools.combinations(range(len(POOL)), 2)
        if texts_of([POOL[i], POOL[j], POOL[i]], type) != [alone[i], alone[j], alone[i]]
    ]
    assert wrong == []


@pytest.mark.parametrize("type", TYPES)
@given(order=st.permutations(range(len(POOL))), repeats=st.integers(1, 3))
def test_nor_does_the_order_of_a_column(type: str, order: list[int], repeats: int) -> None:
    alone = texts_alone(type)
    column = read_column([POOL[i] for i in order] * repeats, Field(name="a", type=type))
    assert column.to_pylist() == [alone[i] for i in order] * repeats
    # The dictionary is in order of first appearance, each value once: so the vocabulary is, too.
    assert column.dictionary.to_pylist() == list(dict.fromkeys(text for text in column.to_pylist() if text is not None))


@pytest.mark.parametrize("type", TYPES)
def test_nor_is_a_member_of_a_list_another_than_alone(type: str) -> None:
    members = list(POOL)
    random.Random(0).shuffle(members)
    alone = [lists_of([[value]], type)[0] for value in members]
    expected = [text for texts in alone if texts is not None for text in texts]
    assert lists_of([members], type, max_items=99) == [expected]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_a_32_bit_number_is_its_own_python_number_and_text(values: list[float]) -> None:
    texts = texts_of(pa.array(values, pa.float32()), "number")
    assert texts == texts_of(values, "number") == texts_of(np.array(values, np.float32), "number")
    assert texts == texts_of(list(map(repr, values)), "number") == texts_of(list(map(np.float32, values)), "number")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_a_number_reads_as_the_number_it_is(values: list[float]) -> None:
    texts = texts_of(values, "number")
    assert texts == texts_of(list(map(repr, values)), "number")
    read = as_numbers(pa.array(texts), "number")
    np.testing.assert_allclose(read, values, rtol=1e-6, atol=1e-44)
    # Reading what was read changes nothing.
    assert texts_of(texts, "number") == texts


@given(st.lists(st.one_of(st.integers(), st.integers(2**52, 2**64)), min_size=1))
def test_integers_are_text_to_the_digit(values: list[int]) -> None:
    expected = list(map(str, values))
    assert texts_of(values, "integer") == expected == texts_of(expected, "integer") == texts_of(values)
    assert texts_of([f"+00{v}" if v >= 0 else f"-0{-v}" for v in values], "integer") == expected
    assert texts_of(list(map(D, values)), "integer") == expected
    narrow = [v for v in values if abs(v) < 2**53]
    assert texts_of(list(map(float, narrow)), "integer") == list(map(str, narrow))


@given(st.lists(st.one_of(st.integers(2**53, 2**70), st.integers(-(2**70), -(2**53))), min_size=1))
def test_large_whole_numbers_are_one_number_in_any_container(values: list[int]) -> None:
    texts = texts_of(values, "number")
    assert texts == texts_of(list(map(float, values)), "number") == texts_of(list(map(str, values)), "number")
    assert texts == texts_of(list(map(D, values)), "number")


# ---- by hand


@pytest.mark.parametrize(
    ("type", "values", "texts"),
    [
        ("string", [25, 25.0, "25"], ["25", "25", "25"]),
        ("string", [1, 2.5], ["1", "2.5"]),
        ("string", [1.0, None, float("nan")], ["1", None, None]),
        ("string", [float("nan"), "a"], [None, "a"]),
        ("string", ["", "a", None, pd.NA], [None, "a", None, None]),
        ("string", [" a ", "007", "1.50"], [" a ", "007", "1.50"]),
        ("string", [True, False, None], ["true", "false", None]),
        ("string", [np.int64(3), np.float32(2.5), np.bool_(True), np.str_("x")], ["3", "2.5", "true", "x"]),
        ("string", np.array([1.0, np.nan, 2.5]), ["1", None, "2.5"]),
        ("string", np.array([3, "b", None], object), ["3", "b", None]),
        ("string", [None, None], [None, None]),
        ("string", [2**60], ["1152921504606846976"]),
        ("string", pa.array([25.0, None, float("nan")]), ["25", None, None]),
        ("string", pa.array([25.0, None, float("nan")]).dictionary_encode(), ["25", None, None]),
        ("string", pa.array(["x", None, "y", "x"]).dictionary_encode(), ["x", None, "y", "x"]),
        ("string", pa.array(["x", None], pa.large_string()), ["x", None]),
        ("string", pa.chunked_array([["x"], [], ["y", None]]), ["x", "y", None]),
        (
            "string",
            pa.chunked_array([pa.array(t).dictionary_encode() for t in (["x"], ["y", "x"])]),
            ["x", "y", "x"],
        ),
        ("string", pa.nulls(2), [None, None]),
        ("string", [uuid.UUID(int=5)], ["00000000-0000-0000-0000-000000000005"]),
        ("string", pa.array([uuid.UUID(int=5).bytes], pa.uuid()), ["00000000-0000-0000-0000-000000000005"]),
        ("string", ["\ud800x", "y"], ["?x", "y"]),
        ("string", np.array(["\ud800x", "y"]), ["?x", "y"]),
        ("string", [dt.time(12, 30), dt.time(1, 2, 3, 500000)], ["12:30:00", "01:02:03.5"]),
        ("string", pa.array([dt.time(12, 30), dt.time(1, 2, 3, 500000)]), ["12:30:00", "01:02:03.5"]),
        ("string", [D("2.50"), D("2.5"), D("100"), D("1E+2"), D("NaN")], ["2.5", "2.5", "100", "100", None]),
        ("integer", ["007", "7.", "7.00", "+7", "-07", "-0", "000"], ["7", "7", "7", "7", "-7", "0", "0"]),
        ("integer", ["12345678901234567890123", 12345678901234567890123], ["12345678901234567890123"] * 2),
        ("integer", ["7e2", "2.5", "x7", "٣"], ["700", "2.5", "x7", "٣"]),
        ("integer", [True, False], ["1", "0"]),
        ("number", ["3.50", ".5", "5.", "1e3", "-0.0", "1e39", "1e400"], ["3.5", "0.5", "5", "1000", "0", "1e+39", "inf"]),
        ("number", ["Infinity", "-inf", math.inf, D("Infinity"), "+INF"], ["inf", "-inf", "inf", "inf", "inf"]),
        ("number", ["1,5", "3 €", "1_000"], ["1,5", "3 €", "1_000"]),
        ("number", [0.1, np.float32(0.1), "0.1", "0.10", D("0.1"), D("0.100")], ["0.1"] * 6),
        ("number", [123456789, 123456789.0, "123456789"], ["123456789"] * 3),
        ("boolean", [1, 0, 1.0, 0.0, D(1)], ["true", "false", "true", "false", "true"]),
        ("boolean", ["YES", "n", "T", "2", 2, ""], ["true", "false", "true", "2", "2", None]),
        ("date", ["2024-01-31 00:00:00", "2024-01-31T12:30", "31/01/2024"], ["2024-01-31", "2024-01-31 12:30:00", "31/01/2024"]),
        ("date", ["2024-02-30", "2024-02-29"], ["2024-02-30", "2024-02-29"]),
        ("date", [1999, "1999", 1999.0, "1999.0", 1706659200000, "1706659200000"], [*["1999"] * 4, *["2024-01-31"] * 2]),
        ("timestamp", ["2024-01-31", "2024-01-31T12:30", "2024-01-31 12:30:00.5"],
            ["2024-01-31 00:00:00", "2024-01-31 12:30:00", "2024-01-31 12:30:00.5"]),
        ("timestamp", ["2024-01-31T12:30:00+01:00", "2024-01-31T12:30:00.123456789Z"],
            ["2024-01-31 11:30:00", "2024-01-31 12:30:00.123456"]),
        ("timestamp", [1700000000123456789, "1700000000123456789", 1700000000123456], ["2023-11-14 22:13:20.123456"] * 3),
        ("timestamp", [True, "soon", 1999, 1999.0], ["true", "soon", "1999", "1999"]),
        ("timestamp", ["1e99999999999999999999", "soon"], ["1e99999999999999999999", "soon"]),
        ("timestamp", [np.datetime64("NaT"), pd.NaT, pd.NA, None], [None] * 4),
    ],
    ids=str,
)  # fmt: skip
def test_canonical_text(type: str, values: Any, texts: list[str | None]) -> None:
    column = read_column(values, Field(name="a", type=type))
    assert column.type == pa.dictionary(pa.int32(), pa.string())
    assert column.to_pylist() == texts
    assert column.dictionary.null_count == 0


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("word", ["", "NA", "N/A", "null", "NULL", "None", "nan", "NaN", "<NA>", "#N/A"])
def test_what_pandas_takes_for_missing_is_missing_in_every_container(type: str, word: str) -> None:
    text = io.StringIO(f"a,b\n{word},1\n")
    assert pd.read_csv(text)["a"].isna().all()
    for values in ([word], pa.array([word]), pa.array([word]).dictionary_encode(), pd.Series([word]), np.array([word])):
        assert texts_of(values, type) == [None]
    assert lists_of([["x", word]], missing_words=True) == [["x"]]


def test_a_field_may_say_that_the_words_for_missing_are_values() -> None:
    # An empty cell of a CSV is missing, and so it is in a dict.
    assert texts_of(["NA", "", None, "x"], missing_words=False) == ["NA", None, None, "x"]
    assert lists_of([["NA", "x", None]], missing_words=False) == [["NA", "x"]]
    assert texts_of(pd.Series(["NA", None]), missing_words=False) == ["NA", None]


@pytest.mark.parametrize("dtype", ["category", "string", "object", "str"])
def test_pandas_text_columns_of_any_dtype_read_alike(dtype: str) -> None:
    frame = pd.DataFrame({"a": pd.Series(["x", None, "y"], [7, 5, 3], dtype=dtype)})
    assert read_columns(frame, [Field(name="a")])[0]["a"].to_pylist() == ["x", None, "y"]


def test_pandas_nullable_integers_are_the_integers() -> None:
    frame = pd.DataFrame({"a": pd.array([25, None], dtype="Int64"), "b": [25, None]})
    columns, _ = read_columns(frame, [Field(name="a"), Field(name="b")])
    assert columns["a"].to_pylist() == columns["b"].to_pylist() == ["25", None]


@pytest.mark.parametrize("values", [[1, "a", None], [2.5, True, "x"], [dt.date(2024, 1, 31), 3]], ids=str)
@pytest.mark.parametrize("dtype", ["object", "category"])
def test_pandas_columns_of_mixed_values_read_as_their_values(values: list[Any], dtype: str) -> None:
    assert texts_of(pd.Series(values, dtype=object).astype(dtype)) == texts_of(values)


@pytest.mark.parametrize("value", [12_345_678_901, -10_000_000_000, 2**53 - 1], ids=str)
@pytest.mark.parametrize("type", ["string", "integer", "number"])
def test_a_large_id_that_became_a_float_is_still_the_same_value(value: int, type: str) -> None:
    assert texts_of([float(value), None], type) == texts_of([value, None], type)


def test_nineteen_digits_stay_what_they_are_beside_a_gap() -> None:
    ids = [1234567890123456789, 1234567890123456788, None]
    texts = ["1234567890123456789", "1234567890123456788", None]
    frame = pd.DataFrame({"a": pd.array(ids, "Int64")})
    for values in (ids, frame["a"], pa.array(ids), pa.array(ids).dictionary_encode(), [*map(str, ids[:2]), ""]):
        assert texts_of(values, "integer") == texts
    # Where pandas has rounded them already they are no known identifiers, rather than each other's.
    rounded = texts_of(pd.DataFrame({"a": ids})["a"], "integer")
    assert not set(rounded) & {*texts, str(int(float(ids[0])))} - {None}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "declare it as kind: list"),
        (np.array([1]), "declare it as kind: list"),
        ({"x": 1}, "turn it into text or numbers first"),
        (b"x", "turn it into text or numbers first"),
        (1j, "turn it into text or numbers first"),
        (dt.timedelta(1), "turn it into text or numbers first"),
        (pd.Period("2024-01"), "turn it into text or numbers first"),
        (np.array(5), "turn it into text or numbers first"),
        (object(), "turn it into text or numbers first"),
        (10**5000, "turn it into text first"),
    ],
    ids=lambda value: value[:4] if isinstance(value, str) else type(value).__name__,
)
def test_values_without_one_text_are_refused_by_name(value: Any, message: str) -> None:
    columns = [[{"tags": v} for v in ([value], [None, value], ["x", value])[i]] for i in range(3)]
    frames = [pd.DataFrame({"tags": pd.Series([None, value], dtype=object)})]
    for rows in (*columns, *frames):
        with pytest.raises(TypeError, match=f"^field 'tags' holds a.*{message}") as error:
            read_columns(rows, [Field(name="tags")])
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[1], None]),
        pa.array([[1], None], pa.large_list(pa.int8())),
        pa.array([[1], None], pa.list_(pa.int8(), 1)),
        pa.array([{"x": 1}, None]),
        pa.array([b"x", None]),
        pa.array([b"x", None], pa.large_binary()),
        pa.array([b"x", None], pa.binary(1)),
        pa.array([b"x", None], pa.binary_view()),
        pa.array([b"x", None]).dictionary_encode(),
        pa.chunked_array(
            [pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), pa.array([b"x"], pa.binary_view()))]
        ),
        pa.array([dt.timedelta(1), None]),
        pa.array([[("x", 1)], None], pa.map_(pa.string(), pa.int8())),
        pc.run_end_encode(pa.array([1, 1])),
        pd.Series(pd.period_range("2024-01", periods=2, freq="M")),
        pd.Series(pd.to_timedelta([1, 2], "D")),
        np.array([b"x"]),
        np.array([1], "m8[D]"),
        np.array([(1, 2)], "i4,i4"),
    ],
    ids=lambda values: f"{type(values).__name__} {getattr(values, 'type', getattr(values, 'dtype', ''))}",
)
def test_columns_without_text_are_refused_by_name(values: Any) -> None:
    remedy = "declare it as kind: list" if "list" in str(getattr(values, "type", "")) else "turn it into"
    with pytest.raises(TypeError, match=f"^field 'tags' (has type|holds a).*; {remedy}"):
        read_column(values, Field(name="tags"))


# ---- lists


@pytest.mark.parametrize(
    ("options", "values", "lists"),
    [
        ({}, [["a", "b"], [], None, ["", None, "NA"]], [["a", "b"], None, None, None]),
        ({}, ["a, b", "", "a", ",,"], [["a", "b"], None, ["a"], None]),
        ({"separator": "|"}, ["a, b|c", "|", "d |e"], [["a, b", "c"], None, ["d", "e"]]),
        ({}, ['["a, b", "c"]', "['a', 'b']", "[]", '[" "]', "[[["], [["a, b", "c"], ["a", "b"], None, None, ["[[["]]),
        ({}, [5, "a,b", None, ["x"], ("y",), {"q"}, np.array(["r"])], [["5"], ["a", "b"], None, ["x"], ["y"], ["q"], ["r"]]),
        ({}, [{"c", "a", "b"}, frozenset("ba")], [["a", "b", "c"], ["a", "b"]]),
        ({}, np.array([["a", "b"], ["c", "d"]]), [["a", "b"], ["c", "d"]]),
        ({"max_items": 2}, [list("abcd"), ["", "a", None, "b", "c"], "x,y,z"], [["a", "b"], ["a", "b"], ["x", "y"]]),
        ({"type": "integer", "separator": ";"}, ["1;02;3.0", [1, 2.0, D(3)], "x"], [["1", "2", "3"], ["1", "2", "3"], ["x"]]),
        ({"type": "integer"}, ["[1, 2.0, null]", 7, "7"], [["1", "2"], ["7"], ["7"]]),
        ({}, [f"a{MEMBER_SEPARATOR}b"], [["a b"]]),
        ({}, pa.nulls(2), [None, None]),
        ({}, [], []),
        ({}, [["Rome", "  東京 "]], [["Rome", "東京"]]),
    ],
)  # fmt: skip
def test_lists(options: dict[str, Any], values: Any, lists: list[list[str] | None]) -> None:
    assert lists_of(values, **options) == lists


def test_json_too_deep_to_read_is_text() -> None:
    (members,) = lists_of(["[" * 100_000 + "]" * 100_000])
    assert members is not None


@pytest.mark.parametrize(
    "values",
    [[[["a"]]], [['{"a": 1}', [{"a": 1}]]], ['[{"a": 1}]'], [[b"x"]], [b"x"], pa.array([[[1]]])],
    ids=str,
)
def test_lists_of_what_has_no_text_are_refused_by_name(values: Any) -> None:
    remedy = "(turn it into text|declare it as kind: list, whose members are single values)"
    with pytest.raises(TypeError, match=f"^field 'tags' (holds a|has type).*; {remedy}"):
        read_column(values, Field(name="tags", kind="list"))


@given(st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.text(max_size=4)), max_size=5)), max_size=8))
def test_arrow_lists_and_python_lists_read_alike(values: list[list[str | None] | None]) -> None:
    expected = texts_of(values, kind="list", max_items=3)
    column = pa.array(values, pa.list_(pa.string()))
    assert texts_of(column, kind="list", max_items=3) == expected
    for start in range(len(values)):
        assert texts_of(column.slice(start), kind="list", max_items=3) == expected[start:]


# ---- text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["  a  b\tc\nd ", "a", " ", "", None, "NA"], ["a b c", "a", None, None, None, None]),
        (["東京 物語\u3000と  尋"], ["東京 物語 と"]),
        ([2.5, True], ["2.5", "true"]),
    ],
)
def test_text_is_cut_to_its_first_words(values: list[Any], texts: list[str | None]) -> None:
    assert texts_of(values, kind="text", max_words=3) == texts


# ---- numbers of text


@pytest.mark.parametrize(
    ("type", "texts", "numbers"),
    [
        ("number", ["2.5", "-1", "1e+39", "inf", "x", ""], [2.5, -1, 1e39, np.nan, np.nan, np.nan]),
        ("integer", ["7", "1,000", None], [7, np.nan, np.nan]),
        ("date", ["1970-01-02", "1969-12-31", "1970-01-01 12:00:00", "x"], [1, -1, 0.5, np.nan]),
        ("timestamp", ["1970-01-02 00:00:00", "1970-01-01 00:00:00.5", "5"], [86400, 0.5, np.nan]),
    ],
)
def test_numbers_of_canonical_text(type: str, texts: list[str | None], numbers: list[float]) -> None:
    np.testing.assert_array_equal(as_numbers(pa.array(texts), type), numbers)


@pytest.mark.parametrize("type", ["date", "timestamp"])
def test_days_that_are_none_have_no_number(type: str) -> None:
    texts = read_column(["2024-02-30", "2024-02-29"], Field(name="a", type=type)).dictionary
    assert np.isnan(as_numbers(texts, type)).tolist() == [True, False]


# ---- every kind of rows

ROWS: list[dict[str, Any]] = [
    {"user_id": 1, "age": 25.0, "gender": "f", "title": "Amélie"},
    {"user_id": 2, "age": None, "gender": None, "title": ""},
    {"user_id": 1, "age": 31.5, "gender": "m", "title": "東京物語"},
    {"user_id": 3, "age": 25.0, "gender": "f", "title": None},
    {"user_id": 4, "age": 18.0, "gender": "m", "title": "25"},
]
ROW_FIELDS = ["title", "user_id", "age", "gender"]
SCHEMA = [Field(name=name) for name in ROW_FIELDS]


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {field: [row[field] for row in rows] for field in rows[0]}


def as_arrow(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def as_chunks(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.concat_tables([as_arrow(rows[:2]), as_arrow(rows[2:])])


def as_dictionaries(rows: list[dict[str, Any]]) -> pa.Table:
    table = as_arrow(rows)
    return pa.table({name: table[name].dictionary_encode() for name in table.column_names})


def as_sliced_arrays(rows: list[dict[str, Any]]) -> dict[str, pa.Array]:
    padded = as_arrow([rows[-1], *rows])
    return {name: padded[name].combine_chunks().slice(1) for name in padded.column_names}


def as_selected_dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    """The rows in order, through an indices mapping over rows stored backwards."""
    backwards = datasets.Dataset.from_list(rows[::-1])
    return backwards.select(list(range(len(rows)))[::-1])


KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "tuple of dicts": tuple,
    "dict of columns": as_columns,
    "dict of sliced Arrow arrays": as_sliced_arrays,
    "dict of numpy arrays": lambda rows: {k: np.array(v, object) for k, v in as_columns(rows).items()},
    "DataFrame": pd.DataFrame,
    "Arrow table": as_arrow,
    "record batch": lambda rows: pa.RecordBatch.from_pylist(rows),
    "Arrow table in chunks": as_chunks,
    "Arrow table of dictionaries": as_dictionaries,
    "Dataset": datasets.Dataset.from_list,
    "Dataset formatted as torch": lambda rows: datasets.Dataset.from_list(rows).with_format("torch"),
    "Dataset with an indices mapping": as_selected_dataset,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rows_gives_the_same_vocabulary_and_encoding(kind: str) -> None:
    rows = KINDS[kind](ROWS)
    assert FeatureVocabulary.fit(rows, ROW_FIELDS) == FeatureVocabulary.fit(ROWS, ROW_FIELDS)
    vocabulary = FeatureVocabulary.fit(ROWS[:3], ROW_FIELDS)
    value_ids, local = vocabulary.encode(read_columns(rows, SCHEMA)[0])
    expected_ids, expected = vocabulary.encode(read_columns(ROWS, SCHEMA)[0])
    assert value_ids.tolist() == expected_ids.tolist()
    unseen = [(0, "25"), (1, "3"), (1, "4"), (2, "18")]
    for one in (local, expected):
        assert list(zip(one.columns.tolist(), one.texts.to_pylist(), strict=True)) == unseen


def test_one_dict_is_one_row() -> None:
    columns, _ = read_columns(ROWS[0], SCHEMA)
    assert [columns[field].to_pylist() for field in ROW_FIELDS] == [["Amélie"], ["1"], ["25"], ["f"]]


def test_arrays_without_dimensions_in_a_dict_are_the_values_of_one_row() -> None:
    with pytest.raises(
        TypeError, match=r"^field 'tags' holds a ndarray, array\(5\); turn it into text or numbers first"
    ):
        read_columns({"tags": np.array(5)}, [Field(name="tags")])


def test_one_dict_with_a_list_in_a_column_not_asked_for_is_one_row() -> None:
    columns, _ = read_columns({"title": "Toy", "tags": ["a", "b"]}, [Field(name="title")])
    assert columns["title"].to_pylist() == ["Toy"]


TAGS = Field(name="tags", kind="list")


@pytest.mark.parametrize(
    ("rows", "tags"),
    [
        ({"title": "Toy", "tags": ["a", "b"]}, ["a\x1fb"]),
        ({"tags": ["a", "b"]}, ["a\x1fb"]),
        ({"tags": [["a", "b"], ["c"]]}, ["a\x1fb", "c"]),
        ({"tags": [["a", "b"], None]}, ["a\x1fb", None]),
        ({"tags": pa.array([["a", "b"]])}, ["a\x1fb"]),
        ({"title": ["Toy", "Story"], "tags": [["a", "b"], "c"]}, ["a\x1fb", "c"]),
        ({"title": ["Toy", "Story"], "tags": ["a,b", "c"]}, ["a\x1fb", "c"]),
    ],
)
def test_a_list_in_a_dict_is_a_rows_members_or_a_column(rows: dict[str, Any], tags: list[str | None]) -> None:
    schema = [Field(name="title"), TAGS] if "title" in rows else [TAGS]
    assert read_columns(rows, schema)[0]["tags"].to_pylist() == tags


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"columns differ in length: \{'gender': 2, 'city': 1\}"):
        read_columns({"gender": ["f", "m"], "city": ["x"]}, [Field(name="gender"), Field(name="city")])


@pytest.mark.parametrize("make", [lambda frame: frame, lambda frame: pa.Table.from_arrays([[1], [2]], ["a", "a"])])
def test_two_columns_of_one_name_are_refused(make: Callable[[pd.DataFrame], Any]) -> None:
    with pytest.raises(ValueError, match="the rows have more than one column 'a'; rename one"):
        read_columns(make(pd.DataFrame([[1, 2]], columns=["a", "a"])), [Field(name="a")])


def test_a_shuffled_dataset_is_read_in_its_shuffled_order() -> None:
    shuffled = datasets.Dataset.from_list(ROWS).shuffle(seed=1)
    titles = [row["title"] or None for row in shuffled]
    assert titles != [row["title"] or None for row in ROWS]
    assert read_columns(shuffled, [Field(name="title")])[0]["title"].to_pylist() == titles


def test_a_key_that_only_some_dicts_have_is_null_in_the_others() -> None:
    columns, _ = read_columns([{"a": 1}, {"b": 2}], [Field(name="a"), Field(name="b")])
    assert [columns["a"].to_pylist(), columns["b"].to_pylist()] == [["1", None], [None, "2"]]


def test_a_missing_column_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"column 'gendre' is missing.*\['city', 'gender'\]; did you mean 'gender'\?"):
        read_columns({"gender": ["f"], "city": ["x"]}, [Field(name="city"), Field(name="gendre")])


def test_a_missing_column_is_null_throughout_where_that_is_allowed() -> None:
    columns, absent = read_columns({"city": ["x", "y"]}, [Field(name="age"), Field(name="city"), TAGS], strict=False)
    assert absent == ["age", "tags"]
    assert columns["age"].to_pylist() == columns["tags"].to_pylist() == [None] * 2
    assert columns["city"].to_pylist() == ["x", "y"]


@pytest.mark.parametrize(
    ("rows", "found"),
    [("gender", "<class 'str'>"), (5, "<class 'int'>"), ([1, "a"], "<class 'list'> of int, str"), (None, "NoneType")],
)
def test_other_things_than_rows_are_refused_by_type(rows: Any, found: str) -> None:
    with pytest.raises(TypeError, match=f"rows must be a dict, a list of dicts.*, not .*{found}"):
        read_columns(rows, [Field(name="gender")])


@pytest.mark.parametrize("rows", [[], (), {"a": []}, pd.DataFrame({"a": []}), pa.table({"a": []})], ids=str)
def test_no_rows(rows: Any) -> None:
    columns, absent = read_columns(rows, [Field(name="a")])
    assert (len(columns["a"]), absent) == (0, [])


@pytest.mark.parametrize("name", ["click rate (%)", "👍", "a.b", "a\nb", "ß", "日本", ""])
def test_columns_of_any_name(name: str) -> None:
    for rows in ([{name: "x"}], {name: ["x"]}, pd.DataFrame({name: ["x"]}), pa.table({name: ["x"]})):
        assert read_columns(rows, [Field(name=name)])[0][name].to_pylist() == ["x"]


# ---- labels


@pytest.mark.parametrize(
    "labels",
    [[1, 0], [True, False], [1.0, 0.0], ["1", "0"], np.array([1, 0], np.int8), [1, False], ["True", "FALSE"]],
    ids=str,
)
def test_labels_are_clicks_in_any_type(labels: Any) -> None:
    read = read_clicks({"click": labels}, "click")
    assert read.dtype == np.float32
    assert read.tolist() == [1.0, 0.0]


def test_a_missing_label_column_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"column 'clicks' is missing.*did you mean 'click'"):
        read_clicks({"click": [1]}, "clicks")


def test_no_rows_have_no_labels() -> None:
    assert read_clicks({"click": []}, "click").shape == (0,)


def test_moments_are_read_all_at_once_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    counts = [int(10**e) + d for e in range(8, 18) for d in (-1, 0, 1)] + [
        int(10 ** rng.uniform(8, 18)) for _ in range(500)
    ]
    texts = [str(count) for count in counts]
    for _ in range(500):
        year, month, day, hour, minute, second = (int(rng.integers(*b)) for b in BOUNDS)
        zone = rng.choice(["Z", "+01:00", "-0830", "+23:59", "-00:00", "+14:00"])
        fraction = rng.choice(["", ".5", ".250", ".000001", ".120000"])
        text = f"{year:04d}-{month:02d}-{day:02d}{rng.choice([' ', 'T'])}{hour:02d}:{minute:02d}:{second:02d}{fraction}{zone}"
        texts.append(text)
    valid = [text for text in texts if _moment(text, "timestamp") != text]
    assert len(valid) > 900
    for kind in ("timestamp", "date"):
        field = Field(name="a", type=kind)
        for chosen in (valid, texts):  # with days that there are not, and without
            read = read_column(chosen, field).dictionary_decode().to_pylist()
            assert read == [_moment(text, kind) for text in chosen]


BOUNDS = ((1000, 3000), (1, 13), (1, 32), (0, 24), (0, 60), (0, 60))


# ---- found by the fuzzers


@pytest.mark.parametrize(
    "kind", [pa.decimal32(9, 2), pa.decimal64(18, 2), pa.decimal128(20, 2), pa.decimal256(40, 2)], ids=str
)
def test_decimals_of_any_width(kind: pa.DataType) -> None:
    values = pa.array([D("2.50"), None, D("-3.00")], kind)
    assert texts_of(values, "number") == texts_of(values) == ["2.5", None, "-3"]
    assert lists_of(pa.ListArray.from_arrays(pa.array([0, 3]), values), "number") == [["2.5", "-3"]]


@pytest.mark.parametrize("type", ["string", "number", "integer"])
def test_decimals_are_one_text_from_arrow_and_from_python(type: str) -> None:
    small = [D("3E-8"), D("0E-8"), D("-1.50000000")]
    assert texts_of(pa.array(small, pa.decimal128(38, 8)), type) == texts_of(small, type)
    assert texts_of(small) == ["0.00000003", "0", "-1.5"]
    assert texts_of([D("-0.00"), D("-Infinity"), D("sNaN")], type) == texts_of([-0.0, -math.inf, math.nan], type)


@pytest.mark.parametrize("value", [D("1E+999999999"), D("1E-999999999")], ids=str)
def test_decimals_of_very_many_digits_are_refused_by_name(value: D) -> None:
    with pytest.raises(TypeError, match="field 'a' holds a number with too many digits; turn it into text first"):
        texts_of([value])


def test_dictionaries_of_views_are_read() -> None:
    views = pa.DictionaryArray.from_arrays(pa.array([1, 0, None], pa.int32()), pa.array(["a", "b"], pa.string_view()))
    for values in (views, pa.chunked_array([views])):
        assert texts_of(values) == ["b", "a", None]
        assert lists_of(values) == [["b"], ["a"], None]


@pytest.mark.parametrize("type", ["string", "number", "integer", "boolean"])
def test_a_float_is_one_text_whatever_its_width(type: str) -> None:
    values = [0.1, 1 / 3, 1e22, 2.14453125]
    for width in (pa.float16(), pa.float32()):
        narrow = pa.array(values[:2] + values[3:] if width == pa.float16() else values, pa.float64()).cast(width)
        assert texts_of(narrow, type) == texts_of(narrow.to_pylist(), type)
    assert texts_of([0.1, 1 / 3]) == ["0.1", "0.3333333333333333"]


def test_times_are_read_to_the_microsecond() -> None:
    nanoseconds = pa.array([1, 45_000_000_000_001], pa.int64()).cast(pa.time64("ns"))
    assert texts_of(nanoseconds) == texts_of(nanoseconds.to_pylist()) == ["00:00:00", "12:30:00"]


@pytest.mark.parametrize("type", ["string", "date", "timestamp"])
def test_moments_that_no_calendar_has_are_missing(type: str) -> None:
    integers = pa.array([0, 10**15, -(10**15), 2**62])
    assert [t is None for t in texts_of(integers.cast(pa.timestamp("s")), type)] == [False, True, True, True]
    assert [t is None for t in texts_of(integers.cast(pa.timestamp("ms")), type)] == [False, True, True, True]
    assert texts_of(pa.array([2**31 - 1, -(2**31)], pa.int32()).cast(pa.date32()), type) == [None, None]
    far = [
        np.datetime64(2**40, "Y"),
        np.datetime64(2**40, "D"),
        np.datetime64(-(2**62), "s"),
        np.datetime64(2**62, "ms"),
    ]
    assert texts_of(far, type) == [None] * 4
    assert [texts_of(np.array([value]), type) for value in far] == [[None]] * 4


def test_datetime64_of_any_units_stand_side_by_side() -> None:
    values = [np.datetime64("2024"), None, np.datetime64("2024-01-31"), np.datetime64(1, "as"), np.datetime64("NaT")]
    assert texts_of(values, "date") == ["2024-01-01", None, "2024-01-31", "1970-01-01", None]


def test_zones_may_move_a_moment_out_of_the_years_that_python_has() -> None:
    west = dt.timezone(dt.timedelta(hours=-12))
    last, first = dt.datetime(9999, 12, 31, 23, tzinfo=west), dt.datetime(1, 1, 1, tzinfo=ROME)
    assert texts_of([last, first], "timestamp") == ["10000-01-01 11:00:00", "0000-12-31 23:00:00"]
    assert texts_of(["9999-12-31 23:00:00-12:00"], "timestamp") == ["10000-01-01 11:00:00"]


def test_lists_of_arrow_in_pandas_are_not_read_through_python() -> None:
    kind = pa.large_list(pa.timestamp("s"))
    lists = pa.array([[2**40]], pa.large_list(pa.int64())).cast(kind)  # of a year that Python has not
    frame = pa.table({"a": lists}).to_pandas(types_mapper=pd.ArrowDtype)
    assert lists_of(frame["a"], "timestamp") == lists_of(lists, "timestamp")


@pytest.mark.parametrize("kind", ["categorical", "list", "text"])
def test_text_that_is_not_utf_8_is_refused_by_name(kind: str) -> None:
    column = pa.Array.from_buffers(pa.string(), 2, [None, *pa.array([b"ok", b"a\xc0"]).buffers()[1:]])
    for values in (column, column.dictionary_encode(), pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), column)):
        if kind == "list" or not pa.types.is_list(values.type):
            with pytest.raises(TypeError, match=r"^field 'a' holds text that is not UTF-8; write it in UTF-8"):
                texts_of(values, kind=kind)


def test_what_cannot_be_shown_is_refused_by_name_too() -> None:
    with pytest.raises(TypeError, match=r"^field 'a' holds a dict, which cannot be shown; turn it into text"):
        texts_of([{"a": 10**5000}])
