"""FlipTrainer: the transformers Trainer, with what FLIP adds to it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy, PredictionOutput, TrainOutput
from transformers.utils import logging

from ..data_collator import FlipDataCollator, PretrainingCollator
from ..modeling_flip import FlipForCTR, FlipForPreTraining, FlipPreTrainedModel
from ..processing_flip import FlipProcessor
from ..row_dataset import FlipDataset
from ..tabular_layers import BatchNorm
from .arguments import FlipTrainingArguments
from .callbacks import EpochClock, SetEpoch
from .hub import create_repo, is_final, push_error, upload
from .metrics import ctr_metrics
from .model_card import CURVE_FILE
from .publishing import (
    LAST,
    NOT_OF_THIS_RUN,
    RECIPE_FILE,
    STATE_FILES,
    UNPUSHED,
    link_files,
    step_of,
    write_card,
    write_curve,
)
from .samplers import LengthBuckets

logger = logging.get_logger(__name__)

ONE_PUSH_AT_A_TIME = threading.Lock()  # a later one would overtake it


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
