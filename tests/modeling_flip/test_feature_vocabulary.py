"""The vocabulary: what it counts, how it numbers, what it reads, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_flip.feature_vocabulary import FORMAT_VERSION, FeatureVocabulary, TokenTable, gather, text_columns

FIELDS = ["gender", "city"]
COLUMNS: dict[str, list[Any]] = {"gender": ["f", "m", "f", None], "city": ["x", "y", "z", "x"]}

columns_of_text = st.lists(st.tuples(*[st.sampled_from(["a", "b", "c", "", None])] * 2), max_size=8).map(
    lambda rows: {"gender": [g for g, _ in rows], "city": [c for _, c in rows]}
)


def fit(columns: dict[str, list[Any]], min_count: int = 1) -> FeatureVocabulary:
    return FeatureVocabulary.fit(columns, FIELDS, min_count)


def texts_of(values: Any) -> list[str | None]:
    """The canonical text of one column."""
    return text_columns({"a": values}, ["a"])[0]["a"].to_pylist()


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
    assert vocabulary.texts == [(0, None), (0, "f"), (0, "m"), (1, None), (1, "x"), (1, "y"), (1, "z")]


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
    with pytest.raises(ValueError, match="cannot merge"):
        FeatureVocabulary.merge([fit(COLUMNS), other])


# ---- encoding


def test_unseen_values_get_ids_behind_all_others_once_each() -> None:
    columns, _ = text_columns({"gender": ["x", None, "f", "x"], "city": ["w", "x", None, "f"]}, FIELDS)
    value_ids, unseen = fit(COLUMNS).encode(columns)
    assert value_ids.dtype == np.int32
    # Seven values were seen; "x" is no gender and "f" no city, though each was seen in the other field.
    assert value_ids.tolist() == [[7, 8], [0, 4], [1, 3], [7, 9]]
    assert unseen == [(0, "x"), (1, "w"), (1, "f")]


@given(columns_of_text, columns_of_text)
def test_value_ids_lead_back_to_the_texts(seen: dict[str, list[Any]], rows: dict[str, list[Any]]) -> None:
    vocabulary = fit(seen)
    columns, _ = text_columns(rows, FIELDS)
    value_ids, unseen = vocabulary.encode(columns)
    texts = [*vocabulary.texts, *unseen]
    for i, field in enumerate(FIELDS):
        assert [texts[v] for v in value_ids[:, i]] == [(i, text) for text in rows[field]]


# ---- canonical text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([25, 25.0, "25"], ["25", "25", "25"]),
        ([1, 2.5], ["1", "2.5"]),
        ([1.0, None, float("nan")], ["1", None, None]),
        ([float("nan"), "a"], [None, "a"]),
        (["", "a", None, pd.NA], ["", "a", None, None]),
        ([True, False, None], ["true", "false", None]),
        ([np.int64(3), np.float32(2.5), np.bool_(True), np.str_("x")], ["3", "2.5", "true", "x"]),
        (np.array([1.0, np.nan, 2.5]), ["1", None, "2.5"]),
        (np.array([3, "b", None], object), ["3", "b", None]),
        ([None, None], [None, None]),
        ([2**60], ["1152921504606846976"]),
        (pa.array([25.0, None, float("nan")]), ["25", None, None]),
        (pa.array([25.0, None, float("nan")]).dictionary_encode(), ["25", None, None]),
        (pa.array(["x", None, "y", "x"]).dictionary_encode(), ["x", None, "y", "x"]),
        (pa.array(["x", None], pa.large_string()), ["x", None]),
        (pa.chunked_array([["x"], [], ["y", None]]), ["x", "y", None]),
        (pa.chunked_array([pa.array(t).dictionary_encode() for t in (["x"], ["y", "x"])]), ["x", "y", "x"]),
        (pa.nulls(2), [None, None]),
    ],
    ids=str,
)
def test_canonical_text(values: Any, texts: list[str | None]) -> None:
    column = text_columns({"a": values}, ["a"])[0]["a"]
    assert column.type == pa.string()
    assert column.to_pylist() == texts


@pytest.mark.parametrize("dtype", ["category", "string", "object", "str"])
def test_pandas_text_columns_of_any_dtype_read_alike(dtype: str) -> None:
    frame = pd.DataFrame({"a": pd.Series(["x", None, "y"], [7, 5, 3], dtype=dtype)})
    assert text_columns(frame, ["a"])[0]["a"].to_pylist() == ["x", None, "y"]


def test_pandas_nullable_integers_are_the_integers() -> None:
    frame = pd.DataFrame({"a": pd.array([25, None], dtype="Int64"), "b": [25, None]})
    columns, _ = text_columns(frame, ["a", "b"])
    assert columns["a"].to_pylist() == columns["b"].to_pylist() == ["25", None]


@pytest.mark.parametrize("value", [12_345_678_901, -10_000_000_000, 2**53 - 1], ids=str)
def test_a_large_id_that_became_a_float_is_still_the_same_value(value: int) -> None:
    assert texts_of([float(value), None]) == texts_of([value, None])


@pytest.mark.parametrize("value", [[1, 2], {"x": 1}, b"x"], ids=str)
def test_values_without_one_text_are_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match="field 'tags' has type"):
        text_columns([{"tags": value}], ["tags"])


# ---- every kind of rows

ROWS: list[dict[str, Any]] = [
    {"user_id": 1, "age": 25.0, "gender": "f", "title": "Amélie"},
    {"user_id": 2, "age": None, "gender": None, "title": ""},
    {"user_id": 1, "age": 31.5, "gender": "m", "title": "東京物語"},
    {"user_id": 3, "age": 25.0, "gender": "f", "title": None},
    {"user_id": 4, "age": 18.0, "gender": "m", "title": "25"},
]
ROW_FIELDS = ["title", "user_id", "age", "gender"]


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {field: [row[field] for row in rows] for field in rows[0]}


def as_arrow(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def as_chunks(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.concat_tables([as_arrow(rows[:2]), as_arrow(rows[2:])])


def as_dictionaries(rows: list[dict[str, Any]]) -> pa.Table:
    table = as_arrow(rows)
    return pa.table({name: table[name].dictionary_encode() for name in table.column_names})


def as_sliced_arrays(rows: list[dict[str, Any]]) -> dict[str, pa.Array]:
    padded = as_arrow([rows[-1], *rows])
    return {name: padded[name].combine_chunks().slice(1) for name in padded.column_names}


def as_selected_dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    """The rows in order, through an indices mapping over rows stored backwards."""
    backwards = datasets.Dataset.from_list(rows[::-1])
    return backwards.select(list(range(len(rows)))[::-1])


KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "dict of columns": as_columns,
    "dict of sliced Arrow arrays": as_sliced_arrays,
    "DataFrame": pd.DataFrame,
    "Arrow table": as_arrow,
    "Arrow table in chunks": as_chunks,
    "Arrow table of dictionaries": as_dictionaries,
    "Dataset": datasets.Dataset.from_list,
    "Dataset formatted as torch": lambda rows: datasets.Dataset.from_list(rows).with_format("torch"),
    "Dataset with an indices mapping": as_selected_dataset,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rows_gives_the_same_vocabulary_and_encoding(kind: str) -> None:
    rows = KINDS[kind](ROWS)
    assert FeatureVocabulary.fit(rows, ROW_FIELDS) == FeatureVocabulary.fit(ROWS, ROW_FIELDS)
    vocabulary = FeatureVocabulary.fit(ROWS[:3], ROW_FIELDS)
    value_ids, unseen = vocabulary.encode(text_columns(rows, ROW_FIELDS)[0])
    expected_ids, expected_unseen = vocabulary.encode(text_columns(ROWS, ROW_FIELDS)[0])
    assert value_ids.tolist() == expected_ids.tolist()
    assert unseen == expected_unseen == [(0, "25"), (1, "3"), (1, "4"), (2, "18")]


def test_one_dict_is_one_row() -> None:
    columns, _ = text_columns(ROWS[0], ROW_FIELDS)
    assert [columns[field].to_pylist() for field in ROW_FIELDS] == [["Amélie"], ["1"], ["25"], ["f"]]


def test_one_dict_with_a_list_in_a_column_not_asked_for_is_one_row() -> None:
    columns, _ = text_columns({"title": "Toy", "tags": ["a", "b"]}, ["title"])
    assert columns["title"].to_pylist() == ["Toy"]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="city"):
        text_columns({"gender": ["f", "m"], "city": ["x"]}, FIELDS)


def test_a_shuffled_dataset_is_read_in_its_shuffled_order() -> None:
    shuffled = datasets.Dataset.from_list(ROWS).shuffle(seed=1)
    titles = [row["title"] for row in shuffled]
    assert titles != [row["title"] for row in ROWS]
    assert text_columns(shuffled, ["title"])[0]["title"].to_pylist() == titles


def test_a_key_that_only_some_dicts_have_is_null_in_the_others() -> None:
    columns, _ = text_columns([{"a": 1}, {"b": 2}], ["a", "b"])
    assert [columns["a"].to_pylist(), columns["b"].to_pylist()] == [["1", None], [None, "2"]]


def test_a_missing_column_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"column 'gendre' is missing.*\['city', 'gender'\]; did you mean 'gender'\?"):
        FeatureVocabulary.fit(COLUMNS, ["city", "gendre"])


def test_a_missing_column_is_null_throughout_where_that_is_allowed() -> None:
    columns, absent = text_columns(COLUMNS, ["age", "city"], strict=False)
    assert absent == ["age"]
    assert columns["age"].to_pylist() == [None] * 4
    assert columns["city"].to_pylist() == COLUMNS["city"]


def test_other_things_than_rows_are_refused_by_type() -> None:
    with pytest.raises(TypeError, match="not <class 'str'>"):
        text_columns("gender", FIELDS)


# ---- the file


@pytest.mark.parametrize(
    "columns",
    [COLUMNS, {"gender": [], "city": []}, {"gender": [None, None], "city": ["", None]}],
    ids=["some values", "no rows", "a field without values"],
)
def test_a_saved_vocabulary_loads_equal(columns: dict[str, list[Any]], tmp_path: Path) -> None:
    vocabulary = fit(columns, min_count=2)
    vocabulary.save(tmp_path / "v.parquet")
    loaded = FeatureVocabulary.load(tmp_path / "v.parquet")
    assert loaded == vocabulary
    assert loaded.token_table is None
    assert loaded.feature_counts.tolist() == vocabulary.feature_counts.tolist()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The file of a vocabulary whose seven values have 0, 1, …, 6 tokens."""
    segments = [(list(range(10 * n, 10 * n + n)), [i % 2 == 0 for i in range(n)]) for n in range(7)]
    vocabulary = fit(COLUMNS)
    table = TokenTable.from_segments(segments)
    path = tmp_path / "feature_vocab.parquet"
    FeatureVocabulary(vocabulary.values, vocabulary.counts, vocabulary.null_counts, 1, table).save(path)
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
    with pytest.raises(ValueError, match=r"feature_vocab\.parquet is not a whole feature vocabulary"):
        FeatureVocabulary.load(saved)


