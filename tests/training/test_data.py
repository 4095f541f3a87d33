"""From names to splits, and from columns to clicks, times and groups."""

from __future__ import annotations

import datetime
import decimal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_flip.table_files import in_memory
from modeling_flip.training import splits as splits_module
from modeling_flip.training.data import group_codes, read_labels, read_times
from modeling_flip.training.grouped_auc import gauc
from modeling_flip.training.splits import RawSplits, SplitRows, load_splits

SPLITS = ["train", "validation", "test"]


def cut_missing_splits(tables: dict[str, pa.Table], *args: Any, **options: Any) -> RawSplits:
    found = splits_module.cut_missing_splits({s: in_memory(t, Path(s)) for s, t in tables.items()}, *args, **options)
    return RawSplits("", lambda: found)


def log(rows: int) -> pa.Table:
    return pa.table({"row": range(rows), "day": [f"2024-01-{31 - i % 31:02}" for i in range(rows)]})


def column(splits: Mapping[str, SplitRows], name: str = "row") -> dict[str, list[Any]]:
    return {split: rows[name].to_pylist() for split, rows in splits.items()}


# ---- splits


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(10, (8, 1, 1)), (25, (19, 3, 3)), (100, (81, 9, 10)), (109, (88, 10, 11)), (200, (162, 18, 20))],
)
@pytest.mark.parametrize("time_column", [None, "day"])
def test_split_sizes_by_hand(rows: int, sizes: tuple[int, int, int], time_column: str | None) -> None:
    splits = cut_missing_splits({"train": log(rows)}, time_column=time_column)
    assert list(splits) == SPLITS
    assert tuple(map(len, splits.values())) == sizes


def test_of_rows_split_by_time_the_latest_are_trained_on_and_else_the_first(tmp_path: Path) -> None:
    file = str(tmp_path / "log.parquet")
    pq.write_table(log(100), file)
    for time_column, kept in (("day", slice(-7, None)), (None, slice(7))):
        every = column(load_splits(file, time_column=time_column))
        some = load_splits(file, time_column=time_column, max_train_samples=7)
        assert column(some) == every | {"train": every["train"][kept]}
        parts = [(t["row"].to_numpy()[codes == 0], places[codes == 0]) for t, codes, places in some.parts(["row"])]
        rows, places = map(np.concatenate, zip(*parts, strict=True))
        assert rows[np.argsort(places)].tolist() == column(some)["train"] and sorted(places) == [*range(7)]
        assert column(load_splits(file, time_column=time_column, max_train_samples=1000)) == every


@given(rows=st.integers(10, 300), time_column=st.sampled_from([None, "day"]))
def test_every_row_is_in_one_split(rows: int, time_column: str | None) -> None:
    splits = column(cut_missing_splits({"train": log(rows)}, time_column=time_column))
    assert Counter(row for part in splits.values() for row in part) == Counter(range(rows))


@given(times=st.lists(st.integers(0, 20), min_size=10, max_size=200))
def test_time_splits_are_in_time_order_and_ties_in_file_order(times: list[int]) -> None:
    splits = cut_missing_splits({"train": pa.table({"row": range(len(times)), "t": times})}, time_column="t")
    rows = [row for part in column(splits).values() for row in part]
    assert rows == sorted(range(len(times)), key=lambda row: times[row])


def test_a_random_split_is_the_same_each_time_and_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    one, same, other = (
        column(cut_missing_splits({"train": log(100)}, "clicks.csv", seed=seed)) for seed in (42, 42, 7)
    )
    assert one == same != other
    assert all(part == sorted(part) for part in one.values())
    assert max(one["train"]) > min(one["test"])
    (said, _, _) = caplog.messages
    assert said.startswith(
        "no --time_column: test and validation of clicks.csv are drawn from its rows at random with seed 42"
    )
    caplog.clear()
    cut_missing_splits({"train": log(100)}, "clicks.csv", time_column="day")
    assert caplog.messages == [
        # Days 25 to 31 have four rows, the others three.
        "clicks.csv is split by day: train until 2024-01-27T00:00:00, validation until 2024-01-29T00:00:00, "
        "test until 2024-01-31T00:00:00"
    ]


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ({"event_time": ["2024-01-05 10:00:00"]}, "high. 'event_time' looks like a time: --time_column event_time"),
        ({"seen at": [1_700_000_000]}, "high. 'seen at' looks like a time: --time_column 'seen at'"),
        ({"when": [datetime.datetime(2024, 1, 5)]}, "high. 'when' looks like a time: --time_column when"),
        ({"time": ["morning"], "price": [3.5]}, "come out too high"),
    ],
)
def test_a_column_of_times_is_named_where_none_splits_the_rows(
    columns: dict[str, list[Any]], hint: str, caplog: pytest.LogCaptureFixture
) -> None:
    list(cut_missing_splits({"train": pa.table({name: values * 20 for name, values in columns.items()})}))
    assert caplog.messages[0].endswith(hint)


