"""Recipes: what train.py reads, and what can be wrong with one.

A recipe is one YAML file: shared keys, and a section of training arguments for each stage.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import datasets
import jsonargparse
import numpy as np
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoConfig
from transformers.utils import logging

from .configuration_flip import FlipConfig, flat_settings
from .ctr_models import CTR_MODELS
from .feature_vocabulary import did_you_mean
from .hub import push_error
from .modeling_morec import MoRecConfig
from .modeling_p5 import check_has_decoder
from .processing_flip import read_labels
from .tabular_towers import TABULAR_TOWERS, setting_names, tower_settings
from .trainer_flip import FlipTrainingArguments

logger = logging.get_logger(__name__)

SPLITS = ("train", "validation", "test")
# Where a run is pushed to; another place is no other run.
HUB_KEYS = ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision", "license")
# Those of a recipe's section `model` that are FlipConfig's; beside them stand the settings of the tower.
MODEL_KEYS = [
    name
    for name in (*FlipConfig.__annotations__, "freeze_text_tower")
    if name
    not in (
        *("text_config", "towers", "tabular_tower", "tower_settings", "item_fields", "list_fields"),
        *("num_features", "num_fields"),
        *("vocabulary_fingerprint", "format_version", "remote_classes"),
    )
]
# What finetuning may set otherwise than pretraining: it changes no weights.
FREE_MODEL_KEYS = ("dropout", "embedding_l2", "text_pooling")
# Where TrainingArguments' own defaults do not suit click logs. A recipe overrides them like any other.
STAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "pretraining": {"save_strategy": "epoch", "save_total_limit": 1, "logging_steps": 50},
    "finetuning": {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "auc",
        "greater_is_better": True,
        "early_stopping_patience": 2,
        "restore_callback_states_from_checkpoint": True,  # a resumed run is as patient as an uninterrupted one
        "logging_steps": 50,
    },
}
# Training arguments that --help names; the others work all the same.
SHOWN = {
    "num_train_epochs": "passes over the training rows",
    "max_steps": "stop after so many steps instead",
    "per_device_train_batch_size": "rows per step and device",
    "gradient_accumulation_steps": "batches per step",
    "learning_rate": "of everything but the text tower",
    "text_learning_rate": "of the text tower; by default the same",
    "lr_scheduler_type": "linear, cosine, constant, …",
    "warmup_steps": "steps, or below 1 a share of all steps",
    "weight_decay": "AdamW's, also of feature embeddings",
    "max_grad_norm": "gradients are clipped to it",
    "bf16": "compute in bfloat16 where it is safe",
    "float32_matmul_precision": "highest, high (TF32 on a GPU) or medium (bf16 products, on CPUs that have them)",
    "train_sampling_strategy": "group_by_length (sentences of like length share a batch) or random",
    "logging_steps": "steps between lines of the log",
    "eval_steps": "steps between evaluations, with eval_strategy steps",
    "early_stopping_patience": "evaluations without a better validation AUC before training stops",
    "text_mask_ratio": "share of fields masked in the text",
    "tabular_mask_ratio": "share of fields masked in the table",
    "num_noise_features": "K, noise features drawn per masked field for MTM",
    "text_masking": "field, or token for the ablation",
}
PRETRAINING_ONLY = {"text_mask_ratio", "tabular_mask_ratio", "num_noise_features", "text_masking"}
FINETUNING_ONLY = {"early_stopping_patience"}


@dataclass
class Recipe:
    """The keys that both stages share.

    Args:
        dataset_name: demo, movielens-1m, movielens-100k, a Hub dataset id, or a CSV or Parquet file or folder.
        output_dir: where the model, its processor and all_results.json go.
        raw_dir: folder with the raw files of a movielens dataset; without it they are downloaded.
        label_column: the column of clicks, 0 or 1.
        fields: the columns to use, in the order of the sentence; by default all but the label.
        item_fields: those that describe the item; the others are the user's. By default what the dataset says of itself;
            read by ctr_bert and morec.
        model_type: flip (FLIP and its towers, ID models, PTab, CTRL), ctr_bert, morec or p5.
        text_model_name_or_path: the text tower, a Hub id or a folder.
        pretrained_model_name_or_path: a pretraining checkpoint to finetune from, instead of the pretraining stage.
        tabular_tower: the ID model (afm, pnn, wide_deep, dcn, deepfm, xdeepfm, afn, autoint, dcnv2 or dcn_mix).
        towers: what is finetuned: both (FLIP), tabular (FLIP_ID; without pretraining, the ID model from scratch) or text.
        seed: of weights, order, masks and noise.
        max_train_samples: use only the first so many training rows.
        min_count: values seen less often share their field's unknown feature.
        max_length: sentences are cut to this many tokens; by default the tokenizer's limit, at most 512.
        use_cpu: train on the CPU even where there is an accelerator.
        push_to_hub: push model, processor, card and recipe to the Hub, while training and at the end.
        hub_model_id: the repo, such as me/my-model; by default the name of output_dir, in your own namespace.
        hub_strategy: every_save (each saved checkpoint; the best so far is what the repo shows), end, or checkpoint: as
            every_save, with the state of the training, so that the same command goes on from the Hub on another machine.
        hub_private_repo: make the repo private, if it has to be created.
        hub_revision: the branch to push to.
        license: of the model, for its card; one of the Hub's identifiers.
        model: settings of FlipConfig, and of the tabular tower.
        pretraining: training arguments of the alignment stage; without any there is none.
        finetuning: training arguments of the click prediction stage.
    """

    dataset_name: str
    output_dir: str
    raw_dir: str | None = None
    label_column: str = "label"
    fields: list[str] | None = None
    item_fields: list[str] | None = None
    model_type: str = "flip"
    text_model_name_or_path: str | None = None
    pretrained_model_name_or_path: str | None = None
    tabular_tower: str = "dcnv2"
    towers: str = "both"
    seed: int = 42
    max_train_samples: int | None = None
    min_count: int = 1
    max_length: int | None = None
    use_cpu: bool = False
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_strategy: str = "every_save"
    hub_private_repo: bool | None = None
    hub_revision: str | None = None
    license: str = "unknown"
    model: dict[str, Any] = field(default_factory=dict)
    pretraining: dict[str, Any] | None = None
    finetuning: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.output_dir = str(Path(self.output_dir))  # "out/" is "out"

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as it would stand in the YAML."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        defaults = {f.name: f.default for f in fields(self) if f.name in HUB_KEYS}
        return {k: v for k, v in given.items() if v not in (None, {}) and not (k in defaults and v == defaults[k])}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


# ---- reading a recipe


class RecipeParser(jsonargparse.ArgumentParser):
    """jsonargparse, with errors in one line that name the nearest right key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(ex or message).split())
        known = [key for key in self.get_defaults().keys(branches=True) if key != "recipe"]
        nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
        wrong = re.search(r"(?i:option .|unrecognized arguments: --)([\w.]+)", text)
        key = ".".join(nested.groups()) if nested else wrong.group(1) if wrong else None
        if key is not None:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            text = f"no such key: {key}" + (f"; did you mean {near[0]}?" if near else "") + " (--help lists the keys)"
        self.exit(2, f"train.py: error: {text}\n")


