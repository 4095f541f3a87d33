"""Tiny runs of train.py: their inputs, their arguments, and the processes that run them."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.attack.forks import ROOT, fork
from tests.attack.moments import LOGS, Hook, call_before_changes

PATIENCE = 600  # seconds until a run counts as hanging: on a busy machine a run takes minutes
OUTPUT = "run"  # the run's folder, in a folder with all that it reads


@dataclass(frozen=True)
class Scenario:
    """A tiny run.

    Attributes:
        processes: how many train.
        arguments: of train.py, beside the recipe's.
    """

    processes: int = 1
    arguments: tuple[str, ...] = ()


IN_EPOCHS = ("--seed", "1")  # with which the best epoch is not the last
IN_STEPS: tuple[str, ...] = ("--pretraining.save_strategy", "steps", "--pretraining.save_steps", "3")
IN_STEPS += ("--finetuning.save_strategy", "steps", "--finetuning.save_steps", "3")
IN_STEPS += ("--finetuning.eval_strategy", "steps", "--finetuning.eval_steps", "3")
IN_STEPS += ("--finetuning.early_stopping_patience", "9")
SMALL_BATCHES = ("--pretraining.per_device_train_batch_size", "24", "--finetuning.per_device_train_batch_size", "24")
STOPS: tuple[str, ...] = ("--finetuning.num_train_epochs", "8", "--finetuning.early_stopping_patience", "1")
STOPS += ("--finetuning.learning_rate", "0.05", "--pretraining.num_train_epochs", "1")
STOPS += ("--finetuning.save_total_limit", "3")  # so that the checkpoint of the stop stays
SCENARIOS = {
    "one": Scenario(arguments=IN_EPOCHS),
    "two": Scenario(2, IN_EPOCHS),
    "one-steps": Scenario(arguments=IN_STEPS),  # 4 steps an epoch, saved every 3
    "two-steps": Scenario(2, IN_STEPS + SMALL_BATCHES),  # the same
    "stops": Scenario(arguments=STOPS),  # early
}


def write_inputs(folder: Path) -> None:
    """A click log, a tiny text model that knows its words, and a recipe. The same bytes each time; in a process of its own."""
    import numpy as np
    import yaml

    from data_scripts.text_model import write as write_text_model

    rng = np.random.default_rng(0)
    words = ["red", "green", "blue", "small", "large", "old", "new", "warm", "cold", "fast"]
    rows = []
    for _ in range(200):
        age, genre = rng.integers(0, 2, 2)
        title = " ".join(rng.choice(words, rng.integers(1, 6)))  # of many lengths, to be grouped by
        click = (age == genre) ^ (rng.random() < 0.2)
        rows.append(f"{rng.integers(1, 12)},{['young', 'old'][age]},{title},{['comedy', 'drama'][genre]},{int(click)}")
    folder.mkdir(parents=True)
    (folder / "clicks.csv").write_text("\n".join(["user,age,title,genre,label", *rows]) + "\n")
    sentences = [
        f"user is {u}. age is {a}. title is {t}. genre is {g}." for u, a, t, g, _ in (r.split(",") for r in rows)
    ]
    write_text_model(folder / "text_model", sentences, max_length=64)
    stage = {"per_device_train_batch_size": 48, "learning_rate": 5e-3, "text_learning_rate": 1e-3, "logging_steps": 1}
    recipe = {
        "dataset_name": "clicks.csv",
        "text_model_name_or_path": "text_model",
        "output_dir": OUTPUT,
        "model": {"embedding_size": 4, "hidden_sizes": [8], "projection_size": 8},
        "pretraining": stage | {"num_train_epochs": 2, "num_noise_features": 4},
        "finetuning": stage | {"num_train_epochs": 3},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def train_py(
    folder: Path, scenario: Scenario, rank: int, port: int, hook: Hook | None, first: Callable[[int], Any] | None
) -> None:
    """What a process of a run does: `python train.py recipe.yaml …`, there."""
    os.chdir(folder)
    (folder / LOGS).mkdir(exist_ok=True)
    for stream, number in (("out", 1), ("err", 2)):
        log = os.open(folder / LOGS / f"{rank}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, number)
        os.close(log)
    if scenario.processes > 1:
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": scenario.processes,
            "LOCAL_WORLD_SIZE": scenario.processes,
        }
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_MIXED_PRECISION": "no"}
        os.environ |= {key: str(value) for key, value in (place | address).items()}
    if hook is not None:
        call_before_changes(folder, hook)
    if first is not None:
        first(rank)
    sys.argv = ["train.py", "recipe.yaml", *scenario.arguments, "--use_cpu"]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


@dataclass
class Ended:
    """How a run has ended.

    Attributes:
        code: of the process that ended first with another than 0, below 0 for a signal; None where the run hangs.
        error: what that one printed to stderr.
    """

    code: int | None
    error: str = ""


def run(folder: Path, scenario: Scenario, hook: Hook | None = None, first: Callable[[int], Any] | None = None) -> Ended:
    """Run train.py as `accelerate launch` would: when one process fails, the others are ended.

    Args:
        folder: holds the inputs, and maybe an earlier part of the run.
        hook: is called in each process, with an event and a path, before it changes anything in the folder.
        first: is called in each process, with its rank, before the run.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = range(scenario.processes)
    pids = {fork(partial(train_py, folder, scenario, rank, port, hook, first)): rank for rank in ranks}
    began, ended = time.monotonic(), Ended(0)

    def kill(number: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    while pids:
        for pid in list(pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            rank, code = pids.pop(pid), os.waitstatus_to_exitcode(status)
            if code and ended.code == 0:
                ended = Ended(code, (folder / LOGS / f"{rank}.err").read_text(errors="replace"))
                kill(signal.SIGKILL if code < 0 else signal.SIGTERM)
        if time.monotonic() - began > PATIENCE:
            ended = Ended(None)
            kill(signal.SIGKILL)
        time.sleep(0.005)
    return ended
