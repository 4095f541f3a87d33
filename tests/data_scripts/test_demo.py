"""The generated demo: what it promises about its rows, its signal and its text model."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import DatasetCard
from transformers import AutoModel, AutoTokenizer

from data_scripts import demo

REPOSITORY = Path(__file__).resolve().parents[2]
FIELDS = ["user_id", "age", "occupation", "interest", "item_id", "title", "category"]


@pytest.fixture(scope="module")
def dataset() -> datasets.DatasetDict:
    return demo.load()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command line writes, in a process of its own."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, str(REPOSITORY / "data_scripts" / "demo.py"), "--output_dir", "out"]
    # Another order of hashes than in this process, so that a file that depends on it shows.
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return folder / "out"


def items(dataset: datasets.DatasetDict, *splits: str) -> list[str]:
    return [item for split in splits for item in dataset[split]["item_id"]]


def test_sizes_and_types(dataset: datasets.DatasetDict) -> None:
    assert dataset.num_rows == {"train": 16_800, "validation": 2_400, "test": 4_800}
    for rows in dataset.values():
        assert {name: feature.dtype for name, feature in rows.features.items()} == {
            **dict.fromkeys(FIELDS, "string"),
            "label": "int64",
        }
        assert 0.35 < np.mean(rows["label"][:]) < 0.5


def test_same_seed_same_rows(dataset: datasets.DatasetDict) -> None:
    again, other = demo.load(), demo.load(1)
    assert all(again[split].to_list() == rows.to_list() for split, rows in dataset.items())
    assert other["train"].to_list() != dataset["train"].to_list()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_items_are_new_and_users_are_not(seed: int) -> None:
    dataset = demo.load(seed)
    earlier = set(items(dataset, "train", "validation"))
    unseen = np.mean([item not in earlier for item in items(dataset, "test")])
    assert 0.15 < unseen < 0.3
    assert set(dataset["test"]["user_id"]) <= set(dataset["train"]["user_id"])


def test_items_come_out_in_time_order(dataset: datasets.DatasetDict) -> None:
    # Items are numbered by release, so the newest one shown so far never gets older, and old ones leave.
    shown = np.array(items(dataset, "train", "validation", "test"), dtype=int)
    tenths = np.split(shown, 10)
    assert all(np.diff([part.max() for part in tenths]) > 0)
    assert tenths[-1].min() > tenths[0].max()


def test_a_user_and_an_item_have_one_text_each_and_titles_differ(dataset: datasets.DatasetDict) -> None:
    rows = [row for split in dataset.values() for row in split]
    for key, texts in (("user_id", ["age", "occupation", "interest"]), ("item_id", ["title", "category"])):
        assert len({row[key] for row in rows}) == len({tuple(row[name] for name in (key, *texts)) for row in rows})
    assert len({row["title"] for row in rows}) == len({row["item_id"] for row in rows})


def test_label_is_no_function_of_the_fields(dataset: datasets.DatasetDict) -> None:
    labels: dict[tuple[str, ...], set[int]] = {}
    for row in dataset["train"]:
        labels.setdefault(tuple(row[name] for name in FIELDS), set()).add(row["label"])
    assert any(len(seen) == 2 for seen in labels.values())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_words_carry_unseen_items_and_ids_carry_seen_ones(seed: int) -> None:
    auc = demo.oracle_auc(seed)
    assert 0.82 < auc["bayes"] < 0.89
    assert auc["words_unseen"] > auc["ids_unseen"] + 0.1
    assert auc["ids_seen"] > auc["words_seen"] + 0.07
    assert auc["ids_seen"] == auc["bayes_seen"]
    assert auc["bayes"] > max(auc["words"], auc["ids"]) + 0.02


def test_docstring_tells_the_figures() -> None:
    auc = demo.oracle_auc()
    for oracle, name in (("bayes", "everything"), ("words", "the words"), ("ids", "the IDs")):
        figures = "  ".join(f"{auc[oracle + part]:.3f}" for part in ("", "_seen", "_unseen"))
        assert f"{name:12} {figures}" in str(demo.__doc__)


def test_auc_by_hand() -> None:
    assert demo._auc(np.array([1, 0, 1, 0]), np.array([3.0, 1.0, 2.0, 2.0])) == (1 + 1 + 1 + 0.5) / 4


def test_written_folder_reloads(dataset: datasets.DatasetDict, written: Path, tmp_path: Path) -> None:
    reloaded = datasets.load_dataset(str(written), cache_dir=str(tmp_path))
    assert {split: rows.to_list() for split, rows in reloaded.items()} == {
        split: rows.to_list() for split, rows in dataset.items()
    }
    card = DatasetCard.load(written / "README.md")
    assert (card.data.license, card.data.size_categories) == ("apache-2.0", ["10K<n<100K"])
    assert f"| everything | {demo.oracle_auc()['bayes']:.3f} |" in card.text
    assert "| train | 16,800 |" in card.text and "| title | string | 397 | Quiet Stadium Orbit |" in card.text
    assert 'load_dataset("out")' in card.text


def test_private_without_a_push_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--output_dir", str(tmp_path / "out"), "--private"])
    assert "--private needs --push_to_hub OWNER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("private", [False, True])
def test_push_is_as_private_as_was_asked_for(private: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []
    monkeypatch.setattr(demo, "push", lambda *where, private: pushed.append((*where, private)))
    monkeypatch.setattr(demo, "text_model", lambda *_: None)
    arguments = ["--output_dir", str(tmp_path), "--push_to_hub", "me/flip-demo"]
    demo.main([*arguments, "--private"] if private else arguments)
    assert pushed == [(tmp_path, "me/flip-demo", private)]
    assert 'load_dataset("me/flip-demo")' in (tmp_path / "README.md").read_text()


def test_text_model_has_the_same_bytes_in_every_process(
    dataset: datasets.DatasetDict, written: Path, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    folder = demo.text_model(tmp_path / "text_model", dataset)
    assert torch.equal(torch.random.get_rng_state(), state)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert files == {file.name: file.read_bytes() for file in (written / "text_model").iterdir()}


def test_text_model_reads_the_demo(dataset: datasets.DatasetDict, written: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(written / "text_model")
    model = AutoModel.from_pretrained(written / "text_model").eval()
    row = dataset["test"][0]
    sentence = " ".join(f"{name} is {row[name]}." for name in FIELDS)
    batch = tokenizer([sentence, "a Zebra's xylophone, 1999?"], padding=True, return_tensors="pt")
    assert tokenizer.unk_token_id not in batch["input_ids"]
    assert tokenizer.model_max_length == 128 >= batch["input_ids"].shape[1]
    assert tokenizer.tokenize("Dazzling Detective") == ["dazzling", "detective"]
    assert tokenizer.mask_token_id == 4
    assert model(**batch).last_hidden_state.shape == (2, batch["input_ids"].shape[1], 64)
