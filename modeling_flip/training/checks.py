"""Checks of a recipe and its data, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, PreTrainedConfig
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import logging

from ..configuration_flip import FlipConfig, load_text_config
from ..ctr_models import CTR_MODELS
from ..fields import Field, did_you_mean, used
from ..modeling_p5 import check_has_decoder
from ..tabular_towers import TABULAR_TOWERS, create_tabular_tower
from ..text_tower import check_can_checkpoint
from .compatibility import OF_FLIP, check_in_parts, has_batch_norm
from .data import read_labels
from .hub import push_error
from .metrics import METRICS
from .recipe import (
    FREE_MODEL_KEYS,
    STAGE_DEFAULTS,
    Recipe,
    field_names,
    model_settings,
    needs_pretraining,
    needs_text,
    refits_now,
    stage_arguments,
    starts_from,
)
from .splits import SPLITS, SplitRows

logger = logging.get_logger(__name__)

# What to install for a value of report_to whose package has another name; as in docs/watching.md.
REPORTERS = {"mlflow": "mlflow-skinny sqlalchemy alembic"}
# Training arguments that come too late for a stage: the processes are connected when a run begins.
OF_CONNECTION = ("ddp_backend", "ddp_timeout")


def check_recipe(recipe: Recipe) -> None:
    """Raises ValueError if the recipe asks for something impossible."""
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
    if not 0 <= recipe.seed < 2**32:
        raise ValueError(f"seed is {recipe.seed}; it must be from 0 to {2**32 - 1}")
    if recipe.init_from is not None and recipe.pretrained_model_name_or_path is not None:
        raise ValueError(
            f"init_from is {recipe.init_from!r} and pretrained_model_name_or_path {recipe.pretrained_model_name_or_path!r}: name "
            "one of them, init_from to let the vocabulary grow"
        )
    check_connection(recipe)
    pretrains = recipe.pretraining is not None or starts_from(recipe) is not None
    if recipe.model_type != "flip" and pretrains:
        raise ValueError(
            f"pretraining aligns FLIP's two towers; model_type {recipe.model_type!r} has none: leave pretraining out"
        )
    if recipe.model_type != "flip" and recipe.towers != Recipe.towers:
        raise ValueError(
            f"towers is {recipe.towers!r}, but model_type {recipe.model_type!r} has no separate towers: leave towers out"
        )
    if recipe.model_type != "morec" and "freeze_text_tower" in recipe.model:
        raise ValueError(
            "model.freeze_text_tower works only with model_type morec; set finetuning.freeze_text_tower to freeze FLIP's text "
            "tower, or text_learning_rate to 0"
        )
    for key in ("max_train_samples", "max_eval_samples"):
        if (most := getattr(recipe, key)) is not None and most < 1:
            raise ValueError(f"{key} is {most}; it must be 1 or more; leave it out to use all rows")
    if recipe.on_bad_rows not in ("error", "skip"):
        raise ValueError(f"on_bad_rows is {recipe.on_bad_rows!r}; it must be error or skip")
    if recipe.num_proc is not None and recipe.num_proc < 1:
        raise ValueError(f"num_proc is {recipe.num_proc}; it must be 1 or more")
    settings = model_settings(recipe)
    try:
        config = FlipConfig(towers=recipe.towers, **settings)
    except StrictDataclassError as error:  # a value of another type
        raise ValueError(f"model: {' '.join(str(error).split())}") from error
    if recipe.calibration not in (None, "platt"):
        raise ValueError(f"calibration is {recipe.calibration!r}; it must be platt, or left out")
    if recipe.refit is not None:
        check_refit(recipe)
    if (rate := recipe.negative_sampling_rate) is not None and not 0 < rate <= 1:
        raise ValueError(
            f"negative_sampling_rate is {rate}; it is the share of the non-clicks that the log has kept: above 0, and at most 1"
        )
    if recipe.hub_strategy not in ("every_save", "end", "checkpoint"):
        raise ValueError(f"hub_strategy is {recipe.hub_strategy!r}; it must be one of every_save, end, checkpoint")
    if recipe.push_to_hub and recipe.license != Recipe.license:
        check_license(recipe.license)
    for stage in STAGE_DEFAULTS:
        arguments = stage_arguments(recipe, stage)
        for name in arguments.report_to or []:
            if name not in (known := get_available_reporting_integrations()):
                raise ValueError(
                    f"{stage}.report_to is {name!r}, which is not installed; installed are {', '.join(known) or 'none'}: pip "
                    f"install {REPORTERS.get(name, name)}, or leave it out"
                )
        best = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
        if stage == "finetuning" and arguments.load_best_model_at_end and best not in (known := known_metrics(recipe)):
            raise ValueError(
                f"finetuning.metric_for_best_model is {best!r}; it must be one of {', '.join(known)}{did_you_mean(best, known)}"
            )
    text_config = None
    if needs_text(recipe):
        text_model = recipe.text_model_name_or_path
        if text_model is None:
            raise ValueError(
                "text_model_name_or_path is missing: this recipe uses a text tower; name a Hub id or a folder"
            )
        try:
            text_config = load_text_config(text_model)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"text model {text_model!r} cannot be loaded: it is not a folder with a config.json, and loading it from the "
                f"Hub fails ({str(error).splitlines()[0]}); set --text_model_name_or_path to a Hub id or a folder that exists"
            ) from error
        FlipConfig(text_config=text_config, **settings)
        if recipe.model_type == "p5":
            check_has_decoder(text_config)
    if (pretrained := starts_from(recipe)) is not None:
        key = "pretrained_model_name_or_path" if recipe.init_from is None else "init_from"
        try:
            pretrained_config = FlipConfig.from_pretrained(pretrained)
        except OSError as error:
            raise ValueError(f"{key} {pretrained!r} does not exist; train it first") from error
        text_config = pretrained_config.text_config
        if Path(pretrained).is_dir() and not [*Path(pretrained).glob("*.safetensors")]:
            raise ValueError(f"{key} {pretrained!r} holds no weights (*.safetensors): train it first")
        if pretrained_config.towers not in ("both", recipe.towers):
            raise ValueError(
                f"towers is {recipe.towers!r}, but {pretrained} has only one, {pretrained_config.towers!r}; set towers to that, "
                "or name a checkpoint of both"
            )
        theirs = vars(pretrained_config) | (pretrained_config.tower_settings or {})
        ours = vars(config) | (config.tower_settings or {})
        for key in ("tabular_tower", *recipe.model):
            if key in ours and key not in FREE_MODEL_KEYS and ours[key] != theirs.get(key):
                raise ValueError(
                    f"{key} is {ours[key]!r}, but {pretrained} was trained with {theirs.get(key)!r}; use that, or train from the "
                    "beginning"
                )
    check_text_tower(recipe, text_config)
    for stage in STAGE_DEFAULTS:
        asked = [name for name in OF_FLIP if getattr(stage_arguments(recipe, stage), name)]
        if asked and (stage == "finetuning" or needs_pretraining(recipe)):
            with torch.device("meta"):
                tower = create_tabular_tower(FlipConfig(towers=recipe.towers, **settings, num_fields=3, num_features=9))
            takes = recipe.model_type == "flip" and (stage == "pretraining" or recipe.towers != "tabular")
            reads_table = stage == "pretraining" or recipe.towers != "text"
            check_in_parts(asked, takes, reads_table and has_batch_norm(tower))


def check_connection(recipe: Recipe) -> None:
    """Raises ValueError if a stage asks for another connection between the processes than the run has."""
    for stage in STAGE_DEFAULTS:
        for key in OF_CONNECTION:
            if (value := (getattr(recipe, stage) or {}).get(key)) is not None:
                raise ValueError(
                    f"{stage}.{key} is {value!r}, but the processes of a run are connected before its stages: by the backend of "
                    "their device, with a timeout of a day; leave it out"
                )


def check_text_tower(recipe: Recipe, text_config: PreTrainedConfig | None) -> None:
    """Raises ValueError if a stage asks something of its text tower that has none, or one that cannot."""
    towers = {"finetuning": recipe.towers if recipe.model_type == "flip" else "text"}
    if needs_pretraining(recipe):
        towers["pretraining"] = "both"
    for stage, trained in towers.items():
        arguments = stage_arguments(recipe, stage)
        has_text = trained != "tabular" and text_config is not None
        if arguments.gradient_checkpointing:
            with torch.device("meta"):
                check_can_checkpoint([AutoModel.from_config(text_config)] if has_text else [])
        if arguments.freeze_text_tower and (stage == "pretraining" or recipe.model_type != "flip" or not has_text):
            raise ValueError(
                f"{stage}.freeze_text_tower is true; it is for finetuning FLIP's text tower (with model_type morec, "
                "model.freeze_text_tower): leave it out, or set text_learning_rate to 0"
            )
        if arguments.lora is None:
            continue
        if not has_text:
            raise ValueError(f"{stage}.lora applies to the text tower, and this model has none: leave it out")
        if recipe.model.get("freeze_text_tower"):
            raise ValueError("lora trains the text tower, which model.freeze_text_tower freezes: leave out one of them")
        if recipe.push_to_hub and recipe.hub_strategy != "end":
            raise ValueError(
                f"hub_strategy is {recipe.hub_strategy!r}, but checkpoints saved while {stage}.lora trains do not hold the whole "
                "model: set hub_strategy to end"
            )


def check_refit(recipe: Recipe) -> None:
    """Raises ValueError if the recipe asks for a refit that cannot be."""
    if recipe.pretraining is not None and stage_arguments(recipe, "pretraining").load_best_model_at_end:
        raise ValueError(
            "refit pretrains on all rows for the full length of pretraining, so there are no validation rows to choose a best "
            "checkpoint with: leave out pretraining.load_best_model_at_end, or refit"
        )
    for stage in STAGE_DEFAULTS:
        if (getattr(recipe, stage) or {}).get("lr_scheduler_type") == "reduce_lr_on_plateau":
            raise ValueError(
                f"refit trains on the validation rows too, and {stage}.lr_scheduler_type reduce_lr_on_plateau needs them for "
                "itself: choose another, or leave refit out"
            )
    if not refits_now(recipe):
        return
    if recipe.refit is None or recipe.refit < 0:
        raise ValueError(f"refit is {recipe.refit}; it is true, or a number of epochs above 0")
    arguments = stage_arguments(recipe, "finetuning")
    if arguments.max_steps <= 0 and recipe.refit > arguments.num_train_epochs:
        raise ValueError(
            f"refit is {recipe.refit:g} epochs, and finetuning.num_train_epochs {arguments.num_train_epochs:g}: the learning "
            "rate schedule is of the latter; raise it, or lower refit"
        )
    if recipe.calibration is not None:
        raise ValueError(
            f"calibration is {recipe.calibration!r}, which needs validation rows, and with refit {recipe.refit:g} they are "
            "trained on: set refit to true, or leave calibration out"
        )


def known_metrics(recipe: Recipe) -> list[str]:
    """The metrics that validation computes for the recipe's model."""
    towers = ("", "tabular_", "text_") if recipe.model_type == "flip" and recipe.towers == "both" else ("",)
    return ["loss", *(f"{tower}{metric}" for tower in towers for metric in METRICS)]


