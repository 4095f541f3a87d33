"""Whether one system is better than another: tests over rows, over seeds and over both, and the record that a table reads.

A difference is always A's figure less B's: where A is better it is above 0 for AUC and below 0 for logloss.

Rows of one user depend on each other, and a test set has far fewer users than rows: where the users are known, tests over rows
keep the rows of each together (`clusters`). Otherwise they take rows as independent, and find too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats
from sklearn.metrics import roc_auc_score

MIN_SEEDS = 3
ALPHA = 0.05
BATCH_VALUES = 1 << 20  # of resampled rows in memory at a time
USERS = "users.parquet"  # beside the predictions of a dataset
PREDICTION_TYPES = {"label": bool, "logit": np.float16, "is_unseen": bool}


class Difference(NamedTuple):
    """A's figure less B's, its 95 % interval, and the two-sided p of there being none.

    `statistic` is DeLong's z or the t of a t-test, `effect_size` Cohen's d_z; NaN where a test has none.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    p: float
    statistic: float = math.nan
    effect_size: float = math.nan


class Predictions(NamedTuple):
    """A run's predictions of the N test rows, in the test split's order."""

    name: str  # SYSTEM-SEED
    labels: np.ndarray  # (N,) bool
    logits: np.ndarray  # (N,) float64
    is_unseen: np.ndarray  # (N,) bool: a value of the row was never seen in training


# One a seed or a test; None where it is not defined.
Figures = Sequence[float | None] | np.ndarray
# A run's figures, as all_results.json has them, and its predictions where they were kept; by seed.
Runs = Mapping[int, tuple[Mapping[str, Any], Predictions | None]]
# Takes labels and scores, (N,) each, and returns the function from row weights (N,) to the figure.
Metric = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], float]]


# ---- predictions on disk


def write_predictions(source: Path, target: Path) -> None:
    """Writes the label, logit and is_unseen columns of one Parquet file to another, smaller: logits as float16, by zstd."""
    table = pq.read_table(source, columns=list(PREDICTION_TYPES))
    small = pa.table({name: table[name].to_numpy().astype(kind) for name, kind in PREDICTION_TYPES.items()})
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(small, target, compression="zstd", use_dictionary=False)


def read_predictions(path: Path) -> Predictions:
    """Reads the predictions of a run from SYSTEM-SEED.parquet."""
    table = pq.read_table(path, columns=list(PREDICTION_TYPES))
    labels, logits, is_unseen = (table[name].to_numpy() for name in PREDICTION_TYPES)
    return Predictions(path.stem, labels.astype(bool), logits.astype(np.float64), is_unseen.astype(bool))


def write_users(users: np.ndarray, target: Path) -> None:
    """Writes whose the test rows are, (N,): users are numbered as they come, so that nothing else is told of them."""
    _, first, numbers = np.unique(users, return_index=True, return_inverse=True)
    in_order = np.argsort(np.argsort(first))
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"user": in_order[numbers].astype(np.int32)}), target, compression="zstd")


def read_users(path: Path) -> np.ndarray | None:
    """(N,) the number of each test row's user; None where there is no such file."""
    return pq.read_table(path)["user"].to_numpy() if path.exists() else None


# ---- over rows


