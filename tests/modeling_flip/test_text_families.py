"""One matrix: every family of text models as a text tower, and every tabular tower beside one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    PreTrainedTokenizerFast,
    set_seed,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_flip import (
    TABULAR_TOWERS,
    FlipConfig,
    FlipDataCollator,
    FlipDataset,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    PretrainingCollator,
)
from modeling_flip.text_tower import WITHOUT_PADDING, masked_lm_head, most_tokens, pooled, reads_without_padding
from modeling_flip.training.trainer import plain_attention

FIELDS = ["user_id", "gender", "title", "genre"]
SIZES: dict[str, Any] = {
    "embedding_size": 4,
    "hidden_sizes": [8],
    "projection_size": 8,
    "attention_size": 3,
    "cin_sizes": [3],
    "num_logarithmic_neurons": 4,
}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": -1}


@dataclass(frozen=True)
class Family:
    tokenizer: str
    settings: dict[str, Any]
    pooling: str = "cls"
    lacks: tuple[str, ...] = ()  # tokens that the family's tokenizers do not have


FAMILIES = {
    "bert": Family("wordpiece", LAYERS),
    "roberta": Family("byte_level_bpe", LAYERS | {"max_position_embeddings": 140}),
    "distilbert": Family("wordpiece", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}),
    "albert": Family("unigram", LAYERS | {"embedding_size": 12}),
    "electra": Family("wordpiece", LAYERS | {"embedding_size": 12}),
    "mpnet": Family("wordpiece", LAYERS | {"max_position_embeddings": 140}),
    "deberta-v2": Family("unigram", LAYERS | DEBERTA),
    "xlm-roberta": Family("unigram", LAYERS | {"max_position_embeddings": 140}),
    "modernbert": Family("byte_level_bpe", LAYERS | {"cls_token_id": 0, "sep_token_id": 2}),
    "gpt2": Family("byte_level_bpe", {"n_embd": 16, "n_layer": 2, "n_head": 2}, "last", ("mask_token", "pad_token")),
    "llama": Family("byte_level_bpe", LAYERS | {"num_key_value_heads": 1}, "last", ("mask_token", "pad_token")),
    "qwen2": Family("byte_level_bpe", LAYERS | {"num_key_value_heads": 1}, "last", ("mask_token",)),
    "t5": Family("unigram", T5, "mean", ("mask_token",)),
}
DECODERS = [name for name, family in FAMILIES.items() if family.pooling == "last"]
LACKING = [name for name, family in FAMILIES.items() if family.lacks]
ALL_FAMILIES = pytest.mark.parametrize("family", FAMILIES)
ALL_TOWERS = pytest.mark.parametrize("tower", sorted(TABULAR_TOWERS))

ROWS: dict[str, list[Any]] = {
    "user_id": [0, 1, 2, 3, 4, 0, 1, 2],
    "gender": ["female", "male", None, "female", "male", "female", "male", None],
    "title": ["Toy Story", "Amélie", "東京", "The Usual Suspects: a very long title", "x", "Das Boot", "Amélie", "x"],
    "genre": ["Action", "Drama"] * 4,
    "label": [1, 0, 0, 1, 1, 0, 1, 0],
}


@dataclass
class TextModel:
    folder: Path
    weights: dict[str, torch.Tensor]  # of what is read of it: the encoder, where there is a decoder too
    processor: FlipProcessor
    rows: FlipDataset


def without_tokens(tokenizer: PreTrainedTokenizerFast, names: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A copy whose vocabulary lacks them too: what stands in their place is spelled otherwise."""
    spelled = tokenizer.backend_tokenizer.to_str()
    for i, name in enumerate(names):
        spelled = spelled.replace(f'"{getattr(tokenizer, name)}"', f'"<unused{i}>"')
    kept = {key: value for key, value in tokenizer.special_tokens_map.items() if key not in names}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(spelled), model_max_length=128, **kept)


@pytest.fixture(scope="module")
def text_model(
    tokenizers: dict[str, PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], TextModel]:
    """A tiny random model of the family in a folder with a tokenizer, and a processor made with it."""
    made: dict[str, TextModel] = {}

    def make(name: str) -> TextModel:
        if name not in made:
            family, folder = FAMILIES[name], tmp_path_factory.mktemp(name)
            tokenizer = without_tokens(tokenizers[family.tokenizer], family.lacks)
            pad = {} if "pad_token" in family.lacks else {"pad_token_id": tokenizer.pad_token_id}
            config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **pad, **family.settings)
            set_seed(1)
            model = AutoModel.from_config(config)
            for parameter in model.parameters():  # zeros and ones, as they start, tell nothing of where they come from
                parameter.data += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            processor = FlipProcessor.fit(ROWS, FIELDS, AutoTokenizer.from_pretrained(folder))
            read = model.encoder if name == "t5" else model
            weights = {key: value for key, value in read.state_dict().items() if not key.startswith("pooler.")}
            made[name] = TextModel(folder, weights, processor, processor.encode(ROWS, "label"))
        return made[name]

    return make


