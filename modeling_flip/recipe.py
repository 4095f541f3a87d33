"""Recipes: what train.py reads, and the run it describes.

A recipe is one YAML file: shared keys, and a section of training arguments for each stage. `run` takes it from raw rows to
one folder with the model, its processor and `all_results.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import accelerate
import datasets
import jsonargparse
import numpy as np
import torch
import transformers
import yaml
from accelerate import PartialState
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import RevisionNotFoundError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from .configuration_flip import FlipConfig
from .hub import MODEL, check_files, create_repo, is_final, push_error, upload, with_retries
from .modeling_baselines import CTR_MODELS, MoRecConfig, check_has_decoder
from .modeling_flip import FlipForCTR, FlipForPreTraining
from .processing_flip import FlipDataset, FlipProcessor, read_labels
from .tabular_towers import TABULAR_TOWERS
from .trainer_flip import (
    LAST,
    NOT_OF_THIS_RUN,
    PRETRAINING_RESULTS_FILE,
    RECIPE_FILE,
    RESULTS_FILE,
    UNPUSHED,
    FlipTrainer,
    FlipTrainingArguments,
    ctr_metrics,
    link_files,
    step_of,
    write_card,
)
from .version import __version__

logger = logging.get_logger(__name__)

SPLITS = ("train", "validation", "test")
STAGES = ("pretraining", "finetuning", "finished")
# Where a run is pushed to; another place is no other run.
HUB_KEYS = ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision", "license")
MODEL_KEYS = [
    name
    for name in (*FlipConfig.__annotations__, "freeze_text_tower")
    if name
    not in (
        *("text_config", "towers", "tabular_tower", "item_fields", "num_features", "num_fields"),
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
    "num_noise_features": "K, noise features drawn per row for MTM",
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
        model: settings of FlipConfig.
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


# ---- running it


def run(recipe: Recipe, data: datasets.DatasetDict) -> dict[str, Any]:
    """Pretrain, finetune, evaluate on the untouched test set, and save.

    Everything that can be wrong with the input is looked at before training starts. An interrupted run continues where it
    was when run again; a finished one returns its results.

    Returns:
        what all_results.json holds.

    Raises:
        ValueError: something is wrong with the recipe, the data or the output folder, with the value and the remedy.
    """
    started = time.perf_counter()
    output_dir = Path(recipe.output_dir)
    check_recipe(recipe)
    check_data(data, recipe)
    state = PartialState(cpu=uses_cpu(recipe))
    with state.main_process_first():
        if recipe.push_to_hub and recipe.hub_strategy == "checkpoint":
            restore_from_hub(recipe)
    if check_output_dir(recipe) and (output_dir / RESULTS_FILE).exists():
        logger.warning(f"{output_dir} is finished; delete it to run again")
        finished = json.loads((output_dir / RESULTS_FILE).read_text())
        if state.is_main_process:
            shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)  # it may have been killed just before
            if recipe.push_to_hub:
                push_finished(recipe, finished)
        return finished
    set_seed(recipe.seed)
    processor = make_processor(recipe, data)
    encoded = {split: processor.encode(data[split], recipe.label_column) for split in SPLITS}
    with state.main_process_first():
        if not check_output_dir(recipe):
            output_dir.mkdir(parents=True, exist_ok=True)
            write(output_dir / RECIPE_FILE, yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True))

    results: dict[str, Any] = {}
    wall_time: dict[str, float] = {}
    failed_pushes: list[str] = []
    resumed = False
    pretrained = recipe.pretrained_model_name_or_path
    if needs_pretraining(recipe):
        folder = output_dir / "pretraining"
        resumed = folder.exists()
        if not resumed:
            failed_pushes = pretrain(recipe, processor, encoded, folder)
        pretrained = str(folder)
        results |= json.loads((folder / PRETRAINING_RESULTS_FILE).read_text())
        wall_time["pretraining_seconds"] = results.pop("pretraining_seconds")
        if resumed:
            started -= wall_time["pretraining_seconds"]

    begun = time.perf_counter()
    set_seed(recipe.seed)  # finetuning is the same after a resumed pretraining as after a straight one
    if pretrained is not None:
        free = {key: value for key, value in recipe.model.items() if key in FREE_MODEL_KEYS}
        model = FlipForCTR.from_pretrained(pretrained, towers=recipe.towers, **free)
    else:
        settings = {"tabular_tower": recipe.tabular_tower, **recipe.model}
        if recipe.model_type == "flip":
            settings["towers"] = recipe.towers
        if recipe.item_fields:
            settings["item_fields"] = [processor.fields.index(name) for name in recipe.item_fields]
        model = CTR_MODELS[recipe.model_type].from_text_pretrained(
            recipe.text_model_name_or_path, processor, **settings
        )
    if model.inputs == ("feature_ids",):
        processor = processor.tabular_only()
    arguments = stage_arguments(recipe, "finetuning")
    trainer = FlipTrainer(model, arguments, processor, encoded["train"], encoded["validation"])
    trainer.facts = run_facts(recipe)
    trainer.waits_after_training = False  # first of all, what was trained is scored and saved
    if needs_pretraining(recipe):
        trainer.other_folders = {"pretraining": output_dir / "pretraining"}
    last = last_checkpoint(trainer)
    trainer.train(resume_from_checkpoint=last)
    wall_time["finetuning_seconds"] = time.perf_counter() - begun
    results["resumed"] = resumed or last is not None  # then times count the parts that were not lost
    results["train_samples_per_second"] = trainer.clock.median
    results["epochs"] = trainer.state.epoch
    results["best_epoch"] = best_epoch(trainer)
    results["history"] = [
        {k.removeprefix("eval_"): v for k, v in entry.items() if re.search(r"auc|logloss|epoch", k)}
        for entry in trainer.state.log_history
        if "eval_auc" in entry
    ]
    for split in ("validation", "test"):
        results |= evaluate(trainer, encoded[split], split)
    if isinstance(model, FlipForCTR):
        results["alpha"] = model.alpha.item()
    results["num_parameters"] = model.num_parameters()
    if model.inputs != ("feature_ids",):
        # The one whose weights are in the model: a pretraining checkpoint's, whatever the recipe names.
        results["text_model"] = model.config.text_config.name_or_path
    wall_time["total_seconds"] = time.perf_counter() - started
    results |= {"wall_time": wall_time} | trainer.facts
    results["rows"] = {split: len(data[split]) for split in SPLITS}

    trainer.save_model(str(output_dir), _internal_call=True)
    if trainer.is_world_process_zero():
        write(output_dir / RESULTS_FILE, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        trainer.create_model_card(output_dir, **results)
    trainer.accelerator.wait_for_everyone()  # the others need not wait for the Hub
    if trainer.is_world_process_zero():
        if recipe.push_to_hub:
            arrived = trainer.push_to_hub("End of training", folder=output_dir)
            failed_pushes = failed_pushes + trainer.failed_pushes
            if failed_pushes:
                logger.warning(f"{len(failed_pushes)} pushes failed:\n  " + "\n  ".join(failed_pushes))
            if not arrived:
                logger.error(
                    f"the finished model is whole in {output_dir}, not on the Hub: run the same command again to push it"
                )
        shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)
    return results


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)


def check_output_dir(recipe: Recipe) -> bool:
    """Whether the output folder holds this very run, begun or finished.

    Raises:
        ValueError: it holds something else.
    """
    folder, remedy = Path(recipe.output_dir), "choose another --output_dir, or delete the folder"
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"output folder {folder} holds something else ({next(folder.iterdir()).name}); {remedy}")
    check_same_run(folder / RECIPE_FILE, recipe, f"output folder {folder} holds another model", remedy)
    return True


def check_same_run(recipe_file: Path, recipe: Recipe, what: str, remedy: str, but: Sequence[str] = ()) -> None:
    """Raises ValueError where a run's recipe differs from this one in anything but where it is pushed to, and `but`."""
    ours = recipe.to_dict()
    try:
        theirs = dict(yaml.safe_load(recipe_file.read_text()))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{what}: its {RECIPE_FILE} is no recipe; {remedy}") from error
    for key in sorted((theirs.keys() | ours.keys()) - {*HUB_KEYS, *but}):
        if theirs.get(key) != ours.get(key):
            raise ValueError(f"{what}: its {key} is {theirs.get(key)!r}, this run's is {ours.get(key)!r}; {remedy}")


