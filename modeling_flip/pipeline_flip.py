"""The pipeline "ctr-prediction": raw rows to click probabilities."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import Pipeline
from transformers.utils import logging

from .configuration_flip import IS_REMOTE_CODE
from .data_collator import FlipDataCollator
from .fields import Field
from .new_values import Ridge, predicted_rows
from .processing_flip import FlipProcessor
from .row_dataset import FlipDataset
from .row_reader import read_columns

DEFAULT_BATCH_SIZE = 1024
# What computes a model: torch, or one of the runtimes of exported models.
BACKENDS = ("torch", "onnx", "openvino")
# Rows are read, encoded and sorted by length this many batches at a time.
BATCHES_PER_CHUNK = 16
SECONDS_WITHOUT_BAR = 2.0
# The outputs of a model, and the names of their sigmoids.
PROBABILITIES = {"logits": "probability"}
TOWER_PROBABILITIES = {"tabular_logits": "tabular_probability", "text_logits": "text_probability"}


class CtrPredictionPipeline(Pipeline):
    """Click probabilities of raw rows, with any model of this package that predicts clicks.

    ```python
    from transformers import pipeline
    import modeling_flip

    score = pipeline("ctr-prediction", model="outputs/quickstart")
    score({"user_id": "190", "title": "Joyful Harbor"})  # {"probability": 0.51}
    ```

    Args:
        model: FlipForCTR, CTRBertForCTR, MoRecForCTR or P5ForCTR.
        processor: the FlipProcessor that the model was trained with, or the folder or Hub id that holds it; by default that of
            the model.
        batch_size: rows to a batch, 1,024 unless set here or in a call.
        cold_start: "text" gives a category that training never saw the embedding that the text tower predicts for its words,
            instead of its field's unknown feature. The model must be a FlipForCTR with both towers. The first such value of a
            field takes a while, since the text tower then reads up to 4,096 known ones.
        backend: what computes the model, "torch", or of an exported one (`python -m modeling_flip.serving.export`) "onnx" or
            "openvino"; by default what its files are for.
        kwargs: `device` and whatever else `transformers.Pipeline` takes; `return_towers` and `group_by` of every call.

    Raises:
        ValueError: there is no processor, or it is another model's, or the model predicts no clicks, or weights of it were never
            trained; `cold_start` is not "text", or the model has no text tower to predict with; `backend` cannot compute it.
    """

    # The package loads the processor itself: transformers.pipeline would let the checkpoint choose its class and code. A
    # checkpoint's own code runs only if it is trusted, and then has that trust.
    _load_processor = IS_REMOTE_CODE
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        cold_start: str | None = None,
        backend: str | None = None,
        **kwargs: Any,
    ):
        if not hasattr(model, "inputs"):
            raise ValueError(f"{type(model).__name__} predicts no clicks; load the checkpoint as FlipForCTR")
        if model.untrained_weights:
            source = model.config.name_or_path or "the checkpoint"
            raise ValueError(
                f"{source} holds no trained weights for {', '.join(model.untrained_weights[:3])}"
                f"{' …' * (len(model.untrained_weights) > 3)}: scores would be noise. Finetune it first, or load only the towers "
                "that it has (towers='tabular' or 'text'); if you have trained it since it was loaded, save it and load it again"
            )
        if backend not in (None, getattr(model, "backend", "torch")):
            if not hasattr(model, "use"):
                raise ValueError(
                    f"backend is {backend!r}, but this is a checkpoint for 'torch'; export it first: python -m "
                    "modeling_flip.serving.export --model … --output FOLDER"
                )
            model.use(backend)
        if cold_start not in (None, "text"):
            raise ValueError(f"cold_start is {cold_start!r}; it must be 'text', or left out")
        if cold_start and (model.config.model_type != "flip" or model.config.towers != "both"):
            raise ValueError(
                f"cold_start='text' needs a FlipForCTR with both towers, but this is a {type(model).__name__} with "
                f"config.towers {model.config.towers!r}; load a checkpoint of both, or leave it out"
            )
        self._cold_start, self._fitted = cold_start, dict[int, Ridge]()
        source = getattr(model, "loaded_from", None)
        if processor is None and source is not None:
            processor = source.name
        if isinstance(processor, (str, os.PathLike)):
            located = {} if source is None else source.located
            if (
                source is None or os.fspath(processor) != source.name
            ):  # the revision belongs to the model's repository only
                located = {key: located[key] for key in located.keys() - {"revision", "subfolder"}}
            processor = FlipProcessor.from_pretrained(processor, **located)
        if processor is None:
            raise ValueError(
                "there is no processor to read the rows; pass processor=FlipProcessor.from_pretrained(…) of the checkpoint "
                "that the model comes from"
            )
        processor.check_belongs_to(model.config)
        has_text = any(name.endswith("sentence") for name in model.inputs)
        if has_text and processor.tokenizer is None:
            raise ValueError(
                f"towers is {model.config.towers!r}, but the processor has no tokenizer; load it from the checkpoint that the "
                "text tower comes from"
            )
        # Without a text tower no sentences are needed, so unseen values need no tokens.
        reader = processor if has_text else processor.tabular_only()
        self._collate = FlipDataCollator(reader, model.inputs, model.config.item_fields)
        kwargs.pop("local_files_only", None)  # read and passed on by transformers.pipeline
        if hasattr(model, "use") and kwargs.get("device") is None:  # transformers would choose the first accelerator
            kwargs["device"] = model.device
        super().__init__(model, processor=processor, **kwargs)

    def _sanitize_parameters(
        self, return_towers: bool | None = None, group_by: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        towers = self.model.config.towers
        if return_towers and towers != "both":
            raise ValueError(
                f"return_towers needs a model with both towers, but its config.towers is {towers!r}; leave it out"
            )
        given = {"return_towers": return_towers, "group_by": group_by}
        return {}, {}, {name: value for name, value in given.items() if value is not None}

    def __call__(self, rows: Any, *, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Score rows. Columns that the model does not use are ignored, and a field that is absent counts as missing.

        Args:
            rows: a dict (one row), a list of dicts, a DataFrame, an Arrow table or a `datasets.Dataset`; or any iterator of
                dicts, such as a generator or a `datasets.IterableDataset`, which is read 16 batches at a time.
            batch_size: rows per batch; scores do not depend on it, except for float noise (of an export in ONNX's int8,
                more: its scales are found for each batch).
            kwargs: `return_towers`: also the probabilities of each tower alone. `group_by`: a column of the rows, such as
                the user's; then also the row's rank by probability among those with the same value, 1 the highest, equal
                ones in the order of the rows.

        Returns:
            {"probability": p} for a dict; a list of these for a table, in the order of its rows; for an iterator a generator
            of them. With `return_towers` also "tabular_probability" and "text_probability", with `group_by` "rank".

        Raises:
            TypeError: `rows` is none of the above, or a field that is no list field holds lists.
            ValueError: `group_by` names no column, or ranks an iterator; `return_towers` of a model with one tower.
        """
        _, _, parameters = self._sanitize_parameters(**kwargs)
        parameters = self._postprocess_params | parameters
        group_by, return_towers = parameters.pop("group_by", None), parameters.pop("return_towers", False)
        if isinstance(rows, Mapping):
            kinds = {field.name: field.kind for field in self.processor.vocabulary.columns}
            cells = {name: cell for name, cell in rows.items() if name in kinds} or rows
            for name, cell in cells.items():
                if kinds.get(name) != "list" and hasattr(cell, "__iter__") and not isinstance(cell, (str, bytes)):
                    raise TypeError(
                        f"a dict is one row, and {name!r} of this one holds a {type(cell).__name__}; pass columns as a "
                        "DataFrame or an Arrow table, and a DatasetDict one split at a time"
                    )
            return self._score_table([rows], batch_size, return_towers, group_by)[0]
        if _is_stream(rows):
            if group_by is not None:
                raise ValueError(
                    f"group_by={group_by!r} ranks the rows of a group, so it needs all rows at once; pass a list, a table or a "
                    "datasets.Dataset instead of an iterator"
                )
            return self._score_stream(rows, batch_size, return_towers)
        return self._score_table(rows, batch_size, return_towers, group_by)

    def probabilities(
        self, rows: Any, batch_size: int | None = None, return_towers: bool = False
    ) -> dict[str, np.ndarray]:
        """The probabilities of one chunk of rows, one or more, all read at once: `{"probability": (N,) float64}`, and with
        `return_towers` those of the towers."""
        size = self._batch_size_of(batch_size)
        return self.run_single(rows, {"batch_size": size}, {}, {"return_towers": return_towers})

    def rank(
        self, user: Mapping[str, Any], candidates: Any, *, top_k: int | None = None, batch_size: int | None = None
    ) -> list[dict]:
        """Order candidate items of one user.

        Args:
            user: the fields that all rows share: the user's, and those of the situation.
            candidates: a list of dicts, each with the fields of one item; one that repeats a field of the user's has its own.
            top_k: how many to return, all unless set.
            batch_size: as in a call.

        Returns:
            `{"index": position among the candidates, "probability": p}`, the most probable first, equal ones in their order.

        Raises:
            TypeError: a candidate is no dict.
            ValueError: `top_k` is below 1, or no candidate has a field of the model.

        Example:

            >>> score.rank({"user_id": "190"}, [{"title": "Joyful Harbor"}, {"title": "Quiet Field"}], top_k=1)
            [{'index': 0, 'probability': 0.51}]
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be 1 or more, or left out")
        candidates = list(candidates)
        for candidate in candidates:
            if not isinstance(candidate, Mapping):
                raise TypeError(
                    f"candidates must be a list of dicts, but it holds a {type(candidate).__name__}, {candidate!r:.60}; of a "
                    "DataFrame, pass candidates.to_dict('records')"
                )
        if not candidates:
            return []
        of_candidates = set().union(*candidates)
        if of_candidates.isdisjoint(self.processor.fields):
            raise ValueError(
                f"no candidate has a field of the model, so all would score alike; they have {sorted(of_candidates)}, the model "
                f"reads {self.processor.fields}"
            )
        # The user is read once, but for the fields that some candidate has too.
        shared = {name: cell for name, cell in user.items() if name not in of_candidates}
        if len(shared) < len(user):
            candidates = [{**user, **candidate} for candidate in candidates]
        encoded = self._collate.processor.encode(candidates, strict=False, shared=shared)
        outputs = self.forward(self.batches(encoded, self._batch_size_of(batch_size)))
        probabilities = self.postprocess(outputs)["probability"]
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        return [{"index": int(i), "probability": float(probabilities[i])} for i in best]

    def encode(self, rows: Any, *, strict: bool = False) -> FlipDataset:
        """Rows as integers, as the model's towers need them; arguments as those of `FlipProcessor.encode`."""
        return self._collate.processor.encode(rows, strict=strict)

    def logits(self, rows: FlipDataset, batch_size: int | None = None) -> np.ndarray:
        """(N,) float64 logits of encoded rows."""
        outputs = self.forward(self.batches(rows, self._batch_size_of(batch_size)))
        logits = np.empty(len(rows))
        logits[outputs["order"]] = outputs["logits"].double().numpy()
        return logits

    def _score_table(self, rows: Any, batch_size: int | None, return_towers: bool, group_by: str | None) -> list[dict]:
        num_rows, source = _sliceable(rows)
        if num_rows == 0:
            return []
        groups = None if group_by is None else _column(rows, group_by)
        step = BATCHES_PER_CHUNK * self._batch_size_of(batch_size)
        parts = []
        bar_settings = {"disable": num_rows <= step, "delay": SECONDS_WITHOUT_BAR, "unit": " rows", "unit_scale": True}
        with logging.tqdm(total=num_rows, **bar_settings) as bar:
            for first in range(0, num_rows, step):
                chunk = source[first : first + step]
                parts.append(self.probabilities(chunk, batch_size, return_towers))
                bar.update(min(step, num_rows - first))
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if groups is not None:
            columns["rank"] = rank_in_group(groups, columns["probability"])
        return _as_dicts(columns)

    def _score_stream(self, rows: Iterable[Any], batch_size: int | None, return_towers: bool) -> Iterator[dict]:
        rows, step = iter(rows), BATCHES_PER_CHUNK * self._batch_size_of(batch_size)
        while chunk := list(islice(rows, step)):
            yield from _as_dicts(self.probabilities(chunk, batch_size, return_towers))

    def _batch_size_of(self, batch_size: int | None) -> int:
        size = next((s for s in (batch_size, self._batch_size) if s is not None), DEFAULT_BATCH_SIZE)
        if size < 1:
            raise ValueError(f"batch_size is {size}; it must be 1 or more")
        return size

    # ---- one chunk of rows, in three steps

    def get_inference_context(self) -> Any:
        return torch.inference_mode

    def preprocess(self, rows: Any, batch_size: int = DEFAULT_BATCH_SIZE) -> dict[str, Any]:
        """Rows → `batches` of tensors, shortest sentences first, and the rows' `order` in them; with `cold_start` also `more`,
        the rows of features that the tables lack."""
        return self.batches(self.encode(rows), batch_size)

    def batches(self, dataset: FlipDataset, batch_size: int) -> dict[str, Any]:
        """What `preprocess` gives, of encoded rows; labels are left out."""
        made: dict[str, Any] = {}
        dataset = replace(dataset, labels=None)
        if self._cold_start and len(unseen := dataset.local.unseen_categories(dataset.vocabulary)):
            local = dataset.local
            features = local.features.copy()
            features[local.offsets[unseen]] = dataset.vocabulary.num_features + np.arange(len(unseen))
            texts = local.texts.take(pa.array(unseen))
            self.model.eval()
            made["more"] = predicted_rows(self.model, self.processor, local.columns[unseen], texts, self._fitted)
            dataset = replace(dataset, local=replace(local, features=features))
        order = dataset.lengths.argsort(kind="stable")
        starts = range(0, len(order), batch_size)
        batches = [self._collate(dataset.__getitems__(order[i : i + batch_size])) for i in starts]
        return {"batches": batches, "order": order, **made}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Batches → `logits` (N,), in the order of the batches, and those of both towers where there are two."""
        if self.model.training:
            self.model.eval()
        with contextlib.ExitStack() as held:
            if "more" in inputs:
                held.enter_context(self.model.base_model.feature_embeddings.with_more(inputs["more"]))
            outputs = [self.model(**batch) for batch in inputs["batches"]]
        names = [n for n in PROBABILITIES | TOWER_PROBABILITIES if outputs[0].get(n) is not None]
        return {n: torch.cat([output[n] for output in outputs]) for n in names} | {"order": inputs["order"]}

    def postprocess(self, outputs: dict[str, Any], return_towers: bool = False) -> dict[str, np.ndarray]:
        """Logits → probabilities by name, (N,) each, in the order of the rows."""
        columns = {}
        for name, column in (PROBABILITIES | (TOWER_PROBABILITIES if return_towers else {})).items():
            columns[column] = np.empty(len(outputs["order"]))
            # In float64, whatever the model computes in: bf16 has only three digits.
            columns[column][outputs["order"]] = outputs[name].double().sigmoid().numpy()
        return columns

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save model and processor: a complete checkpoint; raises ValueError for an exported model."""
        if not hasattr(self.model, "save_pretrained"):
            raise ValueError(
                f"an exported model is not saved again: copy its folder, {self.model.file.parent}, instead"
            )
        self.model.save_pretrained(save_directory, processor=self.processor, **kwargs)


