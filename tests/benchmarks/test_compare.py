"""The harness: what is run, what is not run again, what is shared, and the table that comes of it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks import compare, results_table

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--finetuning.max_steps", "2", "--max_train_samples", "500", "--pretraining.max_steps", "2"]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of its own."""
    monkeypatch.setattr(results_table, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands instead of processes: each leaves what a run would leave."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> SimpleNamespace:
        commands.append(command)
        if "fails.yaml" in command[3]:
            return SimpleNamespace(returncode=1)
        folder = Path(command[command.index("--output_dir") + 1])
        (folder / "pretraining").mkdir(parents=True)
        (folder / "all_results.json").write_text("{}")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def recipe(path: Path, *lines: str, epochs: int = 1) -> str:
    text = ["dataset_name: demo", "output_dir: somewhere", "text_model_name_or_path: bert", *lines]
    path.write_text("\n".join([*text, f"pretraining: {{num_train_epochs: {epochs}}}"]))
    return str(path)


@pytest.mark.slow
def test_a_run_leaves_its_figures_and_is_not_run_again(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    quickstart = [str(ROOT / "configuration" / "quickstart.yaml")]
    arguments = [*QUICK, "--towers", "tabular", "--pretraining.per_device_train_batch_size", "8"]
    assert compare.compare(quickstart, [5], arguments, tmp_path / "models") == []
    written = results / "demo" / "quickstart-5.json"
    figures = json.loads(written.read_text())
    assert figures["seed"] == 5
    assert figures["train_samples_per_second"] > 0
    assert figures["test_rows_per_second"] > 0
    began = written.stat().st_mtime_ns
    monkeypatch.setattr(subprocess, "run", lambda command: pytest.fail("it ran again"))
    assert compare.compare(quickstart, [5], arguments, tmp_path / "models") == []
    assert written.stat().st_mtime_ns == began


def test_recipes_with_the_same_pretraining_share_it(results: Path, launched: list[list[str]], tmp_path: Path) -> None:
    paths = [
        recipe(tmp_path / "flip.yaml", "towers: both"),
        recipe(tmp_path / "flip-id.yaml", "towers: tabular", "model: {dropout: 0.5}"),
        recipe(tmp_path / "other.yaml", "towers: both", epochs=2),
        recipe(tmp_path / "deepfm.yaml", "tabular_tower: deepfm"),
    ]
    assert compare.compare(paths, [1, 2], [], tmp_path / "models") == []
    shared = {}
    for command in launched:
        name = f"{Path(command[3]).stem}-{command[command.index('--seed') + 1]}"
        given = dict(zip(command[4::2], command[5::2], strict=True))
        shared[name] = given.get("--pretrained_model_name_or_path")
    ours = str(tmp_path / "models" / "demo")
    assert shared.pop("flip-id-1") == f"{ours}/flip-1/pretraining"
    assert shared.pop("flip-id-2") == f"{ours}/flip-2/pretraining"
    assert len(shared) == 6
    assert set(shared.values()) == {None}


def test_a_run_that_fails_is_named_and_the_others_go_on(
    results: Path, launched: list[list[str]], tmp_path: Path
) -> None:
    paths = [recipe(tmp_path / "fails.yaml"), recipe(tmp_path / "works.yaml", "towers: text")]
    failed = compare.compare(paths, [3], [], tmp_path / "models")
    assert len(failed) == 1
    assert failed[0].startswith("demo, fails, seed 3: launch train.py")
    assert [p.name for p in (results / "demo").iterdir()] == ["works-3.json"]


def run_figures(auc: float, **others: Any) -> dict[str, Any]:
    usual = {"validation_auc": 0.75, "test_logloss": 0.4, "num_parameters": 1_500_000, "resumed": False}
    speeds = {"train_samples_per_second": 1000.0, "test_rows_per_second": 2000.0}
    return {"test_auc": auc, **usual, **speeds, **others}


def test_the_table_compares_with_the_best_baseline_of_the_kind(results: Path) -> None:
    folder = results / "movielens-1m"
    folder.mkdir(parents=True)
    runs = {
        "dcnv2": [0.80, 0.81, 0.82],
        "deepfm": [0.79, 0.80, 0.82],
        "flip-id": [0.83, 0.85, 0.84],
        "flip": [0.9],
    }
    for name, aucs in runs.items():
        for seed, auc in enumerate(aucs, start=1):
            interrupted = {"resumed": True, "train_samples_per_second": 1.0} if seed == 2 else {}
            (folder / f"{name}-{seed}.json").write_text(json.dumps(run_figures(auc, **interrupted)))
    table = results_table.dataset_table("movielens-1m", {"dcnv2": [0.8548, 0.3893]})
    cells = {row.split(" | ")[1]: row.strip("| ").split(" | ") for row in table.splitlines()[4:]}
    assert list(cells) == ["DeepFM", "DCNv2", "FLIP_ID", "FLIP"]  # in the paper's order, not the files'
    flip_id = cells["FLIP_ID"]
    assert flip_id[:5] == ["ID", "FLIP_ID", "–", "3", f"0.8400 ± {np.std(runs['flip-id'], ddof=1):.4f}"]
    p = stats.ttest_rel(runs["flip-id"], runs["dcnv2"]).pvalue
    assert flip_id[9:11] == [f"{0.34 / 0.31 - 1:+.1%}", f"{p:.3f}"]
    assert flip_id[11:] == ["1.50", "1,000", "2,000"]  # not the interrupted run's
    assert cells["DCNv2"][7:9] == ["0.8548", "0.3893"]
    # A baseline is compared with the best other one, never with ours; one alone with nobody.
    assert cells["DCNv2"][9] == f"{0.31 / (np.mean(runs['deepfm']) - 0.5) - 1:+.1%}"
    assert cells["FLIP"][3:5] == ["1", "0.9000"]
    assert cells["FLIP"][9:11] == ["–", "–"]


def test_every_recipe_for_a_dataset_has_a_name_in_the_table() -> None:
    stems = {path.stem for name in results_table.DATASETS for path in (ROOT / "configuration" / name).glob("*.yaml")}
    assert stems <= results_table.SYSTEMS.keys()


def test_the_papers_figures_are_probabilities_of_known_systems() -> None:
    paper = json.loads((ROOT / "benchmarks" / "paper.json").read_text())
    tables = [paper[name] for name in ("movielens-1m", "bookcrossing", "goodreads")]
    assert all(len(table) == 17 and table.keys() <= results_table.SYSTEMS.keys() for table in tables)
    assert re.search(r"10\.1145/\d+\.\d+", paper["source"])
    for auc, logloss in (figures for table in tables for figures in table.values()):
        assert 0.5 < auc < 1
        assert 0 < logloss < 0.7
