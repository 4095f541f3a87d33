"""The run that a recipe describes, stage by stage: prepare → align → finetune → evaluate → publish.

With `refit: true` these are run twice: on the training rows, where validation chooses, in the folder `selection`; and then on
training and validation rows together, for as long as was chosen.

Each stage takes what it needs and returns what it made; none changes what it was given. What went in and what came out stands in
`manifests/` of the output folder.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from ..checkpoint_files import MODEL, PROCESSOR, check_files
from ..configuration_flip import FlipConfig
from ..ctr_models import CTR_MODELS
from ..modeling_flip import FlipForCTR, FlipForPreTraining, FlipPreTrainedModel
from ..new_values import grow
from ..processing_flip import FlipProcessor
from ..row_dataset import FlipDataset
from . import manifest
from .calibration import platt, sampling_shift
from .callbacks import StopAfter
from .checkpoints import decided_once, fact, last_checkpoint
from .checks import check_recipe, item_fields
from .evaluation import evaluate_split, logged_validation
from .frozen import with_sentences
from .interruption import interruptible
from .metrics import named_logits
from .phases import phase
from .preparation import A_DAY, Prepared, prepare
from .publishing import (
    PREDICTIONS_FILE,
    PRETRAINING_RESULTS_FILE,
    RECIPE_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SELECTION,
    UNPUSHED,
    PublishCallback,
    Publisher,
    best_step,
    write_card,
)
from .recipe import (
    FREE_MODEL_KEYS,
    HUB_KEYS,
    Recipe,
    hub_repo,
    model_settings,
    needs_pretraining,
    refits_now,
    stage_arguments,
    uses_cpu,
)
from .reliability import RELIABILITY_FILE
from .resume import check_output_dir, restore_from_hub
from .sharding import alpha
from .splits import SPLITS, RawSplits
from .trainer import FlipTrainer
from .watching import end_logs, keep_logs

logger = logging.get_logger(__name__)

# What of the recipe each stage depends on; `prepare` on all the rest.
STAGE_KEYS = {
    "align": ("tabular_tower", "model", "pretraining", "seed", "max_eval_samples", "refit"),
    "finetune": (
        *("model_type", "towers", "tabular_tower", "model", "finetuning", "seed", "max_eval_samples"),
        *("calibration", "negative_sampling_rate", "refit"),
    ),
    "evaluate": ("negative_sampling_rate",),
    "publish": HUB_KEYS,
}
STAGE_SPLITS = {
    "prepare": SPLITS,
    "align": ("train", "validation"),
    "finetune": ("train", "validation"),
    "evaluate": ("validation", "test"),
    "publish": (),
}
# What finetuning, and what publishing, leave in the output folder.
MADE = (*MODEL.patterns, *PROCESSOR.patterns, "*.sha256", "*.py")
PUBLISHED = ("README.md", RESULTS_FILE)
ELSEWHERE = {"output_dir", "use_cpu", "cache_dir", "num_proc", "streaming"} | {
    key for keys in STAGE_KEYS.values() for key in keys
}
# Until another machine sees a new file: NFS may remember for so long that a folder is not there.
SECONDS_TO_SEE = 60.0


@dataclass(frozen=True)
class Aligned:
    """A pretraining checkpoint of this run.

    Attributes:
        folder: where it is.
        figures: what all_results.json says of it.
        seconds: how long it took.
        resumed: whether it was there already.
    """

    folder: Path
    figures: Mapping[str, Any]
    seconds: float
    resumed: bool


@dataclass(frozen=True)
class Finetuned:
    """A model that predicts clicks, saved to the output folder.

    Attributes:
        trainer: holds the model with the weights that were kept, and its processor.
        figures: what all_results.json says of the training.
        seconds: how long it took.
        resumed: whether it went on from a checkpoint.
        prepared: the rows; with what the text tower makes of them, if that is frozen.
    """

    trainer: FlipTrainer
    figures: Mapping[str, Any]
    seconds: float
    resumed: bool
    prepared: Prepared

    @property
    def model(self) -> FlipPreTrainedModel:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)


@dataclass(frozen=True)
class Run:
    """What every stage is told beside what it works on.

    Attributes:
        recipe: what was asked for.
        facts: recipe, seed, commit, versions and hardware, as in all_results.json.
        publisher: the repo on the Hub; None where nothing is pushed.
        selected: before a refit, the results of the model that chose; else empty.
    """

    recipe: Recipe
    facts: Mapping[str, Any] = field(default_factory=dict)
    publisher: Publisher | None = None
    selected: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output_dir)

    def inputs(self, stage: str, prepared: Prepared) -> dict[str, Any]:
        """What the manifest of a stage says went in."""
        recipe = self.recipe.to_dict()
        keys = STAGE_KEYS.get(stage, recipe.keys() - ELSEWHERE)
        return {
            "recipe": {key: value for key, value in recipe.items() if key in keys},
            "data": {
                split: prepared.inputs["data"][split] for split in STAGE_SPLITS[stage] if split in prepared.splits
            },
            "vocabulary": prepared.inputs["vocabulary"],
            "text_model": prepared.inputs["text_model"],
            "versions": self.facts["versions"],
            "commit": self.facts["commit"],
        }

    def callbacks(self, processor: FlipProcessor, **layout: Any) -> list[TrainerCallback]:
        """Those of a training: the one that pushes, where that is asked for."""
        if self.publisher is None:
            return []
        state_files = {"prepare.json": manifest.path_of(self.folder, "prepare")}
        strategy = self.recipe.hub_strategy
        return [
            PublishCallback(self.publisher, processor, strategy, state_files=state_files, facts=self.facts, **layout)
        ]


def run(
    recipe: Recipe,
    tables: Mapping[str, Any],
    kinds: Mapping[str, str] | None = None,
    wall_time: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Pretrain, finetune, evaluate on the untouched test set, and save.

    Everything that can be wrong with the input is looked at before training starts. An interrupted run continues where it
    was when run again; a finished one returns its results.

    Args:
        recipe: what is asked for.
        tables: the raw rows of each of SPLITS: those of `load_splits`, Arrow tables or `datasets.Dataset`s.
        kinds: of the columns whose kind the dataset says, where the recipe does not.
        wall_time: seconds that went before, such as `read_seconds`.

    Returns:
        what all_results.json holds.

    Raises:
        ValueError: something is wrong with the recipe, the data or the output folder, with the value and the remedy; or they
            are others than when the run was begun.
    """
    times = dict(wall_time or {})
    started = time.perf_counter() - sum(times.values())
    state = processes_of(recipe)
    check_recipe(recipe)
    raw = tables if isinstance(tables, RawSplits) else RawSplits.of(tables)
    check_shared(Path(recipe.output_dir))
    with state.main_process_first():
        if recipe.push_to_hub and recipe.hub_strategy == "checkpoint":
            restore_from_hub(recipe)
    if check_output_dir(recipe) and (Path(recipe.output_dir) / RESULTS_FILE).exists():
        return finished(recipe)

    all_rows = raw.with_validation_in_train() if recipe.refit is not None else raw
    if refits_now(recipe):
        raw = all_rows
    prepared = prepare(recipe, raw, kinds, times)
    publisher = None
    if recipe.push_to_hub:
        publisher = Publisher(hub_repo(recipe), recipe.hub_private_repo, revision=recipe.hub_revision)
    this = Run(recipe, {"recipe": recipe.to_dict(), "seed": recipe.seed} | manifest.environment(), publisher)
    with state.main_process_first():
        begin(this, prepared)
    if publisher is not None and state.is_main_process:
        publisher.create()

    try:
        if recipe.refit is True:
            begun = time.perf_counter()
            selected = select(this, prepared)
            started += time.perf_counter() - begun  # its time is in its own results
            epochs = selected["best_epoch"] or selected["epochs"]
            logger.warning(f"refit: training again on training and validation rows together, for {epochs:g} epochs")
            this = replace(this, recipe=replace(recipe, refit=epochs), selected=selected)
            prepared = prepare(this.recipe, all_rows, kinds, times)
        return all_stages(this, prepared, times, started)
    except Exception as error:  # whatever first misses a file: each library has errors of its own
        if (this.folder / RECIPE_FILE).exists():
            raise
        raise ValueError(manifest.DELETED.format(this.folder)) from error


