"""The files of configuration/accelerate, as accelerate reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from tests.processes import ROOT

FOLDER = ROOT / "configuration" / "accelerate"
PROCESSES = {"cpu": 1, "cpus": 2, "gpu": 1, "gpus": 8, "nodes": 16, "fsdp2": 8, "zero2": 8, "zero3": 8}
ENGINES = {"fsdp2": "use_fsdp", "zero2": "use_deepspeed", "zero3": "use_deepspeed"}


def test_each_file_stands_in_the_docs_and_the_other_way_round() -> None:
    table = re.findall(r"^\| (`\w+\.yaml`.*?) \|", (ROOT / "docs" / "training.md").read_text(), re.MULTILINE)
    named = re.findall(r"`(\w+)\.yaml`", " ".join(table))
    assert sorted(named) == sorted(PROCESSES) == sorted(path.stem for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_reads_it_and_misses_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = str(FOLDER / f"{name}.yaml")
    assert load_config_from_file(file).num_processes == PROCESSES[name]
    given = ["--config_file", file, "--main_process_ip", "127.0.0.1", str(Path("train.py")), "RECIPE.yaml"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    assert arguments.num_processes == PROCESSES[name]
    assert bool(arguments.multi_gpu) == (PROCESSES[name] > 1 and name not in ENGINES)
    for engine in set(ENGINES.values()):
        assert bool(getattr(arguments, engine)) == (ENGINES.get(name) == engine)
    assert "values were not passed" not in caplog.text
    assert defaults.mixed_precision == "no"  # the recipe's bf16 is what counts


def test_without_a_file_accelerate_says_what_it_misses(caplog: pytest.LogCaptureFixture) -> None:
    given = launch_command_parser().parse_args(["--cpu", "train.py", "RECIPE.yaml"])
    _validate_launch_command(given)
    assert "values were not passed" in caplog.text
