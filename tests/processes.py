"""train.py in processes of its own, through accelerate's launcher, and what a run leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]


def launch(
    *arguments: Any, processes: int = 1, configuration: str | None = None, script: str = "train.py"
) -> list[str]:
    configuration = configuration or ("cpu" if processes == 1 else "cpus")
    file = ROOT / "configuration" / "accelerate" / f"{configuration}.yaml"
    given = ["--config_file", file, "--num_processes", processes, "--main_process_port", "0"]
    command = ["accelerate.commands.launch", *given, ROOT / script, *arguments, "--use_cpu"]
    return [sys.executable, "-m", *map(str, command)]


FORK = """
import shutil, sys, tempfile
from pathlib import Path
from tests.attack.forks import prepare_to_fork
from tests.attack.scenarios import Scenario, run

processes, recipe, *arguments = sys.argv[1:]
prepare_to_fork()
with tempfile.TemporaryDirectory() as folder:
    shutil.copy(recipe, Path(folder, "recipe.yaml"))
    ended = run(Path(folder), Scenario(int(processes), tuple(arguments)))
print(ended.error, file=sys.stderr)
sys.exit(ended.code != 0)  # None where it hangs
"""


def forked(recipe: Path, *arguments: Any, processes: int) -> list[str]:
    """As `launch`, for processes on the CPU, but one process imports for all of them, which takes seconds."""
    return [sys.executable, "-c", FORK, *map(str, [processes, recipe, *arguments])]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def finish(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    """Fails where it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
