"""The same preparation by other tools: values of a Parquet file to integers, kept on disk, with the time and peak memory of each.

python -m benchmarks.preparation_tools [--rows 5000000] [--features 4570000] [--folder FOLDER] [--json PATH]

Each reads the file of `benchmarks.scale`, numbers the distinct values of 15 columns that stand in the first 81 % of the rows,
turns all rows into these numbers (0 where a value is new), and writes them. Each runs in a process of its own, imports included
in its memory. Ours also looks for leaks and unusable columns, counts every value and tells the unseen ones apart. Polars is not a
dependency of this project: pip install polars.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scale import FIELDS, alone, measure_preparation, peak_mib, written

TRAIN = 0.81


def with_pandas(data: Path, out: Path) -> None:
    import numpy as np
    import pandas as pd

    frame = pd.read_parquet(data, columns=list(FIELDS))
    train = int(TRAIN * len(frame))
    codes = np.empty((len(frame), len(FIELDS)), np.int32)
    for i, name in enumerate(FIELDS):
        known = pd.Index(frame[name].iloc[:train].unique())
        codes[:, i] = known.get_indexer(frame[name]) + 1
    np.save(out / "codes.npy", codes)


def with_polars(data: Path, out: Path) -> None:
    import polars as pl

    rows = pl.scan_parquet(data).select(list(FIELDS))
    train = int(TRAIN * rows.select(pl.len()).collect().item())
    coded = rows
    for name in FIELDS:
        known = rows.head(train).select(pl.col(name).unique()).collect().with_row_index("code", offset=1)
        coded = coded.join(known.lazy(), on=name, how="left", maintain_order="left").with_columns(
            pl.col("code").fill_null(0).cast(pl.Int32).alias(name)
        )
        coded = coded.drop("code")
    coded.sink_parquet(out / "codes.parquet")


def with_dataset_map(data: Path, out: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_parquet(str(data), cache_dir=str(out / "cache"), columns=list(FIELDS))
    train = rows.select(range(int(TRAIN * len(rows))))
    known = {name: {value: i for i, value in enumerate(train.unique(name), 1)} for name in FIELDS}

    def coded(batch: dict[str, list[Any]]) -> dict[str, list[int]]:
        return {name: [known[name].get(value, 0) for value in batch[name]] for name in FIELDS}

    rows.map(coded, batched=True, batch_size=10_000).save_to_disk(str(out / "codes"))


def with_this_package(data: Path, out: Path) -> None:
    measure_preparation(data, out / "cache")


TOOLS = {
    "modeling_flip": with_this_package,
    "pandas": with_pandas,
    "polars": with_polars,
    "datasets map": with_dataset_map,
}


def measured(tool: str, data: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    started, cpu = time.perf_counter(), time.process_time()
    TOOLS[tool](data, out)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak_mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description="One preparation by several tools.")
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--features", type=int, default=4_570_000)
    parser.add_argument("--folder", type=Path, help="for the data, which are deleted again; default: temporary")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="flip-tools-", dir=args.folder))
    figures: dict[str, Any] = {"rows": args.rows, "features": args.features, "tools": {}}
    try:
        data = folder / "log.parquet"
        alone(written, data, args.rows, args.features)
        for tool in TOOLS:
            if tool == "polars" and importlib.util.find_spec("polars") is None:
                print("polars is not installed: left out")
                continue
            figures["tools"][tool] = alone(measured, tool, data, folder / tool.replace(" ", "-"))
            shutil.rmtree(folder / tool.replace(" ", "-"))
            print(tool, {name: round(value, 1) for name, value in figures["tools"][tool].items()}, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
