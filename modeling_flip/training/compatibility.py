"""What a trainer's settings, its model and its launch cannot do together: told before it trains."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import nn
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..modeling_flip import FlipForCTR, FlipForPreTraining, FlipPreTrainedModel
from ..tabular_layers import BatchNorm
from ..text_tower import random_text_towers, text_towers_of

if TYPE_CHECKING:
    from .trainer import FlipTrainer

logger = logging.get_logger(__name__)

# Settings for one process or DistributedDataParallel.
OF_WHOLE_MODELS = (
    *("sparse_embeddings", "shard_embeddings", "mini_batch_tokens", "auto_find_batch_size"),
    *("lora", "freeze_text_tower"),
)
OF_FLIP = {"mini_batch_tokens": "null", "auto_find_batch_size": "false"}  # and how they are switched off


def takes_mini_batches(model: FlipPreTrainedModel) -> bool:
    """Whether a model's batches can be computed in parts (training/parts.py)."""
    return isinstance(model, FlipForCTR | FlipForPreTraining) and model.config.towers != "tabular"


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, BatchNorm) for module in model.modules())


def check_in_parts(asked: Collection[str], takes_mini_batches: bool, has_batch_norm: bool) -> None:
    """Raises ValueError if batches are to be computed in parts, by the settings that are asked for, and cannot be."""
    for name, off in OF_FLIP.items():
        if name in asked and not takes_mini_batches:
            raise ValueError(f"{name} is for FLIP with a text tower: set it to {off}")
        if name in asked and has_batch_norm:
            raise ValueError(
                f"{name} computes a batch in parts, and batch normalisation (AFN, or batch_norm: true) would take the mean and "
                f"variance of a part for those of the batch: set {name} to {off}"
            )


def check_together(trainer: FlipTrainer, finds_size: bool) -> None:
    """Raises ValueError where settings do not go together with each other, the model, the rows or the launch.

    Args:
        finds_size: `auto_find_batch_size` as it was given; the trainer keeps it from Trainer.
    """
    args, model = trainer.args, trainer.model
    given = {name: getattr(args, name) for name in OF_WHOLE_MODELS} | {"auto_find_batch_size": finds_size}
    asked = [name for name, value in given.items() if value not in (None, False)]
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        for name in asked:
            raise ValueError(
                f"{name} works in one process or with DistributedDataParallel, not with FSDP or DeepSpeed: leave it out, or "
                "launch without them"
            )
    elif os.environ.get("ACCELERATE_USE_FSDP") == "true":
        logger.warning("FSDP is for GPUs: on CPUs accelerate leaves it out, and each process holds the whole model")
    if trainer.is_deepspeed_enabled and args.push_to_hub and args.hub_strategy != HubStrategy.END:
        raise ValueError(
            "DeepSpeed pickles its checkpoints, and pickles are neither pushed nor read from the Hub: set hub_strategy to end"
        )
    if "lora" in asked and args.push_to_hub and args.hub_strategy != HubStrategy.END and args.save_strategy != "no":
        raise ValueError(
            "checkpoints saved while lora trains do not hold the whole model, and would be pushed: set hub_strategy to end"
        )
    check_in_parts(asked, takes_mini_batches(model), has_batch_norm(model))
    if finds_size and (args.world_size > 1 or args.gradient_accumulation_steps > 1):
        raise ValueError(
            "auto_find_batch_size works in one process and without gradient_accumulation_steps: set it to false, and "
            "mini_batch_tokens instead"
        )
    if "lora" in asked and not text_towers_of(model):
        raise ValueError("lora applies to the text tower, and this model has none: leave it out")
    if "freeze_text_tower" in asked and getattr(trainer.train_dataset, "sentences", None) is None:
        raise ValueError(
            "freeze_text_tower needs rows that know what the text tower makes of them, as a run with a recipe makes them "
            "(training/frozen.py); with other rows, set text_learning_rate to 0"
        )


def warn_of_what_trains_badly(trainer: FlipTrainer) -> None:
    args, model = trainer.args, trainer.model
    if random_text_towers(model):
        logger.warning(
            "the text tower starts from random weights, whatever model its configuration names. Use from_text_pretrained "
            "to start from a language model, or from_pretrained to start from a checkpoint"
        )
    steps, rows = args.gradient_accumulation_steps, args.train_batch_size * args.world_size
    if isinstance(model, FlipForPreTraining) and model.config.icl_weight and steps > 1:
        logger.warning(
            f"gradient_accumulation_steps is {steps}: the contrastive loss (ICL) compares only the {rows} rows of one "
            f"batch ({args.train_batch_size} × {args.world_size} processes), not all {rows * steps} of a step; a larger "
            "per_device_train_batch_size gives it more to compare"
        )
