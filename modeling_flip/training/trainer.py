"""FlipTrainer: the transformers Trainer, with what FLIP adds to it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler
from transformers import EarlyStoppingCallback, EvalPrediction, ProgressCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer import FSDP_MODEL_NAME
from transformers.trainer_utils import PredictionOutput, TrainOutput, rotate_checkpoints
from transformers.utils import logging

from ..checkpoint_files import some_of
from ..data_collator import FlipDataCollator, PretrainingCollator
from ..modeling_flip import FlipForCTR, FlipForPreTraining, FlipPreTrainedModel
from ..processing_flip import FlipProcessor
from ..row_dataset import FlipDataset
from ..tabular_layers import BatchNorm
from ..text_tower import random_text_towers, text_towers_of
from . import parts
from .arguments import FlipTrainingArguments
from .callbacks import EpochClock, LogAtSave, StopAfter
from .checkpoints import UNLOGGED, check_weights, fact, seal
from .compatibility import check_together, has_batch_norm, takes_mini_batches, warn_of_what_trains_badly
from .finiteness import FirstBad, bad_weight
from .frozen import standing_still
from .interruption import Interruption, leave_signals_to_parent
from .lora import adapters, frozen_names, lora_settings, without_frozen
from .memory import is_out_of_memory, out_of_memory
from .metrics import ctr_metrics
from .publishing import UNPUSHED, PublishCallback, Publisher, kept_step, validation_of, write_card
from .samplers import InOrder, ShareOfBatches, Shuffled
from .sharded_tables import keep_parts_of_state, load_state, load_weights, save_state, shard_tables, whole_weights
from .sharding import alpha, load_whole, units_of_layers
from .sparse import SPARSE_OPTIMIZERS, looked_up, reduce_sparse_gradients, sparse_gradients
from .watching import CalmProgress

logger = logging.get_logger(__name__)


ANEW = "run again with another output_dir or after deleting this one"
REMEDY = f"lower learning_rate or text_learning_rate, and {ANEW}"
ROWS_NAMED = 10


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """The text towers attend without torch's fused kernel, whose backward pass in bf16 on a CPU takes several times as long."""
    fused = [m for m in text_towers_of(model) if m.config._attn_implementation == "sdpa"]
    for tower in fused:
        tower.set_attn_implementation("eager")
    try:
        yield
    finally:
        for tower in fused:
            tower.set_attn_implementation("sdpa")


