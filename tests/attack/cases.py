"""Attacks on runs, many at a time, and a table of what came of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.attack.forks import in_child, iterate, prepare_to_fork
from tests.attack.moments import Hook
from tests.attack.scenarios import SCENARIOS, Scenario, run, write_inputs
from tests.attack.states import State, copy, watched_run
from tests.attack.verdicts import GOOD, OUTCOMES, SAME, UNCLEAR, Verdict, contents, judge, predict, quietly


@dataclass
class Straight:
    """A run that nothing disturbed, and the states that it went through.

    Attributes:
        name: of the scenario.
        inputs: the folder before it.
        expected: what it leaves; see `contents`.
        states: before each change, and the last one at its end.
        seconds: that it took, unwatched.
    """

    name: str
    inputs: Path
    expected: dict[str, str]
    states: list[State] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.name]


def go_straight(name: str, workplace: Path) -> Straight:
    """Run a scenario twice, watched and not; AssertionError where they do not leave the same."""
    scenario, inputs, place = SCENARIOS[name], workplace / "inputs", workplace / name
    if not inputs.exists():
        in_child(lambda: write_inputs(inputs))
    began = time.monotonic()
    plain = copy(inputs, place / "straight")
    ended = run(plain, scenario)
    seconds = time.monotonic() - began
    assert ended.code == 0, ended
    in_child(lambda: quietly(predict, plain))
    straight = Straight(name, inputs, contents(plain), seconds=seconds)
    watched = copy(inputs, place / "watched")
    ended, straight.states = watched_run(watched, scenario, place / "states")
    straight.states.append(State(copy(watched, place / "states" / "end"), "end", "the end"))
    verdict = judge(ended, watched, straight.expected)
    assert verdict.outcome == SAME, f"two straight runs differ: {verdict}"
    return straight


@dataclass(frozen=True)
class Case:
    """One attack on a run: what is done to it, and in whose row of the table it counts.

    Attributes:
        file: the kind of file that it hits.
        how: what is done.
        straight: the run that it should equal.
        start: the folder that it begins with, copied.
        spoil: is given the copy before anything runs.
        hooks: of runs of the same command, one after another; see `run`. The last one counts.
        but: inputs that are spoiled, and so no part of what is compared.
    """

    file: str
    how: str
    straight: Straight
    start: Path
    spoil: Callable[[Path], Any] | None = None
    hooks: tuple[Callable[[Path], Hook] | None, ...] = (None,)
    but: tuple[str, ...] = ()

    def verdict(self) -> Verdict:
        """What the same command makes of it."""
        with tempfile.TemporaryDirectory(prefix="attack-") as place:
            folder, scenario = copy(self.start, Path(place) / "case"), self.straight.scenario
            if self.spoil is not None:
                self.spoil(folder)
            for hook in self.hooks:
                ended = run(folder, scenario, None if hook is None else hook(folder))
            return judge(ended, folder, self.straight.expected, self.but)


def kind_of(path: str) -> str:
    """The row of the table for a file: without numbers of steps, and all code in one."""
    path = re.sub(r"(checkpoint|push)-\d+", r"\1-N", path)
    return re.sub(r"[^/]+\.py$", "*.py", path)


def step_of(path: str) -> int:
    """The step of the checkpoint that a file is of."""
    return int(path.rpartition("checkpoint-")[2].split("/")[0].split(".")[0])


def spread(cases: Sequence[Case], each: int | None) -> list[Case]:
    """At most `each` of the cases that do the same to files of one kind, from the first to the last; of code, four."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.file, case.how), []).append(case)
    chosen = []
    for (file, _), group in groups.items():
        chosen += evenly(group, min(each or len(group), 4 if file.endswith(".py") else len(group)))
    return chosen


def evenly(cases: Sequence[Case], most: int) -> list[Case]:
    most = min(most, len(cases))
    return [cases[round((i + 0.5) * len(cases) / most - 0.5)] for i in range(most)]


def attack(cases: Sequence[Case], jobs: int) -> list[tuple[Case, Verdict]]:
    """The verdict of each case; those that did not end with the same bits are printed as they come."""
    found: list[tuple[Case, Verdict]] = []
    tasks = [lambda case=case: dataclasses.astuple(case.verdict()) for case in cases]
    for number, result in iterate(tasks, jobs):
        case, verdict = cases[number], Verdict(*(result or (UNCLEAR, "the harness itself failed")))
        found.append((case, verdict))
        if verdict.outcome != SAME:
            print(
                f"{case.straight.name}: {case.how} {case.file} ({case.start.name}): {verdict.outcome}: {verdict.detail}"
            )
        if len(found) % 50 == 0:
            print(f"… {len(found)} of {len(cases)}", flush=True)
    return found


def table(found: Sequence[tuple[Case, Verdict]]) -> str:
    """How often each came of each kind of file, in Markdown."""
    columns = [outcome for outcome in OUTCOMES if any(verdict.outcome == outcome for _, verdict in found)]
    rows: dict[str, Counter[str]] = {}
    for case, verdict in sorted(found, key=lambda pair: pair[0].file):
        rows.setdefault(case.file, Counter())[verdict.outcome] += 1
    rows["all"] = Counter(verdict.outcome for _, verdict in found)
    lines = [["file", "cases", *columns], ["---"] * (2 + len(columns))]
    for file, counts in rows.items():
        lines.append([file, str(counts.total()), *(str(counts[outcome] or "") for outcome in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    attacks: Mapping[str, Callable[[Straight, argparse.Namespace], list[Case]]], parser: argparse.ArgumentParser
) -> None:
    """Do to the runs that the command line names what the attacks say, and print a table of each; exit with 1 where one case was
    not good."""
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], default=list(SCENARIOS), help="default: all")
    parser.add_argument("--attacks", nargs="+", default=list(attacks), choices=list(attacks), help="default: all")
    parser.add_argument("--only", default="", help="files that this regular expression finds; default: all")
    parser.add_argument("--each", type=int, help="at most so many cases of one kind; default: all")
    parser.add_argument("--most", type=int, help="at most so many of an attack on a scenario, evenly; default: all")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cases at a time")
    parser.add_argument("--json", type=Path, help="write every case and what came of it there")
    options = parser.parse_args()
    prepare_to_fork()
    said: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="attack-") as workplace:
        for name in options.scenarios:
            straight = go_straight(name, Path(workplace))
            print(f"{name}: {len(straight.states)} states of a run of {straight.seconds:.1f} s", flush=True)
            others = {kind_of(state.path) for state in straight.states if state.rank and "rng_state" not in state.path}
            if others:
                print(f"{name}: written by other processes than the first too: {', '.join(sorted(others))}", flush=True)
            for kind in options.attacks:
                cases = [case for case in attacks[kind](straight, options) if re.search(options.only, case.file)]
                found = attack(evenly(cases, options.most or len(cases)), options.jobs)
                print(f"\n{name}, {kind}:\n\n{table(found)}\n", flush=True)
                for case, verdict in found:
                    what = {
                        "scenario": name,
                        "attack": kind,
                        "file": case.file,
                        "how": case.how,
                        "state": case.start.name,
                    }
                    said.append(what | dataclasses.asdict(verdict))
                if options.json is not None:
                    options.json.write_text(json.dumps(said, indent=1) + "\n")
            shutil.rmtree(Path(workplace, name))
    if any(case["outcome"] not in GOOD for case in said):
        sys.exit(1)
