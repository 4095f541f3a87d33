from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import modeling_flip

ROOT = Path(__file__).resolve().parents[2]
FIRST_SCORE = """
import sys
from transformers import pipeline
import modeling_flip
from modeling_flip import FlipForCTR, FlipProcessor

folder = sys.argv[1]
score = pipeline("ctr-prediction", model=folder)
assert type(score.model) is FlipForCTR and 0 < score({"user_id": "1"})["probability"] < 1
FlipForCTR.from_pretrained(folder).eval()(**FlipProcessor.from_pretrained(folder)([{"user_id": "1"}]))
print(*sys.modules)
"""


def test_a_first_score_imports_nothing_of_training() -> None:
    """transformers itself imports accelerate."""
    command = [sys.executable, "-c", FIRST_SCORE, str(ROOT / "tests" / "carry_over" / "format-1" / "flip")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    imported = set(done.stdout.splitlines()[-1].split())
    assert "modeling_flip.pipeline_flip" in imported
    unwanted = {"datasets", "evaluate", "sklearn", "matplotlib", "jsonargparse", "modeling_flip.training"}
    assert not unwanted & imported


def test_every_public_name_is_there_when_asked_for() -> None:
    for name in modeling_flip.__all__:
        assert getattr(modeling_flip, name) is not None
    assert set(modeling_flip.__all__) | set(modeling_flip.LAZY) <= set(dir(modeling_flip))
    assert set(modeling_flip.LAZY) <= set(modeling_flip.__all__)
    assert modeling_flip.FlipTrainer.__module__ == "modeling_flip.training.trainer"
    with pytest.raises(AttributeError, match="module 'modeling_flip' has no attribute 'FlipTrainr'"):
        _ = modeling_flip.FlipTrainr
