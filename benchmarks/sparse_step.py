"""Seconds of a training step against the number of features: touching whole tables, and touching only the batch's rows.

    python -m benchmarks.sparse_step [--features 17000 722000 4565430] [--rounds 3] [--steps 30] [--json PATH]

Generated rows of 15 fields with as many values each, drawn by Zipf's law; DCNv2, embeddings of 32, AdamW, clipping. A step is
one of `FlipTrainer.train` from data loader to log: finetuning in batches of 2,048, and MTM (NCE over all features, no text pass)
in batches of 1,024. All variants take turns in one process, and the best round of each counts. Where FBGEMM is installed,
a bare loop over its table-batched embeddings stands beside ours.
"""

from __future__ import annotations

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as train.py

import argparse
import functools
import importlib.util
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import BertConfig, PrinterCallback, TrainerCallback
from transformers.utils import logging

from benchmarks import movielens_like
from modeling_flip import (
    Field,
    FlipConfig,
    FlipDataset,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
    PretrainingCollator,
)
from modeling_flip.training.sparse import SparseAdamW

NUM_FIELDS, NUM_ROWS, WARM_UP = 15, 131_072, 5
BATCH_SIZES = {"finetuning": 2048, "mtm": 1024}


logging.set_verbosity_error()


class StepClock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


@functools.lru_cache
def generated(num_features: int, popularity: float) -> tuple[FlipProcessor, FlipDataset]:
    """A processor whose fields have `num_features` features in all, and NUM_ROWS rows in which a field's r-th value stands as
    often as 1 / r to the power of `popularity`; 0: all alike."""
    rng = np.random.default_rng(0)
    per_field = (num_features - 1) // NUM_FIELDS - 1  # without each field's unknown feature, and <MASK>
    names = [f"field_{f}" for f in range(NUM_FIELDS)]
    values = pa.array(np.arange(per_field)).cast(pa.string())
    share = 1 / np.arange(1, per_field + 1) ** popularity
    every, drawn = {}, {}
    for name in names:
        index = rng.choice(per_field, NUM_ROWS + 2 * per_field, p=share / share.sum())
        drawn[name] = values.take(pa.array(index[:NUM_ROWS]))
        seen = np.concatenate([rng.permutation(per_field), index[NUM_ROWS:]])  # noise is drawn by how often it was seen
        every[name] = pa.DictionaryArray.from_arrays(pa.array(seen), values)
    processor = FlipProcessor.fit(pa.table(every), [Field(name=name, kind="categorical") for name in names])
    assert num_features - NUM_FIELDS <= processor.vocabulary.num_features <= num_features
    labels = pa.array(rng.integers(0, 2, NUM_ROWS))
    return processor, processor.encode(pa.table(drawn | {"label": labels}), "label")


class Wordless:
    """A processor whose sentences are one token long: tokens of millions of values are not what is timed."""

    def __init__(self, processor: FlipProcessor):
        self.vocabulary, self.features = processor.vocabulary, processor.features
        self.tokenizer = movielens_like.tokenizer()

    def sentences(self, rows: FlipDataset) -> dict[str, np.ndarray]:
        token = np.full((len(rows), 1), self.tokenizer.cls_token_id)
        return {"input_ids": token, "attention_mask": np.ones_like(token), "token_field_ids": np.full_like(token, -1)}


def make_model(processor: FlipProcessor, stage: str) -> FlipForCTR | FlipForPreTraining:
    torch.manual_seed(0)
    if stage == "finetuning":
        return FlipForCTR(FlipConfig.from_processor(processor, towers="tabular"))
    text_config = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8)
    settings = {"mlm_weight": 0, "icl_weight": 0, "joint_reconstruction": False, "text_config": text_config}
    model = FlipForPreTraining(FlipConfig(**processor.config_settings, **settings))
    model.flip.text_tower.has_random_weights = False  # it reads nothing here: no warning
    return model


