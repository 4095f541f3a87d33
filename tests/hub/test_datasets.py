"""Prepared datasets go to the Hub with their card, and come back through `load_dataset` and `train.py`: real processes."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_scripts import demo
from tests.data_scripts.test_movielens import RATINGS, files_1m, write_files
from tests.hub.card_rules import check_card
from tests.hub.loopback_hub import Failure, LoopbackHub

pytestmark = pytest.mark.slow
SPLITS = ["train", "validation", "test"]
RunPython = Callable[..., subprocess.CompletedProcess[str]]


def digest(rows: list[dict[str, str | int]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pushed(hub: LoopbackHub, run_forked: RunPython, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder whose dataset is at me/flip-demo."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    arguments = ["--output_dir", str(folder), "--push_to_hub", "me/flip-demo"]
    done = run_forked(f"from data_scripts import demo; demo.main({arguments})")
    assert done.returncode == 0, done.stderr
    assert f"pushed it to {hub.url}/datasets/me/flip-demo" in done.stdout
    return folder


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 rows through a tiny tabular tower."""
    recipe = {
        "dataset_name": "demo",
        "output_dir": "unset",
        "towers": "tabular",
        "max_train_samples": 160,
        "model": {"embedding_size": 4, "hidden_sizes": [8]},
        "finetuning": {"num_train_epochs": 1, "per_device_train_batch_size": 32, "learning_rate": 5e-3},
    }
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_data_and_card_are_one_commit_that_the_hub_finds_valid(hub: LoopbackHub, pushed: Path) -> None:
    names = ["README.md", *(f"{split}.parquet" for split in SPLITS)]
    files = hub.files("me/flip-demo", "dataset")
    assert {name: files[name] for name in files if name != ".gitattributes"} == {
        name: (pushed / name).read_bytes()
        for name in names  # and not text_model/, which lies beside them
    }
    assert (pushed / "text_model").is_dir()
    assert len(hub.commits("me/flip-demo", "dataset")) == 2  # the Hub's own first one, and ours
    assert not hub.repo("me/flip-demo", "dataset").private
    card = files["README.md"].decode()
    assert check_card(card, "dataset") == ([], [])
    assert 'load_dataset("me/flip-demo")' in card
    assert "--dataset_name me/flip-demo --label_column label --output_dir outputs/flip-demo\n" in card


def test_a_push_tries_again_where_the_hub_fails(hub: LoopbackHub, pushed: Path, run_forked: RunPython) -> None:
    failures: Iterator[Failure] = iter([503, "drop"])
    hub.fail = lambda method, path: next(failures, None) if "/commit/" in path else None
    code = f"""
from pathlib import Path
from data_scripts.publishing import push
from modeling_flip.training import hub
hub.PAUSES = (0.05, 0.05, 0.05)
push(Path({str(pushed)!r}), "me/flip-demo-again", private=False)
"""
    done = run_forked(code)
    assert done.returncode == 0, done.stderr
    assert next(failures, None) is None
    assert hub.files("me/flip-demo-again", "dataset")["train.parquet"] == (pushed / "train.parquet").read_bytes()


@pytest.mark.usefixtures("pushed")
def test_load_dataset_gives_the_rows_back_whole_and_streamed(run_forked: RunPython) -> None:
    code = """
import hashlib, json
from datasets import load_dataset

whole, stream = load_dataset("me/flip-demo"), load_dataset("me/flip-demo", streaming=True)
print(json.dumps({
    "whole": {s: hashlib.sha256(json.dumps(rows.to_list()).encode()).hexdigest() for s, rows in whole.items()},
    "first": {split: list(rows.take(5)) for split, rows in stream.items()},
}))
"""
    loaded, made = last_line(run_forked(code, token=None)), demo.load()  # public: no token is needed
    assert loaded == {
        "whole": {split: digest(rows.to_list()) for split, rows in made.items()},
        "first": {split: rows.select(range(5)).to_list() for split, rows in made.items()},
    }
    assert list(loaded["whole"]) == list(loaded["first"]) == SPLITS


@pytest.mark.usefixtures("pushed")
def test_train_takes_a_dataset_of_the_hub(run_forked: RunPython, recipe_file: Path, tmp_path: Path) -> None:
    arguments = ["--dataset_name", "me/flip-demo", "--label_column", "label", "--output_dir", str(tmp_path / "out")]
    done = run_forked(f"import train; train.main({[str(recipe_file), *arguments, '--use_cpu']})")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["rows"] == {"train": 160, "validation": 2_400, "test": 4_800}
    assert 0 < results["test_auc"] < 1


