"""MoRec with its text tower frozen: what it remembers, and when it forgets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_flip import FlipDataCollator, FlipProcessor, MoRecForCTR
from tests.baselines.tiny import ITEMS, ROWS, UNKNOWN, Collate, Make, counting_rows, padded


def test_a_frozen_text_tower_gives_the_same_logits(make: Make, collate: Collate) -> None:
    model, frozen = make("morec"), make("morec", freeze_text_tower=True)
    batch = collate(model)
    torch.testing.assert_close(frozen(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-6)
    remembered = frozen(**batch).logits
    torch.testing.assert_close(remembered, model(**batch).logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(frozen.train()(**batch).logits, remembered)  # no dropout in what is remembered


def test_a_frozen_text_tower_reads_each_item_once(make: Make, collate: Collate) -> None:
    model = make("morec", freeze_text_tower=True)
    expected = model(**collate(model)).logits
    model = make("morec", freeze_text_tower=True).train()
    logits = []
    with counting_rows(model.text_tower) as counts:
        for row in ROWS:  # each padded to its own length
            logits.append(model(**padded(collate(model, [row]))).logits)
        assert counts == [1] * len(ITEMS)
        torch.testing.assert_close(model(**collate(model)).logits, expected, rtol=1e-4, atol=1e-5)
        model(**collate(model, [*ROWS, UNKNOWN[0] | {"label": 0}]))
        assert counts == [1] * (len(ITEMS) + 1)
    torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_text_tower_has_nothing_to_read_for_a_process_without_rows(
    make: Make, processors: dict[str, FlipProcessor]
) -> None:
    model, processor = make("morec", freeze_text_tower=True).train(), processors["morec"]
    collator = FlipDataCollator(processor, model.inputs, model.config.item_fields)
    loss = model(**collator(processor.encode(ROWS, "label").__getitems__([]))).loss
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_text_tower_learns_nothing_and_the_rest_all_the_same(
    make: Make, collate: Collate, freeze: bool
) -> None:
    model = make("morec", freeze_text_tower=freeze).train()
    batch = collate(model)
    for _ in range(2):  # also from what it remembers
        model.zero_grad()
        model(**batch).loss.backward()
        taught = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert {name for name, _ in model.named_parameters() if "text_tower." not in name} <= taught
        text_tower = {name for name, _ in model.named_parameters() if "text_tower." in name}
        assert taught & text_tower == (set() if freeze else text_tower)
    assert model.text_tower.training is not freeze
    assert all(parameter.requires_grad is not freeze for parameter in model.text_tower.parameters())


def test_a_frozen_text_tower_is_saved_with_the_model(make: Make, collate: Collate, tmp_path: Path) -> None:
    model = make("morec", freeze_text_tower=True)
    logits = model(**collate(model)).logits
    model.save_pretrained(tmp_path)
    loaded = copy.deepcopy(MoRecForCTR.from_pretrained(tmp_path))
    assert loaded.config.freeze_text_tower
    torch.testing.assert_close(loaded(**collate(loaded)).logits, logits, rtol=1e-5, atol=1e-6)
    for _ in range(2):
        loaded.train()(**collate(loaded)).loss.backward()
    assert all(parameter.grad is None for parameter in loaded.text_tower.parameters())
    thawed = copy.deepcopy(MoRecForCTR.from_pretrained(tmp_path, freeze_text_tower=False))
    assert all(parameter.requires_grad for parameter in thawed.parameters())
    torch.testing.assert_close(thawed(**collate(thawed)).logits, logits, rtol=1e-5, atol=1e-6)


def test_a_frozen_text_tower_is_frozen_when_loaded(make: Make, tmp_path: Path) -> None:
    make("morec", freeze_text_tower=True).save_pretrained(tmp_path)
    loaded = MoRecForCTR.from_pretrained(tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.text_tower.parameters())
    assert all(parameter.requires_grad for parameter in loaded.tabular_tower.parameters())


def test_what_a_frozen_text_tower_said_is_cast_with_the_model(make: Make, collate: Collate) -> None:
    model = make("morec", freeze_text_tower=True)
    logits = model(**collate(model)).logits
    torch.testing.assert_close(model.double()(**collate(model)).logits, logits.double(), rtol=1e-4, atol=1e-5)


def edit_in_place(model: MoRecForCTR) -> None:
    with torch.no_grad():
        model.text_tower.embeddings.LayerNorm.bias.add_(0.3)


def edit_data(model: MoRecForCTR) -> None:
    for parameter in model.text_tower.parameters():
        parameter.data += 0.1


def load(model: MoRecForCTR) -> None:
    model.load_state_dict({name: weight + 0.1 for name, weight in model.state_dict().items()})


def load_and_assign(model: MoRecForCTR) -> None:
    model.load_state_dict({name: weight + 0.1 for name, weight in model.state_dict().items()}, assign=True)


def step(model: MoRecForCTR) -> None:
    model.text_tower.requires_grad_(True)
    for parameter in model.text_tower.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.text_tower.parameters(), lr=0.1).step()
    model.train(model.training)


def replace_tower(model: MoRecForCTR) -> None:
    model.text_tower = copy.deepcopy(model.text_tower)
    edit_in_place(model)


def round_trip(model: MoRecForCTR) -> None:
    model.half()
    model.float()


@pytest.mark.parametrize(
    "change",
    [edit_in_place, edit_data, load, load_and_assign, step, replace_tower, round_trip],
    ids=lambda f: f.__name__,
)
def test_what_a_frozen_text_tower_said_is_forgotten_when_its_weights_change(
    make: Make, collate: Collate, change: Callable[[MoRecForCTR], None]
) -> None:
    model = make("morec", freeze_text_tower=True)
    batch = collate(model)
    before = model(**batch).logits
    change(model)
    fresh = MoRecForCTR(model.config)
    fresh.load_state_dict(model.state_dict())
    after = model(**batch).logits
    assert torch.equal(after, fresh.eval()(**batch).logits)
    assert not torch.equal(after, before)
    with counting_rows(model.text_tower) as counts:
        assert torch.equal(model(**batch).logits, after)
    assert counts == []


def test_a_frozen_text_tower_says_in_fp32_what_it_said_under_autocast_anew(make: Make, collate: Collate) -> None:
    model, other = make("morec", freeze_text_tower=True), make("morec", freeze_text_tower=True)
    batch = collate(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch)
    assert torch.equal(model(**batch).logits, other(**batch).logits)


def test_a_frozen_text_tower_remembers_under_inference_mode(make: Make, collate: Collate) -> None:
    model = make("morec", freeze_text_tower=True)
    batch = collate(model)
    with torch.inference_mode(), counting_rows(model.text_tower) as counts:
        model(**batch)
        model(**batch)
    assert counts == [len(ITEMS)]
    model(**batch).loss.backward()  # what inference mode made has no part in a gradient
    assert model.item_projection.weight.grad.any()


def test_a_frozen_text_tower_remembers_so_many_sentences_the_last_asked_for(
    make: Make, collate: Collate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MoRecForCTR, "max_remembered", 2)
    model = make("morec", freeze_text_tower=True)
    expected = make("morec")(**collate(model)).logits
    torch.testing.assert_close(model(**collate(model)).logits, expected, rtol=1e-5, atol=1e-6)  # four items at once
    assert len(model._remembered) == 2
    items = [next(row for row in ROWS if row["title"] == title) for title, _ in ITEMS]
    with counting_rows(model.text_tower) as counts:
        for asked, is_new in [(0, 1), (1, 1), (0, 0), (2, 1), (0, 0), (1, 1)]:
            before = len(counts)
            model(**collate(model, [items[asked]]))
            assert len(counts) - before == is_new, (asked, is_new)
    assert len(model._remembered) == 2