def check_license(identifier: str) -> None:
    """Raises ValueError if the Hub does not know the license. If the Hub cannot be reached, the first push will check."""
    try:
        ModelCard(f"---\n{yaml.safe_dump({'license': identifier})}---\n").validate()
    except ValueError as error:
        raise ValueError(
            f"license is {identifier!r}, which the Hub does not accept ({' '.join(str(error).split())}); give one of the "
            "identifiers in https://huggingface.co/docs/hub/repositories-licenses"
        ) from error
    except Exception as error:  # each layer below has exceptions of its own
        logger.warning(f"the Hub does not say whether it knows license {identifier!r}: {push_error(error)}")


def check_data(tables: Mapping[str, pa.Table | SplitRows], recipe: Recipe) -> dict[str, np.ndarray]:
    """The clicks of each split, (N,) float32.

    Raises:
        ValueError: a split is absent or empty, a column is absent, or labels are not clicks, or all the same.
    """
    named, label = field_names(recipe), recipe.label_column
    if named is None and isinstance(recipe.fields, dict):
        named = list(recipe.fields)
    if label in (named or []):
        raise ValueError(f"fields hold the label column {label!r}: the model would read the answer")
    if label in (recipe.exclude_fields or []):
        raise ValueError(
            f"exclude_fields names the label column {label!r}, which is never read as a field: take it out"
        )
    for key in ("time_column", "group_column"):
        if getattr(recipe, key) == label:
            raise ValueError(f"{key} is the label column {label!r}: name another column, or leave it out")
    others = {
        "time_column": [recipe.time_column] if recipe.time_column and not set(SPLITS) <= set(tables) else [],
        "group_column": [recipe.group_column] if recipe.group_column else [],
        "item_fields": recipe.item_fields or [],
    }
    in_any = list(dict.fromkeys(name for table in tables.values() for name in table.column_names))
    for column in recipe.exclude_fields or []:  # a column that only some splits have may be excluded
        if column not in in_any:
            raise ValueError(
                f"column {column!r} is missing in every split (exclude_fields); the columns are {in_any}"
                + did_you_mean(column, in_any)
            )
    labels = {}
    needed = [split for split in SPLITS if split != "validation" or not refits_now(recipe)]
    for split in needed:
        if split not in tables:
            raise ValueError(f"split {split!r} is missing; the dataset has {', '.join(tables)}")
        columns = tables[split].column_names
        if label == Recipe.label_column and label not in in_any:
            raise ValueError(
                f"no column {label!r}: name the column of clicks with --label_column; the columns are {in_any}"
                + did_you_mean(label, in_any)
            )
        if len(tables[split]) == 0:
            raise ValueError(f"split {split!r} is empty; every one of {', '.join(needed)} needs rows")
        if set(columns) == {label}:
            raise ValueError(f"split {split!r} has no column but the label {label!r}: there is nothing to learn")
        for key, names in {"label_column": [label], "fields": named or [], **others}.items():
            for column in names:
                if column not in columns:
                    raise ValueError(
                        f"column {column!r} is missing in split {split!r} ({key}); its columns are {columns}"
                        + did_you_mean(column, columns)
                    )
        labels[split] = read_labels(
            tables[split][label], label, f"split {split!r}", recipe.positive_label, recipe.positive_above
        )
        if len(np.unique(labels[split])) == 1:
            raise ValueError(
                f"every label of split {split!r} is {labels[split][0]:.0f} (column {label!r}); clicks and non-clicks are both "
                "needed, to learn and for AUC"
            )
    return labels


