"""The paper's tables and figures 3 and 4 from the figures of finished runs, beside the paper's own.

What one system is compared with is computed once, by `compare_all`, and kept in comparisons.json beside the runs: the tables
themselves are made of JSON alone.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import significance
from benchmarks.paper_runs import (
    KINDS,
    MASK_RATIOS,
    SIZES,
    TEMPERATURES,
    TOWERS,
    figure_system,
    name_of_runs,
    parts_of,
    text_models,
)
from benchmarks.protocol import changes, chosen_epochs, chosen_trial
from modeling_flip.training import manifest

COMPARISONS = "comparisons.json"
PAPER = Path(__file__).with_name("paper.json")
OURS = ("flip-id", "flip-id-searched", "flip-plm", "flip", "flip-searched")
TITLES = {
    "afm": "AFM",
    "pnn": "PNN",
    "wide-deep": "Wide&Deep",
    "dcn": "DCN",
    "deepfm": "DeepFM",
    "xdeepfm": "xDeepFM",
    "afn": "AFN",
    "autoint": "AutoInt",
    "dcnv2": "DCNv2",
    "dcnv2-searched": "DCNv2, searched",
    "dcnv2-sparse": "DCNv2, `sparse_embeddings`",
    "dcn-mix": "DCN-Mix",
    "pnn-outer": "PNN, outer product",
    "ctr-bert": "CTR-BERT",
    "p5": "P5",
    "ptab": "PTab",
    "ctrl": "CTRL",
    "morec": "MoRec",
    "morec-cached": "MoRec, cached",
    "flip-id": "FLIP_ID",
    "flip-id-searched": "FLIP_ID, searched",
    "flip-plm": "FLIP_PLM",
    "flip": "FLIP",
    "flip-searched": "FLIP, searched",
}
# A run's figures by seed, by system.
Runs = dict[str, dict[int, dict[str, Any]]]


@dataclass(frozen=True)
class Table:
    """Cells as text, the first row the head."""

    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        head, *rows = self.rows
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.rows)
        return text.getvalue()


def load_runs(folder: Path, is_refitted: bool = True) -> Runs:
    """The runs of a dataset that were made by benchmarks/protocol.py, or those from before it."""
    runs: Runs = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        found = re.fullmatch(r"(.+)-(\d+)", path.stem)
        if found and ("search" in (figures := json.loads(path.read_text()))) == is_refitted:
            runs[found[1]][int(found[2])] = figures
    return dict(runs)


def base_name(system: str) -> str:
    return system.removesuffix(SIZES["small"])


# ---- comparisons


def sizes_of(runs: Runs) -> list[str]:
    """Whether these are runs of the small recipes, of the paper's, or of both; ID models have one recipe for both."""
    small = {base_name(system) for system in runs if system.endswith(SIZES["small"])}
    return [*(["small"] if small else []), *(["paper"] if not small or small & runs.keys() else [])]


def compare_all(folder: Path) -> dict[str, Any]:
    """Compares, of a dataset's runs: in Table 2 both FLIP_IDs and FLIP_PLM with the best baseline of their kind, both FLIPs
    with the best of all; FLIP_ID also with CTRL, which serves the tabular tower alone too; in Table 5 FLIP and FLIP_ID with each
    ablation. Small systems and the paper's are compared with their like. The best baseline is the one of the highest mean AUC in
    test. p values are corrected within each table, CTRL's with those of Table 2. Writes comparisons.json.

    Raises:
        ValueError: the seeds of a system had different settings, or two runs were tested on different rows.
    """
    runs = load_runs(folder)
    check_alike(runs)
    users = significance.read_users(folder / "predictions" / significance.USERS)
    comparisons: dict[str, dict[str, Any]] = {"table2": {}, "ctrl": {}, "table5": {}}

    def compare(pairs: Sequence[tuple[str, str, str, dict[str, Any]]]) -> None:
        """Compares each system (the second) with another, and corrects their p values together."""
        records = []
        for table, system, other, more in pairs:
            a, b = (with_predictions(folder, one, runs[one]) for one in (system, other))
            records.append({"against": other} | significance.compare_systems(a, b, users=users) | more)
            place = comparisons[table].setdefault(other, {}) if table == "table5" else comparisons[table]
            place[system] = records[-1]
        corrected = significance.holm([record["auc"]["p_seeds"] for record in records])
        for record, p in zip(records, corrected, strict=True):
            record["p_holm"] = None if np.isnan(p) else float(p)
            record["is_better"] = significance.is_better(record, p)

    for size in sizes_of(runs):
        named = {name: run for name in KINDS if (run := name_of_runs(folder.name, size, name)) in runs}
        of_table2: list[tuple[str, str, str, dict[str, Any]]] = []
        for name in (name for name in OURS if name in named):
            kinds = KINDS.values() if KINDS[name] == KINDS["flip"] else [KINDS[name]]
            baselines = [other for other in named if other not in OURS and KINDS[other] in kinds]
            if baselines:
                best = max(baselines, key=lambda other: mean_of(runs[named[other]], "test_auc"))
                of_table2.append(("table2", named[name], named[best], {"best_of": len(baselines)}))
        if {"flip-id", "ctrl"} <= named.keys():
            of_table2.append(("ctrl", named["flip-id"], named["ctrl"], {}))
        compare(of_table2)
        variants = [(name, variant) for name in ("flip", "flip-id") for variant in parts_of(name)]
        parts = [
            [name_of_runs(folder.name, size, name, given) for given in (variant, "")] for name, variant in variants
        ]
        compare([("table5", other, whole, {}) for other, whole in parts if {other, whole} <= runs.keys()])
    manifest.write(folder / COMPARISONS, json.dumps(comparisons, indent=2) + "\n")
    return comparisons


