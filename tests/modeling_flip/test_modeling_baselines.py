"""CTR-BERT, MoRec and P5: their logits by hand, what they read and what they do not, and that they train and come back."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from modeling_flip import (
    TABULAR_TOWERS,
    CTRBertConfig,
    CTRBertForCTR,
    FlipDataCollator,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
    MoRecConfig,
    MoRecForCTR,
    P5Config,
    P5ForCTR,
)

# The item's fields do not stand together, nor last.
FIELDS = ["user_id", "title", "gender", "genre"]
USER_FIELDS, ITEM_FIELDS = [0, 2], [1, 3]
SIZES: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [16, 12], "attention_size": 3, "cin_sizes": [3]}
MODELS = {"ctr_bert": CTRBertForCTR, "morec": MoRecForCTR, "p5": P5ForCTR}
ALL_MODELS = pytest.mark.parametrize("name", MODELS)
ITEMS = [("Toy Story (1995)", "Action"), ("東京物語", "Drama"), ("It's a Wonderful Life", "Drama"), ("x", None)]
USERS = [(1, "female"), (2, "male"), (3, None)]
ROWS: list[dict[str, Any]] = [  # users and items come back, pairs do not
    {"user_id": USERS[u][0], "gender": USERS[u][1], "title": ITEMS[i][0], "genre": ITEMS[i][1], "label": label}
    for u, i, label in [(0, 0, 1), (1, 0, 0), (0, 1, 0), (2, 3, 1), (1, 2, 1), (0, 2, 0), (2, 0, 1)]
]
UNKNOWN: list[dict[str, Any]] = [
    {"user_id": 77, "gender": "?", "title": "never seen", "genre": "Western"},
    {"user_id": None, "gender": None, "title": None, "genre": None},
]


def save_lively(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """With weights larger than at the start, where all sentences are nearly alike."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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
def make(text_models: dict[str, Path], processors: dict[str, FlipProcessor]) -> Callable[..., Any]:
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
def collate(processors: dict[str, FlipProcessor]) -> Callable[..., dict[str, torch.Tensor]]:
    def batch(model: Any, rows: list[dict[str, Any]] = ROWS) -> dict[str, torch.Tensor]:
        processor = processors[model.config.model_type]
        collator = FlipDataCollator(processor, model.inputs, model.config.item_fields)
        return collator(processor.encode(rows, "label" if "label" in rows[0] else None))

    return batch


def padded(batch: dict[str, torch.Tensor], extra: int = 4) -> dict[str, torch.Tensor]:
    """The same batch, its sentences padded to a greater length, with a token that is not padding's."""
    fillings = {name: 7 if name.endswith("input_ids") else 0 for name in batch if name.endswith(("_ids", "_mask"))}
    fillings.pop("feature_ids", None)
    pad = torch.nn.functional.pad
    return batch | {name: pad(batch[name], (0, extra), value=value) for name, value in fillings.items()}


def sentence(tower: Any, tokens: torch.Tensor, mask: torch.Tensor, pooling: str) -> np.ndarray:
    """One sentence, without padding, through the text tower."""
    tokens = tokens[mask == 1]
    hidden = tower(input_ids=tokens[None], attention_mask=torch.ones_like(tokens)[None]).last_hidden_state[0]
    hidden = hidden.detach().double().numpy()
    return {"cls": hidden[0], "last": hidden[-1], "mean": sum(hidden) / len(hidden)}[pooling]


def weights_of(model: Any) -> dict[str, np.ndarray]:
    return {name: weight.double().numpy() for name, weight in model.state_dict().items()}


@contextmanager
def counting_rows(tower: torch.nn.Module) -> Iterator[list[int]]:
    """How many sentences each pass of the text tower reads."""
    counts: list[int] = []
    hook = tower.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield counts
    hook.remove()