def test_given_splits_are_respected() -> None:
    given_splits = {"test": log(5), "train": log(100), "validation": log(7), "unsupervised": log(3)}
    assert {split: len(rows) for split, rows in cut_missing_splits(given_splits).items()} == {
        "train": 100,
        "validation": 7,
        "test": 5,
    }
    del given_splits["validation"]
    by_time = column(cut_missing_splits(given_splits, time_column="day"))
    assert by_time["test"] == list(range(5)) and len(by_time["train"]) == 90
    day = [30 - row % 31 for row in by_time["validation"]]
    assert min(day) >= max(30 - row % 31 for row in by_time["train"])
    assert len(column(cut_missing_splits({"train": log(100), "validation": log(7)}))["test"]) == 10


@pytest.mark.parametrize(
    ("tables", "options", "message"),
    [
        ({"test": log(20)}, {}, "it has no split 'train'; it has test"),
        ({"train": log(9)}, {}, "it has 9 rows; cutting off test and validation takes at least 10"),
        ({"train": log(9), "test": log(9)}, {}, "it has 9 rows; cutting off validation takes"),
        (
            {"train": log(20)},
            {"time_column": "dya"},
            "time_column 'dya' is missing in split 'train'; .*did you mean 'day'",
        ),
    ],
)
def test_what_cannot_be_split(tables: dict[str, pa.Table], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_missing_splits(tables, "it", **options)


def test_datasets_by_name_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    rows = log(100)
    (tmp_path / "folder").mkdir()
    for split, part in zip(SPLITS, (rows[:50], rows[50:60], rows[60:]), strict=True):
        pq.write_table(part, tmp_path / "folder" / f"{split}.parquet")
    pq.write_table(rows, tmp_path / "log.parquet")
    rows.to_pandas().to_csv(tmp_path / "log.csv", index=False)
    whole = datasets.DatasetDict({split: datasets.Dataset(rows) for split in SPLITS})
    whole.save_to_disk(tmp_path / "saved")

    assert {s: len(r) for s, r in load_splits(str(tmp_path / "folder")).items()} == dict(
        zip(SPLITS, (50, 10, 40), strict=True)
    )
    assert load_splits(str(tmp_path / "saved"))["test"].to_table().equals(rows)
    registered = {"mine": lambda: whole, "mine-2": lambda: dict.fromkeys(SPLITS, rows)}
    for name in registered:
        assert load_splits(name, registered=registered)["validation"].to_table().equals(rows)
    parquet = load_splits(str(tmp_path / "log.parquet"), time_column="day")
    text = load_splits(str(tmp_path / "log.csv"), time_column="day")
    assert text["train"].schema.types == [pa.string()] * 2
    assert parquet["test"]["row"].cast(pa.string()).equals(text["test"]["row"])
    assert not cache.exists()  # nothing is copied


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "{folder}/log.cvs",
            r"\(.*log\.cvs does not exist; did you mean 'log\.csv'\?\); give mine, a Hub dataset",
        ),
        ("no/where.csv", r"dataset 'no/where\.csv' cannot be loaded \(no/where\.csv does not exist\)"),
        ("mien", r"dataset 'mien' cannot be loaded .*or a file or folder of \.csv, .*did you mean 'mine'\?"),
    ],
)
def test_a_dataset_that_does_not_exist(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match=message) as error:
        load_splits(name.format(folder=tmp_path), registered={"mine": lambda: {}})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("linked", ["folders", "files"])
def test_folders_whose_splits_are_links_are_told_apart(linked: str, tmp_path: Path) -> None:
    for name, part in (("one", log(40)[:20]), ("two", log(40)[20:])):
        (tmp_path / name).mkdir()
        pq.write_table(part, tmp_path / name / "part.parquet")
    # Sorted by the names of the links, the files that they lead to come in the same order.
    for name, links in {"a": {"test": "one", "train": "two"}, "b": {"dev": "one", "train": "two"}}.items():
        (tmp_path / name).mkdir()
        for split, source in links.items():
            link = tmp_path / name / (split if linked == "folders" else f"{split}.parquet")
            link.symlink_to(tmp_path / source / ("" if linked == "folders" else "part.parquet"))
    a, b = (load_splits(str(tmp_path / name)) for name in ("a", "b"))
    assert column(a)["test"] == column(b)["validation"] == [*range(20)]
    assert a.fingerprint != b.fingerprint
    assert a.fingerprint == load_splits(str(tmp_path / "a")).fingerprint