def select(run: Run, prepared: Prepared) -> dict[str, Any]:
    """Train on the training rows, in a folder of its own; returns what its all_results.json holds."""
    alone = {key: getattr(Recipe, key) for key in HUB_KEYS}
    recipe = replace(run.recipe, output_dir=str(run.folder / SELECTION), refit=None, **alone)
    this = Run(recipe, dict(run.facts) | {"recipe": recipe.to_dict()})
    if check_output_dir(recipe) and (this.folder / RESULTS_FILE).exists():
        return dict(json.loads((this.folder / RESULTS_FILE).read_text()))
    with PartialState().main_process_first():
        begin(this, prepared)
    return all_stages(this, prepared, {}, time.perf_counter())


def all_stages(run: Run, prepared: Prepared, wall_time: dict[str, float], started: float) -> dict[str, Any]:
    """Run the stages after `prepare`; returns what all_results.json holds."""
    set_seed(run.recipe.seed)
    results: dict[str, Any] = {}
    aligned = align(run, prepared) if needs_pretraining(run.recipe) else None
    if aligned is not None:
        results |= aligned.figures
        wall_time["pretraining_seconds"] = aligned.seconds
        started -= aligned.seconds if aligned.resumed else 0
    with phase("finetuning"):
        finetuned = finetune(run, prepared, aligned)
    wall_time["finetuning_seconds"] = finetuned.seconds
    results["resumed"] = finetuned.resumed or (
        aligned is not None and aligned.resumed
    )  # then times count what was kept
    results |= finetuned.figures
    with phase("evaluation", wall_time):
        results |= evaluate(run, finetuned.prepared, finetuned)
    wall_time["total_seconds"] = time.perf_counter() - started
    if run.selected:
        results["selection"] = {key: value for key, value in run.selected.items() if key not in run.facts}
    results |= {"wall_time": wall_time} | dict(run.facts) | dict(prepared.reports)
    with phase("publishing"):
        publish(run, prepared, finetuned, results)
    return results