@pytest.mark.usefixtures("pushed")
def test_train_keeps_the_rows_and_says_in_one_line_what_it_cannot_load(
    hub: LoopbackHub, recipe_file: Path, run_python: RunPython
) -> None:
    code = f"""
import hashlib, json, os
from pathlib import Path
from huggingface_hub import HfApi
import train

def error(name):
    try:
        train.main([{str(recipe_file)!r}, "--dataset_name", name, "--output_dir", "out", "--use_cpu"])
    except SystemExit as e:
        return e.code

api = HfApi()
api.create_repo("me/cut-off", repo_type="dataset")
api.upload_file(path_or_fileobj=b"a,label", path_in_repo="train.csv", repo_id="me/cut-off", repo_type="dataset")
api.create_repo("me/private", repo_type="dataset", private=True)
said = {{"missing": error("me/nope"), "cut off": error("me/cut-off"), "empty": error("me/private")}}
del os.environ["HF_TOKEN"]
said["private"] = error("me/private")
os.environ["HF_TOKEN"] = "hf_wrong"
said["wrong token"] = error("me/private")
del os.environ["HF_TOKEN"]
for what, streaming in (("streamed", True), ("rows", False)):
    data = train.load_data(train.Recipe(dataset_name="me/flip-demo", output_dir="out", streaming=streaming))
    said[what] = {{
        s: hashlib.sha256(json.dumps(rows.to_table().to_pylist()).encode()).hexdigest() for s, rows in data.items()
    }}
    said[f"{{what}} on disk"] = len([*Path(os.environ["HF_HOME"]).rglob("*.arrow")])
print(json.dumps(said))
"""
    hub.fail = lambda method, path: "drop" if path.endswith(".csv") else None
    said = last_line(run_python(code))
    rows = {split: digest(rows.to_list()) for split, rows in demo.load().items()}
    assert said.pop("rows") == said.pop("streamed") == rows
    assert said.pop("streamed on disk") == 0 and said.pop("rows on disk") == 3
    nowhere = "doesn't exist on the Hub or cannot be accessed"
    reasons = {"missing": nowhere, "cut off": "disconnected", "empty": "doesn't contain any data files"}
    reasons |= {"private": nowhere, "wrong token": "Invalid credentials"}
    for case, reason in reasons.items():
        line = str(said[case])
        assert re.search(rf"^train.py: error: dataset 'me/.*' cannot be loaded \(.*{reason}", line), line
        assert "\n" not in line and "HF_TOKEN" in line


def test_movielens_is_pushed_to_private_datasets_only(hub: LoopbackHub, run_forked: RunPython, tmp_path: Path) -> None:
    raw = write_files(tmp_path / "raw", files_1m(RATINGS * 3))
    code = f"""
import json, os
from huggingface_hub import HfApi
from data_scripts import movielens

def push(name):
    try:
        movielens.main(["--dataset_name", "movielens-1m", "--raw_dir", {str(raw)!r}, "--output_dir",
            {str(tmp_path / "out")!r}, "--push_to_hub", name])
    except SystemExit as e:
        return e.code

HfApi().create_repo("me/ml-public", repo_type="dataset")
said = {{"public": push("me/ml-public"), "stranger's": push("you/ml"), "new": push("me/ml"), "again": push("me/ml")}}
token = os.environ.pop("HF_TOKEN")
said["no token"] = push("me/ml")
print(json.dumps(said))
"""
    said = last_line(run_forked(code))
    assert (said["new"], said["again"]) == (None, None)
    assert "error: 'me/ml-public' exists and is public, so nothing was uploaded" in str(said["public"])
    assert "cannot push to 'you/ml' (You don't have the rights" in str(said["stranger's"])
    assert "cannot push to 'me/ml' (Invalid username or password.)" in str(said["no token"])
    for case in ("public", "stranger's", "no token"):
        assert "\n" not in str(said[case]) and "run the same command again" in str(said[case])
    assert not {name for name in hub.files("me/ml-public", "dataset") if name != ".gitattributes"}
    assert hub.repo("me/ml", "dataset").private
    assert len(hub.commits("me/ml", "dataset")) == 2  # the second push of the same files adds none
    files = hub.files("me/ml", "dataset")
    assert check_card(files["README.md"].decode(), "dataset") == ([], [])
    assert files["train.parquet"] == (tmp_path / "out" / "train.parquet").read_bytes()