def restore_from_hub(recipe: Recipe) -> None:
    """Bring what an earlier run of this recipe pushed with hub_strategy "checkpoint" into the output folder, all or nothing.

    Where the run has begun in the folder it stays as it is.

    Raises:
        ValueError: the repo holds another run, or a later state of this one than the folder, or the Hub cannot say.
    """
    output_dir = Path(recipe.output_dir).resolve()
    restored = output_dir.with_name(f".{output_dir.name}.restored")
    begun = check_output_dir(recipe)
    little = [RECIPE_FILE, *NOT_OF_THIS_RUN[1:], f"{LAST}/trainer_state.json", f"{LAST}/config.json"]
    with tempfile.TemporaryDirectory() as repo_dir:
        repo = Path(repo_dir)
        try:
            repo_id = create_repo(hub_repo(recipe), recipe.hub_private_repo)
            where: dict[str, Any] = {"revision": recipe.hub_revision, "local_dir": repo}
            with_retries(lambda: snapshot_download(repo_id, allow_patterns=little if begun else None, **where))
        except RevisionNotFoundError:
            return
        except (OSError, ValueError) as error:
            if begun and not is_final(error):
                logger.warning(f"cannot see how far {hub_repo(recipe)!r} is: {push_error(error)}")
                return
            raise ValueError(
                f"cannot see whether {hub_repo(recipe)!r} holds an earlier part of this run: {push_error(error)}; try again, or "
                "leave out --hub_strategy checkpoint to begin anew"
            ) from error
        if not (repo / RECIPE_FILE).exists():
            return
        # Where it runs is no part of what it is; the demo makes its text model beside the output folder.
        place = ["output_dir", *(["text_model_name_or_path"] if recipe.dataset_name == "demo" else [])]
        remedy = "choose another --hub_model_id"
        check_same_run(repo / RECIPE_FILE, recipe, f"{repo_id} on the Hub holds another model", remedy, place)
        if begun:
            if progress_on_hub(repo) > progress_here(output_dir):
                raise ValueError(
                    f"{repo_id} on the Hub holds a later state of this run than {output_dir}, and would be overwritten: delete "
                    f"the folder to go on from the Hub, or {remedy}"
                )
            return
        logger.warning(f"continuing from {repo_id} on the Hub")
        shutil.rmtree(restored, ignore_errors=True)
        if progress_on_hub(repo)[0] == STAGES.index("finished"):
            shutil.copytree(repo, restored, ignore=shutil.ignore_patterns(".*"))
        else:
            restored.mkdir(parents=True)
            if (repo / "pretraining" / PRETRAINING_RESULTS_FILE).exists():
                shutil.copytree(repo / "pretraining", restored / "pretraining")
            if (repo / LAST).exists():
                restore_checkpoints(repo, restored, recipe)
        write(restored / RECIPE_FILE, yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True))
    if output_dir.exists():
        with contextlib.suppress(OSError):
            output_dir.rmdir()  # it is empty
    if not output_dir.exists():
        restored.rename(output_dir)
        return
    for path in sorted(restored.iterdir(), key=lambda path: path.name == RECIPE_FILE):  # a mounted folder stays
        shutil.move(path, output_dir / path.name)
    restored.rmdir()


