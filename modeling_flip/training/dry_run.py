"""A dry run: how the data are read, how large the model is, and how long training would take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import set_seed

from ..feature_vocabulary import FeatureVocabulary
from ..fields import OPTIONS_OF_KIND, with_min_count
from ..row_dataset import FlipDataset
from ..sentences import MAX_SEGMENT_LENGTH, SentenceTokenizer
from .checks import check_recipe
from .data import read_times
from .preparation import Prepared, prepare, reads_whole_sentences
from .recipe import Recipe, refits_now
from .resume import check_output_dir
from .splits import RawSplits
from .timing import StageFacts, spread, time_stages

MIN_COUNTS = (1, 2, 5, 10)
# Warn of a field if more than this share of the test rows has a value that training never saw.
MOSTLY_UNSEEN = 0.5
# Warn if more than this share of tokens is unknown, among this many training rows.
MANY_UNKNOWN_TOKENS, ROWS_TO_READ = 0.05, 1000
NUM_EXAMPLES, LONGEST_EXAMPLE = 3, 600


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
    to_tokens = processor.sentence_tokenizer
    assert tokenizer is not None and max_length is not None
    some = spread(rows, ROWS_TO_READ)
    read = processor.sentences(some)
    has_table = rows.token_tables is not None  # without one, use the sampled rows
    lengths = rows.lengths + to_tokens.num_special_tokens if has_table else uncut_lengths(to_tokens, some)
    texts = processor.texts_of(spread(rows, NUM_EXAMPLES))
    spans = to_tokens.tokenize(texts, truncation=True, max_length=max_length)["offset_mapping"]
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


def uncut_lengths(to_tokens: SentenceTokenizer, rows: FlipDataset) -> np.ndarray:
    """(N,) tokens of each sentence, special tokens included."""
    return np.asarray(to_tokens.of_rows(rows, MAX_SEGMENT_LENGTH)["attention_mask"].sum(1))


def features_at(vocabulary: FeatureVocabulary, min_count: int) -> int:
    """The number of features with this `min_count` for all fields."""
    has_it = {name for name, options in OPTIONS_OF_KIND.items() if "min_count" in options}
    bare = [replace(field, min_count=None) if field.kind in has_it else field for field in vocabulary.schema]
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


def moment(time: np.datetime64 | None) -> str:
    return "–" if time is None else str(time.astype("datetime64[s]")).replace("T", " ")
