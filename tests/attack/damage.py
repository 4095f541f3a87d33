"""Damage every file of an interrupted run, and run it again: the same bits in the end, or one clear line."""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path

from tests.attack.cases import Case, Straight, kind_of, spread, step_of
from tests.attack.forks import in_child
from tests.attack.moments import Hook
from tests.attack.scenarios import OUTPUT
from tests.attack.states import State

FOREIGN = "pytorch_model.bin"


def damages(straight: Straight, options: argparse.Namespace) -> list[Case]:
    """Every damage of every file, in three moments of a run; and the folder deleted while it runs."""
    cases = []
    for moment, state in moments(straight).items():
        files = [
            path.relative_to(state.folder).as_posix() for path in sorted(state.folder.rglob("*")) if path.is_file()
        ]
        ours = [file for file in files if file.startswith((f"{OUTPUT}/", "text_model/"))]
        if moment == "saved":  # all else has been damaged in finetuning
            ours = [
                file
                for file in ours
                if not file.startswith((f"{OUTPUT}/checkpoints", f"{OUTPUT}/pretraining", "text_model/"))
            ]
        last = max((file for file in ours if "/checkpoint-" in file), key=step_of, default="")
        for file in ours:
            name = f"{moment}: {kind_of(file)}"
            if "/checkpoint-" in file:
                name += " (last)" if step_of(file) == step_of(last) else " (best)"
            but = (file,) if file.startswith("text_model/") else ()
            for how, spoil in DAMAGES.items():
                cases.append(Case(name, how, straight, state.folder, partial(spoil, file=file), but=but))
            if Path(file).name == "model.safetensors":
                foreign = str(Path(file).with_name(FOREIGN))
                but = (foreign, *but)  # whoever put it there
                beside, instead = partial(add_pickle, file=file), partial(add_pickle, file=file, instead=True)
                cases.append(Case(f"{name} with a pickle", "beside", straight, state.folder, beside, but=but))
                cases.append(Case(f"{name} with a pickle", "instead", straight, state.folder, instead, but=but))
    return [*spread(cases, options.each), *deletions(straight)]


def moments(straight: Straight) -> dict[str, State]:
    """Within pretraining and within finetuning, each with all checkpoints but the last; and once the model is saved."""
    found = {}
    for stage in ("pretraining", "finetuning"):
        of_stage = [
            state for state in straight.states if f"checkpoints/{stage}/" in state.path and "checkpoint-" in state.path
        ]
        last = max(step_of(state.path) for state in of_stage)
        found[stage] = next(state for state in of_stage if step_of(state.path) == last)
    manifests = f"{OUTPUT}/manifests/"
    found["saved"] = next(s for s in straight.states if s.path.startswith(manifests) and "evaluate" in s.path)
    return found


# ---- damages


def cut(folder: Path, file: str) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])


def empty(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"")


def flip_a_bit(folder: Path, file: str) -> None:
    data = bytearray((folder / file).read_bytes())
    data[2 * len(data) // 3] ^= 0x40  # of text a letter, of a number no small change
    (folder / file).write_bytes(data)


def remove(folder: Path, file: str) -> None:
    (folder / file).unlink()


DAMAGES = {
    "cut": cut,
    "emptied": empty,
    "one bit flipped": flip_a_bit,
    "removed": remove,
}


def add_pickle(folder: Path, file: str, instead: bool = False) -> None:
    """Weights that are all 0, as torch pickles them."""

    def write() -> None:
        import torch
        from safetensors.torch import load_file

        weights = {name: torch.zeros_like(weight) for name, weight in load_file(folder / file).items()}
        torch.save(weights, (folder / file).with_name(FOREIGN))

    in_child(write)
    if instead:
        (folder / file).unlink()


def deletions(straight: Straight, count: int = 12) -> list[Case]:
    """The run's folder deleted while it trains: it must not end as if nothing had happened."""
    begun = [state for state in straight.states if state.path.startswith(f"{OUTPUT}/") and state.rank == 0]
    chosen = [begun[(i + 1) * len(begun) // (count + 1)] for i in range(count)]
    return [
        Case(
            "(the folder)",
            f"deleted before {state.event} {kind_of(state.path)}",
            straight,
            straight.inputs,
            hooks=(partial(deleting, state),),
        )
        for state in chosen
    ]


def deleting(state: State, folder: Path) -> Hook:
    """Deletes the run's folder once, when it is as far as the state."""
    done = False

    def hook(event: str, path: str) -> None:
        nonlocal done
        if not done and (event, path) == (state.event, state.path):
            done = True
            shutil.rmtree(folder / OUTPUT, ignore_errors=True)

    return hook
