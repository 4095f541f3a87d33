"""The tests by which a system is called better: against brute force, by hand, and on differences that are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from benchmarks import significance
from benchmarks.significance import Predictions, Runs


def sample(num_rows: int, seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and logits (*shape, N) that know of them, rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = rng.random(num_rows) < 0.4
    labels[:2] = True, False
    return labels, (rng.normal(size=(*shape, num_rows)) + labels).round(1)


# ---- over rows


def pairs(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(m, n) for each click and non-click: 1 where the click is above, ½ where they are equal."""
    gap = scores[labels][:, None] - scores[~labels]
    return (gap > 0) + (gap == 0) / 2


def covariance(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """DeLong's, of two AUCs, from the structural components of all pairs."""
    both = [pairs(labels, scores) for scores in (first, second)]
    of_clicks, of_others = ([np.mean(p, axis=axis) for p in both] for axis in (1, 0))
    return sum(np.cov(*of)[0, 1] / len(of[0]) for of in (of_clicks, of_others))


def test_delong_equals_brute_force_over_all_pairs() -> None:
    labels, (a, b) = sample(30, 1, 2)
    found = significance.delong(labels, a, b)
    variance = covariance(labels, a, a) + covariance(labels, b, b) - 2 * covariance(labels, a, b)
    assert found.difference == pytest.approx(roc_auc_score(labels, a) - roc_auc_score(labels, b))
    assert found.standard_error == pytest.approx(math.sqrt(variance))
    assert found.statistic == pytest.approx(found.difference / math.sqrt(variance))
    assert found.p == pytest.approx(2 * stats.norm.cdf(-abs(found.statistic)))
    assert (found.low, found.high) == pytest.approx(
        found.difference + 1.959964 * math.sqrt(variance) * np.array([-1, 1])
    )


def test_delong_of_one_system_is_the_variance_of_its_auc() -> None:
    """Equal scores for all rows have an AUC of one half without any variance."""
    labels, a = sample(30, 2)
    found = significance.delong(labels, a, np.zeros(30))
    assert found.difference == pytest.approx(roc_auc_score(labels, a) - 0.5)
    assert found.standard_error**2 == pytest.approx(covariance(labels, a, a))


def test_delong_without_evidence_and_without_an_auc() -> None:
    labels, a = sample(30, 3)
    assert significance.delong(labels, a, 2 * a + 1) == (0, 0, 0, 0, 1, 0, pytest.approx(math.nan, nan_ok=True))
    with pytest.raises(ValueError, match=r"all 30 labels are \[0\]"):
        significance.delong(np.zeros(30), a, a)


def test_logloss_equals_scikit_learns() -> None:
    labels, logits = sample(30, 4)
    probabilities, weights = 1 / (1 + np.exp(-logits)), np.arange(30) % 4
    assert significance.row_logloss(labels, logits).mean() == pytest.approx(log_loss(labels, probabilities))
    expected = log_loss(labels, probabilities, sample_weight=weights)
    assert significance.weighted_logloss(labels, logits)(weights) == pytest.approx(expected)


def test_the_bootstrap_covers_a_known_difference() -> None:
    """Constant logits, so that the expected loglosses are known: 95 of 100 intervals should hold their difference."""
    rate, rows = 0.3, 150
    known = math.log(2) - (math.log1p(math.e) - rate)
    covered, errors = 0, []
    for seed in range(100):
        labels = np.random.default_rng(seed).random(rows) < rate
        found = significance.bootstrap_logloss(labels, np.zeros(rows), np.ones(rows), 200, seed)
        covered += found.low <= known <= found.high
        errors.append(found.standard_error)
    assert 88 <= covered <= 99
    assert np.mean(errors) == pytest.approx(math.sqrt(rate * (1 - rate) / rows), rel=0.05)


def test_the_bootstrap_finds_a_difference_only_where_there_is_one() -> None:
    labels, logits = sample(300, 5)
    noise = np.random.default_rng(6).normal(size=300)
    better = significance.bootstrap_logloss(labels, logits, noise, 500, 0)
    assert better.high < 0  # A has the lower logloss
    assert better.p == 2 / 501
    same = significance.bootstrap_logloss(labels, logits, logits, 500, 0)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_bootstrap_p_by_hand() -> None:
    assert significance.bootstrap_p(np.array([-1.0, 1, 2, 3, 4, 5, 6, 7, 8])) == pytest.approx(2 * 2 / 10)


# ---- over rows and seeds together


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), max_size=40))
def test_weighted_auc_with_ties_equals_scikit_learns(rows: list[tuple[bool, int, int]]) -> None:
    rows = [*rows, (True, 2, 1), (False, 2, 1)]  # some weight for both labels
    labels, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert significance.weighted_auc(labels, scores)(weights) == pytest.approx(expected)


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize("name", ["auc", "logloss"])
def test_hierarchical_equals_brute_force_with_the_same_draws(name: str, is_paired: bool) -> None:
    labels, runs = sample(60, 7, 6)
    runs_a, runs_b = (runs[:3], runs[3:]) if is_paired else (runs[:4], runs[4:])

    def figure(logits: np.ndarray, weights: np.ndarray) -> float:
        if name == "auc":
            return float(roc_auc_score(labels, logits, sample_weight=weights))
        return log_loss(labels, 1 / (1 + np.exp(-logits)), sample_weight=weights)

    metric = getattr(significance, f"weighted_{name}")
    found = significance.hierarchical(labels, runs_a, runs_b, metric, 20, 8, is_paired=is_paired)
    rng = np.random.default_rng(8)
    rows = [np.bincount(rng.integers(60, size=60), minlength=60) for _ in range(20)]
    seeds_a = rng.multinomial(len(runs_a), np.full(len(runs_a), 1 / len(runs_a)), 20)
    seeds_b = seeds_a if is_paired else rng.multinomial(len(runs_b), np.full(len(runs_b), 1 / len(runs_b)), 20)
    drawn = []
    for weights, of_a, of_b in zip(rows, seeds_a, seeds_b, strict=True):
        means = [
            np.mean([figure(logits, weights) for logits in np.repeat(logits_of, of, axis=0)])
            for logits_of, of in ((runs_a, of_a), (runs_b, of_b))
        ]
        drawn.append(means[0] - means[1])
    once = np.ones(60)
    difference = np.mean([figure(x, once) for x in runs_a]) - np.mean([figure(x, once) for x in runs_b])
    assert found.difference == pytest.approx(difference)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    assert found.standard_error == pytest.approx(np.std(drawn, ddof=1))
    assert found.p == significance.bootstrap_p(np.array(drawn))


