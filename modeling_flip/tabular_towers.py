"""The tabular towers: published ID models, each a short class over shared layers, and their registry.

A tower maps feature ids (B, F) to its representation (B, representation_size), which pretraining aligns with the text, and
to the published model's own logit (B,).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .configuration_flip import FlipConfig
from .tabular_layers import MLP, CrossNetwork, InteractingLayer, pairwise_interactions

TABULAR_TOWERS: dict[str, type[TabularTower]] = {}


def register_tabular_tower(name: str) -> Callable[[type[TabularTower]], type[TabularTower]]:
    """Class decorator: makes a tower available as `FlipConfig(tabular_tower=name)`.

    Raises:
        ValueError: the name is taken.
    """

    def register(tower: type[TabularTower]) -> type[TabularTower]:
        if name in TABULAR_TOWERS:
            raise ValueError(f"tabular tower {name!r} is registered already, as {TABULAR_TOWERS[name].__name__}")
        TABULAR_TOWERS[name] = tower
        return tower

    return register


def create_tabular_tower(config: FlipConfig) -> TabularTower:
    """The tower that `config.tabular_tower` names."""
    if config.tabular_tower not in TABULAR_TOWERS:
        raise ValueError(f"tabular_tower is {config.tabular_tower!r}; it must be one of {', '.join(TABULAR_TOWERS)}")
    return TABULAR_TOWERS[config.tabular_tower](config)


class TabularTower(nn.Module):
    """Base of all towers: the feature embeddings.

    A tower sets `representation_size` and defines `forward(feature_ids)` → (representation, logit).
    """

    representation_size: int

    def __init__(self, config: FlipConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.num_features, config.embedding_size)

    def forward(self, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise TypeError(f"{type(self).__name__} must define forward(feature_ids) -> (representation, logit)")


@register_tabular_tower("dcnv2")
class DCNv2(TabularTower):
    """DCN-V2, parallel, full-rank cross matrices (Wang et al., WWW '21, Eq. 1-4).

    representation = [cross(e) ⊕ MLP(e)], e the row's embeddings end to end; logit = w · representation + b.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        size = config.num_fields * config.embedding_size
        self.cross = CrossNetwork(size, config.num_cross_layers)
        self.deep = MLP(size, config.hidden_sizes, config.dropout)
        self.representation_size = size + config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def forward(self, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embedding(feature_ids).flatten(1)  # (B, F D)
        representation = torch.cat([self.cross(x), self.deep(x)], dim=1)
        return representation, self.output(representation).squeeze(1)


@register_tabular_tower("deepfm")
class DeepFM(TabularTower):
    """DeepFM (Guo et al., IJCAI '17, Eq. 1-4).

    representation = [Σ_{i<j} e_i ⊙ e_j ⊕ MLP(e)]; logit = Σ_i w_i + Σ_{i<j} ⟨e_i, e_j⟩ + w · MLP(e) + b.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.first_order = nn.Embedding(config.num_features, 1)
        self.deep = MLP(config.num_fields * config.embedding_size, config.hidden_sizes, config.dropout)
        self.representation_size = config.embedding_size + config.hidden_sizes[-1]
        self.output = nn.Linear(config.hidden_sizes[-1], 1)

    def forward(self, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = self.embedding(feature_ids)  # (B, F, D)
        interactions = pairwise_interactions(embeddings)  # (B, D)
        deep = self.deep(embeddings.flatten(1))
        logit = self.first_order(feature_ids).sum((1, 2)) + interactions.sum(1) + self.output(deep).squeeze(1)
        return torch.cat([interactions, deep], dim=1), logit


@register_tabular_tower("autoint")
class AutoInt(TabularTower):
    """AutoInt (Song et al., CIKM '19, Eq. 5-9): self-attention between fields, no MLP.

    representation = the last layer's fields end to end; logit = w · representation + b.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        size = config.num_attention_heads * config.attention_size
        sizes = [config.embedding_size] + [size] * config.num_attention_layers
        self.layers = nn.Sequential(
            *(InteractingLayer(s, config.num_attention_heads, config.attention_size) for s in sizes[:-1])
        )
        self.representation_size = config.num_fields * sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def forward(self, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        representation = self.layers(self.embedding(feature_ids)).flatten(1)
        return representation, self.output(representation).squeeze(1)
