"""The representation and the logit of each published model, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.modeling_flip.tabular_towers.models import (
    ALL_TOWERS,
    NUM_FIELDS,
    ROWS,
    assert_gives,
    make_model,
    make_towers,
    run,
    weights_of,
)


def deep_by_hand(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    for layer in (0, 3):  # Linear, ReLU, Dropout, Linear, …
        x = np.maximum(weights[f"deep.{layer}.weight"] @ x + weights[f"deep.{layer}.bias"], 0)
    return x


def normalised_by_hand(weights: dict[str, np.ndarray], name: str, channel: int, x: float) -> float:
    """γ (x - μ) / √(σ² + ε) + β of one of the channels of the batch norm of that name, by its running statistics."""
    keys = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (weights[f"{name}.{key}"][channel] for key in keys)
    return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta


def test_wide_deep_is_linear_part_plus_mlp() -> None:
    model = make_model("wide_deep").flip
    weights = weights_of(model)
    representations, logits = [], []
    for row in ROWS.tolist():
        representations.append(deep_by_hand(weights, np.concatenate([weights["embedding"][i] for i in row])))
        wide = sum(weights["first_order"][i, 0] for i in row)
        logits.append(wide + weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_gives(model, representations, logits)


@pytest.mark.parametrize("product", ["inner", "outer"])
def test_pnn_is_an_mlp_over_embeddings_and_their_products(product: str) -> None:
    size = 4
    model = make_model("pnn", embedding_size=size, pnn_product=product).flip
    weights = weights_of(model)
    representations, logits = [], []
    for row in ROWS.tolist():
        e = [weights["embedding"][i] for i in row]
        if product == "inner":
            products = [
                sum(e[i][d] * e[j][d] for d in range(size)) for i in range(NUM_FIELDS) for j in range(i + 1, NUM_FIELDS)
            ]
        else:  # f fᵀ = Σ_i Σ_j e_i e_jᵀ
            matrix = np.sum([np.outer(e[i], e[j]) for i in range(NUM_FIELDS) for j in range(NUM_FIELDS)], axis=0)
            products = [matrix[k, d] for k in range(size) for d in range(size)]
        representations.append(deep_by_hand(weights, np.concatenate([*e, products])))
        logits.append(weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_gives(model, representations, logits)


def test_afm_is_linear_part_plus_attention_over_pairs() -> None:
    model = make_model("afm").flip
    weights = weights_of(model)
    representations, logits = [], []
    for row in ROWS.tolist():
        e = [weights["embedding"][i] for i in row]
        products = [e[i] * e[j] for i in range(NUM_FIELDS) for j in range(i + 1, NUM_FIELDS)]
        scores = []
        for product in products:
            hidden = np.maximum(weights["attention.weight"] @ product + weights["attention.bias"], 0)
            scores.append(np.exp(weights["score.weight"][0] @ hidden))
        pooled = sum(score / sum(scores) * product for score, product in zip(scores, products, strict=True))
        representations.append(pooled)
        linear = sum(weights["first_order"][i, 0] for i in row)
        logits.append(linear + weights["output.weight"][0] @ pooled + weights["output.bias"][0])
    assert_gives(model, representations, logits)


def test_afm_drops_out_of_its_pooled_products_in_training_only() -> None:
    model = make_towers("afm", embedding_size=2000, dropout=0.25)
    kept, dropped = run(model, ROWS)[0], run(model.train(), ROWS)[0]
    is_dropped = dropped == 0
    assert 0.2 < is_dropped.float().mean() < 0.3
    torch.testing.assert_close(dropped[~is_dropped], kept[~is_dropped] / 0.75)


def test_dcn_is_vector_cross_network_beside_mlp() -> None:
    model = make_model("dcn", num_cross_layers=2).flip
    weights = weights_of(model)
    representations, logits = [], []
    for row in ROWS.tolist():
        x0 = np.concatenate([weights["embedding"][i] for i in row])
        cross = x0
        for layer in range(2):
            w, b = weights[f"cross.layers.{layer}.weight"][0], weights[f"cross.biases.{layer}"]
            cross = np.outer(x0, cross) @ w + b + cross
        representations.append(np.concatenate([cross, deep_by_hand(weights, x0)]))
        logits.append(weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_gives(model, representations, logits)


def test_dcnv2_is_cross_network_beside_mlp() -> None:
    model = make_model("dcnv2", num_cross_layers=2).flip
    weights = weights_of(model)
    representations, logits = [], []
    for row in ROWS.tolist():
        x0 = np.concatenate([weights["embedding"][i] for i in row])
        cross = x0
        for layer in range(2):
            w, b = weights[f"cross.layers.{layer}.weight"], weights[f"cross.layers.{layer}.bias"]
            cross = x0 * (w @ cross + b) + cross
        representations.append(np.concatenate([cross, deep_by_hand(weights, x0)]))
        logits.append(weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_gives(model, representations, logits)


def test_dcn_mix_is_a_mixture_of_low_rank_cross_networks_beside_mlp() -> None:
    num_experts, rank = 3, 2
    model = make_model("dcn_mix", num_cross_layers=2, num_experts=num_experts, cross_rank=rank).flip
    weights = weights_of(model)
    representations, logits = [], []
    for row in ROWS.tolist():
        x0 = np.concatenate([weights["embedding"][i] for i in row])
        cross = x0
        for layer in range(2):
            gates = np.exp(weights[f"cross.gates.{layer}.weight"] @ cross)
            experts = []
            for i in range(num_experts):
                rows = [i * rank + r for r in range(rank)]
                low = np.tanh(weights[f"cross.down.{layer}.weight"][rows] @ cross)
                low = np.tanh(low @ weights[f"cross.inner.{layer}.weight"][i])
                up = weights[f"cross.up.{layer}.weight"][:, rows] @ low
                experts.append(x0 * (up + weights[f"cross.up.{layer}.bias"]))
            cross = sum(gate / gates.sum() * expert for gate, expert in zip(gates, experts, strict=True)) + cross
        representations.append(np.concatenate([cross, deep_by_hand(weights, x0)]))
        logits.append(weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_gives(model, representations, logits)


def test_xdeepfm_is_linear_part_plus_compressed_interactions_plus_mlp() -> None:
    model = make_model("xdeepfm", cin_sizes=[4, 2]).flip
    weights = weights_of(model)
    representations, logits = [], []
    for row in ROWS.tolist():
        e = [weights["embedding"][i] for i in row]
        maps, pooled = e, []
        for layer, num_maps in enumerate([4, 2]):
            w = weights[f"cin.layers.{layer}.weight"].reshape(num_maps, len(maps), NUM_FIELDS)
            pairs = [(i, j) for i in range(len(maps)) for j in range(NUM_FIELDS)]
            maps = [sum(w[h, i, j] * maps[i] * e[j] for i, j in pairs) for h in range(num_maps)]
            pooled += [one_map.sum() for one_map in maps]
        representations.append(np.concatenate([pooled, deep_by_hand(weights, np.concatenate(e))]))
        linear = sum(weights["first_order"][i, 0] for i in row)
        logits.append(linear + weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_gives(model, representations, logits)


def test_afn_is_an_mlp_over_logarithmic_neurons() -> None:
    num_neurons, size = 5, 4
    model = make_model("afn", num_logarithmic_neurons=num_neurons, embedding_size=size, batch_norm=False).flip
    weights = weights_of(model)
    representations, logits = [], []
    for row in ROWS.tolist():
        e = [weights["embedding"][i] for i in row]
        neurons = np.zeros((num_neurons, size))
        for d in range(size):
            logarithms = [
                normalised_by_hand(weights, "logarithmic.log_norm", i, np.log(abs(e[i][d]))) for i in range(NUM_FIELDS)
            ]
            for j in range(num_neurons):
                powers = sum(weights["logarithmic.orders.weight"][j, i] * logarithms[i] for i in range(NUM_FIELDS))
                product = np.exp(powers)
                neurons[j, d] = normalised_by_hand(weights, "logarithmic.exp_norm", j, product)
        representations.append(deep_by_hand(weights, np.concatenate(neurons)))
        logits.append(weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_gives(model, representations, logits)


def test_deepfm_is_linear_part_plus_factorisation_machine_plus_mlp() -> None:
    model = make_model("deepfm").flip
    weights = weights_of(model)
    representations, logits = [], []
    for row in ROWS.tolist():
        e = [weights["embedding"][i] for i in row]
        deep = deep_by_hand(weights, np.concatenate(e))
        pairs = [(e[i], e[j]) for i in range(NUM_FIELDS) for j in range(i + 1, NUM_FIELDS)]
        representations.append(np.concatenate([sum(a * b for a, b in pairs), deep]))
        linear = sum(weights["first_order"][i, 0] for i in row)
        interactions = sum(a @ b for a, b in pairs)
        logits.append(linear + interactions + weights["output.weight"][0] @ deep + weights["output.bias"][0])
    assert_gives(model, representations, logits)


@pytest.mark.parametrize("deep", [False, True])
def test_autoint_is_self_attention_between_fields_with_residuals_beside_an_mlp(deep: bool) -> None:
    num_heads, head_size = 2, 3
    model = make_model("autoint", num_attention_layers=2, num_attention_heads=num_heads, deep=deep).flip
    weights = weights_of(model)
    representations, logits = [], []
    for row in ROWS.tolist():
        fields = [weights["embedding"][i] for i in row]
        for layer in range(2):
            projections = weights[f"layers.{layer}.query_key_value.weight"]
            queries, keys, values = projections.reshape(3, num_heads, head_size, -1)
            attended = []
            for e in fields:
                heads = []
                for q, k, v in zip(queries, keys, values, strict=True):
                    scores = np.exp([(q @ e) @ (k @ other) for other in fields])
                    heads.append(sum(s * (v @ other) for s, other in zip(scores / scores.sum(), fields, strict=True)))
                residual = weights[f"layers.{layer}.residual.weight"] @ e
                attended.append(np.maximum(np.concatenate(heads) + residual, 0))
            fields = attended
        if deep:
            fields.append(deep_by_hand(weights, np.concatenate([weights["embedding"][i] for i in row])))
        representations.append(np.concatenate(fields))
        logits.append(weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_gives(model, representations, logits)


def test_autoint_has_the_mlp_unless_told_otherwise() -> None:
    assert "deep.0.weight" in make_model("autoint").flip.tabular_tower.state_dict()


@ALL_TOWERS
def test_afn_alone_has_batch_norm_in_its_mlp_unless_told_otherwise(name: str) -> None:
    def norms(**settings: Any) -> int:
        mlp = getattr(make_model(name, **settings).flip.tabular_tower, "deep", None)
        return 0 if mlp is None else sum(isinstance(layer, torch.nn.BatchNorm1d) for layer in mlp)

    assert norms() == (2 if name == "afn" else 0)
    assert norms(batch_norm=False) == 0
    if hasattr(make_model(name).flip.tabular_tower, "deep"):  # AFM has no MLP
        assert norms(batch_norm=True) == 2
