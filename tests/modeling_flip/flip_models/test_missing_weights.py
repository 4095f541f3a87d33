"""What is said of weights that are missing or left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

from modeling_flip import FlipForCTR, FlipForPreTraining, FlipModel, FlipProcessor
from modeling_flip.text_tower import random_text_towers
from tests.modeling_flip.flip_models.models import TINY, make_config


@pytest.fixture
def flip_folder(tmp_path: Path) -> Path:
    FlipForPreTraining(make_config()).save_pretrained(tmp_path / "pretraining")
    FlipForCTR(make_config()).save_pretrained(tmp_path / "ctr")
    return tmp_path


@pytest.mark.parametrize(
    ("model_class", "folder", "settings"),
    [
        (FlipForCTR, "pretraining", {}),
        (FlipForCTR, "pretraining", {"towers": "tabular"}),
        (FlipForCTR, "ctr", {"towers": "tabular"}),
        (FlipForCTR, "ctr", {"towers": "text"}),
        (FlipModel, "pretraining", {}),
        (FlipModel, "ctr", {"towers": "tabular"}),
    ],
)
def test_heads_and_towers_that_are_meant_to_be_left_behind_are_not_listed(
    model_class: Any, folder: str, settings: dict[str, str], flip_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    model_class.from_pretrained(flip_folder / folder, **settings)
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "is a pretraining checkpoint" not in line] == []
    assert len(told) == (model_class is FlipForCTR and folder == "pretraining")


def test_weights_that_should_be_there_and_those_that_should_not_are_named(
    flip_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = flip_folder / "ctr" / "model.safetensors"
    weights = load_file(file)
    del weights["text_classifier.bias"]
    del weights["flip.text_tower.embeddings.word_embeddings.weight"]
    save_file(weights | {"flip.a_stranger": torch.zeros(1)}, file, metadata={"format": "pt"})
    (flip_folder / "ctr" / "model.sha256").unlink()
    model = FlipForCTR.from_pretrained(flip_folder / "ctr")
    lacking = "flip.text_tower.embeddings.word_embeddings.weight, text_classifier.bias"
    assert f"{flip_folder / 'ctr'} lacks weights, which are random: {lacking}\n" in caplog.text
    assert f"{flip_folder / 'ctr'} has weights that this model does not use: flip.a_stranger\n" in caplog.text
    assert "LOAD REPORT" not in caplog.text
    assert model.untrained_weights == tuple(lacking.split(", "))
    assert random_text_towers(model)


def test_weights_that_are_there_are_kept_where_others_lack(flip_folder: Path) -> None:
    file = flip_folder / "pretraining" / "model.safetensors"
    weights = load_file(file)
    del weights["mtm.hidden.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    (flip_folder / "pretraining" / "model.sha256").unlink()
    model = FlipForPreTraining.from_pretrained(flip_folder / "pretraining")
    assert model.untrained_weights == ("mtm.hidden.bias",)
    loaded = model.state_dict()
    assert [name for name, weight in weights.items() if not torch.equal(loaded[name], weight)] == []


def test_of_a_text_model_only_its_own_missing_weights_are_named(
    tmp_path: Path, wordpiece: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """A masked language model has a head, which is left behind, and no pooler, which is not read."""
    config = BertConfig(**TINY | {"vocab_size": len(wordpiece)})
    BertForMaskedLM(config).save_pretrained(tmp_path)
    processor = FlipProcessor.fit({"city": ["Rome", "Oslo"]}, tokenizer=wordpiece, max_length=16)
    caplog.clear()
    model = FlipForCTR.from_text_pretrained(tmp_path, processor, embedding_size=4, hidden_sizes=[8])
    assert caplog.text == "" and not random_text_towers(model)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    FlipForCTR.from_text_pretrained(tmp_path, processor, embedding_size=4, hidden_sizes=[8])
    (line,) = caplog.messages
    name = "encoder.layer.0.output.dense.weight"
    assert line == f"{tmp_path} lacks weights of its own architecture, which are random: {name}"
