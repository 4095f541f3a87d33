"""A tiny training, four steps an epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_flip import FlipConfig, FlipDataset, FlipForCTR, FlipProcessor, FlipTrainer, FlipTrainingArguments

ROWS = {"user": [str(i % 5) for i in range(32)], "item": [str(i % 7) for i in range(32)]}
CLICKS = [i * i % 3 % 2 for i in range(32)]


@pytest.fixture(scope="module")
def processor() -> FlipProcessor:
    return FlipProcessor.fit(ROWS, ["user", "item"])


@pytest.fixture
def make(processor: FlipProcessor, tmp_path: Path) -> Callable[..., FlipTrainer]:
    """Four steps an epoch, each evaluated and saved."""
    data = processor.encode(ROWS | {"label": CLICKS}, "label")

    def trainer(callbacks: Any = (), evaluated_on: FlipDataset | None = None, **kwargs: Any) -> FlipTrainer:
        torch.manual_seed(0)
        config = FlipConfig(
            towers="tabular", embedding_size=4, hidden_sizes=[8], dropout=0.5, **processor.config_settings
        )
        saving: dict[str, Any] = {f"{what}_strategy": "steps" for what in ("eval", "save", "logging")}
        saving |= {"logging_steps": 3, "eval_steps": 1, "save_steps": 1}
        saving |= {"load_best_model_at_end": True, "metric_for_best_model": "auc"}
        settings: dict[str, Any] = {"output_dir": str(tmp_path / "run"), "num_train_epochs": 2, "learning_rate": 0.01}
        settings |= {"per_device_train_batch_size": 8, "restore_callback_states_from_checkpoint": True}
        arguments = FlipTrainingArguments(use_cpu=True, disable_tqdm=True, **settings | saving | kwargs)
        return FlipTrainer(FlipForCTR(config), arguments, processor, data, evaluated_on or data, list(callbacks))

    return trainer
