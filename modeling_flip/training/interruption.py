"""A training that is told to end: it saves a checkpoint first, and goes on from there when it is run again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl

from ..commands import SIGNALS, Terminated

# A launcher passes on what a terminal or a scheduler has sent to its processes as well: signals so close are one.
SECONDS_OF_ONE = 2.0
STEPS_BETWEEN_LOOKS = 10


class Interruption(TrainerCallback):
    """Saves a checkpoint after the step in which a process was told to end, and raises KeyboardInterrupt, or Terminated, once it
    is whole. All processes stop at the same step, whichever of them was told.

    A second signal of the same kind, two seconds after the first or later, does what it would do outside of a training.

    What processes tell each other comes with the numbers of rows that they exchange in each step anyway. Looking at it makes a
    GPU's host wait for it, so there it is looked at every ten steps only.
    """

    def __init__(self) -> None:
        self._heard: dict[int, float] = {}
        self._handlers: dict[int, Any] = {}
        self._shared: torch.Tensor | None = None

    @property
    def is_asked(self) -> bool:
        """Whether this process was told to end."""
        return bool(self._heard)

    def note(self, asked: torch.Tensor) -> None:
        """How many of the processes were told to end, as all of them know it in this step: above 0, or 0."""
        self._shared = asked if self._shared is None else self._shared + asked

    # ---- signals

    def listen(self) -> None:
        """Hear the signals that end a process; those that the parent process set to be ignored stay ignored. Only the main thread
        of a process can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in SIGNALS:
            if signal.getsignal(signum) != signal.SIG_IGN:
                self._handlers[signum] = signal.signal(signum, self._hear)

    def leave(self) -> None:
        """Let signals do what they did before."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._heard.setdefault(signum, now) >= SECONDS_OF_ONE:
            self.leave()
            os.kill(os.getpid(), signum)

    def end(self, told: str) -> NoReturn:
        """Raise what the signal raises outside of a training."""
        is_term = signal.SIGTERM in self._heard or not self._heard  # without one, another process has heard it
        raise (Terminated if is_term else KeyboardInterrupt)(told)

    # ---- training

    def _is_agreed(self) -> bool:
        if PartialState().num_processes == 1:
            return self.is_asked
        return self._shared is not None and self._shared.item() > 0

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if state.epoch.is_integer() or control.should_training_stop:
            return  # on_epoch_end follows
        waits = PartialState().num_processes > 1 and PartialState().device.type != "cpu"
        if not (waits and state.global_step % STEPS_BETWEEN_LOOKS):
            control.should_save |= self._is_agreed()

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save |= self._is_agreed()

    def on_save(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if self._is_agreed():
            PartialState().wait_for_everyone()  # a process that ends early has the launcher end the one that still saves
            stage = Path(args.output_dir).name
            self.end(f"run the same command again to go on from step {state.global_step} of {stage}")


def leave_signals_to_parent(worker: int) -> None:
    """Have a worker that reads rows ignore what a terminal, a launcher or a scheduler sends to all processes: only its parent
    ends it, when the last step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()


@contextmanager
def interruptible(trainer: Any) -> Iterator[None]:
    """While a `FlipTrainer` trains, signals end it with a checkpoint; see `Interruption`."""
    interruption = trainer.interruption = Interruption()
    trainer.add_callback(interruption)  # as the last one: it looks at what the others have decided
    interruption.listen()
    try:
        yield
    finally:
        interruption.leave()
        trainer.remove_callback(interruption)
        trainer.interruption = None
    asked = torch.tensor(float(interruption.is_asked), device=trainer.args.device)
    if trainer.accelerator.reduce(asked, reduction="sum") > 0:  # too late for a checkpoint of its own
        interruption.end("run the same command again to continue from the last checkpoint")
