"""Checkpoints of every format version so far load, and score what they scored when they were written."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file

import modeling_flip
from modeling_flip import FlipForCTR, FlipProcessor
from modeling_flip.checkpoint_files import copy_code
from tests.carry_over.regenerate import ROWS, UNSEEN, VERSIONS, regenerate, scores

HERE = Path(__file__).parent
CHECKPOINTS = sorted(path.parent for path in HERE.glob("format-*/*/config.json"))
FLIP = [folder for folder in CHECKPOINTS if folder.name == "flip"]


@pytest.mark.parametrize("version", VERSIONS)
def test_this_version_is_kept(version: int) -> None:
    kept = [folder for folder in CHECKPOINTS if folder.parent.name == f"format-{version}"]
    assert kept
    for folder in kept:
        assert json.loads((folder / "config.json").read_text())["format_version"] == version


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_it_scores_what_it_scored(folder: Path) -> None:
    expected = json.loads((folder.parent / "scores.json").read_text())[folder.name]
    assert len(set(expected)) == 4
    assert scores(folder) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "folder", [f for f in CHECKPOINTS if f.name == "flip-pretraining"], ids=lambda f: f.parent.name
)
def test_a_pretraining_checkpoint_can_still_be_finetuned(folder: Path) -> None:
    model, processor = FlipForCTR.from_pretrained(folder), FlipProcessor.from_pretrained(folder)
    assert model(**processor(ROWS)).logits.shape == (3,)


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
@pytest.mark.parametrize("shard_size", ["1KB", "1GB"])
def test_in_shards_or_saved_again_it_scores_the_same(folder: Path, shard_size: str, tmp_path: Path) -> None:
    """Weights that have other names now: under the old ones in shards, and under the new ones when saved."""
    expected = pytest.approx(json.loads((folder.parent / "scores.json").read_text())[folder.name], abs=1e-5)
    sharded, again = tmp_path / "sharded", tmp_path / "again"
    shutil.copytree(folder, sharded, ignore=shutil.ignore_patterns("model*"))
    weights = load_file(folder / "model.safetensors")
    shards = split_torch_state_dict_into_shards(weights, max_shard_size=shard_size)
    for file, names in shards.filename_to_tensors.items():
        save_file({name: weights[name] for name in names}, sharded / file, {"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert scores(sharded) == expected

    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, report = getattr(modeling_flip, architecture).from_pretrained(sharded, output_loading_info=True)
    assert not (report["missing_keys"] or report["unexpected_keys"])
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("model*", "config.json"))
    model.save_pretrained(again, max_shard_size=shard_size)
    saved = {name for file in again.glob("model*.safetensors") for name in load_file(file)}
    assert saved == set(model.state_dict())
    assert scores(again) == expected


@pytest.fixture(scope="module")
def beside_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """What checkpoints of all versions score where the package is not imported, each with today's code beside it."""
    here, home = tmp_path_factory.mktemp("checkpoints"), tmp_path_factory.mktemp("home")
    for folder in FLIP:
        shutil.copytree(folder, here / folder.parent.name)
        copy_code(here / folder.parent.name, inspect.getfile(FlipForCTR))
    code = f"""
import json, sys
from pathlib import Path
from transformers import AutoModelForSequenceClassification, AutoProcessor
scores = {{}}
for folder in Path().iterdir():
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    scores[folder.name] = model(**processor({[*ROWS, UNSEEN]!r})).logits.tolist()
assert "modeling_flip" not in sys.modules
print(json.dumps(scores))
"""
    environment = os.environ | {"HF_HOME": str(home)}
    run = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("folder", FLIP, ids=lambda f: f.parent.name)
def test_beside_carried_code_it_scores_the_same(folder: Path, beside_code: dict[str, list[float]]) -> None:
    expected = json.loads((folder.parent / "scores.json").read_text())[folder.name]
    assert beside_code[folder.parent.name] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("towers", ["both", "tabular", "text"])
@pytest.mark.parametrize("folder", FLIP, ids=lambda f: f.parent.name)
def test_one_tower_of_it_leaves_nothing_over(folder: Path, towers: str) -> None:
    _, report = FlipForCTR.from_pretrained(folder, towers=towers, output_loading_info=True)
    assert not (report["missing_keys"] or report["unexpected_keys"])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_command_writes_what_is_kept(version: int, tmp_path: Path) -> None:
    """The same files, but for code; figures to the accuracy of another machine."""
    regenerate(tmp_path, version)
    kept = HERE / f"format-{version}"
    names = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == names
    for name, expected in json.loads((kept / "scores.json").read_text()).items():
        assert json.loads((tmp_path / "scores.json").read_text())[name] == pytest.approx(expected, abs=1e-5)
