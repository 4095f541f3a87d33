"""Tables of features larger than a device: each process holds the rows of a range of features, with DTensor.

A lookup sends the ids of all processes to all, each reads the rows that it holds, and each process gets back those of its own ids
(what `RowwiseParallel` of torch does, for numbers of ids that differ between processes).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..feature_embeddings import FeatureTable
from .sparse import feature_tables

# Rows that one process sends to another at a time, in bytes.
CHUNK = 2**26


class ShardedTable(FeatureTable):
    """A table whose weight (M, d) is a DTensor of which this process holds the rows of a range of features.

    All processes look up together, as often; any of them may look up nothing.
    """

    weight: Any  # a DTensor in a Parameter

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (…) of this process → (…, d)."""
        mesh = self.weight.device_mesh
        number = torch.tensor(ids.numel(), device=ids.device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        padded = F.pad(ids.flatten(), (0, int(number) - ids.numel()))
        everyones = DTensor.from_local(padded, mesh, [Shard(0)], run_check=False).redistribute(placements=[Replicate()])
        rows: Any = F.embedding(everyones, self.weight)
        rows = rows.redistribute(placements=[Shard(0)]).to_local()
        return _Mean.apply(rows, mesh.size())[: ids.numel()].reshape(*ids.shape, self.embedding_dim)

    def squared_norm(self) -> torch.Tensor:
        total = self.weight.square().sum().full_tensor(grad_placements=[Partial()])
        return _Mean.apply(total, self.weight.device_mesh.size())


class _Mean(torch.autograd.Function):
    """The same tensor. Its gradient, which DTensor adds up over processes, is averaged, as DistributedDataParallel does with all
    others."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, processes: int) -> torch.Tensor:
        ctx.processes = processes
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient / ctx.processes, None


def shard_tables(model: nn.Module, device: torch.device) -> None:
    """Leaves each process the rows of its features on the device, of the tables as they are on the first process; the whole
    tables stay where they are."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    tables = feature_tables(model)
    for table in tables.values():
        own = _scattered(table.weight.data, device)
        given: dict[str, Any] = {"shape": table.weight.shape, "stride": own.stride(), "run_check": False}
        table.weight = nn.Parameter(DTensor.from_local(own, mesh, [Shard(0)], **given))
        table.__class__ = ShardedTable
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [f"{name}.weight" for name in tables])


def _scattered(whole: torch.Tensor, device: torch.device) -> torch.Tensor:
    """This process's rows, on its device, of the whole table of the first one, whose device holds no more than a chunk of the
    others'."""
    ranges, rank = _ranges(len(whole), dist.get_world_size()), dist.get_rank()
    parts = whole.split([stop - start for start, stop in ranges])
    own = torch.empty(parts[rank].shape, dtype=whole.dtype, device=device)
    if rank:
        for chunk in _chunks(own):
            dist.recv(chunk, 0)
        return own
    own.copy_(parts[0])
    for process, part in enumerate(parts[1:], start=1):
        for chunk in _chunks(part):
            dist.send(chunk.to(device).contiguous(), process)
    return own


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights on the main process, its tables in host memory; nothing on the others. All processes must ask."""
    is_main = dist.get_rank() == 0
    weights = dict[str, Any]()
    for name, weight in model.state_dict().items():
        weight = _gathered(weight) if isinstance(weight, DTensor) else weight
        if is_main:
            weights[name] = weight
    return weights


def _gathered(weight: DTensor) -> torch.Tensor | None:
    """The whole weight on the CPU of the main process, which holds no more than a chunk of it on its device."""
    mine, is_main = weight.to_local(), dist.get_rank() == 0
    if not is_main:
        for chunk in _chunks(mine):
            dist.send(chunk.contiguous(), 0)
        return None
    whole = torch.empty(weight.shape, dtype=weight.dtype)
    parts = whole.split([stop - start for start, stop in _ranges(len(whole), dist.get_world_size())])
    parts[0].copy_(mine)
    for process, part in enumerate(parts[1:], start=1):
        for chunk in _chunks(part):
            received = torch.empty_like(chunk, device=mine.device)
            dist.recv(received, process)
            chunk.copy_(received)
    return whole


def _ranges(rows: int, processes: int) -> list[tuple[int, int]]:
    """The first row of each process, and the one behind its last, as `Shard(0)` has them."""
    each = math.ceil(rows / processes)
    return [(min(p * each, rows), min((p + 1) * each, rows)) for p in range(processes)]


def _chunks(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return rows.split(max(1, CHUNK // (rows.shape[1] * rows.element_size()))) if len(rows) else ()


def load_weights(model: nn.Module, files: list[Path]) -> None:
    """Reads a checkpoint's weights, and of its tables the rows of this process alone."""
    tables = {name: weight for name, weight in model.named_parameters() if isinstance(weight, DTensor)}
    others = {}
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 # what safe_open gives is no dictionary
                if name in tables:
                    start, stop = _ranges(len(tables[name]), dist.get_world_size())[dist.get_rank()]
                    tables[name].to_local().data.copy_(weights.get_slice(name)[start:stop])
                else:
                    others[name] = weights.get_tensor(name)
    model.load_state_dict(others, strict=False)


def keep_parts_of_state(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's `state_dict` holds this process's rows of the state of tables as plain tensors, and takes such."""

    def to_parts(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        return state_dict | {"state": _each(state_dict["state"], lambda _number, _key, x: _local(x))}

    def from_parts(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def of_table(number: int, key: str, value: Any) -> Any:
            table = parameters[number]
            if not (isinstance(table, DTensor) and isinstance(value, torch.Tensor) and value.ndim):
                return value
            given: dict[str, Any] = {"shape": table.shape, "stride": table.stride(), "run_check": False}
            return DTensor.from_local(value.to(table.device), table.device_mesh, table.placements, **given)

        return state_dict | {"state": _each(state_dict["state"], of_table)}

    optimizer.register_state_dict_post_hook(to_parts)
    optimizer.register_load_state_dict_pre_hook(from_parts)


def save_state(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """This process's rows of the state of tables. Trainer saves the first one's, and all else."""
    state = optimizer.state_dict()["state"]
    named = {
        f"{number}.{key}": x for number, of in state.items() for key, x in of.items() if isinstance(x, torch.Tensor)
    }
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, file)


def load_state(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """In an optimizer that has loaded the first process's state, take this one's rows instead."""
    saved, state_dict = load_file(file), optimizer.state_dict()
    state = _each(state_dict["state"], lambda number, key, x: saved.get(f"{number}.{key}", x))
    optimizer.load_state_dict(state_dict | {"state": state})


def _local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def _each(state: dict[int, dict[str, Any]], change: Any) -> dict[int, dict[str, Any]]:
    return {number: {key: change(number, key, x) for key, x in of.items()} for number, of in state.items()}
