"""How systems are measured: what is run, what is chosen, what is shared, and what is not run again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks import compare, protocol, reproduce, results_table, search, significance
from benchmarks.protocol import Bench, System, refit_of
from tests.benchmarks.conftest import QUICKSTART
from tests.processes import environment

ROOT = Path(__file__).resolve().parents[2]


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
