"""The moments at which a run writes something."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOGS = ".logs"  # what it prints; no part of what is compared
Hook = Callable[[str, str], None]  # (event, path), before anything in the folder is changed


def call_before_changes(folder: Path, hook: Hook) -> None:
    """Call the hook before each change of the folder that this process makes, as far as Python knows of it, or the functions
    below, which write through C++ and Rust; until the process ends."""
    busy = False

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy or event not in CHANGES:
            return
        busy = True
        try:
            path = CHANGES[event](*args)
            if path is not None and (relative := _inside(folder, path)) is not None:
                hook(event.removeprefix("flip."), relative)
        finally:
            busy = False

    announce_other_writers()
    sys.addaudithook(watch)


def _opened(path: Any, mode: str | None, flags: int) -> Any:
    writes = set("wax+") & set(mode) if mode else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return path if writes and not isinstance(path, int) else None


def _at(path: Any, dir_fd: int) -> str:
    return os.fsdecode(path) if dir_fd < 0 else os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fsdecode(path))


CHANGES: dict[str, Callable[..., Any]] = {
    "open": _opened,
    "os.mkdir": lambda path, mode, dir_fd: _at(path, dir_fd),
    "os.rename": lambda source, target, source_fd, target_fd: _at(target, target_fd),
    "os.remove": _at,
    "os.rmdir": _at,
    "os.link": lambda source, target, source_fd, target_fd: _at(target, target_fd),
    "os.symlink": lambda source, target, dir_fd: _at(target, dir_fd),
    "os.truncate": lambda path, length: None if isinstance(path, int) else path,
    "flip.writes": lambda path: path,
    "flip.wrote": lambda path: path,
}


def _inside(folder: Path, path: Any) -> str | None:
    """A path as it is called in the folder; None where it lies elsewhere."""
    relative = os.path.relpath(os.path.abspath(os.fsdecode(path)), folder)
    return None if relative.startswith((os.pardir, LOGS)) or relative == os.curdir else relative


def announce_other_writers() -> None:
    """torch, safetensors and pyarrow open their files themselves."""
    import pyarrow.parquet as pq
    import safetensors.torch
    import torch

    def announced(function: Callable[..., Any], position: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            path = args[position] if len(args) > position else None
            is_path = isinstance(path, (str, os.PathLike))
            if is_path:
                sys.audit("flip.writes", path)
            result = function(*args, **kwargs)
            if is_path:
                sys.audit("flip.wrote", path)
            return result

        return call

    torch.save = announced(torch.save, 1)
    safetensors.torch.serialize_file = announced(safetensors.torch.serialize_file, 1)
    pq.ParquetWriter.__init__ = announced(pq.ParquetWriter.__init__, 1)
