"""Preparation, opening, feeding and training steps as the rows and the features grow, on generated data of GoodReads' shape.

python -m benchmarks.scale [--rows 1000000 5000000 20000000] [--features 17000 722000 4570000] [--folder FOLDER] [--json PATH]
    [--plot PATH]

15 categorical fields that have, together, about as many distinct values as the largest of `--features`; of each step, a table of
as many features. Every part runs in a process of its own; its peak memory is what the system counts for it (VmHWM), imports
included. Figures at the top level of the JSON are those of the last of `--rows`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Share of all features that each field has, GoodReads' own roughly: a user, what a book says of itself, and what comes with it.
FIELDS = {
    "user_id": 0.19,
    "book_id": 0.22,
    "work_id": 0.18,
    "title": 0.19,
    "author_id": 0.08,
    "author": 0.075,
    "publisher": 0.05,
    "isbn_group": 0.01,
    "series": 0.004,
    "num_pages": 0.0006,
    "publication_year": 0.0003,
    "publication_month": 12,
    "language": 60,
    "format": 100,
    "genre": 10,
}
WORDS = ("the", "of", "night", "house", "last", "secret", "girl", "war", "book", "sea", "king", "stone")
ROWS_AT_ONCE = 1 << 20
BATCH_SIZE = 2048
FED_ROWS = 2_000_000
STEPS = 30


def values_of(name: str, size: int) -> pa.Array:
    """(size,) distinct texts."""
    numbers = pa.array(np.arange(size))
    text = numbers.cast(pa.string())
    if name in ("title", "author", "publisher", "series"):
        words = pa.array([f"{a} {b}" for a in WORDS for b in WORDS]).take(
            pa.array(np.arange(size) * 7 % len(WORDS) ** 2)
        )
        return pc.binary_join_element_wise(words, text, " ")
    scattered = pa.array(np.arange(size) * 2_654_435_761 % (1 << 40)).cast(pa.string())
    return pc.binary_join_element_wise(name[:1], scattered, "") if name.endswith("_id") else text


def write(path: Path, rows: int, features: int) -> None:
    """Clicks of rows whose values are drawn from a power law; later rows bring new values, as a log does."""
    rng = np.random.default_rng(rows)
    sizes = {name: max(2, int(share if share >= 1 else share * features)) for name, share in FIELDS.items()}
    values = {name: values_of(name, size) for name, size in sizes.items()}
    kinds = [*((name, pa.string()) for name in FIELDS), ("time", pa.int64()), ("label", pa.int8())]
    with pq.ParquetWriter(path, pa.schema(kinds), compression="snappy") as writer:
        for first in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - first)
            columns: dict[str, Any] = {}
            for name, size in sizes.items():
                # One row in four takes the next value that has not come yet, so that all of them do.
                drawn = (size * rng.random(count) ** 2).astype(np.int64)
                fresh = rng.random(count) < 0.25
                turn = ((first + np.arange(count)) * size // rows) % size
                columns[name] = values[name].take(pa.array(np.where(fresh, turn, drawn)))
            columns["time"] = 1_500_000_000 + first + np.arange(count)
            columns["label"] = (rng.random(count) < 0.3).astype(np.int8)
            writer.write_table(pa.table(columns, pa.schema(kinds)))


# ---- the parts, each in its own process


def a_recipe(data: Path, cache: Path, fields: list[str] | None = None) -> Any:
    from modeling_flip.training.recipe import Recipe

    return Recipe(
        dataset_name=str(data),
        output_dir="unused",
        time_column="time",
        towers="tabular",
        fields=[{"name": name, "kind": "categorical", "type": "string"} for name in fields or FIELDS],
        cache_dir=str(cache),
        num_proc=1,
    )


def prepared(data: Path, cache: Path) -> tuple[Any, dict[str, float]]:
    from modeling_flip.training.preparation import prepare
    from modeling_flip.training.splits import load_splits

    wall_time: dict[str, float] = {}
    recipe = a_recipe(data, cache)
    raw = load_splits(str(data), time_column="time", keep=["label"])
    return prepare(recipe, raw, wall_time=wall_time), wall_time


def measure_preparation(data: Path, cache: Path) -> dict[str, Any]:
    started = time.perf_counter()
    made, wall_time = prepared(data, cache)
    seconds = time.perf_counter() - started
    rows = sum(map(len, made.splits.values()))
    return {
        "prepare_seconds": seconds,
        "prepare_rows_per_second": rows / seconds,
        "prepare_phases": wall_time,
        "prepare_peak_mib": peak_mib(),
        "encode_rows_per_second": rows / wall_time["encode_seconds"],
        "features": made.processor.vocabulary.num_features,
        "disk_mib": sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) / 2**20,
    }


def measure_opening(data: Path, cache: Path) -> dict[str, Any]:
    import modeling_flip.training.preparation  # noqa: F401  # not counted

    started = time.perf_counter()
    prepared(data, cache)
    return {"open_seconds": time.perf_counter() - started, "open_peak_mib": peak_mib()}


def measure_feeding(data: Path, cache: Path) -> dict[str, Any]:
    from benchmarks.data_pipeline import feed_rows_per_second

    made, _ = prepared(data, cache)
    rows = made.splits["train"]
    speeds = [feed_rows_per_second(made.processor, rows, "tabular", BATCH_SIZE, FED_ROWS) for _ in range(3)]
    return {"feed_rows_per_second": max(speeds), "feed_peak_mib": peak_mib()}


def measure_steps(features: list[int]) -> dict[str, Any]:
    """The best of three rounds, in each of which every size is measured, on one core."""
    import torch

    from benchmarks.sparse_step import step_seconds

    torch.set_num_threads(1)

    found = {size: step_seconds(size, steps=STEPS) for size in features}
    for _ in range(2):
        for size in features:
            found[size] = min(found[size], step_seconds(size, steps=STEPS))
    return {"step_seconds": {str(size): seconds for size, seconds in found.items()}, "step_peak_mib": peak_mib()}


def peak_mib() -> float:
    """The most memory that this process had at once. `ru_maxrss` would count that of the process it came from."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a function gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# ---- all of it


