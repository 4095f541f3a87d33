"""The run that a recipe describes: from raw rows to one folder with the model, its processor and `all_results.json`."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from ..ctr_models import CTR_MODELS
from ..modeling_flip import FlipForCTR, FlipForPreTraining
from ..processing_flip import FlipProcessor
from ..row_dataset import FlipDataset
from ..version import __version__
from .checks import check_data, check_recipe
from .hub import create_repo, push_error, upload
from .metrics import ctr_metrics
from .publishing import (
    NOT_OF_THIS_RUN,
    PRETRAINING_RESULTS_FILE,
    RECIPE_FILE,
    RESULTS_FILE,
    UNPUSHED,
    write_card,
)
from .recipe import (
    FREE_MODEL_KEYS,
    SPLITS,
    Recipe,
    hub_repo,
    model_settings,
    needs_pretraining,
    needs_text,
    stage_arguments,
    uses_cpu,
)
from .resume import check_output_dir, last_checkpoint, restore_from_hub, write
from .trainer import FlipTrainer

logger = logging.get_logger(__name__)


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
            write(output_dir / RECIPE_FILE, recipe.to_yaml())

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
        settings = model_settings(recipe)
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


def make_processor(recipe: Recipe, data: datasets.DatasetDict) -> FlipProcessor:
    """The pretraining checkpoint's processor, or one fitted on the training rows."""
    if recipe.pretrained_model_name_or_path is not None:
        processor = FlipProcessor.from_pretrained(recipe.pretrained_model_name_or_path)
        theirs = {
            "fields": processor.fields,
            "min_count": max(field.min_count for field in processor.schema),
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
    model = FlipForPreTraining.from_text_pretrained(recipe.text_model_name_or_path, processor, **model_settings(recipe))
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


def best_epoch(trainer: FlipTrainer) -> float | None:
    """The epoch whose weights were kept for being best on validation; None where it was not evaluated."""
    evaluated = [entry for entry in trainer.state.log_history if "eval_auc" in entry]
    return next((entry["epoch"] for entry in evaluated if entry["step"] == trainer.kept_step), None)


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


def run_facts(recipe: Recipe) -> dict[str, Any]:
    return {"recipe": recipe.to_dict(), "seed": recipe.seed} | environment()


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
