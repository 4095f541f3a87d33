"""The tabular towers: published ID models, each a short class over shared layers, and their registry.

A tower maps feature ids (B, F) to its representation (B, representation_size), which pretraining aligns with the text, and
to the published model's own logit (B,).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .configuration_flip import FlipConfig
from .tabular_layers import (
    MLP,
    CompressedInteractionNetwork,
    CrossNetwork,
    InteractingLayer,
    LogarithmicLayer,
    MixtureCrossNetwork,
    VectorCrossNetwork,
    pairwise_interactions,
)

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
    """Base of all towers: it looks the features' embeddings up.

    A tower sets `representation_size` and defines `interact(embeddings, feature_ids)` → (representation, logit).
    """

    representation_size: int

    def __init__(self, config: FlipConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.num_features, config.embedding_size)

    def forward(
        self, feature_ids: torch.Tensor, embeddings: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """feature_ids (B, F), and embeddings (B, F, D) where they are not the tower's own → representation
        (B, representation_size), logit (B,)."""
        return self.interact(self.embedding(feature_ids) if embeddings is None else embeddings, feature_ids)

    def interact(self, embeddings: torch.Tensor, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise TypeError(
            f"{type(self).__name__} must define interact(embeddings, feature_ids) -> (representation, logit)"
        )


@register_tabular_tower("wide_deep")
class WideDeep(TabularTower):
    """Wide & Deep (Cheng et al., DLRS '16, Eq. 3), the wide part over single features.

    representation = MLP(e), e the row's embeddings end to end; logit = Σ_i w_i + w · MLP(e) + b.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.first_order = nn.Embedding(config.num_features, 1)
        self.deep = MLP(config.num_fields * config.embedding_size, config)
        self.representation_size = config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def interact(self, embeddings: torch.Tensor, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        deep = self.deep(embeddings.flatten(1))
        return deep, self.first_order(feature_ids).sum((1, 2)) + self.output(deep).squeeze(1)


@register_tabular_tower("pnn")
class PNN(TabularTower):
    """PNN (Qu et al., ICDM '16, Eq. 1-2), the products beside the embeddings at the MLP's entrance.

    `pnn_product` "inner" (Eq. 7): ⟨e_i, e_j⟩ of all pairs i < j, the products of a pair with itself and mirrored left out.
    "outer" (Eq. 11): the superposition f fᵀ, f = Σ_i e_i. representation = MLP([e ⊕ products]); logit = w · MLP(…) + b.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.is_outer = config.pnn_product == "outer"
        num_pairs = config.num_fields * (config.num_fields - 1) // 2
        num_products = config.embedding_size**2 if self.is_outer else num_pairs
        self.deep = MLP(config.num_fields * config.embedding_size + num_products, config)
        self.representation_size = config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def interact(self, embeddings: torch.Tensor, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.is_outer:
            f = embeddings.sum(1)
            products = (f.unsqueeze(2) * f.unsqueeze(1)).flatten(1)  # (B, D D)
        else:
            num_fields = embeddings.shape[1]
            i, j = torch.triu_indices(num_fields, num_fields, offset=1, device=embeddings.device)
            products = (embeddings @ embeddings.transpose(1, 2))[:, i, j]  # (B, F (F - 1) / 2)
        deep = self.deep(torch.cat([embeddings.flatten(1), products], dim=1))
        return deep, self.output(deep).squeeze(1)


@register_tabular_tower("deepfm")
class DeepFM(TabularTower):
    """DeepFM (Guo et al., IJCAI '17, Eq. 1-4).

    representation = [Σ_{i<j} e_i ⊙ e_j ⊕ MLP(e)]; logit = Σ_i w_i + Σ_{i<j} ⟨e_i, e_j⟩ + w · MLP(e) + b.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.first_order = nn.Embedding(config.num_features, 1)
        self.deep = MLP(config.num_fields * config.embedding_size, config)
        self.representation_size = config.embedding_size + config.hidden_sizes[-1]
        self.output = nn.Linear(config.hidden_sizes[-1], 1)

    def interact(self, embeddings: torch.Tensor, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        interactions = pairwise_interactions(embeddings)  # (B, D)
        deep = self.deep(embeddings.flatten(1))
        logit = self.first_order(feature_ids).sum((1, 2)) + interactions.sum(1) + self.output(deep).squeeze(1)
        return torch.cat([interactions, deep], dim=1), logit


@register_tabular_tower("afm")
class AFM(TabularTower):
    """AFM (Xiao et al., IJCAI '17, Eq. 4-6): pairs of features, weighed by attention.

    a_ij = softmax over i < j of h · ReLU(W (e_i ⊙ e_j) + b); representation = Σ_{i<j} a_ij e_i ⊙ e_j, after dropout;
    logit = Σ_i w_i + p · representation + b.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.first_order = nn.Embedding(config.num_features, 1)
        self.attention = nn.Linear(config.embedding_size, config.attention_size)
        self.score = nn.Linear(config.attention_size, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.representation_size = config.embedding_size
        self.output = nn.Linear(self.representation_size, 1)

    def interact(self, embeddings: torch.Tensor, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_fields = embeddings.shape[1]
        i, j = torch.triu_indices(num_fields, num_fields, offset=1, device=embeddings.device)
        products = embeddings[:, i] * embeddings[:, j]  # (B, F (F - 1) / 2, D)
        weights = self.score(self.attention(products).relu()).softmax(1)
        representation = self.dropout((weights * products).sum(1))
        return representation, self.first_order(feature_ids).sum((1, 2)) + self.output(representation).squeeze(1)


class ParallelCross(TabularTower):
    """A cross network beside an MLP: representation = [cross(e) ⊕ MLP(e)], e the row's embeddings end to end;
    logit = w · representation + b."""

    def __init__(self, config: FlipConfig, cross: Callable[[int], nn.Module]):
        super().__init__(config)
        size = config.num_fields * config.embedding_size
        self.cross = cross(size)
        self.deep = MLP(size, config)
        self.representation_size = size + config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def interact(self, embeddings: torch.Tensor, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = embeddings.flatten(1)  # (B, F D)
        representation = torch.cat([self.cross(x), self.deep(x)], dim=1)
        return representation, self.output(representation).squeeze(1)


@register_tabular_tower("dcn")
class DCN(ParallelCross):
    """DCN (Wang et al., ADKDD '17, Eq. 3-5): cross layers with one weight vector each."""

    def __init__(self, config: FlipConfig):
        super().__init__(config, lambda size: VectorCrossNetwork(size, config.num_cross_layers))


@register_tabular_tower("dcnv2")
class DCNv2(ParallelCross):
    """DCN-V2, parallel (Wang et al., WWW '21, Eq. 1-2): cross layers with a full-rank matrix each."""

    def __init__(self, config: FlipConfig):
        super().__init__(config, lambda size: CrossNetwork(size, config.num_cross_layers))


@register_tabular_tower("dcn_mix")
class DCNMix(ParallelCross):
    """DCN-Mix, parallel (Wang et al., WWW '21, Eq. 3-5): cross layers that mix `num_experts` matrices of rank `cross_rank`."""

    def __init__(self, config: FlipConfig):
        layers, experts, rank = config.num_cross_layers, config.num_experts, config.cross_rank
        super().__init__(config, lambda size: MixtureCrossNetwork(size, layers, experts, rank))


@register_tabular_tower("xdeepfm")
class XDeepFM(TabularTower):
    """xDeepFM (Lian et al., KDD '18, Eq. 6-9).

    representation = [CIN ⊕ MLP(e)]; logit = Σ_i w_i + w · representation + b.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.first_order = nn.Embedding(config.num_features, 1)
        self.cin = CompressedInteractionNetwork(config.num_fields, config.cin_sizes)
        self.deep = MLP(config.num_fields * config.embedding_size, config)
        self.representation_size = sum(config.cin_sizes) + config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def interact(self, embeddings: torch.Tensor, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        representation = torch.cat([self.cin(embeddings), self.deep(embeddings.flatten(1))], dim=1)
        return representation, self.first_order(feature_ids).sum((1, 2)) + self.output(representation).squeeze(1)


@register_tabular_tower("afn")
class AFN(TabularTower):
    """AFN (Cheng et al., AAAI '20, Eq. 6-9): products of features to learned powers, then an MLP.

    representation = MLP(logarithmic neurons, end to end); logit = w · representation + b.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.logarithmic = LogarithmicLayer(config.num_fields, config.num_logarithmic_neurons)
        self.deep = MLP(config.num_logarithmic_neurons * config.embedding_size, config)
        self.representation_size = config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def interact(self, embeddings: torch.Tensor, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        deep = self.deep(self.logarithmic(embeddings).flatten(1))
        return deep, self.output(deep).squeeze(1)


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

    def interact(self, embeddings: torch.Tensor, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        representation = self.layers(embeddings).flatten(1)
        return representation, self.output(representation).squeeze(1)
