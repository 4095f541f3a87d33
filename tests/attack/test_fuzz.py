"""The fuzzers, with one seed and a quarter of their cases: the same in every run; `make fuzz` draws others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack.fuzz import SIZES, fuzz

SEED = 13


@pytest.mark.parametrize("target", SIZES)
def test_nothing_is_found(target: str, tmp_path: Path) -> None:
    assert fuzz(target, tmp_path, SEED, SIZES[target] // 4) == []
