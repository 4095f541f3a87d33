"""What runs will cost, and which of them a budget leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import reproduce
from benchmarks.protocol import Bench, System
from tests.benchmarks.conftest import QUICKSTART


@pytest.fixture
def costs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> reproduce.Costs:
    """Costs of runs that take 60 seconds for pretraining and 10 for each of three epochs."""
    stage = SimpleNamespace(training_seconds=30.0, evaluation_seconds=0.0)
    found = {"pretraining": SimpleNamespace(training_seconds=60.0, evaluation_seconds=0.0), "finetuning": stage}

    def facts(self: Any, recipe: Any) -> dict[str, Any]:
        return {name: of for name, of in found.items() if name == "finetuning" or recipe.pretraining is not None}

    monkeypatch.setattr(reproduce.Costs, "facts", facts)
    return reproduce.Costs(bench)


EPOCHS = ("--finetuning.num_train_epochs", "3")


def test_costs_count_what_is_still_to_come(bench: Bench, costs: reproduce.Costs, launched: list[Any]) -> None:
    flip, tower = System("flip", QUICKSTART, EPOCHS), System("flip-id", QUICKSTART, (*EPOCHS, "--towers", "tabular"))
    assert costs.of(flip, 1) == 2 * 90
    bench.measure(flip, 1)
    assert costs.of(flip, 2) == 60 + 20  # searched: two epochs were chosen
    assert costs.of(tower, 1) == 30 + 30  # the pretraining of both parts is there
    assert costs.of(tower, 2) == 2 * 90


def test_at_once_are_systems_of_one_seed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system's later seeds need what its first has chosen."""
    groups: list[list[str]] = []

    class Pool(contextlib.AbstractContextManager[Any]):
        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Pool:
            return self

        def map(self, _: Any, costs: Any, runs: Iterable[tuple[System, int]], ends: Any) -> list[str]:
            groups.append([f"{system.name}-{seed}" for system, seed in runs])
            return [""] * len(groups[-1])

        def __exit__(self, *_: Any) -> None: ...

    monkeypatch.setattr(reproduce, "ProcessPoolExecutor", Pool)
    dcnv2 = ("--towers", "tabular", "--pretraining", "null")
    systems = [System(name, QUICKSTART, dcnv2) for name in ("dcnv2", "other")]
    runs = [(system, seed) for seed in (1, 2) for system in systems]
    assert reproduce.make_runs(bench, runs, 60, at_once=4) == []
    assert groups == [["dcnv2-1", "other-1"], ["dcnv2-2", "other-2"]]


def test_what_does_not_fit_into_the_budget_is_left_out(
    bench: Bench, costs: reproduce.Costs, launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(reproduce.time, "monotonic", lambda: clock[0])
    measure = Bench.measure

    def takes_time(self: Bench, system: System, seed: int) -> dict[str, Any]:
        clock[0] += 100
        return measure(self, system, seed)

    monkeypatch.setattr(Bench, "measure", takes_time)
    cheap = System("dcnv2", QUICKSTART, (*EPOCHS, "--towers", "tabular", "--pretraining", "null"))
    cold = System("cold", QUICKSTART, (*EPOCHS, "--model.temperature", "0.1"))
    runs = [
        (System("flip", QUICKSTART, EPOCHS), 1),
        (cold, 1),
        (cheap, 1),
    ]
    left_out = reproduce.make_runs(bench, runs, 200, at_once=1)
    assert left_out == ["cold, seed 1: takes 3.0 min, and 1.7 are left"]
    assert sorted(path.stem for path in (bench.results / "demo").glob("*.json")) == ["dcnv2-1", "flip-1"]
    assert reproduce.make_runs(bench, [(cold, 1)], 0, at_once=1) == [reproduce.NO_TIME]
    assert reproduce.make_runs(bench, runs, float("inf"), at_once=1) == []
    assert "failed: demo, cold-13: train.py" in reproduce.make_runs(bench, [(cold, 13)], float("inf"), 1)[0]
