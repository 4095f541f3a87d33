"""Printed at the end of a run: a short table of test metrics, and the next commands."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..feature_vocabulary import VOCABULARY_FILE, FeatureVocabulary
from .recipe import Recipe, hub_repo

# Metrics of the test set; a column without values is left out.
COLUMNS = {"auc": "test AUC", "logloss": "logloss", "gauc": "gAUC", "ece": "calibration error"}
MODELS = {"flip": "FLIP", "ctr_bert": "CTR-BERT", "morec": "MoRec", "p5": "P5"}
TOWERS = {"tabular": "tabular tower", "text": "text tower"}


def metrics_table(recipe: Recipe, results: Mapping[str, Any]) -> str:
    """The model and, where it has two, its towers (rows) by their metrics on the test set (columns).

    Example:
        >>> recipe = Recipe(dataset_name="demo", output_dir="out")
        >>> print(metrics_table(recipe, {"test_auc": 0.71, "test_tabular_auc": 0.67, "test_text_auc": 0.7}))
                         test AUC
        FLIP               0.7100
          tabular tower    0.6700
          text tower       0.7000
    """
    name = MODELS[recipe.model_type]
    if recipe.model_type == "flip" and recipe.towers != "both":
        name = TOWERS[recipe.towers] + (f" ({recipe.tabular_tower})" if recipe.towers == "tabular" else "")
    rows = {name: "test_"} | {f"  {words}": f"test_{tower}_" for tower, words in TOWERS.items()}
    rows = {words: prefix for words, prefix in rows.items() if f"{prefix}auc" in results}
    columns = [metric for metric in COLUMNS if any(f"{prefix}{metric}" in results for prefix in rows.values())]
    width = max(map(len, rows), default=0)
    lines = ["  ".join([" " * width, *(COLUMNS[metric] for metric in columns)])]
    for words, prefix in rows.items():
        cells = []
        for metric in columns:
            value = results.get(f"{prefix}{metric}")
            cells.append(("–" if value is None else f"{value:.4f}").rjust(len(COLUMNS[metric])))
        lines.append("  ".join([words.ljust(width), *cells]))
    return "\n".join(lines)


def next_steps(recipe: Recipe, arguments: Sequence[str]) -> str:
    """Two commands: one that scores a file, and one that pushes the model (or, where that is done, uses it from Python).

    Args:
        recipe: of the run that has ended.
        arguments: what train.py was given for it.
    """
    folder, python = recipe.output_dir, python_command()
    data = Path(recipe.dataset_name)
    steps = []
    if data.is_file() and recipe.on_bad_rows == "error":  # scoring leaves no row out
        written = f"{folder}-scores.{'csv' if '.csv' in data.suffixes or '.tsv' in data.suffixes else 'parquet'}"
        score = ["--input", str(data), "--output", written]
        for key in ("delimiter", "encoding"):
            if (value := getattr(recipe, key)) is not None:
                score += [f"--{key}", value]
        steps.append("Score a file, such as the one you trained on:")
    else:
        fields = ", ".join(FeatureVocabulary.load(Path(folder) / VOCABULARY_FILE).fields)
        score = ["--input", "rows.csv", "--output", f"{folder}-scores.csv"]
        steps.append(f"Score a file of your own (here rows.csv) with the columns {fields}:")
    steps.append("  " + shlex.join([python, "-m", "modeling_flip.score", "--model", folder, *score]))
    if recipe.push_to_hub:
        steps.append("Use it from Python, after `import modeling_flip` and `from transformers import pipeline`:")
        steps.append(f'  score = pipeline("ctr-prediction", model="{hub_repo(recipe)}")')
    else:
        steps.append("Push it to the Hub, under a name of yours (nothing is trained again):")
        push = ["--push_to_hub", "--hub_model_id", f"me/{Path(folder).absolute().name}"]
        steps.append("  " + shlex.join([python, "train.py", *arguments, *push]))
    return "\n".join(steps)


def python_command() -> str:
    """This interpreter, as a person would type it here."""
    if Path(sys.executable).is_relative_to(Path.cwd()):
        return str(Path(sys.executable).relative_to(Path.cwd()))
    return "python" if shutil.which("python") == sys.executable else sys.executable