def delong(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, clusters: np.ndarray | None = None
) -> Difference:
    """The difference of two AUCs on the same rows, by DeLong's test; with clusters by Obuchowski's, whose variance is that of
    the clusters' sums (Nonparametric analysis of clustered ROC curve data, Biometrics 53 (1997)).

    DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated receiver operating characteristic
    curves, Biometrics 44 (1988); in O(N log N) from mid-ranks by Sun and Xu, Fast implementation of DeLong's algorithm, IEEE
    Signal Processing Letters 21 (2014). Identical rankings give z = 0 and p = 1.

    Args:
        labels: (N,) 0 or 1.
        scores_a, scores_b: (N,) increasing with the probability.
        clusters: (N,) 0, 1, …: rows of the same number depend on each other.

    Raises:
        ValueError: the labels are all the same.

    Example:
        >>> delong(np.array([0, 0, 1, 1]), np.array([1, 3, 2, 4]), np.array([1, 2, 3, 4])).difference
        -0.25
    """
    clicked = _clicks(labels)
    of_clicks, of_others = (
        a - b for a, b in zip(_components(clicked, scores_a), _components(clicked, scores_b), strict=True)
    )
    difference = of_clicks.mean()
    if clusters is None:
        error = math.hypot(stats.sem(of_clicks), stats.sem(of_others))
    else:
        influences = np.empty(len(clicked))
        influences[clicked] = (of_clicks - difference) / len(of_clicks)
        influences[~clicked] = (of_others - difference) / len(of_others)
        sums = np.bincount(clusters, influences)
        error = math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum())
    with np.errstate(divide="ignore"):
        z = np.divide(difference, error) if difference else 0.0
    half = stats.norm.isf(ALPHA / 2) * error
    p = 2 * stats.norm.sf(abs(z))
    return Difference(*map(float, (difference, error, difference - half, difference + half, p, z)))


def _clicks(labels: np.ndarray) -> np.ndarray:
    """(N,) bool. Raises ValueError where they are all the same."""
    clicked = np.asarray(labels).astype(bool)
    if clicked.all() or not clicked.any():
        raise ValueError(
            f"AUC needs clicks and non-clicks, but all {len(clicked)} labels are {clicked[:1].astype(int)}"
        )
    return clicked


def _components(clicked: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The structural components of an AUC by Sun and Xu's mid-ranks, one for each of the m clicks and n non-clicks: for a
    click the share of non-clicks below it, for a non-click the share of clicks above it, ties as half; both have the AUC as
    their mean.
    """
    ranks = stats.rankdata(scores)
    m, n = clicked.sum(), (~clicked).sum()
    below = (ranks[clicked] - stats.rankdata(scores[clicked])) / n
    above = 1 - (ranks[~clicked] - stats.rankdata(scores[~clicked])) / m
    return below, above


def row_logloss(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The logloss of each row from logits, float64, in their shape."""
    z = np.asarray(logits, np.float64)
    return np.logaddexp(0, z) - np.asarray(labels) * z


def bootstrap_logloss(
    labels: np.ndarray,
    logits_a: np.ndarray,
    logits_b: np.ndarray,
    num_resamples: int,
    seed: int,
    clusters: np.ndarray | None = None,
) -> Difference:
    """The difference of two loglosses on the same rows, by the paired bootstrap over rows, or over clusters of rows: the
    percentile interval, and the p of `bootstrap_p` (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §13.3).

    Args:
        labels, logits_a, logits_b, clusters: (N,) each.
    """
    differences = row_logloss(labels, logits_a) - row_logloss(labels, logits_b)
    sums, sizes = differences, np.ones(len(differences))
    if clusters is not None:
        sums, sizes = np.bincount(clusters, differences), np.bincount(clusters).astype(np.float64)
    found = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        n_resamples=num_resamples,
        batch=max(1, BATCH_VALUES // len(sums)),
        paired=True,
        vectorized=True,
        confidence_level=1 - ALPHA,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, found.confidence_interval)
    p = bootstrap_p(found.bootstrap_distribution)
    return Difference(float(differences.mean()), float(found.standard_error), low, high, p)


def bootstrap_p(resampled: np.ndarray) -> float:
    """Two-sided p from resampled differences (R,): twice the smaller share of them on one side of 0, the sample itself counted
    in, so that it is never below 2 / (R + 1) (Davison and Hinkley, Bootstrap Methods and their Application, 1997, ch. 4)."""
    smaller = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(resampled) + 1)))


# ---- over rows and seeds together


