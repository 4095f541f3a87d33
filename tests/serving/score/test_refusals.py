"""What the score command refuses: one line, exit code 2, and nothing written."""

from __future__ import annotations

import gzip
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_flip import FlipForPreTraining, FlipProcessor, processing_flip
from modeling_flip.serving import score
from tests.serving.score.tiny import FIELDS, NUM_ROWS, TABLE, Run, error_of


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be refused without the model is refused before it is loaded."""

    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(score, "load_pipeline", load)


@pytest.mark.usefixtures("no_model")
def test_an_output_that_exists_is_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scores.parquet").write_text("mine")
    assert run() == 2
    assert error_of(capsys).endswith("scores.parquet exists; delete it or choose another name")
    assert (tmp_path / "scores.parquet").read_text() == "mine"
    assert run(output="nowhere/scores.parquet") == 2
    assert "does not exist; make it first" in error_of(capsys)


@pytest.mark.usefixtures("no_model")
def test_columns_in_the_way_are_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    run: Run, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


def test_lists_of_nothing_are_written_as_they_were(run: Run, tmp_path: Path) -> None:
    table = pa.table({"user_id": [1, 2], "nothing": pa.array([None, [None, None]], pa.list_(pa.null(), 2))})
    pq.write_table(table, tmp_path / "nothing.parquet")
    assert run(source=tmp_path / "nothing.parquet") == 0
    assert pq.read_table(tmp_path / "scores.parquet").drop_columns(["probability"]).equals(table)


def test_nothing_is_left_of_a_file_of_which_nothing_was_scored(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.csv").write_text("user_id,title\n1,a\n2\n")
    assert run(source=tmp_path / "bad.csv") == 2
    assert "line 3" in error_of(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"bad.csv", "rows.parquet"}


def test_a_row_that_cannot_be_read_is_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    run: Run, tiny_text_model: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processor = FlipProcessor.from_pretrained(checkpoint)
    model = FlipForPreTraining.from_text_pretrained(tiny_text_model, processor, embedding_size=4, hidden_sizes=[8])
    model.save_pretrained(tmp_path / "pretraining")
    processor.save_pretrained(tmp_path / "pretraining")
    assert run(model=tmp_path / "pretraining") == 2
    error = error_of(capsys)
    assert f"{tmp_path / 'pretraining'} holds no trained weights for " in error and "Finetune it first" in error
    assert not (tmp_path / "scores.parquet").exists() and not (tmp_path / "scores.parquet.parts").exists()


def test_rows_and_model_must_fit(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    run: Run, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
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
