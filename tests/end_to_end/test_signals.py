"""A number and a list each carry signal that only they hold: every model learns both, and none finds what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoTokenizer, BertConfig, BertModel

from data_scripts.text_model import write as write_text_model
from modeling_flip import (
    TABULAR_TOWERS,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    FlipTrainer,
    FlipTrainingArguments,
)
from modeling_flip.field_inference import infer_fields

TRAIN, TEST = 4_000, 2_000
TAGS = np.array(["eco", "gift", "kids", "new", "old", "sale", "soft", "warm"])
TAG_EFFECTS = np.array([1.5, -1.5, 1.0, -1.0, 1.2, -1.2, 0.8, -0.8])
LEARNED = 0.8  # of what the generator knows beyond a coin
MODEL: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [32, 16], "projection_size": 16}


def price_effect(price: np.ndarray) -> np.ndarray:
    """Middling prices sell, low and high ones do not: a straight line through them is flat."""
    return np.where(np.abs(price - 20) < 10, 1.5, -1.5)


def make_rows() -> tuple[dict[str, list[Any]], np.ndarray, dict[str, np.ndarray]]:
    """All rows, their clicks, and the log-odds as those who know the generator, or one part of it, see them."""
    rng = np.random.default_rng(0)
    price = rng.integers(0, 41, TRAIN + TEST)
    has_tag = rng.random((len(price), len(TAGS))) < 0.3
    rows = {
        "user": [f"u{i}" for i in rng.integers(0, 20, len(price))],
        "shop": [f"s{i}" for i in rng.integers(0, 5, len(price))],
        "price": price.tolist(),
        "tags": [TAGS[has].tolist() for has in has_tag],
    }
    knows = {"price": price_effect(price), "tags": has_tag @ TAG_EFFECTS}
    knows["all"] = knows["price"] + knows["tags"]
    return rows, (rng.random(len(price)) < 1 / (1 + np.exp(-knows["all"]))).astype(np.float32), knows


ROWS, CLICKS, KNOWS = make_rows()
BEST = {name: roc_auc_score(CLICKS[TRAIN:], logit[TRAIN:]) for name, logit in KNOWS.items()}
ENOUGH = 0.5 + LEARNED * (BEST["all"] - 0.5)


class Bench:
    """A processor of some of the columns, a tiny text model for it, and the encoded rows."""

    def __init__(self, folder: Path, columns: list[str]):
        self.folder = folder
        train, test = ({name: ROWS[name][part] for name in columns} for part in (slice(TRAIN), slice(TRAIN, None)))
        schema = [report.field for report in infer_fields(train, labels=CLICKS[:TRAIN])]
        text_model = write_text_model(folder / "text_model", FlipProcessor.fit(train, schema).texts(train), 64)
        tokenizer = AutoTokenizer.from_pretrained(text_model)
        size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64}
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(tokenizer), **size, **still)).save_pretrained(text_model)
        self.text_model = text_model
        self.processor = FlipProcessor.fit(train, schema, tokenizer)
        self.train = self.processor.encode(train, CLICKS[:TRAIN])
        self.test = self.processor.encode(test, CLICKS[TRAIN:])

    def trained(self, model: Any, **settings: Any) -> FlipTrainer:
        settings = {"num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 128} | settings
        quiet: dict[str, Any] = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        arguments = FlipTrainingArguments(output_dir=str(self.folder / "run"), use_cpu=True, **settings, **quiet)
        trainer = FlipTrainer(model, arguments, self.processor, self.train, self.test)
        trainer.train()
        return trainer

    def from_scratch(self, towers: str, tabular_tower: str = "dcnv2") -> Any:
        torch.manual_seed(0)
        return FlipForCTR.from_text_pretrained(
            self.text_model, self.processor, towers=towers, tabular_tower=tabular_tower, **MODEL
        )

    def auc(self, model: Any, **settings: Any) -> float:
        return self.trained(model, **settings).predict(self.test).metrics["test_auc"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("signals"), list(ROWS))


@pytest.fixture(scope="module")
def pretrained(bench: Bench) -> Path:
    torch.manual_seed(0)
    model = FlipForPreTraining.from_text_pretrained(bench.text_model, bench.processor, **MODEL)
    trainer = bench.trained(model, num_noise_features=8)
    trainer.save_model(str(bench.folder / "pretrained"))
    return bench.folder / "pretrained"


def test_fields_are_what_they_are_taken_for_and_neither_is_enough(bench: Bench) -> None:
    assert {field.name: field.kind for field in bench.processor.schema} == {
        "user": "categorical",
        "shop": "categorical",
        "price": "numeric",
        "tags": "list",
    }
    assert max(BEST["price"], BEST["tags"]) + 0.03 < ENOUGH < BEST["all"]
    straight = roc_auc_score(CLICKS[TRAIN:], ROWS["price"][TRAIN:])
    assert abs(straight - 0.5) < 0.04


@pytest.mark.parametrize("tabular_tower", list(TABULAR_TOWERS))
def test_each_tabular_tower_learns_both(tabular_tower: str, bench: Bench) -> None:
    assert bench.auc(bench.from_scratch("tabular", tabular_tower), num_train_epochs=6) > ENOUGH


@pytest.mark.parametrize("towers", ["both", "tabular", "text"])
def test_flip_and_each_of_its_towers_learn_both_from_a_pretraining_checkpoint(
    towers: str, bench: Bench, pretrained: Path
) -> None:
    torch.manual_seed(0)  # of the click heads
    assert bench.auc(FlipForCTR.from_pretrained(pretrained, towers=towers), num_train_epochs=8) > ENOUGH


@pytest.mark.parametrize("towers", ["tabular", "text"])
def test_without_the_two_fields_nothing_is_learned(towers: str, tmp_path: Path) -> None:
    blind = Bench(tmp_path, ["user", "shop"])
    assert abs(blind.auc(blind.from_scratch(towers), num_train_epochs=1) - 0.5) < 0.05
