"""What was seen in training: the distinct values of every field, how often, and their tokens.

No torch here: a vocabulary is fitted, merged, saved and loaded with pyarrow and numpy alone.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

VOCABULARY_FILE = "feature_vocab.parquet"
FORMAT_VERSION = 1
# Up to so many rows are looked up one by one: Arrow hashes a field's whole vocabulary anew for each column that it looks up.
FEW_ROWS = 64


def as_text(column: pa.Array | pa.ChunkedArray, field: str) -> pa.Array:
    """The canonical text of a column, (N,) strings: 25, 25.0 and "25" are one value; NaN is null.

    Raises:
        TypeError: the column holds lists, structs or bytes, which have no one text.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        return as_text(column.dictionary, field).take(column.indices)
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        is_whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), 2.0**53))
        whole = pc.if_else(is_whole, column, pa.scalar(0, column.type)).cast(pa.int64())
        return pc.if_else(is_whole, whole.cast(pa.string()), column.cast(pa.string()))
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise TypeError(f"field {field!r} has type {column.type}; turn it into text or numbers first")
    return pc.cast(column, pa.string())


def _column(values: Sequence[Any], field: str) -> pa.Array:
    """One column of Python values as canonical text; values of mixed type are converted one by one."""
    try:
        return as_text(pa.array(values, from_pandas=True), field)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        return pa.array([_text(value, field) for value in values], pa.string())


def _text(value: Any, field: str) -> str | None:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # a lone surrogate has no UTF-8
    try:
        return as_text(pa.array([value], from_pandas=True), field)[0].as_py()
    except OverflowError:  # an integer of more than 64 bits
        return str(value)


def text_columns(rows: Any, fields: Sequence[str], *, strict: bool = True) -> tuple[dict[str, pa.Array], list[str]]:
    """The named fields of any table-like thing as columns of canonical text.

    Args:
        rows: a dict (one row, or columns), a list of dicts, a pandas DataFrame, an Arrow table, or a `datasets.Dataset`.
        fields: the fields wanted.
        strict: whether an absent field is an error; otherwise its column is null throughout.

    Returns:
        `{field: (N,) string array}`, and the names of the absent fields.

    Raises:
        ValueError: a field is absent and `strict`, with the nearest column that exists.
        TypeError: `rows` is none of the above.
    """
    if hasattr(rows, "with_format"):  # datasets.Dataset
        rows = rows.with_format("arrow")[:]
    if isinstance(rows, Mapping):
        wanted = [rows[field] for field in fields if field in rows]
        is_column = [isinstance(v, (list, tuple, np.ndarray, pa.Array, pa.ChunkedArray)) for v in wanted]
        rows = rows if wanted and all(is_column) else [rows]
    if isinstance(rows, Mapping):
        lengths = {field: len(rows[field]) for field in fields if field in rows}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}; give every row a value, None where it has none")
        present, length = set(rows), next(iter(lengths.values()))
    elif isinstance(rows, (list, tuple)) and all(isinstance(row, (dict, Mapping)) for row in rows):
        present, length = {key for row in rows for key in row} if rows else set(fields), len(rows)
    elif isinstance(rows, pa.Table):
        present, length = set(rows.column_names), rows.num_rows
    elif hasattr(rows, "columns") and hasattr(rows, "to_numpy"):  # pandas.DataFrame
        present, length = set(rows.columns), len(rows)
    else:
        found = str(type(rows))
        if isinstance(rows, (list, tuple)):
            found += f" of {', '.join(sorted({type(row).__name__ for row in rows}))}"
        raise TypeError(f"rows must be a dict, a list of dicts, a DataFrame, an Arrow table or a Dataset, not {found}")

    absent = [field for field in fields if field not in present]
    if absent and strict:
        names = sorted(map(str, present))
        raise ValueError(f"column {absent[0]!r} is missing; the columns are {names}{did_you_mean(absent[0], names)}")

    columns: dict[str, pa.Array] = {}
    for field in fields:
        if field in absent:
            columns[field] = pa.nulls(length, pa.string())
        elif isinstance(rows, pa.Table):
            columns[field] = as_text(rows.column(field), field)
        elif isinstance(rows, (list, tuple)):
            columns[field] = _column([row.get(field) for row in rows], field)
        else:
            value = rows[field]
            arrow = isinstance(value, (pa.Array, pa.ChunkedArray))
            columns[field] = as_text(value, field) if arrow else _column(value, field)
    return columns, absent


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is none of the known ones; empty where none is near."""
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


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
    def from_segments(cls, segments: Iterable[tuple[Sequence[int], Sequence[bool]]]) -> TokenTable:
        pairs = list(segments)
        lengths = np.fromiter((len(tokens) for tokens, _ in pairs), np.int64, len(pairs))
        return cls(
            tokens=np.concatenate([np.zeros(0, np.int32), *(np.asarray(t, np.int32) for t, _ in pairs)]),
            is_value=np.concatenate([np.zeros(0, bool), *(np.asarray(v, bool) for _, v in pairs)]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )

    @cached_property
    def lengths(self) -> np.ndarray:
        """(V,) tokens of each segment."""
        return np.diff(self.offsets)


def gather(first: np.ndarray, second: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`np.concatenate([first, second])[index]` at the cost of the index alone: `first` may be as long as a vocabulary."""
    if not len(second):
        return first[index]
    found = first.take(index, mode="clip")
    behind = index >= len(first)
    found[behind] = second[index[behind] - len(first)]
    return found


