"""What a configuration refuses, and that it comes back from JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    RobertaConfig,
)

from modeling_flip import FlipConfig
from tests.modeling_flip.flip_models.models import make_config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"towers": "three"}, "towers is 'three'; it must be one of both, tabular, text"),
        ({"text_pooling": "max"}, "text_pooling is 'max'; it must be one of cls, mean, last"),
        ({"activation": "step"}, "activation is 'step'; it must be one of .*relu"),
        ({"embedding_l2": -0.1}, "embedding_l2 is -0.1; it must be 0 or more"),
        ({"hidden_sizes": []}, "hidden_sizes is empty"),
        ({"hidden_sizes": [8, 0]}, r"hidden_sizes is \[8, 0\]; each must be 1 or more"),
        ({"num_features": 0}, "num_features is 0; it must be 1 or more"),
        ({"num_fields": -1}, "num_fields is -1; it must be 0 or more"),
        ({"embedding_size": 0}, "embedding_size is 0; it must be 1 or more"),
        ({"projection_size": 0}, "projection_size is 0; it must be 1 or more"),
        (
            {"num_fields": 2, "text_fields": [3]},
            r"text_fields is \[3\]; it names positions among the 3 fields, in order",
        ),
        ({"item_fields": [3]}, r"item_fields is \[3\]; it names positions among the 3 fields, not all"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"logit_scale": 0.0}, "logit_scale is 0.0; it must be a number above 0"),
        ({"logit_scale": float("nan")}, "logit_scale is nan;"),
        ({"logit_scale": float("inf")}, "logit_scale is inf;"),
        ({"logit_shift": float("-inf")}, "logit_shift is -inf; it must be a finite number"),
    ],
)
def test_a_bad_setting_is_refused_with_its_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"text_config": RobertaConfig(hidden_size=24, num_attention_heads=3)},
        {"text_config": {"model_type": "electra", "embedding_size": 6}, "towers": "text", "text_pooling": "mean"},
        {"towers": "tabular", "tabular_tower": "deepfm", "dropout": 0.5, "mlm_weight": 0.25},
    ],
    ids=["roberta", "electra", "no text"],
)
def test_a_configuration_comes_back_from_json(settings: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(**settings)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is FlipConfig
    assert type(loaded.text_config) is type(config.text_config)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


def test_a_text_configuration_given_as_a_dict_becomes_that_familys_own() -> None:
    config = make_config(text_config={"model_type": "roberta", "hidden_size": 24})
    assert isinstance(config.text_config, RobertaConfig)
    assert config.text_config.hidden_size == 24
