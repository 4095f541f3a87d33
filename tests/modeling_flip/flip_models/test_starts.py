"""A model made from a pretrained text model and a processor, and saved with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from modeling_flip import FlipConfig, FlipForCTR, FlipForPreTraining, FlipProcessor
from tests.modeling_flip.flip_models.models import assert_same_weights, saved


@pytest.fixture
def processor(rows: list[dict[str, Any]], tiny_text_model: Path) -> FlipProcessor:
    return FlipProcessor.fit(rows, ["user_id", "gender", "title"], AutoTokenizer.from_pretrained(tiny_text_model))


@pytest.mark.parametrize("model_class", [FlipForPreTraining, FlipForCTR])
def test_the_text_tower_starts_from_the_pretrained_weights(
    model_class: Any, tiny_text_model: Path, processor: FlipProcessor
) -> None:
    model = model_class.from_text_pretrained(tiny_text_model, processor, tabular_tower="deepfm", text_pooling="mean")
    source = AutoModel.from_pretrained(tiny_text_model, add_pooling_layer=False)
    assert_same_weights(model.flip.text_tower, source)
    assert model.config.tabular_tower == "deepfm"
    assert model.config.num_fields == 3
    assert model.config.num_features == processor.vocabulary.num_features
    assert model.flip.feature_embeddings.embedding.num_embeddings == processor.vocabulary.num_features


def test_a_mask_token_that_the_tokenizer_lacked_gets_a_row_of_its_own(
    tiny_text_model: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_text_model, mask_token=None)
    old_size = len(tokenizer)
    processor = FlipProcessor.fit(rows, ["user_id", "gender", "title"], tokenizer)
    assert processor.tokenizer.mask_token_id == old_size
    model = FlipForPreTraining.from_text_pretrained(tiny_text_model, processor)
    embeddings = model.get_input_embeddings().weight
    source = AutoModel.from_pretrained(tiny_text_model).get_input_embeddings().weight
    assert embeddings.shape == (old_size + 1, source.shape[1])
    assert torch.equal(embeddings[:old_size], source)
    assert embeddings[old_size].isfinite().all()
    assert model.mlm.bias.shape == (old_size + 1,)
    assert_same_weights(FlipForPreTraining.from_pretrained(saved(model, tmp_path)), model)


def test_a_text_tower_needs_a_text_model_and_a_tokenizer(
    tiny_text_model: Path, rows: list[dict[str, Any]], processor: FlipProcessor
) -> None:
    message = "needs text_model_name_or_path and a processor with a tokenizer"
    with pytest.raises(ValueError, match=message):
        FlipForCTR.from_text_pretrained(None, processor)
    with pytest.raises(ValueError, match=message):
        FlipForCTR.from_text_pretrained(tiny_text_model, FlipProcessor.fit(rows, ["user_id"]))


def test_a_tabular_model_needs_neither(rows: list[dict[str, Any]]) -> None:
    processor = FlipProcessor.fit(rows, ["user_id", "gender"])
    model = FlipForCTR.from_text_pretrained(None, processor, towers="tabular")
    assert model.config.text_config is None
    assert model(**processor(rows)).logits.shape == (len(rows),)


@pytest.mark.parametrize("model_class", [FlipForPreTraining, FlipForCTR])
def test_where_the_text_model_is_stays_out_of_the_configuration(
    model_class: Any, tiny_text_model: Path, processor: FlipProcessor, tmp_path: Path
) -> None:
    (tmp_path / "text_models").mkdir()
    shutil.copytree(tiny_text_model, tmp_path / "text_models" / "tiny")
    where = {"subfolder": "tiny", "token": "hf_secret", "revision": "v1", "cache_dir": str(tmp_path / "cache")}
    model = model_class.from_text_pretrained(
        tmp_path / "text_models", processor, joint_reconstruction=False, embedding_size=4, **where
    )
    model.save_pretrained(tmp_path / "saved")
    assert_same_weights(model.flip.text_tower, AutoModel.from_pretrained(tiny_text_model, add_pooling_layer=False))
    text = (tmp_path / "saved" / "config.json").read_text()
    assert not [said for said in (*where, "hf_secret") if f'"{said}"' in text]


def test_a_setting_that_does_not_exist_is_refused(tiny_text_model: Path, processor: FlipProcessor) -> None:
    with pytest.raises(ValueError, match="FlipConfig has no setting 'embeding_size'; did you mean 'embedding_size'"):
        FlipForCTR.from_text_pretrained(tiny_text_model, processor, embeding_size=16)


# ---- from a processor, and with it


def test_a_configuration_takes_its_sizes_from_the_processor(wordpiece: PreTrainedTokenizerFast) -> None:
    rows = {"city": ["Rome", "Oslo"], "tags": [["a"], ["b", "c"]]}
    for tokenizer, towers in ((None, "tabular"), (wordpiece, "both")):
        processor = FlipProcessor.fit(rows, tokenizer=tokenizer)
        config = FlipConfig.from_processor(processor, embedding_size=4)
        assert (config.num_fields, config.list_fields, config.embedding_size) == (2, [1], 4)
        assert config.towers == towers
        processor.check_belongs_to(config)
    with pytest.raises(ValueError, match="towers is 'both', but the processor has no tokenizer"):
        FlipConfig.from_processor(processor.tabular_only(), towers="both")


def test_model_and_processor_are_saved_in_one_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    processor = FlipProcessor.fit({"city": ["Rome", "Oslo"]})
    model = FlipForCTR(FlipConfig.from_processor(processor, embedding_size=4, hidden_sizes=[8]))
    model.save_pretrained(tmp_path / "both", processor=processor)
    assert FlipProcessor.from_pretrained(tmp_path / "both").fields == ["city"]
    model.save_pretrained(tmp_path / "both")  # again: there is one beside it
    assert "without its processor" not in caplog.text
    model.save_pretrained(tmp_path / "alone")
    assert f"{tmp_path / 'alone'} holds the model without its processor, so it cannot score rows" in caplog.text
    other = FlipProcessor.fit({"city": ["Bern", "Oslo", "Paris"]})
    with pytest.raises(ValueError, match="the vocabulary does not belong to the weights"):
        model.save_pretrained(tmp_path / "other", processor=other)
    assert not (tmp_path / "other").exists()
