"""Text towers: any AutoModel, from its name to hidden states and the pooled sentence."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from .checkpoint_files import CheckpointMixin, safe_weights, some_of, without_load_report
from .configuration_flip import load_text_config

logger = logging.get_logger(__name__)

# Families that read (1, T) with `position_ids` and `cu_seq_lens_q` as they read padded rows. Others do not (T5 has relative
# positions, RoBERTa counts from behind its padding), and nothing would say so (tests/modeling_flip/text_families).
WITHOUT_PADDING = ("albert", "bert", "distilbert", "electra", "gpt2", "llama", "modernbert", "qwen2")
# The `model_max_length` of a tokenizer without a limit is above this.
NO_LIMIT = 1_000_000


def load_text_model(auto_class: Any, name_or_path: str | os.PathLike, **located: Any) -> PreTrainedModel:
    """A pretrained text model in fp32, from its own files of safetensors alone. `located` is of `safe_weights`.

    Raises:
        ValueError: its files name others, or it is far larger than its weights.
    """
    load_text_config(name_or_path, **located)
    with safe_weights(name_or_path, **located), without_load_report():
        model, info = auto_class.from_pretrained(
            name_or_path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **located
        )
    # Unused heads and an unused pooler are expected.
    if missing := [name for name in info["missing_keys"] if not name.startswith("pooler.")]:
        logger.warning(f"{name_or_path} lacks weights of its own architecture, which are random: {some_of(missing)}")
    return model


def masked_lm_head(name_or_path: str | os.PathLike, **located: Any) -> dict[str, torch.Tensor]:
    """The head of a pretrained masked language model, by the names of `MaskedLanguageModeling` without joint reconstruction;
    empty if it has none, or one that computes something else."""
    if load_text_config(name_or_path, **located).model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return {}
    with safe_weights(name_or_path, **located), without_load_report():
        model, info = AutoModelForMaskedLM.from_pretrained(
            name_or_path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **located
        )
    encoder, output = model.base_model, model.get_output_embeddings()
    own = [module for module in model.modules() if module not in {output, *encoder.modules()}]
    layers, norms = ([module for module in own if isinstance(module, kind)] for kind in (nn.Linear, nn.LayerNorm))
    is_loaded = all(name.startswith(f"{model.base_model_prefix}.") for name in info["missing_keys"])
    if not (is_loaded and len(layers) == len(norms) == 1):
        return {}
    (hidden,), (norm,) = layers, norms
    with torch.no_grad():
        tokens = torch.arange(4)[None]
        theirs, words = model(input_ids=tokens).logits, encoder(input_ids=tokens).last_hidden_state
        ours = F.linear(norm(F.gelu(hidden(words))), model.get_input_embeddings().weight, output.bias)
    if (ours - theirs).abs().max() > 0.01 * theirs.std():  # one per cent, for GELU's approximations
        return {}
    head = {f"hidden.{name}": weight for name, weight in hidden.named_parameters()}
    head |= {f"norm.{name}": weight for name, weight in norm.named_parameters()}
    return head | ({} if output.bias is None else {"bias": output.bias})


def most_tokens(text_model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest sentence that a text model reads: its table of absolute positions and its tokenizer's own limit bound it.
    None where neither does, as with relative or rotary positions.

    Args:
        text_model: may be on the device "meta": only its shapes are read.
        tokenizer: its `model_max_length` is huge where it has no limit.
    """
    limits = [tokenizer.model_max_length]
    for path, module in text_model.named_modules():
        if isinstance(module, nn.Embedding) and re.search(r"^(?!.*relative).*(position|wpe)", path.rpartition(".")[2]):
            first = (
                0 if module.padding_idx is None else module.padding_idx + 1
            )  # RoBERTa counts from behind its padding
            limits.append(module.num_embeddings - getattr(module, "offset", first))  # BART and OPT say where they begin
    return min(limits) if min(limits) < NO_LIMIT else None


def check_max_length(max_length: int | None, limit: int | None, text_model: str | os.PathLike) -> None:
    """Raises ValueError if sentences of `max_length` tokens are longer than a text model can read."""
    if max_length is not None and limit is not None and max_length > limit:
        raise ValueError(
            f"max_length is {max_length}, but text model {str(text_model)!r} reads at most {limit} tokens; set max_length to "
            f"{limit} or less"
        )


