"""Numbers, lists and text are masked as their kind wants it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from modeling_flip import Field, FlipDataCollator, FlipProcessor, PretrainingCollator
from modeling_flip.data_collator import IGNORE
from tests.modeling_flip.data_collator.batches import collate, ratios, seeds

KINDS = [
    Field(name="movie", type="integer"),
    Field(name="title", kind="text"),
    Field(name="price", kind="numeric", type="number"),
    Field(name="tags", kind="list", separator="|"),
    Field(name="history", kind="list", type="integer", features_of="movie"),
]
KIND_ROWS: list[dict[str, Any]] = [
    {"movie": 1, "title": "Toy Story", "price": 2.5, "tags": "a|b|c", "history": [2, 3]},
    {"movie": 2, "title": "Heat", "price": 4, "tags": "b", "history": []},
    {"movie": 3, "title": None, "price": None, "tags": None, "history": [1, 1, 2, 99]},
]
# movie: unknown 0, 1 2 3 99 in the order of the rows; price: unknown 5, 6, 7; tags: unknown 8, a 9, b 10, c 11; <MASK> 12.
# Title is in the sentence alone; the history has the movies' features.
FEATURES = [[1, 6, 9, 2], [2, 7, 10, 0], [3, 5, 8, 1]]
LISTS = [
    [[9, 10, 11, -1], [2, 3, -1, -1]],
    [[10, -1, -1, -1], [0, -1, -1, -1]],
    [[8, -1, -1, -1], [1, 1, 2, 4]],
]
MASK = 12


@pytest.fixture(scope="module")
def kinds(wordpiece: PreTrainedTokenizerFast) -> FlipProcessor:
    return FlipProcessor.fit(KIND_ROWS, KINDS, wordpiece)


def test_numbers_and_lists_are_masked_by_hand(kinds: FlipProcessor) -> None:
    batch = collate(
        PretrainingCollator(kinds, tabular_mask_ratio=1.0, num_noise_features=5), kinds.encode(KIND_ROWS), [0, 1, 2]
    )
    assert kinds.vocabulary.values["movie"].to_pylist() == ["1", "2", "3", "99"]
    assert batch["feature_ids"].tolist() == FEATURES
    assert batch["list_feature_ids"].tolist() == LISTS
    assert batch["masked_feature_ids"].tolist() == [[MASK] * 4] * 3
    assert batch["masked_list_feature_ids"].tolist() == [[[MASK, -1, -1, -1]] * 2] * 3
    assert batch["noise_feature_ids"].shape == (3, 4, 5)
    labels = batch["mtm_labels"]
    assert labels[:, :2].tolist() == [row[:2] for row in FEATURES]  # the movie and the bucket of the price
    for row, lists in zip(labels[:, 2:].tolist(), LISTS, strict=True):
        assert all(label in members and label >= 0 for label, members in zip(row, lists, strict=True))


@given(ratio=ratios, seed=seeds, epoch=st.integers(0, 9))
def test_a_list_is_masked_where_its_field_is(kinds: FlipProcessor, ratio: float, seed: int, epoch: int) -> None:
    dataset = replace(kinds.encode(KIND_ROWS * 3), epoch=epoch)
    batch = collate(PretrainingCollator(kinds, tabular_mask_ratio=ratio, seed=seed), dataset, list(range(9)))
    masked = batch["mtm_labels"] != IGNORE
    count = max(1, round(ratio * 4))  # four fields have a table side
    assert (masked.sum(1) == count).all()
    assert batch["noise_feature_ids"].shape == (9, count, 25)
    np.testing.assert_array_equal(batch["masked_feature_ids"], np.where(masked, MASK, FEATURES * 3))
    of_mask = np.array([MASK, -1, -1, -1])
    expected = np.where(masked[:, 2:, None], of_mask, np.array(LISTS * 3))
    np.testing.assert_array_equal(batch["masked_list_feature_ids"], expected)
    is_member = (batch["mtm_labels"][:, 2:, None] == np.array(LISTS * 3)).any(2)
    np.testing.assert_array_equal(is_member, masked[:, 2:])


def test_every_member_of_a_list_is_drawn_about_equally_often(kinds: FlipProcessor) -> None:
    dataset = kinds.encode(KIND_ROWS[:1] * 3000)
    labels = collate(PretrainingCollator(kinds, tabular_mask_ratio=1.0), dataset, list(range(3000)))["mtm_labels"]
    for column, members in ((2, [9, 10, 11]), (3, [2, 3])):
        share = np.bincount(labels[:, column], minlength=13)[members] / 3000
        assert share == pytest.approx(np.full(len(members), 1 / len(members)), abs=0.06)  # six standard deviations
    pairs = np.unique(labels[:, 2:], axis=0, return_counts=True)[1]
    assert pairs == pytest.approx(np.full(6, 500), abs=130)  # the two lists draw for themselves


@given(order=st.permutations(range(12)), seed=seeds)
def test_the_drawn_member_does_not_depend_on_the_batch(kinds: FlipProcessor, order: list[int], seed: int) -> None:
    dataset = kinds.encode(KIND_ROWS * 4)
    collator = PretrainingCollator(kinds, tabular_mask_ratio=0.8, seed=seed)
    whole = collate(collator, dataset, list(range(12)))["mtm_labels"]
    np.testing.assert_array_equal(collate(collator, dataset, order)["mtm_labels"], whole[order])
    for row in range(12):  # alone its lists are padded to another width
        np.testing.assert_array_equal(collate(collator, dataset, [row])["mtm_labels"][0], whole[row])
    # In a file of other rows it is the same row still, if it has its number.
    other = replace(kinds.encode(KIND_ROWS[:1]), row_ids=np.array([9]))
    np.testing.assert_array_equal(collate(collator, other, [0])["mtm_labels"][0], whole[9])


@pytest.mark.parametrize("change", ["epoch", "seed"])
def test_another_epoch_or_seed_draws_another_member(kinds: FlipProcessor, change: str) -> None:
    dataset = kinds.encode(KIND_ROWS[:1] * 40)
    collator = PretrainingCollator(kinds, tabular_mask_ratio=1.0)
    first = collate(collator, dataset, list(range(40)))["mtm_labels"]
    if change == "epoch":
        dataset.epoch = 1
    else:
        collator.seed = 1
    second = collate(collator, dataset, list(range(40)))["mtm_labels"]
    assert (first[:, :2] == second[:, :2]).all()
    assert (first[:, 2] != second[:, 2]).any()
    assert (first[:, 3] != second[:, 3]).any()


def test_text_is_masked_in_the_sentence_and_counts_there_alone(kinds: FlipProcessor) -> None:
    dataset = kinds.encode(KIND_ROWS[:1] * 300)
    batch = collate(PretrainingCollator(kinds, text_mask_ratio=0.2, tabular_mask_ratio=0.2), dataset, list(range(300)))
    fields = kinds.sentences(dataset)["token_field_ids"]
    chosen = np.where(batch["mlm_labels"] != IGNORE, fields, -1).max(1)
    assert set(chosen.tolist()) == {0, 1, 2, 3, 4}  # the title too
    in_table = (batch["mtm_labels"] != IGNORE).argmax(1)
    assert (batch["mtm_labels"] != IGNORE).sum(1).tolist() == [1] * 300
    assert set(in_table.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("text_masking", ["field", "token"])
@pytest.mark.parametrize("size", [0, 1])
def test_batches_of_no_row_and_of_one_with_lists(kinds: FlipProcessor, text_masking: str, size: int) -> None:
    collator = PretrainingCollator(kinds, tabular_mask_ratio=0.5, num_noise_features=7, text_masking=text_masking)
    batch = collate(collator, kinds.encode(KIND_ROWS), list(range(size)))
    assert batch["feature_ids"].shape == batch["mtm_labels"].shape == (size, 4)
    assert batch["list_feature_ids"].shape == batch["masked_list_feature_ids"].shape
    assert batch["list_feature_ids"].shape[:2] == (size, 2)
    assert batch["noise_feature_ids"].shape == (size, 2, 7)
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int64)}


def test_a_table_of_text_alone_has_nothing_to_mask_in_the_table(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"title": ["Toy Story"]}, [Field(name="title", kind="text")], wordpiece)
    for size in (1, 0):
        batch = PretrainingCollator(processor, num_noise_features=7)(processor.encode({"title": ["Heat"] * size}))
        assert batch["feature_ids"].shape == batch["mtm_labels"].shape == (size, 0)
        assert batch["noise_feature_ids"].shape == (size, 0, 7)


def test_batches_hold_lists_where_there_are_some(kinds: FlipProcessor) -> None:
    batch = FlipDataCollator(kinds, ("feature_ids",))(kinds.encode(KIND_ROWS))
    assert {key: value.tolist() for key, value in batch.items()} == {"feature_ids": FEATURES, "list_feature_ids": LISTS}


def test_user_and_item_sentences_of_fields_of_every_kind(
    kinds: FlipProcessor, wordpiece: PreTrainedTokenizerFast
) -> None:
    rows = [{**row, "title": "Heat", "movie": 2} for row in KIND_ROWS]
    batch = FlipDataCollator(kinds, ("user_sentence", "item_sentence"), [0, 1])(kinds.encode(rows))
    items = wordpiece.batch_decode(batch["item_input_ids"], skip_special_tokens=True)
    assert items == ["movie is 2. title is heat."]
    users = wordpiece.batch_decode(batch["user_input_ids"][batch["user_index"]], skip_special_tokens=True)
    assert users == [
        "price is 2. 5. tags is a, b, c. history is 2, 3.",
        "price is 4. tags is b. history is unknown.",
        "price is unknown. tags is unknown. history is 1, 1, 2, 99.",
    ]
