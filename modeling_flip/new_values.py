"""What stands for a value that training has not seen: rows of the feature tables, predicted from its words.

The aligned text tower has read the words of every value that has an embedding. Of each field, a ridge regression leads from the
one to the other; it then gives an embedding to values that have only words. Of words that say nothing, such as a user's number,
it gives little more than the field's mean.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from .feature_vocabulary import FeatureVocabulary
from .processing_flip import FlipProcessor

# A regression learns from at most so many values, the most frequent ones.
MOST_FITTED = 4096
VALUES_AT_ONCE = 512
# Candidates for the penalty, as shares of the largest squared singular value, and the least freedom that the fit must leave.
PENALTIES, LEAST_FREEDOM = np.logspace(-6, 2, 33), 0.05


@dataclass(frozen=True)
class Ridge:
    """A linear map with an intercept: x (n, D) → y (n, W)."""

    weight: torch.Tensor  # (D, W)
    bias: torch.Tensor  # (W,)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x.double() @ self.weight + self.bias).float()

    @classmethod
    def fit(cls, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> Ridge:
        """The best one for x (n, D), y (n, W), the rows weighted by weights (n,). Its penalty is chosen by generalised
        cross-validation (Golub, Heath and Wahba, 1979)."""
        x, y, shares = x.double(), y.double(), (weights / weights.sum()).double()[:, None]
        mean_x, mean_y = (shares * x).sum(0), (shares * y).sum(0)
        scale = (shares * (x - mean_x) ** 2).sum(0).sqrt().clamp(min=1e-6)
        a, b, n = shares.sqrt() * (x - mean_x) / scale, shares.sqrt() * (y - mean_y), len(x)
        u, s, v = torch.linalg.svd(a, full_matrices=False)
        projected = u.T @ b
        best, weight = torch.inf, torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
        for penalty in PENALTIES * float(s[0] ** 2):
            shrunk = s**2 / (s**2 + penalty + torch.finfo(s.dtype).tiny)
            freedom = 1 - float(shrunk.sum() + 1) / n
            if freedom < LEAST_FREEDOM:
                continue
            error = float((b**2).sum() - ((2 * shrunk - shrunk**2)[:, None] * projected**2).sum()) / freedom**2
            if error < best:
                shrunk_inverse = s / (s**2 + penalty + torch.finfo(s.dtype).tiny)
                best, weight = error, v.T @ (shrunk_inverse[:, None] * projected) / scale[:, None]
        return cls(weight, mean_y - mean_x @ weight)


def known_values(vocabulary: FeatureVocabulary, column: int) -> np.ndarray:
    """(n,) ids of a field's values that have a feature of their own, the most frequent ones."""
    first, stop = vocabulary.value_offsets[column : column + 2]
    ids = np.arange(first + 1, stop)
    ids = ids[vocabulary.value_features[ids] > vocabulary.unknown_features[column]]
    counts = vocabulary.counts[vocabulary.fields[column]][ids - first - 1]
    return ids[np.argsort(-counts, kind="stable")[:MOST_FITTED]]


@torch.inference_mode()
def word_states(model: Any, processor: FlipProcessor, columns: np.ndarray, texts: pa.Array) -> torch.Tensor:
    """Values, as their field's position (U,) and their text (U,) → (U, D_text): the text tower's last hidden states of
    "{field} is {value}.", their mean over the value's tokens."""
    assert processor.max_length is not None
    flip, table = model.base_model, processor.sentence_tokenizer.token_table(columns, texts)
    states = torch.zeros(len(columns), flip.text_tower.config.hidden_size, device=model.device)
    order = np.argsort(table.lengths, kind="stable")
    for first in range(0, len(order), VALUES_AT_ONCE):
        some = order[first : first + VALUES_AT_ONCE]
        sentences = processor.sentence_tokenizer.of_values(table, some, processor.max_length)
        inputs = {name: torch.from_numpy(array).to(model.device) for name, array in sentences.items()}
        is_value = (inputs.pop("token_field_ids") >= 0).unsqueeze(-1)  # (B, L, 1)
        hidden = flip(**inputs).text_hidden_states.float()
        states[torch.from_numpy(some)] = (hidden * is_value).sum(1) / is_value.sum(1).clamp(min=1)
    return states


