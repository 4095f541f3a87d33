"""Cells that the fuzzers of tests/attack found."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.modeling_flip.row_reader.columns import ROME, D, lists_of, texts_of


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