# ---- before training


def processes_of(recipe: Recipe) -> PartialState:
    """The processes of a run, connected so that they wait for each other for a day: one prepares the rows for all.

    To be called before a stage's arguments are made, which would connect them with torch's timeout of minutes.
    """
    return PartialState(cpu=uses_cpu(recipe), timeout=timedelta(seconds=A_DAY))


def check_shared(folder: Path) -> None:
    """Makes the output folder where there are several processes.

    Raises:
        ValueError: on every process, if one of them does not see what the first writes there.
    """
    state = PartialState()
    if state.num_processes == 1:
        return
    # Not the recipe: one that an earlier run has left in a folder of the same name would be taken for it.
    file, token = folder / ".seen", token_hex(8)
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(token)
    (token,) = broadcast_object_list([token])
    deadline = time.monotonic() + SECONDS_TO_SEE
    while not (sees := _holds(file, token)) and time.monotonic() < deadline:
        time.sleep(0.1)
    seen = gather_object([sees])
    if state.is_main_process:
        file.unlink()
    if not all(seen):
        raise ValueError(
            f"output_dir is {str(folder)!r}, and process {seen.index(False)} does not see what the first one writes there: "
            "output_dir must be a folder that all machines share"
        )


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


def begin(run: Run, prepared: Prepared) -> None:
    """Begin the run in its folder, or go on with it there.

    Raises:
        ValueError: it was begun with another recipe, other data, another vocabulary or another text model.
    """
    inputs = run.inputs("prepare", prepared)
    if check_output_dir(run.recipe):
        manifest.check_same_inputs(run.folder, "prepare", inputs)
    elif PartialState().is_main_process:
        run.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(manifest.path_of(run.folder, "prepare").parent, ignore_errors=True)
        manifest.write(run.folder / RECIPE_FILE, run.recipe.to_yaml())
    if not manifest.path_of(run.folder, "prepare").exists():
        with manifest.recorded(run.folder, "prepare", inputs) as outputs:
            outputs.figures = dict(prepared.reports)


