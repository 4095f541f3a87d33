"""Batch normalisation, of which each process has statistics of its own rows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from modeling_flip import FlipForCTR, FlipProcessor
from modeling_flip.training.publishing import PREDICTIONS_FILE
from tests.processes import finish, forked


@pytest.mark.slow
def test_all_processes_score_with_the_statistics_that_are_saved(
    recipe_file: Path, clicks_csv: Path, tmp_path: Path
) -> None:
    tower = ["--pretraining", "null", "--towers", "tabular", "--tabular_tower", "afn"]
    last = ["--finetuning.load_best_model_at_end", False, "--finetuning.per_device_eval_batch_size", 7]
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    rows = pd.read_csv(clicks_csv)
    for split, part in {"train": rows[:150], "validation": rows[150:170], "test": rows[170:]}.items():
        part.to_csv(data / f"{split}.csv", index=False)
    finish(forked(recipe_file, *tower, *last, "--dataset_name", data, "--output_dir", run, processes=2))
    model, processor = FlipForCTR.from_pretrained(run), FlipProcessor.from_pretrained(run)
    predicted = pq.read_table(run / PREDICTIONS_FILE)
    with torch.no_grad():
        alone = model(**processor(rows[170:])).logits
    torch.testing.assert_close(torch.tensor(predicted["logit"].to_pylist()), alone, atol=1e-5, rtol=1e-5)
