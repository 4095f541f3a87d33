"""Sentences gathered from the token table are the tokenised sentences, whatever the values hold."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, ByT5Tokenizer, PreTrainedTokenizerFast

from modeling_flip import Field, FlipConfig, FlipForPreTraining, FlipProcessor, PretrainingCollator
from modeling_flip.row_reader import MEMBER_SEPARATOR
from modeling_flip.training.parts import split
from tests.modeling_flip.conftest import FAMILIES, FIELDS

SPECIAL_WORDS = ["[MASK]", "[SEP]", "[UNK]", "<mask>", "</s>", "<s>", "<pad>", "<unk>"]

# ---- the token table against the tokenizer

hard_pieces = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from([*" .,!?'\"-_()[]<>#▁Ġ…½①ﬁßİς", "'s", "##a", "...", " is ", "title is x."]),
    st.sampled_from(
        ["é", "e\u0301", "\u0301", "\u0323", "か\u3099", "ᄒ", "ᅡ", "ि", "東京", "한", "👍🏽", "👨‍👩‍👧", "🇩🇪"]
    ),
    st.sampled_from(
        ["\n", "\t", "\r\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2003", "\u2028", "\u3000", "\u200b", "\ufeff"]
    ),
    st.sampled_from(SPECIAL_WORDS),
)
hard_values = st.one_of(
    st.lists(hard_pieces, max_size=6).map("".join),
    st.sampled_from([None, "", "female", "東京", "very " * 150, "x" * 150]),
)
hard_rows = st.lists(st.fixed_dictionaries({field: hard_values for field in FIELDS}), min_size=1, max_size=4)


def assert_equal_to_the_tokenizer(processor: FlipProcessor, rows: Any) -> None:
    """The processor's output is that of its tokenizer on whole sentences."""
    assert processor.tokenizer is not None and processor.max_length is not None
    encoded = processor(rows, return_tensors="np")
    expected = processor.tokenizer(
        processor.texts(rows),
        split_special_tokens=True,
        truncation=True,
        max_length=processor.max_length,
        padding=True,
        return_tensors="np",
        return_special_tokens_mask=True,
    )
    # A Unigram finds special pieces in plain text, whatever split_special_tokens says: there they are unknown.
    control = set(processor.tokenizer.all_special_ids) - {processor.tokenizer.unk_token_id}
    in_text = np.isin(expected["input_ids"], list(control)) & (expected["special_tokens_mask"] == 0)
    plain_ids = np.where(in_text, processor.tokenizer.unk_token_id, expected["input_ids"])
    np.testing.assert_array_equal(encoded["input_ids"], plain_ids)
    np.testing.assert_array_equal(encoded["attention_mask"], expected["attention_mask"])
    by_offsets = processor.sentence_tokenizer.of_whole_sentences(processor.encode(rows), processor.max_length)
    np.testing.assert_array_equal(encoded["token_field_ids"], by_offsets["token_field_ids"])


@pytest.mark.parametrize("max_length", [12, 128])
@pytest.mark.parametrize("family", FAMILIES)
@given(rows=hard_rows)
def test_gathered_tokens_are_those_of_the_whole_sentence(
    processors: dict[tuple[str, int], FlipProcessor], family: str, max_length: int, rows: list[dict[str, str | None]]
) -> None:
    processor = processors[family, max_length]
    assert processor.encode(rows).token_tables is not None  # they are gathered
    assert_equal_to_the_tokenizer(processor, rows)