def weighted_auc(labels: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], float]:
    """AUC of weighted rows, as a function of the weights (N,). Scores are sorted once; then each weighting costs O(N).

    Raises:
        ValueError: the labels are all the same.

    Example:
        >>> weighted_auc(np.array([0, 1, 0]), np.array([0.1, 0.4, 0.8]))(np.array([3, 1, 1]))
        0.75
    """
    distinct, rank = np.unique(scores, return_inverse=True)
    size = len(distinct)
    cell = rank + size * _clicks(labels)  # non-clicks by score, then clicks by score

    def auc(weights: np.ndarray) -> float:
        others, clicks = np.bincount(cell, weights, 2 * size).reshape(2, size)
        below = others.cumsum()
        return float(clicks @ (below - others / 2) / (clicks.sum() * below[-1]))

    return auc


def weighted_logloss(labels: np.ndarray, logits: np.ndarray) -> Callable[[np.ndarray], float]:
    """Logloss of weighted rows, as a function of the weights (N,)."""
    losses = row_logloss(labels, logits)
    return lambda weights: float(losses @ weights / weights.sum())


def hierarchical(
    labels: np.ndarray,
    runs_a: np.ndarray,
    runs_b: np.ndarray,
    metric: Metric,
    num_resamples: int,
    seed: int,
    *,
    is_paired: bool = True,
    clusters: np.ndarray | None = None,
) -> Difference:
    """The difference of two systems' mean figures, with seeds and rows resampled together.

    Each resample draws seeds with replacement, and rows, or clusters of rows, with replacement. All runs are tested on the same
    rows, so rows and seeds are crossed: one draw of rows goes to all runs (the pigeonhole bootstrap; Owen, The pigeonhole
    bootstrap, Annals of Applied Statistics 1 (2007)). An own draw for each seed would average away what rows contribute.
    Resampling S seeds shows only (S - 1) / S of the variance between them, so that with few seeds the interval is too narrow,
    and one seed is rows alone; `over_seeds` has no such bias.

    Args:
        labels: (N,) 0 or 1.
        runs_a, runs_b: (S, N) logits, a run a row; the numbers of runs may differ if they are not paired.
        metric: `weighted_auc` or `weighted_logloss`.
        is_paired: row s of both has the same seed: both systems get the same draw of seeds.
        clusters: (N,) 0, 1, …: rows of the same number are drawn together.

    Raises:
        ValueError: paired systems have different numbers of runs.
    """
    if is_paired and len(runs_a) != len(runs_b):
        raise ValueError(f"{len(runs_a)} runs cannot be paired with {len(runs_b)}; give is_paired=False")
    rng = np.random.default_rng(seed)
    figures = [metric(labels, logits) for logits in (*runs_a, *runs_b)]
    num_rows = len(labels)
    drawn_as = np.arange(num_rows) if clusters is None else clusters
    size = int(drawn_as.max()) + 1
    resampled = np.empty((num_resamples, len(figures)))
    for resample in resampled:
        weights = np.bincount(rng.integers(size, size=size), minlength=size)[drawn_as]
        resample[:] = [figure(weights) for figure in figures]
    shares_a = _seed_shares(rng, len(runs_a), num_resamples)
    shares_b = shares_a if is_paired else _seed_shares(rng, len(runs_b), num_resamples)
    resampled_a, resampled_b = np.split(resampled, [len(runs_a)], axis=1)
    differences = (resampled_a * shares_a).sum(1) - (resampled_b * shares_b).sum(1)  # (R,)
    once = np.ones(num_rows)
    values = [figure(once) for figure in figures]
    difference = np.mean(values[: len(runs_a)]) - np.mean(values[len(runs_a) :])
    low, high = np.quantile(differences, [ALPHA / 2, 1 - ALPHA / 2])
    error = differences.std(ddof=1)
    return Difference(*map(float, (difference, error, low, high, bootstrap_p(differences))))


def _seed_shares(rng: np.random.Generator, num_seeds: int, num_resamples: int) -> np.ndarray:
    """(R, S) how often each seed was drawn, divided by S."""
    return rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples) / num_seeds


# ---- over seeds


