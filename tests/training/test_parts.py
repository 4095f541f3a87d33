"""A batch in parts: the step of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from modeling_flip import FlipForCTR, FlipForPreTraining, FlipProcessor
from modeling_flip.training.arguments import FlipTrainingArguments
from modeling_flip.training.parts import split
from modeling_flip.training.trainer import FlipTrainer

ROWS = {
    "user": [f"u{i % 5}" for i in range(13)],
    "title": ["red", "a long red title", "blue", "green and blue", "white", "red", "black"] + ["blue"] * 6,
}
CLICKS = [i % 2 for i in range(13)]
Make = Callable[..., FlipTrainer]


@pytest.fixture
def make(wordpiece: PreTrainedTokenizerFast, tiny_text_model: Path, tmp_path: Path) -> Make:
    """Two epochs of batches of 8 and 5 rows, in parts of 3 rows or fewer where `mini_batch_tokens` is 30."""
    processor = FlipProcessor.fit(ROWS, ["user", "title"], wordpiece)
    data = processor.encode(ROWS | {"label": CLICKS}, "label")

    def trainer(model_class: Any, settings: dict[str, Any] | None = None, **kwargs: Any) -> FlipTrainer:
        torch.manual_seed(0)
        sizes = {"tabular_tower": "deepfm", "embedding_size": 4, "hidden_sizes": [8], "projection_size": 4}
        model = model_class.from_text_pretrained(
            tiny_text_model, processor, **{"towers": "both"} | sizes | (settings or {})
        )
        no_dropout = {module for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        for module in no_dropout:
            module.p = 0.0
        given: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True}
        given |= {"save_strategy": "no", "per_device_train_batch_size": 8, "num_train_epochs": 2, "logging_steps": 1}
        given |= {"optim": "sgd", "learning_rate": 0.01, "max_grad_norm": 1e9}
        return FlipTrainer(model, FlipTrainingArguments(**given | kwargs), processor, data)

    return trainer


@pytest.mark.parametrize("settings", [{}, {"icl_weight": 0}, {"icl_subspaces": 2}, {"mlm_weight": 0, "mtm_weight": 0}])
def test_pretraining_in_parts_is_that_of_whole_batches(settings: dict[str, Any], make: Make) -> None:
    assert_same_training(make, FlipForPreTraining, settings)


def test_finetuning_in_parts_is_that_of_whole_batches(make: Make) -> None:
    assert_same_training(make, FlipForCTR, {"embedding_l2": 0.1})


@pytest.mark.parametrize("model_class", [FlipForPreTraining, FlipForCTR])
def test_parts_whose_activations_are_computed_again_are_those_of_whole_batches(model_class: Any, make: Make) -> None:
    assert_same_training(make, model_class, {}, activation_checkpointing=True)


def assert_same_training(make: Make, model_class: Any, settings: dict[str, Any], **of_parts: Any) -> None:
    whole, parts = make(model_class, settings), make(model_class, settings, mini_batch_tokens=30, **of_parts)
    counts = count_rows(parts)
    for trainer in (whole, parts):
        trainer.train()
    assert max(counts) <= 3
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4, msg=partial("{}: {}".format, name))
    for expected, found in zip(whole.state.log_history[:-1], parts.state.log_history[:-1], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def count_rows(trainer: FlipTrainer) -> list[int]:
    """The rows of each pass."""
    counts: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return counts


def test_dropout_is_drawn_alike_in_both_passes(make: Make) -> None:
    """With one part, the surrogate of ICL has the gradient of ICL itself only then."""
    gradients = []
    for tokens in (None, 1_000_000):
        trainer = make(FlipForPreTraining, {"dropout": 0.5}, mini_batch_tokens=tokens)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.current_gradient_accumulation_steps = 1
        torch.manual_seed(1)
        if tokens is None:
            trainer.training_step(trainer.model, batch)
        else:
            trainer._training_step_in_parts(trainer.model, [batch])
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_batch_is_split_into_at_least_one_part(rows: int) -> None:
    sizes = [len(part["input_ids"]) for part in split({"input_ids": torch.zeros(rows, 10)}, 25)]
    assert sizes == {0: [0], 1: [1], 5: [2, 2, 1]}[rows]


def test_mini_batches_need_sentences_and_a_number(make: Make) -> None:
    with pytest.raises(ValueError, match="mini_batch_tokens is 0; it must be 1 or more, or null"):
        FlipTrainingArguments(mini_batch_tokens=0)
    with pytest.raises(ValueError, match="mini_batch_tokens is for FLIP with a text tower: set it to null"):
        make(FlipForCTR, {"towers": "tabular"}, mini_batch_tokens=9)


@pytest.mark.parametrize("model_class", [FlipForPreTraining, FlipForCTR])
def test_what_a_whole_batch_normalises_is_not_computed_in_parts(model_class: Any, make: Make) -> None:
    with pytest.raises(ValueError, match="mini_batch_tokens computes a batch in parts, and batch normalisation"):
        make(model_class, {"batch_norm": True}, mini_batch_tokens=9)
    make(model_class, {"batch_norm": True})
