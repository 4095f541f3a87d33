from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from modeling_flip.training import stages


def test_a_commit_is_uncertain_only_where_code_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modeling_flip"
    folder.mkdir()
    code, readme = folder / "stages.py", tmp_path / "README.md"
    code.write_text("")
    readme.write_text("")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(stages, "__file__", str(code))
    readme.write_text("a table")
    commit = stages.environment()["commit"]
    assert re.fullmatch("[0-9a-f]{40}", commit)
    code.write_text("another model")
    assert stages.environment()["commit"] == f"{commit} with uncommitted changes"
