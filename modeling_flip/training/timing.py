"""How large a model is, and how long a stage of its training takes: a few steps of it, measured."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainerControl

from ..modeling_flip import FlipForPreTraining, FlipPreTrainedModel
from ..processing_flip import FlipProcessor
from ..row_dataset import FlipDataset
from .arguments import FlipTrainingArguments
from .calibration import sampling_shift
from .preparation import Prepared
from .recipe import Recipe, model_settings, needs_pretraining, stage_arguments
from .samplers import InOrder
from .sparse import feature_tables
from .stages import make_model
from .trainer import FlipTrainer

# Steps to time after a warm-up step; fewer, but at least two, if they take longer than this many seconds.
TIMED_STEPS, TIMED_SECONDS = 10, 10.0
TIMED_EVALUATION_BATCHES = 2
PARTS = {
    "feature_embeddings.": "feature embeddings",
    "tabular_tower.": "tabular tower",
    "text_tower.": "text tower",
}
HEADS = "heads"
# Training arguments for a few steps that leave nothing behind, with learning rates of 0.
FEW_STEPS: dict[str, Any] = {
    "max_steps": 1 + TIMED_STEPS,
    "learning_rate": 0.0,
    "text_learning_rate": 0.0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": None,
    "report_to": "none",
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class StageFacts:
    """One stage of the training.

    Attributes:
        name: "pretraining" or "finetuning".
        parameters: how many each part has.
        weights: bytes; likewise `gradients` and `optimizer_state`.
        peak_memory: peak bytes in use, on the accelerator if there is one, else in this process, rows included. None if
            unknown.
        rows_per_step: over all processes.
        steps: number of steps of the whole stage.
        may_stop_early: whether `steps` is only an upper bound.
        seconds_per_step: the median over the timed steps.
        timed_steps: number of timed steps.
        evaluated_rows: rows that are scored while training and at the end.
        evaluated_rows_per_second: measured; None if no rows are evaluated.
    """

    name: str
    parameters: Mapping[str, int]
    weights: int
    gradients: int
    optimizer_state: int
    peak_memory: int | None
    rows_per_step: int
    steps: int
    may_stop_early: bool
    seconds_per_step: float
    timed_steps: int
    evaluated_rows: int
    evaluated_rows_per_second: float | None

    @property
    def training_seconds(self) -> float:
        return self.steps * self.seconds_per_step

    @property
    def evaluation_seconds(self) -> float:
        return self.evaluated_rows / self.evaluated_rows_per_second if self.evaluated_rows_per_second else 0.0


def time_stages(recipe: Recipe, prepared: Prepared, scratch: Path) -> list[StageFacts]:
    """Runs a few steps of each of the recipe's stages, and measures them."""
    processor, stages = prepared.processor, []
    if needs_pretraining(recipe):
        text_model = recipe.text_model_name_or_path
        aligner = FlipForPreTraining.from_text_pretrained(text_model, processor, **model_settings(recipe))
        stages.append(time_stage("pretraining", recipe, aligner, processor, prepared, scratch))
        del aligner
    model = make_model(recipe, processor, None)
    processor = processor.tabular_only() if model.inputs == ("feature_ids",) else processor
    stages.append(time_stage("finetuning", recipe, model, processor, prepared, scratch))
    return stages


def time_stage(
    name: str, recipe: Recipe, model: FlipPreTrainedModel, processor: FlipProcessor, prepared: Prepared, scratch: Path
) -> StageFacts:
    if torch.accelerator.is_available():
        torch.accelerator.reset_peak_memory_stats()
    arguments = stage_arguments(recipe, name)
    few_steps: dict[str, Any] = {name: {**(getattr(recipe, name) or {}), **FEW_STEPS}}
    few = stage_arguments(replace(recipe, output_dir=str(scratch / "steps"), refit=None, **few_steps), name)
    timer = StepTimer()
    rows = prepared.splits["train"]
    if arguments.freeze_text_tower:
        vector = np.zeros(model.base_model.text_tower.config.hidden_size, np.float32)
        rows = replace(rows, sentences=np.broadcast_to(vector, (len(rows), len(vector))))
    trainer = ShortTrainer(model, few, processor, rows, callbacks=[timer])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    parameters = dict.fromkeys((*PARTS.values(), HEADS), 0)
    for path, parameter in model.named_parameters():
        parameters[part_of(path)] += parameter.numel()
    tables = feature_tables(model).values() if arguments.sparse_embeddings else ()  # of these a batch's rows alone
    without = {table.weight for table in tables}
    assert trainer.optimizer is not None
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"] if p not in without]
    state = trainer.optimizer.state.values()
    rows_per_step = trainer.args.train_batch_size * trainer.args.world_size * trainer.args.gradient_accumulation_steps
    steps, epochs = steps_of(arguments, len(prepared.splits["train"]), trainer.args.world_size)
    evaluated = rows_to_score(name, recipe, prepared, evaluations_of(arguments, steps, epochs))
    if arguments.freeze_text_tower:  # which reads each row once
        evaluated = sum(map(len, prepared.splits.values()))
    return StageFacts(
        name=name,
        parameters=parameters,
        weights=size_of(model.parameters()),
        gradients=size_of(trained),
        optimizer_state=sum(size_of(v for v in one.values() if isinstance(v, torch.Tensor)) for one in state),
        peak_memory=peak_memory(),
        rows_per_step=rows_per_step,
        steps=steps,
        may_stop_early=arguments.early_stopping_patience is not None,
        seconds_per_step=timer.median,
        timed_steps=len(timer.moments) - 1,
        evaluated_rows=evaluated,
        evaluated_rows_per_second=time_evaluation(trainer, prepared.splits["test"]) if evaluated else None,
    )


