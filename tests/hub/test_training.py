"""train.py and the Hub: whole repos while it trains, runs that go on from there, and a Hub that fails."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub.card_rules import check_card
from tests.hub.forked import Forked
from tests.hub.loopback_hub import Failure, LoopbackHub

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
Begin = Callable[..., Forked]
REPO = {
    *(
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "feature_vocab.parquet",
        "tokenizer.json",
        "model.sha256",
        "processor.sha256",
    ),
    *("README.md", "training_curve.png", "recipe.yaml", "modeling_flip.py", "processing_flip.py", "pipeline_flip.py"),
}
FLIP = ["--use_cpu", "--push_to_hub"]
SCORE = """
import json, sys
from transformers import pipeline
import modeling_flip

for where in {names!r}:
    score = pipeline("ctr-prediction", model=where)
    print(json.dumps([p["probability"].hex() for p in score([{{"age": "old", "genre": "Drama"}}, {{"title": "New"}}])]))
"""


@pytest.fixture(scope="session")
def begin_training(fork: Begin) -> Begin:
    """`begin_training(argument, …)` → train.py with these, begun; failed requests are sent again without much waiting."""

    def begin(*arguments: Any, prelude: str = "", **options: Any) -> Forked:
        patience = "import train; from modeling_flip.training import hub, publishing; hub.PAUSES = (0.05, 0.05, 0.05)"
        return fork(f"{patience}\n{prelude}\ntrain.main({list(map(str, arguments))})", **options)

    return begin


@pytest.fixture(scope="session")
def run_training(begin_training: Begin) -> Run:
    """As `begin_training`, to the end."""
    return lambda *arguments, **options: begin_training(*arguments, **options).finish()


def killed_at(hub: LoopbackHub, begin_training: Begin, step: int, repo: str, *arguments: Any) -> dict[str, Any]:
    """Kill a run as soon as a state of so many steps is in its repo; returns that state."""

    def state() -> dict[str, Any]:
        pushed = ("model", repo) in hub.repos and hub.files(repo)
        return json.loads((pushed or {}).get("last-checkpoint/trainer_state.json", "{}"))

    process = begin_training(*arguments, "--hub_model_id", repo).process
    while process.is_alive() and state().get("global_step", 0) < step:
        time.sleep(0.01)
    process.kill()
    process.join()
    return state()


def without_code_and_state(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if re.search(r"safetensors$|^config|vocab|tokenizer", name)}


@pytest.fixture(scope="module")
def tabular_recipe_file(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without text tower and pretraining: the quickest run there is."""
    recipe = yaml.safe_load(recipe_file.read_text()) | {"towers": "tabular"}
    del recipe["pretraining"], recipe["text_model_name_or_path"]
    path = tmp_path_factory.mktemp("recipe") / "tabular.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def run(hub: LoopbackHub, run_training: Run, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of FLIP, pushed at every save as me/trained."""
    folder = tmp_path_factory.mktemp("run") / "out"
    arguments = [recipe_file, *FLIP, "--hub_model_id", "me/trained", "--output_dir", folder, "--license", "apache-2.0"]
    done = run_training(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_save_is_a_whole_repo(run: Path, hub: LoopbackHub) -> None:
    titles = hub.commits("me/trained")[::-1]
    assert titles[0] == "initial commit" and titles[-1] == "End of training"
    assert all(re.fullmatch(r"Training in progress, step \d+", title) for title in titles[1:-1])
    beside = {"README.md", "training_curve.png", "recipe.yaml"}
    aligned = {f"pretraining/{name}" for name in REPO - beside}
    stages = set()
    for commit in hub.repo("me/trained").commits.values():
        if commit.title == "initial commit":
            continue
        files = set(commit.files)
        stages.add("finetuning" if "config.json" in files else "pretraining")
        assert aligned | beside <= files, commit.title
        if "config.json" in files:  # finetuning has begun; what it began from goes along
            assert REPO | {"pretraining/pretraining_results.json"} <= files, commit.title
    assert stages == {"pretraining", "finetuning"}
    assert not [
        name
        for name in hub.files("me/trained")
        if re.search(r"optimizer|scheduler|rng_state|training_args|\.bin$", name)
    ]


def test_the_repo_is_the_output_folder(run: Path, hub: LoopbackHub) -> None:
    files = hub.files("me/trained")
    here = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    # The manifests and run.json are of this machine's run alone, the predictions have the labels of single rows.
    stay = ("manifests/", "run.json", "test_predictions.parquet")
    here = {name: data for name, data in here.items() if not name.startswith(stay)}
    assert (run / "test_predictions.parquet").exists()
    files.pop(".gitattributes")
    assert files == here


@pytest.fixture(scope="module")
def printed(run: Path, run_python: Run) -> str:
    """What the code of the card prints where the cache is empty, as it stands, and then by what name the model scores what."""
    blocks = re.findall(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1 and "me/trained" in blocks[0]
    done = run_python(blocks[0] + SCORE.format(names=["me/trained", str(run)]))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_is_loaded_by_its_id_from_an_empty_cache_and_scores_the_same(printed: str) -> None:
    by_id, by_folder = printed.splitlines()[-2:]
    assert by_id == by_folder
    assert len(json.loads(by_id)) == 2


def test_the_card_is_valid_and_says_what_was_measured(run: Path, hub: LoopbackHub) -> None:
    card = (run / "README.md").read_text()
    errors, warnings = check_card(card, "model")
    assert (errors, warnings) == ([], [])
    results = json.loads((run / "all_results.json").read_text())
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "transformers"
    measured = {
        (result["dataset"]["split"], metric["type"]): metric["value"]
        for result in metadata["model-index"][0]["results"]
        for metric in result["metrics"]
    }
    for split in ("validation", "test"):
        for kind, name in (("roc_auc", "auc"), ("log_loss", "logloss")):
            assert measured[split, kind] == pytest.approx(results[f"{split}_{name}"], abs=1e-6)
    for row in ("this model", "its tabular tower alone", "its text tower alone"):
        assert f"| test | {row} |" in card
    assert f"{results['test_text_auc']:.4f}" in card
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL).group(1))
    assert recipe == yaml.safe_load((run / "recipe.yaml").read_text())
    assert (run / "training_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_code_of_the_card_runs_as_it_stands(printed: str) -> None:
    assert len(re.findall(r"^0\.\d{3} \{", printed, re.MULTILINE)) == 2, printed


def test_a_killed_run_goes_on_from_the_hub_on_another_machine(
    hub: LoopbackHub, run_training: Run, begin_training: Begin, recipe_file: Path, tmp_path: Path
) -> None:
    """Killed in each stage, begun again in an empty folder: the model of a run that nobody killed, to the bit."""
    longer = ["--pretraining.num_train_epochs", 3, "--finetuning.num_train_epochs", 4]
    arguments = [
        recipe_file,
        *longer,
        "--model.dropout",
        0.2,
        *FLIP,
        "--hub_strategy",
        "checkpoint",
        "--hub_revision",
        "dev",
    ]
    straight = [*arguments, "--hub_model_id", "me/straight", "--output_dir", tmp_path / "straight"]
    done = run_training(*straight)
    assert done.returncode == 0, done.stderr[-3000:]

    def commits() -> list[str]:
        begun = ("model", "me/killed") in hub.repos and "dev" in hub.repo("me/killed").branches
        return hub.commits("me/killed", revision="dev") if begun else []

    def killed_after(number: int, machine: str) -> None:
        """Kill the process as soon as the repo has so many commits of a training in progress."""
        command = [*arguments, "--hub_model_id", "me/killed", "--output_dir", tmp_path / machine]
        training = begin_training(*command)
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and training.process.is_alive():
            if sum("step" in title for title in commits()) >= number:
                break
            time.sleep(0.01)
        training.process.kill()
        done = training.finish()
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        assert "last-checkpoint/trainer_state.json" in hub.files("me/killed", revision="dev")

    killed_after(1, "first")
    killed_after(sum("step" in title for title in commits()) + 3, "second")
    done = run_training(*arguments, "--hub_model_id", "me/killed", "--output_dir", tmp_path / "third")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continuing from me/killed on the Hub" in done.stderr
    ours, theirs = (hub.files(name, revision="dev") for name in ("me/killed", "me/straight"))
    assert hub.commits("me/killed") == ["initial commit"]
    assert not [name for name in ours if name.startswith("last-checkpoint")]
    assert without_code_and_state(ours) == without_code_and_state(theirs)
    other_seed = [*arguments, "--hub_model_id", "me/killed", "--output_dir", tmp_path / "fourth", "--seed", 7]
    refused = run_training(*other_seed)
    assert refused.returncode != 0
    assert "me/killed on the Hub holds another model: its seed is 42, this run's is 7" in refused.stderr


@pytest.mark.parametrize("fault", ["500", "drop", "slow"])
def test_no_failure_of_the_hub_costs_a_run(
    fault: str, hub: LoopbackHub, run_training: Run, tabular_recipe_file: Path, tmp_path: Path
) -> None:
    """The Hub fails throughout; the model is whole on disk, the log says so, and the same command pushes it later."""

    failures: dict[str, Failure] = {"500": 500, "drop": "drop", "slow": 1.5}

    def fail(method: str, path: str) -> Failure:
        return failures[fault] if "/commit/" in path else None

    hub.fail = fail
    name = f"me/{fault}"
    arguments = [tabular_recipe_file, *FLIP, "--hub_model_id", name, "--output_dir", tmp_path / "out"]
    done = run_training(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    assert (out / "all_results.json").exists() and (out / "model.safetensors").exists()
    if fault == "slow":  # only slow: what could not be pushed meanwhile is skipped, and the end arrives
        assert hub.commits(name)[0] == "End of training"
        return
    assert "pushes failed" in done.stderr
    assert (
        f"the finished model is complete in {out}, but not on the Hub: run the same command again to push it"
        in done.stderr
    )
    assert hub.commits(name) == ["initial commit"]
    hub.fail = None
    again = run_training(*arguments)
    assert again.returncode == 0, again.stderr[-3000:]
    assert hub.commits(name)[0] == "End of training"
    assert hub.files(name)["model.safetensors"] == (out / "model.safetensors").read_bytes()


def test_one_lost_request_is_sent_again(
    hub: LoopbackHub, run_training: Run, tabular_recipe_file: Path, tmp_path: Path
) -> None:
    lost: list[str] = []

    def fail(method: str, path: str) -> int | None:
        if "/commit/" in path and len(lost) < 2:
            lost.append(path)
            return 503
        return None

    hub.fail = fail
    only_at_the_end = ["--hub_strategy", "end", "--hub_private_repo", "true"]
    arguments = [tabular_recipe_file, *FLIP, "--hub_model_id", "me/busy", "--output_dir", tmp_path / "out"]
    done = run_training(*arguments, *only_at_the_end)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trying again" in done.stderr and "pushes failed" not in done.stderr
    assert hub.commits("me/busy") == ["End of training", "initial commit"]
    assert hub.repo("me/busy").private


@pytest.mark.parametrize(
    ("repo", "token", "more", "message"),
    [
        ("somebody-else/model", "hf_test", [], "cannot push to 'somebody-else/model': .*403"),
        ("me/model", "hf_wrong", [], "cannot push to 'me/model': .*401.* Log in with `hf auth login`"),
        # It exists and can be read; the client itself would notice at the first push.
        ("me/theirs", "hf_other", [], "cannot push to 'me/theirs': .*403.* Log in with `hf auth login`"),
        (
            "me/theirs",
            "hf_test",
            ["--hub_private_repo", "true"],
            "me/theirs should be private, but exists and is public",
        ),
        (
            "me/theirs",
            "hf_test",
            ["--hub_strategy", "checkpoint"],
            "holds another model: its recipe.yaml is not a recipe",
        ),
        ("me/model", "hf_test", ["--license", "nonsense"], "license is 'nonsense', which the Hub does not accept"),
    ],
)
def test_a_refusal_stops_before_training(
    repo: str,
    token: str,
    more: list[str],
    message: str,
    hub: LoopbackHub,
    run_training: Run,
    tabular_recipe_file: Path,
    tmp_path: Path,
) -> None:
    hub.tokens["hf_other"] = "other"
    if ("model", "me/theirs") not in hub.repos:
        create = "from huggingface_hub import HfApi; api = HfApi(); api.create_repo('me/theirs'); api.upload_file("
        create += "path_or_fileobj=b'- a list', path_in_repo='recipe.yaml', repo_id='me/theirs')"
        subprocess.run([sys.executable, "-c", create], env=hub.env(tmp_path), check=True)
    arguments = [tabular_recipe_file, *FLIP, "--output_dir", tmp_path / "out", "--hub_model_id", repo, *more]
    done = run_training(*arguments, token=token)
    assert done.returncode != 0
    assert re.search(message, " ".join(done.stderr.split())), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_restored_run_knows_its_best_epoch(
    hub: LoopbackHub, run_training: Run, begin_training: Begin, tabular_recipe_file: Path, tmp_path: Path
) -> None:
    """Killed epochs after the best one, begun again in another folder: the best model, and as much patience as was left."""
    patient = ["--finetuning.num_train_epochs", 30, "--finetuning.early_stopping_patience", 8]
    patient += ["--finetuning.learning_rate", 0.05, "--hub_strategy", "checkpoint"]
    arguments = [tabular_recipe_file, *FLIP, *patient]
    done = run_training(*arguments, "--hub_model_id", "me/best", "--output_dir", tmp_path / "straight")
    assert done.returncode == 0, done.stderr[-3000:]
    straight = json.loads((tmp_path / "straight" / "all_results.json").read_text())
    assert straight["epochs"] < 30

    command = [*arguments, "--hub_model_id", "me/best-killed"]
    per_epoch = min(int(title.split()[-1]) for title in hub.commits("me/best") if "step" in title)
    late = int(straight["best_epoch"] + 3) * per_epoch
    state = killed_at(hub, begin_training, late, "me/best-killed", *arguments, "--output_dir", tmp_path / "killed")
    assert state["best_global_step"] < state["global_step"]
    done = run_training(*command, "--output_dir", f"{tmp_path}/restored/")  # as a shell completes it
    assert done.returncode == 0, done.stderr[-3000:]
    restored = json.loads((tmp_path / "restored" / "all_results.json").read_text())
    for key in ("best_epoch", "epochs", "test_auc"):
        assert restored[key] == straight[key], key
    assert hub.files("me/best-killed")["model.safetensors"] == hub.files("me/best")["model.safetensors"]
    assert not list(tmp_path.rglob("*.restored"))


def test_saves_may_be_rarer_than_evaluations(
    hub: LoopbackHub, run_training: Run, begin_training: Begin, tabular_recipe_file: Path, tmp_path: Path
) -> None:
    """The best is saved all the same, and shown with its own figures; a restored run ends with the same."""
    steps = {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 20}
    steps |= {"num_train_epochs": 12, "learning_rate": 0.3, "early_stopping_patience": 1000}
    options = [part for name, value in steps.items() for part in (f"--finetuning.{name}", value)]
    arguments = [tabular_recipe_file, *FLIP, *options, "--hub_strategy", "checkpoint"]
    done = run_training(*arguments, "--hub_model_id", "me/rare", "--output_dir", tmp_path / "straight")
    assert done.returncode == 0, done.stderr[-3000:]
    for commit in hub.repo("me/rare").commits:
        files = hub.files("me/rare", revision=commit)
        if "last-checkpoint/trainer_state.json" in files:
            state = json.loads(files["last-checkpoint/trainer_state.json"])
            shown = int((state["best_model_checkpoint"] or f"-{state['global_step']}").rpartition("-")[2])
            auc = next(e["eval_auc"] for e in state["log_history"] if e["step"] == shown and "eval_auc" in e)
            assert f"| validation | this model | {auc:.4f} |" in files["README.md"].decode()
            assert shown == state["best_global_step"]
    killed_at(hub, begin_training, 60, "me/rare-killed", *arguments, "--output_dir", tmp_path / "killed")
    again = [*arguments, "--hub_model_id", "me/rare-killed", "--output_dir", tmp_path / "restored"]
    done = run_training(*again)
    assert done.returncode == 0, done.stderr[-3000:]
    straight, restored = (json.loads((tmp_path / f / "all_results.json").read_text()) for f in ("straight", "restored"))
    for key in ("best_epoch", "epochs", "validation_auc", "test_auc"):
        assert restored[key] == straight[key], key
    history = {entry["epoch"]: entry["auc"] for entry in straight["history"]}
    assert straight["validation_auc"] == pytest.approx(history[straight["best_epoch"]], abs=1e-9)


@pytest.fixture(scope="module")
def second_run(
    hub: LoopbackHub, run_training: Run, tabular_recipe_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Any]:
    """A run on a branch of a repo that has an earlier run's model on main: its arguments, but for the folder."""
    home = tmp_path_factory.mktemp("home")
    arguments = [tabular_recipe_file, *FLIP, "--hub_model_id", "me/twice", "--hub_strategy", "checkpoint"]
    done = run_training(*arguments, "--output_dir", home / "first")
    assert done.returncode == 0, done.stderr[-3000:]
    arguments += ["--seed", 7, "--hub_revision", "seed7"]
    done = run_training(*arguments, "--output_dir", home / "second")
    assert done.returncode == 0, done.stderr[-3000:]
    return arguments


@pytest.mark.usefixtures("second_run")
def test_nothing_of_an_earlier_run_passes_for_this_ones(hub: LoopbackHub, run_python: Callable[..., Any]) -> None:
    titles = {sha: commit.title for sha, commit in hub.repo("me/twice").commits.items()}
    seeds = {
        sha: yaml.safe_load(hub.files("me/twice", revision=sha).get("recipe.yaml", b"{}")).get("seed") for sha in titles
    }
    unfinished = [sha for sha, title in titles.items() if "step" in title and seeds[sha] == 7]
    assert unfinished
    for sha in unfinished:
        assert "all_results.json" not in hub.files("me/twice", revision=sha)
    finished = hub.files("me/twice", revision="seed7")
    assert json.loads(finished["all_results.json"])["seed"] == 7
    card = finished["README.md"].decode()
    assert "revision='seed7'" in card
    done = run_python(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0])
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_finished_run_comes_back_finished(
    second_run: list[Any], hub: LoopbackHub, run_training: Run, tmp_path: Path
) -> None:
    before = hub.files("me/twice", revision="seed7")
    done = run_training(*second_run, "--output_dir", tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "elsewhere is finished; delete it to run again" in done.stderr
    after = hub.files("me/twice", revision="seed7")
    for name in ("all_results.json", "model.safetensors"):
        assert (tmp_path / "elsewhere" / name).read_bytes() == before[name] == after[name]


def test_a_folder_that_is_behind_the_hub_does_not_overwrite_it(
    second_run: list[Any], hub: LoopbackHub, run_training: Run, tmp_path: Path
) -> None:
    behind = tmp_path / "behind"
    (behind / "checkpoints").mkdir(parents=True)  # where nothing has been trained there is nothing to lose
    recipe = yaml.safe_load(hub.files("me/twice", revision="seed7")["recipe.yaml"]) | {"output_dir": str(behind)}
    (behind / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = hub.commits("me/twice", revision="seed7")
    done = run_training(*second_run, "--output_dir", behind)
    assert done.returncode != 0
    assert "me/twice on the Hub is further along in this run than" in done.stderr and "Traceback" not in done.stderr
    assert hub.commits("me/twice", revision="seed7") == before
    hub.fail = lambda method, path: 500 if "/api/" in path else None  # what cannot be asked stops nothing
    done = run_training(*second_run, "--output_dir", behind)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cannot see how far 'me/twice' is" in done.stderr and (behind / "all_results.json").exists()


def test_a_hub_that_hangs_and_a_curve_that_cannot_be_drawn(
    hub: LoopbackHub, run_training: Run, tabular_recipe_file: Path, tmp_path: Path
) -> None:
    """Nothing of it ends the training, or keeps its results from the disk."""
    hub.fail = lambda method, path: 90 if "/commit/" in path else None
    prelude = """
hub.PATIENCE = 0.3
drawn = []
def draw(path, log_history, original=publishing.write_curve):
    drawn.append(path)
    if len(drawn) == 1:
        raise RuntimeError("no ink")
    original(path, log_history)
publishing.write_curve = draw
"""
    arguments = [tabular_recipe_file, *FLIP, "--hub_model_id", "me/hangs", "--output_dir", tmp_path / "out"]
    done = run_training(*arguments, prelude=prelude)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no ink" in done.stderr and "the finished model is complete in" in done.stderr
    assert (tmp_path / "out" / "all_results.json").exists() and (tmp_path / "out" / "README.md").exists()
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_finished_run_can_be_pushed_later(
    hub: LoopbackHub, run_training: Run, tabular_recipe_file: Path, tmp_path: Path
) -> None:
    arguments = [tabular_recipe_file, "--use_cpu", "--output_dir", tmp_path / "out"]
    assert run_training(*arguments).returncode == 0
    assert repr(str(tmp_path / "out")) in (tmp_path / "out" / "README.md").read_text()
    push = ["--push_to_hub", "--hub_model_id", "later", "--license", "mit"]
    done = run_training(*arguments, *push)
    assert done.returncode == 0, done.stderr[-3000:]
    card = hub.files("me/later")["README.md"].decode()
    assert (
        "model='me/later'" in card
        and "license: mit" in card
        and str(tmp_path / "out") not in card.split("## Training")[0]
    )
    assert check_card(card, "model") == ([], [])
    assert "| test | this model |" in card and "training_curve.png" in hub.files("me/later")


def test_two_processes_push_as_one(hub: LoopbackHub, tabular_recipe_file: Path, tmp_path: Path) -> None:
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    arguments = [tabular_recipe_file, *FLIP, "--hub_strategy", "checkpoint", "--hub_model_id", "me/two"]
    command = [*launch, ROOT / "train.py", *arguments, "--output_dir", tmp_path / "out"]
    env = hub.env(tmp_path) | {"PYTHONPATH": str(ROOT)}
    hub.fail = lambda method, path: 0.5 if "/commit/" in path else None
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.commits("me/two")[0] == "End of training"
    states = [
        commit.files for commit in hub.repo("me/two").commits.values() if "last-checkpoint/config.json" in commit.files
    ]
    assert states and all(
        {"last-checkpoint/rng_state_0.pth", "last-checkpoint/rng_state_1.pth"} <= set(s) for s in states
    )


def test_the_trainer_without_a_recipe(hub: LoopbackHub, run_forked: Run) -> None:
    code = """
from modeling_flip import FlipConfig, FlipForCTR, FlipProcessor, FlipTrainer, FlipTrainingArguments
rows = {"user": list("abcd") * 8, "label": [0, 1] * 16}
processor = FlipProcessor.fit(rows, ["user"])
data = processor.encode(rows, "label")
for strategy in ("every_save", "end", "checkpoint", "all_checkpoints"):
    model = FlipForCTR(FlipConfig(towers="tabular", embedding_size=4, hidden_sizes=[8], **processor.config_settings))
    arguments = FlipTrainingArguments(
        output_dir=strategy, num_train_epochs=2, per_device_train_batch_size=16, save_strategy="epoch", use_cpu=True,
        push_to_hub=True, hub_model_id=f"me/{strategy}", hub_strategy=strategy, hub_always_push=True, report_to="none",
    )
    trainer = FlipTrainer(model, arguments, processor, data)
    trainer.train()
    assert trainer.push_to_hub("Done", True, revision="other")
    trainer.save_model()
    FlipForCTR.from_pretrained(f"me/{strategy}", revision="other")
"""
    done = run_forked(code)
    assert done.returncode == 0, done.stderr[-3000:]
    for strategy in ("every_save", "end", "checkpoint", "all_checkpoints"):
        name = f"me/{strategy}"
        if strategy == "end":  # else it holds already what would be pushed
            assert hub.commits(name, revision="other")[0] == "Done"
            assert hub.commits(name)[0] == "Model save"
        files = set(hub.files(name))
        assert {"config.json", "model.safetensors", "feature_vocab.parquet", "README.md", "modeling_flip.py"} <= files
        states = {name.split("/")[0] for name in files if "optimizer" in name}
        assert states == ({"checkpoint-2", "checkpoint-4"} if strategy == "all_checkpoints" else set()), strategy
        steps = [title for title in hub.commits(name) if "step" in title]
        assert len(steps) == (0 if strategy == "end" else 2)
