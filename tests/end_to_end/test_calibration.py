"""A log that has lost nine tenths of its non-clicks, and whose true click rates are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from benchmarks.calibration import click_log, measure
from modeling_flip import (
    CtrPredictionPipeline,
    FlipConfig,
    FlipForCTR,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
)
from modeling_flip.serving import score
from modeling_flip.training import evaluation
from modeling_flip.training.metrics import ctr_metrics

RATE = 0.1
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "corrected": {"negative_sampling_rate": RATE},
    "platt": {"negative_sampling_rate": RATE, "calibration": "platt"},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]], int]:
    """The folder of the three runs, their figures, and how often metrics of a prediction were computed after training."""
    folder = tmp_path_factory.mktemp("calibration")
    with pytest.MonkeyPatch.context() as patch:
        counted = Mock(wraps=ctr_metrics)
        patch.setattr(evaluation, "ctr_metrics", counted)
        return folder, measure(120_000, RATE, folder, VARIANTS), counted.call_count


def results_of(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "all_results.json").read_text())


def test_mean_probability_and_ece_on_untouched_rows_are_those_of_the_truth(measured: Any) -> None:
    _, figures, _ = measured
    truth = figures["truth"]["mean_probability"]
    assert 0.03 < truth < 0.07
    assert figures["plain"]["mean_probability"] > 4 * truth
    for name in ("corrected", "platt"):
        assert figures[name]["mean_probability"] == pytest.approx(truth, rel=0.2), name
        assert figures[name]["ece"] < 0.01 < 0.1 < figures["plain"]["ece"], name
        assert figures[name]["estimated_ece"] < 0.02, name


def test_the_correction_changes_no_ranking_and_is_log_r(measured: Any) -> None:
    folder, figures, _ = measured
    assert figures["corrected"]["auc"] == pytest.approx(figures["plain"]["auc"], abs=1e-6)
    corrected, plain = (FlipForCTR.from_pretrained(folder / name) for name in ("corrected", "plain"))
    assert (corrected.config.logit_scale, corrected.config.logit_shift) == (1, pytest.approx(math.log(RATE)))
    assert (plain.config.logit_scale, plain.config.logit_shift) == (1, 0)
    for weight, same in zip(corrected.parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_results_and_card_say_what_was_done_and_what_it_was_good_for(measured: Any) -> None:
    folder, _, calls = measured
    results, card = results_of(folder, "platt"), (folder / "platt" / "README.md").read_text()
    assert (results["calibration"], results["negative_sampling_rate"]) == ("platt", RATE)
    assert FlipConfig.from_pretrained(folder / "platt").sampling_shift == pytest.approx(np.log(RATE))
    assert results["test_ece"] < 0.02 < 0.1 < results["test_ece_before"]
    before = f"{results['test_ece']:.4f}, {results['test_ece_before']:.4f} before."
    for said in ("by Platt scaling", "kept 0.1 of its non-clicks", before, "](reliability.png)", "normalised entropy"):
        assert said in card
    assert (folder / "platt" / "reliability.png").exists()
    assert "test_ece_before" not in results_of(folder, "plain")
    assert 0 < results["test_ne"] < 1
    # Once for validation and once for test, and once more for test rows with unseen values where there are such.
    unseen = sum("test_unseen_auc" in results_of(folder, name) for name in VARIANTS)
    # Of the plain run validation is in the log of the training.
    assert calls == 2 * len(VARIANTS) - 1 + unseen


def test_pipeline_command_and_a_loop_of_ones_own_give_the_same_calibrated_probabilities(
    measured: Any, tmp_path: Path
) -> None:
    folder, _, _ = measured
    model, processor = FlipForCTR.from_pretrained(folder / "platt"), FlipProcessor.from_pretrained(folder / "platt")
    rows = click_log(50, seed=9)[0].drop_columns(["clicked"])
    with torch.no_grad():
        expected = model.eval()(**processor(rows)).logits.double().sigmoid().numpy()
    piped = [row["probability"] for row in CtrPredictionPipeline(model, processor)(rows)]
    assert piped == pytest.approx(expected, abs=1e-6)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    command = ["--model", str(folder / "platt"), "--input", str(tmp_path / "rows.jsonl"), "--device", "cpu"]
    assert score.main([*command, "--output", str(tmp_path / "scores.csv")]) == 0
    lines = (tmp_path / "scores.csv").read_text().splitlines()[1:]
    assert [float(line.rpartition(",")[2]) for line in lines] == pytest.approx(expected, abs=1e-6)


def test_a_calibrated_model_that_is_trained_again_begins_uncalibrated(measured: Any, tmp_path: Path) -> None:
    folder, _, _ = measured
    model, processor = FlipForCTR.from_pretrained(folder / "platt"), FlipProcessor.from_pretrained(folder / "platt")
    assert (model.config.logit_scale, model.config.logit_shift) != (1, 0)
    rows = click_log(64, seed=9)[0]
    data = processor.encode(rows, "clicked")
    args = FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=1, save_strategy="no")
    trainer = FlipTrainer(model, args, processor, data, data)
    shifted = trainer.evaluate()["eval_logloss"]
    trainer.train()
    assert (model.config.logit_scale, model.config.logit_shift) == (1, 0)
    assert np.abs(trainer.evaluate()["eval_logloss"] - shifted) > 0.05
