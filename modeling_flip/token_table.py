"""Tokens of distinct values, made once and gathered into sentences. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

# Of some segments: (T,) token ids, (T,) which of them belong to a value, (U,) how many each segment has.
Segments: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """(U,) lengths → (U + 1,) int64, where each of as many things begins, laid end to end, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@dataclass(frozen=True)
class TokenTable:
    """The tokens of "{field name} is {value}." for each distinct value, end to end in one array.

    Attributes:
        tokens: (T,) int32 token ids of all segments.
        is_value: (T,) bool, which of them belong to the value (not to the field's name, "is" or the full stop).
        offsets: (V + 1,) int64, segment v is `tokens[offsets[v]:offsets[v + 1]]`.
    """

    tokens: np.ndarray
    is_value: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of_parts(cls, parts: Iterable[Segments]) -> TokenTable:
        """A table of segments that come some at a time."""
        made = [(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, np.int64)), *parts]
        tokens, is_value, lengths = (np.concatenate(arrays) for arrays in zip(*made, strict=True))
        return cls(tokens, is_value, offsets_of(lengths))

    @cached_property
    def lengths(self) -> np.ndarray:
        """(V,) tokens of each segment."""
        return np.diff(self.offsets)


def gather(first: np.ndarray, second: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`np.concatenate([first, second])[index]` at the cost of the index alone: `first` may be as long as a vocabulary."""
    if not len(second):
        return first[index]
    found = first.take(index, mode="clip") if len(first) else np.zeros(index.shape, second.dtype)
    behind = index >= len(first)
    found[behind] = second[index[behind] - len(first)]
    return found


def gather_sentences(
    tables: tuple[TokenTable, TokenTable],
    value_ids: np.ndarray,
    fields: np.ndarray,
    special_ids: tuple[Sequence[int], Sequence[int]],
    pad_token_id: int,
    max_length: int,
) -> dict[str, np.ndarray]:
    """Sentences, each the segments of its row's values one after the other.

    Args:
        tables: segments of the values seen in training, and of the others, whose ids follow those.
        value_ids: (B, C).
        fields: (C,) the numbers of the fields, for `token_field_ids`.
        special_ids: token ids before and after a sentence.
        pad_token_id: fills up to the batch's longest sentence.
        max_length: sentences are cut to this many tokens, special ones included.

    Returns:
        `input_ids`, `attention_mask` and `token_field_ids` (the field whose value a token belongs to, or -1), each (B, L) int64.
    """
    (seen, others), (before, after) = tables, special_ids
    size, num_fields = value_ids.shape
    flat = value_ids.ravel()
    lengths = gather(seen.lengths, others.lengths, flat)  # (B C,)
    starts = gather(seen.offsets[:-1], others.offsets[:-1], flat)
    starts[flat >= len(seen.lengths)] += len(seen.tokens)  # here, not in the table, which may be longer than a batch
    sentence_lengths = lengths.reshape(size, num_fields).sum(1)
    # The tokens of all sentences, end to end: `stops` counts them, each is a slice of the tables.
    stops = np.cumsum(lengths)
    source = np.repeat(starts - (stops - lengths), lengths) + np.arange(stops[-1] if len(stops) else 0)
    row = np.repeat(np.arange(size), sentence_lengths)
    position = np.arange(len(row)) - np.repeat(np.cumsum(sentence_lengths) - sentence_lengths, sentence_lengths)
    field = np.repeat(np.tile(fields, size), lengths)

    room = max_length - len(before) - len(after)
    fits = position < room
    kept = np.minimum(sentence_lengths, room)
    width = max(1, int(kept.max(initial=0)) + len(before) + len(after))  # models are not made for (0, 0)
    input_ids = np.full((size, width), pad_token_id, np.int64)
    token_field_ids = np.full((size, width), -1, np.int64)
    row, column, source = row[fits], position[fits] + len(before), source[fits]
    input_ids[row, column] = gather(seen.tokens, others.tokens, source)
    token_field_ids[row, column] = np.where(gather(seen.is_value, others.is_value, source), field[fits], -1)
    input_ids[:, : len(before)] = before
    for i, token in enumerate(after):
        input_ids[np.arange(size), len(before) + kept + i] = token
    mask = np.arange(width) < (kept + len(before) + len(after))[:, None]
    return {"input_ids": input_ids, "attention_mask": mask.astype(np.int64), "token_field_ids": token_field_ids}
