"""A text model's weights and tokens in the text tower, and back from a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertModel

from modeling_flip import (
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
    PretrainingCollator,
)
from tests.modeling_flip.text_families.families import (
    ALL_FAMILIES,
    FAMILIES,
    FIELDS,
    LACKING,
    RENAMED,
    ROWS,
    SIZES,
    TextModel,
    collate,
    make_model,
)


@ALL_FAMILIES
def test_a_family_starts_from_its_pretrained_weights(text_model: Callable[[str], TextModel], family: str) -> None:
    source = text_model(family)
    model = make_model(FlipForPreTraining, source)
    assert model.flip.text_tower.config.model_type == family
    weights = model.flip.text_tower.state_dict()
    assert weights.keys() == source.weights.keys()
    for name, weight in source.weights.items():
        assert torch.equal(weights[name][: len(weight)], weight), name
    grown = {name for name, weight in source.weights.items() if weights[name].shape != weight.shape}
    table = model.get_input_embeddings().weight
    tables = {name for name, weight in weights.items() if weight.data_ptr() == table.data_ptr()}
    assert grown == (tables if FAMILIES[family].lacks else set())


@ALL_FAMILIES
def test_a_family_comes_back_to_the_bit_with_its_processor(
    text_model: Callable[[str], TextModel], family: str, tmp_path: Path
) -> None:
    source = text_model(family)
    model = make_model(FlipForCTR, source)
    model.save_pretrained(tmp_path)
    source.processor.save_pretrained(tmp_path)
    # Copied, because matrix products differ in the last bit where tensors lie in memory as they lay in the file: unaligned.
    loaded = copy.deepcopy(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    processor = FlipProcessor.from_pretrained(tmp_path)
    assert type(loaded) is FlipForCTR
    assert loaded.config.text_pooling == FAMILIES[family].pooling
    new_rows = {**ROWS, "title": ["a title never seen", *ROWS["title"][1:]]}
    for rows in (ROWS, new_rows):
        expected = model(**collate(model, source.processor, source.processor.encode(rows)))
        actual = loaded(**collate(loaded, processor, processor.encode(rows)))
        assert torch.equal(actual.logits, expected.logits)
        assert torch.equal(actual.text_logits, expected.text_logits)


@pytest.mark.parametrize("model_class", [FlipForPreTraining, FlipForCTR])
@pytest.mark.parametrize("family", [*FAMILIES, *RENAMED])
def test_trainer_reads_what_it_has_saved(
    model_class: Any, text_model: Callable[[str], TextModel], family: str, tmp_path: Path
) -> None:
    """A checkpoint, where a training goes on or ends with its best epoch."""
    source = text_model(family)
    model = make_model(model_class, source)
    trainer = FlipTrainer(model, FlipTrainingArguments(str(tmp_path), use_cpu=True), source.processor, source.rows)
    trainer.save_model(str(tmp_path / "checkpoint"))
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.data += 1
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint"))
    assert [name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])] == []


@pytest.mark.parametrize("family", LACKING)
def test_tokens_that_a_tokenizer_lacked_get_rows_of_their_own(
    text_model: Callable[[str], TextModel], family: str
) -> None:
    source = text_model(family)
    plain = AutoTokenizer.from_pretrained(source.folder)
    assert [token for token in ("mask_token", "pad_token") if getattr(plain, token) is None] == list(
        FAMILIES[family].lacks
    )
    tokenizer = source.processor.tokenizer
    model = make_model(FlipForPreTraining, source)
    old_size = AutoConfig.from_pretrained(source.folder).vocab_size
    table = model.get_input_embeddings().weight
    assert tokenizer.mask_token_id == old_size
    assert len(table) == len(tokenizer) == old_size + 1
    assert table[old_size:].isfinite().all()
    assert model.mlm.bias.shape == (old_size + 1,)
    assert model.config.text_config.vocab_size == old_size + 1
    if "pad_token" in FAMILIES[family].lacks:
        assert tokenizer.pad_token == tokenizer.eos_token  # the attention mask tells it from the end of the sentence
    batch = PretrainingCollator(source.processor)(source.rows)
    assert ((batch["masked_input_ids"] == old_size) == (batch["mlm_labels"] != -100)).all()


def test_without_an_end_of_text_to_pad_with_a_pad_token_is_added(text_model: Callable[[str], TextModel]) -> None:
    source = text_model("llama")
    tokenizer = AutoTokenizer.from_pretrained(source.folder, eos_token=None)
    old_size = len(tokenizer)
    processor = FlipProcessor.fit(ROWS, FIELDS, tokenizer)
    assert {processor.tokenizer.mask_token_id, processor.tokenizer.pad_token_id} == {old_size, old_size + 1}
    model = FlipForCTR.from_text_pretrained(source.folder, processor, **SIZES)
    assert model.get_input_embeddings().num_embeddings == old_size + 2
    assert model(**collate(model, processor, processor.encode(ROWS))).logits.isfinite().all()


@pytest.mark.parametrize("model_class", [FlipForPreTraining, FlipForCTR])
def test_of_an_encoder_decoder_only_the_encoder_is_kept(
    text_model: Callable[[str], TextModel], model_class: Any, tmp_path: Path
) -> None:
    source = text_model("t5")
    assert any("decoder" in name for name in load_file(source.folder / "model.safetensors"))
    make_model(model_class, source).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert not [name for name in saved if "decoder" in name or "EncDecAttention" in name or "lm_head" in name]
    tower = {name.removeprefix("flip.text_tower.") for name in saved if name.startswith("flip.text_tower.")}
    assert tower == source.weights.keys()


def test_bert_is_read_without_its_pooler(text_model: Callable[[str], TextModel]) -> None:
    source = text_model("bert")
    assert any(name.startswith("pooler.") for name in BertModel.from_pretrained(source.folder).state_dict())
    assert not [name for name, _ in make_model(FlipForCTR, source).named_parameters() if "pooler" in name]
