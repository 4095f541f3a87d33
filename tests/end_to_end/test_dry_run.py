"""`train.py --dry_run` as it is typed: what it prints, and that nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import train
from modeling_flip.training import timing
from modeling_flip.training.summary import python_command

ROOT = Path(__file__).resolve().parents[2]


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def command(recipe_file: Path, tmp_path: Path) -> list[str]:
    """Arguments of a recipe that names no text model: one has to be made."""
    recipe = yaml.safe_load(recipe_file.read_text())
    del recipe["text_model_name_or_path"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "outputs" / "mine"), "--use_cpu", "--dry_run"]


def test_nothing_is_left_on_disk(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(timing.FEW_STEPS, "max_steps", 2)
    temporary, here = tmp_path / "temporary", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(here)
    before = files(tmp_path)
    train.main(command)
    assert files(tmp_path) == before
    printed = capsys.readouterr().out
    table, report = printed.split("\n\nSplits")
    assert table.splitlines()[0].startswith("field")
    assert report.endswith(
        f"To train, run the same without --dry_run:\n  {python_command()} train.py {' '.join(command[:-1])}\n"
    )


def test_what_is_wrong_is_one_line_and_leaves_nothing(command: list[str], tmp_path: Path) -> None:
    before = files(tmp_path)
    with pytest.raises(SystemExit, match=r"^train\.py: error: column 'click' is missing in split 'train'"):
        train.main([*command, "--label_column", "click"])
    assert files(tmp_path) == before


@pytest.mark.slow
def test_the_main_one_of_two_processes_prints(command: list[str], tmp_path: Path) -> None:
    before = files(tmp_path)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", str(ROOT / "train.py"), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("To train, run the same without --dry_run:\n  accelerate launch train.py ") == 1
    assert done.stdout.count("click rate") == 1
    assert "(cpu, 2 processes)" in done.stdout
    assert "pretraining: 12 steps of 32 rows" in done.stdout  # 162 rows, 16 in each process
    assert files(tmp_path) == before
