"""Bad input to train.py: one clear error before training starts, and nothing is written."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import train
from modeling_flip.training import stages
from modeling_flip.training.stages import run
from tests.end_to_end.train.runs import MakeRecipe, load_tables, main_ends, with_column
from tests.processes import ROOT, environment


def test_a_recipe_that_is_refused_leaves_nothing_behind(recipe_file: Path, tmp_path: Path) -> None:
    assert "column 'nope' is missing" in main_ends(recipe_file, tmp_path / "runs" / "out", "--label_column", "nope")
    assert not list(tmp_path.iterdir())


def without_column(column: str) -> Callable[[Any], None]:
    def change(data: dict[str, pa.Table]) -> None:
        data["train"] = data["train"].drop_columns([column])

    return change


def empty(split: str) -> Callable[[Any], None]:
    def change(data: dict[str, pa.Table]) -> None:
        data[split] = data[split].slice(0, 0)

    return change


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (without_column("clicked"), [], "column 'clicked' is missing in split 'train'"),
        (lambda data: None, ["--label_column", "click"], "column 'click' is missing .* did you mean 'clicked'"),
        (lambda data: None, ["--fields", "[user_id, clicked]"], "fields hold the label column 'clicked'"),
        (lambda data: None, ["--fields", "[user_id, titel]"], "column 'titel' is missing .* did you mean 'title'"),
        (
            with_column("train", "clicked", lambda v: [None, *v[1:]]),
            [],
            "label column 'clicked' of split 'train' holds a missing value .row 0.",
        ),
        (with_column("test", "clicked", lambda v: [*v[:-1], "3"]), [], "of split 'test' holds '3' .row 19."),
        (with_column("train", "clicked", lambda v: ["0.5", *v[1:]]), [], "of split 'train' holds '0.5' .row 0."),
        (with_column("validation", "clicked", lambda v: ["1"] * len(v)), [], "every label of split 'validation' is 1"),
        (empty("train"), [], "split 'train' is empty"),
        (empty("test"), [], "split 'test' is empty"),
        (lambda data: data.pop("validation"), [], "split 'validation' is missing"),
        (
            lambda data: None,
            ["--text_model_name_or_path", "no/such-model"],
            "text model 'no/such-model' cannot be loaded",
        ),
        (lambda data: None, ["--tabular_tower", "dcnv3"], "tabular_tower is 'dcnv3'.* did you mean 'dcnv2'"),
        (lambda data: None, ["--towers", "all"], "towers is 'all'; it must be one of both, tabular, text"),
        (lambda data: None, ["--pretrained_model_name_or_path", "no/where"], "'no/where' does not exist"),
        (lambda data: None, ["--init_from", "no/where"], "init_from 'no/where' does not exist; train it first"),
        (
            lambda data: None,
            ["--init_from", "a", "--pretrained_model_name_or_path", "b"],
            "init_from is 'a' and pretrained_model_name_or_path 'b': name one of them",
        ),
        (lambda data: None, ["--pretraining.text_mask_ratio", "1.5"], "text_mask_ratio is 1.5"),
    ],
)
def test_bad_input_is_one_error_before_training(
    change: Callable[[Any], None],
    arguments: list[str],
    message: str,
    recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bad = recipe(*arguments)
    data = load_tables(bad)
    change(data)
    with pytest.raises(ValueError, match=message):
        run(bad, data)
    assert not Path(bad.output_dir).exists()


def test_a_mistake_in_the_code_keeps_its_traceback(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake(*_: Any) -> None:
        torch.zeros(3).numpy().reshape(2)

    monkeypatch.setattr(stages, "finetune", mistake)
    with pytest.raises(ValueError, match="cannot reshape"):
        train.main([str(recipe_file), "--output_dir", str(tmp_path / "out"), "--pretraining.max_steps", "1"])


def test_a_dataset_that_does_not_exist_is_one_error(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"dataset 'no/where.csv' cannot be loaded .* give .*demo, .*movielens-1m"):
        train.load_data(recipe("--dataset_name", "no/where.csv"))


def test_the_command_line_prints_one_line_for_bad_input(recipe_file: Path, tmp_path: Path) -> None:
    """Of accelerate's launcher, too."""
    launcher = ["accelerate.commands.launch", "--quiet", "--config_file", ROOT / "configuration/accelerate/cpu.yaml"]
    arguments = [recipe_file, "--label_column", "nope", "--output_dir", tmp_path / "o"]
    command = [sys.executable, "-m", *map(str, [*launcher, ROOT / "train.py", *arguments])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and "were not passed" not in done.stderr
    assert re.search(r"train.py: error: column 'nope' is missing", done.stderr)
