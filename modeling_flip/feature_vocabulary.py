"""What was seen in training: the distinct values of every field, how often, and their tokens.

No torch here: a vocabulary is fitted, merged, saved and loaded with pyarrow and numpy alone.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .cell_text import MISSING_WORDS, as_numbers
from .fields import MOST_FIELDS, Field, check_schema, make_field, used, with_min_count
from .row_reader import MEMBER_SEPARATOR, read_columns
from .token_table import TokenTable
from .vocabulary_file import read_bounded

VOCABULARY_FILE = "feature_vocab.parquet"
FORMAT_VERSION = 2
# Looking up more than a share of the vocabulary's size, all of it is hashed once; fewer are searched for in its order.
SEARCHED_SHARE = 1 / 16
HASHED_AT_ONCE = 1 << 16
# Up to this many texts are searched for one by one.
FEW_TEXTS = 16


@dataclass(frozen=True)
class LocalValues:
    """Values of some rows that have no id of their own in the vocabulary: those never seen in training, whole lists, and texts.

    Value i of these has the value id V + i, V the vocabulary's number of values.

    Attributes:
        columns: (U,) int32, which field each is of, by position in the sentence.
        texts: (U,) their canonical text.
        features: (U',) int32, the features of all of them, end to end: of a list, those of its members; of a text none; of
            any other value one.
        offsets: (U + 1,) int64, value i has `features[offsets[i]:offsets[i + 1]]`.
    """

    columns: np.ndarray
    texts: pa.Array
    features: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def first_features(self) -> np.ndarray:
        """(U,) int32 the first feature of each value; -1 where there is none."""
        has_one = np.diff(self.offsets) > 0
        first = np.full(len(self), -1, np.int32)
        first[has_one] = self.features[self.offsets[:-1][has_one]]
        return first

    def unseen_categories(self, vocabulary: FeatureVocabulary) -> np.ndarray:
        """Which of these are categories that have their field's unknown feature, because training never saw them; of a hashed
        field nobody knows."""
        kinds = [field.kind == "categorical" and field.hash_size is None for field in vocabulary.columns]
        return np.flatnonzero(np.array(kinds, bool)[self.columns])

    def unseen_lists(self, vocabulary: FeatureVocabulary) -> np.ndarray:
        """Which of these are lists with a member that training never saw. One that it saw seldom has the unknown feature too."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        has_unknown = np.zeros(len(self), bool)
        has_unknown[owner[self.features == vocabulary.unknown_features[self.columns][owner]]] = True
        found = []
        for i, field in enumerate(vocabulary.columns):
            if field.kind == "list" and len(lists := np.flatnonzero(has_unknown & (self.columns == i))):
                members = pc.split_pattern(self.texts.take(pa.array(lists)), MEMBER_SEPARATOR)
                is_new = vocabulary.positions(field.features_of or field.name, pc.list_flatten(members)) < 0
                found.append(lists[pc.list_parent_indices(members).to_numpy()[is_new]])
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class FeatureVocabulary:
    """Per field the distinct values in order of first appearance, and how often each was seen.

    The values of a categorical field are its values (with a `hash_size`, the numbers of its buckets), of a numeric field its
    numbers, of a list field the members of its lists; of text nothing is kept. Two numberings are derived from that, both global
    (one space over all fields):

    - *features* index embeddings. Each field owns one block: its unknown feature, then one feature for each value seen at
      least `min_count` times, or of a numeric field one for each quantile bucket. A list that shares another field's features
      owns none. The last feature, `mask_feature_id`, is `<MASK>`, shared by all fields. `num_features` is M.
    - *values* index texts. Each field owns one block: the missing value, then every value, rare ones too: a rare value
      shares its field's unknown feature but keeps its words.

    Attributes:
        schema: all fields, ignored ones too, in the order of the sentence.
        values: `{field: (V_f,) string array}`.
        counts: `{field: (V_f,) int64}`.
        null_counts: `{field: number of rows without a value}`.
        token_table: tokens of every value in value order, once a processor has made them.
        orders: `{field: (V_f,) int32}`, the values' positions in alphabetical order, where they are known already.
    """

    schema: tuple[Field, ...]
    values: dict[str, pa.Array]
    counts: dict[str, np.ndarray]
    null_counts: dict[str, int]
    token_table: TokenTable | None = None
    orders: dict[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        check_schema(self.schema)
        object.__setattr__(self, "orders", dict(self.orders or {}))

    @classmethod
    def fit(cls, rows: Any, schema: Sequence[str | Mapping[str, Any] | Field], min_count: int = 1) -> FeatureVocabulary:
        """Count the values of the fields in `rows`, anything that `read_columns` reads. A name alone is a categorical field of
        text; `min_count` is that of each field that says nothing else."""
        made = tuple(with_min_count([make_field(field) for field in schema], min_count))
        columns, _ = read_columns(rows, used(made))
        return cls.of_columns(columns, made)

    @classmethod
    def of_columns(cls, columns: Mapping[str, pa.DictionaryArray], schema: Sequence[Field]) -> FeatureVocabulary:
        """Fit on columns as `read_columns` returns them."""
        found, nulls = {}, {}
        for field in used(schema):
            column = columns[field.name]
            nulls[field.name] = column.null_count
            if field.kind != "text":
                counts = np.bincount(column.indices.drop_null().to_numpy(), minlength=len(column.dictionary))
                found[field.name] = (column.dictionary, counts, _first_rows(column))
        return cls.of_counts(found, nulls, schema)

    @classmethod
    def of_counts(
        cls,
        found: Mapping[str, tuple[pa.Array, np.ndarray, np.ndarray]],
        null_counts: Mapping[str, int],
        schema: Sequence[Field],
    ) -> FeatureVocabulary:
        """Fit on the counts of columns.

        Args:
            found: of each field but texts its distinct values as canonical text, in how many rows each stands, and in which row
                first.
            null_counts: of each field the rows without a value.
            schema: all fields.
        """
        seen: dict[str, list[tuple[pa.Array, np.ndarray, np.ndarray]]] = {field.name: [] for field in used(schema)}
        for field in used(schema):
            if field.kind == "text":
                continue
            texts, counts, rows = found[field.name]
            if field.kind == "list":
                lists = pc.split_pattern(texts, MEMBER_SEPARATOR)
                parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
                counts, rows, texts = counts[parents], rows[parents], pc.list_flatten(lists)
            seen[field.features_of or field.name].append((texts, counts, rows))
        values, counted = {}, {}
        for name, parts in seen.items():
            # Fields that share values take turns, row by row: so rows that come in parts are merged to the same order.
            order = np.argsort(np.concatenate([[], *(rows for _, _, rows in parts)]), kind="stable")
            texts = pa.concat_arrays([pa.array([], pa.string()), *(texts for texts, _, _ in parts)])
            counts = np.concatenate([np.zeros(0, np.int64), *(counts for _, counts, _ in parts)])
            values[name], counted[name] = _count([(texts.take(pa.array(order)), counts[order])])
        for field in used(schema):
            if field.hash_size is not None:
                buckets = buckets_of(values[field.name], field.hash_size)
                counts = np.bincount(buckets, weights=counted[field.name], minlength=field.hash_size)
                counted[field.name] = counts.astype(np.int64)
                values[field.name] = numbers_as_text(field.hash_size)
        return cls(tuple(schema), values, counted, {field.name: null_counts[field.name] for field in used(schema)})

    @classmethod
    def merge(cls, vocabularies: Sequence[FeatureVocabulary]) -> FeatureVocabulary:
        """The vocabulary of the concatenated data; `merge([fit(a), fit(b)]) == fit(a + b)`.

        Raises:
            ValueError: the fields differ.
        """
        return reduce(cls._merge_two, vocabularies)

    def _merge_two(self, other: FeatureVocabulary) -> FeatureVocabulary:
        if self.schema != other.schema:
            ours, theirs = self.schema, other.schema
            differ = next((f"{a} and {b}" for a, b in zip(ours, theirs, strict=False) if a != b), "one has more fields")
            raise ValueError(f"cannot merge vocabularies of different fields ({differ}); fit both with the same fields")
        values, counts = {}, {}
        for name in self.fields:
            parts = [(v.values[name], v.counts[name]) for v in (self, other)]
            values[name], counts[name] = _count(parts)
        nulls = {name: self.null_counts[name] + other.null_counts[name] for name in self.fields}
        return FeatureVocabulary(self.schema, values, counts, nulls)

    def grown(self, later: FeatureVocabulary) -> FeatureVocabulary:
        """The vocabulary of these rows and of `later` ones, in which what had a feature keeps it: `features_in` says where.

        As `merge`, but numeric fields stay as they are, so that their buckets keep their bounds; and where a field's `max_size`
        leaves no room, later values get no feature, and rare ones stay rare, however often they come.

        Raises:
            ValueError: the fields differ.

        Example:
            >>> before = FeatureVocabulary.fit({"city": ["Rome", "Oslo"], "day": ["1", "1"]}, ["city", "day"])
            >>> after = before.grown(FeatureVocabulary.fit({"city": ["Oslo", "Lima"], "day": ["2", "2"]}, ["city", "day"]))
            >>> after.values["city"].to_pylist(), before.features_in(after).tolist()
            (['Rome', 'Oslo', 'Lima'], [0, 1, 2, 4, 5, 7])
        """
        grown = self._merge_two(later)
        values, counts = dict(grown.values), dict(grown.counts)
        for field in self.columns:
            name, size = field.name, len(self.values[field.name])
            if field.kind == "numeric":
                values[name], counts[name] = self.values[name], self.counts[name]
            elif field.max_size is not None:
                others = np.setdiff1d(np.arange(len(counts[name])), np.flatnonzero(self._kept[name]))
                others = others[counts[name][others] >= field.least_count]
                room = field.max_size - int(self._kept[name].sum())
                left_out = others[np.argsort(-counts[name][others], kind="stable")[room:]]
                stays = left_out[left_out < size]
                counts[name][stays] = self.counts[name][stays]
                is_in = np.ones(len(counts[name]), bool)
                is_in[left_out[left_out >= size]] = False
                values[name], counts[name] = values[name].filter(pa.array(is_in)), counts[name][is_in]
        return replace(grown, values=values, counts=counts)

    def features_in(self, grown: FeatureVocabulary) -> np.ndarray:
        """(M,) int64 which feature of a vocabulary that has grown from this one each feature is there."""
        found = np.empty(self.num_features, np.int64)
        found[self.mask_feature_id] = grown.mask_feature_id
        for i, field in enumerate(self.columns):
            first, stop = self.feature_offsets[i : i + 2]
            if first == stop:
                continue
            found[first:stop] = grown.feature_offsets[i] + np.arange(stop - first)
            if field.kind != "numeric":  # a rare value that has become frequent may stand before one that has been so
                there = grown._kept[field.name]
                own = np.flatnonzero(self._kept[field.name])
                found[first + 1 : stop] = grown.feature_offsets[i] + np.cumsum(there)[own]
        return found

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FeatureVocabulary)
            and self.schema == other.schema
            and self.null_counts == other.null_counts
            and all(self.values[f].equals(other.values[f]) for f in self.fields)
            and all(np.array_equal(self.counts[f], other.counts[f]) for f in self.fields)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureVocabulary:
        return self  # immutable; transformers deep-copies a processor each time it writes its JSON

    # ---- fields

    @cached_property
    def columns(self) -> list[Field]:
        """The fields of the sentence, in its order."""
        return used(self.schema)

    @property
    def fields(self) -> list[str]:
        """Their names."""
        return [field.name for field in self.columns]

    @cached_property
    def hash_sizes(self) -> dict[str, int | None]:
        """The fields' `hash_size`, by name."""
        return {field.name: field.hash_size for field in self.columns}

    @cached_property
    def table_columns(self) -> np.ndarray:
        """(F,) positions in the sentence of the fields that the tabular tower reads."""
        return np.flatnonzero([field.has_table_side for field in self.columns])

    @cached_property
    def list_columns(self) -> np.ndarray:
        """Positions in the sentence of the list fields."""
        return np.flatnonzero([field.kind == "list" for field in self.columns])

    # ---- features

    @cached_property
    def value_offsets(self) -> np.ndarray:
        """(C + 1,) first value id of each field's block; the missing value stands there."""
        return np.cumsum([0] + [len(self.values[name]) + 1 for name in self.fields])

    @property
    def num_values(self) -> int:
        """V, missing values included."""
        return int(self.value_offsets[-1])

    @cached_property
    def bounds(self) -> dict[str, np.ndarray]:
        """Of each numeric field the upper bounds of its quantile buckets but the last, rising: a number's bucket is how many
        of them are at most as large as it."""
        made = {}
        for field in self.columns:
            if field.kind != "numeric":
                continue
            numbers, counts = as_numbers(self.values[field.name], field.type), self.counts[field.name]
            order = np.argsort(numbers)
            order = order[~np.isnan(numbers[order])]
            numbers, below = numbers[order], np.concatenate([[0], np.cumsum(counts[order])])
            if len(numbers) <= field.num_buckets:
                made[field.name] = numbers[1:]
                continue
            # Each cut is at the number's edge that is nearest to the quantile, so that one number of many rows stands alone.
            ranks = below[-1] * np.arange(1, field.num_buckets) / field.num_buckets
            above = np.searchsorted(below, ranks)
            cuts = np.unique(np.where(ranks - below[above - 1] <= below[above] - ranks, above - 1, above))
            made[field.name] = numbers[cuts[(cuts > 0) & (cuts < len(numbers))]]
        return made

    @cached_property
    def _kept(self) -> dict[str, np.ndarray]:
        """Of each field which values have a feature of their own."""
        kept = {}
        for field in self.columns:
            counts = self.counts[field.name]
            kept[field.name] = counts >= field.least_count
            if field.kind == "numeric":
                kept[field.name] = np.zeros(len(counts), bool)
            if field.hash_size is not None:
                kept[field.name] = np.ones(len(counts), bool)
            if field.max_size is not None:
                kept[field.name][np.argsort(-counts, kind="stable")[field.max_size :]] = False
        return kept

    @cached_property
    def feature_offsets(self) -> np.ndarray:
        """(C + 1,) first feature id of each field's block, its unknown feature; the last entry is `<MASK>`. A field without
        features of its own has an empty block."""
        sizes = []
        for field in self.columns:
            if not field.has_table_side or field.features_of is not None:
                sizes.append(0)
            elif field.kind == "numeric":
                sizes.append(len(self.bounds[field.name]) + 2)
            else:
                sizes.append(int(self._kept[field.name].sum()) + 1)
        return np.cumsum([0, *sizes])

    @cached_property
    def unknown_features(self) -> np.ndarray:
        """(C,) int32 the feature of each field's missing and unseen values; -1 of a field without table side."""
        unknown = self.feature_offsets[:-1].astype(np.int32)
        for i, field in enumerate(self.columns):
            if field.features_of is not None:
                unknown[i] = unknown[self.fields.index(field.features_of)]
            elif not field.has_table_side:
                unknown[i] = -1
        return unknown

    @property
    def num_features(self) -> int:
        """M: all fields' features, one unknown per field, and `<MASK>`."""
        return int(self.feature_offsets[-1]) + 1

    @property
    def mask_feature_id(self) -> int:
        return self.num_features - 1

    @cached_property
    def value_features(self) -> np.ndarray:
        """(V,) int32 feature id of each value; -1 of a value without."""
        blocks = []
        for i, field in enumerate(self.columns):
            first = self.unknown_features[i]
            kept = self._kept[field.name]
            own = np.where(kept, first + np.cumsum(kept), first)
            if field.kind == "numeric":
                own = self._buckets(i, self.values[field.name])
            blocks += [np.asarray([first]), own]
        return np.concatenate([*blocks, np.zeros(0)]).astype(np.int32)

    def _buckets(self, column: int, texts: pa.Array) -> np.ndarray:
        """(n,) feature of each number of a numeric field; the unknown feature for what is not a number."""
        field, first = self.columns[column], int(self.unknown_features[column])
        numbers = as_numbers(texts, field.type)
        bucket = np.searchsorted(self.bounds[field.name], numbers, side="right")
        return np.where(np.isnan(numbers), first, first + 1 + bucket)

    @cached_property
    def feature_counts(self) -> np.ndarray:
        """(M,) int64 how often each feature was seen in training; `<MASK>` never was."""
        counts = np.zeros(self.num_features, np.int64)
        for i, field in enumerate(self.columns):
            if field.has_table_side:
                counts[self.unknown_features[i]] += self.null_counts[field.name]
                block = self.value_features[self.value_offsets[i] + 1 : self.value_offsets[i + 1]]
                np.add.at(counts, block, self.counts[field.name])
        return counts

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the feature ids: fields, values in their order, and which have a feature of their own."""
        digest = hashlib.sha256()
        for field in self.columns:
            data = pa.concat_arrays(
                [pa.array([field.name], pa.string()), self.values[field.name]]
            )  # starts at offset 0
            digest.update(np.asarray(pc.binary_length(data), "<i4").tobytes())
            digest.update(data.buffers()[2] or b"")
            digest.update(np.packbits(self._kept[field.name]).tobytes())
            if field.kind != "categorical":
                digest.update(f"{field.kind} {field.features_of} {field.max_items}".encode())
            if field.hash_size is not None:
                digest.update(f"hash {field.hash_size}".encode())
            if field.kind == "numeric":
                digest.update(np.asarray(self.bounds[field.name], "<f8").tobytes())
        return digest.hexdigest()

    # ---- values

    @cached_property
    def all_texts(self) -> pa.Array:
        """(V,) the text of every value in value order; null for the missing values."""
        nothing = pa.nulls(1, pa.string())
        return pa.concat_arrays([a for name in self.fields for a in (nothing, self.values[name])] or [nothing[:0]])

    @cached_property
    def value_columns(self) -> np.ndarray:
        """(V,) int32 which field each value is of."""
        return np.repeat(np.arange(len(self.columns), dtype=np.int32), np.diff(self.value_offsets))

    def positions(self, field: str, texts: pa.Array) -> np.ndarray:
        """(n,) int64 where texts stand among a field's values, -1 where they do not. The cost grows with the texts, and hardly
        with the vocabulary."""
        values = self.values[field]
        if self.hash_sizes[field] is not None:  # its values are buckets, and no texts
            return np.full(len(texts), -1, np.int64)
        if len(texts) > SEARCHED_SHARE * len(values):
            return pc.fill_null(pc.index_in(texts, value_set=values), -1).to_numpy().astype(np.int64)
        if not len(texts):
            return np.zeros(0, np.int64)
        order = self._order(field)
        if len(texts) <= FEW_TEXTS:  # a call of Arrow costs more than a few comparisons: this is the latency of one row
            found = np.full(len(texts), -1, np.int64)
            for i, text in enumerate(texts.to_pylist()):
                # Python's order of code points is that of UTF-8's bytes, which is Arrow's.
                place = bisect_left(order, text, key=lambda at: values[int(at)].as_py())
                if place < len(order) and values[int(order[place])].as_py() == text:
                    found[i] = order[place]
            return found
        low, high = np.zeros(len(texts), np.int64), np.full(len(texts), len(values), np.int64)
        while (low < high).any():
            middle = np.minimum((low + high) // 2, len(values) - 1)
            is_less = pc.less(values.take(pa.array(order[middle])), texts).to_numpy(zero_copy_only=False)
            low, high = np.where(is_less & (low < high), middle + 1, low), np.where(is_less, high, middle)
        found = order[np.minimum(low, len(values) - 1)]
        is_equal = pc.equal(values.take(pa.array(found)), texts).to_numpy(zero_copy_only=False)
        return np.where(is_equal, found, -1)

    def _order(self, field: str) -> np.ndarray:
        assert self.orders is not None
        if field not in self.orders:
            self.orders[field] = pc.array_sort_indices(self.values[field]).to_numpy().astype(np.int32)
        return self.orders[field]

    def encode(self, columns: Mapping[str, pa.DictionaryArray]) -> tuple[np.ndarray, LocalValues]:
        """Value ids of columns, as `read_columns` returns these.

        Returns:
            (N, C) int32 value ids, and the values among them that have none in the vocabulary.
        """
        length = len(next(iter(columns.values())))
        value_ids = np.empty((length, len(self.columns)), np.int32)
        owners, texts, features, counts = [], [], [], []
        num_local = 0
        for i, field in enumerate(self.columns):
            column = columns[field.name]
            distinct = column.dictionary
            if field.kind in ("list", "text"):
                found = np.full(len(distinct), -1, np.int64)
            else:
                found = self.positions(field.name, distinct)
            is_new = found < 0
            ids = found + (self.value_offsets[i] + 1)
            if is_new.any():
                new = distinct.filter(pa.array(is_new))
                ids[is_new] = self.num_values + num_local + np.arange(len(new))
                own, lengths = self.local_features(i, new)
                owners.append(np.full(len(new), i, np.int32))
                texts.append(new)
                features.append(own)
                counts.append(lengths)
                num_local += len(new)
            indices = (pc.fill_null(column.indices, -1) if column.null_count else column.indices).to_numpy()
            # The missing value follows all others, so index -1 finds it.
            value_ids[:, i] = np.append(ids, self.value_offsets[i])[indices]
        none = np.zeros(0, np.int32)
        local = LocalValues(
            columns=np.concatenate([none, *owners]),
            texts=pa.concat_arrays([pa.array([], pa.string()), *texts]),
            features=np.concatenate([none, *features]).astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(np.concatenate([none, *counts]))]).astype(np.int64),
        )
        return value_ids, local

    def local_features(self, column: int, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Features of values that are not in the vocabulary, end to end, and how many each has."""
        field, unknown = self.columns[column], self.unknown_features[column]
        one_each = np.ones(len(texts), np.int64)
        if field.kind == "text":
            return np.zeros(0, np.int32), 0 * one_each
        if field.kind == "numeric":
            return self._buckets(column, texts), one_each
        if field.hash_size is not None:
            return unknown + 1 + buckets_of(texts, field.hash_size), one_each
        if field.kind == "categorical":
            return np.full(len(texts), unknown, np.int32), one_each
        lists = pc.split_pattern(texts, MEMBER_SEPARATOR)
        members = pc.list_flatten(lists).dictionary_encode()
        owner = field.features_of or field.name
        found = self.positions(owner, members.dictionary)
        first = self.value_offsets[self.fields.index(owner)] + 1
        features = np.where(found < 0, unknown, self.value_features[first + np.maximum(found, -1)])
        return features[members.indices.to_numpy()], pc.list_value_length(lists).to_numpy()

    # ---- files

    def save(self, path: str | Path) -> None:
        """Write one Parquet file: a row for each value (null: the missing value) with field, count, tokens, and the place of
        the value that would stand there in alphabetical order."""
        counts = [np.r_[self.null_counts[name], self.counts[name]] for name in self.fields]
        orders = [np.r_[0, self._order(name)] for name in self.fields]
        columns: dict[str, pa.Array] = {
            "field": pa.DictionaryArray.from_arrays(self.value_columns, pa.array(self.fields, pa.string())),
            "value": self.all_texts,
            "count": pa.array(np.concatenate([*counts, np.zeros(0, np.int64)]), pa.int64()),
            "order": pa.array(np.concatenate([*orders, np.zeros(0, np.int32)]), pa.int32()),
        }
        if (table := self.token_table) is not None:
            offsets = pa.array(table.offsets, pa.int64())
            columns["tokens"] = pa.LargeListArray.from_arrays(offsets, pa.array(table.tokens))
            columns["is_value"] = pa.LargeListArray.from_arrays(offsets, pa.array(table.is_value))
        metadata = {"format_version": FORMAT_VERSION, "schema": [field.to_dict() for field in self.schema]}
        written = pa.table(columns).replace_schema_metadata({"flip": json.dumps(metadata)})
        pq.write_table(written, path)

    @classmethod
    def load(cls, path: str | Path) -> FeatureVocabulary:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is truncated, is not a vocabulary, or was written by a later version.
        """
        try:
            table = read_bounded(path).combine_chunks()
            metadata = json.loads(table.schema.metadata[b"flip"])
            version = int(metadata["format_version"])
            declared = metadata.get("fields" if version == 1 else "schema", ())
            if len(declared) > MOST_FIELDS:
                raise ValueError(f"there are {len(declared):,} fields; at most {MOST_FIELDS:,} are read")
            if version == 1:
                return cls._of_first_format(table, list(declared), int(metadata["min_count"]))
            if version <= FORMAT_VERSION:
                return cls._of_table(table, tuple(make_field(field) for field in declared))
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a complete feature vocabulary ({error}); copy or download it again"
            ) from error
        raise ValueError(
            f"{path} has format version {version}, but this modeling_flip reads up to {FORMAT_VERSION}; upgrade modeling_flip"
        )

    @classmethod
    def _of_first_format(cls, table: pa.Table, fields: list[str], min_count: int) -> FeatureVocabulary:
        """All fields were categories then, and no type was saved: what the values of a field look like decides, once."""
        loaded = cls._of_table(table, tuple(with_min_count([Field(name=name) for name in fields], min_count)))
        schema = []
        for field in loaded.schema:
            values = loaded.values[field.name]
            kind = "string"
            if len(values) and pc.all(pc.match_substring_regex(values, r"^(0|-?[1-9][0-9]*)$")).as_py():
                kind = "integer"
            elif len(values) and pc.all(pc.is_in(values, pa.array(["true", "false"]))).as_py():
                kind = "boolean"
            knows_words = bool(pc.any(pc.is_in(values, MISSING_WORDS)).as_py())
            schema.append(replace(field, type=kind, missing_words=not knows_words))
        return replace(loaded, schema=tuple(schema))

    @classmethod
    def _of_table(cls, table: pa.Table, schema: tuple[Field, ...]) -> FeatureVocabulary:
        fields = [field.name for field in used(schema)]
        names = _whole(table["field"].unify_dictionaries())
        field_of_row = pc.index_in(names.dictionary.cast(pa.string()), value_set=pa.array(fields, pa.string())).take(
            names.indices
        )
        values, counts, nulls, orders = {}, {}, {}, {}
        for i, field in enumerate(fields):
            first, stop = np.searchsorted(field_of_row.to_numpy(), [i, i + 1])
            values[field] = _whole(table["value"].slice(first + 1, stop - first - 1))
            count = table["count"].to_numpy()[first:stop]
            nulls[field], counts[field] = int(count[0]), count[1:]
            if "order" in table.column_names:
                orders[field] = table["order"].to_numpy()[first + 1 : stop]
        tokens = None
        if "tokens" in table.column_names:
            lists, flags = _whole(table["tokens"]), _whole(table["is_value"])
            tokens = TokenTable(
                lists.values.to_numpy(), flags.values.to_numpy(zero_copy_only=False), lists.offsets.to_numpy()
            )
        return cls(schema, values, counts, nulls, tokens, orders)


def _first_rows(column: pa.DictionaryArray) -> np.ndarray:
    """(V,) the row in which each of a column's values stands first."""
    indices = pc.fill_null(column.indices, len(column.dictionary)).to_numpy()[::-1]
    first = np.zeros(len(column.dictionary) + 1, np.int64)
    first[indices] = np.arange(len(indices))[::-1]  # of equal indices the last one stays
    return first[:-1]


def _count(parts: Sequence[tuple[pa.Array, np.ndarray]]) -> tuple[pa.Array, np.ndarray]:
    """Merges parts of texts and their counts: each text once, in order of first appearance, with the sum of its counts."""
    if not parts:
        return pa.array([], pa.string()), np.zeros(0, np.int64)
    both = pa.concat_arrays([texts for texts, _ in parts]).dictionary_encode()
    counts = np.zeros(len(both.dictionary), np.int64)
    np.add.at(counts, both.indices.to_numpy(), np.concatenate([counts for _, counts in parts]))
    return both.dictionary, counts


def buckets_of(texts: pa.Array, size: int) -> np.ndarray:
    """(n,) int64, which of `size` buckets each text falls into: 64 bits of its BLAKE2b, the same everywhere and always."""
    found = [np.zeros(0, np.int64)]
    for first in range(0, len(texts), HASHED_AT_ONCE):
        some = texts[first : first + HASHED_AT_ONCE].to_pylist()
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in some)
        found.append((np.frombuffer(digests, "<u8") % np.uint64(size)).astype(np.int64))
    return np.concatenate(found)


def numbers_as_text(size: int) -> pa.Array:
    return pa.array(np.arange(size)).cast(pa.string())


def _whole(column: pa.ChunkedArray) -> pa.Array:
    chunks = column.combine_chunks()
    return pa.concat_arrays(chunks.chunks) if isinstance(chunks, pa.ChunkedArray) else chunks
