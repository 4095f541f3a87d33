"""The processor: sentences gathered from the token table are the tokenised sentences, whatever the values hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoProcessor, ByT5Tokenizer, PreTrainedTokenizerFast

from modeling_flip import FeatureVocabulary, Field, FlipProcessor
from modeling_flip.processing_flip import ROWS_TO_JUDGE
from modeling_flip.row_reader import MEMBER_SEPARATOR
from modeling_flip.training.preparation import choose_fields
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.splits import RawSplits

FIELDS = ["user_id", "gender", "title"]
FAMILIES = ["wordpiece", "byte_level_bpe", "unigram"]
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


@pytest.fixture(scope="module")
def processors(tokenizers: dict[str, PreTrainedTokenizerFast]) -> dict[tuple[str, int], FlipProcessor]:
    """A processor for each tokenizer and each limit on the length; the last value has more than 12 tokens."""
    schema = [Field(name=field, missing_words=False) for field in FIELDS]
    seen = {
        "user_id": ["1", "2"],
        "gender": ["female", None],
        "title": ["東京", "many more words than there is room for"],
    }
    return {
        (family, max_length): FlipProcessor.fit(seen, schema, tokenizer, max_length=max_length)
        for family, tokenizer in tokenizers.items()
        for max_length in (12, 128)
    }


def assert_equal_to_the_tokenizer(processor: FlipProcessor, rows: Any) -> None:
    """The processor's output is that of its tokenizer on whole sentences."""
    assert processor.tokenizer is not None
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
    by_offsets = processor._tokenize_sentences(processor.encode(rows))
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


ALL_KINDS = [
    Field(name="movie", type="integer"),
    Field(name="price", kind="numeric", type="number", num_buckets=2),
    Field(name="tags", kind="list", separator="|", max_items=3),
    Field(name="history", kind="list", type="integer", features_of="movie"),
    Field(name="title", kind="text", max_words=4),
    Field(name="day", kind="numeric", type="date"),
]
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


@pytest.fixture(scope="module")
def processors_of_all_kinds(tokenizers: dict[str, PreTrainedTokenizerFast]) -> dict[tuple[str, int], FlipProcessor]:
    rows = [
        {
            "movie": 7,
            "price": 3.5,
            "tags": "fun|old",
            "history": [8, 9],
            "title": "Toy Story (1995)",
            "day": "2024-01-31",
        },
        {"movie": 8, "price": None, "tags": None, "history": [], "title": None, "day": None},
    ]
    return {
        (family, max_length): FlipProcessor.fit(rows, ALL_KINDS, tokenizer, max_length=max_length)
        for family, tokenizer in tokenizers.items()
        for max_length in (12, 128)
    }


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


# ---- tokenizers that a table cannot serve


def _sentencepiece_without_splitting() -> PreTrainedTokenizerFast:
    """A BPE without a pre-tokenizer: its merges cross words and fields."""
    special = ["<pad>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["gender is female. title is abc. gender is male. title is x y."] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", model_max_length=128
    )


