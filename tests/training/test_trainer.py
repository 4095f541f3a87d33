from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast, TrainerCallback

from modeling_flip import (
    CtrPredictionPipeline,
    FlipConfig,
    FlipDataset,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
)
from modeling_flip.training import publishing

SIZES: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [8], "projection_size": 8}


@pytest.fixture(scope="module")
def processor(wordpiece: PreTrainedTokenizerFast) -> FlipProcessor:
    return FlipProcessor.fit(table(), ["user_id", "title"], wordpiece)


def table() -> dict[str, list[Any]]:
    titles = ["Toy Story", "Das Boot", "The Usual Suspects 1995", "Amélie from Montmartre"]
    rng = np.random.default_rng(0)
    return {
        "user_id": rng.integers(0, 8, 64).tolist(),
        "title": [titles[i] for i in rng.integers(0, 4, 64)],
        "label": rng.integers(0, 2, 64).tolist(),
    }


@pytest.fixture
def data(processor: FlipProcessor) -> FlipDataset:
    return processor.encode(table(), "label")


@pytest.fixture
def make(
    processor: FlipProcessor, tiny_text_model: Path, data: FlipDataset, tmp_path: Path
) -> Callable[..., FlipTrainer]:
    def trainer(model_class: Any = FlipForCTR, towers: str = "both", **kwargs: Any) -> FlipTrainer:
        torch.manual_seed(0)
        model = model_class.from_text_pretrained(tiny_text_model, processor, towers=towers, **SIZES)
        given: dict[str, Any] = {"per_device_train_batch_size": 16, "num_train_epochs": 1, "save_strategy": "no"}
        given |= {"logging_steps": 1} | kwargs
        args = FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)
        return FlipTrainer(model, args, processor, data, data)

    return trainer


