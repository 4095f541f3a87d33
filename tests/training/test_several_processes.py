"""How the processes of a run are connected. What they do together is tested with real ones, in tests/distributed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

import train
from modeling_flip.training.checks import check_recipe
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.stages import check_shared, run
from modeling_flip.training.tuning import check_tuning, tune

ONE_OF_ONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


class Connected(Exception):
    """Instead of a process group."""


@pytest.fixture
def timeouts(monkeypatch: pytest.MonkeyPatch) -> list[timedelta | None]:
    """Those with which processes would be connected; takes one, and raises Connected."""
    asked: list[timedelta | None] = []

    def connect(*_: Any, timeout: timedelta | None = None, **__: Any) -> None:
        asked.append(timeout)
        raise Connected

    for name, value in ONE_OF_ONE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(PartialState, "_shared_state", {})
    monkeypatch.setattr(torch.distributed, "init_process_group", connect)
    return asked


@pytest.mark.parametrize("begin", [lambda recipe: run(recipe, {}), lambda recipe: tune(recipe, {}, 2)])
def test_processes_wait_for_each_other_for_a_day(
    begin: Callable[[Recipe], Any], recipe: Callable[..., Recipe], timeouts: list[timedelta | None]
) -> None:
    with pytest.raises(Connected):
        begin(recipe("--use_cpu"))
    assert timeouts == [timedelta(days=1)]


def test_so_do_those_of_the_command(recipe_file: Path, tmp_path: Path, timeouts: list[timedelta | None]) -> None:
    with pytest.raises(Connected):
        train.main([str(recipe_file), "--output_dir", str(tmp_path / "out"), "--use_cpu"])
    assert timeouts == [timedelta(days=1)]


@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
@pytest.mark.parametrize(("key", "value"), [("ddp_timeout", 7200), ("ddp_backend", "gloo")])
def test_a_recipe_does_not_say_how(stage: str, key: str, value: Any, recipe: Callable[..., Recipe]) -> None:
    given, said = (
        recipe("--use_cpu", f"--{stage}.{key}", value),
        rf"{stage}\.{key} is {value!r}, but the processes of a run",
    )
    with pytest.raises(ValueError, match=said):
        check_recipe(given)
    pytest.importorskip("optuna")
    with pytest.raises(ValueError, match=said):
        check_tuning(given, 2)


def test_one_process_makes_no_folder_to_share(tmp_path: Path) -> None:
    check_shared(tmp_path / "out")
    assert not (tmp_path / "out").exists()
