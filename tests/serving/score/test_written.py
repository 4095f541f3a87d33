"""What the score command writes: the pipeline's probabilities beside the rows as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_flip import CtrPredictionPipeline, FlipForCTR
from modeling_flip.serving import score
from modeling_flip.table_files import in_parts
from tests.serving.score.tiny import PART, TABLE, Run


def test_the_output_is_the_input_with_probabilities(
    run: Run, pipe: CtrPredictionPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert "100 rows scored" in capsys.readouterr().out
    scored = pq.read_table(tmp_path / "scores.parquet")
    assert scored.schema == TABLE.schema.append(pa.field("probability", pa.float64()))
    assert scored.schema.metadata == TABLE.schema.metadata
    assert scored.drop_columns("probability").equals(TABLE)
    expected = [row["probability"] for row in pipe(TABLE)]
    assert max(expected) - min(expected) > 0.1
    assert scored["probability"].to_pylist() == pytest.approx(expected, rel=0, abs=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.parquet", "scores.parquet"]


def test_towers(run: Run, pipe: CtrPredictionPipeline, tmp_path: Path) -> None:
    assert run("--return_towers") == 0
    scored = pq.read_table(tmp_path / "scores.parquet")
    assert scored.column_names[-3:] == ["probability", "tabular_probability", "text_probability"]
    for i, row in enumerate(pipe(TABLE, return_towers=True)):
        assert {name: scored[name][i].as_py() for name in row} == pytest.approx(row, rel=0, abs=1e-5)
    assert run("--towers", "text", output="text.parquet") == 0
    alone = pq.read_table(tmp_path / "text.parquet")["probability"].to_pylist()
    assert alone == pytest.approx(scored["text_probability"].to_pylist(), rel=0, abs=1e-5)


def test_cold_start_is_that_of_the_pipeline(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    assert run("--cold_start", "text") == 0
    pipe = CtrPredictionPipeline(FlipForCTR.from_pretrained(checkpoint), cold_start="text", device="cpu")
    expected = [row["probability"] for row in pipe(TABLE)]
    found = pq.read_table(tmp_path / "scores.parquet")["probability"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert run(output="plain.parquet") == 0
    assert np.abs(pq.read_table(tmp_path / "plain.parquet")["probability"].to_numpy() - expected).max() > 1e-4


def test_half_precision(run: Run, tmp_path: Path) -> None:
    assert run() == 0
    assert run("--dtype", "bfloat16", output="bf16.parquet") == 0
    exact, rounded = (
        pq.read_table(tmp_path / name)["probability"].to_numpy() for name in ("scores.parquet", "bf16.parquet")
    )
    assert 0 < np.abs(exact - rounded).max() < 0.1


def test_csv_is_read_and_written(run: Run, pipe: CtrPredictionPipeline, tmp_path: Path) -> None:
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
    assert scored["probability"].astype(float).tolist() == pytest.approx(expected, rel=0, abs=1e-5)

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


def test_an_absent_field_is_scored_as_missing(run: Run, pipe: CtrPredictionPipeline, tmp_path: Path) -> None:
    pq.write_table(TABLE.select(["title"]), tmp_path / "titles.parquet")
    assert run(source=tmp_path / "titles.parquet") == 0
    expected = [row["probability"] for row in pipe([{"title": t} for t in TABLE["title"].to_pylist()])]
    assert pq.read_table(tmp_path / "scores.parquet")["probability"].to_pylist() == pytest.approx(expected, abs=1e-5)


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


def test_classes_of_datasets_are_written_with_their_names(tmp_path: Path) -> None:
    """What `datasets` says of them in the file's metadata is then not so any more; the rest of the metadata stays."""
    features = datasets.Features({"genre": datasets.ClassLabel(names=["drama", "comedy"])})
    datasets.Dataset.from_dict({"genre": [1, 0]}, features=features).to_parquet(tmp_path / "classes.parquet")
    table = score.open_input(tmp_path / "classes.parquet")
    assert table.to_table().to_pydict() == {"genre": ["comedy", "drama"]}
    assert b"huggingface" not in (table.schema.metadata or {})
    datasets.Dataset.from_dict({"genre": ["comedy"]}).to_parquet(tmp_path / "words.parquet")
    assert b"huggingface" in score.open_input(tmp_path / "words.parquet").schema.metadata
