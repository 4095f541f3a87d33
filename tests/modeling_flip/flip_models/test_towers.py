"""The text tower's pooled sentence."""

from __future__ import annotations

import pytest
import torch

from modeling_flip import FlipForCTR, FlipModel
from tests.modeling_flip.flip_models.models import LENGTH, make_batch, make_model


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_pooled_sentence_is_its_first_token_or_the_mean_without_padding(pooling: str) -> None:
    output = make_model(FlipModel, text_pooling=pooling)(**make_batch())
    for hidden, sentence, length in zip(
        output.text_hidden_states, output.text_representation, [LENGTH, LENGTH - 2, LENGTH, LENGTH], strict=True
    ):
        expected = hidden[0] if pooling == "cls" else sum(hidden[t] for t in range(length)) / length
        torch.testing.assert_close(sentence, expected)


def test_without_an_attention_mask_every_token_counts() -> None:
    model, batch = make_model(FlipForCTR, text_pooling="mean"), make_batch()
    del batch["attention_mask"]
    everything = torch.ones_like(batch["input_ids"])
    assert torch.equal(model(**batch).logits, model(**batch, attention_mask=everything).logits)