def create_text_tower(text_config: PreTrainedConfig, auto_class: Any = AutoModel) -> PreTrainedModel:
    """A fresh text tower, marked as random until weights are loaded. The configuration cannot tell: that of a pretrained model
    names it whether or not its weights were loaded."""
    tower = auto_class.from_config(text_config, dtype=torch.get_default_dtype())
    tower = bare_text_tower(tower) if auto_class is AutoModel else tower
    tower.has_random_weights = True
    return tower


def random_text_towers(model: torch.nn.Module) -> list[Any]:
    """The text towers of a model whose weights were neither loaded nor trained."""
    return [module for module in model.modules() if getattr(module, "has_random_weights", False)]


def text_towers_of(model: nn.Module) -> list[Any]:
    """The models of transformers inside one of this package's, those inside these included."""
    return [m for m in model.modules() if isinstance(m, PreTrainedModel) and not isinstance(m, CheckpointMixin)]


def check_can_checkpoint(text_towers: Sequence[PreTrainedModel]) -> None:
    """Raises ValueError if activation checkpointing is asked for where there is no text tower, or of one that cannot."""
    if not text_towers:
        raise ValueError(
            "activation_checkpointing (gradient_checkpointing) is of the text tower, and this model has none: set it to false"
        )
    for tower in text_towers:
        if not tower.supports_gradient_checkpointing:
            raise ValueError(
                f"activation_checkpointing (gradient_checkpointing) is true, but text model {tower.config.model_type!r} "
                "cannot do it in transformers: set it to false, or use another text model. Where a batch does not fit, "
                "mini_batch_tokens helps too"
            )


def bare_text_tower(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a text model that is used: only the encoder if there is a decoder too, no pooler, no key-value cache."""
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
        model.pooler = None
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model


def hidden_states(text_tower: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """input_ids (B, L), attention_mask (B, L) → (B, L, D). Towers of transformers refuse a batch without rows, as a process may
    get of a short last batch: they read a stand-in, so that their weights have a gradient, of 0."""
    if not input_ids.shape[0]:  # not len(): it would fix the size of a batch in an export
        one = input_ids.new_zeros(1, max(1, input_ids.shape[1]))
        return text_tower(input_ids=one, attention_mask=torch.ones_like(one)).last_hidden_state[:0]
    if reads_without_padding(text_tower):
        return hidden_states_without_padding(text_tower, input_ids, attention_mask)
    return text_tower(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def reads_without_padding(text_tower: Any) -> bool:
    """Whether a text tower can read sentences end to end: with flash attention, which keeps them apart without a mask."""
    config = text_tower.config
    is_flash = str(config._attn_implementation).startswith("flash_attention")
    return is_flash and config.model_type in WITHOUT_PADDING


def hidden_states_without_padding(
    text_tower: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """As `hidden_states`, but the tower reads the T tokens that are no padding as one row (1, T), each sentence with positions
    and attention of its own; at padding the result is 0. Padding comes after the sentence."""
    is_token = attention_mask.bool()
    ends = attention_mask.sum(1).cumsum(0, dtype=torch.int32)
    bounds = F.pad(ends, (1, 0))  # (B + 1,)
    longest = input_ids.shape[1]  # an upper bound, known without asking the device
    positions = torch.arange(longest, device=input_ids.device).expand_as(input_ids)
    hidden = text_tower(
        input_ids=input_ids[is_token][None],
        position_ids=positions[is_token][None],
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=longest,
        max_length_k=longest,
    ).last_hidden_state[0]  # (T, D)
    padded = hidden.new_zeros(*input_ids.shape, hidden.shape[-1])
    return padded.masked_scatter(is_token.unsqueeze(-1), hidden)


def pooled(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: str | None) -> torch.Tensor:
    """hidden (B, L, D), attention_mask (B, L) → (B, D): the first token, the last, or the mean, padding left out."""
    if pooling == "mean":
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)
    if pooling == "last":
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), attention_mask.sum(1) - 1]
    return hidden[:, 0]
