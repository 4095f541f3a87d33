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
import json, os, runpy
from pathlib import Path
import gradio as gr
from huggingface_hub import snapshot_download
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

# What the Space would run; the page is made, and not opened.
os.chdir(snapshot_download("me/will-they-click", repo_type="space"))
gr.Blocks.launch = lambda self, **options: print(json.dumps(self.config, default=str))
runpy.run_path("app.py", run_name="__main__")
"""


def test_a_space_is_pushed_and_runs(hub: LoopbackHub, run_python: Run) -> None:
    done = run_python(PUSH.format(command=shlex.split(COMMAND.removeprefix(START))))
    assert done.returncode == 0, done.stderr[-3000:]
    *_, codes, config = done.stdout.splitlines()
    assert codes == "[0, 0, 0, 0, 2, 2]", done.stderr[-3000:]
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
    package = DOCS.parents[1] / "modeling_flip"
    code = {f"modeling_flip/{path.relative_to(package)}": path.read_bytes() for path in package.rglob("*.py")}
    assert {name: content for name, content in files.items() if name.endswith(".py") and name != "app.py"} == code

    parts = json.loads(config)["components"]
    (examples,) = (part["props"] for part in parts if part["props"].get("label") == "Example row")
    assert examples["choices"] == [["1 · 1 · Toy Story (1995)", 0]]
    assert any("<b>me/flip-quickstart</b>" in str(part["props"].get("value")) for part in parts)
