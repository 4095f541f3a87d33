"""The table and the commands that a run ends with."""

from __future__ import annotations

import doctest
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.csv
import pytest

import train
from modeling_flip import FlipProcessor
from modeling_flip.serving import score
from modeling_flip.training import summary
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.summary import caution, metrics_table, next_steps

BOTH = {
    "test_auc": 0.75, "test_logloss": 0.5, "test_ece": 0.01,
    "test_tabular_auc": 0.7, "test_tabular_logloss": 0.6, "test_tabular_ece": 0.02,
    "test_text_auc": 0.65, "test_text_logloss": 0.7, "test_text_ece": 0.03,
    "validation_auc": 0.9,
}  # fmt: skip


def recipe(**settings: Any) -> Recipe:
    return Recipe(**{"dataset_name": "demo", "output_dir": "out", **settings})


def test_the_example_of_the_table_is_right() -> None:
    assert doctest.testmod(summary).failed == 0


def test_the_table_has_a_row_for_the_model_and_one_for_each_tower() -> None:
    lines = [line.split() for line in metrics_table(recipe(), BOTH).splitlines()]
    assert lines == [
        ["test", "AUC", "logloss", "calibration", "error"],
        ["FLIP", "0.7500", "0.5000", "0.0100"],
        ["tabular", "tower", "0.7000", "0.6000", "0.0200"],
        ["text", "tower", "0.6500", "0.7000", "0.0300"],
    ]
    grouped = metrics_table(recipe(), BOTH | {"test_gauc": 0.8, "test_tabular_gauc": 0.6})
    assert "gAUC" in grouped.splitlines()[0]
    assert [line.split()[-2] for line in grouped.splitlines()[1:]] == ["0.8000", "0.6000", "–"]


@pytest.mark.parametrize(
    ("auc", "leaks", "said"),
    [
        (0.9799, {}, ""),
        (0.98, {}, "AUC 0.9800 is too good to be true: check whether some field is known only after the click"),
        (0.7, {"spent": "why", "paid": "so"}, "AUC 0.7000 may be too high: check 'spent' (why), 'paid' (so)"),
        (None, {"spent": "why"}, ""),
    ],
)
def test_a_result_that_a_leak_may_explain_is_doubted(auc: float | None, leaks: dict[str, str], said: str) -> None:
    assert caution({"test_auc": auc, "leaks": leaks}) == said


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"towers": "tabular", "tabular_tower": "deepfm"}, "tabular tower (deepfm)"),
        ({"towers": "text"}, "text tower"),
        ({"model_type": "p5"}, "P5"),
    ],
)
def test_a_model_of_one_tower_has_one_row(settings: dict[str, str], name: str) -> None:
    (row,) = metrics_table(recipe(**settings), {"test_auc": 0.7, "test_logloss": 0.6}).splitlines()[1:]
    assert row == f"{name}    0.7000   0.6000"


def test_without_a_file_the_columns_that_scoring_needs_are_named(tmp_path: Path) -> None:
    FlipProcessor.fit({"user": ["a", "b"], "city": ["x", "y"]}).save_pretrained(tmp_path / "out")
    run = recipe(output_dir=str(tmp_path / "out"), push_to_hub=True, hub_model_id="me/clicks")
    told = next_steps(run, ["quickstart.yaml"])
    assert "rows.csv) with the columns user, city:" in told
    assert 'pipeline("ctr-prediction", model="me/clicks")' in told and "--push_to_hub" not in told
    assert "--push_to_hub --hub_model_id me/out" in next_steps(replace(run, push_to_hub=False), ["quickstart.yaml"])


def test_the_score_command_that_train_py_ends_with_scores(
    clicks_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my clicks.csv").write_text(clicks_csv.read_text().replace(",", ";"))
    given = ["--dataset_name", "my clicks.csv", "--label_column", "clicked", "--delimiter", ";", "--use_cpu"]
    train.main([*given, "--towers", "tabular", "--output_dir", "runs/mine", "--finetuning.max_steps", "1"])
    out, shown = capsys.readouterr()
    told = out.splitlines()
    phases = ["read", "check", "infer", "fit", "encode", "open", "finetuning", "evaluation", "publishing"]
    assert re.findall(r"^(\w+) … \d+\.\d s$", shown, flags=re.MULTILINE) == phases
    assert json.loads(Path("runs/mine/all_results.json").read_text())["wall_time"]["read_seconds"] > 0
    table = told.index(next(line for line in told if "test AUC" in line))
    assert len(told) - table <= 10 and told[table + 1].startswith("tabular tower (dcnv2)")
    (command,) = [shlex.split(line) for line in told if "modeling_flip.score" in line]
    assert command[1:3] == ["-m", "modeling_flip.score"]
    score.main(command[3:])
    assert "probability" in pyarrow.csv.read_csv("runs/mine-scores.csv").column_names
    (push,) = [shlex.split(line) for line in told if "--push_to_hub" in line]
    pushed = train.parse_recipe(push[2:])
    assert pushed.push_to_hub and pushed.hub_model_id == "me/mine" and pushed.output_dir == "runs/mine"
