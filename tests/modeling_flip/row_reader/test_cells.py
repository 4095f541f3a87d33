"""Cells, members of lists and numbers by hand."""

from __future__ import annotations

import datetime as dt
import io
import math
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_flip import Field
from modeling_flip.cell_text import as_numbers
from modeling_flip.fields import TYPES
from modeling_flip.row_reader import MEMBER_SEPARATOR, read_column, read_columns
from tests.modeling_flip.row_reader.columns import D, lists_of, texts_of


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


@pytest.mark.parametrize("type_", ["string", "date"])
def test_a_date_is_read_as_its_text_is(type_: str) -> None:
    field, day = Field(name="x", type=type_), dt.date(2024, 1, 31)
    for values in ([day, "2024-01-31"], pa.array([day, day]), [[day], ["2024-01-31"]]):
        kind = replace(field, kind="list") if isinstance(values[0], list) else field
        assert read_column(values, kind).to_pylist() == ["2024-01-31", "2024-01-31"]


# ---- lists


@pytest.mark.parametrize(
    ("options", "values", "lists"),
    [
        ({}, [["a", "b"], [], None, ["", None, "NA"]], [["a", "b"], None, None, None]),
        ({}, ["a, b", "", "a", ",,"], [["a", "b"], None, ["a"], None]),
        ({"separator": "|"}, ["a, b|c", "|", "d |e"], [["a, b", "c"], None, ["d", "e"]]),
        ({}, ['["a, b", "c"]', "['a', 'b']", "[]", '[" "]', "[[["], [["a, b", "c"], ["a", "b"], None, None, ["[[["]]),
        ({}, ["['rock' 'jazz']", '["it\'s"\n \'b c\']', "['rock']"], [["rock", "jazz"], ["it's", "b c"], ["rock"]]),
        ({"type": "number"}, ["[1 2 3]", "[0.5 2. ]", "[-1e+03 nan]"], [["1", "2", "3"], ["0.5", "2"], ["-1000"]]),
        ({"separator": "|"}, ["[live]|rock|[2010]", "[live]", ["[live]"]], [["[live]", "rock", "[2010]"], *[["[live]"]] * 2]),
        ({}, ["[live, rock]", None, "rock, nan", "None , a"], [["live", "rock"], None, ["rock"], ["a"]]),
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
