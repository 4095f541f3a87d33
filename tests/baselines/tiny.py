"""Tiny baselines, the rows that they read, and what tests of several of them look with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from modeling_flip import CTRBertForCTR, MoRecForCTR, P5ForCTR

# What the fixtures `make` and `collate` are.
Make = Callable[..., Any]
Collate = Callable[..., dict[str, torch.Tensor]]

# The item's fields do not stand together, nor last.
FIELDS = ["user_id", "title", "gender", "genre"]
USER_FIELDS, ITEM_FIELDS = [0, 2], [1, 3]
SIZES: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [16, 12], "attention_size": 3, "cin_sizes": [3]}
MODELS = {"ctr_bert": CTRBertForCTR, "morec": MoRecForCTR, "p5": P5ForCTR}
ALL_MODELS = pytest.mark.parametrize("name", MODELS)
ITEMS = [("Toy Story (1995)", "Action"), ("東京物語", "Drama"), ("It's a Wonderful Life", "Drama"), ("x", None)]
USERS = [(1, "female"), (2, "male"), (3, None)]
ROWS: list[dict[str, Any]] = [  # users and items come back, pairs do not
    {"user_id": USERS[u][0], "gender": USERS[u][1], "title": ITEMS[i][0], "genre": ITEMS[i][1], "label": label}
    for u, i, label in [(0, 0, 1), (1, 0, 0), (0, 1, 0), (2, 3, 1), (1, 2, 1), (0, 2, 0), (2, 0, 1)]
]
UNKNOWN: list[dict[str, Any]] = [
    {"user_id": 77, "gender": "?", "title": "never seen", "genre": "Western"},
    {"user_id": None, "gender": None, "title": None, "genre": None},
]


def save_lively(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """With weights larger than at the start, where all sentences are nearly alike."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def padded(batch: dict[str, torch.Tensor], extra: int = 4) -> dict[str, torch.Tensor]:
    """The same batch, its sentences padded to a greater length, with a token that is not padding's."""
    fillings = {name: 7 if name.endswith("input_ids") else 0 for name in batch if name.endswith(("_ids", "_mask"))}
    fillings.pop("feature_ids", None)
    pad = torch.nn.functional.pad
    return batch | {name: pad(batch[name], (0, extra), value=value) for name, value in fillings.items()}


def sentence(tower: Any, tokens: torch.Tensor, mask: torch.Tensor, pooling: str) -> np.ndarray:
    """One sentence, without padding, through the text tower."""
    tokens = tokens[mask == 1]
    hidden = tower(input_ids=tokens[None], attention_mask=torch.ones_like(tokens)[None]).last_hidden_state[0]
    hidden = hidden.detach().double().numpy()
    return {"cls": hidden[0], "last": hidden[-1], "mean": sum(hidden) / len(hidden)}[pooling]


def weights_of(model: Any) -> dict[str, np.ndarray]:
    return {name: weight.double().numpy() for name, weight in model.state_dict().items()}


@contextmanager
def counting_rows(tower: torch.nn.Module) -> Iterator[list[int]]:
    """How many sentences each pass of the text tower reads."""
    counts: list[int] = []
    hook = tower.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield counts
    hook.remove()
