"""Calibration: logits scaled and shifted after training, so that probabilities are click rates."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from transformers.utils import logging

logger = logging.get_logger(__name__)


def platt(logits: np.ndarray, clicks: np.ndarray) -> tuple[float, float]:
    """The scale and the shift that make logits fit clicks best (Platt, Probabilistic Outputs for Support Vector Machines, 1999).

    As there, the target of a click is (N₊ + 1) / (N₊ + 2), and of a non-click 1 / (N₋ + 2), so that few rows, or a model that
    is never wrong, do not make it certain.

    Args:
        logits: (N,) of rows that were not trained on.
        clicks: (N,) 0 or 1, both present.

    Returns:
        scale and shift; 1 and 0, with a warning, if higher logits do not mean more clicks.
    """
    positives, negatives = int((clicks == 1).sum()), int((clicks == 0).sum())
    target = np.where(clicks == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # Each row counts once as a click and once as a non-click, weighted by its target.
    fitted = LogisticRegression(C=np.inf).fit(
        np.concatenate([logits, logits])[:, None].astype(np.float64),
        np.repeat([1, 0], len(logits)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    scale, shift = float(fitted.coef_.item()), float(fitted.intercept_.item())
    if scale <= 0:
        logger.warning(
            f"not calibrated: on the validation rows, higher logits do not mean more clicks (scale {scale:.3g})"
        )
        return 1.0, 0.0
    return scale, shift


def sampling_shift(negative_sampling_rate: float | None) -> float:
    """The shift that corrects the logit for a log that kept only this share of its non-clicks: log r, which is q = p / (p + (1
    − p) / r) (He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD '14, §6.3).

    Example:
        >>> 1 / (1 + np.exp(-(0.0 + sampling_shift(0.1))))  # 1 click to 1 non-click kept is 1 to 10
        0.09090909090909091
    """
    return 0.0 if negative_sampling_rate is None else float(np.log(negative_sampling_rate))


def sampling_weights(clicks: np.ndarray, negative_sampling_rate: float | None) -> np.ndarray | None:
    """(N,) how many rows of the whole log each row stands for; None if the log is complete."""
    return None if negative_sampling_rate is None else np.where(clicks == 1, 1.0, 1 / negative_sampling_rate)
