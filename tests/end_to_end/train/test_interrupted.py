"""train.py interrupted, killed or out of disk: one line, and the same command goes on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import SafetensorError

import train
from modeling_flip import FlipForPreTraining
from modeling_flip.training import stages
from modeling_flip.training.publishing import RECIPE_FILE, RESULTS_FILE
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.stages import run
from tests.end_to_end.train.runs import MakeRecipe, load_tables, main_ends, run_recipe, same_bits, with_column
from tests.processes import ROOT, environment, launch, wait_until, weights


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
