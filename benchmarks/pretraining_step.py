"""Ours against the pretraining step as published: samples/s, peak memory and share of the machine's peak, in one process.

    python -m benchmarks.pretraining_step [--batch_size 64] [--rounds 8] [--json PATH]

As published: three text passes, vocabulary logits at every position, sentences padded to 100 tokens, fp32. Ours: two passes,
logits at masked positions alone, batches of like length padded to their longest; fp32, and bf16 autocast. The same rows, towers
(a text tower of TinyBERT's size, DCNv2), heads, batch size and optimizer; every step is forward, backward and update. On a GPU
it runs there. All variants share one process and PyTorch's defaults; train.py also asks for huge pages on a CPU, from which the
published step would gain more than ours: THP_MEM_ALLOC_ENABLE=1 shows that.

The share of the peak is that of a variant's FLOPs, as torch counts those of its matrix products and attention, forward and
backward, in a large matrix product of the same precision on the same cores or GPU, measured in the same run.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from benchmarks import movielens_like
from benchmarks.small_text_model import TINYBERT
from modeling_flip import FlipConfig, FlipDataset, FlipForPreTraining, FlipProcessor, PretrainingCollator
from modeling_flip.training.trainer import plain_attention

PUBLISHED_LENGTH = 100
MEGABATCH = 50  # batches among which transformers' LengthGroupedSampler groups by length
Batch = dict[str, torch.Tensor]


def build(
    num_rows: int, text_sizes: Mapping[str, Any] = TINYBERT
) -> tuple[FlipForPreTraining, FlipProcessor, FlipDataset]:
    table = movielens_like.rows(num_rows)
    processor = FlipProcessor.fit(table, movielens_like.FIELDS, movielens_like.tokenizer(), max_length=PUBLISHED_LENGTH)
    text_config = BertConfig(**text_sizes)
    sizes = {"num_features": processor.vocabulary.num_features, "num_fields": len(processor.fields)}
    model = FlipForPreTraining(FlipConfig(text_config=text_config, **sizes))
    return model.train(), processor, processor.encode(table)


def pad(batch: Batch, length: int, pad_token_id: int) -> Batch:
    """The batch with its sentences padded to a fixed length."""
    fill = {"input_ids": pad_token_id, "masked_input_ids": pad_token_id, "attention_mask": 0, "mlm_labels": -100}
    return {k: F.pad(v, (0, length - v.shape[1]), value=fill[k]) if k in fill else v for k, v in batch.items()}


def published_loss(model: FlipForPreTraining, batch: Batch) -> torch.Tensor:
    """The losses as the published code computes them: each objective with a text pass of its own."""
    mask = batch["attention_mask"]
    clean_table, masked_table = model.flip(batch["feature_ids"]), model.flip(batch["masked_feature_ids"])

    masked_text = model.flip(None, batch["masked_input_ids"], mask).text_hidden_states
    table = clean_table.tabular_representation[:, None].expand(-1, masked_text.shape[1], -1)
    hidden = F.gelu(model.mlm.hidden(torch.cat([masked_text, table], dim=-1)))
    vocabulary = model.get_input_embeddings().weight
    logits = F.linear(hidden, vocabulary, model.mlm.bias)  # (B, L, V)
    mlm = F.cross_entropy(logits.flatten(0, 1), batch["mlm_labels"].flatten(), ignore_index=-100)

    text = model.flip(None, batch["input_ids"], mask).text_hidden_states
    mtm = model.mtm(masked_table.tabular_representation, text, mask, batch["mtm_labels"], batch["noise_feature_ids"])

    text = model.flip(None, batch["input_ids"], mask).text_representation
    return mlm + mtm + model.icl(text, clean_table.tabular_representation)


def our_loss(model: FlipForPreTraining, batch: Batch) -> torch.Tensor:
    return model(**batch).loss


class Variant:
    """One way to make the step, with a model and an optimizer of its own."""

    def __init__(
        self, loss: Callable[[FlipForPreTraining, Batch], torch.Tensor], model: FlipForPreTraining, bf16: bool
    ):
        self.loss, self.bf16, self.model = loss, bf16, copy.deepcopy(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, fused=True)
        self.seconds, self.flops = 0.0, 0
        self.peak_memory_mib = 0.0

    def step(self, batch: Batch) -> float:
        """Forward, backward, update; seconds."""
        started = time.perf_counter()
        loss = self.backward(batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()  # waits for a GPU
        return time.perf_counter() - started

    def backward(self, batch: Batch) -> torch.Tensor:
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.model, {k: v.to(device) for k, v in batch.items()})
        loss.backward()
        return loss

    def count_flops(self, batch: Batch) -> None:
        """Adds the FLOPs of a step with this batch. Torch does not count those of its fused attention on a CPU."""
        with plain_attention(self.model), FlopCounterMode(display=False) as counter:
            self.backward(batch)
        self.optimizer.zero_grad()
        self.flops += counter.get_total_flops()


def matrix_product_peak(dtype: torch.dtype, device: torch.device, size: int = 2048, times: int = 10) -> float:
    """FLOP/s of the fastest of several products of two square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for a GPU
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest


