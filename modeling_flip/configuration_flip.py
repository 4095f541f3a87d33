"""FlipConfig: the sizes and choices of a FLIP model."""

# No `from __future__ import annotations` here: `strict` reads the types of the fields, and skips types that are strings.
import math
import os
import re
from collections.abc import Iterable
from dataclasses import fields
from inspect import signature
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from .fields import did_you_mean

logger = logging.get_logger(__name__)

# Version of a checkpoint's files. Raise it when older code would misread new files.
FORMAT_VERSION = 2
# Versions of files that older code would read and score otherwise; other models keep the version above. Of a calibrated model,
# and of a MoRec with an activation behind its projection.
CALIBRATED_FORMAT_VERSION = 3
MOREC_FORMAT_VERSION = LAST_FORMAT_VERSION = 4
# Settings of the package's own towers, which may be given flat. Format 1 stored them so, all but `deep`. The towers document them
# (tabular_towers.py).
FLAT_SETTINGS: dict[str, tuple[str, ...]] = {
    "wide_deep": (),
    "deepfm": (),
    "afm": ("attention_size",),
    "pnn": ("pnn_product",),
    "dcn": ("num_cross_layers",),
    "dcnv2": ("num_cross_layers",),
    "dcn_mix": ("num_cross_layers", "num_experts", "cross_rank"),
    "xdeepfm": ("cin_sizes",),
    "afn": ("num_logarithmic_neurons",),
    "autoint": ("num_attention_layers", "num_attention_heads", "attention_size", "deep"),
}
# Of these, what format 1 did not store for every tower: another tower refuses it, as any setting that it has not.
NEVER_SHARED = {"deep"}
# What transformers reads beside the fields of a configuration. Others would be kept, unread.
OF_EVERY_CONFIG = {"attn_implementation", "name_or_path", "num_labels", "output_attentions", "torch_dtype"}
# Far above any real model or table; beyond these limits a config.json could fill memory before its weights are checked.
MOST_PARTS, LONGEST_TEXT = 100_000, 10_000
PARTS = re.compile(r"layer|block|stage|depth|head|expert|label|num_fields")
# Whether this file was loaded from a checkpoint instead of an installed package.
IS_REMOTE_CODE = __name__.startswith("transformers_modules.")
PIPELINE_TASK, CLICK_AUTO_CLASS = "ctr-prediction", "AutoModelForSequenceClassification"


class InstalledTasks(dict[str, Any]):
    """Tells `transformers.pipeline` the task of a checkpoint without running the checkpoint's code: it uses this package's own
    pipeline instead."""

    def __contains__(self, task: object) -> bool:
        return False


