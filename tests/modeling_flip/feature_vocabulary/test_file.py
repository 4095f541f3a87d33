"""The file of a vocabulary, of this format and of the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from modeling_flip.feature_vocabulary import FORMAT_VERSION, FeatureVocabulary
from modeling_flip.row_reader import read_columns
from modeling_flip.token_table import TokenTable
from tests.modeling_flip.feature_vocabulary.vocabularies import ALL_KINDS, COLUMNS, fit, some_rows, unseen


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