@torch.inference_mode()
def predicted_rows(
    model: Any,
    processor: FlipProcessor,
    columns: np.ndarray,
    texts: pa.Array,
    fitted: MutableMapping[int, Ridge] | None = None,
) -> torch.Tensor:
    """The rows of the feature tables that the text tower predicts for values from their words.

    Args:
        model: has both towers, in evaluation mode.
        processor: the one that the model was trained with.
        columns: (U,) which field each value is of, by position.
        texts: (U,) their canonical text.
        fitted: the regressions of fields that have been asked for before; takes those that are fitted now.

    Returns:
        (U, W), W the width of `FeatureEmbeddings.rows`.
    """
    vocabulary, features = processor.vocabulary, model.base_model.feature_embeddings
    fitted = {} if fitted is None else fitted
    rows = torch.empty(len(columns), features.width, device=model.device)
    for column in np.unique(columns).tolist():
        mine = np.flatnonzero(columns == column)
        if column not in fitted:
            known = known_values(vocabulary, column)
            if len(known) < 2:
                rows[torch.from_numpy(mine)] = mean_rows(model, processor, columns[mine])
                continue
            owners, words = np.full(len(known), column, np.int32), vocabulary.all_texts.take(pa.array(known))
            ids = vocabulary.value_features[known]
            counts = torch.from_numpy(vocabulary.feature_counts[ids]).to(model.device)
            targets = features.rows(torch.from_numpy(ids).long().to(model.device))
            fitted[column] = Ridge.fit(word_states(model, processor, owners, words), targets, counts)
        states = word_states(model, processor, columns[mine], texts.take(pa.array(mine)))
        rows[torch.from_numpy(mine)] = fitted[column](states)
    return rows


@torch.inference_mode()
def mean_rows(model: Any, processor: FlipProcessor, columns: np.ndarray, *_: Any) -> torch.Tensor:
    """(U, W) of each value the mean of its field's known ones; where there are none, the field's unknown feature."""
    vocabulary, features = processor.vocabulary, model.base_model.feature_embeddings
    rows = torch.zeros(len(columns), features.width, device=model.device)
    for column in np.unique(columns).tolist():
        ids = vocabulary.value_features[known_values(vocabulary, column)]
        ids = ids if len(ids) else vocabulary.unknown_features[[column]]
        rows[torch.from_numpy(columns == column)] = features.rows(torch.from_numpy(ids).long().to(model.device)).mean(0)
    return rows


@torch.no_grad()
def grow(model: Any, before: FlipProcessor, after: FlipProcessor, teacher: Any = None) -> None:
    """Give a model of the processor `before` the features of `after`, whose vocabulary has grown from it. Known features keep
    their rows, bit for bit; new ones start from what the text tower of `teacher` predicts, or without one from their field's
    mean."""
    for name, setting in after.config_settings.items():
        setattr(model.config, name, setting)
    if model.config.towers == "text":
        return
    old, new, features = before.vocabulary, after.vocabulary, model.base_model.feature_embeddings
    places = old.features_in(new)
    is_new = np.ones(new.num_features, bool)
    is_new[places] = False
    values = np.flatnonzero(is_new[new.value_features] & (new.value_features >= 0))
    owners, texts = new.value_columns[values], new.all_texts.take(pa.array(values))
    predict = mean_rows if teacher is None else predicted_rows
    started = predict(teacher or model, before, owners, texts).cpu()
    rows = torch.empty(new.num_features, features.width)
    rows[torch.from_numpy(places)] = features.rows(torch.arange(old.num_features))
    rows[torch.from_numpy(new.value_features[values]).long()] = started
    features.replace_rows(rows)