@ALL_FAMILIES
def test_a_text_model_reads_as_many_tokens_as_it_is_said_to(
    family: str, text_model: Callable[[str], TextModel]
) -> None:
    source = text_model(family)
    model, tokenizer = AutoModel.from_pretrained(source.folder), AutoTokenizer.from_pretrained(source.folder)
    assert most_tokens(model, tokenizer) == 128  # its tokenizer's limit
    tokenizer.model_max_length = 10**30
    limit = most_tokens(model, tokenizer)
    assert (limit is None) == (family in ("t5", "llama", "qwen2", "modernbert"))  # relative and rotary positions
    encoder = model.encoder if family == "t5" else model
    with torch.inference_mode():
        encoder(torch.full((1, limit or 1100), 5))
        if limit is not None:
            with pytest.raises((IndexError, RuntimeError)):
                encoder(torch.full((1, limit + 1), 5))


def test_sentences_longer_than_the_text_model_reads_are_refused(text_model: Callable[[str], TextModel]) -> None:
    source = text_model("roberta")
    processor = FlipProcessor.fit(ROWS, FIELDS, AutoTokenizer.from_pretrained(source.folder), max_length=129)
    with pytest.raises(
        ValueError, match=r"max_length is 129, but .* reads at most 128 tokens; set max_length to 128 or less"
    ):
        FlipForCTR.from_text_pretrained(source.folder, processor, **SIZES)


def make_model(model_class: Any, source: TextModel, **settings: Any) -> Any:
    """In evaluation mode: families have dropout."""
    set_seed(0)
    return model_class.from_text_pretrained(source.folder, source.processor, **SIZES | settings).eval()


def collate(model: Any, processor: FlipProcessor, rows: FlipDataset) -> dict[str, torch.Tensor]:
    return FlipDataCollator(processor, model.inputs)(rows)


def without_gradient(module: torch.nn.Module) -> list[str]:
    """Parameters that no gradient reached, or one that is not finite."""
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return [name for name, g in gradients.items() if g is None or not g.any() or not g.isfinite().all()]


def assert_a_step_teaches(model: FlipForCTR, batch: dict[str, torch.Tensor]) -> None:
    """One small step of finetuning reaches both towers and lowers the loss of its own batch."""
    before = model.train()(**batch)
    before.loss.backward()
    assert before.loss.isfinite()
    assert without_gradient(model) == []
    model.zero_grad()
    model.flip.text_tower.eval()  # without dropout, so that the step can be judged
    loss = model(**batch).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    assert model(**batch).loss < loss


# ---- every family of text models


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
def test_a_family_pretrains(text_model: Callable[[str], TextModel], family: str) -> None:
    source = text_model(family)
    model = make_model(FlipForPreTraining, source).train()
    output = model(**PretrainingCollator(source.processor)(source.rows))
    assert set(output) == {"loss", "mlm_loss", "mtm_loss", "icl_loss"}
    assert all(loss.isfinite() for loss in output.values())
    output.loss.backward()
    assert without_gradient(model.flip.text_tower) == []
    assert without_gradient(model.flip.feature_embeddings.embedding) == []


