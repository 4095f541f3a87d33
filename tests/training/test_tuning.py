"""`--tune N`: one alignment, finetunings over a grid, chosen on validation rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import train
from modeling_flip.training import stages
from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.trainer import FlipTrainer
from modeling_flip.training.tuning import best_of, check_tuning, settings_in_order, show, tune

optuna = pytest.importorskip("optuna")
RATE, TEXT_RATE, L2 = "finetuning.learning_rate", "finetuning.text_learning_rate", "model.embedding_l2"
ID_MODEL = ("--towers", "tabular", "--pretraining", "null")


def trials(recipe: Recipe, number: int) -> list[dict[str, Any]]:
    """What a search returns, but for its times."""
    found = tune(recipe, train.load_data(recipe), number)
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in found]


@pytest.fixture
def no_test_rows(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Only evaluations of the validation rows, while training, are allowed."""
    for name in ("predict", "predict_logits"):
        monkeypatch.setattr(FlipTrainer, name, None)
    return monkeypatch


def test_a_search_goes_on_where_it_was_and_its_best_recipe_trains_the_best(
    recipe: Callable[..., Recipe], tmp_path: Path, no_test_rows: pytest.MonkeyPatch
) -> None:
    epochs = ("--pretraining.num_train_epochs", "1", "--finetuning.num_train_epochs", "1")
    given = recipe("--towers", "tabular", *epochs, "--calibration", "platt")
    steps: list[str] = []
    step, calibrate = FlipTrainer.training_step, stages.calibrate

    def counted(self: FlipTrainer, *args: Any, **kwargs: Any) -> Any:
        steps.append(Path(str(self.args.output_dir)).name)
        return step(self, *args, **kwargs)

    def killed(run: stages.Run, *args: Any) -> Any:
        """After the last step of the second trial, before anything of it is kept."""
        if run.folder.name == "trial-1":
            raise KeyboardInterrupt
        return calibrate(run, *args)

    no_test_rows.setattr(FlipTrainer, "training_step", counted)
    no_test_rows.setattr(stages, "calibrate", killed)
    with pytest.raises(KeyboardInterrupt):
        trials(given, 2)
    assert len(json.loads((tmp_path / "out" / "trials.json").read_text())) == 1
    no_test_rows.setattr(stages, "calibrate", calibrate)
    found = trials(given, 2)
    assert steps == ["pretraining"] * 11 + ["finetuning"] * 22  # none was taken twice
    assert [{key: trial[key] for key in (RATE, L2)} for trial in found] == settings_in_order(given)[:2]
    assert found[0]["validation_logloss"] != found[1]["validation_logloss"]
    assert found[0][RATE] == 5e-3 and found[0][L2] == 0  # the recipe's own
    assert trials(given, 1) == found and len(steps) == 33  # there are as many already
    no_test_rows.undo()

    folder = tmp_path / "out"
    written = json.loads((folder / "trials.json").read_text())
    assert [trial | {"seconds": None} for trial in written] == [trial | {"seconds": None} for trial in found]
    with open(folder / "trials.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["validation_auc"]) for row in rows] == [trial["validation_auc"] for trial in found]
    study = optuna.load_study(study_name="finetuning", storage=f"sqlite:///{folder / 'trials.db'}")
    best = max(found, key=lambda trial: trial["validation_auc"])
    assert study.best_value == best["validation_auc"] and best_of(found) == best
    assert not [*(folder / "trials").iterdir()]

    chosen = parse_recipe([str(folder / "best.yaml")])
    assert (chosen.finetuning["learning_rate"], chosen.model["embedding_l2"]) == (best[RATE], best[L2])
    assert chosen.calibration == "platt" and chosen.output_dir == f"{folder}-best"
    results = stages.run(replace(chosen, calibration=None), train.load_data(chosen))
    assert results["validation_auc"] == best["validation_auc"] and "test_auc" in results


def test_a_trial_that_is_not_finite_is_kept_as_failed(recipe: Callable[..., Recipe]) -> None:
    found = trials(recipe(*ID_MODEL, "--finetuning.learning_rate", "1e38"), 2)
    assert found[0]["validation_auc"] is None and found[1]["validation_auc"] > 0
    assert best_of(found) == found[1] and best_of(found[:1]) is None
    said = show(found, "train")
    assert said.splitlines()[2].startswith("| 1 |") and "| 0 | 1e+38 | 0 | – | – | – |" in said
    assert "Trial 1 is best" in said and "Every trial has failed" in show(found[:1], "train")


def test_the_best_has_the_highest_validation_auc_and_is_the_first_of_equal_ones() -> None:
    aucs = {0: 0.6, 1: None, 2: 0.7, 3: 0.7, 4: 0.5}
    found = [{"trial": number, "validation_auc": auc, "seconds": 1.5} for number, auc in aucs.items()]
    best = best_of(found)
    assert best is not None and best["trial"] == 2
    table = show(found, "python train.py best.yaml").splitlines()
    assert table[:3] == ["| trial | validation_auc | seconds |", "| --- | --- | --- |", "| 2 | 0.7000 | 1.5 |"]
    assert [row.split()[1] for row in table[2:7]] == ["2", "3", "0", "4", "1"]


def test_the_grid_has_what_is_finetuned(recipe: Callable[..., Recipe]) -> None:
    def keys(*arguments: str) -> list[str]:
        return [*settings_in_order(recipe(*arguments))[0]]

    assert keys() == [RATE, TEXT_RATE, L2]
    assert keys("--towers", "tabular") == [RATE, L2]
    assert keys("--towers", "text") == [RATE, TEXT_RATE]
    assert keys("--finetuning.freeze_text_tower", "true") == [RATE, L2]
    others = ("--pretraining", "null", "--model_type")
    assert keys(*others, "p5") == [TEXT_RATE] and keys(*others, "ctr_bert") == [RATE, TEXT_RATE]
    order = settings_in_order(recipe(*ID_MODEL))
    assert len(order) == 6 * 3 and all(order.count(one) == 1 for one in order)
    assert order != settings_in_order(recipe(*ID_MODEL, "--seed", "1"))
    assert len(settings_in_order(recipe(*ID_MODEL, "--finetuning.learning_rate", "0.002"))) == 7 * 3


@pytest.mark.parametrize(
    ("given", "number", "said"),
    [
        ((), 0, "--tune is 0; it is the number of trials, 1 or more"),
        ((), 19, "--tune is 19, but the grid has only 18 settings: give 18 or less"),
        (("--refit", "true"), 2, "refit is True, but a search trains on the training rows alone"),
        (("--push_to_hub",), 2, "push_to_hub is true, but a search ends with no model"),
        (
            (
                "--finetuning",
                '{"eval_strategy": "no", "load_best_model_at_end": false, "early_stopping_patience": null}',
            ),
            2,
            "finetuning.eval_strategy is no",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(
    given: tuple[str, ...], number: int, said: str, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        check_tuning(recipe(*ID_MODEL, *given), number)
    assert not (tmp_path / "out").exists()


def test_a_search_needs_validation_rows(recipe: Callable[..., Recipe]) -> None:
    splits = train.load_data(given := recipe(*ID_MODEL))
    tables = {split: splits[split].to_table() for split in ("train", "test")}
    with pytest.raises(ValueError, match="split 'validation' is missing"):
        tune(given, tables, 2)


def test_a_number_of_trials_is_a_number(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train.main([str(recipe_file), "--tune", "many"])
    assert capsys.readouterr().err == "train.py: error: --tune needs a number of trials, such as --tune 20\n"
