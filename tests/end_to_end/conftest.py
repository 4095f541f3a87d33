"""A small click log that can be learned, and a recipe for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from transformers import AutoModel, AutoTokenizer

from modeling_flip.recipe import Recipe, parse_recipe


@pytest.fixture(scope="session")
def text_model(tiny_text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny text model without dropout, so that one process and two compute the same."""
    folder = tmp_path_factory.mktemp("text_model")
    model = AutoModel.from_pretrained(tiny_text_model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_text_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clicks_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows; young users click comedies, the others dramas, nine times in ten."""
    rng = np.random.default_rng(0)
    age, genre = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    rows = pd.DataFrame(
        {
            "user_id": rng.integers(1, 12, 200),
            "age": np.array(["young", "old"])[age],
            "title": [f"Toy Story {i}" for i in rng.integers(0, 9, 200)],
            "genre": np.array(["Comedy", "Drama"])[genre],
            "clicked": np.where(rng.random(200) < 0.9, age == genre, age != genre).astype(int),
        }
    )
    path = tmp_path_factory.mktemp("clicks") / "clicks.csv"
    rows.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def recipe_file(clicks_csv: Path, text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stage = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 5e-3, "logging_steps": 1}
    recipe = {
        "dataset_name": str(clicks_csv),
        "label_column": "clicked",
        "text_model_name_or_path": str(text_model),
        "output_dir": "unset",
        "model": {"embedding_size": 4, "hidden_sizes": [8], "projection_size": 8},
        "pretraining": stage | {"num_noise_features": 4},
        "finetuning": stage,
    }
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def recipe(recipe_file: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """`recipe("--seed", 1, …)` → the recipe with these arguments, writing to a fresh folder."""

    def make(*arguments: Any) -> Recipe:
        return parse_recipe([str(recipe_file), "--output_dir", str(tmp_path / "out"), *map(str, arguments)])

    return make
