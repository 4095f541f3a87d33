"""One matrix over all registered towers, with and without list fields, and the logit of each published model by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import initialization as init
from transformers import set_seed

from modeling_flip.configuration_flip import FlipConfig
from modeling_flip.modeling_flip import FlipForCTR, FlipModel
from modeling_flip.tabular_towers import TABULAR_TOWERS, TabularTower, register_tabular_tower, setting_names
from modeling_flip.training.sparse import sparse_gradients

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


@ALL_TOWERS
@LIST_FIELDS
@pytest.mark.parametrize("batch", BATCHES)
def test_a_row_gives_a_representation_and_a_logit(name: str, list_fields: list[int], batch: str) -> None:
    model, (feature_ids, lists) = make_towers(name, list_fields=list_fields), BATCHES[batch]
    representation, logit = run(model, feature_ids, lists)
    assert representation.shape == (len(feature_ids), model.tabular_tower.representation_size)
    assert logit.shape == (len(feature_ids),)
    assert representation.isfinite().all()
    assert logit.isfinite().all()


@ALL_TOWERS
@LIST_FIELDS
def test_a_row_does_not_depend_on_the_rest_of_its_batch(name: str, list_fields: list[int]) -> None:
    model = make_towers(name, list_fields=list_fields)
    together = run(model, ROWS)
    for i in range(len(ROWS)):
        unpadded = LISTS[i][LISTS[i] >= 0].view(1, 1, -1)
        for alone, all_rows in zip(run(model, ROWS[i : i + 1], unpadded), together, strict=True):
            torch.testing.assert_close(alone[0], all_rows[i], rtol=1e-4, atol=1e-5)


@ALL_TOWERS
@pytest.mark.parametrize("field", range(NUM_FIELDS))
def test_every_field_is_read(name: str, field: int) -> None:
    model = make_towers(name)
    rows = ROWS[ROWS[:, field] != UNKNOWN[field]]
    changed = rows.clone()
    changed[:, field] = UNKNOWN[field]
    representation, logit = run(model, rows)
    new_representation, new_logit = run(model, changed)
    assert (representation != new_representation).any(1).all()
    assert (logit != new_logit).all()


@ALL_TOWERS
def test_every_member_of_a_list_is_read_and_nothing_else_in_its_place(name: str) -> None:
    model = make_towers(name, list_fields=[1], activation="tanh")  # without ReLU, which may hide a change
    representation, logit = run(model, ROWS)
    for member in range(2):
        changed = LISTS.clone()
        changed[LISTS[..., member] >= 0, member] = UNKNOWN[1]
        is_changed = (changed != LISTS).flatten(1).any(1)
        new_representation, new_logit = run(model, ROWS, changed)
        assert torch.equal((representation != new_representation).any(1), is_changed)
        assert torch.equal(logit != new_logit, is_changed)
    first_member = ROWS.clone()
    first_member[:, 1] = UNKNOWN[1]
    assert torch.equal(run(model, first_member)[1], logit)


@ALL_TOWERS
@LIST_FIELDS
def test_gradient_reaches_every_parameter(name: str, list_fields: list[int]) -> None:
    model = make_towers(name, list_fields=list_fields)
    representation, logit = run(model, ROWS)
    (representation.sum() + logit.sum()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@ALL_TOWERS
def test_the_seed_decides_the_weights(name: str) -> None:
    weights, same, other = (make_model(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert any(not torch.equal(weights[key], other[key]) for key in weights)


@ALL_TOWERS
@LIST_FIELDS
def test_one_row_is_enough_for_a_training_step_with_batch_norm(name: str, list_fields: list[int]) -> None:
    model = make_model(name, batch_norm=True, list_fields=list_fields).train()
    enlarge_embeddings(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        loss = model(feature_ids=ROWS[:1], list_feature_ids=LISTS[:1], labels=torch.tensor([1.0])).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@ALL_TOWERS
@LIST_FIELDS
@pytest.mark.parametrize("batch_norm", [False, True], ids=["without batch norm", "with batch norm"])
def test_a_saved_model_scores_to_the_same_bit(
    name: str, list_fields: list[int], batch_norm: bool, tmp_path: Path
) -> None:
    model = make_model(name, batch_norm=batch_norm, list_fields=list_fields)
    draw_running_statistics(model)
    model.save_pretrained(tmp_path)
    # Copied, because matrix products differ in the last bit where tensors lie in memory as they lay in the file: unaligned.
    loaded = copy.deepcopy(FlipForCTR.from_pretrained(tmp_path))
    assert loaded.config.tower_settings == model.config.tower_settings
    for rows, lists in BATCHES.values():
        expected = model(feature_ids=rows, list_feature_ids=lists).logits
        assert torch.equal(loaded(feature_ids=rows, list_feature_ids=lists).logits, expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("wide_deep", {"batch_norm": True}),
        ("dcn", {"num_cross_layers": 2}),
        ("dcn_mix", {"tower_settings": {"num_cross_layers": 2}}),
    ],
)
def test_layers_that_a_checkpoint_lacks_start_afresh(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    saved = make_model(name, num_cross_layers=1, batch_norm=False)
    saved.save_pretrained(tmp_path)
    torch.use_deterministic_algorithms(True)  # fills what nobody initialises with NaN
    try:
        loaded = FlipForCTR.from_pretrained(tmp_path, **settings)
    finally:
        torch.use_deterministic_algorithms(False)
    fresh = {key: value for key, value in loaded.state_dict().items() if key not in saved.state_dict()}
    assert fresh
    norms = [key.removesuffix("running_var") for key in fresh if key.endswith("running_var")]
    for key, value in fresh.items():
        if key.endswith("running_var") or key in [f"{norm}weight" for norm in norms]:
            assert (value == 1).all(), key
        elif "bias" in key or key.endswith(("running_mean", "num_batches_tracked")):
            assert (value == 0).all(), key
        else:
            assert value.isfinite().all() and value.any(), key


@ALL_TOWERS
def test_the_click_logit_of_a_lone_tower_is_its_own(name: str) -> None:
    model = make_model(name)
    assert torch.equal(model(feature_ids=ROWS).logits, run(model.flip, ROWS)[1])


# ---- the published models, by hand


def weights_of(model: FlipModel) -> dict[str, np.ndarray]:
    """Parameters and running statistics after drawing all of them anew, biases too: the tower's by their names in it, and the
    tables' as "embedding" and "first_order"."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.7)
    draw_running_statistics(model)
    tables = {key.removesuffix(".weight"): value for key, value in model.feature_embeddings.state_dict().items()}
    return {key: value.double().numpy() for key, value in (tables | model.tabular_tower.state_dict()).items()}


