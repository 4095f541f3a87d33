"""Sentences of any length: how long one may be, padded and without padding."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModel, AutoTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_flip import FlipDataCollator, FlipForCTR, FlipForPreTraining, FlipProcessor, PretrainingCollator
from modeling_flip.text_tower import WITHOUT_PADDING, most_tokens, reads_without_padding
from modeling_flip.training.trainer import plain_attention
from tests.modeling_flip.text_families.families import (
    ALL_FAMILIES,
    FIELDS,
    ROWS,
    SIZES,
    TextModel,
    collate,
    gradients,
    make_model,
)


@ALL_FAMILIES
def test_a_text_model_reads_as_many_tokens_as_it_is_said_to(
    family: str, text_model: Callable[[str], TextModel]
) -> None:
    source = text_model(family)
    model, tokenizer = AutoModel.from_pretrained(source.folder), AutoTokenizer.from_pretrained(source.folder)
    assert most_tokens(model, tokenizer) == 128  # its tokenizer's limit
    tokenizer.model_max_length = 10**30
    limit = most_tokens(model, tokenizer)
    assert (limit is None) == (family in ("t5", "llama", "qwen2", "modernbert"))  # relative and rotary positions
    encoder = model.encoder if family == "t5" else model
    with torch.inference_mode():
        encoder(torch.full((1, limit or 1100), 5))
        if limit is not None:
            with pytest.raises((IndexError, RuntimeError)):
                encoder(torch.full((1, limit + 1), 5))


def test_sentences_longer_than_the_text_model_reads_are_refused(text_model: Callable[[str], TextModel]) -> None:
    source = text_model("roberta")
    processor = FlipProcessor.fit(ROWS, FIELDS, AutoTokenizer.from_pretrained(source.folder), max_length=129)
    with pytest.raises(
        ValueError, match=r"max_length is 129, but .* reads at most 128 tokens; set max_length to 128 or less"
    ):
        FlipForCTR.from_text_pretrained(source.folder, processor, **SIZES)


@ALL_FAMILIES
@pytest.mark.parametrize("pooling", [None, "mean", "last"])
def test_a_rows_logit_does_not_depend_on_how_far_it_is_padded(
    text_model: Callable[[str], TextModel], family: str, pooling: str | None
) -> None:
    source = text_model(family)
    model = make_model(FlipForCTR, source, text_pooling=pooling)
    together = collate(model, source.processor, source.rows)
    lengths = together["attention_mask"].sum(1)
    logits = model(**together).text_logits
    assert len(logits.unique()) == len(logits)
    for i in range(len(source.rows)):
        alone = collate(model, source.processor, source.rows[i])
        assert alone["input_ids"].shape == (1, lengths[i])
        torch.testing.assert_close(model(**alone).text_logits[0], logits[i], rtol=1e-5, atol=1e-5)
    assert lengths.unique().numel() > 2


@ALL_FAMILIES
def test_plain_attention_is_the_fused_one_but_for_its_speed(
    family: str, text_model: Callable[[str], TextModel]
) -> None:
    made = text_model(family)
    model = FlipForCTR.from_text_pretrained(made.folder, made.processor, towers="text", **SIZES).eval()
    batch = made.processor.sentences(made.rows)
    inputs = {name: torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask")}
    assert (inputs["attention_mask"] == 0).any()
    fused = model(**inputs).logits
    before = [m.config._attn_implementation for m in model.modules() if hasattr(m, "set_attn_implementation")]
    with plain_attention(model):
        assert model.flip.text_tower.config._attn_implementation == "eager"
        torch.testing.assert_close(model(**inputs).logits, fused, rtol=1e-4, atol=1e-5)
    assert [m.config._attn_implementation for m in model.modules() if hasattr(m, "set_attn_implementation")] == before


def attend_by_sequence(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **told: Any
) -> tuple[torch.Tensor, None]:
    """What flash attention does with sequences that lie end to end, (1, heads, T, size), in plain torch."""
    assert mask is None and len(query) == 1
    bounds = told["cu_seq_lens_q"].tolist()
    is_causal = module.is_causal if told.get("is_causal") is None else told["is_causal"]
    attended = []
    for begin, end in pairwise(bounds):
        q, k, v = (x[:, :, begin:end] for x in (query, key, value))
        distance = (torch.arange(end - begin)[:, None] - torch.arange(end - begin))[None, None]
        seen = distance >= 0 if is_causal else distance.abs() < (told.get("sliding_window") or len(query[0, 0]))
        dropout = told.get("dropout", 0.0)
        attended.append(scaled_dot_product_attention(q, k, v, seen, dropout, scale=told["scaling"], enable_gqa=True))
    return torch.cat(attended, 2).transpose(1, 2), None


@pytest.mark.parametrize("family", WITHOUT_PADDING)
def test_without_padding_losses_and_gradients_are_those_of_padded_batches(
    family: str, text_model: Callable[[str], TextModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", attend_by_sequence)
    source = text_model(family)
    for model_class, batch in (
        (FlipForPreTraining, PretrainingCollator(source.processor)(source.rows)),
        (FlipForCTR, FlipDataCollator(source.processor, ("feature_ids", "sentence"))(source.rows)),
    ):
        model = make_model(model_class, source)
        assert (batch["attention_mask"] == 0).any()
        loss, expected = gradients(model, batch)
        tokens: list[int] = []
        tower = model.flip.text_tower
        tower.get_input_embeddings().register_forward_hook(
            lambda _, given, __, seen=tokens: seen.append(given[0].numel())
        )
        tower.config._attn_implementation = "flash_attention_2"
        actual, found = gradients(model, batch)
        assert tokens == [batch["attention_mask"].sum() * (2 if model_class is FlipForPreTraining else 1)]
        torch.testing.assert_close(actual, loss, rtol=1e-5, atol=1e-6)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=f"{name}: ".__add__)


def test_a_family_that_reads_only_padded_rows_is_given_them(text_model: Callable[[str], TextModel]) -> None:
    tower = make_model(FlipForCTR, text_model("roberta")).flip.text_tower
    tower.config._attn_implementation = "flash_attention_2"
    assert not reads_without_padding(tower)
