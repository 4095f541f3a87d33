"""Every family, and every tabular tower beside one of them, is pretrained and finetuned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from modeling_flip import TABULAR_TOWERS, FlipForCTR, FlipForPreTraining, PretrainingCollator
from tests.modeling_flip.text_families.families import ALL_FAMILIES, TextModel, collate, make_model

ALL_TOWERS = pytest.mark.parametrize("tower", sorted(TABULAR_TOWERS))


def without_gradient(module: torch.nn.Module) -> list[str]:
    """Parameters that no gradient reached, or one that is not finite."""
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return [name for name, g in gradients.items() if g is None or not g.any() or not g.isfinite().all()]


def assert_a_step_teaches(model: FlipForCTR, batch: dict[str, torch.Tensor]) -> None:
    """One small step of finetuning reaches both towers and lowers the loss of its own batch."""
    before = model.train()(**batch)
    before.loss.backward()
    assert before.loss.isfinite()
    assert without_gradient(model) == []
    model.zero_grad()
    model.flip.text_tower.eval()  # without dropout, so that the step can be judged
    loss = model(**batch).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    assert model(**batch).loss < loss


@ALL_FAMILIES
def test_a_family_pretrains(text_model: Callable[[str], TextModel], family: str) -> None:
    source = text_model(family)
    model = make_model(FlipForPreTraining, source).train()
    output = model(**PretrainingCollator(source.processor)(source.rows))
    assert set(output) == {"loss", "mlm_loss", "mtm_loss", "icl_loss"}
    assert all(loss.isfinite() for loss in output.values())
    output.loss.backward()
    assert without_gradient(model.flip.text_tower) == []
    assert without_gradient(model.flip.feature_embeddings.embedding) == []


@ALL_FAMILIES
def test_a_family_is_finetuned_from_its_pretraining_checkpoint(
    text_model: Callable[[str], TextModel], family: str, tmp_path: Path
) -> None:
    source = text_model(family)
    pretrained = make_model(FlipForPreTraining, source)
    pretrained.save_pretrained(tmp_path)
    set_seed(2)  # the text classifier's weights
    model = FlipForCTR.from_pretrained(tmp_path)
    for name, weight in pretrained.flip.state_dict().items():
        assert torch.equal(model.flip.state_dict()[name], weight), name
    assert_a_step_teaches(model, collate(model, source.processor, source.rows))


@ALL_TOWERS
def test_a_tabular_tower_pretrains_beside_a_text_tower(text_model: Callable[[str], TextModel], tower: str) -> None:
    source = text_model("bert")
    model = make_model(FlipForPreTraining, source, tabular_tower=tower).train()
    output = model(**PretrainingCollator(source.processor)(source.rows))
    assert all(loss.isfinite() for loss in output.values())
    output.loss.backward()
    assert without_gradient(model.flip.text_tower) == []
    assert without_gradient(model.flip.feature_embeddings.embedding) == []


@ALL_TOWERS
def test_a_tabular_tower_is_finetuned_from_its_pretraining_checkpoint(
    text_model: Callable[[str], TextModel], tower: str, tmp_path: Path
) -> None:
    source = text_model("bert")
    pretrained = make_model(FlipForPreTraining, source, tabular_tower=tower)
    pretrained.save_pretrained(tmp_path)
    set_seed(2)
    model = FlipForCTR.from_pretrained(tmp_path)
    assert type(model.flip.tabular_tower) is TABULAR_TOWERS[tower]
    for name, weight in pretrained.flip.state_dict().items():
        assert torch.equal(model.flip.state_dict()[name], weight), name
    assert_a_step_teaches(model, collate(model, source.processor, source.rows))
