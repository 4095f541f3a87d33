"""Vocabularies of parts of the rows, merged, and one that grows with new rows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_flip.feature_vocabulary import FeatureVocabulary
from modeling_flip.fields import Field
from tests.modeling_flip.feature_vocabulary.vocabularies import (
    ALL_KINDS,
    COLUMNS,
    FIELDS,
    columns_of_text,
    fit,
    some_rows,
)


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


def test_hashed_parts_merge_to_the_whole() -> None:
    schema = [Field(name="session", hash_size=3)]
    one, two = ({"session": part} for part in (["a", "b"], ["c", "a", None]))
    both = FeatureVocabulary.fit({"session": one["session"] + two["session"]}, schema)
    assert FeatureVocabulary.merge([FeatureVocabulary.fit(one, schema), FeatureVocabulary.fit(two, schema)]) == both


# ---- growing

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
