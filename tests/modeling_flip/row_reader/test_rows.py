"""Every kind of rows, and their labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from modeling_flip import FeatureVocabulary, Field
from modeling_flip.field_inference import infer_fields
from modeling_flip.row_reader import read_clicks, read_columns

ROWS: list[dict[str, Any]] = [
    {"user_id": 1, "age": 25.0, "gender": "f", "title": "Amélie"},
    {"user_id": 2, "age": None, "gender": None, "title": ""},
    {"user_id": 1, "age": 31.5, "gender": "m", "title": "東京物語"},
    {"user_id": 3, "age": 25.0, "gender": "f", "title": None},
    {"user_id": 4, "age": 18.0, "gender": "m", "title": "25"},
]
ROW_FIELDS = ["title", "user_id", "age", "gender"]
SCHEMA = [Field(name=name) for name in ROW_FIELDS]


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
    "tuple of dicts": tuple,
    "dict of columns": as_columns,
    "dict of sliced Arrow arrays": as_sliced_arrays,
    "dict of numpy arrays": lambda rows: {k: np.array(v, object) for k, v in as_columns(rows).items()},
    "DataFrame": pd.DataFrame,
    "Arrow table": as_arrow,
    "record batch": lambda rows: pa.RecordBatch.from_pylist(rows),
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
    value_ids, local = vocabulary.encode(read_columns(rows, SCHEMA)[0])
    expected_ids, expected = vocabulary.encode(read_columns(ROWS, SCHEMA)[0])
    assert value_ids.tolist() == expected_ids.tolist()
    unseen = [(0, "25"), (1, "3"), (1, "4"), (2, "18")]
    for one in (local, expected):
        assert list(zip(one.columns.tolist(), one.texts.to_pylist(), strict=True)) == unseen


def test_one_dict_is_one_row() -> None:
    columns, _ = read_columns(ROWS[0], SCHEMA)
    assert [columns[field].to_pylist() for field in ROW_FIELDS] == [["Amélie"], ["1"], ["25"], ["f"]]


def test_arrays_without_dimensions_in_a_dict_are_the_values_of_one_row() -> None:
    with pytest.raises(
        TypeError, match=r"^field 'tags' holds a ndarray, array\(5\); turn it into text or numbers first"
    ):
        read_columns({"tags": np.array(5)}, [Field(name="tags")])


def test_one_dict_with_a_list_in_a_column_not_asked_for_is_one_row() -> None:
    columns, _ = read_columns({"title": "Toy", "tags": ["a", "b"]}, [Field(name="title")])
    assert columns["title"].to_pylist() == ["Toy"]


TAGS = Field(name="tags", kind="list")


@pytest.mark.parametrize(
    ("rows", "tags"),
    [
        ({"title": "Toy", "tags": ["a", "b"]}, ["a\x1fb"]),
        ({"tags": ["a", "b"]}, ["a\x1fb"]),
        ({"tags": [["a", "b"], ["c"]]}, ["a\x1fb", "c"]),
        ({"tags": [["a", "b"], None]}, ["a\x1fb", None]),
        ({"tags": pa.array([["a", "b"]])}, ["a\x1fb"]),
        ({"title": ["Toy", "Story"], "tags": [["a", "b"], "c"]}, ["a\x1fb", "c"]),
        ({"title": ["Toy", "Story"], "tags": ["a,b", "c"]}, ["a\x1fb", "c"]),
    ],
)
def test_a_list_in_a_dict_is_a_rows_members_or_a_column(rows: dict[str, Any], tags: list[str | None]) -> None:
    schema = [Field(name="title"), TAGS] if "title" in rows else [TAGS]
    assert read_columns(rows, schema)[0]["tags"].to_pylist() == tags


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"columns differ in length: \{'gender': 2, 'city': 1\}"):
        read_columns({"gender": ["f", "m"], "city": ["x"]}, [Field(name="gender"), Field(name="city")])


@pytest.mark.parametrize("make", [lambda frame: frame, lambda frame: pa.Table.from_arrays([[1], [2]], ["a", "a"])])
def test_two_columns_of_one_name_are_refused(make: Callable[[pd.DataFrame], Any]) -> None:
    with pytest.raises(ValueError, match="the rows have more than one column 'a'; rename one"):
        read_columns(make(pd.DataFrame([[1, 2]], columns=["a", "a"])), [Field(name="a")])


def test_a_shuffled_dataset_is_read_in_its_shuffled_order() -> None:
    shuffled = datasets.Dataset.from_list(ROWS).shuffle(seed=1)
    titles = [row["title"] or None for row in shuffled]
    assert titles != [row["title"] or None for row in ROWS]
    assert read_columns(shuffled, [Field(name="title")])[0]["title"].to_pylist() == titles


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: rows,
        lambda rows: rows.select([2, 1, 0]).select([2, 1, 0]),
        lambda rows: rows.with_format("arrow")[:],  # as the pipeline takes its chunks
        lambda rows: rows.data.table.to_batches()[0],
        lambda rows: pa.concat_tables([rows.data.table[:1], rows.data.table[1:]]),
    ],
)
def test_classes_of_a_dataset_are_read_by_their_names(make: Callable[[datasets.Dataset], Any]) -> None:
    classes = datasets.ClassLabel(names=["rock", "jazz"])
    lists = {"tags": datasets.Sequence(classes), "pairs": datasets.Sequence(classes, length=2)}
    features = datasets.Features({"genre": classes, **lists, "stars": datasets.ClassLabel(names=["0", "1"])})
    columns = {
        "genre": [1, -1, 0],
        "tags": [[0, 1], None, [1, -1]],
        "pairs": [[1, 1], None, [0, 1]],
        "stars": [1, 0, 1],
    }
    rows = make(datasets.Dataset.from_dict(columns, features=features))
    fields = [Field(name="genre"), Field(name="tags", kind="list"), Field(name="pairs", kind="list")]
    read, _ = read_columns(rows, [*fields, Field(name="stars", type="integer")])
    assert {name: column.to_pylist() for name, column in read.items()} == {
        "genre": ["jazz", None, "rock"],
        "tags": ["rock\x1fjazz", None, "jazz"],
        "pairs": ["jazz\x1fjazz", None, "rock\x1fjazz"],
        "stars": ["1", "0", "1"],
    }
    found = {report.field.name: (report.field.kind, report.field.type) for report in infer_fields(rows)}
    assert found["stars"] == ("categorical", "integer") and found["tags"] == ("list", "string")
    assert read_clicks(rows, "stars").tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "metadata", ["no json", "[]", '{"info": {"features": {"a": [], "b": 1, "c": {"_type": "ClassLabel"}}}}']
)
def test_what_else_a_schema_says_of_classes_is_not_asked(metadata: str) -> None:
    rows = pa.table({"a": [1], "c": [1]}).replace_schema_metadata({"huggingface": metadata})
    assert read_columns(rows, [Field(name="a"), Field(name="c")])[0]["c"].to_pylist() == ["1"]


def test_names_in_place_of_classes_stay() -> None:
    features = datasets.Features({"genre": datasets.ClassLabel(names=["rock", "jazz"])})
    rows = pa.table({"genre": ["jazz"]}).replace_schema_metadata(features.arrow_schema.metadata)
    assert read_columns(rows, [Field(name="genre")])[0]["genre"].to_pylist() == ["jazz"]


def test_a_key_that_only_some_dicts_have_is_null_in_the_others() -> None:
    columns, _ = read_columns([{"a": 1}, {"b": 2}], [Field(name="a"), Field(name="b")])
    assert [columns["a"].to_pylist(), columns["b"].to_pylist()] == [["1", None], [None, "2"]]


def test_a_missing_column_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"column 'gendre' is missing.*\['city', 'gender'\]; did you mean 'gender'\?"):
        read_columns({"gender": ["f"], "city": ["x"]}, [Field(name="city"), Field(name="gendre")])


def test_a_missing_column_is_null_throughout_where_that_is_allowed() -> None:
    columns, absent = read_columns({"city": ["x", "y"]}, [Field(name="age"), Field(name="city"), TAGS], strict=False)
    assert absent == ["age", "tags"]
    assert columns["age"].to_pylist() == columns["tags"].to_pylist() == [None] * 2
    assert columns["city"].to_pylist() == ["x", "y"]


@pytest.mark.parametrize(
    ("rows", "found"),
    [("gender", "<class 'str'>"), (5, "<class 'int'>"), ([1, "a"], "<class 'list'> of int, str"), (None, "NoneType")],
)
def test_other_things_than_rows_are_refused_by_type(rows: Any, found: str) -> None:
    with pytest.raises(TypeError, match=f"rows must be a dict, a list of dicts.*, not .*{found}"):
        read_columns(rows, [Field(name="gender")])


@pytest.mark.parametrize("rows", [[], (), {"a": []}, pd.DataFrame({"a": []}), pa.table({"a": []})], ids=str)
def test_no_rows(rows: Any) -> None:
    columns, absent = read_columns(rows, [Field(name="a")])
    assert (len(columns["a"]), absent) == (0, [])


@pytest.mark.parametrize("name", ["click rate (%)", "👍", "a.b", "a\nb", "ß", "日本", ""])
def test_columns_of_any_name(name: str) -> None:
    for rows in ([{name: "x"}], {name: ["x"]}, pd.DataFrame({name: ["x"]}), pa.table({name: ["x"]})):
        assert read_columns(rows, [Field(name=name)])[0][name].to_pylist() == ["x"]


# ---- labels


@pytest.mark.parametrize(
    "labels",
    [[1, 0], [True, False], [1.0, 0.0], ["1", "0"], np.array([1, 0], np.int8), [1, False], ["True", "FALSE"]],
    ids=str,
)
def test_labels_are_clicks_in_any_type(labels: Any) -> None:
    read = read_clicks({"click": labels}, "click")
    assert read.dtype == np.float32
    assert read.tolist() == [1.0, 0.0]


def test_a_missing_label_column_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"column 'clicks' is missing.*did you mean 'click'"):
        read_clicks({"click": [1]}, "clicks")


def test_no_rows_have_no_labels() -> None:
    assert read_clicks({"click": []}, "click").shape == (0,)
