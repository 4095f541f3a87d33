"""Raw rows to encoded ones on the disk, with a memory that grows with the distinct values and not with the cells.

The rows are read once, in parts. Each part is dictionary-encoded by itself; its distinct values, and how often each occurs, are
merged with those of the parts before. Then the codes of every part are turned into value ids and written where each row belongs.
The result is what `FeatureVocabulary.fit` and `encode` make of all rows at once.

A split is a folder of little-endian arrays: see `ARRAYS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from ..feature_vocabulary import FeatureVocabulary, LocalValues, buckets_of
from ..fields import Field, used
from ..processing_flip import FlipProcessor
from ..row_dataset import FlipDataset
from ..row_reader import read_columns
from ..token_table import TokenTable, offsets_of
from .phases import phase
from .splits import SPLITS, RawSplits

# Of the N rows of a split, C fields, its U local values (see `LocalValues`), and the T tokens of these.
ARRAYS: dict[str, Any] = {
    "value_ids": np.int32,  # (N, C)
    "labels": np.float32,  # (N,)
    "lengths": np.int32,  # (N,) tokens of each sentence
    "groups": np.int64,  # (N,)
    "local_columns": np.int32,  # (U,)
    "local_features": np.int32,  # of all U, end to end
    "local_feature_offsets": np.int64,  # (U + 1,)
    "local_text": np.uint8,  # UTF-8 of all U, end to end
    "local_text_offsets": np.int64,  # (U + 1,)
    "tokens": np.int32,  # (T,)
    "is_value": np.bool_,  # (T,)
    "token_offsets": np.int64,  # (U + 1,)
}
ROWS_AT_ONCE = 1 << 18
VALUES_AT_ONCE = 1 << 16


# ---- files


class ArrayFile:
    """An array that is written some at a time."""

    def __init__(self, path: Path):
        self.path = path
        self.file = open(path, "wb")  # noqa: SIM115  # closed by __exit__

    def append(self, array: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(array).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def array_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def write_array(folder: Path, name: str, array: np.ndarray) -> None:
    with ArrayFile(array_path(folder, name)) as file:
        file.append(array.astype(ARRAYS[name], copy=False))


def read_array(folder: Path, name: str, *shape: int) -> np.ndarray:
    """Mapped, not read."""
    path = array_path(folder, name)
    if path.stat().st_size == 0:
        return np.zeros(0, ARRAYS[name]).reshape(*(shape or (0,)))
    array = np.memmap(path, ARRAYS[name], "r")
    return np.asarray(array).reshape(*shape) if shape else np.asarray(array)


class LocalFiles:
    """The values of a split that are none of the vocabulary's, while they are found."""

    def __init__(self, folder: Path, files: ExitStack):
        def opened(name: str) -> ArrayFile:
            return files.enter_context(ArrayFile(array_path(folder, name)))

        self.columns, self.text, self.features = map(opened, ("local_columns", "local_text", "local_features"))
        self.text_offsets, self.feature_offsets = map(opened, ("local_text_offsets", "local_feature_offsets"))
        self.text_offsets.append(np.zeros(1, np.int64))
        self.feature_offsets.append(np.zeros(1, np.int64))
        self.count = self.bytes = self.num_features = 0

    def append(self, column: int, texts: pa.Array, features: np.ndarray, lengths: np.ndarray) -> int:
        """Values of one column; where they begin among all of the split's."""
        first = self.count
        offsets, data = buffers_of(texts)
        self.columns.append(np.full(len(texts), column, np.int32))
        self.text.append(data)
        self.text_offsets.append(offsets[1:] + self.bytes)
        self.features.append(features.astype(np.int32))
        self.feature_offsets.append(np.cumsum(lengths) + self.num_features)
        self.count, self.bytes, self.num_features = (
            first + len(texts),
            self.bytes + len(data),
            self.num_features + len(features),
        )
        return first


