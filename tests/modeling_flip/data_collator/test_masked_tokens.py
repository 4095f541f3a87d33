"""Tokens are masked, whatever their field."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from modeling_flip import FlipDataset, FlipProcessor, PretrainingCollator
from modeling_flip.data_collator import IGNORE
from tests.modeling_flip.data_collator.batches import FAMILIES, collate, make_rows, ratios, seeds


@pytest.mark.parametrize("family", FAMILIES)
@given(ratio=ratios, seed=seeds)
def test_token_masking_keeps_labels_and_never_masks_special_tokens_or_padding(
    processors: dict[str, FlipProcessor], datasets: dict[str, FlipDataset], family: str, ratio: float, seed: int
) -> None:
    processor = processors[family]
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    collator = PretrainingCollator(processor, ratio, text_masking="token", seed=seed)
    batch = collate(collator, datasets[family], list(range(16)))
    masked = batch["mlm_labels"] != IGNORE
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert not masked[np.isin(batch["input_ids"], list(control))].any()
    assert not masked[batch["attention_mask"] == 0].any()
    np.testing.assert_array_equal(batch["mlm_labels"], np.where(masked, batch["input_ids"], IGNORE))
    np.testing.assert_array_equal(batch["masked_input_ids"][~masked], batch["input_ids"][~masked])
    assert np.isin(batch["masked_input_ids"], np.arange(len(tokenizer))).all()


def test_of_chosen_tokens_eight_in_ten_are_masked_one_is_random_and_one_stays(
    processors: dict[str, FlipProcessor],
) -> None:
    processor = processors["wordpiece"]
    assert processor.tokenizer is not None
    size = len(processor.tokenizer)
    dataset = processor.encode(make_rows(1000))
    batch = collate(PretrainingCollator(processor, 0.5, text_masking="token"), dataset, list(range(1000)))
    chosen = batch["mlm_labels"] != IGNORE
    before, after = batch["input_ids"][chosen], batch["masked_input_ids"][chosen]
    is_mask, stays = after == processor.tokenizer.mask_token_id, after == before
    assert len(after) > 10_000  # of which one percentage point is more than three standard deviations
    assert is_mask.mean() == pytest.approx(0.8, abs=0.013)
    assert stays.mean() == pytest.approx(0.1, abs=0.01)
    drawn = after[~is_mask & ~stays]
    assert drawn.mean() == pytest.approx(size / 2, rel=0.06)  # uniform over the tokens
    assert len(np.unique(drawn)) > 0.9 * size
    # What a token becomes has nothing to do with where it stands.
    field = processor.sentences(dataset)["token_field_ids"][chosen]
    assert [is_mask[field == f].mean() for f in range(5)] == pytest.approx([0.8] * 5, abs=0.05)


def test_token_masking_takes_its_share_of_all_words_whatever_their_field(processors: dict[str, FlipProcessor]) -> None:
    processor = processors["wordpiece"]
    assert processor.tokenizer is not None
    dataset = processor.encode(make_rows(1000))
    batch = collate(PretrainingCollator(processor, 0.3, text_masking="token"), dataset, list(range(1000)))
    fields = processor.sentences(dataset)["token_field_ids"]
    words = ~np.isin(batch["input_ids"], processor.tokenizer.all_special_ids)
    masked = batch["mlm_labels"] != IGNORE
    for field in range(-1, 5):  # -1: names, "is" and full stops
        assert masked[words & (fields == field)].mean() == pytest.approx(0.3, abs=0.06)
