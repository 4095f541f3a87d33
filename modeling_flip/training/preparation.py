"""From a recipe and raw rows to what models train on: fields, processor and encoded rows, kept in a cache.

What is kept lies in a folder named for all that it depends on: the data, the settings of the recipe, the tokenizer, and the code.
It can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
import torch
from accelerate import PartialState
from huggingface_hub.constants import HF_HOME
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..commands import NO_SPACE, sole_writer
from ..configuration_flip import load_text_config
from ..feature_vocabulary import VOCABULARY_FILE, FeatureVocabulary
from ..field_inference import FieldReport, field_table, infer_fields
from ..fields import Field, used, with_min_count
from ..processing_flip import FlipProcessor, check_fields, warn_of_fields
from ..row_dataset import FlipDataset
from ..sentences import default_max_length
from ..text_tower import check_max_length, most_tokens
from . import manifest
from .checks import check_columns, check_data
from .data import group_codes
from .encoded_rows import fit_and_encode, open_split, read_array, write_array
from .phases import phase
from .recipe import Recipe, field_names, needs_text, starts_from
from .splits import RawSplits, SplitRows, check_column

logger = transformers_logging.get_logger(__name__)

# What of the recipe decides how rows are read and encoded, beside the data and the text model's tokenizer.
KEYS = (
    *("label_column", "positive_label", "positive_above", "time_column", "group_column"),
    *("fields", "exclude_fields", "item_fields", "min_count", "max_length"),
)
CODE = (
    *("fields", "cell_text", "row_containers", "row_reader", "quarantine", "field_inference"),
    *("feature_vocabulary", "vocabulary_file", "token_table", "row_dataset", "sentences"),
    *(f"table_files/{path.stem}" for path in sorted((manifest.PACKAGE / "table_files").glob("*.py"))),
    *("processing_flip", "training/splits", "training/data", "training/checks", "training/encoded_rows"),
    "training/preparation",
)
FACTS_FILE = "prepared.json"
BAD_ROWS_FILE = "bad_rows.jsonl"
# Fields are inferred from at most this many training rows; from more rows, a random sample is drawn.
ROWS_TO_INSPECT = 1_000_000
MOST_WORKERS = 4
A_DAY = 86_400


@dataclass(frozen=True)
class Prepared:
    """Rows that models read.

    Attributes:
        processor: that of the checkpoint that training starts from, with `init_from` grown by the training rows; or one fitted
            on these.
        splits: encoded rows with their labels, by the names in SPLITS; without validation rows where these are in train.
        watched: the validation rows that are scored while training; None without any.
        inputs: what the manifests say of them: `data` (rows and SHA-256 of each split), `vocabulary` and `text_model`.
        reports: what was found in the data: `rows`, how many each split has; `leaks`, of each field that may give the click away
            how it does; `cut_fields`, of each field that max_length cuts the share of training rows where it does; and
            `bad_rows`, of each file how many were left out, by reason.
        folder: where they are kept.
        groups: of each split the rows' values of `group_column`, as integers; empty where there is none.
    """

    processor: FlipProcessor
    splits: Mapping[str, FlipDataset]
    watched: FlipDataset | None
    inputs: Mapping[str, Any]
    reports: Mapping[str, Any]
    folder: Path = Path()
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)


def prepare(
    recipe: Recipe,
    raw: RawSplits,
    kinds: Mapping[str, str] | None = None,
    wall_time: dict[str, float] | None = None,
) -> Prepared:
    """Infer the fields from the training rows and fit the processor on them, or take the checkpoint's, and encode all rows; or
    open what an earlier run has kept of the same.

    Args:
        recipe: says which columns are read, and how.
        raw: the rows.
        kinds: of the columns whose kind the dataset says.
        wall_time: takes the seconds of each phase.

    Raises:
        ValueError: something is wrong with the data or with what the recipe says of it, the text model cannot read sentences
            of `max_length`, or `max_eval_samples` are too few.
    """
    if recipe.refit is not None:
        raw.check_refit()
    given = pretrained_processor(recipe)
    tokenizer, limit = None if given is None else given.tokenizer, None
    if given is None and needs_text(recipe):
        text_model = str(recipe.text_model_name_or_path)
        tokenizer = load_tokenizer(text_model)
        limit = limit_of(text_model, tokenizer)
        check_max_length(recipe.max_length or default_max_length(tokenizer), limit, text_model)
    folder = cache_folder(recipe, raw, kinds or {}, given, tokenizer)
    state = PartialState()
    with state.local_main_process_first(), sole_writer(folder, wait=A_DAY):
        if (facts := read_facts(folder)) is None:
            with whole_folder(folder) as unfinished:
                _fill(unfinished, recipe, raw, kinds or {}, given, tokenizer, {} if wall_time is None else wall_time)
            facts = read_facts(folder)
            assert facts is not None
        elif state.is_main_process:
            print(f"{facts['field_table']}\n", flush=True)
            for name, level, message in facts["messages"]:
                logging.getLogger(name).log(level, message)
            print(f"encoded rows: {folder}, kept from an earlier run", file=sys.stderr, flush=True)
    with phase("open", wall_time):
        processor = given
        if processor is None or recipe.init_from is not None:
            vocabulary, max_length = FeatureVocabulary.load(folder / VOCABULARY_FILE), recipe.max_length
            processor = FlipProcessor(
                tokenizer, vocabulary, max_length=max_length if given is None else given.max_length
            )
        splits = {split: open_split(folder / split, processor) for split in facts["data"]}
        groups = {split: read_array(folder / split, "groups") for split in splits if recipe.group_column is not None}
    check_towers(recipe, processor.schema)
    reports: dict[str, Any] = {"rows": {split: len(rows) for split, rows in splits.items()}}
    if bad := facts["bad_rows"]:
        reports["bad_rows"] = bad
        if state.is_main_process:
            logger.warning(f"{said_of_bad_rows(bad)} They are listed in {folder / BAD_ROWS_FILE}")
    if facts["leaks"]:
        reports["leaks"] = facts["leaks"]
    if reads_whole_sentences(recipe) and (cut := facts["cut_fields"]):
        reports["cut_fields"] = cut
        worst = sorted(cut.items(), key=lambda item: -item[1])[:5]
        is_fixed = given is not None or processor.max_length == limit
        larger = "" if is_fixed else "set a larger --max_length, "
        logger.warning(
            f"max_length is {processor.max_length} tokens, which is too short for some sentences; cut or dropped: "
            + ", ".join(f"{name!r} in {share:.1%} of the training rows" for name, share in worst)
            + f". To mend that, {larger}shorten fields, or use --fields to put what matters first"
        )
    described = None
    if needs_text(recipe):
        name = str(recipe.text_model_name_or_path)
        described = manifest.describe_text_model(name, AutoConfig.from_pretrained(name), processor.tokenizer)
    inputs = {"data": facts["data"], "vocabulary": processor.vocabulary.fingerprint, "text_model": described}
    watched = watched_rows(recipe, splits["validation"]) if "validation" in splits else None
    return Prepared(processor, splits, watched, inputs, reports, folder, groups)


def _fill(
    folder: Path,
    recipe: Recipe,
    raw: RawSplits,
    kinds: Mapping[str, str],
    given: FlipProcessor | None,
    tokenizer: PreTrainedTokenizerBase | None,
    wall_time: dict[str, float],
) -> None:
    """Prepare all rows in an empty folder."""
    with heard() as messages:
        with phase("check", wall_time):
            labels = check_data(raw, recipe)
            groups = {}
            if recipe.group_column is not None:
                for split, rows in raw.items():
                    check_column(rows.column_names, recipe.group_column, "group_column", f"split {split!r}")
                    groups[split] = group_codes(rows[recipe.group_column], recipe.group_column)
        with phase("infer", wall_time):
            if given is None:
                reports = choose_fields(recipe, raw["train"], labels["train"], kinds)
                schema = with_min_count([report.field for report in reports], recipe.min_count)
                table = field_table(reports)
                check_columns(raw, schema)
            else:
                schema, table = list(given.schema), ""
                check_columns(raw, schema)
                reports = leaking_fields(schema, raw["train"], labels["train"])
            leaks = {report.field.name: report.leak for report in reports if report.leak}

        def make_processor(fit: Callable[[], FeatureVocabulary]) -> FlipProcessor:
            if given is None:
                return FlipProcessor(tokenizer, fit(), max_length=recipe.max_length)
            if recipe.init_from is None:
                return given
            return FlipProcessor(tokenizer, given.vocabulary.grown(fit()), max_length=given.max_length)

        processor = fit_and_encode(raw, schema, make_processor, folder, workers=workers_of(recipe), wall_time=wall_time)
        splits = {}
        for split in raw:
            write_array(folder / split, "labels", labels[split])
            if split in groups:
                write_array(folder / split, "groups", groups[split])
            splits[split] = open_split(folder / split, processor)
            processor.warn_of_strange_columns(splits[split], f"{split} rows")
        if processor is not given:
            processor.vocabulary.save(folder / VOCABULARY_FILE)
        facts = {
            "field_table": table,
            "messages": messages,
            "leaks": leaks,
            "data": {split: manifest.describe_rows(rows) for split, rows in splits.items()},
            "bad_rows": {} if raw.quarantine is None else raw.quarantine.counts,
            "cut_fields": processor.cut_fields(splits["train"]) if processor.has_text else {},
        }
    if facts["bad_rows"] and raw.quarantine is not None:
        raw.quarantine.write(folder / BAD_ROWS_FILE)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest.write(folder / FACTS_FILE, json.dumps(facts | {"files": files}))


def workers_of(recipe: Recipe) -> int:
    """Threads that read cells."""
    return recipe.num_proc or min(MOST_WORKERS, os.cpu_count() or 1)


# ---- the cache


def cache_folder(
    recipe: Recipe,
    raw: RawSplits,
    kinds: Mapping[str, str],
    given: FlipProcessor | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Path:
    """The folder of these rows, as this recipe reads them."""
    package = manifest.PACKAGE
    key = {
        "data": raw.fingerprint,
        "recipe": {name: getattr(recipe, name) for name in KEYS},
        "kinds": dict(kinds),
        "vocabulary": given and [given.vocabulary.fingerprint, given.max_length, *(f.to_dict() for f in given.schema)],
        "grows": recipe.init_from is not None,
        "longest": tokenizer and tokenizer.model_max_length,
        "tokenizer": tokenizer and manifest.tokenizer_sha256(tokenizer),
        "code": [manifest.sha256_of_file(package / f"{name}.py") for name in CODE],
        "versions": [np.__version__, pa.__version__, tokenizers.__version__],
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
    cache = Path(recipe.cache_dir or Path(HF_HOME) / "modeling_flip")
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise ValueError(
            f"encoded rows cannot be kept in {cache} ({error.strerror}); name a folder to write to with --cache_dir"
        ) from error
    return cache / name


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` when all is there. What an interrupted run left of it is deleted."""
    unfinished = folder.with_name(f".{folder.name}")
    for left in (unfinished, folder):
        shutil.rmtree(left, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(folder)  # which disk is full
        raise


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What a folder says of itself; None where it is not there or not whole."""
    try:
        facts = json.loads((folder / FACTS_FILE).read_text())
        whole = all((folder / name).stat().st_size == size for name, size in facts["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return facts if whole else None


@contextmanager
def heard() -> Iterator[list[tuple[str, int, str]]]:
    """The package's log messages meanwhile, as logger, level and text."""
    messages: list[tuple[str, int, str]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append((record.name, record.levelno, record.getMessage()))
            if (
                not logging.root.handlers and logging.lastResort is not None
            ):  # it would have shown them, but for this handler
                logging.lastResort.handle(record)

    package, listener = logging.getLogger(__name__.partition(".")[0]), Listener(logging.WARNING)
    package.addHandler(listener)
    try:
        yield messages
    finally:
        package.removeHandler(listener)


# ---- rows, fields and processor


def watched_rows(recipe: Recipe, validation: FlipDataset) -> FlipDataset:
    """The validation rows that are scored while training: `max_eval_samples` of them, or all.

    Raises:
        ValueError: these have no click, or nothing but clicks.
    """
    most = recipe.max_eval_samples
    if most is None or most >= len(validation):
        return validation
    picked = np.random.default_rng(recipe.seed).choice(len(validation), most, replace=False)
    rows = validation.__getitems__(np.sort(picked))
    if rows.labels is not None and len(np.unique(rows.labels)) == 1:
        raise ValueError(
            f"max_eval_samples is {most}, but every label of these validation rows is {rows.labels[0]:.0f}: AUC needs clicks "
            "and non-clicks; set more"
        )
    logger.warning(
        f"during training, {most:,} of {len(validation):,} validation rows are scored, drawn at random with seed "
        f"{recipe.seed}; at the end all of them"
    )
    return rows


def said_of_bad_rows(bad: Mapping[str, Mapping[str, int]]) -> str:
    """One sentence, such as "5 rows that cannot be read were left out (3 not utf-8, 2 no label)."."""
    reasons = Counter[str]()
    for of_file in bad.values():
        reasons.update(of_file)
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    return f"{reasons.total():,} rows that cannot be read were left out ({counts})."


def reads_whole_sentences(recipe: Recipe) -> bool:
    """Whether some text tower reads a row as one sentence of all its fields."""
    return recipe.model_type == "p5" or (
        recipe.model_type == "flip" and (needs_text(recipe) or recipe.towers != "tabular")
    )


def pretrained_processor(recipe: Recipe) -> FlipProcessor | None:
    """The processor of the checkpoint that the recipe starts from; None where it names none.

    Raises:
        ValueError: the recipe asks for other fields than the checkpoint's, or its label is one of them.
    """
    checkpoint = starts_from(recipe)
    if checkpoint is None:
        return None
    processor = FlipProcessor.from_pretrained(checkpoint)
    theirs = {
        "fields": processor.fields,
        "min_count": max(field.least_count for field in processor.schema),
        "max_length": processor.max_length,
    }
    ours = {"fields": field_names(recipe), "min_count": recipe.min_count, "max_length": recipe.max_length}
    for key, value in ours.items():
        if value not in (None, Recipe.min_count if key == "min_count" else None, theirs[key]):
            raise ValueError(
                f"{key} is {value}, but {checkpoint} was trained with {theirs[key]}; use that, or train from the beginning"
            )
    for key, names in (("label_column", [recipe.label_column]), ("exclude_fields", recipe.exclude_fields or [])):
        if read := [name for name in names if name in processor.fields]:
            raise ValueError(
                f"{key} names {read[0]!r}, but {checkpoint} was trained with it as a field and would read it: train from the "
                "beginning"
            )
    check_settings_of_fields(recipe, processor.schema)
    return processor


def check_settings_of_fields(recipe: Recipe, schema: Sequence[Field]) -> None:
    """Raises ValueError where the recipe says something else of a field than the checkpoint that it finetunes."""
    given = recipe.fields or []
    declared = given if isinstance(given, dict) else {one["name"]: one for one in given if isinstance(one, dict)}
    theirs = {field.name: field for field in schema}
    for name, settings in declared.items():
        for key, value in settings.items():
            pretrained = getattr(theirs.get(name), "least_count" if key == "min_count" else key, None)
            if value != pretrained:
                raise ValueError(
                    f"{key} of field {name!r} is {value!r}, but {starts_from(recipe)} was trained with {pretrained!r}; use that, "
                    "or train from the beginning"
                )


def inspect_fields(
    recipe: Recipe, rows: pa.Table, labels: np.ndarray, kinds: Mapping[str, str], population: int | None = None
) -> list[FieldReport]:
    """The declared fields of the recipe and the dataset; the rest is inferred from `rows`, a sample of `population` rows."""
    exclude = {name: "excluded by the recipe" for name in recipe.exclude_fields or []}
    declared: list[dict[str, Any]] = []
    overrides = recipe.fields if isinstance(recipe.fields, dict) else {}
    if overrides and kinds:
        overrides = {name: {"kind": kinds[name]} if name in kinds else {} for name in kinds} | overrides
    for given in recipe.fields if isinstance(recipe.fields, list) else () if overrides else kinds:
        named = {"name": given} if isinstance(given, str) else dict(given)
        name = str(named.get("name"))
        if name in exclude and not recipe.fields:
            continue
        declared.append(({"kind": kinds[name]} if name in kinds else {}) | named)
    if recipe.time_column is not None and recipe.time_column not in [one.get("name") for one in declared]:
        exclude.setdefault(recipe.time_column, "the time column")
    in_table = {name: why for name, why in exclude.items() if name in rows.column_names}
    rows = rows.drop_columns([recipe.label_column])
    return infer_fields(
        rows, declared or None, labels=labels, exclude=in_table, overrides=overrides, population=population
    )


def choose_fields(recipe: Recipe, train: SplitRows, labels: np.ndarray, kinds: Mapping[str, str]) -> list[FieldReport]:
    """The fields to train on, shown as a table.

    Raises:
        ValueError: no column is left to learn from.
    """
    rows, labels = rows_to_inspect(train, labels, train.column_names)
    if len(rows) < len(train):
        logger.warning(
            f"the fields are inferred from {len(rows):,} of the {len(train):,} training rows, drawn at random: the counts below "
            "are of these"
        )
    reports = inspect_fields(recipe, rows, labels, kinds, len(train))
    if PartialState().is_main_process:
        print(f"{field_table(reports)}\n", flush=True)
        warn_of_fields(reports, known={*(recipe.exclude_fields or []), recipe.time_column})
    check_fields([report.field for report in reports])
    return reports


def leaking_fields(schema: Sequence[Field], train: SplitRows, labels: np.ndarray) -> list[FieldReport]:
    """Those fields of a checkpoint that may give the click away in these training rows, each with a warning."""
    fields = used(schema)
    rows, labels = rows_to_inspect(train, labels, [field.name for field in fields])
    reports = infer_fields(rows, fields, labels=labels, population=len(train))
    remedy = "the checkpoint reads it, so leaving it out takes training from the beginning"
    found = [replace(report, warning=f"{report.leak}; {remedy}") for report in reports if report.leak]
    if PartialState().is_main_process:
        warn_of_fields(found)
    return found


def rows_to_inspect(train: SplitRows, labels: np.ndarray, names: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
    """Some columns of the training rows and their labels; of more than ROWS_TO_INSPECT a random sample."""
    size = len(train)
    if size <= ROWS_TO_INSPECT:
        return train.read(names), labels
    wanted = np.zeros(size, bool)
    wanted[np.random.default_rng(0).choice(size, ROWS_TO_INSPECT, replace=False)] = True
    return train.read(names, wanted), labels[wanted]


def check_towers(recipe: Recipe, schema: Sequence[Field]) -> None:
    """Raises ValueError where a tower that the recipe asks for has nothing to read."""
    if recipe.towers != "text" and recipe.model_type == "flip" and not any(field.has_table_side for field in schema):
        raise ValueError(
            f"the fields {[field.name for field in used(schema)]} are text, which a tabular tower does not read: set towers to "
            "text, and leave pretraining out, or give one of them the kind categorical"
        )


def limit_of(text_model: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """`most_tokens` of a text model whose weights are not loaded."""
    with torch.device("meta"):
        return most_tokens(AutoModel.from_config(load_text_config(text_model)), tokenizer)


def load_tokenizer(text_model: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(text_model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"text model {text_model!r} has no tokenizer that can be loaded ({str(error).splitlines()[0]}); save it there "
            "with tokenizer.save_pretrained, or set --text_model_name_or_path to another"
        ) from error
