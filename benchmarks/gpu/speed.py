"""What a machine gives for the paper's pretraining step and for finetunings side by side: samples/s, beside its matrix products.

    python -m benchmarks.gpu.speed [--batch_size 1024] [--steps 20] [--finetuning_steps 1000] [--json PATH]

Generated rows with MovieLens-1M's fields, sizes and sentence lengths; a text tower of TinyBERT's size, DCNv2, the real trainer.
Pretraining: bf16, torch.compile and batches of like length, each on and off; then the fastest of these with batches made in 4 and
8 workers. Finetuning: DCNv2 as in its recipe, in 1, 2 and 4 processes at once. A cell that fails says why, and the others go on.
On a CPU everything is tiny, and torch.compile only traces the model.
"""

from __future__ import annotations

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as train.py

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from benchmarks import movielens_like, pretraining_step
from benchmarks.small_text_model import SMALL, TINYBERT
from benchmarks.tabular_training import through_trainer
from modeling_flip import (
    FlipConfig,
    FlipDataset,
    FlipForCTR,
    FlipProcessor,
    FlipTrainingArguments,
    PretrainingCollator,
)
from modeling_flip.training.timing import FEW_STEPS, ShortTrainer

HAS_GPU = torch.cuda.is_available()
GRID = {
    "bf16": (True, False),
    "torch_compile": (False, True),
    "train_sampling_strategy": ("group_by_length", "random"),
}
WORKERS = (4, 8)
AT_ONCE = (1, 2, 4)
WARM_UP = 5 if HAS_GPU else 2  # steps; a compiled model is compiled again for the second length
COLLATED = 1024  # rows of a batch that the collator makes
MATRIX = 8192 if HAS_GPU else 512
ON_THIS_DEVICE = {"use_cpu": not HAS_GPU} | ({} if HAS_GPU else {"torch_compile_backend": "eager"})
FINETUNING_BATCH = 1024  # configuration/movielens-1m/dcnv2.yaml


def synchronize() -> None:
    if HAS_GPU:
        torch.cuda.synchronize()


def matrix_products(size: int, times: int = 10) -> float:
    """TFLOP/s of bf16 products of random square matrices."""
    device = "cuda" if HAS_GPU else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    began = 0.0
    for i in range(3 + times):
        if i == 3:
            synchronize()
            began = time.perf_counter()
        a @ b
    synchronize()
    return times * 2 * size**3 / (time.perf_counter() - began) / 1e12


# ---- pretraining