def stage_on_hub(repo: Path) -> str:
    """The stage of a repo's `last-checkpoint`."""
    architectures = json.loads((repo / LAST / "config.json").read_text())["architectures"]
    return "pretraining" if architectures == [FlipForPreTraining.__name__] else "finetuning"


def progress_on_hub(repo: Path) -> tuple[int, int]:
    """How far a run has come: the position of its stage in STAGES, and the step."""
    if (repo / LAST).exists():
        step = json.loads((repo / LAST / "trainer_state.json").read_text())["global_step"]
        return STAGES.index(stage_on_hub(repo)), step
    return (STAGES.index("finished") if (repo / RESULTS_FILE).exists() else 0), 0


def progress_here(output_dir: Path) -> tuple[int, int]:
    """The same of an output folder."""
    if (output_dir / RESULTS_FILE).exists():
        return STAGES.index("finished"), 0
    aligned = (output_dir / "pretraining" / PRETRAINING_RESULTS_FILE).exists()
    states = output_dir.glob("checkpoints/*/checkpoint-*/trainer_state.json")
    saved = [(STAGES.index(p.parent.parent.name), step_of(p.parent) or 0) for p in states]
    return max([(STAGES.index("finetuning") if aligned else 0, 0), *saved])


def restore_checkpoints(repo: Path, restored: Path, recipe: Recipe) -> None:
    """Lay a repo's `last-checkpoint`, and the best model, which its root or `pretraining/` shows, where Trainer looks."""
    stage, folder = stage_on_hub(repo), Path("checkpoints", stage_on_hub(repo))
    state = json.loads((repo / LAST / "trainer_state.json").read_text())
    keeps_best = stage_arguments(recipe, stage).load_best_model_at_end
    last, best = state["global_step"], step_of(state["best_model_checkpoint"]) if keeps_best else None
    shutil.copytree(repo / LAST, restored / folder / f"checkpoint-{last}")
    if best is None:
        return
    state["best_model_checkpoint"] = str(Path(recipe.output_dir) / folder / f"checkpoint-{best}")
    if best != last:
        shown = repo / "pretraining" if stage == "pretraining" else repo
        link_files(shown, restored / folder / f"checkpoint-{best}", ("README.md", "*.png", "*.yaml"))
    for step in {last, best}:
        (restored / folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state, indent=2))


