from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import MPNetConfig, T5Config

from modeling_flip.ctr_models import CTR_MODELS
from modeling_flip.fields import Field
from modeling_flip.training import checks
from modeling_flip.training.checks import check_columns, check_data, check_recipe, item_fields
from modeling_flip.training.recipe import Recipe, stage_arguments
from modeling_flip.training.resume import check_output_dir
from modeling_flip.training.splits import SPLITS


def make_recipe(**settings: Any) -> Recipe:
    defaults: dict[str, Any] = {"dataset_name": "demo", "output_dir": "out", "use_cpu": True}
    return Recipe(**defaults | settings)


def make_data() -> dict[str, pa.Table]:
    columns = {"user_id": [1, 2, 1], "movie_id": [3, 3, 4], "title": ["x", "x", "y"], "label": [0, 1, 1]}
    return dict.fromkeys(SPLITS, pa.table(columns))


@pytest.mark.parametrize("model_type", CTR_MODELS)
def test_a_sound_recipe_of_each_model_passes(model_type: str, tiny_text_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {} if model_type in ("flip", "p5") else {"item_fields": ["movie_id", "title"]}
    if model_type == "morec":
        settings["model"] = {"freeze_text_tower": True}
    text_model = tiny_text_model
    if model_type == "p5":
        with pytest.raises(ValueError, match="P5 generates its answer, but text model 'bert' has no decoder; use a T5"):
            check_recipe(make_recipe(model_type=model_type, text_model_name_or_path=str(tiny_text_model)))
        T5Config().save_pretrained(tmp_path)
        text_model = tmp_path
    recipe = make_recipe(model_type=model_type, text_model_name_or_path=str(text_model), **settings)
    check_recipe(recipe)
    check_data(make_data(), recipe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "ctr_brt"}, "model_type is 'ctr_brt'; it must be one of flip, .*; did you mean 'ctr_bert'?"),
        ({"model_type": "MoRec"}, "model_type is 'MoRec'; .*; did you mean 'morec'?"),
        ({"model_type": "xyz"}, "model_type is 'xyz'; it must be one of flip, ctr_bert, morec, p5$"),
        ({"calibration": "plat"}, "calibration is 'plat'; it must be platt, or left out"),
        ({"negative_sampling_rate": 0.0}, "negative_sampling_rate is 0.0; .* above 0, and at most 1"),
        (
            {"negative_sampling_rate": 10},
            "negative_sampling_rate is 10; .* share of the non-clicks that the log has kept",
        ),
        ({"negative_sampling_rate": float("nan")}, "negative_sampling_rate is nan;"),
        (
            {"model_type": "ctr_bert", "pretraining": {}},
            "pretraining aligns FLIP's two towers; model_type 'ctr_bert' has none: leave pretraining out",
        ),
        (
            {"model_type": "p5", "pretrained_model_name_or_path": "somewhere"},
            "pretraining aligns FLIP's two towers; model_type 'p5' has none: leave pretraining out",
        ),
        (
            {"model": {"freeze_text_tower": True}},
            "model.freeze_text_tower works only with model_type morec; .* or text_learning_rate to 0",
        ),
        (
            {"model_type": "p5", "model": {"freeze_text_tower": False}},
            "freeze_text_tower works only with model_type morec",
        ),
        (
            {"model_type": "morec", "towers": "tabular"},
            "towers is 'tabular', but model_type 'morec' has no separate towers: leave towers out",
        ),
        (
            {"model_type": "morec", "text_model_name_or_path": None},
            "text_model_name_or_path is missing",
        ),
        ({"model": {"icl_subspaces": 3}}, r"icl_subspaces is 3; it must divide projection_size \(128\)"),
        (
            {"towers": "tabular", "finetuning": {"mini_batch_tokens": 9}},
            "mini_batch_tokens is for FLIP with a text tower: set it to null",
        ),
        (
            {"tabular_tower": "afn", "pretraining": {"mini_batch_tokens": 9}},
            "mini_batch_tokens computes a batch in parts, and batch normalisation",
        ),
        (
            {"model": {"batch_norm": True}, "finetuning": {"auto_find_batch_size": True}},
            "auto_find_batch_size computes a batch in parts, and batch normalisation",
        ),
    ],
    ids=str,
)
def test_a_recipe_of_a_model_that_cannot_be_is_refused(
    settings: dict[str, Any], message: str, tiny_text_model: Path
) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        check_recipe(make_recipe(**{"text_model_name_or_path": str(tiny_text_model)} | settings))