def deep_by_hand(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    for layer in (0, 3):  # Linear, ReLU, Dropout, Linear, …
        x = np.maximum(weights[f"deep.{layer}.weight"] @ x + weights[f"deep.{layer}.bias"], 0)
    return x


def assert_gives(model: FlipModel, representations: list[np.ndarray], logits: list[float]) -> None:
    representation, logit = run(model, ROWS)
    np.testing.assert_allclose(representation.detach().numpy(), np.stack(representations), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logit.detach().numpy(), np.array(logits), rtol=1e-3, atol=1e-4)


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


# ---- the penalty on embeddings


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("name", "tables"), [("wide_deep", ["embedding", "first_order"]), ("dcnv2", ["embedding"])])
@LIST_FIELDS
def test_all_features_are_penalised_in_training_or_those_of_the_batch_where_gradients_are_sparse(
    name: str, tables: list[str], list_fields: list[int], sparse: bool
) -> None:
    model = make_model(name, embedding_l2=0.3, list_fields=list_fields)
    weights = weights_of(model.flip)
    labels = [1, 0, 0, 1, 1, 0, 1]
    batch = {"feature_ids": ROWS, "list_feature_ids": LISTS}
    logits = model(**batch).logits.detach().double().numpy()
    clicks = np.mean([np.log1p(np.exp(-x if y else x)) for x, y in zip(logits, labels, strict=True)])
    looked_up = sorted({i for row in ROWS.tolist() for i in row})  # the lists have the same features
    assert len(looked_up) < NUM_FEATURES
    penalised = looked_up if sparse else list(range(NUM_FEATURES))
    squares = sum((weights[table][penalised] ** 2).sum() for table in tables)
    with sparse_gradients(model) if sparse else nullcontext():
        trained = model.train()(**batch, labels=torch.tensor(labels)).loss
        evaluated = model.eval()(**batch, labels=torch.tensor(labels)).loss
    np.testing.assert_allclose(trained.item(), clicks + 0.5 * 0.3 * squares, rtol=1e-5)
    np.testing.assert_allclose(evaluated.item(), clicks, rtol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_feature_is_penalised_once_however_often_it_stands_in_the_batch(sparse: bool) -> None:
    gradients = {}
    for l2 in (0.0, 0.3):
        model = make_model("deepfm", embedding_l2=l2).train()
        enlarge_embeddings(model)
        with sparse_gradients(model) if sparse else nullcontext():
            model(feature_ids=ROWS[[0, 0, 4]], labels=torch.tensor([1.0, 1.0, 0.0])).loss.backward()
        features = model.flip.feature_embeddings
        gradients[l2] = [table.weight.grad.to_dense() for table in features.children()]
    looked_up = [1, 4, 5, 8]
    rest = [i for i in range(NUM_FEATURES) if i not in looked_up]
    for table, without, penalised in zip(features.children(), gradients[0.0], gradients[0.3], strict=True):
        expected = 0.3 * table.weight.detach()
        if sparse:
            expected[rest] = 0
        torch.testing.assert_close(penalised - without, expected)


# ---- the settings


@pytest.mark.parametrize(
    ("name", "setting", "value", "message"),
    [
        ("pnn", "activation", "rely", "activation is 'rely'; it must be one of .*relu"),
        ("pnn", "pnn_product", "both", "pnn_product is 'both'; it must be one of inner, outer"),
        ("pnn", "embedding_l2", -0.1, "embedding_l2 is -0.1; it must be 0 or more"),
        ("pnn", "embedding_l2", float("nan"), "embedding_l2 is nan; it must be 0 or more"),
        ("dcn", "num_cross_layers", -1, "num_cross_layers is -1; it must be a whole number of 0 or more"),
        ("dcn_mix", "num_experts", 0, "num_experts is 0; it must be a whole number of 1 or more"),
        ("dcn_mix", "cross_rank", "8", "cross_rank is '8'; it must be a whole number of 1 or more"),
        ("autoint", "attention_size", 0, "attention_size is 0; it must be a whole number of 1 or more"),
        ("afm", "attention_size", 0, "attention_size is 0; it must be a whole number of 1 or more"),
        ("afn", "num_logarithmic_neurons", 0, "num_logarithmic_neurons is 0; it must be a whole number of 1 or more"),
        ("xdeepfm", "cin_sizes", [], "cin_sizes is empty"),
        (
            "dcn",
            "tower_settings",
            {"num_cros_layers": 2},
            "'dcn' has no setting 'num_cros_layers'; did you mean 'num_cr",
        ),
        ("dcn", "tower_settings", {"num_heads": 2}, "'dcn' has no setting 'num_heads'; it has num_cross_layers"),
        ("deepfm", "tower_settings", {"x": 2}, "'deepfm' has no setting 'x'; it has none"),
        ("dcn", "list_fields", [3], r"list_fields is \[3\]; it names positions below num_fields \(3\), in order"),
        ("dcn", "list_fields", [1, 0], r"list_fields is \[1, 0\]; it names positions below num_fields \(3\), in order"),
    ],
)
def test_a_wrong_setting_is_named(name: str, setting: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(name, **{setting: value})


def test_a_towers_settings_are_nested_however_they_are_given() -> None:
    flat, nested = FlipConfig(tabular_tower="dcn", num_cross_layers=2), {"num_cross_layers": 2}
    assert flat.tower_settings == FlipConfig(tabular_tower="dcn", tower_settings=nested).tower_settings == nested
    assert not hasattr(flat, "num_cross_layers")


def test_a_setting_of_another_tower_is_not_read_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = FlipConfig(tabular_tower="dcn", num_cross_layers=2, num_attention_heads=3)
    assert config.tower_settings == {"num_cross_layers": 2}
    assert "num_attention_heads is ignored: tabular tower 'dcn' has no such setting" in caplog.text


def test_a_checkpoint_says_the_settings_that_were_left_to_their_defaults(tmp_path: Path) -> None:
    make_model("dcn_mix", cross_rank=2).save_pretrained(tmp_path)
    config = FlipConfig.from_pretrained(tmp_path)
    assert config.tower_settings == {"num_cross_layers": 3, "num_experts": 3, "cross_rank": 2}
    assert FlipConfig.from_pretrained(tmp_path, cross_rank=4).tower_settings == config.tower_settings | {
        "cross_rank": 4
    }
    other = FlipConfig.from_pretrained(tmp_path, tower_settings={"cross_rank": 4})
    assert other.tower_settings == config.tower_settings | {"cross_rank": 4}


@pytest.mark.parametrize("name", ["dcn", "autoint", "afn", "deepfm"])
def test_of_a_configuration_of_format_1_the_towers_own_settings_are_kept(name: str) -> None:
    all_flat = {
        **{"num_cross_layers": 2, "num_experts": 3, "cross_rank": 2, "num_attention_layers": 1},
        **{"num_attention_heads": 2, "attention_size": 3, "pnn_product": "outer", "cin_sizes": [3]},
        **{"num_logarithmic_neurons": 5, "tabular_tower": name, "towers": "tabular", "format_version": 1},
    }
    config = FlipConfig.from_dict(all_flat)
    attention = {"num_attention_layers": 1, "num_attention_heads": 2, "attention_size": 3, "deep": False}
    expected = {"dcn": {"num_cross_layers": 2}, "autoint": attention, "afn": {"num_logarithmic_neurons": 5}}
    assert config.tower_settings == expected.get(name, {})
    assert config.batch_norm is False
    assert config.format_version == 2


# ---- the registry


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