@pytest.mark.parametrize("write", [pq.write_table, lambda table, path: table.to_pandas().to_parquet(path)])
def test_a_foreign_parquet_file_is_refused(tmp_path: Path, write: Callable[[pa.Table, Path], None]) -> None:
    write(pa.table({"field": ["a"], "value": ["b"]}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match=r"foreign\.parquet is not a whole feature vocabulary"):
        FeatureVocabulary.load(tmp_path / "foreign.parquet")


def test_a_file_of_a_later_format_says_to_upgrade(saved: Path) -> None:
    table = pq.read_table(saved)
    metadata = json.loads(table.schema.metadata[b"flip"]) | {"format_version": FORMAT_VERSION + 1}
    pq.write_table(table.replace_schema_metadata({"flip": json.dumps(metadata)}), saved)
    with pytest.raises(ValueError, match=f"format version {FORMAT_VERSION + 1}.*upgrade modeling_flip"):
        FeatureVocabulary.load(saved)


@given(sizes=st.tuples(st.integers(1, 5), st.integers(0, 5)), data=st.data())
def test_gather_reads_two_arrays_as_one(sizes: tuple[int, int], data: st.DataObject) -> None:
    first, second = np.arange(sizes[0]), 100 + np.arange(sizes[1])
    index = np.asarray(data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=8)), np.int32).reshape(1, -1)
    np.testing.assert_array_equal(gather(first, second, index), np.concatenate([first, second])[index])
