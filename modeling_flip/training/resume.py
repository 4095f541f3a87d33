"""Resuming a run: what its output folder or the Hub holds, and how far it has come."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RevisionNotFoundError
from transformers.utils import logging

from ..modeling_flip import FlipForPreTraining
from . import manifest
from .checkpoints import STATE_FILE, check, seal, step_of
from .hub import create_repo, is_final, push_error, with_retries
from .publishing import (
    LAST,
    NOT_OF_THIS_RUN,
    PRETRAINING_RESULTS_FILE,
    RECIPE_FILE,
    RESULTS_FILE,
    link_files,
)
from .recipe import HUB_KEYS, Recipe, hub_repo, read_yaml, stage_arguments

logger = logging.get_logger(__name__)

STAGES = ("pretraining", "finetuning", "finished")


def check_output_dir(recipe: Recipe, but: Sequence[str] = ()) -> bool:
    """Whether the output folder holds this same run, finished or not; the keys in `but` are not compared. A folder with only a
    recipe, from which nothing has been trained, may be reused.

    Hidden files do not count: locks, and files that a killed run was writing.

    Raises:
        ValueError: it holds something else.
    """
    folder, remedy = Path(recipe.output_dir), "choose another --output_dir, or delete the folder"
    held = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []
    if not held:
        return False
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"output folder {folder} holds something else ({held[0]}); {remedy}")
    if set(held) <= {RECIPE_FILE, manifest.path_of(folder, "prepare").parent.name}:
        return False
    check_same_run(folder / RECIPE_FILE, recipe, f"output folder {folder} holds another model", remedy, but)
    return True


def check_same_run(recipe_file: Path, recipe: Recipe, what: str, remedy: str, but: Sequence[str] = ()) -> None:
    """Raises ValueError if a run's recipe differs from this one, except in where it is pushed and in the keys of `but`."""
    ours = recipe.to_dict()
    try:
        theirs = dict(read_yaml(recipe_file.read_text()))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{what}: its {RECIPE_FILE} is not a recipe; {remedy}") from error
    for key in sorted((theirs.keys() | ours.keys()) - {*HUB_KEYS, *but}):
        if theirs.get(key) != ours.get(key):
            raise ValueError(f"{what}: its {key} is {theirs.get(key)!r}, this run's is {ours.get(key)!r}; {remedy}")


def restore_from_hub(recipe: Recipe) -> None:
    """Download what an earlier run of this recipe pushed with hub_strategy "checkpoint" to the output folder, all or nothing. A
    run that has begun in the folder is left as it is.

    Raises:
        ValueError: the repo holds another run, or a later state of this run than the folder, or the Hub cannot be reached.
    """
    output_dir = Path(recipe.output_dir).resolve()
    restored = output_dir.with_name(f".{output_dir.name}.restored")
    begun = check_output_dir(recipe)
    little = [RECIPE_FILE, *NOT_OF_THIS_RUN[1:], f"{LAST}/{STATE_FILE}", f"{LAST}/config.json"]
    with tempfile.TemporaryDirectory() as repo_dir:
        repo = Path(repo_dir)
        try:
            repo_id = create_repo(hub_repo(recipe), recipe.hub_private_repo)
            where: dict[str, Any] = {"revision": recipe.hub_revision, "local_dir": repo}
            with_retries(lambda: snapshot_download(repo_id, allow_patterns=little if begun else None, **where))
        except RevisionNotFoundError:
            return
        except (OSError, ValueError) as error:
            if begun and not is_final(error):
                logger.warning(f"cannot see how far {hub_repo(recipe)!r} is: {push_error(error)}")
                return
            raise ValueError(
                f"cannot see whether {hub_repo(recipe)!r} holds an earlier part of this run: {push_error(error)}; try again, "
                "or leave out --hub_strategy checkpoint to start from the beginning"
            ) from error
        if not (repo / RECIPE_FILE).exists():
            return
        # The folder does not identify a run; the demo creates its text model beside the output folder.
        place = ["output_dir", *(["text_model_name_or_path"] if recipe.dataset_name == "demo" else [])]
        remedy = "choose another --hub_model_id"
        check_same_run(repo / RECIPE_FILE, recipe, f"{repo_id} on the Hub holds another model", remedy, place)
        there = progress_on_hub(repo)
        if begun:
            if there > progress_here(output_dir):
                raise ValueError(
                    f"{repo_id} on the Hub is further along in this run than {output_dir}, and would be overwritten: delete "
                    f"the folder to continue from the Hub, or {remedy}"
                )
            return
        logger.warning(f"continuing from {repo_id} on the Hub")
        shutil.rmtree(restored, ignore_errors=True)
        if there == (STAGES.index("finished"), 0):
            shutil.copytree(repo, restored, ignore=shutil.ignore_patterns(".*"))
        else:
            restored.mkdir(parents=True)
            if (repo / "pretraining" / PRETRAINING_RESULTS_FILE).exists():
                shutil.copytree(repo / "pretraining", restored / "pretraining")
            if (repo / LAST).exists():
                restore_checkpoints(repo, restored, recipe)
        manifest.write(restored / RECIPE_FILE, recipe.to_yaml())
    if output_dir.exists():
        with contextlib.suppress(OSError):
            output_dir.rmdir()  # it is empty
    if not output_dir.exists():
        restored.rename(output_dir)
        return
    for path in sorted(restored.iterdir(), key=lambda path: path.name == RECIPE_FILE):  # a mounted folder stays
        shutil.move(path, output_dir / path.name)
    restored.rmdir()