SCHEMA = [Field(name="user_id"), Field(name="movie_id"), Field(name="title")]
SCHEMA.append(Field(name="day", kind="ignored", reason="constant"))


@pytest.mark.parametrize("model_type", ["ctr_bert", "morec"])
@pytest.mark.parametrize("named", [None, []])
def test_a_model_of_users_and_items_needs_the_items_fields(model_type: str, named: list[str] | None) -> None:
    with pytest.raises(ValueError, match=f"{model_type} keeps users and items apart, .* name those with item_fields"):
        item_fields(make_recipe(model_type=model_type, item_fields=named), SCHEMA)
    assert item_fields(make_recipe(model_type="flip", item_fields=named), SCHEMA) == []
    assert item_fields(make_recipe(model_type=model_type, item_fields=["title"]), SCHEMA) == ["title"]
    sided = [replace(field, side="item") if field.name != "user_id" else field for field in SCHEMA]
    assert item_fields(make_recipe(model_type=model_type, item_fields=named), sided) == ["movie_id", "title"]


@pytest.mark.parametrize(
    ("fields", "item_fields", "message"),
    [
        (
            ["user_id", "title"],
            ["movie_id", "title"],
            r"item_fields names \['movie_id'\], which are not among the fields",
        ),
        (None, ["day", "title"], r"item_fields names \['day'\], .* \('day' is left out: constant\)"),
        (None, ["title", "label"], r"item_fields names \['label'\], which are not among the fields"),
        (
            None,
            ["user_id", "movie_id", "title"],
            r"item_fields names all fields \(user_id, .*\); leave at least one for the user",
        ),
        (["title"], ["title"], r"item_fields names all fields \(title\); leave at least one for the user"),
    ],
)
def test_item_fields_that_are_no_fields_are_refused(
    fields: list[str] | None, item_fields: list[str], message: str
) -> None:
    schema = [field for field in SCHEMA if fields is None or field.name in fields]
    with pytest.raises(ValueError, match=message):
        checks.item_fields(make_recipe(model_type="morec", fields=fields, item_fields=item_fields), schema)


def test_an_item_field_that_no_column_is_is_refused() -> None:
    with pytest.raises(ValueError, match=r"column 'movie_di' is missing in split 'train' .* did you mean 'movie_id'"):
        check_data(make_data(), make_recipe(model_type="morec", item_fields=["movie_di"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"exclude_fields": ["label"]},
            "exclude_fields names the label column 'label', which is never read as a field",
        ),
        ({"group_column": "label"}, "group_column is the label column 'label': name another column"),
        ({"time_column": "label"}, "time_column is the label column 'label': name another column"),
        ({"exclude_fields": ["titel"]}, "'titel' is missing in every split .*exclude_fields.*did you mean 'title'?"),
    ],
)
def test_the_label_column_has_no_second_role(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_data(make_data(), make_recipe(**settings))


def test_without_a_label_column_its_setting_and_the_columns_are_named() -> None:
    data = {split: pa.table({"age": [3, 4], "clicked": [0, 1]}) for split in ("train", "validation", "test")}
    told = r"^no column 'label': name the column of clicks with --label_column; the columns are \['age', 'clicked'\]$"
    with pytest.raises(ValueError, match=told):
        check_data(data, make_recipe())
    for split, rows in data.items():
        data[split] = rows.append_column("Label", rows["clicked"])
    with pytest.raises(ValueError, match="did you mean 'Label'"):
        check_data(data, make_recipe())


def test_a_column_that_only_some_splits_have_is_refused_by_its_split_and_can_be_left_out() -> None:
    data = make_data()
    data["test"] = data["test"].drop_columns(["title"])
    schema = [Field(name="user_id"), Field(name="title")]
    with pytest.raises(
        ValueError, match=r"'title' is missing in split 'test', but not in split 'train'; .*exclude_fields"
    ):
        check_columns(data, schema)
    check_data(data, make_recipe(exclude_fields=["title"]))
    check_columns(data, [schema[0], Field(name="title", kind="ignored")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"finetuning": {"metric_for_best_model": "acc"}},
            "metric_for_best_model is 'acc'; it must be one of loss, auc, .*",
        ),
        (
            {"finetuning": {"metric_for_best_model": "text_auc"}},
            "metric_for_best_model is 'text_auc'; it must be one of",
        ),
        ({"finetuning": {"save_strategy": "steps"}}, "^finetuning: .*load_best_model_at_end requires [^\n]*$"),
        ({"seed": 2**32}, "seed is 4294967296; it must be from 0 to 4294967295"),
        ({"model": {"hidden_sizes": None}}, "^model: [^\n]*hidden_sizes[^\n]*$"),
    ],
    ids=str,
)
def test_settings_that_others_would_refuse_in_lines_of_theirs(settings: dict[str, Any], message: str) -> None:
    check_recipe(make_recipe(towers="tabular", finetuning={"metric_for_best_model": "eval_logloss"}))
    with pytest.raises(ValueError, match=message):
        check_recipe(make_recipe(towers="tabular", **settings))