def recipe_parser() -> RecipeParser:
    parser = RecipeParser(
        prog="train.py",
        usage="accelerate launch train.py RECIPE.yaml [--key value] [--section.key value] ...",
        description="Train FLIP, or one of its towers, as a recipe says; any key of the recipe can be given here too.",
        epilog="Any other field of transformers.TrainingArguments works in either section.",
        formatter_class=argparse.HelpFormatter,
        allow_abbrev=False,
        exit_on_error=True,
    )
    parser.add_argument("--recipe", action="config", help="the YAML file; may be written first, without --recipe")
    parser.add_class_arguments(
        Recipe, as_group=False, skip={"use_cpu", "push_to_hub", "model", "pretraining", "finetuning"}
    )
    parser.add_argument("--use_cpu", action=jsonargparse.ActionYesNo, help="train on the CPU even where there is a GPU")
    parser.add_argument(
        "--push_to_hub", action=jsonargparse.ActionYesNo, help="push to the Hub, while training and at the end"
    )
    parser.add_class_arguments(MoRecConfig, "model", skip={f.name for f in fields(MoRecConfig)} - set(MODEL_KEYS))
    added: set[str] = set()
    for name, tower in TABULAR_TOWERS.items():  # towers may share a setting
        (parser.groups or {})["model"].add_class_arguments(
            tower.settings_class, "model", as_group=False, skip=set(added)
        )
        added |= set(setting_names(name))
    for stage in STAGE_DEFAULTS:
        others = PRETRAINING_ONLY if stage == "finetuning" else FINETUNING_ONLY
        skip = {"output_dir", "seed", "data_seed", "use_cpu"} | others
        skip |= {f.name for f in fields(FlipTrainingArguments) if "hub_" in f.name or f.name == "push_to_hub"}
        parser.add_class_arguments(FlipTrainingArguments, stage, skip=skip)
    titles = {
        "model": "the model",
        "pretraining": "pretraining (alignment)",
        "finetuning": "finetuning (click prediction)",
    }
    for section, title in titles.items():
        (parser.groups or {})[section].title = title
    for action in parser._actions:
        section, _, name = action.dest.partition(".")
        if section in titles and not name:
            action.help = argparse.SUPPRESS
        elif section in STAGE_DEFAULTS:
            action.help = SHOWN.get(name, argparse.SUPPRESS)
        elif section == "print_config":
            action.help = argparse.SUPPRESS
        default = STAGE_DEFAULTS.get(section, {}).get(name, action.default)
        if (
            action.help != argparse.SUPPRESS
            and default not in (None, argparse.SUPPRESS)
            and action.option_strings[0] != "-h"
        ):
            action.help = f"{action.help or ''} (default: {getattr(default, 'value', default)})".strip()
        action.option_strings = [option for option in action.option_strings if not option.endswith("+")]
        kind = str(getattr(action, "_typehint", ""))
        kinds = {"list": "[A, B]", "bool": "true|false", "float": "NUMBER", "int": "N", "str": "TEXT"}
        action.metavar = next((shown for word, shown in kinds.items() if word in kind), "VALUE")
    return parser


