"""Layers that the tabular towers share. B rows, F fields, D embedding size.

A layer with parameters of its own, outside of its sublayers, initialises them in `init_parameters`, with the functions of
`transformers.initialization`. Models call it when they are created, and in `from_pretrained` if a checkpoint lacks one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_flip import FlipConfig


class BatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d that also trains on a batch of one row, which has no variance: it then uses the running statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) == 1:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)

    def init_parameters(self) -> None:
        init.ones_(self.weight)
        init.zeros_(self.bias)
        init.zeros_(self.running_mean)
        init.ones_(self.running_var)
        init.zeros_(self.num_batches_tracked)


class MLP(nn.Sequential):
    """Linear, batch norm, activation and dropout for each hidden size: (B, input_size) → (B, hidden_sizes[-1]).

    `batch_norm` applies if the configuration leaves it open.
    """

    def __init__(self, input_size: int, config: FlipConfig, batch_norm: bool = False):
        layers: list[nn.Module] = []
        if config.batch_norm is not None:
            batch_norm = config.batch_norm
        for size, next_size in pairwise([input_size, *config.hidden_sizes]):
            norm = [BatchNorm(next_size)] if batch_norm else []
            layers += [nn.Linear(size, next_size), *norm, ACT2FN[config.activation], nn.Dropout(config.dropout)]
        super().__init__(*layers)


class Biases(nn.ParameterList):
    """Starts at zero. (transformers initialises only modules that hold parameters directly, and these belong to the list.)"""

    def init_parameters(self) -> None:
        for bias in self:
            init.zeros_(bias)


class VectorCrossNetwork(nn.Module):
    """DCN's cross layers, x_{l+1} = x_0 (x_l · w_l) + b_l + x_l (Wang et al., ADKDD '17, Eq. 3): (B, N) → (B, N)."""

    def __init__(self, size: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, 1, bias=False) for _ in range(num_layers))
        self.biases = Biases(torch.zeros(size) for _ in range(num_layers))

    def forward(self, x0: torch.Tensor) -> torch.Tensor:
        x = x0
        for layer, bias in zip(self.layers, self.biases, strict=True):
            x = torch.addcmul(x + bias, x0, layer(x))
        return x


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


class MixtureCrossNetwork(nn.Module):
    """DCNv2's low-rank cross layers with K experts (Wang et al., WWW '21, Eq. 3-5): (B, N) → (B, N).

    x_{l+1} = Σ_i G_i(x_l) x_0 ⊙ (U_i tanh(C_i tanh(V_iᵀ x_l)) + b) + x_l, G = softmax(gate · x_l).
    """

    def __init__(self, size: int, num_layers: int, num_experts: int, rank: int):
        super().__init__()
        self.num_experts = num_experts
        self.gates = nn.ModuleList(nn.Linear(size, num_experts, bias=False) for _ in range(num_layers))
        self.down = nn.ModuleList(nn.Linear(size, num_experts * rank, bias=False) for _ in range(num_layers))
        self.inner = nn.ModuleList(FieldwiseLinear(num_experts, rank, rank, bias=False) for _ in range(num_layers))
        self.up = nn.ModuleList(nn.Linear(num_experts * rank, size) for _ in range(num_layers))

    def forward(self, x0: torch.Tensor) -> torch.Tensor:
        x = x0
        for gate, down, inner, up in zip(self.gates, self.down, self.inner, self.up, strict=True):
            experts = inner(down(x).tanh().unflatten(1, (self.num_experts, -1))).tanh()  # (B, K, rank)
            # The gates are applied before U, so U is a single product; they sum to one, so b is added in full.
            x = torch.addcmul(x, x0, up((gate(x).softmax(1).unsqueeze(2) * experts).flatten(1)))
        return x


class CompressedInteractionNetwork(nn.Module):
    """xDeepFM's CIN (Lian et al., KDD '18, Eq. 6-8): (B, F, D) → (B, sum of layer_sizes).

    X^k_h = Σ_{i,j} W^{k,h}_{ij} (X^{k-1}_i ⊙ X^0_j), without activation; every layer's maps are summed over D.
    """

    def __init__(self, num_fields: int, layer_sizes: Sequence[int]):
        super().__init__()
        sizes = [num_fields, *layer_sizes]
        self.layers = nn.ModuleList(nn.Linear(s * num_fields, n, bias=False) for s, n in pairwise(sizes))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        x0 = embeddings.transpose(1, 2)  # (B, D, F)
        x, pooled = x0, []
        for layer in self.layers:
            x = layer((x.unsqueeze(3) * x0.unsqueeze(2)).flatten(2))  # (B, D, H)
            pooled.append(x.sum(1))
        return torch.cat(pooled, dim=1)


class LogarithmicLayer(nn.Module):
    """AFN's logarithmic neurons (Cheng et al., AAAI '20, Eq. 6): (B, F, D) → (B, num_neurons, D).

    y_j = exp(Σ_i w_ij ln |e_i|), batch norm before and after, as in the paper's §3.4; |e| is at least 1e-5.
    """

    def __init__(self, num_fields: int, num_neurons: int):
        super().__init__()
        self.log_norm, self.exp_norm = BatchNorm(num_fields), BatchNorm(num_neurons)
        self.orders = nn.Linear(num_fields, num_neurons, bias=False)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        logarithms = self.log_norm(embeddings.abs().clamp(min=1e-5).log())
        return self.exp_norm(self.orders(logarithms.transpose(1, 2)).exp().transpose(1, 2))


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

    def __init__(self, num_fields: int, input_size: int, output_size: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_fields, input_size, output_size))
        self.bias = nn.Parameter(torch.empty(num_fields, output_size)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        equation = "bi,fio->bfo" if x.ndim == 2 else "bfi,fio->bfo"
        product = torch.einsum(equation, x, self.weight)
        return product if self.bias is None else product + self.bias

    def init_parameters(self) -> None:
        # A view of a weight that was loaded does not say so, as the weight itself does to `init`.
        if not getattr(self.weight, "_is_hf_initialized", False):
            for weight in self.weight:
                init.xavier_uniform_(weight)
        if self.bias is not None:
            init.zeros_(self.bias)
