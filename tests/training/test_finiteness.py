from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from modeling_flip.training.finiteness import FirstBad, bad_weight

INFINITE, NAN = torch.tensor(float("inf")), torch.tensor(float("nan"))


def test_the_first_step_is_kept_whatever_follows() -> None:
    bad = FirstBad()
    assert bad.first() is None
    bad.note("loss", torch.tensor(1.0), 1)
    bad.note("gradient", torch.tensor(1.0), 1)
    assert bad.first() is None
    bad.note("loss", torch.tensor(1.0), 2)
    bad.note("gradient", INFINITE, 2)
    bad.note("loss", NAN, 3)
    bad.note("gradient", torch.tensor(1.0), 3)
    assert bad.first() == ("gradient", 2, True)


def test_of_one_step_the_loss_is_named() -> None:
    bad = FirstBad()
    bad.note("loss", NAN, 4)
    bad.note("gradient", NAN, 4)
    assert bad.first() == ("loss", 4, True)


def test_all_processes_find_what_one_has_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stops then, in the same step of the same collective calls."""
    here, there = FirstBad(), FirstBad()
    for step in (1, 2):
        here.note("loss", torch.tensor(1.0), step)
        here.note("gradient", NAN if step == 2 else torch.tensor(1.0), step)
    there.note("loss", NAN, 1)
    there.note("gradient", torch.tensor(1.0), 1)
    others = torch.tensor([1.0, float("inf")])
    monkeypatch.setattr(dist, "all_reduce", lambda steps, op: steps.copy_(torch.minimum(steps, others)))
    assert here.first(of_all=True) == ("loss", 1, False)
    assert there.first(of_all=True) == ("loss", 1, True)
    assert here.first() == ("gradient", 2, True)


def test_a_bad_weight_or_statistic_is_named() -> None:
    linear, norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
    model = nn.Sequential(linear, norm)
    assert bad_weight(model) is None
    norm.running_mean[1] = NAN
    assert bad_weight(model) == "1.running_mean"
    linear.bias.data[0] = INFINITE
    assert bad_weight(model) == "0.bias"
