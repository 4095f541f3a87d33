"""What the demo shows of a row, against scores asked for one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from modeling_flip import CtrPredictionPipeline, Field, FlipConfig, FlipForCTR, FlipProcessor
from modeling_flip.row_reader import read_column
from modeling_flip.serving import explain

FIELDS = ["user_id", "gender", "title"]
ROW = {"user_id": "2", "gender": "male", "title": "Toy Story (1995)"}


@pytest.fixture
def score(
    rows: list[dict[str, Any]], wordpiece: PreTrainedTokenizerFast, tiny_text_model: Path
) -> CtrPredictionPipeline:
    """A random model that tells rows apart, calibrated."""
    processor = FlipProcessor.fit(rows, FIELDS, wordpiece)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [8], "logit_scale": 1.5, "logit_shift": 0.25}
    model = FlipForCTR.from_text_pretrained(tiny_text_model, processor, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return CtrPredictionPipeline(model, processor)


def probability(score: CtrPredictionPipeline, row: dict[str, Any]) -> float:
    return score(row)["probability"]


def test_logits_are_those_of_the_pipeline_in_the_order_of_the_rows(
    score: CtrPredictionPipeline, rows: list[dict[str, Any]]
) -> None:
    found = explain.logits_of(score, rows)
    scored = score(rows, return_towers=True)
    for name, column in {"": "probability", "tabular_": "tabular_probability", "text_": "text_probability"}.items():
        expected = [row[column] for row in scored]
        assert np.ptp(expected) > 0.01  # the order matters
        np.testing.assert_allclose(explain.sigmoid(found[f"{name}logits"]), expected, atol=1e-6)
    alpha = score.model.alpha.item()
    joint = alpha * found["tabular_logits"] + (1 - alpha) * found["text_logits"]
    np.testing.assert_allclose(found["logits"], 1.5 * joint + 0.25, atol=1e-5)


def test_the_pieces_are_the_sentence(score: CtrPredictionPipeline) -> None:
    row = {"user_id": "2", "title": "A <b>film</b>."}
    pieces = explain.sentence_pieces(score.processor, row)
    assert "".join(text for text, _ in pieces) == score.processor.texts([row])[0]
    values = [(field, text) for text, field in pieces if field]
    assert values == [("user_id", "2"), ("gender", "unknown"), ("title", "A <b>film</b>.")]


def test_a_field_adds_what_is_lost_without_it(score: CtrPredictionPipeline) -> None:
    found = explain.attributions(score, ROW)
    assert [a.field for a in found] == FIELDS
    whole = score({**ROW}, return_towers=True)
    for a in found:
        without = score({**ROW, a.field: None}, return_towers=True)
        assert a.probability == pytest.approx(whole["probability"] - without["probability"], abs=1e-6) and a.probability
        for tower, added in {"tabular": a.tabular_logit, "text": a.text_logit}.items():
            p, q = whole[f"{tower}_probability"], without[f"{tower}_probability"]
            assert added == pytest.approx(np.log(p / (1 - p)) - np.log(q / (1 - q)), abs=1e-4)


def test_a_model_with_one_tower_has_no_others() -> None:
    processor = FlipProcessor.fit({"a": ["x", "y"], "b": ["u", "v"]}, ["a", "b"])
    model = FlipForCTR(FlipConfig.from_processor(processor, towers="tabular", hidden_sizes=[4]))
    score = CtrPredictionPipeline(model, processor)
    assert set(explain.logits_of(score, [{"a": "x"}])) == {"logits"}
    assert {(a.tabular_logit, a.text_logit) for a in explain.attributions(score, {"a": "x", "b": "u"})} == {
        (None, None)
    }


def test_values_that_training_never_saw_are_unseen() -> None:
    columns = {
        "city": ["Rome", "new Rome"] * 2,
        "number": [1, 999999999, 7, 8],
        "day": ["2020-01-01", "2020-01-02"] * 2,
        "tags": [["a", "b"], ["c"]] * 2,
        "price": [0.5, 1.5, 2.5, 3.5],
        "hashed": ["p", "q"] * 2,
        "words": ["some words", "and others"] * 2,
    }
    fields = [
        Field(name="city"),
        Field(name="number", type="integer"),
        Field(name="day", type="date"),
        Field(name="tags", kind="list"),
        Field(name="price", kind="numeric"),
        Field(name="hashed", hash_size=4),
        Field(name="words", kind="text"),
    ]
    processor = FlipProcessor.fit(columns, fields)
    row = {"city": "Rome", "number": "7", "day": None, "tags": "a,b", "price": "0.5", "hashed": "p", "words": "hm"}
    found = explain.never_seen(processor, row, list(columns))
    # "new Rome" and 999999999 were seen.
    assert found == {"city": "new new Rome", "number": "-999999999", "day": "2999-12-31", "tags": "new a,b"}
    assert explain.unseen_fields(processor, row) == []
    assert explain.unseen_fields(processor, row | found) == list(found)
    assert list(explain.never_seen(processor, row, ["day"])) == ["day"]


def test_rows_are_put_together_from_values_of_training(rows: list[dict[str, Any]]) -> None:
    processor = FlipProcessor.fit(rows, FIELDS)
    made = explain.sampled_rows(processor, 50)
    assert made == explain.sampled_rows(processor, 50) != explain.sampled_rows(processor, 50, seed=1)
    for field in FIELDS:
        values = [row[field] for row in made]
        assert set(values) <= {str(row[field]) for row in rows if row[field]} and len(set(values)) > 1
    of_titles = explain.known_values(processor.vocabulary, processor.vocabulary.columns[2], 2)
    assert of_titles == ["Toy Story (1995)", "東京物語"]  # three times and twice


def test_the_fields_of_the_item_are_those_that_are_said_to_be() -> None:
    def named(*fields: Field, items: tuple[int, ...] = ()) -> list[str]:
        processor = FlipProcessor.fit({field.name: ["x", "y"] for field in fields}, list(fields))
        config = FlipConfig.from_processor(processor, towers="tabular", hidden_sizes=[4], item_fields=list(items))
        return explain.item_fields(CtrPredictionPipeline(FlipForCTR(config), processor))

    a, b = Field(name="a"), Field(name="b", side="item")
    assert named(a, b) == ["b"]
    assert named(a, b, items=(0,)) == ["a"]
    assert named(a, Field(name="c", side="user")) == ["a"]
    assert named(Field(name="c", side="user"), Field(name="d", side="context")) == ["c", "d"]


@pytest.mark.parametrize(
    ("cell", "separator", "text"),
    [
        *((None, None, ""), (["a", "b"], "|", "a|b"), ([1, 2], None, "1,2"), (1.5, None, "1.5"), ([], None, "")),
        *((["a, b", "é"], None, '["a, b", "é"]'), (["a, b"], "|", "a, b"), (["[live]"], "|", '["[live]"]')),
    ],
)
def test_a_cell_as_text(cell: Any, separator: str | None, text: str) -> None:
    field = Field(name="x", kind="list", separator=separator)
    assert explain.cell_text(cell, field) == text
    assert read_column([text], field).to_pylist() == read_column([cell], field).to_pylist()


def test_members_with_a_comma_are_still_known_in_sampled_rows_and_choices() -> None:
    rows = [{"authors": ["Tolkien, J. R. R."]}, {"authors": ["Le Guin, Ursula"]}]
    processor = FlipProcessor.fit(rows, fields := [Field(name="authors", kind="list")])
    choices = explain.known_values(processor.vocabulary, fields[0], 9)
    assert len(choices) == 2
    for row in (*explain.sampled_rows(processor, 3), *({"authors": choice} for choice in choices)):
        assert explain.unseen_fields(processor, row) == []
