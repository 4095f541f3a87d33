"""Opens a file by its suffix, and a folder by what is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..fields import did_you_mean
from ..quarantine import Quarantine
from .columnar import open_parquet, open_saved
from .csv_file import known_delimiter, open_csv
from .json_lines import open_json_lines
from .table_file import TableFile, one_line
from .text_stream import known_encoding

KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    **{f"{suffix}.gz": suffix[1:] for suffix in (".csv", ".tsv")},
    **{f"{suffix}.gz": "json" for suffix in (".jsonl", ".ndjson", ".json")},
}
READ = ".csv, .tsv, .jsonl, .ndjson, .json (one object a line; all of these also with .gz) and .parquet"
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLIT_NAMES |= {"dev": "validation", "test": "test"}
NO_ROWS = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}  # files of `datasets` about others


def open_table(
    path: str | Path,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    quarantine: Quarantine | None = None,
) -> TableFile:
    """Open a file, a folder of files of one kind, or a folder that `datasets` has saved.

    Args:
        path: .csv, .tsv, .jsonl, .ndjson, .json (one object a line; all also with .gz), .parquet, or a folder of them.
        delimiter: of a CSV; by default the one of `,` `;` tab `|` that cuts the header and the next rows alike.
        encoding: of text; by default what a byte order mark says, UTF-8 where it is valid, else cp1252, with a warning.
        quarantine: takes the rows of CSV and JSON lines that cannot be read; by default they are errors. Damaged gzip and Parquet
            files, a header that cannot be read, and a quote that is never closed always are: how many rows they cost is unknown.

    Raises:
        FileNotFoundError: there is none, with the nearest name in its folder.
        ValueError: it cannot be read; with file, line or row, column, and remedy. What lies further in is found by
            `batches`.
    """
    found = open_splits(path, delimiter=delimiter, encoding=encoding, quarantine=quarantine)
    if None not in found:
        raise ValueError(
            f"{path} holds the splits {', '.join(map(str, found))}, each a table of its own: name one of them"
        )
    return found[None]


def open_splits(
    path: str | Path,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    quarantine: Quarantine | None = None,
) -> dict[str | None, TableFile]:
    """Open what `open_table` does, or a folder of splits: files or subfolders named train, validation (valid, val, dev) and
    test, or a saved `DatasetDict`.

    Returns:
        `{"train": …, "validation": …, "test": …}`, those that are there; `{None: …}` where nothing is named so.

    Raises:
        FileNotFoundError, ValueError: as `open_table`.
    """
    path = Path(path)
    open_files = partial(
        _open_files,
        path=path,
        delimiter=known_delimiter(delimiter),
        encoding=known_encoding(encoding),
        quarantine=quarantine,
    )
    if path.is_file():
        return {None: open_files([path])}
    if not path.is_dir():
        neighbours = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"{path} does not exist{did_you_mean(path.name, neighbours)}")
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return named_splits(open_saved(path), str(path))
    return {split: open_files(files) for split, files in _split_files(path).items()}


def named_splits(given: Mapping[Any, TableFile], where: str) -> dict[Any, TableFile]:
    """Splits by the names that are used here; others keep theirs.

    Raises:
        ValueError: two of them have the same one, such as dev and validation.
    """
    names = {name: SPLIT_NAMES.get(name or "", name) for name in given}
    for split in names.values():
        same = [other for other in names if names[other] == split]
        if len(same) > 1:
            raise ValueError(
                f"{where} holds {' and '.join(same)}, all named after split {split}: leave all but one of them out"
            )
    return {names[name]: table for name, table in given.items()}


def split_of(name: str) -> str | None:
    """The split that a file or folder is named for, such as train.csv or dev-00000-of-00002.parquet; None if for none."""
    stem = name.lower().removesuffix(_suffix(name) or "")
    match = re.fullmatch(rf"({'|'.join(SPLIT_NAMES)})([-_.]\d+)?(-of-\d+)?", stem)
    return SPLIT_NAMES[match[1]] if match else None


def _suffix(name: str) -> str | None:
    return next((suffix for suffix in sorted(KINDS, key=len, reverse=True) if name.lower().endswith(suffix)), None)


def _kind(path: Path) -> str:
    suffix = _suffix(path.name)
    if suffix is None:
        raise ValueError(f"{path} ends in {path.suffix or 'no suffix'!r}, which is not supported; supported are {READ}")
    return KINDS[suffix]


def _split_files(folder: Path) -> dict[str | None, list[Path]]:
    """The readable files of a folder, by split, in the order of their names."""
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith((".", "_")))
    files = [p for p in inside if p.is_file() and _suffix(p.name) and p.name not in NO_ROWS]
    folders = [p for p in inside if p.is_dir() and split_of(p.name)]
    if files and folders:
        raise ValueError(f"{folder} holds both {files[0].name} and a folder {folders[0].name}: move one of them out")
    if folders:
        files = [
            p for f in folders for p in sorted(f.iterdir()) if p.is_file() and _suffix(p.name) and p.name[0] not in "._"
        ]
        names = {p: p.parent.name for p in files}
    elif not files and (folder / "data").is_dir():  # a clone of a Hub dataset
        return _split_files(folder / "data")
    else:
        names = {p: p.name for p in files}
    if not files:
        raise ValueError(f"{folder} holds no supported file ({READ}); it holds {[p.name for p in inside][:10]}")
    found: dict[str | None, list[Path]] = {}
    for file in files:
        found.setdefault(split_of(names[file]), []).append(file)
    if None in found and len(found) > 1:
        one = next(file for file in files if split_of(names[file]))
        raise ValueError(
            f"{folder} holds {one.name}, which is named after a split, and {found[None][0].name}, which is not: move one of "
            "them out"
        )
    for split, named in found.items():
        words = {names[file].lower().partition(".")[0].rstrip("-_0123456789of"): names[file] for file in named}
        if split is not None and len(words) > 1:
            raise ValueError(
                f"{folder} holds {' and '.join(words.values())}, all named after split {split}: move one of them out"
            )
    order = ["train", "validation", "test", None]
    return {split: found[split] for split in order if split in found}


def _open_files(
    files: list[Path],
    path: Path,
    delimiter: str | None,
    encoding: str | None,
    quarantine: Quarantine | None,
) -> TableFile:
    """One table of files of one kind."""
    kinds = {_kind(file): file for file in files}
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise ValueError(
            f"{path} holds {one.name} and {other.name}: one table is made of files of one kind; name one file"
        )
    (kind,) = kinds
    if kind == "json":
        return open_json_lines(files, path, encoding, quarantine)
    if kind == "parquet":
        tables = [open_parquet(file) for file in files]
    else:
        tables = [
            open_csv(file, "\t" if kind == "tsv" and delimiter is None else delimiter, encoding, quarantine)
            for file in files
        ]
    return tables[0] if len(tables) == 1 else _one_after_the_other(tables, path)


def _one_after_the_other(tables: list[TableFile], path: Path) -> TableFile:
    """Tables of the same column names as one; their types are widened to a common one."""
    first = tables[0]
    fields = {field.name: field for field in first.schema}
    for table in tables[1:]:
        for name in first.schema.names:
            if name not in table.schema.names:
                near = did_you_mean(name, set(table.schema.names) - set(fields))
                raise ValueError(f"{table.path} has no column {name!r}, which {first.path} has{near}")
        for field in table.schema:
            if field.name not in fields:
                raise ValueError(f"{table.path} has a column {field.name!r}, which {first.path} does not have")
            try:
                both = pa.unify_schemas(
                    [pa.schema([pa.field(f.name, f.type)]) for f in (fields[field.name], field)],
                    promote_options="permissive",
                )
            except pa.ArrowException as error:
                raise ValueError(
                    f"column {field.name!r} is {field.type} in {table.path} and {fields[field.name].type} in the files before "
                    "it: write it with one type"
                ) from error
            fields[field.name] = both.field(0)
    schema = pa.schema(list(fields.values()))

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        chosen = pa.schema([schema.field(name) for name in names])
        for table in tables:
            for batch in table.batches(names):
                yield pa.RecordBatch.from_arrays([_cast(batch[f.name], f, table.path) for f in chosen], schema=chosen)

    counts = [table.num_rows for table in tables]
    return TableFile(path, schema, read, None if None in counts else sum(c for c in counts if c is not None))


def _cast(column: pa.Array, field: pa.Field, path: Path) -> pa.Array:
    try:
        return column if column.type == field.type else column.cast(field.type)
    except pa.ArrowException as error:
        raise ValueError(
            f"column {field.name!r} of {path} is {column.type} and cannot be converted to {field.type}, its type in the other "
            f"files: {one_line(error)}"
        ) from error