@dataclass(frozen=True, eq=False)
class FeatureVocabulary:
    """Per field the distinct values in order of first appearance, and how often each was seen.

    Two numberings are derived from that, both global (one space over all fields):

    - *features* index embeddings. Field f owns one block: its unknown feature, then one feature for each value seen at
      least `min_count` times. The last feature, `mask_feature_id`, is `<MASK>`, shared by all fields. `num_features` is M.
    - *values* index texts. Field f owns one block: the missing value, then every value, rare ones too: a rare value
      shares its field's unknown feature but keeps its words.

    Attributes:
        values: `{field: (V_f,) string array}`.
        counts: `{field: (V_f,) int64}`.
        null_counts: `{field: number of rows without a value}`.
        min_count: how often a value must be seen to get a feature of its own.
        token_table: tokens of every value in value order, once a processor has made them.
    """

    values: dict[str, pa.Array]
    counts: dict[str, np.ndarray]
    null_counts: dict[str, int]
    min_count: int = 1
    token_table: TokenTable | None = None

    @classmethod
    def fit(cls, rows: Any, fields: Sequence[str], min_count: int = 1) -> FeatureVocabulary:
        """Count the values of `fields` in `rows` (anything that `text_columns` reads)."""
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}; it must be 1 or more")
        columns, _ = text_columns(rows, fields)
        values, counts, nulls = {}, {}, {}
        for field, column in columns.items():
            seen = pc.value_counts(column.drop_null())
            values[field] = seen.field("values")
            counts[field] = seen.field("counts").to_numpy(zero_copy_only=False).astype(np.int64)
            nulls[field] = column.null_count
        return cls(values, counts, nulls, min_count)

    @classmethod
    def merge(cls, vocabularies: Sequence[FeatureVocabulary]) -> FeatureVocabulary:
        """The vocabulary of the concatenated data; `merge([fit(a), fit(b)]) == fit(a + b)`.

        Raises:
            ValueError: the fields or `min_count` differ.
        """
        return reduce(cls._merge_two, vocabularies)

    def _merge_two(self, other: FeatureVocabulary) -> FeatureVocabulary:
        if self.fields != other.fields or self.min_count != other.min_count:
            raise ValueError(
                f"cannot merge vocabularies of fields {self.fields} (min_count {self.min_count}) and "
                f"{other.fields} (min_count {other.min_count}); fit both with the same fields and min_count"
            )
        values, counts = {}, {}
        for field in self.fields:
            both = pa.concat_arrays([self.values[field], other.values[field]]).dictionary_encode()
            values[field] = both.dictionary
            counts[field] = np.zeros(len(both.dictionary), np.int64)
            np.add.at(counts[field], both.indices, np.concatenate([self.counts[field], other.counts[field]]))
        nulls = {field: self.null_counts[field] + other.null_counts[field] for field in self.fields}
        return FeatureVocabulary(values, counts, nulls, self.min_count)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureVocabulary) and self._key() == other._key()

    def _key(self) -> tuple[Any, ...]:
        seen = {f: dict(zip(self.values[f].to_pylist(), self.counts[f].tolist(), strict=True)) for f in self.fields}
        order = {f: self.values[f].to_pylist() for f in self.fields}
        return self.fields, order, seen, self.null_counts, self.min_count

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureVocabulary:
        return self  # immutable; transformers deep-copies a processor each time it writes its JSON

    @property
    def fields(self) -> list[str]:
        return list(self.values)

    @cached_property
    def value_offsets(self) -> np.ndarray:
        """(F + 1,) first value id of each field's block; the missing value stands there."""
        return np.cumsum([0] + [len(v) + 1 for v in self.values.values()])

    @cached_property
    def _kept(self) -> list[np.ndarray]:
        return [self.counts[field] >= self.min_count for field in self.fields]

    @cached_property
    def feature_offsets(self) -> np.ndarray:
        """(F + 1,) first feature id of each field's block, its unknown feature; the last entry is `<MASK>`."""
        return np.cumsum([0] + [int(kept.sum()) + 1 for kept in self._kept])

    @property
    def num_features(self) -> int:
        """M: all fields' features, one unknown per field, and `<MASK>`."""
        return int(self.feature_offsets[-1]) + 1

    @property
    def mask_feature_id(self) -> int:
        return self.num_features - 1

    @cached_property
    def value_features(self) -> np.ndarray:
        """(V,) int32 feature id of each value."""
        blocks = []
        for first, kept in zip(self.feature_offsets, self._kept, strict=False):
            own = np.where(kept, first + np.cumsum(kept), first)
            blocks += [np.asarray([first]), own]
        return np.concatenate(blocks).astype(np.int32)

    @cached_property
    def feature_counts(self) -> np.ndarray:
        """(M,) int64 how often each feature was seen in training; `<MASK>` never was."""
        counts = np.zeros(self.num_features, np.int64)
        seen = [np.concatenate([[self.null_counts[f]], self.counts[f]]) for f in self.fields]
        np.add.at(counts, self.value_features, np.concatenate(seen))
        return counts

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the feature ids: fields, values in their order, and which have a feature of their own."""
        digest = hashlib.sha256()
        for field, kept in zip(self.fields, self._kept, strict=True):
            data = pa.concat_arrays([pa.array([field], pa.string()), self.values[field]])  # starts at offset 0
            digest.update(np.asarray(pc.binary_length(data), "<i4").tobytes())
            digest.update(data.buffers()[2] or b"")
            digest.update(np.packbits(kept).tobytes())
        return digest.hexdigest()

    @cached_property
    def texts(self) -> list[tuple[int, str | None]]:
        """(field index, text) of every value in value order; the missing value's text is None."""
        return [(i, text) for i, f in enumerate(self.fields) for text in [None, *self.values[f].to_pylist()]]

    @cached_property
    def _positions(self) -> list[dict[str, int]]:
        return [{text: i for i, text in enumerate(self.values[f].to_pylist())} for f in self.fields]

    def encode(self, columns: Mapping[str, pa.Array]) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """Value ids of columns of text.

        Returns:
            (N, F) int32 value ids, and the values never seen in training as (field index, text): the i-th of them has
            the value id V + i.
        """
        length = len(next(iter(columns.values())))
        value_ids = np.empty((length, len(self.fields)), np.int32)
        unseen: list[tuple[int, str]] = []
        for i, field in enumerate(self.fields):
            column = columns[field]
            if length <= FEW_ROWS:
                index = pa.array([self._positions[i].get(text) for text in column.to_pylist()], pa.int32())
            else:
                index = pc.index_in(column, value_set=self.values[field])
            found = pc.fill_null(index, -1).to_numpy(zero_copy_only=False)
            value_ids[:, i] = found + (self.value_offsets[i] + 1)
            if index.null_count > column.null_count:
                new = pc.filter(column, pc.and_(pc.is_null(index), pc.is_valid(column))).dictionary_encode()
                is_new = (found < 0) & column.is_valid().to_numpy(zero_copy_only=False)
                value_ids[is_new, i] = self.value_offsets[-1] + len(unseen) + new.indices.to_numpy()
                unseen += [(i, text) for text in new.dictionary.to_pylist()]
        return value_ids, unseen

    def save(self, path: str | Path) -> None:
        """Write one Parquet file: a row for each value (null: the missing value) with field, count and tokens."""
        columns: dict[str, pa.Array] = {
            "field": pa.array([f for f in self.fields for _ in range(len(self.values[f]) + 1)], pa.string()),
            "value": pa.concat_arrays([a for f in self.fields for a in (pa.nulls(1, pa.string()), self.values[f])]),
            "count": pa.array(np.concatenate([np.r_[self.null_counts[f], self.counts[f]] for f in self.fields])),
        }
        if (table := self.token_table) is not None:
            offsets = pa.array(table.offsets, pa.int64())
            columns["tokens"] = pa.LargeListArray.from_arrays(offsets, pa.array(table.tokens))
            columns["is_value"] = pa.LargeListArray.from_arrays(offsets, pa.array(table.is_value))
        metadata = {"format_version": FORMAT_VERSION, "fields": self.fields, "min_count": self.min_count}
        pq.write_table(pa.table(columns).replace_schema_metadata({"flip": json.dumps(metadata)}), path)

    @classmethod
    def load(cls, path: str | Path) -> FeatureVocabulary:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is truncated, is no vocabulary, or was written by a later version.
        """
        try:
            table = pq.read_table(path).combine_chunks()
            metadata = json.loads(table.schema.metadata[b"flip"])
            version, fields = int(metadata["format_version"]), list(metadata["fields"])
            if version <= FORMAT_VERSION:
                return cls._from_table(table, fields, int(metadata["min_count"]))
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a whole feature vocabulary ({error}); copy or download it again"
            ) from error
        raise ValueError(
            f"{path} has format version {version}, this modeling_flip reads up to {FORMAT_VERSION}; upgrade modeling_flip"
        )

    @classmethod
    def _from_table(cls, table: pa.Table, fields: list[str], min_count: int) -> FeatureVocabulary:
        field_of_row = pc.index_in(table["field"], value_set=pa.array(fields, pa.string())).to_numpy()
        values, counts, nulls = {}, {}, {}
        for i, field in enumerate(fields):
            first, stop = np.searchsorted(field_of_row, [i, i + 1])
            values[field] = _whole(table["value"].slice(first + 1, stop - first - 1))
            count = table["count"].to_numpy()[first:stop]
            nulls[field], counts[field] = int(count[0]), count[1:]
        tokens = None
        if "tokens" in table.column_names:
            lists, flags = _whole(table["tokens"]), _whole(table["is_value"])
            tokens = TokenTable(
                lists.values.to_numpy(), flags.values.to_numpy(zero_copy_only=False), lists.offsets.to_numpy()
            )
        return cls(values, counts, nulls, min_count, tokens)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    chunks = column.combine_chunks()
    return pa.concat_arrays(chunks.chunks) if isinstance(chunks, pa.ChunkedArray) else chunks
