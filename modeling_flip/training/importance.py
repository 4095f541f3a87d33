"""Which fields a model needs: how much worse it gets when the values of one field are shuffled among the rows.

    python -m modeling_flip.training.importance --model FOLDER --data rows.csv --label_column clicked

Permutation importance (Breiman, Random Forests, 2001): the drop of AUC and the rise of logloss, mean and standard deviation
over several shuffles. The values are shuffled before either tower reads them, so a field's feature and its words move together.
If two fields hold the same information, both look less important than they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.inspection import permutation_importance
from transformers import pipeline
from transformers.utils import logging

from ..fields import did_you_mean
from ..pipeline_flip import CtrPredictionPipeline
from ..table_files import READ, open_table
from .data import read_labels
from .metrics import ctr_metrics

# The rows are scored `repeats` times for each field: with a text tower, these take minutes on a CPU.
ROWS, REPEATS = 5_000, 3


@dataclass(frozen=True)
class Importance:
    """What shuffling a field costs: mean and standard deviation over the shuffles."""

    field: str
    auc_drop: float
    auc_drop_std: float
    logloss_rise: float
    logloss_rise_std: float


def field_importance(
    score: CtrPredictionPipeline, rows: Any, clicks: np.ndarray, repeats: int = REPEATS, seed: int = 0
) -> list[Importance]:
    """The importance of each field that a model reads, the most important first.

    Args:
        score: the model and its processor.
        rows: anything that the processor encodes, with a column for each field.
        clicks: (N,) 0 or 1, both present.
        repeats: how often each field is shuffled.
        seed: seed of the shuffles.

    Raises:
        ValueError: a column is absent, or the clicks are all the same.
    """
    encoded, names = score.encode(rows, strict=True), score.processor.fields

    def figures(_: Any, value_ids: np.ndarray, clicks: np.ndarray) -> dict[str, float]:
        metrics = ctr_metrics(score.logits(replace(encoded, value_ids=value_ids)), clicks)
        bar.update()
        return {"auc": metrics["auc"], "logloss": -metrics["logloss"]}

    never_fitted = SimpleNamespace(fit=len)  # scikit-learn needs an estimator, but only passes it to `figures`
    with logging.tqdm(total=1 + repeats * len(names), desc=f"scoring {len(clicks):,} rows", unit=" times") as bar:
        found = permutation_importance(
            never_fitted, encoded.value_ids, clicks, scoring=figures, n_repeats=repeats, random_state=seed
        )
    auc, logloss = found["auc"], found["logloss"]
    columns = [auc.importances_mean, auc.importances_std, logloss.importances_mean, logloss.importances_std]
    fields = [Importance(name, *map(float, values)) for name, *values in zip(names, *columns, strict=True)]
    return sorted(fields, key=lambda field: -field.auc_drop)


def importance_table(fields: Sequence[Importance]) -> str:
    """As text, a line for each field."""
    width = max(len("field"), *(len(field.field) for field in fields))
    lines = [f"{'field':{width}}  {'drop of AUC':>17}  {'rise of logloss':>17}"]
    for field in fields:
        auc = f"{field.auc_drop:.4f} ± {field.auc_drop_std:.4f}"
        logloss = f"{field.logloss_rise:.4f} ± {field.logloss_rise_std:.4f}"
        lines.append(f"{field.field:{width}}  {auc:>17}  {logloss:>17}")
    return "\n".join(lines)


def write_importance(path: Path, fields: Sequence[Importance]) -> None:
    """Draw both figures, the most important field on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.32 * len(fields)), layout="constrained")
    labels = [field.field if len(field.field) <= 40 else field.field[:39] + "…" for field in fields]
    places = range(len(fields))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, key in zip(panels, ("drop of AUC", "rise of logloss"), ("auc_drop", "logloss_rise"), strict=True):
        bars = [getattr(field, key) for field in fields]
        axes.barh(places, bars, xerr=[getattr(field, f"{key}_std") for field in fields], color="C0", ecolor="0.3")
        axes.locator_params(axis="x", nbins=5)  # more labels would touch each other
        axes.axvline(0, color="0.3", lw=0.8)
        axes.set_title(f"{title} when shuffled", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(places, labels, parse_math=False)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=120)


# ---- the command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="importance",
        usage="python -m modeling_flip.training.importance --model ID_OR_FOLDER --data FILE --label_column NAME [options]",
        description=(
            "Measure which fields a model needs: shuffle the values of one field at a time among the rows of a file, and "
            "print how much AUC drops and logloss rises. Use rows that the model was not trained on."
        ),
    )
    parser.add_argument("--model", required=True, metavar="ID_OR_FOLDER", help="a model on the Hub, or a folder")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help=f"rows with clicks: {READ}")
    parser.add_argument(
        "--label_column", required=True, metavar="NAME", help="the column of clicks: 0 and 1, or booleans"
    )
    parser.add_argument("--positive_label", metavar="WORD", help="the label that means a click, such as yes")
    parser.add_argument(
        "--positive_above",
        type=float,
        metavar="NUMBER",
        help="labels are ratings, and a rating above this number means a click",
    )
    parser.add_argument("--delimiter", help="character between the cells of a CSV (default: detected)")
    parser.add_argument("--encoding", help="encoding of a text file (default: detected)")
    parser.add_argument(
        "--rows", type=int, default=ROWS, help="how many rows to draw at random, at most (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="how often to shuffle each field (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw and the shuffles (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="also plot the table")
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="also write the table as JSON")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError if an argument is impossible, before anything is read."""
    for name in ("rows", "repeats"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be 1 or more")
    for name, suffix in (("output", ".png"), ("json", ".json")):
        path = getattr(args, name)
        if path is not None and path.suffix.lower() != suffix:
            raise ValueError(f"--{name} is {path}; name a {suffix} file")
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"folder {path.parent} of --{name} does not exist; make it first")


def read_rows(args: argparse.Namespace) -> tuple[pa.Table, np.ndarray]:
    """At most `rows` rows of the file, drawn at random, and their clicks.

    Raises:
        ValueError, OSError: the file or its labels cannot be read, or are all the same.
    """
    table = open_table(args.data, delimiter=args.delimiter, encoding=args.encoding).to_table()
    names, label = table.column_names, args.label_column
    if label not in names:
        raise ValueError(f"{args.data} has no column {label!r}; its columns are {names}{did_you_mean(label, names)}")
    clicks = read_labels(table[label], label, str(args.data), args.positive_label, args.positive_above)
    if len(table) > args.rows:
        chosen = np.sort(np.random.default_rng(args.seed).choice(len(table), args.rows, replace=False))
        table, clicks = table.take(pa.array(chosen)), clicks[chosen]
    if len(np.unique(clicks)) < 2:
        raise ValueError(f"{args.data} needs rows with clicks and without; all {len(clicks):,} have label {clicks[:1]}")
    return table.drop_columns([label]), clicks


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 where all went well, 2 where it could not."""
    args = make_parser().parse_args(arguments)
    try:
        check_arguments(args)
        rows, clicks = read_rows(args)
        score = pipeline("ctr-prediction", model=args.model)
        fields = field_importance(score, rows, clicks, args.repeats, args.seed)
        if args.output is not None:
            write_importance(args.output, fields)
        if args.json is not None:
            settings = {"model": args.model, "data": str(args.data), "rows": len(clicks), "repeats": args.repeats}
            content = {**settings, "seed": args.seed, "fields": [asdict(field) for field in fields]}
            args.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        print(f"importance: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(importance_table(fields))
    return 0


if __name__ == "__main__":
    sys.exit(main())
