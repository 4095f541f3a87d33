"""The tables and figures of runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import alignment, compare, protocol, reproduce, results_table, significance
from benchmarks.protocol import Bench, System
from tests.benchmarks.conftest import QUICKSTART, leave_results


def fake_runs(bench: Bench, aucs: dict[str, Callable[[int], float]], seeds: range) -> None:
    for name, auc in aucs.items():
        for seed in seeds:
            recipe = bench.recipe(System(name, QUICKSTART), seed)
            recipe.output_dir, recipe.refit = str(bench.output_dir / f"{name}-{seed}"), 2.0
            leave_results(recipe, auc(seed))
            figures = json.loads((Path(recipe.output_dir) / "all_results.json").read_text())
            trial = {
                "settings": [],
                "validation_auc": 0.71,
                "test_auc": 0.7,
                "best_epoch": 2.0,
                "wall_time": {"total_seconds": 60},
            }
            file = bench.results / "demo" / f"{name}-{seed}.json"
            protocol.write_predictions(
                Path(recipe.output_dir) / "test_predictions.parquet",
                file.parent / "predictions" / f"{file.stem}.parquet",
            )
            file.write_text(json.dumps(figures | {"search": {"seed": 1, "trials": [trial], "chosen": 0}}))


def test_tables_and_figures_of_runs(bench: Bench, tmp_path: Path) -> None:
    def near(center: float) -> Callable[[int], float]:
        return lambda seed: center + 0.0005 * (seed % 3)

    aucs = {
        "dcnv2": near(0.70),
        "deepfm": lambda seed: 0.69 + 0.0007 * seed,
        "ctrl": near(0.68),
        "flip-id": lambda seed: 0.78 + 0.001 * seed,
        "flip": lambda seed: 0.8 + 0.02 * (seed % 2),
        "flip-searched": lambda seed: 0.8 + 0.03 * (seed % 2),
    }
    aucs |= {"flip-id-without-mlm": near(0.72), "flip-id-temperature-0.1": near(0.71)}
    fake_runs(bench, aucs, range(1, 4))
    comparisons = reproduce.paper_tables.compare_all(bench.results / "demo")
    assert {name: record["against"] for name, record in comparisons["ctrl"].items()} == {"flip-id": "ctrl"}
    assert {name: record["against"] for name, record in comparisons["table2"].items()} == {
        "flip-id": "dcnv2",
        "flip": "dcnv2",
        "flip-searched": "dcnv2",
    }
    ablated = comparisons["table5"]["flip-id"]
    assert ablated["flip-id-without-mlm"]["against"] == "flip-id"
    assert ablated["flip-id-without-mlm"]["auc"]["difference"] < 0
    record = comparisons["table2"]["flip-id"]
    assert record["auc"]["difference"] == pytest.approx(0.782 - 0.7005)
    assert record["p_holm"] == pytest.approx(min(1, 3 * record["auc"]["p_seeds"]))
    out = tmp_path / "out"
    out.mkdir()
    for target in ("table2", "table3", "table4", "table5", "figure3", "figure4", "figure5", "figure6"):
        reproduce.draw(target, bench, "demo", "small", out)
    assert {path.name for path in out.iterdir()} == {
        *(f"table{n}.{kind}" for n in (2, 3, 4, 5) for kind in ("md", "csv")),
        *("figure4.png", "figure4.svg"),
    }
    lines = (out / "table2.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == [
        "FLIP_ID",
        "DCNv2",
        "DeepFM",
        "FLIP",
        "CTRL",
        "FLIP, searched",
    ]
    flip_id = lines[2].strip("| ").split(" | ")
    assert flip_id[:6] == ["ID", "FLIP_ID", "–", "3", "0.7820 ± 0.0010", "0.6000 ± 0.0000"]
    assert flip_id[9].startswith("+0.0815 [")
    assert lines[3].endswith("| – | – | – | – |")  # a baseline is compared with nothing
    assert (out / "table2.csv").read_text().splitlines()[0].startswith("kind,system,text tower")
    assert "| FLIP_ID | w/o MLM | 3 | 0.7205 ± 0.0005 |" in (out / "table5.md").read_text()
    assert (out / "figure4.png").read_bytes().startswith(b"\x89PNG")
    assert comparisons == json.loads((bench.results / "demo" / "comparisons.json").read_text())


def test_each_size_is_compared_with_its_like(bench: Bench) -> None:
    """On one machine the small recipes were run, on another the paper's; DCNv2 has one recipe for both."""

    def near(center: float, spread: float = 0.0) -> Callable[[int], float]:
        return lambda seed: center + spread * (seed % 3)

    aucs = {"dcnv2": near(0.7)}
    for ending, less in (("", 0.0), ("-small", 0.04)):
        aucs |= {f"ctrl{ending}": near(0.72 - less), f"flip{ending}": near(0.8 - less, 0.0007)}
        aucs |= {f"flip-id{ending}": near(0.78 - less, 0.0007), f"flip-id-without-icl{ending}": near(0.71 - less)}
    aucs["flip-id-without-pretraining"] = near(0.705)
    fake_runs(bench, aucs, range(1, 4))
    ours = bench.results / "movielens-1m"
    (bench.results / "demo").rename(ours)
    comparisons = reproduce.paper_tables.compare_all(ours)
    assert {name: record["against"] for name, record in comparisons["table2"].items()} == {
        "flip-id-small": "dcnv2",
        "flip-small": "dcnv2",
        "flip-id": "dcnv2",
        "flip": "ctrl",
    }
    assert {name: record["against"] for name, record in comparisons["ctrl"].items()} == {
        "flip-id-small": "ctrl-small",
        "flip-id": "ctrl",
    }
    assert {whole: [*of] for whole, of in comparisons["table5"].items()} == {
        "flip-id-small": ["flip-id-without-icl-small", "dcnv2"],
        "flip-id": ["flip-id-without-icl", "flip-id-without-pretraining"],
    }
    shown = reproduce.paper_tables.table5(ours, "paper").markdown()
    assert "| FLIP_ID | w/o ICL | 3 | 0.7100 ± 0.0000 | 0.6000 ± 0.0000 | – | – | -0.0707 [" in shown
    assert "| FLIP_ID | w/o MLM & MTM & ICL | 3 | 0.7050 ± 0.0000 | 0.6000 ± 0.0000 | – | – | -0.0757 [" in shown


