"""A table that this project has never seen: from its file to a model that scores new rows, with nothing said but what must be."""

from __future__ import annotations

import csv
import datetime
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest
import transformers
import yaml

import modeling_flip  # noqa: F401  "ctr-prediction" is a pipeline from here on
import train
from modeling_flip import FlipProcessor
from modeling_flip.serving import score
from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.publishing import RECIPE_FILE, RESULTS_FILE
from modeling_flip.training.stages import run

ROOT = Path(__file__).resolve().parents[2]
N = 600
TAGS = np.array(["new", "sale", "eco", "gift 🎁", "kids"])
COLOURS = ['red, "deep"', "blue", "green\nwith a newline", "🍓 pink", "señor's; grey"]
SHOPS = ["Zürich; Haupt, str. 5", "Café 🍰", "O'Hara & Sons", "line\nbreak", '"quoted"']
KINDS = {
    "Price (€), net": "numeric",
    "number of views": "numeric",
    "tags": "list",
    "colour 🎨": "categorical",
    "Shop, name": "categorical",
    "zip": "categorical",
    "account": "categorical",
}
LEFT_OUT = {
    "Row ID": "every row has its own value: it would only be memorised",
    "notes": "no row has a value",
    "country": "constant: the same value in every row",
    "outcome": "identical to the label",
    "dwell time": "it has a value only in rows of one label: known only after the click",
}
CLICKS = ["--label_column", "Clicked?", "--positive_label", "yes"]


def make_rows() -> list[dict[str, str]]:
    """Cells as a CSV has them."""
    rng = np.random.default_rng(7)
    colour, shop, account = rng.integers(0, 5, N), rng.integers(0, 5, N), rng.integers(0, 40, N)
    price, views, zips = np.round(rng.gamma(3, 5, N), 2), rng.geometric(0.2, N) - 1, rng.integers(0, 9, N)
    has_tag = rng.random((N, len(TAGS))) < 0.4
    logit = 1.2 * (price < 12) - 1.2 * (price >= 20) + has_tag @ [1, -1, 0.5, 0, -0.5]
    clicked = rng.random(N) < 1 / (1 + np.exp(-logit - np.array([1, 0.5, 0, -0.5, -1])[colour]))
    begin = datetime.datetime(2024, 1, 1)
    return [
        {
            "Row ID": str(uuid.UUID(bytes=rng.bytes(16))),
            "Price (€), net": "" if i % 11 == 3 else str(price[i]),
            "number of views": str(views[i]),
            "tags": "|".join(TAGS[has_tag[i]]),
            "seen at": (begin + datetime.timedelta(minutes=37 * i)).isoformat(),
            "Clicked?": "yes" if clicked[i] else "no",
            "colour 🎨": COLOURS[colour[i]],
            "Shop, name": SHOPS[shop[i]],
            "zip": f"{2000 + zips[i]:05d}",
            "account": "" if i == 5 else str(1234567890123456000 + 17 * account[i]),
            "notes": "",
            "country": "CH",
            "outcome": "converted" if clicked[i] else "left",
            "dwell time": str(round(rng.exponential(10), 1)) if clicked[i] else "",
        }
        for i in range(N)
    ]


ROWS = make_rows()


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def in_shell(*command: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], subprocess.CompletedProcess[str]]:
    """The output folder of the one command, its arguments, and what it printed."""
    folder = tmp_path_factory.mktemp("any_table")
    data, out = write_csv(folder / "clicks.csv", ROWS), folder / "out"
    arguments = [str(ROOT / "configuration" / "quickstart.yaml"), "--dataset_name", str(data), *CLICKS]
    arguments += ["--time_column", "seen at", "--output_dir", str(out)]
    return out, arguments, in_shell(sys.executable, "-m", "accelerate.commands.launch", "train.py", *arguments)


