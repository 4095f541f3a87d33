"""A dry run: how the data are read, how large the model is, and how long training would take."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainerControl, set_seed

from ..feature_vocabulary import FeatureVocabulary
from ..fields import OPTIONS_OF_KIND, with_min_count
from ..modeling_flip import FlipForPreTraining, FlipPreTrainedModel
from ..processing_flip import MAX_SEGMENT_LENGTH, FlipProcessor
from ..row_dataset import FlipDataset
from .arguments import FlipTrainingArguments
from .checks import check_recipe
from .data import read_times
from .preparation import Prepared, prepare, reads_whole_sentences
from .recipe import Recipe, model_settings, needs_pretraining, refits_now, stage_arguments
from .resume import check_output_dir
from .samplers import InOrder
from .sparse import feature_tables
from .splits import RawSplits
from .stages import make_model
from .trainer import FlipTrainer

MIN_COUNTS = (1, 2, 5, 10)
# Warn of a field if more than this share of the test rows has a value that training never saw.
MOSTLY_UNSEEN = 0.5
# Warn if more than this share of tokens is unknown, among this many training rows.
MANY_UNKNOWN_TOKENS, ROWS_TO_READ = 0.05, 1000
NUM_EXAMPLES, LONGEST_EXAMPLE = 3, 600
# Steps to time after a warm-up step; fewer, but at least two, if they take longer than this many seconds.
TIMED_STEPS, TIMED_SECONDS = 10, 10.0
TIMED_EVALUATION_BATCHES = 2
PARTS = {
    "feature_embeddings.": "feature embeddings",
    "tabular_tower.": "tabular tower",
    "text_tower.": "text tower",
}
HEADS = "heads"
# Training arguments for a few steps that leave nothing behind, with learning rates of 0.
FEW_STEPS: dict[str, Any] = {
    "max_steps": 1 + TIMED_STEPS,
    "learning_rate": 0.0,
    "text_learning_rate": 0.0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "early_stopping_patience": None,
    "report_to": "none",
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class SplitFacts:
    """One split.

    Attributes:
        rows: how many.
        click_rate: share of clicks.
        unseen: share of rows with a category, or list member, that no training row has; None for the training rows.
        begins: the first time in the time column; None without one. Likewise `ends`, the last.
        groups: distinct values of the group column; None without one.
        ranked: share of rows whose group has both clicks and non-clicks: those that gAUC counts.
    """

    rows: int
    click_rate: float
    unseen: float | None = None
    begins: np.datetime64 | None = None
    ends: np.datetime64 | None = None
    groups: int | None = None
    ranked: float | None = None


@dataclass(frozen=True)
class SentenceFacts:
    """The sentences of the training rows, as the text tower reads them.

    Attributes:
        quantiles: number of tokens: median, 95th percentile and maximum, special tokens included.
        max_length: the number of tokens that are read.
        share_cut: share of rows whose sentence is longer.
        cut_fields: for each field that loses words, the share of rows in which it does.
        examples: the sentences of a few rows, as far as they are read.
        unknown_tokens: share of tokens that the text model does not know.
    """

    quantiles: tuple[float, float, float]
    max_length: int
    share_cut: float
    cut_fields: Mapping[str, float]
    examples: Sequence[str]
    unknown_tokens: float


@dataclass(frozen=True)
class StageFacts:
    """One stage of the training.

    Attributes:
        name: "pretraining" or "finetuning".
        parameters: how many each part has.
        weights: bytes; likewise `gradients` and `optimizer_state`.
        peak_memory: peak bytes in use, on the accelerator if there is one, else in this process, rows included. None if
            unknown.
        rows_per_step: over all processes.
        steps: number of steps of the whole stage.
        may_stop_early: whether `steps` is only an upper bound.
        seconds_per_step: the median over the timed steps.
        timed_steps: number of timed steps.
        evaluated_rows: rows that are scored while training and at the end.
        evaluated_rows_per_second: measured; None if no rows are evaluated.
    """

    name: str
    parameters: Mapping[str, int]
    weights: int
    gradients: int
    optimizer_state: int
    peak_memory: int | None
    rows_per_step: int
    steps: int
    may_stop_early: bool
    seconds_per_step: float
    timed_steps: int
    evaluated_rows: int
    evaluated_rows_per_second: float | None

    @property
    def training_seconds(self) -> float:
        return self.steps * self.seconds_per_step

    @property
    def evaluation_seconds(self) -> float:
        return self.evaluated_rows / self.evaluated_rows_per_second if self.evaluated_rows_per_second else 0.0


@dataclass(frozen=True)
class DryRun:
    """What `inspect` finds.

    Attributes:
        splits: by name.
        group_column: the recipe's group column.
        sentences: None where no tower reads whole rows.
        features: the number of features for each `min_count`.
        min_count: the recipe's.
        hints: what to look at, a sentence or two each.
        stages: in their order.
        preparation_seconds: time to infer the fields and encode the rows.
        device: "cpu", "cuda", …
        processes: how many share the work.
        output_dir: where the run would write.
        is_begun: whether that folder already holds the run, finished or not.
        refit: how many times as many rows the refit trains on, after the stages; None where there is none.
    """

    splits: Mapping[str, SplitFacts]
    group_column: str | None
    sentences: SentenceFacts | None
    features: Mapping[int, int]
    min_count: int
    hints: Sequence[str]
    stages: Sequence[StageFacts]
    preparation_seconds: float
    device: str
    processes: int
    output_dir: str
    is_begun: bool
    refit: float | None = None


def inspect(
    recipe: Recipe, tables: Mapping[str, Any], kinds: Mapping[str, str] | None = None, *, scratch: Path
) -> DryRun:
    """What `run` would do with the same arguments, without training. It writes only to `scratch` and to the cache of encoded
    rows, where the run will find them.

    The fields are shown as in a run. The real trainer takes a few steps of each stage, with a learning rate of 0.

    Args:
        recipe: what is asked for. A text model that was made for this in `scratch` counts as the run's own.
        tables: the raw rows of each of SPLITS.
        kinds: of the columns whose kind the dataset says.
        scratch: an empty folder.

    Raises:
        ValueError: what `run` would raise before it trains.
    """
    check_recipe(recipe)
    raw = tables if isinstance(tables, RawSplits) else RawSplits.of(tables)
    is_own = Path(recipe.text_model_name_or_path or "").is_relative_to(scratch)
    is_begun = check_output_dir(recipe, ["text_model_name_or_path"] if is_own else [])
    set_seed(recipe.seed)
    began = time.perf_counter()
    if refits_now(recipe):
        raw = raw.with_validation_in_train()
    prepared = prepare(recipe, raw, kinds)
    seconds = time.perf_counter() - began
    splits = facts_of_splits(recipe, raw, prepared)
    sentences = facts_of_sentences(prepared) if reads_whole_sentences(recipe) else None
    state = PartialState()
    return DryRun(
        splits=splits,
        group_column=recipe.group_column,
        sentences=sentences,
        features={k: features_at(prepared.processor.vocabulary, k) for k in MIN_COUNTS},
        min_count=recipe.min_count,
        hints=[*hints_of_fields(prepared), *hints_of_splits(splits), *hints_of_sentences(sentences)],
        stages=time_stages(recipe, prepared, scratch),
        preparation_seconds=seconds,
        device=state.device.type,
        processes=state.num_processes,
        output_dir=recipe.output_dir,
        is_begun=is_begun,
        refit=1 + splits["validation"].rows / splits["train"].rows if recipe.refit is True else None,
    )


# ---- the data


def facts_of_splits(recipe: Recipe, tables: RawSplits, prepared: Prepared) -> dict[str, SplitFacts]:
    time_column, found = recipe.time_column, {}
    for split, rows in prepared.splits.items():
        assert rows.labels is not None
        facts = SplitFacts(len(rows), float(rows.labels.mean()))
        if split != "train":
            facts = replace(facts, unseen=float(rows.has_unseen_value.mean()))
        if time_column is not None and time_column in tables[split].column_names:
            with contextlib.suppress(ValueError):  # if all splits are given, a run does not read the times
                times = read_times(tables[split][time_column], time_column, f"split {split!r}")
                facts = replace(facts, begins=times.min(), ends=times.max())
        if split in prepared.groups:
            codes = prepared.groups[split]
            size = np.bincount(codes + 1)[1:]  # rows without a value are in no group
            clicks = np.bincount(codes + 1, weights=rows.labels)[1:]
            ranked = size[(clicks > 0) & (clicks < size)].sum() / len(codes)
            facts = replace(facts, groups=int((size > 0).sum()), ranked=float(ranked))
        found[split] = facts
    return found


def facts_of_sentences(prepared: Prepared) -> SentenceFacts:
    processor, rows = prepared.processor, prepared.splits["train"]
    tokenizer, max_length = processor.tokenizer, processor.max_length
    assert tokenizer is not None and max_length is not None
    some = spread(rows, ROWS_TO_READ)
    read = processor.sentences(some)
    has_table = rows.token_tables is not None  # without one, use the sampled rows
    lengths = rows.lengths + processor.num_special_tokens if has_table else uncut_lengths(processor, some)
    texts = processor.texts_of(spread(rows, NUM_EXAMPLES))
    spans = processor.tokenize(texts, truncation=True, max_length=max_length)["offset_mapping"]
    examples = [text[: max(stop for _, stop in each)] for text, each in zip(texts, spans, strict=True)]
    is_token = read["attention_mask"] == 1
    is_unknown = (read["input_ids"] == tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else ~is_token
    median, most, longest = np.quantile(lengths, (0.5, 0.95, 1.0))
    return SentenceFacts(
        quantiles=(float(median), float(most), float(longest)),
        max_length=max_length,
        share_cut=float((lengths > max_length).mean()),
        cut_fields=prepared.reports.get("cut_fields", {}),
        examples=examples,
        unknown_tokens=float((is_unknown & is_token).sum() / max(is_token.sum(), 1)),
    )


def uncut_lengths(processor: FlipProcessor, rows: FlipDataset) -> np.ndarray:
    """(N,) tokens of each sentence, special tokens included."""
    whole = copy.copy(processor)
    whole.max_length = MAX_SEGMENT_LENGTH
    return np.asarray(whole.sentences(rows)["attention_mask"].sum(1))


def spread(rows: FlipDataset, count: int) -> FlipDataset:
    """At most this many rows, evenly spread."""
    return rows.__getitems__(np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)))


def features_at(vocabulary: FeatureVocabulary, min_count: int) -> int:
    """The number of features with this `min_count` for all fields."""
    has_it = {name for name, options in OPTIONS_OF_KIND.items() if "min_count" in options}
    bare = [replace(field, min_count=1) if field.kind in has_it else field for field in vocabulary.schema]
    return replace(vocabulary, schema=tuple(with_min_count(bare, min_count)), token_table=None).num_features


# ---- what a person should look at


def hints_of_fields(prepared: Prepared) -> list[str]:
    test, hints = prepared.splits["test"], []
    unseen = test.is_unseen.mean(0)
    for field, share in zip(prepared.processor.vocabulary.columns, unseen, strict=True):
        if share > MOSTLY_UNSEEN:
            hints.append(
                f"{field.name!r}: {share:.0%} of the test rows have a value that no training row has. If it identifies single "
                "rows, requests or sessions, nothing can be learned from it: leave it out with exclude_fields"
            )
    return hints


def hints_of_splits(splits: Mapping[str, SplitFacts]) -> list[str]:
    train, test = splits["train"], splits["test"]
    if train.ends is None or test.begins is None or test.begins >= train.ends:
        return []
    return [
        f"test begins ({moment(test.begins)}) before train ends ({moment(train.ends)}): if later clicks give away earlier "
        "ones, the metrics come out too high"
    ]


def hints_of_sentences(sentences: SentenceFacts | None) -> list[str]:
    if sentences is None or sentences.unknown_tokens <= MANY_UNKNOWN_TOKENS:
        return []
    return [
        f"{sentences.unknown_tokens:.0%} of the tokens are unknown to the text model, as in the sentences above: choose one "
        "for your language with text_model_name_or_path"
    ]


# ---- the training


def time_stages(recipe: Recipe, prepared: Prepared, scratch: Path) -> list[StageFacts]:
    """Runs a few steps of each of the recipe's stages, and measures them."""
    processor, stages = prepared.processor, []
    if needs_pretraining(recipe):
        text_model = recipe.text_model_name_or_path
        aligner = FlipForPreTraining.from_text_pretrained(text_model, processor, **model_settings(recipe))
        stages.append(time_stage("pretraining", recipe, aligner, processor, prepared, scratch))
        del aligner
    model = make_model(recipe, processor, None)
    processor = processor.tabular_only() if model.inputs == ("feature_ids",) else processor
    stages.append(time_stage("finetuning", recipe, model, processor, prepared, scratch))
    return stages