def check_alike(runs: Runs) -> None:
    """Raises ValueError where the seeds of a system had different settings."""
    for system, of in runs.items():
        first, *others = sorted(of)
        for seed in others:
            if changed := changes(of[first]["recipe"] | {"seed": seed}, of[seed]["recipe"]):
                raise ValueError(
                    f"{system}-{first} and {system}-{seed} are not the same system: {'; '.join(changed)} in the second; remove "
                    "one of them"
                )


def with_predictions(folder: Path, system: str, runs: Mapping[int, dict[str, Any]]) -> significance.Runs:
    found = {}
    for seed, figures in runs.items():
        file = folder / "predictions" / f"{system}-{seed}.parquet"
        found[seed] = (figures, significance.read_predictions(file) if file.exists() else None)
    return found


# ---- tables


def table2(folder: Path) -> Table:
    """All systems, and ours against the best baseline: both FLIP_IDs and FLIP_PLM of their kind, both FLIPs of all."""
    runs, published = load_runs(folder), paper(folder.name)
    comparisons = comparisons_of(folder).get("table2", {})
    head = ["kind", "system", "text tower", "seeds", "test AUC", "test logloss", "AUC on rows with an unseen value"]
    head += ["paper AUC", "paper logloss", "AUC against the best baseline", "p, seeds", "p, rows", "better"]
    rows = []
    for name, kind in KINDS.items():
        for system in (system for system in runs if base_name(system) == name):
            of = runs[system]
            rows.append(
                [
                    kind,
                    TITLES[name],
                    text_tower_of(of),
                    str(len(of)),
                    *(spread(of, key) for key in ("test_auc", "test_logloss", "test_unseen_auc")),
                    *published_of(published.get(name)),
                    *against(comparisons.get(system)),
                ]
            )
    return Table([head, *rows])


def before_refit(folder: Path) -> Table:
    """Runs from before the protocol: their models never saw the validation rows. Compare them with each other only."""
    runs, rows = load_runs(folder, is_refitted=False), []
    for name, kind in KINDS.items():
        for system in (system for system in runs if base_name(system) == name):
            of = runs[system]
            rows.append([kind, TITLES[name], text_tower_of(of), *figures_of(of), spread(of, "validation_auc")])
    return Table([["kind", "system", "text tower", "seeds", "test AUC", "test logloss", "validation AUC"], *rows])


def table3(folder: Path, size: str) -> Table:
    """FLIP with other tabular towers: each tower alone, and as FLIP_ID, FLIP_PLM and FLIP."""
    runs, published = load_runs(folder), paper(folder.name, "table3")
    rows = []
    for tower in TOWERS:
        for name in ("N/A", "flip-id", "flip-plm", "flip"):
            given = (tower,) if name == "N/A" else (name, "" if tower == "dcnv2" else tower)
            system = name_of_runs(folder.name, size, *given)
            title = "alone" if name == "N/A" else TITLES[name]
            theirs = published.get(tower, {}).get("alone" if name == "N/A" else name)
            rows.append([TITLES[tower], title, *figures_of(runs.get(system, {})), *published_of(theirs)])
    return Table([["tabular tower", "", "seeds", "test AUC", "test logloss", "paper AUC", "paper logloss"], *rows])


