"""The tabular towers' layers, each against its published formula written out with loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modeling_flip.tabular_layers import MLP, CrossNetwork, FieldwiseLinear, InteractingLayer, pairwise_interactions


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter drawn anew: some layers leave theirs to the model that holds them."""
    for parameter in module.parameters():
        parameter.data.normal_()
    return module


def numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def test_mlp_is_a_linear_layer_and_relu_for_each_hidden_size() -> None:
    mlp = MLP(4, [3, 2])
    x = torch.randn(5, 4)
    linears = [layer for layer in mlp if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linears] == [(3, 4), (2, 3)]
    for row, actual in zip(numpy(x), numpy(mlp(x)), strict=True):
        for layer in linears:
            row = np.maximum(numpy(layer.weight) @ row + numpy(layer.bias), 0)
        np.testing.assert_allclose(actual, row, rtol=1e-5, atol=1e-6)


def test_mlp_drops_out_in_training_only() -> None:
    mlp = MLP(3, [4000], dropout=0.25)
    x = torch.randn(1, 3)
    kept = mlp.eval()(x)
    dropped = mlp.train()(x)
    live = kept > 0
    is_dropped = dropped[live] == 0
    assert 0.2 < is_dropped.float().mean() < 0.3
    torch.testing.assert_close(dropped[live][~is_dropped], kept[live][~is_dropped] / 0.75)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_cross_network(num_layers: int) -> None:
    """x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l."""
    cross = randomised(CrossNetwork(4, num_layers))
    batch = torch.randn(3, 4)
    for x0, actual in zip(numpy(batch), numpy(cross(batch)), strict=True):
        x = x0
        for layer in cross.layers:
            crossed = [x0[i] * (numpy(layer.weight)[i] @ x + numpy(layer.bias)[i]) for i in range(4)]
            x = x + np.array(crossed)
        np.testing.assert_allclose(actual, x, rtol=1e-4)


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


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)], ids=["one input for all fields", "an input for each field"])
def test_fieldwise_linear_has_weights_of_its_own_for_each_field(shape: tuple[int, ...]) -> None:
    layer = randomised(FieldwiseLinear(num_fields=3, input_size=4, output_size=5))
    x = torch.randn(shape)
    actual = numpy(layer(x))
    assert actual.shape == (2, 3, 5)
    for b in range(2):
        for f in range(3):
            field = x[b] if x.ndim == 2 else x[b, f]
            expected = numpy(field) @ numpy(layer.weight[f]) + numpy(layer.bias[f])
            np.testing.assert_allclose(actual[b, f], expected, rtol=1e-4, atol=1e-5)