@pytest.mark.parametrize("name", list(MODELS))
def test_a_batch_without_rows_teaches_nothing(
    name: str, make: Callable[..., Any], processors: dict[str, FlipProcessor]
) -> None:
    """What a process has of a last batch that is smaller than the number of processes."""
    model, processor = make(name).train(), processors[name]
    collator = FlipDataCollator(processor, model.inputs, model.config.item_fields)
    loss = model(**collator(processor.encode(ROWS, "label").__getitems__([]))).loss
    loss.backward()
    assert loss == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


# ---- CTR-BERT


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_ctr_berts_logit_is_an_mlp_of_user_item_and_their_product(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], pooling: str
) -> None:
    model = make("ctr_bert", text_pooling=pooling)
    batch, weights = collate(model), weights_of(model)
    expected = []
    for u, i in zip(batch["user_index"], batch["item_index"], strict=True):
        user = sentence(model.user_text_tower, batch["user_input_ids"][u], batch["user_attention_mask"][u], pooling)
        item = sentence(model.item_text_tower, batch["item_input_ids"][i], batch["item_attention_mask"][i], pooling)
        x = np.concatenate([user, item, user * item])
        for layer in (0, 3):  # Linear, ReLU, Dropout, Linear, …
            x = np.maximum(weights[f"head.{layer}.weight"] @ x + weights[f"head.{layer}.bias"], 0)
        expected.append(weights["output.weight"][0] @ x + weights["output.bias"][0])
    output = model(**batch)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(output.logits.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    p = 1 / (1 + np.exp(-np.array(expected)))
    losses = -np.log(np.where([row["label"] for row in ROWS], p, 1 - p))
    assert output.loss.item() == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_ctr_bert_scores_users_and_items_that_come_back_as_rows_alone(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], pooling: str
) -> None:
    model = make("ctr_bert", text_pooling=pooling)
    batch = collate(model)
    assert len(batch["user_input_ids"]) == 3
    assert len(batch["item_input_ids"]) == 4
    with counting_rows(model.user_text_tower) as users, counting_rows(model.item_text_tower) as items:
        together = model(**batch).logits
    assert (users, items) == ([3], [4])
    alone = torch.cat([model(**collate(model, [row])).logits for row in ROWS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert len(together.unique()) == len(ROWS)


def test_ctr_berts_towers_start_alike_and_learn_apart(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = make("ctr_bert")
    user, item = model.user_text_tower.state_dict(), model.item_text_tower.state_dict()
    assert all(torch.equal(user[name], item[name]) for name in user)
    model(**collate(model)).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.weight"):
        assert not torch.equal(user[name], item[name])
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


# ---- MoRec


def morec_logits_by_hand(model: MoRecForCTR, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    tower, features, pooling = model.tabular_tower, model.feature_embeddings, model.config.text_pooling
    weight, bias = weights_of(model)["item_projection.weight"], weights_of(model)["item_projection.bias"]
    logits = []
    for ids, i in zip(batch["feature_ids"], batch["item_index"].tolist(), strict=True):
        words = sentence(model.text_tower, batch["item_input_ids"][i], batch["item_attention_mask"][i], pooling)
        x = weight @ words + bias
        if model.config.item_activation == "gelu":
            x = np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x])
        item = torch.from_numpy(x)
        user = [features.embedding.weight[ids[f]] for f in USER_FIELDS]
        logit = tower(torch.stack([*user, item])[None])[1]
        if tower.first_order:
            named = [ids[f].item() for f in USER_FIELDS] + [model.config.num_features - 1]  # <MASK>
            logit = logit + features.first_order.weight[named].sum()
        logits.append(logit)
    return torch.cat(logits)


@pytest.mark.parametrize(("tower", "activation"), [*((t, "gelu") for t in sorted(TABULAR_TOWERS)), ("dcnv2", "linear")])
def test_morecs_logit_is_the_tabular_towers_over_user_features_and_the_projected_sentence(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], tower: str, activation: str
) -> None:
    pooling = "mean" if tower == "dcnv2" else None
    # In fp64: AFN's powers of fresh embeddings are large.
    model = make("morec", tabular_tower=tower, text_pooling=pooling, item_activation=activation).double()
    batch = collate(model)
    output = model(**batch)
    expected = morec_logits_by_hand(model, batch)
    torch.testing.assert_close(output.logits, expected, rtol=1e-6, atol=1e-6)
    assert len(expected.unique()) == len(ROWS)
    losses = np.logaddexp(0, np.where(batch["labels"] == 1, -1, 1) * expected.detach().numpy())
    assert output.loss.item() == pytest.approx(losses.mean(), rel=1e-5)


def test_morec_reads_an_items_words_and_none_of_its_ids(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = make("morec", tabular_tower="deepfm")  # which also has weights of single features
    batch = collate(model)
    logits = model(**batch).logits
    for field in range(len(FIELDS)):
        changed = batch["feature_ids"].clone()
        changed[:, field] = (changed[:, field] + 1) % model.config.num_features
        differ = logits != model(**batch | {"feature_ids": changed}).logits
        assert differ.tolist() == [field in USER_FIELDS] * len(ROWS)
    tokens = batch["item_input_ids"].clone()
    tokens[2, 1] += 1
    differ = logits != model(**batch | {"item_input_ids": tokens}).logits
    assert torch.equal(differ, batch["item_index"] == 2)
    assert differ.any()


def test_a_morec_from_before_it_had_an_activation_scores_as_it_did(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    old, new = make("morec", item_activation="linear"), make("morec")
    batch = collate(old)
    for model, version in ((new, 4), (old, 2)):
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["format_version"] == version
    del config["item_activation"]  # as files of that time are
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.sha256").unlink()
    loaded = MoRecForCTR.from_pretrained(tmp_path)
    assert loaded.config.item_activation == "linear"
    torch.testing.assert_close(loaded(**batch).logits, old(**batch).logits)
    assert (new(**batch).logits - old(**batch).logits).abs().max() > 1e-3
    with pytest.raises(ValueError, match="item_activation is 'relu'; it must be one of gelu, linear"):
        MoRecConfig(item_activation="relu", item_fields=[0], num_fields=2)


def test_morec_encodes_each_item_of_a_batch_once_and_scores_rows_as_if_alone(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = make("morec")
    with counting_rows(model.text_tower) as counts:
        together = model(**collate(model)).logits
    assert counts == [len(ITEMS)]
    alone = torch.cat([model(**collate(model, [row])).logits for row in ROWS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_morecs_embeddings_are_penalised_in_training(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = make("morec", tabular_tower="deepfm", embedding_l2=0.02, freeze_text_tower=True)
    batch = collate(model)
    tables = [model.feature_embeddings.embedding.weight, model.feature_embeddings.first_order.weight]
    penalty = sum(0.01 * table.square().sum() for table in tables)
    torch.testing.assert_close(model.train()(**batch).loss - model.eval()(**batch).loss, penalty)


# ---- MoRec with its text tower frozen


def test_a_frozen_text_tower_gives_the_same_logits(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model, frozen = make("morec"), make("morec", freeze_text_tower=True)
    batch = collate(model)
    torch.testing.assert_close(frozen(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-6)
    remembered = frozen(**batch).logits
    torch.testing.assert_close(remembered, model(**batch).logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(frozen.train()(**batch).logits, remembered)  # no dropout in what is remembered


def test_a_frozen_text_tower_reads_each_item_once(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = make("morec", freeze_text_tower=True)
    expected = model(**collate(model)).logits
    model = make("morec", freeze_text_tower=True).train()
    logits = []
    with counting_rows(model.text_tower) as counts:
        for row in ROWS:  # each padded to its own length
            logits.append(model(**padded(collate(model, [row]))).logits)
        assert counts == [1] * len(ITEMS)
        torch.testing.assert_close(model(**collate(model)).logits, expected, rtol=1e-4, atol=1e-5)
        model(**collate(model, [*ROWS, UNKNOWN[0] | {"label": 0}]))
        assert counts == [1] * (len(ITEMS) + 1)
    torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_text_tower_learns_nothing_and_the_rest_all_the_same(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], freeze: bool
) -> None:
    model = make("morec", freeze_text_tower=freeze).train()
    batch = collate(model)
    for _ in range(2):  # also from what it remembers
        model.zero_grad()
        model(**batch).loss.backward()
        taught = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert {name for name, _ in model.named_parameters() if "text_tower." not in name} <= taught
        text_tower = {name for name, _ in model.named_parameters() if "text_tower." in name}
        assert taught & text_tower == (set() if freeze else text_tower)
    assert model.text_tower.training is not freeze
    assert all(parameter.requires_grad is not freeze for parameter in model.text_tower.parameters())


def test_a_frozen_text_tower_is_saved_with_the_model(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    model = make("morec", freeze_text_tower=True)
    logits = model(**collate(model)).logits
    model.save_pretrained(tmp_path)
    loaded = copy.deepcopy(MoRecForCTR.from_pretrained(tmp_path))
    assert loaded.config.freeze_text_tower
    torch.testing.assert_close(loaded(**collate(loaded)).logits, logits, rtol=1e-5, atol=1e-6)
    for _ in range(2):
        loaded.train()(**collate(loaded)).loss.backward()
    assert all(parameter.grad is None for parameter in loaded.text_tower.parameters())
    thawed = copy.deepcopy(MoRecForCTR.from_pretrained(tmp_path, freeze_text_tower=False))
    assert all(parameter.requires_grad for parameter in thawed.parameters())
    torch.testing.assert_close(thawed(**collate(thawed)).logits, logits, rtol=1e-5, atol=1e-6)


def test_a_frozen_text_tower_is_frozen_when_loaded(make: Callable[..., Any], tmp_path: Path) -> None:
    make("morec", freeze_text_tower=True).save_pretrained(tmp_path)
    loaded = MoRecForCTR.from_pretrained(tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.text_tower.parameters())
    assert all(parameter.requires_grad for parameter in loaded.tabular_tower.parameters())


def test_what_a_frozen_text_tower_said_is_cast_with_the_model(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = make("morec", freeze_text_tower=True)
    logits = model(**collate(model)).logits
    torch.testing.assert_close(model.double()(**collate(model)).logits, logits.double(), rtol=1e-4, atol=1e-5)


def edit_in_place(model: MoRecForCTR) -> None:
    with torch.no_grad():
        model.text_tower.embeddings.LayerNorm.bias.add_(0.3)


def edit_data(model: MoRecForCTR) -> None:
    for parameter in model.text_tower.parameters():
        parameter.data += 0.1


def load(model: MoRecForCTR) -> None:
    model.load_state_dict({name: weight + 0.1 for name, weight in model.state_dict().items()})


def load_and_assign(model: MoRecForCTR) -> None:
    model.load_state_dict({name: weight + 0.1 for name, weight in model.state_dict().items()}, assign=True)


def step(model: MoRecForCTR) -> None:
    model.text_tower.requires_grad_(True)
    for parameter in model.text_tower.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.text_tower.parameters(), lr=0.1).step()
    model.train(model.training)


def replace_tower(model: MoRecForCTR) -> None:
    model.text_tower = copy.deepcopy(model.text_tower)
    edit_in_place(model)


def round_trip(model: MoRecForCTR) -> None:
    model.half()
    model.float()


@pytest.mark.parametrize(
    "change",
    [edit_in_place, edit_data, load, load_and_assign, step, replace_tower, round_trip],
    ids=lambda f: f.__name__,
)
def test_what_a_frozen_text_tower_said_is_forgotten_when_its_weights_change(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], change: Callable[[MoRecForCTR], None]
) -> None:
    model = make("morec", freeze_text_tower=True)
    batch = collate(model)
    before = model(**batch).logits
    change(model)
    fresh = MoRecForCTR(model.config)
    fresh.load_state_dict(model.state_dict())
    after = model(**batch).logits
    assert torch.equal(after, fresh.eval()(**batch).logits)
    assert not torch.equal(after, before)
    with counting_rows(model.text_tower) as counts:
        assert torch.equal(model(**batch).logits, after)
    assert counts == []


def test_a_frozen_text_tower_says_in_fp32_what_it_said_under_autocast_anew(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model, other = make("morec", freeze_text_tower=True), make("morec", freeze_text_tower=True)
    batch = collate(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch)
    assert torch.equal(model(**batch).logits, other(**batch).logits)


def test_a_frozen_text_tower_remembers_under_inference_mode(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = make("morec", freeze_text_tower=True)
    batch = collate(model)
    with torch.inference_mode(), counting_rows(model.text_tower) as counts:
        model(**batch)
        model(**batch)
    assert counts == [len(ITEMS)]
    model(**batch).loss.backward()  # what inference mode made has no part in a gradient
    assert model.item_projection.weight.grad.any()


def test_a_frozen_text_tower_remembers_so_many_sentences_the_last_asked_for(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MoRecForCTR, "max_remembered", 2)
    model = make("morec", freeze_text_tower=True)
    expected = make("morec")(**collate(model)).logits
    torch.testing.assert_close(model(**collate(model)).logits, expected, rtol=1e-5, atol=1e-6)  # four items at once
    assert len(model._remembered) == 2
    items = [next(row for row in ROWS if row["title"] == title) for title, _ in ITEMS]
    with counting_rows(model.text_tower) as counts:
        for asked, is_new in [(0, 1), (1, 1), (0, 0), (2, 1), (0, 0), (1, 1)]:
            before = len(counts)
            model(**collate(model, [items[asked]]))
            assert len(counts) - before == is_new, (asked, is_new)
    assert len(model._remembered) == 2


@pytest.mark.parametrize("tower", ["deepfm", "dcnv2"])
@pytest.mark.parametrize("list_fields", [[2], [0, 1], [1, 2, 3]], ids=str)
def test_morec_reads_the_users_lists_and_none_of_the_items(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], tower: str, list_fields: list[int]
) -> None:
    plain = make("morec", tabular_tower=tower)
    model = MoRecForCTR(MoRecConfig.from_dict(plain.config.to_dict() | {"list_fields": list_fields})).eval()
    model.load_state_dict(plain.state_dict())
    batch = collate(model)
    members = batch["feature_ids"][:, list_fields, None]
    logits = model(**batch, list_feature_ids=members).logits  # lists of one
    torch.testing.assert_close(logits, plain(**batch).logits)
    for n, field in enumerate(list_fields):
        changed = torch.cat([members, torch.full_like(members, -1)], dim=2)
        changed[:, n, 1] = 1
        differ = logits != model(**batch, list_feature_ids=changed).logits
        assert differ.any() == (field in USER_FIELDS)


# ---- P5


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def answers_by_hand(model: P5ForCTR, sentence: list[int], prompt: list[int]) -> list[float]:
    """Log likelihood of each answer: one teacher-forced pass for every token of it, no padding anywhere."""
    likelihoods = []
    tokens, start = torch.tensor([[*prompt, *sentence]]), model.text_tower.config.decoder_start_token_id
    for answer in model.config.answer_ids:
        total = 0.0
        for t, token in enumerate(answer):
            decoder_ids = torch.tensor([[start, *answer[:t]]])
            logits = model.text_tower(input_ids=tokens, decoder_input_ids=decoder_ids).logits[0, -1]
            total += log_softmax(logits.detach().double().numpy())[token]
        likelihoods.append(total)
    return likelihoods


def sentences_of(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    return [ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


@pytest.mark.parametrize(
    "answers",
    [[[5], [6]], [[5, 6], [7]], [[8], [5, 6, 9]], [[5, 6], [5, 7]], [[5, 6, 7], [5, 8, 7]], None],
    ids=lambda answers: "the tokenizer's" if answers is None else str(answers),
)
def test_p5s_loss_is_minus_the_log_likelihood_of_the_right_answer_and_its_logit_the_difference(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], answers: list[list[int]] | None
) -> None:
    model = make("p5")
    model.config.answer_ids = answers or model.config.answer_ids
    batch = collate(model)
    assert batch["attention_mask"].sum(1).unique().numel() > 2
    likelihoods = [answers_by_hand(model, words, model.config.prompt_ids[0]) for words in sentences_of(batch)]
    output = model(**batch)
    expected = [yes - no for yes, no in likelihoods]
    np.testing.assert_allclose(output.logits.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 1e-3
    losses = [-(yes if row["label"] else no) for (yes, no), row in zip(likelihoods, ROWS, strict=True)]
    assert output.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_p5_spells_prompts_and_answers_as_its_tokenizer_does(make: Callable[..., Any], tiny_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    model = make("p5")
    assert [tokenizer.decode(answer).strip() for answer in model.config.answer_ids] == ["yes", "no"]
    prompts = [tokenizer.decode(prompt).strip() for prompt in model.config.prompt_ids]
    assert len(set(prompts)) == len(prompts) == 4
    assert all("yes" in prompt and "no" in prompt for prompt in prompts)
    every = {token for prompt in [*model.config.prompt_ids, *model.config.answer_ids] for token in prompt}
    assert not every & {tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}


def test_p5s_scores_are_not_rounded_to_bf16(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = make("p5")
    model.config.answer_ids = [[5], [6]]
    head = model.text_tower.get_output_embeddings()
    assert head.weight is model.get_input_embeddings().weight
    hidden: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, args: hidden.append(args[0][:, 0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = model(**collate(model)).logits
    exact = hidden[0].double() @ (head.weight[5] - head.weight[6]).double()
    torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=1e-5)
    yes, no = (hidden[0].bfloat16() @ head.weight[[5, 6]].T.bfloat16()).float().T
    assert (yes - no - exact).abs().max() > 1e-3  # what rounding would do


def test_p5_draws_a_prompt_for_each_row_in_training_and_takes_the_first_in_scoring(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = make("p5")  # without dropout
    batch = collate(model)
    prompts = model.config.prompt_ids
    by_prompt = []
    for prompt in prompts:
        model.config.prompt_ids = [prompt]
        by_prompt.append(model(**batch).logits)
    model.config.prompt_ids = prompts
    each = torch.stack(by_prompt)  # (P, B)
    assert each.std(0).min() > 1e-3
    torch.testing.assert_close(model(**batch).logits, each[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    drawn = []
    for _ in range(20):
        distance = (model(**batch).logits - each).abs()
        assert distance.min(0).values.max() < 1e-4
        drawn.append(distance.argmin(0))
    counts = torch.stack(drawn).flatten().bincount(minlength=len(prompts))
    assert counts.min() > 15  # of 140; 35 expected, standard deviation 5
    assert any(len(row.unique()) > 1 for row in drawn)


def test_p5_needs_an_encoder_decoder(processors: dict[str, FlipProcessor], tiny_bert: Path) -> None:
    ids: dict[str, Any] = {"prompt_ids": [[5]], "answer_ids": [[5], [6]]}
    with pytest.raises(ValueError, match="P5 generates its answer, but text model 'bert' has no decoder; use a T5"):
        P5ForCTR(P5Config(text_config=BertConfig(), **ids))
    with pytest.raises(ValueError, match="P5 generates its answer, but text model 'gpt2' has no decoder; use a T5"):
        P5ForCTR(P5Config(text_config={"model_type": "gpt2"}, **ids))
    with pytest.raises(ValueError, match="P5 generates its answer, but text model 'bert' has no decoder; use a T5"):
        P5ForCTR.from_text_pretrained(tiny_bert, processors["ctr_bert"])


def test_p5_needs_prompts_and_answers() -> None:
    with pytest.raises(ValueError, match=r"prompt_ids and answer_ids are missing; P5ForCTR.from_text_pretrained"):
        P5ForCTR(P5Config(text_config=T5Config()))


def test_a_mask_token_that_p5s_tokenizer_lacked_gets_a_row_of_its_own(tiny_t5: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    old_size = len(tokenizer)
    tokenizer.add_special_tokens({"mask_token": "<a new mask>"})
    processor = FlipProcessor.fit(ROWS, FIELDS, tokenizer)
    model = P5ForCTR.from_text_pretrained(tiny_t5, processor).eval()
    table = model.get_input_embeddings().weight
    assert len(table) == model.config.text_config.vocab_size == old_size + 1
    assert model.text_tower.get_output_embeddings().weight.shape == table.shape
    batch = FlipDataCollator(processor, model.inputs)(processor.encode(ROWS))
    model.save_pretrained(tmp_path)
    loaded = copy.deepcopy(P5ForCTR.from_pretrained(tmp_path))
    assert torch.equal(loaded(**batch).logits, copy.deepcopy(model)(**batch).logits)


# ---- all three


@ALL_MODELS
def test_the_text_towers_start_from_the_pretrained_weights(
    make: Callable[..., Any], text_models: dict[str, Path], name: str
) -> None:
    model = make(name)
    source = (AutoModelForSeq2SeqLM if name == "p5" else AutoModel).from_pretrained(text_models[name]).state_dict()
    towers = {"ctr_bert": ["user_text_tower", "item_text_tower"]}.get(name, ["text_tower"])
    for tower in towers:
        weights = getattr(model, tower).state_dict()
        assert weights.keys() == {key for key in source if not key.startswith("pooler.")}
        assert [key for key in weights if not torch.equal(weights[key], source[key])] == []


@ALL_MODELS
def test_a_baseline_comes_back_to_the_bit(
    make: Callable[..., Any],
    collate: Callable[..., dict[str, torch.Tensor]],
    processors: dict[str, FlipProcessor],
    name: str,
    tmp_path: Path,
) -> None:
    model = make(name)
    model.save_pretrained(tmp_path)
    processors[name].save_pretrained(tmp_path)
    # Copied, because matrix products differ in the last bit where tensors lie in memory as they lay in the file: unaligned.
    loaded = copy.deepcopy(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    assert type(loaded) is MODELS[name]
    assert type(loaded.config) is MODELS[name].config_class
    assert not loaded.training
    processor = FlipProcessor.from_pretrained(tmp_path)
    batch = FlipDataCollator(processor, loaded.inputs, loaded.config.item_fields)(processor.encode(ROWS, "label"))
    expected = copy.deepcopy(model)(**collate(model))
    actual = loaded(**batch)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.loss, expected.loss)


@ALL_MODELS
def test_padding_changes_no_logit_of_a_baseline(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], name: str
) -> None:
    model = make(name)
    batch = collate(model)
    assert padded(batch).keys() == batch.keys()
    torch.testing.assert_close(model(**padded(batch)).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)


@ALL_MODELS
def test_one_row_and_rows_of_unknown_values_have_a_logit_and_no_loss_without_labels(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], name: str
) -> None:
    model = make(name)
    for rows in ([{**ROWS[3]}], UNKNOWN, UNKNOWN[:1]):
        for row in rows:
            row.pop("label", None)
        output = model(**collate(model, rows))
        assert output.logits.shape == (len(rows),)
        assert output.logits.isfinite().all()
        assert set(output) == {"logits"}
    model.train()(**collate(model, ROWS[:1])).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@ALL_MODELS
def test_a_baseline_scores_in_fp32_under_autocast(
    make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]], name: str
) -> None:
    model = make(name)
    batch = collate(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits, model(**batch).logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("name", "config_class"), [("ctr_bert", CTRBertConfig), ("morec", MoRecConfig)])
def test_a_model_of_users_and_items_must_be_told_the_items_fields(
    processors: dict[str, FlipProcessor], tiny_bert: Path, name: str, config_class: Any
) -> None:
    message = f"^{name} keeps users and items apart: name the item's fields with item_fields$"
    with pytest.raises(ValueError, match=message):
        MODELS[name].from_text_pretrained(tiny_bert, processors[name])
    with pytest.raises(ValueError, match=message):
        MODELS[name](config_class(num_fields=3))
    for wrong in ([0, 1, 2], [3], [-1]):
        with pytest.raises(ValueError, match=r"item_fields is .* it names positions among the 3 fields, not all"):
            config_class(num_fields=3, item_fields=wrong)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ctr_bert", {}), ("morec", {}), ("morec", {"freeze_text_tower": True}), ("p5", {})],
    ids=["ctr_bert", "morec", "morec, frozen", "p5"],
)
def test_a_few_steps_lower_the_loss_and_predictions_come_in_the_order_of_the_rows(
    make: Callable[..., Any], processors: dict[str, FlipProcessor], tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    table: dict[str, list[Any]] = {field: [] for field in [*FIELDS, "label"]}
    for u, i in zip(rng.integers(0, 3, 64), rng.integers(0, 4, 64), strict=True):
        values = [USERS[u][0], ITEMS[i][0], USERS[u][1], ITEMS[i][1], int(i < 2)]
        for field, value in zip(table, values, strict=True):
            table[field].append(value)
    processor = processors[name]
    data = processor.encode(table, "label")
    arguments = FlipTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_train_epochs=6,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=5,
        learning_rate=5e-3,
        text_learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
    )
    trainer = FlipTrainer(make(name, **settings), arguments, processor, data, data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.state.global_step == 24
    assert trainer.evaluate()["eval_loss"] < before - 0.05

    output = trainer.predict(data)
    assert output.label_ids.tolist() == table["label"]
    model = trainer.model.eval()
    collator = FlipDataCollator(processor, model.inputs, model.config.item_fields)
    with torch.no_grad():
        expected = model(**collator(data)).logits
    assert output.predictions.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(output.predictions), expected, rtol=1e-4, atol=1e-4)
    assert len(expected.unique()) > 5


def test_new_tokens_get_embeddings_in_both_towers_of_ctr_bert(make: Callable[..., Any]) -> None:
    model = make("ctr_bert")
    size = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size + 3)
    assert [t.get_input_embeddings().num_embeddings for t in model.fresh_text_towers()] == [size + 3] * 2


@pytest.mark.parametrize(
    ("config_class", "towers"), [(MoRecConfig, "both"), (CTRBertConfig, "tabular"), (P5Config, "both")]
)
def test_towers_of_a_baseline_are_given(config_class: Any, towers: str) -> None:
    with pytest.raises(ValueError, match=f"towers is '{towers}'; it must be one of {config_class().towers}"):
        config_class(towers=towers)


@pytest.mark.parametrize("name", MODELS)
def test_calibration_scales_and_shifts_the_logits_in_evaluation_mode_alone(
    name: str, make: Callable[..., Any], collate: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = make(name, dropout=0.0)
    batch = collate(model)
    plain = model(**batch).logits
    model.config.logit_scale, model.config.logit_shift = 0.5, -2.0
    torch.testing.assert_close(model(**batch).logits, 0.5 * plain - 2)
    set_seed(0)
    calibrated = model.train()(**batch).logits
    model.config.logit_scale, model.config.logit_shift = 1.0, 0.0
    set_seed(0)
    assert torch.equal(model(**batch).logits, calibrated)