def new_rows() -> list[dict[str, str]]:
    """Rows to score, four of them with a value that training had not."""
    rows = [dict(row) for row in ROWS[-20:]]
    rows[0]["colour 🎨"], rows[1]["tags"] = 'neu 🦄, "x"\ny', "new|unheard of"
    rows[2]["Price (€), net"], rows[3]["account"] = "1000000.5", "9223372036854775000"
    return [{name: cell for name, cell in row.items() if name not in ("Clicked?", "outcome")} for row in rows]


@pytest.mark.slow
def test_the_table_says_what_each_column_is_and_why_it_is_left_out(trained: Any) -> None:
    out, _, printed = trained
    lines = {line.split("  ")[0]: line for line in printed.stdout.splitlines()}
    for name, kind in KINDS.items():
        assert lines[name].removeprefix(name).split()[0] == kind, lines[name]
    for name, reason in LEFT_OUT.items():
        assert lines[name].removeprefix(name).split()[0] == "ignored"
        assert lines[name].endswith(reason)
        assert f"{name!r} ({reason})" in printed.stderr
    assert lines["seen at"].endswith("the time column")
    assert (
        "Its weights are random; for real use, choose a pretrained one with --text_model_name_or_path" in printed.stderr
    )
    assert "clicks.csv' is split by seen at: train until 2024-01-13T11:05:00" in printed.stderr
    processor = FlipProcessor.from_pretrained(out)
    assert {field.name: field.kind for field in processor.schema if field.kind != "ignored"} == KINDS
    card = (out / "README.md").read_text()
    for name, kind in KINDS.items():
        assert f"| `{name}` | {kind} |" in card
    assert all(f"`{name}` ({reason}" in card for name, reason in LEFT_OUT.items())


@pytest.mark.slow
def test_a_run_has_results_and_is_not_run_again(trained: Any, caplog: pytest.LogCaptureFixture) -> None:
    out, arguments, _ = trained
    results = json.loads((out / RESULTS_FILE).read_text())
    assert results["rows"] == {"train": 486, "validation": 54, "test": 60}
    assert results["test_auc"] > 0.6
    assert yaml.safe_load((out / RECIPE_FILE).read_text())["text_model_name_or_path"] == f"{out}-text-model"
    before = (out / "model.safetensors").stat().st_mtime_ns
    train.main(arguments)
    assert "is finished; delete it to run again" in caplog.text
    assert (out / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_new_rows_are_scored_to_the_same_bits_from_anything(trained: Any, tmp_path: Path) -> None:
    score, rows = transformers.pipeline("ctr-prediction", model=str(trained[0])), new_rows()

    def scores(of: Any) -> list[float]:
        return [scored["probability"] for scored in score(of)]

    expected = scores(rows)
    assert len(set(expected)) == len(rows)
    file = write_csv(tmp_path / "new.csv", rows)
    frame = pd.read_csv(file, dtype={"zip": str})  # pandas takes the zeros of zip codes away unless it is told not to
    assert frame["Price (€), net"].dtype == float
    for same in (pd.DataFrame(rows), frame, frame.convert_dtypes(), pa.Table.from_pandas(frame)):
        assert scores(same) == expected
    typed = frame.assign(tags=[cell.split("|") if isinstance(cell, str) else [] for cell in frame["tags"]])
    assert scores(typed) == scores(typed.to_dict("records")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_command_scores_as_python_does(suffix: str, trained: Any, tmp_path: Path) -> None:
    rows = new_rows()
    file, scored = write_csv(tmp_path / "new.csv", rows), tmp_path / f"scored.{suffix}"
    if suffix == "parquet":
        file = tmp_path / "new.parquet"
        pd.read_csv(tmp_path / "new.csv", dtype={"zip": str}).to_parquet(file)
    command = ["--model", trained[0], "--input", file, "--output", scored, "--device", "cpu"]
    assert score.main(list(map(str, command))) == 0
    options = arrow_csv.ParseOptions(newlines_in_values=True)
    table = pq.read_table(scored) if suffix == "parquet" else arrow_csv.read_csv(scored, parse_options=options)
    of_python = transformers.pipeline("ctr-prediction", model=str(trained[0]))(rows)
    assert table["probability"].to_pylist() == [one["probability"] for one in of_python]


# ---- other shapes of the same table, in this process


@pytest.fixture
def fit(tmp_path: Path, text_model: Path) -> Callable[..., dict[str, Any]]:
    """`fit(file, "--key", value, …, recipe={…})` → results, with kinds and reasons of the printed fields in "kinds"."""
    stage = {"num_train_epochs": 1, "per_device_train_batch_size": 64, "learning_rate": 5e-3, "disable_tqdm": True}
    model = {"embedding_size": 4, "hidden_sizes": [8], "projection_size": 8}
    small = {"use_cpu": True, "text_model_name_or_path": str(text_model), "model": model}

    def make(file: Path, *arguments: Any, recipe: dict[str, Any] | None = None) -> dict[str, Any]:
        stages = {"pretraining": stage | {"num_noise_features": 4}, "finetuning": stage}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small | stages | (recipe or {})))
        given = [str(tmp_path / "recipe.yaml"), "--dataset_name", str(file), "--output_dir", str(tmp_path / "out")]
        parsed = parse_recipe([*given, *map(str, arguments)])
        data = train.load_data(parsed)
        results = run(train.name_text_model(parsed, data), data)
        schema = FlipProcessor.from_pretrained(tmp_path / "out").schema
        return results | {"kinds": {f.name: f.kind for f in schema if f.kind != "ignored"}, "schema": schema}

    return make


