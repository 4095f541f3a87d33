"""The commands of README and docs/ that speak to the Hub or score a file, as processes in a folder like a clone."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.test_readme import ELSEWHERE, QUICK, QUICK_PRETRAINING, ROOT, TRAIN
from tests.hub.loopback_hub import LoopbackHub

pytestmark = pytest.mark.slow
PYTHON = ".venv/bin/python "


RUN = """
import runpy, sys
program, *arguments = {words}
if program == "-m":
    program, *arguments = arguments
    sys.argv = [program, *arguments]
    runpy.run_module(program, run_name="__main__", alter_sys=True)
else:
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
"""


def test_the_commands_run(
    hub: LoopbackHub, run_forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for name in ("configuration", "train.py", "data_scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    rows = {"user_id": ["190", "new"], "price": [1.5, None], "title": ["Joyful Harbor", None]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")

    def run(*arguments: str) -> None:
        done = run_forked(RUN.format(words=[*arguments]), folder=tmp_path)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-1000:]}{done.stderr[-3000:]}"

    quick = [*QUICK, *QUICK_PRETRAINING, "--use_cpu"]
    run("train.py", "configuration/quickstart.yaml", *quick)  # the README's second command, which others run whole
    kinds = set()
    for command in ELSEWHERE:
        if command.startswith(TRAIN):
            run("train.py", *shlex.split(command.removeprefix(TRAIN)), *quick)
        else:
            run(*shlex.split(command.removeprefix(PYTHON)))
        kinds.add(next(word for word in shlex.split(command)[1:] if word != "-m"))
    assert kinds == {"train.py", "modeling_flip.score", "data_scripts.demo"}

    scored = pq.read_table(tmp_path / "scores.parquet")
    assert scored.drop(["probability"]).to_pydict() == rows
    assert hub.commits("me/flip-quickstart")[0] == "End of training"
    assert (tmp_path / "outputs" / "flip-demo" / "all_results.json").exists()