class Clock(TrainerCallback):
    """Seconds of the steps after the warm-up, without waiting for the device between them."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            synchronize()
            self.began = time.perf_counter()
        elif state.global_step == args.max_steps:
            synchronize()
            self.seconds = time.perf_counter() - self.began


class Pretraining:
    """The model and the rows whose pretraining is timed."""

    def __init__(self, batch_size: int, steps: int):
        self.batch_size, self.steps = batch_size, steps
        num_rows = max(10 * COLLATED, batch_size * (WARM_UP + steps))
        sizes = TINYBERT if HAS_GPU else SMALL
        self.model, self.processor, self.rows = pretraining_step.build(num_rows, sizes)

    def collator(self) -> float:
        """Rows/s of the collator alone, in one process."""
        collate = PretrainingCollator(self.processor)
        order = self.rows.lengths.argsort(kind="stable")
        batches = order[: len(order) // COLLATED * COLLATED].reshape(-1, COLLATED)
        collate(self.rows.__getitems__(batches[0]))
        began = time.perf_counter()
        for batch in batches:
            collate(self.rows.__getitems__(batch))
        return batches.size / (time.perf_counter() - began)

    def operations(self) -> float:
        """FLOP of a sample's forward and backward pass, in a batch of sentences of middling length."""
        middle = self.rows.lengths.argsort(kind="stable")[len(self.rows) // 2 :][:16]
        batch = PretrainingCollator(self.processor)(self.rows.__getitems__(middle))
        with FlopCounterMode(display=False) as counter:
            copy.deepcopy(self.model)(**batch).loss.backward()
        return counter.get_total_flops() / len(middle)

    def speed(self, **settings: Any) -> float:
        """Samples/s through the real trainer."""
        for key in [key for key in os.environ if key.startswith("ACCELERATE_DYNAMO")]:
            del os.environ[key]  # a compiled cell has set them for the whole process
        torch.compiler.reset()
        clock, model = Clock(), copy.deepcopy(self.model)
        with tempfile.TemporaryDirectory() as folder:
            few = FEW_STEPS | {"max_steps": WARM_UP + self.steps} | ON_THIS_DEVICE | settings
            if not settings["torch_compile"]:  # to name a backend asks for it
                few.pop("torch_compile_backend", None)
            arguments = FlipTrainingArguments(folder, per_device_train_batch_size=self.batch_size, **few)
            trainer = ShortTrainer(model, arguments, self.processor, self.rows, callbacks=[clock])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return self.steps * self.batch_size / clock.seconds


def time_pretraining(pretraining: Pretraining) -> list[dict[str, Any]]:
    """The cells of the grid: settings and `samples_per_second`, or the `error`."""

    def cell(settings: dict[str, Any]) -> dict[str, Any]:
        shown = ", ".join(f"{key} {value}" for key, value in settings.items())
        try:
            speed = pretraining.speed(**settings)
        except Exception as error:  # whatever a compiler or a device raises
            print(f"  {'failed':>12}  {shown}: {error!r:.200}", flush=True)
            return settings | {"error": repr(error)}
        print(f"  {speed:12,.0f}  {shown}", flush=True)
        return settings | {"samples_per_second": speed}

    print("pretraining, samples/s")
    cells = [
        cell(dict(zip(GRID, values, strict=True)) | {"dataloader_num_workers": 0}) for values in product(*GRID.values())
    ]
    best = max(cells, key=lambda one: one.get("samples_per_second", 0.0))
    cells += [cell({key: best[key] for key in GRID} | {"dataloader_num_workers": workers}) for workers in WORKERS]
    return cells


# ---- finetuning


together: Barrier


def hold(barrier: Barrier) -> None:
    """Of each process, at its start."""
    global together
    together = barrier


def finetuning_rows(count: int) -> tuple[FlipProcessor, FlipDataset]:
    table = movielens_like.rows(count)
    processor = FlipProcessor.fit(table, movielens_like.FIELDS)
    return processor, processor.encode(table, "label")


def finetuning_speed(steps: int, ready: Callable[[], Any]) -> float:
    """Samples/s of DCNv2; waits until all are ready."""
    processor, rows = finetuning_rows(FINETUNING_BATCH * max(10, steps))
    set_seed(0)
    sizes = {"num_features": processor.vocabulary.num_features, "num_fields": len(processor.fields)}
    config = FlipConfig(towers="tabular", hidden_sizes=[300, 300, 128], **sizes)
    through_trainer(FlipForCTR(config), processor, rows, FINETUNING_BATCH, 2)
    ready()
    return through_trainer(FlipForCTR(config), processor, rows, FINETUNING_BATCH, steps)


def one_of_them(steps: int) -> float:
    logging.set_verbosity_error()
    return finetuning_speed(steps, together.wait)


def time_finetuning(steps: int) -> dict[str, float]:
    """Samples/s in all, by the number of processes."""
    context, figures = get_context("spawn"), {}
    print("finetuning DCNv2, samples/s in all processes together")
    for processes in AT_ONCE:
        barrier = context.Barrier(processes)
        with ProcessPoolExecutor(processes, context, initializer=hold, initargs=(barrier,)) as pool:
            figures[str(processes)] = sum(pool.map(one_of_them, [steps] * processes))
        print(f"  {figures[str(processes)]:12,.0f}  {processes} at once", flush=True)
    return figures


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=1024 if HAS_GPU else 8)
    parser.add_argument("--steps", type=int, default=20 if HAS_GPU else 2, help="timed steps (default: %(default)s)")
    parser.add_argument("--finetuning_steps", type=int, default=1000 if HAS_GPU else 20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(given)
    logging.set_verbosity_error()
    device = torch.cuda.get_device_name() if HAS_GPU else f"CPU, {torch.get_num_threads()} threads"
    figures: dict[str, Any] = {"device": device, "torch": torch.__version__, "batch_size": options.batch_size}
    figures["matrix_product_tflops"] = matrix_products(MATRIX)
    pretraining = Pretraining(options.batch_size, options.steps)
    figures["collator_rows_per_second"] = pretraining.collator()
    figures["gflop_per_sample"] = pretraining.operations() / 1e9
    print(f"{device}: {figures['matrix_product_tflops']:.1f} TFLOP/s in bf16 products of {MATRIX}×{MATRIX}")
    print(f"the collator alone: {figures['collator_rows_per_second']:,.0f} rows/s")
    figures["pretraining"] = time_pretraining(pretraining)
    best = max(cell.get("samples_per_second", 0.0) for cell in figures["pretraining"])
    figures["share_of_products"] = best * figures["gflop_per_sample"] / 1e3 / figures["matrix_product_tflops"]
    share, operations = figures["share_of_products"], figures["gflop_per_sample"]
    print(f"the fastest: {share:.1%} of the rate of products, at {operations:.2f} GFLOP a sample")
    figures["finetuning"] = time_finetuning(options.finetuning_steps)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
