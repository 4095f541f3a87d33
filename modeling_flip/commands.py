"""What the commands share: missing extras, one writer per output, signals, and full disks."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pyarrow as pa
from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# From libraries that report it in words: safetensors, and torch's zip writer, which fails for no other reason.
NO_SPACE_WORDS = re.compile(
    r"os error (28|122)\b|No space left on device|PytorchStreamWriter failed|unexpected pos \d+"
)
# Errors that mean nothing can be written here, so nothing can be spoiled.
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
# From gloo and NCCL, where a process that others wait for is no more.
LOST_WORDS = re.compile(
    r"gloo.*(by peer|Broken pipe|[Tt]imed out)|NCCL.*(remote process exited|was aborted)", re.DOTALL
)
SECONDS_BETWEEN_LOOKS = 0.5
SIGNALS = (signal.SIGTERM, signal.SIGINT)  # those that end a command


# ---- what is not installed


def installs(extra: str) -> str:
    """The command that installs an extra.

    Example:
        >>> installs("lora")
        "pip install -c constraints.txt -e '.[lora]'"
    """
    return f"pip install -c constraints.txt -e '.[{extra}]'"


def missing_extra(command: str, module: str, extra: str) -> ImportError:
    """What a command's module raises where it cannot import what its extra holds. Run as the command, it ends with one line.

    Args:
        module: its `__name__`.
    """
    message = f"{command}: error: the extra {extra!r} is not installed: {installs(extra)}"
    if module == "__main__":
        print(message, file=sys.stderr)
        sys.exit(2)
    return ImportError(message)


# ---- one writer to an output


@contextlib.contextmanager
def sole_writer(output: str | os.PathLike, wait: float = 1) -> Iterator[None]:
    """Hold the lock on an output, a file or a folder that need not be there yet.

    The lock file `.NAME.lock` lies beside the output, or, where nothing can be written there, `.lock` in it. The system
    releases the lock when the process ends, in whatever way; a normal end also removes the file. The process that removes it
    still holds the lock, and filelock does not lock a file that was removed: it opens the new one.

    Args:
        output: what is going to be written.
        wait: seconds to wait for another process.

    Raises:
        ValueError: another process holds the lock.
    """
    output = Path(os.path.realpath(output))
    parents = [folder for folder in output.parents if not folder.exists()]
    with contextlib.suppress(PermissionError):
        output.parent.mkdir(parents=True, exist_ok=True)
    lock = None
    try:
        lock = _lock(output, wait)
        yield
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(lock.lock_file)
            lock.release()
        for folder in parents:  # created here and still empty
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lock(output: Path, wait: float) -> FileLock | None:
    for path in (output.with_name(f".{output.name}.lock"), output / ".lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=wait, poll_interval=0.05)
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
        except Timeout as error:
            raise ValueError(
                f"{output} is being written by {_holder(path)}; wait until it has ended, end it, or choose another output"
            ) from error
        except OSError as error:
            lock.release()
            if error.errno not in NOT_WRITABLE:
                raise
        else:
            return lock
    return None


def _holder(lock_file: Path) -> str:
    try:
        pid, host = lock_file.read_text().split()[:2]
    except (OSError, ValueError):
        return "another process"
    return f"process {pid} on {host}"


# ---- ends by a signal


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


@contextlib.contextmanager
def ends_in_order() -> Iterator[None]:
    """SIGTERM raises Terminated, and Ctrl-C KeyboardInterrupt, so that locks and unfinished folders are removed. Signals that
    the parent process set to be ignored stay ignored."""

    def terminate(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    handlers = {signal.SIGTERM: terminate, signal.SIGINT: signal.default_int_handler}
    before = {signum: signal.getsignal(signum) for signum in handlers}
    for signum, handler in handlers.items():
        if before[signum] != signal.SIG_IGN:
            signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, handler_before in before.items():
            signal.signal(signum, handler_before)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """The exit code as a shell reports it: 128 plus the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def is_launched() -> bool:
    """Whether `accelerate launch` has started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def end_with(launcher: int) -> None:
    """Send this process SIGTERM once its parent, the process `launcher`, is gone.

    `accelerate launch` with one process does not pass SIGTERM on: its child would keep running.
    """

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


# ---- another process that is no more


def lost_process(error: BaseException) -> str | None:
    """The message for an error that another process of the run caused by ending, or for the launcher's signal in the middle of
    that error; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RuntimeError) and LOST_WORDS.search(str(cause)):
            return (
                "another process of this run has ended, and what it or the launcher said tells why; run the same command again "
                "to continue from the last checkpoint"
            )
        cause = cause.__cause__ or cause.__context__
    return None


# ---- a full disk


def no_space(error: BaseException, output: str | os.PathLike) -> str | None:
    """The message for an error that a full disk caused; None for any other error.

    Args:
        error: as it was raised; libraries reword it or wrap it in their own errors.
        output: where the command writes. If the error names no file, the full disk is this one or that of the caches and
            temporary files, whichever has less room.
    """
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in NO_SPACE) or NO_SPACE_WORDS.search(str(cause)):
            # In a copy, the second file is the one being written.
            named = cause.filename2 or cause.filename if isinstance(cause, OSError) else None
            places = [Path(os.fsdecode(named)).parent] if named else [output, HF_HOME, tempfile.gettempdir()]
            folder = min(places, key=_room)
            return f"no space left on the disk of {folder}: free some, then run the same command again"
        cause = cause.__cause__ or cause.__context__
    return None


def failed(command: str, error: Exception, output: str | os.PathLike) -> int:
    """Prints an error as one line, and returns the exit code 2; raises what nobody has foreseen again. Called where `error` is
    handled.

    Args:
        command: its name.
        error: as it was raised.
        output: where the command writes, as of `no_space`.
    """
    if (full := no_space(error, output)) is not None:
        print(f"\n{command}: error: {full}", file=sys.stderr)
    elif isinstance(error, (OSError, ValueError, TypeError, ImportError, pa.ArrowException)):
        print(f"{command}: error: {' '.join(str(error).split())}", file=sys.stderr)
    else:
        raise error
    return 2


def _room(folder: str | os.PathLike) -> int:
    """Bytes that are free on the disk where a folder is, or will be."""
    path = Path(folder).absolute()
    return shutil.disk_usage(next(there for there in (path, *path.parents) if there.exists())).free
