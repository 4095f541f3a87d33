"""What the commands share: a lock that goes with its process, ends by a signal, and full disks in whatever words they come."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from modeling_flip import commands
from modeling_flip.commands import Terminated, end_with, ends_in_order, exit_code, lost_process, no_space, sole_writer
from tests.processes import wait_until


def forked(work: Callable[[], object]) -> int:
    """Start `work` in a fork of this process, which ends with 0 if it did not fail."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def exit_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---- one writer


def test_nothing_is_left_of_a_lock(tmp_path: Path) -> None:
    output = tmp_path / "runs" / "today" / "out"
    with sole_writer(output):  # and the recipe is refused
        assert (tmp_path / "runs" / "today" / ".out.lock").exists()
    assert not list(tmp_path.iterdir())
    with sole_writer(output):
        output.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "today", "out"]


@pytest.mark.parametrize("name", ["out", "link", "folder/../out"])
def test_the_second_is_told_who_writes(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("out")
    remedy = "wait until it has ended, end it, or choose another output"
    with sole_writer(tmp_path / "out"):
        with (
            pytest.raises(ValueError, match=f"out is being written by process {os.getpid()} on .+; {remedy}$"),
            sole_writer(tmp_path / name, wait=0),
        ):
            pass
        with sole_writer(tmp_path / "other"):  # is another
            pass
    with sole_writer(tmp_path / name):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    def work() -> None:
        with sole_writer(tmp_path / "out"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_of(forked(work)) == -signal.SIGKILL
    assert (tmp_path / ".out.lock").exists()
    with sole_writer(tmp_path / "out", wait=0):
        pass
    assert not list(tmp_path.iterdir())


def test_the_children_of_a_killed_process_do_not_keep_its_lock(tmp_path: Path) -> None:
    """Such as the workers that read its rows."""

    def work() -> None:
        with sole_writer(tmp_path / "out"):
            worker = forked(lambda: time.sleep(60))
            (tmp_path / "worker.tmp").write_text(str(worker))
            (tmp_path / "worker.tmp").rename(tmp_path / "worker")
            os.kill(os.getpid(), signal.SIGKILL)

    exit_of(forked(work))
    try:
        with sole_writer(tmp_path / "out", wait=0):
            pass
    finally:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_removing_the_file_lets_no_two_in(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")

    def work() -> None:
        for _ in range(50):
            with sole_writer(tmp_path / "out", wait=60):
                before = int(counter.read_text())
                time.sleep(0.0005)
                counter.write_text(str(before + 1))

    children = [forked(work) for _ in range(4)]
    assert [exit_of(child) for child in children] == [0] * 4
    assert counter.read_text() == "200"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_where_nothing_can_be_written_beside_an_output_the_lock_is_in_it_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounted" / "out").mkdir(parents=True)
    acquire = commands.FileLock.acquire

    def read_only(self: commands.FileLock, *args: object, **kwargs: object) -> object:
        if Path(self.lock_file).parent.name != "out":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.lock_file)
        return acquire(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(commands.FileLock, "acquire", read_only)
    with sole_writer(tmp_path / "mounted" / "out"):
        assert (tmp_path / "mounted" / "out" / ".lock").exists()
        with (
            pytest.raises(ValueError, match="is being written by process"),
            sole_writer(tmp_path / "mounted" / "out", wait=0),
        ):
            pass
    assert not list((tmp_path / "mounted" / "out").iterdir())
    with sole_writer(tmp_path / "mounted" / "nothing"):
        pass
    assert not (tmp_path / "mounted" / "nothing").exists()


# ---- signals


def test_sigterm_ends_as_an_interrupt_with_its_own_code() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as terminated, ends_in_order():
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit_code(terminated.value) == 143 and exit_code(KeyboardInterrupt()) == 130
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_ignored_stays_ignored() -> None:
    """As a shell has it for Ctrl-C in what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ends_in_order():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_ends_with_its_launcher(tmp_path: Path) -> None:
    def launched(parent: int) -> None:
        end_with(parent)
        (tmp_path / "begun").touch()
        try:
            with ends_in_order():
                time.sleep(60)
        except Terminated:
            (tmp_path / "ended").touch()

    def launcher() -> None:
        parent = os.getpid()
        forked(lambda: launched(parent))
        wait_until((tmp_path / "begun").exists)

    assert exit_of(forked(launcher)) == 0
    wait_until((tmp_path / "ended").exists)


# ---- another process that is no more


GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:{}] "


@pytest.mark.parametrize(
    "told",
    [
        GLOO.format(553)
        + "Connection closed by peer [127.0.0.1]:41866. This is typically caused by a remote worker crashing.",
        GLOO.format(537) + "Read error [127.0.0.1]:24284: Connection reset by peer.",
        GLOO.format(150) + "Write error [127.0.0.1]:24284: Broken pipe",
    ],
)
def test_a_process_that_is_no_more_is_told_of(told: str) -> None:
    for error in (RuntimeError(told), raised_from(Terminated(), RuntimeError(told))):
        assert str(lost_process(error)).startswith("another process of this run has ended")


def test_other_errors_are_not_lost_processes() -> None:
    for error in (RuntimeError("size mismatch"), ConnectionResetError(104, "Connection reset by peer")):
        assert lost_process(error) is None


# ---- full disks


def raised_from(error: BaseException, cause: Exception) -> BaseException:
    try:
        raise error from cause
    except BaseException as raised:
        return raised


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/runs/model.safetensors")


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        raised_from(ValueError("cannot be read"), FULL),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/data/runs/x"),
        OSError(
            errno.ENOSPC, os.strerror(errno.ENOSPC), "/code/x.py", None, "/data/runs/x.py"
        ),  # copied from, copied to
    ],
)
def test_the_folder_of_the_file_that_had_no_room_is_named(error: Exception) -> None:
    told = "no space left on the disk of /data/runs: free some, then run the same command again"
    assert no_space(error, "/data/other") == told


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError(
            "[enforce fail at inline_container.cc:863] . PytorchStreamWriter failed writing file data/3: file"
        ),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ],
)
def test_where_no_file_is_named_the_fullest_disk_is(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, cache = tmp_path / "out" / "later", tmp_path / "cache"
    monkeypatch.setattr(commands, "HF_HOME", str(cache))
    room = {output: 5, cache: 9}
    monkeypatch.setattr(commands, "_room", lambda folder: room.get(Path(folder), 10))
    assert str(output) in str(no_space(error, output))
    room[cache] = 0
    assert str(cache) in str(no_space(error, output))


def test_other_errors_are_not_full_disks(tmp_path: Path) -> None:
    for error in (ValueError("28"), FileNotFoundError(errno.ENOENT, "none"), RuntimeError("CUDA out of memory")):
        assert no_space(error, tmp_path) is None
