"""Files and folders of rows as Arrow record batches, raw: what is written is what is handed over.

A CSV's cells are text exactly as they are written ("02897" and identifiers of 19 digits stay), empty cells are null and nothing
else is interpreted. Parquet keeps its types. JSON lines keep theirs where a column has one; a column of several is text, each
cell as it would be spelled alone. Memory is bounded: files are read in parts, in place, and nothing is copied into a cache.

    table = open_table("clicks.csv")
    table.schema             # names and types
    for batch in table.batches(): ...
    table.to_table()         # all of it

What cannot be read is an error; rows of text files can be left out instead, and counted: see `Quarantine`.
"""

from .opening import KINDS, READ, named_splits, open_splits, open_table, split_of
from .table_file import ROWS_PER_BATCH, TableFile, as_arrow, in_memory, in_parts

__all__ = [
    "KINDS",
    "READ",
    "ROWS_PER_BATCH",
    "TableFile",
    "as_arrow",
    "in_memory",
    "in_parts",
    "named_splits",
    "open_splits",
    "open_table",
    "split_of",
]
