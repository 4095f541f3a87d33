"""Raw public files: found plain or gzipped, or downloaded; and rows in time order cut into splits."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
from datasets import Dataset, DatasetDict, DownloadConfig, DownloadManager

from modeling_flip.training.splits import earlier_part

Folder: TypeAlias = Path | zipfile.Path

NOT_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)


def folder_of(raw_dir: str | Path | None, fetch: Callable[[], Folder]) -> Folder:
    """Return the folder that was named, or what `fetch` downloads; FileNotFoundError where it is none."""
    folder = fetch() if raw_dir is None else Path(raw_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"raw_dir {str(folder)!r} is not a folder: name the one that holds the published files")
    return folder


def download(url: str, md5: str | None, instead: str) -> Path:
    """Return the file at `url`, downloaded once into the cache of `datasets`.

    `md5` is that of the published file, None where none is known; `instead` says what to give to `--raw_dir`. Raises
    ConnectionError where the file cannot be had, ValueError where it is not the published one.
    """
    # The checksum pins the content, so a cached file is good without asking the server for its ETag.
    manager = DownloadManager(download_config=DownloadConfig(use_etag=False))
    try:
        file = Path(manager.download(url))
    except Exception as error:  # each layer below (fsspec, aiohttp, the offline mode) has exceptions of its own
        told = error.__cause__ if str(error) == url and error.__cause__ else error  # fsspec's own names the URL alone
        raise ConnectionError(
            f"cannot download {url} ({told}): pass --raw_dir (raw_dir= in Python), {instead}"
        ) from error
    if md5 is not None:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != md5:
            file.unlink()
            raise ValueError(
                f"the file from {url} has md5 {found}, the published one {md5}; it was deleted: run again, "
                f"or pass --raw_dir (raw_dir= in Python), {instead}"
            )
    return file


def find(folder: Folder, names: Sequence[str]) -> Folder:
    """Return the one of `names` that the folder holds, plain or with .gz added; FileNotFoundError where it holds none."""
    candidates = [candidate for name in names for candidate in (name, f"{name}.gz")]
    file = next((folder / name for name in candidates if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no {names[0]} in {str(folder)!r}: looked for {' and '.join(candidates)}")
    return file


def not_gzip(file: Folder, error: Exception) -> ValueError:
    """What to raise for a damaged gzip file."""
    return ValueError(f"{str(file)!r} is not a complete gzip file ({error}): fetch it again")


def content(file: Folder) -> bytes:
    """Return the file's bytes, unpacked where it is gzipped; ValueError where it is damaged."""
    try:
        return gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
    except NOT_GZIP as error:
        raise not_gzip(file, error) from error


def cut(rows: pa.Table) -> DatasetDict:
    """Cut rows that are in their final order: test is the last tenth, validation the last tenth of what remains."""
    fitted = earlier_part(len(rows))  # train and validation
    train = earlier_part(fitted)
    return DatasetDict(
        train=Dataset(rows.slice(0, train)),
        validation=Dataset(rows.slice(train, fitted - train)),
        test=Dataset(rows.slice(fitted)),
    )
