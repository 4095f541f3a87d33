"""Rows as sentences: "gender is female. title is …", as text and as tokens."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from .feature_vocabulary import FeatureVocabulary
from .fields import Field
from .row_dataset import FlipDataset
from .row_reader import MEMBER_SEPARATOR
from .token_table import Segments, TokenTable, gather_sentences

MISSING_TEXT = "unknown"
# The longest sentence by default, where the tokenizer allows it.
MAX_LENGTH = 512
# The token table cuts values at this many tokens, whatever max_length is: a processor may be loaded with a larger one.
MAX_SEGMENT_LENGTH = 4096
# A segment is tokenised after this anchor, because in a sentence it follows the full stop of the previous segment.
ANCHOR = "."
SEGMENTS_AT_ONCE = 4096

# ---- as text


def spoken(texts: pa.Array) -> pa.Array:
    """Canonical text as it stands in a sentence: a list with commas, a missing value as "unknown"."""
    return pc.fill_null(pc.replace_substring(texts, MEMBER_SEPARATOR, ", "), MISSING_TEXT)


def pieces_of(fields: Sequence[Field], values: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The sentence "{field name} is {value}." of each field, joined by spaces (FLIP §3.1): what stands before a field's value,
    the value, and what stands after it.

    Example:
        >>> list(pieces_of([Field(name="city"), Field(name="price")], ["Rome", "3.5"]))
        [('city is ', 'Rome', '.'), (' price is ', '3.5', '.')]
    """
    for i, (field, value) in enumerate(zip(fields, values, strict=True)):
        yield (" " if i else "") + f"{field.words} is ", value, "."


def value_words(rows: FlipDataset) -> Iterator[list[str]]:
    """The words of each encoded row's values."""
    ids, num_values = rows.value_ids.ravel(), rows.vocabulary.num_values
    is_local = pa.array(ids >= num_values)
    seen = rows.vocabulary.all_texts.take(pa.array(np.where(ids < num_values, ids, 0)))
    local = rows.local.texts.take(pa.array(ids[ids >= num_values] - num_values)).cast(pa.string())
    words = spoken(pc.replace_with_mask(seen, is_local, local)).to_pylist()
    width = rows.value_ids.shape[1]
    return (words[first : first + width] for first in range(0, len(words), width))


# ---- as tokens


def default_max_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's own limit, at most 512."""
    return min(tokenizer.model_max_length, MAX_LENGTH)


def usable_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer itself where it can mask, pad and cut on the right; otherwise a copy of it that can.

    Raises:
        ValueError: it is a slow one.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} reports no character offsets; load it with use_fast=True")
    if tokenizer.mask_token is None or tokenizer.pad_token is None or tokenizer.truncation_side != "right":
        tokenizer = copy.deepcopy(tokenizer)  # the caller's stays as it is
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": tokenizer.eos_token or "<pad>"})
    tokenizer.truncation_side = "right"
    return tokenizer


