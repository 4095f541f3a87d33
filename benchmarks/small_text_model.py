"""A small text tower for a dataset on a CPU: a random two-layer BERT, and a WordPiece vocabulary learned from every tenth
training sentence.

    python -m benchmarks.small_text_model [--dataset_name movielens-1m] [--raw_dir data/movielens-1m] [--hidden_size 128]
        [--output_dir DIR]

By default it is written to outputs/text-models/bert-2x128 for MovieLens-1M, and to outputs/text-models/DATASET-bert-2x128 for
another dataset.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from data_scripts.registry import registered_datasets
from data_scripts.text_model import write
from modeling_flip import Field, FlipProcessor

MOVIELENS = "movielens-1m"
# Rows are seen once; on a CPU training is faster without dropout.
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512} | NO_DROPOUT
TINYBERT = {"num_hidden_layers": 4, "hidden_size": 312, "num_attention_heads": 12, "intermediate_size": 1200}


def make(
    raw_dir: str | None, output_dir: Path, dataset_name: str = MOVIELENS, sizes: Mapping[str, Any] = SMALL
) -> None:
    """Write the text tower to a folder; the raw files are in `raw_dir`, or are downloaded. `sizes` are settings of BertConfig."""
    dataset = registered_datasets()[dataset_name]
    train = dataset.load(dataset_name, raw_dir)["train"]
    fields = [Field(name=name, kind=kind) for name, kind in dataset.fields.items()]
    sentences = FlipProcessor.fit(train, fields).texts(train.select(range(0, len(train), 10)))
    write(output_dir, sentences, max_length=128, vocab_size=8_192, min_frequency=20, **sizes)


def of_width(hidden_size: int) -> dict[str, Any]:
    """The small sizes, of another width."""
    return SMALL | {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size}


def make_t5(text_model: Path, output_dir: Path) -> None:
    """Write a small T5 with random weights and the tokenizer of another text model, for P5."""
    tokenizer = AutoTokenizer.from_pretrained(text_model)
    sizes = {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2}
    ends = {"eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=tokenizer.pad_token_id, **sizes, **ends)
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def default_folder(dataset_name: str, hidden_size: int = 128) -> Path:
    prefix = "" if dataset_name == MOVIELENS else f"{dataset_name}-"
    return Path("outputs/text-models") / f"{prefix}bert-2x{hidden_size}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default=MOVIELENS, choices=list(registered_datasets()))
    parser.add_argument("--raw_dir")
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--output_dir", type=Path)
    options = parser.parse_args()
    folder = options.output_dir or default_folder(options.dataset_name, options.hidden_size)
    make(options.raw_dir, folder, options.dataset_name, of_width(options.hidden_size))
    print(f"the text tower is in {folder}")


if __name__ == "__main__":
    main()
