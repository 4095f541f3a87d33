"""Towers from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import initialization as init

from modeling_flip.configuration_flip import FlipConfig
from modeling_flip.modeling_flip import FlipForCTR
from modeling_flip.tabular_towers import TABULAR_TOWERS, TabularTower, register_tabular_tower
from tests.modeling_flip.tabular_towers.models import NUM_FIELDS, ROWS, config_of


@pytest.fixture
def registry() -> Iterator[dict[str, type[TabularTower]]]:
    """What a test registers is forgotten after it."""
    before = dict(TABULAR_TOWERS)
    yield TABULAR_TOWERS
    TABULAR_TOWERS.clear()
    TABULAR_TOWERS.update(before)


@pytest.mark.usefixtures("registry")
def test_a_registered_tower_is_available_by_its_name() -> None:
    @register_tabular_tower("popularity")
    class Popularity(TabularTower):
        representation_size = 4

        def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            representation = embeddings.sum(1)
            return representation, representation.sum(1)

    model = FlipForCTR(config_of("popularity"))
    assert isinstance(model.flip.tabular_tower, Popularity)
    assert model(feature_ids=ROWS).logits.shape == (7,)


def register_scaled_sum() -> type[TabularTower]:
    """An outside tower: settings, a bare parameter, and a linear part."""

    @dataclass(frozen=True)
    class ScaledSumSettings:
        scale: float = 2.0

        def __post_init__(self) -> None:
            if self.scale <= 0:
                raise ValueError(f"scale is {self.scale}; it must be above 0")

    @register_tabular_tower("scaled_sum", settings=ScaledSumSettings)
    class ScaledSum(TabularTower):
        first_order = True

        def __init__(self, config: FlipConfig, settings: ScaledSumSettings):
            super().__init__(config, settings)
            self.representation_size = config.embedding_size
            self.start = settings.scale
            self.scale = torch.nn.Parameter(torch.empty(config.embedding_size))

        def init_parameters(self) -> None:
            init.constant_(self.scale, self.start)

        def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            representation = embeddings.sum(1) * self.scale
            return representation, representation.sum(1)

    return ScaledSum


@pytest.mark.usefixtures("registry")
def test_a_tower_from_elsewhere_has_settings_of_its_own(tmp_path: Path) -> None:
    register_scaled_sum()
    model = FlipForCTR(config_of("scaled_sum", tower_settings={"scale": 3.0}))
    assert (model.flip.tabular_tower.get_parameter("scale") == 3).all()
    features = model.flip.feature_embeddings
    by_hand = 3 * features(ROWS).sum((1, 2)) + features.first_order(ROWS).sum((1, 2))
    torch.testing.assert_close(model(feature_ids=ROWS).logits, by_hand)
    model.save_pretrained(tmp_path)
    assert FlipForCTR.from_pretrained(tmp_path).config.tower_settings == {"scale": 3.0}
    with pytest.raises(ValueError, match="scale is 0; it must be above 0"):
        FlipForCTR(config_of("scaled_sum", tower_settings={"scale": 0}))
    with pytest.raises(ValueError, match=r"'scaled_sum' has no setting 'scal'; did you mean 'scale'\?"):
        FlipForCTR(config_of("scaled_sum", tower_settings={"scal": 1.0}))


@pytest.mark.usefixtures("registry")
def test_a_tower_from_elsewhere_initialises_what_a_checkpoint_lacks_and_keeps_what_it_has(tmp_path: Path) -> None:
    register_scaled_sum()
    model = FlipForCTR(config_of("scaled_sum"))
    scale = model.flip.tabular_tower.get_parameter("scale")
    assert (scale == 2).all()
    scale.data.fill_(7.0)
    model.save_pretrained(tmp_path / "with")
    model.save_pretrained(
        tmp_path / "without", state_dict={k: v for k, v in model.state_dict().items() if not k.endswith("scale")}
    )
    torch.use_deterministic_algorithms(True)  # fills what nobody initialises with NaN
    try:
        kept, fresh = (FlipForCTR.from_pretrained(tmp_path / folder) for folder in ("with", "without"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert (kept.flip.tabular_tower.get_parameter("scale") == 7).all()
    assert (fresh.flip.tabular_tower.get_parameter("scale") == 2).all()


def test_a_taken_name_is_refused() -> None:
    registered = dict(TABULAR_TOWERS)
    with pytest.raises(ValueError, match="'dcnv2' is registered already, as DCNv2"):
        register_tabular_tower("dcnv2")(TabularTower)
    assert registered == TABULAR_TOWERS


def test_a_setting_that_all_towers_have_is_refused() -> None:
    @dataclass(frozen=True)
    class Settings:
        dropout: float = 0.5

    with pytest.raises(
        ValueError, match="dropout is already a setting of FlipConfig; rename the setting of tower 'new'"
    ):
        register_tabular_tower("new", settings=Settings)(TabularTower)
    assert "new" not in TABULAR_TOWERS


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("table", ["embedding", "first_order"])
def test_a_tower_with_a_table_of_features_is_refused(table: str) -> None:
    @register_tabular_tower("old")
    class Old(TabularTower):
        representation_size = 4

        def __init__(self, config: FlipConfig, settings: Any):
            super().__init__(config, settings)
            setattr(self, table, torch.nn.Embedding(3, 1))

    with pytest.raises(ValueError, match=f"Old has a module '{table}': the model owns embeddings"):
        FlipForCTR(config_of("old"))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="tabular_tower is 'dcn_v3'") as error:
        FlipForCTR(config_of("dcn_v3"))
    assert all(name in str(error.value) for name in TABULAR_TOWERS)


def test_a_tower_without_forward_says_what_is_missing() -> None:
    class Unfinished(TabularTower):
        pass

    with pytest.raises(TypeError, match=r"Unfinished must define forward\(embeddings\)"):
        Unfinished(config_of("dcn"), None)(torch.zeros(1, NUM_FIELDS, 4))
