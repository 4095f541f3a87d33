"""Two processes of which one is told to end, or dies: real ones, and accelerate's launcher."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import environment, launch, wait_until

MINUTE = 60


@pytest.fixture
def begun(recipe_file: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A launcher whose processes train, and the log of all of them."""
    long: list[Any] = ["--pretraining.num_train_epochs", 10_000, "--pretraining.dataloader_num_workers", 1]
    command = launch(recipe_file, *long, "--output_dir", tmp_path / "out", processes=2)
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)
    wait_until(lambda: any((tmp_path / "out").glob("checkpoints/pretraining/*/state.sha256")), 240)
    yield launcher, tmp_path / "log"
    if launcher.poll() is None:
        for child in children(launcher.pid):
            os.kill(child, signal.SIGKILL)
        launcher.kill()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(launcher: subprocess.Popen[bytes], ranks: list[int]) -> None:
    launcher.wait(MINUTE)
    wait_until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), MINUTE)
    assert launcher.returncode


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_both_save_the_same_step(
    signum: signal.Signals, begun: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """The launcher passes the signal on to the processes and to those that read their rows, and has a traceback of its own."""
    launcher, log = begun
    ranks = children(launcher.pid)
    os.kill(launcher.pid, signum)
    ended(launcher, ranks)
    told = re.findall(r"^train\.py: .*", log.read_text(), re.MULTILINE)
    assert len(told) == 1, told
    goes_on = re.fullmatch(
        r"train\.py: interrupted; run the same command again to go on from step (\d+) of pretraining", told[0]
    )
    assert goes_on is not None, told
    assert (log.parent / f"out/checkpoints/pretraining/checkpoint-{goes_on[1]}/state.sha256").exists()
    assert "[rank" not in log.read_text()  # of their tracebacks


@pytest.mark.slow
def test_when_one_dies_the_other_ends_too_and_says_why(begun: tuple[subprocess.Popen[bytes], Path]) -> None:
    launcher, log = begun
    ranks = children(launcher.pid)
    os.kill(ranks[-1], signal.SIGKILL)
    ended(launcher, ranks)
    text = log.read_text()
    # Rank 0 is left and has no traceback. What reads rank 1's rows may say that the one it was handing them to is gone.
    assert "[rank0" not in text, text
    assert "train.py: error: another process of this run has ended" in text, text
    assert re.search(r"rank\s+: 1 .*\n\s+exitcode\s+: -9 ", text), text  # the launcher's