def parse_recipe(arguments: Sequence[str]) -> Recipe:
    """`[RECIPE.yaml] [--key value …]` → the recipe. Prints one line and exits with 2 where a key or value is wrong."""
    arguments = list(arguments)
    parser = recipe_parser()
    if arguments and not arguments[0].startswith("-"):
        if not Path(arguments[0]).is_file():
            parser.error(f"recipe {arguments[0]} does not exist; recipes are in configuration/")
        arguments.insert(0, "--recipe")
    given = parser.parse_args(arguments, defaults=False).as_dict()
    given.pop("recipe", None)
    return Recipe(**given)


# ---- what it asks for


def model_settings(recipe: Recipe) -> dict[str, Any]:
    """Its section `model` as FlipConfig takes it, with the tower's name, and the settings of the tower apart.

    Raises:
        ValueError: a setting is not the tower's, or cannot be.
    """
    flat = flat_settings(
        set(recipe.model) - set(setting_names(recipe.tabular_tower))
    )  # FlipConfig knows whose they are
    own = {key: value for key, value in recipe.model.items() if key not in (*MODEL_KEYS, *flat)}
    tower_settings(recipe.tabular_tower, own)
    settings = {key: value for key, value in recipe.model.items() if key not in own}
    return {"tabular_tower": recipe.tabular_tower, "tower_settings": own, **settings}


def hub_repo(recipe: Recipe) -> str:
    return recipe.hub_model_id or Path(recipe.output_dir).absolute().name


def check_recipe(recipe: Recipe) -> None:
    """Raises ValueError where the recipe asks for something that cannot be."""
    if recipe.tabular_tower not in TABULAR_TOWERS:
        raise ValueError(
            f"tabular_tower is {recipe.tabular_tower!r}; it must be one of {', '.join(TABULAR_TOWERS)}"
            + did_you_mean(recipe.tabular_tower, TABULAR_TOWERS)
        )
    if recipe.model_type not in CTR_MODELS:
        raise ValueError(
            f"model_type is {recipe.model_type!r}; it must be one of {', '.join(CTR_MODELS)}"
            + did_you_mean(recipe.model_type, CTR_MODELS)
        )
    pretrains = recipe.pretraining is not None or recipe.pretrained_model_name_or_path is not None
    if recipe.model_type != "flip" and pretrains:
        raise ValueError(
            f"pretraining aligns FLIP's two towers; model_type {recipe.model_type!r} has none: leave it out"
        )
    if recipe.model_type != "flip" and recipe.towers != Recipe.towers:
        raise ValueError(
            f"towers is {recipe.towers!r}, but model_type {recipe.model_type!r} is whole: leave towers out"
        )
    if recipe.model_type != "morec" and "freeze_text_tower" in recipe.model:
        raise ValueError(
            "freeze_text_tower is morec's; to hold another text tower still, set its text_learning_rate to 0"
        )
    settings = model_settings(recipe)
    config = FlipConfig(towers=recipe.towers, **settings)
    if recipe.hub_strategy not in ("every_save", "end", "checkpoint"):
        raise ValueError(f"hub_strategy is {recipe.hub_strategy!r}; it must be one of every_save, end, checkpoint")
    if recipe.push_to_hub and recipe.license != Recipe.license:
        check_license(recipe.license)
    for stage in STAGE_DEFAULTS:
        stage_arguments(recipe, stage)
    if needs_text(recipe):
        text_model = recipe.text_model_name_or_path
        if text_model is None:
            raise ValueError(
                "text_model_name_or_path is missing: this recipe uses a text tower; name a Hub id or a folder"
            )
        try:
            text_config = AutoConfig.from_pretrained(text_model)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"text model {text_model!r} cannot be loaded: it is no folder with a config.json, and the Hub does not give "
                f"it ({str(error).splitlines()[0]}); set --text_model_name_or_path to a Hub id or a folder that exists"
            ) from error
        FlipConfig(text_config=text_config, **settings)
        if recipe.model_type == "p5":
            check_has_decoder(text_config)
    if (pretrained := recipe.pretrained_model_name_or_path) is not None:
        try:
            pretrained_config = FlipConfig.from_pretrained(pretrained)
        except OSError as error:
            raise ValueError(f"pretrained_model_name_or_path {pretrained!r} does not exist; pretrain first") from error
        theirs = vars(pretrained_config) | (pretrained_config.tower_settings or {})
        ours = vars(config) | (config.tower_settings or {})
        for key in ("tabular_tower", *recipe.model):
            if key in ours and key not in FREE_MODEL_KEYS and ours[key] != theirs.get(key):
                raise ValueError(
                    f"{key} is {ours[key]!r}, but {pretrained} was pretrained with {theirs.get(key)!r}; "
                    "take that, or pretrain anew"
                )


