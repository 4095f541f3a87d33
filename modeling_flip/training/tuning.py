"""`--tune N`: finetuning's hyperparameters, searched over a grid and chosen on the validation rows; pretraining is shared.

Trainer's own `hyperparameter_search` is not used. It makes each trial's model inside `Trainer.train`, after `FlipTrainer` has set
up the one before (adapters, sparse gradients, parts of tables); its objective is the last epoch, not the one that is kept; and a
trial that was interrupted begins anew. Here a trial is the finetuning stage as it always is, in a folder of its own, and Optuna
keeps what came of it.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.utils import logging

from ..commands import installs
from ..configuration_flip import FlipConfig
from . import manifest
from .checkpoints import decided_once
from .checks import check_connection, check_recipe
from .phases import phase
from .preparation import Prepared, prepare
from .publishing import TRIALS, kept_step, validation_of
from .recipe import HUB_KEYS, Recipe, needs_pretraining, stage_arguments
from .splits import RawSplits
from .stages import Aligned, Run, align, begin, check_shared, finetune, processes_of

logger = logging.get_logger(__name__)

LEARNING_RATES = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3)  # the paper's grid
EMBEDDING_L2 = (0.0, 1e-5, 1e-4)  # up to that of the authors' code
STUDY, TABLE, LIST, BEST = "trials.db", "trials.csv", "trials.json", "best.yaml"
METRICS = ("validation_auc", "validation_logloss")


def tune(
    recipe: Recipe,
    tables: Mapping[str, Any],
    num_trials: int,
    kinds: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Align once, and finetune with one setting of the grid after another; the recipe's own is the first. Nothing is scored on
    the test rows. Run again, it goes on, until there are `num_trials`.

    The output folder then holds the trials (TABLE, LIST, and STUDY, which Optuna reads) and BEST, a recipe of the best.

    Args:
        recipe: what to finetune; its settings outside of the grid stay.
        tables: the raw rows, as of `stages.run`.
        num_trials: how many there shall be in all.
        kinds: of the columns whose kind the dataset says.

    Returns:
        the trials, as LIST holds them: `trial`, a key for each setting, METRICS, `best_epoch` and `seconds`; METRICS and
        `best_epoch` are None where the loss or a weight was not finite, `best_epoch` also where no best checkpoint is kept.

    Raises:
        ValueError: something is wrong with the recipe, the number, the data or the output folder; or Optuna is missing.
    """
    state = processes_of(recipe)
    check_tuning(recipe, num_trials)
    check_recipe(recipe)
    raw = tables if isinstance(tables, RawSplits) else RawSplits.of(tables)
    check_shared(Path(recipe.output_dir))
    prepared = prepare(recipe, raw, kinds)
    this = Run(recipe, {"recipe": recipe.to_dict(), "seed": recipe.seed} | manifest.environment())
    with state.main_process_first():
        begin(this, prepared)
    set_seed(recipe.seed)
    aligned = align(this, prepared) if needs_pretraining(recipe) else None
    grid = settings_in_order(recipe)
    study = study_of(this.folder) if state.is_main_process else None
    done: int = decided_once(lambda: len(trials_of(study)))
    for number in range(done, num_trials):
        with phase(f"trial {number + 1} of {num_trials}"):
            found = one_trial(this, prepared, aligned, number, grid[number])
        if state.is_main_process:
            keep(study, space(recipe), grid[number], found)
            write_trials(this, aligned, trials_of(study))
            shutil.rmtree(this.folder / TRIALS / f"trial-{number}")
        state.wait_for_everyone()
    return decided_once(lambda: trials_of(study))


def check_tuning(recipe: Recipe, num_trials: int) -> None:
    """Raises ValueError if there can be no such search."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--tune needs Optuna: {installs('tune')}") from error
    if num_trials < 1:
        raise ValueError(f"--tune is {num_trials}; it is the number of trials, 1 or more")
    check_connection(recipe)
    if recipe.refit is not None:
        raise ValueError(
            f"refit is {recipe.refit}, but a search trains on the training rows alone: leave refit out of it, and set it in "
            f"{BEST}"
        )
    if recipe.push_to_hub:
        raise ValueError(f"push_to_hub is true, but a search ends with no model: leave it out, and set it in {BEST}")
    if stage_arguments(recipe, "finetuning").eval_strategy == "no":
        raise ValueError(
            "finetuning.eval_strategy is no, but a search chooses by validation AUC: set it to epoch or steps"
        )
    if num_trials > (most := len(settings_in_order(recipe))):
        raise ValueError(f"--tune is {num_trials}, but the grid has only {most} settings: give {most} or less")


# ---- the grid


def own_settings(recipe: Recipe) -> dict[str, float]:
    """The hyperparameters of the grid that the recipe's model has, as the recipe sets them, by their keys there."""
    arguments = stage_arguments(recipe, "finetuning")
    rate, text_rate = arguments.learning_rate, arguments.text_learning_rate
    is_frozen = arguments.freeze_text_tower or recipe.model.get("freeze_text_tower", False)
    settings: dict[str, float] = {}
    if recipe.model_type != "p5":  # which is all text tower
        settings["finetuning.learning_rate"] = rate
    if not is_frozen and (recipe.model_type != "flip" or recipe.towers != "tabular"):
        settings["finetuning.text_learning_rate"] = rate if text_rate is None else text_rate
    if recipe.model_type in ("flip", "morec") and recipe.towers != "text":
        settings["model.embedding_l2"] = recipe.model.get("embedding_l2", FlipConfig.embedding_l2)
    return {key: float(value) for key, value in settings.items()}


