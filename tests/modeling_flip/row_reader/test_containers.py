"""The same cells in every container, read to the same bits."""

from __future__ import annotations

import csv
import datetime as dt
import functools
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from modeling_flip import FeatureVocabulary, Field, FlipProcessor
from modeling_flip.fields import TYPES
from modeling_flip.row_reader import read_columns
from tests.modeling_flip.row_reader.columns import ROME, UTC, D, lists_of, texts_of

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
