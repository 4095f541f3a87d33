"""The loopback Hub answers the real clients as the Hub does: what the other tests of this folder stand on."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub.card_rules import check_card
from tests.hub.loopback_hub import Failure, LoopbackHub

Run = Callable[..., subprocess.CompletedProcess[str]]
CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-classification
tags: [click-through-rate]
datasets: [me/clicks]
base_model: google-bert/bert-base-uncased
model-index:
- name: FLIP
  results:
  - task: {type: tabular-classification}
    dataset: {type: me/clicks, name: Clicks, split: test}
    metrics: [{type: auc, value: 0.81}]
---
# FLIP

| metric | value |
| --- | --- |
| AUC | 0.81 |

![curve](images/curve.png)
"""


def values(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


MODELS = """
import json, os, sys
from pathlib import Path
from huggingface_hub import (CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, HfFileSystem,
    ModelCard, hf_hub_download, snapshot_download)
from huggingface_hub.errors import (EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError,
    RepositoryNotFoundError, RevisionNotFoundError)

CARD = os.environ["CARD"]
api, out, id = HfApi(), {}, "me/flip"

def refusal(do, *args, **kwargs):
    try:
        do(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)
    return "no error", None

folder = Path("model")
(folder / "images").mkdir(parents=True)
(folder / "README.md").write_text(CARD)
(folder / "config.json").write_text(json.dumps({"model_type": "flip", "auto_map": {"AutoModel": "m.M"}}))
(folder / "model.safetensors").write_bytes(os.urandom(300_000))
(folder / "images" / "curve.png").write_bytes(os.urandom(1000))
(folder / "empty.txt").write_bytes(b"")
local = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

out["user"] = api.whoami()["name"]
out["url"] = api.create_repo("flip", private=True)
out["again"] = refusal(api.create_repo, id), api.create_repo(id, exist_ok=True)
out["elsewhere"] = refusal(api.create_repo, "somebody/flip")
first = api.upload_folder(repo_id=id, folder_path=folder, commit_message="First model").oid
out["first"] = first
unchanged = api.upload_folder(repo_id=id, folder_path=folder, commit_message="Nothing new").oid
out["unchanged"] = unchanged == first

def read(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}

got = read(snapshot_download(id))
out["same bytes"] = {name: got.get(name) == data for name, data in local.items()}
out["other files"] = sorted(got.keys() - local.keys())

out["no token"] = refusal(api.model_info, id, token=False), refusal(hf_hub_download, id, "config.json", token=False,
    cache_dir="empty")
out["wrong token"] = refusal(api.model_info, id, token="hf_wrong")[1]
out["missing"] = (refusal(api.model_info, "me/none"), refusal(hf_hub_download, id, "none.txt"),
    refusal(hf_hub_download, id, "config.json", revision="none"), refusal(hf_hub_download, "gpt2", "config.json"))
out["exists"] = api.file_exists(id, "config.json"), api.file_exists(id, "none"), api.repo_exists("me/none")

api.create_branch(id, branch="old/one", revision=first)
api.create_tag(id, tag="v1", revision=first)
second = api.upload_file(repo_id=id, path_or_fileobj=b"{}", path_in_repo="config.json", commit_message="Empty it").oid
out["revisions"] = [Path(hf_hub_download(id, "config.json", revision=r)).read_text()
    for r in (first, "old/one", "v1", "main", second)]
out["parent"] = refusal(api.create_commit, id, [CommitOperationAdd("a", b"a")], commit_message="x", parent_commit=first)
out["pull request"] = refusal(api.upload_file, repo_id=id, path_or_fileobj=b"a", path_in_repo="a", create_pr=True)
out["refs"] = [r.name for r in api.list_repo_refs(id).branches + api.list_repo_refs(id).tags]
api.delete_branch(id, branch="old/one")

api.create_commit(id, [CommitOperationDelete("images/"), CommitOperationAdd("code/m.py", b"x = 1"),
    CommitOperationCopy("model.safetensors", "copy/model.safetensors")], commit_message="Copy and delete")
out["not there"] = refusal(api.delete_file, "none.txt", id)
out["tree"] = {e.path: e.last_commit.title for e in api.list_repo_tree(id, recursive=True, expand=True)}
out["paths"] = [p.path for p in api.get_paths_info(id, ["config.json", "copy", "none"])]
out["commits"] = [c.title for c in api.list_repo_commits(id)]
info = api.model_info(id, files_metadata=True)
out["info"] = [info.sha == api.list_repo_commits(id)[0].commit_id, info.private, info.pipeline_tag, info.library_name,
    info.card_data.license, sorted(info.tags), {s.rfilename: bool(s.lfs) for s in info.siblings}]

fs = HfFileSystem()
out["fs"] = sorted(fs.glob(f"{id}/**/*.safetensors"))
with fs.open(f"{id}/model.safetensors") as file:
    file.seek(1000)
    out["range"] = file.read(100) == local["model.safetensors"][1000:1100]
with fs.open(f"{id}/notes/new.txt", "w") as file:
    file.write("written")
out["written"] = fs.read_text(f"{id}@main/notes/new.txt")

api.update_repo_settings(id, private=False)
out["public"] = api.model_info(id, token=False).private, refusal(api.upload_file, repo_id=id, path_or_fileobj=b"a",
    path_in_repo="a", token=False)
out["list"] = [m.id for m in api.list_models(author="me")], [m.id for m in api.list_models(author="you")]
api.create_repo("me/gone")
api.delete_repo("me/gone")
out["gone"] = api.repo_exists("me/gone")

card = ModelCard(CARD)
card.validate()
card.push_to_hub(id, commit_message="Card")
out["bad card"] = []
for old, new in (("apache-2.0", "apache-3"), ("google-bert/bert-base-uncased", "models/text/bert")):
    try:
        ModelCard(CARD.replace(old, new)).validate()
    except ValueError as error:
        out["bad card"] += [message["message"] for message in json.loads(str(error))["errors"]]
try:
    api.upload_file(repo_id=id, path_or_fileobj=CARD.replace("value:", "valeu:").encode(), path_in_repo="README.md")
except ValueError as error:
    out["bad upload"] = str(error)
print(json.dumps(out))
"""


def test_models_come_back_as_they_went(hub: LoopbackHub, run_python: Run) -> None:
    out = values(run_python(MODELS, extra_env={"CARD": CARD}))
    assert out["user"] == "me"
    assert out["url"] == f"{hub.url}/me/flip"
    assert out["again"] == [["HfHubHTTPError", 409], f"{hub.url}/me/flip"]
    assert out["elsewhere"] == ["HfHubHTTPError", 403]
    assert out["unchanged"]
    assert out["same bytes"] == dict.fromkeys(
        ["README.md", "config.json", "model.safetensors", "images/curve.png", "empty.txt"], True
    )
    assert out["other files"] == [".gitattributes"]

    assert out["no token"] == [["RepositoryNotFoundError", 401], ["RepositoryNotFoundError", 401]]
    assert out["wrong token"] == 401
    assert out["missing"] == [
        ["RepositoryNotFoundError", 404],
        ["RemoteEntryNotFoundError", 404],
        ["RevisionNotFoundError", 404],
        ["RepositoryNotFoundError", 404],
    ]
    assert out["exists"] == [True, False, False]

    config = json.dumps({"model_type": "flip", "auto_map": {"AutoModel": "m.M"}})
    assert out["revisions"] == [config, config, config, "{}", "{}"]
    assert out["parent"] == ["HfHubHTTPError", 412]
    assert out["pull request"] == ["BadRequestError", 400]
    assert out["refs"] == ["main", "old/one", "v1"]
    assert out["not there"] == ["RemoteEntryNotFoundError", 404]
    assert out["tree"] == {
        ".gitattributes": "initial commit",
        "README.md": "First model",
        "code": "Copy and delete",
        "code/m.py": "Copy and delete",
        "config.json": "Empty it",
        "copy": "Copy and delete",
        "copy/model.safetensors": "Copy and delete",
        "empty.txt": "First model",
        "model.safetensors": "First model",
    }
    assert out["paths"] == ["config.json", "copy"]
    assert out["commits"] == ["Copy and delete", "Empty it", "First model", "initial commit"]
    *facts, tags, siblings = out["info"]
    assert facts == [True, True, "text-classification", "transformers", "apache-2.0"]
    assert {"license:apache-2.0", "dataset:me/clicks", "click-through-rate", "transformers"} <= set(tags)
    assert [path for path, large in siblings.items() if large] == ["copy/model.safetensors", "model.safetensors"]
    assert out["fs"] == ["me/flip/copy/model.safetensors", "me/flip/model.safetensors"]
    assert out["range"] and out["written"] == "written"
    assert out["public"] == [False, ["RepositoryNotFoundError", 401]]
    assert out["list"] == [["me/flip"], []]
    assert not out["gone"]

    assert out["bad card"] == [
        "\"license\" must be an identifier of https://huggingface.co/docs/hub/repositories-licenses, not 'apache-3'",
        "\"base_model\" must be the id of a repository, `name` or `owner/name`, not 'models/text/bert'",
    ]
    assert '"model-index[0].results[0].metrics[0].value" is required' in out["bad upload"]
    # And as the test sees it: nothing that was refused has left a trace.
    assert hub.commits("me/flip")[:2] == ["Card", "Upload notes/new.txt with huggingface_hub"]
    assert hub.files("me/flip", revision="v1")["README.md"].decode() == CARD
    assert not hub.repo("me/flip").private
    assert ("POST", "/api/models/me/flip/commit/main") in hub.requests

    page = urllib.request.urlopen(f"{hub.url}/me/flip").read().decode()
    assert "<td>0.81</td>" in page
    assert 'src="/me/flip/resolve/main/images/curve.png"' in page
    assert "Copy and delete" in page and "license: apache-2.0" in page


FAILURES = """
import json, time
from huggingface_hub import HfApi, hf_hub_download
api, out, id = HfApi(), {}, "me/failures"
api.create_repo(id)

def upload(name, data=b"a"):
    try:
        return api.upload_file(repo_id=id, path_or_fileobj=data, path_in_repo=name, commit_message=name).commit_message
    except Exception as error:
        return type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)

out["500"] = upload("a"), upload("b")
out["503"] = upload("c")  # this one the client asks again
out["drop"] = upload("d"), upload("e")
out["drop large"] = upload("f.bin", b"x" * 500_000)  # asked again as well
out["truncate"] = open(hf_hub_download(id, "f.bin"), "rb").read() == b"x" * 500_000  # resumed with a Range
start = time.perf_counter()
api.whoami()
out["slow"] = time.perf_counter() - start
print(json.dumps(out))
"""


def test_failures_are_answered_when_told(hub: LoopbackHub, run_python: Run) -> None:
    faults: dict[str, dict[int, Failure]] = {  # of which requests the how manieth fails, and how
        r"POST .*/commit/": {1: 500, 4: "drop"},
        r"/preupload/": {3: 503},
        r"PUT /_lfs/": {1: "drop"},
        r"GET .*f\.bin": {1: "truncate"},
        r"whoami": {1: 0.5},
    }
    asked: Counter[str] = Counter()

    def fail(method: str, path: str) -> Failure:
        pattern = next((pattern for pattern in faults if re.search(pattern, f"{method} {path}")), "")
        asked[pattern] += 1
        return faults.get(pattern, {}).get(asked[pattern])

    hub.fail = fail
    out = values(run_python(FAILURES))
    assert out["500"] == [["HfHubHTTPError", 500], "b"]
    assert out["503"] == "c"
    assert out["drop"] == [["RemoteProtocolError", None], "e"]
    assert out["drop large"] == "f.bin" and out["truncate"]
    assert asked[r"PUT /_lfs/"] == asked[r"GET .*f\.bin"] == 2  # the rest was asked for again
    assert 0.5 <= out["slow"] < 5
    assert hub.requests[-1] == ("GET", "/api/whoami-v2")
    assert hub.commits("me/failures") == ["f.bin", "e", "c", "b", "initial commit"]

    hub.fail = lambda method, path: 503 if path.startswith("/api/models/me") else None
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{hub.url}/api/models/me/failures")
    hub.fail = None
    assert json.load(urllib.request.urlopen(f"{hub.url}/api/models/me/failures"))["id"] == "me/failures"


DATASETS = """
import json
from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import DatasetCard, HfApi
out, id = {}, "me/clicks"
rows = [{"user_id": i % 7, "title": f"Amélie {i}", "clicked": i % 2} for i in range(200)]
splits = DatasetDict({"train": Dataset.from_list(rows[:150]), "test": Dataset.from_list(rows[150:])})
splits.push_to_hub(id, private=True)
out["loaded"] = {name: list(split) == list(splits[name]) for name, split in load_dataset(id).items()}
out["streamed"] = list(load_dataset(id, split="train", streaming=True)) == rows[:150]
splits["test"].push_to_hub(id, "other", split="test")
out["configs"] = load_dataset(id, "other", split="test").num_rows
card = DatasetCard.load(id)
card.text = "# Clicks"
card.data.license = "mit"
card.validate()
card.push_to_hub(id)
out["again"] = load_dataset(id, split="test").num_rows
HfApi().create_repo("me/csv", repo_type="dataset")
HfApi().upload_file(repo_id="me/csv", repo_type="dataset", path_in_repo="train.csv", path_or_fileobj=b"a,b\\n1,2\\n")
out["csv"] = list(load_dataset("me/csv", split="train"))
try:
    load_dataset("me/none")
except Exception as error:
    out["missing"] = type(error).__name__
print(json.dumps(out))
"""


def test_datasets_come_back_as_they_went(hub: LoopbackHub, run_python: Run) -> None:
    out = values(run_python(DATASETS))
    assert out["loaded"] == {"train": True, "test": True}
    assert out["streamed"]
    assert (out["configs"], out["again"], out["csv"]) == (50, 50, [{"a": 1, "b": 2}])
    assert out["missing"] == "DatasetNotFoundError"
    assert hub.repo("me/clicks", "dataset").private
    assert "data/train-00000-of-00001.parquet" in hub.files("me/clicks", "dataset")


TRANSFORMERS = """
import json, sys
from transformers import AutoModel, AutoTokenizer
model, tokenizer = AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
model.push_to_hub("bert", private=True)
tokenizer.push_to_hub("bert")
again = AutoModel.from_pretrained("me/bert")
same = all((again.state_dict()[name] == value).all() for name, value in model.state_dict().items())
ids = AutoTokenizer.from_pretrained("me/bert")("Toy Story").input_ids == tokenizer("Toy Story").input_ids
try:
    AutoModel.from_pretrained("no-such-model")
except OSError as error:
    print(json.dumps({"same": bool(same), "ids": ids, "missing": str(error)}))
"""


def test_transformers_models_come_back_as_they_went(run_python: Run, tiny_text_model: Path) -> None:
    code = TRANSFORMERS.replace("sys.argv[1]", repr(str(tiny_text_model)))
    out = values(run_python(code))
    assert out["same"] and out["ids"]
    assert "is not a local folder and is not a valid model identifier" in out["missing"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("language: en", "language: english", '"language" must be an ISO 639 code'),
        ("language: en", "language: en\nlanguage: de", "duplicated key 'language'"),
        ("tags: [click-through-rate]", "tags: click-through-rate", '"tags" must be a list'),
        ("[me/clicks]", "[data/clicks.csv]", '"datasets[0]" must be the id of a repository'),
        ("[me/clicks]", "[null]", '"datasets[0]" must be the id of a repository'),
        ("base_model: google-bert/bert-base-uncased", "base_model: ./bert", '"base_model" must be the id'),
        ("library_name: transformers", "library_name: 3", '"library_name" must be a non-empty string'),
        ("- name: FLIP\n  results:", "- results:", '"model-index[0].name" is required'),
        ("type: tabular-classification", "name: CTR", '"model-index[0].results[0].task.type" is required'),
        ("name: Clicks,", "", '"model-index[0].results[0].dataset.name" is required'),
        ("value: 0.81", "value: .nan", '"model-index[0].results[0].metrics[0].value" must be a finite number'),
        ("[{type: auc, value: 0.81}]", "{auc: 0.81}", '"model-index[0].results[0].metrics" must be a list'),
        ("license: apache-2.0", "license: [", "the front matter is not YAML"),
        ("license: apache-2.0", "- license", "the front matter is not YAML"),
    ],
)
def test_the_fault_of_a_card_is_named(old: str, new: str, message: str) -> None:
    assert check_card(CARD) == ([], [])
    assert CARD.count(old) == 1
    errors, _ = check_card(CARD.replace(old, new))
    assert len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize(
    ("card", "repo_type", "warning"),
    [
        ("# No front matter", "model", "empty or missing yaml metadata in repo card"),
        ("---\npipeline_tag: click-prediction\n---\n", "model", "'click-prediction' is not a task"),
        ("---\nlicense: other\n---\n", "model", '"license" is `other`'),
        ("---\ntask_categories: [clicks]\n---\n", "dataset", "'clicks' is not a task"),
    ],
)
def test_doubts_about_a_card_are_warnings(card: str, repo_type: str, warning: str) -> None:
    errors, warnings = check_card(card, repo_type)
    assert errors == []
    assert len(warnings) == 1 and warnings[0].startswith(warning)


def test_dataset_cards_are_checked() -> None:
    good = "---\nconfigs: [{config_name: default, data_files: [{split: train, path: data/*}]}]\nlicense: mit\n---\n"
    assert check_card(good, "dataset") == ([], [])
    assert check_card(good.replace("config_name", "name"), "dataset")[0] == ['"configs[0].config_name" is required']
