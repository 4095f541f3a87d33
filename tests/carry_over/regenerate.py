"""Write the checkpoints that later versions must go on loading: `python -m tests.carry_over.regenerate`.

One folder for each format version, kept for good: run this again only for a new version (`FORMAT_VERSION` and those below it in
modeling_flip/configuration_flip.py), never to make a test pass.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoProcessor,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from modeling_flip import Field, FlipDataCollator, FlipForCTR, FlipForPreTraining, FlipProcessor, MoRecForCTR
from modeling_flip.configuration_flip import CALIBRATED_FORMAT_VERSION, FORMAT_VERSION, MOREC_FORMAT_VERSION

HERE = Path(__file__).parent
VERSIONS = (FORMAT_VERSION, CALIBRATED_FORMAT_VERSION, MOREC_FORMAT_VERSION)
# Format 1 knows the first three columns alone, as categories; format 2 has fields of each kind.
ROWS: list[dict[str, Any]] = [
    {"user_id": 7, "gender": "female", "title": "Toy Story", "price": 3.5, "tags": ["toy", "new"], "note": "is a toy"},
    {"user_id": 8, "gender": None, "title": "Amélie", "price": None, "tags": [], "note": None},
    {"user_id": 7, "gender": "male", "title": "東京物語", "price": 12, "tags": ["new"], "note": "title a is of b"},
]
FIELDS = [
    Field(name="user_id", type="integer", side="user", words="user"),
    Field(name="gender", side="user"),
    Field(name="title", side="item"),
    Field(name="price", kind="numeric", type="number", side="item"),
    Field(name="tags", kind="list", separator="|"),
    Field(name="note", kind="text", max_words=3),
    Field(name="when", kind="ignored", reason="moments that never come again"),
]
# Scored beside the rows of training: nothing in it was seen.
UNSEEN = {"user_id": 9, "title": "Toy and Story", "price": "7.25", "tags": "new|other"}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def small_tokenizer() -> PreTrainedTokenizerFast:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.東京物語")
    vocab = {
        token: i for i, token in enumerate([*SPECIAL, *letters, *("##" + c for c in letters), "is", "title", "toy"])
    }
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def regenerate(folder: Path, version: int) -> None:
    """A checkpoint of each kind that has this version, and `scores.json` with what it gives for ROWS and UNSEEN."""
    tokenizer = small_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    text_model = folder / ".text_model"
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(text_model)
    processor = FlipProcessor.fit(ROWS, FIELDS, tokenizer)
    settings = {"embedding_size": 4, "hidden_sizes": [8, 4], "projection_size": 8}
    made = {
        "flip": FlipForCTR.from_text_pretrained(text_model, processor, **settings),
        "flip-pretraining": FlipForPreTraining.from_text_pretrained(text_model, processor, **settings),
        "morec": MoRecForCTR.from_text_pretrained(
            text_model,
            processor,
            item_fields=[2],
            item_activation="gelu" if version == MOREC_FORMAT_VERSION else "linear",
            **settings,
        ),
    }
    towers: dict[str, dict[str, Any]] = {
        "deepfm": {},
        "afn": {},
        "autoint": {"attention_size": 4, "num_attention_layers": 2},
    }
    for tower, own in towers.items():
        own = {"towers": "tabular", "tabular_tower": tower, **own}
        made[tower] = FlipForCTR.from_text_pretrained(None, processor, **settings, **own)
    if version == MOREC_FORMAT_VERSION:
        made = {"morec": made["morec"]}
    if version == CALIBRATED_FORMAT_VERSION:
        made = {"flip": made["flip"]}
        made["flip"].config.logit_scale, made["flip"].config.logit_shift = 0.5, -2.25
    for name, model in made.items():
        for parameter in model.parameters():  # away from zeros and from what initialisation may become
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        for code in (folder / name).glob("*.py"):  # what is carried over is files of data, not this version's code
            code.unlink()
    for path in text_model.iterdir():
        path.unlink()
    text_model.rmdir()
    expected = {name: scores(folder / name) for name in made}
    (folder / "scores.json").write_text(json.dumps(expected, indent=1) + "\n")


def scores(folder: Path) -> list[float]:
    """Four numbers that depend on every file of a checkpoint: logits, or before finetuning what both towers make of the rows."""
    processor = AutoProcessor.from_pretrained(folder)
    rows = [*ROWS, UNSEEN]
    with torch.no_grad():
        if AutoConfig.from_pretrained(folder).architectures == ["FlipForPreTraining"]:
            towers = AutoModel.from_pretrained(folder).eval()(**processor(rows))
            return (towers.tabular_logit + towers.text_representation.sum(1)).tolist()
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        collate = FlipDataCollator(processor, model.inputs, model.config.item_fields)
        return model(**collate(processor.encode(rows, strict=False))).logits.tolist()


if __name__ == "__main__":
    targets = {HERE / f"format-{version}": version for version in VERSIONS}
    missing = [target for target in targets if not target.exists() or "--again" in sys.argv]
    if not missing:
        sys.exit(f"{[*targets]} exist: they are what later versions are held to. --again writes them anew")
    for target in missing:
        regenerate(target, targets[target])