def test_each_tower_has_its_learning_rate(make: Callable[..., FlipTrainer]) -> None:
    trainer = make(learning_rate=1e-2, text_learning_rate=1e-5, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    of = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in trainer.model.named_parameters():
        rate, decay = of[id(parameter)]
        assert rate == (1e-5 if "text_tower" in name else 1e-2), name
        assert decay == (0.0 if name.endswith("bias") or "LayerNorm" in name or name == "alpha_logit" else 0.1), name
    assert len(of) == len(list(trainer.model.parameters()))


def test_moments_in_8_bits_have_each_towers_learning_rate_and_resume(
    make: Callable[..., FlipTrainer], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="not installed: pip install -c constraints.txt -e '.[eight_bit]'")
    settings = {
        "optim": "adamw_bnb_8bit",
        "learning_rate": 1e-3,
        "text_learning_rate": 1e-5,
        "weight_decay": 0.1,
        "num_train_epochs": 2,
    }
    trainer = make(**settings, save_strategy="epoch")
    rates = {(group["lr"], group["weight_decay"]) for group in trainer.create_optimizer().param_groups}
    assert rates == {(rate, decay) for rate in (1e-3, 1e-5) for decay in (0.0, 0.1)}
    trainer.train()
    kinds = {v.dtype for state in trainer.optimizer.state.values() for k, v in state.items() if k.startswith("state")}
    assert kinds == {torch.uint8, torch.float32}  # small weights stay as they are
    resumed = make(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for (name, expected), found in zip(trainer.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_what_is_trained_from_a_pretraining_checkpoint_can_be_scored(
    make: Callable[..., FlipTrainer], processor: FlipProcessor, data: FlipDataset, tmp_path: Path
) -> None:
    make(FlipForPreTraining).model.save_pretrained(tmp_path / "aligned")
    model = FlipForCTR.from_pretrained(tmp_path / "aligned", towers="tabular")
    with pytest.raises(ValueError, match="holds no trained weights for the click heads"):
        CtrPredictionPipeline(model, processor)
    args = FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=1, save_strategy="no")
    FlipTrainer(model, args, processor, data).train()
    assert 0 < CtrPredictionPipeline(model, processor)({"user_id": "1"})["probability"] < 1


def test_without_a_text_learning_rate_all_towers_share_one(make: Callable[..., FlipTrainer]) -> None:
    assert {group["lr"] for group in make(learning_rate=3e-3).create_optimizer().param_groups} == {3e-3}


def test_every_component_and_alpha_are_logged_and_add_up(make: Callable[..., FlipTrainer]) -> None:
    trainer = make()
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 4
    for entry in logged:
        parts = entry["joint_loss"] + entry["tabular_loss"] + entry["text_loss"]
        assert entry["loss"] == pytest.approx(parts, abs=1e-5)
        assert 0 < entry["alpha"] < 1


def test_logged_components_are_means_since_the_last_line(make: Callable[..., FlipTrainer]) -> None:
    logged = []
    for steps in (1, 2):
        trainer = make(FlipForPreTraining, logging_steps=steps)
        trainer.train()
        logged.append([entry["mtm_loss"] for entry in trainer.state.log_history if "mtm_loss" in entry])
    one, two = logged
    assert two == pytest.approx([(one[0] + one[1]) / 2, (one[2] + one[3]) / 2], abs=1e-5)


def test_gradient_accumulation_is_one_large_batch(make: Callable[..., FlipTrainer]) -> None:
    same: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "towers": "tabular"}
    whole = make(per_device_train_batch_size=16, **same)
    parts = make(per_device_train_batch_size=4, gradient_accumulation_steps=4, **same)
    for trainer in (whole, parts):
        trainer.train()
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_a_loss_that_is_not_finite_stops_training_with_its_batch(make: Callable[..., FlipTrainer]) -> None:
    few = {"per_device_train_batch_size": 8, "num_train_epochs": 3}
    trainer = make(towers="tabular", logging_steps=100, save_strategy="epoch", **few)
    trainer.train_dataset.labels[37] = np.nan
    order = list(trainer.get_train_dataloader())
    batch = next(i for i, b in enumerate(order, start=1) if b["labels"].isnan().any())
    with pytest.raises(FloatingPointError, match=f"loss of batch {batch} .*lower learning_rate") as raised:
        trainer.train()
    assert 37 in rows_named(raised.value)
    assert not list(Path(trainer.args.output_dir).glob("checkpoint-*/model.safetensors"))


def rows_named(error: FloatingPointError) -> list[int]:
    named = re.search(r"rows ([\d, ]+) of the training rows, counted from 0", str(error))
    assert named is not None, error
    return [int(row) for row in named.group(1).split(", ")]


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_of_a_batch_that_goes_wrong_later_its_own_rows_are_named(
    strategy: str, make: Callable[..., FlipTrainer]
) -> None:
    trainer = make(
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        train_sampling_strategy=strategy,
        logging_steps=1,
    )
    collate, seen = trainer.data_collator, list[int]()

    def spoiling(rows: Any) -> Any:
        batch = collate(rows)
        if rows.epoch == 1 and 37 in rows.row_ids:
            batch["labels"] = batch["labels"] * np.nan
            seen.extend(rows.row_ids.tolist())
        return batch

    trainer.data_collator = spoiling
    with pytest.raises(FloatingPointError, match=r"the loss of batch (9|1[0-6]) ") as raised:
        trainer.train()
    named = rows_named(raised.value)
    assert set(seen) <= set(named) and len(named) == 8


def test_a_gradient_that_is_not_finite_is_named(make: Callable[..., FlipTrainer]) -> None:
    """The loss is finite, and the weights would be spoiled without a word until they are saved."""
    trainer = make(towers="tabular", logging_steps=1, num_train_epochs=3)
    weight = next(trainer.model.parameters())
    weight.register_hook(lambda gradient: gradient * (np.inf if trainer.state.global_step == 4 else 1))
    with pytest.raises(FloatingPointError, match=r"the gradient of batch 5 .*rows .*lower learning_rate"):
        trainer.train()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to …"
        ),
        MemoryError("Unable to allocate 16 GiB for an array"),
    ],
)
@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"towers": "tabular"}, r"set per_device_train_batch_size to 8 instead of 16, and run again"),
        (
            {"towers": "both"},
            r"set per_device_train_batch_size to 8 instead of 16, or, .*, mini_batch_tokens to \d+, and",
        ),
        ({"towers": "both", "mini_batch_tokens": 50}, r"set mini_batch_tokens to 25 instead of 50, and run again"),
    ],
)
def test_out_of_memory_the_size_to_try_is_named(
    error: Exception,
    settings: dict[str, Any],
    remedy: str,
    make: Callable[..., FlipTrainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make(per_device_train_batch_size=16, **settings)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(trainer, "training_step", fail)
    with pytest.raises(ValueError, match=f"^out of memory: {remedy}"):
        trainer.train()


@pytest.mark.parametrize("model_class", [FlipForPreTraining, FlipForCTR])
def test_a_batch_that_does_not_fit_is_computed_in_parts(
    model_class: Any, make: Callable[..., FlipTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    """With the dropout that it would have had: as if the size that fits had been given."""
    fits, found = 60, []

    def train(**settings: Any) -> dict[str, torch.Tensor]:
        trainer = make(model_class=model_class, towers="both", per_device_train_batch_size=16, **settings)
        forward, too_large = trainer.model.forward, list[bool]()

        def limited(**batch: Any) -> Any:
            output = forward(**batch)
            # The whole fails, then of its halves the second, when the first has left a gradient.
            too_large.append(batch["input_ids"].numel() > fits)
            if too_large[-1] and sum(too_large) % 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return output

        trainer.model.forward = limited
        torch.manual_seed(0)
        trainer.train()
        found.append(trainer.args.mini_batch_tokens)
        return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}

    expected = train(auto_find_batch_size=True)
    assert "batch 1 does not fit in memory: from here on" in caplog.text
    assert caplog.text.count("does not fit in memory") >= 2
    again = train(mini_batch_tokens=found[0])
    assert 0 < found[0] <= fits
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"towers": "tabular"}, "auto_find_batch_size is for FLIP with a text tower: set it to false"),
        ({"towers": "both", "gradient_accumulation_steps": 2}, "without gradient_accumulation_steps"),
    ],
)
def test_finding_what_fits_is_refused_where_it_would_change_the_training(
    settings: dict[str, Any], error: str, make: Callable[..., FlipTrainer]
) -> None:
    with pytest.raises(ValueError, match=error):
        make(auto_find_batch_size=True, **settings)


