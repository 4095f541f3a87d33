"""Tiny models of one tabular tower, and rows for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import set_seed

from modeling_flip.configuration_flip import FlipConfig
from modeling_flip.modeling_flip import FlipForCTR, FlipModel
from modeling_flip.tabular_towers import TABULAR_TOWERS, setting_names

# Three fields of 3, 2 and 4 values, each behind its unknown feature; <MASK> is the last of all.
UNKNOWN = [0, 4, 7]
NUM_FEATURES, NUM_FIELDS = 13, 3
ROWS = torch.tensor([[1, 5, 8], [2, 6, 9], [3, 5, 10], [0, 6, 11], [1, 4, 8], [2, 5, 7], [3, 6, 11]])
# The same rows where the second field is a list, padded with -1.
LISTS = torch.tensor([[[5, -1]], [[6, 5]], [[5, -1]], [[6, -1]], [[4, -1]], [[5, 6]], [[6, -1]]])
BATCHES = {
    "no rows": (ROWS[:0], LISTS[:0]),
    "one row": (ROWS[:1], LISTS[:1]),
    "seven rows": (ROWS, LISTS),
    "unknown values": (torch.tensor([UNKNOWN] * 2), torch.full((2, 1, 1), UNKNOWN[1])),
    "masked fields": (torch.full((2, NUM_FIELDS), NUM_FEATURES - 1), torch.full((2, 1, 1), NUM_FEATURES - 1)),
}
ALL_TOWERS = pytest.mark.parametrize("name", sorted(TABULAR_TOWERS))
LIST_FIELDS = pytest.mark.parametrize("list_fields", [[], [1]], ids=["no lists", "a list"])


def config_of(name: str, **settings: Any) -> FlipConfig:
    sizes = {"num_features": NUM_FEATURES, "num_fields": NUM_FIELDS, "embedding_size": 4, "hidden_sizes": [6, 5]}
    return FlipConfig(towers="tabular", tabular_tower=name, **sizes | settings)


def make_model(name: str, seed: int = 0, **settings: Any) -> FlipForCTR:
    """A click model of the tower alone, its logit the tower's own; the tower's settings are small, or as given."""
    small = {
        "attention_size": 3,
        "num_experts": 3,
        "cross_rank": 2,
        "cin_sizes": [4, 2],
        "num_logarithmic_neurons": 5,
    }
    own = {key: value for key, value in (small | settings).items() if key in setting_names(name)}
    given = {"tower_settings": own, **{key: value for key, value in settings.items() if key not in own}}
    set_seed(seed)
    return FlipForCTR(config_of(name, **given)).eval()


def make_towers(name: str, seed: int = 0, **settings: Any) -> FlipModel:
    """Features and tower, with embeddings of size one."""
    model = make_model(name, seed, **settings).flip
    enlarge_embeddings(model)
    return model


def run(model: FlipModel, feature_ids: torch.Tensor, lists: torch.Tensor = LISTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Representation and logit; the lists are read where the model has any."""
    output = model(feature_ids, list_feature_ids=lists)
    return output.tabular_representation, output.tabular_logit


def enlarge_embeddings(module: torch.nn.Module) -> None:
    """To size one: at their initial 0.01 what fields do to each other is lost in rounding."""
    for table in module.modules():
        if isinstance(table, torch.nn.Embedding):
            table.weight.data *= 100


def draw_running_statistics(module: torch.nn.Module) -> None:
    """Of every batch norm: at their initial 0 and 1 none would be missed."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)


def weights_of(model: FlipModel) -> dict[str, np.ndarray]:
    """Parameters and running statistics after drawing all of them anew, biases too: the tower's by their names in it, and the
    tables' as "embedding" and "first_order"."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.7)
    draw_running_statistics(model)
    tables = {key.removesuffix(".weight"): value for key, value in model.feature_embeddings.state_dict().items()}
    return {key: value.double().numpy() for key, value in (tables | model.tabular_tower.state_dict()).items()}


def assert_gives(model: FlipModel, representations: list[np.ndarray], logits: list[float]) -> None:
    representation, logit = run(model, ROWS)
    np.testing.assert_allclose(representation.detach().numpy(), np.stack(representations), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logit.detach().numpy(), np.array(logits), rtol=1e-3, atol=1e-4)
