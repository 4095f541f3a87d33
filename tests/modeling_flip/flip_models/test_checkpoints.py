"""Checkpoints come back as they were saved, whole or one tower of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)

from modeling_flip import FlipForCTR, FlipForPreTraining, FlipModel
from tests.modeling_flip.flip_models.models import (
    aligned,
    assert_same_outputs,
    assert_same_weights,
    make_batch,
    make_model,
    make_pretraining_batch,
    saved,
)


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    """As it may be, where it is most often zero."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # which fills it
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("towers", ["both", "tabular", "text"])
@pytest.mark.parametrize("load", [FlipForCTR, AutoModelForSequenceClassification])
def test_a_click_model_comes_back_to_the_bit(towers: str, load: Any, tmp_path: Path) -> None:
    model = make_model(FlipForCTR, towers=towers)
    loaded = load.from_pretrained(saved(model, tmp_path))
    assert type(loaded) is FlipForCTR
    assert_same_weights(loaded, model)
    assert_same_outputs(aligned(loaded)(**make_batch()), model(**make_batch()))


@pytest.mark.parametrize("load", [FlipForPreTraining, AutoModelForPreTraining])
def test_a_pretraining_model_comes_back_to_the_bit(load: Any, tmp_path: Path) -> None:
    model = make_model(FlipForPreTraining)
    loaded = load.from_pretrained(saved(model, tmp_path))
    assert type(loaded) is FlipForPreTraining
    assert_same_weights(loaded, model)
    assert_same_outputs(aligned(loaded)(**make_pretraining_batch()), model(**make_pretraining_batch()))


@pytest.mark.parametrize("model_class", [FlipForCTR, FlipForPreTraining, FlipModel])
def test_the_towers_of_any_checkpoint_load_alone(model_class: Any, tmp_path: Path) -> None:
    model = make_model(model_class)
    loaded = AutoModel.from_pretrained(saved(model, tmp_path))
    assert type(loaded) is FlipModel
    assert_same_weights(loaded, model.base_model)


def test_alpha_is_saved(tmp_path: Path) -> None:
    model = make_model(FlipForCTR)
    model.alpha_logit.data.fill_(-1.25)
    assert FlipForCTR.from_pretrained(saved(model, tmp_path)).alpha_logit.item() == -1.25
    # FSDP needs a vector, older code a scalar; Trainer reads the file with torch alone.
    in_file = load_file(tmp_path / "model.safetensors")
    assert model.alpha_logit.shape == (1,) and in_file["alpha_logit"].shape == ()
    model.alpha_logit.data.fill_(0.0)
    model.load_state_dict(in_file)
    assert model.alpha_logit.tolist() == [-1.25]


@pytest.mark.parametrize(
    ("towers", "fresh"),
    [
        ("both", {"alpha_logit", "text_classifier.weight", "text_classifier.bias"}),
        ("tabular", set()),
        ("text", {"text_classifier.weight", "text_classifier.bias"}),
    ],
)
def test_a_click_model_takes_the_towers_of_a_pretraining_checkpoint_and_says_its_heads_are_fresh(
    towers: str, fresh: set[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrained = make_model(FlipForPreTraining)
    with caplog.at_level(logging.WARNING):
        model, report = FlipForCTR.from_pretrained(saved(pretrained, tmp_path), towers=towers, output_loading_info=True)
    assert f"pretraining checkpoint: its towers ({towers}) are loaded" in caplog.text
    assert "the click heads are untrained; finetune before scoring" in caplog.text
    assert report["missing_keys"] == fresh
    assert not report["unexpected_keys"]
    for name, weight in model.flip.state_dict().items():
        assert torch.equal(weight, pretrained.flip.state_dict()[name])


@pytest.mark.usefixtures("uninitialised_memory_is_nan")
def test_weights_that_a_checkpoint_lacks_start_as_in_a_fresh_model(tmp_path: Path) -> None:
    pretrained, finetuned = make_model(FlipForPreTraining), make_model(FlipForCTR)
    scorer = FlipForCTR.from_pretrained(saved(pretrained, tmp_path / "pretrained"))
    assert all(parameter.isfinite().all() for parameter in scorer.parameters())
    assert scorer.alpha.item() == 0.5
    assert scorer.text_classifier.weight.any()
    assert scorer.text_classifier.bias.item() == 0
    aligner = FlipForPreTraining.from_pretrained(saved(finetuned, tmp_path / "finetuned"))
    assert_same_weights(aligner.flip, finetuned.flip)
    assert all(parameter.isfinite().all() for parameter in aligner.parameters())
    assert not aligner.mlm.bias.any()
    assert all(field.any() for field in aligner.mtm.output.weight)


def test_a_click_checkpoint_loads_without_a_warning_and_without_keys_left_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = FlipForCTR.from_pretrained(saved(make_model(FlipForPreTraining), tmp_path / "pretrained"))
    model.save_pretrained(tmp_path / "finetuned")
    caplog.clear()
    for towers in ("both", "tabular", "text"):
        _, report = FlipForCTR.from_pretrained(tmp_path / "finetuned", towers=towers, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
    assert caplog.text == ""


@pytest.mark.parametrize(("towers", "other"), [("tabular", "text"), ("text", "tabular")])
def test_one_tower_of_a_checkpoint_of_both_scores_as_it_did_beside_the_other(
    towers: str, other: str, tmp_path: Path
) -> None:
    model, batch = make_model(FlipForCTR), make_batch()
    alone = FlipForCTR.from_pretrained(saved(model, tmp_path / "both"), towers=towers)
    assert not any(other in name or name == "alpha_logit" for name, _ in alone.named_parameters())
    expected = model(**batch)[f"{towers}_logits"]
    assert torch.equal(aligned(alone)(**batch).logits, expected)
    again = FlipForCTR.from_pretrained(saved(alone, tmp_path / "alone"))
    assert again.config.towers == towers
    assert torch.equal(aligned(again)(**batch).logits, expected)
