"""The score command: the pipeline's probabilities beside the rows as they were, resumed when interrupted; and its refusals."""

from __future__ import annotations

import csv
import datetime
import gzip
import hashlib
import itertools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast, set_seed

from modeling_flip import CtrPredictionPipeline, FlipForCTR, FlipForPreTraining, FlipProcessor, processing_flip
from modeling_flip.pipeline_flip import BATCHES_PER_CHUNK
from modeling_flip.serving import score
from modeling_flip.table_files import in_parts, open_table
from tests.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]
FIELDS = ["user_id", "title", "zipcode"]
NUM_ROWS, PART = 100, 16
NUM_PARTS = 7


def make_table() -> pa.Table:
    """Fields and other columns, of many types; titles of differing lengths; a time that no CSV types can hold exactly."""
    rng = np.random.default_rng(0)
    genders = pa.array(rng.choice(["female", "male"], NUM_ROWS).tolist()).dictionary_encode()
    columns = {
        "row": pa.array(np.arange(NUM_ROWS), pa.int16()),
        "user_id": pa.array(rng.integers(1, 9, NUM_ROWS), pa.uint8()),
        "title": pa.array([" ".join(["toy story"] * n) if n else None for n in rng.integers(0, 8, NUM_ROWS)]),
        "zipcode": pa.array([f"{z:05d}" for z in rng.integers(0, 999, NUM_ROWS)], pa.large_string()),
        "gender": genders,
        "price": pa.array(rng.random(NUM_ROWS), pa.float32()),
        "seen": pa.array(rng.integers(0, 10**15, NUM_ROWS), pa.timestamp("us", "UTC")),
        "tags": pa.array([["a", "b"][: i % 3] for i in range(NUM_ROWS)]),
    }
    table = pa.table(columns)
    required = [field.with_nullable(field.name != "row") for field in table.schema]
    return table.cast(pa.schema(required, metadata={"origin": "a test"}))


TABLE = make_table()


