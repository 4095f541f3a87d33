"""The score command interrupted, killed and given again: the same bits, and nothing of another run."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from modeling_flip import CtrPredictionPipeline
from modeling_flip.serving import score
from tests.processes import ROOT, wait_until
from tests.serving.score.tiny import FIELDS, NUM_PARTS, NUM_ROWS, PART, TABLE, Run, error_of


@pytest.fixture
def straight(run: Run, tmp_path: Path) -> bytes:
    """What an uninterrupted run writes."""
    assert run() == 0
    return (tmp_path / "scores.parquet").rename(tmp_path / "straight.parquet").read_bytes()


@pytest.fixture
def scored_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each part held that was scored."""
    counts: list[int] = []
    probabilities = CtrPredictionPipeline.probabilities

    def counting(self: CtrPredictionPipeline, rows: Any, *args: Any) -> dict[str, np.ndarray]:
        result = probabilities(self, rows, *args)
        counts.append(len(rows))
        return result

    monkeypatch.setattr(CtrPredictionPipeline, "probabilities", counting)
    return counts


def interrupt_at(monkeypatch: pytest.MonkeyPatch, part: int) -> pytest.MonkeyPatch:
    """Ctrl-C while this part is scored."""
    preprocess, calls = CtrPredictionPipeline.preprocess, 0

    def interrupted(self: CtrPredictionPipeline, *args: Any, **kwargs: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls > part:
            raise KeyboardInterrupt
        return preprocess(self, *args, **kwargs)

    monkeypatch.setattr(CtrPredictionPipeline, "preprocess", interrupted)
    return monkeypatch


def test_the_same_command_continues(
    run: Run,
    straight: bytes,
    scored_rows: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        assert run() == 130
    assert "the same command continues" in error_of(capsys)
    assert not (tmp_path / "scores.parquet").exists()
    folder = tmp_path / "scores.parquet.parts"
    assert sorted(p.name for p in folder.iterdir()) == [*(f"part-{i:05d}.parquet" for i in range(3)), "run.json"]
    # Stopped while it wrote: what is half-written is no part.
    (folder / "part-00003.tmp").write_bytes(b"PAR1 and no more")
    assert scored_rows == [16] * 3
    assert run() == 0
    assert scored_rows == [16] * 6 + [4]
    assert (tmp_path / "scores.parquet").read_bytes() == straight
    assert not folder.exists()


@pytest.mark.parametrize("stage", ["ParquetWriter", "replace"])
def test_interrupted_at_the_end_the_output_is_never_half_written(
    run: Run, straight: bytes, scored_rows: list[int], tmp_path: Path, stage: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if stage == "ParquetWriter":
            write, calls = pq.ParquetWriter.write_table, 0

            def write_interrupted(self: Any, *args: Any, **kwargs: Any) -> None:
                nonlocal calls
                calls += 1
                if calls > NUM_PARTS + 3:  # each part is written by a writer of its own
                    raise KeyboardInterrupt
                write(self, *args, **kwargs)

            patch.setattr(pq.ParquetWriter, "write_table", write_interrupted)
        else:
            replace = Path.replace

            def replace_interrupted(self: Path, target: Path) -> Path:
                if Path(target).name == "scores.parquet":
                    raise KeyboardInterrupt
                return replace(self, target)

            patch.setattr(Path, "replace", replace_interrupted)
        assert run() == 130
    assert not (tmp_path / "scores.parquet").exists()
    assert len(scored_rows) == NUM_PARTS
    assert run() == 0
    assert len(scored_rows) == NUM_PARTS
    assert (tmp_path / "scores.parquet").read_bytes() == straight


@pytest.mark.slow
def test_a_killed_command_continues(
    run: Run, straight: bytes, checkpoint: Path, rows: Path, scored_rows: list[int], tmp_path: Path
) -> None:
    """In a process of its own, each part takes half a second."""
    slow = f"""
import sys, time
from modeling_flip import CtrPredictionPipeline
from modeling_flip.serving import score
score.ROWS_PER_PART = {PART}
forward = CtrPredictionPipeline._forward
CtrPredictionPipeline._forward = lambda self, inputs: time.sleep(0.5) or forward(self, inputs)
sys.exit(score.main(sys.argv[1:]))
"""
    arguments = ["--model", str(checkpoint), "--input", str(rows), "--output", str(tmp_path / "scores.parquet")]
    command = [sys.executable, "-c", slow, *arguments, "--batch_size", "4", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "scores.parquet.parts"
    wait_until((folder / "part-00001.parquet").exists)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(folder.glob("part-*.parquet")))
    assert 2 <= finished < NUM_PARTS
    assert not (tmp_path / "scores.parquet").exists()
    assert run() == 0
    assert len(scored_rows) == NUM_PARTS - finished
    assert (tmp_path / "scores.parquet").read_bytes() == straight


def test_another_command_does_not_continue(
    run: Run, checkpoint: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2)
        run()
    capsys.readouterr()
    before = {p.name: p.read_bytes() for p in (tmp_path / "scores.parquet.parts").iterdir()}
    retrained = shutil.copytree(checkpoint, tmp_path / "retrained")
    config = retrained / "config.json"
    others = {
        "batch_size": lambda: run("--batch_size", "8"),
        "return_towers": lambda: run("--return_towers"),
        "towers": lambda: run("--towers", "tabular"),
        "dtype": lambda: run("--dtype", "bfloat16"),
        "delimiter": lambda: run("--delimiter", ";"),
        "encoding": lambda: run("--encoding", "utf-8"),
        "model": lambda: run(model=retrained),
        "input": lambda: run(source=Path(shutil.copy(rows, tmp_path / "others.parquet"))),
    }
    for name, other in others.items():
        assert other() == 2
        assert re.search(rf"differs in .*\b{name}\b.*delete the folder", error_of(capsys))
    assert {p.name: p.read_bytes() for p in (tmp_path / "scores.parquet.parts").iterdir()} == before

    assert run(model=retrained, output="again.parquet") == 0  # as does a model that was trained on in its folder
    (tmp_path / "again.parquet").unlink()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2)
        run(model=retrained, output="again.parquet")
    capsys.readouterr()
    os.utime(config, ns=(0, 0))
    assert run(model=retrained, output="again.parquet") == 2
    assert "differs in model_files" in error_of(capsys)


def test_a_corrected_input_is_scored_anew_and_never_mixed_with_the_old(
    run: Run, scored_rows: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where its size and its time are those of the old one."""
    source = tmp_path / "rows.csv"

    def write(user: int) -> None:
        source.write_text("user_id,title\n" + f"{user},Toy Story\n" * NUM_ROWS)
        os.utime(source, ns=(10**18, 10**18))

    write(2)
    assert run(source=source) == 0
    straight = (tmp_path / "scores.parquet").rename(tmp_path / "straight.parquet").read_bytes()
    write(1)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        assert run(source=source) == 130
    scored_rows.clear()
    write(2)
    assert run(source=source) == 0
    assert "rows.csv has changed since part of it was scored: all of it is scored again" in caplog.text
    assert scored_rows == [16] * 6 + [4]
    assert (tmp_path / "scores.parquet").read_bytes() == straight


def test_an_input_that_was_only_touched_is_continued(run: Run, scored_rows: list[int], rows: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        assert run() == 130
    os.utime(rows, ns=(0, 0))
    assert run() == 0
    assert scored_rows == [16] * 6 + [4]


def kill_at(last: int, folder: Path, told: int) -> None:
    """Kill this process before its `last` change of a file in `folder`; what it changes is written to the file `told`."""
    events, seen = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"), 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in events or not str(arguments[0]).startswith(str(folder)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        seen += 1
        os.write(told, f"{event} {Path(arguments[0]).name}\n".encode())
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def killed_at_every_change(work: Callable[[], int], folder: Path) -> Iterator[list[str]]:
    """Run `work` in forks, the first killed before its first change of a file in `folder`, the next before its second, and so on
    until one is not killed; yields the changes, the last of which did not take place any more."""
    for last in itertools.count(1):
        reading, told = os.pipe()
        child = os.fork()
        if child == 0:
            kill_at(last, folder, told)
            try:
                os._exit(work())
            finally:
                os._exit(70)
        os.close(told)
        with open(reading) as pipe:
            seen = pipe.read().splitlines()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), seen
        if status == 0:
            return
        yield seen


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_killed_at_any_change_of_a_file_the_same_command_gives_the_same_bits(
    run: Run,
    rows: Path,
    pipe: CtrPredictionPipeline,
    tmp_path: Path,
    suffix: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(score, "load_pipeline", lambda *_, **__: pipe)  # once for all
    monkeypatch.setattr(score, "ROWS_PER_PART", 40)
    pq.write_table(TABLE.select(FIELDS), rows)
    output = f"scores{suffix}"
    assert run(output=output) == 0
    straight = (tmp_path / output).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([rows.name, output])
    (tmp_path / output).unlink()
    kills = 0
    for seen in killed_at_every_change(lambda: run(output=output), tmp_path):
        kills += 1
        is_there = (tmp_path / output).exists()
        assert not is_there or (tmp_path / output).read_bytes() == straight, seen
        # The record, which tells whose the output is, goes before the empty folder and the lock: that is as after a normal end.
        recorded = seen[-1].split()[-1] not in (f"{output}.parts", f".{output}.lock")
        assert run(output=output) == (0 if recorded or not is_there else 2), seen
        told = capsys.readouterr().err
        assert recorded or not is_there or "exists; delete it" in told
        assert (tmp_path / output).read_bytes() == straight, seen
        (tmp_path / output).unlink()
        left = {p.name for p in tmp_path.iterdir()} - {rows.name}
        assert left <= {f".{output}.lock"} if is_there and not recorded else not left, (seen, left)
        (tmp_path / f".{output}.lock").unlink(missing_ok=True)
    assert kills > 20


def test_an_output_that_the_killed_run_did_not_make_is_not_taken_for_its_own(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)
        assert run() == 130
    capsys.readouterr()
    (tmp_path / "scores.parquet").write_text("mine")
    assert run() == 2
    assert "scores.parquet exists; delete it" in error_of(capsys)
    assert len(list((tmp_path / "scores.parquet.parts").glob("part-*.parquet"))) == 3
    (tmp_path / "scores.parquet").unlink()
    assert run() == 0


def test_a_second_command_with_the_same_output_is_refused_while_the_first_runs(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[int] = []
    load = score.load_pipeline

    def second(*args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(score, "load_pipeline", load)
            inner.append(run())
        return load(*args, **kwargs)

    monkeypatch.setattr(score, "load_pipeline", second)
    assert run() == 0 and inner == [2]
    assert f"scores.parquet is being written by process {os.getpid()} on " in error_of(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.parquet", "scores.parquet"]


def test_a_folder_of_somebody_elses_is_left_alone(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "scores.parquet.parts"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    assert run() == 2
    assert "holds other files" in error_of(capsys)
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").rename(folder / "run.json.tmp")  # begun, and stopped at once
    assert run() == 0


def test_what_a_run_depends_on_is_noted(run: Run, checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 1)
        run()
    noted = json.loads((tmp_path / "scores.parquet.parts" / "run.json").read_text())
    assert noted["input"] == str(rows) and noted["input_sha256"] == hashlib.sha256(rows.read_bytes()).hexdigest()
    assert noted["model"] == str(checkpoint) and {"config.json", "model.safetensors"} <= noted["model_files"].keys()
    assert (noted["batch_size"], noted["return_towers"], noted["dtype"]) == (4, False, "auto")


def test_a_model_of_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def cached_file(*where: str, **kwargs: Any) -> str:
        asked.append((where, kwargs))
        return f"/cache/models--me--clicks/snapshots/{commit}/config.json"

    monkeypatch.setattr(score, "cached_file", cached_file)
    assert score.model_version("me/clicks", "v1") == {"model": "me/clicks", "revision": commit}
    assert asked == [(("me/clicks", "config.json"), {"revision": "v1"})]
