from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from transformers import BertConfig, T5Config

from modeling_flip import FlipConfig
from modeling_flip.tabular_towers import TABULAR_TOWERS, TabularTower, register_tabular_tower
from modeling_flip.training.checks import check_recipe
from modeling_flip.training.command_line import is_expected, parse_recipe, recipe_parser
from modeling_flip.training.recipe import model_settings, stage_arguments

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(p for p in (ROOT / "configuration").rglob("*.yaml") if p.parent.name != "accelerate")


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset_name: demo\noutput_dir: out\nfinetuning:\n  learning_rate: 1.0e-3\n")
    return path


def test_arguments_override_the_recipe(recipe_file: Path) -> None:
    arguments = [
        "--tabular_tower",
        "autoint",
        "--finetuning.learning_rate",
        "2e-3",
        "--model.dropout",
        "0.1",
        "--seed",
        "7",
    ]
    recipe = parse_recipe([str(recipe_file), *arguments])
    assert recipe.tabular_tower == "autoint"
    assert recipe.seed == 7
    assert recipe.model == {"dropout": 0.1}
    assert stage_arguments(recipe, "finetuning").learning_rate == 2e-3
    assert stage_arguments(recipe, "finetuning").seed == 7


@pytest.mark.parametrize("given", ["recipe", "arguments"])
def test_a_towers_own_settings_stand_beside_the_models(given: str, recipe_file: Path) -> None:
    if given == "recipe":
        recipe_file.write_text(
            recipe_file.read_text() + "model: {num_attention_layers: 2, deep: false, dropout: 0.1}\n"
        )
        arguments = []
    else:
        arguments = ["--model.num_attention_layers", "2", "--model.deep", "false", "--model.dropout", "0.1"]
    recipe = parse_recipe([str(recipe_file), "--tabular_tower", "autoint", *arguments])
    assert recipe.model == {"num_attention_layers": 2, "deep": False, "dropout": 0.1}
    config = FlipConfig(towers="tabular", **model_settings(recipe))
    assert config.tower_settings == {"num_attention_layers": 2, "deep": False}
    assert config.dropout == 0.1


