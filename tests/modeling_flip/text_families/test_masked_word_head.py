"""Without joint reconstruction: the head for masked words that a text model brings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, set_seed

from modeling_flip import FlipForCTR, FlipForPreTraining, PretrainingCollator
from modeling_flip.text_tower import masked_lm_head
from tests.modeling_flip.text_families.families import FAMILIES, LACKING, ONLY_MLM, SIZES, TextModel, make_model


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.lacks])
def test_without_joint_reconstruction_a_family_starts_from_its_head_for_masked_words(
    text_model: Callable[[str], TextModel], family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = text_model(family)
    set_seed(3)
    theirs = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source.folder)).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    batch = PretrainingCollator(source.processor)(source.rows)
    for folder, is_theirs in ((tmp_path, True), (source.folder, False)):
        model = FlipForPreTraining.from_text_pretrained(folder, source.processor, **SIZES, **ONLY_MLM).eval()
        assert ("has no head for masked words that fits" in caplog.text) != is_theirs
        loss = model(**batch).mlm_loss
        logits = theirs(batch["masked_input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = torch.stack(
            [
                torch.nn.functional.cross_entropy(row, labels)
                for row, labels in zip(logits, batch["mlm_labels"], strict=True)
            ]
        ).mean()
        assert torch.isclose(loss, expected, rtol=1e-3) == is_theirs
    assert "corrupted" not in caplog.text  # as transformers says where a head is missing


@pytest.mark.parametrize("change", ["another activation", "untied", "cut"])
def test_a_head_for_masked_words_that_computes_something_else_is_not_taken(
    text_model: Callable[[str], TextModel], change: str, tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(text_model("bert").folder)
    if change == "another activation":
        config.hidden_act = "relu"
    config.tie_word_embeddings = change != "untied"
    model = AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(tmp_path)
    assert (masked_lm_head(tmp_path) == {}) == (change != "cut")
    if change == "cut":
        weights = load_file(tmp_path / "model.safetensors")
        del weights["cls.predictions.transform.LayerNorm.weight"]
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        assert masked_lm_head(tmp_path) == {}


@pytest.mark.parametrize("family", LACKING)
def test_a_text_model_that_predicts_no_masked_words_trains_a_fresh_head(
    text_model: Callable[[str], TextModel], family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(FlipForPreTraining, text_model(family), **ONLY_MLM)
    assert "has no head for masked words that fits: a fresh one is trained" in caplog.text
    assert model.mlm.norm.weight.unique().tolist() == [1]


def test_a_head_for_masked_words_from_before_it_had_a_layer_norm_still_loads(
    text_model: Callable[[str], TextModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = text_model("bert")
    saved = make_model(FlipForPreTraining, source, **ONLY_MLM)
    saved.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: weight for name, weight in weights.items() if not name.startswith("mlm.norm.")}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "model.sha256").unlink()
    caplog.clear()
    model = FlipForPreTraining.from_pretrained(tmp_path).eval()
    assert "lacks weights, which are random: mlm.norm.bias, mlm.norm.weight" in caplog.text
    batch = PretrainingCollator(source.processor)(source.rows)
    assert torch.isclose(model(**batch).loss, saved(**batch).loss)  # a fresh norm's are the same
    caplog.clear()
    FlipForCTR.from_pretrained(tmp_path, towers="text")
    assert "random" not in caplog.text