def test_a_file_behind_a_link_counts_and_links_may_go_in_circles(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    pq.write_table(log(20), tmp_path / "rows" / "part.parquet")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "rows")
    (tmp_path / "rows" / "up").symlink_to(tmp_path)
    (tmp_path / "rows" / "self").symlink_to(tmp_path / "rows" / "self")
    before = load_splits(str(tmp_path / "data")).fingerprint
    assert load_splits(str(tmp_path / "data")).fingerprint == before
    pq.write_table(log(30), tmp_path / "rows" / "part.parquet")
    assert load_splits(str(tmp_path / "data")).fingerprint != before


def with_classes(rows: int = 40) -> datasets.Dataset:
    """A number too that is no class (-1), and a missing one (None)."""
    numbers = [-1, None, *(i % 2 for i in range(rows - 2))]
    words = ["yes", "no"]
    columns = {
        "genre": (numbers, datasets.ClassLabel(names=["rock", "jazz"])),
        "tags": ([[i % 2, 1] for i in range(rows)], datasets.Sequence(datasets.ClassLabel(names=["new", "old"]))),
        "clicked": ([i % 2 for i in range(rows)], datasets.ClassLabel(names=words)),
        "label": ([i % 2 for i in range(rows)], datasets.ClassLabel(names=["0", "1"])),
    }
    features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
    return datasets.Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features=features)


@pytest.mark.parametrize("come", ["saved", "registered", "tables", "streamed"])
def test_classes_are_read_by_their_names(come: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = with_classes()
    given = datasets.DatasetDict(dict.fromkeys(SPLITS, rows))
    splits: Mapping[str, SplitRows]
    if come == "saved":
        given.save_to_disk(tmp_path / "saved")
        splits = load_splits(str(tmp_path / "saved"))
    elif come == "registered":
        splits = load_splits("mine", registered={"mine": lambda: given})
    elif come == "tables":
        splits = RawSplits.of({split: part.data.table for split, part in given.items()})
    else:
        monkeypatch.setattr(splits_module.HfApi, "dataset_info", lambda *_: type("Info", (), {"sha": "1"}))
        streams = {split: part.to_iterable_dataset() for split, part in given.items()}
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: streams)
        splits = load_splits("me/classes", streaming=True)
    read = column(splits, "genre")["train"]
    assert read == [None, None, *["rock", "jazz"] * 19]
    assert column(splits, "tags")["test"][:2] == [["new", "old"], ["old", "old"]]
    clicked = splits["train"]["clicked"]
    with pytest.raises(ValueError, match=r"holds 'yes' \(row 0\); labels are 0 or 1.* say which .*--positive_label"):
        read_labels(clicked)
    assert read_labels(clicked, positive_label="yes").tolist() == [1, 0] * 20
    assert read_labels(splits["train"]["label"]).tolist() == [0, 1] * 20
    assert not isinstance(splits, RawSplits) or splits.with_validation_in_train()["train"].num_rows == 80
    head = splits["train"].read(["genre", "tags"], np.arange(40) % 3 == 0)
    assert head["genre"].to_pylist() == read[::3]


def test_classes_that_are_picked_or_without_a_name() -> None:
    assert column(RawSplits.of({"train": with_classes().select([3, 0, 2])}), "genre")["train"] == ["jazz", None, "rock"]
    features = datasets.Features({"genre": datasets.ClassLabel(names=["rock"])})
    strange = datasets.Dataset(pa.table({"genre": [0, 7]}).cast(features.arrow_schema))
    with pytest.raises(
        ValueError, match="column 'genre' holds class 7, but its ClassLabel names 1, from 0: cast the col"
    ):
        RawSplits.of({"train": strange})


# ---- times

