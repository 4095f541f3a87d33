"""What serves a model fastest: torch, ONNX Runtime or OpenVINO; in which precision; at what cost in AUC.

    python -m benchmarks.serving MODEL … --rows FILE --label_column NAME [--systems NAME …] [--runtimes NAME …]
        [--threads 1 2] [--latencies 200] [--batches 4] [--rounds 3] [--json PATH]

A MODEL is a folder or Hub id of a FLIP with both towers; it is measured as FLIP, FLIP_ID and FLIP_PLM. A runtime is given raw
rows: one at a time (p50 and p99 in ms), batches of 256 (rows/s), and for FLIP and FLIP_ID one user with 100 candidates to rank
(p50 in ms). AUC and logloss are those of all rows of `--rows`. Each number of threads has a process of its own, pinned to as many
cores, in which the runtimes take turns; a figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers.utils import logging

from modeling_flip import CtrPredictionPipeline
from modeling_flip.serving.export import export, measured, read_rows
from modeling_flip.serving.score import load_pipeline, open_input
from modeling_flip.training.manifest import environment

SYSTEMS = {"FLIP": "both", "FLIP_ID": "tabular", "FLIP_PLM": "text"}
# Of each runtime, the format and precision of the export; none of torch's.
RUNTIMES: dict[str, tuple[str, str] | None] = {
    "torch fp32": None,
    "torch bf16": None,
    "ONNX fp32": ("onnx", "fp32"),
    "ONNX int8": ("onnx", "int8"),
    "OpenVINO fp32": ("openvino", "fp32"),
    "OpenVINO int8": ("openvino", "int8-static"),
}
BATCH_SIZE, CANDIDATES, USERS = 256, 100, 10
Figures = dict[str, Any]


def prepare(model: str, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Figures]]:
    """Exports a model in every way to `folder`/SYSTEM/RUNTIME; the size of the files, AUC and logloss of each."""
    figures: dict[str, dict[str, Figures]] = {}
    for system in options.systems:
        figures[system], towers = {}, SYSTEMS[system]
        pipe = load_pipeline(model, None, "cpu", return_towers=False, dtype="float32", towers=towers)
        labelled = pipe.processor.encode(*read_rows(options.rows, options.label_column), strict=False)
        for runtime in options.runtimes:
            print(f"{Path(model).name}, {system}: {runtime}", flush=True)
            place, exported = folder / system / runtime, RUNTIMES[runtime]
            if exported is not None:
                report = export(pipe, place, format=exported[0], precision=exported[1], rows=labelled)
                size, of_rows = report["bytes"]["graph"], report["measured"]["graph"]
            else:
                dtype = "bfloat16" if "bf16" in runtime else "float32"
                own = load_pipeline(model, None, "cpu", return_towers=False, dtype=dtype, towers=towers)
                own.save_pretrained(place)
                size, of_rows = (place / "model.safetensors").stat().st_size, measured(own, labelled)
            figures[system][runtime] = {"megabytes": size / 1e6, **of_rows}
    return figures


def in_milliseconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def speed(pipe: CtrPredictionPipeline, table: pa.Table, latencies: int, batches: int) -> Figures:
    """Latencies and rows/s of one runtime."""
    singles = table.slice(0, latencies).to_pylist()
    many = table.slice(0, BATCH_SIZE * batches)
    for row in singles[:10]:
        pipe(row)
    pipe(many.slice(0, BATCH_SIZE), batch_size=BATCH_SIZE)
    times = [in_milliseconds(lambda: pipe(row)) for row in singles]  # noqa: B023 - called at once
    figures = {f"row_p{p}_ms": float(np.percentile(times, p)) for p in (50, 99)}
    spent = in_milliseconds(lambda: pipe(many, batch_size=BATCH_SIZE))
    figures["rows_per_second"] = 1000 * len(many) / spent
    if pipe.model.config.towers != "text":
        sides = {field.name: field.side for field in pipe.processor.schema}
        of_item = [name for name in table.column_names if sides.get(name) == "item"]
        candidates = table.slice(0, CANDIDATES).select(of_item).to_pylist()
        users = [{k: v for k, v in row.items() if k not in of_item} for row in singles[:USERS]]
        times = [in_milliseconds(lambda: pipe.rank(user, candidates)) for user in users]  # noqa: B023
        figures["rank_p50_ms"] = float(np.percentile(times, 50))
    return figures


def measure_all(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Figures]]:
    """Every runtime of every system in a folder of `prepare`, in this process."""
    table = open_input(options.rows).to_table()
    told: dict[str, dict[str, list[Figures]]] = {s: {name: [] for name in options.runtimes} for s in options.systems}
    for round_ in range(options.rounds):
        for system in options.systems:
            for runtime in options.runtimes[:: 1 if round_ % 2 else -1]:
                dtype = {"dtype": "bfloat16"} if "bf16" in runtime else {}
                pipe = load_pipeline(str(folder / system / runtime), None, "cpu", return_towers=False, **dtype)
                told[system][runtime].append(speed(pipe, table, options.latencies, options.batches))
    return {
        system: {
            runtime: {name: statistics.median(each[name] for each in many) for name in many[0]}
            for runtime, many in of_system.items()
        }
        for system, of_system in told.items()
    }


def in_own_process(threads: int, folder: Path) -> dict[str, dict[str, Figures]]:
    """`measure_all` in a process with so many threads, pinned to as many cores; its arguments are this process's."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    made = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *sys.argv[1:], "--measure", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return dict(json.loads(made.stdout.splitlines()[-1]))


def show(model: str, threads: int, figures: dict[str, dict[str, Figures]]) -> None:
    print(f"\n**{model}, {threads} thread{'s' * (threads > 1)}**\n")
    titles = [
        "model",
        "runtime",
        "MB",
        "one row p50 / p99, ms",
        "rows/s",
        "times the first",
        "100 candidates, ms",
        "AUC",
        "difference",
    ]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for system, of_system in figures.items():
        base = next(iter(of_system.values()))
        for runtime, f in of_system.items():
            rank = f"{f['rank_p50_ms']:.2f}" if "rank_p50_ms" in f else "–"
            cells = [system, runtime, f"{f['megabytes']:.1f}", f"{f['row_p50_ms']:.2f} / {f['row_p99_ms']:.2f}"]
            cells += [f"{f['rows_per_second']:,.0f}", f"{f['rows_per_second'] / base['rows_per_second']:.2f}", rank]
            cells += [f"{f['auc']:.4f}", f"{f['auc'] - base['auc']:+.4f}"]
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--label_column", required=True)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--latencies", type=int, default=200, help="rows scored one by one")
    parser.add_argument("--batches", type=int, default=4, help=f"batches of {BATCH_SIZE} rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # of `in_own_process`
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.measure:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        print(json.dumps(measure_all(options.measure, options)))
        return
    figures: dict[str, Any] = {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            kept = prepare(model, options, Path(scratch))
            for threads in options.threads:
                timed = in_own_process(threads, Path(scratch))
                together = {s: {r: {**kept[s][r], **timed[s][r]} for r in timed[s]} for s in timed}
                figures.setdefault(Path(model).name, {})[f"{threads} threads"] = together
                show(Path(model).name, threads, together)
                if options.json:  # as they come
                    options.json.write_text(json.dumps({"models": figures} | environment(), indent=2) + "\n")


if __name__ == "__main__":
    main()
