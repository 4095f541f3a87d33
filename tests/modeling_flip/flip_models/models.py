"""Tiny models, their batches, and what it means that two are the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.utils import ModelOutput

from modeling_flip import FlipConfig

NUM_FEATURES, NUM_FIELDS, VOCAB_SIZE, MASK_TOKEN, SIZE, LENGTH = 11, 3, 30, 4, 4, 6
LABELS = torch.tensor([1, 0, 0, 1])
TINY = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}


def make_config(**settings: Any) -> FlipConfig:
    sizes: dict[str, Any] = {
        "num_features": NUM_FEATURES,
        "num_fields": NUM_FIELDS,
        "embedding_size": 4,
        "hidden_sizes": [6, 5],
        "attention_size": 3,
        "projection_size": 6,
    }
    if settings.get("towers") != "tabular":
        sizes["text_config"] = BertConfig(**TINY)
    return FlipConfig(**sizes | settings)


def make_model(model_class: type[PreTrainedModel], **settings: Any) -> Any:
    """In evaluation mode: the text tower has dropout."""
    set_seed(0)
    return model_class(make_config(**settings)).eval()


def make_batch() -> dict[str, torch.Tensor]:
    """What FlipDataCollator gives, labels aside: the second row's sentence is two tokens shorter."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "feature_ids": torch.randint(0, NUM_FEATURES - 1, (SIZE, NUM_FIELDS), generator=generator),
        "input_ids": torch.randint(MASK_TOKEN + 1, VOCAB_SIZE, (SIZE, LENGTH), generator=generator),
        "attention_mask": torch.ones(SIZE, LENGTH, dtype=torch.long),
    }
    batch["input_ids"][1, -2:] = 0
    batch["attention_mask"][1, -2:] = 0
    return batch


def make_pretraining_batch() -> dict[str, torch.Tensor]:
    """What PretrainingCollator gives: tokens 1 and 2 masked, and field 0, or field 1 in the last row."""
    batch = make_batch()
    is_masked_token = torch.zeros(SIZE, LENGTH, dtype=torch.bool)
    is_masked_token[:, 1:3] = True
    is_masked_field = torch.zeros(SIZE, NUM_FIELDS, dtype=torch.bool)
    is_masked_field[:-1, 0] = is_masked_field[-1, 1] = True
    return batch | {
        "masked_input_ids": batch["input_ids"].masked_fill(is_masked_token, MASK_TOKEN),
        "masked_feature_ids": batch["feature_ids"].masked_fill(is_masked_field, NUM_FEATURES - 1),
        "mlm_labels": batch["input_ids"].masked_fill(~is_masked_token, -100),
        "mtm_labels": batch["feature_ids"].masked_fill(~is_masked_field, -100),
        "noise_feature_ids": torch.arange(SIZE * 5).view(SIZE, 1, 5) % NUM_FEATURES,
    }


def padded(batch: dict[str, torch.Tensor], extra: int = 3) -> dict[str, torch.Tensor]:
    """The same rows, their sentences padded to a greater length."""
    filling = {"input_ids": 0, "masked_input_ids": 0, "attention_mask": 0, "mlm_labels": -100}
    return batch | {
        name: torch.nn.functional.pad(batch[name], (0, extra), value=value)
        for name, value in filling.items()
        if name in batch
    }


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def aligned(model: Any) -> Any:
    """A copy: read from a file, tensors lie in memory as they lay there, unaligned, and matrix products of them differ in
    the last bit."""
    return copy.deepcopy(model)


def assert_same_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    weights, other_weights = model.state_dict(), other.state_dict()
    assert weights.keys() == other_weights.keys()
    assert [name for name in weights if not torch.equal(weights[name], other_weights[name])] == []


def assert_same_outputs(output: ModelOutput, other: ModelOutput) -> None:
    assert output.keys() == other.keys()
    assert [name for name in output if not torch.equal(output[name], other[name])] == []
