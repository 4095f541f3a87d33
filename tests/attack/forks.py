"""Python functions in forked processes: one that has imported everything and computed nothing (`prepare_to_fork`) forks a
child for each, which then costs a second or two instead of ten."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IMPORTED_LATE = (
    "matplotlib.backends.backend_agg",
    "PIL.JpegImagePlugin",
    "torch.distributed",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.trainer",
)


def prepare_to_fork() -> None:
    """Import whatever a run does, before anything else is, and compute nothing: threads and their locks do not outlive a fork."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as train.py sets it, before torch is imported
    sys.path.insert(0, str(ROOT))
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    import train  # noqa: F401
    from data_scripts.registry import registered_datasets
    from modeling_flip.training.command_line import recipe_parser

    registered_datasets(), recipe_parser()  # they import what they need
    gc.collect()
    gc.freeze()  # or each child looks through all of it
    threads = [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")]
    lost = [name for name in threads[1:] if not name.startswith("jemalloc")]  # pyarrow's, begun anew after a fork
    assert not lost, f"threads that a fork would lose: {lost}"


def fork(task: Callable[[], Any]) -> int:
    """Call `task` in a child and end it; with 0, with the code of a SystemExit, or with 1 and a traceback."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        task()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def in_child(task: Callable[[], Any]) -> None:
    """Call `task` in a child, and wait; RuntimeError where it fails."""
    _, status = os.waitpid(fork(task), 0)
    if status:
        raise RuntimeError(f"a child ended with {os.waitstatus_to_exitcode(status)}")


def iterate(tasks: Sequence[Callable[[], Any]], jobs: int) -> Iterator[tuple[int, Any]]:
    """Call each task in a process forked from this one, `jobs` at a time, and yield its number and what it returns; None where
    it fails."""
    waiting, running = list(enumerate(tasks)), dict[int, tuple[int, Path]]()
    with tempfile.TemporaryDirectory(prefix="attack-") as place:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, task = waiting.pop(0)
                file = Path(place, str(number))
                running[fork(lambda task=task, file=file: file.write_text(json.dumps(task())))] = (number, file)  # type: ignore[misc]
            pid, _ = os.wait()
            number, file = running.pop(pid)
            yield number, json.loads(file.read_text()) if file.exists() else None
