"""The cache of encoded rows: what makes a new entry, and that nothing half-made is ever opened."""

from __future__ import annotations

import copy
import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from modeling_flip import Field, FlipConfig, FlipForCTR, FlipProcessor
from modeling_flip.commands import no_space
from modeling_flip.row_dataset import FlipDataset
from modeling_flip.training import encoded_rows, preparation
from modeling_flip.training.preparation import FACTS_FILE, Prepared, prepare
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.splits import SPLITS, load_splits

CITIES = ["Rome", "Oslo", "Lima", "Kyiv"]


def a_log(rows: int = 200) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "city": [CITIES[i] for i in rng.integers(len(CITIES), size=rows)],
            "price": rng.integers(1, 90, rows) / 4,
            "row": [f"r{i}" for i in range(rows)],
            "day": [f"2024-01-{1 + i * 28 // rows:02}" for i in range(rows)],
            "clicked": rng.integers(2, size=rows),
        }
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    pq.write_table(a_log(), tmp_path / "log.parquet")
    return Recipe(
        dataset_name=str(tmp_path / "log.parquet"),
        output_dir=str(tmp_path / "out"),
        label_column="clicked",
        time_column="day",
        towers="tabular",
        cache_dir=str(tmp_path / "cache"),
    )


def prepared(recipe: Recipe) -> Prepared:
    keep = [recipe.label_column]
    return prepare(recipe, load_splits(recipe.dataset_name, time_column=recipe.time_column, keep=keep))


def entries(recipe: Recipe) -> list[str]:
    folder = Path(str(recipe.cache_dir))
    return sorted(os.listdir(folder)) if folder.exists() else []


def content(rows: FlipDataset) -> list[Any]:
    assert rows.labels is not None
    return [rows.feature_ids().tolist(), rows.labels.tolist(), rows.local.texts.to_pylist()]


def test_the_second_run_opens_what_the_first_has_made_and_says_the_same(
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = prepared(recipe)
    table, said = capsys.readouterr().out, caplog.messages
    assert "city" in table and any("'row' (every row has its own value" in message for message in said)
    caplog.clear()
    monkeypatch.setattr(preparation, "_fill", None)
    again = prepared(recipe)
    assert capsys.readouterr().out == table and caplog.messages == said
    assert again.inputs == first.inputs and again.reports == first.reports
    for split in SPLITS:
        assert content(again.splits[split]) == content(first.splits[split])
    assert len(entries(recipe)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"min_count": 2},
        {"exclude_fields": ["price"]},
        {"time_column": None},
        {"fields": ["city"]},
        {"fields": {"city": {"max_size": 2}}},
    ],
)
def test_other_settings_are_another_entry(recipe: Recipe, change: dict[str, Any]) -> None:
    prepared(recipe)
    prepared(replace(recipe, **change))
    assert len(entries(recipe)) == 2
    prepared(replace(recipe, seed=7, finetuning={"learning_rate": 1.0}, output_dir="elsewhere", num_proc=2))
    assert len(entries(recipe)) == 2


def test_a_tokenizer_of_another_limit_is_another_entry(recipe: Recipe, wordpiece: PreTrainedTokenizerFast) -> None:
    """Which fields are cut is kept with the rows."""
    raw = load_splits(recipe.dataset_name, time_column=recipe.time_column)
    shorter = copy.deepcopy(wordpiece)
    folders = [preparation.cache_folder(recipe, raw, {}, None, one) for one in (wordpiece, shorter)]
    assert folders[0] == folders[1]
    shorter.model_max_length = 16
    assert preparation.cache_folder(recipe, raw, {}, None, shorter) != folders[0]


@pytest.mark.parametrize("key", ["pretrained_model_name_or_path", "init_from"])
def test_a_checkpoint_that_would_read_the_label_or_what_is_excluded_is_refused(
    recipe: Recipe, key: str, tmp_path: Path
) -> None:
    processor = FlipProcessor.fit(a_log(), [Field(name="city", min_count=1), Field(name="price", kind="numeric")])
    model = FlipForCTR(FlipConfig.from_processor(processor, embedding_size=4, hidden_sizes=[4]))
    model.save_pretrained(tmp_path / "model", processor=processor)
    checkpoint: dict[str, Any] = {key: str(tmp_path / "model")}
    given = replace(recipe, **checkpoint)
    assert prepared(replace(given, fields={"city": {"min_count": 1}})).processor.fields == ["city", "price"]
    with pytest.raises(ValueError, match=r"label_column names 'city', but .* was trained with it as a field"):
        prepared(replace(given, label_column="city"))
    with pytest.raises(ValueError, match=r"exclude_fields names 'price', but .* was trained with it as a field"):
        prepared(replace(given, exclude_fields=["row", "price"]))


