"""The models: what is in them, what their losses add up to, and that checkpoints come back as they were saved."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    set_seed,
)
from transformers.utils import ModelOutput

from modeling_flip import FlipConfig, FlipForCTR, FlipForPreTraining, FlipModel, FlipProcessor
from modeling_flip.text_tower import random_text_towers

NUM_FEATURES, NUM_FIELDS, VOCAB_SIZE, MASK_TOKEN, SIZE, LENGTH = 11, 3, 30, 4, 4, 6
LABELS = torch.tensor([1, 0, 0, 1])
TINY = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}


def make_config(**settings: Any) -> FlipConfig:
    sizes: dict[str, Any] = {
        "num_features": NUM_FEATURES,
        "num_fields": NUM_FIELDS,
        "embedding_size": 4,
        "hidden_sizes": [6, 5],
        "attention_size": 3,
        "projection_size": 6,
    }
    if settings.get("towers") != "tabular":
        sizes["text_config"] = BertConfig(**TINY)
    return FlipConfig(**sizes | settings)


def make_model(model_class: type[PreTrainedModel], **settings: Any) -> Any:
    """In evaluation mode: the text tower has dropout."""
    set_seed(0)
    return model_class(make_config(**settings)).eval()


def make_batch() -> dict[str, torch.Tensor]:
    """What FlipDataCollator gives, labels aside: the second row's sentence is two tokens shorter."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "feature_ids": torch.randint(0, NUM_FEATURES - 1, (SIZE, NUM_FIELDS), generator=generator),
        "input_ids": torch.randint(MASK_TOKEN + 1, VOCAB_SIZE, (SIZE, LENGTH), generator=generator),
        "attention_mask": torch.ones(SIZE, LENGTH, dtype=torch.long),
    }
    batch["input_ids"][1, -2:] = 0
    batch["attention_mask"][1, -2:] = 0
    return batch


def make_pretraining_batch() -> dict[str, torch.Tensor]:
    """What PretrainingCollator gives: tokens 1 and 2 masked, and field 0, or field 1 in the last row."""
    batch = make_batch()
    is_masked_token = torch.zeros(SIZE, LENGTH, dtype=torch.bool)
    is_masked_token[:, 1:3] = True
    is_masked_field = torch.zeros(SIZE, NUM_FIELDS, dtype=torch.bool)
    is_masked_field[:-1, 0] = is_masked_field[-1, 1] = True
    return batch | {
        "masked_input_ids": batch["input_ids"].masked_fill(is_masked_token, MASK_TOKEN),
        "masked_feature_ids": batch["feature_ids"].masked_fill(is_masked_field, NUM_FEATURES - 1),
        "mlm_labels": batch["input_ids"].masked_fill(~is_masked_token, -100),
        "mtm_labels": batch["feature_ids"].masked_fill(~is_masked_field, -100),
        "noise_feature_ids": torch.arange(SIZE * 5).view(SIZE, 1, 5) % NUM_FEATURES,
    }


def padded(batch: dict[str, torch.Tensor], extra: int = 3) -> dict[str, torch.Tensor]:
    """The same rows, their sentences padded to a greater length."""
    filling = {"input_ids": 0, "masked_input_ids": 0, "attention_mask": 0, "mlm_labels": -100}
    return batch | {
        name: torch.nn.functional.pad(batch[name], (0, extra), value=value)
        for name, value in filling.items()
        if name in batch
    }


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def aligned(model: Any) -> Any:
    """A copy: read from a file, tensors lie in memory as they lay there, unaligned, and matrix products of them differ in
    the last bit."""
    return copy.deepcopy(model)


def assert_same_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    weights, other_weights = model.state_dict(), other.state_dict()
    assert weights.keys() == other_weights.keys()
    assert [name for name in weights if not torch.equal(weights[name], other_weights[name])] == []


def assert_same_outputs(output: ModelOutput, other: ModelOutput) -> None:
    assert output.keys() == other.keys()
    assert [name for name in output if not torch.equal(output[name], other[name])] == []


