"""What a trained model is worth on rows that it has not been trained on: metrics, reliability plot, predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..row_dataset import FlipDataset
from .calibration import sampling_weights
from .metrics import METRICS, calibration_error, ctr_metrics, named_logits, sigmoid
from .preparation import Prepared
from .publishing import PREDICTIONS_FILE, kept_step, validation_of
from .reliability import RELIABILITY_FILE, write_reliability
from .trainer import FlipTrainer


def logged_validation(trainer: FlipTrainer, prepared: Prepared) -> dict[str, float]:
    """Validation metrics of the weights that were kept, from the log of the training; nothing where they are not there, are of
    some of the rows or of logits that were calibrated since, or gAUC is to come with them."""
    config = trainer.accelerator.unwrap_model(trainer.model).config
    is_calibrated = (config.logit_scale, config.logit_shift) != (1, 0)
    if (
        is_calibrated
        or trainer.eval_dataset is not prepared.splits.get("validation")
        or "validation" in prepared.groups
    ):
        return {}
    measured = validation_of(trainer.state.log_history, kept_step(trainer.args, trainer.state))
    return {name: value for name, value in measured.items() if name.endswith(tuple(f"_{metric}" for metric in METRICS))}


def evaluate_split(
    trainer: FlipTrainer,
    dataset: FlipDataset,
    split: str,
    groups: np.ndarray | None = None,
    negative_sampling_rate: float | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Metrics of one split, all towers; on the test split also of the rows with a value never seen in training.

    Their reliability plot and the predictions of each row go to `folder`. Of a calibrated model also
    `ece_before`, the calibration error without its calibration.
    """
    output = trainer.predict_logits(dataset, split)
    labels = np.asarray(output.label_ids)
    weights = sampling_weights(labels, negative_sampling_rate)
    metrics = ctr_metrics(output.predictions, labels, groups, weights)
    config = trainer.accelerator.unwrap_model(trainer.model).config
    if (config.logit_scale, config.logit_shift) != (1, 0):
        before = (named_logits(output.predictions)[""] - config.logit_shift) / config.logit_scale
        metrics["ece_before"] = calibration_error(sigmoid(before), labels, weights)
    results: dict[str, Any] = {f"{split}_{k}": v for k, v in metrics.items()}
    if folder is not None and trainer.is_world_process_zero():
        write_reliability(folder / RELIABILITY_FILE, output.predictions, labels, weights)
        write_predictions(folder / PREDICTIONS_FILE, output.predictions, labels, dataset.has_unseen_value)
    if split == "test":
        unseen = dataset.has_unseen_value
        results["test_rows_per_second"] = (output.metrics or {}).get("test_samples_per_second")
        results["test_unseen_rows"] = int(unseen.sum())
        if len(np.unique(labels[unseen])) == 2:
            logits = output.predictions
            picked = tuple(x[unseen] for x in logits) if isinstance(logits, tuple) else logits[unseen]
            weights = None if weights is None else weights[unseen]
            of_unseen = ctr_metrics(picked, labels[unseen], weights=weights)
            results |= {f"test_unseen_{k}": v for k, v in of_unseen.items()}
    return results


def write_predictions(path: Path, logits: Any, labels: np.ndarray, is_unseen: np.ndarray) -> None:
    """Of each row `label`, `logit`, where there are two towers `tabular_logit` and `text_logit`, and `is_unseen`, whether it has
    a value that training never saw."""
    columns: dict[str, np.ndarray] = {"label": labels > 0.5}
    columns |= {f"{tower}logit": z.astype(np.float32) for tower, z in named_logits(logits).items()}
    pq.write_table(pa.table(columns | {"is_unseen": is_unseen}), path, compression="zstd")
