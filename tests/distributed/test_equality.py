"""W processes with batches of B / W rows train the model that one with batches of B does: real processes, both stages."""

from __future__ import annotations

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from modeling_flip.training.publishing import RESULTS_FILE
from tests.processes import finish, forked, launch, weights

BATCH = 16
# Plain SGD without clipping: the parameters agree only if all gradients do.
SGD: list[Any] = ["--pretraining.optim", "sgd", "--pretraining.learning_rate", 0.01, "--pretraining.max_grad_norm", 1e9]
SGD += ["--finetuning.optim", "sgd", "--finetuning.learning_rate", 0.05, "--finetuning.max_grad_norm", 1e9]
SGD += ["--pretraining.num_train_epochs", 1, "--model.embedding_l2", 0.01]
# Of the 162 training rows, the last batch of an epoch has 2: two of four processes have none of them.
# 7 rows do not divide the 20 test rows: the last batches are filled up with repeated rows, which must not count.
SGD += ["--finetuning.per_device_eval_batch_size", 7]


def arguments(recipe_file: Path, folder: Path, processes: int) -> list[Any]:
    sizes: list[Any] = [
        part
        for stage in ("pretraining", "finetuning")
        for part in (f"--{stage}.per_device_train_batch_size", BATCH // processes)
    ]
    return [recipe_file, *SGD, *sizes, "--output_dir", folder]


@pytest.fixture(scope="module")
def one(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train.main([*map(str, arguments(recipe_file, folder, 1)), "--use_cpu"])
    return folder


AGAIN = ["--pretraining.activation_checkpointing", True, "--finetuning.activation_checkpointing", True]
IN_PARTS = ["--pretraining.mini_batch_tokens", 100, "--finetuning.mini_batch_tokens", 100]
SHARDED = ["--pretraining.shard_embeddings", True, "--finetuning.shard_embeddings", True]
ON_CPUS = {"configuration": "fsdp2", "script": "tests/distributed/fsdp_on_cpus.py"}
FORKED = None  # of one process, which imports for all of them
NEEDS_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "more", "how"),
    [
        pytest.param(2, AGAIN, {}, id="2"),
        pytest.param(4, IN_PARTS, FORKED, id="4-in-parts"),
        pytest.param(4, SHARDED, FORKED, id="4-sharded-tables"),
        pytest.param(2, [], ON_CPUS, id="2-fsdp2"),
        pytest.param(2, [], {"configuration": "zero2"}, id="2-zero2", marks=NEEDS_DEEPSPEED),
        pytest.param(2, [], {"configuration": "zero3"}, id="2-zero3", marks=NEEDS_DEEPSPEED),
    ],
)
def test_processes_compute_together_what_one_does_alone(
    processes: int, more: list[Any], how: dict[str, str] | None, one: Path, recipe_file: Path, tmp_path: Path
) -> None:
    given = [*arguments(recipe_file, tmp_path, processes), *more]
    finish(forked(*given, processes=processes) if how is None else launch(*given, processes=processes, **how))
    alone, together = (json.loads((folder / RESULTS_FILE).read_text()) for folder in (one, tmp_path))
    assert together["hardware"]["processes"] == processes
    assert together["pretraining_losses"] == pytest.approx(alone["pretraining_losses"], abs=1e-4)
    for stage in ("pretraining", "."):
        expected, found = weights(one / stage), weights(tmp_path / stage)
        for name in expected:
            torch.testing.assert_close(
                found[name], expected[name], atol=2e-5, rtol=1e-4, msg=partial("{}: {}".format, name)
            )
    for name in ("test_auc", "test_logloss", "validation_auc", "test_text_logloss"):
        assert together[name] == pytest.approx(alone[name], abs=1e-4), name
