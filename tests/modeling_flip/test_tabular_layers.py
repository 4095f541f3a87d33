"""The tabular towers' layers, each against its published formula written out with loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from modeling_flip.configuration_flip import FlipConfig
from modeling_flip.tabular_layers import (
    MLP,
    BatchNorm,
    CompressedInteractionNetwork,
    CrossNetwork,
    FieldwiseLinear,
    InteractingLayer,
    LogarithmicLayer,
    MixtureCrossNetwork,
    VectorCrossNetwork,
    pairwise_interactions,
)

Layer = TypeVar("Layer", bound=torch.nn.Module)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomised(module: Layer) -> Layer:
    """Every parameter drawn anew, for some layers leave theirs to the model that holds them, and running statistics too."""
    for parameter in module.parameters():
        parameter.data.normal_()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return module


def numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def weight_of(layer: torch.nn.Module) -> np.ndarray:
    return numpy(layer.get_parameter("weight"))


def normalised(norm: torch.nn.BatchNorm1d, channel: int, x: np.ndarray) -> np.ndarray:
    """What `norm` makes of one of its channels in evaluation: γ (x - μ) / √(σ² + ε) + β."""
    mean, variance = numpy(norm.running_mean)[channel], numpy(norm.running_var)[channel]
    gamma, beta = numpy(norm.weight)[channel], numpy(norm.bias)[channel]
    return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta


def mlp_config(**settings: Any) -> FlipConfig:
    return FlipConfig(towers="tabular", **settings)


def test_mlp_is_a_linear_layer_and_relu_for_each_hidden_size() -> None:
    mlp = MLP(4, mlp_config(hidden_sizes=[3, 2]))
    x = torch.randn(5, 4)
    linears = [layer for layer in mlp if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linears] == [(3, 4), (2, 3)]
    for row, actual in zip(numpy(x), numpy(mlp(x)), strict=True):
        for layer in linears:
            row = np.maximum(numpy(layer.weight) @ row + numpy(layer.bias), 0)
        np.testing.assert_allclose(actual, row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "by_hand"),
    [("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh), ("silu", lambda x: x / (1 + np.exp(-x)))],
    ids=["relu", "tanh", "silu"],
)
def test_mlp_with_batch_norm_normalises_before_each_activation(
    activation: str, by_hand: Callable[[np.ndarray], np.ndarray]
) -> None:
    mlp = randomised(MLP(4, mlp_config(hidden_sizes=[3, 2], activation=activation, batch_norm=True))).eval()
    x = torch.randn(5, 4)
    linears = [layer for layer in mlp if isinstance(layer, torch.nn.Linear)]
    norms = [layer for layer in mlp if isinstance(layer, torch.nn.BatchNorm1d)]
    for row, actual in zip(numpy(x), numpy(mlp(x)), strict=True):
        for linear, norm in zip(linears, norms, strict=True):
            row = numpy(linear.weight) @ row + numpy(linear.bias)
            row = by_hand(np.array([normalised(norm, channel, value) for channel, value in enumerate(row)]))
        np.testing.assert_allclose(actual, row, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("configured", [None, True, False])
@pytest.mark.parametrize("by_default", [True, False])
def test_the_configuration_decides_whether_an_mlp_has_batch_norm_and_the_tower_where_it_does_not(
    configured: bool | None, by_default: bool
) -> None:
    mlp = MLP(4, mlp_config(hidden_sizes=[3, 2], batch_norm=configured), batch_norm=by_default)
    expected = by_default if configured is None else configured
    assert sum(isinstance(layer, BatchNorm) for layer in mlp) == 2 * expected


def test_mlp_drops_out_in_training_only() -> None:
    mlp = MLP(3, mlp_config(hidden_sizes=[4000], dropout=0.25))
    x = torch.randn(1, 3)
    kept = mlp.eval()(x)
    dropped = mlp.train()(x)
    live = kept > 0
    is_dropped = dropped[live] == 0
    assert 0.2 < is_dropped.float().mean() < 0.3
    torch.testing.assert_close(dropped[live][~is_dropped], kept[live][~is_dropped] / 0.75)


@pytest.mark.parametrize("shape", [(2, 3), (7, 3), (7, 3, 4)], ids=["two rows", "seven rows", "seven rows of vectors"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm_of_many_rows_is_that_of_torch(shape: tuple[int, ...], training: bool) -> None:
    norm, torch_norm = randomised(BatchNorm(3)).train(training), torch.nn.BatchNorm1d(3).train(training)
    torch_norm.load_state_dict(norm.state_dict())
    x = torch.randn(shape)
    assert torch.equal(norm(x), torch_norm(x))
    for name, value in torch_norm.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name
    assert norm.num_batches_tracked == int(training)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 4)], ids=["a row", "a row of vectors"])
def test_batch_norm_trains_on_one_row_by_its_running_statistics(shape: tuple[int, ...]) -> None:
    norm = randomised(BatchNorm(3)).train()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.randn(shape)
    actual = norm(x)
    actual.sum().backward()
    for channel in range(3):
        expected = normalised(norm, channel, numpy(x[0, channel]))
        np.testing.assert_allclose(numpy(actual[0, channel]), expected, rtol=1e-5, atol=1e-6)
    assert norm.weight.grad.all() and norm.bias.grad.all()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_vector_cross_network(num_layers: int) -> None:
    """x_{l+1} = x_0 (x_l · w_l) + b_l + x_l."""
    cross = randomised(VectorCrossNetwork(4, num_layers))
    batch = torch.randn(3, 4)
    for x0, actual in zip(numpy(batch), numpy(cross(batch)), strict=True):
        x = x0
        for layer in range(num_layers):
            w, b = weight_of(cross.layers[layer])[0], numpy(cross.biases[layer])
            product = sum(x[i] * w[i] for i in range(4))
            x = np.array([x0[i] * product + b[i] + x[i] for i in range(4)])
        np.testing.assert_allclose(actual, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_cross_network(num_layers: int) -> None:
    """x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l."""
    cross = randomised(CrossNetwork(4, num_layers))
    batch = torch.randn(3, 4)
    for x0, actual in zip(numpy(batch), numpy(cross(batch)), strict=True):
        x = x0
        for layer in cross.layers:
            weight, bias = map(numpy, layer.parameters())
            crossed = [x0[i] * (weight[i] @ x + bias[i]) for i in range(4)]
            x = x + np.array(crossed)
        np.testing.assert_allclose(actual, x, rtol=1e-4)


@pytest.mark.parametrize(("num_layers", "num_experts"), [(0, 3), (1, 1), (1, 3), (3, 3)])
def test_mixture_cross_network(num_layers: int, num_experts: int) -> None:
    """x_{l+1} = Σ_i softmax_i(gate · x_l) x_0 ⊙ (U_i tanh(C_i tanh(V_iᵀ x_l)) + b) + x_l."""
    size, rank = 5, 2
    cross = randomised(MixtureCrossNetwork(size, num_layers, num_experts, rank))
    batch = torch.randn(3, size)
    for x0, actual in zip(numpy(batch), numpy(cross(batch)), strict=True):
        x = x0
        for layer in range(num_layers):
            gates = np.exp(weight_of(cross.gates[layer]) @ x)
            gates /= gates.sum()
            bias, mixture = numpy(cross.up[layer].get_parameter("bias")), np.zeros(size)
            for i in range(num_experts):
                part = slice(i * rank, (i + 1) * rank)
                v, u = weight_of(cross.down[layer])[part].T, weight_of(cross.up[layer])[:, part]
                c = weight_of(cross.inner[layer])[i].T
                mixture += gates[i] * x0 * (u @ np.tanh(c @ np.tanh(v.T @ x)) + bias)
            x = mixture + x
        np.testing.assert_allclose(actual, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer_sizes", [[2], [4, 3], [2, 5, 1]])
def test_compressed_interaction_network(layer_sizes: list[int]) -> None:
    """X^k_h = Σ_{i,j} W^{k,h}_{ij} (X^{k-1}_i ⊙ X^0_j); each map's sum over its elements."""
    num_fields, size = 3, 4
    cin = randomised(CompressedInteractionNetwork(num_fields, layer_sizes))
    embeddings = torch.randn(2, num_fields, size)
    actual = numpy(cin(embeddings))
    assert actual.shape == (2, sum(layer_sizes))
    for x0, pooled in zip(numpy(embeddings), actual, strict=True):
        x, expected = x0, []
        for layer, num_maps in zip(cin.layers, layer_sizes, strict=True):
            weight = weight_of(layer).reshape(num_maps, len(x), num_fields)
            maps = np.zeros((num_maps, size))
            for h in range(num_maps):
                for i in range(len(x)):
                    for j in range(num_fields):
                        maps[h] += weight[h, i, j] * x[i] * x0[j]
            x = maps
            expected += [row.sum() for row in maps]
        np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-4)


