"""Callbacks of a training: a clock, an end before the end of the schedule, and a log line at each save."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl


class LogAtSave(TrainerCallback):
    """Logs whenever the arguments have a checkpoint saved, so that a training shorter than `logging_steps` has a line too.

    What is to be saved after the last step of an epoch is saved when the epoch has ended: a training that goes on from a
    checkpoint begins with the next epoch, and would leave out an evaluation between the two.
    """

    def __init__(self) -> None:
        self._is_late = False

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        control.should_log |= control.should_save
        self._is_late = control.should_save and (state.epoch.is_integer() or control.should_training_stop)
        control.should_save &= not self._is_late

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save |= self._is_late
        control.should_log |= control.should_save
        self._is_late = False


class StopAfter(TrainerCallback):
    """Ends a training after a number of epochs, which may be a fraction."""

    def __init__(self, epochs: float) -> None:
        self.epochs = epochs

    def is_over(self, epoch: float | None) -> bool:
        return (epoch or 0.0) + 1e-6 >= self.epochs

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop |= self.is_over(state.epoch)


class EpochClock(TrainerCallback):
    """Training speed of each epoch: Trainer's own figure includes evaluations, and epochs that early stopping skipped.

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
        """The median over all epochs; None if none was trained."""
        return float(np.median(self.samples_per_second)) if self.samples_per_second else None
