"""A batch that is computed in parts, with the gradient of the whole: for batches that a device cannot hold.

All losses but the contrastive one are means over rows. ICL compares each row with all others, so its gradient takes two passes
(GradCache: Gao et al., RepL4NLP '21): first the projections of all parts, without gradients; then the loss of them all, and its
gradient with respect to each projection; then each part again, its share of that gradient going on from its projections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import get_device_states, set_device_states

from ..modeling_flip import FlipForPreTraining

Batch = Mapping[str, torch.Tensor]


def split(batch: Batch, tokens: int) -> list[dict[str, torch.Tensor]]:
    """A batch of sentences (B, L) in parts of so many tokens, padding included; at least a row each, and one part where there
    are no rows.

    Example:

        >>> [len(part["input_ids"]) for part in split({"input_ids": torch.zeros(5, 10)}, 25)]
        [2, 2, 1]
    """
    rows, length = batch["input_ids"].shape
    size = max(1, tokens // length)
    return [
        {name: value[first : first + size] for name, value in batch.items()} for first in range(0, max(1, rows), size)
    ]


def backward(
    model: nn.Module,
    parts: list[dict[str, torch.Tensor]],
    weight: torch.Tensor | float,
    accelerator: Accelerator,
    context: Callable[[], AbstractContextManager[Any]],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Add the gradient of weight · loss, of a batch in parts, to that of the model's parameters.

    Args:
        model: as accelerate has prepared it.
        parts: as `split` makes them, one or more.
        weight: of the batch.
        context: in which losses are computed.

    Returns:
        the loss of the batch, and its components by name, without the weight.
    """
    own = accelerator.unwrap_model(model)
    rows = sum(len(part["input_ids"]) for part in parts)
    contrasted = None
    if isinstance(own, FlipForPreTraining) and own.config.icl_weight:
        contrasted = contrast(own, parts, weight, accelerator)
    total: dict[str, torch.Tensor] = {}
    for i, part in enumerate(parts):
        share, more = len(part["input_ids"]) / max(1, rows), dict[str, Any]()
        if contrasted is not None:
            contrasted.states[i].restore()
            more["projection_gradients"] = tuple(of / (share * weight) for of in contrasted.gradients[i])
        is_last = i == len(parts) - 1
        with nullcontext() if is_last else accelerator.no_sync(model):
            with context():
                output = model(**part, **more)
            accelerator.backward(output.loss * share * weight)
        for name, value in output.items():
            if name.endswith("loss") and value is not None:
                total[name] = total.get(name, 0) + share * value.detach()
    if contrasted is not None:
        total["loss"] = total["loss"] + own.config.icl_weight * (contrasted.loss - total["icl_loss"])
        total["icl_loss"] = contrasted.loss
    return total.pop("loss"), total


@dataclass(frozen=True)
class Contrasted:
    """ICL of a batch in parts; of each part the state of the random numbers before it, and the gradient of weight · ICL with
    respect to its projections."""

    loss: torch.Tensor
    states: list[RandomState]
    gradients: list[tuple[torch.Tensor, torch.Tensor]]


def contrast(
    model: FlipForPreTraining,
    parts: list[dict[str, torch.Tensor]],
    weight: torch.Tensor | float,
    accelerator: Accelerator,
) -> Contrasted:
    states, projected = [], []
    with torch.no_grad(), accelerator.autocast():
        for part in parts:
            states.append(RandomState(part))
            projected.append(model.projections(**part))
    sentences, tables = (torch.cat(of).requires_grad_() for of in zip(*projected, strict=True))
    loss = model.icl.contrast(sentences, tables)
    (loss * weight).backward()
    sizes = [len(part["input_ids"]) for part in parts]
    assert sentences.grad is not None and tables.grad is not None
    gradients = list(zip(sentences.grad.split(sizes), tables.grad.split(sizes), strict=True))
    return Contrasted(loss.detach(), states, gradients)


class RandomState:
    """The state of torch's random numbers, on the CPU and where a batch is, to draw dropout's again."""

    def __init__(self, batch: Batch):
        self.cpu, self.devices = torch.get_rng_state(), get_device_states(*batch.values())

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        set_device_states(*self.devices)
