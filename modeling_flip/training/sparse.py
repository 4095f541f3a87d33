"""Steps that touch only the rows of a table that the batch looked up, in memory and in time.

Tables of features (`FeatureTable`) then have sparse gradients, and these optimizers update the rows that stand in them:

- `SparseSGD` and `SparseAdagrad` compute what torch.optim's SGD and Adagrad do, in which too a row without a gradient stands
  still.
- `SparseAdamW` is lazy, as TensorFlow's LazyAdam and torch.optim.SparseAdam are: a row's moments decay, and the row moves, only
  in steps that look it up; torch.optim.AdamW moves every row in every step. The second moment is one number a row, of the mean
  square of the row's gradient, as in FBGEMM's partial row-wise Adam: with the moments a table is kept twice, not three times.

Weight decay is of the rows that are looked up. All other parameters are updated as torch.optim does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..feature_embeddings import FeatureEmbeddings, FeatureTable


def feature_tables(model: nn.Module) -> dict[str, FeatureTable]:
    """A model's tables of features, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FeatureTable)}


@contextmanager
def sparse_gradients(model: nn.Module) -> Iterator[None]:
    """Within, the gradients of a model's tables of features are sparse.

    DistributedDataParallel, which on GPUs cannot reduce such gradients, leaves them to `reduce_sparse_gradients`, and that the
    tables start alike on all processes to this.
    """
    tables = feature_tables(model)
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, [f"{name}.weight" for name in tables])
    for table in tables.values():
        table.sparse = True
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(table.weight.data, src=0)
    try:
        yield
    finally:
        ignore(model, [])
        for table in tables.values():
            table.sparse = False


def reduce_sparse_gradients(model: nn.Module, accelerator: Accelerator, embedding_l2: float) -> None:
    """Make each sparse gradient the mean over all processes, with one row for each feature that any of them looked up in this
    step, and add that of the penalty λ/2 Σ (‖e‖² + w²) over these features: once for each, however many processes, parts and
    accumulated batches looked it up."""
    modules = model.modules() if embedding_l2 else ()
    embeddings = [module for module in modules if isinstance(module, FeatureEmbeddings)]
    penalised = {table for module in embeddings for table in module.tables}
    if accelerator.scaler is not None:  # fp16's gradients are scaled until the step
        embedding_l2 *= accelerator.scaler.get_scale()
    for table in feature_tables(model).values():
        gradient = table.weight.grad
        if gradient is None or not gradient.is_sparse:
            continue
        gradient = gradient.coalesce()
        if accelerator.num_processes > 1:
            # Processes have looked up different numbers of rows; gathering takes equal ones.
            rows = accelerator.gather(accelerator.pad_across_processes(gradient.indices()[0], pad_index=-1))
            values = accelerator.gather(accelerator.pad_across_processes(gradient.values())) / accelerator.num_processes
            is_row = rows >= 0
            parts = rows[is_row][None], values[is_row]
            gradient = torch.sparse_coo_tensor(*parts, gradient.shape, check_invariants=False).coalesce()
        if table in penalised:
            rows = table.weight.detach().index_select(0, gradient.indices()[0])
            gradient.values().add_(rows, alpha=embedding_l2)
        table.weight.grad = gradient


def looked_up(model: nn.Module) -> nn.ParameterList:
    """The model's parameters that have gradients, of a table the rows that stand in its sparse gradient: the norm of these
    gradients is that of the model's, and what scales them scales the model's."""
    parts = nn.ParameterList()
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            values = parameter.grad.values()  # of a gradient that is coalesced, and the same memory
            parameter = nn.Parameter(torch.empty_like(values))
            parameter.grad = values
        if parameter.grad is not None:
            parts.append(parameter)
    return parts


# ---- optimizers


class SparseOptimizer(torch.optim.Optimizer):
    """Before a class of torch.optim in a class's bases: that one updates all parameters but those with sparse gradients, and
    `update_rows` these. State, groups and their saving stay torch's."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._step_supports_amp_scaling = False  # so that GradScaler, not torch's fused kernel, leaves out a step

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        tables = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    tables.append((parameter, parameter.grad.coalesce(), group))
                    parameter.grad = None  # torch.optim passes over parameters without one
        loss = super().step(closure)
        for table, gradient, group in tables:
            self.update_rows(table, gradient.indices()[0], gradient.values(), self.state[table], group)
        return loss

    def update_rows(
        self,
        table: torch.Tensor,
        rows: torch.Tensor,
        gradient: torch.Tensor,
        state: dict[str, torch.Tensor],
        group: dict[str, Any],
    ) -> None:
        """table (M, d), rows (U,), each once, gradient (U, d)."""
        raise NotImplementedError


# Rows are read by index_select, and written by index_copy_ and scatter_add_: of some 30,000 rows in a table that no cache holds,
# these take a third to a quarter of what indexing and index_add_ do on a CPU.


class SparseSGD(SparseOptimizer, torch.optim.SGD):
    def update_rows(self, table: Any, rows: Any, gradient: Any, state: Any, group: Any) -> None:
        _add_to_rows(table, rows, _decayed(table, rows, gradient, group) * -group["lr"])


class SparseAdagrad(SparseOptimizer, torch.optim.Adagrad):
    def update_rows(self, table: Any, rows: Any, gradient: Any, state: Any, group: Any) -> None:
        gradient = _decayed(table, rows, gradient, group)
        rate = group["lr"] / (1 + state["step"] * group["lr_decay"])
        state["step"] += 1
        square = state["sum"].index_select(0, rows).addcmul_(gradient, gradient)
        state["sum"].index_copy_(0, rows, square)
        _add_to_rows(table, rows, -rate * gradient / square.sqrt_().add_(group["eps"]))


class SparseAdamW(SparseOptimizer, torch.optim.AdamW):
    """For row r of the table, in step t, where r is looked up: m_r ← β₁ m_r + (1 − β₁) g_r, v_r ← β₂ v_r + (1 − β₂) mean(g_r²),
    w_r ← w_r − η (m_r / (1 − β₁ᵗ) / (√(v_r / (1 − β₂ᵗ)) + ε) + λ w_r). t counts all steps, as in the optimizers named above."""

    def update_rows(self, table: Any, rows: Any, gradient: Any, state: Any, group: Any) -> None:
        beta1, beta2 = group["betas"]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = table.new_zeros(len(table), 1)
        state["step"] += 1
        mean = state["exp_avg"].index_select(0, rows).lerp_(gradient, 1 - beta1)
        state["exp_avg"].index_copy_(0, rows, mean)
        square = state["exp_avg_sq"].index_select(0, rows).lerp_(gradient.square().mean(1, keepdim=True), 1 - beta2)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        scale = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"]).mul_(1 - beta1 ** state["step"])
        _add_to_rows(table, rows, _decayed(table, rows, mean.div_(scale), group) * -group["lr"])


def _decayed(table: torch.Tensor, rows: torch.Tensor, update: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """The update (U, d), and λ times the rows where weights decay."""
    decay = group["weight_decay"]
    return update.add(table.index_select(0, rows), alpha=decay) if decay else update


def _add_to_rows(table: torch.Tensor, rows: torch.Tensor, update: torch.Tensor) -> None:
    table.scatter_add_(0, rows[:, None].expand_as(update), update)


SPARSE_OPTIMIZERS: dict[type[torch.optim.Optimizer], type[SparseOptimizer]] = {
    torch.optim.AdamW: SparseAdamW,
    torch.optim.SGD: SparseSGD,
    torch.optim.Adagrad: SparseAdagrad,
}