def test_hierarchical_sees_rows_and_seeds() -> None:
    """As wide as DeLong's for one seed, which is rows alone; wider where seeds differ."""
    labels, (a, b) = sample(500, 9, 2)
    rows = significance.delong(labels, a, b).standard_error
    one = significance.hierarchical(labels, a[None], b[None], significance.weighted_auc, 300, 0)
    assert one.standard_error == pytest.approx(rows, rel=0.15)
    # Every second run of A is noise: a difference between seeds that no row can explain.
    runs_a = np.stack([a, np.random.default_rng(1).normal(size=500)] * 2)
    both = significance.hierarchical(labels, runs_a, np.stack([b] * 4), significance.weighted_auc, 300, 0)
    assert both.standard_error > 2 * rows


def test_clusters_by_hand() -> None:
    """AUC 1 against 1/2; of A's and B's components the clicks differ by 0 and 1, the others by 1/2 each."""
    labels, a, b = np.array([0, 0, 1, 1]), np.array([1, 2, 3, 4]), np.array([1, 4, 3, 0])
    clicks, others = np.array([0.5, 1.0]), np.array([0.5, 1.0])
    influences = np.concatenate([others - 0.75, clicks - 0.75]) / 2
    for clusters in ([0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 2, 3]):
        sums = np.bincount(clusters, influences)
        expected = math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum())
        found = significance.delong(labels, a, b, np.array(clusters))
        assert (found.difference, found.standard_error) == (0.75, pytest.approx(expected))
    # Users 0 and 1 with a row of each kind, the better half and the worse: their rows add up.
    assert significance.delong(labels, a, b, np.array([0, 1, 0, 1])).standard_error == pytest.approx(0.5)
    assert significance.delong(labels, a, b, np.array([0, 1, 1, 0])).standard_error == 0


