"""A bounded part of `make soak`: each signal twice, both stages, one and two processes, dense, sparse and sharded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attack.forks import ROOT
from tests.resume.soak import SCENARIOS, SIGNALS, STAGES, draw

RUNS, KILLS = ["one", "two-sparse", "two-sharded"], 6


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """In a process of its own, for one that has computed cannot fork."""
    command = [sys.executable, "-m", "tests.resume.soak", "--kills", str(KILLS), "--seed", "1", "--runs", *RUNS]
    command += ["--json", str(tmp_path / "kills.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert (tmp_path / "kills.json").exists(), done.stdout[-2000:] + done.stderr[-4000:]
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert len(kills) == KILLS
    assert not [kill for kill in kills if kill["wrong"]]
    assert any(kill["stopped_at"] for kill in kills)


def test_the_kills_are_of_every_kind() -> None:
    kills = draw(60, [*SCENARIOS], 0)
    kinds = {(kill.scenario, kill.stage, kill.name) for kill in kills}
    assert len(kinds) == len(SCENARIOS) * len(STAGES) * len(SIGNALS)
    few = draw(KILLS, RUNS, 1)
    assert {(kill.scenario, kill.stage) for kill in few} == {(name, stage) for name in RUNS for stage in STAGES}
    assert {kill.name for kill in few} == {*SIGNALS}
