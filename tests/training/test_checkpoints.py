from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from modeling_flip import FlipDataset, FlipProcessor, FlipTrainer
from modeling_flip.tabular_layers import BatchNorm
from modeling_flip.training import checkpoints, trainer
from modeling_flip.training.checkpoints import last_checkpoint
from tests.training.conftest import CLICKS, ROWS

Make = Callable[..., FlipTrainer]


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    """Ends the process, as far as a test can, when a step has been saved."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def killed_at(step: int, make: Make, **kwargs: Any) -> Path:
    trainer = make([KillAt(step)], **kwargs)
    with pytest.raises(Killed):
        trainer.train()
    return Path(str(trainer.args.output_dir))


def weights(trainer: FlipTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs.keys() | ours.keys())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def removed(file: Path) -> None:
    file.unlink()


def damaged_in_turn(folder: Path, damage: Callable[[Path], None], checkpoint: str, tmp_path: Path) -> Iterator[str]:
    """The folder with one file of a checkpoint damaged after the other."""
    shutil.copytree(folder, tmp_path / "before")
    for name in sorted(file.name for file in (folder / checkpoint).iterdir() if file.suffix != ".py"):
        damage(folder / checkpoint / name)
        yield name
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "before", folder)


@pytest.mark.parametrize("damage", [cut, emptied, flipped, removed])
def test_a_checkpoint_that_is_not_whole_is_passed_over_whatever_is_wrong_with_it(
    damage: Callable[[Path], None], make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = killed_at(3, make)
    arguments = make().args
    assert last_checkpoint(arguments) == str(folder / "checkpoint-3")
    seen = set()
    for name in damaged_in_turn(folder, damage, "checkpoint-3", tmp_path):
        caplog.clear()
        seen.add(name)
        assert last_checkpoint(arguments) == str(folder / "checkpoint-2"), name
        assert f"skipping {folder / 'checkpoint-3'}: " in caplog.text
        assert not (folder / "checkpoint-3").exists()
    assert seen >= {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"}
    assert seen >= {"state.sha256", "model.sha256", "processor.sha256", "feature_vocab.parquet", "config.json"}


@pytest.mark.parametrize("sparse", [{}, {"sparse_embeddings": True}, {"sparse_embeddings": True, "optim": "adagrad"}])
def test_what_goes_on_from_the_one_before_ends_with_the_same_bits(
    sparse: dict[str, Any], make: Make, tmp_path: Path
) -> None:
    last_weights = {"load_best_model_at_end": False} | sparse
    straight = make(output_dir=str(tmp_path / "straight"), save_strategy="no", **last_weights)
    straight.train()
    folder = killed_at(6, make, **last_weights)
    flipped(folder / "checkpoint-6" / "optimizer.pt")
    again = make(**last_weights)
    last = last_checkpoint(again.args)
    assert last == str(folder / "checkpoint-5")
    again.train(resume_from_checkpoint=last)
    assert same(weights(again), weights(straight))


def test_where_no_checkpoint_is_whole_training_begins_anew(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder = killed_at(2, make, save_total_limit=1)
    for checkpoint in folder.glob("checkpoint-*"):
        removed(checkpoint / "scheduler.pt")
    assert last_checkpoint(make().args) is None
    assert "training starts from the beginning" in caplog.text
    assert not [*folder.glob("checkpoint-*")]


def test_weights_that_this_training_has_not_written_are_not_read(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder = killed_at(3, make)
    torch.save({}, folder / "checkpoint-3" / "pytorch_model.bin")
    assert last_checkpoint(make().args) == str(folder / "checkpoint-2")
    assert "pytorch_model.bin was not written by this training" in caplog.text


@pytest.mark.parametrize(
    "name", ["global_step3/rank_0_optim_states.pt", "global_step3/rank_0_model_states.pt", "latest"]
)
@pytest.mark.parametrize("damage", [emptied, removed])
def test_what_deepspeed_writes_is_checked_too(damage: Callable[[Path], None], name: str, make: Make) -> None:
    folder = killed_at(3, make)
    checkpoint = folder / "checkpoint-3"
    (checkpoint / "global_step3").mkdir()
    for file in ("global_step3/rank_0_optim_states.pt", "global_step3/rank_0_model_states.pt", "latest"):
        (checkpoint / file).write_text(file)
    removed(checkpoint / "optimizer.pt")
    checkpoints.seal(checkpoint)
    arguments = make().args
    assert last_checkpoint(arguments) == str(checkpoint)
    damage(checkpoint / name)
    assert last_checkpoint(arguments) == str(folder / "checkpoint-2")


def test_another_number_of_processes_is_refused(make: Make) -> None:
    folder = killed_at(3, make)
    state = folder / "checkpoint-3" / "rng_state.pth"
    for process in range(2):
        shutil.copyfile(state, state.with_name(f"rng_state_{process}.pth"))
    state.unlink()
    checkpoints.seal(state.parent)
    with pytest.raises(
        ValueError, match=r"checkpoint-3 was written by 2 processes, but now there are 1.*Start 2 processes"
    ):
        last_checkpoint(make().args)
    assert state.parent.exists()


def test_a_checkpoint_is_deleted_only_when_the_next_one_is_whole(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = killed_at(2, make, save_total_limit=1)
    again = make(save_total_limit=1)
    last = last_checkpoint(again.args)

    def kill(_: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "seal", kill)
        with pytest.raises(Killed):
            again.train(resume_from_checkpoint=last)
    assert (folder / "checkpoint-3" / "trainer_state.json").exists()
    assert last_checkpoint(again.args) == last == str(folder / "checkpoint-2")


# ---- the best one


def best_before_last(folder: Path) -> Path:
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_global_step"] < 6  # each is saved
    return folder / f"checkpoint-{state['best_global_step']}"


def test_the_best_is_saved_and_kept_however_rare_saves_are(make: Make, processor: FlipProcessor) -> None:
    trainer = make(evaluated_on=spoiled_by_training(processor), save_steps=100, early_stopping_patience=3)
    trainer.train()
    assert 0 < trainer.state.global_step < 8
    aucs = {entry["step"]: entry["eval_auc"] for entry in trainer.state.log_history if "eval_auc" in entry}
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{max(aucs, key=lambda step: aucs[step])}")
    assert trainer.evaluate()["eval_auc"] == max(aucs.values())


def test_patience_goes_on_where_it_was_without_being_asked_for(
    make: Make, processor: FlipProcessor, tmp_path: Path
) -> None:
    patient: dict[str, Any] = {"evaluated_on": spoiled_by_training(processor), "early_stopping_patience": 3}
    patient |= {"num_train_epochs": 4, "restore_callback_states_from_checkpoint": False}
    straight = make(output_dir=str(tmp_path / "straight"), **patient)
    straight.train()
    killed_at(straight.state.global_step - 1, make, **patient)
    again = make(**patient)
    again.train(resume_from_checkpoint=last_checkpoint(again.args))
    assert again.state.global_step == straight.state.global_step


@pytest.mark.parametrize("change", [dict.popitem, lambda weights: weights.update(stranger=torch.zeros(1))])
def test_weights_that_do_not_fit_are_refused(change: Callable[[dict[str, torch.Tensor]], Any], make: Make) -> None:
    folder = killed_at(2, make) / "checkpoint-2"
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"the checkpoint (lacks|has weights without a place)"):
        make()._load_from_checkpoint(str(folder))


def spoiled_by_training(processor: FlipProcessor) -> FlipDataset:
    """Clicks of which the model learns the contrary: its first step is its best."""
    return processor.encode(ROWS | {"label": [1 - click for click in CLICKS]}, "label")


@pytest.mark.parametrize("damage", [cut, flipped, removed])
def test_a_damaged_best_checkpoint_is_never_the_final_model(
    damage: Callable[[Path], None], make: Make, processor: FlipProcessor, tmp_path: Path
) -> None:
    others = spoiled_by_training(processor)
    straight = make(output_dir=str(tmp_path / "straight"), evaluated_on=others)
    straight.train()
    folder = killed_at(6, make, save_total_limit=1, evaluated_on=others)
    damage(best_before_last(folder) / "model.safetensors")
    again = make(evaluated_on=others)
    again.train(resume_from_checkpoint=last_checkpoint(again.args))
    assert same(weights(again), weights(straight))


def test_a_best_checkpoint_that_is_damaged_while_training_goes_on_ends_it(make: Make, processor: FlipProcessor) -> None:
    class Damage(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 8:
                shutil.rmtree(state.best_model_checkpoint)

    training = make([Damage()], evaluated_on=spoiled_by_training(processor))
    with pytest.raises(ValueError, match=r"the best checkpoint cannot be loaded: .*checkpoint-\d has no model.sha256"):
        training.train()


# ---- the same as a straight run


def test_a_training_that_had_stopped_early_stays_stopped(make: Make, processor: FlipProcessor, tmp_path: Path) -> None:
    patient = {"early_stopping_patience": 2, "evaluated_on": spoiled_by_training(processor), "num_train_epochs": 4}
    straight = make(output_dir=str(tmp_path / "straight"), **patient)
    straight.train()
    stopped = straight.state.global_step
    assert stopped < 16
    killed_at(stopped, make, **patient)  # between its last save and its end
    again = make(**patient)
    last = last_checkpoint(again.args)
    assert last is not None and last.endswith(f"-{stopped}")
    again.train(resume_from_checkpoint=last)
    assert again.state.global_step == stopped
    evaluated = [entry["step"] for entry in again.state.log_history if "eval_auc" in entry]
    assert evaluated == [entry["step"] for entry in straight.state.log_history if "eval_auc" in entry]
    assert same(weights(again), weights(straight))


def test_the_log_of_a_resumed_training_is_that_of_a_straight_one(make: Make, tmp_path: Path) -> None:
    """A line of the log is the mean since the line before: it must not span a checkpoint."""

    def losses(training: FlipTrainer) -> list[tuple[int, float]]:
        return [(entry["step"], entry["loss"]) for entry in training.state.log_history if "loss" in entry]

    every = {"logging_steps": 5, "save_steps": 2, "eval_steps": 2}
    straight = make(output_dir=str(tmp_path / "straight"), **every)
    straight.train()
    killed_at(4, make, **every)
    again = make(**every)
    again.train(resume_from_checkpoint=last_checkpoint(again.args))
    assert losses(again) == losses(straight)
    assert [step for step, _ in losses(straight)] == [2, 4, 5, 6, 8]


@pytest.mark.parametrize(
    ("settings", "killed"),
    [
        ({"save_steps": 4, "eval_strategy": "epoch"}, 4),  # what comes at the end of an epoch is not left out
        ({"max_steps": 6}, 6),  # nothing comes after the end, though the epoch goes on
        ({"max_steps": 6, "save_steps": 4, "eval_strategy": "epoch"}, 6),
    ],
)
def test_a_training_that_is_killed_where_an_epoch_or_all_ends_is_as_a_straight_one(
    settings: dict[str, Any], killed: int, make: Make, tmp_path: Path
) -> None:
    settings = {"load_best_model_at_end": False} | settings
    straight = make(output_dir=str(tmp_path / "straight"), **settings)
    straight.train()
    killed_at(killed, make, **settings)
    again = make(**settings)
    again.train(resume_from_checkpoint=last_checkpoint(again.args))

    def evaluated(training: FlipTrainer) -> list[tuple[int, float]]:
        return [(entry["step"], entry["eval_auc"]) for entry in training.state.log_history if "eval_auc" in entry]

    assert evaluated(again) == evaluated(straight)
    assert again.state.global_step == straight.state.global_step
    assert same(weights(again), weights(straight))


def test_statistics_that_are_not_finite_are_not_saved(make: Make) -> None:
    training = make()
    training.model.add_module("norm", BatchNorm(4))
    name, buffer = next((n, b) for n, b in training.model.named_buffers() if b.is_floating_point())
    buffer.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=f"{name} is not finite"):
        training.save_model(training.args.output_dir)