def test_out_of_memory_while_scoring_another_size_is_named(make: Callable[..., FlipTrainer]) -> None:
    trainer = make(towers="tabular", per_device_eval_batch_size=32)

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.model.forward = fail
    with pytest.raises(
        ValueError, match=r"^out of memory: set per_device_eval_batch_size to 16 rows instead of 32, and"
    ):
        trainer.evaluate()


def test_an_error_of_another_kind_is_not_one_of_memory(
    make: Callable[..., FlipTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(towers="tabular")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(trainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer.train()


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_run_shorter_than_a_line_of_the_log_does_not_end_with_a_loss_that_is_not_finite(
    evaluates: bool, make: Callable[..., FlipTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(
        towers="tabular", logging_steps=100, max_steps=2, eval_strategy="steps" if evaluates else "no", eval_steps=2
    )
    trainer.train_dataset.labels = np.full(64, np.nan, np.float32)
    monkeypatch.setattr(
        trainer, "evaluation_loop", lambda *_, **__: pytest.fail("weights that are not finite were scored")
    )
    with pytest.raises(FloatingPointError, match=r"loss of batch 1 .*lower learning_rate"):
        trainer.train()


def test_weights_that_the_last_update_has_spoiled_are_not_saved(make: Callable[..., FlipTrainer]) -> None:
    """The loss before it was finite."""
    for saves in ("no", "steps"):
        trainer = make(towers="tabular", max_steps=1, logging_steps=100, save_strategy=saves, save_steps=1)
        optimizer = trainer.create_optimizer()
        step = optimizer.step

        def spoil(*args: Any, step: Any = step, trainer: FlipTrainer = trainer, **kwargs: Any) -> Any:
            step(*args, **kwargs)
            trainer.model.flip.feature_embeddings.embedding.weight.data[3] = torch.inf

        optimizer.step = spoil
        with pytest.raises(
            FloatingPointError, match=r"embedding.weight is not finite after step 1; .*lower learning_rate"
        ):
            trainer.train()
        assert not list(Path(trainer.args.output_dir).glob("checkpoint-*/model.safetensors"))


def test_data_seed_is_the_order_of_the_rows_whatever_it_is(make: Callable[..., FlipTrainer]) -> None:
    def order(**seeds: int) -> list[int]:
        trainer = make(FlipForPreTraining, num_train_epochs=1, **seeds)
        trainer.train_dataset.row_ids = np.arange(64)
        seen: list[int] = []
        collate = trainer.data_collator

        def noted(rows: FlipDataset) -> Any:
            seen.extend(rows.row_ids.tolist())
            return collate(rows)

        trainer.data_collator = noted
        trainer.train()
        return seen

    assert order(seed=1, data_seed=0) == order(seed=0) != order(seed=1)


def test_nothing_that_the_caller_gave_is_changed(
    processor: FlipProcessor, tiny_text_model: Path, data: FlipDataset, tmp_path: Path
) -> None:
    model = FlipForPreTraining.from_text_pretrained(tiny_text_model, processor, **SIZES)
    args = FlipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, num_train_epochs=2, save_strategy="no")
    before = args.to_dict()
    callbacks: list[TrainerCallback] = []
    FlipTrainer(model, args, processor, data, data, callbacks).train()
    assert args.to_dict() == before
    assert data.epoch == 0
    assert callbacks == []


def test_what_trains_badly_is_said(
    make: Callable[..., FlipTrainer],
    processor: FlipProcessor,
    data: FlipDataset,
    tiny_text_model: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sound = make(FlipForPreTraining)
    assert caplog.text == ""
    make(FlipForPreTraining, gradient_accumulation_steps=4)
    assert "(ICL) compares only the 16 rows of one batch (16 × 1 processes), not all 64 of a step" in caplog.text
    caplog.clear()
    # The configuration of a pretrained model names it, and yet nothing of it was loaded.
    text_config = AutoConfig.from_pretrained(tiny_text_model)
    assert text_config.name_or_path
    fresh = FlipForCTR(FlipConfig.from_processor(processor, text_config=text_config, **SIZES))
    trainer = FlipTrainer(fresh, make(max_steps=1).args, processor, data)
    assert "the text tower starts from random weights" in caplog.text
    trainer.train()
    caplog.clear()
    FlipTrainer(fresh, sound.args, processor, data)  # it has read something by now
    assert caplog.text == ""
    sound.save_model(str(sound.args.output_dir))
    loaded = FlipForCTR.from_pretrained(str(sound.args.output_dir))
    caplog.clear()
    FlipTrainer(loaded, sound.args, processor, data)
    FlipTrainer(
        FlipForCTR(FlipConfig(towers="tabular", **SIZES, **processor.config_settings)), sound.args, processor, data
    )
    assert caplog.text == ""


def test_predictions_come_in_the_order_of_the_rows(make: Callable[..., FlipTrainer], processor: FlipProcessor) -> None:
    trainer = make(per_device_eval_batch_size=5)
    output = trainer.predict(trainer.eval_dataset)
    assert output.label_ids.tolist() == table()["label"]
    with torch.no_grad():
        expected = trainer.model.eval()(**processor(table()))
    for predicted, logits in zip(
        output.predictions, (expected.logits, expected.tabular_logits, expected.text_logits), strict=True
    ):
        torch.testing.assert_close(torch.from_numpy(predicted), logits, atol=1e-5, rtol=1e-4)


def test_all_rows_are_scored_whatever_training_drops(make: Callable[..., FlipTrainer]) -> None:
    trainer = make(per_device_eval_batch_size=5, dataloader_drop_last=True, eval_strategy="no")
    assert len(trainer.predict(trainer.eval_dataset).predictions[0]) == 64
    loaded = sum(len(batch["labels"]) for batch in trainer.get_eval_dataloader())
    assert loaded == 64 and trainer.args.dataloader_drop_last


def test_rows_without_labels_are_predicted(make: Callable[..., FlipTrainer], processor: FlipProcessor) -> None:
    output = make(towers="tabular").predict(processor.encode({"user_id": [1, 2], "title": ["Das Boot", None]}))
    assert output.predictions.shape == (2,)
    assert output.label_ids is None


def test_masks_change_with_the_epoch(make: Callable[..., FlipTrainer]) -> None:
    trainer = make(FlipForPreTraining, num_train_epochs=2)
    seen: list[int] = []
    collate = trainer.data_collator

    def noted(rows: FlipDataset) -> Any:
        seen.append(rows.epoch)
        return collate(rows)

    trainer.data_collator = noted
    trainer.train()
    assert seen == [0] * 4 + [1] * 4


def test_the_best_epoch_on_validation_is_kept_and_training_stops_early(make: Callable[..., FlipTrainer]) -> None:
    trainer = make(
        towers="tabular",
        num_train_epochs=30,
        learning_rate=0.05,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="logloss",
        greater_is_better=False,
        early_stopping_patience=1,
    )
    rng = np.random.default_rng(1)
    trainer.eval_dataset.labels = rng.integers(0, 2, 64).astype(
        np.float32
    )  # other clicks: more training makes it worse
    trainer.train_dataset = trainer.train_dataset.__getitems__(range(64))
    trainer.train_dataset.labels = rng.integers(0, 2, 64).astype(np.float32)
    trainer.train()
    history = [entry["eval_logloss"] for entry in trainer.state.log_history if "eval_logloss" in entry]
    assert len(history) == int(np.argmin(history)) + 2 < 30
    assert trainer.evaluate()["eval_logloss"] == pytest.approx(min(history), abs=1e-6)


def test_a_checkpoint_holds_the_processor_and_no_pickled_arguments(
    make: Callable[..., FlipTrainer], tmp_path: Path
) -> None:
    make().save_model(str(tmp_path / "saved"))
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "feature_vocab.parquet",
        "tokenizer.json",
        "processor_config.json",
    } <= names
    assert "training_args.bin" not in names


def test_scores_are_not_rounded_to_bf16(make: Callable[..., FlipTrainer]) -> None:
    for logits in make(bf16=True).predict(make().eval_dataset).predictions:
        rounded = torch.from_numpy(logits).bfloat16().float().numpy()
        assert logits.dtype == np.float32
        assert (logits != rounded).mean() > 0.5


def test_bf16_trains(make: Callable[..., FlipTrainer]) -> None:
    trainer = make(FlipForPreTraining, bf16=True)
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert next(trainer.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("bf16", [True, False])
def test_bf16_on_a_cpu_trains_with_plain_attention(make: Callable[..., FlipTrainer], bf16: bool) -> None:
    trainer, seen = make(FlipForPreTraining, bf16=bf16), set[str]()
    tower = trainer.model.flip.text_tower
    tower.register_forward_hook(lambda *_: seen.add(tower.config._attn_implementation))
    trainer.train()
    assert seen == {"eager" if bf16 else "sdpa"}
    assert tower.config._attn_implementation == "sdpa"


def test_matmul_precision_holds_while_training_only(make: Callable[..., FlipTrainer]) -> None:
    seen: list[str] = []
    trainer = make(float32_matmul_precision="medium")
    trainer.model.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    trainer.train()
    trainer.predict(trainer.eval_dataset)
    assert (seen[0], seen[-1]) == ("medium", "highest")


def test_no_floating_point_operations_are_guessed(make: Callable[..., FlipTrainer]) -> None:
    trainer = make()
    trainer.train()
    assert trainer.state.total_flos == 0


def test_a_push_answers_for_itself_alone(make: Callable[..., FlipTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    """One before it, still under way, fails later; that one is kept, and this one has arrived."""
    begun = threading.Event()

    def upload(folder: Path, repo_id: str, *, commit_message: str, **_: Any) -> Any:
        if commit_message == "first":
            begun.wait(10)
            raise OSError(28, "No space left on device")
        return SimpleNamespace(repo_url=repo_id)

    monkeypatch.setattr(publishing, "create_repo", lambda repo_id, *_: repo_id)
    monkeypatch.setattr(publishing, "upload", upload)
    trainer = make(push_to_hub=True, hub_model_id="me/model")
    assert trainer.push_to_hub("first", blocking=False)
    begun.set()
    assert trainer.push_to_hub("second")
    assert trainer._publisher is not None
    assert len(trainer._publisher.failures) == 1 and trainer._publisher.failures[0].startswith("first: ")
    assert not trainer.push_to_hub("first")


def test_each_process_draws_dropout_of_its_own(
    make: Callable[..., FlipTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begin(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            states.append(torch.get_rng_state())
            raise InterruptedError

    states: list[torch.Tensor] = []
    for process in (0, 1, 2):
        trainer = make(seed=3)
        trainer.add_callback(Begin())
        monkeypatch.setattr(FlipTrainingArguments, "process_index", process)
        with pytest.raises(InterruptedError):
            trainer.train()
        monkeypatch.undo()
    assert len({tuple(state.tolist()) for state in states}) == 3
