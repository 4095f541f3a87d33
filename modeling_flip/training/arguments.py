"""FlipTrainingArguments: transformers' TrainingArguments, and what FLIP adds to them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from ..commands import installs
from ..data_collator import check_masking
from .lora import lora_settings

# Defaults. A click model hardly moves at transformers' 5e-5, and a pretrained text tower forgets at 1e-3.
LEARNING_RATE, TEXT_LEARNING_RATE = 1e-3, 5e-5

# Of transformers' optimizers, those that training/sparse.py knows.
SPARSE_OPTIMS = ("adamw_torch_fused", "adamw_torch", "adagrad", "sgd")
# What keeps moments in few bits, and the package that each needs: Trainer misses it only when a stage begins.
PACKAGES = dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "lion_8bit"), "bitsandbytes")
PACKAGES |= dict.fromkeys(("adamw_torch_8bit", "adamw_torch_4bit"), "torchao")

# What only a text tower that reads sentences while training can use.
TRAINS_TEXT = ("lora", "gradient_checkpointing", "mini_batch_tokens", "auto_find_batch_size")


@dataclass
class FlipTrainingArguments(TrainingArguments):
    """TrainingArguments, and these:

    Args:
        learning_rate: of everything but the text tower; by default 1e-3.
        text_learning_rate: of the text tower; by default 5e-5, or where only learning_rate is given the same.
        early_stopping_patience: evaluations without a better validation metric before training stops; None: never.
        stop_after_epochs: ends the training there, on the learning rate schedule of num_train_epochs; None: at its end.
        text_mask_ratio: share of fields masked in the text (pretraining).
        tabular_mask_ratio: share of fields masked in the table (pretraining).
        num_noise_features: K, noise features drawn per masked field for MTM (pretraining).
        text_masking: "field", or "token" as BERT (pretraining).
        train_sampling_strategy: "group_by_length" batches sentences of like length where there is text, else "random".
        float32_matmul_precision: how exact the products of fp32 tensors are, as in `torch.set_float32_matmul_precision`:
            "high" is TF32 on a GPU, "medium" bf16 on a CPU that has it, where tabular towers train up to twice as fast;
            None leaves torch as it is. Only while training.
        sparse_embeddings: a step touches only the rows of the features' tables that its batch looks up: gradients, optimizer,
            weight decay and clipping cost the same however many features there are. `optim` is one of adamw_torch_fused,
            adamw_torch (both then lazy: `SparseAdamW`), adagrad, or sgd without momentum.
        shard_embeddings: with several processes, each holds the rows of a range of features, with their gradients and moments,
            and a lookup exchanges rows; what is saved is as without it. Not with sparse_embeddings or mini_batch_tokens.
        mini_batch_tokens: a batch of more tokens, padding included, is computed in parts of so many, with the loss and gradient
            of the whole, the contrastive loss included, for which pretraining reads each part twice. For FLIP with a text
            tower. None: never. With `auto_find_batch_size`, in one process, a step that does not fit in memory sets it.
        lora: train the text tower through adapters beside its linear layers, its own weights standing still, and merge them at
            the end: the keys of `LoraSettings`, such as {"r": 8, "alpha": 16, "dropout": 0.05}. It needs peft. None: train the
            weights themselves.
        freeze_text_tower: do not train FLIP's text tower. A run computes its vector of each row once (training/frozen.py); it is
            always that of evaluation, without dropout.
    """

    learning_rate: float = field(  # type: ignore[assignment]  # until __post_init__
        default=None, metadata={"help": "For everything except the text tower; default: 1e-3."}
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "For the text tower; default: 5e-5, or learning_rate if that is set."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better metric."}
    )
    stop_after_epochs: float | None = field(
        default=None, metadata={"help": "Stop here, on the learning rate schedule of num_train_epochs."}
    )
    text_mask_ratio: float = field(default=0.15, metadata={"help": "Share of fields masked in the text."})
    tabular_mask_ratio: float = field(default=0.15, metadata={"help": "Share of fields masked in the table."})
    num_noise_features: int = field(default=25, metadata={"help": "Noise features drawn per masked field for MTM."})
    text_masking: str = field(
        default="field", metadata={"help": "field masks whole fields; token masks random tokens, as BERT."}
    )
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "group_by_length or random."})
    float32_matmul_precision: str | None = field(
        default=None,
        metadata={"help": "highest, high (TF32 on a GPU) or medium (bf16 products, on CPUs that have them)."},
    )
    sparse_embeddings: bool = field(
        default=False,
        metadata={"help": "Touch only the features' embeddings that a batch looks up, for very many features."},
    )
    shard_embeddings: bool = field(
        default=False,
        metadata={
            "help": "With several processes, each holds a part of the features' embeddings, if they are too many for one."
        },
    )
    mini_batch_tokens: int | None = field(
        default=None, metadata={"help": "Compute a batch of more tokens in parts of so many, if it does not fit."}
    )
    lora: dict[str, Any] | None = field(
        default=None, metadata={"help": "Train adapters in the text tower instead of its weights: {r: 8, alpha: 16}."}
    )
    freeze_text_tower: bool = field(
        default=False, metadata={"help": "Do not train the text tower; what it makes of each row is computed once."}
    )
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Rows per step and device."})
    per_device_eval_batch_size: int = field(default=1024, metadata={"help": "Rows per evaluation step and device."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.accelerator.is_available, metadata={"help": "Speeds up copies to a GPU."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches are not columns of a Dataset."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Filtering would hide a loss that is not finite."}
    )

    def __post_init__(self) -> None:
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATE
            self.text_learning_rate = TEXT_LEARNING_RATE if self.text_learning_rate is None else self.text_learning_rate
        if self.early_stopping_patience is not None:  # its count is part of what a resumed training goes on with
            self.restore_callback_states_from_checkpoint = True
        super().__post_init__()
        if self.max_steps == 0:
            raise ValueError("max_steps is 0, which trains nothing; it must be 1 or more, or -1 for no limit")
        if self.max_steps < 0 and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs:g}, which trains nothing; it must be above 0")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {self.label_smoothing_factor}; it is for models of several classes: leave it out"
            )
        if not self.dataloader_in_order:
            raise ValueError(
                "dataloader_in_order is false, which would give rows the predictions of others; leave it out; batches "
                "then come in order, with several workers too"
            )
        if self.float32_matmul_precision not in (None, "highest", "high", "medium"):
            raise ValueError(
                f"float32_matmul_precision is {self.float32_matmul_precision!r}; it must be highest, high or medium"
            )
        if self.train_sampling_strategy not in ("group_by_length", "random"):
            raise ValueError(
                f"train_sampling_strategy is {self.train_sampling_strategy!r}; it must be group_by_length or random: rows are "
                "always shuffled"
            )
        if self.gradient_checkpointing and self.ddp_find_unused_parameters is None:
            # Trainer would switch it off, and DistributedDataParallel then wait for gradients of heads that a stage does not use.
            self.ddp_find_unused_parameters: bool | None = True
        if self.lora is not None:
            lora_settings(self.lora)
        if self.freeze_text_tower and (
            other := next((k for k in TRAINS_TEXT if getattr(self, k) not in (None, False)), None)
        ):
            raise ValueError(
                f"{other} is for a text tower that is trained, but freeze_text_tower is true: leave out one of them"
            )
        package = PACKAGES.get(OptimizerNames(self.optim).value)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ImportError(
                f"optim is {OptimizerNames(self.optim).value!r}, which needs {package}: "
                f"{installs('eight_bit')}, and set optim to adamw_bnb_8bit"
            )
        if self.sparse_embeddings:
            self._check_sparse_embeddings()
        for name, excludes in (
            ("sparse_embeddings", self.sparse_embeddings),
            ("mini_batch_tokens", self.mini_batch_tokens),
        ):
            if self.shard_embeddings and excludes:
                raise ValueError(f"shard_embeddings does not go together with {name}: set one of them to false or null")
        if self.mini_batch_tokens is not None and self.mini_batch_tokens < 1:
            raise ValueError(f"mini_batch_tokens is {self.mini_batch_tokens}; it must be 1 or more, or null")
        check_masking(self.text_mask_ratio, self.tabular_mask_ratio, self.text_masking)
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError(
                "early_stopping_patience needs evaluations, but eval_strategy is 'no': set it to epoch or steps"
            )

    @property
    def n_gpu(self) -> int:
        """The GPUs of this process: one at most. Several are for `accelerate launch`, a process each; Trainer would put them
        into one `nn.DataParallel`, where each contrasts its own rows alone."""
        return min(super().n_gpu, 1)

    def _check_sparse_embeddings(self) -> None:
        if self.optim not in SPARSE_OPTIMS:
            raise ValueError(
                f"optim is {OptimizerNames(self.optim).value!r}, which updates whole tables; sparse_embeddings needs one of "
                f"{', '.join(SPARSE_OPTIMS)}"
            )
        given = dict(pair.replace(" ", "").split("=", 1) for pair in (self.optim_args or "").split(",") if "=" in pair)
        if self.optim == "sgd" and float(given.get("momentum", 0)):
            raise ValueError(
                f"optim_args has momentum={given['momentum']}, which moves every row in every step; sparse_embeddings needs sgd "
                "without momentum, or adagrad or adamw_torch_fused"
            )
