"""Scoring speed: rows/s through the pipeline and the score command, against a bare loop of the model; latency of one row.

    python -m benchmarks.scoring [--models FLIP_ID FLIP_PLM FLIP] [--rows 65536] [--text_rows 2048] [--rounds 5]
        [--latencies 200] [--json PATH]

Generated rows with MovieLens-1M's fields and sizes, DCNv2 at the recipes' sizes, a text tower of TinyBERT's size, batches of
1,024. The bare loop has its batches as tensors already, sorted by length, and does nothing but call the model. All ways take
turns in one process; rows/s are those of the median round, a ratio is the median over the rounds of rows/s to the bare loop's in
the same round. On a GPU it runs there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BertConfig
from transformers.utils import logging

from benchmarks import movielens_like
from benchmarks.small_text_model import TINYBERT
from modeling_flip import CtrPredictionPipeline, FlipConfig, FlipDataCollator, FlipForCTR, FlipProcessor
from modeling_flip.serving.score import open_input, score_file
from modeling_flip.training.manifest import environment

TOWERS = {"FLIP_ID": "tabular", "FLIP_PLM": "text", "FLIP": "both"}
WAYS = ("bare loop", "list of dicts", "DataFrame", "Arrow table", "Parquet to Parquet")


def build(name: str, table: pa.Table, text_config: dict[str, int]) -> CtrPredictionPipeline:
    towers = TOWERS[name]
    tokenizer = None if towers == "tabular" else movielens_like.tokenizer()
    processor = FlipProcessor.fit(table, movielens_like.FIELDS, tokenizer)
    settings = {"towers": towers, **processor.config_settings}
    if towers != "tabular":
        settings["text_config"] = BertConfig(**text_config)
    torch.manual_seed(0)
    return CtrPredictionPipeline(FlipForCTR(FlipConfig(**settings)).eval(), processor)


def bare_batches(pipe: CtrPredictionPipeline, table: pa.Table, batch_size: int) -> list[dict[str, torch.Tensor]]:
    """The rows as tensors, in batches of like length."""
    rows = pipe.processor.encode(table, strict=False)
    order = rows.lengths.argsort(kind="stable")
    collate = FlipDataCollator(pipe.processor, pipe.model.inputs)
    batches = [collate(rows.__getitems__(order[i : i + batch_size])) for i in range(0, len(order), batch_size)]
    return [{key: value.to(pipe.device) for key, value in batch.items()} for batch in batches]


def bare_loop(pipe: CtrPredictionPipeline, batches: list[dict[str, torch.Tensor]]) -> np.ndarray:
    with torch.inference_mode():
        return torch.cat([pipe.model(**batch).logits for batch in batches]).cpu().numpy()


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def throughput(
    pipe: CtrPredictionPipeline, table: pa.Table, batch_size: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Rows/s of every way, and its ratio to the bare loop."""
    batches, dicts, frame = bare_batches(pipe, table, batch_size), table.to_pylist(), table.to_pandas()
    with tempfile.TemporaryDirectory() as folder:
        source, scores = Path(folder, "rows.parquet"), Path(folder, "scores.parquet")
        pq.write_table(table, source)

        def from_file() -> None:
            score_file(pipe, open_input(source), scores, batch_size)
            scores.unlink()

        calls: dict[str, Callable[[], Any]] = {
            "bare loop": lambda: bare_loop(pipe, batches),
            "list of dicts": lambda: pipe(dicts, batch_size=batch_size),
            "DataFrame": lambda: pipe(frame, batch_size=batch_size),
            "Arrow table": lambda: pipe(table, batch_size=batch_size),
            "Parquet to Parquet": from_file,
        }
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for round_ in range(rounds + 1):
            for way in (
                *WAYS[round_ % len(WAYS) :],
                *WAYS[: round_ % len(WAYS)],
            ):  # none is always after the same other
                spent = seconds(calls[way])
                if round_:  # the first is a warm-up
                    times[way].append(spent)
    bare = np.asarray(times["bare loop"])
    return {
        way: {
            "rows_per_second": len(table) / float(np.median(times[way])),
            "ratio": float(np.median(bare / np.asarray(times[way]))),
        }
        for way in WAYS
    }


def latency(pipe: CtrPredictionPipeline, table: pa.Table, calls: int) -> dict[str, float]:
    """Milliseconds for one row: of the model alone, its tensors made already, and of the pipeline given a dict."""
    rows = table.slice(0, min(calls, len(table))).to_pylist()
    tensors = [bare_batches(pipe, table.slice(i, 1), 1) for i in range(len(rows))]
    for row, batch in zip(rows[:5], tensors[:5], strict=True):
        pipe(row), bare_loop(pipe, batch)
    ways = {
        "bare": [seconds(partial(bare_loop, pipe, batch)) for batch in tensors],
        "pipeline": [seconds(partial(pipe, row)) for row in rows],
    }
    return {f"{way}_p{p}_ms": 1000 * float(np.percentile(ways[way], p)) for way in ways for p in (50, 99)}


def command_seconds(pipe: CtrPredictionPipeline, table: pa.Table, batch_size: int) -> float:
    """Wall time of the whole command: the interpreter's start, imports, loading, scoring, writing."""
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        pq.write_table(table, Path(folder, "rows.parquet"))
        command = [sys.executable, "-m", "modeling_flip.score", "--model", folder, "--batch_size", str(batch_size)]
        command += ["--input", f"{folder}/rows.parquet", "--output", f"{folder}/scores.parquet"]
        return seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(TOWERS), choices=list(TOWERS))
    parser.add_argument("--rows", type=int, default=65_536, help="rows per round, for FLIP_ID")
    parser.add_argument("--text_rows", type=int, default=2048, help="rows per round, for models with a text tower")
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latencies", type=int, default=200, help="how many rows to score one by one")
    parser.add_argument(
        "--text_config",
        type=json.loads,
        default=TINYBERT,
        help="settings of the BERT text tower, as JSON (default: TinyBERT's)",
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    figures: dict[str, dict[str, Any]] = {}
    # Many more rows than are scored, so that the vocabulary is as large as the real one.
    everything = movielens_like.rows(max(options.rows, options.text_rows))
    for name in options.models:
        table = everything.slice(0, options.rows if name == "FLIP_ID" else options.text_rows)
        pipe = build(name, everything, options.text_config)
        ways = throughput(pipe, table, options.batch_size, options.rounds)
        figures[name] = {**ways, "latency": latency(pipe, table, options.latencies)}
        figures[name]["command_seconds"] = command_seconds(pipe, table, options.batch_size)
        figures[name] |= {"rows": len(table), "rounds": options.rounds}
        print(f"\n{name}: {len(table):,} rows, batch {options.batch_size:,}, CPU threads: {torch.get_num_threads()}")
        for way in WAYS:
            print(f"  {way:20} {ways[way]['rows_per_second']:12,.0f} rows/s  {ways[way]['ratio']:.2f}")
        print(f"  {'whole score command':20} {figures[name]['command_seconds']:12.1f} s")
        for way in ("bare", "pipeline"):
            p50, p99 = (figures[name]["latency"][f"{way}_p{p}_ms"] for p in (50, 99))
            print(f"  one row, {way:11} {p50:12.2f} ms p50, {p99:.2f} ms p99", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"models": figures} | environment(), indent=2) + "\n")


if __name__ == "__main__":
    main()
