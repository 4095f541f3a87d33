from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import BertConfig

from modeling_flip import FlipProcessor
from modeling_flip.training import manifest

ROWS = {"user": ["a", "b", "a", "c"], "price": [1.5, 2.5, None, 1.5], "label": [0, 1, 1, 0]}
FIELDS = [{"name": "user", "kind": "categorical"}, {"name": "price", "kind": "numeric"}]


@pytest.fixture(scope="module")
def processor() -> FlipProcessor:
    return FlipProcessor.fit(ROWS, FIELDS)


def inputs(processor: FlipProcessor, **change: list) -> dict:
    rows = processor.encode(ROWS | change, "label")
    return {"data": {"train": manifest.describe_rows(rows)}, "vocabulary": "v", "text_model": None}


# ---- what is written


def test_a_stage_is_complete_only_when_it_has_ended(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"abc")
    with manifest.recorded(tmp_path, "align", {"vocabulary": "v"}) as outputs:
        begun = manifest._read(manifest.path_of(tmp_path, "align"))
        outputs.figures["auc"] = 0.5
        outputs.files.append(tmp_path / "model.bin")
    assert begun == {"stage": "align", "complete": False, "inputs": {"vocabulary": "v"}}
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2, B.1
    outputs_written = {"figures": {"auc": 0.5}, "files": {"model.bin": {"size": 3, "sha256": sha256}}}
    ended = manifest._read(manifest.path_of(tmp_path, "align"))
    assert ended == begun | {"complete": True, "outputs": outputs_written}
    with pytest.raises(KeyboardInterrupt), manifest.recorded(tmp_path, "align", {}):
        raise KeyboardInterrupt
    assert manifest._read(manifest.path_of(tmp_path, "align")) == {
        "stage": "align",
        "complete": False,
        "inputs": {},
    }
    assert [path.name for path in (tmp_path / "manifests").iterdir()] == ["align.json"]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_deleted_while_the_run_goes_on_is_no_success(replaced: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def stage() -> None:
        with manifest.recorded(folder, "align", {"vocabulary": "v"}):
            shutil.rmtree(folder)
            if replaced:
                manifest.path_of(folder, "align").parent.mkdir(parents=True)
                manifest.path_of(folder, "align").write_text("{}")

    with pytest.raises(ValueError, match="run was deleted or replaced during this run"):
        stage()


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_what_a_stage_has_made_is_looked_at_again(damage: str, tmp_path: Path) -> None:
    manifest.check_outputs(tmp_path, "align")  # it was not recorded
    made = tmp_path / "model.safetensors"
    made.write_bytes(b"abc")
    with manifest.recorded(tmp_path, "align", {}) as outputs:
        outputs.files.append(made)
        manifest.check_outputs(tmp_path, "align")  # it is not complete
    manifest.check_outputs(tmp_path, "align")
    if damage == "cut":
        made.write_bytes(b"ab")
    else:
        made.unlink()
    with pytest.raises(ValueError, match=r"model.safetensors is (cut short or was changed|missing)"):
        manifest.check_outputs(tmp_path, "align")
    manifest.path_of(tmp_path, "align").write_text("{")
    with pytest.raises(ValueError, match=r"align.json is not a manifest"):
        manifest.check_outputs(tmp_path, "align")


# ---- what is compared


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": ["b", "a", "a", "c"]}, "split 'train' had other values"),
        ({"price": [1.5, 2.5, None, 2.5]}, "split 'train' had other values"),
        ({"label": [1, 0, 1, 0]}, "split 'train' had other labels"),
        # Words that training has not seen; both rows have the same ids.
        ({"user": ["a", "b", "a", "new"]}, "split 'train' had other values"),
        (
            {"user": ["a"], "price": [1.5], "label": [0]},
            r"split 'train' had 4 rows and now has 1; a run must finish with the inputs it began with.* "
            "choose another --output_dir",
        ),
    ],
)
def test_other_data_are_refused_by_name(change: dict, message: str, processor: FlipProcessor, tmp_path: Path) -> None:
    with manifest.recorded(tmp_path, "prepare", inputs(processor)):
        pass
    manifest.check_same_inputs(tmp_path, "prepare", inputs(processor))
    with pytest.raises(ValueError, match=message):
        manifest.check_same_inputs(tmp_path, "prepare", inputs(processor, **change))


def test_words_of_unseen_values_count(processor: FlipProcessor) -> None:
    one, other = (inputs(processor, user=["a", "b", "a", word]) for word in ("new", "old"))
    assert one != other
    assert one == inputs(processor, user=["a", "b", "a", "new"])


