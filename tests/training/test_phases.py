"""What a run shows of its phases."""

from __future__ import annotations

import contextlib
import re
from types import SimpleNamespace

import pytest

from modeling_flip.training import phases
from modeling_flip.training.phases import phase


def test_a_phase_is_one_line_with_its_time_and_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    wall_time: dict[str, float] = {}
    with phase("encode", wall_time):
        pass
    assert re.fullmatch(r"encode … \d+\.\d s\n", capsys.readouterr().err)
    assert wall_time.keys() == {"encode_seconds"} and wall_time["encode_seconds"] >= 0


def test_a_phase_that_fails_has_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    wall_time: dict[str, float] = {}
    with contextlib.suppress(ValueError), phase("encode", wall_time):
        raise ValueError
    assert capsys.readouterr().err == "" and wall_time == {}


def test_other_processes_note_it_and_show_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    wall_time: dict[str, float] = {}
    with phase("encode", wall_time):
        pass
    assert capsys.readouterr().err == "" and wall_time.keys() == {"encode_seconds"}
