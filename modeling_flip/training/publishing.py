"""What a repo on the Hub holds, and how it gets there: the one place that lays out, describes and pushes a repo.

Three come here: a training that pushes as it goes (`PublishCallback`), a run that has ended, and `model.push_to_hub`.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState
from huggingface_hub import CommitInfo, HfApi
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import HubStrategy, suppress_progress_bars
from transformers.utils import logging

from ..modeling_flip import FlipPreTrainedModel
from ..processing_flip import FlipProcessor
from .checkpoints import FOREIGN, STATE, step_of
from .hub import create_repo, is_final, push_error, upload, with_retries
from .model_card import CURVE_FILE, model_card
from .recipe import to_yaml
from .reliability import RELIABILITY_FILE

if TYPE_CHECKING:
    from .arguments import FlipTrainingArguments

logger = logging.get_logger(__name__)

RECIPE_FILE = "recipe.yaml"
SELECTION = "selection"  # folder of the model that was trained before a refit
TRIALS = "trials"  # folder of the trials of a search
RUN_FILE = "run.json"
PREDICTIONS_FILE = "test_predictions.parquet"
# Files of an output folder that are not pushed: training state, unfinished files, labels of single rows, folders of this
# machine, and foreign weights.
UNPUSHED = (
    *("checkpoints/*", "checkpoint-*/*", "runs/*", "manifests/*", ".*", "*/.*"),
    *(f"{SELECTION}/*", f"{TRIALS}/*", f"{TRIALS}.db", PREDICTIONS_FILE, RUN_FILE, *FOREIGN),
)
LAST = "last-checkpoint"
RESULTS_FILE, PRETRAINING_RESULTS_FILE = "all_results.json", "pretraining_results.json"
# Files that a push deletes from the repo unless it replaces them: those of an earlier run would look like this one's.
NOT_OF_THIS_RUN = (f"{LAST}/*", RESULTS_FILE, RELIABILITY_FILE, f"pretraining/{PRETRAINING_RESULTS_FILE}")
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


# ---- pushes


class Publisher:
    """A repo on the Hub and the pushes to it, one after another in the background. Failures are logged and kept, and never stop
    the training.

    Args:
        repo_id: where to push; without an owner, in the namespace of the token.
        private: make the repo private, if it has to be created.
        token: by default the one that is logged in.
        revision: the branch to push to.

    Attributes:
        repo_id: with its owner, once known.
        failures: the Hub's answer to each push that finally failed.
    """

    def __init__(
        self, repo_id: str, private: bool | None = None, token: str | None = None, revision: str | None = None
    ):
        self.repo_id, self.private, self.token, self.revision = repo_id, private, token, revision
        self.failures: list[str] = []
        self._last: threading.Thread | None = None

    def create(self) -> None:
        """Create the repo, before anything is trained. If the Hub cannot be reached, training goes on: each push tries again.

        Raises:
            ValueError: the Hub refuses it, such as for a token without rights.
        """
        try:
            self.repo_id = create_repo(self.repo_id, self.private, self.token)
        except Exception as error:
            if is_final(error):
                raise ValueError(f"cannot push to {self.repo_id!r}: {push_error(error)}") from error
            logger.warning(f"training goes on, though {self.repo_id!r} cannot be reached: {push_error(error)}")

    def push(
        self, folder: Path, message: str, *, ignore: Sequence[str] = (), delete_after: bool = False, **where: Any
    ) -> threading.Event:
        """Push a folder in the background, after all pushes before it; the event is set when it has arrived.

        Args:
            ignore: patterns of files that stay here.
            delete_after: whether the folder was made for this push alone.
            where: private, token or revision, other than the publisher's own.
        """
        arrived, before = threading.Event(), self._last
        ours = {"private": self.private, "token": self.token, "revision": self.revision}
        where = ours | {key: value for key, value in where.items() if value is not None}

        def push() -> None:
            if before is not None:
                before.join()  # a later push would overtake it
            try:
                with suppress_progress_bars():  # tqdm bars of two threads interfere
                    commit = upload(
                        folder,
                        self.repo_id,
                        commit_message=message,
                        ignore_patterns=ignore,
                        delete_patterns=NOT_OF_THIS_RUN,
                        **where,
                    )
                arrived.set()
                logger.warning(f"pushed to {commit.repo_url}: {message}")
            except Exception as error:  # no error may stop the training
                self.note_failure(message, error)
            finally:
                if delete_after:
                    shutil.rmtree(folder, ignore_errors=True)

        # A daemon thread: a process that must end does not wait for the Hub, only for an upload that has started.
        self._last = threading.Thread(target=push, name="push", daemon=True)
        self._last.start()
        return arrived

    @property
    def is_busy(self) -> bool:
        return self._last is not None and self._last.is_alive()

    def wait(self) -> None:
        """Wait until all pushes that were started have arrived or failed."""
        if self._last is not None:
            if self._last.is_alive():
                logger.warning("waiting for the current push")
            self._last.join()

    def note_failure(self, message: str, error: Exception) -> None:
        self.failures.append(f"{message}: {push_error(error)}")
        logger.error(f"not pushed to {self.repo_id}: {self.failures[-1]}")


class PublishCallback(TrainerCallback):
    """Pushes the best model so far at each save, with its card, and where `strategy` is "checkpoint" the state to resume from:
    one commit, in the background.

    Args:
        publisher: the repo.
        processor: the model's.
        strategy: as TrainingArguments' hub_strategy.
        subfolder: folder of the repo where the model goes; by default its root.
        folders: further folders of the repo, and where they are here.
        state_files: files that a resumed training reads beside the state, and their names in it.
        facts: further facts about the run for the card, as in all_results.json.
        always: whether a save waits while another push is running, instead of being skipped.
    """

    def __init__(
        self,
        publisher: Publisher,
        processor: FlipProcessor,
        strategy: str = "every_save",
        *,
        subfolder: str = "",
        folders: Mapping[str, Path] | None = None,
        state_files: Mapping[str, Path] | None = None,
        facts: Mapping[str, Any] | None = None,
        always: bool = False,
    ):
        self.publisher, self.processor, self.strategy = publisher, processor, HubStrategy(strategy)
        self.subfolder, self.folders, self.state_files = subfolder, folders or {}, state_files or {}
        self.facts, self.always = facts or {}, always

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for interrupted in Path(args.output_dir).glob(".push-*"):
                shutil.rmtree(interrupted, ignore_errors=True)

    def on_save(self, args: FlipTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.strategy == HubStrategy.END:
            return
        PartialState().wait_for_everyone()  # every process has written its part of the checkpoint
        if not state.is_world_process_zero:
            return
        step = state.global_step
        if self.publisher.is_busy and not self.always:
            logger.warning(f"the previous push is still running: step {step} is not pushed")
            return
        staged = Path(str(args.output_dir), f".push-{step}")
        message = f"Training in progress, step {step}"
        try:
            shutil.rmtree(staged, ignore_errors=True)
            self._lay_out(staged, kwargs["model"], args, state)
        except Exception as error:  # such as a full disk, or a curve that cannot be drawn: training goes on
            self.publisher.note_failure(message, error)
            shutil.rmtree(staged, ignore_errors=True)
        else:
            self.publisher.push(staged, message, delete_after=True)

    def _lay_out(self, staged: Path, model: Any, args: FlipTrainingArguments, state: TrainerState) -> None:
        """Hard links to the files to push, since Trainer may delete a checkpoint during its upload."""
        checkpoint = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        shown = checkpoint.with_name(f"checkpoint-{kept_step(args, state)}")
        if not shown.is_dir():
            shown = checkpoint
        link_files(shown, staged / self.subfolder, (*STATE.patterns, STATE.checksums))
        if self.strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            place = staged / (LAST if self.strategy == HubStrategy.CHECKPOINT else checkpoint.name)
            link_files(checkpoint, place, ())
            for name, file in self.state_files.items():
                shutil.copyfile(file, place / name)
        for name, folder in self.folders.items():
            link_files(folder, staged / name, ())
        if "recipe" in self.facts:
            (staged / RECIPE_FILE).write_text(to_yaml(self.facts["recipe"]))
        results = validation_of(state.log_history, step_of(shown)) | dict(self.facts)
        repo_id, revision = self.publisher.repo_id, self.publisher.revision
        write_card(staged, model, self.processor, args, results, state.log_history, repo_id, revision)


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
    """Implements `model.push_to_hub`."""
    if processor is None:
        raise ValueError("a model cannot score rows without its processor: call model.push_to_hub(repo_id, processor)")
    processor.check_belongs_to(model.config)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, processor=processor, max_shard_size=max_shard_size)
        if not create_pr:  # needed for a repo of another owner
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


# ---- what a folder holds


def write_card(
    folder: Path,
    model: Any,
    processor: FlipProcessor,
    args: FlipTrainingArguments,
    results: Mapping[str, Any],
    log_history: Sequence[Mapping[str, float]] = (),
    repo_id: str | None = None,
    revision: str | None = None,
) -> None:
    """Write README.md and, where there is a history, the training curve that it shows; `results` as in all_results.json.

    The card's example loads the model from the branch `revision` of `repo_id`; without an id, from the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_curve(folder / CURVE_FILE, log_history)
    curves = [f"{sub}{CURVE_FILE}" for sub in ("", "pretraining/") if (folder / sub / CURVE_FILE).exists()]
    hyperparameters = {name: getattr(args, name) for name in CARD_ARGUMENTS if getattr(args, name) is not None}
    if model.config.towers == "tabular":
        hyperparameters.pop("text_learning_rate", None)
    revision = revision if repo_id else None
    reliability = RELIABILITY_FILE if (folder / RELIABILITY_FILE).exists() else None
    card = model_card(
        model, processor, repo_id or str(folder), results, hyperparameters, curves, reliability, revision=revision
    )
    (folder / "README.md").write_text(card)


