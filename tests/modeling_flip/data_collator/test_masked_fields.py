"""Whole fields are masked, in the sentence and in the table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from modeling_flip import FlipDataset, FlipProcessor, PretrainingCollator
from modeling_flip.data_collator import IGNORE
from tests.modeling_flip.data_collator.batches import FAMILIES, assert_masked_exactly, collate, make_rows, ratios, seeds


@pytest.mark.parametrize("family", FAMILIES)
@given(text_ratio=ratios, tabular_ratio=ratios, seed=seeds, epoch=st.integers(0, 100))
def test_whole_fields_are_masked_and_nothing_else(
    processors: dict[str, FlipProcessor],
    datasets: dict[str, FlipDataset],
    family: str,
    text_ratio: float,
    tabular_ratio: float,
    seed: int,
    epoch: int,
) -> None:
    processor, dataset = processors[family], replace(datasets[family], epoch=epoch)
    assert processor.tokenizer is not None
    batch = collate(PretrainingCollator(processor, text_ratio, tabular_ratio, seed=seed), dataset, list(range(16)))

    masked_fields = batch["mtm_labels"] != IGNORE
    assert (masked_fields.sum(1) == max(1, round(tabular_ratio * 5))).all()
    mask_feature = processor.vocabulary.mask_feature_id
    assert_masked_exactly(batch, "feature_ids", "mtm_labels", masked_fields, mask_feature)

    # Names, "is", full stops, special tokens and padding belong to no field (-1).
    fields = processor.sentences(dataset)["token_field_ids"]
    masked_tokens = batch["mlm_labels"] != IGNORE
    chosen = [set(fields[r, masked_tokens[r]].tolist()) for r in range(16)]
    assert {len(c) for c in chosen} == {max(1, round(text_ratio * 5))}
    whole = np.array([np.isin(fields[r], list(chosen[r])) for r in range(16)]) & (fields >= 0)
    assert_masked_exactly(batch, "input_ids", "mlm_labels", whole, processor.tokenizer.mask_token_id)


@pytest.mark.parametrize(("ratio", "count"), [(0.001, 1), (0.15, 1), (0.3, 2), (0.5, 2), (0.7, 4), (0.9, 4), (1.0, 5)])
def test_how_many_of_five_fields_a_ratio_masks(
    processors: dict[str, FlipProcessor], datasets: dict[str, FlipDataset], ratio: float, count: int
) -> None:
    # 1.5 rounds to 2, 2.5 to 2, 3.5 to 4, 4.5 to 4
    batch = collate(PretrainingCollator(processors["wordpiece"], ratio, ratio), datasets["wordpiece"], list(range(16)))
    assert (batch["mtm_labels"] != IGNORE).sum(1).tolist() == [count] * 16


def test_a_value_is_masked_in_the_sentence_and_its_name_is_not(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"title": ["is title."]}, ["title"], wordpiece)
    batch = PretrainingCollator(processor)(processor.encode({"title": ["is title."]}))
    tokens = wordpiece.convert_ids_to_tokens(batch["masked_input_ids"][0])
    assert tokens == ["[CLS]", "title", "is", "[MASK]", "[MASK]", "[MASK]", ".", "[SEP]"]
    labels = batch["mlm_labels"][0]
    assert (labels != IGNORE).tolist() == [False] * 3 + [True] * 3 + [False] * 2
    assert wordpiece.convert_ids_to_tokens(labels[3:6]) == ["is", "title", "."]


def test_the_two_sides_choose_their_fields_evenly_and_independently(processors: dict[str, FlipProcessor]) -> None:
    processor = processors["wordpiece"]
    dataset = processor.encode(make_rows(2500))
    batch = collate(PretrainingCollator(processor, 0.2, 0.2), dataset, list(range(2500)))
    fields = processor.sentences(dataset)["token_field_ids"]
    in_text = np.where(batch["mlm_labels"] != IGNORE, fields, -1).max(1)
    in_table = (batch["mtm_labels"] != IGNORE).argmax(1)
    pairs = np.bincount(in_text * 5 + in_table, minlength=25)
    assert np.abs(pairs - 100).max() < 45  # 100 expected, standard deviation 10
