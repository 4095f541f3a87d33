"""Steps that touch only the rows that the batch looked up, beside steps that touch all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, TrainerCallback

from modeling_flip import (
    FlipConfig,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
)
from modeling_flip.training.sparse import SPARSE_OPTIMIZERS, SparseAdamW, feature_tables, looked_up

ROWS: dict[str, Any] = {
    "user": [str(i * i % 23) for i in range(32)],
    "item": [f"item {i % 7}" for i in range(32)],
    "genres": [["war", "crime", "drama"][: i % 4] for i in range(32)],
}
CLICKS = [i * i % 3 % 2 for i in range(32)]
Make = Callable[..., FlipTrainer]
# With the eps that is usual, its first step is the sign of a gradient: of one that is nothing but rounding, too.
ADAGRAD = {"optim": "adagrad", "optim_args": "lr_decay=0.5,eps=0.01"}


@pytest.fixture(scope="module")
def processor(wordpiece: PreTrainedTokenizerFast) -> FlipProcessor:
    return FlipProcessor.fit(ROWS, ["user", "item", "genres"], wordpiece)


@pytest.fixture
def make(processor: FlipProcessor, tiny_text_model: Path, tmp_path: Path) -> Make:
    """Four steps of eight rows."""
    data = processor.encode(ROWS | {"label": CLICKS}, "label")

    def trainer(model_class: Any = FlipForCTR, callbacks: Any = (), **kwargs: Any) -> FlipTrainer:
        torch.manual_seed(0)
        towers = "both" if model_class is FlipForPreTraining else "tabular"
        settings = {"tabular_tower": "deepfm", "embedding_size": 4, "hidden_sizes": [8]}
        model = model_class.from_text_pretrained(tiny_text_model, processor, towers=towers, **settings)
        defaults = {"per_device_train_batch_size": 8, "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no"}
        arguments: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True, "optim": "sgd"}
        arguments |= {"learning_rate": 0.1, "max_grad_norm": 0.1, "sparse_embeddings": True}
        return FlipTrainer(
            model, FlipTrainingArguments(**arguments | defaults | kwargs), processor, data, callbacks=list(callbacks)
        )

    return trainer


def norms(trainer: FlipTrainer) -> list[float]:
    return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]


def assert_same(ours: FlipTrainer, theirs: FlipTrainer) -> None:
    for (name, a), b in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("model_class", [FlipForCTR, FlipForPreTraining])
@pytest.mark.parametrize("optim", [{"optim": "sgd"}, ADAGRAD])
def test_sgd_and_adagrad_compute_what_they_do_densely(optim: dict[str, str], model_class: Any, make: Make) -> None:
    """Rows looked up several times in a batch and the clipped norm included: all norms here are above max_grad_norm."""
    sparse = make(model_class, **optim)
    sparse.train()  # before the other is made, from which dropout of the text tower starts anew
    dense = make(model_class, sparse_embeddings=False, **optim)
    dense.train()
    assert_same(sparse, dense)
    assert norms(sparse) == pytest.approx(norms(dense), rel=1e-5)
    assert min(norms(dense)) > 0.1


def test_gradient_accumulation_is_one_large_batch(make: Make) -> None:
    whole, parts = make(), make(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for trainer in (whole, parts):
        trainer.model.config.embedding_l2 = 0.3  # of each feature once, in however many batches it stands
    for trainer in (whole, parts):
        trainer.train()
    assert_same(whole, parts)


class Gradients(TrainerCallback):
    """How many rows the gradients of the tables have, where the optimizer is about to see them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, int]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        of = {name: table.weight.grad for name, table in feature_tables(model).items()}
        made = {name: gradient for name, gradient in of.items() if gradient is not None}
        assert all(gradient.is_sparse and gradient.is_coalesced() for gradient in made.values())
        self.rows.append({name: len(gradient.values()) for name, gradient in made.items()})


def test_no_gradient_is_of_a_tables_size(make: Make) -> None:
    """And the model is as before for whoever trains it otherwise."""
    seen = Gradients()
    trainer = make(callbacks=[seen], per_device_train_batch_size=2, optim="adamw_torch_fused", weight_decay=0.1)
    trainer.train()
    assert len(seen.rows) == 16
    most = 2 * (2 + 3)  # rows × (fields, and members of a list)
    for step in seen.rows:
        assert sorted(step) == ["flip.feature_embeddings.embedding", "flip.feature_embeddings.first_order"]
        assert all(0 < rows <= most < trainer.model.config.num_features for rows in step.values())
    tables = feature_tables(trainer.model).values()
    assert not any(table.sparse or table.weight.grad is not None for table in tables)
    trainer.model.train()(**trainer.data_collator(trainer.train_dataset.__getitems__([0]))).loss.backward()
    assert not any(table.weight.grad.is_sparse for table in tables)


