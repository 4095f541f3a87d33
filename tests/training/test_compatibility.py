"""What cannot be together is told when a trainer is made; settings on their own are tested in test_arguments.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_flip import FlipTrainer
from modeling_flip.training.compatibility import OF_WHOLE_MODELS
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.resume import restore_checkpoints

Launch = Callable[[str], None]


@pytest.fixture
def launched_with(monkeypatch: pytest.MonkeyPatch) -> Launch:
    """`launched_with("fsdp")`: trainers are made as if launched with it."""
    create = FlipTrainer.create_accelerator_and_postprocess

    def launch(engine: str) -> None:
        def with_engine(self: FlipTrainer) -> None:
            create(self)
            setattr(self, f"is_{engine}_enabled", True)

        monkeypatch.setattr(FlipTrainer, "create_accelerator_and_postprocess", with_engine)

    return launch


OF_EACH: dict[str, Any] = {"mini_batch_tokens": 9, "lora": {}}


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
@pytest.mark.parametrize(
    "settings",
    [{name: OF_EACH.get(name, True)} for name in OF_WHOLE_MODELS],
    ids=OF_WHOLE_MODELS,
)
def test_what_needs_whole_models_is_refused_in_parts(
    engine: str, settings: dict[str, Any], make: Callable[..., FlipTrainer], launched_with: Launch
) -> None:
    launched_with(engine)
    with pytest.raises(ValueError, match=f"{next(iter(settings))} works .*not with FSDP or DeepSpeed: leave it out"):
        make(**settings)


def test_pickles_of_deepspeed_do_not_go_to_the_hub(
    make: Callable[..., FlipTrainer], launched_with: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched_with("deepspeed")
    monkeypatch.setattr(FlipTrainer, "init_hf_repo", lambda self: None)
    with pytest.raises(ValueError, match=r"DeepSpeed pickles its checkpoints.*set hub_strategy to end"):
        make(push_to_hub=True, hub_strategy="checkpoint")
    make(push_to_hub=True, hub_strategy="end")


def test_nor_do_they_come_from_there(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    last = tmp_path / "repo" / "last-checkpoint"
    (last / "global_step3").mkdir(parents=True)
    (last / "global_step3" / "mp_rank_00_model_states.pt").write_bytes(b"a pickle")
    (last / "config.json").write_text(json.dumps({"architectures": ["FlipForCTR"]}))
    (last / "trainer_state.json").write_text(json.dumps({"global_step": 3, "best_model_checkpoint": None}))
    restore_checkpoints(tmp_path / "repo", tmp_path / "restored", recipe())
    found = {path.name for path in (tmp_path / "restored" / "checkpoints" / "finetuning" / "checkpoint-3").iterdir()}
    assert found == {"config.json", "trainer_state.json"}
