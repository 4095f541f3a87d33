"""What the score command's tests read: a table of many types, and a random model that tells its rows apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import set_seed

from modeling_flip import FlipForCTR, FlipProcessor

FIELDS = ["user_id", "title", "zipcode"]
NUM_ROWS, PART = 100, 16
NUM_PARTS = 7
Run = Callable[..., int]  # what the fixture `run` is


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


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("score: ")]
    assert len(lines) == 1
    return lines[0]
