"""What holds for every baseline: they train, come back, and score rows as if alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, set_seed

from modeling_flip import (
    CTRBertConfig,
    FlipDataCollator,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
    MoRecConfig,
    P5Config,
)
from tests.baselines.tiny import ALL_MODELS, FIELDS, ITEMS, MODELS, ROWS, UNKNOWN, USERS, Collate, Make, padded


@ALL_MODELS
def test_a_batch_without_rows_teaches_nothing(name: str, make: Make, processors: dict[str, FlipProcessor]) -> None:
    """What a process has of a last batch that is smaller than the number of processes."""
    model, processor = make(name).train(), processors[name]
    collator = FlipDataCollator(processor, model.inputs, model.config.item_fields)
    loss = model(**collator(processor.encode(ROWS, "label").__getitems__([]))).loss
    loss.backward()
    assert loss == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


@ALL_MODELS
def test_the_text_towers_start_from_the_pretrained_weights(make: Make, text_models: dict[str, Path], name: str) -> None:
    model = make(name)
    source = (AutoModelForSeq2SeqLM if name == "p5" else AutoModel).from_pretrained(text_models[name]).state_dict()
    towers = {"ctr_bert": ["user_text_tower", "item_text_tower"]}.get(name, ["text_tower"])
    for tower in towers:
        weights = getattr(model, tower).state_dict()
        assert weights.keys() == {key for key in source if not key.startswith("pooler.")}
        assert [key for key in weights if not torch.equal(weights[key], source[key])] == []


@ALL_MODELS
def test_trainer_reads_what_it_has_saved(
    make: Make, processors: dict[str, FlipProcessor], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint, in whose file weights that are tied stand once."""
    model, processor = make(name), processors[name]
    rows = processor.encode(ROWS, "label")
    trainer = FlipTrainer(model, FlipTrainingArguments(str(tmp_path), use_cpu=True), processor, rows)
    trainer.save_model(str(tmp_path / "checkpoint"))
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.data += 1
    caplog.clear()
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint"))
    assert [key for key, weight in model.state_dict().items() if not torch.equal(weight, before[key])] == []
    assert "missing keys" not in caplog.text


@ALL_MODELS
def test_a_baseline_comes_back_to_the_bit(
    make: Make,
    collate: Collate,
    processors: dict[str, FlipProcessor],
    name: str,
    tmp_path: Path,
) -> None:
    model = make(name)
    model.save_pretrained(tmp_path)
    processors[name].save_pretrained(tmp_path)
    # Copied, because matrix products differ in the last bit where tensors lie in memory as they lay in the file: unaligned.
    loaded = copy.deepcopy(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    assert type(loaded) is MODELS[name]
    assert type(loaded.config) is MODELS[name].config_class
    assert not loaded.training
    processor = FlipProcessor.from_pretrained(tmp_path)
    batch = FlipDataCollator(processor, loaded.inputs, loaded.config.item_fields)(processor.encode(ROWS, "label"))
    expected = copy.deepcopy(model)(**collate(model))
    actual = loaded(**batch)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.loss, expected.loss)


@ALL_MODELS
def test_padding_changes_no_logit_of_a_baseline(make: Make, collate: Collate, name: str) -> None:
    model = make(name)
    batch = collate(model)
    assert padded(batch).keys() == batch.keys()
    torch.testing.assert_close(model(**padded(batch)).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)


@ALL_MODELS
def test_one_row_and_rows_of_unknown_values_have_a_logit_and_no_loss_without_labels(
    make: Make, collate: Collate, name: str
) -> None:
    model = make(name)
    for rows in ([{**ROWS[3]}], UNKNOWN, UNKNOWN[:1]):
        for row in rows:
            row.pop("label", None)
        output = model(**collate(model, rows))
        assert output.logits.shape == (len(rows),)
        assert output.logits.isfinite().all()
        assert set(output) == {"logits"}
    model.train()(**collate(model, ROWS[:1])).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@ALL_MODELS
def test_a_baseline_scores_in_fp32_under_autocast(make: Make, collate: Collate, name: str) -> None:
    model = make(name)
    batch = collate(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits, model(**batch).logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("name", "config_class"), [("ctr_bert", CTRBertConfig), ("morec", MoRecConfig)])
def test_a_model_of_users_and_items_must_be_told_the_items_fields(
    processors: dict[str, FlipProcessor], tiny_bert: Path, name: str, config_class: Any
) -> None:
    message = f"^{name} keeps users and items apart: name the item's fields with item_fields$"
    with pytest.raises(ValueError, match=message):
        MODELS[name].from_text_pretrained(tiny_bert, processors[name])
    with pytest.raises(ValueError, match=message):
        MODELS[name](config_class(num_fields=3))
    for wrong in ([0, 1, 2], [3], [-1]):
        with pytest.raises(ValueError, match=r"item_fields is .* it names positions among the 3 fields, not all"):
            config_class(num_fields=3, item_fields=wrong)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ctr_bert", {}), ("morec", {}), ("morec", {"freeze_text_tower": True}), ("p5", {})],
    ids=["ctr_bert", "morec", "morec, frozen", "p5"],
)
def test_a_few_steps_lower_the_loss_and_predictions_come_in_the_order_of_the_rows(
    make: Make, processors: dict[str, FlipProcessor], tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    table: dict[str, list[Any]] = {field: [] for field in [*FIELDS, "label"]}
    for u, i in zip(rng.integers(0, 3, 64), rng.integers(0, 4, 64), strict=True):
        values = [USERS[u][0], ITEMS[i][0], USERS[u][1], ITEMS[i][1], int(i < 2)]
        for field, value in zip(table, values, strict=True):
            table[field].append(value)
    processor = processors[name]
    data = processor.encode(table, "label")
    arguments = FlipTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_train_epochs=6,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=5,
        learning_rate=5e-3,
        text_learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
    )
    trainer = FlipTrainer(make(name, **settings), arguments, processor, data, data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.state.global_step == 24
    assert trainer.evaluate()["eval_loss"] < before - 0.05

    output = trainer.predict(data)
    assert output.label_ids.tolist() == table["label"]
    model = trainer.model.eval()
    collator = FlipDataCollator(processor, model.inputs, model.config.item_fields)
    with torch.no_grad():
        expected = model(**collator(data)).logits
    assert output.predictions.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(output.predictions), expected, rtol=1e-4, atol=1e-4)
    assert len(expected.unique()) > 5


@pytest.mark.parametrize(
    ("config_class", "towers"), [(MoRecConfig, "both"), (CTRBertConfig, "tabular"), (P5Config, "both")]
)
def test_towers_of_a_baseline_are_given(config_class: Any, towers: str) -> None:
    with pytest.raises(ValueError, match=f"towers is '{towers}'; it must be one of {config_class().towers}"):
        config_class(towers=towers)


@pytest.mark.parametrize("name", MODELS)
def test_calibration_scales_and_shifts_the_logits_in_evaluation_mode_alone(
    name: str, make: Make, collate: Collate
) -> None:
    model = make(name, dropout=0.0)
    batch = collate(model)
    plain = model(**batch).logits
    model.config.logit_scale, model.config.logit_shift = 0.5, -2.0
    torch.testing.assert_close(model(**batch).logits, 0.5 * plain - 2)
    set_seed(0)
    calibrated = model.train()(**batch).logits
    model.config.logit_scale, model.config.logit_shift = 1.0, 0.0
    set_seed(0)
    assert torch.equal(model(**batch).logits, calibrated)
