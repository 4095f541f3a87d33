"""The processor: what it makes of rows, what it says of them, and its files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset
from transformers import AutoProcessor, PreTrainedTokenizerFast

from modeling_flip import FeatureVocabulary, Field, FlipProcessor, processing_flip
from modeling_flip.processing_flip import ROWS_TO_JUDGE
from modeling_flip.training.preparation import choose_fields
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.splits import RawSplits
from tests.modeling_flip.conftest import FAMILIES, FIELDS

# ---- features and fields


def test_the_features_of_all_kinds(processors_of_all_kinds: dict[tuple[str, int], FlipProcessor]) -> None:
    processor = processors_of_all_kinds["wordpiece", 128]
    # movie: unknown 0, then 7, 8, 9 in the order of the rows; price: unknown 4, one bucket; tags: unknown 6, fun, old; day
    assert processor.vocabulary.values["movie"].to_pylist() == ["7", "8", "9"]
    rows = [
        {
            "movie": 9,
            "price": -2,
            "tags": ["old", "fun", "x", "fun"],
            "history": [7, 5],
            "title": "any",
            "day": "1999-01-01",
        },
        {"movie": 5},
    ]
    encoded = processor(rows)
    assert encoded["feature_ids"].tolist() == [[3, 5, 8, 1, 10], [0, 4, 6, 0, 9]]
    assert encoded["list_feature_ids"].tolist() == [[[8, 7, 6], [1, 0, -1]], [[6, -1, -1], [0, -1, -1]]]
    assert processor.config_settings == {
        **{"num_features": 12, "num_fields": 5, "text_fields": [4], "list_fields": [2, 3]},
        "vocabulary_fingerprint": processor.vocabulary.fingerprint,
        "tokenizer_fingerprint": processor.sentence_tokenizer.fingerprint,
    }


def test_fields_that_are_not_declared_are_inferred(wordpiece: PreTrainedTokenizerFast) -> None:
    rows = {"user_id": [1, 2, 3], "price": [3.5, None, 2.0], "tags": [["a"], [], ["b", "a"]], "title": ["x", "y", "z"]}
    everything = FlipProcessor.fit(rows, tokenizer=wordpiece)
    assert [(field.name, field.kind, field.type) for field in everything.schema] == [
        *(("user_id", "categorical", "integer"), ("price", "numeric", "number")),
        *(("tags", "list", "string"), ("title", "categorical", "string")),
    ]
    some = FlipProcessor.fit(rows, ["tags", {"name": "price", "kind": "categorical", "words": "cost"}], wordpiece)
    assert [(field.name, field.kind) for field in some.schema] == [("tags", "list"), ("price", "categorical")]
    assert some.display_names == {"tags": "tags", "price": "cost"}


def test_the_label_is_no_field_however_the_fields_are_given(caplog: pytest.LogCaptureFixture) -> None:
    rows = {"city": ["Rome", "Oslo"] * 60, "bought": [1, 0] * 60, "clicked": [1, 0] * 60}
    for fields in ([Field(name="city"), Field(name="clicked")], [{"name": "city"}, {"name": "clicked"}]):
        with pytest.raises(ValueError, match="column 'clicked' is declared as a field but also left out"):
            FlipProcessor.fit(rows, fields, label="clicked")
    caplog.clear()
    given = [Field(name="bought", words="paid")]
    assert FlipProcessor.fit(rows, given, label="clicked").schema == tuple(given)
    assert "field 'bought' is used, but check it: identical to the label" in caplog.text
    with pytest.raises(ValueError, match="no column is left to learn from"):
        FlipProcessor.fit(rows, [])


def test_a_dict_of_list_columns_is_fitted_as_the_same_table() -> None:
    texts = ["War|Noir|Drama", "Noir|War", "Drama|Noir", "War"] * 30
    members, clicks = [text.split("|") for text in texts], [1, 0, 0, 1, 0] * 24
    fields = {"genres": {"kind": "list", "separator": "|"}}
    for rows in ({"genres": cells, **rest} for cells in (texts, members) for rest in ({}, {"clicked": clicks})):
        label = "clicked" if "clicked" in rows else None
        ours, theirs = (FlipProcessor.fit(given, fields, label=label) for given in (rows, pa.table(rows)))
        assert sorted(ours.vocabulary.values["genres"].to_pylist()) == ["Drama", "Noir", "War"]
        assert ours.vocabulary.fingerprint == theirs.vocabulary.fingerprint
        if label is not None:
            assert len(ours.encode(rows, label)) == 120


@pytest.mark.parametrize(
    ("tags", "members"),
    [
        (pa.array([["a", "b"], ["c"]]), ["a", "b", "c"]),
        (pa.chunked_array([["a,b"], ["c"]]), ["a", "b", "c"]),
        (pa.array(["c", "a,b"]).dictionary_encode(), ["c", "a", "b"]),
    ],
)
def test_a_dict_of_arrow_columns_is_fitted_where_all_are_lists(tags: Any, members: list[str]) -> None:
    processor = FlipProcessor.fit({"tags": tags}, [Field(name="tags", kind="list")])
    assert processor.vocabulary.values["tags"].to_pylist() == members
    assert len(processor.vocabulary.counts["tags"]) == 3


def test_labels_are_clicks_one_for_each_row() -> None:
    rows = {"city": ["Rome", "Oslo", "Rome"]}
    processor = FlipProcessor.fit(rows, ["city"])
    assert processor.encode(rows, np.array([1, 0, 1])).labels.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"holds '5' \(row 1\); labels are 0 or 1"):
        processor.encode(rows, np.array([1, 5, 0]))
    with pytest.raises(ValueError, match=r"holds a missing value \(row 2\)"):
        processor.encode(rows, np.array([1, 0, np.nan]))
    with pytest.raises(ValueError, match="there are 4 labels for 3 rows: give each row one"):
        processor.encode(rows, np.array([1, 0, 1, 0]))


def test_display_names_replace_the_columns_names(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit(
        {"user_id": [1], "sex": ["f"]}, ["user_id", "sex"], wordpiece, display_names={"sex": "gender"}
    )
    assert processor.texts({"user_id": 1, "sex": "f"}) == ["user id is 1. gender is f."]
    ids = processor({"user_id": 1, "sex": "f"})["input_ids"][0]
    assert wordpiece.decode(ids, skip_special_tokens=True) == "user id is 1. gender is f."


# ---- unseen values, absent fields


def test_an_unseen_value_is_the_unknown_feature_and_keeps_its_words(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"gender": ["f", "m"], "title": ["toy", "story"]}, ["gender", "title"], wordpiece)
    encoded = processor({"gender": ["other", "m"], "title": ["toy", "m"]})
    # (unknown, f, m), (unknown, toy, story), <MASK>
    assert encoded["feature_ids"].tolist() == [[0, 4], [2, 3]]
    sentences = wordpiece.batch_decode(encoded["input_ids"], skip_special_tokens=True)
    assert sentences == ["gender is other. title is toy.", "gender is m. title is m."]


def test_a_rare_value_is_the_unknown_feature_and_keeps_its_words(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"title": ["toy", "toy", "story"]}, ["title"], wordpiece, min_count=2)
    encoded = processor({"title": ["story", "toy"]})
    assert encoded["feature_ids"].tolist() == [[0], [1]]
    assert wordpiece.decode(encoded["input_ids"][0], skip_special_tokens=True) == "title is story."


def test_an_absent_field_is_missing_on_both_sides(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"gender": ["f"], "title": ["toy"]}, ["gender", "title"], wordpiece)
    encoded = processor({"gender": "f"})
    assert encoded["feature_ids"].tolist() == [[1, 2]]
    assert wordpiece.decode(encoded["input_ids"][0], skip_special_tokens=True) == "gender is f. title is unknown."


def test_an_absent_field_is_an_error_where_rows_are_encoded_for_training(rows: list[dict[str, Any]]) -> None:
    processor = FlipProcessor.fit(rows, ["gender", "title"])
    with pytest.raises(ValueError, match=r"column 'title' is missing; the columns are .* did you mean 'titles'"):
        processor.encode({"gender": ["male"], "titles": ["toy"]})


@pytest.mark.parametrize(
    ("fields", "values", "warned"),
    [
        (["city"], {"city": [f"v{i}" for i in range(20)]}, True),
        (["city"], {"city": ["Rome"] * 2 + [f"v{i}" for i in range(18)]}, False),  # nine in ten are new, not more
        (["city"], {"city": ["Rome"] + [f"v{i}" for i in range(19)]}, True),
        (["city"], {"city": [f"v{i}" for i in range(19)]}, False),  # too few rows to judge
        (["city"], {"city": [f"v{i}" for i in range(19)] + [None] * 9}, False),
        ([Field(name="city", kind="text")], {"city": [f"v{i}" for i in range(20)]}, False),
        ([Field(name="city", kind="list")], {"city": [f"v{i}" for i in range(20)]}, False),
    ],
)
def test_a_column_of_which_nearly_all_values_are_unseen_is_named(
    fields: list[Any], values: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert ROWS_TO_JUDGE == 20
    processor = FlipProcessor.fit({"city": ["Rome", "Oslo"] * 9}, fields)
    for _ in range(2):
        processor.encode(values)
    found = [record.message for record in caplog.records if "never seen in training" in record.message]
    share = {19: "95%", 20: "100%"}.get(sum(str(v).startswith("v") for v in values["city"]))
    expected = (
        f"{share} of the values of 'city' were never seen in training, such as 'v0'; there they looked like 'Rome'."
    )
    assert found == [f"{expected} Is it the same column, and not an identifier of single rows?"] * warned


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        (["83,83"] * 30, "100% of the values of 'price' are not numbers, such as '83,83': they count as missing"),
        (["old", None, ""], "100% of the values of 'price' are not numbers, such as 'old'"),
        ([1.5, "old", None], "50% of"),
        ([None, 7, "99.5", 22.82, ""], ""),
        (["?"] * 9, ""),  # training had such values, and said so
        ([4.5] * 9 + ["old"], ""),
    ],
)
def test_a_number_that_cannot_be_read_is_said_once(
    prices: list[Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    field = Field(name="price", kind="numeric", type="number")
    processor = FlipProcessor.fit({"price": ["?", 22.82, 3.5, 100]}, [field])
    for rows in (prices, [f"{price}!" if said else price for price in prices]):
        processor.encode({"price": rows})
    found = [record.message for record in caplog.records]
    assert len(found) == bool(said)
    if said:
        assert found[0].startswith(said) and found[0].endswith("training saw numbers such as 22.82")


def dict_of_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


@pytest.mark.parametrize("made", [list, dict_of_columns, pd.DataFrame, pa.Table.from_pylist, Dataset.from_list])
def test_shared_fields_are_those_of_each_row(
    made: Callable[[list[dict[str, Any]]], Any], processors_of_all_kinds: dict[tuple[str, int], FlipProcessor]
) -> None:
    processor = processors_of_all_kinds["wordpiece", 128]
    shared = {"history": [8, 9], "price": 2.0, "day": "2024-01-31"}
    candidates = [{"movie": movie, "tags": "old|fun", "title": f"part {movie}"} for movie in (9, 5, 7)]
    whole = processor.encode([row | shared for row in candidates])
    apart = processor.encode(made(candidates), shared=shared)
    for of in (processor.features, processor.sentences):
        for key, expected in of(whole).items():
            assert np.array_equal(of(apart)[key], expected), key


def test_a_processor_without_a_vocabulary_says_how_to_make_one(wordpiece: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"FlipProcessor\.fit"):
        FlipProcessor(wordpiece)


def test_a_processor_without_a_tokenizer_has_no_sentences() -> None:
    processor = FlipProcessor.fit({"title": ["x"]}, ["title"])
    with pytest.raises(ValueError, match="no tokenizer, and so no sentences"):
        processor.sentences(processor.encode({"title": ["x"]}))


def test_a_copied_processor_reads_with_its_own_tokenizer(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"title": ["x"]}, ["title"], wordpiece)
    other = copy.deepcopy(processor)
    assert other.sentence_tokenizer.tokenizer is other.tokenizer is not processor.tokenizer
    assert other({"title": ["y"]})["input_ids"].tolist() == processor({"title": ["y"]})["input_ids"].tolist()


# ---- files


@pytest.mark.parametrize("loader", [FlipProcessor, AutoProcessor])
@pytest.mark.parametrize("family", [*FAMILIES, "merges", None])
def test_a_saved_processor_loads_with_the_same_outputs(
    family: str | None,
    loader: Any,
    tokenizers: dict[str, PreTrainedTokenizerFast],
    crossing: dict[str, FlipProcessor],
    rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    tokenizer = crossing["merges"].tokenizer if family == "merges" else tokenizers[family] if family else None
    saved = FlipProcessor.fit(
        rows[:5], FIELDS, tokenizer, min_count=2, display_names={"gender": "sex"}, max_length=24 if family else None
    )
    saved.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)

    assert isinstance(loaded, FlipProcessor)
    assert loaded.vocabulary == saved.vocabulary
    assert (loaded.display_names, loaded.max_length) == (saved.display_names, saved.max_length)
    expected, encoded = saved(rows), loaded(rows)
    assert (
        set(encoded)
        == set(expected)
        == {"token_field_ids", *saved.model_input_names} - (set() if family else {"token_field_ids"})
    )
    for key in expected:
        assert encoded[key].tolist() == expected[key].tolist(), key


# ---- datasets


@pytest.mark.parametrize("family", [*FAMILIES, None])
def test_a_batch_of_no_rows(processors: dict[tuple[str, int], FlipProcessor], family: str | None) -> None:
    processor = processors[family, 128] if family else FlipProcessor.fit({f: ["a"] for f in FIELDS}, FIELDS)
    encoded = processor({field: [] for field in FIELDS})
    assert encoded["feature_ids"].shape == (0, 3)
    assert all(len(value) == 0 for value in encoded.values())


def test_a_slice_of_a_dataset_keeps_each_rows_values_label_and_number(wordpiece: PreTrainedTokenizerFast) -> None:
    rows = {"title": ["a", "b c", "c d", "a"], "gender": ["male"] * 4, "click": [0, 1, 1, 0]}
    processor = FlipProcessor.fit({"title": ["a", "b c"], "gender": ["male"] * 2}, ["title", "gender"], wordpiece)
    dataset = processor.encode(rows, labels="click")
    assert dataset.has_unseen_value.tolist() == [False, False, True, False]
    assert dataset.lengths.tolist() == [8, 9, 9, 8]  # title is a . gender is male .
    batch = dataset.__getitems__([2, 1])
    assert len(batch) == 2
    assert batch.row_ids.tolist() == [2, 1]
    assert batch.labels is not None
    assert batch.labels.tolist() == [1.0, 1.0]
    texts = wordpiece.batch_decode(processor.sentences(batch)["input_ids"], skip_special_tokens=True)
    assert texts == ["title is c d. gender is male.", "title is b c. gender is male."]
    assert batch[0].row_ids.tolist() == [2]


# ---- labels


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ([0, 1, float("nan")], "a missing value (row 2)"),
        ([0, None, None], "a missing value (row 1)"),
        ([0, 2, 3], "'2' (row 1)"),
        (["yes", "no"], "'yes' (row 0)"),
        ([0.0, 0.5], "'0.5' (row 1)"),
    ],
    ids=str,
)
def test_a_label_that_is_no_click_is_shown_with_its_row(labels: list[Any], shown: str) -> None:
    processor = FlipProcessor(vocabulary=FeatureVocabulary.fit({"title": ["a"]}, ["title"]))
    with pytest.raises(ValueError, match="label column 'click' holds ") as error:
        processor.encode({"title": ["a"] * len(labels), "click": labels}, labels="click")
    assert shown in str(error.value)


# ---- fields inferred from a DataFrame


def a_log(rows: int = 60) -> dict[str, list[Any]]:
    """A column that gives the click away, one with a value a row, and two that can be learned from."""
    clicks = [i % 3 == 0 for i in range(rows)]
    return {
        "row_id": [f"r{i}" for i in range(rows)],
        "city": [f"city {i % 7}" for i in range(rows)],
        "price": [i % 11 + 0.5 for i in range(rows)],
        "bought": ["yes" if click else "no" for click in clicks],
        "clicked": [int(click) for click in clicks],
    }


def test_fit_infers_the_fields_as_train_py_does(caplog: pytest.LogCaptureFixture) -> None:
    pd = pytest.importorskip("pandas")
    frame, log = pd.DataFrame(a_log()), pa.table(a_log())
    processor = FlipProcessor.fit(frame, label="clicked")
    assert processor.fields == ["city", "price"]
    assert (
        "left out: 'row_id' (every row has its own value: it would only be memorised), 'bought' (identical to the label)"
        in (caplog.text)
    )
    recipe = Recipe(dataset_name="a log", output_dir="unused", label_column="clicked", towers="tabular")
    train = RawSplits.of({"train": log})["train"]
    reports = choose_fields(recipe, train, np.array(a_log()["clicked"], np.float32), {})
    assert list(processor.schema) == [report.field for report in reports]


def test_fit_takes_settings_of_single_fields() -> None:
    processor = FlipProcessor.fit(a_log(), {"price": {"kind": "categorical"}}, label="clicked")
    assert [(field.name, field.kind) for field in processor.vocabulary.columns] == [
        ("city", "categorical"),
        ("price", "categorical"),
    ]


def test_a_label_is_never_a_field() -> None:
    with pytest.raises(ValueError, match=r"'clicked' is declared as a field but also left out \(the label\)"):
        FlipProcessor.fit(a_log(), ["city", "clicked"], label="clicked")
    with pytest.raises(ValueError, match="label column 'city' holds 'city 0'"):
        FlipProcessor.fit(a_log(), label="city")
    forgotten = FlipProcessor.fit(a_log())
    with pytest.raises(ValueError, match="the label 'clicked' is a field of the processor: the model would read the"):
        forgotten.encode(a_log(), "clicked")
    with pytest.raises(ValueError, match="no column is left to learn from: 'row_id': every row has its own value"):
        FlipProcessor.fit({key: a_log()[key] for key in ("row_id", "bought", "clicked")}, label="clicked")


def test_rows_are_encoded_without_a_look_at_all_numbers_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be millions of them, and a server encodes each request; only a warning names one."""
    processor = FlipProcessor.fit({"price": [1.5, 2.0, 7.0]}, [{"name": "price", "kind": "numeric"}])
    monkeypatch.setattr(processing_flip, "as_numbers", None)
    assert len(processor.encode([{"price": 3.0}])) == 1
