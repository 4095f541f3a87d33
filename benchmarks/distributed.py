"""Training in one process and in several: samples/s at equal threads, and what gathering, parts, checkpoints and sharding cost.

    python -m benchmarks.distributed [--threads 2] [--steps 20] [--batch_size 256] [--features 1000000] [--only NAME …]
        [--json PATH]

Pretraining of a text tower of two layers (hidden size 128) and DCNv2, on generated rows, with `FlipTrainer` and AdamW in fp32. A
process has its share of the threads and of the batch. A step's time is the median after the first five. Sharding is timed on
the table alone: lookup, gradient and AdamW for 2,048 rows of 8 fields, once with a whole table in each process and once in parts;
beside them TorchRec with FBGEMM where both are installed, whose optimizer (row-wise Adagrad, fused) updates looked-up rows alone.
Each figure is of processes of its own, through gloo, on CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from benchmarks import movielens_like
from benchmarks.pretraining_step import peak_memory
from modeling_flip import FlipConfig, FlipForPreTraining, FlipProcessor, FlipTrainer, FlipTrainingArguments, objectives
from modeling_flip.feature_embeddings import FeatureTable
from modeling_flip.training.sharded_tables import shard_tables

WARM_UP = 5
TEXT_SIZES = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
LOOKUPS, FIELDS, SIZE = 2048, 8, 32
Case = Callable[[argparse.Namespace], dict[str, float]]


class StepClock(TrainerCallback):
    """When each step began and ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)


# ---- what each process of a case does


def pretraining(args: argparse.Namespace, *, gather: bool = True, **settings: Any) -> dict[str, float]:
    processes = int(os.environ["WORLD_SIZE"])
    if not gather:
        objectives.gather_rows = lambda text, tabular: (text, tabular, 0)  # each process contrasts its own rows
    set_seed(0)
    rows = movielens_like.rows(args.batch_size * (WARM_UP + args.steps))
    processor = FlipProcessor.fit(rows, movielens_like.FIELDS, movielens_like.tokenizer(), max_length=100)
    model = FlipForPreTraining(FlipConfig(text_config=BertConfig(**TEXT_SIZES), **processor.config_settings))
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        given = {"output_dir": folder, "max_steps": WARM_UP + args.steps, "save_strategy": "no", "eval_strategy": "no"}
        given |= {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "logging_strategy": "no"}
        given |= {"per_device_train_batch_size": args.batch_size // processes}
        trainer = FlipTrainer(
            model, FlipTrainingArguments(**given | settings), processor, processor.encode(rows), callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        step = statistics.median(clock.seconds[WARM_UP:])
        started = time.perf_counter()
        trainer._save_checkpoint(trainer.model_wrapped, None)
        saving = time.perf_counter() - started
    return {
        "samples_per_second": args.batch_size / step,
        "ms_per_step": 1000 * step,
        "ms_per_checkpoint": 1000 * saving,
    }


def ids_of(step: int, features: int) -> torch.Tensor:
    """(rows of this process, fields), other ones in each step and process."""
    generator = torch.Generator().manual_seed(step * 1000 + dist.get_rank())
    return torch.randint(features, (LOOKUPS // dist.get_world_size(), FIELDS), generator=generator)


def table_steps(args: argparse.Namespace, step: Callable[[torch.Tensor], None]) -> dict[str, float]:
    seconds = []
    for number in range(WARM_UP + args.steps):
        ids = ids_of(number, args.features)
        dist.barrier()
        started = time.perf_counter()
        step(ids)
        seconds.append(time.perf_counter() - started)
    return {"ms_per_step": 1000 * statistics.median(seconds[WARM_UP:]), "peak_memory_mib": peak_memory()}


def with_table(args: argparse.Namespace, sharded: bool) -> dict[str, float]:
    dist.init_process_group("gloo")
    model: torch.nn.Module = torch.nn.Sequential(FeatureTable(args.features, SIZE))
    if sharded:
        shard_tables(model, torch.device("cpu"))
    else:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(ids: torch.Tensor) -> None:
        model(ids).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return table_steps(args, step)


def with_torchrec(args: argparse.Namespace) -> dict[str, float]:
    import torchrec
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology

    dist.init_process_group("gloo")
    config = torchrec.EmbeddingConfig(name="t", embedding_dim=SIZE, num_embeddings=args.features, feature_names=["f"])
    table = torchrec.EmbeddingCollection(tables=[config], device=torch.device("meta"))
    sharder: Any = EmbeddingCollectionSharder(
        fused_params={"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 1e-3}
    )
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=dist.get_world_size(), compute_device="cpu"),
        constraints={"t": ParameterConstraints(sharding_types=["row_wise"])},
    )
    plan = planner.collective_plan(table, [sharder], dist.GroupMember.WORLD)
    model = torchrec.distributed.DistributedModelParallel(
        table, device=torch.device("cpu"), plan=plan, sharders=[sharder], init_data_parallel=False
    )

    def step(ids: torch.Tensor) -> None:
        lengths = torch.full((len(ids),), FIELDS, dtype=torch.int64)
        given = torchrec.KeyedJaggedTensor(keys=["f"], values=ids.flatten(), lengths=lengths)
        model(given)["f"].values().square().sum().backward()

    return table_steps(args, step)


CASES: dict[str, tuple[int, Case]] = {
    "one process": (1, pretraining),
    "two processes": (2, pretraining),
    "two processes, negatives of each alone": (2, lambda args: pretraining(args, gather=False)),
    "one process, in parts of 2,048 tokens": (1, lambda args: pretraining(args, mini_batch_tokens=2048)),
    "two processes, tables in parts": (2, lambda args: pretraining(args, shard_embeddings=True)),
    "table whole in two processes": (2, lambda args: with_table(args, sharded=False)),
    "table in two parts": (2, lambda args: with_table(args, sharded=True)),
    "table in two parts, TorchRec": (2, with_torchrec),
}


# ---- the processes


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """What the first process of a case prints."""
    processes = CASES[name][0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.distributed", "--case", name]
    for setting in ("steps", "batch_size", "features"):
        command += [f"--{setting}", str(getattr(args, setting))]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    shared |= {"OMP_NUM_THREADS": str(max(1, args.threads // processes)), "THP_MEM_ALLOC_ENABLE": "1"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    run = [
        subprocess.Popen(command, env=os.environ | shared | rank, stdout=subprocess.PIPE, text=True) for rank in ranks
    ]
    printed = [process.communicate()[0] for process in run]
    if any(process.returncode for process in run):
        raise RuntimeError(f"{name!r} failed; its error stands above")
    return {"processes": processes, **json.loads(printed[0].splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description="Training in one process and in several.")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of all processes of a case together")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each case")
    parser.add_argument("--batch_size", type=int, default=256, help="rows of a step of pretraining, of all processes")
    parser.add_argument("--features", type=int, default=1_000_000, help="rows of the table that is sharded")
    parser.add_argument("--only", nargs="+", choices=CASES, help="cases; all if left out")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    if args.case:
        logging.set_verbosity_error()
        print(json.dumps(CASES[args.case][1](args)))
        return
    results = {}
    for name in args.only or CASES:
        if name.endswith("TorchRec") and not (find_spec("torchrec") and find_spec("fbgemm_gpu")):
            print(f"{name}: not installed")
            continue
        results[name] = measure(name, args)
        print(f"{name:40}", ", ".join(f"{figure.replace('_', ' ')} {x:,.1f}" for figure, x in results[name].items()))
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "cases": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
