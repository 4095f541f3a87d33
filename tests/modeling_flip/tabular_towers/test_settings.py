"""The settings of towers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modeling_flip.configuration_flip import FLAT_SETTINGS, FlipConfig
from modeling_flip.modeling_flip import FlipForCTR
from modeling_flip.tabular_towers import setting_names
from tests.modeling_flip.tabular_towers.models import config_of, make_model


@pytest.mark.parametrize(
    ("name", "setting", "value", "message"),
    [
        ("pnn", "activation", "rely", "activation is 'rely'; it must be one of .*relu"),
        ("pnn", "pnn_product", "both", "pnn_product is 'both'; it must be one of inner, outer"),
        ("pnn", "embedding_l2", -0.1, "embedding_l2 is -0.1; it must be 0 or more"),
        ("pnn", "embedding_l2", float("nan"), "embedding_l2 is nan; it must be 0 or more"),
        ("dcn", "num_cross_layers", -1, "num_cross_layers is -1; it must be a whole number of 0 or more"),
        ("dcn_mix", "num_experts", 0, "num_experts is 0; it must be a whole number of 1 or more"),
        ("dcn_mix", "cross_rank", "8", "cross_rank is '8'; it must be a whole number of 1 or more"),
        ("autoint", "attention_size", 0, "attention_size is 0; it must be a whole number of 1 or more"),
        ("afm", "attention_size", 0, "attention_size is 0; it must be a whole number of 1 or more"),
        ("afn", "num_logarithmic_neurons", 0, "num_logarithmic_neurons is 0; it must be a whole number of 1 or more"),
        ("xdeepfm", "cin_sizes", [], "cin_sizes is empty"),
        (
            "dcn",
            "tower_settings",
            {"num_cros_layers": 2},
            "'dcn' has no setting 'num_cros_layers'; did you mean 'num_cr",
        ),
        ("dcn", "tower_settings", {"num_heads": 2}, "'dcn' has no setting 'num_heads'; it has num_cross_layers"),
        ("deepfm", "tower_settings", {"x": 2}, "'deepfm' has no setting 'x'; it has none"),
        ("dcn", "list_fields", [3], r"list_fields is \[3\]; it names positions below num_fields \(3\), in order"),
        ("dcn", "list_fields", [1, 0], r"list_fields is \[1, 0\]; it names positions below num_fields \(3\), in order"),
    ],
)
def test_a_wrong_setting_is_named(name: str, setting: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(name, **{setting: value})


def test_a_towers_settings_are_nested_however_they_are_given() -> None:
    flat, nested = FlipConfig(tabular_tower="dcn", num_cross_layers=2), {"num_cross_layers": 2}
    assert flat.tower_settings == FlipConfig(tabular_tower="dcn", tower_settings=nested).tower_settings == nested
    assert not hasattr(flat, "num_cross_layers")


def test_a_setting_of_another_tower_is_not_read_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = FlipConfig(tabular_tower="dcn", num_cross_layers=2, num_attention_heads=3)
    assert config.tower_settings == {"num_cross_layers": 2}
    assert "num_attention_heads is ignored: tabular tower 'dcn' has no such setting" in caplog.text


def test_a_checkpoint_says_the_settings_that_were_left_to_their_defaults(tmp_path: Path) -> None:
    make_model("dcn_mix", cross_rank=2).save_pretrained(tmp_path)
    config = FlipConfig.from_pretrained(tmp_path)
    assert config.tower_settings == {"num_cross_layers": 3, "num_experts": 3, "cross_rank": 2}
    assert FlipConfig.from_pretrained(tmp_path, cross_rank=4).tower_settings == config.tower_settings | {
        "cross_rank": 4
    }
    other = FlipConfig.from_pretrained(tmp_path, tower_settings={"cross_rank": 4})
    assert other.tower_settings == config.tower_settings | {"cross_rank": 4}


@pytest.mark.parametrize("name", ["dcn", "autoint", "afn", "deepfm"])
def test_of_a_configuration_of_format_1_the_towers_own_settings_are_kept(name: str) -> None:
    all_flat = {
        **{"num_cross_layers": 2, "num_experts": 3, "cross_rank": 2, "num_attention_layers": 1},
        **{"num_attention_heads": 2, "attention_size": 3, "pnn_product": "outer", "cin_sizes": [3]},
        **{"num_logarithmic_neurons": 5, "tabular_tower": name, "towers": "tabular", "format_version": 1},
    }
    config = FlipConfig.from_dict(all_flat)
    attention = {"num_attention_layers": 1, "num_attention_heads": 2, "attention_size": 3, "deep": False}
    expected = {"dcn": {"num_cross_layers": 2}, "autoint": attention, "afn": {"num_logarithmic_neurons": 5}}
    assert config.tower_settings == expected.get(name, {})
    assert config.batch_norm is False
    assert config.format_version == 2


@pytest.mark.parametrize("name", FLAT_SETTINGS)
def test_each_setting_of_the_package_can_be_given_flat(name: str) -> None:
    assert set(setting_names(name)) == set(FLAT_SETTINGS[name])


def test_autoint_without_its_mlp_comes_back_so(tmp_path: Path) -> None:
    config = config_of("autoint", deep=False)
    model = FlipForCTR(config)
    assert model.flip.tabular_tower.deep is None
    model.save_pretrained(tmp_path)
    assert FlipForCTR.from_pretrained(tmp_path).flip.tabular_tower.deep is None


def test_what_was_recorded_of_a_tower_counts_where_a_file_has_both(tmp_path: Path) -> None:
    """`deep` used to be left beside the settings, and was not read."""
    FlipForCTR(config_of("autoint")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"deep": False}))
    assert FlipConfig.from_pretrained(tmp_path).tower_settings["deep"] is True
