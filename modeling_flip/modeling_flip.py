"""FLIP's models: two towers (FlipModel), their alignment (FlipForPreTraining) and click prediction (FlipForCTR)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.utils import ModelOutput, logging

from .checkpoint_files import LOCATION_KEYS, CheckpointMixin
from .configuration_flip import FlipConfig
from .feature_embeddings import FeatureEmbeddings
from .objectives import InstanceContrastiveLearning, MaskedLanguageModeling, MaskedTabularModeling, batch_mean
from .processing_flip import FlipProcessor
from .tabular_towers import create_tabular_tower
from .text_tower import (
    bare_text_tower,
    check_can_checkpoint,
    check_max_length,
    create_text_tower,
    hidden_states,
    load_text_model,
    masked_lm_head,
    most_tokens,
    pooled,
    text_towers_of,
)

logger = logging.get_logger(__name__)


@dataclass
class FlipModelOutput(ModelOutput):
    """
    Args:
        tabular_representation: (B, D_tab).
        tabular_logit: (B,) the tabular model's own logit.
        text_hidden_states: (B, L, D_text) last hidden states.
        text_representation: (B, D_text) the pooled sentence.
    """

    tabular_representation: torch.Tensor | None = None
    tabular_logit: torch.Tensor | None = None
    text_hidden_states: torch.Tensor | None = None
    text_representation: torch.Tensor | None = None


@dataclass
class FlipForPreTrainingOutput(ModelOutput):
    """Scalars: the weighted sum (Eq. 12), and each objective that is switched on, before its weight."""

    loss: torch.Tensor | None = None
    mlm_loss: torch.Tensor | None = None
    mtm_loss: torch.Tensor | None = None
    icl_loss: torch.Tensor | None = None


@dataclass
class FlipForCTROutput(ModelOutput):
    """
    Args:
        loss: scalar, if labels were given: the sum of the three below.
        logits: (B,) of the click; the probability is their sigmoid. Calibrated in evaluation mode, if the model is calibrated.
        tabular_logits: (B,) of the tabular tower alone, never calibrated; likewise `text_logits`.
        joint_loss: scalar cross-entropy of `logits`; likewise `tabular_loss` and `text_loss`, where both towers are used.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    tabular_logits: torch.Tensor | None = None
    text_logits: torch.Tensor | None = None
    joint_loss: torch.Tensor | None = None
    tabular_loss: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None


# Names of weights.
HEADS = r"^(mlm|mtm|icl|text_classifier)\.|^alpha_logit$"
OTHER_TOWER = {"tabular": r"(^|\.)text_tower\.", "text": r"(^|\.)(tabular_tower|feature_embeddings)\."}


