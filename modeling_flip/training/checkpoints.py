"""Checkpoints of a training: complete ones can be told from incomplete ones, and training resumes only from the former."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments
from transformers.utils import logging

from ..checkpoint_files import MODEL, PROCESSOR, REMEDY, Part, check_files, write_checksums

T = TypeVar("T")

logger = logging.get_logger(__name__)

STATE_FILE = "trainer_state.json"
UNLOGGED = "unlogged_{}.json"  # of each process
# The part of a checkpoint that only a resumed training reads. Its checksums are written last: without them the checkpoint is
# incomplete.
STATE = Part(
    "state.sha256",
    ("optimizer.*", "scheduler.*", "scaler.*", "rng_state*", UNLOGGED.format("*"), STATE_FILE),
    ("optimizer.*", "scheduler.*", "rng_state*", STATE_FILE),
)
# With DeepSpeed the optimizer's state, and the weights that it resumes from, are in a folder `global_step…` instead.
ENGINE = Part(STATE.checksums, ("*.pt",), ("*model_states.pt", "*optim_states.pt"))
# Trainer would read these where there are no safetensors, or where these are in shards. With FSDP an optimizer's state is a .bin.
FOREIGN = ("*pytorch_model*", "*training_args*", "*.pkl", "adapter_*")


def _state(checkpoint: Path) -> list[tuple[Path, Part]]:
    """The folders that hold what only a resumed training reads, the checkpoint itself last."""
    engines = sorted(checkpoint.glob("global_step*"))
    if not engines:
        return [(checkpoint, STATE)]
    needed = ("latest", *(name for name in STATE.needed if name != "optimizer.*"))
    return [
        *((engine, ENGINE) for engine in engines),
        (checkpoint, Part(STATE.checksums, (*STATE.patterns, "latest"), needed)),
    ]


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as complete, once it is on the disk."""
    for path in (*checkpoint.rglob("*"), checkpoint, checkpoint.parent):
        _sync(path)
    for folder, part in _state(checkpoint):
        write_checksums(folder, part)
        for path in (folder / part.checksums, folder):
            _sync(path)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def check_weights(checkpoint: Path) -> None:
    """Raises ValueError where the weights of a checkpoint are not those that were saved."""
    for pattern in FOREIGN:
        for file in checkpoint.glob(pattern):
            raise ValueError(f"{file} was not written by this training")
    _check_part(checkpoint, MODEL)


def _check_part(checkpoint: Path, part: Part) -> None:
    if not (checkpoint / part.checksums).is_file():
        raise ValueError(f"{checkpoint} has no {part.checksums}")
    check_files(checkpoint, part)


def check(checkpoint: Path) -> None:
    """Raises ValueError where a checkpoint is not as it was saved, or is incomplete."""
    if not (checkpoint / STATE.checksums).is_file():
        raise ValueError(f"{checkpoint} is incomplete")
    check_weights(checkpoint)
    for folder, part in ((checkpoint, PROCESSOR), *_state(checkpoint)):
        _check_part(folder, part)


def last_checkpoint(args: TrainingArguments) -> str | None:
    """The last complete checkpoint of an interrupted stage, whose best checkpoint so far is complete too if that is loaded at
    the end; the same on every process.

    Later ones are deleted, with a warning: training reaches them again, with the same bits.

    Raises:
        ValueError: it was written by another number of processes.
    """
    return decided_once(lambda: _last_checkpoint(Path(str(args.output_dir)), bool(args.load_best_model_at_end)))


def _last_checkpoint(folder: Path, needs_best: bool) -> str | None:
    saved = sorted((p for p in folder.glob("checkpoint-*") if p.is_dir()), key=lambda p: step_of(p) or 0, reverse=True)
    for checkpoint in saved:
        try:
            check(checkpoint)
            best = json.loads((checkpoint / STATE_FILE).read_text())["best_model_checkpoint"]
            if needs_best and best is not None:
                check_weights(folder / Path(best).name)
        except (ValueError, OSError) as error:
            logger.warning(f"skipping {checkpoint}: {fact(error)}")
            continue
        _check_number_of_processes(checkpoint)
        break
    else:
        checkpoint = None
        if saved:
            logger.warning(f"no checkpoint in {folder} is complete: training starts from the beginning")
    for behind in saved[: saved.index(checkpoint) if checkpoint else None]:
        shutil.rmtree(behind)
    if checkpoint is not None:
        logger.warning(f"continuing from {checkpoint}")
    return None if checkpoint is None else str(checkpoint)


def _check_number_of_processes(checkpoint: Path) -> None:
    before, now = len([*checkpoint.glob("rng_state*")]), PartialState().num_processes
    if before != now:
        raise ValueError(
            f"{checkpoint} was written by {before} processes, but now there are {now}, which would change the order of the "
            f"rows. Start {before} processes, or delete {checkpoint.parent} to restart this stage"
        )


def step_of(checkpoint: str | os.PathLike | None) -> int | None:
    """The step in a checkpoint's name, `checkpoint-STEP`."""
    if checkpoint is None:
        return None
    step = Path(checkpoint).name.rpartition("-")[2]
    return int(step) if step.isdecimal() else None


def fact(error: Exception) -> str:
    """The text of an error, without the remedy for downloaded checkpoints."""
    return " ".join(str(error).split()).removesuffix(f"; {REMEDY}")


def decided_once(decide: Callable[[], T]) -> T:
    """Runs `decide` on the main process, and returns its result, or raises its ValueError, on every process."""
    decided: list[T | ValueError | None] = [None]
    if PartialState().is_main_process:
        try:
            decided = [decide()]
        except ValueError as error:
            decided = [error]
    broadcast_object_list(decided)
    if isinstance(decided[0], ValueError):
        raise decided[0]
    return decided[0]  # type: ignore[return-value]
