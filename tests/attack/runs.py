"""Tiny runs of train.py in forked processes, the states that a kill leaves of them, and what comes of running the command again.

A process that has imported everything and computed nothing (`prepare_to_fork`) forks a child for each run, which then costs a
second or two instead of ten. A kill leaves on the disk what was written until then; so one watched run, of which the folder is
copied before each change of it (`watched_run`), gives the states of all kills.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import gc
import hashlib
import importlib
import json
import mmap
import os
import re
import runpy
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600  # seconds until a run counts as hanging: on a busy machine a run takes minutes
OUTPUT = "run"  # the run's folder, in a folder with all that it reads
LOGS = ".logs"  # what it prints; no part of what is compared
Hook = Callable[[str, str], None]  # (event, path), before anything in the folder is changed


# ---- what is run


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


# ---- processes


IMPORTED_LATE = (
    "matplotlib.backends.backend_agg",
    "PIL.JpegImagePlugin",
    "torch.distributed",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.trainer",
)


def prepare_to_fork() -> None:
    """Import whatever a run does, before anything else is, and compute nothing: threads and their locks do not outlive a fork."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as train.py sets it, before torch is imported
    sys.path.insert(0, str(ROOT))
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    import train  # noqa: F401
    from data_scripts.registry import registered_datasets
    from modeling_flip.training.command_line import recipe_parser

    registered_datasets(), recipe_parser()  # they import what they need
    gc.collect()
    gc.freeze()  # or each child looks through all of it
    threads = [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")]
    lost = [name for name in threads[1:] if not name.startswith("jemalloc")]  # pyarrow's, begun anew after a fork
    assert not lost, f"threads that a fork would lose: {lost}"


def fork(task: Callable[[], Any]) -> int:
    """Call `task` in a child and end it; with 0, with the code of a SystemExit, or with 1 and a traceback."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        task()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def in_child(task: Callable[[], Any]) -> None:
    """Call `task` in a child, and wait; RuntimeError where it fails."""
    _, status = os.waitpid(fork(task), 0)
    if status:
        raise RuntimeError(f"a child ended with {os.waitstatus_to_exitcode(status)}")


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


def predict(folder: Path) -> None:
    """Score the rows with the model that a run has left, and write the probabilities beside it."""
    import torch

    from modeling_flip import FlipForCTR, FlipProcessor
    from modeling_flip.training.splits import load_splits

    os.chdir(folder)
    torch.set_num_threads(1)
    model, processor = FlipForCTR.from_pretrained(OUTPUT).eval(), FlipProcessor.from_pretrained(OUTPUT)
    with torch.no_grad():
        logits = model(**processor(load_splits("clicks.csv")["test"].to_table())).logits
    Path("predictions").write_text(json.dumps(logits.tolist()))


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


# ---- the moments at which something is written


def call_before_changes(folder: Path, hook: Hook) -> None:
    """Call the hook before each change of the folder that this process makes, as far as Python knows of it, or the functions
    below, which write through C++ and Rust; until the process ends."""
    busy = False

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy or event not in CHANGES:
            return
        busy = True
        try:
            path = CHANGES[event](*args)
            if path is not None and (relative := _inside(folder, path)) is not None:
                hook(event.removeprefix("flip."), relative)
        finally:
            busy = False

    announce_other_writers()
    sys.addaudithook(watch)


def _opened(path: Any, mode: str | None, flags: int) -> Any:
    writes = set("wax+") & set(mode) if mode else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return path if writes and not isinstance(path, int) else None


def _at(path: Any, dir_fd: int) -> str:
    return os.fsdecode(path) if dir_fd < 0 else os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fsdecode(path))


CHANGES: dict[str, Callable[..., Any]] = {
    "open": _opened,
    "os.mkdir": lambda path, mode, dir_fd: _at(path, dir_fd),
    "os.rename": lambda source, target, source_fd, target_fd: _at(target, target_fd),
    "os.remove": _at,
    "os.rmdir": _at,
    "os.link": lambda source, target, source_fd, target_fd: _at(target, target_fd),
    "os.symlink": lambda source, target, dir_fd: _at(target, dir_fd),
    "os.truncate": lambda path, length: None if isinstance(path, int) else path,
    "flip.writes": lambda path: path,
    "flip.wrote": lambda path: path,
}


def _inside(folder: Path, path: Any) -> str | None:
    """A path as it is called in the folder; None where it lies elsewhere."""
    relative = os.path.relpath(os.path.abspath(os.fsdecode(path)), folder)
    return None if relative.startswith((os.pardir, LOGS)) or relative == os.curdir else relative


def announce_other_writers() -> None:
    """torch, safetensors and pyarrow open their files themselves."""
    import pyarrow.parquet as pq
    import safetensors.torch
    import torch

    def announced(function: Callable[..., Any], position: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            path = args[position] if len(args) > position else None
            is_path = isinstance(path, (str, os.PathLike))
            if is_path:
                sys.audit("flip.writes", path)
            result = function(*args, **kwargs)
            if is_path:
                sys.audit("flip.wrote", path)
            return result

        return call

    torch.save = announced(torch.save, 1)
    safetensors.torch.serialize_file = announced(safetensors.torch.serialize_file, 1)
    pq.ParquetWriter.__init__ = announced(pq.ParquetWriter.__init__, 1)


# ---- the states of a run


@dataclass
class State:
    """A run's folder as a kill leaves it.

    Attributes:
        folder: a copy.
        event: what was about to be done.
        path: to which file, as it is called in the run's folder.
        rank: by which process.
    """

    folder: Path
    event: str
    path: str
    rank: int = 0


def stamps(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of each file and folder in a folder what changes when it is written."""
    found: dict[str, tuple[int, ...]] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != LOGS]
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            with suppress(FileNotFoundError):
                stat = os.lstat(path)
                found[os.path.relpath(path, folder)] = (
                    (stat.st_ino, stat.st_size, stat.st_mtime_ns) if name in files else ()
                )
    return found


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(LOGS))
    return target