def over_seeds(a: Figures, b: Figures, *, is_paired: bool = True) -> Difference:
    """The difference of two systems' mean figures by a t-test over seeds: paired, with Cohen's d_z as effect size (Cohen,
    Statistical Power Analysis for the Behavioral Sciences, 1988, §2.3.5), or Welch's (Biometrika 34, 1947).

    Fewer than two seeds of a system give its difference, and NaN for all else; so do differences without any spread for t, p
    and d_z.

    Args:
        a, b: (S,) a figure a seed; if paired, in the same order of seeds.

    Raises:
        ValueError: paired systems have different numbers of seeds.
    """
    a, b = np.array(a, np.float64), np.array(b, np.float64)
    if is_paired and len(a) != len(b):
        raise ValueError(f"{len(a)} seeds cannot be paired with {len(b)}; give is_paired=False")
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Difference(difference, *[math.nan] * 4)
    error = stats.sem(a - b) if is_paired else math.hypot(stats.sem(a), stats.sem(b))
    if error <= np.finfo(np.float64).eps * max(abs(a).max(), abs(b).max()):  # what rounding leaves of none
        return Difference(difference, 0.0, difference, difference, math.nan)
    test = stats.ttest_rel(a, b) if is_paired else stats.ttest_ind(a, b, equal_var=False)
    effect_size = test.statistic / math.sqrt(len(a)) if is_paired else math.nan
    interval = test.confidence_interval(1 - ALPHA)
    return Difference(
        *map(float, (difference, error, interval.low, interval.high, test.pvalue, test.statistic, effect_size))
    )


