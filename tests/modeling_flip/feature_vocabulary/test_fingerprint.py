"""The fingerprint of a vocabulary: what changes it and what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modeling_flip.feature_vocabulary import FeatureVocabulary
from modeling_flip.fields import Field
from tests.modeling_flip.feature_vocabulary.vocabularies import MOVIE_ROWS, MOVIES, numeric

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


FORMAT_1 = sorted((Path(__file__).parents[2] / "carry_over" / "format-1").glob("*/feature_vocab.parquet"))


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
