"""Refit: validation chooses, and then the model is trained again on its rows too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

import train
from modeling_flip import FlipProcessor
from modeling_flip.training import stages
from modeling_flip.training.checks import check_recipe
from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.dry_run import inspect
from modeling_flip.training.dry_run_report import show
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.splits import RawSplits, load_splits
from modeling_flip.training.stages import run

QUICK = (
    "--finetuning.num_train_epochs",
    "4",
    "--pretraining.num_train_epochs",
    "1",
    "--finetuning.disable_tqdm",
    "true",
)


# ---- the rows


def numbers(rows: pa.Table) -> list[int]:
    return rows["number"].to_pylist()


def all_parts(raw: RawSplits, split: int) -> list[int]:
    """The numbers of a split, in its order, as they come in parts."""
    found: dict[int, int] = {}
    for table, codes, places in raw.parts(["number"], rows=7):
        mine = codes == split
        found |= dict(zip(places[mine].tolist(), np.array(numbers(table))[mine].tolist(), strict=True))
    assert sorted(found) == list(range(len(found)))
    return [found[place] for place in sorted(found)]


@pytest.mark.parametrize("by_time", [True, False])
def test_validation_rows_come_after_the_training_rows(by_time: bool, tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "rows.csv"
    rows = pd.DataFrame({"number": range(50), "time": rng.permutation(50) + 1_700_000_000, "label": [0, 1] * 25})
    rows.to_csv(path, index=False)
    raw = load_splits(str(path), time_column="time" if by_time else None)
    both = raw.with_validation_in_train()
    assert list(both) == ["train", "test"]
    train_rows, test_rows = (numbers(both[split].to_table()) for split in ("train", "test"))
    assert train_rows == numbers(raw["train"].to_table()) + numbers(raw["validation"].to_table())
    assert test_rows == numbers(raw["test"].to_table())
    assert all_parts(both, 0) == train_rows and all_parts(both, 2) == test_rows
    wanted = np.arange(len(train_rows)) % 3 == 0
    assert numbers(both["train"].read(["number"], wanted)) == train_rows[::3]
    assert both.fingerprint != raw.fingerprint


def test_splits_that_were_given_are_joined() -> None:
    tables = {
        split: pa.table({"number": range(first, first + 3)})
        for split, first in {"train": 0, "validation": 10, "test": 20}.items()
    }
    both = RawSplits.of(tables).with_validation_in_train()
    assert len(both["train"]) == 6 and numbers(both["train"].head(4)) == [0, 1, 2, 10]
    assert numbers(both["train"].to_table()) == all_parts(both, 0) == [0, 1, 2, 10, 11, 12]


def test_without_validation_rows_all_are_training_rows() -> None:
    both = RawSplits.of({"train": pa.table({"number": [0, 1]})}).with_validation_in_train()
    assert list(both) == ["train"] and both["train"].to_table()["number"].to_pylist() == [0, 1]


def test_splits_may_be_given_in_any_order() -> None:
    tables = {"validation": pa.table({"number": [10, 11]}), "train": pa.table({"number": [0, 1, 2]})}
    both = RawSplits.of(tables).with_validation_in_train()
    placed: dict[int, int] = {}
    for part, _, at in both.parts(["number"]):
        placed |= dict(zip(at.tolist(), part["number"].to_pylist(), strict=True))
    assert both["train"].to_table()["number"].to_pylist() == [placed[i] for i in range(5)] == [0, 1, 2, 10, 11]


def test_of_splits_that_differ_the_common_columns_are_joined_or_it_is_said() -> None:
    train = pa.table({"number": [1, 2], "debug": ["x", "y"]})
    both = RawSplits.of({"train": train, "validation": pa.table({"number": [3]})}).with_validation_in_train()
    assert both["train"].column_names == ["number"] and numbers(both["train"].to_table()) == [1, 2, 3]
    with pytest.raises(
        ValueError, match=r"refit joins .* whose columns differ \(.*number.*\): give both the same types"
    ):
        RawSplits.of({"train": train, "validation": pa.table({"number": ["3"]})}).with_validation_in_train()


@pytest.mark.parametrize("time_column", ["time", None])
def test_validation_rows_that_may_be_later_than_the_test_rows(
    time_column: str | None, recipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, first in (("train", 0), ("validation", 40)):
        labels = [0, 0, 1, 1] * 10
        pd.DataFrame({"number": range(40), "time": range(first, first + 40), "clicked": labels}).to_csv(
            data / f"{split}.csv", index=False
        )
    given = ["--dataset_name", str(data), "--output_dir", str(tmp_path / "out"), "--refit", "true"]
    asked = recipe(*QUICK, *given, "--pretraining", "null", "--towers", "tabular")
    asked = replace(asked, time_column=time_column)
    raw = train.load_data(asked)
    if time_column is None:
        assert len(raw.with_validation_in_train()["train"]) == 36 + 40
        return
    for refused in (
        raw.with_validation_in_train,
        lambda: run(asked, raw),
        lambda: inspect(asked, raw, scratch=tmp_path),
    ):
        caplog.clear()
        with pytest.raises(
            ValueError, match=r"refit .* later than the test rows, .* by time: give a test split too, or"
        ):
            refused()
        assert not caplog.messages
    assert len(raw["test"]) == 4
    assert caplog.messages[-1].endswith(
        "the validation rows that were given may be later: give a test split too, or leave the validation split out"
    )
    (data / "validation.csv").unlink()
    assert len(train.load_data(asked).with_validation_in_train()["train"]) == 36


# ---- the run


@pytest.fixture(scope="module")
def arguments(recipe_file: Path) -> list[str]:
    return [str(recipe_file), *QUICK, "--calibration", "platt"]


@pytest.fixture(scope="module")
def refitted(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("refit") / "out"
    recipe = parse_recipe([*arguments, "--refit", "true", "--output_dir", str(folder)])
    return recipe, run(recipe, train.load_data(recipe))


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_it_is_the_run_on_all_rows_for_the_epochs_that_were_chosen(
    refitted: tuple[Recipe, dict[str, Any]], tmp_path: Path
) -> None:
    recipe, results = refitted
    chosen = results["selection"]["best_epoch"]
    known = replace(recipe, refit=chosen, calibration=None, output_dir=str(tmp_path / "known"))
    alone = run(known, train.load_data(known))
    ours, theirs = weights_of(Path(recipe.output_dir)), weights_of(tmp_path / "known")
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert results["epochs"] == alone["epochs"] == chosen
    assert alone["test_auc"] == pytest.approx(results["test_auc"], abs=1e-6)
    assert "selection" not in alone and "validation_auc" not in {**alone, **results}
    assert results["rows"] == alone["rows"] == {"train": 180, "test": 20}
    first = Path(recipe.output_dir) / "selection"
    before = weights_of(first)
    assert any(not np.array_equal(ours[name], before[name]) for name in ours if name in before)
    assert results["selection"]["rows"] == {"train": 162, "validation": 18, "test": 20}


def test_the_first_part_is_the_run_without_a_refit(refitted: tuple[Recipe, dict[str, Any]], tmp_path: Path) -> None:
    recipe, results = refitted
    plain = replace(recipe, refit=None, output_dir=str(tmp_path / "plain"))
    figures = run(plain, train.load_data(plain))
    for key in ("best_epoch", "validation_auc", "test_auc", "logit_scale", "logit_shift"):
        assert results["selection"][key] == figures[key], key
    ours, theirs = weights_of(Path(recipe.output_dir) / "selection"), weights_of(tmp_path / "plain")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    # A refit has no rows left to calibrate on: scale and shift are those of the model that chose.
    assert (results["logit_scale"], results["logit_shift"]) == (figures["logit_scale"], figures["logit_shift"])
    assert results["logit_scale"] != 1


@pytest.mark.parametrize(
    ("steps", "refit", "said"),
    [(6, "true", "ended after 0.5 of 0.545 epochs"), (6, "0.55", "ended after 0.5 of 0.55 epochs"), (7, "0.55", "")],
)
def test_a_refit_that_its_steps_end_early_is_said(
    steps: int, refit: str, said: str, recipe_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch of 16 rows: of 180 rows an epoch has 12 steps, and of the 162 before the refit 11."""
    given = ["--pretraining", "null", "--towers", "tabular", "--finetuning.per_device_train_batch_size", "16"]
    given += ["--finetuning.max_steps", str(steps), "--refit", refit, "--output_dir", str(tmp_path / "out")]
    recipe = parse_recipe([str(recipe_file), *QUICK, *given])
    run(recipe, train.load_data(recipe))
    warnings = [record.message for record in caplog.records if "the refit ended" in record.message]
    assert bool(warnings) == bool(said) and all(said in warning for warning in warnings)


