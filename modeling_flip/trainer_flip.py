"""FlipTrainer: the transformers Trainer, with what FLIP adds to it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PredictionOutput, TrainOutput

from .data_collator import FlipDataCollator, PretrainingCollator, check_masking
from .metrics import CtrMetrics
from .modeling_flip import FlipForCTR, FlipForPreTraining, FlipPreTrainedModel
from .processing_flip import FlipDataset, FlipProcessor
from .tabular_layers import BatchNorm


@dataclass
class FlipTrainingArguments(TrainingArguments):
    """TrainingArguments, and these:

    Args:
        learning_rate: of everything but the text tower.
        text_learning_rate: of the text tower; by default the same.
        early_stopping_patience: evaluations without a better validation metric before training stops; None: never.
        text_mask_ratio: share of fields masked in the text (pretraining).
        tabular_mask_ratio: share of fields masked in the table (pretraining).
        num_noise_features: K, noise features drawn per row for MTM (pretraining).
        text_masking: "field", or "token" for the ablation (pretraining).
        train_sampling_strategy: "group_by_length" batches sentences of like length where there is text, else "random".
        float32_matmul_precision: how exact the products of fp32 tensors are, as in `torch.set_float32_matmul_precision`:
            "high" is TF32 on a GPU, "medium" bf16 on a CPU that has it, where tabular towers train up to twice as fast;
            None leaves torch as it is. Only while training.
    """

    text_learning_rate: float | None = field(default=None, metadata={"help": "Of the text tower; default: the same."})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "Evaluations without a better metric."})
    text_mask_ratio: float = field(default=0.15, metadata={"help": "Share of fields masked in the text."})
    tabular_mask_ratio: float = field(default=0.15, metadata={"help": "Share of fields masked in the table."})
    num_noise_features: int = field(default=25, metadata={"help": "Noise features drawn per row for MTM."})
    text_masking: str = field(default="field", metadata={"help": "Mask whole fields' values, or random tokens: token."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Or random."})
    float32_matmul_precision: str | None = field(
        default=None, metadata={"help": "torch's: highest, high, or medium (bf16 products, faster on new CPUs)."}
    )
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Rows per step and device."})
    per_device_eval_batch_size: int = field(default=1024, metadata={"help": "Rows per evaluation step and device."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.accelerator.is_available, metadata={"help": "For the GPU."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches are not columns of a Dataset."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "It would hide a loss that is not finite."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.float32_matmul_precision not in (None, "highest", "high", "medium"):
            raise ValueError(f"float32_matmul_precision is {self.float32_matmul_precision!r}: highest, high or medium")
        check_masking(self.text_mask_ratio, self.tabular_mask_ratio, self.text_masking)
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError(
                "early_stopping_patience is set, but eval_strategy is 'no': there is nothing to be patient with"
            )


class LengthBuckets(LengthGroupedSampler):
    """Batches of like length in an order that depends on seed and epoch alone, so that all processes, and a resumed run,
    see the same."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class SetEpoch(TrainerCallback):
    """Tells the dataset its epoch, from which masks are drawn: accelerate does so only on a single process."""

    def __init__(self, dataset: FlipDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dataset.set_epoch(int((state.epoch or 0) + 1e-6))


class EpochClock(TrainerCallback):
    """Training speed of each epoch: Trainer's own figure counts the epochs that early stopping left out, and evaluations.

    Attributes:
        samples_per_second: of each epoch that this process has trained.
    """

    def __init__(self) -> None:
        self.samples_per_second: list[float] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first_step = time.perf_counter(), state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        samples = (state.global_step - self._first_step) * args.train_batch_size * args.gradient_accumulation_steps
        self.samples_per_second.append(samples * args.world_size / (time.perf_counter() - self._began))

    @property
    def median(self) -> float | None:
        """Of all epochs; None where none was trained."""
        return float(np.median(self.samples_per_second)) if self.samples_per_second else None


def ctr_metrics(logits: np.ndarray | Iterable[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Metrics of a prediction: `auc`, `logloss`, `ece`, and for two towers also `tabular_auc`, `text_auc`, …"""
    named = (
        {"": logits} if isinstance(logits, np.ndarray) else dict(zip(("", "tabular_", "text_"), logits, strict=True))
    )
    metrics: dict[str, float] = {}
    for prefix, tower_logits in named.items():
        probabilities = torch.from_numpy(np.asarray(tower_logits, np.float64)).sigmoid().numpy()
        computed = CtrMetrics().compute(predictions=probabilities, references=labels.astype(np.int64)) or {}
        metrics |= {prefix + name: value for name, value in computed.items()}
    return metrics


class FlipTrainer(Trainer):
    """Trains `FlipForPreTraining`, `FlipForCTR` or a baseline on `FlipDataset`s.

    Adds to Trainer: the right collator for the model, a learning rate for each tower, every component of the loss (and α)
    in the log, batches of like length, metrics of each tower, and a stop as soon as the loss is not finite. `clock` has the
    training speed of each epoch.
    """

    def __init__(
        self,
        model: FlipPreTrainedModel,
        args: FlipTrainingArguments,
        processor: FlipProcessor,
        train_dataset: FlipDataset | None = None,
        eval_dataset: FlipDataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.clock = EpochClock()
        callbacks = [*(callbacks or []), self.clock]
        if train_dataset is not None:
            callbacks.append(SetEpoch(train_dataset))
        if args.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        collator: FlipDataCollator | PretrainingCollator
        if isinstance(model, FlipForPreTraining):
            args.prediction_loss_only = True
            collator = PretrainingCollator(
                processor,
                args.text_mask_ratio,
                args.tabular_mask_ratio,
                args.num_noise_features,
                args.text_masking,
                args.seed,
            )
        else:
            collator = FlipDataCollator(processor, model.inputs, model.config.item_fields)
        # Not Trainer's processing_class: Trainer would copy the tokenizer's special tokens into the model's configuration.
        self.processor = processor
        self.args: FlipTrainingArguments
        self.optimizer: torch.optim.Optimizer | None
        self._has_text = model.config.towers != "tabular"
        self._components: dict[str, torch.Tensor] = {}
        self._num_steps_logged = 0
        self._first_bad_step: torch.Tensor | None = None
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=None if isinstance(model, FlipForPreTraining) else self._compute_metrics,
            callbacks=callbacks,
        )

    @staticmethod
    def _compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return ctr_metrics(prediction.predictions, np.asarray(prediction.label_ids))

    # ---- data

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self._has_text and self.args.train_sampling_strategy == "group_by_length":
            batch_size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            return LengthBuckets(batch_size, dataset.lengths.tolist(), self.args.data_seed or self.args.seed)
        return torch.utils.data.RandomSampler(dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Rows by length, so that batches need little padding; `predict` puts them back."""
        return eval_dataset.lengths.argsort(kind="stable").tolist() if self._has_text else range(len(eval_dataset))

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As `Trainer.predict`, rows in the order of the dataset."""
        output = super().predict(test_dataset, *args, **kwargs)
        back = np.argsort(list(self._get_eval_sampler(test_dataset)))

        def reorder(x: Any) -> Any:
            if x is None:
                return None
            return tuple(part[back] for part in x) if isinstance(x, tuple) else x[back]

        return PredictionOutput(reorder(output.predictions), reorder(output.label_ids), output.metrics)

    # ---- optimisation

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`, at the precision of `float32_matmul_precision`; scoring afterwards is as exact as before."""
        precision = self.args.float32_matmul_precision
        if precision is None:
            return super().train(*args, **kwargs)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return super().train(*args, **kwargs)
        finally:
            torch.set_float32_matmul_precision(before)

    def create_optimizer(self, model: Any = None) -> Any:
        """A group of parameters for each learning rate and weight decay."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, BatchNorm)}
        decayed = set(self.get_decay_parameter_names(model)) - {"alpha_logit"} - norms  # decay would pull α to one half
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                rate = self.args.text_learning_rate if "text_tower." in name else None
                key = (self.args.learning_rate if rate is None else rate, self.args.weight_decay * (name in decayed))
                groups.setdefault(key, []).append(parameter)
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
        parameters = [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]
        self.optimizer = optimizer_class(parameters, **kwargs)
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            for name, value in outputs.items():
                if name.endswith("_loss"):
                    self._components[name] = self._components.get(name, 0) + value.detach()
            self._num_steps_logged += 1
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # On the device, without waiting for it: looked at whenever something is logged or saved.
        step = torch.where(loss.isfinite(), torch.inf, float(self.state.global_step + 1))
        self._first_bad_step = step if self._first_bad_step is None else torch.minimum(self._first_bad_step, step)
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """0: Trainer's estimate is a language model's, and it would count the parameters anew at every step."""
        return 0

    def _stop_if_not_finite(self) -> None:
        if self._first_bad_step is not None and (step := self._first_bad_step.item()) != torch.inf:
            raise FloatingPointError(
                f"the loss of batch {step:.0f} (epoch {self.state.epoch:.2f}) is not finite; checkpoints written before it "
                "are sound. Lower learning_rate or text_learning_rate and run again, with another output_dir or this one deleted"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._stop_if_not_finite()
            if self._components:
                means = torch.stack(list(self._components.values())) / self._num_steps_logged
                means = self.accelerator.reduce(means, reduction="mean")
                logs |= dict(zip(self._components, means.tolist(), strict=True))
            model = self.accelerator.unwrap_model(self.model)
            if isinstance(model, FlipForCTR) and model.config.towers == "both":
                logs["alpha"] = model.alpha.item()
            self._components, self._num_steps_logged = {}, 0
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self._stop_if_not_finite()
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        self.processor.save_pretrained(folder)
        # Trainer pickles its arguments beside the model; the recipe says the same in words.
        (folder / "training_args.bin").unlink(missing_ok=True)
