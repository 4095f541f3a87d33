"""The vocabulary: what it counts, how it numbers, what it reads, and its file."""

from __future__ import annotations

import datetime as dt
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modeling_flip import feature_vocabulary
from modeling_flip.feature_vocabulary import FORMAT_VERSION, SEARCHED_SHARE, FeatureVocabulary, LocalValues
from modeling_flip.fields import Field, used
from modeling_flip.row_dataset import FlipDataset
from modeling_flip.row_reader import MEMBER_SEPARATOR, read_columns
from modeling_flip.token_table import TokenTable

FIELDS = ["gender", "city"]
COLUMNS: dict[str, list[Any]] = {"gender": ["f", "m", "f", None], "city": ["x", "y", "z", "x"]}

columns_of_text = st.lists(st.tuples(*[st.sampled_from(["a", "b", "c", " ", None])] * 2), max_size=8).map(
    lambda rows: {"gender": [g for g, _ in rows], "city": [c for _, c in rows]}
)


def fit(columns: dict[str, list[Any]], min_count: int = 1) -> FeatureVocabulary:
    return FeatureVocabulary.fit(columns, FIELDS, min_count)


def unseen(local: LocalValues) -> list[tuple[int, str]]:
    """The values that have no id in the vocabulary, with their fields."""
    return list(zip(local.columns.tolist(), local.texts.to_pylist(), strict=True))


# ---- counting and numbering


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


@given(columns_of_text, columns_of_text, st.integers(1, 3))
def test_merge_equals_fitting_the_concatenation(
    a: dict[str, list[Any]], b: dict[str, list[Any]], min_count: int
) -> None:
    whole = fit({field: a[field] + b[field] for field in FIELDS}, min_count)
    merged = FeatureVocabulary.merge([fit(a, min_count), fit(b, min_count)])
    assert merged == whole
    assert merged.value_features.tolist() == whole.value_features.tolist()


@given(columns_of_text, columns_of_text, columns_of_text)
def test_merge_is_associative(a: dict[str, list[Any]], b: dict[str, list[Any]], c: dict[str, list[Any]]) -> None:
    merge, parts = FeatureVocabulary.merge, [fit(a), fit(b), fit(c)]
    assert merge([merge(parts[:2]), parts[2]]) == merge([parts[0], merge(parts[1:])]) == merge(parts)


@pytest.mark.parametrize(
    "other", [FeatureVocabulary.fit(COLUMNS, ["gender"]), FeatureVocabulary.fit(COLUMNS, FIELDS, min_count=2)]
)
def test_merge_refuses_other_fields_or_min_count(other: FeatureVocabulary) -> None:
    with pytest.raises(
        ValueError, match=r"cannot merge vocabularies of different fields \(.*\); fit both with the same"
    ):
        FeatureVocabulary.merge([fit(COLUMNS), other])


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


# ---- encoding


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


# ---- numbers


def numeric(values: list[Any], num_buckets: int = 32, type: str = "number") -> FeatureVocabulary:
    schema = [Field(name="price", kind="numeric", type=type, num_buckets=num_buckets)]
    return FeatureVocabulary.fit({"price": values}, schema)


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


# ---- lists and text

MOVIES = [
    Field(name="movie", type="integer", min_count=2),
    Field(name="history", kind="list", type="integer", features_of="movie", max_items=3),
    Field(name="tags", kind="list", min_count=2, separator="|"),
    Field(name="title", kind="text"),
]
MOVIE_ROWS: list[dict[str, Any]] = [
    {"movie": 7, "history": [9, 8], "tags": "fun|old", "title": "Toy Story"},
    {"movie": 8, "history": [], "tags": "fun", "title": None},
    {"movie": 7, "history": [8, 5, 8, 6], "tags": None, "title": "Heat"},
    {"movie": None, "history": None, "tags": "new|fun|fun", "title": "Heat"},
]


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


# ---- all kinds: merging, counts

