"""Python code in a process of its own that does not import for seconds: it is forked from one that has imported all that a run
of train.py needs, and done nothing else."""

from __future__ import annotations

import gc
import os
import subprocess
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

# What is imported late, for the fork server: it preloads this module.
import matplotlib.backends.backend_agg  # noqa: F401
import transformers.models.bert.modeling_bert
import transformers.pipelines
import transformers.trainer  # noqa: F401

import train  # noqa: F401
from data_scripts.registry import registered_datasets

registered_datasets()
gc.freeze()


@dataclass
class Forked:
    """A running child, and the folder of what it prints."""

    process: BaseProcess
    log: Path

    def finish(self) -> subprocess.CompletedProcess[str]:
        self.process.join(300)
        assert self.process.exitcode is not None, "it hangs"
        out, err = ((self.log / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess([], self.process.exitcode, out, err)


def run_code(code: str, token: str | None, folder: Path, log: Path) -> None:
    """What a child does: `python -c code` in a folder, with a token for the Hub; what it prints goes to out and err in `log`."""
    os.chdir(folder)
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    for name, number in (("out", 1), ("err", 2)):
        with open(log / name, "w") as file:
            os.dup2(file.fileno(), number)
    exec(code, {"__name__": "__main__"})