# ---- training


def align(run: Run, prepared: Prepared) -> Aligned:
    """Align the two towers on the training rows; checkpoint and figures go to `pretraining/`."""
    folder = run.folder / "pretraining"
    resumed = decided_once(lambda: is_aligned(run.folder, folder))
    if not (resumed and manifest.is_complete(run.folder, "align")):
        with manifest.recorded(run.folder, "align", run.inputs("align", prepared)) as outputs:
            if not resumed:
                with phase("pretraining"):
                    pretrain(run, prepared, folder)
            outputs.figures = json.loads((folder / PRETRAINING_RESULTS_FILE).read_text())
            outputs.files = [file for file in folder.iterdir() if file.is_file()]
    figures = json.loads((folder / PRETRAINING_RESULTS_FILE).read_text())
    seconds = figures.pop("pretraining_seconds")
    return Aligned(folder, figures, seconds, resumed)


def is_aligned(run_folder: Path, folder: Path) -> bool:
    """Whether the folder holds a finished, undamaged alignment. A damaged one is deleted, and the log says so."""
    if not folder.exists():
        return False
    try:
        manifest.check_outputs(run_folder, "align")
        for part in (MODEL, PROCESSOR):
            check_files(folder, part)
        json.loads((folder / PRETRAINING_RESULTS_FILE).read_text())
    except (ValueError, OSError) as error:
        logger.warning(f"the pretraining checkpoint in {folder} is damaged ({fact(error)}): pretraining starts again")
        shutil.rmtree(folder)
        return False
    return True


def train(trainer: FlipTrainer, folder: Path, stage: str) -> bool:
    """Train from the last checkpoint, if there is one; whether there was. A signal ends it with another checkpoint."""
    last = last_checkpoint(trainer.args)
    keep_logs(trainer, folder, stage)
    with interruptible(trainer):
        trainer.train(resume_from_checkpoint=last)
    end_logs(trainer)
    return last is not None


def pretrain(run: Run, prepared: Prepared, folder: Path) -> None:
    started, recipe, processor = time.perf_counter(), run.recipe, prepared.processor
    model = FlipForPreTraining.from_text_pretrained(recipe.text_model_name_or_path, processor, **model_settings(recipe))
    arguments = stage_arguments(recipe, "pretraining")
    callbacks = run.callbacks(processor, subfolder="pretraining")
    trainer = FlipTrainer(model, arguments, processor, prepared.splits["train"], prepared.watched, callbacks)
    train(trainer, run.folder, "pretraining")
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    figures = {
        "pretraining_samples_per_second": trainer.clock.median,
        "pretraining_losses": {k: v for k, v in logged[-1].items() if k.endswith("loss")} if logged else {},
        "pretraining_seconds": time.perf_counter() - started,
    }
    unfinished = folder.with_name(f".{folder.name}")  # renamed when whole: the folder is never seen half-written
    trainer.save_model(str(unfinished), _internal_call=True)
    if trainer.is_world_process_zero():
        card(run, trainer, unfinished, run.facts)
        (unfinished / PRETRAINING_RESULTS_FILE).write_text(json.dumps(figures, indent=2) + "\n")
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        unfinished.rename(folder)
    trainer.accelerator.wait_for_everyone()


