"""FlipTrainer: the transformers Trainer, with what FLIP adds to it."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import HubStrategy, PredictionOutput, TrainOutput
from transformers.utils import logging

from .data_collator import FlipDataCollator, PretrainingCollator, check_masking
from .hub import create_repo, is_final, push_error, upload
from .metrics import CtrMetrics
from .model_card import CURVE_FILE, model_card
from .modeling_flip import FlipForCTR, FlipForPreTraining, FlipPreTrainedModel
from .processing_flip import FlipProcessor
from .row_dataset import FlipDataset
from .tabular_layers import BatchNorm

logger = logging.get_logger(__name__)

RECIPE_FILE = "recipe.yaml"
# Of a checkpoint, what only a resumed training reads.
STATE_FILES = ("optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "trainer_state.json")
# Of an output folder, what stays here: the state of a training, and files that are being written.
UNPUSHED = ("checkpoints/*", "checkpoint-*/*", "runs/*", ".*", "*/.*")
LAST = "last-checkpoint"
RESULTS_FILE, PRETRAINING_RESULTS_FILE = "all_results.json", "pretraining_results.json"
# What a push takes from the repo unless it brings it: of an earlier run there, it would pass for this one's.
NOT_OF_THIS_RUN = (f"{LAST}/*", RESULTS_FILE, f"pretraining/{PRETRAINING_RESULTS_FILE}")
ONE_PUSH_AT_A_TIME = threading.Lock()  # a later one would overtake it
CARD_ARGUMENTS = (
    "learning_rate",
    "text_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "bf16",
    "float32_matmul_precision",
)


@dataclass
class FlipTrainingArguments(TrainingArguments):
    """TrainingArguments, and these:

    Args:
        learning_rate: of everything but the text tower.
        text_learning_rate: of the text tower; by default the same.
        early_stopping_patience: evaluations without a better validation metric before training stops; None: never.
        text_mask_ratio: share of fields masked in the text (pretraining).
        tabular_mask_ratio: share of fields masked in the table (pretraining).
        num_noise_features: K, noise features drawn per row for MTM (pretraining).
        text_masking: "field", or "token" for the ablation (pretraining).
        train_sampling_strategy: "group_by_length" batches sentences of like length where there is text, else "random".
        float32_matmul_precision: how exact the products of fp32 tensors are, as in `torch.set_float32_matmul_precision`:
            "high" is TF32 on a GPU, "medium" bf16 on a CPU that has it, where tabular towers train up to twice as fast;
            None leaves torch as it is. Only while training.
        hub_subfolder: folder of the repo where checkpoints go; by default its root.
    """

    text_learning_rate: float | None = field(default=None, metadata={"help": "Of the text tower; default: the same."})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "Evaluations without a better metric."})
    text_mask_ratio: float = field(default=0.15, metadata={"help": "Share of fields masked in the text."})
    tabular_mask_ratio: float = field(default=0.15, metadata={"help": "Share of fields masked in the table."})
    num_noise_features: int = field(default=25, metadata={"help": "Noise features drawn per row for MTM."})
    text_masking: str = field(default="field", metadata={"help": "Mask whole fields' values, or random tokens: token."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Or random."})
    float32_matmul_precision: str | None = field(
        default=None, metadata={"help": "torch's: highest, high, or medium (bf16 products, faster on new CPUs)."}
    )
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Rows per step and device."})
    per_device_eval_batch_size: int = field(default=1024, metadata={"help": "Rows per evaluation step and device."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.accelerator.is_available, metadata={"help": "For the GPU."}
    )
    hub_subfolder: str = field(
        default="", metadata={"help": "Folder of the repo where checkpoints go; default: its root."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches are not columns of a Dataset."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "It would hide a loss that is not finite."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.float32_matmul_precision not in (None, "highest", "high", "medium"):
            raise ValueError(f"float32_matmul_precision is {self.float32_matmul_precision!r}: highest, high or medium")
        check_masking(self.text_mask_ratio, self.tabular_mask_ratio, self.text_masking)
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError(
                "early_stopping_patience is set, but eval_strategy is 'no': there is nothing to be patient with"
            )


class LengthBuckets(LengthGroupedSampler):
    """Batches of like length in an order that depends on seed and epoch alone, so that all processes, and a resumed run,
    see the same."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class SetEpoch(TrainerCallback):
    """Tells the dataset its epoch, from which masks are drawn: accelerate does so only on a single process."""

    def __init__(self, dataset: FlipDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dataset.set_epoch(int((state.epoch or 0) + 1e-6))


class EpochClock(TrainerCallback):
    """Training speed of each epoch: Trainer's own figure counts the epochs that early stopping left out, and evaluations.

    Attributes:
        samples_per_second: of each epoch that this process has trained.
    """

    def __init__(self) -> None:
        self.samples_per_second: list[float] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first_step = time.perf_counter(), state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        samples = (state.global_step - self._first_step) * args.train_batch_size * args.gradient_accumulation_steps
        self.samples_per_second.append(samples * args.world_size / (time.perf_counter() - self._began))

    @property
    def median(self) -> float | None:
        """Of all epochs; None where none was trained."""
        return float(np.median(self.samples_per_second)) if self.samples_per_second else None


def ctr_metrics(logits: np.ndarray | Iterable[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Metrics of a prediction: `auc`, `logloss`, `ece`, and for two towers also `tabular_auc`, `text_auc`, …"""
    named = (
        {"": logits} if isinstance(logits, np.ndarray) else dict(zip(("", "tabular_", "text_"), logits, strict=True))
    )
    metrics: dict[str, float] = {}
    for prefix, tower_logits in named.items():
        probabilities = torch.from_numpy(np.asarray(tower_logits, np.float64)).sigmoid().numpy()
        computed = CtrMetrics().compute(predictions=probabilities, references=labels.astype(np.int64)) or {}
        metrics |= {prefix + name: value for name, value in computed.items()}
    return metrics


class FlipTrainer(Trainer):
    """Trains `FlipForPreTraining`, `FlipForCTR` or a baseline on `FlipDataset`s.

    Adds to Trainer: the right collator for the model, a learning rate for each tower, every component of the loss (and α)
    in the log, batches of like length, metrics of each tower, a stop as soon as the loss is not finite, and pushes of whole
    repos that no failure of the Hub can bring to a stop. `clock` has the training speed of each epoch.

    Attributes:
        facts: what the model card says of this run beside what the trainer knows; as in all_results.json.
        failed_pushes: what the Hub answered to each push that failed for good.
        other_folders: further folders of the repo, and where they are here.
        waits_after_training: whether `train` ends only when the last push has.
    """

    def __init__(
        self,
        model: FlipPreTrainedModel,
        args: FlipTrainingArguments,
        processor: FlipProcessor,
        train_dataset: FlipDataset | None = None,
        eval_dataset: FlipDataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.clock = EpochClock()
        callbacks = [*(callbacks or []), self.clock]
        if train_dataset is not None:
            callbacks.append(SetEpoch(train_dataset))
        if args.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        collator: FlipDataCollator | PretrainingCollator
        if isinstance(model, FlipForPreTraining):
            args.prediction_loss_only = True
            collator = PretrainingCollator(
                processor,
                args.text_mask_ratio,
                args.tabular_mask_ratio,
                args.num_noise_features,
                args.text_masking,
                args.seed,
            )
        else:
            collator = FlipDataCollator(processor, model.inputs, model.config.item_fields)
        # Not Trainer's processing_class: Trainer would copy the tokenizer's special tokens into the model's configuration.
        self.processor = processor
        self.args: FlipTrainingArguments
        self.optimizer: torch.optim.Optimizer | None
        self._has_text = model.config.towers != "tabular"
        self._components: dict[str, torch.Tensor] = {}
        self._num_steps_logged = 0
        self._first_bad_step: torch.Tensor | None = None
        self.facts: dict[str, Any] = {}
        self.failed_pushes: list[str] = []
        self.other_folders: dict[str, Path] = {}
        self.waits_after_training = True
        self._push: threading.Thread | None = None
        processor.check_belongs_to(model.config)
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=None if isinstance(model, FlipForPreTraining) else self._compute_metrics,
            callbacks=callbacks,
        )

    @staticmethod
    def _compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return ctr_metrics(prediction.predictions, np.asarray(prediction.label_ids))

    # ---- data

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self._has_text and self.args.train_sampling_strategy == "group_by_length":
            batch_size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            return LengthBuckets(batch_size, dataset.lengths.tolist(), self.args.data_seed or self.args.seed)
        return torch.utils.data.RandomSampler(dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Rows by length, so that batches need little padding; `predict` puts them back."""
        return eval_dataset.lengths.argsort(kind="stable").tolist() if self._has_text else range(len(eval_dataset))

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As `Trainer.predict`, rows in the order of the dataset."""
        output = super().predict(test_dataset, *args, **kwargs)
        back = np.argsort(list(self._get_eval_sampler(test_dataset)))

        def reorder(x: Any) -> Any:
            if x is None:
                return None
            return tuple(part[back] for part in x) if isinstance(x, tuple) else x[back]

        return PredictionOutput(reorder(output.predictions), reorder(output.label_ids), output.metrics)

    # ---- optimisation

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`, at the precision of `float32_matmul_precision`; scoring afterwards is as exact as before."""
        precision = self.args.float32_matmul_precision
        if precision is None:
            return super().train(*args, **kwargs)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return super().train(*args, **kwargs)
        finally:
            torch.set_float32_matmul_precision(before)

    def create_optimizer(self, model: Any = None) -> Any:
        """A group of parameters for each learning rate and weight decay."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, BatchNorm)}
        decayed = set(self.get_decay_parameter_names(model)) - {"alpha_logit"} - norms  # decay would pull α to one half
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                rate = self.args.text_learning_rate if "text_tower." in name else None
                key = (self.args.learning_rate if rate is None else rate, self.args.weight_decay * (name in decayed))
                groups.setdefault(key, []).append(parameter)
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
        parameters = [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]
        self.optimizer = optimizer_class(parameters, **kwargs)
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            for name, value in outputs.items():
                if name.endswith("_loss"):
                    self._components[name] = self._components.get(name, 0) + value.detach()
            self._num_steps_logged += 1
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # On the device, without waiting for it: looked at whenever something is logged or saved.
        step = torch.where(loss.isfinite(), torch.inf, float(self.state.global_step + 1))
        self._first_bad_step = step if self._first_bad_step is None else torch.minimum(self._first_bad_step, step)
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """0: Trainer's estimate is a language model's, and it would count the parameters anew at every step."""
        return 0

    def _stop_if_not_finite(self) -> None:
        if self._first_bad_step is not None and (step := self._first_bad_step.item()) != torch.inf:
            raise FloatingPointError(
                f"the loss of batch {step:.0f} (epoch {self.state.epoch:.2f}) is not finite; checkpoints written before it "
                "are sound. Lower learning_rate or text_learning_rate and run again, with another output_dir or this one deleted"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._stop_if_not_finite()
            if self._components:
                means = torch.stack(list(self._components.values())) / self._num_steps_logged
                means = self.accelerator.reduce(means, reduction="mean")
                logs |= dict(zip(self._components, means.tolist(), strict=True))
            model = self.accelerator.unwrap_model(self.model)
            if isinstance(model, FlipForCTR) and model.config.towers == "both":
                logs["alpha"] = model.alpha.item()
            self._components, self._num_steps_logged = {}, 0
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self._stop_if_not_finite()
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        self.processor.save_pretrained(folder)
        # Trainer pickles its arguments beside the model; the recipe says the same in words.
        (folder / "training_args.bin").unlink(missing_ok=True)

    # ---- the Hub

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repo. A refusal, such as a token without rights, stops here, before training; a Hub that cannot be reached
        does not: each push asks again."""
        if not self.is_world_process_zero():
            return
        for interrupted in Path(str(self.args.output_dir)).glob(".push-*"):
            shutil.rmtree(interrupted, ignore_errors=True)
        repo_id = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        self.hub_model_id = repo_id
        try:
            self.hub_model_id = create_repo(
                repo_id, self.args.hub_private_repo if private is None else private, token or self.args.hub_token
            )
        except Exception as error:
            if is_final(error):
                raise ValueError(f"cannot push to {repo_id!r}: {push_error(error)}") from error
            logger.warning(f"training goes on, though {repo_id!r} cannot be reached: {push_error(error)}")

    @property
    def kept_step(self) -> int:
        """The step whose weights training ends with: the best that was saved, where that is loaded at the end, or the last."""
        best = step_of(self.state.best_model_checkpoint) if self.args.load_best_model_at_end else None
        return best or self.state.global_step

    def create_model_card(
        self,
        folder: str | os.PathLike | None = None,
        *,
        step: int | None = None,
        revision: str | None = None,
        **results: Any,
    ) -> None:
        """Write README.md and the training curve to `folder`, which holds the weights of `step` (by default `kept_step`) and
        goes to the branch `revision`; `results` as in all_results.json."""
        if not self.is_world_process_zero():
            return
        folder = Path(folder or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        step = step or self.kept_step
        measured = {}
        for entry in self.state.log_history:
            if "eval_auc" in entry and entry["step"] == step:
                measured = {k.replace("eval_", "validation_", 1): v for k, v in entry.items() if k.startswith("eval_")}
        write_curve(folder / CURVE_FILE, self.state.log_history)
        model = self.accelerator.unwrap_model(self.model)
        results = measured | self.facts | results
        write_card(folder, model, self.processor, self.hub_model_id, results, self.args, revision)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        folder: str | os.PathLike | None = None,
        **results: Any,
    ) -> bool:
        """Push a folder that holds model, processor and card, by default one that is written now, after all pushes before it.

        Args:
            results: for the card, where `folder` is not given.

        Returns:
            whether it arrived; True where that is not waited for. If not, the log says why; nothing local is touched.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        if folder is None:
            folder = str(self.args.output_dir)
            self.save_model(folder, _internal_call=True)
            self.create_model_card(folder, revision=revision, **results)
        if not self.is_world_process_zero():
            return True
        where: dict[str, Any] = {"token": token, "revision": revision, "private": private}
        arrived = self._start_push(Path(folder), commit_message or "End of training", UNPUSHED, **where)
        if not blocking:
            return True
        self.wait_for_push()
        return arrived.is_set()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the best model so far, with its card, and where `hub_strategy` is "checkpoint" the state to resume from: one
        commit, in the background."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        self.accelerator.wait_for_everyone()  # every process has written its part of the checkpoint
        if not self.is_world_process_zero():
            return
        step = self.state.global_step
        if self._push is not None and self._push.is_alive() and not self.args.hub_always_push:
            logger.warning(f"the push before is still under way: step {step} is not pushed")
            return
        staged = Path(str(self.args.output_dir), f".push-{step}")
        try:
            shutil.rmtree(staged, ignore_errors=True)
            self._stage(Path(checkpoint_folder), staged)
        except Exception as error:  # a full disk, a curve that cannot be drawn: the training is worth more
            self._note_failure(f"step {step}", error)
            shutil.rmtree(staged, ignore_errors=True)
        else:
            self._start_push(staged, f"Training in progress, step {step}", delete_after=True)

    def _stage(self, checkpoint: Path, staged: Path) -> None:
        """Lay out in a folder what the repo is to hold, in hard links: Trainer may delete a checkpoint while it is uploaded."""
        strategy = self.args.hub_strategy
        shown = checkpoint.with_name(f"checkpoint-{self.kept_step}")
        if not shown.is_dir():
            shown = checkpoint
        link_files(shown, staged / self.args.hub_subfolder, STATE_FILES)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            link_files(checkpoint, staged / (LAST if strategy == HubStrategy.CHECKPOINT else checkpoint.name), ())
        for name, folder in self.other_folders.items():
            link_files(folder, staged / name, ())
        if "recipe" in self.facts:
            (staged / RECIPE_FILE).write_text(yaml.safe_dump(self.facts["recipe"], sort_keys=False, allow_unicode=True))
        self.create_model_card(staged, step=step_of(shown))

    def _start_push(
        self, folder: Path, message: str, ignore: Sequence[str] = (), delete_after: bool = False, **where: Any
    ) -> threading.Event:
        """Upload a folder in the background; a failure is kept, not raised. The event is set when it has arrived."""
        args, repo_id, arrived = self.args, self.hub_model_id, threading.Event()
        assert repo_id is not None
        self.callback_handler.on_push_begin(args, self.state, self.control)

        def push() -> None:
            try:
                with ONE_PUSH_AT_A_TIME:
                    commit = upload(
                        folder,
                        repo_id,
                        commit_message=message,
                        private=where.get("private") or args.hub_private_repo,
                        token=where.get("token") or args.hub_token,
                        revision=where.get("revision") or args.hub_revision,
                        ignore_patterns=ignore,
                        delete_patterns=NOT_OF_THIS_RUN,
                    )
                arrived.set()
                logger.warning(f"pushed to {commit.repo_url}: {message}")
            except Exception as error:  # whatever it is, it must not cost the training
                self._note_failure(message, error)
            finally:
                if delete_after:
                    shutil.rmtree(folder, ignore_errors=True)

        # A daemon: a process that is told to end need not wait for the Hub, but for a request with a file that has begun.
        self._push = threading.Thread(target=push, name="push", daemon=True)
        self._push.start()
        return arrived

    def _note_failure(self, message: str, error: Exception) -> None:
        self.failed_pushes.append(f"{message}: {push_error(error)}")
        logger.error(f"not pushed to {self.hub_model_id}: {self.failed_pushes[-1]}")

    def wait_for_push(self) -> None:
        """Wait until the last push that was started has arrived or failed."""
        if self._push is not None:
            if self._push.is_alive():
                logger.warning("waiting for the push that is under way")
            self._push.join()

    def _finish_current_push(self) -> None:
        """Trainer calls this at the end of its loop."""
        if self.waits_after_training:
            self.wait_for_push()


def write_card(
    folder: Path,
    model: Any,
    processor: FlipProcessor,
    repo_id: str | None,
    results: Mapping[str, Any],
    args: FlipTrainingArguments,
    revision: str | None = None,
) -> None:
    """Write README.md beside the training curves that it shows."""
    curves = [f"{sub}{CURVE_FILE}" for sub in ("", "pretraining/") if (folder / sub / CURVE_FILE).exists()]
    hyperparameters = {name: getattr(args, name) for name in CARD_ARGUMENTS if getattr(args, name) is not None}
    revision = (revision or args.hub_revision) if repo_id else None
    card = model_card(model, processor, repo_id or str(folder), results, hyperparameters, curves, revision=revision)
    (folder / "README.md").write_text(card)


def step_of(checkpoint: str | os.PathLike | None) -> int | None:
    """The step in a checkpoint's name, `checkpoint-STEP`."""
    return None if checkpoint is None else int(Path(checkpoint).name.rpartition("-")[2])


def link_files(source: Path, target: Path, without: Sequence[str]) -> None:
    """Make the files of a checkpoint appear in another folder, but for some; a copy where links cannot be."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not any(fnmatch.fnmatch(file.name, pattern) for pattern in without):
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copyfile(file, target / file.name)


def write_curve(path: Path, log_history: Sequence[Mapping[str, float]]) -> None:
    """Draw every loss, and the validation AUC of each tower, over the epochs; nothing where nothing was logged."""
    losses = curves_of(log_history, r"(?!eval_|train_)(\w+_)?loss")
    aucs = curves_of(log_history, r"eval_(\w+_)?auc")
    panels = [(title, lines) for title, lines in (("training loss", losses), ("validation AUC", aucs)) if lines]
    if not panels:
        return
    from matplotlib.figure import Figure  # here: it takes a second that scoring need not wait

    figure = Figure(figsize=(5 * len(panels), 3.2), layout="constrained")
    for axes, (title, lines) in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        for name, points in lines.items():
            label = name.removeprefix("eval_").replace("_", " ")
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else "")
        axes.set(xlabel="epoch", title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def curves_of(log_history: Sequence[Mapping[str, float]], pattern: str) -> dict[str, list[tuple[float, float]]]:
    """Points (epoch, value) of every logged figure whose name matches."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in log_history:
        for name, value in entry.items():
            if re.fullmatch(pattern, name):
                curves.setdefault(name, []).append((entry["epoch"], value))
    return curves
