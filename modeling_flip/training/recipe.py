"""Recipes: what a run should do.

A recipe is one YAML file: shared keys, and a section of training arguments for each stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from ..configuration_flip import NEVER_SHARED, FlipConfig, flat_settings
from ..tabular_towers import setting_names, tower_settings
from .arguments import FlipTrainingArguments

# Where a run is pushed. Runs that differ only in these are the same run.
HUB_KEYS = ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision", "license")
# The keys of a recipe's section `model` that belong to FlipConfig; the others are settings of the tower.
MODEL_KEYS = [
    name
    for name in (*FlipConfig.__annotations__, "freeze_text_tower")
    if name
    not in (
        *("text_config", "towers", "tabular_tower", "tower_settings", "item_fields", "list_fields", "text_fields"),
        *("num_features", "num_fields", "logit_scale", "logit_shift", "sampling_shift"),
        *("vocabulary_fingerprint", "tokenizer_fingerprint", "format_version", "remote_classes"),
    )
]
DEEPEST = 20  # levels of nested sections and lists in a recipe
# Settings in which finetuning may differ from pretraining: pretrained weights stay valid.
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
        "early_stopping_patience": 2,
        "restore_callback_states_from_checkpoint": True,  # so that early stopping resumes its count
        "logging_steps": 50,
    },
}


@dataclass
class Recipe:
    """The keys that both stages share.

    Args:
        dataset_name: the data: demo, movielens-1m, movielens-100k, bookcrossing, goodreads, the id of a dataset on the Hub, a
            file or folder of CSV, TSV, JSON lines or Parquet, or a folder written by save_to_disk.
        output_dir: the folder for the model, its processor and all_results.json.
        raw_dir: the folder with the raw files of MovieLens, BookCrossing or GoodReads. By default they are downloaded.
        label_column: the column of clicks, 0 and 1 or booleans. For other values set positive_label or positive_above.
        positive_label: the label that means a click, such as yes. All other labels mean no click.
        positive_above: labels are ratings, and a rating above this number means a click.
        time_column: split the rows by time. The last tenth is the test set, the last tenth of the rest the validation set. By
            default rows are drawn at random, unless the splits are given.
        group_column: also compute gAUC, the AUC within the rows of each group, such as a user.
        calibration: platt scales and shifts the finetuned model's logits so that its probabilities fit the validation rows.
        refit: true trains again on training and validation rows together, from the beginning, once validation has chosen the
            epoch: the model is then of nine tenths of the rows, not of eight. A number instead trains on these rows for so many
            epochs without choosing.
        negative_sampling_rate: the share of non-clicks that the log has kept, such as 0.1. Probabilities, logloss, NE and ECE are
            then corrected to those of the whole log.
        fields: the columns to use, in the order of the sentence: names, or mappings such as {name: price, kind: numeric}. What is
            left out is inferred from the training rows. A mapping from names to settings, such as {price: {kind: numeric}},
            changes single columns and keeps the others. By default all columns are used except those that give the label away
            or cannot be learned from.
        exclude_fields: columns to leave out.
        item_fields: the fields that describe the item; the others describe the user. Used by ctr_bert and morec. By default the
            fields with side item.
        delimiter: the character between the cells of a CSV. By default it is detected.
        encoding: the encoding of text files. By default it is detected.
        on_bad_rows: error, or skip to leave out rows that cannot be read, which are counted and listed.
        model_type: flip (FLIP and its towers, ID models, PTab, CTRL), ctr_bert, morec or p5.
        text_model_name_or_path: the language model to use as text tower, a Hub id or a folder.
        pretrained_model_name_or_path: a pretraining checkpoint to finetune, instead of pretraining.
        init_from: a checkpoint to go on from with new rows. Its vocabulary grows: known values keep their embeddings, and new
            ones start from what its text tower predicts for their words. There is no pretraining.
        tabular_tower: the tabular tower (afm, pnn, wide_deep, dcn, deepfm, xdeepfm, afn, autoint, dcnv2 or dcn_mix).
        towers: what to finetune: both (FLIP), tabular (FLIP_ID, or without pretraining an ID model from scratch) or text
            (FLIP_PLM).
        seed: seed of the weights, the order of the rows, the masks and the noise.
        max_train_samples: use only this many training rows (by time, the last).
        max_eval_samples: during training, evaluate on only this many validation rows, drawn at random. At the end all are scored.
        min_count: values that occur less often than this share the unknown feature of their field.
        max_length: the longest sentence, in tokens; the rest is cut off. By default the tokenizer's limit, at most 512.
        streaming: read a dataset of the Hub over the network instead of storing its files. Only the encoded rows are stored.
        cache_dir: the folder for encoded rows, which later runs on the same data open instead of reading it again. By default
            modeling_flip in the cache of Hugging Face (HF_HOME).
        num_proc: how many threads read the rows. By default one for each core, at most 4.
        use_cpu: train on the CPU, even if there is a GPU.
        push_to_hub: push the model, its processor, its card and the recipe to the Hub, during training and at the end.
        hub_model_id: the repo to push to, such as me/my-model. By default the name of output_dir.
        hub_strategy: when to push: every_save (at each checkpoint; the repo shows the best one so far), end, or checkpoint (like
            every_save, and the state of the training too, so that the same command can continue on another machine).
        hub_private_repo: create the repo as a private one.
        hub_revision: the branch to push to.
        license: the license of the model, one of the Hub's identifiers.
        model: settings of FlipConfig and of the tabular tower.
        pretraining: training arguments of the pretraining stage. Without this section, or with null, there is no pretraining.
        finetuning: training arguments of the finetuning stage.
    """

    dataset_name: str
    output_dir: str
    raw_dir: str | None = None
    label_column: str = "label"
    positive_label: str | None = None
    positive_above: float | None = None
    time_column: str | None = None
    group_column: str | None = None
    calibration: str | None = None
    refit: bool | float | None = None
    negative_sampling_rate: float | None = None
    fields: list[str | dict[str, Any]] | dict[str, dict[str, Any]] | None = None
    exclude_fields: list[str] | None = None
    item_fields: list[str] | None = None
    delimiter: str | None = None
    encoding: str | None = None
    on_bad_rows: str = "error"
    model_type: str = "flip"
    text_model_name_or_path: str | None = None
    pretrained_model_name_or_path: str | None = None
    init_from: str | None = None
    tabular_tower: str = "dcnv2"
    towers: str = "both"
    seed: int = 42
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    min_count: int = 1
    max_length: int | None = None
    streaming: bool = False
    cache_dir: str | None = None
    num_proc: int | None = None
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
        self.refit = self.refit or None

    def to_dict(self) -> dict[str, Any]:
        """The keys that differ from the defaults, as in the YAML."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        defaults = {f.name: f.default for f in fields(self) if f.name in (*HUB_KEYS, "on_bad_rows")}
        return {k: v for k, v in given.items() if v not in (None, {}) and not (k in defaults and v == defaults[k])}

    def to_yaml(self) -> str:
        return to_yaml(self.to_dict())