def time_stage(
    name: str, recipe: Recipe, model: FlipPreTrainedModel, processor: FlipProcessor, prepared: Prepared, scratch: Path
) -> StageFacts:
    if torch.accelerator.is_available():
        torch.accelerator.reset_peak_memory_stats()
    arguments = stage_arguments(recipe, name)
    few_steps: dict[str, Any] = {name: {**(getattr(recipe, name) or {}), **FEW_STEPS}}
    few = stage_arguments(replace(recipe, output_dir=str(scratch / "steps"), refit=None, **few_steps), name)
    timer = StepTimer()
    rows = prepared.splits["train"]
    if arguments.freeze_text_tower:
        vector = np.zeros(model.base_model.text_tower.config.hidden_size, np.float32)
        rows = replace(rows, sentences=np.broadcast_to(vector, (len(rows), len(vector))))
    trainer = ShortTrainer(model, few, processor, rows, callbacks=[timer])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    parameters = dict.fromkeys((*PARTS.values(), HEADS), 0)
    for path, parameter in model.named_parameters():
        parameters[part_of(path)] += parameter.numel()
    tables = feature_tables(model).values() if arguments.sparse_embeddings else ()  # of these a batch's rows alone
    without = {table.weight for table in tables}
    assert trainer.optimizer is not None
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"] if p not in without]
    state = trainer.optimizer.state.values()
    rows_per_step = trainer.args.train_batch_size * trainer.args.world_size * trainer.args.gradient_accumulation_steps
    steps, epochs = steps_of(arguments, len(prepared.splits["train"]), trainer.args.world_size)
    evaluated = evaluations_of(arguments, steps, epochs) * len(prepared.splits.get("validation", ()))
    if name == "finetuning":
        evaluated += len(prepared.splits["test"])
    if arguments.freeze_text_tower:  # which reads each row once
        evaluated = sum(map(len, prepared.splits.values()))
    return StageFacts(
        name=name,
        parameters=parameters,
        weights=size_of(model.parameters()),
        gradients=size_of(trained),
        optimizer_state=sum(size_of(v for v in one.values() if isinstance(v, torch.Tensor)) for one in state),
        peak_memory=peak_memory(),
        rows_per_step=rows_per_step,
        steps=steps,
        may_stop_early=arguments.early_stopping_patience is not None,
        seconds_per_step=timer.median,
        timed_steps=len(timer.moments) - 1,
        evaluated_rows=evaluated,
        evaluated_rows_per_second=time_evaluation(trainer, prepared.splits["test"]) if evaluated else None,
    )


