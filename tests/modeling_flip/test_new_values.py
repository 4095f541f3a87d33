"""New values: the regression from words to embeddings, growing models, and scoring what training never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, pipeline

from modeling_flip import CtrPredictionPipeline, FlipForCTR, FlipProcessor, new_values
from modeling_flip.new_values import Ridge, grow, known_values, mean_rows, predicted_rows
from modeling_flip.row_dataset import FlipDataset

FIELDS: list[Any] = [
    "user",
    {"name": "tags", "kind": "list", "separator": "|"},
    "title",
    {"name": "price", "kind": "numeric"},
]
WORDS = ["toy", "story", "usual", "suspects", "wonderful", "life", "das", "boot"]
OLD = {
    "user": [str(i % 5) for i in range(48)],
    "tags": [["a", "a|b", "c"][i % 3] for i in range(48)],
    "title": [f"{WORDS[i % 6]} {WORDS[i // 6 % 6]}" for i in range(48)],
    "price": [float(i % 7) for i in range(48)],
}
NEW = {"user": ["3", "77"], "tags": ["b|d", "a"], "title": ["das boot", "life boot"], "price": [3.5, 99.0]}


@pytest.fixture(scope="module")
def processor(wordpiece: PreTrainedTokenizerFast) -> FlipProcessor:
    return FlipProcessor.fit(OLD, FIELDS, wordpiece)


@pytest.fixture(scope="module")
def later(processor: FlipProcessor) -> FlipProcessor:
    fitted = FlipProcessor.fit(NEW, processor.schema).vocabulary
    return FlipProcessor(processor.tokenizer, processor.vocabulary.grown(fitted))


def make_model(processor: FlipProcessor, text_model: Path, tower: str = "deepfm") -> FlipForCTR:
    """A model with both towers, whose tables are no longer near zero."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [8], "tabular_tower": tower}
    model = FlipForCTR.from_text_pretrained(text_model, processor, **settings).eval()
    with torch.no_grad():
        for table in model.flip.feature_embeddings.tables:
            table.weight.normal_()
    return model


@pytest.fixture
def model(processor: FlipProcessor, tiny_text_model: Path) -> FlipForCTR:
    return make_model(processor, tiny_text_model)


# ---- the regression


def test_a_linear_map_is_found_and_rows_count_by_their_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(200, 5, generator=generator), torch.randn(5, 3, generator=generator)
    y = x @ weight + torch.tensor([1.0, -2.0, 0.5])
    found = Ridge.fit(x, y, torch.ones(200))
    torch.testing.assert_close(found(x), y, atol=1e-3, rtol=1e-3)
    # Two maps, one in each half: the rows' weights decide which is found.
    x = torch.randn(4000, 5, generator=generator).double()
    y = torch.cat([x[:2000], -x[2000:]]) @ weight.double() + 0.1 * torch.randn(4000, 3, generator=generator).double()
    weights = torch.cat([torch.full((2000,), 9.0), torch.ones(2000)]).double()
    ones = torch.cat([x, torch.ones(4000, 1).double()], dim=1)
    exact = torch.linalg.solve(ones.T @ (weights[:, None] * ones), ones.T @ (weights[:, None] * y))
    found = Ridge.fit(x.float(), y.float(), weights.float())
    torch.testing.assert_close(found.weight, exact[:5], atol=0.02, rtol=0.02)
    torch.testing.assert_close(found.bias, exact[5], atol=0.02, rtol=0.02)
    torch.testing.assert_close(exact[:5], 0.8 * weight.double(), atol=0.1, rtol=0.1)


def test_words_that_say_nothing_give_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 20, generator=generator), torch.randn(300, 2, generator=generator)
    assert (Ridge.fit(x, y, torch.ones(300))(x) - y.mean(0)).abs().max() < 0.3
    same = Ridge.fit(torch.ones(6, 3), torch.arange(6.0)[:, None], torch.ones(6))
    assert same(torch.ones(1, 3)).item() == pytest.approx(2.5)


# ---- growing


def test_known_features_keep_their_bits_and_new_ones_have_their_own(
    model: FlipForCTR, processor: FlipProcessor, later: FlipProcessor
) -> None:
    features, old, new = model.flip.feature_embeddings, processor.vocabulary, later.vocabulary
    before = features.rows(torch.arange(old.num_features)).clone()
    predicted = predicted_rows(model, processor, np.array([2, 0]), pa.array(["das boot", "77"]))
    grow(model, processor, later, teacher=model)
    assert new.num_features == old.num_features + 4  # user 77, tag d, two titles
    assert torch.equal(features.rows(torch.from_numpy(old.features_in(new))), before)
    later.check_belongs_to(model.config)
    titles = later.encode(NEW).feature_ids()
    torch.testing.assert_close(features.rows(torch.tensor([titles[0, 2], titles[1, 0]])), predicted)
    assert len({*titles[:, 2], *titles[:, 0]}) == 4
    assert titles[:, 3].tolist() == [processor.encode(NEW).feature_ids()[row, 3] + 3 + 1 for row in range(2)]


