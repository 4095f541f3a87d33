"""Train FLIP from a recipe: `python train.py RECIPE.yaml [--dry_run] [--tune N] [--key value] [--section.key value]`."""

from __future__ import annotations

import os

# torch reads this at its first large allocation: use huge pages if the system grants them on request. Without them, page faults
# take much of a step's time on a CPU.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import shlex
import signal

PARENT = os.getppid()  # before the imports, which take seconds: the parent may be gone by then
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # during the imports, Ctrl-C ends the process without a traceback

import contextlib
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from data_scripts.registry import registered_datasets
from data_scripts.text_model import write as write_text_model
from modeling_flip.commands import end_with, ends_in_order, exit_code, is_launched, lost_process, no_space, sole_writer
from modeling_flip.processing_flip import FlipProcessor
from modeling_flip.quarantine import Quarantine
from modeling_flip.training.checks import check_data
from modeling_flip.training.command_line import is_expected, parse_recipe, without_dry_run, without_tune
from modeling_flip.training.data import read_labels
from modeling_flip.training.dry_run import DryRun, inspect
from modeling_flip.training.dry_run_report import show
from modeling_flip.training.phases import phase
from modeling_flip.training.preparation import inspect_fields
from modeling_flip.training.publishing import RECIPE_FILE, RESULTS_FILE
from modeling_flip.training.recipe import Recipe, field_names, needs_text
from modeling_flip.training.splits import RawSplits, load_splits
from modeling_flip.training.stages import processes_of, run
from modeling_flip.training.summary import caution, metrics_table, next_steps, python_command
from modeling_flip.training.tuning import BEST, check_tuning, tune
from modeling_flip.training.tuning import show as show_trials

logger = logging.get_logger(__name__)
ROWS_OF_TEXT_MODEL = 20_000  # enough to cover the words


def load_data(recipe: Recipe) -> RawSplits:
    """The rows of the recipe's dataset, as they are written: train, validation and test.

    Raises:
        ValueError: the dataset cannot be found or read.
    """
    loaders = {name: partial(dataset.load, name, recipe.raw_dir) for name, dataset in registered_datasets().items()}
    read = partial(
        read_labels,
        name=recipe.label_column,
        positive_label=recipe.positive_label,
        positive_above=recipe.positive_above,
    )
    return load_splits(
        recipe.dataset_name,
        registered=loaders,
        time_column=recipe.time_column,
        delimiter=recipe.delimiter,
        encoding=recipe.encoding,
        keep=[name for name in (recipe.label_column, recipe.group_column) if name is not None],
        max_train_samples=recipe.max_train_samples,
        streaming=recipe.streaming,
        quarantine=Quarantine() if recipe.on_bad_rows == "skip" else None,
        readers={recipe.label_column: read},
    )


def kinds_of_columns(recipe: Recipe) -> dict[str, str]:
    """The kinds that a registered dataset declares for its columns; empty for any other dataset."""
    dataset = registered_datasets().get(recipe.dataset_name)
    return {} if dataset is None else dict(dataset.fields)


def complete_recipe(recipe: Recipe) -> Recipe:
    """The recipe, completed with what a registered dataset declares: its own text tower (created beside the output folder if
    needed), and the fields that describe the item."""
    dataset = registered_datasets().get(recipe.dataset_name)
    if dataset is None:
        return recipe
    if recipe.text_model_name_or_path is None and dataset.text_model is not None:
        folder = Path(recipe.output_dir).parent / f"{recipe.dataset_name}-text-model"
        with sole_writer(folder, wait=600):  # runs with output folders side by side share it
            if not (folder / "config.json").exists():
                dataset.text_model(folder, dataset.load(recipe.dataset_name, recipe.raw_dir))
        recipe = replace(recipe, text_model_name_or_path=str(folder))
    if recipe.item_fields is None and recipe.model_type in ("ctr_bert", "morec"):
        named = field_names(recipe)
        known = [field for field in dataset.item_fields if named is None or field in named]
        recipe = replace(recipe, item_fields=known or None)
    return recipe


def name_text_model(recipe: Recipe, data: RawSplits) -> Recipe:
    """The recipe, with a text tower if it needs one and names none: a tiny one that knows the words of the training rows,
    created beside the output folder. A resumed run uses the same one.

    Raises:
        ValueError: something is wrong with the data.
    """
    if recipe.text_model_name_or_path is not None or not needs_text(recipe) or recipe.model_type == "p5":
        return recipe
    folder = Path(f"{recipe.output_dir}-text-model")
    begins = PartialState().is_main_process and not (Path(recipe.output_dir) / RECIPE_FILE).exists()
    if begins or not (folder / "config.json").exists():
        rows, clicks = data["train"].head(ROWS_OF_TEXT_MODEL), check_data(data, recipe)["train"]
        reports = inspect_fields(recipe, rows, clicks[: len(rows)], kinds_of_columns(recipe))
        processor = FlipProcessor.fit(rows, [report.field for report in reports])
        write_text_model(folder, processor.texts(rows), max_length=512)
    if PartialState().is_main_process:
        logger.warning(
            f"no text model is set: using a tiny one made from the training rows, in {folder}. Its weights are random; for "
            "real use, choose a pretrained one with --text_model_name_or_path"
        )
    return replace(recipe, text_model_name_or_path=str(folder))


