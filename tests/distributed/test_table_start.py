"""How processes come by their rows of a table: those of the first process's, of which no device holds the whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_flip.feature_embeddings import FeatureTable
from modeling_flip.training import sharded_tables
from tests.processes import finish

PROCESSES, SIZE = 4, 6
NUMBERS_OF_ROWS = [3, 9, 10, 12]  # the last process has none, none, one and three
# Not the host's "cpu" to torch: what is put there is copied, as to a GPU.
DEVICE = torch.device("cpu", 0)
# One process imports for all of them.
FORKED = """
import sys
from torch.multiprocessing import start_processes
from tests.distributed.test_table_start import PROCESSES, check

start_processes(check, sys.argv[1:], PROCESSES, start_method="fork")
"""


class Made(TorchDispatchMode):
    """The bytes of each tensor that is made within, in memory of its own."""

    def __init__(self, there: torch.Tensor) -> None:
        super().__init__()
        self.there, self.sizes = there.untyped_storage().data_ptr(), list[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # Of a DTensor only the rows are there, which were made before it; integers are the mesh's.
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor) and tensor.is_floating_point():
                storage = tensor.untyped_storage()
                self.sizes += [storage.nbytes()] * (storage.data_ptr() != self.there)
        return result


def check(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    sharded_tables.CHUNK = 2 * SIZE * 4  # rows are sent in twos
    for number in NUMBERS_OF_ROWS:
        of_first, of_this = (torch.arange(number * SIZE).view(number, SIZE) + 1000.0 * of for of in (0, rank))
        table = FeatureTable(number, SIZE)
        table.weight.data.copy_(of_this)
        with Made(table.weight.data) as made:
            sharded_tables.shard_tables(nn.Sequential(table), DEVICE)
        weight: Any = table.weight
        torchs = distribute_tensor(of_first, init_device_mesh("cpu", (PROCESSES,)), [Shard(0)])
        assert torch.equal(weight.to_local(), torchs.to_local())
        assert weight.shape == torchs.shape and weight.stride() == torchs.stride() and weight.requires_grad
        assert torch.equal(weight.full_tensor(), of_first)
        largest = max(torchs.to_local().nbytes, sharded_tables.CHUNK if rank == 0 else 0)
        assert max(made.sizes, default=0) <= largest, (number, rank, made.sizes)
    dist.destroy_process_group()


@pytest.mark.slow
def test_each_process_has_its_rows_of_the_first_ones_table_and_none_puts_all_on_its_device(tmp_path: Path) -> None:
    finish([sys.executable, "-c", FORKED, str(tmp_path / "store")])
