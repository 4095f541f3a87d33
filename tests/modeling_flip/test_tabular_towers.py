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
    sizes: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [6, 5], "attention_size": 3}
    config = FlipConfig(
        towers="tabular", tabular_tower=name, num_features=NUM_FEATURES, num_fields=NUM_FIELDS, **sizes | settings
    )
    set_seed(seed)
    return FlipForCTR(config).eval()


def make_tower(name: str, seed: int = 0) -> TabularTower:
    """With embeddings of size one: at their initial 0.01 what fields do to each other is lost in rounding."""
    tower = make_model(name, seed).flip.tabular_tower
    for module in tower.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.data *= 100
    return tower


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
def test_a_saved_model_scores_to_the_same_bit(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    model.save_pretrained(tmp_path)
    # Copied, because matrix products differ in the last bit where tensors lie in memory as they lay in the file: unaligned.
    loaded = copy.deepcopy(FlipForCTR.from_pretrained(tmp_path))
    assert torch.equal(loaded(feature_ids=ROWS).logits, model(feature_ids=ROWS).logits)


@ALL_TOWERS
def test_the_click_logit_of_a_lone_tower_is_its_own(name: str) -> None:
    model = make_model(name)
    assert torch.equal(model(feature_ids=ROWS).logits, model.flip.tabular_tower(ROWS)[1])


# ---- the published models, by hand


def weights_of(tower: TabularTower) -> dict[str, np.ndarray]:
    """The tower's parameters after drawing all of them anew, biases too."""
    torch.manual_seed(0)
    for parameter in tower.parameters():
        parameter.data.normal_(std=0.7)
    return {key: value.double().numpy() for key, value in tower.state_dict().items()}


def deep_by_hand(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    for layer in (0, 3):  # Linear, ReLU, Dropout, Linear, …
        x = np.maximum(weights[f"deep.{layer}.weight"] @ x + weights[f"deep.{layer}.bias"], 0)
    return x


def assert_tower_gives(tower: TabularTower, representations: list[np.ndarray], logits: list[float]) -> None:
    representation, logit = tower(ROWS)
    np.testing.assert_allclose(representation.detach().numpy(), np.stack(representations), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logit.detach().numpy(), np.array(logits), rtol=1e-3, atol=1e-4)


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


# ---- the registry


def test_a_registered_tower_is_available_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABULAR_TOWERS, "popularity", None)  # forgotten after the test
    del TABULAR_TOWERS["popularity"]

    @register_tabular_tower("popularity")
    class Popularity(TabularTower):
        representation_size = 4

        def forward(self, feature_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            representation = self.embedding(feature_ids).sum(1)
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


def test_a_tower_without_forward_says_what_is_missing() -> None:
    class Unfinished(TabularTower):
        pass

    with pytest.raises(TypeError, match=r"Unfinished must define forward\(feature_ids\)"):
        Unfinished(FlipConfig(towers="tabular"))(ROWS)