def test_a_sweep_is_drawn_of_the_seeds_that_all_its_values_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(alignment, "save", lambda figure, path: drawn.append(figure))
    run = {"test_logloss": 0.5}
    by_value: dict[float, Any] = {
        0.1: {1: {"test_auc": 0.7, **run}},
        0.05: {1: {"test_auc": 0.6, **run}, 2: {"test_auc": 0.9, **run}},
        0.3: {},
    }
    reproduce.paper_tables.draw_sweep({"temperature": by_value, "mask ratio": {0.3: {}}}, "demo", tmp_path / "figure")
    panel, empty, below = drawn[0].axes[:3]
    line = panel.lines[0]
    assert [label.get_text() for label in below.get_xticklabels()] == ["0.05", "0.1"]
    assert list(line.get_xdata()) == [0, 1] and list(line.get_ydata()) == [0.6, 0.7]
    assert len(empty.lines[0].get_xdata()) == 0


def test_seeds_of_different_settings_are_not_compared_as_one_system(
    bench: Bench,
    launched: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_runs(bench, {"dcnv2": lambda seed: 0.7, "flip-id": lambda seed: 0.7 + 0.01 * seed}, range(1, 3))
    file = bench.results / "demo" / "flip-id-2.json"
    figures = json.loads(file.read_text())
    figures["recipe"]["pretraining"]["num_train_epochs"] = 30.0
    file.write_text(json.dumps(figures))
    with pytest.raises(
        ValueError, match=r"flip-id-1 and flip-id-2 are not the same system: pretraining\.num_train_epochs"
    ):
        reproduce.paper_tables.compare_all(bench.results / "demo")
    monkeypatch.setattr(results_table, "RESULTS", bench.results)
    monkeypatch.setattr(sys, "argv", ["compare", QUICKSTART, "--output_dir", str(tmp_path)])
    commands = [
        lambda: reproduce.main(
            ["table2", "--dataset", "demo", "--results", str(bench.results), "--output_dir", str(tmp_path)]
        ),
        compare.main,
    ]
    for command in commands:
        with pytest.raises(SystemExit, match="2"):
            command()
        assert "error: flip-id-1 and flip-id-2 are not the same system" in capsys.readouterr().err
    assert launched == []


def test_all_runs_are_a_dataset() -> None:
    written = (results_table.RESULTS / results_table.RUNS_FILE).read_text()
    assert written == reproduce.paper_tables.all_runs(results_table.RESULTS).csv()
    rows = datasets.load_dataset(str(results_table.RESULTS), split="train")
    runs = [path for path in results_table.RESULTS.glob("*/*.json") if "search" in json.loads(path.read_text())]
    assert sorted(zip(rows["dataset"], rows["system"], rows["seed"], strict=True)) == sorted(
        (path.parent.name, *(f(part) for f, part in zip((str, int), path.stem.rsplit("-", 1), strict=True)))
        for path in runs
    )
    assert all("uncommitted" not in commit for commit in rows["commit"])
    card = (results_table.RESULTS / "README.md").read_text()
    assert all(column in card for column in ("pretraining_seed", "validation_auc_before_refit", "recipe"))


def test_figures_of_a_run_are_those_of_its_predictions() -> None:
    paths = [path for path in results_table.RESULTS.glob("*/predictions/*.parquet") if path.name != significance.USERS]
    assert len(paths) > 40
    for path in paths:
        figures = json.loads((path.parents[1] / f"{path.stem}.json").read_text())
        rows = significance.read_predictions(path)
        assert roc_auc_score(rows.labels, rows.logits) == pytest.approx(figures["test_auc"], abs=1e-5)
        assert rows.is_unseen.sum() == figures["test_unseen_rows"]