@pytest.mark.parametrize(
    ("metric", "greater"), [("auc", True), ("eval_tabular_auc", True), ("logloss", False), ("ece", False)]
)
def test_the_best_epoch_is_the_one_of_the_best_metric(metric: str, greater: bool) -> None:
    given: dict[str, Any] = {"metric_for_best_model": metric, "lr_scheduler_type": "reduce_lr_on_plateau"}
    arguments = stage_arguments(make_recipe(finetuning=given | {"lr_scheduler_kwargs": {"factor": 0.5}}), "finetuning")
    assert arguments.greater_is_better is greater
    assert arguments.lr_scheduler_kwargs == {"mode": "max" if greater else "min", "factor": 0.5}
    assert (
        stage_arguments(make_recipe(finetuning={"greater_is_better": False}), "finetuning").greater_is_better is False
    )


def test_labels_all_alike_are_named_by_their_column() -> None:
    data = {split: table.set_column(3, "label", pa.array([1, 1, 1])) for split, table in make_data().items()}
    with pytest.raises(ValueError, match=r"every label of split 'train' is 1 \(column 'label'\)"):
        check_data(data, make_recipe())


def test_a_recipe_of_which_nothing_was_trained_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(make_recipe(output_dir=str(tmp_path), seed=1).to_yaml())
    (tmp_path / "manifests").mkdir()
    other = make_recipe(output_dir=str(tmp_path), seed=2)
    assert check_output_dir(other) is False
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="holds another model: its seed is 1, this run's is 2"):
        check_output_dir(other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetuning": {"activation_checkpointing": True}}, ""),
        ({"finetuning": {"gradient_checkpointing": True}, "towers": "tabular"}, "this model has none"),
        ({"pretraining": {"activation_checkpointing": True}, "towers": "tabular"}, ""),
        ({"finetuning": {"activation_checkpointing": True}, "text_model": "mpnet"}, "text model 'mpnet' cannot do it"),
        ({"pretraining": {"activation_checkpointing": True}, "text_model": "mpnet"}, "text model 'mpnet' cannot do it"),
    ],
    ids=str,
)
def test_activation_checkpointing_needs_a_text_tower_that_can(
    settings: dict[str, Any], message: str, tiny_text_model: Path, tmp_path: Path
) -> None:
    text_model = tiny_text_model
    if settings.get("text_model") == "mpnet":
        MPNetConfig(num_hidden_layers=1).save_pretrained(text_model := tmp_path)
    settings = {key: value for key, value in settings.items() if key != "text_model"}
    recipe = make_recipe(text_model_name_or_path=str(text_model), **settings)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_recipe(recipe)
    for stage in ("pretraining", "finetuning"):
        if any((getattr(recipe, stage) or {}).values()):
            assert stage_arguments(recipe, stage).ddp_find_unused_parameters