# ---- configuration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"towers": "three"}, "towers is 'three'; it must be one of both, tabular, text"),
        ({"text_pooling": "max"}, "text_pooling is 'max'; it must be one of cls, mean, last"),
        ({"activation": "step"}, "activation is 'step'; it must be one of .*relu"),
        ({"embedding_l2": -0.1}, "embedding_l2 is -0.1; it must be 0 or more"),
        ({"hidden_sizes": []}, "hidden_sizes is empty"),
        ({"hidden_sizes": [8, 0]}, r"hidden_sizes is \[8, 0\]; each must be 1 or more"),
        ({"num_features": 0}, "num_features is 0; it must be 1 or more"),
        ({"num_fields": -1}, "num_fields is -1; it must be 0 or more"),
        ({"embedding_size": 0}, "embedding_size is 0; it must be 1 or more"),
        ({"projection_size": 0}, "projection_size is 0; it must be 1 or more"),
        (
            {"num_fields": 2, "text_fields": [3]},
            r"text_fields is \[3\]; it names positions among the 3 fields, in order",
        ),
        ({"item_fields": [3]}, r"item_fields is \[3\]; it names positions among the 3 fields, not all"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"logit_scale": 0.0}, "logit_scale is 0.0; it must be a number above 0"),
        ({"logit_scale": float("nan")}, "logit_scale is nan;"),
        ({"logit_scale": float("inf")}, "logit_scale is inf;"),
        ({"logit_shift": float("-inf")}, "logit_shift is -inf; it must be a finite number"),
    ],
)
def test_a_bad_setting_is_refused_with_its_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"text_config": RobertaConfig(hidden_size=24, num_attention_heads=3)},
        {"text_config": {"model_type": "electra", "embedding_size": 6}, "towers": "text", "text_pooling": "mean"},
        {"towers": "tabular", "tabular_tower": "deepfm", "dropout": 0.5, "mlm_weight": 0.25},
    ],
    ids=["roberta", "electra", "no text"],
)
def test_a_configuration_comes_back_from_json(settings: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(**settings)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is FlipConfig
    assert type(loaded.text_config) is type(config.text_config)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


def test_a_text_configuration_given_as_a_dict_becomes_that_familys_own() -> None:
    config = make_config(text_config={"model_type": "roberta", "hidden_size": 24})
    assert isinstance(config.text_config, RobertaConfig)
    assert config.text_config.hidden_size == 24


# ---- the two towers


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_pooled_sentence_is_its_first_token_or_the_mean_without_padding(pooling: str) -> None:
    output = make_model(FlipModel, text_pooling=pooling)(**make_batch())
    for hidden, sentence, length in zip(
        output.text_hidden_states, output.text_representation, [LENGTH, LENGTH - 2, LENGTH, LENGTH], strict=True
    ):
        expected = hidden[0] if pooling == "cls" else sum(hidden[t] for t in range(length)) / length
        torch.testing.assert_close(sentence, expected)


def test_without_an_attention_mask_every_token_counts() -> None:
    model, batch = make_model(FlipForCTR, text_pooling="mean"), make_batch()
    del batch["attention_mask"]
    everything = torch.ones_like(batch["input_ids"])
    assert torch.equal(model(**batch).logits, model(**batch, attention_mask=everything).logits)


# ---- pretraining


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


# ---- click prediction


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


# ---- checkpoints


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    """As it may be, where it is most often zero."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # which fills it
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("towers", ["both", "tabular", "text"])
@pytest.mark.parametrize("load", [FlipForCTR, AutoModelForSequenceClassification])
def test_a_click_model_comes_back_to_the_bit(towers: str, load: Any, tmp_path: Path) -> None:
    model = make_model(FlipForCTR, towers=towers)
    loaded = load.from_pretrained(saved(model, tmp_path))
    assert type(loaded) is FlipForCTR
    assert_same_weights(loaded, model)
    assert_same_outputs(aligned(loaded)(**make_batch()), model(**make_batch()))


@pytest.mark.parametrize("load", [FlipForPreTraining, AutoModelForPreTraining])
def test_a_pretraining_model_comes_back_to_the_bit(load: Any, tmp_path: Path) -> None:
    model = make_model(FlipForPreTraining)
    loaded = load.from_pretrained(saved(model, tmp_path))
    assert type(loaded) is FlipForPreTraining
    assert_same_weights(loaded, model)
    assert_same_outputs(aligned(loaded)(**make_pretraining_batch()), model(**make_pretraining_batch()))


@pytest.mark.parametrize("model_class", [FlipForCTR, FlipForPreTraining, FlipModel])
def test_the_towers_of_any_checkpoint_load_alone(model_class: Any, tmp_path: Path) -> None:
    model = make_model(model_class)
    loaded = AutoModel.from_pretrained(saved(model, tmp_path))
    assert type(loaded) is FlipModel
    assert_same_weights(loaded, model.base_model)


def test_alpha_is_saved(tmp_path: Path) -> None:
    model = make_model(FlipForCTR)
    model.alpha_logit.data.fill_(-1.25)
    assert FlipForCTR.from_pretrained(saved(model, tmp_path)).alpha_logit.item() == -1.25
    # FSDP needs a vector, older code a scalar; Trainer reads the file with torch alone.
    in_file = load_file(tmp_path / "model.safetensors")
    assert model.alpha_logit.shape == (1,) and in_file["alpha_logit"].shape == ()
    model.alpha_logit.data.fill_(0.0)
    model.load_state_dict(in_file)
    assert model.alpha_logit.tolist() == [-1.25]


@pytest.mark.parametrize(
    ("towers", "fresh"),
    [
        ("both", {"alpha_logit", "text_classifier.weight", "text_classifier.bias"}),
        ("tabular", set()),
        ("text", {"text_classifier.weight", "text_classifier.bias"}),
    ],
)
def test_a_click_model_takes_the_towers_of_a_pretraining_checkpoint_and_says_its_heads_are_fresh(
    towers: str, fresh: set[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrained = make_model(FlipForPreTraining)
    with caplog.at_level(logging.WARNING):
        model, report = FlipForCTR.from_pretrained(saved(pretrained, tmp_path), towers=towers, output_loading_info=True)
    assert f"pretraining checkpoint: its towers ({towers}) are loaded" in caplog.text
    assert "the click heads are untrained; finetune before scoring" in caplog.text
    assert report["missing_keys"] == fresh
    assert not report["unexpected_keys"]
    for name, weight in model.flip.state_dict().items():
        assert torch.equal(weight, pretrained.flip.state_dict()[name])


@pytest.mark.usefixtures("uninitialised_memory_is_nan")
def test_weights_that_a_checkpoint_lacks_start_as_in_a_fresh_model(tmp_path: Path) -> None:
    pretrained, finetuned = make_model(FlipForPreTraining), make_model(FlipForCTR)
    scorer = FlipForCTR.from_pretrained(saved(pretrained, tmp_path / "pretrained"))
    assert all(parameter.isfinite().all() for parameter in scorer.parameters())
    assert scorer.alpha.item() == 0.5
    assert scorer.text_classifier.weight.any()
    assert scorer.text_classifier.bias.item() == 0
    aligner = FlipForPreTraining.from_pretrained(saved(finetuned, tmp_path / "finetuned"))
    assert_same_weights(aligner.flip, finetuned.flip)
    assert all(parameter.isfinite().all() for parameter in aligner.parameters())
    assert not aligner.mlm.bias.any()
    assert all(field.any() for field in aligner.mtm.output.weight)


def test_a_click_checkpoint_loads_without_a_warning_and_without_keys_left_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = FlipForCTR.from_pretrained(saved(make_model(FlipForPreTraining), tmp_path / "pretrained"))
    model.save_pretrained(tmp_path / "finetuned")
    caplog.clear()
    for towers in ("both", "tabular", "text"):
        _, report = FlipForCTR.from_pretrained(tmp_path / "finetuned", towers=towers, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
    assert caplog.text == ""


@pytest.mark.parametrize(("towers", "other"), [("tabular", "text"), ("text", "tabular")])
def test_one_tower_of_a_checkpoint_of_both_scores_as_it_did_beside_the_other(
    towers: str, other: str, tmp_path: Path
) -> None:
    model, batch = make_model(FlipForCTR), make_batch()
    alone = FlipForCTR.from_pretrained(saved(model, tmp_path / "both"), towers=towers)
    assert not any(other in name or name == "alpha_logit" for name, _ in alone.named_parameters())
    expected = model(**batch)[f"{towers}_logits"]
    assert torch.equal(aligned(alone)(**batch).logits, expected)
    again = FlipForCTR.from_pretrained(saved(alone, tmp_path / "alone"))
    assert again.config.towers == towers
    assert torch.equal(aligned(again)(**batch).logits, expected)


# ---- from a pretrained text model


@pytest.fixture
def processor(rows: list[dict[str, Any]], tiny_text_model: Path) -> FlipProcessor:
    return FlipProcessor.fit(rows, ["user_id", "gender", "title"], AutoTokenizer.from_pretrained(tiny_text_model))


@pytest.mark.parametrize("model_class", [FlipForPreTraining, FlipForCTR])
def test_the_text_tower_starts_from_the_pretrained_weights(
    model_class: Any, tiny_text_model: Path, processor: FlipProcessor
) -> None:
    model = model_class.from_text_pretrained(tiny_text_model, processor, tabular_tower="deepfm", text_pooling="mean")
    source = AutoModel.from_pretrained(tiny_text_model, add_pooling_layer=False)
    assert_same_weights(model.flip.text_tower, source)
    assert model.config.tabular_tower == "deepfm"
    assert model.config.num_fields == 3
    assert model.config.num_features == processor.vocabulary.num_features
    assert model.flip.feature_embeddings.embedding.num_embeddings == processor.vocabulary.num_features


def test_a_mask_token_that_the_tokenizer_lacked_gets_a_row_of_its_own(
    tiny_text_model: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_text_model, mask_token=None)
    old_size = len(tokenizer)
    processor = FlipProcessor.fit(rows, ["user_id", "gender", "title"], tokenizer)
    assert processor.tokenizer.mask_token_id == old_size
    model = FlipForPreTraining.from_text_pretrained(tiny_text_model, processor)
    embeddings = model.get_input_embeddings().weight
    source = AutoModel.from_pretrained(tiny_text_model).get_input_embeddings().weight
    assert embeddings.shape == (old_size + 1, source.shape[1])
    assert torch.equal(embeddings[:old_size], source)
    assert embeddings[old_size].isfinite().all()
    assert model.mlm.bias.shape == (old_size + 1,)
    assert_same_weights(FlipForPreTraining.from_pretrained(saved(model, tmp_path)), model)


def test_a_text_tower_needs_a_text_model_and_a_tokenizer(
    tiny_text_model: Path, rows: list[dict[str, Any]], processor: FlipProcessor
) -> None:
    message = "needs text_model_name_or_path and a processor with a tokenizer"
    with pytest.raises(ValueError, match=message):
        FlipForCTR.from_text_pretrained(None, processor)
    with pytest.raises(ValueError, match=message):
        FlipForCTR.from_text_pretrained(tiny_text_model, FlipProcessor.fit(rows, ["user_id"]))


def test_a_tabular_model_needs_neither(rows: list[dict[str, Any]]) -> None:
    processor = FlipProcessor.fit(rows, ["user_id", "gender"])
    model = FlipForCTR.from_text_pretrained(None, processor, towers="tabular")
    assert model.config.text_config is None
    assert model(**processor(rows)).logits.shape == (len(rows),)


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


# ---- from a processor, and with it


def test_a_configuration_takes_its_sizes_from_the_processor(wordpiece: PreTrainedTokenizerFast) -> None:
    rows = {"city": ["Rome", "Oslo"], "tags": [["a"], ["b", "c"]]}
    for tokenizer, towers in ((None, "tabular"), (wordpiece, "both")):
        processor = FlipProcessor.fit(rows, tokenizer=tokenizer)
        config = FlipConfig.from_processor(processor, embedding_size=4)
        assert (config.num_fields, config.list_fields, config.embedding_size) == (2, [1], 4)
        assert config.towers == towers
        processor.check_belongs_to(config)
    with pytest.raises(ValueError, match="towers is 'both', but the processor has no tokenizer"):
        FlipConfig.from_processor(processor.tabular_only(), towers="both")


def test_model_and_processor_are_saved_in_one_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    processor = FlipProcessor.fit({"city": ["Rome", "Oslo"]})
    model = FlipForCTR(FlipConfig.from_processor(processor, embedding_size=4, hidden_sizes=[8]))
    model.save_pretrained(tmp_path / "both", processor=processor)
    assert FlipProcessor.from_pretrained(tmp_path / "both").fields == ["city"]
    model.save_pretrained(tmp_path / "both")  # again: there is one beside it
    assert "without its processor" not in caplog.text
    model.save_pretrained(tmp_path / "alone")
    assert f"{tmp_path / 'alone'} holds the model without its processor, so it cannot score rows" in caplog.text
    other = FlipProcessor.fit({"city": ["Bern", "Oslo", "Paris"]})
    with pytest.raises(ValueError, match="the vocabulary does not belong to the weights"):
        model.save_pretrained(tmp_path / "other", processor=other)
    assert not (tmp_path / "other").exists()


# ---- what is said of weights that are missing or left over


@pytest.fixture
def flip_folder(tmp_path: Path) -> Path:
    FlipForPreTraining(make_config()).save_pretrained(tmp_path / "pretraining")
    FlipForCTR(make_config()).save_pretrained(tmp_path / "ctr")
    return tmp_path


@pytest.mark.parametrize(
    ("model_class", "folder", "settings"),
    [
        (FlipForCTR, "pretraining", {}),
        (FlipForCTR, "pretraining", {"towers": "tabular"}),
        (FlipForCTR, "ctr", {"towers": "tabular"}),
        (FlipForCTR, "ctr", {"towers": "text"}),
        (FlipModel, "pretraining", {}),
        (FlipModel, "ctr", {"towers": "tabular"}),
    ],
)
def test_heads_and_towers_that_are_meant_to_be_left_behind_are_not_listed(
    model_class: Any, folder: str, settings: dict[str, str], flip_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    model_class.from_pretrained(flip_folder / folder, **settings)
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "is a pretraining checkpoint" not in line] == []
    assert len(told) == (model_class is FlipForCTR and folder == "pretraining")


def test_weights_that_should_be_there_and_those_that_should_not_are_named(
    flip_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = flip_folder / "ctr" / "model.safetensors"
    weights = load_file(file)
    del weights["text_classifier.bias"]
    del weights["flip.text_tower.embeddings.word_embeddings.weight"]
    save_file(weights | {"flip.a_stranger": torch.zeros(1)}, file, metadata={"format": "pt"})
    (flip_folder / "ctr" / "model.sha256").unlink()
    model = FlipForCTR.from_pretrained(flip_folder / "ctr")
    lacking = "flip.text_tower.embeddings.word_embeddings.weight, text_classifier.bias"
    assert f"{flip_folder / 'ctr'} lacks weights, which are random: {lacking}\n" in caplog.text
    assert f"{flip_folder / 'ctr'} has weights that this model does not use: flip.a_stranger\n" in caplog.text
    assert "LOAD REPORT" not in caplog.text
    assert model.untrained_weights == tuple(lacking.split(", "))
    assert random_text_towers(model)


def test_weights_that_are_there_are_kept_where_others_lack(flip_folder: Path) -> None:
    file = flip_folder / "pretraining" / "model.safetensors"
    weights = load_file(file)
    del weights["mtm.hidden.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    (flip_folder / "pretraining" / "model.sha256").unlink()
    model = FlipForPreTraining.from_pretrained(flip_folder / "pretraining")
    assert model.untrained_weights == ("mtm.hidden.bias",)
    loaded = model.state_dict()
    assert [name for name, weight in weights.items() if not torch.equal(loaded[name], weight)] == []


def test_of_a_text_model_only_its_own_missing_weights_are_named(
    tmp_path: Path, wordpiece: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """A masked language model has a head, which is left behind, and no pooler, which is not read."""
    config = BertConfig(**TINY | {"vocab_size": len(wordpiece)})
    BertForMaskedLM(config).save_pretrained(tmp_path)
    processor = FlipProcessor.fit({"city": ["Rome", "Oslo"]}, tokenizer=wordpiece, max_length=16)
    caplog.clear()
    model = FlipForCTR.from_text_pretrained(tmp_path, processor, embedding_size=4, hidden_sizes=[8])
    assert caplog.text == "" and not random_text_towers(model)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    FlipForCTR.from_text_pretrained(tmp_path, processor, embedding_size=4, hidden_sizes=[8])
    (line,) = caplog.messages
    name = "encoder.layer.0.output.dense.weight"
    assert line == f"{tmp_path} lacks weights of its own architecture, which are random: {name}"
