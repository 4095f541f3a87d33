"""train.py, from raw rows to a checkpoint that scores: in this process where that is enough, in real ones where not."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from safetensors import SafetensorError

import train
from modeling_flip import FlipForCTR, FlipForPreTraining, FlipProcessor
from modeling_flip.training import preparation, stages
from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.publishing import RECIPE_FILE, RESULTS_FILE
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.stages import run
from tests.processes import ROOT, environment, launch, wait_until, weights

MakeRecipe = Callable[..., Recipe]


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    return run(recipe, train.load_data(recipe))


def load_tables(recipe: Recipe) -> dict[str, pa.Table]:
    return {split: rows.to_table() for split, rows in train.load_data(recipe).items()}


def same_bits(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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


# ---- validation

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


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_as_if_nothing_had_happened(recipe_file: Path, tmp_path: Path) -> None:
    arguments = [str(recipe_file), "--pretraining.num_train_epochs", "6", "--model.dropout", "0.2", "--use_cpu"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train.main([*arguments, "--output_dir", str(straight)])
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--output_dir", str(killed)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    wait_until(lambda: any(killed.glob("checkpoints/pretraining/*/trainer_state.json")))
    process.kill()
    process.wait()
    assert not (killed / RESULTS_FILE).exists()
    (killed / "checkpoints" / "pretraining" / "checkpoint-999").mkdir()  # half-written: no trainer_state.json
    train.main([*arguments, "--output_dir", str(killed)])
    assert same_bits(straight / "pretraining", killed / "pretraining")
    assert same_bits(straight, killed)


# ---- signals, locks, a full disk: one line, and the same command goes on


def main_ends(recipe_file: Path, output_dir: Path, *arguments: Any) -> Any:
    """What train.py exits with: a code, or a line."""
    with pytest.raises(SystemExit) as ended:
        train.main([str(recipe_file), "--use_cpu", "--output_dir", str(output_dir), *map(str, arguments)])
    return ended.value.code


@pytest.mark.slow
def test_a_run_ends_with_its_launcher_and_lets_no_other_into_its_folder(recipe_file: Path, tmp_path: Path) -> None:
    folder, long = tmp_path / "out", ["--pretraining.num_train_epochs", 10_000]
    log = tmp_path / "log"
    with open(log, "w") as file:
        launcher = subprocess.Popen(
            launch(recipe_file, *long, "--output_dir", folder), env=environment(), stdout=file, stderr=file
        )
    lock = tmp_path / ".out.lock"
    wait_until(lambda: lock.exists() and folder.exists() and len(lock.read_text().split()) == 2)
    child = int(lock.read_text().split()[0])
    assert child != launcher.pid
    assert f"out is being written by process {child} on " in main_ends(recipe_file, folder, *long)
    launcher.terminate()  # which it does not hand on
    launcher.wait()
    told = "\ntrain.py: interrupted; run the same command again to "
    wait_until(lambda: told in log.read_text())
    assert "Traceback" not in log.read_text() and not lock.exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["load_data", "run"])
def test_interrupted_a_run_ends_with_one_line(
    where: str,
    signum: signal.Signals,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train, where, lambda *_: os.kill(os.getpid(), signum))
    assert main_ends(recipe_file, tmp_path / "runs" / "out") == 128 + signum
    ended = "\ntrain.py: interrupted; run the same command again to continue from the last checkpoint\n"
    assert capsys.readouterr().err.endswith(ended)
    assert not list(tmp_path.iterdir())  # neither the lock nor the folder that was made for it


def test_a_recipe_that_is_refused_leaves_nothing_behind(recipe_file: Path, tmp_path: Path) -> None:
    assert "column 'nope' is missing" in main_ends(recipe_file, tmp_path / "runs" / "out", "--label_column", "nope")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_unfinished_is_not_somebody_elses(recipe: MakeRecipe) -> None:
    begun = recipe("--pretraining", "null", "--finetuning.max_steps", 1)
    folder = Path(begun.output_dir)
    folder.mkdir()
    (folder / f".{RECIPE_FILE}").write_text("dataset_na")
    (folder / ".lock").touch()
    assert run_recipe(begun)["resumed"] is False


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    stage: str, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full as safetensors says it, and as torch does."""
    few = ["--pretraining.max_steps", 1, "--finetuning.max_steps", 1]
    patched, error = {
        "align": (
            (FlipForPreTraining, "save_pretrained"),
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ),
        "finetune": (
            (torch, "save"),
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"),
        ),
    }[stage]

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*patched, fail)
        told = main_ends(recipe_file, tmp_path / "out", *few)
    assert re.search(
        r"train.py: error: no space left on the disk of \S+: free some, then run the same command again", told
    )
    assert "\n" not in told.strip()
    train.main([str(recipe_file), "--use_cpu", "--output_dir", str(tmp_path / "out"), *map(str, few)])
    assert (tmp_path / "out" / RESULTS_FILE).exists()