def watched_run(folder: Path, scenario: Scenario, states: Path) -> tuple[Ended, list[State]]:
    """Run train.py and copy the folder to `states` before each change of it, but where nothing has changed since the last copy.
    While one process copies the others stand still."""
    states.mkdir(parents=True)
    pids = mmap.mmap(-1, 8 * scenario.processes)  # shared by all
    log, lock = states / "log", states / "lock"
    log.touch()
    lock.touch()

    def note(event: str, path: str) -> None:
        rank = int(os.environ.get("RANK", 0))
        struct.pack_into("q", pids, 8 * rank, os.getpid())
        with open(lock) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            others = [pid for (pid,) in struct.iter_unpack("q", pids) if pid not in (0, os.getpid())]
            for pid in others:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            try:
                entries = log.read_text().splitlines()
                now = json.loads(json.dumps(stamps(folder)))
                if not entries or json.loads(entries[-1])["stamps"] != now:
                    copy(folder, states / f"{len(entries):04}")
                    entry = {"event": event, "path": path, "rank": rank, "stamps": now}
                    with open(log, "a") as file:
                        file.write(json.dumps(entry) + "\n")
            finally:
                for pid in others:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)

    ended = run(folder, scenario, note)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return ended, [State(states / f"{i:04}", e["event"], e["path"], e["rank"]) for i, e in enumerate(entries)]


def changed_files(before: Path, after: Path) -> list[str]:
    """Files that are new or other in the second of two copies, by content."""
    files = (path.relative_to(after).as_posix() for path in sorted(after.rglob("*")) if path.is_file())
    return [
        file
        for file in files
        if not (before / file).is_file() or (before / file).read_bytes() != (after / file).read_bytes()
    ]


# ---- what came of it

