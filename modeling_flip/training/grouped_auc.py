"""AUC within groups: how well the rows of each user are ranked, whatever the click rates of the users."""

from __future__ import annotations

import numpy as np


def gauc(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """The mean of the AUCs within groups, weighted by their rows (Zhou et al., Deep Interest Network, KDD '18, Eq. 7).

    Groups with a single label have no AUC and are left out, and so are rows without a group (negative).

    Args:
        logits: (N,) scores, increasing with the probability.
        labels: (N,) 0 or 1.
        groups: (N,) integers.

    Returns:
        gAUC, and the share of the rows that it covers; (nan, 0.0) where no group has both labels.

    Example:
        >>> gauc(np.array([0.1, 0.9, 0.7, 0.3, 0.5]), np.array([0, 1, 0, 1, 1]), np.array([0, 0, 1, 1, 2]))
        (0.5, 0.8)
    """
    total = len(logits)
    kept = groups >= 0
    logits, labels, groups = np.asarray(logits)[kept], np.asarray(labels)[kept] == 1, groups[kept]
    order = np.lexsort((logits, groups))
    logits, labels, groups = logits[order], labels[order], groups[order]
    new_group = np.r_[True, groups[1:] != groups[:-1]][: len(groups)]
    group = np.cumsum(new_group) - 1  # (N,) 0, 0, 1, …
    # Equal logits of a group share the mean of their ranks.
    new_run = new_group | np.r_[True, logits[1:] != logits[:-1]][: len(groups)]
    starts = np.flatnonzero(new_run)
    lengths = np.diff(np.r_[starts, len(groups)])
    ranks = np.repeat(starts + (lengths - 1) / 2, lengths) - np.flatnonzero(new_group)[group] + 1
    size = np.bincount(group)
    clicks = np.bincount(group, weights=labels)
    pairs = clicks * (size - clicks)
    both = pairs > 0
    if not both.any():
        return float("nan"), 0.0
    above = np.bincount(group, weights=ranks * labels) - clicks * (clicks + 1) / 2
    auc = above[both] / pairs[both]
    return float(np.average(auc, weights=size[both])), float(size[both].sum() / total)