# ---- bad input: one clear error before training starts, and nothing is written


def with_column(split: str, column: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[Any], None]:
    def change(data: dict[str, pa.Table]) -> None:
        changed = pa.array(values(data[split][column].to_pylist()))
        data[split] = data[split].drop_columns([column]).append_column(column, changed)

    return change


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


def test_a_killed_finetuning_is_as_patient_as_an_uninterrupted_one(recipe: MakeRecipe, tmp_path: Path) -> None:
    """Killed after every epoch but the last and run again, it ends with the model of a straight run."""
    patient = recipe("--finetuning.num_train_epochs", 12, "--finetuning.learning_rate", 0.05, "--towers", "tabular")
    patient = replace(patient, pretraining=None)
    straight = replace(patient, output_dir=str(tmp_path / "straight"))
    epochs = run_recipe(straight)["epochs"]
    assert epochs < 12

    class KillAtSave(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise Killed

    killed = replace(patient, output_dir=str(tmp_path / "killed"))
    original: Any = stages.FlipTrainer
    for _ in range(int(epochs) - 1):
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(stages, "FlipTrainer", lambda *a: original(*a[:-1], [*a[-1], KillAtSave()]))
            run_recipe(killed)
    assert run_recipe(killed)["epochs"] == epochs
    assert same_bits(tmp_path / "straight", tmp_path / "killed")


class Killed(Exception):
    """What a test kills a run with."""


def killed_while(stage: str, recipe: Recipe, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stages before this one."""

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stages, stage, kill)
        with pytest.raises(Killed):
            run(recipe, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_column("train", "clicked", lambda v: [str(1 - int(v[0])), *v[1:]]), "split 'train' had other labels"),
        (with_column("train", "genre", lambda v: v[::-1]), "split 'train' had other values"),
        (with_column("test", "genre", lambda v: ["Never Seen", *v[1:]]), "split 'test' had other values"),
        (with_column("train", "title", lambda v: ["Heat", *v[1:]]), "the training rows had another vocabulary"),
        (
            lambda data: data.update(train=data["train"].slice(0, 160)),
            "split 'train' had 162 rows and now has 160; .*choose another --output_dir, or delete the folder",
        ),
    ],
)
def test_old_weights_never_go_on_with_other_data(
    change: Callable[[Any], None], message: str, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = recipe("--pretraining.max_steps", 1, "--finetuning.max_steps", 1)
    data = load_tables(begun)
    killed_while("finetune", begun, data, monkeypatch)
    before = {path: path.read_bytes() for path in Path(begun.output_dir).rglob("*") if path.is_file()}
    changed = dict(data)
    change(changed)
    with pytest.raises(ValueError, match=f"was begun with other inputs: .*{message}"):
        run(begun, changed)
    assert {path: path.read_bytes() for path in Path(begun.output_dir).rglob("*") if path.is_file()} == before
    assert run(begun, data)["resumed"]


def test_where_nothing_was_trained_yet_other_data_are_no_matter(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = recipe("--pretraining.max_steps", 1, "--finetuning.max_steps", 1)
    data = load_tables(begun)
    killed_while("pretrain", begun, data, monkeypatch)
    fewer = dict(data) | {"train": data["train"].slice(0, 160)}
    results = run(begun, fewer)
    assert results["rows"]["train"] == 160 and not results["resumed"]


@pytest.mark.parametrize("file", ["model.safetensors", "pretraining_results.json", "README.md"])
def test_a_damaged_alignment_is_done_again(
    file: str, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun = recipe("--pretraining.max_steps", 1, "--finetuning.max_steps", 1)
    data = load_tables(begun)
    killed_while("finetune", begun, data, monkeypatch)
    damaged = Path(begun.output_dir) / "pretraining" / file
    before = {name: weight.clone() for name, weight in weights(damaged.parent).items()}  # they lie in the file
    damaged.write_bytes(damaged.read_bytes()[:100])
    run(begun, data)
    assert f"{damaged} is cut short" in caplog.text and "pretraining starts again" in caplog.text
    after = weights(damaged.parent)
    assert all(torch.equal(after[name], before[name]) for name in before)


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


def test_a_mistake_in_the_code_keeps_its_traceback(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake(*_: Any) -> None:
        torch.zeros(3).numpy().reshape(2)

    monkeypatch.setattr(stages, "finetune", mistake)
    with pytest.raises(ValueError, match="cannot reshape"):
        train.main([str(recipe_file), "--output_dir", str(tmp_path / "out"), "--pretraining.max_steps", "1"])


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