# ---- YAML from untrusted sources


def to_yaml(recipe: Mapping[str, Any]) -> str:
    """A recipe as `read_yaml` reads it, without aliases."""
    return yaml.dump(dict(recipe), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


def read_yaml(text: str) -> Any:
    """`yaml.safe_load` with the checks of `check_yaml`; raises yaml.YAMLError."""
    check_yaml(text)
    return yaml.safe_load(text)


def check_yaml(text: str) -> None:
    """Raises yaml.YAMLError if a text is not YAML, is nested too deep, or has aliases, with which a few lines can fill any
    memory."""
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        line = event.start_mark.line + 1 if event.start_mark else "?"
        if isinstance(event, yaml.AliasEvent):
            name = (event.anchor or "")[:40]
            raise yaml.YAMLError(f"alias *{name} in line {line}: recipes may not use aliases; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"line {line} is nested more than {DEEPEST} levels deep; recipes may not be")


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def quote_breaks(self, text: str) -> yaml.ScalarNode:
        """PyYAML writes Unicode's line breaks as they are, and reads them as others."""
        style = '"' if set(text) & {"\x85", "\u2028", "\u2029"} else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_PlainDumper.add_representer(str, _PlainDumper.quote_breaks)


# ---- what it asks for


def model_settings(recipe: Recipe) -> dict[str, Any]:
    """Its section `model` as FlipConfig takes it, with the tower's name, and the settings of the tower apart.

    Raises:
        ValueError: a setting is not the tower's, or cannot be.
    """
    # FlipConfig assigns the flat ones to their tower.
    flat = flat_settings(recipe.model.keys() - NEVER_SHARED - set(setting_names(recipe.tabular_tower)))
    own = {key: value for key, value in recipe.model.items() if key not in (*MODEL_KEYS, *flat)}
    tower_settings(recipe.tabular_tower, own)
    settings = {key: value for key, value in recipe.model.items() if key not in own}
    return {"tabular_tower": recipe.tabular_tower, "tower_settings": own, **settings}


def field_names(recipe: Recipe) -> list[str] | None:
    """The columns that `fields` chooses; None where it chooses none."""
    if not isinstance(recipe.fields, list):
        return None
    return [declared if isinstance(declared, str) else str(declared.get("name")) for declared in recipe.fields]


def hub_repo(recipe: Recipe) -> str:
    return recipe.hub_model_id or Path(recipe.output_dir).absolute().name


def needs_pretraining(recipe: Recipe) -> bool:
    return recipe.pretraining is not None and starts_from(recipe) is None


def refits_now(recipe: Recipe) -> bool:
    """Whether it trains on the validation rows too, for a number of epochs that is known."""
    return recipe.refit is not None and recipe.refit is not True


def starts_from(recipe: Recipe) -> str | None:
    """The checkpoint that finetuning starts from, where the recipe names one."""
    return recipe.init_from or recipe.pretrained_model_name_or_path


def needs_text(recipe: Recipe) -> bool:
    """Whether a text tower must be loaded from outside."""
    return starts_from(recipe) is None and (
        recipe.towers != "tabular" or recipe.pretraining is not None or recipe.model_type != "flip"
    )


def uses_cpu(recipe: Recipe) -> bool:
    """Trainer allows bf16 on a machine without an accelerator only where the CPU is asked for; so it is, there."""
    return recipe.use_cpu or not torch.accelerator.is_available()


def stage_arguments(recipe: Recipe, stage: str) -> FlipTrainingArguments:
    """Of optimisation alone: where the run is pushed to is the publisher's.

    Raises:
        ValueError: they cannot be, or not together.
    """
    given = (
        {"run_name": f"{Path(recipe.output_dir).name}-{stage}"} | STAGE_DEFAULTS[stage] | (getattr(recipe, stage) or {})
    )
    if (best := given.get("metric_for_best_model")) is not None:
        given.setdefault("greater_is_better", str(best).endswith("auc"))
    if given.get("lr_scheduler_type") == "reduce_lr_on_plateau":
        mode = "max" if given.get("greater_is_better") else "min"
        given["lr_scheduler_kwargs"] = {"mode": mode} | (given.get("lr_scheduler_kwargs") or {})
    if refits_now(recipe):
        given |= {"eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": None}
        if stage == "finetuning":
            given["stop_after_epochs"] = recipe.refit
    try:
        return FlipTrainingArguments(
            output_dir=str(Path(recipe.output_dir) / "checkpoints" / stage),
            seed=recipe.seed,
            use_cpu=uses_cpu(recipe),
            **given,
        )
    except (ValueError, TypeError, ImportError) as error:  # as transformers says it: in lines, and of no section
        raise ValueError(f"{stage}: {' '.join(str(error).split())}") from error
