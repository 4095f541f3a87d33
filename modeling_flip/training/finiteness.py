"""Losses, gradients and weights that are not finite, found without waiting for a device at each step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor


class FirstBad:
    """The first step with a loss, and the first with a gradient, that is not finite. It is kept on the device, and read when
    something is logged or saved."""

    def __init__(self) -> None:
        self._steps: dict[str, torch.Tensor] = {}

    def note(self, what: str, value: torch.Tensor, step: int) -> None:
        """A scalar of a step that is counted from 1."""
        bad = torch.where(value.isfinite(), torch.inf, float(step))
        self._steps[what] = torch.minimum(self._steps[what], bad) if what in self._steps else bad

    def first(self, of_all: bool = False) -> tuple[str, int, bool] | None:
        """What was not finite first, of two in the same step the one that was noted first, the step, and whether it was noted
        here; None where nothing.

        Args:
            of_all: of all processes, which must all ask: then all stop, or none.
        """
        if not self._steps:
            return None
        plain = [step.full_tensor() if isinstance(step, DTensor) else step for step in self._steps.values()]
        own = torch.stack([step.to(plain[0].device) for step in plain])  # a norm of offloaded gradients is on the CPU
        steps = own.clone()
        if of_all:
            dist.all_reduce(steps, op=dist.ReduceOp.MIN)
        of = dict(zip(self._steps, zip(steps.tolist(), own.tolist(), strict=True), strict=True))
        what, (step, here) = min(of.items(), key=lambda item: item[1][0])
        return None if step == torch.inf else (what, int(step), here == step)


def bad_weight(model: nn.Module) -> str | None:
    """The name of a weight, or of a statistic outside of the text tower, that is not finite. All processes of a model in parts
    must ask."""
    weights: dict[str, torch.Tensor] = dict(model.named_parameters())
    weights |= {k: v for k, v in model.named_buffers() if v.is_floating_point() and "text_tower." not in k}
    parts = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights.values()]
    are_finite = torch.stack([part.detach().isfinite().all() for part in parts]).int()
    if any(isinstance(weight, DTensor) for weight in weights.values()):
        dist.all_reduce(are_finite, op=dist.ReduceOp.MIN)
    return None if are_finite.all() else list(weights)[int(are_finite.argmin())]
