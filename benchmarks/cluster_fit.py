"""Which engine fits a vocabulary beyond one machine: seconds and memory of Ray and Spark, and of one process, on the same files.

    python -m benchmarks.cluster_fit [--rows 2000000] [--features 722000] [--files 8] [--rounds 1]
        [--engines one one_by_parts ray_data ray_tasks spark] [--json PATH]

Generated rows of `benchmarks.scale`, in Parquet files. Every engine fits the parts and merges them in their order,
with 2 workers on this machine; each has to give the vocabulary that one process fits on all rows at once, to the byte
of its saved file. Ray's tasks pass vocabularies as objects and merge them in a tree; Ray Data and Spark pass saved
files, which are merged where the job was started.

Each run is a process of its own. Seconds, of the fastest round, are those of the fold and, apart from it, of the
engine's start; the workers' imports are in the fold. CPU seconds, which say more on a machine that others use, are of
all processes from start to end, imports included. Memory is that of all processes together at once (proportional set
size, looked at four times a second), of the round with the most. Ray is in the extra `cluster`; Spark (pip install
pyspark) needs Java too, and is none of this project's dependencies.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import scale
from modeling_flip.feature_vocabulary import FeatureVocabulary

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = [{"name": name, "kind": "categorical", "type": "string"} for name in scale.FIELDS]
WORKERS = 2
Fold = Callable[[], FeatureVocabulary]


# ---- the engines: start, then a function that does the fold


def fit_part(path: str) -> FeatureVocabulary:
    return FeatureVocabulary.fit(pq.read_table(path, columns=list(scale.FIELDS)), SCHEMA)


def one(paths: Sequence[str]) -> Fold:
    """All rows at once."""

    def fold() -> FeatureVocabulary:
        rows = pa.concat_tables([pq.read_table(path, columns=list(scale.FIELDS)) for path in paths])
        return FeatureVocabulary.fit(rows, SCHEMA)

    return fold


def one_by_parts(paths: Sequence[str]) -> Fold:
    """The same fold without an engine."""
    return lambda: functools.reduce(lambda a, b: FeatureVocabulary.merge([a, b]), map(fit_part, paths))


def start_ray() -> None:
    import ray

    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, runtime_env=environment)


def ray_data(paths: Sequence[str]) -> Fold:
    import ray

    start_ray()

    def fit(rows: pa.Table) -> dict[str, list[bytes]]:
        return {"vocabulary": [saved(FeatureVocabulary.fit(rows, SCHEMA))]}

    def fold() -> FeatureVocabulary:
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        rows = ray.data.read_parquet(list(paths), columns=list(scale.FIELDS))
        parts = rows.map_batches(fit, batch_format="pyarrow", batch_size=None)
        vocabularies = (loaded(row["vocabulary"]) for row in parts.iter_rows())
        return functools.reduce(lambda a, b: FeatureVocabulary.merge([a, b]), vocabularies)

    return fold


def ray_tasks(paths: Sequence[str]) -> Fold:
    import ray

    start_ray()

    @ray.remote
    def merge(*parts: FeatureVocabulary) -> FeatureVocabulary:
        return FeatureVocabulary.merge(parts)

    def fold() -> FeatureVocabulary:
        fit = ray.remote(fit_part)
        parts = [fit.remote(path) for path in paths]
        while len(parts) > 1:
            parts = [merge.remote(*parts[at : at + 2]) for at in range(0, len(parts), 2)]
        return ray.get(parts[0])

    return fold


def spark(paths: Sequence[str]) -> Fold:
    """Files to Python workers: a DataFrame would neither keep the order of the rows nor give a part at once."""
    from pyspark.sql import SparkSession

    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(f"local[{WORKERS}]").config("spark.ui.enabled", "false")
    context = builder.config("spark.driver.maxResultSize", "4g").getOrCreate().sparkContext
    context.setLogLevel("ERROR")

    def fold() -> FeatureVocabulary:
        parts = context.parallelize(paths, len(paths)).map(lambda path: saved(fit_part(path)))
        vocabularies = (loaded(bytes(part)) for part in parts.collect())
        return functools.reduce(lambda a, b: FeatureVocabulary.merge([a, b]), vocabularies)

    return fold


ENGINES: dict[str, Callable[[Sequence[str]], Fold]] = {
    "one": one,
    "one_by_parts": one_by_parts,
    "ray_data": ray_data,
    "ray_tasks": ray_tasks,
    "spark": spark,
}
PACKAGES = {"ray_data": ["ray"], "ray_tasks": ["ray"], "spark": ["pyspark", "py4j"]}


def saved(vocabulary: FeatureVocabulary) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary.save(path := Path(folder, "part.parquet"))
        return path.read_bytes()


def loaded(data: bytes) -> FeatureVocabulary:
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder, "part.parquet")).write_bytes(data)
        return FeatureVocabulary.load(path)


# ---- measuring


def family(pid: int) -> Iterator[int]:
    """A process and all that came from it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from family(int(child))


