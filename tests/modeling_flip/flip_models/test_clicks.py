"""The click model: its logit, its loss, and its calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_flip import FlipForCTR, FlipForPreTraining
from tests.modeling_flip.flip_models.models import LABELS, SIZE, make_batch, make_model, make_pretraining_batch, padded


def test_the_click_logit_weighs_the_towers_and_the_loss_is_the_sum_of_three() -> None:
    model, batch = make_model(FlipForCTR), make_batch()
    model.alpha_logit.data.fill_(1.5)
    output = model(**batch, labels=LABELS)
    alpha = 1 / (1 + torch.tensor(-1.5).exp())
    towers = model.flip(**batch)
    text_logits = towers.text_representation @ model.text_classifier.weight[0] + model.text_classifier.bias
    torch.testing.assert_close(output.tabular_logits, towers.tabular_logit)
    torch.testing.assert_close(output.text_logits, text_logits)
    torch.testing.assert_close(output.logits, alpha * towers.tabular_logit + (1 - alpha) * text_logits)

    def cross_entropy(logits: torch.Tensor) -> float:
        losses = [
            -torch.log(p if label else 1 - p).item()
            for p, label in zip(1 / (1 + torch.exp(-logits)), LABELS, strict=True)
        ]
        return sum(losses) / len(losses)

    expected = [cross_entropy(logits) for logits in (output.logits, towers.tabular_logit, text_logits)]
    actual = [output.joint_loss.item(), output.tabular_loss.item(), output.text_loss.item()]
    assert actual == pytest.approx(expected)
    assert output.loss.item() == pytest.approx(sum(expected))


@pytest.mark.parametrize("towers", ["tabular", "text"])
def test_a_lone_towers_loss_is_its_own(towers: str) -> None:
    model, batch = make_model(FlipForCTR, towers=towers), make_batch()
    output = model(**batch, labels=LABELS)
    assert set(output) == {"loss", "logits"}
    p = output.logits.sigmoid()
    expected = -(p[0].log() + (1 - p[1]).log() + (1 - p[2]).log() + p[3].log()) / 4
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("model_class", [FlipForCTR, FlipForPreTraining])
def test_a_batch_without_rows_teaches_every_parameter_nothing(model_class: Any, pooling: str) -> None:
    """What a process has of a last batch that is smaller than the number of processes."""
    model = make_model(model_class, text_pooling=pooling).train()
    batch = (
        make_pretraining_batch() if model_class is FlipForPreTraining else make_batch() | {"labels": torch.ones(SIZE)}
    )
    loss = model(**{name: value[:0] for name, value in batch.items()}).loss
    loss.backward()
    assert loss == 0
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    model.zero_grad()
    model(**batch).loss.backward()
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_without_labels_there_is_no_loss() -> None:
    assert set(make_model(FlipForCTR)(**make_batch())) == {"logits", "tabular_logits", "text_logits"}


@pytest.mark.parametrize("towers", ["both", "tabular", "text"])
def test_a_tower_that_is_absent_needs_no_input_and_one_that_is_present_does(towers: str) -> None:
    model, batch = make_model(FlipForCTR, towers=towers), make_batch()
    for name, needed_by in (("feature_ids", ("both", "tabular")), ("input_ids", ("both", "text"))):
        rest = {key: value for key, value in batch.items() if key != name}
        if towers in needed_by:
            with pytest.raises(ValueError, match=f"{name} is missing; towers is '{towers}'"):
                model(**rest)
        else:
            assert torch.equal(model(**rest).logits, model(**batch).logits)


@pytest.mark.parametrize("step", [1e3, -1e3])
def test_alpha_starts_at_one_half_and_stays_between_0_and_1(step: float) -> None:
    model = make_model(FlipForCTR)
    assert model.alpha.item() == 0.5
    optimizer = torch.optim.SGD([model.alpha_logit], lr=1.0)
    (step * model.alpha).backward()
    optimizer.step()
    assert abs(model.alpha_logit.item()) > 100
    assert 0 <= model.alpha.item() <= 1
    assert model(**make_batch(), labels=LABELS).loss.isfinite()


@pytest.mark.parametrize(("towers", "alpha"), [("tabular", 1.0), ("text", 0.0)])
def test_alpha_of_a_lone_tower_is_all_or_nothing(towers: str, alpha: float) -> None:
    assert make_model(FlipForCTR, towers=towers).alpha.item() == alpha


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_padding_changes_no_click_logit(pooling: str) -> None:
    model, batch = make_model(FlipForCTR, text_pooling=pooling), make_batch()
    torch.testing.assert_close(model(**padded(batch)).logits, model(**batch).logits, rtol=1e-6, atol=1e-6)


# ---- calibration


@pytest.mark.parametrize("towers", ["both", "tabular", "text"])
def test_calibration_scales_and_shifts_the_final_logits_in_evaluation_mode_alone(towers: str) -> None:
    model, batch = make_model(FlipForCTR, towers=towers).eval(), make_batch()
    plain = model(**batch)
    model.config.logit_scale, model.config.logit_shift = 0.5, -2.0
    calibrated = model(**batch)
    for module in model.modules():  # dropout aside
        module.training = module is model
    torch.testing.assert_close(model(**batch).logits, plain.logits)
    torch.testing.assert_close(calibrated.logits, 0.5 * plain.logits - 2)
    if towers == "both":
        assert torch.equal(calibrated.tabular_logits, plain.tabular_logits)
        assert torch.equal(calibrated.text_logits, plain.text_logits)


@pytest.mark.parametrize(
    ("scale", "shift", "of_one"),
    [(0.5, -2.0, (1, -1.5)), (0.5, 0.25, (1, -1.5)), (1, -1.5, (1, -1.5))],
)
def test_one_tower_of_a_calibrated_model_has_the_correction_for_sampling_alone(
    scale: float, shift: float, of_one: tuple[float, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = make_model(FlipForCTR).eval(), make_batch()
    config = model.config
    config.logit_scale, config.logit_shift, config.sampling_shift = scale, shift, -1.5
    model.save_pretrained(tmp_path)
    for tower in ("tabular", "text"):
        caplog.clear()
        one = FlipForCTR.from_pretrained(tmp_path, towers=tower)
        assert (one.config.logit_scale, one.config.logit_shift) == of_one
        torch.testing.assert_close(one(**batch).logits, model(**batch)[f"{tower}_logits"] - 1.5)
        assert (f"the {tower} tower alone is not calibrated" in caplog.text) == (scale != 1)
    asked_for = FlipForCTR.from_pretrained(tmp_path, towers="tabular", logit_scale=2.0, logit_shift=0.5)
    assert (asked_for.config.logit_scale, asked_for.config.logit_shift) == (2.0, 0.5)


def test_a_calibrated_checkpoint_comes_back_and_is_of_a_format_that_older_code_refuses(tmp_path: Path) -> None:
    model, batch = make_model(FlipForCTR).eval(), make_batch()
    versions = []
    for scale, shift in ((1, 0), (0.5, 0), (1, -2.0), (1.0, 0.0)):
        model.config.logit_scale, model.config.logit_shift = scale, shift
        model.save_pretrained(tmp_path)
        versions.append(json.loads((tmp_path / "config.json").read_text())["format_version"])
        torch.testing.assert_close(FlipForCTR.from_pretrained(tmp_path)(**batch).logits, model(**batch).logits)
    assert versions == [2, 3, 3, 2]