def test_the_vocabulary_knows_the_validation_rows(refitted: tuple[Recipe, dict[str, Any]]) -> None:
    recipe, _ = refitted
    both, first = (FlipProcessor.from_pretrained(f"{recipe.output_dir}{sub}") for sub in ("", "/selection"))
    assert both.vocabulary.counts["user_id"].sum() == 180
    assert first.vocabulary.counts["user_id"].sum() == 162


def test_predictions_of_the_test_rows_are_kept(refitted: tuple[Recipe, dict[str, Any]]) -> None:
    recipe, results = refitted
    rows = pq.read_table(Path(recipe.output_dir) / stages.PREDICTIONS_FILE)
    assert rows.column_names == ["label", "logit", "tabular_logit", "text_logit", "is_unseen"]
    for tower in ("", "tabular_", "text_"):
        auc = roc_auc_score(rows["label"].to_numpy(), rows[f"{tower}logit"].to_numpy())
        assert auc == pytest.approx(results[f"test_{tower}auc"], abs=1e-6)
    assert rows["is_unseen"].to_numpy().sum() == results["test_unseen_rows"]
    assert (
        rows["label"].to_numpy().astype(int).astype(str).tolist()
        == train.load_data(recipe)["test"]["clicked"].to_pylist()
    )


def test_the_card_tells_both(refitted: tuple[Recipe, dict[str, Any]]) -> None:
    recipe, results = refitted
    card, before = (Path(recipe.output_dir) / "README.md").read_text(), results["selection"]
    assert f"validation AUC {before['validation_auc']:.4f}, test AUC {before['test_auc']:.4f}" in card
    assert f"{results['test_auc']:.4f}" in card
    assert "| validation |" not in card


