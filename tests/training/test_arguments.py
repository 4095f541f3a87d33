from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modeling_flip import FlipTrainingArguments


def test_patience_without_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early_stopping_patience is set, but eval_strategy is 'no'"):
        FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, early_stopping_patience=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"text_mask_ratio": 0.0},
        {"tabular_mask_ratio": 1.1},
        {"text_masking": "word"},
        {"float32_matmul_precision": "low"},
    ],
)
def test_a_bad_argument_is_refused_before_training(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)
