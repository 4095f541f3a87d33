"""The tabular towers: published ID models, each a short class over shared layers, and their registry.

A tower maps the embeddings of a row's fields (B, F, D) to its representation (B, representation_size), which pretraining aligns
with the text, and to the published model's own logit (B,). The model owns the embeddings (feature_embeddings.py).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

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


@dataclass(frozen=True)
class NoSettings:
    """Settings of a tower that has none."""


class TabularTower(nn.Module):
    """Base of all towers.

    A tower sets `representation_size` and defines `forward(embeddings)`: (B, F, D) → representation (B, representation_size),
    logit (B,). It is created with the configuration and its settings. It initialises parameters of its own, outside of layers,
    in `init_parameters` (tabular_layers.py).

    Attributes:
        first_order: whether the model adds Σ_f w_f to the logit, w a weight of each feature.
        settings_class: as registered; a frozen dataclass.
    """

    first_order: ClassVar[bool] = False
    settings_class: ClassVar[type] = NoSettings
    representation_size: int

    def __init__(self, config: FlipConfig, settings: Any):
        super().__init__()

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise TypeError(f"{type(self).__name__} must define forward(embeddings) -> (representation, logit)")


# ---- the registry


def register_tabular_tower(
    name: str, settings: type = NoSettings
) -> Callable[[type[TabularTower]], type[TabularTower]]:
    """Class decorator: makes a tower available as `FlipConfig(tabular_tower=name)`.

    Args:
        name: the name of the tower.
        settings: a frozen dataclass of the tower's settings, each with a default and a line in the docstring's Args for --help;
            its `__post_init__` refuses impossible values. Settings are given as `FlipConfig(tower_settings={…})`, and in a
            recipe's section `model`.

    Raises:
        ValueError: the name of the tower, or of a setting, is taken.
    """

    def register(tower: type[TabularTower]) -> type[TabularTower]:
        if name in TABULAR_TOWERS:
            raise ValueError(f"tabular tower {name!r} is registered already, as {TABULAR_TOWERS[name].__name__}")
        taken = {field.name for field in dataclasses.fields(settings)} & set(FlipConfig.__annotations__)
        if taken:
            raise ValueError(
                f"{sorted(taken)[0]} is already a setting of FlipConfig; rename the setting of tower {name!r}"
            )
        tower.settings_class = settings
        TABULAR_TOWERS[name] = tower
        return tower

    return register


def create_tabular_tower(config: FlipConfig) -> TabularTower:
    """The tower that `config.tabular_tower` names. It sets `config.tower_settings` to all settings, defaults included, so that
    a checkpoint records them.

    Raises:
        ValueError: there is no such tower, or its settings cannot be.
    """
    settings = tower_settings(config.tabular_tower, config.tower_settings or {})
    values = dataclasses.asdict(settings)
    config.tower_settings = {
        key: list(v) if isinstance(v, tuple) else v for key, v in values.items()
    }  # as JSON has them
    tower = TABULAR_TOWERS[config.tabular_tower](config, settings)
    for name, _ in tower.named_children():
        if name in ("embedding", "first_order"):  # names of the feature tables in checkpoints of format 1
            raise ValueError(
                f"{type(tower).__name__} has a module {name!r}: the model owns embeddings and first-order weights (a tower is "
                "given the embeddings, and asks for the weights with first_order = True); rename a module that is something "
                "else"
            )
    return tower


def tower_settings(name: str, given: dict[str, Any]) -> Any:
    """The settings of a tower, defaults included, as its own dataclass.

    Raises:
        ValueError: there is no such tower, or it has no such setting, or not that value.
    """
    if name not in TABULAR_TOWERS:
        raise ValueError(f"tabular_tower is {name!r}; it must be one of {', '.join(TABULAR_TOWERS)}")
    known = setting_names(name)
    for wrong in sorted(set(given) - set(known)):
        near = difflib.get_close_matches(wrong, known, n=1)
        raise ValueError(
            f"tabular tower {name!r} has no setting {wrong!r}"
            + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known) or 'none'}")
        )
    return TABULAR_TOWERS[name].settings_class(**given)


def setting_names(name: str) -> list[str]:
    """The names of a registered tower's settings."""
    return [field.name for field in dataclasses.fields(TABULAR_TOWERS[name].settings_class)]


