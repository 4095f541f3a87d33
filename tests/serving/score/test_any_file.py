"""The same rows in any kind of file, and from Python, get the same bits."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from modeling_flip import CtrPredictionPipeline, FlipForCTR, FlipProcessor
from modeling_flip.pipeline_flip import BATCHES_PER_CHUNK
from modeling_flip.serving import score
from modeling_flip.table_files import open_table
from tests.serving.score.tiny import NUM_ROWS, Run, error_of, save_model

TYPES = {
    "age": "integer",
    "visits": "integer",
    "price": "number",
    "member": "boolean",
    "zipcode": "string",
    "country": "string",
    "born": "date",
    "seen": "timestamp",
    "genre": "string",
    "title": "string",
}
DECLARED: list[str | dict[str, Any]] = [
    *("age", "visits", "price", "member", "zipcode"),
    {"name": "country", "missing_words": False},  # where NA is Namibia
    *("born", {"name": "seen", "kind": "numeric"}, "genre", {"name": "title", "kind": "text"}),
]
NUM_FIT = 80
Row = dict[str, Any]


def typed_rows() -> list[Row]:
    """Python values of every type, with gaps; behind the rows to fit on, values that those do not have."""
    rng = np.random.default_rng(0)
    genres = np.array(["Action", "Drama", "Toy", "Story", "Life"])
    titles = ["Toy, Story", 'the "Usual"\nSuspects', "千と千尋 is it", "it's   a wonderful life", None]

    def row(i: int) -> Row:
        new = 100 * (i >= NUM_FIT)
        moment = datetime.datetime(2024, 1, 1 + i % 9, 12, 30, i % 3, 250_000 * (i % 2))
        return {
            "age": 18 + i % 30 + new,
            "visits": None if i % 4 == 0 else int(rng.integers(25)) + new,
            "price": None if i % 5 == 0 else (0.1, 19.9, 25.0, 1234.56)[i % 4] + new,
            "member": (True, False, None)[i % 3],
            "zipcode": "NA" if i % 7 == 0 else f"{i % 11 + new:05d}",
            "country": ("NA", "DE", "US")[i % 3] if not new else "FR",
            "born": datetime.date(1990 + new, 1 + i % 12, 5) if i % 6 else None,
            "seen": moment + datetime.timedelta(days=new),
            "genre": sorted(genres[rng.random(5) < 0.5].tolist() + ["college"] * bool(new)) or None,
            "title": titles[i % 5],
        }

    return [row(i) for i in range(NUM_ROWS)]


def spelled(value: Any) -> Any:
    return "|".join(value) if isinstance(value, list) else value


def write_text(rows: list[Row], path: Path, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """As CSV or TSV: 25.0, True, 1990-01-05, 2024-01-01 12:30:00.250000, Drama|Toy, and nothing for None."""
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(rows[0])
        writer.writerows([spelled(value) for value in row.values()] for row in rows)
    return path


def write_json(rows: list[Row], path: Path) -> Path:
    """With JSON's own numbers, booleans and lists, and moments with a T."""
    lines = [json.dumps(row, default=lambda moment: moment.isoformat()) + "\n" for row in rows]
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.writelines(lines)
    return path


def write_parquet(rows: list[Row], path: Path) -> Path:
    """With types of its own, some of them narrow."""
    types = {
        "age": pa.uint8(),
        "visits": pa.int16(),
        "price": pa.float32(),
        "zipcode": pa.large_string(),
        "country": pa.dictionary(pa.int8(), pa.string()),
        "seen": pa.timestamp("ms", "UTC"),
    }
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    pq.write_table(pa.table(columns), path, row_group_size=30)
    return path


@pytest.fixture(scope="module")
def typed_checkpoint(tiny_text_model: Path, wordpiece: PreTrainedTokenizerFast, tmp_path_factory: Any) -> Path:
    """Fitted on a CSV, where everything is text."""
    path = write_text(typed_rows()[:NUM_FIT], tmp_path_factory.mktemp("typed") / "train.csv")
    processor = FlipProcessor.fit(open_table(path).to_table(), DECLARED, wordpiece)
    assert {field.name: field.type for field in processor.schema} == TYPES
    kinds = {field.name: field.kind for field in processor.schema}
    assert (kinds["price"], kinds["genre"], kinds["title"]) == ("numeric", "list", "text")
    assert not processor.cut_fields(processor.encode(typed_rows()))  # the text tower reads all of them
    return save_model(processor, tiny_text_model, tmp_path_factory.mktemp("typed_checkpoint"))


@pytest.fixture(scope="module")
def typed_pipe(typed_checkpoint: Path) -> CtrPredictionPipeline:
    model, processor = FlipForCTR.from_pretrained(typed_checkpoint), FlipProcessor.from_pretrained(typed_checkpoint)
    return CtrPredictionPipeline(model, processor, device="cpu", batch_size=4)