def test_rows_that_are_repeated_tell_nothing_new_of_their_user() -> None:
    rng, size, times = np.random.default_rng(0), 300, 5
    labels, noise = rng.random(size) < 0.5, rng.normal(size=(2, 2, size))
    runs_a, runs_b = noise[0] + 0.9 * labels, noise[1] + 0.5 * labels
    users = np.repeat(np.arange(size), times)
    labels_again, a_again, b_again = (np.repeat(x, times, axis=-1) for x in (labels, runs_a, runs_b))

    def all_of(labels: np.ndarray, a: np.ndarray, b: np.ndarray, users: np.ndarray | None) -> list[float]:
        tests = [significance.delong(labels, a[0], b[0], users)]
        tests += [significance.bootstrap_logloss(labels, a[0], b[0], 200, 1, users)]
        tests += [
            significance.hierarchical(labels, a, b, metric, 50, 1, clusters=users)
            for metric in (significance.weighted_auc, significance.weighted_logloss)
        ]
        return [figure for test in tests for figure in (test.difference, test.standard_error, test.p)]

    once = all_of(labels, runs_a, runs_b, np.arange(size))
    assert all_of(labels_again, a_again, b_again, users) == pytest.approx(once)
    assert all_of(labels, runs_a, runs_b, None) == pytest.approx(once, rel=0.02)
    assert significance.delong(labels_again, a_again[0], b_again[0]).standard_error < 0.5 * once[1]


def test_users_are_numbered_as_they_come(tmp_path: Path) -> None:
    file = tmp_path / "of" / significance.USERS
    assert significance.read_users(file) is None
    significance.write_users(np.array([70, 3, 70, -1, 3]), file)
    users = significance.read_users(file)
    assert users is not None and users.tolist() == [0, 1, 0, 2, 1]


def test_runs_that_are_not_pairs_are_refused() -> None:
    labels, runs = sample(30, 10, 5)
    with pytest.raises(ValueError, match="2 runs cannot be paired with 3"):
        significance.hierarchical(labels, runs[:2], runs[2:], significance.weighted_auc, 10, 0)
    with pytest.raises(ValueError, match="2 seeds cannot be paired with 3"):
        significance.over_seeds([1, 2], [1, 2, 3])


# ---- over seeds


def test_over_seeds_by_hand() -> None:
    """Differences 1, 2 and 3: mean 2, standard deviation 1; t of two degrees of freedom is 4.3027 at 97.5 %."""
    found = significance.over_seeds([1, 3, 5], [0, 1, 2])
    error = 1 / math.sqrt(3)
    assert found[:4] == pytest.approx((2, error, 2 - 4.30265 * error, 2 + 4.30265 * error), rel=1e-5)
    assert (found.statistic, found.effect_size) == pytest.approx((2 / error, 2))
    assert found.p == pytest.approx(2 * stats.t.sf(2 / error, 2))


def test_over_seeds_that_are_not_shared_is_welchs() -> None:
    """Variances 1 and 8, of three and two seeds: error √(1/3 + 8/2)."""
    found = significance.over_seeds([1, 2, 3], [2, 6], is_paired=False)
    error, freedom = math.sqrt(13 / 3), (13 / 3) ** 2 / ((1 / 3) ** 2 / 2 + 4**2)
    assert found[:2] == pytest.approx((-2, error))
    assert found.p == pytest.approx(2 * stats.t.sf(2 / error, freedom))
    assert math.isnan(found.effect_size)


@pytest.mark.parametrize(("a", "is_paired"), [([0.75], True), ([0.75], False), ([0.5, 1.0], False)])
def test_one_seed_has_a_difference_and_no_test(a: list[float], is_paired: bool) -> None:
    found = significance.over_seeds(a, [0.5], is_paired=is_paired)
    assert found.difference == 0.25
    assert all(math.isnan(value) for value in found[1:])


