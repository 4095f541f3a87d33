"""What reporters are told, where their logs are, and run.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

import train
from modeling_flip import FlipTrainer
from modeling_flip.training.checks import check_recipe
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.watching import end_logs, keep_logs, line


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_both_stages_stay_in_tensorboard_and_run_json_says_how_to_repeat_them(
    recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    transformers_logging.enable_progress_bar()  # whatever a test before has done
    given = recipe()
    given.pretraining = (given.pretraining or {}) | {"report_to": "tensorboard"}
    (tmp_path / "recipe.yaml").write_text(given.to_yaml())
    # A test before may have set the verbosity, by which Trainer decides whether there are bars.
    bars = ["--pretraining.disable_tqdm", "false", "--finetuning.disable_tqdm", "false"]
    train.main([str(tmp_path / "recipe.yaml"), "--finetuning.report_to", "tensorboard", "--use_cpu", *bars])
    expected = {
        "pretraining": {"train/loss", "train/mlm_loss", "train/mtm_loss", "train/icl_loss"},
        "finetuning": {"train/loss", "train/joint_loss", "train/alpha", "eval/auc", "eval/text_auc"},
    }
    assert {folder.name for folder in (tmp_path / "out" / "runs").iterdir()} == set(expected)
    for stage, names in expected.items():
        log = accumulator.EventAccumulator(str(tmp_path / "out" / "runs" / stage)).Reload()
        assert names <= set(log.Tags()["scalars"])
        assert ("train/joint_loss" in log.Tags()["scalars"]) == (stage == "finetuning")
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "  validation AUC 0." in said and "  α 0." in said and "{'" not in captured.out
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    prepared = json.loads((tmp_path / "out" / "manifests" / "prepare.json").read_text())["inputs"]
    assert all(found[key] == prepared[key] for key in ("data", "vocabulary", "text_model", "commit"))
    assert found["hardware"]["processes"] == 1 and found["packages"]["torch"] and found["command"] and found["ended"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_each_stage_has_a_folder_of_its_own_and_a_resumed_run_adds_to_it(
    elsewhere: bool, make: Callable[..., FlipTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    if elsewhere:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    folder = tmp_path / ("elsewhere" if elsewhere else "run/runs")
    for stop in (2, 4):
        trainer = make(report_to="tensorboard", max_steps=4, save_steps=1, save_strategy="steps", logging_steps=1)
        keep_logs(trainer, tmp_path / "run", "finetuning")
        trainer.add_callback(StopAt(stop))
        trainer.train(resume_from_checkpoint=stop > 2)
    log = accumulator.EventAccumulator(str(folder / "finetuning")).Reload()
    assert [event.step for event in log.Scalars("train/loss")] == [1, 2, 3, 4]


def test_reporters_are_told_nothing_of_what_is_scored_after_their_stage(
    make: Callable[..., FlipTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(TrainerCallback):
        """As Weights & Biases, whose run has ended."""

        def on_predict(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("You must call wandb.init()")

    monkeypatch.setattr("modeling_flip.training.watching.get_reporting_integration_callbacks", lambda _: [Closed])
    trainer = make([Closed()])
    with pytest.raises(RuntimeError, match="must call"):
        trainer.predict(trainer.train_dataset)
    end_logs(trainer)
    trainer.predict(trainer.train_dataset)


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny sqlalchemy alembic")])
def test_a_reporter_that_is_not_installed_is_told_before_training(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modeling_flip.training.checks.get_available_reporting_integrations", lambda: ["tensorboard"])
    recipe = Recipe("demo", "out", towers="tabular", finetuning={"report_to": [name]})
    message = f"finetuning.report_to is {name!r}, .* installed are tensorboard: pip install {package}, or"
    with pytest.raises(ValueError, match=message):
        check_recipe(recipe)


def test_a_line_has_loss_and_its_parts() -> None:
    logs = {"loss": 38.321, "mlm_loss": 6.64, "icl_loss": 14.1, "learning_rate": 1e-3, "grad_norm": 3.0, "epoch": 0.5}
    assert line(logs) == "epoch 0.50  loss 38.32 (mlm 6.64, icl 14.1)  learning rate 0.001"
    logs = {"eval_loss": 2.0, "eval_auc": 0.55, "eval_text_auc": 0.5, "eval_samples_per_second": 1234.5, "epoch": 2}
    assert line(logs) == "epoch 2.00  validation AUC 0.55 (text 0.5)  rows/s 1,234"