def finetune(run: Run, prepared: Prepared, aligned: Aligned | None) -> Finetuned:
    """Train a model to predict clicks, from an alignment's checkpoint if there is one, and save it to the output folder."""
    with manifest.recorded(run.folder, "finetune", run.inputs("finetune", prepared)) as outputs:
        begun = time.perf_counter()
        set_seed(run.recipe.seed)  # finetuning is the same after a resumed pretraining as after a straight one
        model = make_model(run.recipe, prepared.processor, aligned)
        processor = prepared.processor.tabular_only() if model.inputs == ("feature_ids",) else prepared.processor
        folders = {} if aligned is None else {"pretraining": aligned.folder}
        arguments = stage_arguments(run.recipe, "finetuning")
        if arguments.freeze_text_tower and isinstance(model, FlipForCTR):
            prepared = with_sentences(prepared, model, processor, arguments)
        trainer = FlipTrainer(
            model,
            arguments,
            processor,
            prepared.splits["train"],
            prepared.watched,
            run.callbacks(processor, folders=folders),
        )
        resumed = train(trainer, run.folder, "finetuning")
        warn_of_an_early_end(trainer)
        calibration = calibrate(run, trainer, prepared.splits.get("validation"))
        seconds = time.perf_counter() - begun
        trainer.save_model(str(run.folder), _internal_call=True)
        trainer.accelerator.wait_for_everyone()
        figures = training_figures(trainer) | calibration
        outputs.figures = figures | {"finetuning_seconds": seconds}
        outputs.files = [*{file for pattern in MADE for file in run.folder.glob(pattern)}]
    return Finetuned(trainer, figures, seconds, resumed, prepared)


def warn_of_an_early_end(trainer: FlipTrainer) -> None:
    """Warns where a refit was ended by its number of steps."""
    epochs, epoch = trainer.args.stop_after_epochs, trainer.state.epoch or 0.0
    if epochs is not None and not StopAfter(epochs).is_over(epoch):
        logger.warning(
            f"the refit ended after {epoch:.3g} of {epochs:.3g} epochs, because finetuning.max_steps is "
            f"{trainer.args.max_steps}. With the validation rows an epoch has more steps: give finetuning.num_train_epochs "
            "instead"
        )


def calibrate(run: Run, trainer: FlipTrainer, validation: FlipDataset | None) -> dict[str, Any]:
    """Set the model's scale and shift of its logits as the recipe asks; what all_results.json says of it. After a refit, whose
    model has seen the validation rows, they are those of the model that chose."""
    recipe, rate = run.recipe, run.recipe.negative_sampling_rate
    if recipe.calibration is None and rate is None:
        return {}
    scale, shift = unfitted = 1.0, sampling_shift(rate)
    if run.selected:
        scale, shift = run.selected["logit_scale"], run.selected["logit_shift"]
    elif recipe.calibration == "platt" and validation is not None:
        output = trainer.predict_logits(validation, "validation")
        scale, shift = platt(named_logits(output.predictions)[""], np.asarray(output.label_ids))
        shift += sampling_shift(rate)
    config = trainer.accelerator.unwrap_model(trainer.model).config
    config.logit_scale, config.logit_shift, config.sampling_shift = scale, shift, sampling_shift(rate)
    fitted = (scale, shift) != unfitted  # Platt scaling may be refused
    said = {"calibration": recipe.calibration if fitted else None, "negative_sampling_rate": rate}
    said |= {"logit_scale": config.logit_scale, "logit_shift": config.logit_shift}
    return {key: value for key, value in said.items() if value is not None}


