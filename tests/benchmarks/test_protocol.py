"""How systems are measured: what is run, what is chosen, what is shared, what is not run again; and what a budget leaves."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import alignment, compare, paper_runs, protocol, reproduce, results_table, search, significance
from benchmarks.protocol import Bench, System, refit_of
from modeling_flip.training.command_line import parse_recipe
from tests.processes import environment

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configuration" / "quickstart.yaml")
LABELS = np.arange(40) % 2 == 1


def leave_results(recipe: Any, auc: float, best_epoch: float = 2.0) -> None:
    """What a run leaves in its folder."""
    folder = Path(recipe.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"validation_auc": auc, "validation_logloss": 0.5} if recipe.refit is None else {}
    figures |= {
        "test_auc": auc,
        "test_logloss": 0.6,
        "best_epoch": best_epoch,
        "epochs": 3.0,
        "recipe": recipe.to_dict(),
    }
    figures |= {
        "wall_time": {"total_seconds": 36.0},
        "test_unseen_auc": 0.6,
        "num_parameters": 1000,
        "seed": recipe.seed,
    }
    (folder / "all_results.json").write_text(json.dumps(figures))
    logits = np.random.default_rng(recipe.seed).normal(size=40) + auc * LABELS
    rows = {"label": LABELS, "logit": logits.astype(np.float32), "is_unseen": np.zeros(40, bool)}
    pq.write_table(pa.table(rows), folder / "test_predictions.parquet")
    if recipe.pretraining is not None and recipe.pretrained_model_name_or_path is None:
        (folder / "pretraining").mkdir(exist_ok=True)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The recipes of runs, in their order. They are not made: each leaves what a run would leave. Their AUC is 0.7, and 0.8 at
    half the learning rate; one with seed 13 fails."""
    recipes: list[Any] = []

    def launch(*arguments: str) -> int:
        recipe = parse_recipe([*arguments])
        recipes.append(recipe)
        if recipe.seed == 13:
            return 1
        leave_results(recipe, 0.8 if recipe.finetuning.get("learning_rate") == 5e-4 else 0.7)
        return 0

    monkeypatch.setattr(protocol, "launch", launch)
    return recipes


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "results", tmp_path / "models")