@pytest.mark.parametrize("key", ["pretrained_model_name_or_path", "init_from"])
def test_a_field_of_a_checkpoint_that_gives_the_click_away_is_told(
    recipe: Recipe, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = a_log(400)
    clicks = table["clicked"].to_numpy()
    spent = np.where(np.random.default_rng(1).random(400) < 0.5, clicks, 0)  # of every second click
    table = table.append_column("spent", pa.array(spent)).append_column("answer", pa.array(clicks))
    pq.write_table(table, recipe.dataset_name)
    processor = FlipProcessor.fit(table, [Field(name=name, min_count=1) for name in ("city", "spent", "answer")])
    model = FlipForCTR(FlipConfig.from_processor(processor, embedding_size=4, hidden_sizes=[4]))
    model.save_pretrained(tmp_path / "model", processor=processor)
    checkpoint: dict[str, Any] = {key: str(tmp_path / "model")}
    for _ in range(2):  # the second time from what the first has kept
        caplog.clear()
        made = prepared(replace(recipe, **checkpoint))
        assert made.processor.schema == processor.schema
        assert list(made.reports["leaks"]) == ["spent", "answer"]
        assert made.reports["leaks"]["answer"] == "identical to the label"
        assert "field 'spent' is used, but check it: each of the" in caplog.text
        assert (
            "identical to the label; the checkpoint reads it, so leaving it out takes training from the" in caplog.text
        )
        assert "'city'" not in caplog.text


def test_a_changed_file_is_another_entry(recipe: Recipe) -> None:
    before = prepared(recipe)
    path = Path(recipe.dataset_name)
    status = path.stat()
    table = a_log()
    same_size = table.set_column(0, "city", pa.array(["Oslo", *table["city"].to_pylist()[1:]]))
    pq.write_table(same_size, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy that keeps times would
    after = prepared(recipe)
    assert len(entries(recipe)) == 2
    assert before.inputs != after.inputs
    assert content(before.splits["train"]) != content(after.splits["train"])


@pytest.mark.parametrize("damage", ["cut", "lost", "no facts", "broken facts"])
def test_what_is_damaged_is_made_again(recipe: Recipe, damage: str) -> None:
    before = {split: content(rows) for split, rows in prepared(recipe).splits.items()}
    (folder,) = Path(str(recipe.cache_dir)).iterdir()
    file = folder / "train" / "value_ids.bin"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "lost":
        file.unlink()
    elif damage == "no facts":
        (folder / FACTS_FILE).unlink()
    else:
        (folder / FACTS_FILE).write_text(json.dumps([]))
    assert {split: content(rows) for split, rows in prepared(recipe).splits.items()} == before
    assert entries(recipe) == [folder.name]


@pytest.mark.parametrize("where", ["_write_codes", "_write_value_ids", "_write_tokens", "open_split"])
def test_an_interrupted_preparation_leaves_nothing_and_the_next_is_whole(
    recipe: Recipe, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(preparation if where == "open_split" else encoded_rows, where, stop)
        with pytest.raises(KeyboardInterrupt):
            prepared(recipe)
    assert entries(recipe) == []
    # A killed one cannot clean up: its unfinished folder lies there.
    whole = prepared(recipe)
    (name,) = entries(recipe)
    folder = Path(str(recipe.cache_dir)) / name
    folder.rename(folder.with_name(f".{name}"))
    assert content(prepared(recipe).splits["train"]) == content(whole.splits["train"])
    assert entries(recipe) == [name]


def test_a_full_disk_is_an_error_before_anything_is_mapped(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as raised:
        prepared(recipe)
    assert f"no space left on the disk of {recipe.cache_dir}" in str(no_space(raised.value, recipe.output_dir))
    assert entries(recipe) == []


def test_two_runs_at_once_prepare_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    fill, filled, found = preparation._fill, [], []

    def counted(folder: Path, *arguments: Any) -> None:
        filled.append(folder)
        fill(folder, *arguments)

    monkeypatch.setattr(preparation, "_fill", counted)
    threads = [
        threading.Thread(target=lambda: found.append(content(prepared(recipe).splits["test"]))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(filled) == 1 and len(found) == 3 and found[0] == found[1] == found[2]


def test_fields_of_a_large_log_are_inferred_from_a_sample(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preparation, "ROWS_TO_INSPECT", 80)
    rows = 900
    titles = [f"a title of {i % 300}" for i in range(rows)]  # each three times: in a sample of 80 nearly all come once
    numbers = [str(i) for i in range(rows)]
    table = a_log(rows).append_column("title", pa.array(titles)).append_column("number", pa.array(numbers))
    pq.write_table(table, recipe.dataset_name)
    made = prepared(recipe)
    assert any("inferred from 80 of the 729 training rows" in message for message in caplog.messages)
    kinds = {field.name: field.kind for field in made.processor.schema}
    assert kinds["title"] == "categorical" and kinds["row"] == "ignored"
    assert any("field 'number' is used, but check it: it numbers the rows" in message for message in caplog.messages)
    assert len(made.processor.vocabulary.values["title"]) > 200  # the vocabulary is of all rows


def test_a_cache_that_cannot_be_written_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"encoded rows cannot be kept in .*file/cache \(.*\); name a folder .*--cache_dir"
    ):
        prepared(replace(recipe, cache_dir=str(tmp_path / "file" / "cache")))