@pytest.mark.parametrize("tower", ["deepfm", "dcnv2"])
def test_old_rows_score_the_same_and_a_grown_model_is_saved_like_any_other(
    tower: str, processor: FlipProcessor, later: FlipProcessor, tiny_text_model: Path, tmp_path: Path
) -> None:
    model = make_model(processor, tiny_text_model, tower)
    old = [row["probability"] for row in CtrPredictionPipeline(model, processor)(pa.table(OLD))]
    grow(model, processor, later, teacher=model)
    assert [row["probability"] for row in CtrPredictionPipeline(model, later)(pa.table(OLD))] == old
    model.save_pretrained(tmp_path, processor=later)
    again = FlipForCTR.from_pretrained(tmp_path)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    assert load_file(tmp_path / "model.safetensors")["flip.feature_embeddings.embedding.weight"].shape[0] == (
        later.vocabulary.num_features
    )
    assert [row["probability"] for row in CtrPredictionPipeline(again)(pa.table(OLD))] == old
    assert FlipProcessor.from_pretrained(tmp_path).vocabulary == later.vocabulary


def test_without_a_text_tower_new_values_start_from_their_fields_mean(
    processor: FlipProcessor, later: FlipProcessor, tiny_text_model: Path
) -> None:
    model = make_model(processor, tiny_text_model)
    features = model.flip.feature_embeddings
    users = torch.from_numpy(processor.vocabulary.value_features[known_values(processor.vocabulary, 0)])
    mean = features.rows(users.long()).mean(0)
    grow(model, processor, later)
    torch.testing.assert_close(features.rows(torch.tensor([later.encode(NEW).feature_ids()[1, 0]]))[0], mean)


def test_a_text_tower_alone_has_nothing_to_grow_but_its_configuration(
    processor: FlipProcessor, later: FlipProcessor, tiny_text_model: Path
) -> None:
    settings: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [8], "towers": "text"}
    model = FlipForCTR.from_text_pretrained(tiny_text_model, processor, **settings)
    grow(model, processor, later)
    later.check_belongs_to(model.config)


# ---- predicting, and scoring


def test_a_value_is_predicted_from_words_alone(model: FlipForCTR, processor: FlipProcessor) -> None:
    """What it is asked with changes nothing; words that are alike get rows that are."""
    columns, texts = np.array([2, 0, 2, 2]), pa.array(["das boot", "77", "das boot", "Das Boot"])
    rows = predicted_rows(model, processor, columns, texts)
    torch.testing.assert_close(rows[0], rows[2])
    torch.testing.assert_close(rows[0], rows[3])  # the tokenizer reads no capitals
    torch.testing.assert_close(rows[:1], predicted_rows(model, processor, columns[:1], texts[:1]), atol=1e-5, rtol=1e-4)
    assert rows.shape == (4, 5)
    assert not torch.allclose(rows[0], mean_rows(model, processor, np.array([2]))[0])


def test_cold_start_scores_a_new_value_as_the_grown_model_does_and_known_ones_as_ever(
    processor: FlipProcessor, later: FlipProcessor, tiny_text_model: Path
) -> None:
    model = make_model(processor, tiny_text_model)
    new = pa.table(NEW | {"tags": ["b", "a"]})
    plain = CtrPredictionPipeline(model, processor)
    text = pipeline("ctr-prediction", model=model, processor=processor, cold_start="text", device=-1)
    assert text(pa.table(OLD)) == plain(pa.table(OLD))
    warm, cold = plain(new), text(new)
    assert all(abs(a["probability"] - b["probability"]) > 1e-4 for a, b in zip(warm, cold, strict=True))
    assert plain(new) == warm  # the model is as it was
    assert text(new, batch_size=1)[1]["probability"] == pytest.approx(cold[1]["probability"], abs=1e-6)
    grown = make_model(processor, tiny_text_model)
    grow(grown, processor, later, teacher=grown)
    expected = [row["probability"] for row in CtrPredictionPipeline(grown, later)(new)]
    assert [row["probability"] for row in cold] == pytest.approx(expected, abs=1e-5)


def test_cold_start_asks_only_for_categories_that_training_never_saw(processor: FlipProcessor) -> None:
    rows: FlipDataset = processor.encode(NEW)
    unseen = rows.local.unseen_categories(processor.vocabulary)
    assert rows.local.texts.take(pa.array(unseen)).to_pylist() == ["77", "das boot", "life boot"]


@pytest.mark.parametrize(
    ("towers", "start", "message"),
    [
        ("tabular", "text", "cold_start='text' needs a FlipForCTR with both towers, .* config.towers 'tabular'"),
        ("both", "mean", "cold_start is 'mean'; it must be 'text'"),
    ],
)
def test_cold_start_needs_a_text_tower(
    towers: str, start: str, message: str, processor: FlipProcessor, tiny_text_model: Path
) -> None:
    settings: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [8], "towers": towers}
    model = FlipForCTR.from_text_pretrained(tiny_text_model, processor, **settings)
    with pytest.raises(ValueError, match=message):
        CtrPredictionPipeline(model, processor, cold_start=start)


def test_what_is_fitted_is_not_looked_for_again(
    model: FlipForCTR, processor: FlipProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server would sort all values of a field in each request."""
    columns, texts, fitted = np.array([2, 0], np.int32), pa.array(["das boot", "77"]), dict[int, Ridge]()
    rows = predicted_rows(model, processor, columns, texts, fitted)
    monkeypatch.setattr(new_values, "known_values", None)
    assert torch.equal(predicted_rows(model, processor, columns, texts, fitted), rows)
