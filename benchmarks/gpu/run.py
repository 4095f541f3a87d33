"""Runs Table 2 of the paper on MovieLens-1M, full size, in slices; on a bare machine with PyTorch, a carried folder (carry.py)
and an output folder. From the root of the repository:

    python benchmarks/gpu/run.py outputs/carry --output_dir DIR [--slice MINUTES] [--from DIR] [--here] [--seeds 1]
        [--systems NAME …] [--work_dir outputs/gpu] [-- --key value …]

It installs the wheels into an environment of its own on top of the running Python's, and runs benchmarks/reproduce.py: DCNv2,
FLIP_ID, FLIP and FLIP_PLM first. After `--slice` minutes the training is ended, which loses at most the epoch that it is in. The
same command again goes on where it was, from the work folder, or on another machine from an output folder (`--from`).

The output folder has summary.json, log.txt, and `state.tar.NN`: results, predictions, and what of the models and checkpoints
`--total_mib` holds, what is needed to go on first; summary.json lists the rest. `cat DIR/state.tar.* | tar x -C outputs/gpu`
unpacks it. What follows `--` is given to every run. Only the standard library is imported here.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import io
import json
import os
import signal
import site
import subprocess
import sys
import tarfile
import threading
import time
import venv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
DATASET = "movielens-1m"
MIB = 2**20
SECONDS_TO_END = 30.0
# The paper's batch in all, which the recipes share out among 8 GPUs.
ON_ONE_GPU = ("--pretraining.per_device_train_batch_size", "1024")
# Of a run, what says whether it is the same, and whether it has ended.
NEEDED = ("recipe.yaml", "all_results.json")
NOTHING_IS_FETCHED = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def install(carried: Path, folder: Path) -> Path:
    """An environment with the carried wheels, and what the running Python has; its Python.

    Raises:
        subprocess.CalledProcessError: something is missing, and pip has said what.
    """
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return python
    venv.create(folder, system_site_packages=True)
    # The running Python may be a virtual environment itself, whose packages its system's Python does not have.
    (own,) = (folder / "lib").glob("python*/site-packages")
    (own / "there.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wheels = carried / "wheels"
    wanted = [*map(str, sorted(wheels.glob("*.whl"))), *setup["options"]["install_requires"].split("\n")[1:]]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--find-links", str(wheels), *wanted], check=True)
    done.touch()
    return python


def run_until(command: Sequence[str], ends: float, log: Path) -> int | None:
    """Runs a command, in a process group of its own, until it ends or `time.monotonic()` is `ends`.

    Returns:
        its exit code; None where it had to be ended. None of its processes is left.
    """
    environment = os.environ | NOTHING_IS_FETCHED
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, env=environment
    )
    assert process.stdout is not None
    with open(log, "ab") as file:
        copier = threading.Thread(target=copy, args=(process.stdout, file), daemon=True)
        copier.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=max(0.0, ends - time.monotonic()))
            copier.join(SECONDS_TO_END)
            return code
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            copier.join(SECONDS_TO_END)  # the pipe ends with the last of them
            if not copier.is_alive():
                break
        process.wait()
    return None


def copy(source: IO[bytes], file: IO[bytes]) -> None:
    while chunk := os.read(source.fileno(), 1 << 16):
        file.write(chunk)
        file.flush()
        sys.stdout.write(chunk.decode(errors="replace"))
        sys.stdout.flush()


# ---- what comes back


def unit_of(path: Path) -> tuple[int, str]:
    """Of a file in the work folder, how soon it is needed, and what it belongs to, which is of use only whole."""
    parts = path.parts
    if parts[0] != "models" or parts[-1] in NEEDED or parts[-2] == "manifests":
        return 0, "results"
    rank = {"pretraining": 1, "checkpoints": 2}.get(parts[3], 3)
    return rank, "/".join((*parts[:3], ["model", parts[3], "/".join(parts[3:5]), "model"][rank]))


def units(work: Path) -> dict[str, list[Path]]:
    """The files of the work folder by what they belong to, what is needed first in front; of the same kind, the newest first."""
    files: dict[tuple[int, str], list[Path]] = defaultdict(list)
    for pattern in ("table2.*", "results/**/*", "models/**/*"):
        for path in sorted(work.glob(pattern)):
            inside = path.relative_to(work)
            is_hidden = any(part.startswith(".") for part in inside.parts)  # it is unfinished, or a lock
            is_over = (
                inside.parts[3:5] == ("checkpoints", "pretraining")
                and work.joinpath(*inside.parts[:3], "pretraining").exists()
            )
            if path.is_file() and not is_hidden and not is_over:
                files[unit_of(inside)].append(path)
    order = sorted(files, key=lambda unit: (unit[0], -max(path.stat().st_mtime for path in files[unit])))
    return {unit[1]: files[unit] for unit in order}


def pack(work: Path, output_dir: Path, total_mib: float, part_mib: float) -> dict[str, Any]:
    """Writes what fits to `state.tar.NN`, in place of an earlier slice's; what did and what did not, in MiB."""
    for old in output_dir.glob("state.tar.*"):
        old.unlink()
    packed: dict[str, float] = {}
    left: dict[str, float] = {}
    size = 0
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, files in units(work).items():
            needed = sum(path.stat().st_size + 1024 for path in files)
            fits = size + needed <= total_mib * MIB
            (packed if fits else left)[name] = round(needed / MIB, 2)
            if fits:
                size += needed
                for path in files:
                    tar.add(path, path.relative_to(work))
    data, step = buffer.getvalue(), int(part_mib * MIB)
    for number, first in enumerate(range(0, len(data), step)):
        (output_dir / f"state.tar.{number:02}").write_bytes(data[first : first + step])
    return {"packed_mib": packed, "left_behind_mib": left}


