"""What a model makes of one row, in parts that can be shown: pure functions, which know of no page.

A row is a dict of its fields; a missing value is None, or not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..feature_vocabulary import FeatureVocabulary
from ..fields import Field
from ..pipeline_flip import CtrPredictionPipeline
from ..processing_flip import FlipProcessor

Row = Mapping[str, Any]
# Tried in this order until one is no value of training; most types read only some of them.
NEVER_SEEN = {
    "integer": ["999999999", "-999999999"],
    "number": ["999999999.5", "-999999999.5"],
    "date": ["2999-12-31", "1000-01-01"],
    "timestamp": ["2999-12-31T00:00:00", "1000-01-01T00:00:00"],
}


@dataclass(frozen=True)
class Attribution:
    """What a field adds: the value with the field as it is, minus that without it. The towers' are None where there is one."""

    field: str
    probability: float
    logit: float
    tabular_logit: float | None = None
    text_logit: float | None = None


def logits_of(score: CtrPredictionPipeline, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """(N,) float64 of N ≥ 1 rows: `logits`, and where the model has both towers `tabular_logits` and `text_logits`."""
    outputs = score.forward(score.preprocess(list(rows)))
    found = {name: np.empty(len(rows)) for name in outputs if name != "order"}
    for name, logits in found.items():
        logits[outputs["order"]] = outputs[name].double().numpy()
    return found


def sigmoid(logits: Any) -> Any:
    """A logit as a probability, or each of an array."""
    return 1 / (1 + np.exp(-logits))


def sentence_pieces(processor: FlipProcessor, row: Row) -> list[tuple[str, str | None]]:
    """The sentence of a row, in pieces: each value with its field, and what stands between them with None.

    Example:
        >>> sentence_pieces(processor, {"city": "Rome"})
        [('city is ', None), ('Rome', 'city'), ('.', None)]
    """
    (sentence,) = processor.pieces_of(processor.encode([row], strict=False))
    pieces: list[tuple[str, str | None]] = []
    for field, (head, value, stop) in zip(processor.fields, sentence, strict=True):
        pieces += [(head, None), (value, field), (stop, None)]
    return pieces


def unseen_fields(processor: FlipProcessor, row: Row) -> list[str]:
    """The fields of a row whose value is a category that training never saw."""
    (is_unseen,) = processor.encode([row], strict=False).is_unseen
    return [field for field, unseen in zip(processor.fields, is_unseen, strict=True) if unseen]


def cut_fields(processor: FlipProcessor, row: Row) -> list[str]:
    """The fields of a row that the text tower does not read, or not whole, since its sentence is cut at `max_length`. What these
    add is seen where another field is masked, and the sentence gets shorter."""
    return [*processor.cut_fields(processor.encode([row], strict=False))]


def attributions(score: CtrPredictionPipeline, row: Row) -> list[Attribution]:
    """What each field that the model reads adds to the prediction for one row, in the order of the sentence.

    A field is masked by a missing value, as rows have it: the tabular tower reads the field's unknown feature, the text tower
    the word "unknown". Fields that hold the same information each look less important than they are.
    """
    fields = score.processor.fields
    found = logits_of(score, [row, *({**row, field: None} for field in fields)])
    parts = {"probability": sigmoid(found["logits"]), "logit": found["logits"]}
    parts |= {f"{tower}_logit": found[f"{tower}_logits"] for tower in ("tabular", "text") if len(found) > 1}
    adds = {name: values[0] - values[1:] for name, values in parts.items()}
    return [Attribution(f, **{name: float(values[i]) for name, values in adds.items()}) for i, f in enumerate(fields)]


def never_seen(processor: FlipProcessor, row: Row, fields: Sequence[str]) -> dict[str, Any]:
    """Values for `fields` that training never saw: words with "new" before them, numbers and dates out of the way.

    Fields that have no such value are left out: numbers fall into buckets, texts and hashed values have no vocabulary.
    """
    chosen: dict[str, Any] = {}
    for field in processor.vocabulary.columns:
        if field.name not in fields or field.kind == "numeric":
            continue
        text = cell_text(row.get(field.name), field)
        candidates = [*NEVER_SEEN.get(field.type, ()), *(f"{'new ' * n}{text}".strip() for n in (1, 2, 3))]
        for value in candidates:
            if field.name in unseen_fields(processor, {**row, field.name: value}):
                chosen[field.name] = value
                break
    return chosen


def item_fields(score: CtrPredictionPipeline) -> list[str]:
    """The fields that describe the item: those that the model or the checkpoint's fields name, otherwise those that describe
    neither user nor situation."""
    columns = score.processor.vocabulary.columns
    named = [columns[i].name for i in score.model.config.item_fields]
    of_item = [field.name for field in columns if field.side == "item"]
    return named or of_item or [field.name for field in columns if field.side is None] or score.processor.fields


def known_values(vocabulary: FeatureVocabulary, field: Field, most: int) -> list[str]:
    """The most frequent values of a field in training, at most so many; of a list field, of its members."""
    if field.kind == "text" or field.hash_size is not None:
        return []
    name = field.features_of or field.name
    order = np.argsort(-vocabulary.counts[name], kind="stable")[:most]
    return [_cell_of(vocabulary.values[name][int(i)].as_py(), field) for i in order]


def sampled_rows(processor: FlipProcessor, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows put together from values of training, each field drawn by itself, by its frequency. No such row need ever have been
    in the data."""
    rng, vocabulary = np.random.default_rng(seed), processor.vocabulary
    rows: list[dict[str, str]] = [{} for _ in range(count)]
    for field in vocabulary.columns:
        name = field.features_of or field.name
        counts = vocabulary.counts.get(name, np.zeros(0))
        if field.kind == "text" or field.hash_size is not None or not counts.sum():
            continue
        for row, i in zip(rows, rng.choice(len(counts), count, p=counts / counts.sum()), strict=True):
            row[field.name] = _cell_of(vocabulary.values[name][int(i)].as_py(), field)
    return rows


def _cell_of(value: str, field: Field) -> str:
    """The cell of one value: of a list field, a list of that member."""
    return cell_text([value], field) if field.kind == "list" else value


def cell_text(cell: Any, field: Field) -> str:
    """A cell as one would write it in a CSV: nothing for a missing value, the members of a list with their separator, or where
    that would be read otherwise, as JSON."""
    if cell is None:
        return ""
    if isinstance(cell, (list, tuple)):
        separator, members = field.separator or ",", [str(member) for member in cell]
        is_plain = not any(separator in member or member[:1] == "[" or member[-1:] == "]" for member in members)
        return separator.join(members) if is_plain else json.dumps(members, ensure_ascii=False)
    return str(cell)
