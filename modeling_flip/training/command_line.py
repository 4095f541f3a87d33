"""Recipes as train.py is given them: a YAML file, and keys on the command line."""

from __future__ import annotations

import argparse
import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn

import jsonargparse
import yaml

from ..modeling_morec import MoRecConfig
from ..tabular_towers import TABULAR_TOWERS, setting_names
from .arguments import LEARNING_RATE, TEXT_LEARNING_RATE, FlipTrainingArguments
from .recipe import MODEL_KEYS, STAGE_DEFAULTS, Recipe, check_yaml

# Training arguments that --help shows; the others work too.
SHOWN = {
    "num_train_epochs": "passes over the training rows",
    "max_steps": "stop after this many steps",
    "per_device_train_batch_size": "rows per step on each device",
    "gradient_accumulation_steps": "batches per step",
    "learning_rate": f"for everything except the text tower (default: {LEARNING_RATE})",
    "text_learning_rate": f"for the text tower (default: {TEXT_LEARNING_RATE}, or learning_rate if that is set)",
    "lr_scheduler_type": "linear, cosine, constant, …",
    "warmup_steps": "number of steps; below 1, the share of all steps",
    "weight_decay": "weight decay of AdamW, for feature embeddings too",
    "max_grad_norm": "clip gradients to this norm",
    "bf16": "compute in bfloat16 where that is safe",
    "float32_matmul_precision": "highest, high (TF32 on a GPU) or medium (bf16 products, on CPUs that have them)",
    "train_sampling_strategy": "group_by_length (sentences of similar length share a batch) or random",
    "logging_steps": "number of steps between two logs",
    "eval_steps": "number of steps between two evaluations, with eval_strategy steps",
    "early_stopping_patience": "stop after this many evaluations without a better validation AUC",
    "text_mask_ratio": "share of fields to mask in the sentence",
    "tabular_mask_ratio": "share of fields to mask in the table",
    "num_noise_features": "K, the noise features for each masked field in MTM",
    "text_masking": "field masks whole fields; token masks random tokens, as BERT (PTab, and the ablation)",
}
PRETRAINING_ONLY = {"text_mask_ratio", "tabular_mask_ratio", "num_noise_features", "text_masking"}
DRY_RUN, TUNE = "--dry_run", "--tune"  # belong to the command, not to the recipe
OUR_MODULES = ("modeling_flip", "data_scripts", "train", "__main__")
FINETUNING_ONLY = {"early_stopping_patience"}
OF_THE_REFIT = {"stop_after_epochs"}


def load_yaml(text: str) -> Any:
    check_yaml(text)
    loaded = LOAD_YAML(text)
    if isinstance(loaded, dict) and loaded.get("pretraining") == {}:  # jsonargparse would leave it out without a word
        raise yaml.YAMLError(
            "pretraining is {}: write its keys below it, such as num_train_epochs: 30, or leave it out"
        )
    return loaded


LOAD_YAML = jsonargparse.get_loader("yaml")
jsonargparse.set_loader("recipe", load_yaml, (yaml.YAMLError,))