@pytest.mark.parametrize("gap", [0, 0.25, 0.1])
def test_differences_without_spread_have_no_p(gap: float) -> None:
    """Of 0.1, rounding makes differences that are not equal."""
    found = significance.over_seeds([0.5 + gap, 0.25 + gap, 0.3 + gap], [0.5, 0.25, 0.3])
    assert found[:4] == pytest.approx((gap, 0, gap, gap), abs=1e-15)
    assert math.isnan(found.p) and math.isnan(found.statistic)


def test_holm_by_hand() -> None:
    found = significance.holm([0.04, 0.01, None, 0.03, 0.9])
    assert found == pytest.approx([0.09, 0.04, math.nan, 0.09, 0.9], nan_ok=True)  # 0.04 × 2 is below 0.03 × 3
    assert significance.holm([0.6, 0.7]).tolist() == [1, 1]
    assert significance.holm([]).tolist() == []


# ---- predictions on disk


def test_predictions_as_float16_keep_the_figures(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    labels = rng.random(20_000) < 0.5
    logits = (rng.normal(0, 1.5, 20_000) + labels).astype(np.float32)
    unseen = rng.random(20_000) < 0.2
    source, target = tmp_path / "predictions.parquet", tmp_path / "predictions" / "dcnv2-1.parquet"
    table = {"row": range(20_000), "label": labels.astype(np.int8), "logit": logits, "is_unseen": unseen}
    pq.write_table(pa.table(table), source)
    significance.write_predictions(source, target)
    assert pq.read_schema(target).field("logit").type == pa.float16()
    assert pq.read_metadata(target).row_group(0).column(1).compression == "ZSTD"
    assert target.stat().st_size < 20_000 * 2.5
    found = significance.read_predictions(target)
    assert found.name == "dcnv2-1"
    assert found.labels.tolist() == labels.tolist()
    assert found.is_unseen.tolist() == unseen.tolist()
    assert found.logits == pytest.approx(logits, rel=2**-11, abs=2**-25)
    assert abs(roc_auc_score(labels, found.logits) - roc_auc_score(labels, logits)) < 2e-6
    losses = [significance.row_logloss(labels, z).mean() for z in (found.logits, logits)]
    assert abs(losses[0] - losses[1]) < 1e-5


# ---- a table's row


def system(name: str, noise: float, seeds: range, num_rows: int = 400) -> Runs:
    """Runs that are the better the less noise they have; every fourth row is unseen, and worse."""
    labels = np.arange(num_rows) % 2 == 0
    is_unseen = np.arange(num_rows) % 8 < 2
    runs = {}
    for seed in seeds:
        rng = np.random.default_rng([seed, int(100 * noise)])
        logits = 2.0 * labels - 1 + rng.normal(0, noise, num_rows) * (1 + is_unseen)
        figures = {
            "test_auc": float(roc_auc_score(labels, logits)),
            "test_logloss": float(significance.row_logloss(labels, logits).mean()),
        }
        runs[seed] = figures, Predictions(f"{name}-{seed}", labels, logits, is_unseen)
    return runs


def test_a_row_of_a_better_system() -> None:
    a, b = system("a", 1.0, range(1, 5)), system("b", 2.5, range(1, 4))
    record = significance.compare_systems(a, b, num_resamples=99)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["seeds_a"], record["seeds_b"], record["is_paired"]) == ([1, 2, 3], [1, 2, 3], True)
    auc, logloss = record["auc"], record["logloss"]
    assert auc.keys() == logloss.keys()
    aucs = [[runs[seed][0]["test_auc"] for seed in (1, 2, 3)] for runs in (a, b)]
    assert auc["difference"] == pytest.approx(np.mean(aucs[0]) - np.mean(aucs[1]))
    assert auc["p_seeds"] == pytest.approx(stats.ttest_rel(*aucs).pvalue)
    assert auc["low"] < auc["difference"] < auc["high"]
    assert logloss["low"] < logloss["difference"] < logloss["high"] < 0
    assert auc["p_hierarchical"] == logloss["p_hierarchical"] == 2 / 100
    labels = a[1][1].labels
    mean_a, mean_b = (np.mean([runs[s][1].logits for s in (1, 2, 3)], axis=0) for runs in (a, b))
    assert auc["p_rows"] == significance.delong(labels, mean_a, mean_b).p
    assert logloss["p_rows"] == significance.bootstrap_logloss(labels, mean_a, mean_b, 99, 0).p
    unseen = record["unseen_auc"]
    mask = a[1][1].is_unseen
    assert unseen["a"] == [roc_auc_score(labels[mask], a[seed][1].logits[mask]) for seed in (1, 2, 3)]
    assert unseen["difference"] == pytest.approx(np.mean(unseen["a"]) - np.mean(unseen["b"]))
    assert significance.is_better(record, auc["p_seeds"])
    assert not significance.is_better(record, 0.05)
    assert not significance.is_better(significance.compare_systems(b, a, num_resamples=99), auc["p_seeds"])


