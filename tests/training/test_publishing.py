"""What a card says of a training from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_flip import FlipTrainer
from modeling_flip.training.publishing import best_step, curves_of, kept_step, validation_of, while_training


@pytest.mark.parametrize("best", [True, False])
def test_what_is_scored_after_the_training_is_not_validation(best: bool, make: Callable[..., FlipTrainer]) -> None:
    trainer = make(load_best_model_at_end=best)
    trainer.train()
    measured = {entry["step"]: entry["eval_auc"] for entry in trainer.state.log_history if "eval_auc" in entry}
    kept = kept_step(trainer.args, trainer.state)
    assert best_step(trainer.args, trainer.state) == (kept if best else None)
    test = trainer.eval_dataset.__getitems__(range(8))
    test.labels = 1 - test.labels
    other = trainer.evaluate(test)["eval_auc"]
    assert other != pytest.approx(measured[kept], abs=1e-3)
    trainer.create_model_card()
    card = Path(str(trainer.args.output_dir), "README.md").read_text()
    assert f"| validation | this model | {measured[kept]:.4f} |" in card
    drawn = curves_of(while_training(trainer.state.log_history), "eval_auc")["eval_auc"]
    assert [auc for _, auc in drawn] == list(measured.values())


def test_a_training_without_validation_has_none(make: Callable[..., FlipTrainer]) -> None:
    trainer = make(eval_strategy="no", load_best_model_at_end=False)
    trainer.train()
    trainer.evaluate()
    assert validation_of(trainer.state.log_history, trainer.state.global_step) == {}
