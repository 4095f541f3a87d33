"""LoRA (Hu et al., ICLR '22): the text tower's own weights stand still, and small matrices beside its linear layers are trained.

peft makes them. They are there while a training runs, and its checkpoints hold them instead of the text tower; at its end they
are merged into the weights, so that the model is an ordinary one again, which neither serving nor another stage can tell apart.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..commands import installs
from ..modeling_flip import FlipPreTrainedModel


@dataclass(frozen=True)
class LoraSettings:
    """
    Args:
        r: rank of the matrices.
        alpha: their product counts alpha / r times; by default twice.
        dropout: of what they read.
    """

    r: int = 8
    alpha: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"lora.r is {self.r!r}; it must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout!r}; it must be at least 0 and below 1")


def lora_settings(given: Mapping[str, Any]) -> LoraSettings:
    """
    Raises:
        ValueError: a key or value cannot be.
        ImportError: peft is not installed.

    Example:
        >>> lora_settings({"r": 16}).alpha is None
        True
    """
    if strangers := [key for key in given if key not in LoraSettings.__dataclass_fields__]:
        raise ValueError(f"lora has no key {strangers[0]!r}; it takes {', '.join(LoraSettings.__dataclass_fields__)}")
    settings = LoraSettings(**given)
    if importlib.util.find_spec("peft") is None:
        raise ImportError(f"lora needs peft: {installs('lora')}")
    return settings


@contextmanager
def adapters(model: FlipPreTrainedModel, settings: LoraSettings) -> Iterator[None]:
    """Within, each linear layer of a model's text towers has an adapter, and of these towers only the adapters are trained.
    Afterwards they are merged: the model has the modules it had, and computes the same but for the last digits."""
    from peft import LoraConfig, LoraModel

    alpha = 2 * settings.r if settings.alpha is None else settings.alpha
    given: dict[str, Any] = {"r": settings.r, "lora_alpha": alpha, "lora_dropout": settings.dropout}
    towers = model.fresh_text_towers()
    # All linear layers: of whatever family, without a list of names for each.
    adapted = [LoraModel(tower, LoraConfig(**given, target_modules="all-linear"), "default") for tower in towers]
    try:
        yield
    finally:
        for tower, one in zip(towers, adapted, strict=True):
            one.merge_and_unload()
            tower.requires_grad_(True)


def without_frozen(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a model's weights that are trained, and its buffers."""
    frozen = frozen_names(model)
    return {name: weight for name, weight in weights.items() if name not in frozen}


def frozen_names(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if not weight.requires_grad}