def save_model(processor: FlipProcessor, text_model: Path, folder: Path) -> Path:
    """A checkpoint of a random model that tells rows apart."""
    set_seed(0)
    model = FlipForCTR.from_text_pretrained(text_model, processor, embedding_size=4, hidden_sizes=[8])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tiny_text_model: Path, wordpiece: PreTrainedTokenizerFast, tmp_path_factory: Any) -> Path:
    processor = FlipProcessor.fit(TABLE.slice(0, 80), FIELDS, wordpiece)
    return save_model(processor, tiny_text_model, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> CtrPredictionPipeline:
    return CtrPredictionPipeline(
        FlipForCTR.from_pretrained(checkpoint), FlipProcessor.from_pretrained(checkpoint), device="cpu"
    )


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "ROWS_PER_PART", PART)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Parquet, in row groups that are no parts."""
    pq.write_table(TABLE, tmp_path / "rows.parquet", row_group_size=10)
    return tmp_path / "rows.parquet"


@pytest.fixture
def run(checkpoint: Path, rows: Path, tmp_path: Path) -> Callable[..., int]:
    """`run("--towers", "text", output="x.csv")` → the exit code."""

    def command(*more: str, output: str = "scores.parquet", source: Path = rows, model: Path = checkpoint) -> int:
        arguments = ["--model", str(model), "--input", str(source), "--output", str(tmp_path / output)]
        return score.main([*arguments, "--batch_size", "4", "--device", "cpu", *more])

    return command


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("score: ")]
    assert len(lines) == 1
    return lines[0]


# ---- what is written


def test_the_output_is_the_input_with_probabilities(
    run: Callable[..., int], pipe: CtrPredictionPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert "100 rows scored" in capsys.readouterr().out
    scored = pq.read_table(tmp_path / "scores.parquet")
    assert scored.schema == TABLE.schema.append(pa.field("probability", pa.float64()))
    assert scored.schema.metadata == TABLE.schema.metadata
    assert scored.drop_columns("probability").equals(TABLE)
    expected = [row["probability"] for row in pipe(TABLE)]
    assert max(expected) - min(expected) > 0.1
    assert scored["probability"].to_pylist() == pytest.approx(expected, rel=0, abs=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.parquet", "scores.parquet"]


def test_towers(run: Callable[..., int], pipe: CtrPredictionPipeline, tmp_path: Path) -> None:
    assert run("--return_towers") == 0
    scored = pq.read_table(tmp_path / "scores.parquet")
    assert scored.column_names[-3:] == ["probability", "tabular_probability", "text_probability"]
    for i, row in enumerate(pipe(TABLE, return_towers=True)):
        assert {name: scored[name][i].as_py() for name in row} == pytest.approx(row, rel=0, abs=1e-6)
    assert run("--towers", "text", output="text.parquet") == 0
    alone = pq.read_table(tmp_path / "text.parquet")["probability"].to_pylist()
    assert alone == pytest.approx(scored["text_probability"].to_pylist(), rel=0, abs=1e-6)


def test_cold_start_is_that_of_the_pipeline(run: Callable[..., int], checkpoint: Path, tmp_path: Path) -> None:
    assert run("--cold_start", "text") == 0
    pipe = CtrPredictionPipeline(FlipForCTR.from_pretrained(checkpoint), cold_start="text", device="cpu")
    expected = [row["probability"] for row in pipe(TABLE)]
    found = pq.read_table(tmp_path / "scores.parquet")["probability"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert run(output="plain.parquet") == 0
    assert np.abs(pq.read_table(tmp_path / "plain.parquet")["probability"].to_numpy() - expected).max() > 1e-4


def test_half_precision(run: Callable[..., int], tmp_path: Path) -> None:
    assert run() == 0
    assert run("--dtype", "bfloat16", output="bf16.parquet") == 0
    exact, rounded = (
        pq.read_table(tmp_path / name)["probability"].to_numpy() for name in ("scores.parquet", "bf16.parquet")
    )
    assert 0 < np.abs(exact - rounded).max() < 0.1


def test_csv_is_read_and_written(run: Callable[..., int], pipe: CtrPredictionPipeline, tmp_path: Path) -> None:
    """Everything stays as it is written: leading zeros, dates, commas, line breaks, words for nothing."""
    frame = pd.DataFrame(
        {
            "code": [f"{i:04d}" for i in range(40)],
            "when": "2024-01-02T03:04:05Z",
            "user_id": [i % 9 for i in range(40)],
            "title": ["Toy, Story", "", 'The "Usual" Suspects', "東京"] * 10,
            "half": [1.5, 2.25] * 20,
            "note": ["NA", "None", "two\nlines", "12345678901234567891"] * 10,
        }
    )
    frame.to_csv(tmp_path / "rows.csv", index=False)
    assert run(source=tmp_path / "rows.csv", output="scores.csv") == 0
    as_text = {"dtype": str, "keep_default_na": False}
    scored = pd.read_csv(tmp_path / "scores.csv", **as_text)
    pd.testing.assert_frame_equal(scored.drop(columns="probability"), pd.read_csv(tmp_path / "rows.csv", **as_text))
    expected = [row["probability"] for row in pipe(frame.replace({"title": {"": None}}))]
    assert scored["probability"].astype(float).tolist() == pytest.approx(expected, rel=0, abs=1e-6)

    assert run(source=tmp_path / "rows.csv", output="scores.parquet") == 0
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table["code"].to_pylist() == frame["code"].to_list()
    assert table["user_id"].to_pylist() == frame["user_id"].astype(str).to_list()
    assert table["probability"].to_pylist() == scored["probability"].astype(float).tolist()


def test_line_breaks_inside_quotes_may_stand_anywhere(tmp_path: Path) -> None:
    cell = "one\ntwo, with a comma\nthree"
    (tmp_path / "rows.csv").write_text("user_id,title\n" + f'7,"{cell}"\n' * 60_000)  # more than one block
    batches = list(score.open_input(tmp_path / "rows.csv").batches())
    assert len(batches) > 1 and sum(map(len, batches)) == 60_000
    assert all(set(batch["title"].to_pylist()) == {cell} for batch in batches)


def test_an_absent_field_is_scored_as_missing(
    run: Callable[..., int], pipe: CtrPredictionPipeline, tmp_path: Path
) -> None:
    pq.write_table(TABLE.select(["title"]), tmp_path / "titles.parquet")
    assert run(source=tmp_path / "titles.parquet") == 0
    expected = [row["probability"] for row in pipe([{"title": t} for t in TABLE["title"].to_pylist()])]
    assert pq.read_table(tmp_path / "scores.parquet")["probability"].to_pylist() == pytest.approx(expected, abs=1e-6)


def test_parts_are_of_one_size_whatever_is_read() -> None:
    def batches(sizes: list[int]) -> Iterator[pa.RecordBatch]:
        first = 0
        for size in sizes:
            yield from TABLE.slice(first, size).to_batches() or [TABLE.to_batches()[0].slice(0, 0)]
            first += size

    for sizes in ([100], [1] * 100, [0, 33, 0, 67], [16, 16, 68]):
        parts = list(in_parts(batches(sizes), PART))
        assert [len(part) for part in parts] == [16] * 6 + [4]
        assert pa.concat_tables(parts).equals(TABLE)
    assert list(in_parts(batches([0]), PART)) == []


# ---- the same rows in any kind of file, and from Python: the same bits

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
    run: Callable[..., int], typed_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    run: Callable[..., int],
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


def test_json_lines_keep_their_types(run: Callable[..., int], typed_checkpoint: Path, tmp_path: Path) -> None:
    source = write_json(typed_rows(), tmp_path / "rows.jsonl")
    assert run(source=source, model=typed_checkpoint) == 0
    scored = pq.read_table(tmp_path / "scores.parquet").drop_columns("probability")
    assert scored.to_pylist() == [json.loads(line) for line in source.read_text().splitlines()]
    assert scored.schema.field("visits").type == pa.int64()


# ---- interrupted and resumed


@pytest.fixture
def straight(run: Callable[..., int], tmp_path: Path) -> bytes:
    """What an uninterrupted run writes."""
    assert run() == 0
    return (tmp_path / "scores.parquet").rename(tmp_path / "straight.parquet").read_bytes()


@pytest.fixture
def scored_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each part held that was scored."""
    counts: list[int] = []
    probabilities = CtrPredictionPipeline.probabilities

    def counting(self: CtrPredictionPipeline, rows: Any, *args: Any) -> dict[str, np.ndarray]:
        result = probabilities(self, rows, *args)
        counts.append(len(rows))
        return result

    monkeypatch.setattr(CtrPredictionPipeline, "probabilities", counting)
    return counts


