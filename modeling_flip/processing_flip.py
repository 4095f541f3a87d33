"""FlipProcessor: raw rows to feature ids and sentences, both from one integer matrix."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import CONFIG_NAME, cached_file, logging

from .cell_text import as_numbers
from .checkpoint_files import LOCATION_KEYS, PROCESSOR, check_files, copy_code, write_checksums
from .configuration_flip import IS_REMOTE_CODE
from .feature_vocabulary import VOCABULARY_FILE, FeatureVocabulary
from .field_inference import FieldReport, infer_fields
from .fields import Field, used
from .row_containers import open_rows
from .row_dataset import FlipDataset
from .row_reader import read_clicks, read_columns
from .sentences import SentenceTokenizer, default_max_length, pieces_of, spoken, usable_tokenizer, value_words
from .token_table import gather

logger = logging.get_logger(__name__)

ROWS_AT_ONCE = 1 << 18
# A warning is logged when nearly all values of a field are unseen in this many rows: probably it is a different column.
ROWS_TO_JUDGE, NEARLY_ALL = 20, 0.9
# A warning is logged, even for a single row, when more than this share of a numeric field are not numbers.
NOT_NUMBERS = 0.1


class FlipProcessor(ProcessorMixin):
    """Turns raw rows into what FLIP reads: feature ids for the tabular tower and a sentence for the text tower.

    The sentence is "{field name} is {value}." for each field, joined by spaces, in the order of the fields (FLIP §3.1).

    Args:
        tokenizer: a fast tokenizer, or None where only the tabular tower is used.
        vocabulary: the fields, and their values seen in training.
        display_names: the field names written in the sentence; by default what each field says of itself.
        max_length: sentences are cut to this many tokens, special tokens included; by default the tokenizer's own
            limit, at most 512.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vocabulary: FeatureVocabulary | None = None,
        display_names: dict[str, str] | None = None,
        max_length: int | None = None,
    ):
        if vocabulary is None:
            raise ValueError("FlipProcessor needs a vocabulary; FlipProcessor.fit(rows, fields, tokenizer) makes both")
        strangers = set(display_names or {}) - set(vocabulary.fields)
        if strangers:
            raise ValueError(
                f"display_names names {sorted(strangers)}, which are not fields; the fields are {vocabulary.fields}"
            )
        if display_names:
            named = (replace(field, words=display_names.get(field.name, field.words)) for field in vocabulary.schema)
            vocabulary = replace(vocabulary, schema=tuple(named))
        self.chat_template = None
        self.auto_map = {"AutoProcessor": "processing_flip.FlipProcessor"}
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.has_text = tokenizer is not None
        self._vocabulary = vocabulary
        self._sentence_tokenizer: SentenceTokenizer | None = None
        self.gathers_tokens = False  # whether a sentence's tokens are those of its values, one after the other
        self._warned: set[str] = set()  # the fields that `warn_of_strange_columns` has named
        if tokenizer is not None:
            self._prepare_text(tokenizer)

    def _prepare_text(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer = usable_tokenizer(tokenizer)
        sentences = self._sentence_tokenizer = SentenceTokenizer(tokenizer, self._vocabulary.columns)
        self.max_length = self.max_length or default_max_length(tokenizer)
        sentences.check_max_length(self.max_length)
        if self._vocabulary.token_table is not None:
            self.gathers_tokens = sentences.can_gather(self._vocabulary, self.max_length)
        if not self.gathers_tokens:  # none yet, or made for another tokenizer or other names
            table = sentences.token_table(self._vocabulary.value_columns, self._vocabulary.all_texts)
            self._vocabulary = replace(self._vocabulary, token_table=table)
            self.gathers_tokens = sentences.can_gather(self._vocabulary, self.max_length)
        if not self.gathers_tokens:
            logger.warning_once(
                "this tokenizer splits a value differently alone and inside its sentence: whole sentences are tokenised "
                "instead of gathered, which is slower"
            )

    @classmethod
    def fit(
        cls,
        rows: Any,
        fields: Sequence[str | Mapping[str, Any] | Field] | Mapping[str, Mapping[str, Any]] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        label: str | None = None,
        min_count: int = 1,
        **kwargs: Any,
    ) -> FlipProcessor:
        """A processor for the fields of the training rows, inferred as `train.py` infers them.

        Args:
            rows: the training rows, anything that `read_columns` reads.
            fields: the columns to use, in the order of the sentence: names, or settings of `Field` with a name; what is not
                said is inferred. By default all columns that can be learned from; a mapping of names to settings says
                something of some of them.
            tokenizer: a fast tokenizer, or None where only the tabular tower is used.
            label: the column of clicks, if the rows have it: it becomes no field, and columns that give it away are left out.
            min_count: of each field that says nothing else: values seen less often share their field's unknown feature.
            kwargs: go to the constructor.

        Raises:
            ValueError: a column is absent, a setting impossible, a label not 0 or 1, or no column is left to learn from.

        Example:
            >>> rows = {"city": ["Rome", "Oslo", "Rome"], "price": [3.5, 2.0, 1.25], "clicked": [1, 0, 1]}
            >>> processor = FlipProcessor.fit(rows, label="clicked")
            >>> processor.fields
            ['city', 'price']
        """
        schema: list[Any] = []
        if fields and not isinstance(fields, Mapping) and all(isinstance(field, Field) for field in fields):
            schema = list(fields)  # nothing is left to infer
        if not schema or label is not None:
            declared, overrides = (None, fields) if isinstance(fields, Mapping) else (fields, None)
            clicks = None if label is None else read_clicks(rows, label)
            exclude = None if label is None else {label: "the label"}
            reports = infer_fields(rows, declared, labels=clicks, exclude=exclude, overrides=overrides)
            reports = [report for report in reports if report.field.name != label]
            warn_of_fields(reports)
            check_fields([report.field for report in reports])
            schema = schema or [report.field for report in reports]
        if isinstance(rows, Mapping) and all(field.kind == "list" for field in schema):
            # Columns here; read by such fields alone, each list could as well be the members of one row.
            names, _, column_of = open_rows(rows)
            columns = [
                column.to_pylist() if isinstance(column, (pa.Array, pa.ChunkedArray)) else column
                for column in map(column_of, names)
            ]
            rows = [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]
        return cls(tokenizer, FeatureVocabulary.fit(rows, schema, min_count), **kwargs)

    def tabular_only(self) -> FlipProcessor:
        """This processor without its tokenizer, for a model that has only the tabular tower."""
        return FlipProcessor(None, replace(self._vocabulary, token_table=None))

    @property
    def vocabulary(self) -> FeatureVocabulary:
        return self._vocabulary

    @property
    def schema(self) -> tuple[Field, ...]:
        """All fields, ignored ones too."""
        return self._vocabulary.schema

    @property
    def fields(self) -> list[str]:
        """The names of the fields that are read, in the order of the sentence."""
        return self._vocabulary.fields

    @property
    def display_names(self) -> dict[str, str]:
        """The fields' names in the sentence."""
        return {field.name: field.words for field in self._vocabulary.columns}

    @property
    def config_settings(self) -> dict[str, Any]:
        """What a model's configuration says of the rows it was made for."""
        vocabulary = self._vocabulary
        return {
            "num_features": vocabulary.num_features,
            "num_fields": len(vocabulary.table_columns),
            "text_fields": np.setdiff1d(np.arange(len(vocabulary.columns)), vocabulary.table_columns).tolist(),
            "list_fields": np.searchsorted(vocabulary.table_columns, vocabulary.list_columns).tolist(),
            "vocabulary_fingerprint": vocabulary.fingerprint,
            "tokenizer_fingerprint": self.sentence_tokenizer.fingerprint if self.has_text else None,
        }

    def check_belongs_to(self, config: Any) -> None:
        """Raises ValueError where a model with this configuration was trained with another vocabulary, or another tokenizer: its
        embeddings would be other values', or other tokens'."""
        settings = self.config_settings
        if getattr(config, "model_type", None) == "flip" and getattr(config, "towers", None) == "tabular":
            del settings["tokenizer_fingerprint"]  # of a checkpoint of both towers
        for name, ours in settings.items():
            theirs = getattr(config, name, None)
            if None in (ours, theirs):  # an older checkpoint, or a processor without a tokenizer
                continue
            if (list(theirs) if isinstance(theirs, tuple) else theirs) != ours:
                raise ValueError(
                    f"{'the tokenizer' if name == 'tokenizer_fingerprint' else 'the vocabulary'} does not belong to the weights: "
                    f"its {name} is {ours}, the model's {theirs}; load model and processor from the same checkpoint and revision"
                )

    @property
    def sentence_tokenizer(self) -> SentenceTokenizer:
        """What makes tokens of values and of sentences.

        Raises:
            ValueError: the processor has no tokenizer.
        """
        if self._sentence_tokenizer is None:
            raise ValueError(
                "this processor has no tokenizer, and so no sentences: its model has only the tabular tower"
            )
        return self._sentence_tokenizer

    @property
    def model_input_names(self) -> list[str]:
        return ["feature_ids", "input_ids", "attention_mask"] if self.has_text else ["feature_ids"]

    # ---- rows to integers

    def encode(
        self,
        rows: Any,
        labels: str | np.ndarray | None = None,
        *,
        strict: bool = True,
        shared: Mapping[str, Any] | None = None,
    ) -> FlipDataset:
        """Encode rows once, for training or scoring.

        Args:
            rows: a dict (one row, or columns), a list of dicts, a DataFrame, an Arrow table or a `datasets.Dataset`.
            labels: (N,) clicks, or the column that holds them, as 0 and 1 or false and true.
            strict: whether an absent field is an error; otherwise it counts as missing in every row and is named once.
            shared: fields that are the same in all rows, such as those of one user, in place of columns of them; read once.

        Raises:
            ValueError: a column is absent (where not `strict`, all are), a label is not 0 or 1, its column is a field, or there
                are more or fewer labels than rows.
        """
        if isinstance(labels, str) and labels in self.fields:
            raise ValueError(
                f"the label {labels!r} is a field of the processor: the model would read the answer. Fit it again with "
                f"FlipProcessor.fit(rows, …, label={labels!r})"
            )
        shared = shared or {}
        once = [field for field in self._vocabulary.columns if field.name in shared]
        of_rows = [field for field in self._vocabulary.columns if field.name not in shared]
        columns, absent = read_columns(rows, of_rows, strict=strict)
        if once:
            same, _ = read_columns([shared], once)
            repeats = pa.array(np.zeros(open_rows(rows, self._vocabulary.columns)[1], np.int32))
            columns |= {name: column.take(repeats) for name, column in same.items()}
        if absent == self.fields:
            raise ValueError(f"the rows have none of the fields {self.fields}; rename their columns")
        for field in absent:  # each by itself, so that none is named twice where rows come in chunks with other columns
            logger.warning_once(f"no column {field!r} in the rows: scored as missing")
        value_ids, local = self._vocabulary.encode(columns)
        tables = None
        if self.gathers_tokens:
            assert self._vocabulary.token_table is not None
            own = self.sentence_tokenizer.token_table(local.columns, local.texts)
            tables = (self._vocabulary.token_table, own)
        if labels is not None:
            where = (rows, labels) if isinstance(labels, str) else ({"labels": np.asarray(labels)}, "labels")
            labels = read_clicks(*where)
            if len(labels) != len(value_ids):
                raise ValueError(f"there are {len(labels)} labels for {len(value_ids)} rows: give each row one")
        dataset = FlipDataset(
            value_ids=value_ids,
            vocabulary=self._vocabulary,
            local=local,
            token_tables=tables,
            labels=labels,
            row_ids=np.arange(len(value_ids)),
        )
        self.warn_of_strange_columns(dataset, but=shared)
        return dataset

    def warn_of_strange_columns(self, rows: FlipDataset, where: str = "", but: Container[str] = ()) -> None:
        """Warns once of each field whose values in these rows are hardly those of training: nearly all of them are unseen
        categories, or some are new and, in a numeric field, no numbers.

        Args:
            rows: encoded rows.
            where: what they are, such as "test rows".
            but: fields that have one value in all rows, which says nothing of a column.
        """
        vocabulary = self._vocabulary
        for i, field in enumerate(vocabulary.columns):
            seen = vocabulary.values[field.name]
            if field.kind not in ("categorical", "numeric") or field.hash_size is not None or not len(seen):
                continue
            if field.name in but:
                continue
            ids = rows.value_ids[:, i]
            ids = ids[ids != vocabulary.value_offsets[i]]  # the missing ones
            strange = ids[ids >= vocabulary.num_values] - vocabulary.num_values
            if field.kind == "numeric":
                strange = strange[rows.local.first_features[strange] == vocabulary.unknown_features[i]]
            elif len(ids) < ROWS_TO_JUDGE:
                continue
            share = len(strange) / max(1, len(ids))
            if field.name in self._warned or share <= (NEARLY_ALL if field.kind == "categorical" else NOT_NUMBERS):
                continue
            self._warned.add(field.name)
            example = rows.local.texts[int(strange[0])].as_py()
            start = f"{where and f'{where}: '}{share:.0%} of the values of {field.name!r}"
            if field.kind == "numeric":
                what = "dates" if field.type in ("date", "timestamp") else "numbers"
                usual = seen[int(np.argmin(np.isnan(as_numbers(seen, field.type))))]
                logger.warning(
                    f"{start} are not {what}, such as {example!r}: they count as missing; training saw {what} such as "
                    f"{usual.as_py()}"
                )
            else:
                logger.warning(
                    f"{start} were never seen in training, such as {example!r}; there they looked like {seen[0].as_py()!r}. "
                    "Is it the same column, and not an identifier of single rows?"
                )

    # ---- integers to tensors

    def __call__(self, rows: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """Encode rows for the model: `feature_ids` (B, F), where there are list fields `list_feature_ids` (B, L, K), and with a
        tokenizer `input_ids` (B, L), `attention_mask` (B, L) and `token_field_ids` (B, L), the field whose value a token
        belongs to, by its position in the sentence, or -1.

        An absent field and unseen values never raise: the tabular side sees the field's unknown feature, the text side
        reads the words. Padding goes to the batch's longest sentence.
        """
        dataset = self.encode(rows, strict=False)
        batch: dict[str, Any] = self.features(dataset)
        if self.has_text:
            batch |= self.sentences(dataset)
        return BatchFeature(batch, tensor_type=return_tensors)

    def features(self, rows: FlipDataset) -> dict[str, np.ndarray]:
        """`feature_ids` (B, F), and where there are list fields `list_feature_ids` (B, L, K), both int64."""
        made = {"feature_ids": rows.feature_ids()}
        if len(self._vocabulary.list_columns):
            made["list_feature_ids"] = rows.list_feature_ids()
        return made

    def sentences(self, rows: FlipDataset, fields: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """`input_ids`, `attention_mask` and `token_field_ids`, each (B, L) int64, L the longest sentence here.

        `fields` (positions) makes sentences of these alone.
        """
        to_tokens = self.sentence_tokenizer
        assert self.max_length is not None
        return to_tokens.of_rows(rows, self.max_length, fields)

    def cut_fields(self, rows: FlipDataset) -> dict[str, float]:
        """Of each field whose value `max_length` cuts in some of the rows, or leaves out, the share of the rows where it does.
        Nothing where whole sentences are tokenised."""
        if rows.token_tables is None or self.max_length is None:
            return {}
        room = self.max_length - self.sentence_tokenizer.num_special_tokens
        seen, local = rows.token_tables
        cut = np.zeros(len(self.fields), np.int64)
        for first in range(0, len(rows), ROWS_AT_ONCE):
            reach = gather(seen.lengths, local.lengths, rows.value_ids[first : first + ROWS_AT_ONCE]).cumsum(1)
            cut += (reach - 1 > room).sum(0)  # the full stop after a value is not part of it
        shares = cut / max(1, len(rows))
        return {name: float(share) for name, share in zip(self.fields, shares, strict=True) if share}

    # ---- sentences as text: to read

    def texts(self, rows: Any) -> list[str]:
        """The sentences of raw rows, as the text tower reads them."""
        columns, _ = read_columns(rows, self._vocabulary.columns, strict=False)
        values = zip(*(spoken(column.dictionary_decode()).to_pylist() for column in columns.values()), strict=True)
        return [_joined(pieces_of(self._vocabulary.columns, row)) for row in values]

    def texts_of(self, rows: FlipDataset) -> list[str]:
        """The sentences of encoded rows, whole."""
        return [_joined(pieces) for pieces in self.pieces_of(rows)]

    def pieces_of(self, rows: FlipDataset) -> list[list[tuple[str, str, str]]]:
        """The sentences of encoded rows, each as what stands before a field's value, the value, and what stands after it."""
        return [list(pieces_of(self._vocabulary.columns, values)) for values in value_words(rows)]

    # ---- files

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the tokenizer, `processor_config.json`, `feature_vocab.parquet`, and the code that reads them (and push them,
        to `repo_id`)."""
        folder = Path(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        folder.mkdir(parents=True, exist_ok=True)
        self._vocabulary.save(folder / VOCABULARY_FILE)
        if self.tokenizer is None:
            self.to_json_file(folder / "processor_config.json")
        else:
            super().save_pretrained(save_directory)
        copy_code(folder, __file__)
        write_checksums(folder, PROCESSOR)
        return [str(folder / "processor_config.json"), str(folder / VOCABULARY_FILE)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Self:
        """As in transformers.

        Raises:
            ValueError: a file is truncated or changed, or the vocabulary belongs to other weights than those beside it.
        """
        if not IS_REMOTE_CODE:  # this code is asked instead of the checkpoint's, and for its tokenizer too
            kwargs["trust_remote_code"] = False
        located = {key: kwargs[key] for key in LOCATION_KEYS if kwargs.get(key) is not None}
        commit = check_files(pretrained_model_name_or_path, PROCESSOR, **located)
        if commit is not None:
            kwargs["revision"] = located["revision"] = commit
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config_file = cached_file(
            pretrained_model_name_or_path, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **located
        )
        if config_file is not None:
            config = json.loads(Path(config_file).read_text())
            processor.check_belongs_to(SimpleNamespace(**{k: config.get(k) for k in processor.config_settings}))
        return processor

    @staticmethod
    def get_possibly_dynamic_module(module_name: str) -> Any:
        """What transformers asks for the classes that files of a checkpoint name: none is needed."""
        raise ValueError(
            f"the checkpoint names the class {module_name!r} as a part of its processor, which consists only of a tokenizer "
            "and a vocabulary"
        )

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"has_text": self.has_text}

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        located = {key: kwargs[key] for key in LOCATION_KEYS if kwargs.get(key) is not None}
        path = cached_file(
            pretrained_model_name_or_path, VOCABULARY_FILE, _raise_exceptions_for_missing_entries=False, **located
        )
        if path is None:
            raise OSError(
                f"{pretrained_model_name_or_path} holds no processor: {VOCABULARY_FILE} is missing; load the processor from "
                "the checkpoint that training saved, and pass it as processor="
            )
        tokenizers = [None]
        if processor_dict is None or processor_dict.pop("has_text", True):
            tokenizers = super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        return [*tokenizers, FeatureVocabulary.load(path)]


def warn_of_fields(reports: Sequence[FieldReport], known: Collection[str | None] = ()) -> None:
    """Warn of the columns that inference left out, but for those that are `known` to be, and of those that are used though
    something speaks against it."""
    fields = [report.field for report in reports]
    left_out = [f"{f.name!r} ({f.reason})" for f in fields if f.kind == "ignored" and f.name not in known]
    if left_out:
        logger.warning(f"left out: {', '.join(left_out)}; name a column in fields to use it anyway")
    for report in reports:
        if report.warning:
            logger.warning(f"field {report.field.name!r} is used, but check it: {report.warning}")


def check_fields(schema: Sequence[Field]) -> None:
    """Raises ValueError where no column is left to learn from."""
    if not used(schema):
        raise ValueError(
            "no column is left to learn from: " + "; ".join(f"{field.name!r}: {field.reason}" for field in schema)
        )


def _joined(pieces: Iterable[tuple[str, str, str]]) -> str:
    return "".join(chain.from_iterable(pieces))