def table4(folder: Path, size: str) -> Table:
    """FLIP with other text towers."""
    runs, published = load_runs(folder), paper(folder.name, "table4")
    rows = []
    for variant in ("", *text_models(folder.name, size)):
        for name in ("flip-id", "flip-plm", "flip"):
            of = runs.get(name_of_runs(folder.name, size, name, variant), {})
            theirs = published.get(variant or "tinybert", {}).get(name) if size == "paper" else None
            text_model = variant or text_tower_of(runs.get(name_of_runs(folder.name, size, "flip"), {}))
            rows.append([text_model, TITLES[name], *figures_of(of), *published_of(theirs)])
    return Table([["text tower", "", "seeds", "test AUC", "test logloss", "paper AUC", "paper logloss"], *rows])


def table5(folder: Path, size: str) -> Table:
    """Pretraining without one of its parts. The difference is that of the ablation from FLIP with all of them."""
    runs, published = load_runs(folder), paper(folder.name, "table5")
    comparisons = comparisons_of(folder).get("table5", {})
    head = ["system", "pretraining", "seeds", "test AUC", "test logloss", "paper AUC", "paper logloss"]
    rows = []
    for name in ("flip", "flip-id"):
        titles = {"": "all of it"} | {variant: title for variant, (title, _) in parts_of(name).items()}
        for variant, title in titles.items():
            whole, system = (name_of_runs(folder.name, size, name, given) for given in ("", variant))
            theirs = published.get(variant or "flip") if name == "flip" else None
            cells = [TITLES[name], title, *figures_of(runs.get(system, {})), *published_of(theirs)]
            rows.append([*cells, *against(comparisons.get(whole, {}).get(system))[:3]])
    return Table([[*head, "AUC against all of it", "p, seeds", "p, rows"], *rows])


def searches(folder: Path) -> Table:
    """What was chosen on validation, out of how many trials, and the figures before the refit."""
    head = ["system", "trials", "chosen", "epochs", "validation AUC", "test AUC before the refit", "hours of search"]
    rows = []
    for system, of in load_runs(folder).items():
        search = next(iter(of.values()))["search"]
        trials, chosen = search["trials"], chosen_trial(search)
        settings = " ".join(part.removeprefix("--") for part in chosen["settings"]) or "the recipe as it is"
        hours = sum(trial["wall_time"]["total_seconds"] for trial in trials) / 3600
        figures = [f"{chosen[key]:.4f}" for key in ("validation_auc", "test_auc")]
        rows.append([system, str(len(trials)), settings, f"{chosen_epochs(search):g}", *figures, f"{hours:.1f}"])
    return Table([head, *rows])


def all_runs(results: Path) -> Table:
    """Every run of every dataset, a row each: what it was, what it measured, and on what."""
    figures = ("test_auc", "test_logloss", "test_ne", "test_ece", "test_unseen_auc", "test_unseen_rows", "alpha")
    facts = ("num_parameters", "train_samples_per_second", "test_rows_per_second", "commit")
    head = ["dataset", "system", "kind", "seed", "pretraining_seed", "text_model", "trials", "chosen", "epochs"]
    head += ["validation_auc_before_refit", "test_auc_before_refit", *figures, *facts, "cpus", "gpu", "torch", "recipe"]
    rows = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        for system, of in load_runs(folder).items():
            for seed, run in sorted(of.items()):
                search, recipe = run["search"], json.dumps(run["recipe"])
                chosen, machine = chosen_trial(search), run["hardware"]
                cells = [folder.name, system, KINDS.get(base_name(system), ""), seed, run.get("pretraining_seed")]
                cells += [run.get("text_model"), len(search["trials"]), " ".join(chosen["settings"])]
                cells += [chosen_epochs(search), chosen["validation_auc"], chosen["test_auc"]]
                cells += [run.get(key) for key in (*figures, *facts)]
                cells += [machine["cpus"], machine["gpu"], run["versions"]["torch"], recipe]
                rows.append(["" if cell is None else str(cell) for cell in cells])
    return Table([head, *rows])


