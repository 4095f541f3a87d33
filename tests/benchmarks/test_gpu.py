"""The run on a machine with a GPU, at a tiny size on a CPU: what is carried, slices, what comes back, and what is measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

import train
from benchmarks import protocol, reproduce
from benchmarks.gpu import carry, run, speed
from benchmarks.paper_runs import system
from benchmarks.protocol import Bench
from benchmarks.small_text_model import SMALL
from modeling_flip.training import trainer
from tests.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--finetuning.num_train_epochs", "3", "--finetuning.per_device_train_batch_size", "64", "--use_cpu"]
TINY += ["--model.embedding_size", "4", "--model.hidden_sizes", "[8]"]


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MovieLens-1M's files: 20 users, 15 films, 400 ratings."""
    folder, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
    users = [f"{u}::{'FM'[u % 2]}::25::{u}::{u:05}" for u in range(1, 21)]
    movies = [f"{m}::Film {m} (1999)::{'Drama' if m % 2 else 'Comedy'}" for m in range(1, 16)]
    ratings = [f"{rng.integers(1, 21)}::{rng.integers(1, 16)}::{rng.integers(1, 6)}::{t}" for t in range(400)]
    for name, lines in {"users": users, "movies": movies, "ratings": ratings}.items():
        (folder / f"{name}.dat").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def carried(raw_dir: Path, tiny_text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("carried")
    carry.fill(folder, raw_dir, tiny_text_model, [], "3.12")
    return folder


# ---- slices


class EndedBySignalError(BaseException):
    """Ends the whole slice, as the signal to the process group does."""


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Slices run here instead of in processes of their own, which import for seconds each."""

    def train_here(*arguments: str) -> int:
        try:
            train.main(list(arguments))
        except SystemExit as end:
            if end.code == 128 + signal.SIGTERM:
                raise EndedBySignalError from end
            raise
        return 0

    def run_until(command: Sequence[str], ends: float, log: Path) -> int | None:
        assert command[1:3] == ["-m", "benchmarks.reproduce"]
        try:
            reproduce.main(command[3:])
        except EndedBySignalError:
            return None
        return 0

    monkeypatch.setattr(protocol, "launch", train_here)
    monkeypatch.setattr(run, "run_until", run_until)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and SIGTERM comes right after the next checkpoint."""
    pending: list[bool] = []
    seal = trainer.seal

    def seal_and_end(checkpoint: Path) -> None:
        seal(checkpoint)
        if pending:
            pending.pop()
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trainer, "seal", seal_and_end)
    return lambda: pending.append(True)


def run_slice(carried: Path, output_dir: str, *options: str) -> dict[str, Any]:
    given = [str(carried), "--output_dir", output_dir, "--here", "--systems", "dcnv2", "--work_dir", "work", *options]
    run.main([*given, "--", *TINY])
    return dict(json.loads(Path(output_dir, "summary.json").read_text()))


def without_times(figures: Any) -> Any:
    if isinstance(figures, Mapping):
        timed = re.compile("wall_time|resumed|.*(_per_second|_seconds)")
        return {key: without_times(value) for key, value in figures.items() if not timed.fullmatch(key)}
    return [without_times(value) for value in figures] if isinstance(figures, list) else figures


def test_slices_end_with_what_one_run_would(
    carried: Path, in_this_process: None, interrupt: Callable[[], None]
) -> None:
    result, trial = (
        Path("work/results/movielens-1m/dcnv2-1.json"),
        Path("work/models/movielens-1m/dcnv2-trial-0-seed-1"),
    )
    summary = run_slice(carried, "whole")
    assert summary["exit_code"] == 0
    expected = json.loads(result.read_text())
    assert summary["results"]["dcnv2-1"]["test_auc"] == expected["test_auc"]
    shutil.rmtree("work")

    interrupt()
    summary = run_slice(carried, "first")
    assert summary["exit_code"] is None and not result.exists()
    assert list(summary["packed_mib"]) == ["results", "models/movielens-1m/dcnv2-trial-0-seed-1/checkpoints/finetuning"]
    shutil.rmtree("work")  # the next machine is bare

    assert run_slice(carried, "second", "--from", "first")["exit_code"] == 0
    assert json.loads((trial / "all_results.json").read_text())["resumed"]
    assert without_times(json.loads(result.read_text())) == without_times(expected)
    with pytest.raises(ValueError, match="work has runs already"):
        run_slice(carried, "third", "--from", "second")


