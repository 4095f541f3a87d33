"""Recipes × seeds by one protocol (benchmarks/protocol.py), and the tables of README and docs from all results.

    python -m benchmarks.compare RECIPE.yaml … [--seeds 1 2 3] [-- --key value …]

What follows `--` is given to every run, such as `-- --raw_dir data/movielens-1m`. A run whose figures are in
benchmarks/results/DATASET/RECIPE-SEED.json is not repeated, an interrupted one continues where it was. Recipes with the same
pretraining share it. A run that fails is named at the end; the others go on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import results_table
from benchmarks.paper_tables import check_alike, compare_all, load_runs
from benchmarks.protocol import Bench, RunFailedError, System, split_arguments


def compare(recipes: list[str], seeds: list[int], arguments: list[str], output_dir: Path) -> list[str]:
    """Runs what is missing, and compares the systems of each dataset; returns the runs that failed.

    Raises:
        ValueError: the seeds of a system that was measured before had different settings. Nothing is run then.
    """
    bench = Bench(results_table.RESULTS, output_dir, arguments)
    systems = [System(Path(recipe).stem, recipe) for recipe in recipes]
    folders = {bench.result_file(system, seeds[0]).parent for system in systems}
    for folder in folders:
        check_alike(load_runs(folder))
    failed = []
    for system, seed in ((system, seed) for seed in seeds for system in systems):
        try:
            bench.measure(system, seed)
        except (RunFailedError, ValueError) as error:
            failed.append(str(error))
    for folder in folders:
        if folder.exists():
            compare_all(folder)
    return failed


def main() -> None:
    given, of_every_run = split_arguments(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/compare"), help="folder for the models")
    options = parser.parse_args(given)
    try:
        failed = compare(options.recipes, options.seeds, of_every_run, options.output_dir)
    except ValueError as error:
        parser.error(str(error))
    print(results_table.results())
    results_table.main()
    if failed:
        sys.exit("these runs failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
