"""LoRA: what is trained, what checkpoints hold, and that nothing of it is left in the model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train
from modeling_flip import FlipForCTR, FlipForPreTraining, FlipProcessor, FlipTrainer
from modeling_flip.training import checkpoints
from modeling_flip.training.arguments import FlipTrainingArguments
from modeling_flip.training.checks import check_recipe
from modeling_flip.training.recipe import Recipe
from tests.processes import weights

pytest.importorskip("peft", reason="peft is not installed: pip install -c constraints.txt -e '.[lora]'")
ROWS = {
    "user": [f"u{i % 5}" for i in range(16)],
    "title": ["red", "a long red title", "blue", "green and blue"] * 4,
}
CLICKS = [i % 2 for i in range(16)]
Make = Callable[..., FlipTrainer]


@pytest.fixture
def make(wordpiece: Any, tiny_text_model: Path, tmp_path: Path) -> Make:
    processor = FlipProcessor.fit(ROWS, ["user", "title"], wordpiece)
    data = processor.encode(ROWS | {"label": CLICKS}, "label")

    def trainer(model_class: Any = FlipForCTR, **kwargs: Any) -> FlipTrainer:
        torch.manual_seed(0)
        sizes = {"tabular_tower": "deepfm", "embedding_size": 4, "hidden_sizes": [8], "projection_size": 4}
        model = model_class.from_text_pretrained(tiny_text_model, processor, towers="both", **sizes)
        given: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True}
        given |= {"save_strategy": "no", "per_device_train_batch_size": 8, "num_train_epochs": 2, "lora": {"r": 2}}
        return FlipTrainer(model, FlipTrainingArguments(**given | kwargs), processor, data, data)

    return trainer


def test_a_second_training_has_adapters_that_learn_too(make: Make) -> None:
    trainer = make(text_learning_rate=0.05)
    trainer.train()
    before = {name: w.clone() for name, w in trainer.model.state_dict().items() if "text_tower." in name}
    trainer.train()
    assert any(not torch.equal(weight, trainer.model.state_dict()[name]) for name, weight in before.items())


def test_checkpoints_of_adapters_alone_do_not_go_to_the_hub(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlipTrainer, "init_hf_repo", lambda self: None)
    with pytest.raises(ValueError, match="do not hold the whole model, and would be pushed: set hub_strategy to end"):
        make(push_to_hub=True, save_strategy="epoch")
    make(push_to_hub=True, save_strategy="epoch", hub_strategy="end")
    make(push_to_hub=True)  # no checkpoint is saved


@pytest.mark.parametrize("model_class", [FlipForCTR, FlipForPreTraining])
def test_adapters_learn_and_are_merged(model_class: Any, make: Make) -> None:
    trainer = make(model_class, text_learning_rate=0.05, weight_decay=0.1)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    seen: dict[str, Any] = {}

    def watch(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        seen["of"] = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
        names = dict(trainer.model.named_parameters())
        seen["names"] = {name: seen["of"].get(id(parameter)) for name, parameter in names.items()}

    trainer.callback_handler.callbacks[0].on_train_begin = watch
    trainer.train()
    trained = {name for name, group in seen["names"].items() if group is not None}
    in_text = {name for name in trained if "text_tower." in name}
    assert in_text and all(".lora_" in name for name in in_text)
    assert {seen["names"][name] for name in in_text} == {(0.05, 0.1)}
    assert seen["names"].keys() - trained == {n for n in seen["names"] if "text_tower." in n and ".lora_" not in n}
    # Afterwards: the modules from before, the linear layers moved, the rest of the text tower not.
    after = trainer.model.state_dict()
    assert after.keys() == before.keys() and all(p.requires_grad for p in trainer.model.parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    of_text = {name for name in before if "text_tower." in name and name.endswith("weight")}
    layers = {name for name in of_text if "embeddings" not in name and "LayerNorm" not in name}
    assert {name for name in moved if "text_tower." in name} == layers
    assert any("tabular_tower." in name for name in moved)
    assert not hasattr(trainer.model.base_model.text_tower, "peft_config")


def test_a_merged_model_computes_what_the_adapters_did_and_loads_without_peft(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(text_learning_rate=0.05)
    logits = []
    trainer.callback_handler.callbacks[0].on_train_end = lambda *_, **__: logits.append(
        trainer.predict(trainer.eval_dataset).predictions[0]
    )
    trainer.train()
    merged = trainer.predict(trainer.eval_dataset).predictions[0]
    torch.testing.assert_close(torch.tensor(merged), torch.tensor(logits[0]), atol=1e-5, rtol=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    monkeypatch.setitem(sys.modules, "peft", None)
    model = FlipForCTR.from_pretrained(tmp_path / "saved")
    assert model.untrained_weights == ()
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_an_interrupted_run_goes_on_from_its_adapters(
    stage: str, recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints hold no weight that stands still; both stages end with the bits of a run that was not interrupted."""
    given = ["--finetuning.lora", '{"r": 2}', "--pretraining.lora", '{"r": 2, "dropout": 0.1}', "--use_cpu"]
    arguments = [*_arguments(recipe()), *given]
    train.main([*arguments, "--output_dir", str(tmp_path / "straight")])
    seal, sealed = checkpoints.seal, list[Path]()

    def stop(checkpoint: Path) -> None:
        seal(checkpoint)
        sealed.append(checkpoint)
        if stage in checkpoint.parts:
            raise KeyboardInterrupt

    monkeypatch.setattr("modeling_flip.training.trainer.seal", stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train.main([*arguments, "--output_dir", str(tmp_path / "broken")])
    held = load_file(sealed[-1] / "model.safetensors")
    assert {".lora_" in name for name in held if "text_tower." in name} == {True}
    assert any("tabular_tower." in name for name in held)
    monkeypatch.setattr("modeling_flip.training.trainer.seal", seal)
    train.main([*arguments, "--output_dir", str(tmp_path / "broken")])
    for folder in (".", "pretraining"):
        expected, found = weights(tmp_path / "straight" / folder), weights(tmp_path / "broken" / folder)
        assert expected.keys() == found.keys() and not any("lora" in name for name in found)
        for name, weight in expected.items():
            assert torch.equal(found[name], weight), name


def _arguments(recipe: Recipe) -> list[str]:
    path = Path(recipe.output_dir).with_name("lora.yaml")
    path.write_text(recipe.to_yaml())
    return [str(path)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"towers": "tabular", "pretraining": None},
            "finetuning.lora applies to the text tower, and this model has none",
        ),
        (
            {"push_to_hub": True},
            "hub_strategy is .every_save., but checkpoints .* do not hold the whole model: set hub_strategy to end",
        ),
        ({"finetuning": {"lora": {"r": 0}}}, "^finetuning: lora.r is 0; it must be 1 or more$"),
        ({"finetuning": {"lora": {"rank": 8}}}, "lora has no key 'rank'; it takes r, alpha, dropout"),
        ({"finetuning": {"lora": {"dropout": 1}}}, "lora.dropout is 1; it must be at least 0 and below 1"),
    ],
    ids=str,
)
def test_what_lora_cannot_is_told_before_training(
    settings: dict[str, Any], message: str, tiny_text_model: Path
) -> None:
    given: dict[str, Any] = {"dataset_name": "demo", "output_dir": "out", "finetuning": {"lora": {}}}
    with pytest.raises(ValueError, match=message):
        check_recipe(Recipe(**given | {"text_model_name_or_path": str(tiny_text_model)} | settings))


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lora needs peft: pip install .* '\.\[lora\]'"):
        FlipTrainingArguments(lora={})