def memory_mib(pids: Sequence[int]) -> float:
    """Proportional set size: a page that several processes share counts once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def cpu_seconds(pid: int) -> float:
    """Of one process so far, without its children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(engine: str, folder: Path) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cluster_fit", "--run", engine, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    peak, seconds = 0.0, dict[int, float]()
    while process.poll() is None:
        pids = list(family(process.pid))
        peak = max(peak, memory_mib(pids))
        seconds |= {pid: max(cpu_seconds(pid), seconds.get(pid, 0.0)) for pid in pids}
        time.sleep(0.25)
    assert process.stdout is not None
    if process.returncode != 0:
        sys.exit(f"{engine} failed")
    return json.loads(process.stdout.read().splitlines()[-1]) | {
        "cpu_seconds": sum(seconds.values()),
        "peak_mib": peak,
        "processes": len(seconds),
    }


def run(engine: str, folder: Path) -> None:
    started = time.perf_counter()
    fold = ENGINES[engine](sorted(map(str, folder.glob("*.parquet"))))
    ready = time.perf_counter()
    vocabulary = fold()
    done = time.perf_counter()
    figures = {"start_seconds": ready - started, "seconds": done - ready, "load": os.getloadavg()[0]}
    print(json.dumps(figures | {"sha256": hashlib.sha256(saved(vocabulary)).hexdigest()}))


def installed_mib(packages: Sequence[str]) -> float | None:
    """Without what it depends on, which is little or here already; without Java."""
    try:
        files = [file.locate() for name in packages for file in distribution(name).files or []]
    except PackageNotFoundError:
        return None
    return sum(os.path.getsize(str(file)) for file in files if os.path.exists(str(file))) / 2**20


def write_files(folder: Path, rows: int, features: int, files: int) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as whole:
        scale.write(path := Path(whole, "all.parquet"), rows, features)
        table = pq.read_table(path)
    for i in range(files):
        first, stop = (len(table) * at // files for at in (i, i + 1))
        pq.write_table(table.slice(first, stop - first), folder / f"part-{i:04}.parquet")


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--features", type=int, default=722_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in options.engines}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(folder, options.rows, options.features, options.files)
        for _ in range(options.rounds):
            for engine in options.engines:
                runs[engine].append(measure(engine, folder))
                print(engine, runs[engine][-1], flush=True)
    figures: dict[str, Any] = {
        "command": f"python -m benchmarks.cluster_fit --rows {options.rows} --features {options.features} "
        f"--files {options.files} --rounds {options.rounds} --engines {' '.join(options.engines)}",
        **{name: getattr(options, name) for name in ("rows", "features", "files")},
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    for engine, rounds in runs.items():
        packages = PACKAGES.get(engine, [])
        size = installed_mib(packages)
        figures[engine] = {
            "version": distribution(packages[0]).version if packages and size is not None else None,
            "installed_mib": size,
            "start_seconds": min(one["start_seconds"] for one in rounds),
            "seconds": min(one["seconds"] for one in rounds),
            "cpu_seconds": min(one["cpu_seconds"] for one in rounds),
            "peak_mib": max(one["peak_mib"] for one in rounds),
            "rounds": rounds,
        }
    figures["same_vocabulary"] = len({one["sha256"] for rounds in runs.values() for one in rounds}) == 1
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps({engine: {k: v for k, v in figures[engine].items() if k != "rounds"} for engine in runs}))
    if not figures["same_vocabulary"]:
        sys.exit("the engines did not give the same vocabulary")


if __name__ == "__main__":
    main()
