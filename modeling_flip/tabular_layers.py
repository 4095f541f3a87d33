"""Layers that the tabular towers share. B rows, F fields, D embedding size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


class MLP(nn.Sequential):
    """Linear, ReLU and dropout for each hidden size: (B, input_size) → (B, hidden_sizes[-1])."""

    def __init__(self, input_size: int, hidden_sizes: Sequence[int], dropout: float = 0.0):
        sizes = [input_size, *hidden_sizes]
        layers: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, next_size), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers)


class CrossNetwork(nn.Module):
    """DCNv2's cross layers, x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l (Wang et al., WWW '21, Eq. 1): (B, N) → (B, N)."""

    def __init__(self, size: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(num_layers))

    def forward(self, x0: torch.Tensor) -> torch.Tensor:
        x = x0
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x))
        return x


def pairwise_interactions(embeddings: torch.Tensor) -> torch.Tensor:
    """The factorisation machine's Σ_{i<j} e_i ⊙ e_j (Rendle, ICDM '10, Lemma 3.1): (B, F, D) → (B, D)."""
    return 0.5 * (embeddings.sum(1).square() - embeddings.square().sum(1))


class InteractingLayer(nn.Module):
    """AutoInt's multi-head attention between fields with a residual (Song et al., CIKM '19, Eq. 5-8).

    (B, F, input_size) → (B, F, num_heads · head_size): ReLU([heads] + W_res e); the scores are not scaled.
    """

    def __init__(self, input_size: int, num_heads: int, head_size: int):
        super().__init__()
        self.num_heads = num_heads
        size = num_heads * head_size
        self.query_key_value = nn.Linear(input_size, 3 * size, bias=False)
        self.residual = nn.Linear(input_size, size, bias=False)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        heads = self.query_key_value(fields).unflatten(-1, (3, self.num_heads, -1))  # (B, F, 3, H, d)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, H, F, d)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return torch.relu(attended.transpose(1, 2).flatten(2) + self.residual(fields))


class FieldwiseLinear(nn.Module):
    """One linear layer for each field: (B, input_size) or (B, F, input_size) → (B, F, output_size)."""

    def __init__(self, num_fields: int, input_size: int, output_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_fields, input_size, output_size))
        self.bias = nn.Parameter(torch.empty(num_fields, output_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        equation = "bi,fio->bfo" if x.ndim == 2 else "bfi,fio->bfo"
        return torch.einsum(equation, x, self.weight) + self.bias
