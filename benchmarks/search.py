"""Tries settings of a recipe on the validation rows: how settings of a recipe in configuration/ are chosen.

    python -m benchmarks.search RECIPE.yaml --json PATH --try="" --try="--key value …" … [--seed 1] [--output_dir DIR]
        [-- --key value …]

Each `--try` is a run of the recipe with these settings on top, "" the recipe as it is. What follows `--` is given to every run,
such as `-- --raw_dir data/bookcrossing`. A run that is there is not repeated. Prints the trials, the best on validation first,
and writes them to PATH. The test rows are scored too, for the record; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.protocol import FIGURES, Bench, RunFailedError, System, split_arguments
from benchmarks.results_table import RESULTS, table
from modeling_flip.training import manifest

SHOWN = ("validation_auc", "validation_logloss")


def main(given: Sequence[str] | None = None) -> None:
    given, of_every_run = split_arguments(sys.argv[1:] if given is None else given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("--try", action="append", required=True, dest="trials", metavar="SETTINGS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True, metavar="PATH")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/search"), help="folder for the models")
    options = parser.parse_args(given)
    bench = Bench(RESULTS, options.output_dir, of_every_run)
    system = System(Path(options.recipe).stem, options.recipe)
    trials = []
    try:  # all of them, before hours of runs
        for settings in options.trials:
            bench.recipe(system, options.seed, *settings.split())
    except ValueError as error:
        parser.error(str(error))
    for settings in options.trials:
        name = "".join([system.name, *settings.split()]).replace("/", "-")
        try:
            figures = bench.run(system, options.seed, settings.split(), name)
        except (RunFailedError, ValueError) as error:
            parser.error(str(error))
        trials.append({"settings": settings} | {key: figures[key] for key in (*FIGURES, "commit") if key in figures})
    trials.sort(key=lambda trial: -trial["validation_auc"])
    recipe = bench.recipe(system, options.seed).to_dict()
    found = {"recipe": recipe, "seed": options.seed, "hardware": figures.get("hardware"), "trials": trials}
    manifest.write(options.json, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    rows = [
        [
            one["settings"] or "as it is",
            *(f"{one[key]:.4f}" for key in SHOWN),
            f"{one['best_epoch'] or one['epochs']:g}",
        ]
        for one in trials
    ]
    print(table(["settings", "validation AUC", "validation logloss", "best epoch"], rows))


if __name__ == "__main__":
    main()
