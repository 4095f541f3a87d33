"""What a signal does to a training, in one process; tests/resume and tests/end_to_end have whole runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerControl

from modeling_flip import FlipProcessor
from modeling_flip.commands import Terminated
from modeling_flip.training import interruption
from modeling_flip.training.checkpoints import last_checkpoint
from modeling_flip.training.interruption import Interruption, interruptible
from tests.training.test_checkpoints import Make, same, spoiled_by_training, weights


@pytest.fixture(autouse=True)
def _signals_end_a_test() -> Iterator[None]:
    """And not the whole suite."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


class Send(TrainerCallback):
    """Sends this process a signal when a step ends, or when something else happens after it."""

    def __init__(self, step: int, signum: int = signal.SIGTERM, event: str = "on_step_end", times: int = 1):
        self.step, self.signum, self.times = step, signum, times
        setattr(self, event, self.send)

    def send(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)


def stopped(trainer: Any) -> str:
    """What a training that is interrupted says."""
    with pytest.raises(KeyboardInterrupt) as told, interruptible(trainer):
        trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args))
    return str(told.value)


def steps(trainer: Any) -> list[int]:
    return sorted(int(path.name[11:]) for path in Path(trainer.args.output_dir).glob("checkpoint-*"))


RARELY = {"save_strategy": "epoch", "eval_strategy": "epoch"}
NEVER = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
CASES: list[tuple[dict[str, Any], int]] = [
    (RARELY, 1),
    (RARELY, 4),  # the end of an epoch
    (RARELY, 6),
    (RARELY, 8),  # the end
    (NEVER, 3),
    (NEVER | {"sparse_embeddings": True}, 4),
    (NEVER | {"max_steps": 6}, 6),  # the end, in the middle of an epoch
    (NEVER | {"eval_strategy": "epoch"}, 4),
    (NEVER | {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, 3),
    (RARELY | {"lr_scheduler_type": "cosine", "early_stopping_patience": 1}, 5),
]


@pytest.mark.parametrize(("settings", "step"), CASES)
def test_a_signal_saves_the_step_and_the_same_command_ends_with_the_same_bits(
    settings: dict[str, Any],
    step: int,
    make: Make,
    tmp_path: Path,
) -> None:
    straight = make(output_dir=str(tmp_path / "straight"), **settings)
    straight.train()
    told = stopped(first := make([Send(step)], **settings))
    assert told == f"run the same command again to go on from step {step} of run"
    assert steps(first)[-1] == step
    again = make(**settings)
    with interruptible(again):
        again.train(resume_from_checkpoint=last_checkpoint(again.args))
    assert same(weights(again), weights(straight))
    assert lasting(again) == lasting(straight)
    assert again.state.best_global_step == straight.state.best_global_step


def lasting(trainer: Any) -> list[dict[str, Any]]:
    passing = ("runtime", "per_second", "train_loss")
    return [{k: v for k, v in entry.items() if not k.endswith(passing)} for entry in trainer.state.log_history]


def test_the_mean_loss_of_a_resumed_training_is_that_of_its_own_steps(make: Make, tmp_path: Path) -> None:
    """Not of the steps that were not yet logged at the interruption too."""
    straight = make(output_dir=str(tmp_path / "straight"), **NEVER, logging_steps=1)
    straight.train()
    losses = [entry["loss"] for entry in straight.state.log_history if "loss" in entry]
    stopped(make([Send(3)], **NEVER, logging_steps=100))
    again = make(**NEVER, logging_steps=100)
    again.train(resume_from_checkpoint=last_checkpoint(again.args))
    assert again.state.log_history[-1]["train_loss"] == pytest.approx(sum(losses[3:]) / len(losses[3:]))


def test_it_is_sigterm_or_ctrl_c_that_ends_it(make: Make) -> None:
    for signum, kind in ((signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)):
        with pytest.raises(KeyboardInterrupt) as ended, interruptible(trainer := make([Send(1, signum)])):
            trainer.train()
        assert type(ended.value) is kind


def test_a_launcher_that_passes_a_signal_on_does_not_send_a_second_one(make: Make) -> None:
    assert stopped(make([Send(1, times=3)])).endswith("step 1 of run")


def test_a_second_signal_stops_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "SECONDS_OF_ONE", 0.0)
    trainer = make([Send(1, times=2)], **NEVER)
    assert stopped(trainer) == ""
    assert not steps(trainer)


def test_a_signal_after_the_last_save_still_ends_the_run(make: Make) -> None:
    trainer = make([Send(8, event="on_train_end")], **RARELY)
    assert stopped(trainer) == "run the same command again to continue from the last checkpoint"
    assert steps(trainer)[-1] == 8


def test_a_checkpoint_that_a_signal_asked_for_does_not_become_the_best_one(
    make: Make, processor: FlipProcessor, tmp_path: Path
) -> None:
    """Where it was evaluated, and was not to be saved."""
    seldom = {"eval_steps": 1, "save_steps": 3, "evaluated_on": spoiled_by_training(processor)}
    straight = make(output_dir=str(tmp_path / "straight"), **seldom)
    straight.train()
    best = straight.state.best_global_step
    assert best < 7
    assert stopped(make([Send(best + 1)], **seldom)).endswith(f"step {best + 1} of run")
    again = make(**seldom)
    again.train(resume_from_checkpoint=last_checkpoint(again.args))
    assert again.state.best_global_step == best
    assert same(weights(again), weights(straight))


def test_outside_of_a_training_signals_do_what_they_did(make: Make) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    stopped(make([Send(1)]))
    with interruptible(trainer := make()):
        trainer.train()
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


def test_what_is_ignored_stays_ignored(make: Make) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with interruptible(trainer := make([Send(1)])):
        trainer.train()
    assert trainer.state.global_step == 8


@pytest.mark.parametrize(("device", "seen"), [("cpu", [1, 2, 3]), ("cuda", [10])])
def test_processes_stop_at_the_step_at_which_all_know(
    device: str, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which one alone was told; on a GPU every tenth step."""
    state = SimpleNamespace(num_processes=2, device=torch.device(device))
    monkeypatch.setattr(interruption, "PartialState", lambda: state)
    asked, found = Interruption(), []
    for step in range(1, seen[-1] + 1):
        asked.note(torch.tensor(0.5 if step == 1 else 0.0))
        control = TrainerControl()
        arguments = SimpleNamespace(load_best_model_at_end=False)
        asked.on_step_end(arguments, SimpleNamespace(global_step=step, epoch=step / 100), control)
        found += [step] * control.should_save
    assert found == seen and not asked.is_asked


def test_workers_that_read_rows_leave_signals_to_their_parent(make: Make) -> None:
    """A terminal sends Ctrl-C to them too."""

    class SendToWorkers(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                workers = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                assert workers
                subprocess.run(["kill", "-TERM", *workers], check=True)  # from another process than their parent
                subprocess.run(["kill", "-INT", *workers], check=True)
                time.sleep(0.2)

    trainer = make([SendToWorkers()], dataloader_num_workers=1, **NEVER)
    trainer.train()
    assert trainer.state.global_step == 8


def test_their_parent_can_end_them() -> None:
    worker = os.fork()
    if worker == 0:
        interruption.leave_signals_to_parent(0)
        time.sleep(60)
        os._exit(1)
    while "SigBlk:\t0000000000004000" not in Path(f"/proc/{worker}/status").read_text():
        time.sleep(0.01)
    subprocess.run(["kill", "-TERM", str(worker)], check=True)
    time.sleep(0.1)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, signal.SIGTERM)
    assert os.waitpid(worker, 0)[1] == 0
