"""Processors of three families of tokenizers, and of tokenizers that look across fields."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_flip import Field, FlipProcessor

FIELDS = ["user_id", "gender", "title"]
FAMILIES = ["wordpiece", "byte_level_bpe", "unigram"]


ALL_KINDS = [
    Field(name="movie", type="integer"),
    Field(name="price", kind="numeric", type="number", num_buckets=2),
    Field(name="tags", kind="list", separator="|", max_items=3),
    Field(name="history", kind="list", type="integer", features_of="movie"),
    Field(name="title", kind="text", max_words=4),
    Field(name="day", kind="numeric", type="date"),
]


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def crossing(wordpiece: PreTrainedTokenizerFast) -> dict[str, FlipProcessor]:
    """Processors whose tokenizers look across the border of two fields."""
    rows = {"gender": ["female", "male"], "title": ["abc", "x y"]}
    made = {"merges": _sentencepiece_without_splitting(), "normalizer": _normalizer_across_fields(wordpiece)}
    return {name: FlipProcessor.fit(rows, ["gender", "title"], tokenizer) for name, tokenizer in made.items()}
