"""What a repo on the Hub holds: which files of a run, its card and its curve."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import CommitInfo, HfApi

from ..modeling_flip import FlipPreTrainedModel
from ..processing_flip import FlipProcessor
from .hub import create_repo, upload, with_retries
from .model_card import CURVE_FILE, model_card

if TYPE_CHECKING:
    from .arguments import FlipTrainingArguments

RECIPE_FILE = "recipe.yaml"
# Of a checkpoint, what only a resumed training reads.
STATE_FILES = ("optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "trainer_state.json")
# Of an output folder, what stays here: the state of a training, and files that are being written.
UNPUSHED = ("checkpoints/*", "checkpoint-*/*", "runs/*", ".*", "*/.*")
LAST = "last-checkpoint"
RESULTS_FILE, PRETRAINING_RESULTS_FILE = "all_results.json", "pretraining_results.json"
# What a push takes from the repo unless it brings it: of an earlier run there, it would pass for this one's.
NOT_OF_THIS_RUN = (f"{LAST}/*", RESULTS_FILE, f"pretraining/{PRETRAINING_RESULTS_FILE}")
CARD_ARGUMENTS = (
    "learning_rate",
    "text_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "bf16",
    "float32_matmul_precision",
)


def push_model(
    model: FlipPreTrainedModel,
    processor: FlipProcessor | None,
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
    max_shard_size: int | str,
    tags: Sequence[str],
) -> CommitInfo:
    """What `model.push_to_hub` does."""
    if processor is None:
        raise ValueError("without its processor nobody can score a row: call model.push_to_hub(repo_id, processor)")
    processor.check_belongs_to(model.config)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
        if not create_pr:  # which is how to push to a repo of somebody else
            repo_id = create_repo(repo_id, private, token)
        if not with_retries(lambda: HfApi(token=token).file_exists(repo_id, "README.md", revision=revision)):
            Path(folder, "README.md").write_text(model_card(model, processor, repo_id, tags=tags, revision=revision))
        return upload(
            folder,
            repo_id,
            commit_message=commit_message,
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )


def write_card(
    folder: Path,
    model: Any,
    processor: FlipProcessor,
    repo_id: str | None,
    results: Mapping[str, Any],
    args: FlipTrainingArguments,
    revision: str | None = None,
) -> None:
    """Write README.md beside the training curves that it shows."""
    curves = [f"{sub}{CURVE_FILE}" for sub in ("", "pretraining/") if (folder / sub / CURVE_FILE).exists()]
    hyperparameters = {name: getattr(args, name) for name in CARD_ARGUMENTS if getattr(args, name) is not None}
    revision = (revision or args.hub_revision) if repo_id else None
    card = model_card(model, processor, repo_id or str(folder), results, hyperparameters, curves, revision=revision)
    (folder / "README.md").write_text(card)


def step_of(checkpoint: str | os.PathLike | None) -> int | None:
    """The step in a checkpoint's name, `checkpoint-STEP`."""
    return None if checkpoint is None else int(Path(checkpoint).name.rpartition("-")[2])


def link_files(source: Path, target: Path, without: Sequence[str]) -> None:
    """Make the files of a checkpoint appear in another folder, but for some; a copy where links cannot be."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not any(fnmatch.fnmatch(file.name, pattern) for pattern in without):
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copyfile(file, target / file.name)


def write_curve(path: Path, log_history: Sequence[Mapping[str, float]]) -> None:
    """Draw every loss, and the validation AUC of each tower, over the epochs; nothing where nothing was logged."""
    losses = curves_of(log_history, r"(?!eval_|train_)(\w+_)?loss")
    aucs = curves_of(log_history, r"eval_(\w+_)?auc")
    panels = [(title, lines) for title, lines in (("training loss", losses), ("validation AUC", aucs)) if lines]
    if not panels:
        return
    from matplotlib.figure import Figure  # here: it takes a second that scoring need not wait

    figure = Figure(figsize=(5 * len(panels), 3.2), layout="constrained")
    for axes, (title, lines) in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        for name, points in lines.items():
            label = name.removeprefix("eval_").replace("_", " ")
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else "")
        axes.set(xlabel="epoch", title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def curves_of(log_history: Sequence[Mapping[str, float]], pattern: str) -> dict[str, list[tuple[float, float]]]:
    """Points (epoch, value) of every logged figure whose name matches."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in log_history:
        for name, value in entry.items():
            if re.fullmatch(pattern, name):
                curves.setdefault(name, []).append((entry["epoch"], value))
    return curves