ALL_KINDS = [
    *MOVIES,
    Field(name="price", kind="numeric", type="number", num_buckets=3),
    Field(name="seen", kind="list", type="integer", features_of="movie"),
    Field(name="day", type="date"),
]
some_rows = st.lists(
    st.fixed_dictionaries(
        {
            "movie": st.sampled_from([1, 2, "03", None]),
            "history": st.lists(st.sampled_from([1, 2, 3, 4, 5, None]), max_size=4),
            "tags": st.sampled_from(["a", "a|b", "c|a|d", "", None]),
            "title": st.sampled_from(["one", "two words", None]),
            "price": st.sampled_from([1, 2.5, "3", 4, 5, 6, "x", None]),
            "seen": st.sampled_from([[6, 1], "[7]", None]),
            "day": st.sampled_from(["2024-01-31", dt.date(2024, 2, 1), None]),
        }
    ),
    max_size=7,
)


@given(some_rows, some_rows)
def test_merge_equals_fitting_the_concatenation_of_any_fields(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    whole = FeatureVocabulary.fit(a + b, ALL_KINDS)
    merged = FeatureVocabulary.merge([FeatureVocabulary.fit(rows, ALL_KINDS) for rows in (a, b)])
    assert merged == whole
    assert merged.fingerprint == whole.fingerprint
    assert merged.value_features.tolist() == whole.value_features.tolist()
    assert merged.feature_counts.tolist() == whole.feature_counts.tolist()


@given(some_rows, some_rows, some_rows)
def test_merge_of_any_fields_is_associative(a: list[Any], b: list[Any], c: list[Any]) -> None:
    merge, parts = FeatureVocabulary.merge, [FeatureVocabulary.fit(rows, ALL_KINDS) for rows in (a, b, c)]
    assert merge([merge(parts[:2]), parts[2]]) == merge([parts[0], merge(parts[1:])]) == merge(parts)


GROWING = [
    Field(name="history", kind="list", type="integer", separator="|", min_count=2),
    Field(name="tags", kind="list", separator="|", max_size=2, min_count=2),
    Field(name="price", kind="numeric", type="number", num_buckets=3),
    Field(name="title", kind="text"),
    Field(name="movie", type="integer", min_count=2),
    Field(name="day", hash_size=4),
    Field(name="seen", kind="list", type="integer", features_of="movie"),
]


def named_features(vocabulary: FeatureVocabulary) -> dict[int, Any]:
    """What each feature stands for: a field and a value (of a numeric field a bucket), or None where it is unknown."""
    named: dict[int, Any] = {vocabulary.mask_feature_id: "mask"}
    for i, field in enumerate(vocabulary.columns):
        first, stop = vocabulary.feature_offsets[i : i + 2]
        named |= {int(first) + k: (field.name, k or None) for k in range(stop - first)}
        if field.kind in ("categorical", "list"):
            ids = vocabulary.value_features[vocabulary.value_offsets[i] + 1 : vocabulary.value_offsets[i + 1]]
            texts = vocabulary.values[field.name].to_pylist()
            named |= {f: (field.name, text) for f, text in zip(ids.tolist(), texts, strict=True) if first < f < stop}
    return named


@given(some_rows, some_rows)
def test_a_vocabulary_grows_and_what_had_a_feature_keeps_it(
    old: list[dict[str, Any]], new: list[dict[str, Any]]
) -> None:
    before, later = (FeatureVocabulary.fit(rows, GROWING) for rows in (old, new))
    after = before.grown(later)
    places = before.features_in(after)
    names_before, names_after = named_features(before), named_features(after)
    assert [names_after[place] for place in places.tolist()] == [names_before[f] for f in range(before.num_features)]
    assert before.bounds["price"].tolist() == after.bounds["price"].tolist()
    for field in after.columns:
        frequent = {f for f in names_after.values() if f[0] == field.name and f[1] is not None}
        assert field.max_size is None or len(frequent) <= field.max_size
    whole = FeatureVocabulary.fit(old + new, GROWING)
    for name in ("movie", "history", "day"):  # nothing bounds these
        assert after.values[name].equals(whole.values[name])
        assert after.counts[name].tolist() == whole.counts[name].tolist()


def test_where_max_size_leaves_no_room_known_values_stay_and_rare_ones_stay_rare() -> None:
    fields = [Field(name="city", max_size=2)]
    before = FeatureVocabulary.fit({"city": ["Rome", "Rome", "Oslo", "Oslo", "Lima"]}, fields)
    after = before.grown(FeatureVocabulary.fit({"city": ["Lima"] * 9 + ["Kyiv"] * 9 + ["Oslo"]}, fields))
    assert after.values["city"].to_pylist() == ["Rome", "Oslo", "Lima"]
    assert after.counts["city"].tolist() == [2, 3, 1]
    assert after.value_features.tolist() == [0, 1, 2, 0]
    with_room = FeatureVocabulary.fit({"city": ["Rome"]}, fields)
    after = with_room.grown(FeatureVocabulary.fit({"city": ["Lima", "Kyiv", "Kyiv"]}, fields))
    assert (after.values["city"].to_pylist(), after.value_features.tolist()) == (["Rome", "Kyiv"], [0, 1, 2])


def test_a_rare_value_that_becomes_frequent_takes_a_place_before_those_that_were() -> None:
    before = FeatureVocabulary.fit({"city": ["Rome", "Oslo", "Oslo"]}, ["city"], min_count=2)
    after = before.grown(FeatureVocabulary.fit({"city": ["Rome"]}, ["city"], min_count=2))
    assert before.value_features.tolist() == [0, 0, 1]
    assert after.value_features.tolist() == [0, 1, 2]
    assert before.features_in(after).tolist() == [0, 2, 3]


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


@given(some_rows, some_rows)
def test_the_file_keeps_everything(
    tmp_path_factory: pytest.TempPathFactory, seen: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("v") / "v.parquet"
    vocabulary = FeatureVocabulary.fit(seen, ALL_KINDS)
    vocabulary.save(path)
    loaded = FeatureVocabulary.load(path)
    assert loaded == vocabulary
    assert loaded.schema == tuple(ALL_KINDS)
    assert loaded.fingerprint == vocabulary.fingerprint
    assert loaded.orders is not None
    for name in loaded.fields:
        np.testing.assert_array_equal(loaded.orders[name], pc.array_sort_indices(vocabulary.values[name]).to_numpy())
    ours, theirs = (v.encode(read_columns(rows, v.columns)[0]) for v in (loaded, vocabulary))
    assert ours[0].tolist() == theirs[0].tolist()
    assert unseen(ours[1]) == unseen(theirs[1])
    assert ours[1].features.tolist() == theirs[1].features.tolist()


# ---- the fingerprint

CHANGES: dict[str, Callable[[list[dict[str, Any]]], tuple[list[dict[str, Any]], list[Field]]]] = {
    "another value": lambda rows: ([*rows, {**rows[0], "movie": 99}, {**rows[0], "movie": 99}], MOVIES),
    "a rarer value": lambda rows: (rows[:2], MOVIES),
    "another order of values": lambda rows: (rows[::-1], MOVIES),
    "another member": lambda rows: ([*rows, {**rows[0], "tags": "x|x"}], MOVIES),
    "min_count": lambda rows: (rows, [replace(MOVIES[0], min_count=1), *MOVIES[1:]]),
    "max_items": lambda rows: (rows, [MOVIES[0], replace(MOVIES[1], max_items=4), *MOVIES[2:]]),
    "features_of": lambda rows: (rows, [MOVIES[0], replace(MOVIES[1], features_of=None), *MOVIES[2:]]),
    "kind": lambda rows: (rows, [*MOVIES[:3], Field(name="title")]),
    "name": lambda rows: (
        [{**r, "tag": r["tags"]} for r in rows],
        [*MOVIES[:2], replace(MOVIES[2], name="tag"), MOVIES[3]],
    ),
    "order of fields": lambda rows: (rows, [MOVIES[3], *MOVIES[:3]]),
    "a field less": lambda rows: (rows, MOVIES[:3]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with_what_decides_the_features(change: str) -> None:
    rows, schema = CHANGES[change](MOVIE_ROWS)
    ours, theirs = FeatureVocabulary.fit(MOVIE_ROWS, MOVIES), FeatureVocabulary.fit(rows, schema)
    assert ours.fingerprint != theirs.fingerprint


def test_the_fingerprint_changes_with_a_bound() -> None:
    values = [*range(40)]
    prints = {numeric(values, n).fingerprint for n in (2, 3, 4)} | {numeric([*values, 0, 0, 0], 2).fingerprint}
    assert len(prints) == 4


@pytest.mark.parametrize("change", [{"words": "film"}, {"side": "item"}, {"reason": "said so"}], ids=str)
def test_the_fingerprint_does_not_change_with_what_decides_no_feature(change: dict[str, Any]) -> None:
    other = [replace(MOVIES[0], **change), *MOVIES[1:]]
    assert FeatureVocabulary.fit(MOVIE_ROWS, other).fingerprint == FeatureVocabulary.fit(MOVIE_ROWS, MOVIES).fingerprint


FORMAT_1 = sorted((Path(__file__).parent.parent / "carry_over" / "format-1").glob("*/feature_vocab.parquet"))


@pytest.mark.parametrize("path", FORMAT_1, ids=lambda path: path.parent.name)
def test_the_fingerprint_of_categories_is_that_of_the_first_format(path: Path, tmp_path: Path) -> None:
    config = json.loads((path.parent / "config.json").read_text())
    vocabulary = FeatureVocabulary.load(path)
    assert vocabulary.fingerprint == config["vocabulary_fingerprint"]
    assert vocabulary.num_features == config["num_features"]
    vocabulary.save(tmp_path / "again.parquet")
    again = FeatureVocabulary.load(tmp_path / "again.parquet")
    assert again == vocabulary
    assert again.fingerprint == config["vocabulary_fingerprint"]
    assert FeatureVocabulary.fit({"user_id": [7, 8]}, ["user_id"]).fingerprint != vocabulary.fingerprint


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


# ---- the file


@pytest.mark.parametrize(
    "columns",
    [COLUMNS, {"gender": [], "city": []}, {"gender": [None, None], "city": ["x", None]}],
    ids=["some values", "no rows", "a field without values"],
)
def test_a_saved_vocabulary_loads_equal(columns: dict[str, list[Any]], tmp_path: Path) -> None:
    vocabulary = fit(columns, min_count=2)
    vocabulary.save(tmp_path / "v.parquet")
    loaded = FeatureVocabulary.load(tmp_path / "v.parquet")
    assert loaded == vocabulary
    assert (loaded.schema, loaded.fingerprint) == (vocabulary.schema, vocabulary.fingerprint)
    assert loaded.token_table is None
    assert loaded.feature_counts.tolist() == vocabulary.feature_counts.tolist()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The file of a vocabulary whose seven values have 0, 1, …, 6 tokens."""
    tokens = np.concatenate([np.arange(10 * n, 10 * n + n, dtype=np.int32) for n in range(7)])
    is_value = np.concatenate([np.arange(n) % 2 == 0 for n in range(7)])
    vocabulary = fit(COLUMNS)
    table = TokenTable.of_parts([(tokens, is_value, np.arange(7))])
    path = tmp_path / "feature_vocab.parquet"
    replace(vocabulary, token_table=table).save(path)
    return path


def test_the_token_table_loads_identical(saved: Path) -> None:
    table = FeatureVocabulary.load(saved).token_table
    assert table is not None
    assert table.tokens.tolist() == [10 * n + i for n in range(7) for i in range(n)]
    assert table.is_value.tolist() == [i % 2 == 0 for n in range(7) for i in range(n)]
    assert table.offsets.tolist() == [0, 0, 1, 3, 6, 10, 15, 21]
    assert table.lengths.tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_with_its_path(saved: Path, kept: float) -> None:
    saved.write_bytes(saved.read_bytes()[: int(kept * saved.stat().st_size)])
    with pytest.raises(ValueError, match=r"feature_vocab\.parquet is not a complete feature vocabulary"):
        FeatureVocabulary.load(saved)


@pytest.mark.parametrize("write", [pq.write_table, lambda table, path: table.to_pandas().to_parquet(path)])
def test_a_foreign_parquet_file_is_refused(tmp_path: Path, write: Callable[[pa.Table, Path], None]) -> None:
    write(pa.table({"field": ["a"], "value": ["b"]}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match=r"foreign\.parquet is not a complete feature vocabulary"):
        FeatureVocabulary.load(tmp_path / "foreign.parquet")


def test_a_file_of_a_later_format_says_to_upgrade(saved: Path) -> None:
    table = pq.read_table(saved)
    metadata = json.loads(table.schema.metadata[b"flip"]) | {"format_version": FORMAT_VERSION + 1}
    pq.write_table(table.replace_schema_metadata({"flip": json.dumps(metadata)}), saved)
    with pytest.raises(ValueError, match=f"format version {FORMAT_VERSION + 1}.*upgrade modeling_flip"):
        FeatureVocabulary.load(saved)


# ---- files of the first format


def first_format(path: Path, values: dict[str, list[str]], min_count: int = 1) -> FeatureVocabulary:
    """What the first format wrote of these values, read."""
    rows = [(field, value) for field in values for value in (None, *values[field])]
    table = pa.table(
        {
            "field": pa.array([field for field, _ in rows]).dictionary_encode(),
            "value": pa.array([value for _, value in rows], pa.string()),
            "count": pa.array([2] * len(rows), pa.int64()),
        }
    )
    metadata = {"format_version": 1, "fields": list(values), "min_count": min_count}
    pq.write_table(table.replace_schema_metadata({"flip": json.dumps(metadata)}), path)
    return FeatureVocabulary.load(path)


def test_the_types_of_the_first_format_are_what_its_values_look_like(tmp_path: Path) -> None:
    values = {
        "user": ["7", "0", "-3", "12345678901234567890"],
        "zip": ["02551", "2551"],
        "adult": ["true", "false"],
        "price": ["2.5", "3"],
        "word": ["NA", "x"],
        "nothing": [],
        "title": ["Toy Story", "7"],
    }
    vocabulary = first_format(tmp_path / "v.parquet", values, min_count=3)
    assert {f.name: f.type for f in vocabulary.schema} == {
        **{"user": "integer", "zip": "string", "adult": "boolean", "price": "string"},
        **{"word": "string", "nothing": "string", "title": "string"},
    }
    assert [f.name for f in vocabulary.schema if not f.missing_words] == ["word"]
    assert {f.kind for f in vocabulary.schema} == {"categorical"}
    assert {f.min_count for f in vocabulary.schema} == {3}
    assert {name: v.to_pylist() for name, v in vocabulary.values.items()} == values
    vocabulary.save(tmp_path / "again.parquet")
    assert FeatureVocabulary.load(tmp_path / "again.parquet") == vocabulary


def test_rows_of_every_spelling_are_known_to_a_vocabulary_of_the_first_format(tmp_path: Path) -> None:
    vocabulary = first_format(tmp_path / "v.parquet", {"user": ["7", "8"], "adult": ["true", "false"], "word": ["NA"]})
    rows = [
        {"user": "007", "adult": 1, "word": "NA"},
        {"user": 7.0, "adult": "Yes", "word": None},
        {"user": " 8", "adult": False, "word": "NA"},
        {"user": "NA", "adult": "", "word": "N/A"},
    ]
    value_ids, local = vocabulary.encode(read_columns(rows, vocabulary.columns)[0])
    assert value_ids.tolist() == [[1, 4, 7], [1, 4, 6], [2, 5, 7], [0, 3, 8]]
    assert unseen(local) == [(2, "N/A")]


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


def test_hashed_parts_merge_to_the_whole() -> None:
    schema = [Field(name="session", hash_size=3)]
    one, two = ({"session": part} for part in (["a", "b"], ["c", "a", None]))
    both = FeatureVocabulary.fit({"session": one["session"] + two["session"]}, schema)
    assert FeatureVocabulary.merge([FeatureVocabulary.fit(one, schema), FeatureVocabulary.fit(two, schema)]) == both