def check_whole_numbers(settings: Any, minimum: int, *names: str) -> None:
    """Raises ValueError if a setting is not a whole number, or below the minimum."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or value < minimum:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of {minimum} or more")


# ---- the published models


@register_tabular_tower("wide_deep")
class WideDeep(TabularTower):
    """Wide & Deep (Cheng et al., DLRS '16, Eq. 3), the wide part over single features.

    representation = MLP(e), e the row's embeddings end to end; logit = Σ_i w_i + w · MLP(e) + b.
    """

    first_order = True

    def __init__(self, config: FlipConfig, settings: NoSettings):
        super().__init__(config, settings)
        self.deep = MLP(config.num_fields * config.embedding_size, config)
        self.representation_size = config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        deep = self.deep(embeddings.flatten(1))
        return deep, self.output(deep).squeeze(1)


@dataclass(frozen=True)
class PNNSettings:
    """
    Args:
        pnn_product: PNN's product of two embeddings, "inner" or "outer".
    """

    pnn_product: str = "inner"

    def __post_init__(self) -> None:
        if self.pnn_product not in ("inner", "outer"):
            raise ValueError(f"pnn_product is {self.pnn_product!r}; it must be one of inner, outer")


@register_tabular_tower("pnn", settings=PNNSettings)
class PNN(TabularTower):
    """PNN (Qu et al., ICDM '16, Eq. 1-2), the products beside the embeddings at the MLP's entrance.

    `pnn_product` "inner" (Eq. 7): ⟨e_i, e_j⟩ of all pairs i < j, the products of a pair with itself and mirrored left out.
    "outer" (Eq. 11): the superposition f fᵀ, f = Σ_i e_i. representation = MLP([e ⊕ products]); logit = w · MLP(…) + b.
    """

    def __init__(self, config: FlipConfig, settings: PNNSettings):
        super().__init__(config, settings)
        self.is_outer = settings.pnn_product == "outer"
        num_pairs = config.num_fields * (config.num_fields - 1) // 2
        num_products = config.embedding_size**2 if self.is_outer else num_pairs
        self.deep = MLP(config.num_fields * config.embedding_size + num_products, config)
        self.representation_size = config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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

    first_order = True

    def __init__(self, config: FlipConfig, settings: NoSettings):
        super().__init__(config, settings)
        self.deep = MLP(config.num_fields * config.embedding_size, config)
        self.representation_size = config.embedding_size + config.hidden_sizes[-1]
        self.output = nn.Linear(config.hidden_sizes[-1], 1)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        interactions = pairwise_interactions(embeddings)  # (B, D)
        deep = self.deep(embeddings.flatten(1))
        logit = interactions.sum(1) + self.output(deep).squeeze(1)
        return torch.cat([interactions, deep], dim=1), logit


@dataclass(frozen=True)
class AFMSettings:
    """
    Args:
        attention_size: size of AFM's attention, and of one attention head of AutoInt.
    """

    attention_size: int = 32

    def __post_init__(self) -> None:
        check_whole_numbers(self, 1, "attention_size")


@register_tabular_tower("afm", settings=AFMSettings)
class AFM(TabularTower):
    """AFM (Xiao et al., IJCAI '17, Eq. 4-6): pairs of features, weighed by attention.

    a_ij = softmax over i < j of h · ReLU(W (e_i ⊙ e_j) + b); representation = Σ_{i<j} a_ij e_i ⊙ e_j, after dropout;
    logit = Σ_i w_i + p · representation + b.
    """

    first_order = True

    def __init__(self, config: FlipConfig, settings: AFMSettings):
        super().__init__(config, settings)
        self.attention = nn.Linear(config.embedding_size, settings.attention_size)
        self.score = nn.Linear(settings.attention_size, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.representation_size = config.embedding_size
        self.output = nn.Linear(self.representation_size, 1)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_fields = embeddings.shape[1]
        i, j = torch.triu_indices(num_fields, num_fields, offset=1, device=embeddings.device)
        products = embeddings[:, i] * embeddings[:, j]  # (B, F (F - 1) / 2, D)
        weights = self.score(self.attention(products).relu()).softmax(1)
        representation = self.dropout((weights * products).sum(1))
        return representation, self.output(representation).squeeze(1)


@dataclass(frozen=True)
class CrossSettings:
    """
    Args:
        num_cross_layers: number of cross layers of DCN, DCNv2 and DCN-Mix.
    """

    num_cross_layers: int = 3

    def __post_init__(self) -> None:
        check_whole_numbers(self, 0, "num_cross_layers")


class ParallelCross(TabularTower):
    """A cross network beside an MLP, both over e, the row's embeddings end to end."""

    def __init__(self, config: FlipConfig, settings: CrossSettings, cross: Callable[[int], nn.Module]):
        super().__init__(config, settings)
        size = config.num_fields * config.embedding_size
        self.cross = cross(size)
        self.deep = MLP(size, config)
        self.representation_size = size + config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = embeddings.flatten(1)  # (B, F D)
        representation = torch.cat([self.cross(x), self.deep(x)], dim=1)
        return representation, self.output(representation).squeeze(1)


@register_tabular_tower("dcn", settings=CrossSettings)
class DCN(ParallelCross):
    """DCN (Wang et al., ADKDD '17, Eq. 3-5): cross layers with one weight vector each.

    representation = [cross(e) ⊕ MLP(e)]; logit = w · representation + b.
    """

    def __init__(self, config: FlipConfig, settings: CrossSettings):
        super().__init__(config, settings, lambda size: VectorCrossNetwork(size, settings.num_cross_layers))


@register_tabular_tower("dcnv2", settings=CrossSettings)
class DCNv2(ParallelCross):
    """DCN-V2, parallel (Wang et al., WWW '21, Eq. 1-2): cross layers with a full-rank matrix each.

    representation = [cross(e) ⊕ MLP(e)]; logit = w · representation + b.
    """

    def __init__(self, config: FlipConfig, settings: CrossSettings):
        super().__init__(config, settings, lambda size: CrossNetwork(size, settings.num_cross_layers))


@dataclass(frozen=True)
class DCNMixSettings(CrossSettings):
    """
    Args:
        num_cross_layers: number of cross layers of DCN, DCNv2 and DCN-Mix.
        num_experts: number of experts in a cross layer of DCN-Mix.
        cross_rank: rank of an expert's matrices.
    """

    num_experts: int = 4
    cross_rank: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole_numbers(self, 1, "num_experts", "cross_rank")


@register_tabular_tower("dcn_mix", settings=DCNMixSettings)
class DCNMix(ParallelCross):
    """DCN-Mix, parallel (Wang et al., WWW '21, Eq. 3-5): cross layers that mix `num_experts` matrices of rank `cross_rank`.

    representation = [cross(e) ⊕ MLP(e)]; logit = w · representation + b. What FLIP's released code calls
    DCNv2 is this mixture with two layers and a linear term beside it.
    """

    def __init__(self, config: FlipConfig, settings: DCNMixSettings):
        layers, experts, rank = settings.num_cross_layers, settings.num_experts, settings.cross_rank
        super().__init__(config, settings, lambda size: MixtureCrossNetwork(size, layers, experts, rank))


@dataclass(frozen=True)
class XDeepFMSettings:
    """
    Args:
        cin_sizes: feature maps of each layer of xDeepFM's CIN.
    """

    cin_sizes: list[int] | tuple[int, ...] = (32, 32)

    def __post_init__(self) -> None:
        if not self.cin_sizes:
            raise ValueError("cin_sizes is empty; give at least one layer")


@register_tabular_tower("xdeepfm", settings=XDeepFMSettings)
class XDeepFM(TabularTower):
    """xDeepFM (Lian et al., KDD '18, Eq. 6-9).

    representation = [CIN ⊕ MLP(e)]; logit = Σ_i w_i + w · representation + b.
    """

    first_order = True

    def __init__(self, config: FlipConfig, settings: XDeepFMSettings):
        super().__init__(config, settings)
        self.cin = CompressedInteractionNetwork(config.num_fields, settings.cin_sizes)
        self.deep = MLP(config.num_fields * config.embedding_size, config)
        self.representation_size = sum(settings.cin_sizes) + config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        representation = torch.cat([self.cin(embeddings), self.deep(embeddings.flatten(1))], dim=1)
        return representation, self.output(representation).squeeze(1)


@dataclass(frozen=True)
class AFNSettings:
    """
    Args:
        num_logarithmic_neurons: number of logarithmic neurons of AFN.
    """

    num_logarithmic_neurons: int = 64

    def __post_init__(self) -> None:
        check_whole_numbers(self, 1, "num_logarithmic_neurons")


@register_tabular_tower("afn", settings=AFNSettings)
class AFN(TabularTower):
    """AFN (Cheng et al., AAAI '20, Eq. 6-9): products of features to learned powers, then an MLP, with batch norm as its
    authors have it.

    representation = MLP(logarithmic neurons, end to end); logit = w · representation + b.
    """

    def __init__(self, config: FlipConfig, settings: AFNSettings):
        super().__init__(config, settings)
        num_neurons = settings.num_logarithmic_neurons
        self.logarithmic = LogarithmicLayer(config.num_fields, num_neurons)
        self.deep = MLP(num_neurons * config.embedding_size, config, batch_norm=True)
        self.representation_size = config.hidden_sizes[-1]
        self.output = nn.Linear(self.representation_size, 1)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        deep = self.deep(self.logarithmic(embeddings).flatten(1))
        return deep, self.output(deep).squeeze(1)


@dataclass(frozen=True)
class AutoIntSettings:
    """
    Args:
        num_attention_layers: number of attention layers of AutoInt.
        num_attention_heads: number of attention heads of AutoInt.
        attention_size: size of AFM's attention, and of one attention head of AutoInt.
        deep: whether AutoInt has an MLP beside its attention (AutoInt+).
    """

    num_attention_layers: int = 3
    num_attention_heads: int = 2
    attention_size: int = 32
    deep: bool = True

    def __post_init__(self) -> None:
        check_whole_numbers(self, 0, "num_attention_layers")
        check_whole_numbers(self, 1, "num_attention_heads", "attention_size")


@register_tabular_tower("autoint", settings=AutoIntSettings)
class AutoInt(TabularTower):
    """AutoInt+ (Song et al., CIKM '19, Eq. 5-9 and §5.5): self-attention between fields beside an MLP.

    representation = [the last layer's fields, end to end ⊕ MLP(e)]; logit = w · representation + b. Without `deep`, AutoInt:
    no MLP.
    """

    def __init__(self, config: FlipConfig, settings: AutoIntSettings):
        super().__init__(config, settings)
        heads, head_size = settings.num_attention_heads, settings.attention_size
        sizes = [config.embedding_size] + [heads * head_size] * settings.num_attention_layers
        self.layers = nn.Sequential(*(InteractingLayer(size, heads, head_size) for size in sizes[:-1]))
        self.deep = MLP(config.num_fields * config.embedding_size, config) if settings.deep else None
        self.representation_size = config.num_fields * sizes[-1] + (config.hidden_sizes[-1] if settings.deep else 0)
        self.output = nn.Linear(self.representation_size, 1)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        representation = self.layers(embeddings).flatten(1)
        if self.deep is not None:
            representation = torch.cat([representation, self.deep(embeddings.flatten(1))], dim=1)
        return representation, self.output(representation).squeeze(1)
