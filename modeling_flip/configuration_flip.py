"""FlipConfig: the sizes and choices of a FLIP model."""

# No `from __future__ import annotations` here: `strict` reads the types of the fields, and skips types that are strings.
import os
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

# Of a checkpoint's files. Raised when a change makes older code read them wrongly.
FORMAT_VERSION = 1
# Where this file was loaded from a checkpoint instead of an installed package.
IS_REMOTE_CODE = __name__.startswith("transformers_modules.")
PIPELINE_TASK, CLICK_AUTO_CLASS = "ctr-prediction", "AutoModelForSequenceClassification"


class InstalledTasks(dict[str, Any]):
    """Tells `transformers.pipeline` the task of a checkpoint but not to run the checkpoint's code for it: it then takes the
    pipeline that this package has registered."""

    def __contains__(self, task: object) -> bool:
        return False


@strict
class FlipConfig(PreTrainedConfig):
    """Configuration of a FLIP model: a tabular tower, a text tower, and what pretraining puts between them.

    Args:
        text_config: configuration of any encoder that AutoModel knows; not used where `towers` is "tabular".
        towers: "both" (FLIP), "tabular" (FLIP_ID, or an ID model from scratch) or "text" (FLIP_PLM).
        tabular_tower: name of a registered tabular tower, such as "dcnv2", "deepfm" or "autoint".
        item_fields: positions in the sentence of the fields that describe the item; the others describe the user. Read by the
            models that keep the two apart (CTR-BERT, MoRec).
        num_features: M, features of all fields, unknown features and `<MASK>` included.
        num_fields: F.
        list_fields: positions, among these, of the fields that hold lists.
        text_fields: positions in the sentence of the fields that the text tower alone reads; the others are the F.
        embedding_size: D, of a feature.
        hidden_sizes: layers of the tabular tower's MLP.
        activation: of that MLP, a name that transformers' ACT2FN knows.
        batch_norm: whether that MLP normalises each layer's outputs over the batch.
        dropout: of that MLP, and of AFM's pooled products.
        embedding_l2: λ of the penalty λ/2 ‖E‖² on the tabular tower's embeddings, added to the finetuning loss.
        num_cross_layers: of DCN, DCNv2 and DCN-Mix.
        num_experts: of a cross layer of DCN-Mix.
        cross_rank: of an expert's matrices.
        num_attention_layers: of AutoInt.
        num_attention_heads: of AutoInt.
        attention_size: of one head of AutoInt, and of AFM's attention.
        pnn_product: "inner" or "outer".
        cin_sizes: feature maps of each layer of xDeepFM's CIN.
        num_logarithmic_neurons: of AFN.
        text_pooling: "cls", the first token, "mean", of the tokens that are not padding, or "last" of these; by default the
            family's own: last for a decoder, mean for the encoder of an encoder-decoder, else cls.
        projection_size: of the space where ICL compares the towers, and of MTM's hidden layer.
        temperature: τ of ICL.
        icl_subspaces: parts into which ICL splits both projections; above 1 it compares them as CTRL does, each part of
            one with the most similar part of the other.
        mlm_weight: of the MLM loss, 0 switches it off; likewise `mtm_weight` and `icl_weight`.
        joint_reconstruction: whether a masked field is recovered with the help of the other modality.
        vocabulary_fingerprint: of the vocabulary that the weights were trained with.
        format_version: of the checkpoint's files.
    """

    model_type = "flip"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True)}
    keys_to_ignore_at_inference = ["joint_loss", "tabular_loss", "text_loss"]

    text_config: PreTrainedConfig | dict | None = None
    towers: str = "both"
    tabular_tower: str = "dcnv2"
    item_fields: list[int] | tuple[int, ...] = ()
    num_features: int = 2
    num_fields: int = 1
    list_fields: list[int] | tuple[int, ...] = ()
    text_fields: list[int] | tuple[int, ...] = ()
    embedding_size: int = 32
    hidden_sizes: list[int] | tuple[int, ...] = (300, 300, 128)
    activation: str = "relu"
    batch_norm: bool = False
    dropout: float | int = 0.0
    embedding_l2: float | int = 0.0
    num_cross_layers: int = 3
    num_experts: int = 4
    cross_rank: int = 32
    num_attention_layers: int = 3
    num_attention_heads: int = 2
    attention_size: int = 32
    pnn_product: str = "inner"
    cin_sizes: list[int] | tuple[int, ...] = (32, 32)
    num_logarithmic_neurons: int = 64
    text_pooling: str | None = None
    projection_size: int = 128
    temperature: float | int = 0.7
    icl_subspaces: int = 1
    mlm_weight: float | int = 1.0
    mtm_weight: float | int = 1.0
    icl_weight: float | int = 1.0
    joint_reconstruction: bool = True
    vocabulary_fingerprint: str | None = None
    format_version: int = FORMAT_VERSION

    # Classes that `trust_remote_code=True` finds in a checkpoint, by the Auto class that asks for them.
    remote_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_flip.FlipConfig",
        "AutoModel": "modeling_flip.FlipModel",
        "AutoModelForPreTraining": "modeling_flip.FlipForPreTraining",
        CLICK_AUTO_CLASS: "modeling_flip.FlipForCTR",
    }

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Raises ValueError where the checkpoint was written by a later version that this one would misread."""
        version = config_dict.get("format_version", FORMAT_VERSION)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ValueError(
                f"config.json has format version {version!r}, this modeling_flip reads up to {FORMAT_VERSION}; upgrade "
                "modeling_flip"
            )
        return super().from_dict({**config_dict, "format_version": FORMAT_VERSION}, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        if self.towers != "tabular" and self.text_config is None:
            self.text_config = {"model_type": "bert"}
        # Of this code, whatever an older checkpoint says.
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
            source = self.text_config.name_or_path or ""
            if os.path.isabs(source) or os.path.isdir(source):
                # config.json is published, and tells others nothing about this machine's folders.
                self.text_config.name_or_path = os.path.basename(os.path.abspath(source))
        if self.text_pooling is None and self.text_config is not None:
            encoder_decoder = getattr(self.text_config, "is_encoder_decoder", False)
            self.text_pooling = "last" if self.text_is_decoder else "mean" if encoder_decoder else "cls"
        self.check()

    @property
    def text_is_decoder(self) -> bool:
        """Whether a token of the text tower sees only those before it."""
        family = getattr(self.text_config, "model_type", None)
        return family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not (
            family in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(self.text_config, "is_encoder_decoder", False)
        )

    def check(self) -> None:
        """Raises ValueError where a setting cannot be. Every model asks again: settings can be changed after construction."""
        choices = {
            "towers": ("both", "tabular", "text") if type(self) is FlipConfig else (type(self).towers,),
            "text_pooling": (None, "cls", "mean", "last"),
            "pnn_product": ("inner", "outer"),
            "activation": tuple(ACT2FN),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(filter(None, allowed))}"
                )
        if self.text_pooling == "cls" and self.text_is_decoder:
            raise ValueError(
                f"text model {getattr(self.text_config, 'model_type', None)!r} is a decoder: its first token sees no other; "
                "set text_pooling to 'last' or 'mean'"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        for name in ("mlm_weight", "mtm_weight", "icl_weight", "embedding_l2"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("hidden_sizes", "cin_sizes"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; one layer or more is needed")
        for name in ("embedding_size", "num_experts", "cross_rank", "num_logarithmic_neurons", "attention_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.icl_subspaces < 1 or self.projection_size % self.icl_subspaces:
            raise ValueError(
                f"icl_subspaces is {self.icl_subspaces}; it must divide projection_size ({self.projection_size})"
            )
        in_sentence = self.num_fields + len(self.text_fields)
        if not set(self.item_fields) < set(range(in_sentence)):
            raise ValueError(
                f"item_fields is {list(self.item_fields)}; it names positions among the {in_sentence} fields, not all"
            )