def space(recipe: Recipe) -> dict[str, list[float]]:
    """The values to try of each of `own_settings`, these among them."""
    return {
        key: sorted({own, *(EMBEDDING_L2 if key == "model.embedding_l2" else LEARNING_RATES)})
        for key, own in own_settings(recipe).items()
    }


def settings_in_order(recipe: Recipe) -> list[dict[str, float]]:
    """Every setting of the grid, in the order in which they are tried: the recipe's own, and the others by its seed."""
    values, own = space(recipe), own_settings(recipe)
    others = [dict(zip(values, setting, strict=True)) for setting in itertools.product(*values.values())]
    others.remove(own)
    return [own, *random.Random(recipe.seed).sample(others, len(others))]


def with_settings(recipe: Recipe, settings: Mapping[str, float]) -> Recipe:
    """The recipe with other values of dotted keys, such as `finetuning.learning_rate`."""
    sections: dict[str, Any] = {key: dict(getattr(recipe, key)) for key in ("model", "finetuning")}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    return replace(recipe, **sections)


# ---- trials


def one_trial(
    run: Run, prepared: Prepared, aligned: Aligned | None, number: int, settings: Mapping[str, float]
) -> dict[str, Any]:
    """Finetune with these settings, or go on with it; what is to be kept of it."""
    alone = {key: getattr(Recipe, key) for key in HUB_KEYS}
    folder = run.folder / TRIALS / f"trial-{number}"
    recipe = replace(with_settings(run.recipe, settings), output_dir=str(folder), calibration=None, **alone)
    begun = time.perf_counter()
    found: dict[str, Any] = dict.fromkeys((*METRICS, "best_epoch"))
    try:
        finetuned = finetune(replace(run, recipe=recipe), prepared, aligned)
    except FloatingPointError as error:
        logger.warning(f"trial {number}: {error}")
    else:
        trainer = finetuned.trainer
        measured = validation_of(trainer.state.log_history, kept_step(trainer.args, trainer.state))
        found = {metric: measured[metric] for metric in METRICS} | {"best_epoch": finetuned.figures["best_epoch"]}
    return found | {"seconds": round(time.perf_counter() - begun, 1)}


def study_of(folder: Path) -> Any:
    """The study in a run's folder, which is created if there is none."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{(folder / STUDY).absolute()}"
    return optuna.create_study(storage=storage, study_name="finetuning", direction="maximize", load_if_exists=True)


def keep(
    study: Any, values: Mapping[str, Sequence[float]], settings: Mapping[str, float], found: Mapping[str, Any]
) -> None:
    """Add a trial that has ended to the study."""
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    auc = found["validation_auc"]
    trial = create_trial(
        state=TrialState.FAIL if auc is None else TrialState.COMPLETE,
        value=auc,
        params=dict(settings),
        distributions={key: CategoricalDistribution(list(choices)) for key, choices in values.items()},
        user_attrs=dict(found),
    )
    study.add_trial(trial)


def trials_of(study: Any) -> list[dict[str, Any]]:
    return [{"trial": trial.number} | trial.params | trial.user_attrs for trial in study.get_trials()]


def best_of(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The trial with the highest validation AUC, the first of equal ones; None where all have failed."""
    finite = [trial for trial in trials if trial["validation_auc"] is not None]
    return max(finite, key=lambda trial: trial["validation_auc"], default=None)


def write_trials(run: Run, aligned: Aligned | None, trials: Sequence[Mapping[str, Any]]) -> None:
    """Write the trials, and the recipe of the best so far, to the run's folder."""
    recipe = run.recipe
    manifest.write(run.folder / LIST, json.dumps(trials, indent=2) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(trials[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(trials)
    manifest.write(run.folder / TABLE, text.getvalue())
    if (best := best_of(trials)) is not None:
        of_best = with_settings(recipe, {key: best[key] for key in own_settings(recipe)})
        of_best = replace(of_best, output_dir=f"{recipe.output_dir}-best")
        if aligned is not None:
            of_best = replace(of_best, pretraining=None, pretrained_model_name_or_path=str(aligned.folder))
        manifest.write(run.folder / BEST, of_best.to_yaml())


def show(trials: Sequence[Mapping[str, Any]], command: str) -> str:
    """The trials in Markdown, the best first, and the command that trains it."""

    def cell(key: str, value: Any) -> str:
        return "–" if value is None else f"{value:.4f}" if key in METRICS else f"{value:g}"

    ranked = sorted(trials, key=lambda trial: 0 if trial["validation_auc"] is None else -trial["validation_auc"])
    lines = [[*ranked[0]], ["---"] * len(ranked[0]), *([cell(*pair) for pair in trial.items()] for trial in ranked)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if (best := best_of(trials)) is None:
        return f"{text}\n\nEvery trial has failed: lower the recipe's learning rates."
    return (
        f"{text}\n\nTrial {best['trial']} is best on validation. Train it, and score it on the test rows:\n  {command}"
    )
