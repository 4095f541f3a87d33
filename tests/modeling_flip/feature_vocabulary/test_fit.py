"""What a vocabulary counts, and how it numbers features: categories, numbers, lists, bounded and hashed fields."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_flip.feature_vocabulary import FeatureVocabulary
from modeling_flip.fields import Field, used
from modeling_flip.row_dataset import FlipDataset
from modeling_flip.row_reader import MEMBER_SEPARATOR, read_columns
from tests.modeling_flip.feature_vocabulary.vocabularies import (
    ALL_KINDS,
    COLUMNS,
    FIELDS,
    MOVIE_ROWS,
    MOVIES,
    fit,
    numeric,
    some_rows,
)


def test_fit_counts_values_in_order_of_first_appearance() -> None:
    vocabulary = fit(COLUMNS)
    assert {f: v.to_pylist() for f, v in vocabulary.values.items()} == {"gender": ["f", "m"], "city": ["x", "y", "z"]}
    assert {f: c.tolist() for f, c in vocabulary.counts.items()} == {"gender": [2, 1], "city": [2, 1, 1]}
    assert vocabulary.null_counts == {"gender": 1, "city": 0}


def test_each_field_owns_its_unknown_feature_then_its_values_and_one_mask_is_shared() -> None:
    vocabulary = fit(COLUMNS)
    assert vocabulary.num_features == 8  # (unknown, f, m), (unknown, x, y, z), <MASK>
    assert vocabulary.mask_feature_id == 7
    assert vocabulary.feature_offsets.tolist() == [0, 3, 7]
    # value order: missing, f, m, missing, x, y, z
    assert vocabulary.value_features.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert vocabulary.feature_counts.tolist() == [1, 2, 1, 0, 2, 1, 1, 0]


def test_min_count_sends_rare_values_to_the_unknown_feature_but_keeps_their_text() -> None:
    vocabulary = fit(COLUMNS, min_count=2)
    assert vocabulary.num_features == 5  # (unknown, f), (unknown, x), <MASK>
    assert vocabulary.value_features.tolist() == [0, 1, 0, 2, 3, 2, 2]
    assert vocabulary.feature_counts.tolist() == [2, 2, 2, 2, 0]  # unknown gender: one null and the rare "m"
    assert vocabulary.all_texts.to_pylist() == [None, "f", "m", None, "x", "y", "z"]
    assert vocabulary.value_columns.tolist() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("min_count", [0, -1])
def test_min_count_below_one_is_refused(min_count: int) -> None:
    with pytest.raises(ValueError, match=f"min_count is {min_count}"):
        fit(COLUMNS, min_count)


@pytest.mark.parametrize(
    "other",
    [
        {"gender": ["m", "f", "f", None], "city": ["x", "y", "z", "x"]},  # another order
        {"gender": ["f", "m", "m", None], "city": ["x", "y", "z", "x"]},  # other counts
        {"gender": ["f", "m", "f"], "city": ["x", "y", "z"]},  # fewer nulls, fewer x
        {"gender": ["f", "m", "f", None, None], "city": ["x", "y", "z", "x", None]},  # more nulls
    ],
)
def test_vocabularies_of_other_data_are_unequal(other: dict[str, list[Any]]) -> None:
    assert fit(COLUMNS) != fit(other)


def test_min_count_is_each_fields_own_where_it_says_so() -> None:
    schema: list[str | Field] = [Field(name="gender", min_count=2), "city"]
    vocabulary = FeatureVocabulary.fit(COLUMNS, schema)
    assert vocabulary.value_features.tolist() == [0, 1, 0, 2, 3, 4, 5]
    assert FeatureVocabulary.fit(COLUMNS, schema, min_count=3).value_features.tolist() == [0, 1, 0, 2, 2, 2, 2]


def test_an_ignored_field_is_kept_in_the_schema_and_nowhere_else() -> None:
    vocabulary = FeatureVocabulary.fit(COLUMNS, ["gender", {"name": "row", "kind": "ignored"}, "city"])
    assert vocabulary.fields == FIELDS
    assert [field.name for field in vocabulary.schema] == ["gender", "row", "city"]
    assert vocabulary.value_features.tolist() == fit(COLUMNS).value_features.tolist()


@given(some_rows)
def test_every_cell_is_counted_once_and_every_member(rows: list[dict[str, Any]]) -> None:
    vocabulary = FeatureVocabulary.fit(rows, ALL_KINDS)
    columns, _ = read_columns(rows, used(ALL_KINDS))
    expected = 0
    for field in vocabulary.columns:
        texts = columns[field.name].to_pylist()
        if field.kind == "list":
            expected += sum(1 if text is None else len(text.split(MEMBER_SEPARATOR)) for text in texts)
        elif field.has_table_side:
            expected += len(texts)
    assert vocabulary.feature_counts.sum() == expected
    assert vocabulary.feature_counts[vocabulary.mask_feature_id] == 0
    assert vocabulary.feature_counts.shape == (vocabulary.num_features,)


# ---- numbers


def features_of(vocabulary: FeatureVocabulary, values: list[Any]) -> list[int]:
    """The feature of each cell of the only field, seen or unseen."""
    value_ids, local = vocabulary.encode(read_columns({"price": values}, vocabulary.columns)[0])
    return np.concatenate([vocabulary.value_features, local.first_features])[value_ids[:, 0]].tolist()


def test_few_numbers_have_a_bucket_each() -> None:
    vocabulary = numeric([3, 1, 2.5, 1, None])
    assert vocabulary.bounds["price"].tolist() == [2.5, 3]
    assert vocabulary.num_features == 5  # unknown, three buckets, <MASK>
    assert features_of(vocabulary, [1, 2.5, 3]) == [1, 2, 3]
    assert vocabulary.feature_counts.tolist() == [1, 2, 1, 1, 0]


def test_a_number_between_those_seen_falls_into_a_bucket() -> None:
    vocabulary = numeric([3, 1, 2.5])
    assert features_of(vocabulary, [-1e9, 1.5, 2.4999, 2.7, 3.1, 1e30]) == [1, 1, 1, 2, 3, 3]


def test_what_is_no_number_is_the_unknown_feature() -> None:
    vocabulary = numeric([3, 1, 2.5, "n/a?", None, float("inf")])
    assert vocabulary.bounds["price"].tolist() == [2.5, 3]
    assert features_of(vocabulary, ["n/a?", None, "", "NaN", "abc", float("inf"), "-Infinity"]) == [0] * 7
    assert vocabulary.feature_counts.tolist() == [3, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("values", "num_buckets", "bounds"),
    [
        ([1, 2, 3, 4], 2, [3]),
        ([1, 2, 3, 4, 5, 6, 7, 8], 4, [3, 5, 7]),
        ([1, 2, 3, 4, 5], 2, [3]),  # the cut at 2.5 rows is as near to 2 as to 3
        ([1, 2, 3], 1, []),
        ([0] * 97 + [5, 6, 7], 2, [5]),  # most rows are the least number, or the largest: it has a bucket of its own
        ([1, 2, 3] + [9] * 97, 2, [9]),
        ([1, 2, 3, 4] + [5] * 40 + [6, 7, 8, 9], 4, [5, 6]),
        ([5] * 10, 3, []),
        ([], 3, []),
        ([None], 3, []),
    ],
    ids=str,
)
def test_buckets_are_quantiles(values: list[Any], num_buckets: int, bounds: list[float]) -> None:
    vocabulary = numeric(values, num_buckets)
    assert vocabulary.bounds["price"].tolist() == bounds
    assert vocabulary.num_features == len(bounds) + 3


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=60), st.integers(1, 12))
def test_each_bucket_was_seen_and_none_holds_much_more_than_its_share(values: list[int], num_buckets: int) -> None:
    vocabulary = numeric(values, num_buckets)
    bounds = vocabulary.bounds["price"]
    assert (np.diff(bounds) > 0).all()
    assert len(bounds) < num_buckets
    counts = vocabulary.feature_counts[1:-1]
    assert counts.min() > 0
    assert counts.sum() == len(values)
    of_one_number = max(Counter(values).values())
    assert counts.max() <= 2 * len(values) / num_buckets + of_one_number
    features = features_of(vocabulary, values)
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.asarray(features)[order]) >= 0).all()  # a larger number is in no lower bucket


@pytest.mark.parametrize(
    ("type", "values", "bounds"),
    [
        ("integer", ["3", "007", 5.0], [5, 7]),
        ("date", [dt.date(1970, 1, 3), "1970-01-02"], [2]),
        ("timestamp", [dt.datetime(1970, 1, 1, 0, 1), "1970-01-01T00:00:30.500"], [60]),
    ],
)
def test_integers_and_moments_have_buckets_too(type: str, values: list[Any], bounds: list[float]) -> None:
    assert numeric(values, type=type).bounds["price"].tolist() == bounds


# ---- lists, bounded and hashed fields


def test_lists_count_their_members_and_share_features_by_hand() -> None:
    vocabulary = FeatureVocabulary.fit(MOVIE_ROWS, MOVIES)
    # Row by row: 7, then the history of that row, 9 8; 6 is the fourth of its list.
    assert vocabulary.values["movie"].to_pylist() == ["7", "9", "8", "5"]
    assert vocabulary.counts["movie"].tolist() == [2, 1, 4, 1]
    assert vocabulary.values["tags"].to_pylist() == ["fun", "old", "new"]
    assert vocabulary.counts["tags"].tolist() == [4, 1, 1]
    assert len(vocabulary.values["history"]) == len(vocabulary.values["title"]) == 0
    assert vocabulary.null_counts == {"movie": 1, "history": 2, "tags": 1, "title": 1}
    # movie: unknown 0, "7" 1, "8" 2; history has none of its own; tags: unknown 3, "fun" 4; title none; <MASK> 5
    assert vocabulary.feature_offsets.tolist() == [0, 3, 3, 5, 5]
    assert (vocabulary.num_features, vocabulary.mask_feature_id) == (6, 5)
    assert vocabulary.unknown_features.tolist() == [0, 0, 3, -1]
    # missing, 7, 9, 8, 5; missing; missing, fun, old, new; missing
    assert vocabulary.value_features.tolist() == [0, 1, 0, 2, 0, 0, 3, 4, 3, 3, -1]
    # unknown movie: one missing, 9 and 5 once each, two missing histories; unknown tag: old, new, one missing
    assert vocabulary.feature_counts.tolist() == [5, 2, 4, 3, 4, 0]
    assert vocabulary.table_columns.tolist() == [0, 1, 2]
    assert vocabulary.list_columns.tolist() == [1, 2]


def test_max_size_keeps_the_most_frequent_values_by_hand() -> None:
    cities = {"city": ["x", "y", "z", "x", "z", "w"]}
    vocabulary = FeatureVocabulary.fit(cities, [Field(name="city", max_size=2)])
    # 0 is the unknown feature, which the rare y and w share; x and z are kept, though y came before z; 3 is <MASK>.
    assert vocabulary.num_features == 4
    assert vocabulary.values["city"].to_pylist() == ["x", "y", "z", "w"]
    assert vocabulary.value_features.tolist() == [0, 1, 0, 2, 0]
    assert vocabulary.feature_counts.tolist() == [2, 2, 2, 0]


def test_a_hashed_field_has_one_feature_a_bucket_whatever_comes(tmp_path: Path) -> None:
    schema = [Field(name="session", hash_size=5), Field(name="city")]
    vocabulary = FeatureVocabulary.fit({"session": ["a", "b", "a", None], "city": ["x", "x", "y", "x"]}, schema)
    # Computed once with hashlib alone: blake2b of 8 bytes, little-endian, modulo 5.
    buckets = {"a": 3, "b": 3, "3": 1}
    assert vocabulary.num_features == (1 + 5) + (1 + 2) + 1
    counts = [1, 0, 0, 0, 0, 0]
    counts[1 + buckets["a"]] += 2
    counts[1 + buckets["b"]] += 1
    assert vocabulary.feature_counts[:6].tolist() == counts
    vocabulary.save(tmp_path / "vocabulary.parquet")
    loaded = FeatureVocabulary.load(tmp_path / "vocabulary.parquet")
    assert loaded == vocabulary and loaded.fingerprint == vocabulary.fingerprint
    # "3" was never seen, and is not the third bucket; nothing is unknown but what is missing.
    columns, _ = read_columns({"session": ["3", "b", None], "city": ["x", "x", "q"]}, schema)
    value_ids, local = loaded.encode(columns)
    rows = FlipDataset(value_ids, loaded, local, None, None)
    assert rows.feature_ids()[:, 0].tolist() == [1 + buckets["3"], 1 + buckets["b"], 0]
    assert local.texts.to_pylist() == ["3", "b", "q"]
    assert rows.is_unseen.tolist() == [[False, False], [False, False], [False, True]]
