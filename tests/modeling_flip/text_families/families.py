"""Families of text models, each as a tiny random one, and what their tests share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, set_seed

from modeling_flip import FlipDataCollator, FlipDataset, FlipProcessor

FIELDS = ["user_id", "gender", "title", "genre"]

SIZES: dict[str, Any] = {
    "embedding_size": 4,
    "hidden_sizes": [8],
    "projection_size": 8,
    "attention_size": 3,
    "cin_sizes": [3],
    "num_logarithmic_neurons": 4,
}

LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}

T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}

DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": -1}


@dataclass(frozen=True)
class Family:
    tokenizer: str
    settings: dict[str, Any]
    pooling: str = "cls"
    lacks: tuple[str, ...] = ()  # tokens that the family's tokenizers do not have


FAMILIES = {
    "bert": Family("wordpiece", LAYERS),
    "roberta": Family("byte_level_bpe", LAYERS | {"max_position_embeddings": 140}),
    "distilbert": Family("wordpiece", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}),
    "albert": Family("unigram", LAYERS | {"embedding_size": 12}),
    "electra": Family("wordpiece", LAYERS | {"embedding_size": 12}),
    "mpnet": Family("wordpiece", LAYERS | {"max_position_embeddings": 140}),
    "deberta-v2": Family("unigram", LAYERS | DEBERTA),
    "xlm-roberta": Family("unigram", LAYERS | {"max_position_embeddings": 140}),
    "modernbert": Family("byte_level_bpe", LAYERS | {"cls_token_id": 0, "sep_token_id": 2}),
    "gpt2": Family("byte_level_bpe", {"n_embd": 16, "n_layer": 2, "n_head": 2}, "last", ("mask_token", "pad_token")),
    "llama": Family("byte_level_bpe", LAYERS | {"num_key_value_heads": 1}, "last", ("mask_token", "pad_token")),
    "qwen2": Family("byte_level_bpe", LAYERS | {"num_key_value_heads": 1}, "last", ("mask_token",)),
    "t5": Family("unigram", T5, "mean", ("mask_token",)),
}

# Whose first release has other names for its weights.
RENAMED = {"nomic_bert": Family("wordpiece", LAYERS)}

DECODERS = [name for name, family in FAMILIES.items() if family.pooling == "last"]

LACKING = [name for name, family in FAMILIES.items() if family.lacks]

ALL_FAMILIES = pytest.mark.parametrize("family", FAMILIES)

ONLY_MLM = {"mtm_weight": 0, "icl_weight": 0, "joint_reconstruction": False}

ROWS: dict[str, list[Any]] = {
    "user_id": [0, 1, 2, 3, 4, 0, 1, 2],
    "gender": ["female", "male", None, "female", "male", "female", "male", None],
    "title": ["Toy Story", "Amélie", "東京", "The Usual Suspects: a very long title", "x", "Das Boot", "Amélie", "x"],
    "genre": ["Action", "Drama"] * 4,
    "label": [1, 0, 0, 1, 1, 0, 1, 0],
}


@dataclass
class TextModel:
    folder: Path
    weights: dict[str, torch.Tensor]  # of what is read of it: the encoder, where there is a decoder too
    processor: FlipProcessor
    rows: FlipDataset


def without_tokens(tokenizer: PreTrainedTokenizerFast, names: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A copy whose vocabulary lacks them too: what stands in their place is spelled otherwise."""
    spelled = tokenizer.backend_tokenizer.to_str()
    for i, name in enumerate(names):
        spelled = spelled.replace(f'"{getattr(tokenizer, name)}"', f'"<unused{i}>"')
    kept = {key: value for key, value in tokenizer.special_tokens_map.items() if key not in names}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(spelled), model_max_length=128, **kept)


def make_model(model_class: Any, source: TextModel, **settings: Any) -> Any:
    """In evaluation mode: families have dropout."""
    set_seed(0)
    return model_class.from_text_pretrained(source.folder, source.processor, **SIZES | settings).eval()


def collate(model: Any, processor: FlipProcessor, rows: FlipDataset) -> dict[str, torch.Tensor]:
    return FlipDataCollator(processor, model.inputs)(rows)


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(4)  # dropout
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
