"""Encoded rows: one small integer for each cell, from which both views of a row are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .feature_vocabulary import FeatureVocabulary, LocalValues
from .token_table import TokenTable, gather


@dataclass
class FlipDataset(torch.utils.data.Dataset["FlipDataset"]):
    """Rows as value ids; a batch is a shorter FlipDataset, which the collator turns into tensors.

    Attributes:
        value_ids: (N, C) int32, a value of each field of the sentence.
        vocabulary: the values seen in training.
        local: the values of these rows that have no id in the vocabulary; their ids are V and up.
        token_tables: tokens of the values of the vocabulary, and of the others; None where whole sentences must be tokenised
            (or there is no tokenizer).
        labels: (N,) float32 clicks, or None.
        row_ids: (N,) int64, which rows of the whole these are; seeds the masking. None of the whole itself.
        epoch: seeds the masking. Row r can be asked for as e * N + r: then as it is e epochs later.
        sentence_lengths: (N,) what `lengths` has to say, where that is known.
        sentences: (M, D_text) what a frozen text tower makes of each row of the whole; None where it is to read them.
    """

    value_ids: np.ndarray
    vocabulary: FeatureVocabulary
    local: LocalValues
    token_tables: tuple[TokenTable, TokenTable] | None
    labels: np.ndarray | None
    row_ids: np.ndarray | None = None
    epoch: int = 0
    sentence_lengths: np.ndarray | None = None
    sentences: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.value_ids)

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> FlipDataset:
        # The epoch comes with the indices: what is told to a dataset does not reach the workers that hold copies of it.
        later, index = np.divmod(np.asarray(indices, np.int64), max(1, len(self)))
        epoch = self.epoch + int(later.max(initial=0))
        labels, lengths = (None if a is None else a[index] for a in (self.labels, self.sentence_lengths))
        row_ids = index if self.row_ids is None else self.row_ids[index]
        return replace(
            self,
            value_ids=self.value_ids[index],
            labels=labels,
            row_ids=row_ids,
            epoch=epoch,
            sentence_lengths=lengths,
        )

    def __getitem__(self, index: int) -> FlipDataset:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.__getitems__([index % len(self)])

    def feature_ids(self) -> np.ndarray:
        """(N, F) int64 the feature of each field that the tabular tower reads; of a list the first member's."""
        ids = self.value_ids[:, self.vocabulary.table_columns]
        return gather(self.vocabulary.value_features, self.local.first_features, ids).astype(np.int64)

    def list_feature_ids(self) -> np.ndarray:
        """(N, L, K) int64 the features of the members of each list field, K those of the longest list here; behind a shorter list
        stands -1. A missing list has one member, its field's unknown feature."""
        vocabulary, local = self.vocabulary, self.local
        ids = self.value_ids[:, vocabulary.list_columns].astype(np.int64)  # (N, L)
        own = ids - vocabulary.num_values
        is_missing = own < 0
        own = np.where(is_missing, 0, own)
        starts, stops = (local.offsets[own + i] if len(local) else np.zeros_like(own) for i in (0, 1))
        lengths = np.where(is_missing, 1, stops - starts)
        width = int(lengths.max(initial=1))
        place = starts[..., None] + np.arange(width)
        members = np.full(place.shape, -1, np.int64)
        is_member = (np.arange(width) < lengths[..., None]) & ~is_missing[..., None]
        members[is_member] = local.features[place[is_member]]
        unknown = np.broadcast_to(vocabulary.unknown_features[vocabulary.list_columns], ids.shape)
        members[..., 0] = np.where(is_missing, unknown, members[..., 0])
        return members

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each row's sentence, special tokens aside; all 0 where there is no token table."""
        if self.sentence_lengths is not None:
            return self.sentence_lengths
        if self.token_tables is None:
            return np.zeros(len(self), np.int64)
        seen, others = self.token_tables
        return gather(seen.lengths, others.lengths, self.value_ids).sum(1)

    @property
    def has_unseen_value(self) -> np.ndarray:
        """(N,) bool, whether some category of the row (or some member of a list) was never seen in training."""
        return np.asarray(self.is_unseen.any(1))

    @property
    def is_unseen(self) -> np.ndarray:
        """(N, C) bool, the same of each cell."""
        vocabulary, local = self.vocabulary, self.local
        is_unseen = np.zeros(len(local), bool)
        is_unseen[local.unseen_categories(vocabulary)] = True
        is_unseen[local.unseen_lists(vocabulary)] = True
        flags = np.zeros(self.value_ids.shape, bool)
        is_local = self.value_ids >= vocabulary.num_values
        flags[is_local] = is_unseen[self.value_ids[is_local] - vocabulary.num_values]
        return flags