@pytest.mark.parametrize(
    ("changed", "p", "expected"),
    [
        ({}, 0.049, True),
        ({}, 0.05, False),
        ({}, math.nan, False),
        ({"low": 0.0}, 0.01, False),
        ({"low": None}, 0.01, False),
        ({"difference": -0.1}, 0.01, False),
        ({"seeds_a": [1, 2]}, 0.01, False),
        ({"seeds_b": [1, 2]}, 0.01, False),
    ],
)
def test_the_rule_of_better(changed: dict[str, Any], p: float, expected: bool) -> None:
    usual = {"seeds_a": [1, 2, 3], "seeds_b": [1, 2, 3], "difference": 0.1, "low": 0.05} | changed
    record = usual | {"auc": {key: usual[key] for key in ("difference", "low")}}
    assert significance.is_better(record, p) is expected


def test_seeds_that_are_not_shared_are_not_paired() -> None:
    record = significance.compare_systems(system("a", 1.0, range(3)), system("b", 2.5, range(2, 4)), num_resamples=99)
    assert (record["seeds_a"], record["seeds_b"], record["is_paired"]) == ([0, 1, 2], [2, 3], False)
    assert record["auc"]["p_seeds"] < 0.05
    assert record["auc"]["effect_size"] is None


def test_without_predictions_only_seeds_count() -> None:
    a, b = system("a", 1.0, range(3)), system("b", 2.5, range(3))
    older = {seed: (figures, predictions if seed else None) for seed, (figures, predictions) in b.items()}
    record, whole = (significance.compare_systems(a, other, num_resamples=99) for other in (older, b))
    assert record["unseen_auc"] is None
    for name in ("auc", "logloss"):
        kept = {key: record[name][key] for key in ("difference", "p_seeds", "effect_size")}
        assert kept == {key: whole[name][key] for key in kept}
        assert {record[name][key] for key in record[name].keys() - kept} == {None}
    assert record["auc"].keys() == whole["auc"].keys()
    assert not significance.is_better(record, 0.001)


def test_one_seed_and_no_unseen_clicks_leave_none() -> None:
    a, b = system("a", 1.0, range(1)), system("b", 2.5, range(1))
    figures, predictions = b[0]
    b = {0: (figures, predictions._replace(is_unseen=~predictions.labels))}
    record = significance.compare_systems(a, b, num_resamples=19)
    assert record["auc"]["p_seeds"] is None
    assert record["unseen_auc"]["b"] == [None]
    assert record["unseen_auc"]["difference"] is None
    json.dumps(record, allow_nan=False)


def test_runs_on_other_rows_are_named() -> None:
    a, b = system("a", 1.0, range(3)), system("b", 2.5, range(3))
    figures, predictions = b[1]
    labels = predictions.labels.copy()
    labels[[5, 8]] ^= True
    b = {**b, 1: (figures, predictions._replace(labels=labels))}
    with pytest.raises(
        ValueError, match="a-0 and b-1 were not tested on the same rows: 2 labels differ, the first in row 5"
    ):
        significance.compare_systems(a, b, num_resamples=19)
    with pytest.raises(ValueError, match=r"a-0 and c-0 .* 400 and 398 rows"):
        significance.compare_systems(a, system("c", 1.0, range(3), num_rows=398), num_resamples=19)
