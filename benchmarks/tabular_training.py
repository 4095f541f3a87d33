"""Training speed of every tabular tower: samples/s through the real trainer, and through a bare PyTorch loop over the same model.

    python -m benchmarks.tabular_training [--towers dcnv2 …] [--batch_sizes 1024 4096] [--rounds 5]
        [--float32_matmul_precision medium] [--json PATH]

Generated rows with MovieLens-1M's fields and sizes, the recipes' model sizes, AdamW. The bare loop has the rows as two tensors
and does nothing but shuffle, forward, loss, backward and update: no logging, no clipping, no check of the loss. Both take
turns in one process, and the best round of each counts. On a GPU it runs there.
"""

from __future__ import annotations

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as train.py

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from benchmarks import movielens_like
from modeling_flip import (
    TABULAR_TOWERS,
    FlipConfig,
    FlipDataset,
    FlipForCTR,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
)


def bare_loop(model: FlipForCTR, feature_ids: torch.Tensor, labels: torch.Tensor, batch_size: int, steps: int) -> float:
    """Samples/s."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    model.train()
    began = time.perf_counter()
    order = torch.randperm(len(labels), device=labels.device)
    for step in range(steps):
        batch = order[step * batch_size : (step + 1) * batch_size]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model.flip(feature_ids[batch]).tabular_logit, labels[batch]
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loss.item()  # waits for a GPU
    return steps * batch_size / (time.perf_counter() - began)


def through_trainer(
    model: FlipForCTR, processor: FlipProcessor, rows: FlipDataset, batch_size: int, steps: int
) -> float:
    """Samples/s of `FlipTrainer.train`, logging every 50 steps."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = FlipTrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            max_steps=steps,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),
        )
        trainer = FlipTrainer(model, arguments, processor, rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.clock.samples_per_second[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=sorted(TABULAR_TOWERS), choices=sorted(TABULAR_TOWERS))
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=200_000, help="rows per round")
    parser.add_argument("--float32_matmul_precision", default="highest", help="for the trainer and the bare loop")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_float32_matmul_precision(options.float32_matmul_precision)

    table = movielens_like.rows(max(options.samples, max(options.batch_sizes)))
    processor = FlipProcessor.fit(table, movielens_like.FIELDS)
    rows = processor.encode(table, "label")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    feature_ids = torch.from_numpy(rows.feature_ids()).to(device)
    labels = torch.from_numpy(rows.labels).to(device)
    sizes = {"num_features": processor.vocabulary.num_features, "num_fields": len(processor.fields)}
    figures: dict[str, dict[str, float]] = {}
    print(f"{'tower':10} {'batch':>6} {'trainer':>10} {'bare loop':>10}  ratio   (samples/s)")
    for name in options.towers:
        for batch_size in options.batch_sizes:
            steps = max(1, options.samples // batch_size)
            trainer, bare = [], []
            for _ in range(options.rounds):
                set_seed(0)
                model = FlipForCTR(FlipConfig(towers="tabular", tabular_tower=name, **sizes)).to(device)
                bare.append(bare_loop(model, feature_ids, labels, batch_size, steps))
                trainer.append(through_trainer(model, processor, rows, batch_size, steps))
            key = f"{name}, batch {batch_size}"
            figures[key] = {"trainer_samples_per_second": max(trainer), "bare_samples_per_second": max(bare)}
            figures[key]["ratio"] = max(trainer) / max(bare)
            print(f"{name:10} {batch_size:6} {max(trainer):10,.0f} {max(bare):10,.0f}  {figures[key]['ratio']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
