"""Small tables of any mess, and recipes with any key or value changed, through train.py.

What must hold: a trained model with a finite AUC, or one line that names a column, a key or the file; and the
next start in the same folder, with a right recipe and rows, ends well.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import train
from data_scripts.text_model import write as write_text_model
from modeling_flip.fields import KINDS, TYPES
from modeling_flip.tabular_towers import TABULAR_TOWERS
from modeling_flip.training import command_line, publishing

from .fuzz_pipeline import POOL, WORDS, arrow_column
from .fuzz_score import OF_TEXT

COLUMNS = (
    "user_id",
    "item id",
    "age",
    "price",
    "genre",
    "seen at",
    "title",
    "url",
    "é|ü",
    "label is",
    "x" * 80,
    " ",
    "a\nb",
    "0",
    "on",
    "null",
)
SMALL: dict[str, Any] = {
    "output_dir": "",
    "dataset_name": "",
    "towers": "tabular",
    "model": {"embedding_size": 2, "hidden_sizes": [4]},
    "finetuning": {"max_steps": 1, "report_to": "none", "disable_tqdm": True},
}


# ---- tables


def _labels(draw: random.Random, rows: int) -> list[Any]:
    clicks = [i % 2 for i in range(rows)]
    draw.shuffle(clicks)
    how = draw.random()
    if how < 0.6:
        return clicks
    spelled: list[Any] = draw.choice(
        [
            [False, True],
            ["no", "yes"],
            [0.0, 1.0],
            ["0", "1"],
            ["0.0", "1"],
            [1, 5],
            [0, 2],
            [-1, 1],
            [0, 0],
            ["", "1"],
            [None, 1],
        ]
    )
    labels = [spelled[click] for click in clicks]
    if how < 0.75 and rows:
        labels[draw.randrange(rows)] = draw.choice([None, math.nan, "maybe", 2, b"x", [1], "", 1.5, math.inf, "1"])
    return labels


def _words(draw: random.Random, rows: int) -> list[str]:
    some = draw.sample([word for word in WORDS if "\ud800" not in word and len(word) < 500], draw.choice([1, 2, 5, 30]))
    return [draw.choice(some) for _ in range(rows)]


def _moments(draw: random.Random, rows: int) -> list[str]:
    style = draw.choice(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ", "%d/%m/%Y", "%m/%d/%y", "%d %B %Y", "%s", "%H:%M"])
    days = pd.date_range("2023-12-25", periods=rows, freq=draw.choice(["D", "h", "35D"]))
    return [str(int(day.timestamp())) if style == "%s" else day.strftime(style) for day in days]


def _numbers(draw: random.Random, rows: int) -> list[Any]:
    made = draw.choice(
        [
            lambda: draw.randint(0, 9),
            lambda: draw.random(),
            lambda: draw.randint(0, 2**62),
            lambda: draw.choice([7, 2.5, None]),
        ]
    )
    return [made() for _ in range(rows)]


def _mixed(draw: random.Random, rows: int) -> list[Any]:
    values = [value for kind in ("int", "float", "bool", "text", "none") for value in POOL[kind] if value != "\ud800"]
    return [draw.choice(values) for _ in range(rows)]


def _repeated(draw: random.Random, rows: int) -> list[Any]:
    return [draw.choice(["a", "b", "c"]) for _ in range(rows)]


CELLS: list[Callable[[random.Random, int], list[Any]]] = [_words, _moments, _numbers, _mixed, _repeated, _repeated]


def write_table(draw: random.Random, folder: Path) -> tuple[Path, list[str]]:
    """A file of rows, and the names of its columns."""
    rows = draw.choice([20, 40, 100, 200]) if draw.random() < 0.95 else draw.choice([0, 1, 9, 12])
    names = draw.sample(COLUMNS, draw.randint(1, 5))
    columns: dict[str, Any] = {name: draw.choice(CELLS)(draw, rows) for name in names}
    columns["label"] = _labels(draw, rows)
    kind = draw.choice(["csv", "csv", "jsonl", "parquet"])
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        rng = np.random.default_rng(draw.randrange(2**32))
        arrays = {}
        for name, cells in columns.items():
            try:
                arrays[name] = (
                    pa.array(cells)
                    if name == "label" or draw.random() < 0.4
                    else arrow_column(rng, rows, draw.random() < 0.3)
                )
            except (pa.ArrowException, ValueError, OverflowError):
                arrays[name] = pa.array([str(cell) for cell in cells])
        try:
            pq.write_table(pa.table(arrays), path)
        except (pa.ArrowException, OSError):  # Parquet has not all types
            return write_table(draw, folder)
    elif kind == "jsonl":
        lines = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        path.write_text("".join(json.dumps(line, default=str) + "\n" for line in lines))
    else:
        pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()}).to_csv(
            path, index=draw.random() < 0.1
        )
        if draw.random() < 0.15:
            text = path.read_bytes().decode()
            path.write_bytes(OF_TEXT[draw.choice(list(OF_TEXT))](draw, text).encode(errors="replace"))
    return path, names


# ---- recipes


def _odd(draw: random.Random) -> Any:
    return draw.choice(
        [
            0,
            -1,
            1,
            1.5,
            1e400,
            -1e-9,
            math.nan,
            None,
            True,
            "",
            "x",
            "yes",
            [],
            [1],
            {},
            {"a": 1},
            10**20,
            "1e-3",
            [None],
            ["a", "a"],
            "\x00",
        ]
    )


def change_recipe(draw: random.Random, recipe: dict[str, Any], names: list[str], text_model: Path) -> None:
    """One to three changes, most of them of a kind that a person makes."""
    name, other = draw.choice(names), draw.choice([*names, "label", "nothing", ""])
    settings: dict[str, Any] = {"kind": draw.choice(KINDS), "type": draw.choice(TYPES)}
    more = {
        "min_count": 2,
        "num_buckets": 3,
        "max_items": 2,
        "separator": "|",
        "features_of": other,
        "max_words": 3,
        "side": "item",
        "words": "w",
        "missing_words": False,
    }
    odd = draw.choice([*more, "kind", "type", "nothing"])
    changes: list[tuple[str, Any]] = [
        *(
            ("label_column", other),
            ("positive_label", draw.choice(["yes", "1", "maybe", ""])),
            ("positive_above", draw.choice([0, 3, 0.5])),
        ),
        *(("time_column", other), ("time_column", name), ("group_column", other), ("group_column", name)),
        *(
            ("fields", [name, other]),
            ("fields", [name]),
            ("fields", [{"name": name} | settings]),
            ("fields", {name: settings}),
        ),
        ("fields", [{"name": name} | {odd: more.get(odd, "x")}, *names]),
        ("fields", [{"name": name, odd: _odd(draw)}]),
        *(
            ("fields", {name: {odd: _odd(draw)}}),
            ("fields", {other: {"kind": "ignored"}}),
            ("exclude_fields", [other]),
            ("exclude_fields", names),
        ),
        *(
            ("item_fields", [name]),
            ("item_fields", [other, name]),
            ("tabular_tower", draw.choice([*TABULAR_TOWERS, "dcn3"])),
        ),
        *(
            ("seed", draw.choice([0, 7, 2**32])),
            ("max_train_samples", draw.choice([1, 5, 30])),
            ("min_count", draw.choice([1, 2, 99])),
        ),
        *(
            ("model.dropout", draw.choice([0, 0.5, 1])),
            ("model.embedding_size", draw.choice([1, 8, 10**6])),
            ("model.hidden_sizes", draw.choice([[], [1], [4, 4]])),
        ),
        *(("model.batch_norm", True), ("model.num_cross_layers", draw.choice([0, 1, 3])), ("model.embedding_l2", 0.1)),
        *(
            ("finetuning.learning_rate", draw.choice([0, 1e-2, 10, 1e30])),
            ("finetuning.per_device_train_batch_size", draw.choice([1, 4, 1000])),
        ),
        *(
            ("finetuning.max_steps", draw.choice([1, 2])),
            ("finetuning.lr_scheduler_type", draw.choice(["cosine", "constant", "cosin"])),
        ),
        *(
            ("finetuning.eval_strategy", draw.choice(["no", "steps"])),
            ("finetuning.optim", draw.choice(["adamw_torch", "adagrad", "adam"])),
        ),
        *(
            ("finetuning.gradient_accumulation_steps", 2),
            ("finetuning.weight_decay", 0.1),
            ("finetuning.warmup_steps", draw.choice([0.1, 3])),
        ),
        *(
            ("finetuning.metric_for_best_model", draw.choice(["logloss", "acc"])),
            ("finetuning.save_strategy", draw.choice(["no", "steps", "best"])),
        ),
        *(
            (draw.choice(["delimiter", "encoding"]), draw.choice([";", ",", "utf-8", "utf-16", "x"])),
            ("dataset_name", draw.choice(["nothing.csv", ".", "demoo"])),
        ),
        *(
            (f"{draw.choice(['model', 'finetuning', 'nothing'])}.{draw.choice(['nothing', 'epochs', 'lr'])}", 1),
            ("nothing", 1),
        ),
        (draw.choice(list(KEYS)), _odd(draw)),
        (draw.choice(list(KEYS)), _odd(draw)),
        (f"finetuning.{draw.choice(ARGUMENTS)}", _odd(draw)),
        (
            f"model.{draw.choice(SIZES)}",
            _odd(draw),
        ),
    ]
    for key, value in draw.sample(changes, draw.randint(1, 3)):
        section, _, inner = key.partition(".")
        if not inner:
            recipe[key] = value
        elif isinstance(recipe.setdefault(section, {}), dict):
            recipe[section] = recipe[section] | {inner: value}
    if draw.random() < 0.05:
        recipe |= {"towers": draw.choice(["both", "text"]), "text_model_name_or_path": str(text_model)}
    if draw.random() < 0.03:
        recipe["pretraining"] = draw.choice([{"max_steps": 1, "disable_tqdm": True}, {}, None, {"nothing": 1}])


SIZES = ["embedding_size", "hidden_sizes", "dropout", "projection_size", "batch_norm", "embedding_l2"]
KEYS = [
    *("label_column", "positive_label", "positive_above", "time_column", "group_column", "fields"),
    *("exclude_fields", "item_fields", "delimiter", "encoding", "model_type", "text_model_name_or_path"),
    *("pretrained_model_name_or_path", "tabular_tower", "towers", "seed", "max_train_samples", "min_count"),
    *("max_length", "use_cpu", "license", "model", "finetuning", "raw_dir"),
]
ARGUMENTS = [
    *("learning_rate", "text_learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("per_device_eval_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps"),
    *("weight_decay", "max_grad_norm", "bf16", "train_sampling_strategy", "logging_steps", "eval_steps"),
    *("early_stopping_patience", "eval_strategy", "save_strategy", "optim", "dataloader_num_workers"),
    *("save_total_limit", "seed"),
]


# ---- what must hold


def cases(seed: int, trainings: int, only: int | None = None) -> Iterator[tuple[int, random.Random]]:
    for number in range(trainings):
        if only in (None, number):
            yield number, random.Random(f"training {seed} {number}")


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Without what takes most of the time of a run of one step, and is attacked by nothing here: the making of the command
    line's parser, the picture of the curve, and the collection of garbage."""
    with (
        patch.object(command_line, "recipe_parser", lru_cache(command_line.recipe_parser)),
        patch.object(publishing, "write_curve", lambda *_: None),
        patch.object(gc, "collect", lambda *_: 0),
    ):
        yield


