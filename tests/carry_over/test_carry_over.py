"""Checkpoints of every format version so far load, and score what they scored when they were written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modeling_flip import FlipForCTR, FlipProcessor
from modeling_flip.configuration_flip import FORMAT_VERSION
from tests.carry_over.regenerate import ROWS, regenerate, scores

HERE = Path(__file__).parent
CHECKPOINTS = sorted(path.parent for path in HERE.glob("format-*/*/config.json"))


def test_this_version_is_kept() -> None:
    assert f"format-{FORMAT_VERSION}" in {folder.parent.name for folder in CHECKPOINTS}


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


def test_the_command_writes_what_is_kept(tmp_path: Path) -> None:
    """The same files, but for code; figures to the accuracy of another machine."""
    regenerate(tmp_path)
    kept = HERE / f"format-{FORMAT_VERSION}"
    names = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == names
    for name, expected in json.loads((kept / "scores.json").read_text()).items():
        assert json.loads((tmp_path / "scores.json").read_text())[name] == pytest.approx(expected, abs=1e-5)
