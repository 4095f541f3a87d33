"""The paper's tables 2 to 5 and figures 3 to 6: makes the runs that they need, as many as a budget allows, and draws them.

    python -m benchmarks.reproduce TABLE_OR_FIGURE … --dataset NAME [--budget MINUTES] [--seeds 1 2 3 4] [--size small|paper]
        [--systems NAME …] [--trials N] [--at_once N] [--results DIR] [--output_dir DIR] [-- --key value …]

TABLE_OR_FIGURE is one of table2 to table5, figure3 to figure6, or all. What follows `--` is given to every run, such as
`-- --raw_dir data/movielens-1m`. Each system is chosen on validation, trained again on training and validation rows, and scored
once (benchmarks/protocol.py). All systems of the first seed come before those of the second, the paper's main rows first, so that
any budget ends with whole rows. A run that the rest of the budget cannot hold is left out; the same command goes on with it.

`--size paper` takes the paper's recipes, which need a GPU; `--size small` those with a small text tower. The figures of runs go
to `--results`/DATASET/, tables and figures to `--output_dir`, models to its folder `models`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby, repeat
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks import alignment, paper_tables, results_table, small_text_model
from benchmarks.paper_runs import (
    ABLATIONS,
    DEMO_T5,
    DEMO_TEXT_MODELS,
    EMBEDDINGS,
    SIZES,
    TARGETS,
    figure_system,
    name_of_runs,
    runs_of,
)
from benchmarks.protocol import Bench, RunFailedError, System, refit_of, split_arguments
from modeling_flip.training.dry_run import inspect
from modeling_flip.training.recipe import Recipe, needs_text
from modeling_flip.training.timing import StageFacts
from train import complete_recipe, kinds_of_columns, load_data, name_text_model


@dataclass
class Costs:
    """What runs will cost, in seconds, from a few timed steps of each recipe on this machine."""

    bench: Bench
    timed: dict[str, dict[str, StageFacts]] = field(default_factory=dict)

    def of(self, system: System, seed: int) -> float:
        """Of a system and a seed: its search, where that is still to come, and its refit. Trainings may stop earlier.

        Raises:
            ValueError: it cannot be run here.
        """
        if (search := self.bench.known_search(system, seed)) is not None:
            return self.of_run(self.bench.recipe(system, seed, *refit_of(search)))
        trials = [self.bench.recipe(system, seed, *settings) for settings in system.trials]
        return sum(map(self.of_run, trials)) + self.of_run(replace(trials[0], refit=self.epochs(trials[0])))

    def of_run(self, recipe: Recipe) -> float:
        seconds = 0.0
        for name, stage in self.facts(recipe).items():
            if name == "pretraining" and self.bench.pretraining_for(recipe) is not None:
                continue
            is_short = name == "finetuning" and recipe.refit is not None
            share = float(recipe.refit or 1) / self.epochs(recipe) if is_short else 1.0
            seconds += share * stage.training_seconds + stage.evaluation_seconds
        return seconds

    def epochs(self, recipe: Recipe) -> float:
        return float(recipe.finetuning.get("num_train_epochs", 3.0))

    def facts(self, recipe: Recipe) -> dict[str, StageFacts]:
        """The stages of a recipe, timed once for all seeds and all numbers of epochs."""
        alike = replace(recipe, seed=0, refit=None, output_dir="run")
        key = json.dumps(alike.to_dict(), sort_keys=True)
        if key not in self.timed:
            with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
                there = complete_recipe(replace(alike, output_dir=str(Path(scratch) / "run")))
                data = load_data(there)
                there = name_text_model(there, data)
                report = inspect(there, data, kinds_of_columns(there), scratch=Path(scratch))
            self.timed[key] = {stage.name: stage for stage in report.stages}
        return self.timed[key]


NO_TIME = "no time is left"


def make_runs(bench: Bench, runs: Sequence[tuple[System, int]], seconds: float, at_once: int) -> list[str]:
    """Makes the runs that fit into so many seconds, ID models `at_once` at a time; returns what was not made, and why."""
    ends, left_out = time.monotonic() + seconds, []
    costs = Costs(bench)
    are_small = [not needs_text(bench.recipe(*run)) for run in runs]
    for is_small, group in groupby(zip(are_small, runs, strict=True), lambda pair: pair[0]):
        wanted = [run for _, run in group]
        if at_once == 1 or not is_small:
            left_out += [make_run(costs, run, ends) for run in wanted]
        else:  # processes, not threads: reading a recipe changes the folder that a process is in for a moment
            with ProcessPoolExecutor(at_once, get_context("spawn")) as pool:
                for _, of_seed in groupby(
                    wanted, lambda run: run[1]
                ):  # a system's later seeds take what the first has chosen
                    left_out += pool.map(make_run, repeat(costs), of_seed, repeat(ends))
    return [why for why in left_out if why]


def make_run(costs: Costs, run: tuple[System, int], ends: float) -> str:
    """Makes a run, if it ends in time; why not, or ""."""
    (system, seed), bench = run, costs.bench
    name = f"{system.name}, seed {seed}"
    try:
        if ends != float("inf") and not bench.is_measured(system, seed):
            if time.monotonic() >= ends:  # to estimate it would take time too
                return NO_TIME
            cost, rest = costs.of(system, seed), ends - time.monotonic()
            if cost > rest:
                return f"{name}: takes {cost / 60:.1f} min, and {max(0, rest) / 60:.1f} are left"
            print(f"=== {name}: at most {cost / 60:.1f} min of {rest / 60:.1f}", flush=True)
        bench.measure(system, seed)
    except RunFailedError as error:
        return f"{name} failed: {error}"
    except ValueError as error:
        return f"{name} cannot be run here: {error}"
    return ""


def make_demo_text_models() -> None:
    """The text towers that the demo's tables need beside its own; they are not made again."""
    (tower,) = map(Path, DEMO_TEXT_MODELS.values())
    if not tower.exists():
        small_text_model.make(None, tower, "demo", small_text_model.of_width(32))
    if not Path(DEMO_T5).exists():
        small_text_model.make_t5(tower, Path(DEMO_T5))


