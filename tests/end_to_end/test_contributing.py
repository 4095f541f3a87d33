"""CONTRIBUTING's tower, copied from the page into a module outside the package: tested by its test, trained by its script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's folder: the tower, the script, and the project's tests with one test more."""
    here = tmp_path_factory.mktemp("newcomer")
    tower, script, test = BLOCKS
    (here / "my_tower.py").write_text(tower)
    (here / "my_train.py").write_text(script)
    matrix = (ROOT / "tests" / "modeling_flip" / "tabular_towers" / "test_every_tower.py").read_text()
    (here / "test_towers.py").write_text(
        f"import my_tower\n{matrix.replace('from __future__ import annotations', '')}\n{test}"
    )
    return here


@pytest.mark.slow
def test_the_matrix_and_the_formula_hold_for_the_new_tower(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "test_towers.py", "-q", "-k", "fm and not deepfm and not xdeepfm"]
    path = f"{folder}:{ROOT}"
    run = subprocess.run(command, cwd=folder, env=environment(path), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 10  # the matrix, and its own
    assert "failed" not in run.stdout


@pytest.mark.slow
def test_the_new_tower_trains_from_a_recipe(folder: Path) -> None:
    recipe = str(ROOT / "configuration" / "quickstart.yaml")
    quick = [
        "--towers",
        "tabular",
        "--tabular_tower",
        "fm",
        "--finetuning.max_steps",
        "3",
        "--max_train_samples",
        "500",
    ]
    quick += [
        "--model.num_factors",
        "4",
        "--pretraining.max_steps",
        "2",
        "--pretraining.per_device_train_batch_size",
        "8",
    ]
    command = [sys.executable, "my_train.py", recipe, *quick, "--output_dir", str(folder / "model")]
    run = subprocess.run(command, cwd=folder, env=environment(str(ROOT)), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    config = json.loads((folder / "model" / "config.json").read_text())
    assert (config["tabular_tower"], config["tower_settings"]) == ("fm", {"num_factors": 4})
    assert 0 < json.loads((folder / "model" / "all_results.json").read_text())["test_auc"] < 1


def environment(path: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": path}
