"""One matrix over all registered towers, with and without list fields."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_flip.modeling_flip import FlipForCTR
from tests.modeling_flip.tabular_towers.models import (
    ALL_TOWERS,
    BATCHES,
    LIST_FIELDS,
    LISTS,
    NUM_FIELDS,
    ROWS,
    UNKNOWN,
    draw_running_statistics,
    enlarge_embeddings,
    make_model,
    make_towers,
    run,
)


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