def progress_on_hub(repo: Path) -> tuple[int, int]:
    """How far a run has come: the position of its stage in STAGES, and the step."""
    if (repo / LAST).exists():
        step = json.loads((repo / LAST / STATE_FILE).read_text())["global_step"]
        return STAGES.index(stage_on_hub(repo)), step
    return (STAGES.index("finished") if (repo / RESULTS_FILE).exists() else 0), 0


def progress_here(output_dir: Path) -> tuple[int, int]:
    """How far the run in an output folder has come."""
    if (output_dir / RESULTS_FILE).exists():
        return STAGES.index("finished"), 0
    aligned = (output_dir / "pretraining" / PRETRAINING_RESULTS_FILE).exists()
    states = output_dir.glob(f"checkpoints/*/checkpoint-*/{STATE_FILE}")
    saved = [(STAGES.index(p.parent.parent.name), step_of(p.parent) or 0) for p in states]
    return max([(STAGES.index("finetuning") if aligned else 0, 0), *saved])


def stage_on_hub(repo: Path) -> str:
    """The stage of a repo's `last-checkpoint`."""
    architectures = json.loads((repo / LAST / "config.json").read_text())["architectures"]
    return "pretraining" if architectures == [FlipForPreTraining.__name__] else "finetuning"


def restore_checkpoints(repo: Path, restored: Path, recipe: Recipe) -> None:
    """Put a repo's `last-checkpoint`, and the best model from its root or `pretraining/`, where Trainer looks for them."""
    stage = stage_on_hub(repo)
    folder = Path("checkpoints", stage)
    prepared = repo / LAST / "prepare.json"
    if prepared.exists():  # the recorded inputs of the run, to compare with the current ones
        (restored / manifest.FOLDER).mkdir()
        shutil.move(prepared, manifest.path_of(restored, "prepare"))
    state = json.loads((repo / LAST / STATE_FILE).read_text())
    keeps_best = stage_arguments(recipe, stage).load_best_model_at_end
    last, best = state["global_step"], step_of(state["best_model_checkpoint"]) if keeps_best else None
    checkpoint = restored / folder / f"checkpoint-{last}"
    # DeepSpeed would unpickle what stands in these; without them the checkpoint is skipped.
    shutil.copytree(repo / LAST, checkpoint, ignore=shutil.ignore_patterns("global_step*"))
    if best is None:
        return
    if best != last:
        shown = repo / "pretraining" if stage == "pretraining" else repo
        link_files(shown, restored / folder / f"checkpoint-{best}", ("README.md", "*.png", "*.yaml"))
    with contextlib.suppress(ValueError):  # a damaged one stays damaged, and is skipped later
        check(checkpoint)
        state["best_model_checkpoint"] = str(Path(recipe.output_dir) / folder / f"checkpoint-{best}")
        (checkpoint / STATE_FILE).write_text(json.dumps(state, indent=2))
        seal(checkpoint)