def make_model(recipe: Recipe, processor: FlipProcessor, aligned: Aligned | None) -> FlipPreTrainedModel:
    """The model to finetune: a checkpoint's towers, or a fresh one around the text model."""
    if recipe.init_from is not None:
        return grown_model(recipe, processor)
    pretrained = recipe.pretrained_model_name_or_path if aligned is None else str(aligned.folder)
    if pretrained is not None:
        free = {key: value for key, value in recipe.model.items() if key in FREE_MODEL_KEYS}
        return FlipForCTR.from_pretrained(pretrained, towers=recipe.towers, **free)
    settings = model_settings(recipe)
    if recipe.model_type == "flip":
        settings["towers"] = recipe.towers
    if recipe.model_type in ("ctr_bert", "morec") or recipe.item_fields:
        settings["item_fields"] = [processor.fields.index(name) for name in item_fields(recipe, processor.schema)]
    model_class = CTR_MODELS[recipe.model_type]
    try:
        return model_class.from_text_pretrained(recipe.text_model_name_or_path, processor, **settings)
    except (RuntimeError, MemoryError) as error:
        if "alloc" not in str(error) and not isinstance(error, MemoryError):
            raise
        raise ValueError(
            f"a model of these sizes ({', '.join(f'{k} {v}' for k, v in recipe.model.items())}) does not fit in memory: lower "
            "them in the recipe's section model"
        ) from error


def grown_model(recipe: Recipe, processor: FlipProcessor) -> FlipForCTR:
    """The model of the checkpoint in `init_from`, with the features of a processor that has grown from its own."""
    checkpoint = str(recipe.init_from)
    before, has_text = (
        FlipProcessor.from_pretrained(checkpoint),
        FlipConfig.from_pretrained(checkpoint).towers == "both",
    )
    free = {key: value for key, value in recipe.model.items() if key in FREE_MODEL_KEYS}
    model = FlipForCTR.from_pretrained(checkpoint, towers=recipe.towers, logit_scale=1.0, logit_shift=0.0, **free)
    if not has_text and recipe.towers != "text":
        logger.warning(
            f"{checkpoint} has no text tower to predict embeddings with: new values start from the mean of their field; name a "
            "checkpoint of both towers to start from their words"
        )
    teacher = None
    if has_text and recipe.towers != "text":
        teacher = FlipForCTR.from_pretrained(checkpoint, towers="both").to(PartialState().device).eval()
    grow(model, before, processor, teacher)
    return model


def training_figures(trainer: FlipTrainer) -> dict[str, Any]:
    """What all_results.json says of a finetuning."""
    state = trainer.state
    evaluated = [entry for entry in state.log_history if "eval_auc" in entry]
    best = best_step(trainer.args, state)
    return {
        "train_samples_per_second": trainer.clock.median,
        "epochs": state.epoch,
        # The epoch whose weights were kept for being best on validation; None where none was chosen.
        "best_epoch": next((entry["epoch"] for entry in evaluated if entry["step"] == best), None),
        "history": [
            {k.removeprefix("eval_"): v for k, v in entry.items() if re.search(r"auc|logloss|epoch", k)}
            for entry in evaluated
        ],
    }


# ---- after training


def evaluate(run: Run, prepared: Prepared, finetuned: Finetuned) -> dict[str, Any]:
    """Metrics on validation and test, and what is known of the model."""
    model, results = finetuned.model, dict[str, Any]()
    with manifest.recorded(run.folder, "evaluate", run.inputs("evaluate", prepared)) as outputs:
        results |= logged_validation(finetuned.trainer, prepared)
        for split in [split for split in prepared.splits if split != "train" and f"{split}_auc" not in results]:
            rate, groups = run.recipe.negative_sampling_rate, prepared.groups.get(split)
            folder = run.folder if split == "test" else None
            results |= evaluate_split(finetuned.trainer, prepared.splits[split], split, groups, rate, folder)
        if isinstance(model, FlipForCTR):
            results["alpha"] = alpha(model)
        results["num_parameters"] = model.num_parameters()
        if model.inputs != ("feature_ids",):
            # The one whose weights are in the model: a pretraining checkpoint's, whatever the recipe names.
            results["text_model"] = model.config.text_config.name_or_path
        outputs.figures = results
        if finetuned.trainer.is_world_process_zero():
            outputs.files = [run.folder / name for name in (RELIABILITY_FILE, PREDICTIONS_FILE)]
    return results


