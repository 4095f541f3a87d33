"""The validation rows: when they are scored, and how many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import train
from modeling_flip.training import preparation, stages
from tests.end_to_end.train.runs import MakeRecipe, load_tables, run_recipe

LAST_WEIGHTS = ["--finetuning.load_best_model_at_end", "false", "--finetuning.early_stopping_patience", "null"]


@pytest.mark.parametrize(
    ("arguments", "scored"),
    [
        ([], ["test"]),  # the log of the training has the metrics of the weights that were kept
        (LAST_WEIGHTS, ["test"]),
        (["--group_column", "user_id"], ["validation", "test"]),  # gAUC is not in the log
        (["--max_eval_samples", 9], ["validation", "test"]),  # the log's are of nine rows
        (["--finetuning.eval_strategy", "no", *LAST_WEIGHTS], ["validation", "test"]),
    ],
    ids=["best", "last", "grouped", "sampled", "not watched"],
)
def test_validation_is_scored_again_only_where_the_log_does_not_tell(
    arguments: list[Any], scored: list[str], recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = stages.evaluate_split, []

    def noted(trainer: Any, dataset: Any, split: str, *rest: Any) -> dict[str, Any]:
        calls.append((trainer, dataset, split))
        return evaluate(trainer, dataset, split, *rest)

    monkeypatch.setattr(stages, "evaluate_split", noted)
    asked = replace(recipe("--towers", "tabular", "--finetuning.learning_rate", "0.05", *arguments), pretraining=None)
    results, data = run_recipe(asked), load_tables(asked)
    assert [split for _, _, split in calls] == scored
    trainer = calls[-1][0]
    again = evaluate(trainer, trainer.processor.encode(data["validation"], "clicked"), "validation")
    assert again.keys() <= results.keys()
    for name, value in again.items():
        assert results[name] == pytest.approx(value, abs=1e-6), name


def test_what_validation_did_not_do_is_not_said_of_it(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last weights are kept, and Platt scaling is refused."""
    monkeypatch.setattr(stages, "platt", lambda *_: (1.0, 0.0))
    given = ["--towers", "tabular", "--calibration", "platt", "--negative_sampling_rate", 0.5, "--refit", "true"]
    asked = replace(recipe(*given, *LAST_WEIGHTS), pretraining=None)
    results = run_recipe(asked)
    first = results["selection"]
    assert first["best_epoch"] is None and len(first["history"]) == first["epochs"] == results["epochs"] == 2
    for folder, figures in ((Path(asked.output_dir), results), (Path(asked.output_dir) / "selection", first)):
        assert "calibration" not in figures and figures["logit_scale"] == 1
        card = (folder / "README.md").read_text()
        assert "Platt scaling" not in card and "best epoch" not in card
        assert "chosen" not in card and "| epochs trained | 2.0 |" in card


def test_while_training_so_many_validation_rows_are_scored(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = replace(recipe("--towers", "tabular", "--max_eval_samples", 9), pretraining=None)
    trainers: list[Any] = []
    original = stages.FlipTrainer

    def noted(*given: Any) -> Any:
        trainers.append(original(*given))
        return trainers[-1]

    monkeypatch.setattr(stages, "FlipTrainer", noted)
    results = run_recipe(asked)
    assert "during training, 9 of 18 validation rows are scored, drawn at random with seed 42" in caplog.text
    (trainer,) = trainers
    rows = trainer.eval_dataset
    assert len(rows) == 9 and rows.row_ids.tolist() != list(range(9))
    assert results["rows"] == {"train": 162, "validation": 18, "test": 20}
    again = preparation.watched_rows(
        asked, trainer.processor.encode(train.load_data(asked)["validation"].to_table(), "clicked")
    )
    assert again.row_ids.tolist() == rows.row_ids.tolist()


@pytest.mark.parametrize(
    ("most", "told"),
    [(0, "max_eval_samples is 0; it must be 1 or more"), (1, "max_eval_samples is 1, but every label of these")],
)
def test_too_few_validation_rows_are_refused_before_training(most: int, told: str, recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match=told):
        run_recipe(recipe("--max_eval_samples", most))