MOMENTS = [
    datetime.datetime(1970, 1, 1),
    datetime.datetime(1999, 12, 31, 23, 59, 59),
    datetime.datetime(2024, 2, 29, 1, 2, 3),
    datetime.datetime(2024, 3, 4, 15, 0, 0),
    datetime.datetime(2038, 1, 19, 3, 14, 8),
]
SECONDS = [int(m.replace(tzinfo=datetime.UTC).timestamp()) for m in MOMENTS]
SPELLINGS: dict[str, Any] = {
    "ISO": [m.isoformat() for m in MOMENTS],
    "ISO, space": [str(m) for m in MOMENTS],
    "ISO, Z": [f"{m.isoformat()}Z" for m in MOMENTS],
    "ISO, fractions": [f"{m.isoformat()}.000000001" for m in MOMENTS],
    "ISO, zone": [(m + datetime.timedelta(hours=2)).isoformat() + "+02:00" for m in MOMENTS],
    "ISO, zones": [m.isoformat() + zone for m, zone in zip(MOMENTS, ("Z", "", "+0000", "-00:00", "+00"), strict=True)],
    "basic": [m.strftime("%Y%m%dT%H%M%S") for m in MOMENTS],
    "day first": [m.strftime("%d/%m/%Y %H:%M:%S") for m in MOMENTS],
    "day first, dots": [m.strftime(" %d.%m.%Y %H:%M:%S ") for m in MOMENTS],
    "month first": [m.strftime("%m/%d/%Y %I:%M:%S %p") for m in MOMENTS],
    "words": [m.strftime("%b %d, %Y %H:%M:%S") for m in MOMENTS],
    "mail": [m.strftime("%a, %d %b %Y %H:%M:%S GMT") for m in MOMENTS],
    "many": [
        m.strftime(spelling)
        for m, spelling in zip(
            MOMENTS, ["%Y-%m-%d", *["%B %d %Y %H:%M:%S"] * 2, *["%Y/%m/%d %H:%M:%S"] * 2], strict=True
        )
    ],
    "s": SECONDS,
    "ms": [1_000 * s for s in SECONDS],
    "us": [1_000_000 * s for s in SECONDS],
    "ns": [1_000_000_000 * s for s in SECONDS],
    "s, float": [float(s) for s in SECONDS],
    "ms, float": [1e3 * s for s in SECONDS],
    "s, text": [str(s) for s in SECONDS],
    "ms, text": [f"{s}000" for s in SECONDS],
    "s, float text": [f"{s}.0" for s in SECONDS],
    "s, decimal": [decimal.Decimal(s) for s in SECONDS],
    "datetime": MOMENTS,
    "datetime, zone": pa.array(MOMENTS, pa.timestamp("us", "America/New_York")),
    "timestamp s": pa.array(MOMENTS, pa.timestamp("s")),
    "dictionary": pa.array([m.isoformat() for m in MOMENTS]).dictionary_encode(),
    "chunks": pa.chunked_array([[m.isoformat()] for m in MOMENTS]),
    "large": pa.array([m.isoformat() for m in MOMENTS], pa.large_string()),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_moment_is_the_same_in_every_spelling(spelling: str) -> None:
    values = SPELLINGS[spelling]
    values = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    assert read_times(values).astype("datetime64[s]").tolist() == MOMENTS


@pytest.mark.parametrize(
    "values",
    [
        [m.date() for m in MOMENTS],
        [m.strftime("%Y%m%d") for m in MOMENTS],
        [int(m.strftime("%Y%m%d")) for m in MOMENTS],
        [m.strftime("%d.%m.%y") if m.year > 1970 else "1970-01-01" for m in MOMENTS],
    ],
)
def test_dates_alone(values: list[Any]) -> None:
    assert read_times(pa.array(values)).astype("datetime64[D]").tolist() == [m.date() for m in MOMENTS]


def test_far_dates_and_none() -> None:
    assert read_times(pa.array(["2024-01-01", "9999-12-31"])).astype(str)[1].startswith("9999-12-31")
    for kind in (pa.string(), pa.int64(), pa.float64(), pa.timestamp("s"), pa.date32()):
        assert len(read_times(pa.array([], kind))) == 0


@given(st.lists(st.integers(0, 2**62), min_size=1) | st.lists(st.floats(0, 2e9), min_size=1))
def test_numbers_keep_their_order_or_are_of_two_units(numbers: list[Any]) -> None:
    try:
        times = read_times(pa.array(numbers))
    except ValueError:
        of_units = [any(631_152_000 * 1000**i < n < 4_102_444_800 * 1000**i for n in numbers) for i in range(4)]
        assert sum(of_units) > 1
        return
    order = np.argsort(times, kind="stable")
    back = np.asarray(numbers)[order]
    step = 1e-6 if isinstance(numbers[0], float) else 0
    assert (np.diff(back) >= -step).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2024-01-01", None], "time column 't' of it has no value in row 1: drop such rows"),
        (["2024-01-01", " "], "has no value in row 1"),
        ([1.0, float("nan")], "has no value in row 1"),
        ([1.0, float("inf")], "holds inf in row 1, which is not a time"),
        (
            ["2024-01-01", "soon"],
            "holds 'soon' in row 1, which is not a date or time that can be read: write it as 2024-04-25",
        ),
        (["2024-01-01", "2024-02-30"], "holds '2024-02-30' in row 1"),
        (["2024-01-01", "12:30"], "holds '12:30' in row 1"),
        (["2024-01-01", "1700000000"], "holds '1700000000' in row 1"),
        (
            ["25/04/2024", "04/25/2024"],
            r"day first in row 0 \('25/04/2024'\) and the month first in row 1 \('04/25/2024'\)",
        ),
        (
            ["03/04/2024", "04/03/2024"],
            "'03/04/2024' in row 0 has the day first or the month first, and no other date in the column settles it",
        ),
        (
            [1_700_000_000, 0, 1_700_000_000_123],
            "holds 1700000000 in row 0, which are seconds since 1970, and 1700000000123 in row 2, which are milliseconds",
        ),
        ([True], "has type bool: turn it into dates"),
        ([["2024-01-01"]], "has type list"),
    ],
    ids=str,
)
def test_what_is_no_time_is_named(values: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_times(pa.array(values), "t", "it")


def test_an_ambiguous_date_is_no_error_where_the_order_does_not_depend_on_it() -> None:
    times = read_times(pa.array(["01/02/2024", "02/03/2024", "03/04/2024"]))
    assert np.argsort(times).tolist() == [0, 1, 2]


# ---- labels


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 1],
        [0.0, 1.0, 1.0],
        [False, True, True],
        ["0", "1", "1"],
        ["0.0", "1.0", "1"],
        ["false", "TRUE", "True"],
        [" 0", "1 ", "+1"],
        [decimal.Decimal(0), decimal.Decimal(1), decimal.Decimal("1.0")],
        pa.array([0, 1, 1], pa.uint8()),
        pa.array(["0", "1", "1"]).dictionary_encode(),
        pa.chunked_array([["0"], ["1", "1"]]),
        pa.array([0.0, 1.0, 1.0], pa.float16()),
        pa.array(["0", "1", "1"], pa.large_string()),
    ],
    ids=str,
)
def test_clicks_in_every_spelling(values: Any) -> None:
    labels = read_labels(values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values))
    assert labels.dtype == np.float32
    assert labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (["yes", "no", "maybe", "yes"], {"positive_label": "yes"}, [1, 0, 0, 1]),
        (["NA", "n/a", "b"], {"positive_label": "NA"}, None),  # the other missing word is a missing value
        (["NA", "b"], {"positive_label": "NA"}, [1, 0]),
        ([1, 2, 3], {"positive_label": "2"}, [0, 1, 0]),
        ([True, False], {"positive_label": "True"}, [1, 0]),
        ([3, 4, 5, 2], {"positive_above": 3}, [0, 1, 1, 0]),
        (["3", "3.5", "1e1", "-4"], {"positive_above": 3}, [0, 1, 1, 0]),
        ([3.0, 3.0000001], {"positive_above": 3.0}, [0, 1]),
        ([True, False], {"positive_above": 0.5}, [1, 0]),
    ],
)
def test_words_and_ratings(values: list[Any], options: dict[str, Any], expected: list[int] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="missing value"):
            read_labels(pa.array(values), **options)
    else:
        assert read_labels(pa.array(values), **options).tolist() == expected


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0, None, 1], {}, r"label column 'y' of split 'test' holds a missing value \(row 1\): drop such rows"),
        ([0, None, None], {}, r"of split 'test' holds 2 missing values \(the first in row 1\): drop such rows"),
        (["seen"] * 3 + ["a click"], {}, r"such as --positive_label 'a click' \(the others"),
        ([0.0, 1.0, float("nan")], {}, r"missing value \(row 2\)"),
        (["0", "1", "NaN"], {}, r"missing value \(row 2\)"),
        (["yes", None], {"positive_label": "yes"}, r"missing value \(row 1\)"),
        (
            [1, 3, 5, 3],
            {},
            r"holds '3' \(row 1\); labels are 0 or 1, and these are '1', '3', '5': .* such as --positive_above 3",
        ),
        (["1", "no"], {}, r"holds 'no' \(row 1\); .* these are '1', 'no': .* such as --positive_label 1"),
        ([0.5], {}, r"holds '0\.5' \(row 0\)"),
        (list(range(100)), {}, r"'8', '9', … \(100 in all\): say which"),
        (["Yes", "no"], {"positive_label": "yes"}, "never holds positive_label 'yes'; it holds 'Yes', 'no'"),
        (
            ["no", "clicked"],
            {"positive_label": "click"},
            "never holds positive_label 'click'; it holds 'clicked', 'no'",
        ),
        (
            ["4", "good"],
            {"positive_above": 3},
            r"holds 'good' \(row 1\), which is not a number: .* give positive_label",
        ),
        (
            [1],
            {"positive_above": 3, "positive_label": "1"},
            "positive_label is '1' and positive_above is 3: give only one of them",
        ),
        ([[1]], {}, "has type list<.*>; labels are numbers, booleans or text"),
    ],
    ids=str,
)
def test_labels_that_are_no_clicks_are_named(values: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(pa.array(values), "y", "split 'test'", **options)


# ---- groups


def test_groups_are_numbered_and_a_missing_one_is_none() -> None:
    columns = {
        (0, 1, -1, 0): pa.array(["b", "a", None, "b"]),
        (0, -1, -1): pa.array(["a", "", "NA"]),
        (0, 0): pa.array(["x", "x"]).dictionary_encode(),
        (0, -1, 0, -1): pa.array([2.0, float("nan"), 2.0, None]),  # of integers, as pandas has them
    }
    for codes, column in columns.items():
        assert group_codes(column, "user").tolist() == list(codes)


def test_gauc_by_hand() -> None:
    logits = np.array([0.1, 0.9, 0.7, 0.3, 0.5, 9.0, 2.0, 2.0, 2.0])
    labels = np.array([0, 1, 0, 1, 1, 1, 0, 1, 1])
    groups = np.array([0, 0, 1, 1, 2, -1, 3, 3, 3])
    # Group 0: 1 of 2 rows; group 1: 0 of 2; group 2 has one class; group -1 is none; group 3: ties, 0.5 of 3 rows.
    assert gauc(logits, labels, groups) == pytest.approx(((2 * 1 + 2 * 0 + 3 * 0.5) / 7, 7 / 9))
    nothing, share = gauc(np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 0]))
    assert np.isnan(nothing) and share == 0
    assert np.isnan(gauc(np.zeros(0), np.zeros(0), np.zeros(0, int))[0])


