from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modeling_flip import FlipTrainingArguments


def test_patience_without_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early_stopping_patience needs evaluations, but eval_strategy is 'no'"):
        FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, early_stopping_patience=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"text_mask_ratio": 0.0},
        {"tabular_mask_ratio": 1.1},
        {"text_masking": "word"},
        {"float32_matmul_precision": "low"},
        {"train_sampling_strategy": "sequential"},
        {"max_steps": 0},
        {"num_train_epochs": 0.0},
        {"num_train_epochs": -1.0},
        {"label_smoothing_factor": 0.1},
        {"dataloader_in_order": False},
    ],
)
def test_a_bad_argument_is_refused_before_training(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            {"optim": "rmsprop_bnb_8bit"},
            "optim is 'rmsprop_bnb_8bit', which updates whole tables; sparse_embeddings needs",
        ),
        ({"optim": "adafactor"}, "optim is 'adafactor'.*sparse_embeddings needs one of adamw_torch_fused, .*, sgd$"),
        ({"optim": "sgd", "optim_args": "nesterov=true, momentum=0.9"}, "momentum=0.9.*sgd without momentum"),
    ],
)
def test_an_optimizer_that_moves_every_row_is_refused_for_sparse_embeddings(
    arguments: dict[str, Any], error: str, tmp_path: Path
) -> None:
    FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)
    with pytest.raises(ValueError, match=error):
        FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, sparse_embeddings=True, **arguments)


def test_a_process_has_one_gpu_at_most(tmp_path: Path) -> None:
    arguments = FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert arguments.n_gpu == 0
    arguments._n_gpu = 4  # as Trainer finds where it was not started by accelerate
    assert arguments.n_gpu == 1 and arguments.train_batch_size == arguments.per_device_train_batch_size


def test_rates_of_this_field_where_nothing_is_said(tmp_path: Path) -> None:
    def rates(**given: Any) -> tuple[float, float | None]:
        arguments = FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)
        return arguments.learning_rate, arguments.text_learning_rate

    assert rates() == (1e-3, 5e-5)
    assert rates(text_learning_rate=0.0) == (1e-3, 0.0)
    assert rates(learning_rate=1e-2, text_learning_rate=2e-5) == (1e-2, 2e-5)
    assert rates(learning_rate=1e-2) == (1e-2, None)  # one rate for all, as it was


def test_an_optimizer_whose_package_is_missing_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"optim is 'adamw_torch_8bit', which needs torchao: .*\[eight_bit\]"):
        FlipTrainingArguments(optim="adamw_torch_8bit")
