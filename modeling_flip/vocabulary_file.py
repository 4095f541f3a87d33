"""The Parquet file of a saved vocabulary, read within bounds: it may come from a stranger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Bounds on what a saved file may grow to in memory. One that `save` wrote has at least some bytes for each value, since no value
# stands twice in a field, compresses a few times, and tokens far less than this.
TIMES, MORE = 64, 1 << 26
CODECS = ("SNAPPY", "UNCOMPRESSED")  # neither can compress more than some twenty times
# Columns of the file, and what Parquet has them as.
TEXTS, INTEGERS = ("field", "value"), ("count", "order", "tokens", "is_value")


def read_bounded(path: str | Path) -> pa.Table:
    """The rows of a saved vocabulary; raises ValueError, before they are read, where they would fill memory: a few bytes of
    Parquet can stand for any number of them."""
    size = os.path.getsize(path)
    most = TIMES * size + MORE
    with pq.ParquetFile(path, read_dictionary=["field"]) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        strange = [c.path_in_schema for c in chunks if not _is_known(c.path_in_schema, c.physical_type)]
        if strange:
            raise ValueError(f"it has a column {strange[0]!r} that save does not write")
        codecs = {chunk.compression for chunk in chunks} - {*CODECS}
        if codecs:
            raise ValueError(f"it is compressed with {min(codecs)}, which save does not use")
        claims = {
            "rows": (file.metadata.num_rows, size),
            "bytes uncompressed": (sum(chunk.total_uncompressed_size for chunk in chunks), most),
            "tokens": (sum(chunk.num_values for chunk in chunks), most),
        }
        for what, (claimed, limit) in claims.items():
            if claimed > limit:
                raise ValueError(f"it has {size:,} bytes and holds {claimed:,} {what}; at most {limit:,} are read")
        if file.metadata.num_rows * _longest_shared(path, groups) > most:
            # Long texts that many rows may share: counted before they are written out.
            texts = sum(_text_bytes(batch.column(0)) for batch in _dictionaries(path).iter_batches(columns=["value"]))
            if texts > most:
                raise ValueError(
                    f"it has {size:,} bytes and holds {texts:,} bytes of values; at most {most:,} are read"
                )
        return file.read()


def _is_known(path: str, physical_type: str) -> bool:
    if path in TEXTS:
        return physical_type == "BYTE_ARRAY"
    return path.partition(".")[0] in INTEGERS and physical_type in ("INT32", "INT64", "BOOLEAN")


def _dictionaries(path: str | Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, read_dictionary=["field", "value"])


def _longest_shared(path: str | Path, groups: Sequence[Any]) -> int:
    """The bytes of the longest value that rows can share: of a row group, those that Parquet wrote once and numbered."""
    longest = 0
    with _dictionaries(path) as file:
        for i in range(len(groups)):
            for batch in file.iter_batches(1, row_groups=[i], columns=["value"]):
                texts = batch.column(0).dictionary
                longest = max(longest, pc.max(pc.binary_length(texts)).as_py() or 0)
                break
    return longest


def _text_bytes(texts: pa.DictionaryArray) -> int:
    return pc.sum(pc.binary_length(texts.dictionary).take(texts.indices)).as_py() or 0