@pytest.fixture
def scores_of(
    run: Run, typed_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., np.ndarray]:
    """`scores_of(file, "--encoding", "cp1252")` → (N,) what the command writes, with the batches that the pipeline makes."""
    monkeypatch.setattr(score, "ROWS_PER_PART", BATCHES_PER_CHUNK * 4)

    def scored(source: Path, *more: str) -> np.ndarray:
        output = f"{source.name}.scores.parquet"
        assert run(*more, source=source, output=output, model=typed_checkpoint) == 0
        return pq.read_table(tmp_path / output)["probability"].to_numpy()

    return scored


def from_python(pipe: CtrPredictionPipeline, rows: Any) -> np.ndarray:
    return np.array([row["probability"] for row in pipe(rows)])


@pytest.mark.parametrize("columns", ["those of training", "one absent", "others beside them, in another order"])
def test_rows_get_the_same_bits_from_any_file_and_from_python(
    columns: str, scores_of: Callable[..., np.ndarray], typed_pipe: CtrPredictionPipeline, tmp_path: Path
) -> None:
    rows = typed_rows()
    if columns == "one absent":
        rows = [{name: row[name] for name in TYPES if name != "zipcode"} for row in rows]
    elif columns.startswith("others"):
        rows = [{"clicks": i, **{n: row[n] for n in reversed(TYPES)}, "words": "a, b"} for i, row in enumerate(rows)]
    expected = scores_of(write_text(rows, tmp_path / "rows.csv"))
    assert expected.dtype == np.float64 and len(expected) == NUM_ROWS and np.ptp(expected) > 0.1

    for path in (
        write_text(rows, tmp_path / "rows.tsv", "\t"),
        write_json(rows, tmp_path / "rows.jsonl"),
        write_json(rows, tmp_path / "rows.ndjson.gz"),
        write_parquet(rows, tmp_path / "types.parquet"),
    ):
        assert np.array_equal(scores_of(path), expected), path.name
    with open(tmp_path / "rows.csv", newline="") as file:
        of_text = list(csv.DictReader(file))
    frame = pd.DataFrame(rows)
    assert frame["visits"].dtype == np.float64  # made so by the gaps
    for name, given in {
        "csv.DictReader": of_text,
        "Python values": rows,
        "what Arrow makes of its own": pq.read_table(tmp_path / "types.parquet").to_pylist(),  # 0.10000000149, in UTC
        "a stream": iter(rows),
        "DataFrame": frame,
        "convert_dtypes": frame.convert_dtypes(),
    }.items():
        assert np.array_equal(from_python(typed_pipe, given), expected), name


@pytest.mark.parametrize("name", TYPES)
def test_each_of_these_fields_has_a_part_in_the_score(name: str, typed_pipe: CtrPredictionPipeline) -> None:
    """Else the same bits would show nothing."""
    known, new = typed_rows()[: 16 * 4], typed_rows()[NUM_FIT:]
    for rows in (known, new):
        without = [{**row, name: None} for row in rows]
        is_there = np.array([row[name] not in (None, "NA") for row in rows])
        differs = from_python(typed_pipe, rows) != from_python(typed_pipe, without)
        assert differs[is_there].mean() > 0.9


def test_separators_and_encodings_are_found_or_said(
    scores_of: Callable[..., np.ndarray],
    run: Run,
    typed_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{**row, "title": "Léon; Señorita", "genre": None} for row in typed_rows()[:20]]
    expected = scores_of(write_text(rows, tmp_path / "rows.csv"))
    found = write_text(rows, tmp_path / "found.csv", ";", "cp1252")
    assert np.array_equal(scores_of(found), expected)
    said = write_text(rows, tmp_path / "said.csv", "^", "utf-16-le")
    assert run(source=said, model=typed_checkpoint) == 2
    assert "said.csv is not UTF-8: set its encoding" in error_of(capsys)
    assert np.array_equal(scores_of(said, "--delimiter", "^", "--encoding", "utf-16-le"), expected)
    assert run("--delimiter", "ab", source=found, model=typed_checkpoint) == 2
    assert "delimiter is 'ab'; it must be one ASCII character" in error_of(capsys)


def test_json_lines_keep_their_types(run: Run, typed_checkpoint: Path, tmp_path: Path) -> None:
    source = write_json(typed_rows(), tmp_path / "rows.jsonl")
    assert run(source=source, model=typed_checkpoint) == 0
    scored = pq.read_table(tmp_path / "scores.parquet").drop_columns("probability")
    assert scored.to_pylist() == [json.loads(line) for line in source.read_text().splitlines()]
    assert scored.schema.field("visits").type == pa.int64()
