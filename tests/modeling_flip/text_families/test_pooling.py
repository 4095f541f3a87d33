"""How a sentence becomes one vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from modeling_flip import FlipConfig, FlipForCTR
from modeling_flip.text_tower import pooled
from tests.modeling_flip.text_families.families import ALL_FAMILIES, DECODERS, FAMILIES, TextModel, collate, make_model


@pytest.mark.parametrize("pooling", ["cls", "mean", "last", None])
def test_pooled_is_the_first_the_last_or_the_mean_of_what_is_no_padding(pooling: str | None) -> None:
    hidden = torch.arange(24, dtype=torch.float32).view(3, 4, 2) ** 2
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    expected = []
    for tokens, length in zip(hidden.numpy(), [4, 2, 1], strict=True):
        if pooling == "mean":
            expected.append(sum(tokens[:length]) / length)
        else:
            expected.append(tokens[length - 1 if pooling == "last" else 0])
    np.testing.assert_allclose(pooled(hidden, mask, pooling).numpy(), np.stack(expected), rtol=1e-6)


@ALL_FAMILIES
@pytest.mark.parametrize("pooling", [None, "mean", "last"])
def test_a_family_has_its_own_pooling_unless_another_is_set(
    text_model: Callable[[str], TextModel], family: str, pooling: str | None
) -> None:
    source = text_model(family)
    model = make_model(FlipForCTR, source, text_pooling=pooling)
    assert model.config.text_pooling == (pooling or FAMILIES[family].pooling)
    batch = collate(model, source.processor, source.rows)
    towers = model.flip(**batch)
    for hidden, sentence, length in zip(
        towers.text_hidden_states, towers.text_representation, batch["attention_mask"].sum(1).tolist(), strict=True
    ):
        each = {"cls": hidden[0], "last": hidden[length - 1], "mean": hidden[:length].mean(0)}
        torch.testing.assert_close(sentence, each[pooling or FAMILIES[family].pooling])


@ALL_FAMILIES
def test_a_family_sees_what_stands_before_a_token_and_only_a_decoder_nothing_behind(
    text_model: Callable[[str], TextModel], family: str
) -> None:
    """Why a decoder's first token says nothing of the sentence, and its last says most."""
    source = text_model(family)
    tower = make_model(FlipForCTR, source).flip.text_tower
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10]])
    hidden, last, first = (
        tower(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        for ids in (
            tokens,
            torch.cat([tokens[:, :-1], tokens[:, :1]], 1),
            torch.cat([tokens[:, -1:], tokens[:, 1:]], 1),
        )
    )
    assert (hidden[-1] - first[-1]).abs().max() > 1e-4
    assert torch.allclose(hidden[0], last[0], atol=1e-6) is (family in DECODERS)


@pytest.mark.parametrize("family", DECODERS)
def test_the_first_token_of_a_decoder_is_refused(text_model: Callable[[str], TextModel], family: str) -> None:
    message = f"text model '{family}' is a decoder: its first token sees none of the others; set text_pooling to 'last' or 'mean'"
    source = text_model(family)
    with pytest.raises(ValueError, match=message):
        FlipConfig(text_config={"model_type": family}, text_pooling="cls")
    with pytest.raises(ValueError, match=message):
        make_model(FlipForCTR, source, text_pooling="cls")
    config = FlipConfig(text_config={"model_type": family})
    config.text_pooling = "cls"
    with pytest.raises(ValueError, match=message):
        FlipForCTR(config)
