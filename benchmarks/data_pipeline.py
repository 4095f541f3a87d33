"""Rows/s from a column table to integers, and from there to batches, through the trainer's own loader.

python -m benchmarks.data_pipeline [--rows 1000000] [--batch_size 1024] [--rounds 5] [--json PATH]

The median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import BertConfig

from benchmarks import movielens_like
from modeling_flip import FlipConfig, FlipForCTR, FlipProcessor, FlipTrainer, FlipTrainingArguments


def feed_rows_per_second(processor: FlipProcessor, rows: object, towers: str, batch_size: int, max_rows: int) -> float:
    """Shuffled batches of the tower's inputs, through the data loader that FlipTrainer trains from."""
    text_config = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8)
    sizes = {"num_features": processor.vocabulary.num_features, "num_fields": len(processor.fields)}
    model = FlipForCTR(FlipConfig(towers=towers, text_config=text_config, **sizes))
    with tempfile.TemporaryDirectory() as folder:
        args = FlipTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            use_cpu=not torch.accelerator.is_available(),
            report_to="none",
        )
        batches = iter(FlipTrainer(model, args, processor, rows).get_train_dataloader())  # type: ignore[arg-type]
        next(batches)
        fed, started = 0, time.perf_counter()
        for batch in batches:
            fed += len(batch["labels"])
            if fed >= max_rows:
                break
        return fed / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows per second through the data pipeline.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    table = movielens_like.rows(args.rows)
    processor = FlipProcessor.fit(table, movielens_like.FIELDS, movielens_like.tokenizer())
    processor.encode(table.slice(0, 1000))
    speeds: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        started = time.perf_counter()
        rows = processor.encode(table, "label")
        speeds.setdefault("encode_rows_per_second", []).append(args.rows / (time.perf_counter() - started))
        for name, towers, max_rows in (("tabular", "tabular", args.rows), ("text", "both", args.rows // 4)):
            speed = feed_rows_per_second(processor, rows, towers, args.batch_size, max_rows)
            speeds.setdefault(f"feed_{name}_rows_per_second", []).append(speed)
    figures = {name: statistics.median(measured) for name, measured in speeds.items()}
    print(
        f"{args.rows:,} rows, {len(processor.fields)} fields, {rows.lengths.mean():.0f} tokens, batch {args.batch_size}"
    )
    for name, speed in figures.items():
        print(f"{name:30} {speed:14,.0f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
