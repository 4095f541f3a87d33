"""Fuzzers of the pipeline, the score command and train.py: `make fuzz`, or one case again with

python -m tests.attack.fuzz score --seed 7 --only 123
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of Hugging Face is imported

import torch
import transformers

from . import fuzz_pipeline, fuzz_score, fuzz_training

# Rows, files and trainings: so many in CI, and in `make fuzz` of another seed each time.
SIZES = {"pipeline": 20_000, "score": 1_000, "training": 200}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings and bars, which thousands of odd rows would fill the screen with; on one thread, which is all that tiny
    tensors want."""
    verbosity, bars = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()
        torch.set_num_threads(threads)
        logging.disable(disabled)


def fuzz(target: str, folder: Path, seed: int, size: int, only: int | None = None) -> list[str]:
    """What did not hold, each with the command that shows it again."""
    with quiet():
        if target == "training":
            faults = fuzz_training.fuzz(folder, seed, size, only)
        else:
            pipe = fuzz_pipeline.make_pipeline(folder / "text-model")
            if target == "pipeline":
                faults = fuzz_pipeline.fuzz(pipe, seed, size, only)
            else:
                pipe.save_pretrained(folder / "model")
                faults = fuzz_score.fuzz(pipe, folder / "model", folder, seed, size, only)
    return [f"python -m tests.attack.fuzz {fault}" for fault in faults]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=SIZES, help="all of them, unless one is named")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="drawn, unless it is given")
    parser.add_argument("--size", type=int, help=f"rows, files or trainings: {SIZES}")
    parser.add_argument("--only", type=int, help="this case alone")
    args = parser.parse_args(arguments)
    faulty = False
    for target in [args.target] if args.target else SIZES:
        folder, started = Path(tempfile.mkdtemp(prefix=f"fuzz-{target}-")), time.perf_counter()
        size = args.size or SIZES[target]
        faults = fuzz(target, folder, args.seed, size, args.only)
        print(*faults, sep="\n")
        print(
            f"{target}, seed {args.seed}: {size:,}, {len(faults)} faults, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
        if faults:
            faulty = True
            print(f"what they were found with is in {folder}")
        else:
            shutil.rmtree(folder)
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