def test_a_setting_that_the_tower_has_not_is_refused_and_one_that_once_was_everybodys_ignored(
    recipe_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = parse_recipe([str(recipe_file), "--towers", "tabular", "--model.deep", "true"])
    with pytest.raises(ValueError, match="tabular tower 'dcnv2' has no setting 'deep'; it has num_cross_layers"):
        check_recipe(recipe)
    recipe = parse_recipe([str(recipe_file), "--towers", "tabular", "--model.pnn_product", "outer"])
    check_recipe(recipe)
    assert "pnn_product is ignored: tabular tower 'dcnv2' has no such setting" in caplog.text
    recipe = parse_recipe([str(recipe_file), "--towers", "tabular", "--model.num_cross_layers", "-1"])
    with pytest.raises(ValueError, match="num_cross_layers is -1; it must be a whole number of 0 or more"):
        check_recipe(recipe)


def test_a_tower_from_elsewhere_is_set_from_a_recipe(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Settings:
        """
        Args:
            num_factors: of the new tower.
        """

        num_factors: int = 4
        attention_size: int = 2  # as others have

    with monkeypatch.context() as patch:
        patch.setitem(TABULAR_TOWERS, "new", None)  # forgotten after the test
        del TABULAR_TOWERS["new"]
        register_tabular_tower("new", settings=Settings)(type("New", (TabularTower,), {}))
        arguments = ["--tabular_tower", "new", "--model.num_factors", "3", "--model.attention_size", "5"]
        recipe = parse_recipe([str(recipe_file), *arguments])
        config = FlipConfig(towers="tabular", **model_settings(recipe))
        assert "of the new tower. (default: 4)" in recipe_parser().format_help()
    assert config.tower_settings == {"num_factors": 3, "attention_size": 5}


def test_a_recipe_without_rates_has_those_of_this_field(recipe_file: Path) -> None:
    recipe_file.write_text("dataset_name: demo\noutput_dir: out\npretraining: {bf16: true}\n")
    for stage in ("pretraining", "finetuning"):
        arguments = stage_arguments(parse_recipe([str(recipe_file)]), stage)
        assert (arguments.learning_rate, arguments.text_learning_rate) == (1e-3, 5e-5)


def test_without_a_pretraining_section_there_is_no_pretraining(recipe_file: Path) -> None:
    assert parse_recipe([str(recipe_file)]).pretraining is None
    assert parse_recipe([str(recipe_file), "--pretraining.bf16", "true"]).pretraining == {"bf16": True}
    recipe_file.write_text(recipe_file.read_text() + "pretraining:\n  num_train_epochs: 2\n")
    assert parse_recipe([str(recipe_file)]).pretraining == {"num_train_epochs": 2}
    assert parse_recipe([str(recipe_file), "--pretraining", "null"]).pretraining is None
    assert parse_recipe([str(recipe_file), "--seed", "7", "--pretraining=null", "--towers", "tabular"]).seed == 7
    recipe_file.write_text("dataset_name: demo\noutput_dir: out\npretraining: null\n")
    assert parse_recipe([str(recipe_file)]).pretraining is None


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_recipe_of_the_project_can_be_run(path: Path, tmp_path: Path) -> None:
    recipe = parse_recipe([str(path)])
    (T5Config() if recipe.model_type == "p5" else BertConfig()).save_pretrained(
        tmp_path
    )  # the weights are not looked at
    if recipe.dataset_name != "demo":  # which brings its own
        check_recipe(replace(recipe, text_model_name_or_path=recipe.text_model_name_or_path and str(tmp_path)))
    for stage in ("pretraining", "finetuning"):
        stage_arguments(recipe, stage)


@pytest.mark.parametrize(
    ("dataset", "batch_size", "max_length"), [("bookcrossing", 256, 100), ("goodreads", 2048, 180)]
)
def test_every_system_of_the_paper_has_a_recipe_with_the_papers_batch(
    dataset: str, batch_size: int, max_length: int
) -> None:
    paper = json.loads((ROOT / "benchmarks" / "paper.json").read_text())["table2"][dataset]
    recipes = {path.stem: parse_recipe([str(path)]) for path in RECIPES if path.parent.name == dataset}
    assert paper.keys() <= recipes.keys()
    for stem, recipe in recipes.items():
        if stem.endswith("-small"):
            continue
        assert (recipe.dataset_name, recipe.output_dir) == (dataset, f"outputs/{dataset}/{stem}")
        assert recipe.finetuning["per_device_train_batch_size"] == batch_size
        assert recipe.max_length == (max_length if recipe.text_model_name_or_path else None)
        if recipe.pretraining:
            assert recipe.pretraining["per_device_train_batch_size"] * 8 == 1024


@pytest.mark.parametrize(
    ("yaml", "arguments", "message"),
    [
        ("dataset_nam: demo", [], "no such key: dataset_nam; did you mean dataset_name?"),
        ("finetunning:\n  learning_rate: 1", [], "did you mean finetuning"),
        (
            "finetuning:\n  learning_rat: 1",
            [],
            "no such key: finetuning.learning_rat; did you mean finetuning.learning_rate?",
        ),
        ("", ["--finetuning.learning_rat", "1"], "did you mean finetuning.learning_rate?"),
        ("", ["--batch_size", "8"], "no such key: batch_size; did you mean finetuning.per_device_train_batch_size?"),
        ("", ["--tabular_towr", "dcnv2"], "no such key: tabular_towr; did you mean tabular_tower?"),
        (
            "",
            ["--finetuning.learning_rate", "fast"],
            '"finetuning.learning_rate": .*Expected a .*float.* Given value: fast',
        ),
        ("", ["--model.hidden_sizes", "[a]"], "model.hidden_sizes"),
        ("positive_label: yes", [], "positive_label is True, and must be text: .* as in positive_label: 'yes'$"),
        ("positive_label: no", [], "positive_label is False, and must be text: .* as in positive_label: 'no'$"),
        ("dataset_name: 2024", [], "dataset_name is 2024, and must be text: .* as in dataset_name: '2024'$"),
        ("", ["--finetuning.push_to_hub", "true"], "no such key: finetuning.push_to_hub"),
        # A recipe is published with its model; a token in it would be too.
        ("", ["--hub_token", "hf_secret"], "no such key: hub_token"),
        ("", ["--finetuning.hub_token", "hf_secret"], "no such key: finetuning.hub_token"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_the_right_one(
    yaml: str, arguments: list[str], message: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_file.write_text(yaml or recipe_file.read_text())
    with pytest.raises(SystemExit) as stopped:
        parse_recipe([str(recipe_file), *arguments])
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert printed.count("\n") == 1
    assert printed.startswith("train.py: error: ")
    assert re.search(message.replace("?", r"\?"), printed), printed


def test_a_recipe_that_does_not_exist_or_lacks_the_essentials(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_recipe(["nowhere.yaml"])
    assert "recipe nowhere.yaml does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_recipe(["--output_dir", "x"])
    assert "required: dataset_name" in capsys.readouterr().err


def test_help_fits_a_person() -> None:
    text = recipe_parser().format_help()
    words = " ".join(text.split())
    for shown in (
        "RECIPE.yaml",
        "--tabular_tower",
        "--pretraining.text_mask_ratio",
        "--finetuning.learning_rate",
        "--model.dropout",
    ):
        assert shown in text
    assert "--finetuning.text_mask_ratio" not in text  # of pretraining alone
    assert "(default: 0.001)" in words and "(default: 5e-05, or learning_rate if that is set)" in words
    assert "fsdp" not in text
    assert len(text.splitlines()) < 300


def test_only_what_a_person_can_mend_is_one_line() -> None:
    def raised_by(code: str, module: str) -> Exception:
        try:
            exec(code, {"__name__": module})
        except Exception as error:
            return error
        raise AssertionError("nothing was raised")

    assert is_expected(raised_by("raise ValueError('label is 3')", "modeling_flip.row_reader"))
    assert is_expected(raised_by("raise FloatingPointError('loss')", "modeling_flip.training.trainer"))
    assert is_expected(raised_by("raise FileNotFoundError('raw_dir')", "data_scripts.raw_files"))
    assert is_expected(raised_by("raise ImportError('lora needs peft')", "modeling_flip.training.lora"))
    assert is_expected(raised_by("open('/no/where')", "torch.serialization"))
    assert not is_expected(raised_by("raise ValueError('shapes')", "torch.functional"))
    assert not is_expected(raised_by("int('x')", "numpy"))
    assert not is_expected(raised_by("import numpy; numpy.zeros(3).reshape(2)", "numpy.core"))
    assert not is_expected(raised_by("{}['x']", "modeling_flip.fields"))
    assert not is_expected(raised_by("import no_such_module", "modeling_flip.fields"))
    assert not is_expected(raised_by("from math import no_such_name", "modeling_flip.fields"))
    assert not is_expected(raised_by("raise RuntimeError('CUDA')", "modeling_flip.training.trainer"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model: 1", "model is 1; it is a section: write its keys below it"),
        ("finetuning: [1]", "finetuning is [1]; it is a section"),
        ("pretraining: 1", "pretraining is 1; it is a section"),
        ("pretraining: {}", "pretraining is {}: write its keys below it"),
        ("use_cpu: x", "Value not boolean: x. use_cpu and push_to_hub are true or false"),
    ],
)
def test_sections_and_switches_that_are_none_are_named(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(f"dataset_name: demo\noutput_dir: out\n{line}\n")
    with pytest.raises(SystemExit):
        parse_recipe([str(tmp_path / "recipe.yaml")])
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ") and message in error and error.count("\n") == 1


def test_a_section_without_keys_is_none(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("dataset_name: demo\noutput_dir: out\nmodel:\nfinetuning:\n")
    recipe = parse_recipe([str(tmp_path / "recipe.yaml")])
    assert recipe.model == {} and recipe.finetuning == {}
