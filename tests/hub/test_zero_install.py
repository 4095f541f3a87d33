"""A pushed checkpoint runs where this package is not installed: in a virtual environment with transformers, torch and pyarrow
alone, through every Auto class, with the same scores to the bit."""

from __future__ import annotations

import json
import re
import site
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from modeling_flip import CTR_MODELS
from tests.hub.loopback_hub import LoopbackHub

ROWS = [
    {"user_id": 1, "gender": "female", "title": "Toy Story (1995)"},
    {"user_id": "nobody", "gender": None, "title": "Never Seen, not even once"},
    {"title": "東京物語"},
]
# Prints what scores it gets, as exact hexadecimal numbers.
LOAD_AND_SCORE = """
import json, sys
from importlib.util import find_spec
import torch, transformers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor, pipeline

installed, names, rows = {installed}, {names!r}, {rows!r}
if installed:
    import modeling_flip
else:
    for name in ("modeling_flip", "datasets", "accelerate", "evaluate", "pandas", "sklearn"):
        assert find_spec(name) is None, name
trust = {trust}
scores = {{}}
for name in names:
    config = AutoConfig.from_pretrained(name, **trust)
    processor = AutoProcessor.from_pretrained(name, **trust)
    model = AutoModelForSequenceClassification.from_pretrained(name, **trust).eval()
    if config.model_type == "flip":
        base = AutoModel.from_pretrained(name, **trust).eval()
        with torch.no_grad():
            whole, towers = model.flip(**processor(rows)), base(**processor(rows))
        assert whole.keys() == towers.keys() and all(torch.equal(whole[key], towers[key]) for key in whole)
        with torch.no_grad():
            scores[name] = [p.hex() for p in model(**processor(rows)).logits.tolist()]
    model.save_pretrained("again"), processor.save_pretrained("again")  # whole, though nothing has asked for the pipeline yet
    by_task = pipeline("ctr-prediction", model=name, **trust)
    by_model = pipeline(model=name, **trust)
    assert by_task(rows) == by_model(rows), name
    scores[name + " pipeline"] = [row["probability"].hex() for row in by_task(rows)]
    for part in (config, processor, model, by_task, by_model):
        assert type(part).__module__.startswith("modeling_flip." if installed else "transformers_modules."), type(part)
    again = pipeline(model="again", **trust)
    assert again(rows) == by_task(rows), name
    again.save_pretrained("once more")
    assert pipeline(model="once more", **trust)(rows) == by_task(rows), name
    if not installed:
        try:
            model.push_to_hub("me/pushed-from-nowhere", processor)
        except ImportError as error:
            assert "push_to_hub needs the package modeling-flip (modeling_flip is not installed)" in str(error)
        else:
            raise AssertionError("a checkpoint's own code has pushed")
remote = [m for m in sys.modules if m.startswith("transformers_modules.")]
assert bool(remote) != installed, remote
print(json.dumps(scores))
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The python of a virtual environment with transformers, torch, pyarrow and what these require; nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    code = "import site; print(site.getsitepackages()[0])"
    target = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    for name in closure({"transformers", "torch", "pyarrow"}):
        for file in distribution(name).files or []:
            top = file.parts[0]
            source = Path(str(distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and source.exists() and not (target / top).exists():
                (target / top).symlink_to(source)
    assert target != Path(site.getsitepackages()[0])
    return str(python)


def closure(names: set[str]) -> set[str]:
    """Names of distributions, and of all that they require here."""
    done: set[str] = set()
    while names - done:
        name = (names - done).pop()
        done.add(name)
        for requirement in distribution(name).requires or []:
            marker = requirement.partition(";")[2]
            required = re.match(r"[\w.-]+", requirement)
            if required and "extra" not in marker and is_installed(required.group()):
                names.add(required.group())
    return done


def is_installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except ImportError:
        return False


@pytest.fixture(scope="module")
def pushed(hub: LoopbackHub, every_model: dict[str, Path]) -> dict[str, Path]:
    """Every kind of checkpoint on the hub, by its id there."""
    return {f"me/{name}": folder for name, folder in every_model.items()}


def scores(
    run: Callable[..., Any], names: list[str], *, installed: bool, trust: bool, **options: Any
) -> dict[str, Any]:
    trusted = '{"trust_remote_code": True}' if trust else "{}"
    code = LOAD_AND_SCORE.format(installed=installed, names=names, rows=ROWS, trust=trusted)
    done = run(code, **options)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_it_scores_without_the_package_as_with_it(
    pushed: dict[str, Path], bare_python: str, run_python: Callable[..., Any], run_forked: Callable[..., Any]
) -> None:
    names = list(pushed)
    assert {name.removeprefix("me/").split("-")[0] for name in names} == set(CTR_MODELS)
    here = scores(run_forked, names, installed=True, trust=False)
    assert len({tuple(values) for name, values in here.items() if "pipeline" in name}) == len(names)
    nowhere = {"PYTHONPATH": ""}
    bare = scores(run_python, names, installed=False, trust=True, python=bare_python, extra_env=nowhere)
    assert bare == here
    # Told to trust, an environment with the package still runs the package's code.
    assert scores(run_forked, names[:1], installed=True, trust=True).items() <= here.items()


def test_without_trust_and_without_the_package_no_code_of_the_repo_runs(
    pushed: dict[str, Path], bare_python: str, run_python: Callable[..., Any], tmp_path: Path
) -> None:
    code = f"from transformers import pipeline; pipeline('ctr-prediction', model={next(iter(pushed))!r})"
    nowhere = {"PYTHONPATH": ""}
    done = run_python(code, python=bare_python, home=tmp_path, extra_env=nowhere)
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr
    assert not list((tmp_path / "modules").rglob("modeling_flip.py"))
