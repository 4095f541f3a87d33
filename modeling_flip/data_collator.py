"""Batches: rows to tensors, and the masking of whole fields for pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .objectives import IGNORE
from .processing_flip import FlipProcessor
from .row_dataset import FlipDataset

# One random stream for each kind of choice, so that the choices are independent.
TEXT_FIELDS, TABULAR_FIELDS, TEXT_TOKENS, NOISE, LIST_MEMBERS, REPLACEMENTS, RANDOM_TOKENS = range(7)


@dataclass
class FlipDataCollator:
    """Turns rows into model inputs, plus `labels` (B,) if there are labels.

    Args:
        processor: makes the rows' sentences.
        inputs: any of "feature_ids": `feature_ids` (B, F), and where there are list fields `list_feature_ids` (B, L, K);
            "sentence": `input_ids` and `attention_mask` (B, L), or `text_representation` (B, D_text) where the rows know it;
            "user_sentence" and "item_sentence": the distinct sentences of the user's or the item's fields, `item_input_ids` and
            `item_attention_mask` (U, L), and which of them each row has, `item_index` (B,). Pass the model's `inputs`.
        item_fields: positions in the sentence of the item's fields; the others are the user's.
    """

    processor: FlipProcessor
    inputs: Sequence[str] = ("feature_ids", "sentence")
    item_fields: Sequence[int] = ()

    def __call__(self, rows: FlipDataset) -> dict[str, torch.Tensor]:
        batch: dict[str, np.ndarray] = {}
        if rows.labels is not None:
            batch["labels"] = rows.labels  # first, because Trainer counts rows by the first tensor
        if "feature_ids" in self.inputs:
            batch |= self.processor.features(rows)
        if "sentence" in self.inputs and rows.sentences is not None:
            batch["text_representation"] = rows.sentences[slice(None) if rows.row_ids is None else rows.row_ids]
        elif "sentence" in self.inputs:
            sentences = self.processor.sentences(rows)
            batch |= {key: sentences[key] for key in ("input_ids", "attention_mask")}
        users = [f for f in range(rows.value_ids.shape[1]) if f not in self.item_fields]
        for side, fields in {"user": users, "item": self.item_fields}.items():
            if f"{side}_sentence" in self.inputs:
                _, first, index = np.unique(rows.value_ids[:, fields], axis=0, return_index=True, return_inverse=True)
                sentences = self.processor.sentences(rows.__getitems__(first), fields)
                batch |= {f"{side}_{key}": sentences[key] for key in ("input_ids", "attention_mask")}
                batch[f"{side}_index"] = index.reshape(-1)
        return {key: torch.from_numpy(value) for key, value in batch.items()}


@dataclass
class PretrainingCollator:
    """Both views of the rows, and an independently masked copy of each (FLIP §3.2).

    What is masked, and which noise features are drawn, depends only on the seed, the epoch and the row: not on the batch, the
    worker or the process, so one process with 16 rows sees the same as two with 8, and a resumed run the same as an
    uninterrupted one.

    Args:
        processor: makes the rows' sentences.
        text_mask_ratio: the share of fields whose value's tokens are all replaced by the mask token, in the text.
        tabular_mask_ratio: the share of fields whose feature is replaced by `<MASK>`, in the table. Each side masks max(1,
            round(ratio F)) fields per row.
        num_noise_features: K, noise features drawn for each masked feature from the features' training frequency.
        text_masking: "field", or "token" to choose random tokens wherever they stand, each with probability `text_mask_ratio`, as
            BERT does (Devlin et al., NAACL '19, §3.1): of these 80 % become the mask token, 10 % a random token, and 10 % stay.
            For PTab, and for FLIP's ablation without field-level masking.
        seed: of masks and noise.
    """

    processor: FlipProcessor
    text_mask_ratio: float = 0.15
    tabular_mask_ratio: float = 0.15
    num_noise_features: int = 25
    text_masking: str = "field"
    seed: int = 0

    def __post_init__(self) -> None:
        check_masking(self.text_mask_ratio, self.tabular_mask_ratio, self.text_masking)
        self._draw_noise = FrequencySampler(self.processor.vocabulary.feature_counts)

    def __call__(self, rows: FlipDataset) -> dict[str, torch.Tensor]:
        """`feature_ids`, `masked_feature_ids`, `mtm_labels` (B, F), the feature where masked (of a list, one of its members),
        else -100; `noise_feature_ids` (B, F_masked, K), of each masked field in order; `input_ids`, `masked_input_ids`,
        `attention_mask`, `mlm_labels` (B, L); where there are list fields `list_feature_ids` and `masked_list_feature_ids` (B,
        L, K), a masked list being the single member `<MASK>`."""
        vocabulary = self.processor.vocabulary
        num_fields, mask_feature = len(vocabulary.table_columns), vocabulary.mask_feature_id
        features = self.processor.features(rows)
        targets = features["feature_ids"]
        sentences = self.processor.sentences(rows)
        input_ids, token_field_ids = sentences["input_ids"], sentences["token_field_ids"]
        assert self.processor.tokenizer is not None

        if self.text_masking == "field":
            chosen = self._choose_fields(rows, TEXT_FIELDS, len(vocabulary.columns), self.text_mask_ratio)
            is_masked_token = (token_field_ids >= 0) & np.take_along_axis(
                chosen, np.maximum(token_field_ids, 0), axis=1
            )
            replacements: int | np.ndarray = self.processor.tokenizer.mask_token_id
        else:
            special = np.isin(input_ids, self.processor.sentence_tokenizer.control_ids)
            draw = self._draw(rows, TEXT_TOKENS, input_ids.shape[1])
            is_masked_token = (draw < self.text_mask_ratio) & (sentences["attention_mask"] == 1) & ~special
            replacements = self._replacements(rows, input_ids)
        is_masked_field = self._choose_fields(rows, TABULAR_FIELDS, num_fields, self.tabular_mask_ratio)
        num_masked = min(num_fields, num_chosen(num_fields, self.tabular_mask_ratio))
        noise = self._draw(rows, NOISE, num_masked * self.num_noise_features)
        noise = noise.reshape(len(rows), num_masked, self.num_noise_features)

        lists = features.get("list_feature_ids")
        if lists is not None:
            positions = np.searchsorted(vocabulary.table_columns, vocabulary.list_columns)
            lengths = (lists >= 0).sum(2)
            drawn = (self._draw(rows, LIST_MEMBERS, len(positions)) * lengths).astype(np.int64)
            targets = targets.copy()
            targets[:, positions] = np.take_along_axis(lists, drawn[..., None], axis=2)[..., 0]
            only_mask = np.full_like(lists, -1)
            only_mask[..., 0] = mask_feature
            features["masked_list_feature_ids"] = np.where(is_masked_field[:, positions, None], only_mask, lists)
        batch = features | {
            "masked_feature_ids": np.where(is_masked_field, mask_feature, features["feature_ids"]),
            "mtm_labels": np.where(is_masked_field, targets, IGNORE),
            "noise_feature_ids": self._draw_noise(noise),
            "input_ids": input_ids,
            "masked_input_ids": np.where(is_masked_token, replacements, input_ids),
            "attention_mask": sentences["attention_mask"],
            "mlm_labels": np.where(is_masked_token, input_ids, IGNORE),
        }
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in batch.items()}

    def _replacements(self, rows: FlipDataset, input_ids: np.ndarray) -> np.ndarray:
        """(B, L), what each token becomes if it is chosen: the mask token, a random token, or itself."""
        tokenizer = self.processor.tokenizer
        assert tokenizer is not None
        draw = self._draw(rows, REPLACEMENTS, input_ids.shape[1])
        tokens = (self._draw(rows, RANDOM_TOKENS, input_ids.shape[1]) * len(tokenizer)).astype(np.int64)
        return np.select([draw < 0.8, draw < 0.9], [tokenizer.mask_token_id, tokens], input_ids)

    def _draw(self, rows: FlipDataset, stream: int, width: int) -> np.ndarray:
        assert rows.row_ids is not None
        return uniforms(self.seed, rows.epoch, stream, rows.row_ids, width)

    def _choose_fields(self, rows: FlipDataset, stream: int, num_fields: int, ratio: float) -> np.ndarray:
        """(B, F) bool, max(1, round(ratio F)) chosen fields in each row."""
        draw = self._draw(rows, stream, num_fields)
        rank = draw.argsort(axis=1).argsort(axis=1)
        return rank < num_chosen(num_fields, ratio)


class FrequencySampler:
    """Draws numbers from 0 to M - 1 by their counts (M,), by inversion: u in [0, 1) gives the first whose cumulative share is
    above u.

    A table tells between which two numbers a draw lies (guide tables: Chen and Asau, AIIE Transactions 1974), so that what a
    draw costs does not grow with M. Searching the shares from end to end is log M far places in memory.
    """

    def __init__(self, counts: np.ndarray):
        self._shares = np.cumsum(counts) / max(1, counts.sum())
        self._size = 1 << (len(counts) - 1).bit_length()  # a power of two, by which products are exact
        guide = np.searchsorted(self._shares, np.arange(self._size + 1) / self._size, side="right")
        last = np.searchsorted(self._shares, self._shares[-1])  # that was counted, should shares add up to less than 1
        self._guide = np.minimum(guide, last).astype(np.int32)

    def __call__(self, uniforms: np.ndarray) -> np.ndarray:
        """Numbers of the shape of the uniforms, int64."""
        u = uniforms.ravel()
        place = (u * self._size).astype(np.int64)
        low, high = self._guide[place], self._guide[place + 1]
        open_ = np.flatnonzero(low < high)
        while len(open_):
            middle = (low[open_] + high[open_]) >> 1
            is_below = self._shares[middle] <= u[open_]
            low[open_[is_below]] = middle[is_below] + 1
            high[open_[~is_below]] = middle[~is_below]
            open_ = open_[low[open_] < high[open_]]
        return low.astype(np.int64).reshape(uniforms.shape)


def num_chosen(num_fields: int, ratio: float) -> int:
    """How many fields of a row are masked."""
    return max(1, round(ratio * num_fields))


def check_masking(text_mask_ratio: float, tabular_mask_ratio: float, text_masking: str) -> None:
    """Raises ValueError if a ratio is not in (0, 1], or `text_masking` is unknown."""
    for name, ratio in {"text_mask_ratio": text_mask_ratio, "tabular_mask_ratio": tabular_mask_ratio}.items():
        if not 0 < ratio <= 1:
            raise ValueError(f"{name} is {ratio}; it must be above 0 and at most 1")
    if text_masking not in ("field", "token"):
        raise ValueError(f"text_masking is {text_masking!r}; it must be 'field' or 'token'")


def uniforms(seed: int, epoch: int, stream: int, row_ids: np.ndarray, width: int) -> np.ndarray:
    """(B, width) random numbers in [0, 1), each a function of its arguments alone.

    A counter-based generator (SplitMix64: Steele, Lea and Flood, OOPSLA 2014, the finaliser of figure 17): numpy's generators
    depend on their history, so one would have to be created for each row.
    """
    key = np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        counter = (row_ids.astype(np.uint64)[:, None] << np.uint64(20)) + np.arange(1, width + 1, dtype=np.uint64)
        z = key + counter * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * 2.0**-53
