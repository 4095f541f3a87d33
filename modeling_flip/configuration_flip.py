"""FlipConfig: the sizes and choices of a FLIP model."""

# No `from __future__ import annotations` here: `strict` reads the types of the fields, and skips types that are strings.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class FlipConfig(PreTrainedConfig):
    """Configuration of a FLIP model: a tabular tower, a text tower, and what pretraining puts between them.

    Args:
        text_config: configuration of any encoder that AutoModel knows; not used where `towers` is "tabular".
        towers: "both" (FLIP), "tabular" (FLIP_ID, or an ID model from scratch) or "text" (FLIP_PLM).
        tabular_tower: name of a registered tabular tower, such as "dcnv2", "deepfm" or "autoint".
        num_features: M, features of all fields, unknown features and `<MASK>` included.
        num_fields: F.
        embedding_size: D, of a feature.
        hidden_sizes: layers of the tabular tower's MLP.
        dropout: of that MLP.
        num_cross_layers: of DCNv2.
        num_attention_layers: of AutoInt; likewise `num_attention_heads` and `attention_size`, the size of one head.
        text_pooling: "cls", the first token, or "mean", of the tokens that are not padding.
        projection_size: of the space where ICL compares the towers, and of MTM's hidden layer.
        temperature: τ of ICL.
        mlm_weight: of the MLM loss, 0 switches it off; likewise `mtm_weight` and `icl_weight`.
        joint_reconstruction: whether a masked field is recovered with the help of the other modality.
    """

    model_type = "flip"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True)}
    keys_to_ignore_at_inference = ["joint_loss", "tabular_loss", "text_loss"]

    text_config: PreTrainedConfig | dict | None = None
    towers: str = "both"
    tabular_tower: str = "dcnv2"
    num_features: int = 2
    num_fields: int = 1
    embedding_size: int = 32
    hidden_sizes: list[int] | tuple[int, ...] = (300, 300, 128)
    dropout: float | int = 0.0
    num_cross_layers: int = 3
    num_attention_layers: int = 3
    num_attention_heads: int = 2
    attention_size: int = 32
    text_pooling: str = "cls"
    projection_size: int = 128
    temperature: float | int = 0.7
    mlm_weight: float | int = 1.0
    mtm_weight: float | int = 1.0
    icl_weight: float | int = 1.0
    joint_reconstruction: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.towers != "tabular" and self.text_config is None:
            self.text_config = {"model_type": "bert"}
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raises ValueError where a setting cannot be. Every model asks again: settings can be changed after construction."""
        for name, choices in {"towers": ("both", "tabular", "text"), "text_pooling": ("cls", "mean")}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        for name in ("mlm_weight", "mtm_weight", "icl_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes is empty; the MLP needs one layer or more")