def main() -> None:
    parser = argparse.ArgumentParser(description="Preparation, opening, feeding and steps at any size.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000])
    parser.add_argument("--features", type=int, nargs="+", default=[17_000, 722_000, 4_570_000])
    parser.add_argument(
        "--folder", type=Path, help="for the data and the cache, which are deleted again; default: temporary"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--plot", type=Path, help="where to draw them")
    args = parser.parse_args()
    runs = []
    for rows in args.rows:
        folder = Path(tempfile.mkdtemp(prefix="flip-scale-", dir=args.folder))
        try:
            data, cache = folder / "log.parquet", folder / "cache"
            alone_write = alone(written, data, rows, max(args.features))
            figures = {"rows": rows, **alone_write}
            for measure in (measure_preparation, measure_opening, measure_feeding):
                figures |= alone(measure, data, cache)
            print({k: round(v, 1) for k, v in figures.items() if isinstance(v, (int, float))}, flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        runs.append(figures)
    result = {**runs[-1], **alone(measure_steps, args.features), "runs": runs}
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.plot:
        plot(result, args.plot)


def written(path: Path, rows: int, features: int) -> dict[str, Any]:
    write(path, rows, features)
    return {"file_mib": path.stat().st_size / 2**20}


def plot(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    runs = result["runs"]
    rows = [run["rows"] / 1e6 for run in runs]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    speed, memory, steps = figure.subplots(1, 3)
    for name, label in (
        ("prepare_rows_per_second", "prepare"),
        ("encode_rows_per_second", "encode"),
        ("feed_rows_per_second", "feed"),
    ):
        speed.plot(rows, [run[name] / 1e6 for run in runs], marker="o", label=label)
    speed.set(xlabel="million rows", ylabel="million rows/s", title="Speed, one thread", ylim=0)
    for name, label in (("prepare_peak_mib", "prepare"), ("open_peak_mib", "open"), ("feed_peak_mib", "feed")):
        memory.plot(rows, [run[name] / 1024 for run in runs], marker="o", label=label)
    memory.set(xlabel="million rows", ylabel="GiB", title="Peak memory", ylim=0)
    sizes, seconds = zip(*((int(m), s) for m, s in result["step_seconds"].items()), strict=True)
    steps.plot([m / 1e6 for m in sizes], [s * 1000 for s in seconds], marker="o")
    steps.set(xlabel="million features", ylabel="ms", title=f"DCNv2 step, batch {BATCH_SIZE}, one core")
    steps.set_ylim(0, 1.2e3 * max(seconds))
    speed.legend()
    memory.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