def test_another_vocabulary_or_text_model_is_refused(processor: FlipProcessor, tmp_path: Path) -> None:
    small, large = (
        manifest.describe_text_model("me/bert", BertConfig(num_hidden_layers=layers), None) for layers in (1, 2)
    )
    with manifest.recorded(tmp_path, "prepare", inputs(processor) | {"text_model": small}):
        pass
    elsewhere = manifest.describe_text_model("a/copy", BertConfig(num_hidden_layers=1), None)
    manifest.check_same_inputs(tmp_path, "prepare", inputs(processor) | {"text_model": elsewhere})
    with pytest.raises(ValueError, match="the text model 'me/bert' had another configuration"):
        manifest.check_same_inputs(tmp_path, "prepare", inputs(processor) | {"text_model": large})
    with pytest.raises(ValueError, match="the training rows had another vocabulary"):
        manifest.check_same_inputs(tmp_path, "prepare", inputs(processor) | {"text_model": small, "vocabulary": "w"})


def test_a_manifest_that_is_none_is_one_error(processor: FlipProcessor, tmp_path: Path) -> None:
    manifest.check_same_inputs(tmp_path, "prepare", inputs(processor))  # none yet: nothing to compare with
    manifest.path_of(tmp_path, "prepare").parent.mkdir()
    for text in ("", "[]", "{}", '{"inputs": {"data": {}}}'):
        manifest.path_of(tmp_path, "prepare").write_text(text)
        with pytest.raises(ValueError, match=r"prepare.json is not a manifest .* delete the folder"):
            manifest.check_same_inputs(tmp_path, "prepare", inputs(processor))


def test_a_manifest_with_a_flipped_bit_is_none(processor: FlipProcessor, tmp_path: Path) -> None:
    with manifest.recorded(tmp_path, "prepare", inputs(processor) | {"commit": "abc"}) as outputs:
        outputs.figures["seconds"] = 1.5
    path = manifest.path_of(tmp_path, "prepare")
    written = path.read_bytes()
    content = manifest._read(path)
    for place, bit in ((place, bit) for place in range(len(written)) for bit in (1, 4, 32)):
        path.write_bytes(written[:place] + bytes([written[place] ^ bit]) + written[place + 1 :])
        try:
            assert manifest._read(path) == content  # between its values
        except ValueError:
            assert not manifest.is_complete(tmp_path, "prepare")
    path.write_text(json.dumps({"sha256": "0"} | content))
    with pytest.raises(ValueError, match=r"is not a manifest .*its content was changed.* delete the folder"):
        manifest.check_same_inputs(tmp_path, "prepare", inputs(processor))
    path.write_text(json.dumps(content))  # of an older version
    manifest.check_same_inputs(tmp_path, "prepare", inputs(processor))


def test_texts_are_told_apart_wherever_they_lie_in_memory() -> None:
    texts = pa.array(["ab", "c", None, "", "東京"])
    assert manifest._bytes_of(texts[1:4]) == manifest._bytes_of(pa.array(["c", None, ""]))
    assert manifest._bytes_of(pa.array(["ab", "c"])) != manifest._bytes_of(pa.array(["a", "bc"]))
    assert manifest._bytes_of(pa.array([], pa.string())) == np.zeros(1, "<i8").tobytes()


# ---- commit


def git(folder: Path, *arguments: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *author, *arguments], check=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of modeling-flip with one module, whose package this is."""
    package = tmp_path / "modeling_flip"
    package.mkdir()
    (package / "stages.py").write_text("")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = modeling-flip\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(manifest, "PACKAGE", package)
    return tmp_path


def test_a_commit_is_uncertain_only_where_code_was_changed(checkout: Path) -> None:
    (checkout / "README.md").write_text("a table")
    commit = manifest.environment()["commit"]
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (checkout / "modeling_flip" / "stages.py").write_text("another model")
    assert manifest.environment()["commit"] == f"{commit} with uncommitted changes"


def test_the_commit_of_a_repository_around_the_package_is_not_its_own(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / ".venv" / "site-packages" / "modeling_flip"
    installed.mkdir(parents=True)
    monkeypatch.setattr(manifest, "PACKAGE", installed)
    assert manifest.commit() is None
    (checkout / "setup.cfg").write_text(
        "[metadata]\nname = my-shop\n"
    )  # a copy of the package in a project of one's own
    monkeypatch.setattr(manifest, "PACKAGE", checkout / "modeling_flip")
    assert manifest.commit() is None
