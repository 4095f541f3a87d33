"""A table that has been opened and not yet read, and Arrow's record batches in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..fields import did_you_mean
from ..row_containers import with_class_names

ROWS_PER_BATCH = 32_768


@dataclass(frozen=True)
class TableFile:
    """A file, or a folder of files, that has been opened and not yet read.

    Attributes:
        path: where it is, for messages.
        schema: its columns.
        read: the rows' columns of these names, in this order; called as often as the rows are asked for.
        num_rows: how many there are, where that is known without reading them.
    """

    path: Path
    schema: pa.Schema
    read: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
    num_rows: int | None = None

    def batches(self, names: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, some at a time; with `names` these columns alone are read, in this order.

        Raises:
            ValueError: there is no such column, with the nearest that there is.
        """
        names = self.schema.names if names is None else list(names)
        for name in names:
            if name not in self.schema.names:
                known = list(self.schema.names)
                raise ValueError(
                    f"{self.path} has no column {name!r}; its columns are {known}{did_you_mean(name, known)}"
                )
        return self.read(names)

    def to_table(self, names: Sequence[str] | None = None) -> pa.Table:
        """All rows in memory (those of a `save_to_disk` folder stay on disk, mapped); with `names` these columns alone."""
        batches = self.batches(names)
        schema = self.schema if names is None else pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_batches(batches, schema)


def in_memory(table: pa.Table, path: Path) -> TableFile:
    """A table that is there already; `path` names it in messages."""

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from table.select(names).to_batches(ROWS_PER_BATCH)

    return TableFile(path, table.schema, read, table.num_rows)


def in_parts(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows; the last may be shorter."""
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    for batch in batches:
        waiting.append(batch)
        num_waiting += len(batch)
        if num_waiting >= size:
            table = pa.Table.from_batches(waiting)
            whole = len(table) - len(table) % size
            yield from (table[first : first + size] for first in range(0, whole, size))
            waiting, num_waiting = table[whole:].to_batches(), len(table) - whole
    if any(map(len, waiting)):
        yield pa.Table.from_batches(waiting)


def as_arrow(dataset: Any) -> pa.Table:
    """The Arrow table of a `datasets.Dataset`, where it lies, with its classes by name; rows that were picked are gathered."""
    if dataset._indices is not None:
        dataset = dataset.flatten_indices()
    return with_class_names(dataset.data.table).replace_schema_metadata(None)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def check_names(names: Sequence[str], path: Path) -> None:
    """Raises ValueError where two columns have one name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{path} has more than one column {name!r}; rename one")
        seen.add(name)