def kept_step(args: FlipTrainingArguments, state: TrainerState) -> int:
    """The step whose weights training ends with: the best that was saved, where that is loaded at the end, or the last."""
    return best_step(args, state) or state.global_step


def best_step(args: FlipTrainingArguments, state: TrainerState) -> int | None:
    """The step whose weights were kept for being best; None where none were chosen."""
    return step_of(state.best_model_checkpoint) if args.load_best_model_at_end else None


def validation_of(log_history: Sequence[Mapping[str, float]], step: int | None) -> dict[str, float]:
    """The training's own validation metrics at a step, named as in all_results.json."""
    at_step = (entry for entry in while_training(log_history) if "eval_auc" in entry and entry["step"] == step)
    measured = next(at_step, {})
    return {k.replace("eval_", "validation_", 1): v for k, v in measured.items() if k.startswith("eval_")}


def while_training(log_history: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """The log without what came after the training: whoever evaluates then may do so on other rows than validation's."""
    return list(takewhile(lambda entry: "train_runtime" not in entry, log_history))


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
    aucs = curves_of(while_training(log_history), r"eval_(\w+_)?auc")
    panels = [(title, lines) for title, lines in (("training loss", losses), ("validation AUC", aucs)) if lines]
    if not panels:
        return
    from matplotlib.figure import Figure  # imported here: it takes a second that scoring need not wait for

    figure = Figure(figsize=(5 * len(panels), 3.2), layout="constrained")
    for axes, (title, lines) in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        for name, points in lines.items():
            label = name.removeprefix("eval_").replace("_", " ")
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else "")
        axes.set(xlabel="epoch", title=title)
        axes.set_xlim(left=0)
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
    # A saved state is sorted: in log order, a resumed training would draw other colours.
    return dict(sorted(curves.items(), key=lambda curve: (len(curve[0]), curve[0])))
