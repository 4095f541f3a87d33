"""New days bring new users and items: what they start from, and what it is worth.

    python -m benchmarks.new_values [--dataset_name demo] [--raw_dir DIR] [--seeds 1 2] [--json PATH]

Rows in time order are cut into old days, new days, and the days after these, which are the test set. FLIP is aligned and
finetuned on the old days. Then four ways to go on with the new days, for FLIP and for its ID tower alone:

- unknown: finetuning goes on with the old vocabulary: new values share their field's unknown feature;
- mean: `--init_from`, each new value starting from its field's mean embedding;
- text: `--init_from`, starting from what the aligned text tower predicts for its words;
- scratch: alignment and finetuning of all rows so far, from the beginning.

And without any training on the new days: the model of the old days scores the test set, values that it has never seen having
their field's unknown feature, its mean embedding, or what the text tower predicts (`cold_start="text"`). FLIP-text-scoring-text
is both: the model that has gone on with the new days scores so what is new after them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from sklearn.metrics import roc_auc_score

from benchmarks import small_text_model
from data_scripts.registry import registered_datasets
from modeling_flip import CtrPredictionPipeline, FlipForCTR, FlipProcessor, new_values, pipeline_flip
from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.manifest import environment
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.splits import as_table, earlier_part
from modeling_flip.training.stages import run
from train import complete_recipe, kinds_of_columns

# Of each dataset its recipe, and where the old and the new days end and the test rows do.
DATASETS: dict[str, tuple[list[str], tuple[int, int, int]]] = {
    "demo": (["configuration/quickstart.yaml"], (14_400, 19_200, 24_000)),
    "movielens-1m": (
        ["configuration/movielens-1m/flip-small.yaml", "--finetuning.num_train_epochs", "2"],
        (30_000, 40_000, 55_000),
    ),
}
STARTS = ("unknown", "mean", "text", "scratch")
TOWERS = {"FLIP": "both", "FLIP_ID": "tabular"}


def days(dataset_name: str, raw_dir: str | None, ends: tuple[int, int, int]) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Old days, new days, and the days after these."""
    given = registered_datasets()[dataset_name].load(dataset_name, raw_dir)
    rows = pa.concat_tables([as_table(given[split]) for split in ("train", "validation", "test")])
    old, new, end = ends
    return rows.slice(0, old), rows.slice(old, new - old), rows.slice(new, end - new)


def splits(rows: pa.Table, test: pa.Table) -> dict[str, pa.Table]:
    """The last tenth of some days is their validation set."""
    train = earlier_part(len(rows))
    return {"train": rows.slice(0, train), "validation": rows.slice(train), "test": test}


@contextmanager
def mean_start() -> Iterator[None]:
    """New values start from their field's mean, as they do where there is no text tower."""
    with (
        patch.object(new_values, "predicted_rows", new_values.mean_rows),
        patch.object(pipeline_flip, "predicted_rows", new_values.mean_rows),
    ):
        yield


def measure(folder: Path, test: pa.Table, is_new: np.ndarray, is_unseen: np.ndarray, **options: Any) -> dict[str, Any]:
    """AUC of the checkpoint in a folder on all test rows, on those with a value that is new since the old days, and on those with
    one that the new days do not have either."""
    pipeline = CtrPredictionPipeline(FlipForCTR.from_pretrained(folder), **options)
    scored = pipeline(test.drop_columns(["label"]))
    scores, clicks = np.array([row["probability"] for row in scored]), test["label"].to_numpy()
    parts = {"all": np.ones(len(clicks), bool), "new": is_new, "unseen": is_unseen, "learned": is_new & ~is_unseen}
    return {
        name: float(roc_auc_score(clicks[rows], scores[rows]))
        for name, rows in parts.items()
        if len(set(clicks[rows])) == 2
    }


