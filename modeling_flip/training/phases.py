"""What a run is doing, and how long each part of it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState


@contextmanager
def phase(name: str, wall_time: dict[str, float] | None = None) -> Iterator[None]:
    """Show a phase of a run on the main process: its name while it runs (on a terminal), and with its time when it has ended,
    such as `encode … 3.2 s`. The seconds also go to `wall_time`, as `encode_seconds`."""
    is_shown, started = PartialState().is_main_process, time.perf_counter()
    if is_shown and sys.stderr.isatty():
        print(f"{name} …", end="\r", file=sys.stderr, flush=True)  # whatever comes next is written over it
    yield
    seconds = time.perf_counter() - started
    if wall_time is not None:
        wall_time[f"{name}_seconds"] = seconds
    if is_shown:
        print(f"{name} … {seconds:.1f} s", file=sys.stderr, flush=True)