def publish(run: Run, prepared: Prepared, finetuned: Finetuned, results: Mapping[str, Any]) -> None:
    """Write card and results, push the output folder where that is asked for, and delete the checkpoints."""
    trainer, publisher = finetuned.trainer, run.publisher
    if trainer.is_world_process_zero():
        with manifest.recorded(run.folder, "publish", run.inputs("publish", prepared)) as outputs:
            card(run, trainer, run.folder, results)
            manifest.write_run(run.folder / RUN_FILE, run.facts, prepared.inputs, results)
            manifest.write(run.folder / RESULTS_FILE, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
            outputs.files = [run.folder / name for name in PUBLISHED]
    trainer.accelerator.wait_for_everyone()  # the others need not wait for the Hub
    if not trainer.is_world_process_zero():
        return
    if publisher is not None:
        arrived = publisher.push(run.folder, "End of training", ignore=UNPUSHED)
        publisher.wait()
        if publisher.failures:
            logger.warning(f"{len(publisher.failures)} pushes failed:\n  " + "\n  ".join(publisher.failures))
        if not arrived.is_set():
            logger.error(
                f"the finished model is complete in {run.folder}, but not on the Hub: run the same command again to push it"
            )
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


def card(run: Run, trainer: FlipTrainer, folder: Path, results: Mapping[str, Any]) -> None:
    """Write README.md and the training curve of what a trainer has trained."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    repo_id = None if run.publisher is None else run.publisher.repo_id
    history, revision = trainer.state.log_history, run.recipe.hub_revision
    write_card(folder, model, trainer.processor, trainer.args, results, history, repo_id, revision)


def finished(recipe: Recipe) -> dict[str, Any]:
    """The results of a run that has ended; its folder is pushed where that is asked for.

    Raises:
        ValueError: the Hub refuses it, or cannot be reached.
    """
    output_dir = Path(recipe.output_dir)
    logger.warning(f"{output_dir} is finished; delete it to run again")
    results: dict[str, Any] = json.loads((output_dir / RESULTS_FILE).read_text())
    if PartialState().is_main_process:
        # It may have been killed just before the one or the other.
        if (noted := manifest.path_of(output_dir, "publish")).exists() and not manifest.is_complete(
            output_dir, "publish"
        ):
            with manifest.recorded(output_dir, "publish", json.loads(noted.read_text())["inputs"]) as outputs:
                outputs.files = [output_dir / name for name in PUBLISHED]
        shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)
        if recipe.push_to_hub:
            push_finished(recipe, results)
    return results


def push_finished(recipe: Recipe, results: Mapping[str, Any]) -> None:
    """Push the output folder of a run that has ended, with a card that names the repo."""
    output_dir = Path(recipe.output_dir)
    publisher = Publisher(hub_repo(recipe), recipe.hub_private_repo, revision=recipe.hub_revision)
    publisher.create()
    model = CTR_MODELS[recipe.model_type].from_pretrained(output_dir)
    processor = FlipProcessor.from_pretrained(output_dir)
    told = dict(results) | {"recipe": results["recipe"] | {"license": recipe.license}}
    arguments, revision = stage_arguments(recipe, "finetuning"), recipe.hub_revision
    write_card(output_dir, model, processor, arguments, told, repo_id=publisher.repo_id, revision=revision)
    arrived = publisher.push(output_dir, "End of training", ignore=UNPUSHED)
    publisher.wait()
    if not arrived.is_set():
        raise ValueError(f"{output_dir} cannot be pushed to {publisher.repo_id!r}: {publisher.failures[-1]}")
