"""Sentences of the user and of the item, each once in a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from modeling_flip import FlipDataCollator, FlipProcessor
from tests.modeling_flip.data_collator.batches import FAMILIES, make_rows

MOVIE_FIELDS = ["user_id", "movie_id", "gender", "title"]
MOVIES, USERS = [1, 3], [0, 2]


def make_movie_rows() -> dict[str, list[Any]]:
    """Users and movies come back; one movie's title is missing, one was never seen in training."""
    titles = {1: "Toy Story (1995)", 2: "東京物語", 3: None, 4: "never seen"}
    genders = {7: "female", 8: None, 9: "male"}
    pairs = [(9, 2), (7, 1), (8, 1), (7, 2), (8, 3), (9, 1), (7, 4), (9, 4)]
    return {
        "user_id": [user for user, _ in pairs],
        "movie_id": [movie for _, movie in pairs],
        "gender": [genders[user] for user, _ in pairs],
        "title": [titles[movie] for _, movie in pairs],
    }


@pytest.fixture(scope="module")
def movie_processors(tokenizers: dict[str, PreTrainedTokenizerFast]) -> dict[str, FlipProcessor]:
    seen = {field: values[:6] for field, values in make_movie_rows().items()}
    return {family: FlipProcessor.fit(seen, MOVIE_FIELDS, tokenizer) for family, tokenizer in tokenizers.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_user_and_each_item_of_a_batch_has_one_sentence_and_rows_point_to_theirs(
    movie_processors: dict[str, FlipProcessor], family: str
) -> None:
    processor = movie_processors[family]
    dataset = processor.encode(make_movie_rows())
    batch = FlipDataCollator(processor, ("user_sentence", "item_sentence"), MOVIES)(dataset)
    assert set(batch) == {
        f"{side}_{key}" for side in ("user", "item") for key in ("input_ids", "attention_mask", "index")
    }
    for side, fields, count in (("user", USERS, 3), ("item", MOVIES, 4)):
        sentences = processor.sentences(dataset, fields)
        assert batch[f"{side}_input_ids"].shape == batch[f"{side}_attention_mask"].shape
        assert len(batch[f"{side}_input_ids"]) == count
        assert len(np.unique(batch[f"{side}_input_ids"], axis=0)) == count
        index = batch[f"{side}_index"]
        for key in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(batch[f"{side}_{key}"][index], sentences[key])


def test_the_sentence_of_an_item_is_its_fields_as_the_tokenizer_reads_them(
    movie_processors: dict[str, FlipProcessor], wordpiece: PreTrainedTokenizerFast
) -> None:
    processor, rows = movie_processors["wordpiece"], make_movie_rows()
    batch = FlipDataCollator(processor, ("user_sentence", "item_sentence"), MOVIES)(processor.encode(rows))
    texts = {
        "item": [
            f"movie id is {movie}. title is {title or 'unknown'}."
            for movie, title in zip(rows["movie_id"], rows["title"], strict=True)
        ],
        "user": [
            f"user id is {user}. gender is {gender or 'unknown'}."
            for user, gender in zip(rows["user_id"], rows["gender"], strict=True)
        ],
    }
    for side, expected in texts.items():
        encoded = wordpiece(expected, padding=True, return_tensors="pt")
        index = batch[f"{side}_index"]
        assert torch.equal(batch[f"{side}_input_ids"][index], encoded["input_ids"])
        assert torch.equal(batch[f"{side}_attention_mask"][index], encoded["attention_mask"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [MOVIES, USERS, [0], [1], [3], [0, 1, 2, 3]], ids=str)
def test_gathered_sentences_of_some_fields_equal_tokenised_ones(
    movie_processors: dict[str, FlipProcessor], family: str, fields: list[int]
) -> None:
    processor = movie_processors[family]
    dataset = processor.encode(make_movie_rows())
    assert dataset.token_tables is not None
    gathered = processor.sentences(dataset, fields)
    tokenised = processor.sentences(replace(dataset, token_tables=None), fields)
    assert gathered.keys() == tokenised.keys()
    for key, value in tokenised.items():
        np.testing.assert_array_equal(gathered[key], value, err_msg=key)
    assert set(np.unique(gathered["token_field_ids"])) == {-1, *fields}
    if fields == [0, 1, 2, 3]:
        np.testing.assert_array_equal(gathered["input_ids"], processor.sentences(dataset)["input_ids"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [[3, 1], [2, 0]], ids=str)
def test_the_order_in_which_fields_are_named_changes_no_sentence(
    movie_processors: dict[str, FlipProcessor], family: str, fields: list[int]
) -> None:
    processor = movie_processors[family]
    dataset = processor.encode(make_movie_rows())
    for rows in (dataset, replace(dataset, token_tables=None)):
        expected = processor.sentences(rows, sorted(fields))
        for key, value in processor.sentences(rows, fields).items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_side_is_made_only_where_a_model_reads_it(movie_processors: dict[str, FlipProcessor], side: str) -> None:
    processor = movie_processors["wordpiece"]
    dataset = processor.encode(make_movie_rows())
    batch = FlipDataCollator(processor, ("feature_ids", f"{side}_sentence"), MOVIES)(dataset)
    assert set(batch) == {"feature_ids", f"{side}_input_ids", f"{side}_attention_mask", f"{side}_index"}
    assert torch.equal(batch["feature_ids"], torch.from_numpy(dataset.feature_ids()))
    one = FlipDataCollator(processor, (f"{side}_sentence",), MOVIES)(dataset[3])
    assert one[f"{side}_index"].tolist() == [0]
    assert one[f"{side}_input_ids"].shape[0] == 1


def test_labels_stand_first_because_trainer_counts_the_rows_of_the_first_tensor(
    processors: dict[str, FlipProcessor],
) -> None:
    processor = processors["wordpiece"]
    dataset = processor.encode(make_rows(16), "click")
    batch = FlipDataCollator(processor, ("item_sentence", "user_sentence"), [3, 4])(dataset)
    assert next(iter(batch)) == "labels"
    assert len(batch["item_input_ids"]) < 16
    assert {value.dtype for name, value in batch.items() if name != "labels"} == {torch.int64}