def holm(p_values: Figures) -> np.ndarray:
    """Holm's correction of the p values (T,) of one table, in their order (Holm, A simple sequentially rejective multiple test
    procedure, Scandinavian Journal of Statistics 6 (1979)). NaN and None are no tests, and stay NaN.

    Example:
        >>> holm([0.02, 0.01]).tolist()
        [0.02, 0.02]
    """
    p = np.array(p_values, np.float64)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN comes last
    corrected = np.full(len(p), math.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return corrected


# ---- a table's row


def compare_systems(
    a: Runs, b: Runs, num_resamples: int = 1000, seed: int = 0, users: np.ndarray | None = None
) -> dict[str, Any]:
    """What a table's row says of system A against system B, ready for JSON.

    Compared are the seeds that both have, paired, where these are at least two; else all, unpaired. Row-level figures need
    the predictions of every run that is compared; else they are None, and so is what is not defined.

    Args:
        users: (N,) whose the test rows are: rows of one user are kept together. None takes rows as independent.

    Returns:
        `seeds_a`, `seeds_b`, `is_paired` and `users`, how many there are; `auc` and `logloss`, with each
            `difference`: of the means over seeds, from the test figures.
            `low`, `high`, `p_hierarchical`: of `hierarchical`, seeds and rows together.
            `p_seeds`, `effect_size`: of `over_seeds`: whether another seed would show the difference on these rows.
            `p_rows`: of `delong` (AUC) or `bootstrap_logloss`, on logits averaged over seeds: whether other rows would show a
            difference between these two ensembles. The trained models are fixed: it says nothing of other seeds, and an
            ensemble can be better than another where the single runs are not.
        and `unseen_auc`: `a` and `b`, each run's AUC on its rows with an unseen value, and of these `difference`, `p_seeds`
        and `effect_size`.

    Raises:
        ValueError: two runs were tested on different rows, or the users are those of other rows.
    """
    shared = sorted(a.keys() & b.keys())
    is_paired = len(shared) >= 2
    seeds_a, seeds_b = (shared, shared) if is_paired else (sorted(a), sorted(b))
    runs_a, runs_b = [a[s] for s in seeds_a], [b[s] for s in seeds_b]
    predictions_a, predictions_b = _all_predictions(runs_a), _all_predictions(runs_b)
    record: dict[str, Any] = {"seeds_a": seeds_a, "seeds_b": seeds_b, "is_paired": is_paired}
    record["users"] = None if users is None else len(np.unique(users))
    for name in ("auc", "logloss"):
        figures_a, figures_b = ([figures[f"test_{name}"] for figures, _ in runs] for runs in (runs_a, runs_b))
        record[name] = _seed_figures(over_seeds(figures_a, figures_b, is_paired=is_paired))
        record[name] |= dict.fromkeys(("low", "high", "p_hierarchical", "p_rows"))
    record["unseen_auc"] = None
    if not predictions_a or not predictions_b:
        return record
    labels = _same_labels([*predictions_a, *predictions_b])
    if users is not None and len(users) != len(labels):
        raise ValueError(
            f"{USERS} has {len(users):,} rows, the predictions {len(labels):,}: remove it to write it again"
        )
    logits_a, logits_b = (np.stack([p.logits for p in of]) for of in (predictions_a, predictions_b))
    ensembles = logits_a.mean(0), logits_b.mean(0)
    rows = {
        "auc": delong(labels, *ensembles, users),
        "logloss": bootstrap_logloss(labels, *ensembles, num_resamples, seed, users),
    }
    for name, metric in (("auc", weighted_auc), ("logloss", weighted_logloss)):
        both = hierarchical(
            labels, logits_a, logits_b, metric, num_resamples, seed, is_paired=is_paired, clusters=users
        )
        record[name] |= {"low": both.low, "high": both.high, "p_hierarchical": both.p, "p_rows": rows[name].p}
    unseen_a, unseen_b = ([unseen_auc(p) for p in of] for of in (predictions_a, predictions_b))
    record["unseen_auc"] = {"a": unseen_a, "b": unseen_b} | _seed_figures(
        over_seeds(unseen_a, unseen_b, is_paired=is_paired)
    )
    return record


def is_better(record: Mapping[str, Any], corrected_p: float) -> bool:
    """Whether the record of `compare_systems` lets A be called better than B.

    It does where all of these hold: both systems have at least `MIN_SEEDS` seeds; A's mean AUC is higher; the p of AUC over
    seeds, corrected by `holm` within the table, is below 0.05; and the hierarchical 95 % interval of the difference lies
    above 0. Both are needed: the test over seeds takes the test rows as given, and few seeds make the interval too narrow.
    Without predictions there is no interval, and nothing is called better.

    Args:
        corrected_p: `p_seeds` of the record's `auc`, after `holm`; NaN for none.
    """
    auc = record["auc"]
    has_seeds = min(len(record["seeds_a"]), len(record["seeds_b"])) >= MIN_SEEDS
    is_above = auc["difference"] > 0 and auc["low"] is not None and auc["low"] > 0
    return bool(has_seeds and is_above and corrected_p < ALPHA)


def unseen_auc(predictions: Predictions) -> float | None:
    """AUC on the rows with an unseen value; None where there are no such clicks or no such non-clicks."""
    labels, logits = (x[predictions.is_unseen] for x in (predictions.labels, predictions.logits))
    return float(roc_auc_score(labels, logits)) if len(np.unique(labels)) == 2 else None


def _all_predictions(runs: Sequence[tuple[Mapping[str, Any], Predictions | None]]) -> list[Predictions]:
    """Every run's, or none."""
    kept = [predictions for _, predictions in runs if predictions is not None]
    return kept if len(kept) == len(runs) else []


def _same_labels(predictions: Sequence[Predictions]) -> np.ndarray:
    """The (N,) labels that all runs have. Raises ValueError for two that differ."""
    first, *others = predictions
    for other in others:
        if len(first.labels) != len(other.labels):
            what = f"{len(first.labels):,} and {len(other.labels):,} rows"
        elif (differ := np.flatnonzero(first.labels != other.labels)).size:
            what = f"{len(differ):,} labels differ, the first in row {differ[0]}"
        else:
            continue
        raise ValueError(f"{first.name} and {other.name} were not tested on the same rows: {what}")
    return first.labels


def _seed_figures(found: Difference) -> dict[str, float | None]:
    """What a record keeps of a test over seeds; None for NaN, which JSON lacks."""
    kept = {"difference": found.difference, "p_seeds": found.p, "effect_size": found.effect_size}
    return {name: None if math.isnan(value) else value for name, value in kept.items()}
