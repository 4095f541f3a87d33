"""What Trainer's `report_to` writes, TensorBoard's and others', stage by stage, and one line of the log for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, Trainer
from transformers.integrations import TensorBoardCallback, WandbCallback, get_reporting_integration_callbacks

LOGS = "runs"  # the folder of TensorBoard's files beside the model


def keep_logs(trainer: Trainer, folder: Path, stage: str) -> None:
    """Let TensorBoard's files of a stage be in `runs/STAGE` of the run's folder (or of TENSORBOARD_LOGGING_DIR): Trainer would
    write them among the checkpoints, which are deleted at the end, and with that variable those of both stages to one place."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(Path(callback.logging_dir or folder / LOGS) / stage)


def end_logs(trainer: Trainer) -> None:
    """End what reporters write of a stage. Trainer leaves a run on Weights & Biases open, so that the next stage would go on with
    it; and scoring afterwards would begin one anew on trackio, or fail where there is none."""
    for reporter in get_reporting_integration_callbacks(trainer.args.report_to):
        callback = trainer.pop_callback(reporter)
        if isinstance(callback, WandbCallback):
            callback._wandb.finish()


class CalmProgress(ProgressCallback):
    """Trainer's bar, with `line` in the place of its dictionaries."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(line(logs or {}))


def line(logs: Mapping[str, Any]) -> str:
    """What a log entry says of the training: its loss and the parts of it, or the validation metrics, α, and rows per second.

    Example:
        >>> line({"loss": 2.1081, "joint_loss": 0.6947, "text_loss": 0.7245, "alpha": 0.5021, "epoch": 1.0})
        'epoch 1.00  loss 2.108 (joint 0.6947, text 0.7245)  α 0.502'
        >>> line({"eval_auc": 0.5517, "eval_text_auc": 0.5951, "eval_logloss": 0.6852, "epoch": 1.0})
        'epoch 1.00  validation AUC 0.5517 (text 0.5951)  logloss 0.6852'
    """
    said = [f"epoch {logs['epoch']:.2f}"] if "epoch" in logs else []

    def add(words: str, total: str, ending: str) -> None:
        """A figure, and in brackets those of its parts."""
        prefix = "eval_" if total.startswith("eval_") else ""
        parts = {
            key.removeprefix(prefix).removesuffix(ending): value
            for key, value in logs.items()
            if key != total and key.startswith(prefix) and key.endswith(ending) and not key.startswith("train_")
        }
        if total in logs:
            inside = ", ".join(f"{part} {value:.4g}" for part, value in parts.items())
            said.append(f"{words} {logs[total]:.4g}" + (f" ({inside})" if inside else ""))

    add("loss", "loss", "_loss")
    add("validation AUC", "eval_auc", "_auc")
    for key, words, digits in (
        ("eval_logloss", "logloss", ".4g"),
        ("alpha", "α", ".3f"),
        ("learning_rate", "learning rate", ".3g"),
        ("train_loss", "mean loss", ".4g"),
        ("train_samples_per_second", "rows/s", ",.0f"),
        ("eval_samples_per_second", "rows/s", ",.0f"),
    ):
        if key in logs:
            said.append(f"{words} {logs[key]:{digits}}")
    if "eval_loss" in logs and "eval_auc" not in logs:
        said.insert(1, f"validation loss {logs['eval_loss']:.4g}")
    return "  ".join(said)
