"""FlipProcessor: raw rows to feature ids and sentences, both from one integer matrix."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import CONFIG_NAME, cached_file, logging

from .checkpoint_files import LOCATION_KEYS, PROCESSOR, check_files, copy_code, write_checksums
from .configuration_flip import IS_REMOTE_CODE
from .feature_vocabulary import VOCABULARY_FILE, FeatureVocabulary, TokenTable, gather, text_columns

logger = logging.get_logger(__name__)

MISSING_TEXT = "unknown"
MAX_LENGTH = 512
# Values are cut to so many tokens in the token table, whatever max_length is: a processor may be loaded with another.
MAX_SEGMENT_LENGTH = 4096
# A segment is tokenised behind this, as it stands in the sentence: behind the full stop of the segment before it.
ANCHOR = "."


@dataclass
class FlipDataset(torch.utils.data.Dataset["FlipDataset"]):
    """Rows as value ids; a batch is a shorter FlipDataset, which the collator turns into tensors.

    Attributes:
        value_ids: (N, F) int32.
        value_features: (V,) and (U,) int32, the feature id of each value seen in training, and of the others.
        unseen_values: the values never seen in training, as (field index, text); their ids are V and up.
        token_tables: tokens of each value seen in training, and of the others; None where whole sentences must be tokenised
            (or there is no tokenizer).
        labels: (N,) float32 clicks, or None.
        row_ids: (N,) int64, which rows of the whole these are; seeds the masking.
        epoch: seeds the masking.
    """

    value_ids: np.ndarray
    value_features: tuple[np.ndarray, np.ndarray]
    unseen_values: list[tuple[int, str]]
    token_tables: tuple[TokenTable, TokenTable] | None
    labels: np.ndarray | None
    row_ids: np.ndarray
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.value_ids)

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> FlipDataset:
        index = np.asarray(indices, np.int64)
        labels = None if self.labels is None else self.labels[index]
        return replace(self, value_ids=self.value_ids[index], labels=labels, row_ids=self.row_ids[index])

    def __getitem__(self, index: int) -> FlipDataset:
        return self.__getitems__([index])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each row's sentence, special tokens aside; all 0 where there is no token table."""
        if self.token_tables is None:
            return np.zeros(len(self), np.int64)
        seen, unseen = self.token_tables
        return gather(seen.lengths, unseen.lengths, self.value_ids).sum(1)

    @property
    def has_unseen_value(self) -> np.ndarray:
        """(N,) bool, whether some value of the row was never seen in training."""
        return np.asarray((self.value_ids >= len(self.value_features[0])).any(1))


