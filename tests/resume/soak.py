"""Stop runs at random steps and run them again: the same bits in the end.

python -m tests.resume.soak [--kills N] [--seed N] [--runs NAME …]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.attack.forks import in_child, iterate, prepare_to_fork
from tests.attack.moments import LOGS
from tests.attack.scenarios import OUTPUT, Ended, Scenario, run, write_inputs
from tests.attack.states import copy
from tests.attack.verdicts import SAME, contents, judge, predict, quietly

STAGES = {"pretraining": 8, "finetuning": 12}  # steps of each, 4 an epoch
ARGUMENTS = ["--model.dropout", "0.2"]  # so that the state of the random numbers matters
for stage in STAGES:
    ARGUMENTS += [f"--{stage}.logging_steps", "3"]  # few signals come just at a line of the log
PAIRS = [
    "--{}.per_device_train_batch_size",
    "24",
    "--{}.gradient_accumulation_steps",
    "2",
    "--{}.sparse_embeddings",
    "true",
]
HALVES = ["--{}.per_device_train_batch_size", "24"]
SHARDED = [*HALVES, "--{}.shard_embeddings", "true"]
SPARSE = ["--{}.per_device_train_batch_size", "24", "--{}.sparse_embeddings", "true", "--{}.optim", "adagrad"]


def of_both_stages(arguments: Sequence[str]) -> tuple[str, ...]:
    return (*ARGUMENTS, *(argument.format(stage) for stage in STAGES for argument in arguments))


def local(tensor: Any) -> Any:
    """What this process holds of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


SCENARIOS = {
    "one": Scenario(1, of_both_stages([])),
    "one-sparse": Scenario(1, of_both_stages(PAIRS)),  # with gradient accumulation
    "two": Scenario(2, of_both_stages(HALVES)),
    "two-sparse": Scenario(2, of_both_stages(SPARSE)),
    "two-sharded": Scenario(2, of_both_stages(SHARDED)),
}
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
PASSING = re.compile(r"runtime|per_second|^train_loss$")  # of a log; Trainer's train_loss is that of the resumed part


@dataclass(frozen=True)
class Kill:
    """A signal that a run gets.

    Attributes:
        scenario: of SCENARIOS.
        name: of the signal.
        stage: in which it comes.
        step: which is under way then.
        seconds: after the beginning of the step.
        ranks: which processes get it.
    """

    scenario: str
    name: str
    stage: str
    step: int
    seconds: float
    ranks: tuple[int, ...]


# ---- in the processes of a run


def note_states(rank: int) -> None:
    """When a training has ended, write digests of all that it ends with."""
    from transformers.trainer_callback import ExportableState

    from modeling_flip.training.trainer import FlipTrainer

    train = FlipTrainer.train

    def noted(self: FlipTrainer, *args: Any, **kwargs: Any) -> Any:
        result = train(self, *args, **kwargs)
        state = self.state
        log = [{k: v for k, v in entry.items() if not PASSING.search(k)} for entry in state.log_history]
        handlers = self.callback_handler.callbacks  # the state of a second process does not hold what they know
        callbacks = [callback.state() for callback in handlers if isinstance(callback, ExportableState)]
        found = {
            "parameters": digest(self.model.state_dict()),
            "optimizer": digest(self.optimizer.state_dict()),
            "schedule": digest(self.lr_scheduler.state_dict()),
            "log": log,
            "callbacks": callbacks,
            "step": state.global_step,
            "best": [state.best_metric, state.best_global_step],
        }
        Path(LOGS, f"{Path(str(self.args.output_dir)).name}-{rank}.json").write_text(json.dumps(found))
        return result

    FlipTrainer.train = noted  # type: ignore[method-assign]


def digest(value: Any) -> str:
    """Of the bytes of all numbers in it."""
    found = hashlib.sha256()

    def read(part: Any) -> None:
        if isinstance(part, dict):
            for key in part:
                found.update(repr(key).encode())
                read(part[key])
        elif isinstance(part, list | tuple):
            found.update(str(len(part)).encode())
            for one in part:
                read(one)
        elif hasattr(part, "numpy"):
            found.update(local(part).detach().numpy().tobytes())
        else:
            found.update(repr(part).encode())

    read(value)
    return found.hexdigest()


def get(kill: Kill, rank: int) -> None:
    """Have this process get a signal."""
    note_states(rank)
    if rank not in kill.ranks:
        return
    from modeling_flip.training.trainer import FlipTrainer

    step = FlipTrainer.training_step

    def stopped(self: FlipTrainer, *args: Any, **kwargs: Any) -> Any:
        if Path(str(self.args.output_dir)).name == kill.stage and self.state.global_step == kill.step:
            timer = threading.Timer(kill.seconds, os.kill, (os.getpid(), SIGNALS[kill.name]))
            timer.daemon = True
            timer.start()
            FlipTrainer.training_step = step  # type: ignore[method-assign]
        return step(self, *args, **kwargs)

    FlipTrainer.training_step = stopped  # type: ignore[method-assign]


# ---- here


@dataclass
class Straight:
    """A run that nothing disturbed: its inputs, the files that it leaves, and the states that its trainings end with."""

    inputs: Path
    files: dict[str, str]
    states: dict[str, Any]


@dataclass
class Outcome:
    """What came of a kill, and of the same command afterwards.

    Attributes:
        stopped_at: the step of the checkpoint that the killed run says it has saved.
        wrong: what differs from a straight run; empty where nothing does.
    """

    stopped_at: int | None = None
    wrong: str = ""