class ShortTrainer(FlipTrainer):
    """Takes a few steps with batches from all over the first epoch: where sentences of like length share a batch, neighbours are
    alike. The first has the longest sentence."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        args = self.args
        order = np.fromiter(super()._get_train_sampler(train_dataset), np.int64)
        size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        steps = max(1, len(order) // size)
        firsts = np.unique(np.linspace(0, steps - 1, min(steps, args.max_steps)).astype(np.int64)) * size
        rows = (firsts[:, None] + np.arange(size)).ravel()
        return InOrder(order[rows[rows < len(order)]])


class StepTimer(TrainerCallback):
    """Records when steps ended, and stops the training after enough of them.

    Attributes:
        moments: the first is the end of the step to warm up.
    """

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.moments.append(time.perf_counter())
        # All processes must stop at the same step.
        seconds = torch.tensor(self.moments[-1] - self.moments[0], device=PartialState().device)
        mean = float(reduce(seconds, reduction="mean"))
        control.should_training_stop |= len(self.moments) > 2 and mean > TIMED_SECONDS

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return float(np.median(np.diff(self.moments)))


def time_evaluation(trainer: FlipTrainer, rows: FlipDataset) -> float:
    """Rows scored per second."""
    some = spread(rows, TIMED_EVALUATION_BATCHES * trainer.args.eval_batch_size * trainer.args.world_size)
    began = time.perf_counter()
    trainer.predict_logits(some, "test")  # metrics need clicks and non-clicks, which few rows may not have
    return len(some) / (time.perf_counter() - began)


def steps_of(args: FlipTrainingArguments, rows: int, processes: int) -> tuple[int, float]:
    """Steps of a stage, and its epochs, as Trainer counts them."""
    each = args.train_batch_size * processes
    batches = rows // each if args.dataloader_drop_last else math.ceil(rows / each)
    steps_per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    if args.stop_after_epochs is not None:
        steps = min(steps, math.ceil(args.stop_after_epochs * steps_per_epoch))
    return steps, steps / steps_per_epoch


def evaluations_of(args: FlipTrainingArguments, steps: int, epochs: float) -> int:
    if args.eval_strategy == "epoch":
        return math.ceil(epochs)
    if args.eval_strategy == "steps":
        every = args.eval_steps or args.logging_steps
        return int(steps // every if every >= 1 else 1 / every)
    return 0


def part_of(parameter: str) -> str:
    return next((part for module, part in PARTS.items() if module in parameter), HEADS)


def size_of(tensors: Any) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_memory() -> int | None:
    if torch.accelerator.is_available():
        return int(torch.accelerator.max_memory_allocated())
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- printing


def show(report: DryRun, command: str) -> str:
    """The report as text; `command` is the one that trains."""
    parts = [show_splits(report)]
    if report.sentences is not None:
        parts.append(show_sentences(report.sentences))
    parts += [show_features(report), show_hints(report.hints), show_size(report), show_time(report)]
    begun = f"{report.output_dir} already holds this run, finished or not: train.py would continue it.\n"
    parts.append(
        f"Nothing was trained or saved. {begun if report.is_begun else ''}To train, run the same without --dry_run:\n  {command}"
    )
    return "\n\n".join(parts)


def show_splits(report: DryRun) -> str:
    header = ["", "rows", "click rate", "rows with unseen values", "from", "to"]
    table = [header]
    for name, facts in report.splits.items():
        unseen = "–" if facts.unseen is None else percent(facts.unseen)
        table.append(
            [name, f"{facts.rows:,}", percent(facts.click_rate), unseen, moment(facts.begins), moment(facts.ends)]
        )
    if all(facts.begins is None for facts in report.splits.values()):
        table = [line[:4] for line in table]
    text = "Splits (an unseen value is one that no training row has)\n" + aligned(table)
    if report.group_column is not None:
        groups = [["", "groups", "rows in groups with both clicks and non-clicks"]]
        groups += [[name, f"{facts.groups:,}", percent(facts.ranked or 0.0)] for name, facts in report.splits.items()]
        text += f"\n\nGroups: the values of {report.group_column!r}, within which gAUC ranks\n{aligned(groups)}"
    return text


def show_sentences(sentences: SentenceFacts) -> str:
    median, most, longest = sentences.quantiles
    cut = f"{percent(sentences.share_cut)} of the sentences are longer and are cut."
    lines = [
        "Sentences, as the text tower reads them",
        f"  tokens: {median:,.0f} (median), {most:,.0f} (95th percentile), {longest:,.0f} (longest)",
        f"  max_length: {sentences.max_length:,} tokens. " + (cut if sentences.share_cut else "None is cut."),
    ]
    for name, share in sorted(sentences.cut_fields.items(), key=lambda item: -item[1]):
        lines.append(f"    {name!r} loses words or is dropped in {percent(share)} of the training rows")
    for i, example in enumerate(sentences.examples, 1):
        shown = example if len(example) <= LONGEST_EXAMPLE else f"{example[:LONGEST_EXAMPLE]} …"
        lines.append(f"  example {i}: {shown}")
    return "\n".join(lines)


def show_features(report: DryRun) -> str:
    table = [
        ["min_count", *(str(k) for k in report.features)],
        ["features", *(f"{n:,}" for n in report.features.values())],
    ]
    return (
        "Features (rows of the embedding table) by min_count: values seen less often share their field's unknown feature. It "
        f"is {report.min_count} now\n" + aligned(table)
    )


def show_hints(hints: Sequence[str]) -> str:
    if not hints:
        return "Hints: none"
    return "Hints\n" + "\n".join(f"  - {hint}" for hint in hints)


def show_size(report: DryRun) -> str:
    stages = report.stages
    table = [["", *(stage.name for stage in stages)]]
    for part in (*PARTS.values(), HEADS):
        table.append([part, *(f"{stage.parameters[part]:,}" for stage in stages)])
    table.append(["all parameters", *(f"{sum(stage.parameters.values()):,}" for stage in stages)])
    for name in ("weights", "gradients", "optimizer_state"):
        table.append([name.replace("_", " "), *(amount(getattr(stage, name)) for stage in stages)])
    of = "this process so far, with its rows and libraries" if report.device == "cpu" else f"the {report.device} device"
    steps = min(stage.timed_steps for stage in stages)
    table.append(["peak memory, at least", *(amount(stage.peak_memory) for stage in stages)])
    return f"Parameters and memory (the peak is that of {of}, after {steps} steps)\n{aligned(table)}"


def show_time(report: DryRun) -> str:
    processes = f", {report.processes} processes" if report.processes > 1 else ""
    lines = [f"Time, estimated from a few steps on this machine ({report.device}{processes})"]
    lines.append(f"  preparation: {duration(report.preparation_seconds)} (measured)")
    total = report.preparation_seconds
    for stage in report.stages:
        most = "at most " if stage.may_stop_early else ""
        lines.append(
            f"  {stage.name}: {most}{stage.steps:,} steps of {stage.rows_per_step:,} rows × {stage.seconds_per_step:.3g} s "
            f"(median of {stage.timed_steps}) = {duration(stage.training_seconds)}"
        )
        if stage.evaluated_rows_per_second:
            lines.append(
                f"    evaluation: {most}{stage.evaluated_rows:,} rows ÷ {stage.evaluated_rows_per_second:,.0f} rows/s = "
                f"{duration(stage.evaluation_seconds)}"
            )
        total += stage.training_seconds + stage.evaluation_seconds
    if report.refit is not None:
        again = report.refit * sum(stage.training_seconds for stage in report.stages)
        lines.append(f"  refit, the same on training and validation rows: at most {duration(again)}")
        total += again
    return "\n".join([*lines, f"  together: about {duration(total)}"])


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right, indented."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = (
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in table
    )
    return "\n".join(f"  {line}".rstrip() for line in lines)


def percent(share: float) -> str:
    return f"{share:.1%}"


def moment(time: np.datetime64 | None) -> str:
    return "–" if time is None else str(time.astype("datetime64[s]")).replace("T", " ")


def amount(size: int | None) -> str:
    """Bytes as people write them."""
    if size is None:
        return "–"
    if size < 1024:
        return f"{size} B"
    power = min(3, int(math.log(size, 1024)))
    return f"{size / 1024**power:,.1f} {' KMG'[power]}iB"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
