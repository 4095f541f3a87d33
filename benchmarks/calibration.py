"""Calibration where non-clicks were left out of the log: predicted probabilities against click rates that are known.

    python -m benchmarks.calibration [--rows 400000] [--negative_sampling_rate 0.1] [--json PATH]

A click log is generated from known probabilities. Of its non-clicks a tenth is kept, as large logs are stored, and DCNv2 is
trained on what is left: as it is, with `--negative_sampling_rate`, and with `--calibration platt` besides. Each model then
scores rows of which nothing was left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_flip import CtrPredictionPipeline, FlipForCTR, FlipProcessor
from modeling_flip.training.manifest import environment
from modeling_flip.training.metrics import calibration_error, sigmoid
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.splits import load_splits
from modeling_flip.training.stages import run

TRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 128, "learning_rate": 2e-3, "weight_decay": 0.1}


def click_log(rows: int, seed: int) -> tuple[pa.Table, np.ndarray]:
    """Rows with clicks, and the (N,) probabilities that these were drawn with, about one in twenty; each seed has other rows of
    the same users and items."""
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    effects = {"user": world.normal(0, 0.8, 300), "item": world.normal(0, 0.8, 100), "hour": world.normal(0, 0.3, 24)}
    ids = {name: rng.integers(0, len(effect), rows) for name, effect in effects.items()}
    truth = sigmoid(np.sum([effect[ids[name]] for name, effect in effects.items()], axis=0) - 3.6)
    columns = {name: [f"{name} {i}" for i in of] for name, of in ids.items()}
    return pa.table(columns | {"clicked": (rng.random(rows) < truth).astype(np.int64)}), truth


def measure(rows: int, rate: float, folder: Path, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What each variant of the recipe predicts for rows of which nothing was left out, against the truth."""
    log, _ = click_log(rows, seed=1)
    kept = (log["clicked"].to_numpy() == 1) | (np.random.default_rng(2).random(rows) < rate)
    pq.write_table(log.filter(pa.array(kept)), folder / "kept.parquet")
    untouched, truth = click_log(rows // 4, seed=3)
    figures = {"truth": {"mean_probability": float(truth.mean()), "ece": 0.0}}
    for name, settings in variants.items():
        recipe = Recipe(
            dataset_name=str(folder / "kept.parquet"),
            output_dir=str(folder / name),
            label_column="clicked",
            towers="tabular",
            model={"embedding_size": 8, "hidden_sizes": [32], "dropout": 0.2},
            finetuning=TRAINING,
            **settings,
        )
        results = run(recipe, load_splits(recipe.dataset_name))
        model, processor = FlipForCTR.from_pretrained(folder / name), FlipProcessor.from_pretrained(folder / name)
        scored = CtrPredictionPipeline(model, processor)(untouched.drop_columns(["clicked"]))
        probability = np.array([row["probability"] for row in scored])
        figures[name] = {
            "mean_probability": float(probability.mean()),
            "ece": calibration_error(probability, truth),
            **{key: results[f"test_{key}"] for key in ("auc", "logloss", "ne")},
            "estimated_ece": results["test_ece"],
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--negative_sampling_rate", type=float, default=0.1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    corrected = {"negative_sampling_rate": args.negative_sampling_rate}
    variants = {"as it is": {}, "corrected": corrected, "corrected, platt": corrected | {"calibration": "platt"}}
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args.rows, args.negative_sampling_rate, Path(folder), variants)
    print(f"{'':18}{'mean probability':>18}{'ECE':>9}{'AUC':>9}{'NE':>9}{'estimated ECE':>15}")
    for name, found in figures.items():
        cells = [f"{found[key]:.4f}" if key in found else "–" for key in ("ece", "auc", "ne", "estimated_ece")]
        print(f"{name:18}{found['mean_probability']:18.4f}{cells[0]:>9}{cells[1]:>9}{cells[2]:>9}{cells[3]:>15}")
    if args.json:
        settings = {"rows": args.rows, "negative_sampling_rate": args.negative_sampling_rate}
        args.json.write_text(json.dumps({**settings, "figures": figures, **environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
