"""A frozen text tower: the run that reads each row once is the run that reads it in every epoch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState

import train
from modeling_flip import FlipForCTR, FlipProcessor
from modeling_flip.training import frozen
from modeling_flip.training.checks import check_recipe
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.stages import make_model
from tests.processes import weights

FROZEN: list[Any] = ["--pretraining", "null", "--finetuning.freeze_text_tower", "true", "--use_cpu"]


def run(recipe: Recipe, *more: Any) -> Path:
    """With its output folder given; other arguments as on the command line."""
    path = Path(recipe.output_dir).with_name("recipe.yaml")
    path.write_text(recipe.to_yaml())
    train.main([str(path), *map(str, [*FROZEN, *more])])
    return Path(recipe.output_dir)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each sentence batch that a text tower reads."""
    seen: list[int] = []
    hidden_states = frozen.FlipForCTR.forward.__globals__["hidden_states"]

    def count(tower: Any, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(len(input_ids))
        return hidden_states(tower, input_ids, mask)

    monkeypatch.setitem(frozen.FlipForCTR.forward.__globals__, "hidden_states", count)
    return seen


@pytest.mark.parametrize("towers", ["both", "text"])
def test_each_row_is_read_once_and_the_model_is_that_of_reading_it_in_every_epoch(
    towers: str,
    recipe: Callable[..., Recipe],
    tiny_text_model: Path,
    tmp_path: Path,
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = recipe("--towers", towers, "--cache_dir", tmp_path / "cache", "--max_eval_samples", 15)
    given.text_model_name_or_path = str(tiny_text_model)  # with dropout
    kept = run(given)
    assert sum(passes) == 200  # all rows of all splits
    before = make_model(given, FlipProcessor.from_pretrained(kept), None).state_dict()
    after = weights(kept)
    in_text = [name for name in after if "text_tower." in name]
    assert in_text and all(torch.equal(after[name], before[name]) for name in in_text)
    # A later run, with other settings of what is trained, opens what is kept.
    passes.clear()
    run(recipe("--towers", towers, "--cache_dir", tmp_path / "cache", "--text_model_name_or_path", tiny_text_model,
               "--output_dir", tmp_path / "later", "--finetuning.learning_rate", 0.01))  # fmt: skip
    assert passes == []
    # The same without vectors: the tower reads, in evaluation mode.
    monkeypatch.setattr("modeling_flip.training.stages.with_sentences", lambda prepared, *_: prepared)
    monkeypatch.setattr("modeling_flip.training.trainer.check_together", lambda *_: None)
    standing = torch.nn.Module.train

    def mode(module: torch.nn.Module, training: bool = True) -> torch.nn.Module:
        standing(module, training)
        return standing(module.flip.text_tower, False) and module if isinstance(module, FlipForCTR) else module

    monkeypatch.setattr(FlipForCTR, "train", mode)
    given.output_dir = str(tmp_path / "each")
    each = run(given, "--output_dir", given.output_dir)
    assert sum(passes) == 2 * (162 + 15) + 18 + 20
    for name, weight in weights(each).items():
        torch.testing.assert_close(after[name], weight, atol=1e-5, rtol=1e-4, msg=partial("{}: {}".format, name))


def test_vectors_of_other_weights_are_others(recipe: Callable[..., Recipe], tmp_path: Path, passes: list[int]) -> None:
    given = recipe("--cache_dir", tmp_path / "cache")
    model_of = make_model
    run(given)
    passes.clear()

    def other(*args: Any) -> Any:
        model = model_of(*args)
        model.flip.text_tower.embeddings.LayerNorm.bias.data[0] += 0.1
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_flip.training.stages.make_model", other)
        run(recipe("--cache_dir", tmp_path / "cache"), "--output_dir", tmp_path / "other")
    assert sum(passes) == 200
    files = sorted((tmp_path / "cache").glob("*/sentences/*"))
    assert len(files) == 6 and {file.suffix for file in files} == {".bin"}


def test_only_the_text_tower_goes_to_the_device(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of features may be larger, and are cut up later."""
    compute, moved = frozen.with_sentences, dict[str, bool]()

    def watch(prepared: Any, model: FlipForCTR, *more: Any) -> Any:
        before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
        found = compute(prepared, model, *more)
        moved.update({name: weight.data_ptr() != before[name] for name, weight in model.named_parameters()})
        return found

    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu:0")  # not the host's "cpu" to torch: what is put there is copied
    monkeypatch.setattr(PartialState, "_shared_state", {})
    monkeypatch.setattr("modeling_flip.training.stages.with_sentences", watch)
    run(recipe("--cache_dir", tmp_path / "cache", "--finetuning.max_steps", 1))
    assert moved and all(is_moved == ("text_tower." in name) for name, is_moved in moved.items())


def test_a_killed_computation_leaves_no_vectors(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    flush = np.memmap.flush

    def stop(array: np.memmap) -> None:
        if "sentences" in str(array.filename):
            raise KeyboardInterrupt
        flush(array)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.memmap, "flush", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(recipe("--cache_dir", tmp_path / "cache"))
    (begun,) = (tmp_path / "cache").glob("*/sentences/*")
    assert begun.name.startswith(".")
    run(recipe("--cache_dir", tmp_path / "cache"))
    assert len([*(tmp_path / "cache").glob("*/sentences/*.bin")]) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"towers": "tabular"}, "finetuning.freeze_text_tower is true; it is for finetuning FLIP's text tower"),
        ({"pretraining": {"freeze_text_tower": True}}, "pretraining.freeze_text_tower is true; it is for finetuning"),
        ({"model_type": "ctr_bert", "item_fields": ["x"]}, r"with model_type morec, model.freeze_text_tower"),
        ({"finetuning": {"freeze_text_tower": True, "lora": {}}}, "lora is for .* leave out one of them"),
        ({"finetuning": {"freeze_text_tower": True, "mini_batch_tokens": 9}}, "mini_batch_tokens is for .* trained"),
        (
            {"finetuning": {"freeze_text_tower": True, "auto_find_batch_size": True}},
            "auto_find_batch_size is .* trained",
        ),
    ],
    ids=str,
)
def test_what_a_frozen_tower_cannot_is_told_before_training(
    settings: dict[str, Any], message: str, tiny_text_model: Path
) -> None:
    given: dict[str, Any] = {"dataset_name": "demo", "output_dir": "out", "finetuning": {"freeze_text_tower": True}}
    with pytest.raises(ValueError, match=message):
        check_recipe(Recipe(**given | {"text_model_name_or_path": str(tiny_text_model)} | settings))