def buffers_of(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Texts without nulls → (U + 1,) int64 where each begins and ends, and their UTF-8 as bytes."""
    texts = pa.concat_arrays([texts.cast(pa.large_string())])  # starts at 0
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return ends - ends[0], content[ends[0] : ends[-1]]


def texts_of(offsets: np.ndarray, data: np.ndarray) -> pa.Array:
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


# ---- reading, in parts


@dataclass(frozen=True)
class Part:
    """Some rows.

    Attributes:
        codes: (n,) int8, the split of each row, by its place in SPLITS; -1: none.
        places: (n,) int64, which row of its split each is.
        columns: of each field, the dictionary-encoded canonical text.
    """

    codes: np.ndarray
    places: np.ndarray
    columns: Mapping[str, pa.DictionaryArray]


def read_parts(raw: RawSplits, fields: Sequence[Field], workers: int) -> Iterator[Part]:
    """All rows, in parts, whose cells `workers` threads read."""

    def read(raw_part: tuple[pa.Table, np.ndarray, np.ndarray]) -> Part:
        table, codes, places = raw_part
        return Part(codes, places, read_columns(table, fields)[0])

    names = [field.name for field in fields]
    with ThreadPoolExecutor(workers) as pool:
        raw_parts = raw.parts(names)
        waiting = [pool.submit(read, part) for part in islice(raw_parts, workers)]
        while waiting:
            part = waiting.pop(0).result()
            waiting += [pool.submit(read, following) for following in islice(raw_parts, 1)]
            yield part


@dataclass(eq=False)
class Distinct:
    """The distinct values of a field in all parts so far.

    Attributes:
        texts: (A,) of the parts that are merged.
        counts: (A,) training rows with each.
        first: (A,) the first training row with each.
        is_in: of each split, (A,) bool whether it has such a row.
        maps: of each part, to which of these its own values belong.
    """

    texts: pa.Array = field(default_factory=lambda: pa.array([], pa.large_string()))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    first: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    is_in: np.ndarray = field(default_factory=lambda: np.zeros((len(SPLITS), 0), bool))
    maps: list[np.ndarray] = field(default_factory=list)
    waiting: list[tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, part: Part, texts: pa.Array, indices: np.ndarray) -> None:
        """The distinct values of a part, and which of them each of its rows has, (n,), -1 where none."""
        size, is_train = len(texts), part.codes == 0
        counts = np.bincount(indices[is_train] + 1, minlength=size + 1)[1:]
        first = np.full(size + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, indices[is_train], part.places[is_train])
        is_in = np.zeros((len(SPLITS), size + 1), bool)
        for code in range(len(SPLITS)):
            is_in[code, indices[part.codes == code]] = True
        self.waiting.append((texts.cast(pa.large_string()), counts, first[:-1], is_in[:, :-1]))
        # Merging costs as much as has been merged: so it waits until as much has come again.
        if sum(len(texts) for texts, *_ in self.waiting) > max(len(self.texts), VALUES_AT_ONCE):
            self.merge()

    def merge(self) -> None:
        """What waits."""
        if not self.waiting:
            return
        both = pa.concat_arrays([self.texts, *(texts for texts, *_ in self.waiting)]).dictionary_encode()
        before, codes = len(self.texts), both.indices.to_numpy()
        self.texts = both.dictionary  # begins with those that were there
        more = len(self.texts) - before
        self.counts = np.append(self.counts, np.zeros(more, np.int64))
        self.first = np.append(self.first, np.full(more, np.iinfo(np.int64).max))
        self.is_in = np.concatenate([self.is_in, np.zeros((len(SPLITS), more), bool)], axis=1)
        for texts, counts, first, is_in in self.waiting:
            mapped, before = codes[before : before + len(texts)], before + len(texts)
            self.counts[mapped] += counts
            self.first[mapped] = np.minimum(self.first[mapped], first)
            self.is_in[:, mapped] |= is_in
            self.maps.append(mapped.astype(np.int32))
        self.waiting = []


# ---- fitting and encoding


def fit_and_encode(
    raw: RawSplits,
    schema: Sequence[Field],
    make_processor: Callable[[Callable[[], FeatureVocabulary]], FlipProcessor],
    folder: Path,
    *,
    workers: int = 1,
    wall_time: dict[str, float] | None = None,
) -> FlipProcessor:
    """Write the encoded rows of every split to `folder/SPLIT`.

    Args:
        raw: the rows.
        schema: the fields, or those of a vocabulary that is there already.
        make_processor: given what fits a vocabulary on the training rows, makes the processor to encode with.
        folder: where to; it also holds the codes of all parts, while this goes on.
        workers: threads.
        wall_time: takes the seconds of reading and counting (`fit`) and of what comes then (`encode`).

    Returns:
        the processor.
    """
    fields = used(schema)
    seen = {f.name: Distinct() for f in fields if is_counted(f)}
    hashed = {f.name: np.zeros(f.hash_size, np.int64) for f in fields if f.hash_size is not None}
    folders = {split: folder / split for split in SPLITS}
    codes_path = folder / "codes.bin"
    with ExitStack() as files:
        for path in folders.values():
            path.mkdir(parents=True)
        local = {split: LocalFiles(path, files) for split, path in folders.items()}
        with phase("fit", wall_time):
            where, nulls = _write_codes(read_parts(raw, fields, workers), fields, seen, hashed, local, codes_path)
            processor = make_processor(lambda: _vocabulary(seen, hashed, nulls, schema))
        with phase("encode", wall_time):
            ids: dict[str, dict[int, np.ndarray]] = {split: {} for split in SPLITS}
            for i, f in enumerate(fields):
                if is_counted(f):
                    for split, mapped in _ids_of(processor.vocabulary, i, seen[f.name], local).items():
                        ids[split][i] = mapped
                    seen[f.name].texts = pa.array([], pa.large_string())  # no longer needed
            _write_value_ids(codes_path, where, fields, seen, ids, processor.vocabulary, folders)
    codes_path.unlink()
    for path in folders.values():
        _number_buckets(processor.vocabulary, path)
        _write_tokens(processor, path)
    return processor


def _write_codes(
    parts: Iterator[Part],
    fields: Sequence[Field],
    seen: Mapping[str, Distinct],
    hashed: Mapping[str, np.ndarray],
    local: Mapping[str, LocalFiles],
    path: Path,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, int]]:
    """Count the values of all parts in `seen`, and those of hashed fields in `hashed`, by bucket, and write (n, C) int32 codes of
    each part: a cell's value by its number in the part, or, where values are not counted, among the split's own; -1: none.

    Returns:
        of each part the codes and places of its rows, and of each field the training rows without a value.
    """
    where, nulls = [], dict.fromkeys((f.name for f in fields), 0)
    with ArrayFile(path) as file:
        for part in parts:
            where.append((part.codes, part.places))
            codes = np.empty((len(part.codes), len(fields)), np.int32)
            for i, f in enumerate(fields):
                column = part.columns[f.name]
                indices = column.indices.fill_null(-1).to_numpy()
                nulls[f.name] += int((indices[part.codes == 0] < 0).sum())
                if is_counted(f):
                    seen[f.name].add(part, column.dictionary, indices)
                else:
                    buckets = None
                    if f.hash_size is not None:
                        buckets = buckets_of(column.dictionary, f.hash_size)
                        is_train = (part.codes == 0) & (indices >= 0)
                        hashed[f.name] += np.bincount(buckets[indices[is_train]], minlength=f.hash_size)
                    indices = _write_own(i, column.dictionary, buckets, indices, part.codes, local)
                codes[:, i] = indices
            file.append(codes)
    for one in seen.values():
        one.merge()
    return where, nulls


def is_counted(f: Field) -> bool:
    """Whether the distinct values of a field are kept. Of texts hardly one comes twice, and of a hashed field they never end."""
    return f.kind != "text" and f.hash_size is None


def _vocabulary(
    seen: Mapping[str, Distinct],
    hashed: Mapping[str, np.ndarray],
    nulls: Mapping[str, int],
    schema: Sequence[Field],
) -> FeatureVocabulary:
    """What stands in the training rows."""
    found = {}
    for name, one in seen.items():
        is_train = one.counts > 0
        texts = one.texts.filter(pa.array(is_train)).cast(pa.string())
        found[name] = (texts, one.counts[is_train], one.first[is_train])
    none = np.zeros(0, np.int64)
    found |= {name: (pa.array([], pa.string()), none, none) for name in hashed}
    made = FeatureVocabulary.of_counts(found, nulls, schema)
    return replace(made, counts=made.counts | dict(hashed))


def _write_own(
    column: int,
    dictionary: pa.Array,
    buckets: np.ndarray | None,
    indices: np.ndarray,
    codes: np.ndarray,
    local: Mapping[str, LocalFiles],
) -> np.ndarray:
    """Values that are not counted become the split's own at once, a bucket standing for the feature. (n,) which of them each row
    has, -1 where none."""
    found = np.full(len(indices), -1, np.int32)
    for code, split in enumerate(SPLITS):
        rows = np.flatnonzero((codes == code) & (indices >= 0))
        if len(rows):
            own, which = np.unique(indices[rows], return_inverse=True)
            features = np.zeros(0, np.int32) if buckets is None else buckets[own]
            lengths = np.full(len(own), int(buckets is not None))
            found[rows] = which + local[split].append(column, dictionary.take(pa.array(own)), features, lengths)
    return found


def _number_buckets(vocabulary: FeatureVocabulary, folder: Path) -> None:
    """Buckets of hashed fields to features, now that these are numbered."""
    first = np.array([0 if f.hash_size is None else 1 for f in vocabulary.columns]) * (vocabulary.unknown_features + 1)
    if not first.any():
        return
    columns, offsets = (read_array(folder, name) for name in ("local_columns", "local_feature_offsets"))
    features = np.memmap(array_path(folder, "local_features"), ARRAYS["local_features"], "r+")
    for begin in range(0, len(columns), VALUES_AT_ONCE):
        end = min(begin + VALUES_AT_ONCE, len(columns))
        shift = np.repeat(first[columns[begin:end]], np.diff(offsets[begin : end + 1]))
        features[offsets[begin] : offsets[end]] += shift.astype(np.int32)
    features.flush()


def _ids_of(
    vocabulary: FeatureVocabulary, column: int, seen: Distinct, local: Mapping[str, LocalFiles]
) -> dict[str, np.ndarray]:
    """Of each split the (A,) value ids of a field's distinct values. Those that the vocabulary lacks become the split's own."""
    f = vocabulary.columns[column]
    position = np.full(len(seen.texts), -1, np.int64)
    if f.kind != "list":
        position = vocabulary.positions(f.name, seen.texts.cast(pa.string()))
    ids = np.where(position < 0, -1, position + vocabulary.value_offsets[column] + 1)
    found = {}
    for code, split in enumerate(SPLITS):
        mapped = ids.copy()
        new = np.flatnonzero((position < 0) & seen.is_in[code])
        for first in range(0, len(new), VALUES_AT_ONCE):
            some = new[first : first + VALUES_AT_ONCE]
            texts = seen.texts.take(pa.array(some)).cast(pa.string())
            begin = local[split].append(column, texts, *vocabulary.local_features(column, texts))
            mapped[some] = vocabulary.num_values + begin + np.arange(len(some))
        found[split] = mapped.astype(np.int32)
    return found


def _write_value_ids(
    codes_path: Path,
    where: Sequence[tuple[np.ndarray, np.ndarray]],
    fields: Sequence[Field],
    seen: Mapping[str, Distinct],
    ids: Mapping[str, Mapping[int, np.ndarray]],
    vocabulary: FeatureVocabulary,
    folders: Mapping[str, Path],
) -> None:
    """Turn the codes of the parts into value ids, each row where it belongs."""
    width = len(fields)
    sizes = [sum(int((codes == code).sum()) for codes, _ in where) for code in range(len(SPLITS))]
    out = {split: _room_for(folders[split], size, width) for split, size in zip(SPLITS, sizes, strict=True)}
    missing = vocabulary.value_offsets[:-1].astype(np.int32)
    with open(codes_path, "rb") as file:
        for part, (codes, places) in enumerate(where):
            block = np.fromfile(file, np.int32, len(codes) * width).reshape(len(codes), width)
            for code, split in enumerate(SPLITS):
                rows = codes == code
                if not rows.any():
                    continue
                mine = block if rows.all() else block[rows]
                written = np.empty_like(mine)
                for i, f in enumerate(fields):
                    values = mine[:, i]
                    if not is_counted(f):
                        written[:, i] = np.where(values < 0, missing[i], vocabulary.num_values + values)
                    else:  # the missing value follows the part's own values, so index -1 finds it
                        written[:, i] = np.append(ids[split][i][seen[f.name].maps[part]], missing[i])[values]
                at = places[rows]
                if len(at) and at[-1] - at[0] == len(at) - 1 and (np.diff(at) == 1).all():
                    out[split][at[0] : at[-1] + 1] = written
                else:
                    out[split][at] = written
    for array in out.values():
        if isinstance(array, np.memmap):
            array.flush()


def _room_for(folder: Path, rows: int, width: int) -> np.ndarray:
    """An array of a file whose blocks are taken: a full disk is an error here, and not the end of the process later."""
    path = array_path(folder, "value_ids")
    size = rows * width * np.dtype(ARRAYS["value_ids"]).itemsize
    with open(path, "wb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
    return (
        np.memmap(path, ARRAYS["value_ids"], "r+", shape=(rows, width)) if size else np.zeros((rows, width), np.int32)
    )


def _write_tokens(processor: FlipProcessor, folder: Path) -> None:
    """The tokens of a split's own values, and the lengths of its sentences."""
    if not processor.gathers_tokens:
        return
    local = _local_values(folder)
    with (
        ArrayFile(array_path(folder, "tokens")) as tokens,
        ArrayFile(array_path(folder, "is_value")) as is_value,
    ):
        all_lengths = [np.zeros(0, np.int64)]
        for ids, flags, lengths in processor.sentence_tokenizer.segments(local.columns, local.texts):
            tokens.append(ids)
            is_value.append(flags)
            all_lengths.append(lengths)
    write_array(folder, "token_offsets", offsets_of(np.concatenate(all_lengths)))
    rows = open_split(folder, processor)
    with ArrayFile(array_path(folder, "lengths")) as file:
        for first in range(0, len(rows), ROWS_AT_ONCE):
            file.append(rows.__getitems__(range(first, min(first + ROWS_AT_ONCE, len(rows)))).lengths.astype(np.int32))


# ---- opening


def open_split(folder: Path, processor: FlipProcessor) -> FlipDataset:
    """The encoded rows of a split, mapped from the disk."""
    local, table = _local_values(folder), None
    if processor.gathers_tokens:
        own = (read_array(folder, name) for name in ("tokens", "is_value", "token_offsets"))
        assert processor.vocabulary.token_table is not None
        table = (processor.vocabulary.token_table, TokenTable(*own))
    has = {name: array_path(folder, name).exists() for name in ("labels", "lengths")}
    return FlipDataset(
        value_ids=read_array(folder, "value_ids", -1, len(processor.fields)),
        vocabulary=processor.vocabulary,
        local=local,
        token_tables=table,
        labels=read_array(folder, "labels") if has["labels"] else None,
        sentence_lengths=read_array(folder, "lengths") if has["lengths"] else None,
    )


def _local_values(folder: Path) -> LocalValues:
    texts = texts_of(read_array(folder, "local_text_offsets"), read_array(folder, "local_text"))
    names = ("local_features", "local_feature_offsets")
    return LocalValues(read_array(folder, "local_columns"), texts, *(read_array(folder, name) for name in names))
