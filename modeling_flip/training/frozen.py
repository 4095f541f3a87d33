"""A frozen text tower: what it makes of each row is computed once, and kept on the disk beside the encoded rows.

It neither learns nor drops anything out, so that its vector of a sentence is always the same. The vectors of a split are one
file, which is mapped, not read. It is named for all that they depend on: weights, settings and precision of the tower, and the
rows. Later epochs and later runs open it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from transformers.utils import logging

from ..commands import sole_writer
from ..data_collator import FlipDataCollator
from ..modeling_flip import FlipForCTR, FlipPreTrainedModel
from ..processing_flip import FlipProcessor
from ..row_dataset import FlipDataset
from ..text_tower import text_towers_of
from .arguments import FlipTrainingArguments
from .preparation import A_DAY, Prepared


@contextmanager
def standing_still(model: FlipPreTrainedModel) -> Iterator[None]:
    """Within, a model's text towers are not trained."""
    towers = text_towers_of(model)
    for tower in towers:
        tower.requires_grad_(False)
    try:
        yield
    finally:
        for tower in towers:
            tower.requires_grad_(True)


def with_sentences(
    prepared: Prepared, model: FlipForCTR, processor: FlipProcessor, args: FlipTrainingArguments
) -> Prepared:
    """The same rows, which know the vectors that the model's text tower makes of their sentences.

    The first process of each machine computes those that no earlier run has kept, while the others wait.
    """
    state, splits = PartialState(), dict(prepared.splits)
    model = model.eval()
    model.flip.text_tower.to(state.device)  # tables of features may be larger than a device
    tower = fingerprint(model, processor, args)
    for split, rows in prepared.splits.items():
        key = {"tower": tower, "rows": prepared.inputs["data"][split], "vocabulary": processor.vocabulary.fingerprint}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        path = prepared.folder / "sentences" / f"{name}.bin"
        shape = len(rows), model.flip.text_tower.config.hidden_size
        with state.local_main_process_first(), sole_writer(path, wait=A_DAY):
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                write_vectors(path, shape, model, processor, rows, args, split)
            elif state.is_main_process:
                print(f"sentences of {split}: {path}, kept from an earlier run", file=sys.stderr, flush=True)
        splits[split] = replace(rows, sentences=np.memmap(path, np.float32, "r", shape=shape))
    watched = prepared.watched
    if watched is not None:
        whole = watched is prepared.splits["validation"]
        watched = splits["validation"] if whole else replace(watched, sentences=splits["validation"].sentences)
    return replace(prepared, splits=splits, watched=watched)


def fingerprint(model: FlipForCTR, processor: FlipProcessor, args: FlipTrainingArguments) -> str:
    """SHA-256 of all that a sentence's vector depends on, but for the row."""
    text_config = {k: v for k, v in model.config.text_config.to_dict().items() if k != "_name_or_path"}
    facts = [text_config, model.config.text_pooling, processor.max_length, args.bf16, args.fp16, args.device.type]
    digest = hashlib.sha256(json.dumps([*facts, torch.__version__, transformers.__version__], default=str).encode())
    for name, weight in sorted(model.flip.text_tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.inference_mode()
def write_vectors(
    path: Path,
    shape: tuple[int, int],
    model: FlipForCTR,
    processor: FlipProcessor,
    rows: FlipDataset,
    args: FlipTrainingArguments,
    split: str,
) -> None:
    """The vectors of all rows (N, D_text) as fp32, computed in the order of their lengths. The file is there when it is whole."""
    unfinished, device = path.with_name(f".{path.name}"), model.flip.text_tower.device
    collate, size = FlipDataCollator(processor, ("sentence",)), args.per_device_eval_batch_size
    with open(unfinished, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shape[0] * shape[1] * 4))  # a full disk is told of now
    vectors = np.memmap(unfinished, np.float32, "r+", shape=shape)
    order = rows.lengths.argsort(kind="stable")
    precision = torch.bfloat16 if args.bf16 else torch.float16
    with (
        torch.autocast(device.type, precision, enabled=args.bf16 or args.fp16),
        logging.tqdm(total=len(rows), desc=f"sentences of {split}", unit="row", disable=args.disable_tqdm) as bar,
    ):
        for first in range(0, len(rows), size):
            index = order[first : first + size]
            batch = collate(rows.__getitems__(index))
            batch.pop("labels", None)
            of_batch = model.flip(**{name: value.to(device) for name, value in batch.items()}).text_representation
            vectors[index] = of_batch.float().cpu().numpy()
            bar.update(len(index))
    vectors.flush()
    unfinished.rename(path)
