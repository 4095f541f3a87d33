"""From the name of a dataset to the raw rows of its splits.

Rows are read in parts, whenever somebody asks for them, so a log need not fit into memory. Of each row only its split and its
place there are kept. Rows in messages are counted from 0 within their split.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from huggingface_hub import HfApi

from ..field_inference import TIME_WORDS, words_of
from ..fields import did_you_mean
from ..quarantine import Quarantine
from ..row_containers import with_class_names
from ..table_files import (
    KINDS,
    READ,
    ROWS_PER_BATCH,
    TableFile,
    as_arrow,
    in_memory,
    in_parts,
    named_splits,
    open_splits,
)
from .data import BadCellsError, Column, read_times

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
# Of the split, not of the training: runs of several seeds, and a finetuning of another seed than its pretraining, must all have
# the same test rows.
SPLIT_SEED = 42
ROWS_AT_ONCE = 1 << 19
OF_LATER_VALIDATION = "give a test split too, or leave the validation split out"


class Reader(Protocol):
    """Reads a column, or raises BadCellsError; `where` names it in messages."""

    def __call__(self, column: Column, /, *, where: str) -> Any: ...


@dataclass(frozen=True, eq=False)
class Source:
    """Rows that lie together: a split that was given, or what splits are cut from.

    Attributes:
        split: as which the table was given.
        table: reads the rows.
        codes: (N,) int8, which of SPLITS each row is in, by its place there; -1: in none.
        places: (N,) int64, which row of its split each is.
        kept: columns that have been read already.
    """

    split: str
    table: TableFile
    codes: np.ndarray
    places: np.ndarray
    kept: Mapping[str, pa.ChunkedArray]

    @classmethod
    def of_split(cls, table: TableFile, split: str, keep: Sequence[str] = ()) -> Source:
        """A table that is a split."""
        kept = _read(table, [name for name in keep if name in table.schema.names])
        size = kept.num_rows if table.num_rows is None else table.num_rows
        code = np.broadcast_to(np.int8(SPLITS.index(split)), size)
        return cls(split, table, code, np.arange(size), dict(zip(kept.column_names, kept.columns, strict=True)))


@dataclass(frozen=True, eq=False)
class SplitRows:
    """The rows of a split, in its order. What is asked of it is read then, as a table in memory.

    Attributes:
        sources: where they lie: those of a later source come after those of an earlier one.
        split: its name.
    """

    sources: Sequence[Source]
    split: str

    @cached_property
    def are_mine(self) -> list[np.ndarray]:
        """Of each source (N,) bool, which of its rows are in this split."""
        return [source.codes == SPLITS.index(self.split) for source in self.sources]

    @cached_property
    def num_rows(self) -> int:
        return sum(int(mine.sum()) for mine in self.are_mine)

    def __len__(self) -> int:
        return self.num_rows

    @property
    def schema(self) -> pa.Schema:
        return self.sources[0].table.schema

    @property
    def column_names(self) -> list[str]:
        """Those that all sources have."""
        return [name for name in self.schema.names if all(name in one.table.schema.names for one in self.sources)]

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """A whole column."""
        return self.read([name]).column(0)

    def to_table(self) -> pa.Table:
        """All of it."""
        return self.read(self.column_names)

    def head(self, count: int) -> pa.Table:
        """The first rows."""
        return self.read(self.column_names, np.arange(len(self)) < count)

    def read(self, names: Sequence[str], wanted: np.ndarray | None = None) -> pa.Table:
        """Some columns, of all rows or of those where `wanted` (N,) is true.

        Raises:
            ValueError: rows have to be picked out, and the type of a column does not allow that.
        """
        tables = []
        for source, mine in zip(self.sources, self.are_mine, strict=True):
            if wanted is not None:
                mine = mine.copy()
                mine[mine] = wanted[source.places[mine]]
            table, place = _picked(source, names, mine), source.places[mine]
            if not (np.diff(place) > 0).all():
                order = pa.array(np.argsort(place))
                table = _by_column(table, partial(_taken, order), source.table.path)
            tables.append(table)
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")


@dataclass(frozen=True, eq=False)
class RawSplits(Mapping[str, SplitRows]):
    """The raw rows of a dataset by split, not read before they are asked for.

    Attributes:
        fingerprint: identifies the data: another dataset, another file or a changed file has a different one.
        find: finds which row is in which split.
        quarantine: rows that cannot be read and are left out; None where they are errors.
        test_cut_by: the time column by which the test rows were cut off the end of train although validation rows were given,
            which may then be later; else None.
    """

    fingerprint: str
    find: Callable[[], list[Source]]
    quarantine: Quarantine | None = None
    test_cut_by: str | None = None

    @classmethod
    def of(cls, tables: Mapping[str, Any]) -> RawSplits:
        """Splits that are there already, as Arrow tables or `datasets.Dataset`s."""
        # In this order: rows of a later source come after those of an earlier one, and refit joins train and validation.
        made = {split: as_table(tables[split]) for split in SPLITS if split in tables}
        files = {split: in_memory(table, Path(split)) for split, table in made.items()}
        return cls(_hash_of(made), lambda: [Source.of_split(file, split) for split, file in files.items()])

    @cached_property
    def sources(self) -> list[Source]:
        return self.find()

    @cached_property
    def splits(self) -> dict[str, SplitRows]:
        found = {}
        for code, split in enumerate(SPLITS):
            if mine := [source for source in self.sources if source.split == split or (source.codes == code).any()]:
                found[split] = SplitRows(mine, split)
        return found

    def check_refit(self) -> None:
        """Raises ValueError where validation rows, trained on too, may be later than the test rows."""
        if self.test_cut_by is not None:
            raise ValueError(
                f"refit trains on the validation rows too, and those given may be later than the test rows, which are cut off "
                f"the end of train by {self.test_cut_by}: {OF_LATER_VALIDATION}"
            )

    def with_validation_in_train(self) -> RawSplits:
        """The validation rows after the training rows, as one split.

        Raises:
            ValueError: a column has types in them that cannot be one, or they may be later than the test rows.
        """
        self.check_refit()
        joined = [split for split in ("train", "validation") if split in self]
        schemas = [source.table.schema for split in joined for source in self[split].sources]
        try:
            pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(
                f"refit joins the training and validation rows, whose columns differ ({' '.join(str(error).split())}): give both "
                "the same types, or leave refit out"
            ) from error

        def find() -> list[Source]:
            train, validation = (np.int8(SPLITS.index(split)) for split in ("train", "validation"))
            first, found = len(self["train"]), []
            for source in self.sources:
                moved = source.codes == validation
                codes = np.where(moved, train, source.codes)
                places = np.where(moved, source.places + first, source.places)
                split = "train" if source.split == "validation" else source.split
                found.append(replace(source, split=split, codes=codes, places=places))
            return found

        return RawSplits(_hash([self.fingerprint, "validation in train"]), find, self.quarantine)

    def __getitem__(self, split: str) -> SplitRows:
        return self.splits[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        return len(self.splits)

    def parts(
        self, names: Sequence[str], rows: int = ROWS_AT_ONCE
    ) -> Iterator[tuple[pa.Table, np.ndarray, np.ndarray]]:
        """All rows, each once, some at a time and in the order in which they lie: columns, and of each row its code and its place
        as in `Source`."""
        for source in self.sources:
            first = 0
            for table in in_parts(source.table.batches(names), rows):
                stop = first + table.num_rows
                yield table, source.codes[first:stop], source.places[first:stop]
                first = stop


def load_splits(
    dataset_name: str,
    *,
    registered: Mapping[str, Callable[[], Mapping[str, Any]]] | None = None,
    time_column: str | None = None,
    seed: int = SPLIT_SEED,
    delimiter: str | None = None,
    encoding: str | None = None,
    keep: Sequence[str] = (),
    max_train_samples: int | None = None,
    streaming: bool = False,
    quarantine: Quarantine | None = None,
    readers: Mapping[str, Reader] | None = None,
) -> RawSplits:
    """The train, validation and test rows of a dataset, as they are written.

    Given splits are respected. What is missing is cut from train: the last tenth of all rows is the test set, the last tenth of
    the rest the validation set; last in time, or, without a time column, drawn at random, which is logged.

    Args:
        dataset_name: a registered name, a file or folder that `open_splits` reads, or a Hub dataset id.
        registered: loaders of registered datasets, by name; each returns train, validation and test.
        time_column: dates or times in any spelling that `read_times` reads.
        seed: of the random split.
        delimiter: of a CSV, where it cannot be detected.
        encoding: of a text file, where it cannot be detected.
        keep: columns that will be asked for whole; they are read in one go with the time column.
        max_train_samples: keep only this many training rows: the latest if the split was cut by time, else the first.
        streaming: read a dataset of the Hub over the network, again each time, instead of storing its files.
        quarantine: takes the rows that cannot be read; by default they are errors.
        readers: of columns that must be readable, such as the label, what reads them; with a quarantine, rows where they are not
            are left out too.

    Raises:
        ValueError: the dataset cannot be found or opened; and when its rows are first asked for, that it has no train rows or too
            few, or that a row or a time cannot be read.
    """
    registered = registered or {}
    path = Path(dataset_name)
    if streaming and (dataset_name in registered or path.exists()):
        raise ValueError(f"streaming is for datasets on the Hub, and {dataset_name!r} is read here: leave it out")
    if dataset_name in registered:
        made = {split: as_table(rows) for split, rows in registered[dataset_name]().items()}
        tables, data = {split: in_memory(table, Path(split)) for split, table in made.items()}, _hash_of(made)
    elif path.exists():
        found = open_splits(path, delimiter=delimiter, encoding=encoding, quarantine=quarantine)
        tables, data = {split or "train": table for split, table in found.items()}, _hash_of_files(path)
    else:
        tables, data = _from_hub(dataset_name, registered, streaming)
        tables = named_splits(tables, f"dataset {dataset_name!r}")
    what = f"dataset {dataset_name!r}"

    def find() -> list[Source]:
        sources = cut_missing_splits(
            tables, what, time_column=time_column, seed=seed, keep=keep, quarantine=quarantine, readers=readers
        )
        if max_train_samples is None:
            return sources
        is_by_time = time_column is not None and not set(SPLITS) <= set(tables)
        return [_some_of_train(source, max_train_samples, latest=is_by_time) for source in sources]

    settings = (time_column, seed, delimiter, encoding, max_train_samples, quarantine is not None)
    test_cut_by = time_column if _only_test_is_cut(tables) else None
    return RawSplits(_hash([data, repr(settings)]), find, quarantine, test_cut_by)


def _only_test_is_cut(tables: Mapping[str, TableFile]) -> bool:
    return "test" not in tables and "validation" in tables


def as_table(rows: Any) -> pa.Table:
    """The rows of a `datasets.Dataset` as Arrow has them, with its classes by name; a table as it is, but for such classes."""
    return with_class_names(rows) if isinstance(rows, pa.Table) else as_arrow(rows)


def _from_hub(name: str, registered: Mapping[str, Any], streaming: bool) -> tuple[dict[str, TableFile], str]:
    try:
        if name.lower().endswith(tuple(KINDS)) or name.startswith((".", "/", "~")) or name.count("/") > 1:
            near = Path(name).parent
            neighbours = [p.name for p in near.iterdir()] if near.is_dir() else []
            raise FileNotFoundError(f"{name} does not exist{did_you_mean(Path(name).name, neighbours)}")
        import datasets  # nothing else here needs it, and it takes a while

        if streaming:
            commit = HfApi().dataset_info(name).sha  # every reading is of the same files
            opened = datasets.load_dataset(name, revision=commit, streaming=True)
            return {split: _streamed(rows, Path(split)) for split, rows in opened.items()}, str(commit)
        loaded = datasets.load_dataset(name)
    except Exception as error:  # each layer below (datasets, pyarrow, httpx) has exceptions of its own
        known = "".join(f"{other}, " for other in registered)
        raise ValueError(
            f"dataset {name!r} cannot be loaded ({' '.join(str(error).split())}); give {known}a Hub dataset id (a private one "
            f"needs your token: HF_TOKEN, or hf auth login), or a file or folder of {READ}{did_you_mean(name, registered)}"
        ) from error
    tables = {split: in_memory(as_arrow(rows), Path(split)) for split, rows in loaded.items()}
    return tables, _hash(f"{split} {rows._fingerprint}" for split, rows in loaded.items())


def _streamed(dataset: Any, path: Path) -> TableFile:
    """The rows of a `datasets.IterableDataset`, which come over the network whenever they are asked for."""

    def rows_of(some: Any) -> Iterator[pa.RecordBatch]:
        for table in some.with_format("arrow").iter(ROWS_PER_BATCH):
            yield from with_class_names(table).replace_schema_metadata(None).combine_chunks().to_batches()

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return (batch.select(names) for batch in rows_of(dataset.select_columns(list(names))))

    first = next(rows_of(dataset), None)
    return TableFile(path, pa.schema([]) if first is None else first.schema, read, 0 if first is None else None)


def cut_missing_splits(
    tables: Mapping[str, TableFile],
    what: str = "the data",
    *,
    time_column: str | None = None,
    seed: int = SPLIT_SEED,
    keep: Sequence[str] = (),
    quarantine: Quarantine | None = None,
    readers: Mapping[str, Reader] | None = None,
) -> list[Source]:
    """The same splits, and those that are missing, cut from train; see `load_splits`. Rows cut by time are in time order, ties
    in the order of the file; rows cut at random stay in that order.

    Raises:
        ValueError: there is no train split, it is too small, or a time cannot be read.
    """
    if "train" not in tables:
        raise ValueError(f"{what} has no split 'train'; it has {', '.join(tables)}")
    if strangers := [split for split in tables if split not in SPLITS]:
        logger.warning(f"{what}: the splits {', '.join(strangers)} are not used")
    table = tables["train"]
    if time_column is not None:
        check_column(table.schema.names, time_column, "time_column", "split 'train'")
    missing = [split for split in ("test", "validation") if split not in tables]
    if time_column is not None and missing:
        keep = [*keep, time_column]  # of train it is needed, of another split it does no harm
    given = [Source.of_split(tables[split], split, keep) for split in SPLITS if split in tables]
    if quarantine is not None:
        of_time = {time_column: partial(read_times, name=time_column)} if time_column is not None and missing else {}
        given = [
            without_bad_cells(source, dict(readers or {}) | (of_time if source.split == "train" else {}), quarantine)
            for source in given
        ]
    if not missing:
        return given
    train = given[0]
    readable = np.flatnonzero(train.codes >= 0)
    size = len(readable)
    if size < 10:
        raise ValueError(f"{what} has {size} rows; cutting off {' and '.join(missing)} takes at least 10")
    if time_column is not None:
        times = read_times(SplitRows([train], "train")[time_column], time_column, "split 'train'")
        order = np.argsort(times, kind="stable")
    else:
        order = np.random.default_rng(seed).permutation(size)
        logger.warning(
            f"no --time_column: {' and '.join(missing)} of {what} are drawn from its rows at random with seed {seed}; if later "
            f"clicks give away earlier ones, the metrics come out too high{time_hint(tables['train'])}"
        )
    parts = {}
    for split in missing:
        first = earlier_part(len(order))
        parts[split], order = order[first:], order[:first]
    parts["train"] = order
    if time_column is not None:
        said = [
            f"{split} until {times[parts[split][-1]].astype('datetime64[s]')}" for split in SPLITS if split in parts
        ]
        logger.warning(f"{what} is split by {time_column}: {', '.join(said)}")
        if _only_test_is_cut(tables):
            logger.warning(
                f"the test rows of {what} are cut off the end of train by {time_column}, and the validation rows that were given "
                f"may be later: {OF_LATER_VALIDATION}"
            )
    codes, places = np.full(len(train.codes), -1, np.int8), np.zeros(len(train.codes), np.int64)
    for split, part in parts.items():
        rows = readable[part if time_column is not None else np.sort(part)]
        codes[rows], places[rows] = SPLITS.index(split), np.arange(len(rows))
    return [replace(train, codes=codes, places=places), *given[1:]]


def without_bad_cells(source: Source, readers: Mapping[str, Reader], quarantine: Quarantine) -> Source:
    """The source without the rows in which one of these columns cannot be read; they go to the quarantine.

    Raises:
        ValueError: these are too many, or a column cannot be read at all.
    """
    path, size = source.table.path, len(source.codes)
    left = np.arange(size)
    for name in (name for name in readers if name in source.kept):
        column = pa.table({name: source.kept[name]})
        while True:
            rows = column if len(left) == size else _by_column(column, partial(_taken, pa.array(left)), path)
            try:
                readers[name](rows[name], where=f"split {source.split!r}")
                break
            except BadCellsError as error:  # of one reason; there may be more
                wrong = left[error.rows]
                quarantine.check_share(str(error), size - len(left) + len(wrong), size)
                for row, cell in zip(wrong.tolist(), column[name].take(pa.array(wrong)).to_pylist(), strict=True):
                    place = f"row {row} of those that can be read, from 0; column {name!r}"
                    quarantine.add(path, place, "" if cell is None else str(cell), error)
                left = left[~error.rows]
    if len(left) == size:
        return source
    codes, places = np.full(size, -1, np.int8), np.zeros(size, np.int64)
    codes[left], places[left] = source.codes[left], np.arange(len(left))
    return replace(source, codes=codes, places=places)


def _taken(rows: pa.Array, column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.take(rows)


def _some_of_train(source: Source, count: int, *, latest: bool) -> Source:
    """The source with only its first `count` training rows, or its last."""
    is_train = source.codes == SPLITS.index("train")
    skipped = max(0, int(is_train.sum()) - count) if latest else 0
    places = np.where(is_train, source.places - skipped, source.places)
    dropped = is_train & ((places < 0) | (places >= count))
    return replace(source, codes=np.where(dropped, np.int8(-1), source.codes), places=places)


def time_hint(table: TableFile) -> str:
    """The end of a message where no time column is named: one that looks like it, by its type, or by its name and first
    values; "" if none does."""
    for name, type_ in zip(table.schema.names, table.schema.types, strict=True):
        found = pa.types.is_timestamp(type_) or pa.types.is_date(type_)
        if not found and TIME_WORDS & set(words_of(name)):
            with contextlib.suppress(ValueError):
                for batch in table.batches([name]):
                    found = len(read_times(pa.chunked_array([batch.column(0)]), name, "split 'train'")) > 0
                    break
        if found:
            return f". {name!r} looks like a time: --time_column {shlex.quote(name)}"
    return ""


def earlier_part(rows: int) -> int:
    """How many rows stay when the last tenth is cut off: first the test set off all rows, then the validation set."""
    return 9 * rows // 10


def check_column(names: Sequence[str], name: str, key: str, where: str) -> None:
    """Raises ValueError where a column that the recipe names is not there."""
    if name not in names:
        raise ValueError(
            f"{key} {name!r} is missing in {where}; its columns are {list(names)}{did_you_mean(name, names)}"
        )


# ---- reading


def _read(table: TableFile, names: Sequence[str]) -> pa.Table:
    """Some columns of all rows; without names just the number of rows, if it has to be counted."""
    names = list(dict.fromkeys(names))
    if not names and table.num_rows is not None:
        return pa.table({})
    names = names or table.schema.names[:1]
    return table.to_table(names)


def _picked(source: Source, names: Sequence[str], mine: np.ndarray) -> pa.Table:
    """Some columns of the rows where `mine` (N,) is true."""
    path, schema = source.table.path, pa.schema([source.table.schema.field(name) for name in names])
    batches: Iterator[pa.RecordBatch] | list[pa.RecordBatch]
    if names and all(name in source.kept for name in names):
        batches = pa.table({name: source.kept[name] for name in names}).to_batches()
    else:
        batches = source.table.batches(names)
    tables, first = [], 0
    for batch in batches:
        part = mine[first : first + len(batch)]
        first += len(batch)
        table = pa.Table.from_batches([batch])
        if not part.all():
            table = _by_column(table, partial(_filtered, pa.array(part)), path)
        tables.append(table)
    if not tables:
        return schema.empty_table()
    return pa.concat_tables(tables, promote_options="permissive")


def _filtered(mask: pa.Array, column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.filter(mask)


def _by_column(table: pa.Table, pick: Callable[[pa.ChunkedArray], pa.ChunkedArray], path: Path) -> pa.Table:
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns.append(pick(column.cast(_pickable(column.type))))
        except pa.ArrowException as error:
            raise ValueError(
                f"column {name!r} of {path} has type {column.type}, whose rows cannot be selected; turn it into text or "
                "numbers first"
            ) from error
    return pa.Table.from_arrays(columns, table.column_names)


def _pickable(kind: pa.DataType) -> pa.DataType:
    """A type with the same values whose rows Arrow can select."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _pickable(kind.value_type), kind.ordered)
    if pa.types.is_list(kind):
        return pa.list_(_pickable(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_pickable(kind.value_type))
    return pa.list_(_pickable(kind.value_type), kind.list_size) if pa.types.is_fixed_size_list(kind) else kind


# ---- fingerprints


def _hash(parts: Iterator[str] | Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _hash_of_files(path: Path) -> str:
    """Of a file or a folder: names, which tell the splits, where links lead, sizes, and when each was last changed in any way. A
    copy counts as another file; so does one whose content and time of modification were set back."""
    files, above = ([path], path.parent) if path.is_file() else (sorted(_files_below(path)), path)
    facts = [(file.relative_to(above), file.resolve(), file.stat()) for file in files]
    return _hash(f"{name} {real} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}" for name, real, stat in facts)


def _files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder, behind links too, as they are opened. Links may go in circles: a folder that is met again is not
    entered, and is given itself."""
    entered = {folder.resolve()}
    for parent, folders, names in os.walk(folder, followlinks=True):
        new = []
        for below in (Path(parent, name) for name in sorted(folders)):
            if (real := below.resolve()) in entered:
                yield below
            else:
                entered.add(real)
                new.append(below.name)
        folders[:] = new
        yield from (file for file in (Path(parent, name) for name in names) if file.is_file())


class _Hasher(io.RawIOBase):
    """What Arrow can write to, and hashes."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)


def _hash_of(tables: Mapping[str, pa.Table]) -> str:
    """Of the content of tables in memory."""
    found = []
    for split, table in tables.items():
        hasher = _Hasher()
        with pa.PythonFile(hasher, "w") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        found.append(f"{split} {hasher.digest.hexdigest()}")
    return _hash(found)
