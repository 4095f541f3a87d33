"""docs/index.md from top to bottom, as a newcomer follows it: from a CSV file to a score over HTTP."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.csv as pc
import pytest

import train
from modeling_flip.serving import score
from tests.end_to_end.test_readme import BASH, NEWCOMER, QUICK, QUICK_PRETRAINING, ROOT, TRAIN, python_blocks

PAGE = "docs/index.md"
PYTHON = ".venv/bin/python -m "
INSTALL, SCORE, INSTALL_SERVING, SERVE, CURL = NEWCOMER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("newcomer")
    (here / "configuration").symlink_to(ROOT / "configuration")
    return here


@pytest.mark.usefixtures("few_demo_rows")
def test_a_file_becomes_scores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write, use = python_blocks(PAGE)
    exec(compile(write, PAGE, "exec"), {})
    dry, real, _ = (line.removeprefix(TRAIN) for page, line in BASH if page == PAGE and line.startswith(TRAIN))
    assert dry == f"{real} --dry_run"
    train.main([*shlex.split(real), *QUICK, *QUICK_PRETRAINING])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(use, PAGE, "exec"), {})
    assert "{'probability': 0." in printed.getvalue()

    module, *arguments = shlex.split(SCORE.removeprefix(PYTHON))
    assert module == "modeling_flip.score" and score.main(arguments) == 0
    rows, scores = pc.read_csv("clicks.csv"), pc.read_csv("scores.csv")
    assert scores.num_rows == rows.num_rows and scores.column_names == [*rows.column_names, "probability"]


@pytest.mark.slow
def test_the_server_answers_curl(folder: Path) -> None:
    """The commands of the page, on a free port."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    command = [sys.executable, "-m", *shlex.split(SERVE.removeprefix(PYTHON)), "--port", str(port)]
    curl = shlex.split(CURL.replace("localhost:8000", f"localhost:{port}"))
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    server = subprocess.Popen(command, cwd=folder)
    try:
        for _ in range(60):
            answer = subprocess.run(curl, capture_output=True, text=True)
            if answer.returncode == 0:
                break
            time.sleep(1)
        assert "probabilit" in json.dumps(json.loads(answer.stdout))
    finally:
        server.terminate()
        server.wait(30)


def test_the_extra_is_declared() -> None:
    assert INSTALL == "python3 -m venv .venv && .venv/bin/python -m pip install -c constraints.txt -e ."
    assert INSTALL_SERVING == ".venv/bin/python -m pip install -c constraints.txt -e '.[serving]'"
    assert "\nserving =\n" in (ROOT / "setup.cfg").read_text()
