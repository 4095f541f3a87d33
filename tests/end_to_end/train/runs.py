"""train.py in this process, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import train
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.stages import run
from tests.processes import weights

MakeRecipe = Callable[..., Recipe]


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    return run(recipe, train.load_data(recipe))


def load_tables(recipe: Recipe) -> dict[str, pa.Table]:
    return {split: rows.to_table() for split, rows in train.load_data(recipe).items()}


def same_bits(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main_ends(recipe_file: Path, output_dir: Path, *arguments: Any) -> Any:
    """What train.py exits with: a code, or a line."""
    with pytest.raises(SystemExit) as ended:
        train.main([str(recipe_file), "--use_cpu", "--output_dir", str(output_dir), *map(str, arguments)])
    return ended.value.code


def with_column(split: str, column: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[Any], None]:
    def change(data: dict[str, pa.Table]) -> None:
        changed = pa.array(values(data[split][column].to_pylist()))
        data[split] = data[split].drop_columns([column]).append_column(column, changed)

    return change