def dry_run(recipe: Recipe, state: PartialState) -> DryRun:
    """What the run would do. It writes only to a temporary folder, which all processes share.

    Raises:
        ValueError: what `run` would raise before it trains.
    """
    with tempfile.TemporaryDirectory() if state.is_main_process else contextlib.nullcontext("") as own:
        (folder,) = broadcast_object_list([own])
        there = replace(recipe, output_dir=str(Path(folder) / Path(recipe.output_dir).name))
        with state.main_process_first():
            there = complete_recipe(there)
            data = load_data(there)
            there = name_text_model(there, data)
        named = replace(there, output_dir=recipe.output_dir)
        return inspect(named, data, kinds_of_columns(recipe), scratch=Path(folder))


def command_of(arguments: list[str]) -> str:
    """The command line of this run, without options of `accelerate launch`."""
    launcher = "accelerate launch" if is_launched() else python_command()
    return f"{launcher} train.py {shlex.join(arguments)}"


def use_all_cores(num_processes: int) -> None:
    """Share the cores among the processes: on a CPU, `accelerate launch` gives each process one thread unless told
    otherwise."""
    if is_launched() and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_processes))


def read(recipe: Recipe, state: PartialState, wall_time: dict[str, float] | None = None) -> tuple[Recipe, RawSplits]:
    """The recipe, completed, and its rows. The other processes find what the main one has downloaded or made."""
    with phase("read", wall_time), state.main_process_first():
        recipe = complete_recipe(recipe)
        data = load_data(recipe)
        return name_text_model(recipe, data), data


def train(recipe: Recipe, state: PartialState) -> dict[str, Any]:
    """From the files to the results."""
    wall_time: dict[str, float] = {}
    recipe, data = read(recipe, state, wall_time)
    return run(recipe, data, kinds_of_columns(recipe), wall_time)


def search(recipe: Recipe, num_trials: int, state: PartialState) -> str:
    """From the files to the trials, and the command that trains the best of them."""
    check_tuning(recipe, num_trials)
    recipe, data = read(recipe, state)
    trials = tune(recipe, data, num_trials, kinds_of_columns(recipe))
    return show_trials(trials, command_of([str(Path(recipe.output_dir) / BEST)]))


def main(arguments: list[str]) -> None:
    arguments, is_dry = without_dry_run(arguments)
    of_recipe, num_trials = without_tune(arguments)
    recipe = parse_recipe(of_recipe)
    logging.enable_explicit_format()
    state = processes_of(recipe)
    if state.device.type == "cpu":
        use_all_cores(state.num_processes)
    if is_launched():
        end_with(PARENT)
    try:
        with contextlib.ExitStack() as held:
            if state.is_main_process:  # the others end with it, and have nothing to clean up
                held.enter_context(ends_in_order())
                if not is_dry:
                    held.enter_context(sole_writer(recipe.output_dir))
            if is_dry:
                report = dry_run(recipe, state)
                if state.is_main_process:
                    print(show(report, command_of(arguments)))
            elif num_trials is not None:
                report_of_trials = search(recipe, num_trials, state)
                if state.is_main_process:
                    print(f"\n{report_of_trials}")
            else:
                results = train(recipe, state)
            state.destroy_process_group()  # threads of it that outlive Python would abort the process
            if is_dry or num_trials is not None:
                return
    except KeyboardInterrupt as interrupt:
        if (lost := lost_process(interrupt)) is not None:
            sys.exit(f"\ntrain.py: error: {lost}")
        told = str(interrupt)  # where it has saved a checkpoint, which all processes have
        if told:
            state.destroy_process_group()
        if state.is_main_process:
            told = told or ("" if is_dry else "run the same command again to continue from the last checkpoint")
            print("\ntrain.py: interrupted" + f"; {told}" * bool(told), file=sys.stderr)
        sys.exit(exit_code(interrupt))
    except Exception as error:
        if (full := no_space(error, recipe.output_dir)) is not None:
            sys.exit(f"\ntrain.py: error: {full}")  # in a line of its own below the progress bar
        if (lost := lost_process(error)) is not None:
            sys.exit(f"\ntrain.py: error: {lost}")
        if not is_expected(error):
            raise
        sys.exit(f"train.py: error: {' '.join(str(error).split())}")
    if not state.is_main_process:
        return
    print(f"\n{metrics_table(recipe, results)}")
    if doubts := caution(results):
        print(f"\n{doubts}")
    print(f"\nThe model is in {recipe.output_dir}, all figures in {RESULTS_FILE} there.\n")
    print(next_steps(recipe, arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
