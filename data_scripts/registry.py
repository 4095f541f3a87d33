"""The datasets that `--dataset_name` knows: each file in this folder that defines `DATASET` declares one."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import DatasetDict

import data_scripts


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The description of a dataset.

    Attributes:
        names: its names, or those of its versions, for `--dataset_name`.
        load: (name, folder with the raw files or None) → its splits train, validation and test.
        fields: the kind of each column that is a field, in the order of the sentence.
        item_fields: those that describe the item; the others are the user's.
        card: what its card says about it.
        license: one of the Hub's identifiers.
        label_column: the column of clicks, 0 or 1.
        text_model: (folder, splits) → the folder, with a text tower made for the dataset; None if it has none.
    """

    names: tuple[str, ...]
    load: Callable[[str, str | Path | None], DatasetDict]
    fields: Mapping[str, str]
    item_fields: tuple[str, ...]
    card: str
    license: str
    label_column: str = "label"
    text_model: Callable[[Path, DatasetDict], Path] | None = None


def registered_datasets() -> dict[str, Dataset]:
    """Every dataset of this folder, by each of its names.

    Raises:
        ValueError: two of them have the same name.
    """
    found: dict[str, Dataset] = {}
    for module in pkgutil.iter_modules(data_scripts.__path__):
        dataset: Dataset | None = getattr(importlib.import_module(f"data_scripts.{module.name}"), "DATASET", None)
        if dataset is None:
            continue
        for name in dataset.names:
            if name in found:
                raise ValueError(
                    f"two files of data_scripts declare a dataset {name!r}; {module.name}.py is the second"
                )
            found[name] = dataset
    return found