def one_seed(recipe: Recipe, tables: tuple[pa.Table, pa.Table, pa.Table], folder: Path) -> dict[str, Any]:
    old, new, test = tables
    kinds = kinds_of_columns(recipe)
    base = folder / "old-days"
    results = {"old-days": run(replace(recipe, output_dir=str(base)), splits(old, test), kinds)}
    columns = test.drop_columns(["label"])
    is_new = FlipProcessor.from_pretrained(base).encode(columns).has_unseen_value
    later = replace(recipe, pretraining=None, text_model_name_or_path=None)
    ways: dict[str, tuple[Recipe, pa.Table, Callable[[], Any]]] = {
        "unknown": (replace(later, pretrained_model_name_or_path=str(base)), new, nullcontext),
        "mean": (replace(later, init_from=str(base)), new, mean_start),
        "text": (replace(later, init_from=str(base)), new, nullcontext),
        "scratch": (recipe, pa.concat_tables([old, new]), nullcontext),
    }
    for start, (one, rows, patched) in ways.items():
        for system, towers in TOWERS.items():
            if start == "scratch" and system == "FLIP_ID":  # its alignment is FLIP's
                aligned = folder / "FLIP-scratch" / "pretraining"
                one = replace(later, pretrained_model_name_or_path=str(aligned))
            out = folder / f"{system}-{start}"
            with patched():
                results[out.name] = run(replace(one, towers=towers, output_dir=str(out)), splits(rows, test), kinds)
    is_unseen = FlipProcessor.from_pretrained(folder / "FLIP-text").encode(columns).has_unseen_value
    figures: dict[str, Any] = {"rows": {"all": len(test), "new": int(is_new.sum()), "unseen": int(is_unseen.sum())}}
    for start in STARTS:
        for system in TOWERS:
            name = f"{system}-{start}"
            seconds = results[name]["wall_time"]
            took = seconds["finetuning_seconds"] + seconds.get("pretraining_seconds", 0)
            if name == "FLIP_ID-scratch":
                took += results["FLIP-scratch"]["wall_time"]["pretraining_seconds"]
            measured = measure(folder / name, test, is_new, is_unseen)
            figures[name] = {"auc": measured, "seconds": took}
    for start in ("unknown", "mean", "text"):
        with mean_start() if start == "mean" else nullcontext():
            option = {} if start == "unknown" else {"cold_start": "text"}
            figures[f"scoring-{start}"] = {"auc": measure(base, test, is_new, is_unseen, **option)}
    both = measure(folder / "FLIP-text", test, is_new, is_unseen, cold_start="text")
    figures["FLIP-text-scoring-text"] = {"auc": both}
    return figures


def show(of_seeds: list[dict[str, Any]]) -> None:
    counts = of_seeds[0]["rows"]
    print(
        f"\n{counts['all']:,} test rows; {counts['new']:,} with a value that is new since the old days, {counts['unseen']:,} of"
    )
    print("them with one that the new days do not have either")
    print(f"\n{'':24}{'AUC, all':>18}{'new values':>18}{'learned':>18}{'unseen':>18}{'seconds':>9}")
    for name in [name for name in of_seeds[0] if name != "rows"]:
        cells = []
        for part in ("all", "new", "learned", "unseen"):
            found = np.array([figures[name]["auc"].get(part, np.nan) for figures in of_seeds])
            cells.append(f"{found.mean():.4f} ± {found.std(ddof=1):.4f}" if len(found) > 1 else f"{found[0]:.4f}")
        seconds = [figures[name]["seconds"] for figures in of_seeds if "seconds" in figures[name]]
        cells.append(f"{np.mean(seconds):.0f}" if seconds else "–")
        print(f"{name:24}" + "".join(f"{cell:>18}" for cell in cells[:-1]) + f"{cells[-1]:>9}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="demo", choices=list(DATASETS))
    parser.add_argument("--raw_dir")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/new-values"))
    parser.add_argument("--json", type=Path)
    args, rest = parser.parse_known_args()
    arguments, ends = DATASETS[args.dataset_name]
    folder = args.output_dir / args.dataset_name
    recipe = parse_recipe([*arguments, "--output_dir", str(folder / "unset"), *rest])
    if args.dataset_name == "movielens-1m":
        text_model = folder / "text-model"
        if not text_model.exists():
            small_text_model.make(args.raw_dir, text_model)
        recipe = replace(recipe, text_model_name_or_path=str(text_model))
    recipe = complete_recipe(recipe)
    tables = days(args.dataset_name, args.raw_dir, ends)
    of_seeds = [one_seed(replace(recipe, seed=seed), tables, folder / f"seed-{seed}") for seed in args.seeds]
    show(of_seeds)
    if args.json:
        settings = {"dataset_name": args.dataset_name, "ends": ends, "seeds": args.seeds, "recipe": recipe.to_dict()}
        args.json.write_text(json.dumps({**settings, "figures": of_seeds, **environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