@given(rows=hard_rows)
def test_the_tokens_of_a_field_are_those_of_its_value_alone(
    processors: dict[tuple[str, int], FlipProcessor], wordpiece: PreTrainedTokenizerFast, rows: list[dict[str, str]]
) -> None:
    # True of WordPiece, which splits at spaces and punctuation first; rows that are cut off say nothing.
    encoded = processors["wordpiece", 128](rows, return_tensors="np")
    for row, ids, fields in zip(rows, encoded["input_ids"], encoded["token_field_ids"], strict=True):
        for i, field in enumerate(FIELDS):
            # What separates a list's members is a comma in every sentence.
            value = (row[field] or "unknown").replace(MEMBER_SEPARATOR, ", ")
            alone = wordpiece(value, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert ids[fields == i].tolist() == alone or (ids != wordpiece.pad_token_id).sum() == 128


hard_words = st.one_of(hard_values, st.sampled_from(["a|b", "a, b", "1,000", "07", "2024-01-31", "[1, 2]"]))
hard_rows_of_all_kinds = st.lists(
    st.fixed_dictionaries(
        {
            "movie": st.one_of(st.integers(), hard_words),
            "price": st.one_of(st.floats(), hard_words),
            "tags": st.one_of(hard_words, st.lists(hard_words, max_size=4)),
            "history": st.one_of(st.lists(st.integers(0, 9), max_size=4), hard_words),
            "title": hard_words,
            "day": hard_words,
        }
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("max_length", [12, 128])
@pytest.mark.parametrize("family", FAMILIES)
@given(rows=hard_rows_of_all_kinds)
def test_gathered_tokens_of_fields_of_all_kinds_are_those_of_the_whole_sentence(
    processors_of_all_kinds: dict[tuple[str, int], FlipProcessor],
    family: str,
    max_length: int,
    rows: list[dict[str, Any]],
) -> None:
    processor = processors_of_all_kinds[family, max_length]
    assert processor.encode(rows).token_tables is not None  # they are gathered
    assert_equal_to_the_tokenizer(processor, rows)


def test_token_field_ids_mark_the_tokens_of_the_values(wordpiece: PreTrainedTokenizerFast) -> None:
    schema = [Field(name="gender"), Field(name="title", missing_words=False)]
    processor = FlipProcessor.fit({"gender": ["female", None], "title": ["東京", " "]}, schema, wordpiece)
    encoded = processor({"gender": ["female", None], "title": ["東京", " "]}, return_tensors="np")
    tokens = [wordpiece.convert_ids_to_tokens(ids) for ids in encoded["input_ids"]]
    assert tokens == [
        ["[CLS]", "gender", "is", "female", ".", "title", "is", "東", "京", ".", "[SEP]"],
        ["[CLS]", "gender", "is", "unknown", ".", "title", "is", ".", "[SEP]", "[PAD]", "[PAD]"],
    ]
    assert encoded["token_field_ids"].tolist() == [
        [-1, -1, -1, 0, -1, -1, -1, 1, 1, -1, -1],
        [-1, -1, -1, 0, -1, -1, -1, -1, -1, -1, -1],
    ]


def test_a_longer_max_length_reads_what_a_shorter_one_cut(wordpiece: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    values = [*map(str, range(3000)), "a " * 60]  # one long value among many, which a sample may miss
    FlipProcessor.fit({"title": values}, ["title"], wordpiece, max_length=16).save_pretrained(tmp_path)
    assert_equal_to_the_tokenizer(FlipProcessor.from_pretrained(tmp_path, max_length=128), {"title": ["a " * 60]})


@pytest.mark.parametrize(
    ("family", "word"),
    [
        ("wordpiece", "[MASK]"),
        ("wordpiece", "[SEP]"),
        ("byte_level_bpe", "<mask>"),
        ("byte_level_bpe", "</s>"),
        *(("unigram", word) for word in ("<mask>", "</s>", "<pad>")),
    ],
)
def test_a_value_that_spells_a_special_token_stays_text(
    processors: dict[tuple[str, int], FlipProcessor], family: str, word: str
) -> None:
    processor = processors[family, 128]
    assert processor.tokenizer is not None
    encoded = processor({"user_id": "1", "gender": f"a {word}", "title": word}, return_tensors="np")
    of_values = encoded["input_ids"][encoded["token_field_ids"] >= 0]
    assert processor.tokenizer.convert_tokens_to_ids(word) not in of_values
    assert len(of_values) > 4


# ---- tokenizers that a table cannot serve


@pytest.mark.parametrize("name", ["merges", "normalizer"])
def test_a_tokenizer_that_looks_across_fields_reads_whole_sentences(
    crossing: dict[str, FlipProcessor], name: str
) -> None:
    processor = crossing[name]
    rows = {"gender": ["female", "male", None, "new"], "title": ["abc", "abc x", "x y " * 100, "[MASK]"]}
    assert processor.encode(rows).token_tables is None
    assert_equal_to_the_tokenizer(processor, rows)


def test_whole_sentences_find_the_values_tokens_by_their_offsets(crossing: dict[str, FlipProcessor]) -> None:
    processor = crossing["normalizer"]
    encoded = processor({"gender": "female", "title": "x y"}, return_tensors="np")
    assert processor.tokenizer is not None
    tokens = processor.tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    assert tokens == ["[CLS]", "gender", "is", "female", "title", "is", "x", "y", ".", "[SEP]"]
    assert encoded["token_field_ids"].tolist() == [[-1, -1, -1, 0, -1, -1, 1, 1, -1, -1]]


def test_a_batch_of_no_rows_where_whole_sentences_are_tokenised(crossing: dict[str, FlipProcessor]) -> None:
    assert crossing["merges"]({"gender": [], "title": []})["input_ids"].shape == (0, 1)


def test_sentences_of_no_rows_are_one_token_wide_without_special_tokens(wordpiece: PreTrainedTokenizerFast) -> None:
    """What a process has of a last batch that is smaller than the number of processes."""
    bare = copy.deepcopy(wordpiece)
    bare.backend_tokenizer.post_processor = processors.Sequence([])
    processor = FlipProcessor.fit({"gender": ["female", "male"]}, ["gender"], bare)
    assert processor({"gender": ["female"]})["input_ids"].shape == (1, 4)  # no [CLS], no [SEP]
    batch = PretrainingCollator(processor)(processor.encode({"gender": ["male"]}).__getitems__([]))
    assert {batch[name].shape for name in ("input_ids", "masked_input_ids", "mlm_labels")} == {(0, 1)}
    assert len(split(batch, 25)) == 1
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = FlipConfig.from_processor(processor, text_config=BertConfig(**sizes))
    assert FlipForPreTraining(config)(**batch).loss == 0


# ---- the template


def test_the_sentence_names_each_field_and_its_value(rows: list[dict[str, Any]]) -> None:
    processor = FlipProcessor.fit(rows, ["gender", "title", "user_id"])
    assert processor.texts(rows)[0] == "gender is female. title is Toy Story (1995). user id is 1."
    assert processor.texts(rows)[4] == "gender is unknown. title is It's a Wonderful Life. user id is 3."


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {
                "movie": "007",
                "price": 3.50,
                "tags": "a|b",
                "history": [8, 9.0],
                "title": "one  two three four five",
                "day": "2024-01-31",
            },
            "movie is 7. price is 3.5. tags is a, b. history is 8, 9. title is one two three four. day is 2024-01-31.",
        ),
        (
            {
                "movie": 1e3,
                "price": 1999.0,
                "tags": ["x", "y", "z", "w"],
                "history": "[8]",
                "title": " one ",
                "day": None,
            },
            "movie is 1000. price is 1999. tags is x, y, z. history is 8. title is one. day is unknown.",
        ),
        (
            {"movie": None, "price": "", "tags": [], "history": "NA", "title": "  "},
            "movie is unknown. price is unknown. tags is unknown. history is unknown. title is unknown. day is unknown.",
        ),
    ],
    ids=["all there", "other spellings", "all missing"],
)
def test_the_sentence_of_numbers_lists_and_text(
    processors_of_all_kinds: dict[tuple[str, int], FlipProcessor],
    wordpiece: PreTrainedTokenizerFast,
    row: dict[str, Any],
    sentence: str,
) -> None:
    processor = processors_of_all_kinds["wordpiece", 128]
    assert processor.texts([row]) == [sentence]
    assert processor([row])["input_ids"].tolist() == [wordpiece(sentence)["input_ids"]]


# ---- tokenizers


@pytest.mark.parametrize("eos", [None, "<|end|>"])
def test_a_tokenizer_without_mask_and_pad_tokens_gets_them(eos: str | None) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(["title is x."], trainer)
    given = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, truncation_side="left")
    size = len(given)
    processor = FlipProcessor.fit({"title": ["x", "a long one"]}, ["title"], given)

    assert (given.mask_token, given.pad_token, given.truncation_side, len(given)) == (None, None, "left", size)
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    assert tokenizer.mask_token_id == size
    assert tokenizer.pad_token == (eos or "<pad>")
    assert processor.max_length == 512  # the tokenizer has no limit of its own
    encoded = processor({"title": ["x", "a long one"]})
    short = int(encoded["attention_mask"][0].sum())
    assert set(encoded["input_ids"][0, short:].tolist()) == {tokenizer.pad_token_id}
    assert tokenizer.decode(encoded["input_ids"][0, :short]) == "title is x."


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="ByT5Tokenizer reports no character offsets"):
        FlipProcessor.fit({"title": ["x"]}, ["title"], ByT5Tokenizer())