def test_run_again_it_returns_what_it_has_and_goes_on_where_it_was(
    refitted: tuple[Recipe, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe, _ = refitted
    assert run(recipe, train.load_data(recipe)) == json.loads(
        (Path(recipe.output_dir) / "all_results.json").read_text()
    )
    small = replace(recipe, pretraining=None, towers="tabular", output_dir=str(tmp_path / "out"))
    whole = run(replace(small, output_dir=str(tmp_path / "whole")), train.load_data(small))
    # Killed after the refit's last step, before anything of it is saved.
    stop, finetune = RuntimeError("killed"), stages.calibrate

    def killed(one: stages.Run, *args: Any) -> Any:
        if one.selected:
            raise stop
        return finetune(one, *args)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "calibrate", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(small, train.load_data(small))
    with monkeypatch.context() as patch:
        patch.setattr(stages, "platt", None)  # what validation chose is not chosen again
        resumed = run(small, train.load_data(small))
    assert resumed["resumed"] and resumed["epochs"] == whole["epochs"]
    ours, theirs = weights_of(tmp_path / "out"), weights_of(tmp_path / "whole")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--refit", "-1"), "refit is -1"),
        (
            ("--refit", "true", "--finetuning.lr_scheduler_type", "reduce_lr_on_plateau"),
            "finetuning.lr_scheduler_type reduce_lr_on_plateau needs them",
        ),
        (("--refit", "9"), "refit is 9 epochs, and finetuning.num_train_epochs 4"),
        (("--refit", "2", "--calibration", "platt"), "needs validation rows"),
        (
            ("--refit", "true", "--pretraining.load_best_model_at_end", "true", "--pretraining.eval_strategy", "epoch"),
            "leave out pretraining.load_best_model_at_end",
        ),
    ],
)
def test_what_cannot_be_is_said(given: tuple[str, ...], said: str, recipe: Any) -> None:
    with pytest.raises(ValueError, match=said):
        check_recipe(recipe(*QUICK, *given))


def test_half_an_epoch_can_be_chosen(recipe: Any) -> None:
    half = recipe(*QUICK, "--refit", "0.5", "--pretraining", "null", "--towers", "tabular")
    assert run(half, train.load_data(half))["epochs"] == pytest.approx(0.5, abs=1 / 12)


def test_a_dry_run_counts_both_parts(recipe: Any, tmp_path: Path) -> None:
    wanted = recipe(*QUICK, "--refit", "true", "--pretraining", "null", "--towers", "tabular")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    report = inspect(wanted, train.load_data(wanted), scratch=scratch)
    assert report.refit == pytest.approx(180 / 162 + 0)
    assert "refit, the same on training and validation rows: at most" in show(report, "train.py")
    known = inspect(replace(wanted, refit=2.0), train.load_data(wanted), scratch=scratch)
    assert known.refit is None and list(known.splits) == ["train", "test"]
    assert known.stages[0].steps == 24  # of 180 rows, 16 at a time, twice