class FlipTrainer(Trainer):
    """Trains `FlipForPreTraining`, `FlipForCTR` or a baseline on `FlipDataset`s.

    Adds to Trainer: the right collator for the model, a learning rate for each tower, every component of the loss (and α)
    in the log, batches of like length, metrics of each tower, and a stop as soon as the loss or a weight is not finite. Where
    `args.push_to_hub` is set, a `PublishCallback` pushes a whole repo at each save.

    Attributes:
        clock: the training speed of each epoch.
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
        args = copy.copy(args)  # the caller's stay as they are
        # Trainer's own would begin again from weights that the failed attempt has changed, with another size of batch.
        self._finds_size, args.auto_find_batch_size = args.auto_find_batch_size, False
        self.clock = EpochClock()
        callbacks = [*(callbacks or []), self.clock]
        if args.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        if args.stop_after_epochs is not None:
            callbacks.append(StopAfter(args.stop_after_epochs))
        callbacks.append(LogAtSave())
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
        self.lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
        self.compute_metrics: Any
        self._has_text = model.config.towers != "tabular"
        self._components: dict[str, torch.Tensor] = {}
        self._num_steps_logged = 0
        self._first_bad = FirstBad()
        self._publisher: Publisher | None = None
        self.interruption: Interruption | None = None
        processor.check_belongs_to(model.config)
        self._is_sharded = args.shard_embeddings and args.world_size > 1
        if self._is_sharded:
            shard_tables(model, args.device)  # before Trainer moves the whole model to its device
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=None if isinstance(model, FlipForPreTraining) else self._compute_metrics,
            callbacks=callbacks,
        )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(CalmProgress())
        check_together(self, self._finds_size)
        warn_of_what_trains_badly(self)
        if self._publisher is not None:
            strategy, always = self.args.hub_strategy, self.args.hub_always_push
            self.add_callback(PublishCallback(self._publisher, processor, strategy, always=always))

    @staticmethod
    def _compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return ctr_metrics(prediction.predictions, np.asarray(prediction.label_ids))

    # ---- data

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset, args = self.train_dataset if train_dataset is None else train_dataset, self.args
        by_length = self._has_text and args.train_sampling_strategy == "group_by_length"
        return Shuffled(
            len(dataset),
            args.seed if args.data_seed is None else args.data_seed,
            lambda: int((self.state.epoch or 0) + 1e-6),
            dataset.lengths if by_length else None,
            args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> InOrder:
        """Rows by length, so that batches need little padding; `predict` puts them back."""
        by_length = self._has_text
        return InOrder(eval_dataset.lengths.argsort(kind="stable") if by_length else np.arange(len(eval_dataset)))

    def _train_batches(self, order: Sampler[int]) -> ShareOfBatches:
        args = self.args
        return ShareOfBatches(
            order, self._train_batch_size, args.process_index, args.world_size, args.dataloader_drop_last
        )

    @contextmanager
    def _every_row(self) -> Iterator[None]:
        """`dataloader_drop_last` is of training: all rows are scored."""
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drops

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        with self._every_row():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        with self._every_row():
            return super().get_test_dataloader(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """This process's rows of each batch. accelerate would fill the last batch up with rows of the first."""
        args = self.args
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset")
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self._train_batches(self._get_train_sampler()),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            worker_init_fn=leave_signals_to_parent,
        )
        return prepare_data_loader(
            loader,
            device=self.accelerator.device,
            num_processes=1,  # the batches are this process's already
            process_index=0,
            put_on_device=True,
            non_blocking=args.dataloader_pin_memory,
        )

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As `Trainer.predict`, rows in the order of the dataset."""
        output = super().predict(test_dataset, *args, **kwargs)
        back = np.argsort(self._get_eval_sampler(test_dataset).order)

        def reorder(x: Any) -> Any:
            if x is None:
                return None
            return tuple(part[back] for part in x) if isinstance(x, tuple) else x[back]

        return PredictionOutput(reorder(output.predictions), reorder(output.label_ids), output.metrics)

    def predict_logits(self, dataset: FlipDataset, name: str) -> PredictionOutput:
        """As `predict`, but of the metrics only the speed."""
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            return self.predict(dataset, metric_key_prefix=name)
        finally:
            self.compute_metrics = compute_metrics

    # ---- optimisation

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`, at the precision of `float32_matmul_precision`; scoring afterwards is as exact as before.
        What is trained is not calibrated; calibrate it again."""
        model = self.accelerator.unwrap_model(self.model)
        config = model.config
        # A calibration was of the weights before.
        config.logit_scale, config.logit_shift, config.sampling_shift = 1.0, 0.0, 0.0
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.args.float32_matmul_precision or before)
        sparse = sparse_gradients(self.model) if self.args.sparse_embeddings else nullcontext()
        if self.args.lora is not None:  # these adapters are new, and an optimizer of an earlier training has others
            self.optimizer, self.lr_scheduler = None, None
        adapted = nullcontext() if self.args.lora is None else adapters(model, lora_settings(self.args.lora))
        frozen = standing_still(model) if self.args.freeze_text_tower else nullcontext()
        is_slow = self.args.bf16 and self.args.device.type == "cpu"
        attention = plain_attention(self.model) if is_slow else nullcontext()
        # Each process has dropout of its own. A resumed training restores its random state after this.
        if self.args.process_index:
            set_seed(self.args.seed + self.args.process_index)
        try:
            with adapted, frozen, sparse, attention, out_of_memory(self._smaller_batch):
                output = super().train(*args, **kwargs)
        finally:
            torch.set_float32_matmul_precision(before)
        self._stop_if_not_finite(together=True)
        model.untrained_weights = ()
        for tower in random_text_towers(model):
            tower.has_random_weights = False
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`, of weights that are finite."""
        self._stop_if_not_finite(together=self.is_in_train)
        return super().evaluate(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        with units_of_layers(self.model, self.accelerator) if self.is_fsdp_enabled else nullcontext():
            return super()._prepare_for_training(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        rows = self.args.per_device_eval_batch_size
        smaller = f"{max(1, rows // 2)} rows instead of {rows}"
        self._share_statistics()
        with out_of_memory(lambda: f"set per_device_eval_batch_size to {smaller}, and {ANEW}"):
            return super().evaluation_loop(*args, **kwargs)

    def _share_statistics(self) -> None:
        """Batch norm's are of each process's own rows. Those of the first process are saved, so all score with them."""
        for module in self.model.modules() if self.args.world_size > 1 else ():
            if isinstance(module, BatchNorm):
                for statistic in module.buffers():
                    torch.distributed.broadcast(statistic, src=0)

    def _smaller_batch(self) -> str:
        rows, tokens = self.args.per_device_train_batch_size, self.args.mini_batch_tokens
        if tokens is not None:
            return f"set mini_batch_tokens to {max(1, tokens // 2)} instead of {tokens}, and {ANEW}"
        half = max(1, rows // 2)
        remedy = f"set per_device_train_batch_size to {half} instead of {rows}"
        if takes_mini_batches(self.model) and not (self.args.freeze_text_tower or has_batch_norm(self.model)):
            longest = int(self.train_dataset.lengths.max(initial=1))
            remedy += f", or, for the same batch in parts, mini_batch_tokens to {half * longest}"
        return f"{remedy}, and {ANEW}"

    def create_optimizer(self, model: Any = None) -> Any:
        """A group of parameters for each learning rate and weight decay."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, BatchNorm)}
        decayed = set(self.get_decay_parameter_names(model)) - {"alpha_logit"} - norms  # decay would pull α to one half
        groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                rate = self.args.text_learning_rate if "text_tower." in name else None
                rate = self.args.learning_rate if rate is None else rate
                # torch updates a group at once, and not parts of tables together with whole weights.
                key = (rate, self.args.weight_decay * (name in decayed), isinstance(parameter, DTensor))
                groups.setdefault(key, []).append(parameter)
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
        if self.args.sparse_embeddings:
            optimizer_class = SPARSE_OPTIMIZERS[optimizer_class]
        parameters = [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay, _), group in groups.items()]
        self.optimizer = optimizer_class(parameters, **kwargs)
        if self._is_sharded:
            keep_parts_of_state(self.optimizer)
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            share = self._share_of_rows(len(next(iter(inputs.values()))))
            loss = loss * share
            self._log_components({name: value for name, value in outputs.items() if name.endswith("_loss")}, share)
        return (loss, outputs) if return_outputs else loss

    def _training_step_in_parts(self, model: nn.Module, batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        model.train()
        share = self._share_of_rows(sum(len(part["input_ids"]) for part in batch))
        weight = share / self.current_gradient_accumulation_steps
        loss, components = parts.backward(model, batch, weight, self.accelerator, self.compute_loss_context_manager)
        self._log_components(components, share)
        return loss * weight

    def _log_components(self, components: Mapping[str, torch.Tensor], share: torch.Tensor | float) -> None:
        for name, value in components.items():
            self._components[name] = self._components.get(name, 0) + value.detach().float() * share
        self._num_steps_logged += 1

    def _share_of_rows(self, rows: int) -> torch.Tensor | float:
        """What this process's mean over its rows weighs in the mean over processes, so that that is one over all rows."""
        if self.args.world_size == 1:
            return 1.0
        interruption = self.interruption
        is_asked = interruption is not None and interruption.is_asked
        numbers = torch.tensor([float(rows), float(is_asked)], device=self.args.device)
        means = self.accelerator.reduce(numbers, reduction="mean")
        if interruption is not None:
            interruption.note(means[1])
        return numbers[0] / means[0]

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        step = self._step_that_fits if self._finds_size else self._step
        loss = step(model, inputs, *args, **kwargs)
        if self.args.sparse_embeddings and self.accelerator.sync_gradients:
            own = self.accelerator.unwrap_model(self.model)
            penalty = 0.0 if isinstance(own, FlipForPreTraining) else own.config.embedding_l2
            reduce_sparse_gradients(own, self.accelerator, penalty)
        self._first_bad.note("loss", loss, self.state.global_step + 1)
        return loss

    def _step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        tokens = self.args.mini_batch_tokens
        # Several processes all go in parts, whatever their own rows need: they exchange the same things in the same order.
        if tokens is None or (self.args.world_size == 1 and inputs["input_ids"].numel() <= tokens):
            return super().training_step(model, inputs, *args, **kwargs)
        return self._training_step_in_parts(model, parts.split(self._prepare_inputs(inputs), tokens))

    def _step_that_fits(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The step, and where it does not fit in memory, once more in parts of half as many tokens: the gradient is the same."""
        random, (rows, length) = parts.RandomState(inputs), inputs["input_ids"].shape
        while True:
            try:
                return self._step(model, inputs, *args, **kwargs)
            except (RuntimeError, MemoryError) as error:
                tokens = min(self.args.mini_batch_tokens or rows * length, rows * length)
                if not is_out_of_memory(error) or tokens <= length:  # a part is a row already
                    raise
            self.args.mini_batch_tokens = tokens // 2
            logger.warning(
                f"batch {self.state.global_step + 1} does not fit in memory: from here on batches are computed in parts of "
                f"{tokens // 2} tokens, with the same gradient (mini_batch_tokens)"
            )
            model.zero_grad()
            clear_device_cache(garbage_collection=True)
            random.restore()

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(looked_up(model) if self.args.sparse_embeddings else model)
        if isinstance(norm, torch.Tensor) and self.accelerator.scaler is None:  # a scaler of fp16 skips such steps
            self._first_bad.note("gradient", norm, self.state.global_step + 1)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(looked_up(model) if self.args.sparse_embeddings else model, grad_norm)

    def floating_point_ops(self, inputs: Any) -> int:
        """Always 0: Trainer's estimate is for language models, and it would count the parameters again at every step."""
        return 0

    def _stop_if_loss_is_not_finite(self, together: bool) -> None:
        """`together` where all processes ask: then all stop. Afterwards one may save alone."""
        if (bad := self._first_bad.first(of_all=together and self.args.world_size > 1)) is None:
            return
        what, step, is_own = bad
        epoch, rows = self._rows_of(step)
        if not is_own:
            raise FloatingPointError(
                f"the {what} of batch {step} (epoch {epoch:.2f}) is not finite in another process, which names its rows; {REMEDY}"
            )
        more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
        raise FloatingPointError(
            f"the {what} of batch {step} (epoch {epoch:.2f}; rows {', '.join(map(str, rows[:ROWS_NAMED]))}{more} of the "
            f"training rows, counted from 0) is not finite; {REMEDY}"
        )

    def _rows_of(self, step: int) -> tuple[float, list[int]]:
        """The epoch at the end of a step, and the training rows that this process has read in it."""
        order, accumulated = self._get_train_sampler(), self.args.gradient_accumulation_steps
        assert isinstance(order, Shuffled)
        batches = self._train_batches(order)
        steps = math.ceil(len(batches) / accumulated)
        epoch, number = divmod(step - 1, steps)
        order.epoch = lambda: epoch
        read = islice(batches, number * accumulated, (number + 1) * accumulated)
        return epoch + (number + 1) / steps, sorted(row % len(order) for batch in read for row in batch)

    def _stop_if_not_finite(self, together: bool) -> None:
        """The last update can spoil the weights though its loss was finite."""
        self._stop_if_loss_is_not_finite(together)
        if (name := bad_weight(self.accelerator.unwrap_model(self.model))) is not None:
            raise FloatingPointError(f"{name} is not finite after step {self.state.global_step}; {REMEDY}")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._stop_if_loss_is_not_finite(together=True)
            if self._components:
                means = torch.stack(list(self._components.values())) / self._num_steps_logged
                means = self.accelerator.reduce(means, reduction="mean")
                logs |= dict(zip(self._components, means.tolist(), strict=True))
            model = self.accelerator.unwrap_model(self.model)
            if isinstance(model, FlipForCTR) and model.config.towers == "both":
                logs["alpha"] = alpha(model)
            self._components, self._num_steps_logged = {}, 0
        super().log(logs, start_time)

    # ---- checkpoints

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As in Trainer, and what is to be loaded at the end is saved, even where evaluations are more frequent than saves."""
        is_best = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= is_best and self.args.load_best_model_at_end
        return is_best

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, *args: Any
    ) -> tuple[int, int]:
        """The finished epochs of a resumed training, and the batches of the next one that it has already seen."""
        done = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, *args)
        state, patience = self.state, self.args.early_stopping_patience
        stopper = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
        waited = stopper.get("attributes", {}).get("early_stopping_patience_counter", 0)
        # Trainer would take one more step, and evaluate once more, before it sees that it had stopped.
        has_stopped = (patience is not None and waited >= patience) or state.global_step >= max_steps
        if self.args.stop_after_epochs is not None:
            has_stopped |= StopAfter(self.args.stop_after_epochs).is_over(state.epoch)
        return (num_train_epochs, 0) if has_stopped else done

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in Trainer, and sealed; those before it are deleted only when it is whole."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            seal(folder / f"checkpoint-{self.state.global_step}")
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """And the losses since the last line of the log, of this process: a signal ends a training between two lines."""
        super()._save_rng_state(output_dir)
        unlogged = {
            "since": self._globalstep_last_logged,
            "loss": self._tr_loss.item(),
            "components": {name: value.item() for name, value in self._components.items()},
            "number": self._num_steps_logged,
        }
        Path(output_dir, UNLOGGED.format(self.args.process_index)).write_text(json.dumps(unlogged) + "\n")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        path = Path(str(checkpoint), UNLOGGED.format(self.args.process_index))
        if not path.exists():  # an older checkpoint, which was logged when it was saved
            return
        unlogged, device = json.loads(path.read_text()), self.args.device
        self._globalstep_last_logged, self._num_steps_logged = unlogged["since"], unlogged["number"]
        self._tr_loss.fill_(unlogged["loss"])
        self._total_loss_scalar = -unlogged["loss"]  # Trainer's mean loss is that of the steps after the resume
        self._components = {name: torch.tensor(value, device=device) for name, value in unlogged["components"].items()}

    def _load_best_model(self) -> None:
        """As in Trainer, of weights that are as they were saved."""
        try:
            check_weights(Path(str(self.state.best_model_checkpoint)))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"the best checkpoint cannot be loaded: {fact(error)}; run again to continue from the last complete one"
            ) from error
        if self.is_fsdp_enabled or self._is_sharded:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        folder = Path(output_dir)
        if self._is_sharded and self.args.process_index:
            assert self.optimizer is not None
            folder.mkdir(parents=True, exist_ok=True)  # on a machine of its own, or before the first process
            save_state(self.optimizer, folder / f"optimizer.{self.args.process_index}.safetensors")
        # With FSDP, Trainer pickles the weights that it has written as safetensors.
        if self.args.should_save:
            (folder / f"{FSDP_MODEL_NAME}.bin").unlink(missing_ok=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._is_sharded and self.args.process_index:
            assert self.optimizer is not None
            load_state(self.optimizer, Path(checkpoint) / f"optimizer.{self.args.process_index}.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        files = sorted(Path(resume_from_checkpoint).glob("model*.safetensors"))
        if self.is_fsdp_enabled:
            load_whole(model or self.model, files, is_main_process=self.is_world_process_zero())
        elif self._is_sharded:
            load_weights(self.model, files)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """In place of Trainer's, which only warns. Weights that `_save` leaves out or that are tied may be missing.

        Raises:
            ValueError: weights are missing, which would stay as they are, or have no place.
        """
        frozen = frozen_names(self.model) if self.args.lora is not None else set()
        missing = set(load_result.missing_keys)
        weights = self.accelerator.unwrap_model(self.model).state_dict()
        found = {weight.data_ptr() for name, weight in weights.items() if name not in missing}
        # A file holds weights that are tied once.
        lost = [name for name in missing - frozen if name not in weights or weights[name].data_ptr() not in found]
        if lost or load_result.unexpected_keys:
            said = (
                f"lacks {some_of(lost)}"
                if lost
                else f"has weights without a place: {some_of(load_result.unexpected_keys)}"
            )
            raise ValueError(
                f"the checkpoint {said}; it was written by another version: give another output_dir to train anew"
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self._stop_if_not_finite(together=self.is_in_train)
        folder = Path(output_dir or str(self.args.output_dir))
        if self._is_sharded:
            state_dict = whole_weights(self.model)
        if self.args.should_save:
            self.processor.save_pretrained(folder)  # before the model, which warns where it would stand there alone
        if self.args.lora is not None:  # what stands still is where the training began
            state_dict = without_frozen(self.model, self.model.state_dict() if state_dict is None else state_dict)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # Trainer pickles its arguments beside the model; the recipe says the same in words.
            (folder / "training_args.bin").unlink(missing_ok=True)

    # ---- the Hub: all of it is the publisher's

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Trainer calls this when it is made, where `args.push_to_hub` is set."""
        args = self.args
        repo_id = args.hub_model_id or Path(str(args.output_dir)).absolute().name
        private = args.hub_private_repo if private is None else private
        self._publisher = Publisher(repo_id, private, token or args.hub_token, args.hub_revision)
        if self.is_world_process_zero():
            self._publisher.create()
        self.hub_model_id = self._publisher.repo_id

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **results: Any,
    ) -> bool:
        """Save model, processor and card to `args.output_dir` and push them, after all pushes before.

        Args:
            results: for the card, as in all_results.json.

        Returns:
            whether it arrived; True where that is not waited for. If not, the log says why.
        """
        if self._publisher is None:
            self.init_hf_repo(token, private)
        assert self._publisher is not None
        folder = Path(str(self.args.output_dir))
        self.save_model(str(folder), _internal_call=True)
        if not self.is_world_process_zero():
            return True
        self.create_model_card(revision=revision, **results)
        where: dict[str, Any] = {"token": token, "revision": revision, "private": private}
        arrived = self._publisher.push(folder, commit_message or "End of training", ignore=UNPUSHED, **where)
        if not blocking:
            return True
        self._publisher.wait()
        return arrived.is_set()

    def create_model_card(self, *, revision: str | None = None, **results: Any) -> None:
        """Write README.md and the training curve to `args.output_dir`; `results` as in all_results.json."""
        if not self.is_world_process_zero():
            return
        args, state = self.args, self.state
        measured = validation_of(state.log_history, kept_step(args, state))
        model = self.accelerator.unwrap_model(self.model)
        folder, revision = Path(str(args.output_dir)), revision or args.hub_revision
        write_card(
            folder, model, self.processor, args, measured | results, state.log_history, self.hub_model_id, revision
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: PublishCallback has pushed it."""

    def _finish_current_push(self) -> None:
        """Trainer calls this at the end of its loop."""
        if self._publisher is not None:
            self._publisher.wait()