@given(
    rows=st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(-1, 3)), min_size=1, max_size=40),
)
def test_gauc_is_the_weighted_mean_of_pairwise_aucs(rows: list[tuple[int, bool, int]]) -> None:
    weighted, covered = 0.0, 0
    for group in {g for _, _, g in rows if g >= 0}:
        clicks = [x for x, y, g in rows if g == group and y]
        others = [x for x, y, g in rows if g == group and not y]
        if clicks and others:
            pairs = [(a > b) + (a == b) / 2 for a in clicks for b in others]
            weighted += sum(pairs) / len(pairs) * (len(clicks) + len(others))
            covered += len(clicks) + len(others)
    logits, labels, groups = (np.array(values) for values in zip(*rows, strict=True))
    value, share = gauc(logits.astype(float), labels, groups)
    assert share == pytest.approx(covered / len(rows))
    assert np.isnan(value) if covered == 0 else value == pytest.approx(weighted / covered)


def test_a_number_too_large_for_a_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds 1e\+19 in row 1, which is not a time"):
        read_times(pa.array([1.0, 1e19]))


def test_an_empty_positive_label_is_refused() -> None:
    with pytest.raises(ValueError, match="positive_label is '', which is not a label"):
        read_labels(pa.array(["", "yes"]), positive_label="")


def test_a_word_that_differs_from_the_positive_label_in_case_alone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert read_labels(pa.array(["no", "Yes", "yes"]), positive_label="yes").tolist() == [0, 0, 1]
    assert "holds 'Yes' (row 1) besides 'yes': it counts as no click" in caplog.text


def test_rows_of_any_arrow_type_are_split() -> None:
    words = pa.array(["a"] * 20, pa.string_view())
    lists = pa.ListArray.from_arrays(pa.array(range(21), pa.int32()), words)
    splits = cut_missing_splits({"train": pa.table({"words": words, "lists": lists})})
    assert [len(rows) for rows in splits.values()] == [16, 2, 2]
    assert splits["test"].to_table().to_pylist() == [{"words": "a", "lists": ["a"]}] * 2
