"""The pretraining model: what its losses add up to, what each reads, and what each teaches."""

from __future__ import annotations

import pytest
import torch

from modeling_flip import FlipForPreTraining
from tests.modeling_flip.flip_models.models import assert_same_outputs, make_model, make_pretraining_batch, padded


def test_the_pretraining_loss_is_the_weighted_sum_of_the_objectives() -> None:
    batch = make_pretraining_batch()
    plain = make_model(FlipForPreTraining)(**batch)
    assert plain.loss.item() == pytest.approx((plain.mlm_loss + plain.mtm_loss + plain.icl_loss).item())
    weighted = make_model(FlipForPreTraining, mlm_weight=0.5, mtm_weight=2.0, icl_weight=3.0)(**batch)
    assert weighted.mlm_loss == plain.mlm_loss
    expected = 0.5 * plain.mlm_loss + 2 * plain.mtm_loss + 3 * plain.icl_loss
    assert weighted.loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("objective", ["mlm", "mtm", "icl"])
def test_an_objective_without_weight_is_absent(objective: str) -> None:
    model = make_model(FlipForPreTraining, **{f"{objective}_weight": 0.0})
    output = model(**make_pretraining_batch())
    assert not hasattr(model, objective)
    assert getattr(output, f"{objective}_loss") is None
    others = [value.item() for name, value in output.items() if name != "loss"]
    assert len(others) == 2
    assert output.loss.item() == pytest.approx(sum(others))


@pytest.mark.parametrize(
    ("changed_input", "joint", "changed_losses"),
    [
        ("masked_input_ids", True, {"mlm_loss"}),
        ("masked_feature_ids", True, {"mtm_loss"}),
        ("noise_feature_ids", True, {"mtm_loss"}),
        ("input_ids", True, {"mtm_loss", "icl_loss"}),
        ("feature_ids", True, {"mlm_loss", "icl_loss"}),
        ("input_ids", False, {"icl_loss"}),
        ("feature_ids", False, {"icl_loss"}),
    ],
)
def test_each_objective_reads_its_own_masked_copy_and_the_other_view_unmasked(
    changed_input: str, joint: bool, changed_losses: set[str]
) -> None:
    model, batch = make_model(FlipForPreTraining, joint_reconstruction=joint), make_pretraining_batch()
    output = model(**batch)
    changed = model(**batch | {changed_input: batch[changed_input].flip(0)})
    losses = ("mlm_loss", "mtm_loss", "icl_loss")
    assert {name for name in losses if not torch.equal(output[name], changed[name])} == changed_losses


def test_pretraining_reads_the_lists_of_each_view() -> None:
    model, plain = make_model(FlipForPreTraining, list_fields=[1]), make_model(FlipForPreTraining)
    batch = make_pretraining_batch()
    lists = {
        "list_feature_ids": batch["feature_ids"][:, 1].view(-1, 1, 1),
        "masked_list_feature_ids": batch["masked_feature_ids"][:, 1].view(-1, 1, 1),
    }
    output = model(**batch, **lists)
    assert_same_outputs(output, plain(**batch))  # lists of one
    for name, losses in {"list_feature_ids": {"mlm_loss", "icl_loss"}, "masked_list_feature_ids": {"mtm_loss"}}.items():
        changed = model(**batch, **lists | {name: lists[name].flip(0)})
        assert {loss for loss in output if loss != "loss" and not torch.equal(output[loss], changed[loss])} == losses


def test_pretraining_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="mlm_weight, mtm_weight and icl_weight are all 0"):
        make_model(FlipForPreTraining, mlm_weight=0.0, mtm_weight=0.0, icl_weight=0.0)


@pytest.mark.parametrize("towers", ["tabular", "text"])
def test_pretraining_of_one_tower_is_refused(towers: str) -> None:
    with pytest.raises(ValueError, match=f"towers is '{towers}'"):
        make_model(FlipForPreTraining, towers=towers)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize(
    ("loss", "own", "other"), [("mlm_loss", "text", "tabular"), ("mtm_loss", "tabular", "text")], ids=["mlm", "mtm"]
)
def test_an_objective_teaches_the_other_tower_only_in_joint_reconstruction(
    loss: str, own: str, other: str, joint: bool
) -> None:
    model = make_model(FlipForPreTraining, joint_reconstruction=joint)
    model(**make_pretraining_batch())[loss].backward()

    def is_taught(tower: str) -> bool:
        return any(p.grad is not None and p.grad.any() for p in model.flip.get_submodule(f"{tower}_tower").parameters())

    assert is_taught(own)
    assert is_taught(other) is joint


@pytest.mark.parametrize(
    ("tower", "click_only"),
    [
        ("dcnv2", {"tabular_tower.output"}),
        ("deepfm", {"tabular_tower.output", "feature_embeddings.first_order"}),
        ("autoint", {"tabular_tower.output"}),
    ],
)
def test_pretraining_teaches_every_parameter_but_the_click_heads(tower: str, click_only: set[str]) -> None:
    model = make_model(FlipForPreTraining, tabular_tower=tower)
    model(**make_pretraining_batch()).loss.backward()
    untaught = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert untaught == {
        name
        for name, _ in model.named_parameters()
        if name.split(".")[0] == "flip" and ".".join(name.split(".")[1:3]) in click_only
    }


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_padding_changes_no_pretraining_loss(pooling: str) -> None:
    model, batch = make_model(FlipForPreTraining, text_pooling=pooling), make_pretraining_batch()
    output, output_padded = model(**batch), model(**padded(batch))
    for name in ("mlm_loss", "mtm_loss", "icl_loss", "loss"):
        torch.testing.assert_close(output_padded[name], output[name], rtol=1e-6, atol=1e-6)


def test_bf16_autocast_gives_nearly_the_same_losses() -> None:
    model, batch = make_model(FlipForPreTraining), make_pretraining_batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    for name, loss in model(**batch).items():
        assert output[name].dtype == torch.float32
        torch.testing.assert_close(output[name], loss, rtol=5e-3, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