def figure3(folder: Path, size: str) -> dict[str, dict[float, dict[int, dict[str, Any]]]]:
    """The runs by mask ratio, for each side."""
    return {
        f"{side} mask ratio": sweep(
            folder, size, {0.15: ""} | {ratio: f"{side}-mask-{ratio:g}" for ratio in MASK_RATIOS}
        )
        for side in ("text", "tabular")
    }


def figure4(folder: Path, size: str) -> dict[str, dict[float, dict[int, dict[str, Any]]]]:
    """The runs by temperature."""
    return {"temperature": sweep(folder, size, {tau: f"temperature-{tau:g}" for tau in TEMPERATURES} | {0.7: ""})}


def sweep(folder: Path, size: str, variants: Mapping[float, str]) -> dict[float, dict[int, dict[str, Any]]]:
    """The runs of each variant of the system that figures 3 and 4 show."""
    runs, name = load_runs(folder), figure_system(size)
    return {value: runs.get(name_of_runs(folder.name, size, name, variant), {}) for value, variant in variants.items()}


def draw_sweep(panels: Mapping[str, Mapping[float, Mapping[int, Mapping[str, Any]]]], title: str, path: Path) -> None:
    """AUC and logloss over a setting, a column for each; means over the seeds that all its values have, and each seed as a point.
    As `path`.png and .svg."""
    from matplotlib.figure import Figure

    from benchmarks.alignment import save

    figure = Figure(figsize=(3.4 * len(panels), 4.6), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharex="col", sharey="row")
    for column, (name, by_value) in enumerate(panels.items()):
        seeds = set.intersection(*found) if (found := [set(of) for of in by_value.values() if of]) else set()
        values = sorted(value for value, of in by_value.items() if of and seeds)
        places = range(len(values))  # evenly: some are close to each other
        runs = [{seed: of for seed, of in by_value[value].items() if seed in seeds} for value in values]
        for row, (key, label) in enumerate({"test_auc": "test AUC", "test_logloss": "test logloss"}.items()):
            panel = axes[row, column]
            panel.plot(places, [mean_of(of, key) for of in runs], color="C0")
            for place, of in zip(places, runs, strict=True):
                found = [run[key] for run in of.values()]
                panel.plot([place] * len(found), found, "o", ms=4, color="C0", alpha=0.6, mew=0)
            panel.set_xticks(places, [f"{value:g}" for value in values])
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(label)
        axes[-1, column].set_xlabel(name)
    figure.suptitle(title, fontsize="medium")
    save(figure, path)


# ---- cells


def paper(dataset: str, table: str = "table2") -> dict[str, Any]:
    """The paper's figures for a dataset, AUC and logloss by system."""
    return dict(json.loads(PAPER.read_text())[table].get(dataset, {}))


def comparisons_of(folder: Path) -> dict[str, Any]:
    file = folder / COMPARISONS
    return dict(json.loads(file.read_text())) if file.exists() else {}


def mean_of(runs: Mapping[int, Mapping[str, Any]], key: str) -> float:
    return float(np.mean([run[key] for run in runs.values()]))


def spread(runs: Mapping[int, Mapping[str, Any]], key: str) -> str:
    """Mean, and the standard deviation over seeds where there are several."""
    values = [run[key] for run in runs.values() if run.get(key) is not None]
    if not values:
        return "–"
    deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{deviation}"


def figures_of(runs: Mapping[int, Mapping[str, Any]]) -> list[str]:
    return [str(len(runs)) if runs else "–", spread(runs, "test_auc"), spread(runs, "test_logloss")]


def published_of(figures: Sequence[float] | None) -> list[str]:
    return ["–", "–"] if figures is None else [f"{value:.4f}" for value in figures]


def text_tower_of(runs: Mapping[int, Mapping[str, Any]]) -> str:
    return Path(next(iter(runs.values()), {}).get("text_model") or "–").name


def against(record: Mapping[str, Any] | None) -> list[str]:
    """The difference with its interval, p over seeds and over rows, and whether it is better."""
    if record is None:
        return ["–"] * 4
    auc = record["auc"]
    interval = "" if auc["low"] is None else f" [{auc['low']:+.4f}, {auc['high']:+.4f}]"
    return [
        f"{auc['difference']:+.4f}{interval}",
        p(record["p_holm"]),
        p(auc["p_rows"]),
        "yes" if record["is_better"] else "no",
    ]


def p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
