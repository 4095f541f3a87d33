"""A small text tower for MovieLens-1M on a CPU: a random two-layer BERT of width 128, and a WordPiece vocabulary learned from
every tenth training sentence.

    python -m benchmarks.small_text_model [--raw_dir data/movielens-1m] [--output_dir outputs/text-models/bert-2x128]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from data_scripts import movielens
from modeling_flip import Field, FlipProcessor

# Rows are seen once; on a CPU attention without dropout is fused.
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512} | NO_DROPOUT
TINYBERT = {"num_hidden_layers": 4, "hidden_size": 312, "num_attention_heads": 12, "intermediate_size": 1200}
SPECIAL = {
    name: f"[{name.split('_')[0].upper()}]"
    for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
}


def make(raw_dir: str | None, output_dir: Path, sizes: Mapping[str, Any] = SMALL) -> None:
    """Writes model and tokenizer; the sizes are settings of BertConfig."""
    train = movielens.load("movielens-1m", raw_dir)["train"]
    fields = [Field(name=name) for name in train.column_names if name != "label"]
    sentences = FlipProcessor.fit(train, fields).texts(train.select(range(0, len(train), 10)))
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(sentences, vocab_size=8192, min_frequency=20, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words._tokenizer, model_max_length=128, **SPECIAL)
    config = BertConfig(vocab_size=len(tokenizer), **sizes)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw_dir")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/text-models/bert-2x128"))
    options = parser.parse_args()
    make(options.raw_dir, options.output_dir)
    print(f"the text tower is in {options.output_dir}")


if __name__ == "__main__":
    main()
