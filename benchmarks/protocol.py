"""How a system is measured: all that is free is chosen on the validation rows; then the system is trained on training and
validation rows together, once for each seed, and the test rows are scored once.

A run's figures are its all_results.json, in `RESULTS/DATASET/SYSTEM-SEED.json`, with what was searched under `search`; the logits
of its test rows lie beside it in `predictions/`. Systems with the same pretraining share it, seed by seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import torch

import train
from benchmarks.significance import USERS, write_predictions, write_users
from data_scripts.registry import registered_datasets
from modeling_flip.training import manifest
from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.data import group_codes
from modeling_flip.training.publishing import PREDICTIONS_FILE, RECIPE_FILE, RESULTS_FILE
from modeling_flip.training.recipe import Recipe, needs_text, read_yaml

# What a trial leaves in the record of the search.
FIGURES = ("validation_auc", "validation_logloss", "test_auc", "test_logloss", "best_epoch", "epochs", "wall_time")


# Of a recipe, what says nothing of what is computed: where things lie, and what is shown.
NOT_COMPUTED = ("output_dir", "raw_dir", "cache_dir", "num_proc", "disable_tqdm")
OF_TEXT = ("text_model_name_or_path", "max_length")
DEFAULTS = {key.name: key.default for key in fields(Recipe) if key.default not in (MISSING, None)}


@dataclass(frozen=True)
class System:
    """What is measured.

    Attributes:
        name: of its results.
        recipe: a YAML file.
        settings: arguments that change the recipe.
        trials: of each trial of the search, the arguments on top of these; the first is the recipe as it is.
    """

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    trials: tuple[tuple[str, ...], ...] = ((),)


class RunFailedError(Exception):
    """A run has ended with an error, which it has printed; the message is its command."""


@dataclass
class Bench:
    """Where runs are made, and where their figures go.

    Attributes:
        results: a folder for each dataset.
        output_dir: folder for the models; a run that was interrupted goes on from there.
        arguments: of every run, such as `--raw_dir data/movielens-1m`; those of the pretraining for systems that pretrain.
    """

    results: Path
    output_dir: Path
    arguments: Sequence[str] = ()

    def recipe(self, system: System, seed: int, *more: str) -> Recipe:
        return parse_recipe([system.recipe, *self.given(system, seed, *more)])

    def given(self, system: System, seed: int, *more: str) -> list[str]:
        """The arguments of a run, after its recipe."""
        own = [*system.settings, *more, "--seed", str(seed)]
        others = without_section(self.arguments, "pretraining")
        if others != [*self.arguments] and parse_recipe([system.recipe, *own]).pretraining is not None:
            others = [*self.arguments]
        return [*others, *own]

    def result_file(self, system: System, seed: int) -> Path:
        return self.results / self.recipe(system, seed).dataset_name / f"{system.name}-{seed}.json"

    def search(self, system: System, seed: int) -> dict[str, Any]:
        """The trials of a system, and which of them is best on validation. It is searched once: later seeds take what was chosen.

        Raises:
            RunFailedError: a trial fails.
        """
        if (known := self.known_search(system, seed)) is not None:
            return known
        trials = []
        for number, settings in enumerate(system.trials):
            figures = self.run(system, seed, settings, f"{system.name}-trial-{number}-seed-{seed}")
            trials.append({"settings": list(settings)} | {key: figures[key] for key in FIGURES if key in figures})
        best = max(range(len(trials)), key=lambda i: trials[i]["validation_auc"])
        return {"seed": seed, "trials": trials, "chosen": best}

    def known_search(self, system: System, seed: int) -> dict[str, Any] | None:
        """What an earlier run of the system has recorded, of any seed; None where there is none.

        Raises:
            ValueError: that run had other settings or another search, so that the seeds could not be taken together.
        """
        for file in sorted(self.result_file(system, seed).parent.glob(f"{system.name}-[0-9]*.json")):
            if not file.stem.removeprefix(f"{system.name}-").isdecimal():  # of a system whose name is longer
                continue
            if "search" not in (figures := json.loads(file.read_text())):
                continue
            search = dict(figures["search"])
            recipe = self.recipe(system, figures["recipe"]["seed"], *refit_of(search))
            if changed := changes(figures["recipe"], recipe.to_dict()):
                raise ValueError(
                    f"{file} was measured with {'; '.join(changed)}: give the settings that it had, or remove it"
                )
            if has_other_search(search, system):
                raise ValueError(
                    f"{file} was searched with {len(search['trials'])} trials (now {len(system.trials)}): give the --trials that "
                    "it had, or remove it"
                )
            return search
        return None

    def is_measured(self, system: System, seed: int) -> bool:
        """Whether there are figures of this protocol."""
        file = self.result_file(system, seed)
        return file.exists() and "search" in json.loads(file.read_text())

    def measure(self, system: System, seed: int) -> dict[str, Any]:
        """The figures of a system and a seed; a run is made where there are none yet.

        Raises:
            RunFailedError: a run fails.
        """
        file = self.result_file(system, seed)
        if self.is_measured(system, seed):
            figures: dict[str, Any] = json.loads(file.read_text())
            recipe = self.recipe(system, seed, *refit_of(figures["search"]))
            changed = changes(figures["recipe"], recipe.to_dict())
            if has_other_search(figures["search"], system):
                changed.append(f"{len(figures['search']['trials'])} trials (now {len(system.trials)})")
            if changed:
                print(
                    f"{file.stem} is kept, though it was measured with {'; '.join(changed)}. To measure it again remove {file} "
                    f"and, where they are, the models {self.folder(recipe.dataset_name, system.name)}-*"
                )
            return figures
        search = self.search(system, seed)
        figures = self.run(system, seed, refit_of(search), file.stem)
        figures |= {"search": search}
        recipe = self.recipe(system, seed)
        if recipe.pretraining is not None and recipe.pretrained_model_name_or_path is None:
            figures["pretraining_seed"] = seed
        write_predictions(
            self.folder(figures["recipe"]["dataset_name"], file.stem) / PREDICTIONS_FILE,
            file.parent / "predictions" / f"{file.stem}.parquet",
        )
        self.keep_users(recipe, file.parent / "predictions" / USERS)
        manifest.write(file, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        return figures

    def keep_users(self, recipe: Recipe, file: Path) -> None:
        """Writes whose the test rows of a registered dataset are, unless that is known."""
        name = recipe.dataset_name
        if not file.exists() and (dataset := registered_datasets().get(name)) is not None:
            rows = dataset.load(name, recipe.raw_dir)["test"]
            write_users(group_codes(rows["user_id"], "user_id"), file)

    def run(self, system: System, seed: int, settings: Sequence[str], name: str) -> dict[str, Any]:
        """One run of train.py, or what an earlier one has left; its all_results.json.

        Raises:
            RunFailedError: the run fails.
            ValueError: an earlier one had other settings.
        """
        recipe = self.recipe(system, seed, *settings)
        folder = self.folder(recipe.dataset_name, name)
        given = [*self.given(system, seed, *settings), "--output_dir", str(folder)]
        begun = folder / RECIPE_FILE
        if begun.exists():  # it goes on with the pretraining that it has begun with
            pretrained = dict(read_yaml(begun.read_text())).get("pretrained_model_name_or_path")
        else:
            pretrained = self.pretraining_for(recipe)
        if pretrained not in (None, folder / "pretraining", recipe.pretrained_model_name_or_path):
            given += ["--pretrained_model_name_or_path", str(pretrained)]
        if not (folder / RESULTS_FILE).exists():
            print(f"=== {recipe.dataset_name}, {name}: {' '.join(given)}", flush=True)
            if launch(system.recipe, *given) != 0:
                raise RunFailedError(f"{recipe.dataset_name}, {name}: train.py {system.recipe} {' '.join(given)}")
        figures = dict(json.loads((folder / RESULTS_FILE).read_text()))
        if changed := changes(figures["recipe"], recipe.to_dict()):
            raise ValueError(f"{folder} holds a run with {'; '.join(changed)}: remove it to train again")
        return figures

    def pretraining_for(self, recipe: Recipe) -> Path | None:
        """The checkpoint of a finished run that pretrained the same model on the same rows; None where there is none, or where
        the recipe does not pretrain."""
        if recipe.pretraining is None or recipe.pretrained_model_name_or_path is not None:
            return None
        wanted = of_pretraining(recipe).to_dict()
        for results in sorted(self.folder(recipe.dataset_name, ".").glob(f"*/{RESULTS_FILE}")):
            if (pretrained := results.parent / "pretraining").exists():
                recorded = Recipe(**json.loads(results.read_text())["recipe"])
                if not changes(of_pretraining(recorded).to_dict(), wanted):
                    return pretrained
        return None

    def pretraining_of(self, figures: Mapping[str, Any], name: str) -> Path | None:
        """The pretraining checkpoint of a run, its own or a shared one; None where it is not here."""
        own = self.folder(figures["recipe"]["dataset_name"], name) / "pretraining"
        shared = figures["recipe"].get("pretrained_model_name_or_path")
        return next((path for path in (own, Path(shared or own)) if path.exists()), None)

    def folder(self, dataset_name: str, name: str) -> Path:
        return self.output_dir / Path(dataset_name).name / name


def processes() -> ForkServerContext | SpawnContext:
    """Makes the processes of runs. Importing train.py takes longer than a small training, so one process imports it, and each run
    is a fork of that one. A GPU's driver does not outlive a fork."""
    if torch.accelerator.is_available():
        return get_context("spawn")
    forks = get_context("forkserver")
    # Beside train.py what the commands that measure import themselves: each fork would import that.
    forks.set_forkserver_preload(["train", "benchmarks.significance", "benchmarks.alignment"])
    return forks


