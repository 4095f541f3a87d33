from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from modeling_flip import run as run_module
from modeling_flip.run import environment


def test_a_commit_is_uncertain_only_where_code_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modeling_flip"
    folder.mkdir()
    code, readme = folder / "run.py", tmp_path / "README.md"
    code.write_text("")
    readme.write_text("")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(run_module, "__file__", str(code))
    readme.write_text("a table")
    commit = environment()["commit"]
    assert re.fullmatch("[0-9a-f]{40}", commit)
    code.write_text("another model")
    assert environment()["commit"] == f"{commit} with uncommitted changes"