SAME, LINE = "same bits", "one clear line"
CURVE, REPORT, FIGURES, WEIGHTS = "other curve", "other report", "OTHER FIGURES", "OTHER BITS"
LEFT, MISSING = "LEFTOVERS", "MISSING"
TRACEBACK, BARE, UNCLEAR, HANGS, KILLED = "TRACEBACK", "LINE WITHOUT REMEDY", "UNCLEAR", "HANGS", "KILLED"
OUTCOMES = (SAME, LINE, CURVE, REPORT, FIGURES, WEIGHTS, LEFT, MISSING, TRACEBACK, BARE, UNCLEAR, HANGS, KILLED)
GOOD = (SAME, LINE)
# Files that tell of times and speeds beside what must be the same.
REPORTS = ("README.md", "all_results.json", "run.json", "pretraining_results.json", "training_curve.png")
PASSING = re.compile(r"^(wall_time|ended|resumed|commit|hardware|.*_seconds|.*_per_second)$")
PASSING_ROW = re.compile(r"(?i)\b(time|speed|commit)\b.*\|")
PROGRESS = re.compile(r"[^\n]*\d+%\|.*\|[^\n\]]*\[[^\]]*\]")  # a bar of tqdm's
REMEDY = re.compile(r"\b(delete|choose|give|set|again|anew|free|remove|lower|wait)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """What came of a run.

    Attributes:
        outcome: one of OUTCOMES.
        detail: the files that differ, or the last line of stderr.
    """

    outcome: str
    detail: str = ""

    @property
    def good(self) -> bool:
        return self.outcome in GOOD


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder of a finished run, with a digest of what must be the same in each run of the command."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] == LOGS:
            continue
        found[name] = "folder" if path.is_dir() else hashlib.sha256(_lasting(path)).hexdigest()
    return found


def _lasting(path: Path) -> bytes:
    """A file without times, speeds, and whether the run was resumed."""
    data = path.read_bytes()
    if path.name == "README.md":
        return b"\n".join(line for line in data.splitlines() if not PASSING_ROW.search(line.decode()))
    if path.suffix == ".json" and (path.name in REPORTS or path.parent.name == "manifests"):
        with suppress(ValueError):
            content = json.loads(data)
            if path.parent.name == "manifests":  # sealed with times in it
                seal = content.pop("sha256", None)
                content["is_sealed"] = seal == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            return json.dumps(_without_passing(content, path), sort_keys=True).encode()
    return data


def _without_passing(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_passing(part, path) for key, part in value.items() if not PASSING.match(key)}
        if path.parent.name == "manifests":  # it says the size and SHA-256 of files; those of reports pass with them
            kept = {key: _checked(path, key, part) for key, part in kept.items()}
        return kept
    return [_without_passing(part, path) for part in value] if isinstance(value, list) else value


def _checked(path: Path, name: str, said: Any) -> Any:
    """What a manifest says of a report: whether it is true."""
    if Path(name).name not in REPORTS or not isinstance(said, dict) or "sha256" not in said:
        return said
    file = path.parents[1] / name
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == said["sha256"]


def judge(ended: Ended, folder: Path, expected: dict[str, str], but: Sequence[str] = ()) -> Verdict:
    """What came of a run, where a straight one leaves `expected`; `but` are inputs that were damaged on purpose."""
    if ended.code is None:
        return Verdict(HANGS)
    if ended.code:
        lines = [line for line in ended.error.splitlines() if line.strip() and not PROGRESS.fullmatch(line)]
        last = PROGRESS.sub("", lines[-1]) if lines else ""  # a bar has no end of line of its own
        if "Traceback (most recent call last)" in ended.error:
            return Verdict(TRACEBACK, last)
        if ended.code < 0:
            return Verdict(KILLED, signal.Signals(-ended.code).name)
        if last.startswith("train.py: error: "):
            return Verdict(LINE if REMEDY.search(last) else BARE, last)
        return Verdict(UNCLEAR, last)
    try:
        in_child(lambda: quietly(predict, folder))
    except RuntimeError:
        return Verdict(WEIGHTS, "the model that it left cannot be loaded: exit 0")
    found = contents(folder)
    names = (found.keys() | expected.keys()) - set(but)
    differ = sorted(name for name in names & found.keys() & expected.keys() if found[name] != expected[name])
    weighty = [n for n in differ if Path(n).name not in REPORTS and "manifests" not in Path(n).parts]
    missing, left = (
        sorted((expected.keys() - found.keys()) - set(but)),
        sorted((found.keys() - expected.keys()) - set(but)),
    )
    if weighty:
        return Verdict(WEIGHTS, ", ".join(weighty))
    if missing:
        return Verdict(MISSING, ", ".join(missing))
    if differ:
        drawn = all(name.endswith(".png") for name in differ)
        figures = any(name.endswith("_results.json") for name in differ)
        return Verdict(FIGURES if figures else CURVE if drawn else REPORT, ", ".join(differ))
    return Verdict(LEFT, ", ".join(left)) if left else Verdict(SAME)


def quietly(task: Callable[[Path], None], folder: Path) -> None:
    (folder / LOGS).mkdir(exist_ok=True)
    log = os.open(folder / LOGS / "predict", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    task(folder)


# ---- many of them


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


def iterate(tasks: Sequence[Callable[[], Any]], jobs: int) -> Iterator[tuple[int, Any]]:
    """Call each task in a process forked from this one, `jobs` at a time, and yield its number and what it returns; None where
    it fails."""
    waiting, running = list(enumerate(tasks)), dict[int, tuple[int, Path]]()
    with tempfile.TemporaryDirectory(prefix="attack-") as place:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, task = waiting.pop(0)
                file = Path(place, str(number))
                running[fork(lambda task=task, file=file: file.write_text(json.dumps(task())))] = (number, file)  # type: ignore[misc]
            pid, _ = os.wait()
            number, file = running.pop(pid)
            yield number, json.loads(file.read_text()) if file.exists() else None


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