def check_license(identifier: str) -> None:
    """Raises ValueError where the Hub knows no such license; where it cannot be reached, the first push will ask."""
    try:
        ModelCard(f"---\n{yaml.safe_dump({'license': identifier})}---\n").validate()
    except ValueError as error:
        raise ValueError(
            f"license is {identifier!r}, which the Hub does not take ({' '.join(str(error).split())}); give one of the "
            "identifiers in https://huggingface.co/docs/hub/repositories-licenses"
        ) from error
    except Exception as error:  # each layer below has exceptions of its own
        logger.warning(f"the Hub does not say whether it knows license {identifier!r}: {push_error(error)}")


def needs_pretraining(recipe: Recipe) -> bool:
    return recipe.pretraining is not None and recipe.pretrained_model_name_or_path is None


def needs_text(recipe: Recipe) -> bool:
    """Whether a text tower must be loaded from outside."""
    return recipe.pretrained_model_name_or_path is None and (
        recipe.towers != "tabular" or recipe.pretraining is not None or recipe.model_type != "flip"
    )


def check_data(data: datasets.DatasetDict, recipe: Recipe) -> None:
    """Raises ValueError where a split is absent or empty, a column is absent, or labels are not clicks."""
    if recipe.model_type in ("ctr_bert", "morec") and not recipe.item_fields:
        raise ValueError(
            f"{recipe.model_type} keeps users and items apart, and the dataset does not say which fields are the item's: name "
            "them with item_fields"
        )
    for split in SPLITS:
        if split not in data:
            raise ValueError(f"split {split!r} is missing; the dataset has {', '.join(data)}")
        if len(data[split]) == 0:
            raise ValueError(f"split {split!r} is empty; every one of {', '.join(SPLITS)} needs rows")
        columns = data[split].column_names
        if recipe.label_column in (recipe.fields or []):
            raise ValueError(f"fields hold the label column {recipe.label_column!r}: the model would read the answer")
        if set(columns) == {recipe.label_column}:
            raise ValueError(
                f"split {split!r} has no column but the label {recipe.label_column!r}: there is nothing to learn"
            )
        for column in [recipe.label_column, *(recipe.fields or []), *(recipe.item_fields or [])]:
            if column not in columns:
                raise ValueError(
                    f"column {column!r} is missing in split {split!r}; its columns are {columns}"
                    + did_you_mean(column, columns)
                )
        labels = read_labels(data[split], recipe.label_column, f"split {split!r}")
        if len(np.unique(labels)) == 1:
            raise ValueError(
                f"every label of split {split!r} is {labels[0]:.0f}; clicks and non-clicks are both needed, to learn and for AUC"
            )

    used = recipe.fields or [name for name in data["train"].column_names if name != recipe.label_column]
    if strangers := sorted(set(recipe.item_fields or []) - set(used)):
        raise ValueError(f"item_fields names {strangers}, which are not among the fields {used}")
    if recipe.item_fields and set(used) == set(recipe.item_fields):
        raise ValueError(f"item_fields names all fields ({', '.join(used)}): none is left for the user")


def uses_cpu(recipe: Recipe) -> bool:
    """Trainer allows bf16 on a machine without an accelerator only where the CPU is asked for; so it is, there."""
    return recipe.use_cpu or not torch.accelerator.is_available()


def stage_arguments(recipe: Recipe, stage: str) -> FlipTrainingArguments:
    given = STAGE_DEFAULTS[stage] | (getattr(recipe, stage) or {})
    return FlipTrainingArguments(
        output_dir=str(Path(recipe.output_dir) / "checkpoints" / stage),
        seed=recipe.seed,
        use_cpu=uses_cpu(recipe),
        push_to_hub=recipe.push_to_hub,
        hub_model_id=hub_repo(recipe),
        hub_strategy=recipe.hub_strategy,
        hub_private_repo=recipe.hub_private_repo,
        hub_revision=recipe.hub_revision,
        hub_subfolder="pretraining" if stage == "pretraining" else "",
        **given,
    )
