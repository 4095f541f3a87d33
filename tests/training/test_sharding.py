"""What FSDP2 and ZeRO cut up. What they compute is tested with real processes, in tests/distributed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from torch import nn
from transformers import AutoConfig, AutoModel

from modeling_flip import FlipForCTR
from modeling_flip.training.sharding import alpha, layer_classes, units_of_layers
from tests.modeling_flip.flip_models.models import make_model

SIZES = {
    "bert": {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8},
    "distilbert": {"n_layers": 2, "dim": 8, "n_heads": 2, "hidden_dim": 8},
    "gpt2": {"n_layer": 2, "n_embd": 8, "n_head": 2},
    "deberta-v2": {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8},
    "modernbert": {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8},
    "t5": {"num_layers": 2, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8},
}
LAYERS = {
    "bert": "BertLayer",
    "distilbert": "TransformerBlock",
    "gpt2": "GPT2Block",
    "deberta-v2": "DebertaV2Layer",
    "modernbert": "ModernBertEncoderLayer",
    "t5": "T5Block",
}


@pytest.mark.parametrize("family", SIZES)
def test_the_units_are_the_layers_of_any_family(family: str) -> None:
    model = AutoModel.from_config(AutoConfig.for_model(family, vocab_size=20, pad_token_id=0, **SIZES[family]))
    assert layer_classes(model) == {LAYERS[family]}


def test_a_model_without_layers_has_no_units() -> None:
    assert layer_classes(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == set()


@pytest.mark.parametrize(("towers", "layers"), [("both", ["BertLayer"]), ("tabular", [])])
def test_word_embeddings_are_no_unit_while_a_model_is_wrapped(towers: str, layers: list[str]) -> None:
    """accelerate makes a unit of what `get_input_embeddings` gives, whose weight MLM's head could then not read."""
    model = make_model(FlipForCTR, towers=towers)
    embeddings = model.get_input_embeddings()
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=None)
    with units_of_layers(model, SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))):
        assert model.get_input_embeddings() is None
        assert plugin.transformer_cls_names_to_wrap == layers
    assert model.get_input_embeddings() is embeddings


@pytest.mark.parametrize(("towers", "expected"), [("both", 0.75), ("text", 0.0), ("tabular", 1.0)])
def test_alpha_of_a_whole_model(towers: str, expected: float) -> None:
    model = make_model(FlipForCTR, towers=towers)
    if towers == "both":
        model.alpha_logit.data.fill_(math.log(3))
    assert alpha(model) == pytest.approx(expected)
