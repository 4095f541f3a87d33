"""Model and processor go to the Hub together and come back, as everywhere in transformers: revisions, private repos, tokens,
subfolders, shards, offline."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.hub.card_rules import check_card
from tests.hub.loopback_hub import LoopbackHub

RunPython = Callable[..., Any]
PACKAGE = Path(__file__).resolve().parents[2] / "modeling_flip"
AT_HOME = {path.name for folder in ("training", "serving") for path in (PACKAGE / folder).glob("*.py")}
PRELUDE = """
import json
from pathlib import Path
import modeling_flip
from modeling_flip import FlipForCTR, FlipProcessor
from transformers import AutoModelForSequenceClassification, AutoProcessor, pipeline

rows = [{"user_id": 1, "title": "Amélie"}, {"user_id": "new", "gender": "male", "title": "Not Seen"}]

def scores(model, processor):
    return [logit.hex() for logit in model.eval()(**processor(rows)).logits.tolist()]

def pulled(name, **where):
    return scores(FlipForCTR.from_pretrained(name, **where), FlipProcessor.from_pretrained(name, **where))

def refused(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")
"""


def run(run_python: RunPython, code: str, **options: Any) -> Any:
    """What the code leaves in `result`."""
    done = run_python(f"{PRELUDE}\n{code}\nprint(json.dumps(result))", **options)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_one_call_pushes_both_with_code_and_card(every_model: dict[str, Path], hub: LoopbackHub) -> None:
    for name in every_model:
        assert hub.commits(f"me/{name}") == ["Upload model and processor", "initial commit"]
        files = hub.files(f"me/{name}")
        code = {
            "configuration_flip.py",
            "modeling_flip.py",
            "processing_flip.py",
            "pipeline_flip.py",
            "tabular_towers.py",
        }
        data = {
            "config.json",
            "model.safetensors",
            "processor_config.json",
            "feature_vocab.parquet",
            "model.sha256",
            "processor.sha256",
        }
        assert code | data | {"README.md"} <= set(files), name
        for baseline in ("ctr_bert", "morec", "p5"):
            assert (f"modeling_{baseline}.py" in files) == (baseline == name.replace("-", "_")), name
        assert not AT_HOME & set(files), name
        assert check_card(files["README.md"].decode(), "model") == ([], [])
        folder = {path.name: path.read_bytes() for path in every_model[name].iterdir()}
        assert {key: files[key] for key in folder} == folder


def test_pull_as_everywhere_in_transformers(
    every_model: dict[str, Path], run_python: RunPython, run_forked: RunPython, hub: LoopbackHub, tmp_path: Path
) -> None:
    """Revisions, private repos, tokens, shards, subfolders: one process pushes, another with an empty cache pulls."""
    folder = str(every_model["flip-both"])
    pushed = run(
        run_forked,
        f"""
model, processor = FlipForCTR.from_pretrained({folder!r}), FlipProcessor.from_pretrained({folder!r})
result = {{"main": scores(model, processor)}}
commit = model.push_to_hub("me/private", processor, private=True, commit_message="First")
result["sha"] = commit.oid
model.flip.feature_embeddings.embedding.weight.data.add_(0.1)
result["branch"] = scores(model, processor)
model.push_to_hub("me/private", processor, revision="warmer", max_shard_size="20KB")
model.push_to_hub("me/sharded", processor, max_shard_size="20KB")
model.save_pretrained("both/deep"); processor.save_pretrained("both/deep")
from huggingface_hub import HfApi
HfApi().create_repo("me/subfolders"); HfApi().upload_folder(repo_id="me/subfolders", folder_path="both", commit_message="x")
forgetful = [lambda: model.push_to_hub("me/nothing"), lambda: model.save_pretrained("x", push_to_hub=True)]
result["forgotten"] = [refused(call) for call in forgetful]
other = FlipProcessor.fit([{{"user_id": 5, "gender": "x", "title": "y"}}], processor.fields, processor.tokenizer)
result["other"] = refused(lambda: model.push_to_hub("me/nothing", other))
processor.save_pretrained("alone", push_to_hub=True, repo_id="me/processor")
""",
    )
    assert hub.repo("me/private").private
    assert not hub.repo("me/sharded").private
    assert hub.commits("me/private")[0] == "First"
    assert all("call model.push_to_hub(repo_id, processor)" in message for message in pushed["forgotten"])
    assert "the vocabulary does not belong to the weights: its num_features is" in pushed["other"]
    assert ("model", "me/nothing") not in hub.repos
    assert {"feature_vocab.parquet", "processor_config.json", "tokenizer.json"} <= set(hub.files("me/processor"))
    shards = {name for name in hub.files("me/sharded") if name.endswith(".safetensors")}
    assert len(shards) > 2 and "model.safetensors.index.json" in hub.files("me/sharded")
    assert {n for n in hub.files("me/private", revision="warmer") if n.endswith(".safetensors")} == shards

    home = tmp_path / "home"
    got = run(
        run_python,
        f"""
result = {{
    "main": pulled("me/private"),
    "branch": pulled("me/private", revision="warmer"),
    "sha": pulled("me/private", revision={pushed["sha"]!r}),
    "sharded": pulled("me/sharded"),
    "subfolder": pulled("me/subfolders", subfolder="deep"),
    "token": pulled("me/private", token="hf_test"),
    "auto": scores(AutoModelForSequenceClassification.from_pretrained("me/private", revision="warmer"),
                   AutoProcessor.from_pretrained("me/private", revision="warmer")),
    "pipeline": [pipeline("ctr-prediction", model="me/private", revision=r)(rows) for r in ("main", "warmer")],
    "processor": FlipProcessor.from_pretrained("me/processor").fields,
}}
""",
        home=home,
    )
    assert got["main"] == got["sha"] == got["token"]
    assert got["branch"] == got["auto"]

    def close(one: list[str], other: list[str]) -> bool:
        """Weights lie otherwise in memory in shards, in one file, and where they were never saved: a last bit may differ."""
        return [float.fromhex(x) for x in one] == pytest.approx([float.fromhex(x) for x in other], abs=1e-6)

    assert close(got["main"], pushed["main"]) and not close(got["branch"], pushed["main"])
    assert all(close(got[name], pushed["branch"]) for name in ("branch", "sharded", "subfolder"))
    assert got["pipeline"][0] != got["pipeline"][1]
    assert got["processor"] == ["user_id", "gender", "title"]

    # Offline, from that cache alone; and without a token the private repo is not there.
    before = len(hub.requests)
    offline = run(run_python, 'result = pulled("me/private")', home=home, extra_env={"HF_HUB_OFFLINE": "1"})
    assert offline == got["main"]
    assert len(hub.requests) == before
    done = run(run_forked, 'result = [refused(lambda: pulled("me/private"))]', token=None)
    assert re.search("me/private is not a local folder|401|not found", done[0], re.IGNORECASE), done


def test_another_push_leaves_no_stale_shard_and_no_foreign_file_is_lost(
    every_model: dict[str, Path], run_forked: RunPython, hub: LoopbackHub
) -> None:
    folder = str(every_model["flip-tabular"])
    run(
        run_forked,
        f"""
from huggingface_hub import HfApi
model, processor = FlipForCTR.from_pretrained({folder!r}), FlipProcessor.from_pretrained({folder!r})
model.push_to_hub("me/twice", processor, max_shard_size="2KB")
HfApi().upload_file(repo_id="me/twice", path_in_repo="NOTICE.txt", path_or_fileobj=b"mine")
HfApi().upload_file(repo_id="me/twice", path_in_repo="README.md", path_or_fileobj=b"my own card")
model.push_to_hub("me/twice", processor)
result = None
""",
    )
    files = hub.files("me/twice")
    assert [name for name in files if "safetensors" in name] == ["model.safetensors"]
    assert files["NOTICE.txt"] == b"mine"
    assert files["README.md"] == b"my own card"


def test_weights_hold_what_the_folder_holds(every_model: dict[str, Path], hub: LoopbackHub, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(hub.files("me/flip-tabular")["model.safetensors"])
    with safe_open(path, "pt") as file:
        assert not [name for name in file.keys() if "text" in name]  # noqa: SIM118
