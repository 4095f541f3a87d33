"""The datasets that `--dataset_name` knows, and what train.py takes from them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import data_scripts
import train
from data_scripts.registry import registered_datasets
from modeling_flip.training.recipe import Recipe

ONE_FILE = """
from datasets import Dataset as Rows, DatasetDict

from data_scripts import registry

rows = Rows.from_dict({{"shop": ["a", "b"], "label": [0, 1]}})
DATASET = registry.Dataset(
    names=("{name}",),
    load=lambda name, raw_dir: DatasetDict(train=rows, validation=rows, test=rows),
    fields={{"shop": "categorical"}},
    item_fields=("shop",),
    card="Shops.",
    license="mit",
)
"""


def test_every_dataset_says_what_it_is() -> None:
    found = registered_datasets()
    assert list(found) == ["bookcrossing", "demo", "goodreads", "movielens-1m", "movielens-100k"]
    for dataset in found.values():
        assert set(dataset.fields.values()) == {"categorical"}
        assert set(dataset.item_fields) < set(dataset.fields)
        assert dataset.label_column not in dataset.fields
    demo = found["demo"].load("demo", None)
    assert demo["train"].column_names == [*found["demo"].fields, found["demo"].label_column]


def test_a_dataset_is_added_by_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_scripts, "__path__", [*data_scripts.__path__, str(tmp_path)])
    (tmp_path / "shops.py").write_text(ONE_FILE.format(name="shops"))
    data = train.load_data(Recipe(dataset_name="shops", output_dir="out"))
    assert [(split, rows["shop"].to_pylist()) for split, rows in data.items()] == [
        (split, ["a", "b"]) for split in ("train", "validation", "test")
    ]
    (tmp_path / "again.py").write_text(ONE_FILE.format(name="demo"))
    with pytest.raises(ValueError, match=r"declare a dataset 'demo'; again\.py is the second"):
        registered_datasets()


def test_a_recipe_is_completed_not_edited(tmp_path: Path) -> None:
    recipe = Recipe(dataset_name="demo", output_dir=str(tmp_path / "out"), model_type="morec", max_train_samples=20)
    before = deepcopy(recipe)
    completed = train.complete_recipe(recipe)
    assert recipe == before
    assert completed.item_fields == ["item_id", "title", "category"]
    text_model = tmp_path / "demo-text-model"
    assert completed.text_model_name_or_path == str(text_model)
    written = (text_model / "config.json").stat().st_mtime_ns
    assert train.complete_recipe(completed) == train.complete_recipe(recipe) == completed
    assert (text_model / "config.json").stat().st_mtime_ns == written
    assert "dazzling" in (text_model / "tokenizer.json").read_text()  # of all training sentences, not of the first 20


@pytest.mark.parametrize(
    ("settings", "item_fields"),
    [
        ({"fields": ["user_id", "title"]}, ["title"]),
        ({"fields": ["user_id"]}, None),
        ({"item_fields": ["category"]}, ["category"]),
        ({"model_type": "flip"}, None),
        ({"dataset_name": "rows.csv"}, None),
    ],
)
def test_the_recipe_goes_before_the_dataset(settings: dict[str, Any], item_fields: list[str] | None) -> None:
    fixed: dict[str, Any] = {"dataset_name": "movielens-1m", "output_dir": "out", "model_type": "ctr_bert"}
    completed = train.complete_recipe(Recipe(**(fixed | settings)))
    assert completed.item_fields == item_fields
    assert completed.text_model_name_or_path is None