def hub_repo(recipe: Recipe) -> str:
    return recipe.hub_model_id or Path(recipe.output_dir).absolute().name


def push_finished(recipe: Recipe, results: dict[str, Any]) -> None:
    """Push the output folder of a run that has ended, with a card that names the repo.

    Raises:
        ValueError: the Hub refuses it, or cannot be reached.
    """
    output_dir = Path(recipe.output_dir)
    try:
        repo_id = create_repo(hub_repo(recipe), recipe.hub_private_repo)
        model = CTR_MODELS[recipe.model_type].from_pretrained(output_dir)
        processor = FlipProcessor.from_pretrained(output_dir)
        results = results | {"recipe": results["recipe"] | {"license": recipe.license}}
        write_card(output_dir, model, processor, repo_id, results, stage_arguments(recipe, "finetuning"))
        commit = upload(
            output_dir,
            repo_id,
            commit_message="End of training",
            revision=recipe.hub_revision,
            ignore_patterns=UNPUSHED,
            delete_patterns=NOT_OF_THIS_RUN,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{output_dir} cannot be pushed to {hub_repo(recipe)!r}: {push_error(error)}") from error
    logger.warning(f"pushed to {commit.repo_url}")


def check_recipe(recipe: Recipe) -> None:
    """Raises ValueError where the recipe asks for something that cannot be."""
    if recipe.tabular_tower not in TABULAR_TOWERS:
        near = difflib.get_close_matches(recipe.tabular_tower, TABULAR_TOWERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"tabular_tower is {recipe.tabular_tower!r}; it must be one of {', '.join(TABULAR_TOWERS)}{hint}"
        )
    if recipe.model_type not in CTR_MODELS:
        near = difflib.get_close_matches(recipe.model_type, CTR_MODELS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"model_type is {recipe.model_type!r}; it must be one of {', '.join(CTR_MODELS)}{hint}")
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
    config = FlipConfig(towers=recipe.towers, **recipe.model)
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
        FlipConfig(text_config=text_config, **recipe.model)
        if recipe.model_type == "p5":
            check_has_decoder(text_config)
    if (pretrained := recipe.pretrained_model_name_or_path) is not None:
        try:
            config = FlipConfig.from_pretrained(pretrained)
        except OSError as error:
            raise ValueError(f"pretrained_model_name_or_path {pretrained!r} does not exist; pretrain first") from error
        for key, value in {"tabular_tower": recipe.tabular_tower, **recipe.model}.items():
            if key not in FREE_MODEL_KEYS and getattr(config, key) != value:
                raise ValueError(
                    f"{key} is {value!r}, but {pretrained} was pretrained with {getattr(config, key)!r}; "
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
                near = difflib.get_close_matches(column, columns, n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"column {column!r} is missing in split {split!r}; its columns are {columns}{hint}")
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


def make_processor(recipe: Recipe, data: datasets.DatasetDict) -> FlipProcessor:
    """The pretraining checkpoint's processor, or one fitted on the training rows."""
    if recipe.pretrained_model_name_or_path is not None:
        processor = FlipProcessor.from_pretrained(recipe.pretrained_model_name_or_path)
        theirs = {
            "fields": processor.fields,
            "min_count": processor.vocabulary.min_count,
            "max_length": processor.max_length,
        }
        ours = {"fields": recipe.fields, "min_count": recipe.min_count, "max_length": recipe.max_length}
        for key, value in ours.items():
            if value not in (None, Recipe.min_count if key == "min_count" else None, theirs[key]):
                raise ValueError(
                    f"{key} is {value}, but {recipe.pretrained_model_name_or_path} was pretrained with {theirs[key]}; "
                    "take that, or pretrain anew"
                )
        return processor
    tokenizer: PreTrainedTokenizerBase | None = None
    if needs_text(recipe):
        tokenizer = AutoTokenizer.from_pretrained(recipe.text_model_name_or_path)
    columns = recipe.fields or [name for name in data["train"].column_names if name != recipe.label_column]
    return FlipProcessor.fit(
        data["train"], columns, tokenizer, min_count=recipe.min_count, max_length=recipe.max_length
    )


def pretrain(recipe: Recipe, processor: FlipProcessor, encoded: dict[str, FlipDataset], folder: Path) -> list[str]:
    """Align the two towers on the training rows; checkpoint and figures go to `folder`. Returns the pushes that failed."""
    started = time.perf_counter()
    model = FlipForPreTraining.from_text_pretrained(
        recipe.text_model_name_or_path, processor, tabular_tower=recipe.tabular_tower, **recipe.model
    )
    arguments = stage_arguments(recipe, "pretraining")
    trainer = FlipTrainer(model, arguments, processor, encoded["train"], encoded["validation"])
    trainer.facts = run_facts(recipe)
    trainer.waits_after_training = False
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    figures = {
        "pretraining_samples_per_second": trainer.clock.median,
        "pretraining_losses": {k: v for k, v in logged[-1].items() if k.endswith("loss")} if logged else {},
        "pretraining_seconds": time.perf_counter() - started,
    }
    unfinished = folder.with_name(f".{folder.name}")  # renamed when whole: the folder is never seen half-written
    trainer.save_model(str(unfinished), _internal_call=True)
    trainer.create_model_card(unfinished)
    if trainer.is_world_process_zero():
        (unfinished / PRETRAINING_RESULTS_FILE).write_text(json.dumps(figures, indent=2) + "\n")
        unfinished.rename(folder)
    trainer.accelerator.wait_for_everyone()
    return trainer.failed_pushes


def run_facts(recipe: Recipe) -> dict[str, Any]:
    return {"recipe": recipe.to_dict(), "seed": recipe.seed} | environment()


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


def last_checkpoint(trainer: FlipTrainer) -> str | None:
    """The last whole checkpoint of an interrupted stage, if there is one; half-written ones are deleted."""
    folder = Path(str(trainer.args.output_dir))
    for checkpoint in folder.glob("checkpoint-*"):
        # Trainer writes its state last; without it the checkpoint is half-written and must not be resumed from.
        if not (checkpoint / "trainer_state.json").exists() and trainer.is_world_process_zero():
            shutil.rmtree(checkpoint, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    last = get_last_checkpoint(str(folder)) if folder.exists() else None
    if last is not None:
        check_files(last, MODEL)
        logger.warning(f"continuing from {last}")
    return last


def best_epoch(trainer: FlipTrainer) -> float | None:
    """The epoch whose weights were kept for being best on validation; None where it was not evaluated."""
    evaluated = [entry for entry in trainer.state.log_history if "eval_auc" in entry]
    return next((entry["epoch"] for entry in evaluated if entry["step"] == trainer.kept_step), None)


def evaluate(trainer: FlipTrainer, dataset: FlipDataset, split: str) -> dict[str, Any]:
    """Metrics of one split, all towers; on the test split also of the rows with a value never seen in training."""
    output = trainer.predict(dataset, metric_key_prefix=split)
    labels = np.asarray(output.label_ids)
    results = {k: v for k, v in (output.metrics or {}).items() if re.search(r"_(auc|logloss|ece)$", k)}
    unseen = dataset.has_unseen_value
    if split == "test":
        results["test_rows_per_second"] = (output.metrics or {}).get("test_samples_per_second")
        results["test_unseen_rows"] = int(unseen.sum())
        if len(np.unique(labels[unseen])) == 2:
            logits = output.predictions
            picked = tuple(x[unseen] for x in logits) if isinstance(logits, tuple) else logits[unseen]
            results |= {f"test_unseen_{k}": v for k, v in ctr_metrics(picked, labels[unseen]).items()}
    return results


def environment() -> dict[str, Any]:
    """Commit, versions and hardware."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        # Of the code alone: compare.py writes results and the README between two runs.
        status = [*git, "status", "--porcelain", "-uno", "--", ":/*.py"]
        changed = subprocess.run(status, capture_output=True, text=True).stdout.strip()
        commit += " with uncommitted changes" if changed else ""
    except (OSError, subprocess.CalledProcessError):
        commit = None
    cuda = torch.cuda.is_available()
    return {
        "commit": commit,
        "versions": {"modeling_flip": __version__, "python": platform.python_version()}
        | {m.__name__: m.__version__ for m in (torch, transformers, datasets, accelerate)},
        "hardware": {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "gpu": torch.cuda.get_device_name() if cuda else None,
            "processes": PartialState().num_processes,
        },
    }