def test_the_best_trial_is_refitted_for_each_seed(
    bench: Bench, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    half = ("--finetuning.learning_rate", "5e-4")
    system = System("mine", QUICKSTART, ("--towers", "tabular", "--pretraining", "null"), ((), half))
    figures = [bench.measure(system, seed) for seed in (1, 2)]
    assert [(one.seed, one.refit, one.finetuning["learning_rate"]) for one in launched] == [
        *((1, None, 1e-3), (1, None, 5e-4)),
        *((1, 2.0, 5e-4), (2, 2.0, 5e-4)),
    ]
    search = figures[1]["search"]
    assert figures[0]["search"] == search
    assert (search["chosen"], search["seed"], len(search["trials"])) == (1, 1, 2)
    assert search["trials"][1]["settings"] == list(half) and search["trials"][1]["test_auc"] == 0.8
    assert refit_of(search) == [*half, "--refit", "2.0"]
    kept = bench.results / "demo"
    assert json.loads((kept / "mine-2.json").read_text()) == figures[1]
    assert pq.read_table(kept / "predictions" / "mine-2.parquet").num_rows == 40
    assert significance.read_users(kept / "predictions" / significance.USERS) is not None
    before = len(launched)
    again = Bench(bench.results, bench.output_dir)
    assert again.measure(system, 2) == figures[1] and "is kept" not in capsys.readouterr().out
    half_as_long = System("mine", QUICKSTART, (*system.settings, "--finetuning.num_train_epochs", "1"), system.trials)
    assert again.measure(half_as_long, 2) == figures[1]
    assert (
        "mine-2 is kept, though it was measured with finetuning.num_train_epochs 4.0 (now 1.0)"
        in capsys.readouterr().out
    )
    more = System("mine", QUICKSTART, (*system.settings, "--model.embedding_l2", "0.5"), system.trials)
    assert again.measure(more, 2) == figures[1]
    assert "mine-2 is kept, though it was measured with model.embedding_l2 not set (now 0.5)" in capsys.readouterr().out
    assert again.known_search(system, 3) == search and len(launched) == before


def test_a_model_with_other_settings_is_not_taken_for_a_new_run(bench: Bench, launched: list[Any]) -> None:
    system = System("mine", QUICKSTART, ("--towers", "tabular", "--pretraining", "null"))
    bench.measure(system, 1)
    bench.result_file(system, 1).unlink()
    before = len(launched)
    bench.measure(system, 1)  # the model is there
    assert len(launched) == before
    for file in bench.result_file(system, 1).parent.glob("*.json"):
        file.unlink()
    more = System("mine", QUICKSTART, (*system.settings, "--model.embedding_l2", "0.5"))
    with pytest.raises(
        ValueError, match=r"mine-trial-0-seed-1 holds a run with model\.embedding_l2 not set \(now 0\.5\): remove it"
    ):
        bench.measure(more, 1)
    assert not bench.result_file(more, 1).exists()


TABULAR = ("--towers", "tabular", "--pretraining", "null")


def test_a_seed_more_is_made_with_the_settings_of_the_others(bench: Bench, launched: list[Any]) -> None:
    bench.measure(System("mine", QUICKSTART, TABULAR), 1)
    other = System("mine", QUICKSTART, (*TABULAR, "--model.embedding_l2", "0.5"))
    with pytest.raises(
        ValueError, match=r"mine-1\.json was measured with model\.embedding_l2 not set \(now 0\.5\): give"
    ):
        bench.measure(other, 2)
    failed = reproduce.make_runs(bench, [(other, 2)], 600, at_once=1)
    assert len(failed) == 1 and failed[0].startswith("mine, seed 2 cannot be run here: ")
    assert len(launched) == 2


def test_rows_and_fields_are_settings_too(
    bench: Bench, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    few = Bench(bench.results, bench.output_dir, ["--max_train_samples", "500"])
    system = System("mine", QUICKSTART, TABULAR)
    few.measure(system, 1)
    bench.measure(system, 1)
    assert "mine-1 is kept, though it was measured with max_train_samples 500 (now not set)" in capsys.readouterr().out
    bench.result_file(system, 1).unlink()
    with pytest.raises(ValueError, match=r"mine-trial-0-seed-1 holds a run with max_train_samples 500 \(now not set\)"):
        bench.measure(system, 1)


ID_MODEL = {"dataset_name": "demo", "output_dir": "a", "towers": "tabular"}
FLIP_ID = {**ID_MODEL, "pretraining": {"num_train_epochs": 1.0}}


@pytest.mark.parametrize(
    ("recipe", "more", "changed"),
    [
        (ID_MODEL, {"output_dir": "b", "raw_dir": "c", "num_proc": 3}, []),
        (ID_MODEL, {"min_count": 1, "streaming": False}, []),  # the defaults
        (ID_MODEL, {"min_count": 2}, ["min_count 1 (now 2)"]),
        (ID_MODEL, {"exclude_fields": ["age"]}, ["exclude_fields not set (now ['age'])"]),
        (ID_MODEL, {"text_model_name_or_path": "b", "max_length": 9}, []),  # it reads no text
        (FLIP_ID, {"text_model_name_or_path": "b"}, ["text_model_name_or_path not set (now b)"]),
        (FLIP_ID, {"max_length": 9}, ["max_length not set (now 9)"]),
        (FLIP_ID, {"pretraining": {}}, ["pretraining.num_train_epochs 1.0 (now not set)"]),
    ],
)
def test_what_of_a_recipe_changes_figures(recipe: dict[str, Any], more: dict[str, Any], changed: list[str]) -> None:
    assert protocol.changes(recipe, recipe | more) == changed


@pytest.mark.parametrize("made", ["runs/flip-id-1-text-model", "runs/demo-text-model"])
def test_a_text_model_that_train_py_has_set_itself_is_no_change(made: str) -> None:
    one, other = ({**FLIP_ID, "output_dir": f"runs/flip-id-{seed}"} for seed in (1, 2))
    its_own = "runs/flip-id-2-text-model" if "flip-id" in made else made
    assert protocol.changes({**one, "text_model_name_or_path": made}, other) == []
    assert (
        protocol.changes({**one, "text_model_name_or_path": made}, {**other, "text_model_name_or_path": its_own}) == []
    )
    assert protocol.changes({**one, "text_model_name_or_path": "b"}, other) == [
        "text_model_name_or_path b (now not set)"
    ]
    assert protocol.changes(one, {**other, "text_model_name_or_path": "b"}) == [
        "text_model_name_or_path not set (now b)"
    ]


def test_a_checkpoint_that_was_asked_for_is_a_setting(bench: Bench, launched: list[Any]) -> None:
    system = System("mine", QUICKSTART)
    a, b = (
        Bench(bench.results, bench.output_dir, ["--pretrained_model_name_or_path", f"ckpt/{name}"]) for name in "AB"
    )
    assert "pretraining_seed" not in a.measure(system, 1)
    for other in (b, bench):
        with pytest.raises(ValueError, match=r"was measured with pretrained_model_name_or_path ckpt/A \(now "):
            other.measure(system, 2)


def test_a_run_goes_on_with_the_pretraining_that_it_has_begun_with(bench: Bench, launched: list[Any]) -> None:
    flip, flip_id = System("flip", QUICKSTART), System("flip-id", QUICKSTART, ("--towers", "tabular"))
    begun = bench.output_dir / "demo" / "flip-id-1"
    begun.mkdir(parents=True)
    (begun / "recipe.yaml").write_text("pretrained_model_name_or_path: null\n")
    bench.run(flip, 1, ["--refit", "2"], "flip-1")
    bench.run(flip_id, 1, ["--refit", "2"], "flip-id-1")
    bench.run(flip_id, 1, ["--refit", "2"], "flip-id-another")
    shared = [one.pretrained_model_name_or_path for one in launched]
    assert shared == [None, None, str(bench.output_dir / "demo" / "flip-1" / "pretraining")]


def test_a_system_of_a_longer_name_is_another(bench: Bench, launched: list[Any]) -> None:
    bench.measure(System("mine-2layers", QUICKSTART, ("--model.embedding_size", "4")), 1)
    assert bench.known_search(System("mine", QUICKSTART), 1) is None


def test_seeds_have_the_same_search(bench: Bench, launched: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    one, three = (System("mine", QUICKSTART, (), ((), *more)) for more in ((), (("--seed", "1"), ("--seed", "1"))))
    bench.measure(one, 1)
    bench.measure(three, 1)
    assert "mine-1 is kept, though it was measured with 1 trials (now 3)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"mine-1.json was searched with 1 trials \(now 3\): give the --trials"):
        bench.measure(three, 2)


def test_a_seed_whose_refit_failed_is_in_no_others_way(
    bench: Bench, launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    system, launch = System("mine", QUICKSTART), protocol.launch
    monkeypatch.setattr(protocol, "launch", lambda *given: 1 if {"--refit", "1"} <= {*given} else launch(*given))
    with pytest.raises(protocol.RunFailedError):
        bench.measure(system, 1)
    assert bench.measure(system, 2)["search"]["seed"] == 2


def test_a_pretraining_with_other_settings_is_not_shared(bench: Bench, launched: list[Any]) -> None:
    flip_id, flip = System("flip-id", QUICKSTART, ("--towers", "tabular")), System("flip", QUICKSTART)
    short = Bench(bench.results, bench.output_dir, ["--pretraining.num_train_epochs", "1"])
    short.measure(flip_id, 1)
    longer = Bench(bench.results, bench.output_dir, ["--pretraining.num_train_epochs", "30"])
    longer.measure(flip_id, 1)  # is kept
    longer.measure(flip, 1)
    assert [one.pretrained_model_name_or_path for one in launched[-2:]] == [None, None]
    # Other settings of finetuning do not matter to it.
    again = Bench(bench.results, bench.output_dir, [*short.arguments, "--finetuning.num_train_epochs", "2"])
    assert (
        again.pretraining_for(again.recipe(flip, 1))
        == bench.output_dir / "demo" / "flip-id-trial-0-seed-1" / "pretraining"
    )
    assert again.pretraining_for(again.recipe(flip, 2)) is None


def test_a_run_of_another_protocol_is_made_again(bench: Bench, launched: list[Any]) -> None:
    system = System("mine", QUICKSTART)
    file = bench.result_file(system, 1)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"test_auc": 0.9}))
    assert not bench.is_measured(system, 1)
    assert bench.measure(system, 1)["test_auc"] == 0.7


def test_systems_with_the_same_pretraining_share_it_seed_by_seed(bench: Bench, launched: list[Any]) -> None:
    systems = [
        System("flip", QUICKSTART),
        System("flip-id", QUICKSTART, ("--towers", "tabular", "--model.embedding_l2", "0.5")),
        System("cold", QUICKSTART, ("--model.temperature", "0.1")),
        System("dropped", QUICKSTART, ("--model.dropout", "0.5")),
        System("dcnv2", QUICKSTART, ("--towers", "tabular", "--pretraining", "null")),
    ]
    for seed in (1, 2):
        for system in systems:
            bench.measure(system, seed)
    models = bench.output_dir / "demo"
    shared = {Path(one.output_dir).name: one.pretrained_model_name_or_path for one in launched}
    # A search and a refit pretrain on other rows.
    assert shared.pop("flip-id-trial-0-seed-1") == str(models / "flip-trial-0-seed-1" / "pretraining")
    assert shared.pop("flip-id-1") == str(models / "flip-1" / "pretraining")
    assert shared.pop("flip-id-2") == str(models / "flip-2" / "pretraining")
    assert len(shared) == 12 and set(shared.values()) == {None}
    figures = json.loads((bench.results / "demo" / "flip-id-2.json").read_text())
    assert figures["pretraining_seed"] == 2
    assert "pretraining_seed" not in json.loads((bench.results / "demo" / "dcnv2-2.json").read_text())
    assert bench.pretraining_of(figures, "flip-id-2") == models / "flip-2" / "pretraining"
    # Found again by a command that names other systems.
    later = Bench(bench.results, bench.output_dir)
    later.measure(System("flip-plm", QUICKSTART, ("--towers", "text")), 2)
    assert launched[-1].pretrained_model_name_or_path == str(models / "flip-2" / "pretraining")


def test_a_run_that_fails_is_named_and_the_others_go_on(
    launched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_table, "RESULTS", tmp_path / "results")
    failed = compare.compare([QUICKSTART], [13, 4], [], tmp_path / "models")
    assert len(failed) == 1 and failed[0].startswith("demo, quickstart-trial-0-seed-13: train.py")
    assert {path.name for path in (tmp_path / "results" / "demo").glob("*.json")} == {
        "quickstart-4.json",
        "comparisons.json",
    }


def test_settings_of_a_recipe_are_tried_once_and_recorded(
    launched: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [QUICKSTART, "--json", str(tmp_path / "search.json"), "--output_dir", str(tmp_path / "models"), "--try="]
    search.main([*given, "--", "--min_count", "2"])
    assert "| as it is | 0.7000 | 0.5000 | 2 |" in capsys.readouterr().out
    search.main([*given, "--try=--finetuning.learning_rate 5e-4", "--", "--min_count", "2"])
    assert [one.finetuning["learning_rate"] for one in launched] == [launched[0].finetuning["learning_rate"], 5e-4]
    assert {one.min_count for one in launched} == {2}
    found = json.loads((tmp_path / "search.json").read_text())
    assert [one["settings"] for one in found["trials"]] == ["--finetuning.learning_rate 5e-4", ""]  # the best one first
    assert [one["validation_auc"] for one in found["trials"]] == [0.8, 0.7]
    assert found["recipe"]["min_count"] == 2
    with pytest.raises(SystemExit, match="2"):  # a run with other settings has that name
        search.main([*given, "--", "--min_count", "3"])
    assert "holds a run with min_count 2 (now 3)" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):  # before anything is run
        search.main([*given, "--try=--min_cuont 3"])
    assert "no such key: min_cuont; did you mean min_count?" in capsys.readouterr().err
    assert len(launched) == 2


# In a process of its own: one has only one server of forks, and tests of the Hub need it with other settings.
REAL = """
import sys
from pathlib import Path
from benchmarks.protocol import Bench, System, launch

folder, recipe, *settings = sys.argv[1:]
Bench(Path(folder, "results"), Path(folder, "models")).measure(System("flip", recipe, tuple(settings)), 5)
wrong = [*settings, "--label_column", "nothing", "--output_dir", str(Path(folder, "wrong"))]
sys.exit(10 + launch(recipe, *wrong))
"""


@pytest.mark.slow
def test_a_real_run(tmp_path: Path) -> None:
    recipe = str(ROOT / "configuration" / "demo" / "flip.yaml")
    command = [sys.executable, "-c", REAL, str(tmp_path), recipe, *TABULAR]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 10 + 1, done.stderr[-3000:]
    assert "train.py: error: column 'nothing'" in done.stderr
    figures = json.loads((tmp_path / "results" / "demo" / "flip-5.json").read_text())
    assert figures["seed"] == 5 and figures["rows"] == {"train": 1280 + 2400, "test": 4800}
    (trial,) = figures["search"]["trials"]
    assert 0 < trial["validation_auc"] < 1 and trial["test_auc"] != figures["test_auc"]
    assert trial["best_epoch"] == figures["recipe"]["refit"]


# ---- a budget


@pytest.fixture
def costs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> reproduce.Costs:
    """Costs of runs that take 60 seconds for pretraining and 10 for each of three epochs."""
    stage = SimpleNamespace(training_seconds=30.0, evaluation_seconds=0.0)
    found = {"pretraining": SimpleNamespace(training_seconds=60.0, evaluation_seconds=0.0), "finetuning": stage}

    def facts(self: Any, recipe: Any) -> dict[str, Any]:
        return {name: of for name, of in found.items() if name == "finetuning" or recipe.pretraining is not None}

    monkeypatch.setattr(reproduce.Costs, "facts", facts)
    return reproduce.Costs(bench)


EPOCHS = ("--finetuning.num_train_epochs", "3")


def test_costs_count_what_is_still_to_come(bench: Bench, costs: reproduce.Costs, launched: list[Any]) -> None:
    flip, tower = System("flip", QUICKSTART, EPOCHS), System("flip-id", QUICKSTART, (*EPOCHS, "--towers", "tabular"))
    assert costs.of(flip, 1) == 2 * 90
    bench.measure(flip, 1)
    assert costs.of(flip, 2) == 60 + 20  # searched: two epochs were chosen
    assert costs.of(tower, 1) == 30 + 30  # the pretraining of both parts is there
    assert costs.of(tower, 2) == 2 * 90


def test_at_once_are_systems_of_one_seed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system's later seeds need what its first has chosen."""
    groups: list[list[str]] = []

    class Pool(contextlib.AbstractContextManager[Any]):
        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Pool:
            return self

        def map(self, _: Any, costs: Any, runs: Iterable[tuple[System, int]], ends: Any) -> list[str]:
            groups.append([f"{system.name}-{seed}" for system, seed in runs])
            return [""] * len(groups[-1])

        def __exit__(self, *_: Any) -> None: ...

    monkeypatch.setattr(reproduce, "ProcessPoolExecutor", Pool)
    dcnv2 = ("--towers", "tabular", "--pretraining", "null")
    systems = [System(name, QUICKSTART, dcnv2) for name in ("dcnv2", "other")]
    runs = [(system, seed) for seed in (1, 2) for system in systems]
    assert reproduce.make_runs(bench, runs, 60, at_once=4) == []
    assert groups == [["dcnv2-1", "other-1"], ["dcnv2-2", "other-2"]]


def test_what_does_not_fit_into_the_budget_is_left_out(
    bench: Bench, costs: reproduce.Costs, launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(reproduce.time, "monotonic", lambda: clock[0])
    measure = Bench.measure

    def takes_time(self: Bench, system: System, seed: int) -> dict[str, Any]:
        clock[0] += 100
        return measure(self, system, seed)

    monkeypatch.setattr(Bench, "measure", takes_time)
    cheap = System("dcnv2", QUICKSTART, (*EPOCHS, "--towers", "tabular", "--pretraining", "null"))
    cold = System("cold", QUICKSTART, (*EPOCHS, "--model.temperature", "0.1"))
    runs = [
        (System("flip", QUICKSTART, EPOCHS), 1),
        (cold, 1),
        (cheap, 1),
    ]
    left_out = reproduce.make_runs(bench, runs, 200, at_once=1)
    assert left_out == ["cold, seed 1: takes 3.0 min, and 1.7 are left"]
    assert sorted(path.stem for path in (bench.results / "demo").glob("*.json")) == ["dcnv2-1", "flip-1"]
    assert reproduce.make_runs(bench, [(cold, 1)], 0, at_once=1) == [reproduce.NO_TIME]
    assert reproduce.make_runs(bench, runs, float("inf"), at_once=1) == []
    assert "failed: demo, cold-13: train.py" in reproduce.make_runs(bench, [(cold, 13)], float("inf"), 1)[0]


# ---- what is run


@pytest.mark.parametrize(("dataset", "size"), [("demo", "small"), ("movielens-1m", "small")])
def test_every_run_of_every_table_is_a_recipe_of_its_own(dataset: str, size: str, bench: Bench) -> None:
    runs = paper_runs.runs_of(paper_runs.TARGETS, dataset, size, [1, 2], num_trials=3)
    systems = [system for system, seed in runs if seed == 1]
    assert runs == [(system, seed) for seed in (1, 2) for system in systems]
    assert [len(system.trials) for system in systems] == [3] * len(
        systems
    )  # each is searched for as long as the others
    seen: dict[str, str] = {}
    for system in systems:
        said = json.dumps(bench.recipe(system, 1).to_dict() | {"output_dir": ""}, sort_keys=True)
        assert said not in seen, f"{system.name} is {seen.get(said)}"
        seen[said] = system.name
    assert len(seen) == len({system.name for system in systems})


@pytest.mark.parametrize("kind", ["ID", "ID + text", "text"])
def test_trials_are_settings_of_recipes(kind: str, bench: Bench) -> None:
    name = paper_runs.TABLE2[kind][0]
    for settings in paper_runs.TRIALS[kind]:
        bench.recipe(paper_runs.system("movielens-1m", "small", name), 1, *settings)


def test_the_papers_figures_are_probabilities_of_known_systems() -> None:
    published = json.loads((ROOT / "benchmarks" / "paper.json").read_text())
    assert re.search(r"10\.1145/\d+\.\d+", published["source"])
    for dataset in ("movielens-1m", "bookcrossing", "goodreads"):
        assert published["table2"][dataset].keys() == set(paper_runs.KINDS) - set(paper_runs.ALSO)
    assert published["table5"]["movielens-1m"].keys() == {"flip", *paper_runs.ABLATIONS}
    assert published["table3"]["bookcrossing"].keys() == set(paper_runs.TOWERS)

    def pairs(of: Any) -> list[Any]:
        return [of] if isinstance(of, list) else [pair for one in of.values() for pair in pairs(one)]

    found = pairs({name: of for name, of in published.items() if name != "source"})
    assert len(found) == 3 * 17 + 2 * (3 * 4 + 3 * 3 + 8)
    assert all(0.5 < auc < 1 and 0 < logloss < 0.7 for auc, logloss in found)


@pytest.mark.parametrize("size", paper_runs.SIZES)
@pytest.mark.parametrize("dataset", [*results_table.DATASETS, "demo"])
def test_tables_and_figures_find_the_runs_that_were_made_for_them(dataset: str, size: str, tmp_path: Path) -> None:
    run = {"test_auc": 0.7, "test_logloss": 0.5, "text_model": "tiny", "search": {}}
    tables = reproduce.paper_tables

    def folder_of(target: str) -> Path:
        folder = tmp_path / target / dataset
        folder.mkdir(parents=True)
        for system in paper_runs.systems_of(target, dataset, size):
            (folder / f"{system.name}-1.json").write_text(json.dumps(run))
        return folder

    for target in ("table3", "table4", "table5"):
        head, *rows = getattr(tables, target)(folder_of(target), size).rows
        assert rows and {row[head.index("seeds")] for row in rows} == {"1"}, target
    for target in ("figure3", "figure4"):
        for by_value in getattr(tables, target)(folder_of(target), size).values():
            assert len(by_value) > 2 and all(by_value.values()), target


def test_a_dataset_without_recipes_is_said() -> None:
    with pytest.raises(ValueError, match="there is no recipe for flip on nowhere"):
        paper_runs.system("nowhere", "small", "flip")


def test_every_recipe_is_a_system_with_a_title() -> None:
    stems = {path.stem for name in results_table.DATASETS for path in (ROOT / "configuration" / name).glob("*.yaml")}
    assert {stem.removesuffix("-small") for stem in stems} <= paper_runs.KINDS.keys()


@pytest.mark.parametrize(
    ("dataset", "pair"),
    [
        ("movielens-1m", ("flip-id-small", "flip-id-searched-small")),
        ("bookcrossing", ("flip-id-searched-small", "flip-searched-small")),
    ],
)
def test_two_recipes_have_the_same_pretraining(dataset: str, pair: tuple[str, str]) -> None:
    folder = ROOT / "configuration" / dataset
    one, other = (parse_recipe([str(folder / f"{name}.yaml")]) for name in pair)
    alike = [protocol.of_pretraining(recipe).to_dict() for recipe in (one, other)]
    assert protocol.changes(*alike) == []


@pytest.mark.parametrize("dataset", ["movielens-1m", "bookcrossing"])
@pytest.mark.parametrize("pair", [("flip-id-small", "dcnv2"), ("flip-id-searched-small", "dcnv2-searched")])
def test_flip_id_differs_from_dcnv2_in_the_alignment_alone(pair: tuple[str, str], dataset: str) -> None:
    folder = ROOT / "configuration" / dataset
    batch = ("--finetuning.per_device_train_batch_size", "1024")  # of all runs; the paper's on BookCrossing is 256
    aligned, alone = (parse_recipe([str(folder / f"{name}.yaml"), *batch]) for name in pair)
    assert aligned.finetuning == alone.finetuning
    assert aligned.model.items() >= alone.model.items()
    assert (aligned.tabular_tower, aligned.towers, aligned.min_count) == (
        alone.tabular_tower,
        alone.towers,
        alone.min_count,
    )


@pytest.mark.parametrize(
    ("record", "dataset", "recipe", "searched"),
    [
        ("movielens-1m", "movielens-1m", "dcnv2", "dcnv2-searched"),
        ("movielens-1m-flip-id", "movielens-1m", "flip-id-small", "flip-id-searched-small"),
        ("bookcrossing", "bookcrossing", "dcnv2", "dcnv2-searched"),
    ],
)
def test_a_searched_recipe_has_what_its_record_found_best(
    record: str, dataset: str, recipe: str, searched: str
) -> None:
    folder = ROOT / "configuration" / dataset
    trials = json.loads((ROOT / "benchmarks" / "results" / f"search-{record}.json").read_text())["trials"]
    best = max(trials, key=lambda trial: trial["validation_auc"])["settings"].split()
    found, kept = (
        parse_recipe([str(folder / f"{recipe}.yaml"), *best]),
        parse_recipe([str(folder / f"{searched}.yaml")]),
    )
    assert (found.finetuning, found.model, found.min_count) == (kept.finetuning, kept.model, kept.min_count)


# ---- the tables


def fake_runs(bench: Bench, aucs: dict[str, Callable[[int], float]], seeds: range) -> None:
    for name, auc in aucs.items():
        for seed in seeds:
            recipe = bench.recipe(System(name, QUICKSTART), seed)
            recipe.output_dir, recipe.refit = str(bench.output_dir / f"{name}-{seed}"), 2.0
            leave_results(recipe, auc(seed))
            figures = json.loads((Path(recipe.output_dir) / "all_results.json").read_text())
            trial = {
                "settings": [],
                "validation_auc": 0.71,
                "test_auc": 0.7,
                "best_epoch": 2.0,
                "wall_time": {"total_seconds": 60},
            }
            file = bench.results / "demo" / f"{name}-{seed}.json"
            protocol.write_predictions(
                Path(recipe.output_dir) / "test_predictions.parquet",
                file.parent / "predictions" / f"{file.stem}.parquet",
            )
            file.write_text(json.dumps(figures | {"search": {"seed": 1, "trials": [trial], "chosen": 0}}))


def test_tables_and_figures_of_runs(bench: Bench, tmp_path: Path) -> None:
    def near(center: float) -> Callable[[int], float]:
        return lambda seed: center + 0.0005 * (seed % 3)

    aucs = {
        "dcnv2": near(0.70),
        "deepfm": lambda seed: 0.69 + 0.0007 * seed,
        "ctrl": near(0.68),
        "flip-id": lambda seed: 0.78 + 0.001 * seed,
        "flip": lambda seed: 0.8 + 0.02 * (seed % 2),
        "flip-searched": lambda seed: 0.8 + 0.03 * (seed % 2),
    }
    aucs |= {"flip-id-without-mlm": near(0.72), "flip-id-temperature-0.1": near(0.71)}
    fake_runs(bench, aucs, range(1, 4))
    comparisons = reproduce.paper_tables.compare_all(bench.results / "demo")
    assert {name: record["against"] for name, record in comparisons["ctrl"].items()} == {"flip-id": "ctrl"}
    assert {name: record["against"] for name, record in comparisons["table2"].items()} == {
        "flip-id": "dcnv2",
        "flip": "dcnv2",
        "flip-searched": "dcnv2",
    }
    ablated = comparisons["table5"]["flip-id"]
    assert ablated["flip-id-without-mlm"]["against"] == "flip-id"
    assert ablated["flip-id-without-mlm"]["auc"]["difference"] < 0
    record = comparisons["table2"]["flip-id"]
    assert record["auc"]["difference"] == pytest.approx(0.782 - 0.7005)
    assert record["p_holm"] == pytest.approx(min(1, 3 * record["auc"]["p_seeds"]))
    out = tmp_path / "out"
    out.mkdir()
    for target in ("table2", "table3", "table4", "table5", "figure3", "figure4", "figure5", "figure6"):
        reproduce.draw(target, bench, "demo", "small", out)
    assert {path.name for path in out.iterdir()} == {
        *(f"table{n}.{kind}" for n in (2, 3, 4, 5) for kind in ("md", "csv")),
        *("figure4.png", "figure4.svg"),
    }
    lines = (out / "table2.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == [
        "FLIP_ID",
        "DCNv2",
        "DeepFM",
        "FLIP",
        "CTRL",
        "FLIP, searched",
    ]
    flip_id = lines[2].strip("| ").split(" | ")
    assert flip_id[:6] == ["ID", "FLIP_ID", "–", "3", "0.7820 ± 0.0010", "0.6000 ± 0.0000"]
    assert flip_id[9].startswith("+0.0815 [")
    assert lines[3].endswith("| – | – | – | – |")  # a baseline is compared with nothing
    assert (out / "table2.csv").read_text().splitlines()[0].startswith("kind,system,text tower")
    assert "| FLIP_ID | w/o MLM | 3 | 0.7205 ± 0.0005 |" in (out / "table5.md").read_text()
    assert (out / "figure4.png").read_bytes().startswith(b"\x89PNG")
    assert comparisons == json.loads((bench.results / "demo" / "comparisons.json").read_text())


def test_each_size_is_compared_with_its_like(bench: Bench) -> None:
    """On one machine the small recipes were run, on another the paper's; DCNv2 has one recipe for both."""

    def near(center: float, spread: float = 0.0) -> Callable[[int], float]:
        return lambda seed: center + spread * (seed % 3)

    aucs = {"dcnv2": near(0.7)}
    for ending, less in (("", 0.0), ("-small", 0.04)):
        aucs |= {f"ctrl{ending}": near(0.72 - less), f"flip{ending}": near(0.8 - less, 0.0007)}
        aucs |= {f"flip-id{ending}": near(0.78 - less, 0.0007), f"flip-id-without-icl{ending}": near(0.71 - less)}
    fake_runs(bench, aucs, range(1, 4))
    ours = bench.results / "movielens-1m"
    (bench.results / "demo").rename(ours)
    comparisons = reproduce.paper_tables.compare_all(ours)
    assert {name: record["against"] for name, record in comparisons["table2"].items()} == {
        "flip-id-small": "dcnv2",
        "flip-small": "dcnv2",
        "flip-id": "dcnv2",
        "flip": "ctrl",
    }
    assert {name: record["against"] for name, record in comparisons["ctrl"].items()} == {
        "flip-id-small": "ctrl-small",
        "flip-id": "ctrl",
    }
    assert {whole: [*of] for whole, of in comparisons["table5"].items()} == {
        "flip-id-small": ["flip-id-without-icl-small", "dcnv2"],
        "flip-id": ["flip-id-without-icl", "dcnv2"],
    }
    shown = reproduce.paper_tables.table5(ours, "paper").markdown()
    assert "| FLIP_ID | w/o ICL | 3 | 0.7100 ± 0.0000 | 0.6000 ± 0.0000 | – | – | -0.0707 [" in shown
    assert "| FLIP_ID | w/o MLM & MTM & ICL | 3 | 0.7000 ± 0.0000 | 0.6000 ± 0.0000 | – | – | -0.0807 [" in shown


def test_a_sweep_is_drawn_of_the_seeds_that_all_its_values_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(alignment, "save", lambda figure, path: drawn.append(figure))
    run = {"test_logloss": 0.5}
    by_value: dict[float, Any] = {
        0.1: {1: {"test_auc": 0.7, **run}},
        0.05: {1: {"test_auc": 0.6, **run}, 2: {"test_auc": 0.9, **run}},
        0.3: {},
    }
    reproduce.paper_tables.draw_sweep({"temperature": by_value, "mask ratio": {0.3: {}}}, "demo", tmp_path / "figure")
    panel, empty, below = drawn[0].axes[:3]
    line = panel.lines[0]
    assert [label.get_text() for label in below.get_xticklabels()] == ["0.05", "0.1"]
    assert list(line.get_xdata()) == [0, 1] and list(line.get_ydata()) == [0.6, 0.7]
    assert len(empty.lines[0].get_xdata()) == 0


def test_seeds_of_different_settings_are_not_compared_as_one_system(
    bench: Bench,
    launched: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_runs(bench, {"dcnv2": lambda seed: 0.7, "flip-id": lambda seed: 0.7 + 0.01 * seed}, range(1, 3))
    file = bench.results / "demo" / "flip-id-2.json"
    figures = json.loads(file.read_text())
    figures["recipe"]["pretraining"]["num_train_epochs"] = 30.0
    file.write_text(json.dumps(figures))
    with pytest.raises(
        ValueError, match=r"flip-id-1 and flip-id-2 are not the same system: pretraining\.num_train_epochs"
    ):
        reproduce.paper_tables.compare_all(bench.results / "demo")
    monkeypatch.setattr(results_table, "RESULTS", bench.results)
    monkeypatch.setattr(sys, "argv", ["compare", QUICKSTART, "--output_dir", str(tmp_path)])
    commands = [
        lambda: reproduce.main(
            ["table2", "--dataset", "demo", "--results", str(bench.results), "--output_dir", str(tmp_path)]
        ),
        compare.main,
    ]
    for command in commands:
        with pytest.raises(SystemExit, match="2"):
            command()
        assert "error: flip-id-1 and flip-id-2 are not the same system" in capsys.readouterr().err
    assert launched == []


def test_all_runs_are_a_dataset() -> None:
    written = (results_table.RESULTS / results_table.RUNS_FILE).read_text()
    assert written == reproduce.paper_tables.all_runs(results_table.RESULTS).csv()
    rows = datasets.load_dataset(str(results_table.RESULTS), split="train")
    runs = [path for path in results_table.RESULTS.glob("*/*.json") if "search" in json.loads(path.read_text())]
    assert sorted(zip(rows["dataset"], rows["system"], rows["seed"], strict=True)) == sorted(
        (path.parent.name, *(f(part) for f, part in zip((str, int), path.stem.rsplit("-", 1), strict=True)))
        for path in runs
    )
    assert all("uncommitted" not in commit for commit in rows["commit"])
    card = (results_table.RESULTS / "README.md").read_text()
    assert all(column in card for column in ("pretraining_seed", "validation_auc_before_refit", "recipe"))


def test_figures_of_a_run_are_those_of_its_predictions() -> None:
    paths = [path for path in results_table.RESULTS.glob("*/predictions/*.parquet") if path.name != significance.USERS]
    assert len(paths) > 40
    for path in paths:
        figures = json.loads((path.parents[1] / f"{path.stem}.json").read_text())
        rows = significance.read_predictions(path)
        assert roc_auc_score(rows.labels, rows.logits) == pytest.approx(figures["test_auc"], abs=1e-5)
        assert rows.is_unseen.sum() == figures["test_unseen_rows"]
