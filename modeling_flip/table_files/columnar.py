"""Parquet, and what `datasets` has saved: both have types of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..row_containers import with_class_names
from .table_file import ROWS_PER_BATCH, TableFile, as_arrow, check_names, in_memory, one_line


def open_parquet(path: Path) -> TableFile:
    """A Parquet file; raises ValueError where it is not whole."""
    try:
        with pq.ParquetFile(path) as file:
            schema, num_rows = with_class_names(file.schema_arrow.empty_table()).schema, file.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeError) as error:
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty") from error
        raise ValueError(
            f"{path} is not a complete Parquet file ({one_line(error)}): copy or download it again"
        ) from error
    check_names(schema.names, path)
    schema = schema.remove_metadata()

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS_PER_BATCH, columns=names):
                    batch.validate(full=True)  # text of a damaged file may be no UTF-8
                    (named,) = with_class_names(pa.Table.from_batches([batch])).select(names).to_batches()
                    yield named.replace_schema_metadata(None)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise ValueError(f"{path} cannot be read ({one_line(error)}): copy or download it again") from error

    return TableFile(path, schema, read, num_rows)


def open_saved(path: Path) -> dict[str | None, TableFile]:
    """The Arrow tables of a folder that `save_to_disk` wrote, memory-mapped where they lie."""
    import datasets  # nothing else here needs it, and it takes a while

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # each layer below has exceptions of its own
        raise ValueError(
            f"{path} cannot be read as what save_to_disk writes ({one_line(error)}): save it again"
        ) from error
    parts: dict[str | None, Any] = dict(saved) if isinstance(saved, datasets.DatasetDict) else {None: saved}
    return {split: in_memory(as_arrow(part), path) for split, part in parts.items()}