@strict
class FlipConfig(PreTrainedConfig):
    """Configuration of a FLIP model: a tabular tower, a text tower, and what pretraining puts between them.

    Args:
        text_config: configuration of any encoder that AutoModel knows; not used where `towers` is "tabular".
        towers: "both" (FLIP), "tabular" (FLIP_ID, or an ID model from scratch) or "text" (FLIP_PLM).
        tabular_tower: name of a registered tabular tower, such as "dcnv2", "deepfm" or "autoint".
        tower_settings: settings of that tower alone, such as {"num_cross_layers": 2}; a model adds the defaults of the others.
            The package's own may also be given flat: `FlipConfig(tabular_tower="dcn", num_cross_layers=2)`.
        item_fields: positions in the sentence of the fields that describe the item; the others describe the user. Read by the
            models that keep the two apart (CTR-BERT, MoRec).
        num_features: M, the number of features of all fields, including each field's unknown feature and `<MASK>`.
        num_fields: F, the number of fields that the tabular tower reads.
        list_fields: which of these hold lists, by position.
        text_fields: positions in the sentence of the fields that only the text tower reads.
        embedding_size: D, the size of a feature embedding.
        hidden_sizes: the layers of the tabular tower's MLP.
        activation: activation of the tabular tower's MLP, by its name in transformers' ACT2FN.
        batch_norm: use batch normalisation in the tabular tower's MLP. The default is that of the tower's authors: yes for AFN,
            no for the others.
        dropout: dropout of the tabular tower's MLP, and of AFM's pooled products.
        embedding_l2: weight λ of the penalty λ/2 Σ (‖e‖² + w²) that is added to the finetuning loss, over the embeddings and
            first-order weights of all features; with sparse_embeddings, of those in the rows of a step.
        text_pooling: how a sentence becomes one vector: "cls" (the first token), "mean" or "last" (of the tokens that are not
            padding). The default depends on the model: last for decoders, mean for encoders of encoder-decoders, else cls.
        projection_size: size of the space in which ICL compares the towers, and of MTM's hidden layer.
        temperature: τ, the temperature of ICL.
        icl_subspaces: compare the towers in this many parts of the projection, each with the most similar part of the other, as
            CTRL does.
        icl_layer_norm: normalise what ICL projects; no in checkpoints from before this was done.
        mlm_weight: weight of the MLM loss (masked words); 0 switches it off.
        mtm_weight: weight of the MTM loss (masked features).
        icl_weight: weight of the ICL loss (contrastive).
        joint_reconstruction: recover a masked field with the help of the other tower.
        logit_scale: what a calibration multiplies the model's logit by in scoring.
        logit_shift: what is added to that.
        sampling_shift: the part of `logit_shift` that corrects for a log that kept only a share of its non-clicks. It holds for
            a single tower too, the rest of the calibration does not.
        vocabulary_fingerprint: fingerprint of the vocabulary that the weights were trained with.
        tokenizer_fingerprint: that of the tokenizer; None where there is no text tower, and in older checkpoints.
        format_version: version of the checkpoint's files.
    """

    model_type = "flip"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True)}
    keys_to_ignore_at_inference = ["joint_loss", "tabular_loss", "text_loss"]

    text_config: PreTrainedConfig | dict | None = None
    towers: str = "both"
    tabular_tower: str = "dcnv2"
    tower_settings: dict[str, Any] | None = None
    item_fields: list[int] | tuple[int, ...] = ()
    num_features: int = 2
    num_fields: int = 1
    list_fields: list[int] | tuple[int, ...] = ()
    text_fields: list[int] | tuple[int, ...] = ()
    embedding_size: int = 32
    hidden_sizes: list[int] | tuple[int, ...] = (300, 300, 128)
    activation: str = "relu"
    batch_norm: bool | None = None
    dropout: float | int = 0.0
    embedding_l2: float | int = 0.0
    text_pooling: str | None = None
    projection_size: int = 128
    temperature: float | int = 0.7
    icl_subspaces: int = 1
    icl_layer_norm: bool = True
    mlm_weight: float | int = 1.0
    mtm_weight: float | int = 1.0
    icl_weight: float | int = 1.0
    joint_reconstruction: bool = True
    logit_scale: float | int = 1.0
    logit_shift: float | int = 0.0
    sampling_shift: float | int = 0.0
    vocabulary_fingerprint: str | None = None
    tokenizer_fingerprint: str | None = None
    format_version: int = FORMAT_VERSION

    # Classes that `trust_remote_code=True` finds in a checkpoint, by the Auto class that asks for them.
    remote_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_flip.FlipConfig",
        "AutoModel": "modeling_flip.FlipModel",
        "AutoModelForPreTraining": "modeling_flip.FlipForPreTraining",
        CLICK_AUTO_CLASS: "modeling_flip.FlipForCTR",
    }

    @classmethod
    def from_processor(cls, processor: Any, **settings: Any) -> Any:
        """The configuration of a model for the fields of a `FlipProcessor`: sizes come from the processor, and without a
        tokenizer `towers` is "tabular".

        Args:
            processor: provides num_features, num_fields, list_fields, text_fields and the two fingerprints.
            settings: all other settings.

        Raises:
            ValueError: a text tower is asked for but the processor has no tokenizer, there is no such setting, or one is
                impossible.

        Example:
            >>> from modeling_flip import FlipProcessor
            >>> processor = FlipProcessor.fit({"city": ["Rome", "Oslo"]})
            >>> FlipConfig.from_processor(processor, tabular_tower="deepfm").num_fields
            1
        """
        if processor.tokenizer is None:
            settings.setdefault("towers", "tabular")
            if settings["towers"] != "tabular":
                raise ValueError(
                    f"towers is {settings['towers']!r}, but the processor has no tokenizer for a text tower: give "
                    "FlipProcessor.fit one, or set towers to 'tabular'"
                )
        known = {field.name for field in fields(cls)} | {*signature(cls.__init__).parameters} | OF_EVERY_CONFIG
        for name in settings.keys() - known - set(flat_settings(settings)):
            raise ValueError(f"{cls.__name__} has no setting {name!r}{did_you_mean(name, sorted(known))}")
        return cls(**(processor.config_settings | settings))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, from a config.json of any format up to this one.

        Raises:
            ValueError: it was written by a later version that this one would misread, or asks for what no checkpoint needs.
        """
        check_settings(config_dict)
        version = config_dict.get("format_version", FORMAT_VERSION)
        if not isinstance(version, int) or version > LAST_FORMAT_VERSION:
            raise ValueError(
                f"config.json has format version {version!r}, but this modeling_flip reads up to {LAST_FORMAT_VERSION}; "
                "upgrade modeling_flip"
            )
        settings = {"icl_layer_norm": False, **config_dict, "format_version": FORMAT_VERSION}
        if version == 1:
            tower = settings.get("tabular_tower", cls.tabular_tower)
            for name in set(flat_settings(settings)) - set(FLAT_SETTINGS.get(tower, ())):
                del settings[name]
            settings.setdefault("batch_norm", False)
            if tower == "autoint":
                settings["tower_settings"] = {"deep": False}
        for name in flat_settings(settings):  # AutoInt's `deep` once stood there too, and was not read
            if name in (settings.get("tower_settings") or {}):
                del settings[name]
        is_of_both = settings.get("towers", cls.towers) == "both" and settings.get("logit_scale", 1.0) != 1
        if is_of_both and kwargs.get("towers", "both") != "both" and not {"logit_scale", "logit_shift"} & kwargs.keys():
            said = f"the checkpoint's calibration is of both towers' logit: the {kwargs['towers']} tower alone is not calibrated"
            if "sampling_shift" not in settings:  # an older checkpoint
                said += ". If its log kept only a share r of the non-clicks, pass logit_shift, the logarithm of r"
            logger.warning(said)
            settings |= {"logit_scale": 1.0, "logit_shift": settings.get("sampling_shift", 0.0)}
        # Tower settings among the arguments of from_pretrained: transformers would pass unknown ones on to the model, and
        # replace `tower_settings` as a whole.
        settings |= {name: kwargs.pop(name) for name in flat_settings(kwargs)}
        settings["tower_settings"] = {
            **(settings.get("tower_settings") or {}),
            **(kwargs.pop("tower_settings", None) or {}),
        }
        return super().from_dict(settings, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        flat = {name: kwargs.pop(name) for name in flat_settings(kwargs)}
        # A tower outside the package reports unknown settings itself.
        own = {*FLAT_SETTINGS.get(self.tabular_tower, flat), *NEVER_SHARED}
        for name in flat.keys() - own:
            logger.warning_once(f"{name} is ignored: tabular tower {self.tabular_tower!r} has no such setting")
        self.tower_settings = {**(self.tower_settings or {}), **{name: flat[name] for name in flat if name in own}}
        if self.towers != "tabular" and self.text_config is None:
            self.text_config = {"model_type": "bert"}
        # Always this code's version, even if an older checkpoint was loaded.
        kwargs["auto_map"] = dict(self.remote_classes)
        tasks = {
            PIPELINE_TASK: {
                "impl": "pipeline_flip.CtrPredictionPipeline",
                "pt": [CLICK_AUTO_CLASS],
                "type": "multimodal",
            }
        }
        kwargs["custom_pipelines"] = tasks if IS_REMOTE_CODE else InstalledTasks(tasks)
        super().__post_init__(**kwargs)
        if isinstance(self.text_config, PreTrainedConfig):
            vars(self.text_config).pop("auto_map", None)  # a checkpoint's text tower is one that transformers knows
            source = self.text_config.name_or_path or ""
            if os.path.isabs(source) or os.path.isdir(source):
                # config.json is published, so it must not name folders of this machine.
                self.text_config.name_or_path = os.path.basename(os.path.abspath(source))
        if self.text_pooling is None and self.text_config is not None:
            encoder_decoder = getattr(self.text_config, "is_encoder_decoder", False)
            self.text_pooling = "last" if self.text_is_decoder else "mean" if encoder_decoder else "cls"
        self.check()

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with the format version that these settings need."""
        return {**super().to_dict(), "format_version": self.needed_format}

    @property
    def needed_format(self) -> int:
        """The first format version whose code reads these settings right."""
        is_calibrated = (self.logit_scale, self.logit_shift) != (1, 0)
        return CALIBRATED_FORMAT_VERSION if is_calibrated else FORMAT_VERSION

    @property
    def text_is_decoder(self) -> bool:
        """Whether a token of the text tower sees only those before it."""
        family = getattr(self.text_config, "model_type", None)
        return family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not (
            family in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(self.text_config, "is_encoder_decoder", False)
        )

    def check(self) -> None:
        """Raises ValueError if a setting is impossible. Every model checks again, since settings can change after
        construction."""
        choices = {
            "towers": ("both", "tabular", "text") if type(self) is FlipConfig else (type(self).towers,),
            "text_pooling": (None, "cls", "mean", "last"),
            "activation": tuple(ACT2FN),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(filter(None, allowed))}"
                )
        if self.text_pooling == "cls" and self.text_is_decoder:
            raise ValueError(
                f"text model {getattr(self.text_config, 'model_type', None)!r} is a decoder: its first token sees none of the "
                "others; set text_pooling to 'last' or 'mean'"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        if not 0 < self.logit_scale < math.inf:
            raise ValueError(f"logit_scale is {self.logit_scale}; it must be a number above 0")
        for name in ("logit_shift", "sampling_shift"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number")
        for name in ("mlm_weight", "mtm_weight", "icl_weight", "embedding_l2"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes is empty; give at least one layer")
        if min(self.hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes is {list(self.hidden_sizes)}; each must be 1 or more")
        for name, least in {"num_features": 1, "num_fields": 0, "embedding_size": 1, "projection_size": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.icl_subspaces < 1 or self.projection_size % self.icl_subspaces:
            raise ValueError(
                f"icl_subspaces is {self.icl_subspaces}; it must divide projection_size ({self.projection_size})"
            )
        in_sentence = self.num_fields + len(self.text_fields)
        in_range = all(0 <= position < in_sentence for position in self.item_fields)
        if not in_range or len(set(self.item_fields)) >= in_sentence:
            raise ValueError(
                f"item_fields is {list(self.item_fields)}; it names positions among the {in_sentence} fields, not all"
            )
        if not _are_positions(self.text_fields, in_sentence):
            raise ValueError(
                f"text_fields is {list(self.text_fields)}; it names positions among the {in_sentence} fields, in order"
            )
        if not _are_positions(self.list_fields, self.num_fields):
            raise ValueError(
                f"list_fields is {list(self.list_fields)}; it names positions below num_fields ({self.num_fields}), in order"
            )


def check_settings(settings: dict[str, Any]) -> None:
    """Raises ValueError if a config.json, of this package or of a text model, makes transformers read other files or code, or
    asks for implausible sizes."""
    waiting: list[tuple[str, Any]] = list(settings.items())
    while waiting:
        key, value = waiting.pop()
        if key == "transformers_weights" and value is not None:
            raise ValueError(
                f"config.json names {value!r} as its weights; only model.safetensors and its shards are read"
            )
        if "implementation" in key and isinstance(value, str) and "/" in value:
            raise ValueError(f"{key} of config.json is {value[:100]!r}, code of a repository; none is run")
        if isinstance(value, (int, float)) and PARTS.search(key) and value > MOST_PARTS:
            raise ValueError(f"{key} of config.json is {value:,}; at most {MOST_PARTS:,} are read")
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise ValueError(f"{key} of config.json has {len(value):,} characters; at most {LONGEST_TEXT:,} are read")
        if isinstance(value, (list, tuple, dict)):
            if len(value) > MOST_PARTS:
                raise ValueError(f"{key} of config.json has {len(value):,} entries; at most {MOST_PARTS:,} are read")
            items = value.items() if isinstance(value, dict) else ((key, item) for item in value)
            waiting += [(str(name)[:100], item) for name, item in items]


def load_text_config(name_or_path: str | os.PathLike, **located: Any) -> PreTrainedConfig:
    """The configuration of a pretrained text model; raises ValueError as `check_settings`. `located` is cache_dir, token,
    revision and so on."""
    check_settings(PreTrainedConfig.get_config_dict(name_or_path, **located)[0])
    return AutoConfig.from_pretrained(name_or_path, **located)


def _are_positions(positions: Iterable[int], below: int) -> bool:
    """Whether positions are ascending, from 0 and below a limit."""
    return list(positions) == sorted({position for position in positions if 0 <= position < below})


def flat_settings(names: Iterable[str]) -> list[str]:
    """The names among these that are tower settings."""
    known = {name for settings in FLAT_SETTINGS.values() for name in settings}
    return [name for name in names if name in known]


def check_item_fields(config: FlipConfig) -> None:
    """Raises ValueError if no field is marked as the item's."""
    if not config.item_fields:
        raise ValueError(f"{config.model_type} keeps users and items apart: name the item's fields with item_fields")
