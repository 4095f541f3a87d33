"""A bounded part of `make attack`: one process, both stages, kills and damages spread over everything that a run writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attack.cases import Case, Straight, evenly, kind_of, spread
from tests.attack.forks import ROOT
from tests.attack.scenarios import Ended
from tests.attack.verdicts import BARE, GOOD, LINE, TRACEBACK, UNCLEAR, judge

MOST = 5  # of each attack


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What came of each: in a process of its own, for one that has computed cannot fork."""
    folder = tmp_path_factory.mktemp("attack")
    command = [sys.executable, "-m", "tests.attack.kills", "one", "--each", "1", "--most", str(MOST), "--random", "2"]
    command += ["--json", str(folder / "cases.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert (folder / "cases.json").exists(), done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((folder / "cases.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["kills", "damages"])
def test_the_same_command_ends_with_the_same_bits_or_one_clear_line(attack: str, cases: list[dict[str, str]]) -> None:
    ours = [case for case in cases if case["attack"] == attack]
    assert len(ours) == MOST
    bad = [case for case in ours if case["outcome"] not in GOOD]
    assert not bad, "\n".join(f"{c['how']} {c['file']}: {c['outcome']}: {c['detail']}" for c in bad)


# ---- the harness itself


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ("a warning\ntrain.py: error: x.json is cut short; delete the folder run to begin anew\n", LINE),
        ("\r  0%|          | 0/8 [00:00<?, ?it/s]train.py: error: x is cut short; delete the folder\n", LINE),
        ("train.py: error: x is cut; delete it\n\r 50%|##   | 4/8 [00:00<?, ?it/s]\n", LINE),
        ("train.py: error: [Errno 22] Invalid argument\n", BARE),  # what is one to do?
        ("Killed\n", UNCLEAR),
        ("", UNCLEAR),
        ("Traceback (most recent call last):\n  File …\nEOFError\n", TRACEBACK),
    ],
)
def test_an_error_is_clear_if_it_is_one_line_with_a_remedy(error: str, outcome: str, tmp_path: Path) -> None:
    assert judge(Ended(1, error), tmp_path, {}).outcome == outcome


def test_kinds_of_files_and_cases_spread_over_them(tmp_path: Path) -> None:
    assert (
        kind_of("run/checkpoints/finetuning/checkpoint-12/fields.py") == "run/checkpoints/finetuning/checkpoint-N/*.py"
    )
    straight = Straight("one", tmp_path, {})
    cases = [
        Case(file, how, straight, tmp_path / str(i)) for i in range(9) for file in "ab" for how in ("cut", "removed")
    ]
    chosen = spread(cases, 3)
    assert len(chosen) == 12
    assert [case.start.name for case in chosen[:3]] == ["1", "4", "7"]
    assert evenly(cases, 99) == cases