ALONE = ["--towers", "tabular", "--pretraining", "null"]


def latin(text: str) -> str:
    return text.encode("cp1252", errors="ignore").decode("cp1252").strip()


def test_semicolons_and_windows_characters_are_detected(fit: Any, tmp_path: Path) -> None:
    rows = [{latin(name): latin(cell) for name, cell in row.items()} for row in ROWS]
    file = write_csv(tmp_path / "clicks.csv", rows, ";", "cp1252")
    results = fit(file, *CLICKS, "--time_column", "seen at", *ALONE)
    assert results["kinds"] == {latin(name): kind for name, kind in KINDS.items()}


def test_tsv(fit: Any, tmp_path: Path) -> None:
    assert fit(write_csv(tmp_path / "clicks.tsv", ROWS, "\t"), *CLICKS, *ALONE)["kinds"] == KINDS


def test_another_delimiter_in_a_tsv_can_be_said(fit: Any, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "clicks.tsv", ROWS, ";")
    assert fit(file, *CLICKS, "--delimiter", ";", *ALONE)["kinds"] == KINDS


def test_json_lines_with_numbers_and_lists(fit: Any, tmp_path: Path) -> None:
    price, file = "Price (€), net", tmp_path / "clicks.jsonl"
    with open(file, "w", encoding="utf-8") as lines:
        for row in ROWS:
            typed = {price: float(row[price]) if row[price] else None, "tags": row["tags"].split("|")}
            lines.write(json.dumps(row | typed | {"Clicked?": row["Clicked?"] == "yes"}, ensure_ascii=False) + "\n")
    assert fit(file, "--label_column", "Clicked?", *ALONE)["kinds"] == KINDS  # booleans need no positive_label


def test_a_folder_of_parquet_keeps_its_splits(fit: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, rows in (("train", ROWS[:400]), ("test", ROWS[400:])):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"{split}.parquet")
    results = fit(tmp_path / "data", *CLICKS, "--time_column", "seen at", *ALONE)
    assert results["rows"] == {"train": 360, "validation": 40, "test": 200}


def test_ratings_above_a_number_are_clicks(fit: Any, tmp_path: Path) -> None:
    stars = [str(1 + i * 7 % 5) for i in range(N)]
    rows = [{"stars": s, "colour": row["colour 🎨"], "zip": row["zip"]} for s, row in zip(stars, ROWS, strict=True)]
    file = write_csv(tmp_path / "ratings.csv", rows)
    with pytest.raises(ValueError, match=r"labels are 0 or 1, .* such as --positive_above 3"):
        fit(file, "--label_column", "stars", *ALONE)
    results = fit(file, "--label_column", "stars", "--positive_above", 3, *ALONE)
    assert set(results["kinds"]) == {"colour", "zip"}


