"""Kill a run at every file that it writes, or damage a file of an interrupted one, and run it again: the same bits in the end,
or one clear line.

python -m tests.attack.kills [one two one-steps two-steps stops] [--attacks kills damages] [--each N]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.attack.cases import Case, Straight, kind_of, main, spread, step_of
from tests.attack.damage import damages
from tests.attack.moments import Hook
from tests.attack.states import changed_files


def kills(straight: Straight, options: argparse.Namespace) -> list[Case]:
    """Kills before each change, and in the middle of each file: when it is opened, and half-way. Then some at random."""
    cases, states = [], straight.states
    if straight.name == "stops":  # what comes before the stop is in the other scenarios
        last = max(step_of(state.path) for state in states if "finetuning/checkpoint-" in state.path)
        states = states[next(i for i, state in enumerate(states) if f"finetuning/checkpoint-{last}" in state.path) :]
    for state, after in zip(states, [*states[1:], None], strict=True):
        cases.append(Case(kind_of(state.path), "killed before", straight, state.folder))
        if after is None or state.event == "os.rename":  # what is renamed was whole before
            continue
        for file in changed_files(state.folder, after.folder):
            half: Callable[[Path], None] = partial(write_half, file=file, whole=after.folder / file)
            cases.append(Case(kind_of(file), "killed once opened", straight, state.folder, partial(empty, file=file)))
            cases.append(Case(kind_of(file), "killed half-way", straight, state.folder, half))
    return [*spread(cases, options.each), *at_random(straight, options.random)]


def empty(folder: Path, file: str) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(b"")


def write_half(folder: Path, file: str, whole: Path) -> None:
    """Of what the file was to hold, the first half."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    data = whole.read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])


def at_random(straight: Straight, count: int) -> list[Case]:
    """Real kills, one, two or three in a row: a process dies at a random moment, and the others are killed with it."""
    drawn = random.Random(0)
    cases = []
    for number in range(count):
        times = 1 + number % 3
        hooks: list[Callable[[Path], Hook] | None] = [None]
        for _ in range(times):  # the later ones soon, or they come after the end
            rank = drawn.randrange(straight.scenario.processes)
            changes = drawn.randrange(sum(state.rank == rank for state in straight.states) // times)
            hooks.insert(-1, partial(dying, changes, drawn.uniform(0, 0.3), rank))
        how = ("once", "twice", "three times")[times - 1]
        cases.append(Case("(at random)", f"killed {how}", straight, straight.inputs, hooks=tuple(hooks)))
    return cases


def dying(changes: int, seconds: float, rank: int, folder: Path) -> Hook:
    """Kills the process of a rank so many seconds after it has made so many changes in the folder."""
    seen = 0

    def hook(event: str, path: str) -> None:
        nonlocal seen
        seen += int(os.environ.get("RANK", 0)) == rank
        if seen == changes + 1:
            seen += 1
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))  # SIGALRM ends a process as SIGKILL does

    return hook


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--random", type=int, default=24, help="kills at random moments, of a scenario")
    main({"kills": kills, "damages": damages}, arguments)
