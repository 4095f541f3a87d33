"""train.py, from raw rows to a checkpoint that scores."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import train
from modeling_flip import FlipForCTR, FlipProcessor
from modeling_flip.training import preparation
from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.publishing import RECIPE_FILE, RESULTS_FILE
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.stages import run
from tests.end_to_end.train.runs import MakeRecipe, load_tables, run_recipe, same_bits
from tests.processes import weights


@pytest.fixture(scope="session")
def flip(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, dict[str, Any]]:
    """A whole FLIP run, and what it returned."""
    folder = tmp_path_factory.mktemp("flip") / "out"
    longer = ["--finetuning.num_train_epochs", "12", "--finetuning.early_stopping_patience", "12"]
    longer += ["--finetuning.learning_rate", "0.03", "--finetuning.text_learning_rate", "0.001"]
    longer += ["--cache_dir", str(folder.parent / "cache")]  # it is timed: nothing is kept from an earlier run
    recipe = parse_recipe([str(recipe_file), "--output_dir", str(folder), *longer])
    return recipe, run_recipe(recipe)


def test_a_run_leaves_a_model_that_scores_raw_rows(flip: tuple[Recipe, dict[str, Any]]) -> None:
    folder = flip[0].output_dir
    model, processor = FlipForCTR.from_pretrained(folder).eval(), FlipProcessor.from_pretrained(folder)
    known = {"user_id": 3, "age": "young", "title": "Toy Story 1", "genre": "Comedy"}
    rows = [known, known | {"genre": "Drama"}, known | {"title": "Never Seen"}, {"age": None, "genre": "Comedy"}]
    likes, dislikes, *others = model(**processor(rows)).logits.sigmoid().tolist()
    assert likes > 0.6 > 0.4 > dislikes
    assert all(0 < p < 1 for p in others)


def test_results_say_what_was_measured_and_how(flip: tuple[Recipe, dict[str, Any]]) -> None:
    recipe, returned = flip
    results = json.loads((Path(recipe.output_dir) / RESULTS_FILE).read_text())
    assert results == json.loads(json.dumps(returned))
    for tower in ("", "tabular_", "text_"):
        assert 0 <= results[f"test_{tower}auc"] <= 1
        assert results[f"test_{tower}logloss"] > 0
    assert 0 < results["alpha"] < 1
    assert results["rows"] == {"train": 162, "validation": 18, "test": 20}
    assert results["recipe"]["finetuning"]["num_train_epochs"] == 12
    assert results["versions"]["torch"] == torch.__version__
    wall_time = results["wall_time"]
    timed = ["check", "infer", "fit", "encode", "open", "pretraining", "finetuning", "evaluation", "total"]
    assert sorted(wall_time) == sorted(f"{phase}_seconds" for phase in timed)
    assert wall_time["total_seconds"] > wall_time["finetuning_seconds"] > 0
    assert results["seed"] == 42


def test_results_can_be_computed_again_from_the_saved_model(flip: tuple[Recipe, dict[str, Any]]) -> None:
    recipe, results = flip
    model = FlipForCTR.from_pretrained(recipe.output_dir).eval()
    processor = FlipProcessor.from_pretrained(recipe.output_dir)
    test = load_tables(recipe)["test"]
    with torch.no_grad():
        probabilities = model(**processor(test)).logits.sigmoid().double().numpy()
    clicks = np.asarray(test["clicked"]).astype(int)  # a CSV's cells are text
    pairs = np.sign(probabilities[clicks == 1][:, None] - probabilities[clicks == 0][None])
    assert results["test_auc"] == pytest.approx((pairs.mean() + 1) / 2, abs=1e-6)


def test_no_pickle_is_left_behind(flip: tuple[Recipe, dict[str, Any]]) -> None:
    files = {path.suffix for path in Path(flip[0].output_dir).rglob("*") if path.is_file()}
    assert files == {".safetensors", ".json", ".parquet", ".yaml", ".md", ".png", ".py", ".sha256"}


def test_a_finished_run_is_not_run_again(flip: tuple[Recipe, dict[str, Any]]) -> None:
    recipe, results = flip
    before = (Path(recipe.output_dir) / "model.safetensors").stat().st_mtime_ns
    assert run_recipe(replace(recipe))["test_auc"] == results["test_auc"]
    assert (Path(recipe.output_dir) / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("towers", ["tabular", "text"])
def test_one_tower_is_finetuned_from_a_pretraining_checkpoint(
    towers: str, flip: tuple[Recipe, dict[str, Any]], recipe: MakeRecipe
) -> None:
    pretrained = Path(flip[0].output_dir) / "pretraining"
    results = run_recipe(recipe("--towers", towers, "--pretrained_model_name_or_path", pretrained))
    folder = Path(results["recipe"]["output_dir"])
    assert not (folder / "pretraining").exists()
    absent = {"tabular": "text_tower", "text": "tabular_tower"}[towers]
    assert not [name for name in weights(folder) if absent in name or "alpha" in name]
    assert "test_tabular_auc" not in results


def test_a_pretraining_checkpoint_of_another_shape_is_refused(
    flip: tuple[Recipe, dict[str, Any]], recipe: MakeRecipe
) -> None:
    pretrained = Path(flip[0].output_dir) / "pretraining"
    with pytest.raises(ValueError, match=r"tabular_tower is 'autoint', but .* was trained with 'dcnv2'"):
        run_recipe(recipe("--tabular_tower", "autoint", "--pretrained_model_name_or_path", pretrained))
    with pytest.raises(ValueError, match=r"embedding_size is 5, but .* was trained with 4"):
        run_recipe(recipe("--model.embedding_size", 5, "--pretrained_model_name_or_path", pretrained))
    for fields in ('{"age": {"kind": "text"}}', '[user_id, {"name": "age", "kind": "text"}, title, genre]'):
        with pytest.raises(ValueError, match=r"kind of field 'age' is 'text', but .* was trained with 'categorical'"):
            run_recipe(recipe("--fields", fields, "--pretrained_model_name_or_path", pretrained))


@pytest.mark.parametrize("checkpoint", [".", "pretraining"])
def test_a_checkpoint_goes_on_with_new_rows_and_new_values(
    checkpoint: str, flip: tuple[Recipe, dict[str, Any]], recipe: MakeRecipe, tmp_path: Path
) -> None:
    first, days = Path(flip[0].output_dir) / checkpoint, tmp_path / "days.csv"
    text = Path(flip[0].dataset_name).read_text()
    days.write_text(re.sub(r"Toy Story ([5-8])", r"Das Boot \1", text))
    going_on = recipe("--dataset_name", days, "--init_from", first, "--towers", "tabular", "--finetuning.max_steps", 2)
    run_recipe(going_on)
    folder, before = Path(going_on.output_dir), FlipProcessor.from_pretrained(first).vocabulary
    assert not (folder / "pretraining").exists()
    after = FlipProcessor.from_pretrained(folder).vocabulary
    known, grown = before.values["title"].to_pylist(), after.values["title"].to_pylist()
    assert grown[: len(known)] == known
    assert {*grown} - {*known} == {f"Das Boot {i}" for i in range(5, 9)}
    assert after.counts["title"].sum() == 2 * before.counts["title"].sum()
    if checkpoint == ".":
        again = replace(going_on, output_dir=str(tmp_path / "again"))  # with the rows that the first run has kept
        run_recipe(again)
        assert same_bits(folder, Path(again.output_dir))


def test_new_values_of_an_id_checkpoint_start_from_the_mean_and_other_towers_are_refused(
    flip: tuple[Recipe, dict[str, Any]], recipe: MakeRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tabular = tmp_path / "tabular"
    FlipForCTR.from_pretrained(flip[0].output_dir, towers="tabular").save_pretrained(
        tabular, processor=FlipProcessor.from_pretrained(flip[0].output_dir).tabular_only()
    )
    with pytest.raises(ValueError, match=r"towers is 'both', but .* has only one, 'tabular'; set towers to that"):
        run_recipe(recipe("--init_from", tabular))
    going_on = recipe("--init_from", tabular, "--towers", "tabular", "--finetuning.max_steps", 1)
    run_recipe(going_on)
    assert "has no text tower to predict embeddings with: new values start from the mean of their field" in caplog.text


@pytest.mark.parametrize("tabular_tower", ["dcnv2", "deepfm", "autoint"])
def test_an_id_model_from_scratch_needs_no_text_model(tabular_tower: str, recipe: MakeRecipe) -> None:
    scratch = replace(
        recipe("--towers", "tabular", "--tabular_tower", tabular_tower, "--finetuning.num_train_epochs", 8),
        pretraining=None,
        text_model_name_or_path=None,
    )
    assert run_recipe(scratch)["validation_auc"] > 0.75
    assert not (Path(scratch.output_dir) / "tokenizer.json").exists()


def test_two_runs_with_one_seed_give_the_same_bits_and_another_seed_does_not(
    recipe: MakeRecipe, tmp_path: Path
) -> None:
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        runs[name] = replace(recipe("--seed", seed, "--model.dropout", 0.2), output_dir=str(tmp_path / name))
        run_recipe(runs[name])
    assert same_bits(tmp_path / "a", tmp_path / "b")
    assert same_bits(tmp_path / "a" / "pretraining", tmp_path / "b" / "pretraining")
    assert not same_bits(tmp_path / "a", tmp_path / "c")


def test_64_rows_can_be_memorised(recipe: MakeRecipe) -> None:
    rng = np.random.default_rng(0)
    rows = datasets.Dataset.from_dict(
        {
            "user_id": [str(i) for i in range(64)],
            "title": ["Toy Story"] * 64,
            "clicked": rng.integers(0, 2, 64).tolist(),
        }
    )
    memorise = recipe(
        "--fields", "[user_id, title]", "--finetuning.num_train_epochs", 40, "--finetuning.text_learning_rate", 1e-3
    )
    memorise = replace(memorise, pretraining=None, finetuning=memorise.finetuning | {"early_stopping_patience": None})
    results = run(memorise, datasets.DatasetDict({split: rows for split in ("train", "validation", "test")}))
    assert results["test_auc"] == 1.0
    assert results["test_tabular_auc"] == 1.0


def test_every_stage_says_what_went_in_and_what_came_out(flip: tuple[Recipe, dict[str, Any]]) -> None:
    folder, results = Path(flip[0].output_dir), flip[1]
    told = {path.stem: json.loads(path.read_text()) for path in (folder / "manifests").iterdir()}
    assert set(told) == {"prepare", "align", "finetune", "evaluate", "publish"}
    for stage, content in told.items():
        assert content["stage"] == stage and content["complete"]
        assert content["inputs"]["vocabulary"] == FlipProcessor.from_pretrained(folder).vocabulary.fingerprint
        assert content["inputs"]["versions"]["torch"] == torch.__version__
        for name, file in content["outputs"]["files"].items():
            data = (folder / name).read_bytes()
            assert file == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}, name
    assert told["prepare"]["inputs"]["recipe"].keys() >= {"dataset_name", "label_column", "text_model_name_or_path"}
    assert told["prepare"]["inputs"]["data"]["train"]["rows"] == 162
    assert "model.safetensors" in told["finetune"]["outputs"]["files"]
    assert "pretraining/model.safetensors" in told["align"]["outputs"]["files"]
    assert told["evaluate"]["outputs"]["figures"]["test_auc"] == results["test_auc"]
    assert told["align"]["inputs"]["recipe"].keys() == {"tabular_tower", "model", "pretraining", "seed"} & {
        *flip[0].to_dict()
    }


def test_no_stage_changes_the_recipe_or_the_rows(recipe: MakeRecipe) -> None:
    asked = recipe("--pretraining.max_steps", 1, "--finetuning.max_steps", 1)
    before, data = copy.deepcopy(asked), load_tables(asked)
    tables = {split: rows.to_pydict() for split, rows in data.items()}
    run(asked, data)
    assert asked == before
    assert {split: rows.to_pydict() for split, rows in data.items()} == tables


def test_a_recipe_with_pretraining_is_trained_without(recipe: MakeRecipe) -> None:
    results = run_recipe(recipe("--pretraining", "null", "--finetuning.max_steps", 1))
    assert "pretraining_losses" not in results and "pretraining" not in results["recipe"]
    assert not (Path(results["recipe"]["output_dir"]) / "pretraining").exists()


def test_what_max_length_cuts_is_said_before_training(recipe: MakeRecipe, caplog: pytest.LogCaptureFixture) -> None:
    asked = recipe("--max_length", 16, "--fields", "[user_id, age, genre, title]")

    def prepare(asked: Recipe) -> preparation.Prepared:
        return preparation.prepare(asked, train.load_data(asked))

    prepared = prepare(asked)
    assert prepared.reports["cut_fields"]["title"] == 1
    assert (
        "max_length is 16 tokens, which is too short" in caplog.text
        and "'title' in 100.0% of the training rows" in caplog.text
    )
    caplog.clear()
    tabular = replace(asked, towers="tabular", pretraining=None)
    assert "cut_fields" not in prepare(tabular).reports
    assert "cut_fields" not in prepare(recipe()).reports
    assert "max_length" not in caplog.text


def test_a_saved_model_can_be_read_by_whom_the_umask_lets(flip: tuple[Recipe, dict[str, Any]]) -> None:
    folder = Path(flip[0].output_dir)
    for path in (folder, folder / "pretraining"):
        assert (path / "model.safetensors").stat().st_mode == (path / "config.json").stat().st_mode


def test_an_output_folder_that_holds_another_model_is_left_alone(
    flip: tuple[Recipe, dict[str, Any]], recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match="holds another model: its seed is 42, this run's is 7; choose another --output_dir"
    ):
        run_recipe(replace(flip[0], seed=7))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pytorch_model.bin").write_text("precious")
    with pytest.raises(ValueError, match=r"holds something else \(pytorch_model.bin\)"):
        run_recipe(recipe())
    assert not (tmp_path / "out" / RECIPE_FILE).exists()
