"""The demo as a Space: pushed to a Hub by the command, and run from what is there."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.card_rules import check_card
from tests.hub.loopback_hub import LoopbackHub

pytest.importorskip("gradio", reason="the extra demo is not installed")
pytestmark = pytest.mark.slow
Run = Callable[..., subprocess.CompletedProcess[str]]
SPACE = "me/will-they-click"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "demo.md"
START = ".venv/bin/python -m modeling_flip.serving.demo "
(COMMAND,) = (line for line in DOCS.read_text().splitlines() if line.startswith(START) and "push_to_space" in line)
# A push with rows, one without, which must not leave the rows there, and what is refused.
PUSH = """
from pathlib import Path
from modeling_flip import FlipConfig, FlipForCTR, FlipProcessor
from modeling_flip.serving.demo import main

processor = FlipProcessor.fit({{"user_id": ["1", "2"], "title": ["Toy Story (1995)", "Das Boot"]}}, ["user_id", "title"])
FlipForCTR(FlipConfig.from_processor(processor, towers="tabular", hidden_sizes=[4])).push_to_hub("me/flip-quickstart", processor)
Path("rows.csv").write_text("user_id,title,secret\\n1,Toy Story (1995),s\\n")
push = ["--model", "me/flip-quickstart", "--push_to_space"]
codes = [
    main({command!r}),
    main([*push, "me/other", "--rows", "rows.csv"]),
    main([*push, "me/other"]),
    main([*push, "me/hidden", "--private"]),
    main([*push, "me/other", "--private"]),
    main([*push, "nobody/demo"]),
]
print(codes)
"""
# The page's code and examples are those of the Space; it is made, and not opened.
RUN = """
import json, os, runpy, sys
from pathlib import Path

os.chdir({folder!r})
sys.path.insert(0, os.getcwd())
import gradio as gr
import modeling_flip

assert Path(modeling_flip.__file__).is_relative_to(Path.cwd()), modeling_flip.__file__
gr.Blocks.launch = lambda self, **options: print(json.dumps(self.config, default=str))
runpy.run_path("app.py", run_name="__main__")
"""


def test_a_space_is_pushed_and_runs(hub: LoopbackHub, run_forked: Run, run_python: Run, tmp_path: Path) -> None:
    done = run_forked(PUSH.format(command=shlex.split(COMMAND.removeprefix(START))))
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 2, 2]", done.stdout + done.stderr[-3000:]
    assert f"pushed to {hub.url}/spaces/{SPACE}" in done.stdout
    assert "cannot push to 'me/other': it exists and is public; make it private" in done.stderr
    assert "cannot push to 'nobody/demo'" in done.stderr
    assert hub.repo("me/hidden", "space").private and not hub.repo(SPACE, "space").private
    assert "rows.jsonl" not in hub.files("me/other", "space")

    files = hub.files(SPACE, "space")
    assert hub.commits(SPACE, "space") == ["Upload demo", "initial commit"]
    assert json.loads(files["rows.jsonl"]) == {"user_id": "1", "title": "Toy Story (1995)"}
    card = files["README.md"].decode()
    assert check_card(card, "space") == ([], [])
    assert "sdk: gradio\n" in card and "models:\n- me/flip-quickstart\n" in card
    assert {line.split("==")[0] for line in files["requirements.txt"].decode().splitlines()} >= {
        "torch",
        "transformers",
    }
    assert "modeling_flip/serving/demo.py" in files and not any("__pycache__" in name for name in files)

    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    run = run_python(RUN.format(folder=str(tmp_path)))
    assert run.returncode == 0, run.stderr[-3000:]
    config = json.loads(run.stdout.splitlines()[-1])
    labels = {part["props"].get("label"): part["props"] for part in config["components"]}
    assert labels["Example row"]["choices"] == [["1 · 1 · Toy Story (1995)", 0]]
    assert "<b>me/flip-quickstart</b>" in json.dumps(config)
