"""Runs that leave what a training would, without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import protocol
from benchmarks.protocol import Bench
from modeling_flip.training.command_line import parse_recipe

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configuration" / "quickstart.yaml")
LABELS = np.arange(40) % 2 == 1


def leave_results(recipe: Any, auc: float, best_epoch: float = 2.0) -> None:
    """What a run leaves in its folder."""
    folder = Path(recipe.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"validation_auc": auc, "validation_logloss": 0.5} if recipe.refit is None else {}
    figures |= {
        "test_auc": auc,
        "test_logloss": 0.6,
        "best_epoch": best_epoch,
        "epochs": 3.0,
        "recipe": recipe.to_dict(),
    }
    figures |= {
        "wall_time": {"total_seconds": 36.0},
        "test_unseen_auc": 0.6,
        "num_parameters": 1000,
        "seed": recipe.seed,
    }
    (folder / "all_results.json").write_text(json.dumps(figures))
    logits = np.random.default_rng(recipe.seed).normal(size=40) + auc * LABELS
    rows = {"label": LABELS, "logit": logits.astype(np.float32), "is_unseen": np.zeros(40, bool)}
    pq.write_table(pa.table(rows), folder / "test_predictions.parquet")
    if recipe.pretraining is not None and recipe.pretrained_model_name_or_path is None:
        (folder / "pretraining").mkdir(exist_ok=True)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The recipes of runs, in their order. They are not made: each leaves what a run would leave. Their AUC is 0.7, and 0.8 at
    half the learning rate; one with seed 13 fails."""
    recipes: list[Any] = []

    def launch(*arguments: str) -> int:
        recipe = parse_recipe([*arguments])
        recipes.append(recipe)
        if recipe.seed == 13:
            return 1
        leave_results(recipe, 0.8 if recipe.finetuning.get("learning_rate") == 5e-4 else 0.7)
        return 0

    monkeypatch.setattr(protocol, "launch", launch)
    return recipes


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "results", tmp_path / "models")