def check_columns(tables: Mapping[str, pa.Table | SplitRows], schema: Sequence[Field]) -> None:
    """Raises ValueError if a field of the training rows is missing in another split."""
    for split in tables:
        columns = tables[split].column_names
        for field in used(schema):
            if field.name not in columns:
                raise ValueError(
                    f"column {field.name!r} is missing in split {split!r}, but not in split 'train'; its columns are {columns}"
                    f"{did_you_mean(field.name, columns)}: add it there, or leave it out with exclude_fields"
                )


def item_fields(recipe: Recipe, schema: Sequence[Field]) -> list[str]:
    """The fields that describe the item: those that the recipe names, or those of that side.

    Raises:
        ValueError: the model keeps users and items apart, and none is named, or all are, or one that is no field.
    """
    fields = [field.name for field in used(schema)]
    named = recipe.item_fields or [field.name for field in used(schema) if field.side == "item"]
    if strangers := [name for name in named if name not in fields]:
        left_out = {
            field.name: f"{field.name!r} is left out: {field.reason}" for field in schema if field.kind == "ignored"
        }
        reasons = "; ".join(left_out[name] for name in strangers if name in left_out)
        raise ValueError(
            f"item_fields names {strangers}, which are not among the fields {fields}"
            + (f" ({reasons})" if reasons else "")
        )
    if recipe.model_type in ("ctr_bert", "morec") and not named:
        raise ValueError(
            f"{recipe.model_type} keeps users and items apart, but no field is marked as the item's: name those with "
            "item_fields"
        )
    if named and set(named) == set(fields):
        raise ValueError(f"item_fields names all fields ({', '.join(fields)}); leave at least one for the user")
    return named
