"""The gradient of rows that are gathered from processes with different numbers of them, by finite differences."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from modeling_flip.objectives import GatherRows
from tests.processes import environment

ROWS, SIZE, EPSILON = [2, 0, 1], 3, 1e-6


def total(rows: torch.Tensor) -> torch.Tensor:
    """This process's loss, another function of all rows in each process."""
    gathered = GatherRows.apply(rows, ROWS)
    weights = torch.arange(1.0, gathered.numel() + 1, dtype=rows.dtype).view_as(gathered)
    return ((gathered * weights * (dist.get_rank() + 1)).sin()).sum()


def everyones(rows: torch.Tensor) -> float:
    loss = total(rows).detach()
    dist.all_reduce(loss)
    return loss.item()


def check(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(ROWS))
    rows = torch.randn(ROWS[rank], SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))
    rows.requires_grad_()
    total(rows).backward()
    gradient = rows.grad if rows.grad is not None else torch.zeros_like(rows)
    for owner, number in enumerate(ROWS):
        for i in range(number):
            for j in range(SIZE):
                change = torch.zeros_like(rows)
                if owner == rank:
                    change[i, j] = EPSILON
                slope = (everyones(rows.detach() + change) - everyones(rows.detach() - change)) / (2 * EPSILON)
                if owner == rank:
                    assert gradient[i, j].item() == pytest.approx(slope, abs=1e-6)
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_gradient_of_gathered_rows_is_that_of_all_processes_losses(tmp_path: Path) -> None:
    """The three are forked from one that has computed nothing: the imports take longer than all else."""
    script = f"""
import test_gather
from torch.multiprocessing import start_processes
start_processes(test_gather.check, ({str(tmp_path / "store")!r},), nprocs={len(ROWS)}, start_method="fork")
"""
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(Path(__file__).parent)])
    done = subprocess.run([sys.executable, "-c", script], env=environment() | {"PYTHONPATH": paths}, timeout=300)
    assert done.returncode == 0