def interrupt_at(monkeypatch: pytest.MonkeyPatch, part: int) -> pytest.MonkeyPatch:
    """Ctrl-C while this part is scored."""
    preprocess, calls = CtrPredictionPipeline.preprocess, 0

    def interrupted(self: CtrPredictionPipeline, *args: Any, **kwargs: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls > part:
            raise KeyboardInterrupt
        return preprocess(self, *args, **kwargs)

    monkeypatch.setattr(CtrPredictionPipeline, "preprocess", interrupted)
    return monkeypatch


def test_the_same_command_continues(
    run: Callable[..., int],
    straight: bytes,
    scored_rows: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        assert run() == 130
    assert "the same command continues" in error_of(capsys)
    assert not (tmp_path / "scores.parquet").exists()
    folder = tmp_path / "scores.parquet.parts"
    assert sorted(p.name for p in folder.iterdir()) == [*(f"part-{i:05d}.parquet" for i in range(3)), "run.json"]
    # Stopped while it wrote: what is half-written is no part.
    (folder / "part-00003.tmp").write_bytes(b"PAR1 and no more")
    assert scored_rows == [16] * 3
    assert run() == 0
    assert scored_rows == [16] * 6 + [4]
    assert (tmp_path / "scores.parquet").read_bytes() == straight
    assert not folder.exists()


@pytest.mark.parametrize("stage", ["ParquetWriter", "replace"])
def test_interrupted_at_the_end_the_output_is_never_half_written(
    run: Callable[..., int], straight: bytes, scored_rows: list[int], tmp_path: Path, stage: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if stage == "ParquetWriter":
            write, calls = pq.ParquetWriter.write_table, 0

            def write_interrupted(self: Any, *args: Any, **kwargs: Any) -> None:
                nonlocal calls
                calls += 1
                if calls > NUM_PARTS + 3:  # each part is written by a writer of its own
                    raise KeyboardInterrupt
                write(self, *args, **kwargs)

            patch.setattr(pq.ParquetWriter, "write_table", write_interrupted)
        else:
            replace = Path.replace

            def replace_interrupted(self: Path, target: Path) -> Path:
                if Path(target).name == "scores.parquet":
                    raise KeyboardInterrupt
                return replace(self, target)

            patch.setattr(Path, "replace", replace_interrupted)
        assert run() == 130
    assert not (tmp_path / "scores.parquet").exists()
    assert len(scored_rows) == NUM_PARTS
    assert run() == 0
    assert len(scored_rows) == NUM_PARTS
    assert (tmp_path / "scores.parquet").read_bytes() == straight


@pytest.mark.slow
def test_a_killed_command_continues(
    run: Callable[..., int], straight: bytes, checkpoint: Path, rows: Path, scored_rows: list[int], tmp_path: Path
) -> None:
    """In a process of its own, each part takes half a second."""
    slow = f"""
import sys, time
from modeling_flip import CtrPredictionPipeline
from modeling_flip.serving import score
score.ROWS_PER_PART = {PART}
forward = CtrPredictionPipeline._forward
CtrPredictionPipeline._forward = lambda self, inputs: time.sleep(0.5) or forward(self, inputs)
sys.exit(score.main(sys.argv[1:]))
"""
    arguments = ["--model", str(checkpoint), "--input", str(rows), "--output", str(tmp_path / "scores.parquet")]
    command = [sys.executable, "-c", slow, *arguments, "--batch_size", "4", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "scores.parquet.parts"
    wait_until((folder / "part-00001.parquet").exists)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(folder.glob("part-*.parquet")))
    assert 2 <= finished < NUM_PARTS
    assert not (tmp_path / "scores.parquet").exists()
    assert run() == 0
    assert len(scored_rows) == NUM_PARTS - finished
    assert (tmp_path / "scores.parquet").read_bytes() == straight


def test_another_command_does_not_continue(
    run: Callable[..., int], checkpoint: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2)
        run()
    capsys.readouterr()
    before = {p.name: p.read_bytes() for p in (tmp_path / "scores.parquet.parts").iterdir()}
    retrained = shutil.copytree(checkpoint, tmp_path / "retrained")
    config = retrained / "config.json"
    others = {
        "batch_size": lambda: run("--batch_size", "8"),
        "return_towers": lambda: run("--return_towers"),
        "towers": lambda: run("--towers", "tabular"),
        "dtype": lambda: run("--dtype", "bfloat16"),
        "delimiter": lambda: run("--delimiter", ";"),
        "encoding": lambda: run("--encoding", "utf-8"),
        "model": lambda: run(model=retrained),
        "input": lambda: run(source=Path(shutil.copy(rows, tmp_path / "others.parquet"))),
    }
    for name, other in others.items():
        assert other() == 2
        assert re.search(rf"differs in .*\b{name}\b.*delete the folder", error_of(capsys))
    assert {p.name: p.read_bytes() for p in (tmp_path / "scores.parquet.parts").iterdir()} == before

    assert run(model=retrained, output="again.parquet") == 0  # as does a model that was trained on in its folder
    (tmp_path / "again.parquet").unlink()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2)
        run(model=retrained, output="again.parquet")
    capsys.readouterr()
    os.utime(config, ns=(0, 0))
    assert run(model=retrained, output="again.parquet") == 2
    assert "differs in model_files" in error_of(capsys)


def test_a_corrected_input_is_scored_anew_and_never_mixed_with_the_old(
    run: Callable[..., int], scored_rows: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where its size and its time are those of the old one."""
    source = tmp_path / "rows.csv"

    def write(user: int) -> None:
        source.write_text("user_id,title\n" + f"{user},Toy Story\n" * NUM_ROWS)
        os.utime(source, ns=(10**18, 10**18))

    write(2)
    assert run(source=source) == 0
    straight = (tmp_path / "scores.parquet").rename(tmp_path / "straight.parquet").read_bytes()
    write(1)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        assert run(source=source) == 130
    scored_rows.clear()
    write(2)
    assert run(source=source) == 0
    assert "rows.csv has changed since part of it was scored: all of it is scored again" in caplog.text
    assert scored_rows == [16] * 6 + [4]
    assert (tmp_path / "scores.parquet").read_bytes() == straight


def test_an_input_that_was_only_touched_is_continued(
    run: Callable[..., int], scored_rows: list[int], rows: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        assert run() == 130
    os.utime(rows, ns=(0, 0))
    assert run() == 0
    assert scored_rows == [16] * 6 + [4]


def kill_at(last: int, folder: Path, told: int) -> None:
    """Kill this process before its `last` change of a file in `folder`; what it changes is written to the file `told`."""
    events, seen = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"), 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in events or not str(arguments[0]).startswith(str(folder)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        seen += 1
        os.write(told, f"{event} {Path(arguments[0]).name}\n".encode())
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def killed_at_every_change(work: Callable[[], int], folder: Path) -> Iterator[list[str]]:
    """Run `work` in forks, the first killed before its first change of a file in `folder`, the next before its second, and so on
    until one is not killed; yields the changes, the last of which did not take place any more."""
    for last in itertools.count(1):
        reading, told = os.pipe()
        child = os.fork()
        if child == 0:
            kill_at(last, folder, told)
            try:
                os._exit(work())
            finally:
                os._exit(70)
        os.close(told)
        with open(reading) as pipe:
            seen = pipe.read().splitlines()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), seen
        if status == 0:
            return
        yield seen


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_killed_at_any_change_of_a_file_the_same_command_gives_the_same_bits(
    run: Callable[..., int],
    rows: Path,
    pipe: CtrPredictionPipeline,
    tmp_path: Path,
    suffix: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(score, "load_pipeline", lambda *_, **__: pipe)  # once for all
    monkeypatch.setattr(score, "ROWS_PER_PART", 40)
    pq.write_table(TABLE.select(FIELDS), rows)
    output = f"scores{suffix}"
    assert run(output=output) == 0
    straight = (tmp_path / output).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([rows.name, output])
    (tmp_path / output).unlink()
    kills = 0
    for seen in killed_at_every_change(lambda: run(output=output), tmp_path):
        kills += 1
        is_there = (tmp_path / output).exists()
        assert not is_there or (tmp_path / output).read_bytes() == straight, seen
        # The record, which tells whose the output is, goes before the empty folder and the lock: that is as after a normal end.
        recorded = seen[-1].split()[-1] not in (f"{output}.parts", f".{output}.lock")
        assert run(output=output) == (0 if recorded or not is_there else 2), seen
        told = capsys.readouterr().err
        assert recorded or not is_there or "exists; delete it" in told
        assert (tmp_path / output).read_bytes() == straight, seen
        (tmp_path / output).unlink()
        left = {p.name for p in tmp_path.iterdir()} - {rows.name}
        assert left <= {f".{output}.lock"} if is_there and not recorded else not left, (seen, left)
        (tmp_path / f".{output}.lock").unlink(missing_ok=True)
    assert kills > 20


def test_an_output_that_the_killed_run_did_not_make_is_not_taken_for_its_own(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        assert run() == 130
    capsys.readouterr()
    (tmp_path / "scores.parquet").write_text("mine")
    assert run() == 2
    assert "scores.parquet exists; delete it" in error_of(capsys)
    assert len(list((tmp_path / "scores.parquet.parts").glob("part-*.parquet"))) == 3
    (tmp_path / "scores.parquet").unlink()
    assert run() == 0


def test_a_second_command_with_the_same_output_is_refused_while_the_first_runs(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[int] = []
    load = score.load_pipeline

    def second(*args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(score, "load_pipeline", load)
            inner.append(run())
        return load(*args, **kwargs)

    monkeypatch.setattr(score, "load_pipeline", second)
    assert run() == 0 and inner == [2]
    assert f"scores.parquet is being written by process {os.getpid()} on " in error_of(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.parquet", "scores.parquet"]


def test_a_folder_of_somebody_elses_is_left_alone(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scores.parquet.parts"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    assert run() == 2
    assert "holds other files" in error_of(capsys)
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").rename(folder / "run.json.tmp")  # begun, and stopped at once
    assert run() == 0


def test_what_a_run_depends_on_is_noted(run: Callable[..., int], checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 1)
        run()
    noted = json.loads((tmp_path / "scores.parquet.parts" / "run.json").read_text())
    assert noted["input"] == str(rows) and noted["input_sha256"] == hashlib.sha256(rows.read_bytes()).hexdigest()
    assert noted["model"] == str(checkpoint) and {"config.json", "model.safetensors"} <= noted["model_files"].keys()
    assert (noted["batch_size"], noted["return_towers"], noted["dtype"]) == (4, False, "auto")


def test_a_model_of_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def cached_file(*where: str, **kwargs: Any) -> str:
        asked.append((where, kwargs))
        return f"/cache/models--me--clicks/snapshots/{commit}/config.json"

    monkeypatch.setattr(score, "cached_file", cached_file)
    assert score.model_version("me/clicks", "v1") == {"model": "me/clicks", "revision": commit}
    assert asked == [(("me/clicks", "config.json"), {"revision": "v1"})]


# ---- refusals: one line, exit code 2, nothing written


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be refused without the model is refused before it is loaded."""

    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(score, "load_pipeline", load)


@pytest.mark.usefixtures("no_model")
def test_an_output_that_exists_is_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scores.parquet").write_text("mine")
    assert run() == 2
    assert error_of(capsys).endswith("scores.parquet exists; delete it or choose another name")
    assert (tmp_path / "scores.parquet").read_text() == "mine"
    assert run(output="nowhere/scores.parquet") == 2
    assert "does not exist; make it first" in error_of(capsys)


@pytest.mark.usefixtures("no_model")
def test_columns_in_the_way_are_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(TABLE.append_column("probability", TABLE["price"]), tmp_path / "scored.parquet")
    assert run(source=tmp_path / "scored.parquet") == 2
    assert "has a column 'probability' already" in error_of(capsys)
    pq.write_table(TABLE.append_column("text_probability", TABLE["price"]), tmp_path / "towers.parquet")
    assert run("--return_towers", source=tmp_path / "towers.parquet") == 2
    assert "has a column 'text_probability' already" in error_of(capsys)
    twice = tmp_path / "twice.csv"
    twice.write_text("title,title\na,b\n")
    assert run(source=twice) == 2
    assert "more than one column 'title'" in error_of(capsys)


@pytest.mark.usefixtures("no_model")
def test_input_that_cannot_be_read_is_refused(
    run: Callable[..., int], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source=tmp_path / "none.parquet") == 2
    assert "none.parquet does not exist" in error_of(capsys)
    for name, content, message in (
        ("cut.parquet", rows.read_bytes()[:-100], "is not a complete Parquet file"),
        ("text.parquet", b"user_id,title\n1,a\n", "is not a complete Parquet file"),
        ("empty.parquet", b"", "is empty"),
        ("empty.csv", b"", "is empty"),
        ("open.csv", b'user_id,"title\n1,a\n', "line 1: a quote in the header is not closed"),
        ("rows.json", b"[1]\n", "line 1: '[1]' is not a JSON object but an array"),
        ("cut.csv.gz", gzip.compress(b"user_id,title\n1,a\n")[:-9], "is not a complete gzip file"),
        ("rows.xlsx", b"PK", "ends in '.xlsx', which is not supported; supported are .csv, .tsv, .jsonl"),
    ):
        (tmp_path / name).write_bytes(content)
        assert run(source=tmp_path / name) == 2
        error = error_of(capsys)
        assert error.startswith(f"score: error: {tmp_path / name}") and message in error
    assert run(source=tmp_path) == 2
    assert "is a folder; score one file at a time" in error_of(capsys)


def test_lists_of_nothing_are_written_as_they_were(run: Callable[..., int], tmp_path: Path) -> None:
    table = pa.table({"user_id": [1, 2], "nothing": pa.array([None, [None, None]], pa.list_(pa.null(), 2))})
    pq.write_table(table, tmp_path / "nothing.parquet")
    assert run(source=tmp_path / "nothing.parquet") == 0
    assert pq.read_table(tmp_path / "scores.parquet").drop_columns(["probability"]).equals(table)


def test_nothing_is_left_of_a_file_of_which_nothing_was_scored(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.csv").write_text("user_id,title\n1,a\n2\n")
    assert run(source=tmp_path / "bad.csv") == 2
    assert "line 3" in error_of(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"bad.csv", "rows.parquet"}


def test_a_row_that_cannot_be_read_is_named(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind the header, which is all that is read before the model is loaded."""
    source = tmp_path / "rows.csv"
    lines = ["user_id,title", *(f"{i},Toy Story" for i in range(40))]
    source.write_text("\n".join([*lines, "7,Toy, Story", ""]))
    assert run(source=source) == 2
    assert f"score: error: {source}, line 42: 3 cells where the header has 2: '7,Toy, Story'" in error_of(capsys)
    assert not (tmp_path / "scores.parquet").exists()


def test_an_output_of_unknown_suffix_is_refused(
    checkpoint: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        score.main(["--model", str(checkpoint), "--input", str(rows), "--output", "rows.json"])
    assert stopped.value.code == 2
    assert error_of(capsys) == "score: error: argument --output: rows.json ends in neither .parquet nor .csv"


def test_a_pretraining_checkpoint_is_refused(
    run: Callable[..., int], tiny_text_model: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processor = FlipProcessor.from_pretrained(checkpoint)
    model = FlipForPreTraining.from_text_pretrained(tiny_text_model, processor, embedding_size=4, hidden_sizes=[8])
    model.save_pretrained(tmp_path / "pretraining")
    processor.save_pretrained(tmp_path / "pretraining")
    assert run(model=tmp_path / "pretraining") == 2
    error = error_of(capsys)
    assert f"{tmp_path / 'pretraining'} holds no trained weights for " in error and "Finetune it first" in error
    assert not (tmp_path / "scores.parquet").exists() and not (tmp_path / "scores.parquet.parts").exists()


def test_rows_and_model_must_fit(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(TABLE.select(["row", "price"]), tmp_path / "others.parquet")
    assert run(source=tmp_path / "others.parquet") == 2
    error = error_of(capsys)
    assert "['row', 'price']" in error and "['user_id', 'title', 'zipcode']" in error
    pq.write_table(TABLE[:0], tmp_path / "none.parquet")
    assert run(source=tmp_path / "none.parquet") == 2
    assert "has columns but no rows" in error_of(capsys)
    (tmp_path / "header.csv").write_text("user_id,title\n")
    assert run(source=tmp_path / "header.csv") == 2
    assert "has columns but no rows" in error_of(capsys)
    pq.write_table(TABLE.rename_columns({"tags": "user_id", "user_id": "x"}), tmp_path / "lists.parquet")
    assert run(source=tmp_path / "lists.parquet") == 2
    assert "field 'user_id' has type list" in error_of(capsys)
    assert run(output="scores.csv") == 2
    assert "column 'tags' has type list<element: string>, which CSV cannot hold" in error_of(capsys)
    pq.write_table(
        TABLE.select(FIELDS).append_column("raw", pa.array([b"\xff"] * NUM_ROWS)), tmp_path / "bytes.parquet"
    )
    assert run(source=tmp_path / "bytes.parquet", output="scores.csv") == 2
    assert "column 'raw' has type binary, which CSV cannot hold" in error_of(capsys)
    assert run("--towers", "text", "--return_towers", output="other.parquet") == 2
    assert "config.towers is 'text'" in error_of(capsys)
    assert run(model=tmp_path / "nowhere") == 2
    assert f"there is no folder {tmp_path / 'nowhere'}; and the Hub does not give it" in error_of(capsys)
    (tmp_path / "mine").mkdir()
    assert run(model=tmp_path / "mien") == 2
    assert f"there is no folder {tmp_path / 'mien'}; did you mean 'mine'?" in error_of(capsys)


def test_a_warning_stands_in_a_line_of_its_own_beside_the_bar(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "others.csv").write_text("user_id\n" + "".join(f"stranger {i}\n" for i in range(30)))
    processing_flip.logger.warning_once.cache_clear()
    assert run(source=tmp_path / "others.csv", output="scores.csv") == 0
    lines = re.split(r"[\r\n]", capsys.readouterr().err)
    assert "no column 'title' in the rows: scored as missing" in lines


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch_size", "0"], "0 is not a whole number of 1 or more"),
        (["--device", "toaster"], "toaster cannot be used"),
        (["--towers", "three"], "invalid choice: 'three'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    run: Callable[..., int], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*more)
    assert stopped.value.code == 2
    assert message in error_of(capsys)


def test_it_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As `python -m` runs it; tests/hub/test_readme_on_the_hub.py does so in a process of its own."""
    monkeypatch.setattr(sys, "argv", ["score.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("modeling_flip.score", run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert "--return_towers" in printed.out and printed.err == ""