class RecipeParser(jsonargparse.ArgumentParser):
    """jsonargparse, with errors in one line that name the nearest right key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(ex or message).split())
        known = [key for key in self.get_defaults().keys(branches=True) if key != "recipe"]
        known += [DRY_RUN[2:], TUNE[2:]]
        nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
        wrong = re.search(r"(?i:option .|unrecognized arguments: --)([\w.-]+)", text)
        key = ".".join(nested.groups()) if nested else wrong.group(1) if wrong else None
        if key is not None:
            # batch_size is meant for finetuning.per_device_train_batch_size
            ends = [
                name for name in known if name.startswith("finetuning.") and re.search(rf"[._]{re.escape(key)}$", name)
            ]
            ends.sort(key=lambda name: ("train" not in name, len(name)))
            near = ends or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            text = f"no such key: {key}" + (f"; did you mean {near[0]}?" if near else "") + " (--help lists the keys)"
        unquoted = re.search(
            r"""Parser key "([\w.]+)".*Expected a <class 'str'>.* value: (True|False|[-+.\de]+)$""", text
        )
        if unquoted is not None:
            key, value = unquoted.groups()
            quoted = {"True": "yes", "False": "no"}.get(value, value)
            text = (
                f"{key} is {value}, and must be text: YAML takes yes, no and numbers for something else unless they are "
                f"quoted, as in {key}: '{quoted}'"
            )
        if text.startswith("Value not boolean"):
            text += " use_cpu and push_to_hub are true or false"
        self.exit(2, f"train.py: error: {text}\n")


def recipe_parser() -> RecipeParser:
    """The parser of recipes, whose keys are also those of the towers that are registered."""
    return _recipe_parser(tuple(TABULAR_TOWERS))


@functools.cache  # making one takes a tenth of a second
def _recipe_parser(towers: tuple[str, ...]) -> RecipeParser:
    parser = RecipeParser(
        prog="train.py",
        parser_mode="recipe",
        usage=f"python train.py RECIPE.yaml [{DRY_RUN}] [{TUNE} N] [--key value] [--section.key value] ...",
        description="Train FLIP or one of its towers from a recipe. Every key of the recipe can also be given here. "
        f"{DRY_RUN} trains and writes nothing: it shows how the data are read, the size of the model and the time it needs. "
        f"{TUNE} N finetunes with N settings of learning rates and embedding_l2, and chooses by validation AUC.",
        epilog="Any other field of transformers.TrainingArguments works in either section, but for ddp_backend and ddp_timeout.",
        formatter_class=argparse.HelpFormatter,
        allow_abbrev=False,
        exit_on_error=True,
    )
    parser.add_argument("--recipe", action="config", help="the YAML file; as the first argument it needs no --recipe")
    parser.add_class_arguments(
        Recipe, as_group=False, skip={"use_cpu", "push_to_hub", "model", "pretraining", "finetuning"}
    )
    parser.add_argument("--use_cpu", action=jsonargparse.ActionYesNo, help="train on the CPU, even if there is a GPU")
    parser.add_argument(
        "--push_to_hub", action=jsonargparse.ActionYesNo, help="push to the Hub, while training and at the end"
    )
    parser.add_class_arguments(MoRecConfig, "model", skip={f.name for f in fields(MoRecConfig)} - set(MODEL_KEYS))
    added: set[str] = set()
    for name in towers:  # they may share a setting
        tower = TABULAR_TOWERS[name]
        (parser.groups or {})["model"].add_class_arguments(
            tower.settings_class, "model", as_group=False, skip=set(added)
        )
        added |= set(setting_names(name))
    for stage in STAGE_DEFAULTS:
        others = PRETRAINING_ONLY if stage == "finetuning" else FINETUNING_ONLY
        skip = {"output_dir", "seed", "data_seed", "use_cpu"} | OF_THE_REFIT | others
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
        kinds = {"bool, float": "true|NUMBER"} | kinds
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
    arguments, no_pretraining = without_null(arguments, "--pretraining")
    given = parser.parse_args(arguments, defaults=False).as_dict()
    given.pop("recipe", None)
    for section in ("model", *STAGE_DEFAULTS):
        if given.get(section, {}) is None:  # nothing stands below its name
            given.pop(section)
        elif not isinstance(given.get(section, {}), dict):
            parser.error(f"{section} is {given[section]!r}; it is a section: write its keys below it, or leave it out")
    return Recipe(**given | ({"pretraining": None} if no_pretraining else {}))


def without_dry_run(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--dry_run`, and whether it was there."""
    return [argument for argument in arguments if argument != DRY_RUN], DRY_RUN in arguments


def without_tune(arguments: Sequence[str]) -> tuple[list[str], int | None]:
    """The arguments without `--tune N`, and N. Prints one line and exits with 2 where it is no number."""
    parser = argparse.ArgumentParser(prog="train.py", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(TUNE, type=int)
    try:
        given, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        recipe_parser().error(f"{TUNE} needs a number of trials, such as {TUNE} 20")
    return others, given.tune


def without_null(arguments: list[str], option: str) -> tuple[list[str], bool]:
    """The arguments without `option null`, which jsonargparse takes for a file's name, and whether it was there."""
    for given in ([option, "null"], [f"{option}=null"]):
        for i in range(len(arguments)):
            if arguments[i : i + len(given)] == given:
                return arguments[:i] + arguments[i + len(given) :], True
    return arguments, False


def is_expected(error: Exception) -> bool:
    """Whether an error tells the user what to fix, rather than being a bug: errors that this project raises itself, and those
    of the system about a file or the disk.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return True
    if isinstance(error, ImportError) and error.name is not None:  # by an import statement, not by us
        return False
    if not isinstance(error, (ValueError, FloatingPointError, OSError, ImportError)):
        return False
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals["__name__"].partition(".")[0] in OUR_MODULES