def _normalizer_across_fields(wordpiece: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A WordPiece that drops the full stop before "title"."""
    backend = Tokenizer.from_str(wordpiece.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([backend.normalizer, normalizers.Replace(Regex(r"\. title"), " title")])
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = {name: getattr(wordpiece, name) for name in names}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=128, **special)


@pytest.fixture(scope="module")
def crossing(wordpiece: PreTrainedTokenizerFast) -> dict[str, FlipProcessor]:
    """Processors whose tokenizers look across the border of two fields."""
    rows = {"gender": ["female", "male"], "title": ["abc", "x y"]}
    made = {"merges": _sentencepiece_without_splitting(), "normalizer": _normalizer_across_fields(wordpiece)}
    return {name: FlipProcessor.fit(rows, ["gender", "title"], tokenizer) for name, tokenizer in made.items()}


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


def test_the_features_of_all_kinds(processors_of_all_kinds: dict[tuple[str, int], FlipProcessor]) -> None:
    processor = processors_of_all_kinds["wordpiece", 128]
    # movie: unknown 0, then 7, 8, 9 in the order of the rows; price: unknown 4, one bucket; tags: unknown 6, fun, old; day
    assert processor.vocabulary.values["movie"].to_pylist() == ["7", "8", "9"]
    rows = [
        {
            "movie": 9,
            "price": -2,
            "tags": ["old", "fun", "x", "fun"],
            "history": [7, 5],
            "title": "any",
            "day": "1999-01-01",
        },
        {"movie": 5},
    ]
    encoded = processor(rows)
    assert encoded["feature_ids"].tolist() == [[3, 5, 8, 1, 10], [0, 4, 6, 0, 9]]
    assert encoded["list_feature_ids"].tolist() == [[[8, 7, 6], [1, 0, -1]], [[6, -1, -1], [0, -1, -1]]]
    assert processor.config_settings == {
        **{"num_features": 12, "num_fields": 5, "text_fields": [4], "list_fields": [2, 3]},
        "vocabulary_fingerprint": processor.vocabulary.fingerprint,
    }


def test_fields_that_are_not_declared_are_inferred(wordpiece: PreTrainedTokenizerFast) -> None:
    rows = {"user_id": [1, 2, 3], "price": [3.5, None, 2.0], "tags": [["a"], [], ["b", "a"]], "title": ["x", "y", "z"]}
    everything = FlipProcessor.fit(rows, tokenizer=wordpiece)
    assert [(field.name, field.kind, field.type) for field in everything.schema] == [
        *(("user_id", "categorical", "integer"), ("price", "numeric", "number")),
        *(("tags", "list", "string"), ("title", "categorical", "string")),
    ]
    some = FlipProcessor.fit(rows, ["tags", {"name": "price", "kind": "categorical", "words": "cost"}], wordpiece)
    assert [(field.name, field.kind) for field in some.schema] == [("tags", "list"), ("price", "categorical")]
    assert some.display_names == {"tags": "tags", "price": "cost"}


def test_display_names_replace_the_columns_names(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit(
        {"user_id": [1], "sex": ["f"]}, ["user_id", "sex"], wordpiece, display_names={"sex": "gender"}
    )
    assert processor.texts({"user_id": 1, "sex": "f"}) == ["user id is 1. gender is f."]
    ids = processor({"user_id": 1, "sex": "f"})["input_ids"][0]
    assert wordpiece.decode(ids, skip_special_tokens=True) == "user id is 1. gender is f."


# ---- unseen values, absent fields


def test_an_unseen_value_is_the_unknown_feature_and_keeps_its_words(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"gender": ["f", "m"], "title": ["toy", "story"]}, ["gender", "title"], wordpiece)
    encoded = processor({"gender": ["other", "m"], "title": ["toy", "m"]})
    # (unknown, f, m), (unknown, toy, story), <MASK>
    assert encoded["feature_ids"].tolist() == [[0, 4], [2, 3]]
    sentences = wordpiece.batch_decode(encoded["input_ids"], skip_special_tokens=True)
    assert sentences == ["gender is other. title is toy.", "gender is m. title is m."]


def test_a_rare_value_is_the_unknown_feature_and_keeps_its_words(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"title": ["toy", "toy", "story"]}, ["title"], wordpiece, min_count=2)
    encoded = processor({"title": ["story", "toy"]})
    assert encoded["feature_ids"].tolist() == [[0], [1]]
    assert wordpiece.decode(encoded["input_ids"][0], skip_special_tokens=True) == "title is story."


def test_an_absent_field_is_missing_on_both_sides(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit({"gender": ["f"], "title": ["toy"]}, ["gender", "title"], wordpiece)
    encoded = processor({"gender": "f"})
    assert encoded["feature_ids"].tolist() == [[1, 2]]
    assert wordpiece.decode(encoded["input_ids"][0], skip_special_tokens=True) == "gender is f. title is unknown."


def test_an_absent_field_is_an_error_where_rows_are_encoded_for_training(rows: list[dict[str, Any]]) -> None:
    processor = FlipProcessor.fit(rows, ["gender", "title"])
    with pytest.raises(ValueError, match=r"column 'title' is missing; the columns are .* did you mean 'titles'"):
        processor.encode({"gender": ["male"], "titles": ["toy"]})


@pytest.mark.parametrize(
    ("fields", "values", "warned"),
    [
        (["city"], {"city": [f"v{i}" for i in range(20)]}, True),
        (["city"], {"city": ["Rome"] * 2 + [f"v{i}" for i in range(18)]}, False),  # nine in ten are new, not more
        (["city"], {"city": ["Rome"] + [f"v{i}" for i in range(19)]}, True),
        (["city"], {"city": [f"v{i}" for i in range(19)]}, False),  # too few rows to judge
        (["city"], {"city": [f"v{i}" for i in range(19)] + [None] * 9}, False),
        ([Field(name="city", kind="text")], {"city": [f"v{i}" for i in range(20)]}, False),
        ([Field(name="city", kind="list")], {"city": [f"v{i}" for i in range(20)]}, False),
    ],
)
def test_a_column_of_which_nearly_all_values_are_unseen_is_named(
    fields: list[Any], values: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert ROWS_TO_JUDGE == 20
    processor = FlipProcessor.fit({"city": ["Rome", "Oslo"] * 9}, fields)
    for _ in range(2):
        processor.encode(values)
    found = [record.message for record in caplog.records if "never seen in training" in record.message]
    share = {19: "95%", 20: "100%"}.get(sum(str(v).startswith("v") for v in values["city"]))
    expected = (
        f"{share} of the values of 'city' were never seen in training, such as 'v0'; there they looked like 'Rome'."
    )
    assert found == [f"{expected} Is it the same column, and not an identifier of single rows?"] * warned


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        (["83,83"] * 30, "100% of the values of 'price' are not numbers, such as '83,83': they count as missing"),
        (["old", None, ""], "100% of the values of 'price' are not numbers, such as 'old'"),
        ([1.5, "old", None], "50% of"),
        ([None, 7, "99.5", 22.82, ""], ""),
        (["?"] * 9, ""),  # training had such values, and said so
        ([4.5] * 9 + ["old"], ""),
    ],
)
def test_a_number_that_cannot_be_read_is_said_once(
    prices: list[Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    field = Field(name="price", kind="numeric", type="number")
    processor = FlipProcessor.fit({"price": ["?", 22.82, 3.5, 100]}, [field])
    for rows in (prices, [f"{price}!" if said else price for price in prices]):
        processor.encode({"price": rows})
    found = [record.message for record in caplog.records]
    assert len(found) == bool(said)
    if said:
        assert found[0].startswith(said) and found[0].endswith("training saw numbers such as 22.82")


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


def test_a_processor_without_a_vocabulary_says_how_to_make_one(wordpiece: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"FlipProcessor\.fit"):
        FlipProcessor(wordpiece)


# ---- files


@pytest.mark.parametrize("loader", [FlipProcessor, AutoProcessor])
@pytest.mark.parametrize("family", [*FAMILIES, "merges", None])
def test_a_saved_processor_loads_with_the_same_outputs(
    family: str | None,
    loader: Any,
    tokenizers: dict[str, PreTrainedTokenizerFast],
    crossing: dict[str, FlipProcessor],
    rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    tokenizer = crossing["merges"].tokenizer if family == "merges" else tokenizers[family] if family else None
    saved = FlipProcessor.fit(
        rows[:5], FIELDS, tokenizer, min_count=2, display_names={"gender": "sex"}, max_length=24 if family else None
    )
    saved.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)

    assert isinstance(loaded, FlipProcessor)
    assert loaded.vocabulary == saved.vocabulary
    assert (loaded.display_names, loaded.max_length) == (saved.display_names, saved.max_length)
    expected, encoded = saved(rows), loaded(rows)
    assert (
        set(encoded)
        == set(expected)
        == {"token_field_ids", *saved.model_input_names} - (set() if family else {"token_field_ids"})
    )
    for key in expected:
        assert encoded[key].tolist() == expected[key].tolist(), key


# ---- datasets


@pytest.mark.parametrize("family", [*FAMILIES, None])
def test_a_batch_of_no_rows(processors: dict[tuple[str, int], FlipProcessor], family: str | None) -> None:
    processor = processors[family, 128] if family else FlipProcessor.fit({f: ["a"] for f in FIELDS}, FIELDS)
    encoded = processor({field: [] for field in FIELDS})
    assert encoded["feature_ids"].shape == (0, 3)
    assert all(len(value) == 0 for value in encoded.values())


def test_a_batch_of_no_rows_where_whole_sentences_are_tokenised(crossing: dict[str, FlipProcessor]) -> None:
    assert len(crossing["merges"]({"gender": [], "title": []})["input_ids"]) == 0


def test_a_slice_of_a_dataset_keeps_each_rows_values_label_and_number(wordpiece: PreTrainedTokenizerFast) -> None:
    rows = {"title": ["a", "b c", "c d", "a"], "gender": ["male"] * 4, "click": [0, 1, 1, 0]}
    processor = FlipProcessor.fit({"title": ["a", "b c"], "gender": ["male"] * 2}, ["title", "gender"], wordpiece)
    dataset = processor.encode(rows, labels="click")
    assert dataset.has_unseen_value.tolist() == [False, False, True, False]
    assert dataset.lengths.tolist() == [8, 9, 9, 8]  # title is a . gender is male .
    batch = dataset.__getitems__([2, 1])
    assert len(batch) == 2
    assert batch.row_ids.tolist() == [2, 1]
    assert batch.labels is not None
    assert batch.labels.tolist() == [1.0, 1.0]
    texts = wordpiece.batch_decode(processor.sentences(batch)["input_ids"], skip_special_tokens=True)
    assert texts == ["title is c d. gender is male.", "title is b c. gender is male."]
    assert batch[0].row_ids.tolist() == [2]


# ---- labels


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ([0, 1, float("nan")], "a missing value (row 2)"),
        ([0, None, None], "a missing value (row 1)"),
        ([0, 2, 3], "'2' (row 1)"),
        (["yes", "no"], "'yes' (row 0)"),
        ([0.0, 0.5], "'0.5' (row 1)"),
    ],
    ids=str,
)
def test_a_label_that_is_no_click_is_shown_with_its_row(labels: list[Any], shown: str) -> None:
    processor = FlipProcessor(vocabulary=FeatureVocabulary.fit({"title": ["a"]}, ["title"]))
    with pytest.raises(ValueError, match="label column 'click' holds ") as error:
        processor.encode({"title": ["a"] * len(labels), "click": labels}, labels="click")
    assert shown in str(error.value)


# ---- fields inferred from a DataFrame


def a_log(rows: int = 60) -> dict[str, list[Any]]:
    """A column that gives the click away, one with a value a row, and two that can be learned from."""
    clicks = [i % 3 == 0 for i in range(rows)]
    return {
        "row_id": [f"r{i}" for i in range(rows)],
        "city": [f"city {i % 7}" for i in range(rows)],
        "price": [i % 11 + 0.5 for i in range(rows)],
        "bought": ["yes" if click else "no" for click in clicks],
        "clicked": [int(click) for click in clicks],
    }


def test_fit_infers_the_fields_as_train_py_does(caplog: pytest.LogCaptureFixture) -> None:
    pd = pytest.importorskip("pandas")
    frame, log = pd.DataFrame(a_log()), pa.table(a_log())
    processor = FlipProcessor.fit(frame, label="clicked")
    assert processor.fields == ["city", "price"]
    assert (
        "left out: 'row_id' (every row has its own value: it would only be memorised), 'bought' (identical to the label)"
        in (caplog.text)
    )
    recipe = Recipe(dataset_name="a log", output_dir="unused", label_column="clicked", towers="tabular")
    train = RawSplits.of({"train": log})["train"]
    reports = choose_fields(recipe, train, np.array(a_log()["clicked"], np.float32), {})
    assert list(processor.schema) == [report.field for report in reports]


def test_fit_takes_settings_of_single_fields() -> None:
    processor = FlipProcessor.fit(a_log(), {"price": {"kind": "categorical"}}, label="clicked")
    assert [(field.name, field.kind) for field in processor.vocabulary.columns] == [
        ("city", "categorical"),
        ("price", "categorical"),
    ]


def test_a_label_is_never_a_field() -> None:
    with pytest.raises(ValueError, match=r"'clicked' is declared as a field but also left out \(the label\)"):
        FlipProcessor.fit(a_log(), ["city", "clicked"], label="clicked")
    with pytest.raises(ValueError, match="label column 'city' holds 'city 0'"):
        FlipProcessor.fit(a_log(), label="city")
    forgotten = FlipProcessor.fit(a_log())
    with pytest.raises(ValueError, match="the label 'clicked' is a field of the processor: the model would read the"):
        forgotten.encode(a_log(), "clicked")
    with pytest.raises(ValueError, match="no column is left to learn from: 'row_id': every row has its own value"):
        FlipProcessor.fit({key: a_log()[key] for key in ("row_id", "bought", "clicked")}, label="clicked")