class FlipProcessor(ProcessorMixin):
    """Turns raw rows into what FLIP reads: feature ids for the tabular tower and a sentence for the text tower.

    The sentence is "{field name} is {value}." for each field, joined by spaces, in the order of the fields (FLIP §3.1).

    Args:
        tokenizer: a fast tokenizer, or None where only the tabular tower is used.
        vocabulary: the values seen in training.
        display_names: the field names written in the sentence; by default the column's, with spaces for underscores.
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
                f"display_names names {sorted(strangers)}, which are no fields; fields: {vocabulary.fields}"
            )
        self.chat_template = None
        self.auto_map = {"AutoProcessor": "processing_flip.FlipProcessor"}
        self.tokenizer = tokenizer
        self.display_names = {f: (display_names or {}).get(f, f.replace("_", " ")) for f in vocabulary.fields}
        self.max_length = max_length
        self.has_text = tokenizer is not None
        self._vocabulary = vocabulary
        self._token_table_is_exact = False
        if tokenizer is not None:
            self._prepare_text(tokenizer)

    def _prepare_text(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} reports no character offsets; load it with use_fast=True")
        if tokenizer.mask_token is None:
            tokenizer.add_special_tokens({"mask_token": "<mask>"})
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": tokenizer.eos_token or "<pad>"})
        tokenizer.truncation_side = "right"
        self._special_ids = _special_ids_around(tokenizer)
        self._control_ids = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self.max_length = self.max_length or min(tokenizer.model_max_length, MAX_LENGTH)
        least = len(self._special_ids[0]) + len(self._special_ids[1]) + 1
        if not least <= self.max_length <= MAX_SEGMENT_LENGTH:
            raise ValueError(f"max_length is {self.max_length}; it must be from {least} to {MAX_SEGMENT_LENGTH}")
        if self._vocabulary.token_table is not None:
            self._token_table_is_exact = self._check_token_table()
        if not self._token_table_is_exact:  # none yet, or made for another tokenizer or other names
            table = TokenTable.from_segments(self._segments(self._vocabulary.texts))
            self._vocabulary = replace(self._vocabulary, token_table=table)
            self._token_table_is_exact = self._check_token_table()
        if not self._token_table_is_exact:
            logger.warning_once(
                "this tokenizer splits a value differently alone and inside its sentence: whole sentences are tokenised "
                "instead of gathered, which is slower"
            )

    @classmethod
    def fit(
        cls,
        rows: Any,
        fields: Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        min_count: int = 1,
        **kwargs: Any,
    ) -> FlipProcessor:
        """A processor for the values of `fields` in the training rows; `kwargs` go to the constructor."""
        return cls(tokenizer, FeatureVocabulary.fit(rows, fields, min_count), **kwargs)

    def tabular_only(self) -> FlipProcessor:
        """The same without its tokenizer, for a model of the tabular tower alone."""
        return FlipProcessor(None, replace(self._vocabulary, token_table=None), self.display_names)

    @property
    def vocabulary(self) -> FeatureVocabulary:
        return self._vocabulary

    @property
    def fields(self) -> list[str]:
        return self._vocabulary.fields

    @property
    def config_settings(self) -> dict[str, Any]:
        """What a model's configuration says of the rows it was made for."""
        vocabulary = self._vocabulary
        return {
            "num_features": vocabulary.num_features,
            "num_fields": len(vocabulary.fields),
            "vocabulary_fingerprint": vocabulary.fingerprint,
        }

    def check_belongs_to(self, config: Any) -> None:
        """Raises ValueError where a model with this configuration was trained with another vocabulary: its embeddings would be
        other values'."""
        for name, ours in self.config_settings.items():
            theirs = getattr(config, name)
            if theirs is not None and theirs != ours:
                raise ValueError(
                    f"the vocabulary does not belong to the weights: its {name} is {ours}, the model's {theirs}; load model and "
                    "processor from the same checkpoint and revision"
                )

    @property
    def model_input_names(self) -> list[str]:
        return ["feature_ids", "input_ids", "attention_mask"] if self.has_text else ["feature_ids"]

    # ---- rows to integers

    def encode(self, rows: Any, label_column: str | None = None, *, strict: bool = True) -> FlipDataset:
        """Encode rows once, for training or scoring.

        Args:
            rows: a dict (one row, or columns), a list of dicts, a DataFrame, an Arrow table or a `datasets.Dataset`.
            label_column: the column of clicks, 0 or 1.
            strict: whether an absent field is an error; otherwise it counts as missing in every row and is named once.

        Raises:
            ValueError: a column is absent (where not `strict`, all are), or a label is not 0 or 1.
        """
        columns, absent = text_columns(rows, self.fields, strict=strict)
        if absent == self.fields:
            raise ValueError(f"the rows have none of the fields {self.fields}; rename their columns")
        for field in absent:  # each by itself, so that none is named twice where rows come in chunks with other columns
            logger.warning_once(f"no column {field!r} in the rows: scored as missing")
        labels = None if label_column is None else read_labels(rows, label_column)
        value_ids, unseen = self._vocabulary.encode(columns)
        unknown = self._vocabulary.feature_offsets[[field for field, _ in unseen]].astype(np.int32)
        table = self._vocabulary.token_table if self._token_table_is_exact else None
        return FlipDataset(
            value_ids=value_ids,
            value_features=(self._vocabulary.value_features, unknown),
            unseen_values=unseen,
            token_tables=None if table is None else (table, TokenTable.from_segments(self._segments(unseen))),
            labels=labels,
            row_ids=np.arange(len(value_ids)),
        )

    # ---- integers to tensors

    def __call__(self, rows: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """Encode rows for the model: `feature_ids` (B, F), and with a tokenizer `input_ids` (B, L), `attention_mask`
        (B, L) and `token_field_ids` (B, L), the field whose value a token belongs to, or -1.

        An absent field and unseen values never raise: the tabular side sees the field's unknown feature, the text side
        reads the words. Padding goes to the batch's longest sentence.
        """
        dataset = self.encode(rows, strict=False)
        batch: dict[str, Any] = {"feature_ids": self.feature_ids(dataset)}
        if self.has_text:
            batch |= self.sentences(dataset)
        return BatchFeature(batch, tensor_type=return_tensors)

    def feature_ids(self, rows: FlipDataset) -> np.ndarray:
        """(B, F) int64 feature ids."""
        return gather(*rows.value_features, rows.value_ids).astype(np.int64)

    def sentences(self, rows: FlipDataset, fields: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """`input_ids`, `attention_mask` and `token_field_ids`, each (B, L) int64, L the longest sentence here.

        `fields` (positions) makes sentences of these alone. Their first then stands as it does inside the whole sentence:
        tokenizers that mark spaces mark one before it.
        """
        if rows.token_tables is None:
            return self._tokenize_sentences(rows, fields)
        assert self.tokenizer is not None and self.max_length is not None
        before, after = self._special_ids
        chosen = np.arange(rows.value_ids.shape[1]) if fields is None else np.sort(np.asarray(fields, np.int64))
        (seen, unseen), size, num_fields = rows.token_tables, len(rows), len(chosen)
        value_ids = rows.value_ids[:, chosen].ravel()
        lengths = gather(seen.lengths, unseen.lengths, value_ids)  # (B F,)
        starts = gather(seen.offsets[:-1], unseen.offsets[:-1] + len(seen.tokens), value_ids)
        sentence_lengths = lengths.reshape(size, num_fields).sum(1)
        # The tokens of all sentences, end to end: `stops` counts them, each is a slice of the tables.
        stops = np.cumsum(lengths)
        source = np.repeat(starts - (stops - lengths), lengths) + np.arange(stops[-1] if size else 0)
        row = np.repeat(np.arange(size), sentence_lengths)
        position = np.arange(len(row)) - np.repeat(np.cumsum(sentence_lengths) - sentence_lengths, sentence_lengths)
        field = np.repeat(np.tile(chosen, size), lengths)

        room = self.max_length - len(before) - len(after)
        fits = position < room
        kept = np.minimum(sentence_lengths, room)
        width = int(kept.max(initial=0)) + len(before) + len(after)
        input_ids = np.full((size, width), self.tokenizer.pad_token_id, np.int64)
        token_field_ids = np.full((size, width), -1, np.int64)
        row, column, source = row[fits], position[fits] + len(before), source[fits]
        input_ids[row, column] = gather(seen.tokens, unseen.tokens, source)
        token_field_ids[row, column] = np.where(gather(seen.is_value, unseen.is_value, source), field[fits], -1)
        input_ids[:, : len(before)] = before
        for i, token in enumerate(after):
            input_ids[np.arange(size), len(before) + kept + i] = token
        mask = np.arange(width) < (kept + len(before) + len(after))[:, None]
        return {"input_ids": input_ids, "attention_mask": mask.astype(np.int64), "token_field_ids": token_field_ids}

    # ---- sentences as text: to read, and to check the token table against

    def texts(self, rows: Any) -> list[str]:
        """The sentences of raw rows, as the text tower reads them."""
        columns, _ = text_columns(rows, self.fields, strict=False)
        values = zip(*(columns[field].to_pylist() for field in self.fields), strict=True)
        return ["".join(piece for pieces in self._pieces(row) for piece in pieces) for row in values]

    def _pieces(self, values: Sequence[str | None]) -> Iterator[tuple[str, str, str]]:
        for i, (field, value) in enumerate(zip(self.fields, values, strict=True)):
            yield (" " if i else "") + f"{self.display_names[field]} is ", MISSING_TEXT if value is None else value, "."

    def _segments(self, values: Sequence[tuple[int, str | None]]) -> Iterator[tuple[list[int], list[bool]]]:
        """Tokens of "{field name} is {value}." for values given as (field index, text), in batches."""
        names = list(self.display_names.values())
        for first in range(0, len(values), 4096):
            batch = values[first : first + 4096]
            heads = [f"{ANCHOR} {names[i]} is " if i else f"{names[i]} is " for i, _ in batch]
            texts = [MISSING_TEXT if value is None else value for _, value in batch]
            encoded = self._tokenize([f"{h}{t}." for h, t in zip(heads, texts, strict=True)], special=False)
            for (i, _), head, text, ids, spans in zip(
                batch, heads, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                skip = sum(stop <= len(ANCHOR) for _, stop in spans) if i else 0
                cut = slice(skip, skip + MAX_SEGMENT_LENGTH)
                inside = [start < len(head) + len(text) and stop > len(head) for start, stop in spans[cut]]
                yield self._without_control_ids(ids[cut]), inside

    def _tokenize(self, texts: list[str], *, special: bool = True, **kwargs: Any) -> Mapping[str, Any]:
        """Tokenise plain text: a value that spells a special token, such as "[MASK]", stays text."""
        assert self.tokenizer is not None
        return self.tokenizer(
            texts,
            add_special_tokens=special,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
            **kwargs,
        )

    def _without_control_ids(self, ids: list[int]) -> list[int]:
        """A Unigram model finds "<mask>" in plain text, though special tokens are split: such a token is unknown."""
        assert self.tokenizer is not None
        unknown = self.tokenizer.unk_token_id
        return [unknown if i in self._control_ids and unknown is not None else i for i in ids]

    def _tokenize_sentences(self, rows: FlipDataset, fields: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """What `sentences` gives, by tokenising each whole sentence and reading the fields from the offsets."""
        assert self.tokenizer is not None
        seen = self._vocabulary.texts
        texts, all_spans = [], []
        for row in rows.value_ids:
            text, value_spans = "", []
            values = [(seen[v] if v < len(seen) else rows.unseen_values[v - len(seen)])[1] for v in row]
            for i, (head, value, stop) in enumerate(self._pieces(values)):
                if fields is None or i in fields:
                    value_spans.append((i, len(text) + len(head), len(text) + len(head) + len(value)))
                    text += head + value + stop
            texts.append(text)
            all_spans.append(value_spans)
        if not texts:
            return {key: np.zeros((0, 0), np.int64) for key in ("input_ids", "attention_mask", "token_field_ids")}
        encoded = self._tokenize(texts, truncation=True, max_length=self.max_length)
        before, after = map(len, self._special_ids)
        width = max(map(len, encoded["input_ids"]), default=0)
        input_ids = np.full((len(texts), width), self.tokenizer.pad_token_id, np.int64)
        mask = np.zeros_like(input_ids)
        token_field_ids = np.full_like(input_ids, -1)
        for r, (ids, spans) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
            ids[before : len(ids) - after] = self._without_control_ids(ids[before : len(ids) - after])
            input_ids[r, : len(ids)], mask[r, : len(ids)] = ids, 1
            for t, (start, stop) in enumerate(spans):
                for field, first, last in all_spans[r]:
                    if start < last and stop > first:
                        token_field_ids[r, t] = field
        return {"input_ids": input_ids, "attention_mask": mask, "token_field_ids": token_field_ids}

    def _check_token_table(self, sample_size: int = 256) -> bool:
        """Whether gathered tokens equal tokenised sentences, on rows drawn from the vocabulary and some hard values."""
        vocabulary, rng = self._vocabulary, np.random.default_rng(0)
        hard = ["", "a.b", "!?", "Ünïcödé", "東京", "1,000.5", "it's", "x" * 40, " lead", "trail "]
        rows = []
        for i in range(sample_size):
            row: dict[str, str | None] = {}
            for field in self.fields:
                seen = vocabulary.values[field]
                pick = seen[int(rng.integers(len(seen)))].as_py() if len(seen) else None
                row[field] = hard[int(rng.integers(len(hard)))] if i % 2 else pick
            rows.append(row)
        self._token_table_is_exact = True
        encoded = self.encode({f: pa.array([row[f] for row in rows], pa.string()) for f in self.fields})
        gathered = self.sentences(encoded)
        whole = self._tokenize_sentences(encoded)
        return all(np.array_equal(gathered[key], whole[key]) for key in whole)

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
            kwargs.pop("trust_remote_code", None)
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
                f"{pretrained_model_name_or_path} holds no processor: {VOCABULARY_FILE} is missing; load the processor from the "
                "checkpoint that the model was trained as, and give it as processor="
            )
        tokenizers = [None]
        if processor_dict is None or processor_dict.pop("has_text", True):
            tokenizers = super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        return [*tokenizers, FeatureVocabulary.load(path)]


def read_labels(rows: Any, label_column: str, split: str = "rows") -> np.ndarray:
    """(N,) float32 clicks.

    Raises:
        ValueError: the column is absent, empty of values, or holds something other than 0 and 1 (or false and true).
    """
    columns, _ = text_columns(rows, [label_column])
    column = columns[label_column]
    names = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}
    wrong = [text for text in column.unique().to_pylist() if text not in names]
    if wrong:
        shown = "a missing value" if wrong[0] is None else repr(wrong[0])
        where = next(i for i, text in enumerate(column.to_pylist()) if text == wrong[0])
        raise ValueError(
            f"label column {label_column!r} of {split} holds {shown} (row {where}); labels are 0 or 1: drop such rows or "
            "turn them into clicks first"
        )
    encoded = column.dictionary_encode()
    values = np.asarray([names[text] for text in encoded.dictionary.to_pylist()], np.float32)
    return values[encoded.indices.to_numpy()]


def _special_ids_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Special tokens that the tokenizer puts before and after one text, such as ([CLS], [SEP])."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for first in range(len(full) - len(inner) + 1):
        if full[first : first + len(inner)] == inner:
            return full[:first], full[first + len(inner) :]
    return [], []