def test_gauc_within_the_rows_of_a_user(fit: Any, tmp_path: Path) -> None:
    fit(write_csv(tmp_path / "clicks.csv", ROWS), *CLICKS, "--group_column", "account", *ALONE)
    results = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())
    assert 0 < results["test_gauc"] < 1
    assert results["test_gauc"] != results["test_auc"]


def test_columns_can_be_left_out(fit: Any, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "clicks.csv", ROWS)
    with pytest.raises(ValueError, match=r"'acount' is missing .*exclude_fields.* did you mean 'account'"):
        fit(file, *CLICKS, "--exclude_fields", "[acount]", *ALONE)
    results = fit(file, *CLICKS, "--exclude_fields", "[account, 'Shop, name']", *ALONE)
    assert results["kinds"] == {name: kind for name, kind in KINDS.items() if name not in ("account", "Shop, name")}
    assert {f.name: f.reason for f in results["schema"]}["account"] == "excluded by the recipe"


def test_fields_can_be_declared(fit: Any, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "clicks.csv", ROWS)
    declared = ["zip", {"name": "number of views", "num_buckets": 5}, {"name": "Price (€), net", "kind": "categorical"}]
    results = fit(file, *CLICKS, *ALONE, recipe={"fields": [*declared, "outcome"]})
    assert list(results["kinds"].items()) == [
        ("zip", "categorical"),
        ("number of views", "numeric"),
        ("Price (€), net", "categorical"),
        ("outcome", "categorical"),  # named, so it is used; it is warned of
    ]
    assert results["schema"][1].num_buckets == 5
    assert results["test_auc"] == 1.0


@pytest.mark.parametrize("arguments", [[], ["--pretraining", "null"], ALONE])
def test_with_alignment_without_it_and_without_text(fit: Any, arguments: list[str], tmp_path: Path) -> None:
    file = write_csv(tmp_path / "clicks.csv", ROWS)
    results = fit(file, *CLICKS, *arguments, recipe={"text_model_name_or_path": None})
    out = tmp_path / "out"
    assert ("pretraining_losses" in results) == (out / "pretraining").exists() == (not arguments)
    assert Path(f"{out}-text-model").exists() == ("text_model" in results) == (arguments != ALONE)


def test_a_text_model_that_is_named_is_used(fit: Any, tmp_path: Path) -> None:
    fit(write_csv(tmp_path / "clicks.csv", ROWS[:200]), *CLICKS, "--pretraining", "null")
    assert not (tmp_path / "out-text-model").exists()


def test_a_new_run_makes_its_text_model_anew_and_a_begun_one_goes_on_with_it(fit: Any, tmp_path: Path) -> None:
    named = {"text_model_name_or_path": None, "pretraining": None}
    file = write_csv(tmp_path / "clicks.csv", ROWS)
    results = fit(file, *CLICKS, recipe=named)
    tokenizer = tmp_path / "out-text-model" / "tokenizer.json"
    written, words = tokenizer.stat().st_mtime_ns, tokenizer.read_text()
    assert fit(file, *CLICKS, recipe=named)["test_auc"] == results["test_auc"]
    assert tokenizer.stat().st_mtime_ns == written
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    write_csv(file, [row | {"country": f"Land{i % 3}"} for i, row in enumerate(ROWS)])
    fit(file, *CLICKS, recipe=named)
    assert "land2" in tokenizer.read_text() and "land2" not in words


def test_a_word_of_yaml_that_is_not_quoted_is_one_error(fit: Any, tmp_path: Path, capsys: Any) -> None:
    file = write_csv(tmp_path / "clicks.csv", ROWS)
    given = {"label_column": "Clicked?", "positive_label": "yes"}
    assert fit(file, *ALONE, recipe=given)["kinds"] == KINDS
    with pytest.raises(SystemExit):
        fit(file, recipe=given | {"positive_label": True})
    assert "positive_label is True, and must be text" in capsys.readouterr().err