class ShortTrainer(FlipTrainer):
    """Takes a few steps with batches from all over the first epoch: where sentences of like length share a batch, neighbours are
    alike. The first has the longest sentence."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        args = self.args
        order = np.fromiter(super()._get_train_sampler(train_dataset), np.int64)
        size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        steps = max(1, len(order) // size)
        firsts = np.unique(np.linspace(0, steps - 1, min(steps, args.max_steps)).astype(np.int64)) * size
        rows = (firsts[:, None] + np.arange(size)).ravel()
        return InOrder(order[rows[rows < len(order)]])


class StepTimer(TrainerCallback):
    """Records when steps ended, and stops the training after enough of them.

    Attributes:
        moments: the first is the end of the step to warm up.
    """

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.moments.append(time.perf_counter())
        # All processes must stop at the same step.
        seconds = torch.tensor(self.moments[-1] - self.moments[0], device=PartialState().device)
        mean = float(reduce(seconds, reduction="mean"))
        control.should_training_stop |= len(self.moments) > 2 and mean > TIMED_SECONDS

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return float(np.median(np.diff(self.moments)))


def time_evaluation(trainer: FlipTrainer, rows: FlipDataset) -> float:
    """Rows scored per second."""
    some = spread(rows, TIMED_EVALUATION_BATCHES * trainer.args.eval_batch_size * trainer.args.world_size)
    began = time.perf_counter()
    trainer.predict_logits(some, "test")  # metrics need clicks and non-clicks, which few rows may not have
    return len(some) / (time.perf_counter() - began)


def spread(rows: FlipDataset, count: int) -> FlipDataset:
    """At most this many rows, evenly spread."""
    return rows.__getitems__(np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)))


def steps_of(args: FlipTrainingArguments, rows: int, processes: int) -> tuple[int, float]:
    """Steps of a stage, and its epochs, as Trainer counts them."""
    each = args.train_batch_size * processes
    batches = rows // each if args.dataloader_drop_last else math.ceil(rows / each)
    steps_per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    if args.stop_after_epochs is not None:
        steps = min(steps, math.ceil(args.stop_after_epochs * steps_per_epoch))
    return steps, steps / steps_per_epoch


def evaluations_of(args: FlipTrainingArguments, steps: int, epochs: float) -> int:
    """How often a stage evaluates while training, as Trainer does."""
    ends: list[float] = []
    if args.eval_strategy == "epoch":
        ends = [min(end, epochs) for end in range(1, math.ceil(epochs) + 1)]
    elif args.eval_strategy == "steps":
        every = args.eval_steps or args.logging_steps
        every = int(every) if every >= 1 else math.ceil(steps * every)
        ends = [*range(every, steps + 1, every)]
        # And after the last step of the schedule, before which stop_after_epochs ends.
        ends += [steps] if steps % every and args.stop_after_epochs is None else []
    return sum(end >= args.eval_delay for end in ends) + args.eval_on_start


def rows_to_score(name: str, recipe: Recipe, prepared: Prepared, evaluations: int) -> int:
    """How many rows a stage scores while training and at the end."""
    validation, watched = prepared.splits.get("validation"), prepared.watched
    rows = evaluations * (0 if watched is None else len(watched))
    if name == "pretraining":
        return rows
    rows += len(prepared.splits["test"])
    if validation is None:
        return rows
    is_fitted = recipe.calibration is not None
    is_calibrated = is_fitted or sampling_shift(recipe.negative_sampling_rate) != 0
    # The log of the training does not tell what is measured at the end.
    again = is_calibrated or watched is not validation or "validation" in prepared.groups or not evaluations
    return rows + (is_fitted + again) * len(validation)


def part_of(parameter: str) -> str:
    return next((part for module, part in PARTS.items() if module in parameter), HEADS)


def size_of(tensors: Any) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_memory() -> int | None:
    if torch.accelerator.is_available():
        return int(torch.accelerator.max_memory_allocated())
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