# ---- what is drawn


def draw(target: str, bench: Bench, dataset: str, size: str, output_dir: Path) -> None:
    """Writes a table as Markdown and CSV, a figure as PNG and SVG, from the runs that there are."""
    folder = bench.results / dataset
    tables: dict[str, Callable[[], paper_tables.Table]] = {
        "table2": lambda: paper_tables.table2(folder),
        "table3": lambda: paper_tables.table3(folder, size),
        "table4": lambda: paper_tables.table4(folder, size),
        "table5": lambda: paper_tables.table5(folder, size),
    }
    if target in tables:
        table = tables[target]()
        (output_dir / f"{target}.md").write_text(table.markdown() + "\n")
        (output_dir / f"{target}.csv").write_text(table.csv())
        return
    studied = figure_system(size)
    if target in ("figure3", "figure4"):
        panels = (paper_tables.figure3 if target == "figure3" else paper_tables.figure4)(folder, size)
        if any(len([of for of in by_value.values() if of]) > 1 for by_value in panels.values()):
            paper_tables.draw_sweep(panels, f"{paper_tables.TITLES[studied]} on {dataset}", output_dir / target)
        return
    checkpoints = {}
    for variant in [""] if target == "figure5" else EMBEDDINGS:
        name = name_of_runs(dataset, size, studied, variant)
        for file in sorted(folder.glob(f"{name}-[0-9]*.json")):
            if (found := bench.pretraining_of(json.loads(file.read_text()), file.stem)) is not None:
                checkpoints[ABLATIONS[variant][0] if variant else "FLIP"] = str(found)
                break
    if checkpoints:
        draw_alignment(target, checkpoints, bench, dataset, output_dir)


def draw_alignment(target: str, checkpoints: dict[str, str], bench: Bench, dataset: str, output_dir: Path) -> None:
    """Figure 5 or 6, from pretraining checkpoints by title."""
    given = list(bench.arguments)
    raw_dir = given[given.index("--raw_dir") :][:2] if "--raw_dir" in given else []
    with tempfile.TemporaryDirectory() as scratch:
        labels = [*checkpoints.values(), "--labels", *checkpoints]
        alignment.main([*labels, "--rows", dataset, "--output_dir", scratch, *raw_dir])
        for kind in ("png", "svg"):
            source = Path(scratch) / f"{'heat_map' if target == 'figure5' else 'embeddings'}.{kind}"
            shutil.copyfile(source, output_dir / f"{target}.{kind}")
        shutil.copyfile(Path(scratch) / "alignment.json", output_dir / f"{target}.json")


def main(given: Sequence[str] | None = None) -> None:
    given, of_every_run = split_arguments(sys.argv[1:] if given is None else given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", choices=[*TARGETS, "all"], metavar="TABLE_OR_FIGURE")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="default: no limit")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4])
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=list(SIZES), default="paper" if has_gpu else "small")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="only these of the systems")
    parser.add_argument("--trials", type=int, default=1, help="settings tried for each system (default: %(default)s)")
    at_once = 4 if has_gpu else 1
    parser.add_argument(
        "--at_once", type=int, default=at_once, help="ID models trained side by side (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=results_table.RESULTS, help="default: benchmarks/results")
    parser.add_argument("--output_dir", type=Path, help="default: outputs/reproduce/DATASET")
    options = parser.parse_args(given)
    targets = list(TARGETS) if "all" in options.targets else options.targets
    output_dir = options.output_dir or Path("outputs/reproduce") / options.dataset
    output_dir.mkdir(parents=True, exist_ok=True)
    (options.results / options.dataset).mkdir(parents=True, exist_ok=True)
    bench = Bench(options.results, output_dir / "models", of_every_run)
    try:  # before hours of runs
        paper_tables.check_alike(paper_tables.load_runs(bench.results / options.dataset))
    except ValueError as error:
        parser.error(str(error))
    if options.dataset == "demo":
        make_demo_text_models()
    runs = runs_of(targets, options.dataset, options.size, options.seeds, options.trials)
    if options.systems:
        names = {one.name for one, _ in runs}
        if strangers := set(options.systems) - names:
            parser.error(f"{', '.join(sorted(strangers))}: not among the systems, which are {', '.join(sorted(names))}")
        runs = [run for run in runs if run[0].name in options.systems]
    seconds = float("inf") if options.budget is None else 60 * options.budget
    left_out = make_runs(bench, runs, seconds, options.at_once)
    paper_tables.compare_all(bench.results / options.dataset)
    for target in targets:
        draw(target, bench, options.dataset, options.size, output_dir)
    print(f"\n{len(runs) - len(left_out)} of {len(runs)} runs are there; tables and figures are in {output_dir}")
    if left_out:
        reasons = [why for why in left_out if why != NO_TIME]
        if count := left_out.count(NO_TIME):
            reasons.append(f"{count} more, for which no time was left; the same command goes on with them")
        print("left out:\n  " + "\n  ".join(reasons))


if __name__ == "__main__":
    main()