def step_seconds(
    num_features: int,
    sparse: bool = True,
    stage: str = "finetuning",
    steps: int = 30,
    popularity: float = 1.0,
    batch_size: int | None = None,
) -> float:
    """The median step of `FlipTrainer.train`, on generated rows.

    Args:
        num_features: M.
        sparse: the setting `sparse_embeddings`.
        stage: "finetuning" (DCNv2) or "mtm" (its alignment by MTM alone).
        steps: timed, behind WARM_UP that are not.
        popularity: as in `generated`.
        batch_size: of BATCH_SIZES by default.
    """
    batch_size = batch_size or BATCH_SIZES[stage]
    processor, rows = generated(num_features, popularity)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = FlipTrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            max_steps=steps + WARM_UP,
            lr_scheduler_type="constant",
            sparse_embeddings=sparse,
            logging_steps=50,
            log_level="error",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            train_sampling_strategy="random",
            use_cpu=not torch.accelerator.is_available(),
        )
        trainer = FlipTrainer(make_model(processor, stage), arguments, processor, rows, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        if stage == "mtm":
            trainer.data_collator = PretrainingCollator(Wordless(processor))  # type: ignore[arg-type]
        trainer.train()
    return statistics.median(np.diff(clock.ends)[WARM_UP - 1 :])


# ---- candidates, in a bare loop


def bare_steps(candidate: str, num_features: int, steps: int) -> float:
    """The median step of a bare loop, no clipping and nothing logged, of DCNv2 whose tables are trained by a candidate.

    Args:
        candidate: "dense" (AdamW, fused), "torch" (SparseAdam beside AdamW), "ours" (SparseAdamW), or "fbgemm" (its row-wise
            Adagrad, fused into the backward pass: the CPU has no Adam there).
    """
    processor, rows = generated(num_features, 1.0)
    ids, labels = torch.from_numpy(rows.feature_ids()), torch.from_numpy(rows.labels)
    model = make_model(processor, "finetuning").train()
    tables = model.flip.feature_embeddings
    others = [p for name, p in model.named_parameters() if "feature_embeddings" not in name]
    if candidate == "fbgemm":
        tables.embedding = FBGEMMTable(model.config.num_features, model.config.embedding_size)
    optimizers: dict[str, Callable[[], list[torch.optim.Optimizer]]] = {
        "dense": lambda: [torch.optim.AdamW(model.parameters(), fused=True)],
        "ours": lambda: [SparseAdamW(model.parameters(), fused=True)],
        "torch": lambda: [torch.optim.AdamW(others, fused=True), torch.optim.SparseAdam(tables.parameters())],
        "fbgemm": lambda: [torch.optim.AdamW(others, fused=True)],
    }
    used, took = optimizers[candidate](), []
    if candidate in ("ours", "torch"):
        tables.embedding.sparse = True
    for batch in torch.randperm(len(ids)).split(BATCH_SIZES["finetuning"])[: steps + WARM_UP]:
        began = time.perf_counter()
        model(ids[batch], labels=labels[batch]).loss.backward()
        for optimizer in used:
            optimizer.step()
        model.zero_grad()
        took.append(time.perf_counter() - began)
    return statistics.median(took[WARM_UP:])


class FBGEMMTable(torch.nn.Module):
    """An embedding table of FBGEMM's on the CPU, ids (…) → (…, d)."""

    def __init__(self, num_rows: int, size: int):
        super().__init__()
        from fbgemm_gpu import (
            split_table_batched_embeddings_ops_training as fbgemm,
        )

        table = (num_rows, size, fbgemm.EmbeddingLocation.HOST, fbgemm.ComputeDevice.CPU)
        optimizer = fbgemm.OptimType.EXACT_ROWWISE_ADAGRAD
        self.size = size
        self.tables = fbgemm.SplitTableBatchedEmbeddingBagsCodegen([table], optimizer=optimizer, learning_rate=1e-3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """A bag of one id each: the CPU pools."""
        offsets = torch.arange(ids.numel() + 1)
        return self.tables(ids.flatten(), offsets).view(*ids.shape, self.size)


def candidates() -> list[str]:
    return ["dense", "torch", "ours", *(["fbgemm"] if importlib.util.find_spec("fbgemm_gpu") else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", nargs="+", type=int, default=[17_000, 722_000, 4_565_430])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="per round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    variants: dict[str, Callable[[int], float]] = {}
    for stage in BATCH_SIZES:
        for name, sparse in (("dense", False), ("sparse", True)):
            variants[f"{stage}, {name}"] = functools.partial(
                step_seconds, sparse=sparse, stage=stage, steps=options.steps
            )
    variants["finetuning, sparse, uniform rows"] = functools.partial(step_seconds, popularity=0.0, steps=options.steps)
    for candidate in candidates():
        variants[f"bare loop, {candidate}"] = functools.partial(bare_steps, candidate, steps=options.steps)
    seconds: dict[str, dict[int, float]] = {name: {} for name in variants}
    for _ in range(options.rounds):
        for features in options.features:
            for name, variant in variants.items():
                seconds[name][features] = min(variant(features), seconds[name].get(features, math.inf))
                print(f"{name:34} {features:10,} {seconds[name][features] * 1e3:8.1f} ms", flush=True)
    first, last = options.features[0], options.features[-1]
    print(f"\n{'ms a step':34}", *(f"{features:10,}" for features in options.features), "     ratio")
    for name, of in seconds.items():
        print(f"{name:34}", *(f"{of[m] * 1e3:10.1f}" for m in options.features), f"{of[last] / of[first]:10.2f}")
    if options.json:
        figures = {"threads": torch.get_num_threads(), "step_seconds": seconds}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