def reset_peak_memory() -> float:
    """Forget the peak so far; MiB in use now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # Linux: give back what other variants freed, ...
    Path("/proc/self/clear_refs").write_text("5")  # ... and let the peak start again at what is resident
    return peak_memory()


def peak_memory() -> float:
    """MiB, the highest since `reset_peak_memory`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def measure(batch_size: int, rounds: int) -> dict[str, dict[str, float]]:
    model, processor, rows = build(batch_size * max(MEGABATCH, rounds))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    collate = PretrainingCollator(processor)
    assert processor.tokenizer is not None
    pad_token_id = processor.tokenizer.pad_token_id
    # Ours are batches of like length, as FlipTrainer makes them; the published step gets the same rows in random order.
    rng = np.random.default_rng(0)
    by_length = rng.permutation(rows.lengths.argsort(kind="stable").reshape(-1, batch_size))[:rounds]
    shuffled = rng.permutation(by_length.ravel()).reshape(rounds, batch_size)
    variants = {
        "published": Variant(published_loss, model, bf16=False),
        "fp32": Variant(our_loss, model, bf16=False),
        "bf16": Variant(our_loss, model, bf16=True),
    }

    def batch_for(name: str, i: int) -> Batch:
        if name == "published":
            return pad(collate(rows.__getitems__(shuffled[i].tolist())), PUBLISHED_LENGTH, pad_token_id)
        return collate(rows.__getitems__(by_length[i].tolist()))

    for name, variant in variants.items():  # not timed: a warm-up, then the memory of the longest of our batches
        variant.step(batch_for(name, 0))
        longest = int(rows.lengths[by_length].max(axis=1).argmax())
        batch, resting = batch_for(name, longest), reset_peak_memory()
        variant.step(batch)
        # What the step adds, and what this variant alone keeps between steps: parameters, and Adam's two moments of each.
        parameters = sum(p.numel() * p.element_size() for p in variant.model.parameters())
        variant.peak_memory_mib = peak_memory() - resting + 3 * parameters / 2**20
    for i in range(rounds):
        for name, variant in variants.items():
            variant.seconds += variant.step(batch_for(name, i))
        print(f"round {i + 1} of {rounds}", end="\r", flush=True)
    device = next(model.parameters()).device
    peaks = {bf16: matrix_product_peak(torch.bfloat16 if bf16 else torch.float32, device) for bf16 in (False, True)}
    for i in range(rounds):  # not timed: counting takes longer
        for name, variant in variants.items():
            variant.count_flops(batch_for(name, i))
    result: dict[str, dict[str, float]] = {}
    for name, variant in variants.items():
        speed = rounds * batch_size / variant.seconds
        rate = variant.flops / variant.seconds
        result[name] = {
            "samples_per_second": speed,
            "peak_memory_mib": variant.peak_memory_mib,
            "flops_per_second": rate,
        }
        result[name] |= {"matrix_product_peak": peaks[variant.bf16], "share_of_peak": rate / peaks[variant.bf16]}
        if name != "published":
            result[name]["ratio"] = speed / result["published"]["samples_per_second"]
            result[name]["memory_ratio"] = variant.peak_memory_mib / result["published"]["peak_memory_mib"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Our pretraining step against the published one.")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8, help="timed steps of each variant")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    torch.manual_seed(0)
    result = measure(args.batch_size, args.rounds)
    print(
        f"batch {args.batch_size}, {'GPU' if torch.cuda.is_available() else f'{torch.get_num_threads()} CPU threads'}"
    )
    print(f"{'':10} {'samples/s':>10} {'ratio':>7} {'peak MiB':>9} {'of published':>13} {'GFLOP/s':>8} {'of peak':>14}")
    for name, r in result.items():
        ratio, memory = r.get("ratio", 1.0), r.get("memory_ratio", 1.0)
        print(
            f"{name:10} {r['samples_per_second']:10.1f} {ratio:6.1f}x {r['peak_memory_mib']:9.0f} {memory:13.2f}",
            end=" ",
        )
        print(f"{r['flops_per_second'] / 1e9:8.0f} {r['share_of_peak']:6.0%} of {r['matrix_product_peak'] / 1e9:4.0f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
