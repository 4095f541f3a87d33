"""One matrix over all registered towers, and the logit of each published model by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import set_seed

from modeling_flip.configuration_flip import FlipConfig
from modeling_flip.modeling_flip import FlipForCTR
from modeling_flip.tabular_towers import TABULAR_TOWERS, TabularTower, register_tabular_tower

# Three fields of 3, 2 and 4 values, each behind its unknown feature; <MASK> is the last of all.
UNKNOWN = [0, 4, 7]
NUM_FEATURES, NUM_FIELDS = 13, 3
ROWS = torch.tensor([[1, 5, 8], [2, 6, 9], [3, 5, 10], [0, 6, 11], [1, 4, 8], [2, 5, 7], [3, 6, 11]])
BATCHES = {
    "no rows": ROWS[:0],
    "one row": ROWS[:1],
    "seven rows": ROWS,
    "unknown values": torch.tensor([UNKNOWN] * 2),
    "masked fields": torch.full((2, NUM_FIELDS), NUM_FEATURES - 1),
}

ALL_TOWERS = pytest.mark.parametrize("name", sorted(TABULAR_TOWERS))


def make_model(name: str, seed: int = 0, **settings: Any) -> FlipForCTR:
    """A click model of the tower alone, its logit the tower's own."""
    sizes: dict[str, Any] = {
        "embedding_size": 4,
        "hidden_sizes": [6, 5],
        "attention_size": 3,
        "num_experts": 3,
        "cross_rank": 2,
        "cin_sizes": [4, 2],
        "num_logarithmic_neurons": 5,
    }
    config = FlipConfig(
        towers="tabular", tabular_tower=name, num_features=NUM_FEATURES, num_fields=NUM_FIELDS, **sizes | settings
    )
    set_seed(seed)
    return FlipForCTR(config).eval()


def make_tower(name: str, seed: int = 0, **settings: Any) -> TabularTower:
    """With embeddings of size one."""
    tower = make_model(name, seed, **settings).flip.tabular_tower
    enlarge_embeddings(tower)
    return tower


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
@pytest.mark.parametrize("batch", BATCHES)
def test_a_row_gives_a_representation_and_a_logit(name: str, batch: str) -> None:
    tower, feature_ids = make_tower(name), BATCHES[batch]
    representation, logit = tower(feature_ids)
    assert representation.shape == (len(feature_ids), tower.representation_size)
    assert logit.shape == (len(feature_ids),)
    assert representation.isfinite().all()
    assert logit.isfinite().all()


@ALL_TOWERS
def test_a_row_does_not_depend_on_the_rest_of_its_batch(name: str) -> None:
    tower = make_tower(name)
    together = tower(ROWS)
    for i in range(len(ROWS)):
        for alone, all_rows in zip(tower(ROWS[i : i + 1]), together, strict=True):
            torch.testing.assert_close(alone[0], all_rows[i], rtol=1e-4, atol=1e-5)


@ALL_TOWERS
@pytest.mark.parametrize("field", range(NUM_FIELDS))
def test_every_field_is_read(name: str, field: int) -> None:
    tower = make_tower(name)
    rows = ROWS[ROWS[:, field] != UNKNOWN[field]]
    changed = rows.clone()
    changed[:, field] = UNKNOWN[field]
    representation, logit = tower(rows)
    new_representation, new_logit = tower(changed)
    assert (representation != new_representation).any(1).all()
    assert (logit != new_logit).all()


@ALL_TOWERS
def test_gradient_reaches_every_parameter(name: str) -> None:
    tower = make_tower(name)
    representation, logit = tower(ROWS)
    (representation.sum() + logit.sum()).backward()
    assert [n for n, p in tower.named_parameters() if p.grad is None or not p.grad.any()] == []