def launch(*arguments: str) -> int:
    """Runs train.py in a process of its own; its exit code."""
    process = processes().Process(target=train.main, args=([*arguments],))
    process.start()
    process.join()
    return process.exitcode or 0


def split_arguments(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and what is given to every run after it."""
    split = given.index("--") if "--" in given else len(given)
    return [*given[:split]], [*given[split + 1 :]]


def without_section(arguments: Sequence[str], section: str) -> list[str]:
    """`--key value` and `--key=value` arguments, without those of a section of the recipe."""
    kept, is_kept = [], True
    for argument in arguments:
        if argument.startswith("--"):
            is_kept = not argument.startswith(f"--{section}.")
        if is_kept:
            kept.append(argument)
    return kept


def refit_of(search: Mapping[str, Any]) -> list[str]:
    """The arguments of the run that a search has chosen."""
    return [*chosen_trial(search)["settings"], "--refit", str(chosen_epochs(search))]


def chosen_trial(search: Mapping[str, Any]) -> dict[str, Any]:
    return dict(search["trials"][search["chosen"]])


def chosen_epochs(search: Mapping[str, Any]) -> float:
    """Of the chosen trial, the epoch that was best on validation, or all of its epochs where it was not stopped."""
    chosen = chosen_trial(search)
    return float(chosen.get("best_epoch") or chosen["epochs"])


def has_other_search(search: Mapping[str, Any], system: System) -> bool:
    return [trial["settings"] for trial in search["trials"]] != [[*settings] for settings in system.trials]


def of_pretraining(recipe: Recipe) -> Recipe:
    """A recipe without what its pretraining does not read. Dropout and text pooling, which finetuning may change, it does."""
    model = {key: value for key, value in recipe.model.items() if key != "embedding_l2"}
    refit = 1.0 if recipe.refit is not None else None  # pretraining reads the rows, not for how long finetuning does
    return replace(recipe, towers="both", model=model, finetuning={}, refit=refit)


def own_choices(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A run's recipe without what was filled in: by train.py a text model, by `Bench.run` the pretraining of a run beside it."""
    kept, folder = dict(recipe), Path(recipe["output_dir"])
    made = (f"{folder}-text-model", str(folder.parent / f"{recipe['dataset_name']}-text-model"))
    if recipe.get("text_model_name_or_path") in made:
        del kept["text_model_name_or_path"]
    if pretrained := recipe.get("pretrained_model_name_or_path"):
        path = Path(pretrained)
        if path.name == "pretraining" and path.parent.parent == folder.parent:
            del kept["pretrained_model_name_or_path"]
    return kept


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between a run's recorded recipe and that of another run, which may be one to come. The text model is compared
    only where it is read: it is given to every run."""
    ignored = set() if "item_fields" in now else {"item_fields"}  # train.py knows those of a registered dataset
    if not needs_text(Recipe(**{**now, "pretrained_model_name_or_path": None})):
        ignored |= set(OF_TEXT)
    old, new = (flat(json.loads(json.dumps({**DEFAULTS, **own_choices(recipe)}))) for recipe in (then, now))
    changed = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.rpartition(".")[2] not in {*NOT_COMPUTED, *ignored}
    ]
    return [f"{key} {old.get(key, 'not set')} (now {new.get(key, 'not set')})" for key in changed]


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names.

    Example:
        >>> flat({"seed": 1, "finetuning": {"bf16": True}})
        {'seed': 1, 'finetuning.bf16': True}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found