def rank_in_group(groups: pa.DictionaryArray, scores: np.ndarray) -> np.ndarray:
    """(N,) rank of each row, 1 the highest score among the rows of its group, equal scores in the order of the rows.

    Rows without a group are one group.
    """
    group = pc.fill_null(groups.indices, len(groups.dictionary)).to_numpy()
    order = np.lexsort((-scores, group))  # stable
    sizes = np.bincount(group)
    ranks = np.empty(len(group), np.int64)
    ranks[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1
    return ranks


def _is_stream(rows: Any) -> bool:
    return hasattr(rows, "__iter__") and not hasattr(rows, "__len__")


def _sliceable(rows: Any) -> tuple[int, Any]:
    """The number of rows, and a function that returns a slice of them for `FlipProcessor.encode`."""
    if isinstance(rows, (list, tuple, pa.Table)):
        return len(rows), rows
    if hasattr(rows, "columns") and hasattr(rows, "iloc"):  # pandas.DataFrame
        return len(rows), rows.iloc
    if hasattr(rows, "with_format") and hasattr(rows, "select_columns"):  # datasets.Dataset
        return len(rows), rows.with_format("arrow")
    raise TypeError(
        "rows must be a dict, a list of dicts, a DataFrame, an Arrow table, a datasets.Dataset, or an iterator of dicts, not "
        f"{type(rows)}"
    )


def _column(rows: Any, name: str) -> pa.DictionaryArray:
    """(N,) the canonical text of a column; raises ValueError if it is absent."""
    if hasattr(rows, "select_columns") and name in rows.column_names:  # of a Dataset, read only this one
        rows = rows.select_columns([name])
    return read_columns(rows, [Field(name=name)])[0][name]


def _as_dicts(columns: dict[str, np.ndarray]) -> list[dict]:
    lists = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
