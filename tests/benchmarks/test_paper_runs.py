"""Which recipes the tables and figures are made of, and what these recipes promise."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import paper_runs, protocol, reproduce, results_table
from benchmarks.protocol import Bench
from modeling_flip.training.command_line import parse_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("dataset", "size"), [("demo", "small"), ("movielens-1m", "small")])
def test_every_run_of_every_table_is_a_recipe_of_its_own(dataset: str, size: str, bench: Bench) -> None:
    runs = paper_runs.runs_of(paper_runs.TARGETS, dataset, size, [1, 2], num_trials=3)
    systems = [system for system, seed in runs if seed == 1]
    assert runs == [(system, seed) for seed in (1, 2) for system in systems]
    assert {len(system.trials) for system in systems} == {3}  # each is searched for as long as the others
    seen: dict[str, str] = {}
    for system in systems:
        said = json.dumps(bench.recipe(system, 1).to_dict() | {"output_dir": ""}, sort_keys=True)
        assert said not in seen, f"{system.name} is {seen.get(said)}"
        seen[said] = system.name
    assert len(seen) == len({system.name for system in systems})


@pytest.mark.parametrize("size", paper_runs.SIZES)
@pytest.mark.parametrize("dataset", [*results_table.DATASETS, "demo"])
def test_trials_are_the_recipe_half_its_rates_and_another_regularisation(dataset: str, size: str, bench: Bench) -> None:
    for name, kind in paper_runs.KINDS.items():
        if name in paper_runs.ALSO:
            continue
        system = paper_runs.system(dataset, size, name, num_trials=3)
        own, half, regularised = (bench.recipe(system, 1, *settings) for settings in system.trials)
        for key in ("learning_rate", "text_learning_rate"):
            assert half.finetuning.get(key, 0) == pytest.approx(own.finetuning.get(key, 0) / 2), (name, key)
        assert half.finetuning["learning_rate"] > 0
        if kind == "text":
            assert regularised.finetuning["weight_decay"] == 0.1
        else:
            assert 0 < regularised.model["embedding_l2"] < own.model.get("embedding_l2", 1e-4), name


def test_what_was_never_aligned_differs_from_flip_id_in_the_pretraining_alone(bench: Bench) -> None:
    """With the small recipes it is DCNv2's own run; with the paper's, whose batch is another, one of FLIP_ID's recipe."""
    names = {}
    for size in paper_runs.SIZES:
        whole, alone = (
            paper_runs.system("movielens-1m", size, "flip-id", variant=v) for v in ("", "without-pretraining")
        )
        names[size] = alone.name
        with_it, without = (
            bench.recipe(one, 1) for one in (whole, replace(alone, settings=paper_runs.WITHOUT_PRETRAINING))
        )
        assert with_it.finetuning == without.finetuning and without.pretraining is None
    assert names == {"small": "dcnv2", "paper": "flip-id-without-pretraining"}


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
        *((name, ("flip", other)) for name in results_table.DATASETS for other in ("flip-id", "flip-plm")),
    ],
)
def test_two_recipes_have_the_same_pretraining(dataset: str, pair: tuple[str, str]) -> None:
    folder = ROOT / "configuration" / dataset
    one, other = (parse_recipe([str(folder / f"{name}.yaml")]) for name in pair)
    alike = [protocol.of_pretraining(recipe).to_dict() for recipe in (one, other)]
    assert protocol.changes(*alike) == []


PAIRS = [("flip-id-small", "dcnv2"), ("flip-id-searched-small", "dcnv2-searched"), ("flip-id", "dcnv2")]


@pytest.mark.parametrize(
    ("dataset", "pair"),
    [*((name, pair) for name in ("movielens-1m", "bookcrossing") for pair in PAIRS), ("goodreads", PAIRS[-1])],
)
def test_flip_id_differs_from_dcnv2_in_the_alignment_alone(pair: tuple[str, str], dataset: str) -> None:
    folder = ROOT / "configuration" / dataset
    # But for the batch: on two cores all have this one, and the paper's FLIP_ID has the paper's on MovieLens-1M.
    batch = ("--finetuning.per_device_train_batch_size", "1024")
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
