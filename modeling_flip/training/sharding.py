"""How FSDP2 cuts a model: each layer of its text towers is a unit, and all the rest is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor

from ..modeling_flip import FlipForCTR, FlipPreTrainedModel
from ..text_tower import text_towers_of


def layer_classes(model: nn.Module) -> set[str]:
    """Names of the classes of the layers that the text towers repeat, whatever their family: `{"BertLayer"}`.

    They are the members of the outermost `ModuleList`s. A family's own `_no_split_modules` may hold its embeddings, too.
    """
    if isinstance(model, nn.ModuleList):
        return {type(layer).__name__ for layer in model}
    return set().union(*map(layer_classes, model.children()))


@contextmanager
def units_of_layers(model: FlipPreTrainedModel, accelerator: Accelerator) -> Iterator[None]:
    """While accelerate wraps the model in FSDP2, it makes a unit of each layer of the text towers and of nothing else.

    By itself it makes one of the word embeddings, too. MLM's head reads their weight from outside, when it is cut up again.
    """
    plugin = accelerator.state.fsdp_plugin
    plugin.transformer_cls_names_to_wrap = sorted(set().union(*map(layer_classes, text_towers_of(model))))
    model.__dict__["get_input_embeddings"] = lambda: None
    try:
        yield
    finally:
        del model.__dict__["get_input_embeddings"]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A weight of which this process may hold a part, with FSDP2 or ZeRO-3. All processes must ask for it."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters(tensor):
            return tensor.detach().clone()
    return tensor


def alpha(model: FlipForCTR) -> float:
    """The α of a model that may be in parts."""
    return whole(model.alpha_logit).sigmoid().item() if model.config.towers == "both" else model.alpha.item()


def load_whole(model: nn.Module, files: list[Path], *, is_main_process: bool) -> None:
    """Gives every process its part of the weights in a checkpoint's files, which only the main process reads."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    read = [load_file(file) for file in files] if is_main_process else []
    weights: dict[str, Any] = {
        n: weight.reshape(shapes.get(n, weight.shape)) for of in read for n, weight in of.items()
    }
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