def fuzz(folder: Path, seed: int, trainings: int, only: int | None = None) -> list[str]:
    """So many trainings; what did not hold, one line each. Their files stay in the folder."""
    text_model = write_text_model(folder / "text-model", ["a b c 0 1 2 is"], max_length=32)
    right = folder / "right.csv"
    pd.DataFrame({"user_id": [i % 7 for i in range(60)], "genre": list("abc") * 20, "label": [0, 1] * 30}).to_csv(
        right, index=False
    )
    faults: list[str] = []
    with quick():
        for number, draw in cases(seed, trainings, only):
            here = folder / f"training-{seed}-{number}"
            here.mkdir(parents=True)
            found = _one_training(draw, here, right, text_model)
            faults += [f"training --seed {seed} --only {number} ({here}): {fault}" for fault in found]
            if not found:
                shutil.rmtree(here)
    return faults


def _one_training(draw: random.Random, folder: Path, right: Path, text_model: Path) -> list[str]:
    path, names = write_table(draw, folder)
    output = folder / "out"
    recipe = {**SMALL, "dataset_name": str(path), "output_dir": str(output)}
    if draw.random() < 0.6:
        change_recipe(draw, recipe, names, text_model)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, allow_unicode=True))
    # A damaged header has names that are not known here.
    known = [recipe["dataset_name"], "field '", "column '", *map(repr, [*names, "label"]), *_keys(recipe)]
    faults = _outcome([str(file)], output, known)
    if (output / "all_results.json").exists() or draw.random() < 0.5:
        return faults
    file = folder / "right.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "dataset_name": str(right), "output_dir": str(output)}))
    again = _outcome([str(file)], output, [])
    return faults + [f"and the next start: {fault}" for fault in again]


def _keys(recipe: dict[str, Any]) -> Iterator[str]:
    for key, value in recipe.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)


def _outcome(arguments: list[str], output: Path, known: list[str]) -> list[str]:
    """What is wrong with a run; an error is wrong where nothing is known that it could name."""
    said, wrong = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
            train.main(arguments)
    except SystemExit as ended:
        if ended.code == 2:
            message = wrong.getvalue().rstrip("\n").rpartition("train.py: error: ")[2]
        elif isinstance(ended.code, str) and ended.code.startswith("train.py: error: "):
            message = ended.code.removeprefix("train.py: error: ")
        else:
            return [f"exit code {ended.code!r}: {wrong.getvalue()[-300:]}"]
        if not message or "\n" in message:
            return [f"not one line: {message[:300]!r}"]
        return [] if any(word in message for word in known) else [f"names neither column nor key: {message[:400]}"]
    except BaseException as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = "" if frame is None else f" at {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
        return [f"{type(error).__name__}: {str(error)[:300]}{where}"]
    results = json.loads((output / "all_results.json").read_text())
    return [] if math.isfinite(results["test_auc"]) else [f"test_auc is {results['test_auc']}"]
