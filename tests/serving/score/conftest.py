"""The score command with a tiny checkpoint, on a table that fills several parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from modeling_flip import CtrPredictionPipeline, FlipForCTR, FlipProcessor
from modeling_flip.serving import score
from tests.serving.score.tiny import FIELDS, PART, TABLE, Run, save_model


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
def run(checkpoint: Path, rows: Path, tmp_path: Path) -> Run:
    """`run("--towers", "text", output="x.csv")` → the exit code."""

    def command(*more: str, output: str = "scores.parquet", source: Path = rows, model: Path = checkpoint) -> int:
        arguments = ["--model", str(model), "--input", str(source), "--output", str(tmp_path / output)]
        return score.main([*arguments, "--batch_size", "4", "--device", "cpu", *more])

    return command
