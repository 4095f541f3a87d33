"""The states that a run's folder goes through.

A kill leaves on the disk what was written until then; so one watched run, of which the folder is copied before each change of
it (`watched_run`), gives the states of all kills.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import shutil
import signal
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.attack.moments import LOGS
from tests.attack.scenarios import Ended, Scenario, run


@dataclass
class State:
    """A run's folder as a kill leaves it.

    Attributes:
        folder: a copy.
        event: what was about to be done.
        path: to which file, as it is called in the run's folder.
        rank: by which process.
    """

    folder: Path
    event: str
    path: str
    rank: int = 0


def stamps(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of each file and folder in a folder what changes when it is written."""
    found: dict[str, tuple[int, ...]] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != LOGS]
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            with suppress(FileNotFoundError):
                stat = os.lstat(path)
                found[os.path.relpath(path, folder)] = (
                    (stat.st_ino, stat.st_size, stat.st_mtime_ns) if name in files else ()
                )
    return found


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(LOGS))
    return target


def watched_run(folder: Path, scenario: Scenario, states: Path) -> tuple[Ended, list[State]]:
    """Run train.py and copy the folder to `states` before each change of it, but where nothing has changed since the last copy.
    While one process copies the others stand still."""
    states.mkdir(parents=True)
    pids = mmap.mmap(-1, 8 * scenario.processes)  # shared by all
    log, lock = states / "log", states / "lock"
    log.touch()
    lock.touch()

    def note(event: str, path: str) -> None:
        rank = int(os.environ.get("RANK", 0))
        struct.pack_into("q", pids, 8 * rank, os.getpid())
        with open(lock) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            others = [pid for (pid,) in struct.iter_unpack("q", pids) if pid not in (0, os.getpid())]
            for pid in others:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            try:
                entries = log.read_text().splitlines()
                now = json.loads(json.dumps(stamps(folder)))
                if not entries or json.loads(entries[-1])["stamps"] != now:
                    copy(folder, states / f"{len(entries):04}")
                    entry = {"event": event, "path": path, "rank": rank, "stamps": now}
                    with open(log, "a") as file:
                        file.write(json.dumps(entry) + "\n")
            finally:
                for pid in others:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)

    ended = run(folder, scenario, note)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return ended, [State(states / f"{i:04}", e["event"], e["path"], e["rank"]) for i, e in enumerate(entries)]


def changed_files(before: Path, after: Path) -> list[str]:
    """Files that are new or other in the second of two copies, by content."""
    files = (path.relative_to(after).as_posix() for path in sorted(after.rglob("*")) if path.is_file())
    return [
        file
        for file in files
        if not (before / file).is_file() or (before / file).read_bytes() != (after / file).read_bytes()
    ]