ONLY_MLM = {"mtm_weight": 0, "icl_weight": 0, "joint_reconstruction": False}


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.lacks])
def test_without_joint_reconstruction_a_family_starts_from_its_head_for_masked_words(
    text_model: Callable[[str], TextModel], family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = text_model(family)
    set_seed(3)
    theirs = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source.folder)).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    batch = PretrainingCollator(source.processor)(source.rows)
    for folder, is_theirs in ((tmp_path, True), (source.folder, False)):
        model = FlipForPreTraining.from_text_pretrained(folder, source.processor, **SIZES, **ONLY_MLM).eval()
        assert ("has no head for masked words that fits" in caplog.text) != is_theirs
        loss = model(**batch).mlm_loss
        logits = theirs(batch["masked_input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = torch.stack(
            [
                torch.nn.functional.cross_entropy(row, labels)
                for row, labels in zip(logits, batch["mlm_labels"], strict=True)
            ]
        ).mean()
        assert torch.isclose(loss, expected, rtol=1e-3) == is_theirs
    assert "corrupted" not in caplog.text  # as transformers says where a head is missing


@pytest.mark.parametrize("change", ["another activation", "untied", "cut"])
def test_a_head_for_masked_words_that_computes_something_else_is_not_taken(
    text_model: Callable[[str], TextModel], change: str, tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(text_model("bert").folder)
    if change == "another activation":
        config.hidden_act = "relu"
    config.tie_word_embeddings = change != "untied"
    model = AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(tmp_path)
    assert (masked_lm_head(tmp_path) == {}) == (change != "cut")
    if change == "cut":
        weights = load_file(tmp_path / "model.safetensors")
        del weights["cls.predictions.transform.LayerNorm.weight"]
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        assert masked_lm_head(tmp_path) == {}


@pytest.mark.parametrize("family", LACKING)
def test_a_text_model_that_predicts_no_masked_words_trains_a_fresh_head(
    text_model: Callable[[str], TextModel], family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(FlipForPreTraining, text_model(family), **ONLY_MLM)
    assert "has no head for masked words that fits: a fresh one is trained" in caplog.text
    assert model.mlm.norm.weight.unique().tolist() == [1]


def test_a_head_for_masked_words_from_before_it_had_a_layer_norm_still_loads(
    text_model: Callable[[str], TextModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = text_model("bert")
    saved = make_model(FlipForPreTraining, source, **ONLY_MLM)
    saved.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: weight for name, weight in weights.items() if not name.startswith("mlm.norm.")}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "model.sha256").unlink()
    caplog.clear()
    model = FlipForPreTraining.from_pretrained(tmp_path).eval()
    assert "lacks weights, which are random: mlm.norm.bias, mlm.norm.weight" in caplog.text
    batch = PretrainingCollator(source.processor)(source.rows)
    assert torch.isclose(model(**batch).loss, saved(**batch).loss)  # a fresh norm's are the same
    caplog.clear()
    FlipForCTR.from_pretrained(tmp_path, towers="text")
    assert "random" not in caplog.text


@ALL_FAMILIES
def test_a_family_is_finetuned_from_its_pretraining_checkpoint(
    text_model: Callable[[str], TextModel], family: str, tmp_path: Path
) -> None:
    source = text_model(family)
    pretrained = make_model(FlipForPreTraining, source)
    pretrained.save_pretrained(tmp_path)
    set_seed(2)  # the text classifier's weights
    model = FlipForCTR.from_pretrained(tmp_path)
    for name, weight in pretrained.flip.state_dict().items():
        assert torch.equal(model.flip.state_dict()[name], weight), name
    assert_a_step_teaches(model, collate(model, source.processor, source.rows))


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


@ALL_FAMILIES
@pytest.mark.parametrize("pooling", [None, "mean", "last"])
def test_a_rows_logit_does_not_depend_on_how_far_it_is_padded(
    text_model: Callable[[str], TextModel], family: str, pooling: str | None
) -> None:
    source = text_model(family)
    model = make_model(FlipForCTR, source, text_pooling=pooling)
    together = collate(model, source.processor, source.rows)
    lengths = together["attention_mask"].sum(1)
    logits = model(**together).text_logits
    assert len(logits.unique()) == len(logits)
    for i in range(len(source.rows)):
        alone = collate(model, source.processor, source.rows[i])
        assert alone["input_ids"].shape == (1, lengths[i])
        torch.testing.assert_close(model(**alone).text_logits[0], logits[i], rtol=1e-5, atol=1e-5)
    assert lengths.unique().numel() > 2


@ALL_FAMILIES
@pytest.mark.parametrize("pooling", [None, "mean", "last"])
def test_a_family_has_its_own_pooling_unless_another_is_set(
    text_model: Callable[[str], TextModel], family: str, pooling: str | None
) -> None:
    source = text_model(family)
    model = make_model(FlipForCTR, source, text_pooling=pooling)
    assert model.config.text_pooling == (pooling or FAMILIES[family].pooling)
    batch = collate(model, source.processor, source.rows)
    towers = model.flip(**batch)
    for hidden, sentence, length in zip(
        towers.text_hidden_states, towers.text_representation, batch["attention_mask"].sum(1).tolist(), strict=True
    ):
        each = {"cls": hidden[0], "last": hidden[length - 1], "mean": hidden[:length].mean(0)}
        torch.testing.assert_close(sentence, each[pooling or FAMILIES[family].pooling])


@ALL_FAMILIES
def test_a_family_sees_what_stands_before_a_token_and_only_a_decoder_nothing_behind(
    text_model: Callable[[str], TextModel], family: str
) -> None:
    """Why a decoder's first token says nothing of the sentence, and its last says most."""
    source = text_model(family)
    tower = make_model(FlipForCTR, source).flip.text_tower
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10]])
    hidden, last, first = (
        tower(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        for ids in (
            tokens,
            torch.cat([tokens[:, :-1], tokens[:, :1]], 1),
            torch.cat([tokens[:, -1:], tokens[:, 1:]], 1),
        )
    )
    assert (hidden[-1] - first[-1]).abs().max() > 1e-4
    assert torch.allclose(hidden[0], last[0], atol=1e-6) is (family in DECODERS)


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


@pytest.mark.parametrize("family", DECODERS)
def test_the_first_token_of_a_decoder_is_refused(text_model: Callable[[str], TextModel], family: str) -> None:
    message = f"text model '{family}' is a decoder: its first token sees none of the others; set text_pooling to 'last' or 'mean'"
    source = text_model(family)
    with pytest.raises(ValueError, match=message):
        FlipConfig(text_config={"model_type": family}, text_pooling="cls")
    with pytest.raises(ValueError, match=message):
        make_model(FlipForCTR, source, text_pooling="cls")
    config = FlipConfig(text_config={"model_type": family})
    config.text_pooling = "cls"
    with pytest.raises(ValueError, match=message):
        FlipForCTR(config)


# ---- every tabular tower


@ALL_TOWERS
def test_a_tabular_tower_pretrains_beside_a_text_tower(text_model: Callable[[str], TextModel], tower: str) -> None:
    source = text_model("bert")
    model = make_model(FlipForPreTraining, source, tabular_tower=tower).train()
    output = model(**PretrainingCollator(source.processor)(source.rows))
    assert all(loss.isfinite() for loss in output.values())
    output.loss.backward()
    assert without_gradient(model.flip.text_tower) == []
    assert without_gradient(model.flip.feature_embeddings.embedding) == []


@ALL_TOWERS
def test_a_tabular_tower_is_finetuned_from_its_pretraining_checkpoint(
    text_model: Callable[[str], TextModel], tower: str, tmp_path: Path
) -> None:
    source = text_model("bert")
    pretrained = make_model(FlipForPreTraining, source, tabular_tower=tower)
    pretrained.save_pretrained(tmp_path)
    set_seed(2)
    model = FlipForCTR.from_pretrained(tmp_path)
    assert type(model.flip.tabular_tower) is TABULAR_TOWERS[tower]
    for name, weight in pretrained.flip.state_dict().items():
        assert torch.equal(model.flip.state_dict()[name], weight), name
    assert_a_step_teaches(model, collate(model, source.processor, source.rows))


# ---- pooling


@pytest.mark.parametrize("pooling", ["cls", "mean", "last", None])
def test_pooled_is_the_first_the_last_or_the_mean_of_what_is_no_padding(pooling: str | None) -> None:
    hidden = torch.arange(24, dtype=torch.float32).view(3, 4, 2) ** 2
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    expected = []
    for tokens, length in zip(hidden.numpy(), [4, 2, 1], strict=True):
        if pooling == "mean":
            expected.append(sum(tokens[:length]) / length)
        else:
            expected.append(tokens[length - 1 if pooling == "last" else 0])
    np.testing.assert_allclose(pooled(hidden, mask, pooling).numpy(), np.stack(expected), rtol=1e-6)


def test_bert_is_read_without_its_pooler(text_model: Callable[[str], TextModel]) -> None:
    source = text_model("bert")
    assert any(name.startswith("pooler.") for name in BertModel.from_pretrained(source.folder).state_dict())
    assert not [name for name, _ in make_model(FlipForCTR, source).named_parameters() if "pooler" in name]


@ALL_FAMILIES
def test_plain_attention_is_the_fused_one_but_for_its_speed(
    family: str, text_model: Callable[[str], TextModel]
) -> None:
    made = text_model(family)
    model = FlipForCTR.from_text_pretrained(made.folder, made.processor, towers="text", **SIZES).eval()
    batch = made.processor.sentences(made.rows)
    inputs = {name: torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask")}
    assert (inputs["attention_mask"] == 0).any()
    fused = model(**inputs).logits
    before = [m.config._attn_implementation for m in model.modules() if hasattr(m, "set_attn_implementation")]
    with plain_attention(model):
        assert model.flip.text_tower.config._attn_implementation == "eager"
        torch.testing.assert_close(model(**inputs).logits, fused, rtol=1e-4, atol=1e-5)
    assert [m.config._attn_implementation for m in model.modules() if hasattr(m, "set_attn_implementation")] == before


# ---- without padding


def attend_by_sequence(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **told: Any
) -> tuple[torch.Tensor, None]:
    """What flash attention does with sequences that lie end to end, (1, heads, T, size), in plain torch."""
    assert mask is None and len(query) == 1
    bounds = told["cu_seq_lens_q"].tolist()
    is_causal = module.is_causal if told.get("is_causal") is None else told["is_causal"]
    attended = []
    for begin, end in pairwise(bounds):
        q, k, v = (x[:, :, begin:end] for x in (query, key, value))
        distance = (torch.arange(end - begin)[:, None] - torch.arange(end - begin))[None, None]
        seen = distance >= 0 if is_causal else distance.abs() < (told.get("sliding_window") or len(query[0, 0]))
        dropout = told.get("dropout", 0.0)
        attended.append(scaled_dot_product_attention(q, k, v, seen, dropout, scale=told["scaling"], enable_gqa=True))
    return torch.cat(attended, 2).transpose(1, 2), None


@pytest.mark.parametrize("family", WITHOUT_PADDING)
def test_without_padding_losses_and_gradients_are_those_of_padded_batches(
    family: str, text_model: Callable[[str], TextModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", attend_by_sequence)
    source = text_model(family)
    for model_class, batch in (
        (FlipForPreTraining, PretrainingCollator(source.processor)(source.rows)),
        (FlipForCTR, FlipDataCollator(source.processor, ("feature_ids", "sentence"))(source.rows)),
    ):
        model = make_model(model_class, source)
        assert (batch["attention_mask"] == 0).any()
        loss, expected = gradients(model, batch)
        tokens: list[int] = []
        tower = model.flip.text_tower
        tower.get_input_embeddings().register_forward_hook(
            lambda _, given, __, seen=tokens: seen.append(given[0].numel())
        )
        tower.config._attn_implementation = "flash_attention_2"
        actual, found = gradients(model, batch)
        assert tokens == [batch["attention_mask"].sum() * (2 if model_class is FlipForPreTraining else 1)]
        torch.testing.assert_close(actual, loss, rtol=1e-5, atol=1e-6)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=f"{name}: ".__add__)


def test_a_family_that_reads_only_padded_rows_is_given_them(text_model: Callable[[str], TextModel]) -> None:
    tower = make_model(FlipForCTR, text_model("roberta")).flip.text_tower
    tower.config._attn_implementation = "flash_attention_2"
    assert not reads_without_padding(tower)


# ---- activation checkpointing


CANNOT_CHECKPOINT = ("albert", "mpnet")


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(4)  # dropout
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def passes_of(text_tower: torch.nn.Module) -> list[int]:
    """Counts, from now on, the passes through the first of a text tower's layers."""
    count = [0]
    layer = next(module for module in text_tower.modules() if isinstance(module, GradientCheckpointingLayer))
    part = next(module for module in layer.modules() if [*module.parameters(recurse=False)])
    part.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    return count


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in CANNOT_CHECKPOINT])
def test_activation_checkpointing_computes_each_layer_again_and_the_same_gradients(
    text_model: Callable[[str], TextModel], family: str, tmp_path: Path
) -> None:
    source = text_model(family)
    make_model(FlipForPreTraining, source).save_pretrained(tmp_path)
    finetuned, pretrained = FlipForCTR.from_pretrained(tmp_path), FlipForPreTraining.from_pretrained(tmp_path)
    sentences = collate(finetuned, source.processor, source.rows)
    for model, batch in ((finetuned, sentences), (pretrained, PretrainingCollator(source.processor)(source.rows))):
        count = passes_of(model.train().flip.text_tower)
        loss, expected = gradients(model, batch)
        assert count == [1]
        model.gradient_checkpointing_enable()
        again, found = gradients(model, batch)
        assert count == [3]
        assert torch.equal(loss, again) and found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=name)
        model.activation_checkpointing_disable()
        gradients(model, batch)
        assert count == [4]


@pytest.mark.parametrize("family", CANNOT_CHECKPOINT)
def test_activation_checkpointing_of_a_text_tower_that_cannot_is_an_error(
    text_model: Callable[[str], TextModel], family: str
) -> None:
    source = text_model(family)
    model = make_model(FlipForCTR, source)
    with pytest.raises(ValueError, match=f"text model {family!r} cannot do it in transformers: set it to false"):
        model.gradient_checkpointing_enable()
    assert not model.is_activation_checkpointing
    tabular = make_model(FlipForCTR, source, towers="tabular")
    with pytest.raises(ValueError, match="is of the text tower, and this model has none: set it to false"):
        tabular.activation_checkpointing_enable()
    tabular.activation_checkpointing_disable()
