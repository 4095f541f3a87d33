"""The paper's tables, by one harness: recipes × seeds, each run's figures as JSON, and the README's table from them.

    python -m benchmarks.compare RECIPE.yaml … [--seeds 1 2 3] [-- --key value …]

What follows `--` is given to every run, such as `-- --raw_dir data/movielens-1m`. A run whose JSON exists in
benchmarks/results/<dataset>/<recipe>-<seed>.json is not repeated, an interrupted one continues where it was. Recipes with
the same pretraining share it. A run that fails is named at the end; the others go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import results_table
from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.publishing import RESULTS_FILE
from modeling_flip.training.recipe import FREE_MODEL_KEYS, Recipe


def pretraining_key(recipe: Recipe) -> str | None:
    """The same for recipes that pretrain the same model on the same rows; None where a recipe does not pretrain."""
    if recipe.pretraining is None or recipe.pretrained_model_name_or_path is not None:
        return None
    free = {key: value for key, value in recipe.model.items() if key not in FREE_MODEL_KEYS}
    # Text pooling is read by ICL.
    free["text_pooling"] = recipe.model.get("text_pooling")
    same = replace(recipe, output_dir="", towers="both", model=free, finetuning={})
    return json.dumps(same.to_dict(), sort_keys=True)


def compare(recipes: list[str], seeds: list[int], arguments: list[str], output_dir: Path) -> list[str]:
    """Runs what is missing; returns the runs that failed."""
    failed: list[str] = []
    pretrained: dict[str, Path] = {}
    runs = [(Path(path), seed) for seed in seeds for path in recipes]
    for number, (path, seed) in enumerate(runs, start=1):
        recipe = parse_recipe([str(path), *arguments, "--seed", str(seed)])
        name = f"{path.stem}-{seed}"
        folder = output_dir / recipe.dataset_name / name
        result = results_table.RESULTS / recipe.dataset_name / f"{name}.json"
        key = pretraining_key(recipe)
        if not result.exists():
            print(f"=== {number} of {len(runs)}: {recipe.dataset_name}, {path.stem}, seed {seed}", flush=True)
            given = [*arguments, "--seed", str(seed), "--output_dir", str(folder)]
            if key in pretrained:
                given += ["--pretrained_model_name_or_path", str(pretrained[key])]
            launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "train.py", str(path), *given]
            if subprocess.run(launch).returncode != 0:
                failed.append(f"{recipe.dataset_name}, {path.stem}, seed {seed}: {' '.join(launch[1:])}")
                continue
            result.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / RESULTS_FILE, result)
        if key is not None and (folder / "pretraining").exists():
            pretrained.setdefault(key, folder / "pretraining")
    return failed


def main() -> None:
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/compare"), help="folder for the models")
    options = parser.parse_args(given[:split])
    failed = compare(options.recipes, options.seeds, given[split + 1 :], options.output_dir)
    print(results_table.results())
    results_table.main()
    if failed:
        sys.exit("these runs failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
