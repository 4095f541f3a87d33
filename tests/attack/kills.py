"""Kill a run at every file that it writes, or damage a file of an interrupted one, and run it again: the same bits in the end,
or one clear line.

python -m tests.attack.kills [one two one-steps two-steps stops] [--attacks kills damages] [--each N]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.attack.damage import damages
from tests.attack.runs import Case, Straight, changed_files, kind_of, main, spread, step_of


def kills(straight: Straight, options: argparse.Namespace) -> list[Case]:
    """Kills before each change, and in the middle of each file: when it is opened, and half-way. Then some by the clock."""
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
    return [*spread(cases, options.each), *by_the_clock(straight, options.by_clock)]


def empty(folder: Path, file: str) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(b"")


def write_half(folder: Path, file: str, whole: Path) -> None:
    """Of what the file was to hold, the first half."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    data = whole.read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])


def by_the_clock(straight: Straight, count: int) -> list[Case]:
    """Real kills of all processes at random moments, one or two or three in a row."""
    drawn = random.Random(0)
    cases = []
    for number in range(count):
        kills = tuple(drawn.uniform(0.2, 1) * straight.seconds for _ in range(1 + number % 3))
        times = ("once", "twice", "three times")[number % 3]
        cases.append(Case("(by the clock)", f"killed {times}", straight, straight.inputs, kills=kills))
    return cases


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--by_clock", type=int, default=24, help="kills at random moments, of a scenario")
    main({"kills": kills, "damages": damages}, arguments)
