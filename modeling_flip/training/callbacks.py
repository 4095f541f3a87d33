"""What runs beside a training: a clock, and a line of the log at each save."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl


class LogAtSave(TrainerCallback):
    """Logs whenever a checkpoint is saved: the losses since the last line are in no checkpoint, and a resumed run would log
    others."""

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        control.should_log |= control.should_save

    on_epoch_end = on_step_end


class EpochClock(TrainerCallback):
    """Training speed of each epoch: Trainer's own figure counts the epochs that early stopping left out, and evaluations.

    Attributes:
        samples_per_second: of each epoch that this process has trained.
    """

    def __init__(self) -> None:
        self.samples_per_second: list[float] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first_step = time.perf_counter(), state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        samples = (state.global_step - self._first_step) * args.train_batch_size * args.gradient_accumulation_steps
        self.samples_per_second.append(samples * args.world_size / (time.perf_counter() - self._began))

    @property
    def median(self) -> float | None:
        """Of all epochs; None where none was trained."""
        return float(np.median(self.samples_per_second)) if self.samples_per_second else None
