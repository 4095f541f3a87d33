"""Whether probabilities are click rates: the reliability of a prediction, bin by bin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .metrics import named_logits, sigmoid

RELIABILITY_FILE = "reliability.png"
NUM_BINS = 20
COLOURS = {"": "C0", "tabular_": "C1", "text_": "C2"}


@dataclass(frozen=True)
class Reliability:
    """Bins of rows by increasing probability; each attribute is (bins,).

    Attributes:
        rows: number of rows.
        probability: their mean probability.
        click_rate: the share of clicks.
        error: standard error of the click rate.
    """

    rows: np.ndarray
    probability: np.ndarray
    click_rate: np.ndarray
    error: np.ndarray


def reliability(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None, num_bins: int = NUM_BINS
) -> Reliability:
    """Mean probability and click rate in bins of equal size; rows with the same logit share a bin.

    Args:
        logits: (N,).
        labels: (N,) 0 or 1.
        weights: (N,) how many rows of the whole log each stands for.
    """
    weights = np.ones(len(logits)) if weights is None else weights
    edges = np.unique(np.quantile(logits, np.linspace(0, 1, num_bins + 1)[1:-1], method="lower"))
    bins = np.searchsorted(edges, logits, side="left")
    weight, click = np.bincount(bins, weights), np.bincount(bins, weights * labels)
    kept = weight > 0
    with np.errstate(invalid="ignore"):
        rate = click / weight
        squares = np.bincount(bins, (weights * (labels - rate[bins])) ** 2)
        columns = np.bincount(bins), np.bincount(bins, weights * sigmoid(logits)) / weight, rate, squares**0.5 / weight
    return Reliability(*(column[kept] for column in columns))


def write_reliability(
    path: Path, logits: np.ndarray | Iterable[np.ndarray], labels: np.ndarray, weights: np.ndarray | None = None
) -> None:
    """Plot click rate against mean probability for the model and each of its towers, and a histogram of the probabilities;
    arguments as for `ctr_metrics`."""
    from matplotlib.figure import Figure  # imported here: it takes a second that scoring need not wait for

    titles = {"": "model", "tabular_": "tabular tower", "text_": "text tower"}
    named = named_logits(logits)
    curves = {prefix: reliability(z, labels, weights) for prefix, z in named.items()}
    # Only as far as the bins reach: if clicks are rare, all of them are near 0.
    end = 1.05 * max(max(curve.probability.max(), (curve.click_rate + curve.error).max()) for curve in curves.values())
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for prefix, curve in curves.items():
        style = {"color": COLOURS[prefix], "alpha": 1.0 if prefix == "" else 0.55}
        axes.errorbar(curve.probability, curve.click_rate, curve.error, marker="o", ms=4, label=titles[prefix], **style)
        below.hist(np.minimum(sigmoid(named[prefix]), end), bins=40, range=(0, end), histtype="step", **style)
    rows = curves[""].rows
    each = f"{rows.min():,}" if np.ptp(rows) == 0 else f"{rows.min():,} to {rows.max():,}"
    axes.set_title(f"{len(rows)} bins of {each} rows", fontsize="medium")
    axes.plot([0, end], [0, end], color="0.6", lw=1, ls="--", zorder=0, label="calibrated")
    axes.set(xlim=(0, end), ylim=(0, end), ylabel="click rate")
    below.set(xlabel="predicted probability", ylabel="rows")
    for panel in (axes, below):
        panel.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
