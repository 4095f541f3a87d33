"""Tiny baselines with random weights, their text models and their processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from modeling_flip import FlipDataCollator, FlipProcessor
from tests.baselines.tiny import FIELDS, ITEM_FIELDS, MODELS, ROWS, SIZES, Collate, Make, save_lively


@pytest.fixture(scope="module")
def tiny_bert(wordpiece: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random encoder and the WordPiece tokenizer."""
    config = BertConfig(
        vocab_size=len(wordpiece),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
    )
    set_seed(0)
    return save_lively(BertModel(config), wordpiece, tmp_path_factory.mktemp("tiny_bert"))


@pytest.fixture(scope="module")
def tiny_t5(tokenizers: dict[str, PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random encoder-decoder and the Unigram tokenizer."""
    tokenizer = tokenizers["unigram"]
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    set_seed(0)
    return save_lively(T5ForConditionalGeneration(config), tokenizer, tmp_path_factory.mktemp("tiny_t5"))


@pytest.fixture(scope="module")
def text_models(tiny_bert: Path, tiny_t5: Path) -> dict[str, Path]:
    return {"ctr_bert": tiny_bert, "morec": tiny_bert, "p5": tiny_t5}


@pytest.fixture(scope="module")
def processors(text_models: dict[str, Path]) -> dict[str, FlipProcessor]:
    return {
        name: FlipProcessor.fit(ROWS, FIELDS, AutoTokenizer.from_pretrained(folder))
        for name, folder in text_models.items()
    }


@pytest.fixture(scope="module")
def make(text_models: dict[str, Path], processors: dict[str, FlipProcessor]) -> Make:
    def make_model(name: str, **settings: Any) -> Any:
        """In evaluation mode; what is fresh is large enough for logits to differ, biases too."""
        settings = SIZES | ({} if name == "p5" else {"item_fields": ITEM_FIELDS}) | settings
        set_seed(0)
        model = MODELS[name].from_text_pretrained(text_models[name], processors[name], **settings).eval()
        for parameter_name, parameter in model.named_parameters():
            if "text_tower." not in parameter_name:
                parameter.data += 0.3 * torch.randn_like(parameter)
        return model

    return make_model


@pytest.fixture(scope="module")
def collate(processors: dict[str, FlipProcessor]) -> Collate:
    def batch(model: Any, rows: list[dict[str, Any]] = ROWS) -> dict[str, torch.Tensor]:
        processor = processors[model.config.model_type]
        collator = FlipDataCollator(processor, model.inputs, model.config.item_fields)
        return collator(processor.encode(rows, "label" if "label" in rows[0] else None))

    return batch
