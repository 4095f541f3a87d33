"""Fields, rows and vocabularies of which the tests of this folder are made."""

from __future__ import annotations

import datetime as dt
from typing import Any

from hypothesis import strategies as st

from modeling_flip.feature_vocabulary import FeatureVocabulary, LocalValues
from modeling_flip.fields import Field

FIELDS = ["gender", "city"]

COLUMNS: dict[str, list[Any]] = {"gender": ["f", "m", "f", None], "city": ["x", "y", "z", "x"]}

columns_of_text = st.lists(st.tuples(*[st.sampled_from(["a", "b", "c", " ", None])] * 2), max_size=8).map(
    lambda rows: {"gender": [g for g, _ in rows], "city": [c for _, c in rows]}
)

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


def fit(columns: dict[str, list[Any]], min_count: int = 1) -> FeatureVocabulary:
    return FeatureVocabulary.fit(columns, FIELDS, min_count)


def numeric(values: list[Any], num_buckets: int = 32, type: str = "number") -> FeatureVocabulary:
    schema = [Field(name="price", kind="numeric", type=type, num_buckets=num_buckets)]
    return FeatureVocabulary.fit({"price": values}, schema)


def unseen(local: LocalValues) -> list[tuple[int, str]]:
    """The values that have no id in the vocabulary, with their fields."""
    return list(zip(local.columns.tolist(), local.texts.to_pylist(), strict=True))