@ALL_TOWERS
def test_the_seed_decides_the_weights(name: str) -> None:
    weights, same, other = (make_model(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert any(not torch.equal(weights[key], other[key]) for key in weights)


@ALL_TOWERS
def test_embeddings_given_replace_the_towers_own(name: str) -> None:
    tower = make_tower(name)
    table = torch.randn(tower.embedding.weight.shape)
    own, given = tower(ROWS), tower(ROWS, table[ROWS])
    sum(x.sum() for x in given).backward()
    assert tower.embedding.weight.grad is None
    tower.embedding.weight.data = table
    for looked_up, from_given, from_own in zip(tower(ROWS), given, own, strict=True):
        assert torch.equal(from_given, looked_up)
        assert (from_given != from_own).reshape(len(ROWS), -1).any(1).all()


@ALL_TOWERS
def test_one_row_is_enough_for_a_training_step_with_batch_norm(name: str) -> None:
    model = make_model(name, batch_norm=True).train()
    enlarge_embeddings(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        loss = model(feature_ids=ROWS[:1], labels=torch.tensor([1.0])).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@ALL_TOWERS
@pytest.mark.parametrize("batch_norm", [False, True], ids=["without batch norm", "with batch norm"])
def test_a_saved_model_scores_to_the_same_bit(name: str, batch_norm: bool, tmp_path: Path) -> None:
    model = make_model(name, batch_norm=batch_norm)
    draw_running_statistics(model)
    model.save_pretrained(tmp_path)
    # Copied, because matrix products differ in the last bit where tensors lie in memory as they lay in the file: unaligned.
    loaded = copy.deepcopy(FlipForCTR.from_pretrained(tmp_path))
    assert torch.equal(loaded(feature_ids=ROWS).logits, model(feature_ids=ROWS).logits)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("wide_deep", {"batch_norm": True}), ("dcn", {"num_cross_layers": 2}), ("dcn_mix", {"num_cross_layers": 2})],
)
def test_layers_that_a_checkpoint_lacks_start_afresh(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    saved = make_model(name, num_cross_layers=1)
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
    assert torch.equal(model(feature_ids=ROWS).logits, model.flip.tabular_tower(ROWS)[1])


# ---- the published models, by hand


def weights_of(tower: TabularTower) -> dict[str, np.ndarray]:
    """The tower's parameters and running statistics after drawing all of them anew, biases too."""
    torch.manual_seed(0)
    for parameter in tower.parameters():
        parameter.data.normal_(std=0.7)
    draw_running_statistics(tower)
    return {key: value.double().numpy() for key, value in tower.state_dict().items()}


def deep_by_hand(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    for layer in (0, 3):  # Linear, ReLU, Dropout, Linear, …
        x = np.maximum(weights[f"deep.{layer}.weight"] @ x + weights[f"deep.{layer}.bias"], 0)
    return x


def assert_tower_gives(tower: TabularTower, representations: list[np.ndarray], logits: list[float]) -> None:
    representation, logit = tower(ROWS)
    np.testing.assert_allclose(representation.detach().numpy(), np.stack(representations), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logit.detach().numpy(), np.array(logits), rtol=1e-3, atol=1e-4)


def normalised_by_hand(weights: dict[str, np.ndarray], name: str, channel: int, x: float) -> float:
    """γ (x - μ) / √(σ² + ε) + β of one of the channels of the batch norm of that name, by its running statistics."""
    keys = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (weights[f"{name}.{key}"][channel] for key in keys)
    return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta


def test_wide_deep_is_linear_part_plus_mlp() -> None:
    tower = make_model("wide_deep").flip.tabular_tower
    weights = weights_of(tower)
    representations, logits = [], []
    for row in ROWS.tolist():
        representations.append(deep_by_hand(weights, np.concatenate([weights["embedding.weight"][i] for i in row])))
        wide = sum(weights["first_order.weight"][i, 0] for i in row)
        logits.append(wide + weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_tower_gives(tower, representations, logits)


@pytest.mark.parametrize("product", ["inner", "outer"])
def test_pnn_is_an_mlp_over_embeddings_and_their_products(product: str) -> None:
    size = 4
    tower = make_model("pnn", embedding_size=size, pnn_product=product).flip.tabular_tower
    weights = weights_of(tower)
    representations, logits = [], []
    for row in ROWS.tolist():
        e = [weights["embedding.weight"][i] for i in row]
        if product == "inner":
            products = [
                sum(e[i][d] * e[j][d] for d in range(size)) for i in range(NUM_FIELDS) for j in range(i + 1, NUM_FIELDS)
            ]
        else:  # f fᵀ = Σ_i Σ_j e_i e_jᵀ
            matrix = sum(np.outer(e[i], e[j]) for i in range(NUM_FIELDS) for j in range(NUM_FIELDS))
            products = [matrix[k, d] for k in range(size) for d in range(size)]
        representations.append(deep_by_hand(weights, np.concatenate([*e, products])))
        logits.append(weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_tower_gives(tower, representations, logits)


def test_afm_is_linear_part_plus_attention_over_pairs() -> None:
    tower = make_model("afm").flip.tabular_tower
    weights = weights_of(tower)
    representations, logits = [], []
    for row in ROWS.tolist():
        e = [weights["embedding.weight"][i] for i in row]
        products = [e[i] * e[j] for i in range(NUM_FIELDS) for j in range(i + 1, NUM_FIELDS)]
        scores = []
        for product in products:
            hidden = np.maximum(weights["attention.weight"] @ product + weights["attention.bias"], 0)
            scores.append(np.exp(weights["score.weight"][0] @ hidden))
        pooled = sum(score / sum(scores) * product for score, product in zip(scores, products, strict=True))
        representations.append(pooled)
        linear = sum(weights["first_order.weight"][i, 0] for i in row)
        logits.append(linear + weights["output.weight"][0] @ pooled + weights["output.bias"][0])
    assert_tower_gives(tower, representations, logits)


def test_afm_drops_out_of_its_pooled_products_in_training_only() -> None:
    tower = make_tower("afm", embedding_size=2000, dropout=0.25)
    kept, dropped = tower(ROWS)[0], tower.train()(ROWS)[0]
    is_dropped = dropped == 0
    assert 0.2 < is_dropped.float().mean() < 0.3
    torch.testing.assert_close(dropped[~is_dropped], kept[~is_dropped] / 0.75)


def test_dcn_is_vector_cross_network_beside_mlp() -> None:
    tower = make_model("dcn", num_cross_layers=2).flip.tabular_tower
    weights = weights_of(tower)
    representations, logits = [], []
    for row in ROWS.tolist():
        x0 = np.concatenate([weights["embedding.weight"][i] for i in row])
        cross = x0
        for layer in range(2):
            w, b = weights[f"cross.layers.{layer}.weight"][0], weights[f"cross.biases.{layer}"]
            cross = np.outer(x0, cross) @ w + b + cross
        representations.append(np.concatenate([cross, deep_by_hand(weights, x0)]))
        logits.append(weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_tower_gives(tower, representations, logits)


def test_dcnv2_is_cross_network_beside_mlp() -> None:
    tower = make_model("dcnv2", num_cross_layers=2).flip.tabular_tower
    weights = weights_of(tower)
    representations, logits = [], []
    for row in ROWS.tolist():
        x0 = np.concatenate([weights["embedding.weight"][i] for i in row])
        cross = x0
        for layer in range(2):
            w, b = weights[f"cross.layers.{layer}.weight"], weights[f"cross.layers.{layer}.bias"]
            cross = x0 * (w @ cross + b) + cross
        representations.append(np.concatenate([cross, deep_by_hand(weights, x0)]))
        logits.append(weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_tower_gives(tower, representations, logits)


def test_dcn_mix_is_a_mixture_of_low_rank_cross_networks_beside_mlp() -> None:
    num_experts, rank = 3, 2
    tower = make_model("dcn_mix", num_cross_layers=2, num_experts=num_experts, cross_rank=rank).flip.tabular_tower
    weights = weights_of(tower)
    representations, logits = [], []
    for row in ROWS.tolist():
        x0 = np.concatenate([weights["embedding.weight"][i] for i in row])
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
    assert_tower_gives(tower, representations, logits)


def test_xdeepfm_is_linear_part_plus_compressed_interactions_plus_mlp() -> None:
    tower = make_model("xdeepfm", cin_sizes=[4, 2]).flip.tabular_tower
    weights = weights_of(tower)
    representations, logits = [], []
    for row in ROWS.tolist():
        e = [weights["embedding.weight"][i] for i in row]
        maps, pooled = e, []
        for layer, num_maps in enumerate([4, 2]):
            w = weights[f"cin.layers.{layer}.weight"].reshape(num_maps, len(maps), NUM_FIELDS)
            pairs = [(i, j) for i in range(len(maps)) for j in range(NUM_FIELDS)]
            maps = [sum(w[h, i, j] * maps[i] * e[j] for i, j in pairs) for h in range(num_maps)]
            pooled += [one_map.sum() for one_map in maps]
        representations.append(np.concatenate([pooled, deep_by_hand(weights, np.concatenate(e))]))
        linear = sum(weights["first_order.weight"][i, 0] for i in row)
        logits.append(linear + weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_tower_gives(tower, representations, logits)


def test_afn_is_an_mlp_over_logarithmic_neurons() -> None:
    num_neurons, size = 5, 4
    tower = make_model("afn", num_logarithmic_neurons=num_neurons, embedding_size=size).flip.tabular_tower
    weights = weights_of(tower)
    representations, logits = [], []
    for row in ROWS.tolist():
        e = [weights["embedding.weight"][i] for i in row]
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
    assert_tower_gives(tower, representations, logits)


def test_deepfm_is_linear_part_plus_factorisation_machine_plus_mlp() -> None:
    tower = make_model("deepfm").flip.tabular_tower
    weights = weights_of(tower)
    representations, logits = [], []
    for row in ROWS.tolist():
        e = [weights["embedding.weight"][i] for i in row]
        deep = deep_by_hand(weights, np.concatenate(e))
        pairs = [(e[i], e[j]) for i in range(NUM_FIELDS) for j in range(i + 1, NUM_FIELDS)]
        representations.append(np.concatenate([sum(a * b for a, b in pairs), deep]))
        linear = sum(weights["first_order.weight"][i, 0] for i in row)
        interactions = sum(a @ b for a, b in pairs)
        logits.append(linear + interactions + weights["output.weight"][0] @ deep + weights["output.bias"][0])
    assert_tower_gives(tower, representations, logits)


def test_autoint_is_self_attention_between_fields_with_residuals() -> None:
    num_heads, head_size = 2, 3
    tower = make_model("autoint", num_attention_layers=2, num_attention_heads=num_heads).flip.tabular_tower
    weights = weights_of(tower)
    representations, logits = [], []
    for row in ROWS.tolist():
        fields = [weights["embedding.weight"][i] for i in row]
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
        representations.append(np.concatenate(fields))
        logits.append(weights["output.weight"][0] @ representations[-1] + weights["output.bias"][0])
    assert_tower_gives(tower, representations, logits)


# ---- the settings


@pytest.mark.parametrize(("name", "tables"), [("wide_deep", ["embedding", "first_order"]), ("dcnv2", ["embedding"])])
def test_the_embeddings_are_penalised_in_training_only(name: str, tables: list[str]) -> None:
    model = make_model(name, embedding_l2=0.3)
    weights = weights_of(model.flip.tabular_tower)
    labels = [1, 0, 0, 1, 1, 0, 1]
    logits = model(feature_ids=ROWS).logits.detach().double().numpy()
    clicks = np.mean([np.log1p(np.exp(-x if y else x)) for x, y in zip(logits, labels, strict=True)])
    squares = sum(value**2 for table in tables for value in weights[f"{table}.weight"].flatten())
    trained = model.train()(feature_ids=ROWS, labels=torch.tensor(labels)).loss
    evaluated = model.eval()(feature_ids=ROWS, labels=torch.tensor(labels)).loss
    np.testing.assert_allclose(trained.item(), clicks + 0.5 * 0.3 * squares, rtol=1e-5)
    np.testing.assert_allclose(evaluated.item(), clicks, rtol=1e-5)


def test_embeddings_that_no_row_names_shrink_under_the_penalty() -> None:
    model = make_model("deepfm", embedding_l2=0.3).train()
    model(feature_ids=ROWS[:1], labels=torch.tensor([1.0])).loss.backward()
    for table in (model.flip.tabular_tower.embedding, model.flip.tabular_tower.first_order):
        torch.testing.assert_close(table.weight.grad[-1], 0.3 * table.weight.detach()[-1])


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("activation", "rely", "activation is 'rely'; it must be one of .*relu"),
        ("pnn_product", "both", "pnn_product is 'both'; it must be one of inner, outer"),
        ("embedding_l2", -0.1, "embedding_l2 is -0.1; it must be 0 or more"),
        ("embedding_l2", float("nan"), "embedding_l2 is nan; it must be 0 or more"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model("pnn", **{setting: value})


# ---- the registry


def test_a_registered_tower_is_available_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABULAR_TOWERS, "popularity", None)  # forgotten after the test
    del TABULAR_TOWERS["popularity"]

    @register_tabular_tower("popularity")
    class Popularity(TabularTower):
        representation_size = 4

        def interact(self, embeddings: torch.Tensor, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            representation = embeddings.sum(1)
            return representation, representation.sum(1)

    model = make_model("popularity")
    assert isinstance(model.flip.tabular_tower, Popularity)
    assert model(feature_ids=ROWS).logits.shape == (7,)


def test_a_taken_name_is_refused() -> None:
    registered = dict(TABULAR_TOWERS)
    with pytest.raises(ValueError, match="'dcnv2' is registered already, as DCNv2"):
        register_tabular_tower("dcnv2")(TabularTower)
    assert registered == TABULAR_TOWERS


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="tabular_tower is 'dcn_v3'") as error:
        make_model("dcn_v3")
    assert all(name in str(error.value) for name in TABULAR_TOWERS)


def test_a_tower_without_interact_says_what_is_missing() -> None:
    class Unfinished(TabularTower):
        pass

    tower = Unfinished(FlipConfig(towers="tabular", num_features=NUM_FEATURES))
    with pytest.raises(TypeError, match=r"Unfinished must define interact\(embeddings, feature_ids\)"):
        tower(ROWS)