def test_logarithmic_layer() -> None:
    """exp(Σ_i w_ij ln |e_i| + b_j), the logarithms and the exponentials each normalised; |e| is 1e-5 or more."""
    num_fields, num_neurons, size = 3, 5, 4
    layer = randomised(LogarithmicLayer(num_fields, num_neurons)).eval()
    layer.orders.weight.data *= 0.3
    embeddings = torch.randn(6, num_fields, size)
    embeddings[0, 1, 2], embeddings[1, 0, 0] = 0, -1e-7
    assert (embeddings < -0.1).any()
    actual = numpy(layer(embeddings))
    assert actual.shape == (6, num_neurons, size)
    orders = numpy(layer.orders.weight)
    for e, neurons in zip(numpy(embeddings), actual, strict=True):
        for d in range(size):
            logarithms = [normalised(layer.log_norm, i, np.log(max(abs(e[i, d]), 1e-5))) for i in range(num_fields)]
            for j in range(num_neurons):
                neuron = np.exp(sum(orders[j, i] * logarithms[i] for i in range(num_fields)))
                expected = normalised(layer.exp_norm, j, neuron)
                np.testing.assert_allclose(neurons[j, d], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_fields", [1, 2, 5])
def test_pairwise_interactions_sum_the_product_of_each_pair_of_fields(num_fields: int) -> None:
    embeddings = torch.randn(3, num_fields, 4)
    expected = np.zeros((3, 4))
    for i in range(num_fields):
        for j in range(i + 1, num_fields):
            expected += numpy(embeddings[:, i]) * numpy(embeddings[:, j])
    np.testing.assert_allclose(numpy(pairwise_interactions(embeddings)), expected, rtol=1e-4, atol=1e-5)


def test_interacting_layer() -> None:
    """For each head, Σ_k softmax_k(⟨W_q e_m, W_k e_k⟩) W_v e_k; the heads end to end, plus W_res e_m, through ReLU."""
    num_heads, head_size, num_fields = 2, 3, 4
    layer = randomised(InteractingLayer(5, num_heads, head_size))
    fields = torch.randn(2, num_fields, 5)
    actual = numpy(layer(fields))
    assert actual.shape == (2, num_fields, num_heads * head_size)
    queries, keys, values = numpy(layer.query_key_value.weight).reshape(3, num_heads, head_size, 5)
    for e, attended in zip(numpy(fields), actual, strict=True):
        for m in range(num_fields):
            heads = []
            for h in range(num_heads):
                scores = np.exp([(queries[h] @ e[m]) @ (keys[h] @ e[k]) for k in range(num_fields)])
                heads.append(sum(scores[k] / scores.sum() * (values[h] @ e[k]) for k in range(num_fields)))
            expected = np.maximum(np.concatenate(heads) + numpy(layer.residual.weight) @ e[m], 0)
            np.testing.assert_allclose(attended[m], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)], ids=["one input for all fields", "an input for each field"])
def test_fieldwise_linear_has_weights_of_its_own_for_each_field(shape: tuple[int, ...], bias: bool) -> None:
    layer = randomised(FieldwiseLinear(num_fields=3, input_size=4, output_size=5, bias=bias))
    assert len(list(layer.parameters())) == 1 + bias
    x = torch.randn(shape)
    actual = numpy(layer(x))
    assert actual.shape == (2, 3, 5)
    for b in range(2):
        for f in range(3):
            field = x[b] if x.ndim == 2 else x[b, f]
            expected = numpy(field) @ numpy(layer.weight[f])
            if bias:
                expected = expected + numpy(layer.bias[f])
            np.testing.assert_allclose(actual[b, f], expected, rtol=1e-4, atol=1e-5)
