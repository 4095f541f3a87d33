"""on_bad_rows skip: the rows that train are those of the same log without the bad ones, and all say how many were left out."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from modeling_flip.quarantine import Quarantine
from modeling_flip.training.checks import check_recipe
from modeling_flip.training.data import read_labels, read_times
from modeling_flip.training.model_card import results_table
from modeling_flip.training.preparation import BAD_ROWS_FILE, prepare
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.splits import RawSplits, load_splits

GOOD = [f"{['Rome', 'Oslo', 'Lima'][i % 3]},{i % 7},2024-01-{1 + i // 10:02},{int(i * i % 5 < 2)}" for i in range(300)]
HEADER = "city,price,day,clicked"
# Before which row, and what counts it.
BAD = {
    20: ("Rome,1,2024-01-02", "wrong number of cells"),
    5: ("Rome,1,2024-01-02,", "no label"),
    170: ("Rome,1,2024-01-02,perhaps", "not a label"),
    250: ("Rome,1,,1", "no time"),
    299: ("Rome,1,yesterday,0", "not a time"),
    140: ("Rome,1,yesterday,perhaps", "not a label"),
}
REASONS = {"wrong number of cells": 1, "no label": 1, "not a label": 2, "no time": 1, "not a time": 1}


def write(path: Path, bad: bool) -> Path:
    lines = [line for i, row in enumerate(GOOD) for line in ([BAD[i][0], row] if bad and i in BAD else [row])]
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def load(path: Path, time_column: str | None = "day", **options: Any) -> RawSplits:
    keep, readers = ["clicked"], {"clicked": partial(read_labels, name="clicked")}
    return load_splits(str(path), time_column=time_column, keep=keep, readers=readers, **options)


def by_reason(quarantine: Quarantine) -> dict[str, int]:
    (counts,) = quarantine.counts.values()
    return counts


@pytest.mark.parametrize("time_column", ["day", None])
@pytest.mark.parametrize("most", [None, 100])
def test_splits_are_those_of_the_log_without_bad_rows(
    time_column: str | None, most: int | None, tmp_path: Path
) -> None:
    bad = write(tmp_path / "bad.csv", bad=True)
    expected = load(write(tmp_path / "good.csv", bad=False), time_column, max_train_samples=most)
    if time_column is None:  # then the times are not read, and a bad one is a cell like others
        lines = [line for line in bad.read_text().splitlines(keepends=True) if ",1,,1" not in line]
        bad.write_text("".join(line for line in lines if "yesterday,0" not in line))
    quarantine = Quarantine()
    found = load(bad, time_column, max_train_samples=most, quarantine=quarantine)
    assert {split: len(rows) for split, rows in found.items()} == {split: len(rows) for split, rows in expected.items()}
    for split, rows in expected.items():
        assert found[split].to_table().equals(rows.to_table())
        assert found[split]["price"].equals(rows["price"])
        picked = np.arange(len(rows)) % 3 == 1
        assert found[split].read(["city"], picked).equals(rows.read(["city"], picked))
    assert by_reason(quarantine) == {"wrong number of cells": 1, "no label": 1, "not a label": 2} | (
        {"no time": 1, "not a time": 1} if time_column else {}
    )


def test_given_splits_leave_out_their_own(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.csv", bad=split == "test")
    quarantine = Quarantine()
    found = load(tmp_path, quarantine=quarantine)
    assert [len(rows) for rows in found.values()] == [
        300,
        300,
        302,
    ]  # nothing is cut, so the times of test are not read
    assert list(quarantine.counts) == [str(tmp_path / "test.csv")]


def test_it_is_said_counted_and_listed_now_and_when_the_cache_is_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def recipe(path: Path) -> Recipe:
        settings: dict[str, Any] = {"label_column": "clicked", "time_column": "day", "towers": "tabular"}
        return Recipe(
            str(path), str(tmp_path / "out"), on_bad_rows="skip", cache_dir=str(tmp_path / "cache"), **settings
        )

    bad, good = write(tmp_path / "bad.csv", bad=True), write(tmp_path / "good.csv", bad=False)
    expected = prepare(recipe(good), load(good, quarantine=Quarantine()))
    assert "bad_rows" not in expected.reports and "left out" not in caplog.text
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        found = prepare(recipe(bad), load(bad, quarantine=Quarantine()))
        for split, rows in expected.splits.items():
            assert np.array_equal(found.splits[split].value_ids, rows.value_ids)
            labels = found.splits[split].labels
            assert labels is not None and rows.labels is not None and np.array_equal(labels, rows.labels)
        assert found.reports["bad_rows"] == {str(bad): REASONS}
        assert caplog.text.count("6 rows that cannot be read were left out (2 not a label, 1 ") == 1
        (listed,) = Path(str(recipe(bad).cache_dir)).glob(f"*/{BAD_ROWS_FILE}")
        assert str(listed) in caplog.text
        listing = [json.loads(line) for line in listed.read_text().splitlines()]
        assert sorted(row["reason"] for row in listing) == sorted(reason for _, reason in BAD.values())
        label = next(row for row in listing if row["reason"] == "no label")
        assert label["place"] == "row 5 of those that can be read, from 0; column 'clicked'" and label["text"] == ""


def test_labels_that_are_something_else_are_an_error_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("city,clicked\n" + "".join(f"Rome,{i % 5 + 1}\n" for i in range(100)))
    quarantine = Quarantine()
    message = r"holds '2' \(row 1\); labels are 0 or 1.*--positive_above.* 80 of 100 rows cannot be read, and on_bad_rows skip"
    with pytest.raises(ValueError, match=message):
        len(load(path, None, quarantine=quarantine))
    assert not quarantine.counts


def test_a_word_among_numbers_is_what_is_wrong_with_times() -> None:
    with pytest.raises(ValueError, match=r"holds 'yesterday' in row 2, which is not a number, as most are"):
        read_times(pa.array(["1700000000", "1700000001", "yesterday"]))


@pytest.mark.parametrize("cells", [["1", "inf", "4"], [1.0, float("inf"), 4.0]])
def test_an_infinite_rating_is_no_label(cells: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"holds 'inf' \(row 1\), which is not a number"):
        read_labels(pa.array(cells), positive_above=3)


def test_the_recipe_and_the_card(tmp_path: Path) -> None:
    assert "on_bad_rows" not in Recipe("a.csv", "out").to_dict()  # runs that were begun before it go on
    assert Recipe("a.csv", "out", on_bad_rows="skip").to_dict()["on_bad_rows"] == "skip"
    with pytest.raises(ValueError, match="on_bad_rows is 'drop'; it must be error or skip"):
        check_recipe(Recipe("a.csv", "out", on_bad_rows="drop"))
    results = {"test_auc": 0.5, "bad_rows": {"a.csv": {"no label": 1_000}, "b.csv": {"no time": 2}}}
    assert "1,002 rows of the files could not be read and were left out" in results_table(results)