@dataclass(frozen=True, eq=False)
class SentenceTokenizer:
    """Sentences of rows as tokens: gathered from the tokens of their values, or tokenised whole.

    Attributes:
        tokenizer: as `usable_tokenizer` makes it.
        fields: those of the sentence, in its order.
    """

    tokenizer: PreTrainedTokenizerBase
    fields: Sequence[Field]

    def __deepcopy__(self, memo: dict[int, Any]) -> SentenceTokenizer:
        """Of the copy of the tokenizer in a copied processor; of the same one where `FlipProcessor.to_dict` copies all else."""
        return SentenceTokenizer(memo.get(id(self.tokenizer), self.tokenizer), self.fields)

    @cached_property
    def special_ids(self) -> tuple[list[int], list[int]]:
        """Special tokens that the tokenizer puts before and after one text, such as ([CLS], [SEP])."""
        inner = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        for first in range(len(full) - len(inner) + 1):
            if full[first : first + len(inner)] == inner:
                return full[:first], full[first + len(inner) :]
        return [], []

    @property
    def num_special_tokens(self) -> int:
        """How many the tokenizer puts around a sentence."""
        return sum(map(len, self.special_ids))

    @cached_property
    def control_ids(self) -> np.ndarray:
        """The special tokens but the unknown one: none of them is ever part of a sentence's text."""
        return np.setdiff1d(self.tokenizer.all_special_ids, [i for i in [self.tokenizer.unk_token_id] if i is not None])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all tokens in the order of their ids: another one where a token's id means another token."""
        tokens = sorted(self.tokenizer.get_vocab().items(), key=itemgetter(1))
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()

    def check_max_length(self, max_length: int) -> None:
        """Raises ValueError where sentences cannot be cut to this many tokens."""
        least = self.num_special_tokens + 1
        if not least <= max_length <= MAX_SEGMENT_LENGTH:
            raise ValueError(f"max_length is {max_length}; it must be from {least} to {MAX_SEGMENT_LENGTH}")

    def tokenize(self, texts: list[str], *, special: bool = True, **kwargs: Any) -> Mapping[str, Any]:
        """Tokenise plain text: a value that spells a special token, such as "[MASK]", stays text."""
        return self.tokenizer(
            texts,
            add_special_tokens=special,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
            **kwargs,
        )

    def segments(self, columns: np.ndarray, texts: pa.Array) -> Iterator[Segments]:
        """The tokens of "{field name} is {value}." of values given as their field's position (U,) and canonical text (U,), some
        at a time."""
        names = [field.words for field in self.fields]
        for first in range(0, len(columns), SEGMENTS_AT_ONCE):
            chunk = columns[first : first + SEGMENTS_AT_ONCE]
            values = spoken(texts[first : first + SEGMENTS_AT_ONCE].cast(pa.string())).to_pylist()
            heads = [f"{ANCHOR} {names[i]} is " if i else f"{names[i]} is " for i in chunk]
            encoded = self.tokenize([f"{h}{v}." for h, v in zip(heads, values, strict=True)], special=False)
            ids, spans = encoded["input_ids"], encoded["offset_mapping"]
            lengths = np.fromiter(map(len, ids), np.int64, len(ids))
            tokens = np.fromiter(chain.from_iterable(ids), np.int32, lengths.sum())
            places = np.fromiter(chain.from_iterable(chain.from_iterable(spans)), np.int32, 2 * len(tokens))
            starts, stops = places[::2], places[1::2]
            begins = np.fromiter(map(len, heads), np.int64, len(heads))  # where the value begins, and where it ends
            ends = begins + np.fromiter(map(len, values), np.int64, len(values))
            row = np.repeat(np.arange(len(chunk)), lengths)
            is_value = (starts < ends[row]) & (stops > begins[row])
            kept = (stops > len(ANCHOR)) | (chunk[row] == 0)
            nth = np.cumsum(kept) - 1  # of the tokens that are kept, from the segment's first
            lengths = np.bincount(row[kept], minlength=len(chunk))
            nth -= np.repeat(np.cumsum(lengths) - lengths, np.bincount(row, minlength=len(chunk)))
            kept &= nth < MAX_SEGMENT_LENGTH
            yield (
                self._without_control_ids(tokens[kept]),
                is_value[kept],
                np.minimum(lengths, MAX_SEGMENT_LENGTH).astype(np.int64),
            )

    def token_table(self, columns: np.ndarray, texts: pa.Array) -> TokenTable:
        """All `segments` of such values."""
        return TokenTable.of_parts(self.segments(columns, texts))

    def of_rows(self, rows: FlipDataset, max_length: int, fields: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """`input_ids`, `attention_mask` and `token_field_ids`, each (B, L) int64, L the longest sentence here: gathered where the
        rows have token tables.

        `fields` (positions) makes sentences of these alone. Their first then stands as it does inside the whole sentence:
        tokenizers that mark spaces mark one before it.
        """
        if rows.token_tables is None:
            return self.of_whole_sentences(rows, max_length, fields)
        chosen = np.arange(rows.value_ids.shape[1]) if fields is None else np.sort(np.asarray(fields, np.int64))
        return self._gather(rows.token_tables, rows.value_ids[:, chosen], chosen, max_length)

    def of_values(self, table: TokenTable, values: np.ndarray, max_length: int) -> dict[str, np.ndarray]:
        """What `of_rows` gives, of some values of a token table (B,), each a sentence by itself."""
        return self._gather((table, TokenTable.of_parts([])), values[:, None], np.zeros(1, np.int64), max_length)

    def _gather(
        self, tables: tuple[TokenTable, TokenTable], value_ids: np.ndarray, fields: np.ndarray, max_length: int
    ) -> dict[str, np.ndarray]:
        return gather_sentences(tables, value_ids, fields, self.special_ids, self.tokenizer.pad_token_id, max_length)

    def of_whole_sentences(
        self, rows: FlipDataset, max_length: int, fields: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """What `of_rows` gives, by tokenising each whole sentence and reading the fields from the offsets."""
        texts, all_spans = [], []
        for row in value_words(rows):
            text, value_spans = "", []
            for i, (head, value, stop) in enumerate(pieces_of(self.fields, row)):
                if fields is None or i in fields:
                    value_spans.append((i, len(text) + len(head), len(text) + len(head) + len(value)))
                    text += head + value + stop
            texts.append(text)
            all_spans.append(value_spans)
        if not texts:
            return {key: np.zeros((0, 1), np.int64) for key in ("input_ids", "attention_mask", "token_field_ids")}
        encoded = self.tokenize(texts, truncation=True, max_length=max_length)
        before, after = map(len, self.special_ids)
        width = max(map(len, encoded["input_ids"]), default=0)
        input_ids = np.full((len(texts), width), self.tokenizer.pad_token_id, np.int64)
        mask = np.zeros_like(input_ids)
        token_field_ids = np.full_like(input_ids, -1)
        for r, (ids, spans) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
            ids[before : len(ids) - after] = self._without_control_ids(
                np.asarray(ids[before : len(ids) - after], np.int64)
            )
            input_ids[r, : len(ids)], mask[r, : len(ids)] = ids, 1
            for t, (start, stop) in enumerate(spans):
                for field, first, last in all_spans[r]:
                    if start < last and stop > first:
                        token_field_ids[r, t] = field
        return {"input_ids": input_ids, "attention_mask": mask, "token_field_ids": token_field_ids}

    def _without_control_ids(self, ids: np.ndarray) -> np.ndarray:
        """A Unigram model finds "<mask>" in plain text, though special tokens are split: such a token is unknown."""
        unknown = self.tokenizer.unk_token_id
        return ids if unknown is None else np.where(np.isin(ids, self.control_ids), np.int32(unknown), ids)

    def can_gather(self, vocabulary: FeatureVocabulary, max_length: int, sample_size: int = 256) -> bool:
        """Whether sentences gathered from the vocabulary's token table equal those tokenised whole, on rows drawn from the
        vocabulary and some hard values."""
        rng = np.random.default_rng(0)
        hard = [None, "a.b", "!?", "Ünïcödé", "東京", "1,000.5", "it's", "x" * 40, " lead", f"a{MEMBER_SEPARATOR}b"]
        columns = {}
        for field in vocabulary.columns:
            seen = vocabulary.values[field.name]
            picks = seen.take(pa.array(rng.integers(max(1, len(seen)), size=sample_size))) if len(seen) else pa.nulls(1)
            picks = picks.cast(pa.string()).take(pa.array(np.arange(sample_size) % len(picks)))
            hard_ones = pa.array([hard[i] for i in rng.integers(len(hard), size=sample_size)])
            is_hard = pa.array(np.arange(sample_size) % 2 == 1)
            columns[field.name] = pc.if_else(is_hard, hard_ones, picks).dictionary_encode()
        value_ids, local = vocabulary.encode(columns)
        assert vocabulary.token_table is not None
        tables = (vocabulary.token_table, self.token_table(local.columns, local.texts))
        rows = FlipDataset(value_ids, vocabulary, local, tables, None, np.arange(sample_size))
        gathered, whole = self.of_rows(rows, max_length), self.of_whole_sentences(rows, max_length)
        return all(np.array_equal(gathered[key], whole[key]) for key in whole)