def test_the_tables_of_alignment_are_as_sparse_under_bf16(make: Make) -> None:
    seen = Gradients()
    settings = {"optim": "adamw_torch_fused", "learning_rate": 0.01, "bf16": True, "max_steps": 1}
    trainer = make(FlipForPreTraining, [seen], per_device_train_batch_size=1, num_noise_features=2, **settings)
    before = {name: table.weight.detach().clone() for name, table in feature_tables(trainer.model).items()}
    trainer.train()
    (rows,) = seen.rows
    # One field is masked: its feature and two of noise at most. The click's first-order weights are not trained here.
    assert 0 < rows["mtm.feature_embedding"] == rows["mtm.feature_bias"] <= 3
    assert sorted(rows) == ["flip.feature_embeddings.embedding", "mtm.feature_bias", "mtm.feature_embedding"]
    for name, table in feature_tables(trainer.model).items():
        assert table.weight.dtype == torch.float32
        assert (table.weight != before[name]).any(1).sum() == rows.get(name, 0), name


def test_the_clipped_norm_is_of_the_summed_rows() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.grad = torch.tensor([[2.0]])
    table = torch.nn.Parameter(torch.zeros(5, 2))
    model.register_parameter("table", table)
    rows = torch.tensor([[1, 3, 1]])  # row 1 has (3, 4) in all, row 3 (0, 1)
    values = torch.tensor([[1.0, 4.0], [0.0, 1.0], [2.0, 0.0]])
    table.grad = torch.sparse_coo_tensor(rows, values, (5, 2), check_invariants=True).coalesce()
    norm = torch.nn.utils.clip_grad_norm_(looked_up(model).parameters(), 1.0)
    assert norm == pytest.approx((4 + 9 + 16 + 1) ** 0.5)
    torch.testing.assert_close(table.grad.values() * norm, torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert (model.weight.grad * norm).item() == pytest.approx(2.0)


# ---- optimizers


def step(optimizer: torch.optim.Optimizer, table: torch.Tensor, rows: list[int], values: list[list[float]]) -> None:
    table.grad = torch.sparse_coo_tensor(torch.tensor([rows]), torch.tensor(values), table.shape, check_invariants=True)
    optimizer.step()
    optimizer.zero_grad()


def test_lazy_adam_by_hand() -> None:
    table = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = SparseAdamW([table], lr=0.1, betas=(0.9, 0.999), eps=0.0, weight_decay=0.0)
    step(optimizer, table, [1, 0], [[1.0, 1.0], [3.0, 4.0]])
    # The first step is η g / √mean(g²), as bias correction has it.
    after_one = torch.tensor([[1 - 0.3 / 12.5**0.5, 1 - 0.4 / 12.5**0.5], [0.9, 0.9], [1, 1], [1, 1]])
    torch.testing.assert_close(table.data, after_one)
    step(optimizer, table, [2, 1, 2], [[1.0, 4.0], [1.0, 1.0], [2.0, 0.0]])
    # Row 0 stands still, with its moments. Row 1 has seen ones alone: m = 0.19, v = 0.001999, both 1 when corrected. Row 2 is
    # looked up twice, and (3, 4) in all: m = 0.1 g over 0.19, v = 0.001 · 12.5 over 0.001999.
    second = 0.1 * (0.1 / 0.19) / (0.001 / 0.001999 * 12.5) ** 0.5
    after_two = torch.stack(
        [after_one[0], torch.tensor([0.8, 0.8]), 1 - second * torch.tensor([3.0, 4.0]), after_one[3]]
    )
    torch.testing.assert_close(table.data, after_two)
    state = optimizer.state[table]
    torch.testing.assert_close(state["exp_avg"], torch.tensor([[0.3, 0.4], [0.19, 0.19], [0.3, 0.4], [0.0, 0.0]]))
    torch.testing.assert_close(state["exp_avg_sq"], torch.tensor([[0.0125], [0.001999], [0.0125], [0.0]]))


@pytest.mark.parametrize(("dense", "sparse"), SPARSE_OPTIMIZERS.items())
def test_weights_that_are_looked_up_decay_and_no_others(dense: Any, sparse: Any) -> None:
    tables = {kind: torch.nn.Parameter(torch.full((4, 1), 2.0)) for kind in (dense, sparse)}
    values = [[0.5], [-1.0]]
    for kind, table in tables.items():
        optimizer = kind([table], lr=0.1, weight_decay=0.3)
        for _ in range(2):
            if kind is sparse:
                step(optimizer, table, [3, 1], values)
            else:
                table.grad = torch.tensor([[0.0], values[1], [0.0], values[0]])
                optimizer.step()
    torch.testing.assert_close(tables[sparse][[1, 3]], tables[dense][[1, 3]])
    assert (tables[sparse][[0, 2]] == 2.0).all()
    assert (tables[dense][[0, 2]] < 2.0).all()


def test_other_parameters_are_updated_as_torch_does(make: Make) -> None:
    """One step of AdamW, in which even the rows that are looked up differ only by their second moments."""
    settings = {"optim": "adamw_torch_fused", "learning_rate": 0.01, "max_steps": 1, "weight_decay": 0.1}
    sparse, dense = make(**settings), make(sparse_embeddings=False, **settings)
    for trainer in (sparse, dense):
        trainer.train()
    for (name, a), b in zip(sparse.model.named_parameters(), dense.model.parameters(), strict=True):
        assert torch.equal(a, b) == ("feature_embeddings" not in name), name


def test_a_checkpoint_keeps_a_table_twice_not_three_times(make: Make, tmp_path: Path) -> None:
    make(optim="adamw_torch_fused", save_strategy="epoch").train()
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    parameters = list(make().model.named_parameters())
    order = [i for group in saved["param_groups"] for i in group["params"]]
    assert len(order) == len(parameters)
    table = make().model.flip.feature_embeddings.embedding.weight
    (state,) = [s for s in saved["state"].values() if s["exp_avg"].shape == table.shape]
    assert sum(value.numel() for value in state.values()) == table.numel() + len(table) + 1


# ---- several processes


def train_share(folder: Path, batch_size: int) -> None:
    """Train on this process's share of each batch, and save the weights."""
    processor = FlipProcessor.from_pretrained(folder / "processor")
    data = processor.encode(ROWS | {"label": CLICKS}, "label")
    shared: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "sparse_embeddings": True}
    shared |= {"learning_rate": 0.05, "max_grad_norm": 0.1, "max_steps": 3, "gradient_accumulation_steps": 2}
    for optim in ("adagrad", "adamw_torch_fused"):
        arguments = FlipTrainingArguments(
            str(folder / "out"), optim=optim, per_device_train_batch_size=batch_size, **shared
        )
        torch.manual_seed(arguments.process_index)  # the weights of the first process are those of all
        sizes = {"tabular_tower": "deepfm", "embedding_size": 4, "hidden_sizes": [8], "embedding_l2": 0.3}
        model = FlipForCTR(FlipConfig.from_processor(processor, towers="tabular", **sizes))
        FlipTrainer(model, arguments, processor, data).train()
        torch.save(model.state_dict(), folder / f"{optim}-{arguments.world_size}-{arguments.process_index}.pt")


def one_of_two(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train_share(folder, 4)


def test_two_processes_with_half_the_rows_each_learn_what_one_with_all_does(
    processor: FlipProcessor, tmp_path: Path
) -> None:
    """The two are forked from one that has computed nothing: the imports take longer than all else."""
    processor.save_pretrained(tmp_path / "processor")
    paths = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parent)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = f"""
import pathlib, test_sparse
from torch.multiprocessing import start_processes
start_processes(test_sparse.one_of_two, (pathlib.Path({str(tmp_path)!r}), {port}), nprocs=2, start_method="fork")
"""
    both = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": paths})
    try:
        train_share(tmp_path, 8)
        assert both.wait(timeout=120) == 0
    finally:
        both.terminate()
    for optim in ("adagrad", "adamw_torch_fused"):
        alone, first, second = (torch.load(tmp_path / f"{optim}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
        for name, weight in alone.items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], weight, msg=f"{optim} {name}", atol=1e-6, rtol=1e-4)