def test_the_command_of_a_slice_gives_the_papers_batch(
    carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run_until(command: list[str], ends: float, log: Path) -> int:
        commands.append(command)
        return 0

    monkeypatch.setattr(run, "run_until", run_until)
    run.main([str(carried), "--output_dir", str(tmp_path / "out"), "--here", "--work_dir", str(tmp_path / "work")])
    (command,) = commands
    bench = Bench(tmp_path, tmp_path, command[command.index("--") + 1 :])
    for name in ("flip-id", "flip", "flip-plm"):
        recipe = bench.recipe(system("movielens-1m", "paper", name), 1)
        assert recipe.pretraining is not None
        assert recipe.pretraining["per_device_train_batch_size"] == 1024
        assert recipe.pretraining["num_train_epochs"] == 30
        assert recipe.finetuning["per_device_train_batch_size"] == 256
        assert recipe.raw_dir == str(carried / "raw")
    # An argument of the pretraining does not make an ID model pretrain.
    for name in ("dcnv2", "morec"):
        assert bench.recipe(system("movielens-1m", "paper", name), 1).pretraining is None


def test_systems_of_the_recipe_share_a_pretraining(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "results", tmp_path / "models")
    flip_id, flip = (system("movielens-1m", "paper", name) for name in ("flip-id", "flip"))
    for settings, name in ([], "flip-id-trial-0-seed-1"), (["--refit", "2.0"], "flip-id-1"):
        folder = bench.folder("movielens-1m", name)
        (folder / "pretraining").mkdir(parents=True)
        results = {"recipe": bench.recipe(flip_id, 1, *settings).to_dict()}
        (folder / "all_results.json").write_text(json.dumps(results))
    for settings, name in ([], "flip-id-trial-0-seed-1"), (["--refit", "5.0"], "flip-id-1"):
        assert (
            bench.pretraining_for(bench.recipe(flip, 1, *settings))
            == bench.folder("movielens-1m", name) / "pretraining"
        )


def test_a_slice_ends_with_all_its_processes(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert run.run_until(["sh", "-c", "echo begun; exit 3"], float("inf"), log) == 3
    assert log.read_text() == "begun\n"
    assert run.run_until(["sh", "-c", "sleep 600 & echo $!; wait"], time.monotonic() + 1.5, log) is None
    child = int(log.read_text().split()[-1])
    wait_until(lambda: has_ended(child), seconds=10)  # its pipe ends a moment before it does


def has_ended(process: int) -> bool:
    try:
        return "zombie" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


# ---- what comes back


def test_what_is_needed_first_is_packed_first(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    files = {
        "results/d/a-1.json": 10,
        "models/d/a-1/recipe.yaml": 10,
        "models/d/a-1/manifests/prepare.json": 10,
        "models/d/a-1/model.safetensors": 3000,
        "models/d/a-1/pretraining/model.safetensors": 3000,
        "models/d/a-1/pretraining/config.json": 10,
        "models/d/a-1/checkpoints/pretraining/checkpoint-9/optimizer.pt": 3000,  # it has ended
        "models/d/b-1/checkpoints/pretraining/checkpoint-1/optimizer.pt": 90_000,
        "models/d/b-1/checkpoints/pretraining/checkpoint-2/optimizer.pt": 90_000,
        "models/d/b-1/.pretraining/model.safetensors": 3000,
        "environment/lib/huge.so": 3000,
    }
    for name, size in files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    out.mkdir()
    (out / "state.tar.99").write_text("of an earlier slice")
    summary = run.pack(work, out, total_mib=0.1, part_mib=0.01)
    assert list(summary["packed_mib"]) == ["results", "models/d/a-1/pretraining", "models/d/a-1/model"]
    assert list(summary["left_behind_mib"]) == ["models/d/b-1/checkpoints/pretraining"]
    parts = sorted(out.iterdir())
    assert len(parts) > 1 and max(part.stat().st_size for part in parts) <= 0.01 * run.MIB

    run.unpack(out, tmp_path / "again")
    found = {p.relative_to(tmp_path / "again").as_posix(): p for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert sorted(found) == sorted(list(files)[:6])
    assert all(path.read_bytes() == (work / name).read_bytes() for name, path in found.items())


def test_results_without_a_commit_get_the_carried_one(tmp_path: Path) -> None:
    figures = {"test_auc": 0.8, "test_logloss": 0.4, "wall_time": {"total_seconds": 5.0}}
    for name, commit in {"a": None, "b": "own"}.items():
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / f"{name}-1.json").write_text(json.dumps(figures | {"commit": commit}))
    (tmp_path / "d" / "comparisons.json").write_text("{}")
    shown = run.name_commit(tmp_path, "carried")
    assert shown["a-1"] == {"test_auc": 0.8, "test_logloss": 0.4, "seconds": 5.0}
    commits = [json.loads((tmp_path / "d" / f"{name}-1.json").read_text())["commit"] for name in "ab"]
    assert commits == ["carried", "own"]


# ---- what is carried


def test_what_the_machine_has_stays_behind() -> None:
    found = dict(package.split("==") for package in carry.pinned(["torch", "matplotlib"], "3.12"))
    assert not {"torch", "matplotlib", "pillow"} & found.keys()
    # Two through extras, the second of a package that others need without it: jsonargparse[signatures], fsspec[http].
    assert {"docstring-parser", "aiohttp", "pyarrow", "tokenizers"} <= found.keys()
    assert "pillow" in {package.split("==")[0] for package in carry.pinned(["torch"], "3.12")}
    tested = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()[1:])
    assert all(found[name] == tested[name] for name in found.keys() & tested.keys())


def test_a_text_tower_is_made_of_the_rows(raw_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry, "TINYBERT", SMALL)
    carry.fill(tmp_path / "carried", raw_dir, None, [], "3.12")
    model = AutoModel.from_pretrained(tmp_path / "carried" / "text-model")
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 128)
    assert model.dtype == torch.float16
    assert sorted(path.name for path in (tmp_path / "carried" / "raw").iterdir()) == [
        "movies.dat",
        "ratings.dat",
        "users.dat",
    ]


# ---- what is measured


def test_workers_are_tried_with_the_fastest_settings(capsys: pytest.CaptureFixture[str]) -> None:
    class Fake:
        def speed(self, **settings: Any) -> float:
            if settings["torch_compile"]:
                raise RuntimeError("no compiler")
            return 1.0 + settings["bf16"] + settings["dataloader_num_workers"]

    cells = speed.time_pretraining(Fake())  # type: ignore[arg-type]
    assert len(cells) == 10
    assert all("no compiler" in cell["error"] for cell in cells if cell["torch_compile"])
    for cell, workers in zip(cells[8:], (4, 8), strict=True):
        assert cell["bf16"] and not cell["torch_compile"] and cell["dataloader_num_workers"] == workers
    assert "failed" in capsys.readouterr().out


def test_speed_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precisions = []

    class Trainer(speed.ShortTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            precisions.append(self.accelerator.mixed_precision)
            return super().train(*args, **kwargs)

    monkeypatch.setattr(speed, "ShortTrainer", Trainer)
    monkeypatch.setattr(speed, "COLLATED", 16)
    monkeypatch.setattr(speed, "WORKERS", ())
    monkeypatch.setattr(speed, "AT_ONCE", ())
    monkeypatch.setattr(speed, "FINETUNING_BATCH", 16)
    grid = {"bf16": (True, False), "torch_compile": (False,), "train_sampling_strategy": ("group_by_length",)}
    monkeypatch.setattr(speed, "GRID", grid)
    speed.main(["--batch_size", "4", "--steps", "1", "--json", str(tmp_path / "speed.json")])
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert precisions == ["bf16", "no"]  # the first cell's does not stay
    assert [cell["bf16"] for cell in figures["pretraining"]] == [True, False]
    best = max(cell["samples_per_second"] for cell in figures["pretraining"])
    rate = best * figures["gflop_per_sample"] / 1e3
    assert figures["share_of_products"] == pytest.approx(rate / figures["matrix_product_tflops"])
    assert figures["collator_rows_per_second"] > 0
    assert figures["device"].startswith("CPU")
    waited: list[bool] = []
    assert speed.finetuning_speed(2, lambda: waited.append(True)) > 0
    assert waited == [True]
