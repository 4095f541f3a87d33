"""A value's text does not depend on its neighbours: a column reads as its values do one by one."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import random
import uuid
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_flip import Field
from modeling_flip.cell_text import _moment, as_numbers
from modeling_flip.fields import TYPES
from modeling_flip.row_reader import read_column
from tests.modeling_flip.row_reader.columns import ROME, D, lists_of, texts_of

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


BOUNDS = ((1000, 3000), (1, 13), (1, 32), (0, 24), (0, 60), (0, 60))


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