def go_straight(name: str, workplace: Path) -> Straight:
    inputs, scenario = workplace / "inputs", SCENARIOS[name]
    if not inputs.exists():
        in_child(lambda: write_inputs(inputs))
    folder = copy(inputs, workplace / name)
    ended = run(folder, scenario, first=note_states)
    assert ended.code == 0, ended
    in_child(lambda: quietly(predict, folder))
    return Straight(inputs, contents(folder), states_of(folder))


def states_of(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in (folder / LOGS).glob("*ing-*.json")}


def outcome(kill: Kill, straight: Straight) -> Outcome:
    """Kill a run, and run the same command again."""
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        folder, scenario = copy(straight.inputs, Path(place, "run")), SCENARIOS[kill.scenario]
        found = Outcome()
        found.wrong, found.stopped_at = how_it_ended(run(folder, scenario, first=partial(get, kill)), kill, folder)
        if not found.wrong:
            found.wrong = difference(run(folder, scenario, first=note_states), folder, straight)
        return found


def how_it_ended(ended: Ended, kill: Kill, folder: Path) -> tuple[str, int | None]:
    """What is wrong with the end of a killed run, and the step that it says it has saved."""
    said = " ".join((folder / LOGS / f"{rank}.err").read_text() for rank in range(SCENARIOS[kill.scenario].processes))
    told = re.findall(r"run the same command again to go on from step (\d+) of (\w+)", said)
    is_late = kill.step >= STAGES[kill.stage] - 4  # some steps go by until the signal comes
    if ended.code == 0 and not (is_late and kill.stage == "finetuning"):
        return "the signal was lost", None
    if kill.name == "SIGKILL" or ended.code == 0:  # it came when all was done
        return ("" if ended.code in (0, -signal.SIGKILL) else f"ended with {ended.code}: {said[-300:]}"), None
    if not told and is_late and "run the same command again to continue from the last checkpoint" in said:
        return "", None
    if not told:
        return f"no line that says what to do, and {ended.code}: {said[-300:]}", None
    if "Traceback" in said:
        return f"a traceback: {said[-300:]}", None
    step, stage = told[0]
    codes = {128 + SIGNALS[kill.name], 128 + signal.SIGTERM}  # the latter of a process that was not told itself
    if len(told) > 1 or ended.code not in codes:
        return f"{len(told)} lines, and {ended.code}: {said[-300:]}", None
    if not (folder / OUTPUT / "checkpoints" / stage / f"checkpoint-{step}" / "state.sha256").exists():
        return f"no checkpoint of step {step}", None
    return "", int(step)


def difference(ended: Ended, folder: Path, straight: Straight) -> str:
    """How a run that went on differs from a straight one."""
    verdict = judge(ended, folder, straight.files)
    if verdict.outcome != SAME:
        return f"{verdict.outcome}: {verdict.detail}"
    found = states_of(folder)
    for name, expected in straight.states.items():
        if differ := [key for key in expected if found.get(name, {}).get(key) != expected[key]]:
            return f"{name}: other {', '.join(differ)}"
    return ""


def draw(number: int, names: Sequence[str], seed: int) -> list[Kill]:
    """Kills by every signal in every scenario and stage in turn, each at a random moment."""
    drawn = random.Random(seed)
    kills = []
    for i in range(number):
        name, rest = names[i % len(names)], i // len(names)
        stage = [*STAGES][rest % len(STAGES)]
        processes = SCENARIOS[name].processes
        ranks = drawn.choice([(0,), (processes - 1,), tuple(range(processes))])
        kind = [*SIGNALS][(rest // len(STAGES) + rest + i) % len(SIGNALS)]
        kills.append(Kill(name, kind, stage, drawn.randrange(STAGES[stage]), drawn.uniform(0, 0.2), ranks))
    return kills


def table(found: Sequence[tuple[Kill, Outcome]]) -> str:
    """What came of the kills, by scenario and signal, in Markdown."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for kill, result in sorted(found, key=lambda pair: (pair[0].scenario, pair[0].name)):
        row = rows.setdefault((kill.scenario, kill.name), Counter())
        row.update(["kills", kill.stage, *["saved"] * (result.stopped_at is not None), *["same"] * (not result.wrong)])
    columns = ["kills", *STAGES, "saved", "same"]
    lines = [["run", "signal", *columns], ["---"] * (2 + len(columns))]
    lines += [[*who, *(str(row[column]) for column in columns)] for who, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=48)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="default: another each time")
    parser.add_argument("--runs", nargs="+", choices=SCENARIOS, default=[*SCENARIOS], help="default: all of them")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--json", type=Path, help="write every kill and what came of it there")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
    prepare_to_fork()
    print(f"seed {options.seed}", flush=True)
    kills = draw(options.kills, options.runs, options.seed)
    found: list[tuple[Kill, Outcome]] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as workplace:
        straight = {name: go_straight(name, Path(workplace)) for name in options.runs}
        print("uninterrupted runs: done", flush=True)
        tasks: list[Callable[[], Any]] = [partial(as_dict, kill, straight[kill.scenario]) for kill in kills]
        for number, result in iterate(tasks, options.jobs):
            kill, came = kills[number], Outcome(**(result or {"wrong": "the harness itself failed"}))
            found.append((kill, came))
            says = came.wrong or "same bits" + f", saved at step {came.stopped_at}" * (came.stopped_at is not None)
            print(
                f"{len(found)} of {len(kills)}: {kill.scenario}, {kill.name} in step {kill.step} of {kill.stage}: {says}",
                flush=True,
            )
    print(f"\n{table(found)}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(kill) | asdict(came) for kill, came in found], indent=1) + "\n")
    if any(came.wrong for _, came in found):
        sys.exit(1)


def as_dict(kill: Kill, straight: Straight) -> dict[str, Any]:
    return asdict(outcome(kill, straight))


if __name__ == "__main__":
    main()
