"""Rows as value ids, and how texts are looked up."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modeling_flip import feature_vocabulary
from modeling_flip.feature_vocabulary import SEARCHED_SHARE, FeatureVocabulary
from modeling_flip.fields import Field
from modeling_flip.row_reader import MEMBER_SEPARATOR, read_columns
from modeling_flip.token_table import TokenTable
from tests.modeling_flip.feature_vocabulary.vocabularies import (
    COLUMNS,
    FIELDS,
    MOVIE_ROWS,
    MOVIES,
    columns_of_text,
    fit,
    unseen,
)


def test_unseen_values_get_ids_behind_all_others_once_each() -> None:
    vocabulary = fit(COLUMNS)
    rows = {"gender": ["x", None, "f", "x"], "city": ["w", "x", None, "f"]}
    value_ids, local = vocabulary.encode(read_columns(rows, vocabulary.columns)[0])
    assert value_ids.dtype == np.int32
    # Seven values were seen; "x" is no gender and "f" no city, though each was seen in the other field.
    assert value_ids.tolist() == [[7, 8], [0, 4], [1, 3], [7, 9]]
    assert unseen(local) == [(0, "x"), (1, "w"), (1, "f")]
    assert local.features.tolist() == local.first_features.tolist() == [0, 3, 3]  # their fields' unknown features
    assert local.offsets.tolist() == [0, 1, 2, 3]


@given(columns_of_text, columns_of_text)
def test_value_ids_lead_back_to_the_texts(seen: dict[str, list[Any]], rows: dict[str, list[Any]]) -> None:
    vocabulary = fit(seen)
    value_ids, local = vocabulary.encode(read_columns(rows, vocabulary.columns)[0])
    known = zip(vocabulary.value_columns.tolist(), vocabulary.all_texts.to_pylist(), strict=True)
    texts = [*known, *unseen(local)]
    for i, field in enumerate(FIELDS):
        assert [texts[v] for v in value_ids[:, i]] == [(i, text) for text in rows[field]]


def test_the_members_of_a_list_have_features_whether_the_list_was_seen_or_not() -> None:
    vocabulary = FeatureVocabulary.fit(MOVIE_ROWS, MOVIES)
    rows = [
        {"movie": 8, "history": [8, 99, 7], "tags": "fun|old", "title": "Heat"},
        {"movie": 99, "history": None, "tags": "strange|fun", "title": "Heat"},
        {"movie": 9, "history": "[8]", "tags": "fun|old", "title": None},
    ]
    value_ids, local = vocabulary.encode(read_columns(rows, vocabulary.columns)[0])
    by_text = {
        (column, text): local.features[local.offsets[i] : local.offsets[i + 1]].tolist()
        for i, (column, text) in enumerate(unseen(local))
    }
    assert by_text == {
        (0, "99"): [0],
        (1, MEMBER_SEPARATOR.join(["8", "99", "7"])): [2, 0, 1],
        (1, "8"): [2],
        (2, f"fun{MEMBER_SEPARATOR}old"): [4, 3],
        (2, f"strange{MEMBER_SEPARATOR}fun"): [3, 4],
        (3, "Heat"): [],
    }
    assert local.first_features.tolist() == [features[0] if features else -1 for features in by_text.values()]
    order = list(by_text)
    v = vocabulary.num_values
    expected = [
        [3, v + order.index((1, MEMBER_SEPARATOR.join(["8", "99", "7"]))), v + order.index((2, "fun\x1fold")), v + 5],
        [v, 5, v + order.index((2, "strange\x1ffun")), v + 5],
        [2, v + order.index((1, "8")), v + order.index((2, "fun\x1fold")), 10],
    ]
    assert value_ids.tolist() == expected


# ---- looking up

some_texts = st.one_of(
    st.text(max_size=3), st.integers(0, 99).map(str), st.sampled_from(["ä", "東京", "👍", "a\0b", "Z", "a"])
)


@given(st.lists(some_texts, unique=True, max_size=120), st.lists(some_texts, max_size=40), st.data())
def test_positions_are_those_of_index_in(values: list[str], others: list[str], data: st.DataObject) -> None:
    assume(all(text.encode(errors="ignore").decode() == text for text in [*values, *others]))
    array = pa.array(values, pa.string())
    vocabulary = FeatureVocabulary((Field(name="a"),), {"a": array}, {"a": np.ones(len(values), np.int64)}, {"a": 0})
    known = data.draw(st.lists(st.sampled_from(values), max_size=10)) if values else []
    for texts in (pa.array(others + known, pa.string()), pa.array((known + others)[:3], pa.string())):
        expected = pc.fill_null(pc.index_in(texts, value_set=array), -1).to_numpy()
        found = vocabulary.positions("a", texts)
        assert found.dtype == np.int64
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("size", [15, 16, 17, 31, 32, 33, 64, 160])
def test_positions_on_both_sides_of_the_share_that_is_searched(size: int) -> None:
    values = pa.array([f"v{i * 7919 % size}" for i in range(size)])
    vocabulary = FeatureVocabulary((Field(name="a"),), {"a": values}, {"a": np.ones(size, np.int64)}, {"a": 0})
    for n in {0, 1, int(size * SEARCHED_SHARE), int(size * SEARCHED_SHARE) + 1, size}:
        texts = pa.array(["!", *(f"v{i}" for i in range(size)), "~"][:n], pa.string())
        expected = pc.fill_null(pc.index_in(texts, value_set=values), -1).to_numpy()
        assert vocabulary.positions("a", texts).tolist() == expected.tolist()


LARGE = 300_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a vocabulary of 300,000 values with two tokens each."""
    values = pa.array(np.arange(LARGE)).cast(pa.string())
    values = pc.binary_join_element_wise("a value of thirty characters, or", values, " ")
    n = 2 * (LARGE + 1)
    table = TokenTable(np.zeros(n, np.int32), np.ones(n, bool), np.arange(0, n + 1, 2))
    path = tmp_path_factory.mktemp("large") / "v.parquet"
    schema = (Field(name="a"),)
    FeatureVocabulary(schema, {"a": values}, {"a": np.ones(LARGE, np.int64)}, {"a": 0}, table).save(path)
    return path


