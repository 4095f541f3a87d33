"""Train FLIP as a recipe says: `python train.py RECIPE.yaml [--key value] [--section.key value]`."""

from __future__ import annotations

import os

# Read by torch at its first large allocation: huge pages, where the system gives them on request. Without them much of the
# time of a step on a CPU goes into page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import sys
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from transformers.utils import logging

from data_scripts import demo, movielens
from modeling_flip.training.command_line import is_expected, parse_recipe
from modeling_flip.training.recipe import SPLITS, Recipe, uses_cpu
from modeling_flip.training.stages import run

MOVIELENS = ("movielens-1m", "movielens-100k")


def load_data(recipe: Recipe) -> datasets.DatasetDict:
    """The recipe's dataset as train, validation and test. The demo also brings its own text tower.

    Where validation or test is absent, the last tenth of train, and the last tenth of all, become them.

    Raises:
        ValueError: the dataset cannot be found or read.
    """
    name, path = recipe.dataset_name, Path(recipe.dataset_name)
    if name == "demo":
        data = demo.load()
        if recipe.text_model_name_or_path is None:
            text_model = Path(recipe.output_dir).parent / "demo-text-model"
            if not (text_model / "config.json").exists():
                demo.text_model(text_model, data)
            recipe.text_model_name_or_path = str(text_model)
    elif name in MOVIELENS:
        data = movielens.load(name, recipe.raw_dir)
    else:
        try:
            if path.is_file():
                data = datasets.load_dataset({".csv": "csv"}.get(path.suffix, "parquet"), data_files=str(path))
            else:
                data = datasets.load_dataset(name)
        except Exception as error:  # each layer below (datasets, pyarrow, httpx) has exceptions of its own
            raise ValueError(
                f"dataset {name!r} cannot be loaded ({' '.join(str(error).split())}); give demo, {', '.join(MOVIELENS)}, a Hub "
                "dataset id (a private one needs your token: HF_TOKEN, or hf auth login), or a CSV or Parquet file or folder"
            ) from error
        if "train" not in data:
            raise ValueError(f"dataset {name!r} has no split 'train'; it has {', '.join(data)}")
        for part, rest in (("test", "train"), ("validation", "train")):
            if part not in data and len(data[rest]) >= 10:
                first = int(0.9 * len(data[rest]))
                data[part] = data[rest].select(range(first, len(data[rest])))
                data[rest] = data[rest].select(range(first))
    if recipe.item_fields is None and recipe.model_type in ("ctr_bert", "morec"):
        known = {"demo": demo.ITEM_FIELDS} | dict.fromkeys(MOVIELENS, movielens.ITEM_FIELDS)
        recipe.item_fields = [f for f in known.get(name, []) if recipe.fields is None or f in recipe.fields] or None
    if recipe.max_train_samples is not None:
        data["train"] = data["train"].select(range(min(recipe.max_train_samples, len(data["train"]))))
    return datasets.DatasetDict({split: data[split] for split in SPLITS if split in data})


def use_all_cores(num_processes: int) -> None:
    """Share the cores among the processes: `accelerate launch` leaves each on the CPU one thread unless it is told a number."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_processes))


def main(arguments: list[str]) -> None:
    recipe = parse_recipe(arguments)
    logging.enable_explicit_format()
    state = PartialState(cpu=uses_cpu(recipe))
    if state.device.type == "cpu":
        use_all_cores(state.num_processes)
    try:
        with state.main_process_first():  # the others find what it downloaded or made
            data = load_data(recipe)
        results = run(recipe, data)
    except Exception as error:
        if not is_expected(error):
            raise
        sys.exit(f"train.py: error: {error}")
    if not state.is_main_process:
        return
    width = max(map(len, results))
    for key, value in results.items():
        if isinstance(value, float):
            print(f"{key:{width}}  {value:.4f}")
    print(f"\nThe model is in {recipe.output_dir}; FlipForCTR.from_pretrained({recipe.output_dir!r}) loads it.")


if __name__ == "__main__":
    main(sys.argv[1:])
