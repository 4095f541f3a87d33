"""Activation checkpointing, of the families that can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_flip import FlipForCTR, FlipForPreTraining, PretrainingCollator
from tests.modeling_flip.text_families.families import FAMILIES, TextModel, collate, gradients, make_model

CANNOT_CHECKPOINT = ("albert", "mpnet")


def passes_of(text_tower: torch.nn.Module) -> list[int]:
    """Counts, from now on, the passes through the first of a text tower's layers."""
    count = [0]
    layer = next(module for module in text_tower.modules() if isinstance(module, GradientCheckpointingLayer))
    part = next(module for module in layer.modules() if [*module.parameters(recurse=False)])
    part.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    return count


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in CANNOT_CHECKPOINT])
def test_activation_checkpointing_computes_each_layer_again_and_the_same_gradients(
    text_model: Callable[[str], TextModel], family: str, tmp_path: Path
) -> None:
    source = text_model(family)
    make_model(FlipForPreTraining, source).save_pretrained(tmp_path)
    finetuned, pretrained = FlipForCTR.from_pretrained(tmp_path), FlipForPreTraining.from_pretrained(tmp_path)
    sentences = collate(finetuned, source.processor, source.rows)
    for model, batch in ((finetuned, sentences), (pretrained, PretrainingCollator(source.processor)(source.rows))):
        count = passes_of(model.train().flip.text_tower)
        loss, expected = gradients(model, batch)
        assert count == [1]
        model.gradient_checkpointing_enable()
        again, found = gradients(model, batch)
        assert count == [3]
        assert torch.equal(loss, again) and found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=name)
        model.activation_checkpointing_disable()
        gradients(model, batch)
        assert count == [4]


@pytest.mark.parametrize("family", CANNOT_CHECKPOINT)
def test_activation_checkpointing_of_a_text_tower_that_cannot_is_an_error(
    text_model: Callable[[str], TextModel], family: str
) -> None:
    source = text_model(family)
    model = make_model(FlipForCTR, source)
    with pytest.raises(ValueError, match=f"text model {family!r} cannot do it in transformers: set it to false"):
        model.gradient_checkpointing_enable()
    assert not model.is_activation_checkpointing
    tabular = make_model(FlipForCTR, source, towers="tabular")
    with pytest.raises(ValueError, match="is of the text tower, and this model has none: set it to false"):
        tabular.activation_checkpointing_enable()
    tabular.activation_checkpointing_disable()