def unpack(source: Path, work: Path) -> None:
    """Raises ValueError where the work folder has runs already, or the source has none."""
    if (work / "models").exists():
        raise ValueError(f"{work} has runs already, which may be further; leave --from out, or delete the folder")
    parts = sorted(source.glob("state.tar.*"))
    if not parts:
        raise ValueError(f"{source} has no state.tar.*")
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as tar:
        tar.extractall(work, filter="data")


def name_commit(results: Path, commit: str | None) -> dict[str, Any]:
    """Writes the carried commit into results that have none; their main figures."""
    shown = {}
    for file in sorted(results.glob("*/*.json")):
        figures: Mapping[str, Any] = json.loads(file.read_text())
        if "test_auc" not in figures:
            continue
        if figures["commit"] is None:
            file.write_text(json.dumps({**figures, "commit": commit}, indent=2, ensure_ascii=False) + "\n")
        seconds = figures["wall_time"]["total_seconds"]
        shown[file.stem] = {key: figures[key] for key in ("test_auc", "test_logloss")} | {"seconds": seconds}
    return shown


def main(given: Sequence[str] | None = None) -> None:
    began = time.monotonic()
    given = list(sys.argv[1:] if given is None else given)
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("carried", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--slice", type=float, default=float("inf"), metavar="MINUTES", help="default: no limit")
    parser.add_argument("--from", dest="source", type=Path, help="an earlier slice's output folder")
    parser.add_argument("--here", action="store_true", help="install nothing: run with the running Python's packages")
    parser.add_argument("--seeds", nargs="+", default=["1"])
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="default: all of Table 2")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--total_mib", type=float, default=60, help="of state.tar.* (default: %(default)s)")
    parser.add_argument("--part_mib", type=float, default=15, help="of each part (default: %(default)s)")
    options = parser.parse_args(given[:split])
    carried, work, output_dir = options.carried, options.work_dir, options.output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    if options.source is not None:
        unpack(options.source, work)
    python = Path(sys.executable) if options.here else install(carried, work / "environment")
    command = [str(python), "-m", "benchmarks.reproduce", "table2", "--dataset", DATASET, "--size", "paper"]
    command += ["--seeds", *options.seeds, "--results", str(work / "results"), "--output_dir", str(work)]
    command += ["--systems", *options.systems] if options.systems else []
    arguments = ["--raw_dir", str(carried / "raw"), "--text_model_name_or_path", str(carried / "text-model")]
    ends = began + 60 * options.slice
    code = run_until([*command, "--", *arguments, *ON_ONE_GPU, *given[split + 1 :]], ends, output_dir / "log.txt")
    commit = json.loads((carried / "carried.json").read_text())["commit"]
    summary = {"exit_code": code, "seconds": time.monotonic() - began, "commit": commit}
    summary["results"] = name_commit(work / "results", commit)
    summary |= pack(work, output_dir, options.total_mib, options.part_mib)
    (output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))
    if code is None:
        print(f"stopped after {summary['seconds'] / 60:.1f} minutes; the same command goes on")
    elif code != 0:
        sys.exit(code)


if __name__ == "__main__":
    main()
