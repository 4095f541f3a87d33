"""What columns are taken for, which are left out and why, and where they are not: for each reason a near miss."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from modeling_flip.field_inference import (
    FEW_VALUES,
    ROWS_TO_CONCLUDE,
    FieldReport,
    field_table,
    infer_fields,
    side_of,
    words_of,
)
from modeling_flip.fields import Field
from modeling_flip.row_reader import read_column

N = 400
RNG = np.random.default_rng(0)
LABELS = (np.arange(N) % 3 == 0).astype(np.float32)
SHUFFLED = RNG.permutation(N)
LABELS = LABELS[SHUFFLED]


def infer(values: Any, name: str = "x", labels: np.ndarray | None = LABELS, **settings: Any) -> FieldReport:
    """What one column is taken for; with settings it is declared."""
    declared = [{"name": name, **settings}] if settings else None
    rows = pd.DataFrame({name: values}) if isinstance(values, pd.Series) else {name: values}
    (report,) = infer_fields(rows, declared, labels=labels)
    return report


def found(values: Any, name: str = "x", **settings: Any) -> tuple[str, str]:
    field = infer(values, name, **settings).field
    return field.kind, field.type


def as_csv(values: list[Any], name: str = "x") -> list[str]:
    """The column as `csv.DictReader` gives it of the file that pandas writes."""
    text = io.StringIO(newline="")
    pd.DataFrame({name: values, "other": 1}).to_csv(text, index=False)
    text.seek(0)
    return [row[name] for row in csv.DictReader(text)]


def ignored(values: Any, name: str = "x", labels: np.ndarray | None = LABELS) -> str:
    """Why a column is left out; "" where it is not."""
    field = infer(values, name, labels).field
    return field.reason if field.kind == "ignored" else ""


# ---- why a column is left out, and near misses


def test_all_missing() -> None:
    nothing: Any
    for nothing in ([None] * N, [""] * N, ["NA"] * N, [float("nan")] * N, [pd.NA] * N, [[]] * N, pa.nulls(N)):
        assert ignored(nothing) == "no row has a value"
    assert ignored([None] * (N - 2) + ["a", "b"]) == ""


def test_constant() -> None:
    constant = "constant: the same value in every row"
    for values in (["shop"] * N, [7] * N, [["a"]] * N):
        assert ignored(values) == constant
    assert ignored(["007"] * N, labels=None) == ignored([2.5] * 3, labels=None) == constant
    # That a value is there or not may say something.
    assert ignored([None, *["shop"] * (N - 1)]) == ""
    assert ignored(["Shop", *["shop"] * (N - 1)]) == ""


def test_one_value_a_row() -> None:
    reason = "every row has its own value: it would only be memorised"
    assert ignored([f"row {i}" for i in range(N)]) == reason
    assert ignored(list(range(N)), "row_id") == ignored(list(range(N)), "index") == reason
    assert ignored([f"{i % (N - 8)}" for i in range(N)]) == reason  # 98 of 100
    assert ignored([f"v{i % (N - 9)}" for i in range(N)]) == ""
    assert ignored([f"v{i % (N // 2)}" for i in range(N)]) == ""
    # Numbers and lists are not memorised, and missing rows do not count as different ones.
    assert ignored([i + 0.5 for i in range(N)], "price") == ""
    assert ignored([f"row {i}" if i % 2 else None for i in range(N)]) == reason
    assert ignored([[f"a{i}", f"b{i}"] for i in range(N)]) == ""


@pytest.mark.parametrize(("rows", "left_out"), [(ROWS_TO_CONCLUDE, True), (ROWS_TO_CONCLUDE - 1, False)])
def test_in_few_rows_nothing_is_concluded_from_how_often_values_come(rows: int, left_out: bool) -> None:
    labels = (np.arange(rows) % 2).astype(np.float32)
    for values in (
        [f"row {i}" for i in range(rows)],
        ["yes" if label else "no" for label in labels],
        ["paid" if label else None for label in labels],
        [float(label) + i / 1000 for i, label in enumerate(labels)],
    ):
        assert bool(ignored(values, labels=labels)) == left_out
    assert bool(ignored([f"row {i}" for i in range(rows)], labels=None)) == left_out


def test_the_label_itself() -> None:
    assert ignored(["yes" if label else "no" for label in LABELS]) == "identical to the label"
    assert ignored(list(map(int, LABELS))) == ignored([bool(label) for label in LABELS]) == "identical to the label"
    assert ignored(list(1 - LABELS)) == "identical to the label"
    almost = ["yes" if label else "no" for label in LABELS]
    for i in range(20):
        almost[i] = "yes" if almost[i] == "no" else "no"
    assert ignored(almost) == ""
    assert ignored(["yes" if label else "no" for label in LABELS], labels=None) == ""
    assert ignored(["yes", "no"] * (N // 2), labels=np.zeros(N, np.float32)) == ""  # one label alone tells nothing


def test_the_label_in_more_words_than_two() -> None:
    words = [("bought" if i % 2 else "clicked") if label else "seen" for i, label in enumerate(LABELS)]
    assert ignored(words) == "alone it ranks the clicks with an AUC of 1.000: known only after the click?"
    clicks = np.flatnonzero(LABELS)
    for i in clicks[::5]:
        words[i] = "seen"
    assert ignored(words) == ""


def test_known_only_after_the_click_by_missing_values() -> None:
    reason = "it has a value only in rows of one label: known only after the click"
    assert ignored([f"order {i}" if label else None for i, label in enumerate(LABELS)]) == reason
    assert ignored([i + 0.5 if label else None for i, label in enumerate(LABELS)], "price") == reason
    assert ignored([None if label else f"why not {i % 7}" for i, label in enumerate(LABELS)]) == reason
    assert ignored(["paid" if label else None for label in LABELS]) == reason
    assert ignored([["a", f"b{i}"] if label else [] for i, label in enumerate(LABELS)]) == reason
    near = [f"order {i % 50}" if label else None for i, label in enumerate(LABELS)]
    for i in np.flatnonzero(LABELS == 0)[:60]:
        near[i] = f"order {i % 50}"
    assert ignored(near) == ""
    some = [f"order {i % 50}" if label and i % 2 else None for i, label in enumerate(LABELS)]
    assert ignored(some) == ""  # half of the clicks have none either: it is not told by the click alone


def test_known_only_after_the_click_by_its_order() -> None:
    seconds = RNG.random(N)
    dwell = list(np.where(LABELS == 1, 1 + seconds, seconds * 0.9))
    assert (
        ignored(dwell, "dwell_seconds") == "alone it ranks the clicks with an AUC of 1.000: known only after the click?"
    )
    assert (
        ignored([-d for d in dwell], "left")
        == "alone it ranks the clicks with an AUC of 1.000: known only after the click?"
    )
    good = list(np.where(LABELS == 1, 0.5 + seconds, seconds))
    assert ignored(good, "score") == ""  # an AUC of about 0.87
    assert infer([float(d) if i % 3 else None for i, d in enumerate(dwell)], "dwell").field.kind == "ignored"


def test_a_column_that_ranks_the_clicks_well_alone_is_used_and_warned_of() -> None:
    """A label with one row in twenty wrong is no proof, and worth a question; one with three in ten wrong is neither."""
    for wrong, told in ((0.05, "alone it ranks the clicks with an AUC of 0.9"), (0.3, "")):
        noisy = np.where(np.random.default_rng(1).random(N) < wrong, 1 - LABELS, LABELS).astype(int)
        report = infer(noisy.tolist(), "converted")
        assert report.field.kind == "categorical"
        assert report.warning.partition(" of 0.9")[0] == told.partition(" of 0.9")[0]


def test_values_that_stand_in_clicked_rows_alone_are_warned_of() -> None:
    """As of a purchase, which follows some of the clicks: it ranks badly, for most clicks have none, and yet is known later."""
    bought = (LABELS == 1) & (np.arange(N) % 4 == 0)
    advice = "is a click: if it is known only after the click, leave it out with exclude_fields"
    count = bought.sum()
    assert (
        infer(bought.astype(int).tolist(), "bought").warning
        == f"each of the {count} rows with anything but '0' {advice}"
    )
    amount = np.where(bought, np.arange(N) * 1.5, 0.0).tolist()
    assert infer(amount, "spend").warning == f"each of the {count} rows with anything but '0' {advice}"
    some = [f"order {i}" if b else None for i, b in enumerate(bought)]
    assert infer(some, "order").warning == f"each of the {count} rows with a value {advice}"
    of_three = np.where(bought, "sold", np.where(np.arange(N) % 2, "seen", "sent")).tolist()
    assert infer(of_three, "state").warning == f"each of the {count} rows with 'sold' {advice}"
    lists = [["sold", "out"] if b else ["in"] for b in bought]
    assert infer(lists, "tags").warning == f"each of the {count} rows with anything but 'in' {advice}"
    # Near misses: one row that is no click; too few rows; users, some of whom click every time.
    one_wrong = bought.copy()
    one_wrong[np.argmin(LABELS)] = True
    assert infer(one_wrong.astype(int).tolist(), "bought").warning == ""
    assert infer((bought & (np.cumsum(bought) <= 9)).astype(int).tolist(), "bought").warning == ""
    users = np.where(LABELS == 1, np.arange(N) % 30, np.arange(N) % 28)
    assert infer([f"user {u}" for u in users], "user").warning == ""


def test_numbers_of_rows_are_warned_of() -> None:
    some_left_out = np.sort(RNG.permutation(N * 6 // 5)[:N])
    for numbers in (np.arange(N), some_left_out + 10**6):
        report = infer(numbers.tolist(), "row number", None)
        assert report.field.kind == "numeric" and report.warning.startswith("it numbers the rows one by one")
    assert infer((np.arange(N) * 7).tolist(), "views", None).warning == ""
    assert infer((np.arange(N) // 2).tolist(), "views", None).warning == ""
    assert infer(list(range(ROWS_TO_CONCLUDE - 1)), "views", None).warning == ""


def test_whole_numbers_named_for_a_thing_are_identifiers() -> None:
    skewed = (RNG.zipf(1.6, N) % 700).tolist()
    assert found(skewed, "user") == found(skewed, "shown ad") == ("categorical", "integer")
    assert found(skewed, "user_age") == found(skewed, "things") == ("numeric", "integer")


def test_values_that_come_a_few_times_do_not_give_their_few_clicks_away() -> None:
    """With ten rows a value and one click in two hundred, click rates in the same rows have an AUC of 0.98."""
    rows = 4000
    labels = np.zeros(rows, np.float32)
    labels[RNG.permutation(rows)[:20]] = 1
    users = RNG.permutation(np.arange(rows) % (rows // 10))
    assert ignored([f"user {u}" for u in users], "user", labels) == ""
    assert ignored(users.tolist(), "user_id", labels) == ""
    assert ignored(RNG.random(rows).tolist(), "price", labels) == ""
    few = np.zeros(rows, np.float32)
    few[:2] = 1
    assert ignored(list(range(rows)), "visits", few) == ""  # two clicks are no evidence, wherever they stand
    assert "AUC" in ignored(np.where(labels == 1, 5, users % 4).tolist(), "state", labels)


def test_moments() -> None:
    reason = "points in time that never repeat; set time_column to split by it"
    start = dt.datetime(2024, 1, 1)
    # Three rows to a moment, or they would be one value a row.
    moments = [start + dt.timedelta(hours=i // 3) for i in range(N)]
    seconds = [int(m.replace(tzinfo=dt.UTC).timestamp()) for m in moments]
    for values in (
        moments,
        pd.Series(moments),
        [m.isoformat() for m in moments],
        [m.isoformat() + "Z" for m in moments],
        [str(m) for m in moments],
        [None, *moments[1:]],
        [pd.NaT, *map(pd.Timestamp, moments[1:])],
        pa.array(moments, pa.timestamp("ns", "UTC")),
    ):
        report = infer(values, "when")
        assert (report.field.kind, report.field.type, report.field.reason) == ("ignored", "timestamp", reason)
    for values, name in (
        (seconds, "timestamp"),
        ([s * 1000 for s in seconds], "created_at"),
        (list(map(str, seconds)), "eventTime"),
        (list(map(float, seconds)), "event time"),
    ):
        report = infer(values, name)
        assert (report.field.kind, report.field.type, report.field.reason) == ("ignored", "timestamp", reason)
    assert found(seconds, "phone") == ("categorical", "integer")
    assert found([i % 60 + 20 for i in range(N)], "time") == ("categorical", "integer")  # no seconds since 1970
    assert found([start + dt.timedelta(hours=i % FEW_VALUES) for i in range(N)], "slot") == ("categorical", "timestamp")
    assert found([start + dt.timedelta(days=i % 99) for i in range(N)], "day") == ("categorical", "date")


# ---- kinds

COUNTS = [int(v) for v in np.floor(RNG.pareto(1.0, N))]
LETTERS = "abcdefghijklmnopqrst"
TITLES = [f"{a.upper()} {b}, The ({1950 + (ord(a) + ord(b)) % 50})" for a in LETTERS for b in LETTERS]
WORDS = [
    "a",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "runs",
    "far",
    "away",
    "from",
    "here",
]
SENTENCES = [" ".join(np.random.default_rng(i).permutation(WORDS)[:8]) for i in range(N)]
PRICES = [None if i % 7 == 0 else round(i * 0.37 + 0.01, 2) for i in range(N)]
WHOLE_PRICES = [None if i % 7 == 0 else i * 3 for i in range(N)]
COLOURS = ["red", "green", "blue", "tall", "small"]
TAGS = [[*COLOURS[i % 5 : i % 5 + 1 + i % 3], f"t{i % 23}"] for i in range(N)]


@pytest.mark.parametrize(
    ("name", "values", "kind", "type"),
    [
        ("price", PRICES, "numeric", "number"),
        ("price", WHOLE_PRICES, "numeric", "integer"),
        ("amount", [str(p or "") for p in PRICES], "numeric", "number"),
        ("rating", [3.5, 4.0, 2.5, 5.0] * (N // 4), "numeric", "number"),
        ("x", COUNTS, "numeric", "integer"),
        ("num_views", list(range(N)), "numeric", "integer"),
        ("numViews", list(range(N)), "numeric", "integer"),
        ("age", [18 + i % 50 for i in range(N)], "numeric", "integer"),
        ("age", [18 + i % 5 for i in range(N)], "categorical", "integer"),
        ("user_id", [i % 99 for i in range(N)], "categorical", "integer"),
        ("userId", [float(i % 99) for i in range(N)], "categorical", "integer"),
        ("movie", [1000 + i % 99 for i in range(N)], "categorical", "integer"),
        ("price_id", [i % 99 for i in range(N)], "categorical", "integer"),
        ("zip", [f"{i % 99:05d}" for i in range(N)], "categorical", "string"),
        ("zip", [f"{10000 + i % 99}" for i in range(N)], "categorical", "integer"),
        ("user", [1234567890123456789 + i % 99 for i in range(N)], "categorical", "integer"),
        ("adult", ["true", "false", ""] * 100, "categorical", "boolean"),
        ("adult", ["True", "False"] * 100, "categorical", "boolean"),
        ("adult", ["yes", "no"] * 100, "categorical", "string"),
        ("adult", [True, None] * 100, "categorical", "boolean"),
        ("day", ["2024-01-31", "2024-02-01"] * 100, "categorical", "date"),
        ("city", ["Rome", "Oslo", "New York"] * 100, "categorical", "string"),
        ("title", TITLES, "text", "string"),
        ("title", [TITLES[i % 99] for i in range(N)], "categorical", "string"),
        ("review", SENTENCES, "text", "string"),
        ("review", [SENTENCES[i % 99] for i in range(N)], "categorical", "string"),
        ("tags", TAGS, "list", "string"),
        ("tags", [tuple(t) for t in TAGS], "list", "string"),
        ("tags", [np.array(t) for t in TAGS], "list", "string"),
        ("tags", [set(t) for t in TAGS], "list", "string"),
        ("tags", ["|".join(t) for t in TAGS], "list", "string"),
        ("tags", ["; ".join(t) for t in TAGS], "list", "string"),
        ("tags", [",".join(t) for t in TAGS], "list", "string"),
        ("tags", [", ".join(t) for t in TAGS], "list", "string"),
        ("tags", [json.dumps(t) for t in TAGS], "list", "string"),
        ("history", [[i % 9, i % 7] for i in range(N)], "list", "integer"),
        ("history", [f"{i % 9} | {i % 11} | 5" for i in range(N)], "list", "integer"),
        ("history", [json.dumps([i % 9, i % 7]) for i in range(N)], "list", "integer"),
        ("price", [f"{i // 10},{i % 10}5" for i in range(N)], "categorical", "string"),  # 3,50 is no list
        ("income", [f"{i:,}" for i in range(900, 900 + N * 5, 5)], "categorical", "string"),
        ("city", [f"City{i % 60}, State{i % 60}" for i in range(N)], "categorical", "string"),
        ("names", ["Ann Lee", "Bob Ray; Jr"] * 100, "categorical", "string"),  # too few texts to tell
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, str) else type(value[0]).__name__,
)  # fmt: skip
def test_kinds(name: str, values: list[Any], kind: str, type: str) -> None:
    report = infer(values, name, labels=None)
    if report.field.reason.startswith("every row has its own value"):  # of such as 3,50: what it would be otherwise
        report = infer([*values, *values], name, labels=None)
    assert (report.field.kind, report.field.type) == (kind, type)


@pytest.mark.parametrize(("values", "separator"), [("|", "|"), (";", ";"), (",", None)])
def test_the_separator_of_a_list_is_found(values: str, separator: str | None) -> None:
    assert infer([values.join(tags) for tags in TAGS], "tags").field.separator == separator
    assert infer([json.dumps(tags) for tags in TAGS], "tags").field.separator is None


@pytest.mark.parametrize(
    ("name", "values"),
    [("price", PRICES), ("price", WHOLE_PRICES), ("count", COUNTS), ("user_id", [i % 99 for i in range(N)]),
     ("adult", [True, False, None, True] * 100), ("title", TITLES), ("tags", ["|".join(t) for t in TAGS]),
     ("zip", [f"{i % 99:05d}" for i in range(N)])],
)  # fmt: skip
def test_a_column_is_taken_for_the_same_in_every_container(name: str, values: list[Any]) -> None:
    expected = infer(values, name)
    frame = pd.DataFrame({name: values})
    for rows in (
        [{name: value} for value in values],
        {name: as_csv(values, name)},
        frame,
        frame.convert_dtypes(),
        frame.astype(object),
        frame.astype("category"),
        pa.Table.from_pandas(frame),
        pa.table({name: pa.array(values).dictionary_encode()}),
        pa.table({name: pa.chunked_array([pa.array(values[:9]), pa.array(values[9:])])}),
    ):
        assert infer_fields(rows, labels=LABELS) == [expected]


def test_what_is_counted() -> None:
    report = infer([["b", "a"], ["a", ""], [], None], "tags")
    assert (report.distinct, report.missing, report.example) == (2, 2, "b, a")
    report = infer(["007", 7, None, 8], "id")
    assert (report.distinct, report.missing, report.example) == (3, 1, "007")  # text beside numbers: not all integers
    report = infer([7.0, None, 8.0], "id")
    assert (report.distinct, report.missing, report.example) == (2, 1, "7")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("userId", ["user", "id"]),
        ("user_id", ["user", "id"]),
        ("User ID", ["user", "id"]),
        ("item2vec", ["item2vec"]),
        ("👍", []),
    ],
)
def test_the_words_of_a_name(name: str, words: list[str]) -> None:
    assert words_of(name) == words


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("user_id", "user"),
        ("movieTitle", "item"),
        ("hour of day", "context"),
        ("foo", None),
        ("用户", None),
        ("users", None),
    ],
)
def test_the_side_that_a_name_tells(name: str, side: str | None) -> None:
    assert side_of(name) == side
    assert infer(["a", "b", "a"], name).field.side == side


# ---- what is declared


def test_what_is_declared_is_taken_as_it_is() -> None:
    report = infer(COUNTS, "x", kind="categorical", min_count=2, words="views", side="item")
    assert report.field == Field(
        name="x", kind="categorical", type="integer", min_count=2, words="views", side="item", reason="declared"
    )
    assert found(["1", "2"], kind="numeric", type="number") == ("numeric", "number")
    assert found(["1", "2"], type="string") == ("categorical", "string")
    assert found(SENTENCES, kind="categorical") == ("categorical", "string")
    assert found(["|".join(t) for t in TAGS], kind="categorical") == ("categorical", "string")
    assert found([f"{i % 9}|{i % 7}|1" for i in range(N)], kind="text") == ("text", "string")
    assert infer(PRICES, kind="ignored").field.reason == "declared"
    assert infer(PRICES, kind="ignored", reason="not ours").field.reason == "not ours"
    field = Field(name="x", kind="numeric", type="integer", num_buckets=3)
    assert infer_fields({"x": COUNTS}, [field])[0].field == Field(**{**field.to_dict(), "reason": "declared"})


def test_an_option_of_one_kind_says_the_kind() -> None:
    assert found(["1;2", "2"], separator=";") == ("list", "integer")
    assert found(["a,b", "c"], max_items=1) == ("list", "string")
    assert found([1, 2, 3], num_buckets=2) == ("numeric", "integer")
    assert found(["a b", "c"], max_words=1) == ("text", "string")
    assert found(["a", "b"], min_count=2) == ("categorical", "string")


@pytest.mark.parametrize("cells", [["1|2", "3"], ["[1, 2]", "[3]"], [[1, 2], [3]], ["1|02", "3.0"]], ids=str)
def test_the_members_of_a_declared_list_have_their_type_in_a_small_table_too(cells: list[Any]) -> None:
    expected = "string" if "02" in str(cells) else "integer"
    assert found(cells, kind="list", separator="|") == ("list", expected)


def test_a_declared_column_is_never_left_out_but_warned_of() -> None:
    ids = [f"row {i}" for i in range(N)]
    words = ["yes" if label else "no" for label in LABELS]
    reports = infer_fields({"row": ids, "answer": words, "one": ["x"] * N}, ["row", "answer", "one"], labels=LABELS)
    assert [report.field.kind for report in reports] == ["categorical"] * 3
    assert [report.warning for report in reports] == [
        "every row has its own value: it would only be memorised",
        "identical to the label",
        "constant: the same value in every row",
    ]
    assert infer(words).warning == ""


def test_what_is_not_read_as_a_person_would_is_warned_of() -> None:
    few, many = [f"{i % 40},{i % 40:02d}" for i in range(N)], [f"{i},50" for i in range(N)]
    with_commas = "numbers with commas are read as words; write them as 1234.5"
    assert infer(few).warning == with_commas
    assert infer(few).field.kind == "categorical"
    # No value in a reason: it is saved with the checkpoint, and stands in its card.
    assert ignored(many) == f"every row has its own value: it would only be memorised; {with_commas}"
    assert infer([text.replace(",", "/") for text in few]).warning == ""
    declared = infer(["3,50", "2.5", None, "4"] * (N // 4), kind="numeric", type="number")
    assert declared.warning == "33.3% of its values, such as '3,50', are not numbers and count as missing"
    assert infer(["2.5", None, "4"] * 100, kind="numeric", type="number", labels=None).warning == ""
    texts = [" ".join([f"n{i}", *(f"w{j}" for j in range(60 + (i % 4 == 0) * 8))]) for i in range(N)]
    assert infer(texts).field.kind == "text"
    assert infer(texts).warning == "25.0% of its texts are cut to their first 64 words (max_words)"
    assert infer([text.replace(" ", "\n") for text in texts]).warning == infer(texts).warning  # as they are cut
    lists = [[f"m{j}" for j in range(i % 4, 20 + i % 4 + (i % 2))] for i in range(N)]
    assert infer(lists).warning == "50.0% of its lists are cut to their first 20 members (max_items)"
    assert infer(lists, max_items=21).warning == ""


def test_decimals_without_fractions_are_integers() -> None:
    ids = [decimal.Decimal(100_000 + i % 40) for i in range(N)]
    for scale, expected in ((0, ("categorical", "integer")), (2, ("numeric", "number"))):
        field = infer_fields(pa.table({"user_id": pa.array(ids, pa.decimal128(20, scale))}))[0].field
        assert (field.kind, field.type) == expected


def test_declared_columns_come_in_their_order_and_others_are_left_out() -> None:
    rows = {"a": ["x"], "b": ["y"], "c": ["z"]}
    assert [report.field.name for report in infer_fields(rows, ["c", "a"])] == ["c", "a"]
    assert [report.field.name for report in infer_fields(rows)] == ["a", "b", "c"]


def test_excluded_columns_are_listed_with_their_reason() -> None:
    reports = infer_fields({"a": ["x", "y"], "click": [0, 1], "b": ["y", "x"]}, exclude={"click": "the label"})
    assert [(r.field.name, r.field.kind, r.field.reason) for r in reports[2:]] == [("click", "ignored", "the label")]
    assert [report.field.name for report in reports[:2]] == ["a", "b"]
    reports = infer_fields({"a": ["x"], "click": [0]}, ["a"], exclude={"click": "the label"})
    assert [report.field.name for report in reports] == ["a", "click"]
    reports = infer_fields({"click": [0]}, [{"name": "click", "kind": "ignored"}], exclude={"click": "the label"})
    assert [(r.field.name, r.field.reason) for r in reports] == [("click", "the label")]


@pytest.mark.parametrize(
    ("declared", "exclude", "message"),
    [
        (["gendre"], {}, r"column 'gendre' is missing; the columns are \['city', 'gender'\]; did you mean 'gender'\?"),
        (None, {"gendre": "no"}, r"column 'gendre' is missing; .* did you mean 'gender'\?"),
        (["city", "city"], {}, "field 'city' is declared twice; name each column once"),
        ([{"kind": "list"}], {}, "a field needs a name"),
        ([{"name": "city", "knd": "list"}], {}, r"field 'city' has no setting 'knd'; did you mean 'kind'\?"),
        ([{"name": "city", "kind": "numeric"}], {}, "field 'city' is numeric, but its type is string; set its type"),
        ([{"name": "city", "kind": "text", "min_count": 2}], {}, "field 'city' is text: min_count is not an option of that kind"),
        (["city"], {"city": "the label"}, r"column 'city' is declared as a field but also left out \(the label\): choose one"),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_declarations(declared: Any, exclude: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        infer_fields({"gender": ["f", "m"], "city": ["Rome", "Oslo"]}, declared, exclude=exclude)


@pytest.mark.parametrize(
    "rows", [pd.DataFrame([[1, 2]]), [{1: 2}], {("a", "b"): [1]}], ids=lambda rows: type(rows).__name__
)
def test_columns_that_are_not_named_by_text_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"the column names must be text; .* is of type (int|tuple): rename it"):
        infer_fields(rows)


@pytest.mark.parametrize("values", [[b"x"], [{"a": 1}], [["a", ["b"]]], [1j]], ids=str)
def test_columns_that_cannot_be_read_are_named(values: list[Any]) -> None:
    with pytest.raises(TypeError, match="field 'odd'"):
        infer_fields([{"odd": value} for value in values * 3])


@pytest.mark.parametrize(
    "rows", [[], {"a": []}, pd.DataFrame({"a": []}), pa.table({"a": pa.array([], pa.string())})], ids=str
)
def test_tables_without_rows(rows: Any) -> None:
    for report in infer_fields(rows):
        assert (report.field.name, report.field.reason) == ("a", "no row has a value")


# ---- the table that is printed


def test_the_printed_table() -> None:
    rows = {
        "user_id": [i % 99 for i in range(N)],
        "price (€)": [None if i % 4 == 0 else i / 4 for i in range(N)],
        "tags": ["|".join(t) for t in TAGS],
        "👍": ["yes" if label else "no" for label in LABELS],
        "review": SENTENCES,
        "session": [f"s{i}" for i in range(N)],
        "two\nlines": ["a", "b"] * (N // 2),
        "click": LABELS.astype(int).tolist(),
    }
    declared: list[str | dict[str, str]] = [name for name in rows if name != "click"]
    declared[5] = {"name": "session", "kind": "categorical"}
    table = field_table(infer_fields(rows, declared, labels=LABELS, exclude={"click": "the label"}))
    assert table == GOLDEN.strip("\n")


def test_a_warning_that_contradicts_the_reason_stands_alone() -> None:
    (report,) = infer_fields({"session": [f"s{i}" for i in range(N)]}, ["session"])
    assert field_table([report]).splitlines()[1].endswith("  every row has its own value: it would only be memorised")


GOLDEN = """
field      kind         type     side  distinct  missing  example                       why
user_id    categorical  integer  user        99        0  0                             named like an identifier
price (€)  numeric      number   item       300      100  0.25                          numbers with fractions
tags       list         string   –           28        0  red, t0                       several values to a row
👍          categorical  string   –            2        0  no                            values that repeat; but: identical to the label
review     text         string   –          400        0  brown far fox runs a jumps …  8 words on average, and hardly any text repeats
session    categorical  string   –          400        0  s0                            declared; but: every row has its own value: it would only be memorised
two lines  categorical  string   –            2        0  a                             values that repeat
click      ignored      –        –            –        –                                the label
"""  # noqa: E501


@pytest.mark.parametrize("values", [[{"a": 1}], [b"x"], pa.array([[[1]]])], ids=str)
def test_a_column_without_text_is_refused_unless_it_is_left_out(values: Any) -> None:
    rows = {"odd": values, "city": ["Rome"]}
    with pytest.raises(TypeError, match=r"^field 'odd' .*, or leave the column out \(exclude_fields\)$"):
        infer_fields(rows)
    assert {report.field.name for report in infer_fields(rows, exclude={"odd": "said so"})} == {"odd", "city"}


def test_lists_of_objects_that_are_written_as_text_are_text() -> None:
    genres = ["[{'id': 16, 'name': 'Animation'}]", "[{'id': 35, 'name': 'Comedy'}]"]
    (report,) = infer_fields({"genres": genres})
    assert (report.field.kind, report.field.type) == ("categorical", "string")
    assert read_column(genres, report.field).to_pylist() == genres


def test_settings_of_single_columns_leave_the_others_to_inference() -> None:
    rows = {"row": list(range(60)), "price": [1, 2, 3] * 20, "city": ["Rome", "Oslo", "Bern"] * 20, "same": ["x"] * 60}
    reports = infer_fields(
        rows, overrides={"price": {"kind": "numeric", "num_buckets": 2}, "same": {"kind": "categorical"}}
    )
    kinds = {report.field.name: report.field.kind for report in reports}
    assert kinds == {"row": "ignored", "price": "numeric", "city": "categorical", "same": "categorical"}
    assert reports[1].field.num_buckets == 2
    assert reports[3].warning.startswith("constant")
    with pytest.raises(ValueError, match=r"column 'prise' is missing.*did you mean 'price'"):
        infer_fields(rows, overrides={"prise": {"kind": "numeric"}})
    with pytest.raises(ValueError, match=r"field 'price' has no setting 'num_bucket'; did you mean 'num_buckets'"):
        infer_fields(rows, overrides={"price": {"num_bucket": 2}})
