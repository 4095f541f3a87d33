"""Small things that many tests need: tokenizers of three families, rows, and a tiny text model. No network."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import shutil
import tempfile

# Before anything of Hugging Face is imported: no test may reach for the network, or wait for it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for processes that tests start; tiny tensors gain nothing from threads
os.environ["OMP_WAIT_POLICY"] = (
    "PASSIVE"  # threads that `accelerate launch` makes nonetheless do not spin while they wait
)
if "PYTEST_XDIST_WORKER" not in os.environ:  # encoded rows are kept there; workers share their parent's
    HF_HOME = tempfile.mkdtemp(prefix="flip-tests-")
    os.environ["HF_HOME"] = HF_HOME
    atexit.register(shutil.rmtree, HF_HOME, ignore_errors=True)

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import settings
from matplotlib.figure import Figure
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from data_scripts import demo
from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.publishing import CURVE_FILE
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.reliability import RELIABILITY_FILE

# The same examples in every run; `pytest --hypothesis-profile=default` draws new ones.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What has been imported by now stays; each collection of garbage, of which a run has several, would look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _quick_runs() -> Iterator[None]:
    """The pictures of a run are not rendered: it would take most of a tiny run's time, and tests of these pictures do it. Runs in
    processes of their own render them."""
    render = Figure.savefig

    def save(figure: Figure, path: Path, **options: Any) -> None:
        if Path(path).name in (CURVE_FILE, RELIABILITY_FILE):
            Path(path).write_bytes(b"\x89PNG")
        else:
            render(figure, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield


SENTENCES = [
    "gender is female. gender is male. user id is 1. title is unknown. genre is Action and Drama.",
    "title is Toy Story (1995). title is The Usual Suspects. title is Léon: The Professional.",
    "title is Amélie from Montmartre. title is Das Boot, über alles. title is Señorita 1,000.5!",
    "title is 千と千尋の神隠し. title is 東京物語. title is Сталкер и Солярис. title is it's a wonderful life.",
    "title is مدينة الله. title is 기생충. title is a.b-c/d & e? occupation is college student. age is 25.",
    "0 1 2 3 4 5 6 7 8 9 12 34 56 78 90 100 1995 2001 25.5 first second third other none null",
]
ALPHABET = [*map(chr, range(33, 127)), *"éèüöïñçß東京物語千と尋の神隠し"]


def _wordpiece() -> PreTrainedTokenizerFast:
    """BERT's: lowercase WordPiece, [CLS] … [SEP]. Words of up to eight letters whole, longer ones in pieces; made by hand, since
    a trained vocabulary is another one in each process, and with it every model that is trained here."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = [w for s in SENTENCES for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(s))]
    letters = sorted({normalizer.normalize_str(c) for c in ALPHABET} | set("".join(words)) - {""})
    pieces = [*letters, *(f"##{c}" for c in letters), *(w[:8] for w in words), *(f"##{w[8:]}" for w in words if w[8:])]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*special, *pieces]))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
    )


SENTENCEPIECE_SPECIAL = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "mask_token": "<mask>",
}
SENTENCEPIECE_ORDER = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _byte_level_bpe() -> PreTrainedTokenizerFast:
    """RoBERTa's: byte-level BPE, <s> … </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SENTENCEPIECE_ORDER,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", tokenizer.get_vocab()["</s>"]), ("<s>", tokenizer.get_vocab()["<s>"]), add_prefix_space=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **SENTENCEPIECE_SPECIAL)


def _unigram() -> PreTrainedTokenizerFast:
    """XLM-R's: Unigram over NFKC text in which "▁" stands for a space, <s> … </s>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(" {2,}", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=SENTENCEPIECE_ORDER,
        unk_token="<unk>",
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", tokenizer.get_vocab()["</s>"]),
        ("<s>", tokenizer.get_vocab()["<s>"]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **SENTENCEPIECE_SPECIAL)


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """A tokenizer of each family, by name: "wordpiece", "byte_level_bpe", "unigram"."""
    return {"wordpiece": _wordpiece(), "byte_level_bpe": _byte_level_bpe(), "unigram": _unigram()}


@pytest.fixture(scope="session")
def wordpiece(tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return tokenizers["wordpiece"]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Eight rows: a number, a word with a missing value, and words of several scripts."""
    return [
        {"user_id": 1, "gender": "female", "title": "Toy Story (1995)"},
        {"user_id": 1, "gender": "female", "title": "Amélie"},
        {"user_id": 2, "gender": "male", "title": "東京物語"},
        {"user_id": 2, "gender": "male", "title": "Toy Story (1995)"},
        {"user_id": 3, "gender": None, "title": "It's a Wonderful Life"},
        {"user_id": 1, "gender": "female", "title": "東京物語"},
        {"user_id": 4, "gender": "male", "title": "Сталкер"},
        {"user_id": 2, "gender": "male", "title": "Toy Story (1995)"},
    ]


@pytest.fixture(scope="session")
def tiny_text_model(tmp_path_factory: pytest.TempPathFactory, wordpiece: PreTrainedTokenizerFast) -> Path:
    """A folder that `AutoModel` and `AutoTokenizer` load: a random two-layer BERT and the WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_text_model")
    config = BertConfig(
        vocab_size=len(wordpiece),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=wordpiece.pad_token_id,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    wordpiece.save_pretrained(folder)
    return folder


# ---- a small click log that can be learned, and a recipe for it


@pytest.fixture(scope="session")
def text_model(tiny_text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny text model without dropout, so that one process and two compute the same."""
    folder = tmp_path_factory.mktemp("text_model")
    model = AutoModel.from_pretrained(tiny_text_model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_text_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clicks_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows; young users click comedies, the others dramas, nine times in ten."""
    rng = np.random.default_rng(0)
    age, genre = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    rows = pd.DataFrame(
        {
            "user_id": rng.integers(1, 12, 200),
            "age": np.array(["young", "old"])[age],
            "title": [f"Toy Story {i}" for i in rng.integers(0, 9, 200)],
            "genre": np.array(["Comedy", "Drama"])[genre],
            "clicked": np.where(rng.random(200) < 0.9, age == genre, age != genre).astype(int),
        }
    )
    path = tmp_path_factory.mktemp("clicks") / "clicks.csv"
    rows.to_csv(path, index=False)
    return path


@functools.cache
def _few_demo_rows() -> datasets.DatasetDict:
    return datasets.DatasetDict({name: split.select(range(600)) for name, split in demo.load().items()})


@pytest.fixture
def few_demo_rows(monkeypatch: pytest.MonkeyPatch) -> datasets.DatasetDict:
    """The demo, of which each split has 600 rows for all who load it in this process."""
    rows = _few_demo_rows()
    monkeypatch.setattr(demo, "load", lambda *_: rows)
    return rows


@pytest.fixture(scope="session")
def recipe_file(clicks_csv: Path, text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stage = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 5e-3, "logging_steps": 1}
    recipe = {
        "dataset_name": str(clicks_csv),
        "label_column": "clicked",
        "text_model_name_or_path": str(text_model),
        "output_dir": "unset",
        "model": {"embedding_size": 4, "hidden_sizes": [8], "projection_size": 8},
        "pretraining": stage | {"num_noise_features": 4},
        "finetuning": stage,
    }
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def recipe(recipe_file: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """`recipe("--seed", 1, …)` → the recipe with these arguments, writing to a fresh folder."""

    def make(*arguments: Any) -> Recipe:
        return parse_recipe([str(recipe_file), "--output_dir", str(tmp_path / "out"), *map(str, arguments)])

    return make