class FlipPreTrainedModel(CheckpointMixin, PreTrainedModel):
    config_class = FlipConfig
    base_model_prefix = "flip"
    main_input_name = "feature_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True  # of the text tower, where that one does
    # Trainer takes a forward with **kwargs for one that normalises the loss itself; ours does not.
    accepts_loss_kwargs = False

    def __init__(self, config: FlipConfig, *args: Any, **kwargs: Any):
        config.check()
        super().__init__(config, *args, **kwargs)

    def post_init(self) -> None:
        super().post_init()
        # Weights of a checkpoint that a model with other heads, or with one tower, ignores without a warning.
        self._keys_to_ignore_on_load_unexpected |= {HEADS, OTHER_TOWER.get(self.config.towers, HEADS)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises layers of torch; the text tower and modules with `init_parameters` initialise themselves."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif (fill := getattr(module, "init_parameters", None)) is not None:
            fill()

    @classmethod
    def from_text_pretrained(
        cls,
        text_model_name_or_path: str | os.PathLike | None,
        processor: FlipProcessor,
        **config_kwargs: Any,
    ) -> Self:
        """A fresh model around a pretrained text tower, sized for the processor's fields and tokenizer.

        Args:
            text_model_name_or_path: a Hub id or folder that AutoModel loads; None where `towers` is "tabular".
            processor: provides the numbers of features, fields and tokens.
            config_kwargs: settings of `FlipConfig`; and where the text model is, as in `from_pretrained`: `revision`, `token`,
                `cache_dir`, `subfolder`, `local_files_only`, `force_download`.

        Raises:
            ValueError: there is no such setting, the processor's sentences may be longer than the text model can read, or the
                text model is incomplete.
        """
        located = {key: config_kwargs.pop(key) for key in LOCATION_KEYS if key in config_kwargs}
        if config_kwargs.get("towers") == "tabular":
            return cls(cls.config_class.from_processor(processor, **config_kwargs))
        if text_model_name_or_path is None or processor.tokenizer is None:
            raise ValueError("a text tower needs text_model_name_or_path and a processor with a tokenizer")
        text_tower = load_text_model(AutoModel, text_model_name_or_path, **located)
        check_max_length(processor.max_length, most_tokens(text_tower, processor.tokenizer), text_model_name_or_path)
        if len(processor.tokenizer) > text_tower.get_input_embeddings().num_embeddings:
            text_tower.resize_token_embeddings(len(processor.tokenizer))
        model = cls(cls.config_class.from_processor(processor, text_config=text_tower.config, **config_kwargs))
        weights = bare_text_tower(text_tower).state_dict()
        for tower in model.fresh_text_towers():
            missing = tower.load_state_dict(weights, strict=False).missing_keys
            tower.has_random_weights = False
            if missing:
                raise ValueError(f"{text_model_name_or_path} lacks weights of its own architecture: {missing[:3]}")
        return model

    def fresh_text_towers(self) -> list[PreTrainedModel]:
        """The text towers that `from_text_pretrained` fills."""
        return [self.base_model.text_tower]

    def calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        """logits (B,) → (B,); in evaluation mode, scaled and shifted as configured."""
        config = self.config
        return logits if self.training else config.logit_scale * logits + config.logit_shift

    def embedding_penalty(
        self, feature_ids: torch.Tensor | None, list_feature_ids: torch.Tensor | None = None
    ) -> torch.Tensor | float:
        """λ/2 Σ (‖e‖² + w²), of the features that `FeatureEmbeddings.squared_norm` takes; 0 in evaluation, and where λ is 0."""
        features = getattr(self.base_model, "feature_embeddings", None)
        if features is None or not (self.training and self.config.embedding_l2):
            return 0.0
        return 0.5 * self.config.embedding_l2 * features.squared_norm(feature_ids, list_feature_ids)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """transformers calls this to switch activation checkpointing on, which is the text tower's, or off.

        Raises:
            ValueError: there is no text tower, or one that cannot.
        """
        text_towers = text_towers_of(self)
        if enable:
            check_can_checkpoint(text_towers)
        if text_towers:
            super()._set_gradient_checkpointing(enable, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Embedding:
        if self.config.towers == "tabular":
            return self.base_model.feature_embeddings.embedding
        return self.base_model.text_tower.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.text_tower.set_input_embeddings(value)


class OldName(WeightRenaming):
    """Maps the names of weights in older checkpoints to the new ones, for loading only."""

    def reverse_transform(self) -> WeightRenaming:
        return WeightRenaming(r"^(?!)", "")  # matches nothing


class Reshape(ConversionOps):
    """A weight that has another shape in a model than in its file."""

    def __init__(self, shape: tuple[int, ...], shape_in_file: tuple[int, ...]):
        self.shape, self.shape_in_file = shape, shape_in_file

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, list[torch.Tensor]]:
        (found,) = input_dict.values()
        tensor = found[0] if isinstance(found, list) else found
        return {target_patterns[0]: [tensor.reshape(self.shape)]}

    @property
    def reverse_op(self) -> ConversionOps:
        return Reshape(self.shape_in_file, self.shape)


# In format 1 the tabular tower owned the feature tables. In files, α's logit is a scalar.
for model_type in ("flip", "morec"):
    conversions: list[Any] = [
        OldName(rf"tabular_tower\.{table}\.weight", f"feature_embeddings.{table}.weight")
        for table in ("embedding", "first_order")
    ]
    conversions.append(WeightConverter("alpha_logit", "alpha_logit", [Reshape((1,), ())]))
    register_checkpoint_conversion_mapping(model_type, conversions, overwrite=True)  # remote code registers them too


class FlipModel(FlipPreTrainedModel):
    """The two towers, or one of them."""

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        if config.towers != "text":
            tower = create_tabular_tower(config)
            self.feature_embeddings = FeatureEmbeddings(config, tower.first_order)
            self.tabular_tower = tower
        if config.towers != "tabular":
            if config.text_config is None:
                raise ValueError(
                    f"towers is {config.towers!r}, but this checkpoint has no text tower; load it with towers='tabular'"
                )
            self.text_tower = create_text_tower(config.text_config)
        self.post_init()

    def forward(
        self,
        feature_ids: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        list_feature_ids: torch.Tensor | None = None,
        text_representation: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FlipModelOutput:
        """feature_ids (B, F), input_ids (B, L), attention_mask (B, L), and where there are list fields list_feature_ids
        (B, number of them, longest list); a tower without its input is left out. text_representation (B, D_text) is what the
        text tower would make of input_ids, which then need not be given."""
        output = FlipModelOutput(text_representation=text_representation)
        if self.config.towers != "text" and feature_ids is not None:
            # In fp32 under autocast too: it costs almost no time, and bf16 would round logits to three digits.
            with torch.autocast(feature_ids.device.type, enabled=False):
                embeddings = self.feature_embeddings(feature_ids, list_feature_ids)  # (B, F, D)
                output.tabular_representation, logit = self.tabular_tower(embeddings)
                if self.tabular_tower.first_order:
                    logit = logit + self.feature_embeddings.linear_term(feature_ids, list_feature_ids)
                output.tabular_logit = logit
        if self.config.towers != "tabular" and input_ids is not None and text_representation is None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            hidden = hidden_states(self.text_tower, input_ids, attention_mask)
            output.text_hidden_states = hidden
            output.text_representation = pooled(hidden, attention_mask, self.config.text_pooling)
        return output


class FlipForPreTraining(FlipPreTrainedModel):
    """Fine-grained alignment of the two towers: L = MLM + MTM + ICL (Eq. 12), each with its weight.

    Each tower reads the row and its masked copy; the text tower reads both in one pass.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        if config.towers != "both":
            raise ValueError(f"pretraining aligns two towers, but towers is {config.towers!r}; set it to 'both'")
        if not (config.mlm_weight or config.mtm_weight or config.icl_weight):
            raise ValueError("mlm_weight, mtm_weight and icl_weight are all 0: there is nothing to pretrain")
        self.flip = FlipModel(config)
        tabular_size = self.flip.tabular_tower.representation_size
        text_size = self.flip.text_tower.config.hidden_size
        if config.mlm_weight:
            vocab_size, token_size = self.flip.text_tower.get_input_embeddings().weight.shape
            self.mlm = MaskedLanguageModeling(config, tabular_size, text_size, token_size, vocab_size)
        if config.mtm_weight:
            self.mtm = MaskedTabularModeling(config, tabular_size, text_size)
        if config.icl_weight:
            self.icl = InstanceContrastiveLearning(config, tabular_size, text_size)
        self.post_init()

    @classmethod
    def from_text_pretrained(
        cls,
        text_model_name_or_path: str | os.PathLike | None,
        processor: FlipProcessor,
        **config_kwargs: Any,
    ) -> Self:
        """As of the other models. Without joint reconstruction the MLM head, too, is the text model's, if it has a like one."""
        model = super().from_text_pretrained(text_model_name_or_path, processor, **config_kwargs)
        if text_model_name_or_path is not None and model.config.mlm_weight and not model.config.joint_reconstruction:
            located = {key: config_kwargs[key] for key in LOCATION_KEYS if key in config_kwargs}
            head = masked_lm_head(text_model_name_or_path, **located)
            for name, weight in head.items():
                model.mlm.get_parameter(name).data[: len(weight)] = weight  # tokens may have been added
            if not head:
                logger.warning(
                    f"{text_model_name_or_path} has no head for masked words that fits: a fresh one is trained"
                )
        return model

    def forward(
        self,
        feature_ids: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        masked_feature_ids: torch.Tensor,
        masked_input_ids: torch.Tensor,
        mtm_labels: torch.Tensor,
        mlm_labels: torch.Tensor,
        noise_feature_ids: torch.Tensor,
        list_feature_ids: torch.Tensor | None = None,
        masked_list_feature_ids: torch.Tensor | None = None,
        projection_gradients: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> FlipForPreTrainingOutput:
        """What `PretrainingCollator` gives → the losses.

        Args:
            projection_gradients: of a larger batch's ICL loss, with respect to these rows' `projections`. `icl_loss` then is what
                has this gradient, and not a loss (training/parts.py).
        """
        config, output = self.config, FlipForPreTrainingOutput()
        text, sentence, table = self._views(feature_ids, input_ids, attention_mask, masked_input_ids, list_feature_ids)
        losses: list[torch.Tensor] = []
        if config.mlm_weight:
            token_embeddings = self.get_input_embeddings().weight
            output.mlm_loss = self.mlm(text["masked"], table, mlm_labels, token_embeddings)
            losses.append(config.mlm_weight * output.mlm_loss)
        if config.mtm_weight:
            masked = self.flip(masked_feature_ids, list_feature_ids=masked_list_feature_ids).tabular_representation
            output.mtm_loss = self.mtm(masked, text.get("clean"), attention_mask, mtm_labels, noise_feature_ids)
            losses.append(config.mtm_weight * output.mtm_loss)
        if config.icl_weight:
            assert sentence is not None and table is not None
            projected = self.icl.project(sentence, table)
            if projection_gradients is None:
                output.icl_loss = self.icl.contrast(*projected)
            else:
                pairs = zip(projected, projection_gradients, strict=True)
                output.icl_loss = torch.stack([(x * gradient).sum() for x, gradient in pairs]).sum()
            losses.append(config.icl_weight * output.icl_loss)
        output.loss = torch.stack(losses).sum()
        return output

    def projections(
        self,
        feature_ids: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        masked_input_ids: torch.Tensor,
        list_feature_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What ICL compares, (B, projection_size) each: the sentence and the table. Random numbers are drawn as in `forward`."""
        _, sentence, table = self._views(feature_ids, input_ids, attention_mask, masked_input_ids, list_feature_ids)
        assert sentence is not None and table is not None
        return self.icl.project(sentence, table)

    def _views(
        self,
        feature_ids: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        masked_input_ids: torch.Tensor,
        list_feature_ids: torch.Tensor | None,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
        """Hidden states (B, L, D_text) of the masked and the clean sentence, the clean sentence (B, D_text), the clean table
        (B, D_tab); each only if some objective needs it. Both sentences are read in one pass, so that the gradient of the token
        embeddings, as large as the text vocabulary, is computed once."""
        config = self.config
        joint = config.joint_reconstruction
        views = {"masked": masked_input_ids} if config.mlm_weight else {}
        if config.icl_weight or (config.mtm_weight and joint):
            views["clean"] = input_ids
        text: dict[str, torch.Tensor] = {}
        sentence = table = None
        if views:
            tokens, mask = torch.cat(list(views.values())), attention_mask.repeat(len(views), 1)
            passed = self.flip(input_ids=tokens, attention_mask=mask)
            text = dict(zip(views, passed.text_hidden_states.chunk(len(views)), strict=True))
            sentence = passed.text_representation.chunk(len(views))[-1]  # the clean view comes last
        if config.icl_weight or (config.mlm_weight and joint):
            table = self.flip(feature_ids, list_feature_ids=list_feature_ids).tabular_representation
        return text, sentence, table


class FlipForCTR(FlipPreTrainedModel):
    """Click prediction: ŷ = σ(α · logit_ID + (1 − α) · logit_PLM), α learned in [0, 1] (FLIP §3.3).

    With one tower, its own logit. A pretraining checkpoint loads into it, and a checkpoint of both towers loads as one with
    `from_pretrained(path, towers="tabular")` or `"text"`: the other tower's weights are never read.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.flip = FlipModel(config)
        if config.towers != "tabular":
            self.text_classifier = nn.Linear(self.flip.text_tower.config.hidden_size, 1)
        if config.towers == "both":
            # α = σ(alpha_logit): between 0 and 1 by construction, one half at the start. Not a scalar: FSDP refuses those.
            self.alpha_logit = nn.Parameter(torch.zeros(1))
        self.post_init()

    def may_lack(self, weight: str) -> bool:
        return self.is_pretraining_checkpoint and not weight.startswith("flip.")

    @property
    def is_pretraining_checkpoint(self) -> bool:
        return FlipForPreTraining.__name__ in (self.config.architectures or [])

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Self:
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.is_pretraining_checkpoint:
            # The tabular click head is in the checkpoint, but pretraining does not train it.
            model.untrained_weights = ("the click heads", *model.untrained_weights)
            logger.warning(
                f"{pretrained_model_name_or_path} is a pretraining checkpoint: its towers ({model.config.towers}) are loaded, "
                "its pretraining heads are not, and the click heads are untrained; finetune before scoring"
            )
        return loaded

    def init_parameters(self) -> None:
        if self.config.towers == "both":
            init.zeros_(self.alpha_logit)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As in torch, also from a file (Trainer reads its checkpoints so)."""
        alpha_logit = state_dict.get(f"{prefix}alpha_logit")
        if alpha_logit is not None and alpha_logit.ndim == 0:
            state_dict[f"{prefix}alpha_logit"] = alpha_logit.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of this model, for `FlipDataCollator`."""
        views = {"tabular": ("feature_ids",), "text": ("sentence",)}
        return views.get(self.config.towers, ("feature_ids", "sentence"))

    @property
    def alpha(self) -> torch.Tensor:
        """(1,) the weight of the tabular tower's logit; 1 or 0 with a single tower."""
        if self.config.towers == "both":
            return self.alpha_logit.sigmoid()
        return torch.tensor([float(self.config.towers == "tabular")])

    def forward(
        self,
        feature_ids: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        list_feature_ids: torch.Tensor | None = None,
        text_representation: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FlipForCTROutput:
        """feature_ids (B, F), input_ids (B, L), attention_mask (B, L), labels (B,) of 0 and 1, and where there are list fields
        list_feature_ids (B, number of them, longest list), padded with −1; or instead of input_ids text_representation
        (B, D_text), what the text tower makes of them."""
        needed = {
            "feature_ids": feature_ids,
            "input_ids": input_ids if text_representation is None else text_representation,
        }
        needed.pop({"tabular": "input_ids", "text": "feature_ids"}.get(self.config.towers, ""), None)
        for name, value in needed.items():
            if value is None:
                raise ValueError(
                    f"{name} is missing; towers is {self.config.towers!r}: pass everything that FlipProcessor returns"
                )
        towers = self.flip(feature_ids, input_ids, attention_mask, list_feature_ids, text_representation)
        if self.config.towers == "tabular":
            logits = towers.tabular_logit
        else:
            with torch.autocast(towers.text_representation.device.type, enabled=False):
                logits = self.text_classifier(towers.text_representation.to(self.text_classifier.weight.dtype)).squeeze(
                    1
                )
        if self.config.towers != "both":
            logits, loss = self.calibrated(logits), None
            if labels is not None:
                loss = click_loss(logits, labels) + self.embedding_penalty(feature_ids, list_feature_ids)
            return FlipForCTROutput(loss=loss, logits=logits)
        each = {"tabular": towers.tabular_logit, "text": logits}
        each["joint"] = self.calibrated(self.alpha * each["tabular"] + (1 - self.alpha) * each["text"])
        output = FlipForCTROutput(logits=each["joint"], tabular_logits=each["tabular"], text_logits=each["text"])
        if labels is not None:
            losses = {f"{name}_loss": click_loss(tower_logits, labels) for name, tower_logits in each.items()}
            loss = torch.stack(list(losses.values())).sum() + self.embedding_penalty(feature_ids, list_feature_ids)
            output = FlipForCTROutput(loss=loss, **output, **losses)
        return output


def click_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of logits (B,) against clicks (B,), in fp32."""
    return batch_mean(F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none"))