def test_opening_and_the_first_rows_make_no_python_object_a_value(large: Path) -> None:
    FeatureVocabulary.load(large)  # what is imported and cached once
    tracemalloc.start()
    try:
        vocabulary = FeatureVocabulary.load(large)
        rows = {"a": ["a value of thirty characters, or 77", "another"]}
        value_ids, local = vocabulary.encode(read_columns(rows, vocabulary.columns)[0])
        _ = vocabulary.value_features
        arrays = tracemalloc.get_traced_memory()[1]
        blocks = sum(s.count for s in tracemalloc.take_snapshot().statistics("filename"))
    finally:
        tracemalloc.stop()
    assert value_ids.tolist() == [[78], [LARGE + 1]]
    assert unseen(local) == [(0, "another")]
    # numpy's arrays alone; a Python string a value would be 300,000 blocks and 24 MB more
    assert arrays < 48 * LARGE
    assert blocks < 20_000


class CountingCompute:
    """`pyarrow.compute`, which counts what is called and with how many values."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.most = 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(pc, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            for value in (*args, *kwargs.values()):
                if isinstance(value, pa.Array):
                    self.most = max(self.most, len(value))
            return function(*args, **kwargs)

        return call if callable(function) else function


@pytest.mark.parametrize("size", [1, 64, 65, 1000])
def test_few_texts_are_looked_up_without_going_through_the_vocabulary(
    large: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    vocabulary = FeatureVocabulary.load(large)
    counting = CountingCompute()
    monkeypatch.setattr(feature_vocabulary, "pc", counting)
    texts = pa.array([f"a value of thirty characters, or {i * 299}" for i in range(size)])
    assert vocabulary.positions("a", texts).tolist() == [i * 299 for i in range(size)]
    assert not counting.calls["index_in"] + counting.calls["array_sort_indices"]
    assert counting.most <= size  # never an array of the vocabulary's length
    assert counting.calls["less"] <= 20  # of 300,000


def test_many_texts_are_looked_up_by_hashing_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = FeatureVocabulary.load(large)
    counting = CountingCompute()
    monkeypatch.setattr(feature_vocabulary, "pc", counting)
    texts = vocabulary.values["a"].slice(5, 30_000)
    assert vocabulary.positions("a", texts).tolist() == list(range(5, 30_005))
    assert counting.calls["index_in"] == 1
