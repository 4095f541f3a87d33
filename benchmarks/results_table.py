"""Renders the tables of the README and docs/ from benchmarks/results/: runs' all_results.json, and the benchmarks' --json;
that of the models from their docstrings. Also writes all runs as one table, benchmarks/results/runs.csv.

python -m benchmarks.results_table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper_runs import ABLATIONS, CONTROLS, KINDS
from benchmarks.paper_tables import (
    TITLES,
    Table,
    against,
    all_runs,
    base_name,
    before_refit,
    comparisons_of,
    figures_of,
    load_runs,
    searches,
    sizes_of,
    table2,
    table5,
)
from benchmarks.reference_tables import models, stage_settings
from benchmarks.significance import MIN_SEEDS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNS_FILE = "runs.csv"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DATASETS = {
    "movielens-1m": "MovieLens-1M",
    "movielens-100k": "MovieLens-100K",
    "bookcrossing": "BookCrossing",
    "goodreads": "GoodReads",
}


def load(*parts: str) -> dict[str, Any]:
    return json.loads(RESULTS.joinpath(*parts).read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return Table([head, *rows]).markdown()


def quickstart() -> str:
    rows = []
    for name in ("dcnv2", "flip-id", "flip-plm", "flip"):
        r = load("quickstart", f"{name}.json")
        figures = [f"{r[key]:.4f}" for key in ("test_auc", "test_logloss", "test_unseen_auc")]
        rows.append([TITLES[name], *figures])
    return table(["", "test AUC", "test logloss", "AUC on rows with an unseen value"], rows)


def speed() -> str:
    step, pipeline = load("pretraining_step.json"), load("data_pipeline.json")
    names = {"published": "as published, fp32", "fp32": "ours, fp32", "bf16": "ours, bf16"}
    step_rows = []
    for name, label in names.items():
        r, ratio, memory = step[name], step[name].get("ratio", 1), step[name].get("memory_ratio", 1)
        share = f"{r['share_of_peak']:.0%} of {r['matrix_product_peak'] / 1e9:.0f}"
        row = [label, f"{r['samples_per_second']:.0f}", f"{ratio:.1f}", f"{r['flops_per_second'] / 1e9:.0f}", share]
        step_rows.append([*row, f"{r['peak_memory_mib']:,.0f}", f"{memory:.2f}"])
    head = ["pretraining step, 2 CPU cores, batch 64", "samples/s", "ratio", "GFLOP/s", "of the peak"]
    head += ["peak memory, MiB", "of published"]
    figures = {
        name: f"{pipeline[f'{name}_rows_per_second'] / 1e6:.1f}" for name in ("encode", "feed_tabular", "feed_text")
    }
    towers, medium = load("tabular_training.json"), load("tabular_training_medium.json")
    rows = []
    for name in sorted({key.split(", ")[0] for key in towers}):
        each = [towers[f"{name}, batch 1024"], towers[f"{name}, batch 4096"], medium[f"{name}, batch 4096"]]
        rows.append([name, *(f"{r['trainer_samples_per_second']:,.0f} ({r['ratio']:.2f})" for r in each)])
    columns = ["training a tabular tower, 2 CPU cores", "samples/s, batch 1,024", "batch 4,096", "batch 4,096, medium"]
    training = table(columns, rows)
    return (
        f"{table(head, step_rows)}\n\n{training}\n\nIn brackets, the ratio to a bare PyTorch loop over the same model; medium "
        "is `--finetuning.float32_matmul_precision medium`, bf16 products on CPUs that have them.\n\nData with 8 fields, on "
        f"the same machine: {figures['encode']} million rows/s from a column table to integers; {figures['feed_tabular']} "
        f"million rows/s in shuffled batches of 1,024 for the tabular tower, {figures['feed_text']} million with "
        f"sentences.\n\n{scoring()}\n\n{sparse()}\n\n{several_processes()}"
    )


def several_processes() -> str:
    """Steps in one process and in several."""
    cases = load("distributed.json")["cases"]
    rows = []
    for name, r in cases.items():
        given = [f"{r[key]:,.0f}" if key in r else "–" for key in ("samples_per_second", "ms_per_step")]
        given += [f"{r[key]:,.0f}" if key in r else "–" for key in ("ms_per_checkpoint", "peak_memory_mib")]
        rows.append([name, *given])
    return table(["two threads in all", "samples/s", "ms a step", "ms a checkpoint", "MiB of a process"], rows)


def sparse() -> str:
    """Steps against the number of features."""
    steps = load("sparse_step.json")["step_seconds"]
    labels = {
        "finetuning, dense": "DCNv2, batch 2,048",
        "finetuning, sparse": "with `sparse_embeddings`",
        "finetuning, sparse, uniform rows": "the same, all values equally frequent",
        "mtm, dense": "MTM, batch 1,024",
        "mtm, sparse": "with `sparse_embeddings`",
        "bare loop, dense": "bare loop, AdamW",
        "bare loop, torch": "bare loop, torch.optim.SparseAdam beside AdamW",
        "bare loop, ours": "bare loop, `SparseAdamW`",
        "bare loop, fbgemm": "bare loop, FBGEMM's table-batched embeddings, row-wise Adagrad",
    }
    features = list(steps["finetuning, sparse"])
    rows = []
    for name, label in labels.items():
        ms = [1e3 * steps[name][m] for m in features]
        rows.append([label, *(f"{x:.0f}" for x in ms), f"{ms[-1] / ms[0]:.2f}"])
    head = ["ms a step, one CPU core", *(f"{int(m):,} features" for m in features), "last / first"]
    return table(head, rows)


def scale() -> str:
    """Preparation as the rows grow, and the same preparation by other tools."""
    measured = load("scale.json")
    rows = []
    for run in measured["runs"]:
        million = [run[f"{name}_rows_per_second"] / 1e6 for name in ("prepare", "encode", "feed")]
        gib = [run[f"{name}_peak_mib"] / 1024 for name in ("prepare", "open", "feed")]
        rows.append(
            [
                f"{run['rows']:,}",
                f"{run['features']:,}",
                *(f"{speed:.2f}" for speed in million),
                f"{run['open_seconds']:.1f} s",
                " / ".join(f"{size:.1f}" for size in gib),
                f"{run['disk_mib'] / 1024:.1f}",
            ]
        )
    head = ["rows", "features", "prepare", "encode alone", "feed", "open", "peak memory, GiB", "disk, GiB"]
    tools = load("preparation_tools.json")
    names = {"modeling_flip": "this package", "datasets map": "`Dataset.map`", "pandas": "pandas", "polars": "Polars"}
    others = [
        [names[tool], f"{of['seconds']:,.0f} s", f"{of['cpu_seconds']:,.0f} s", f"{of['peak_mib'] / 1024:.1f} GiB"]
        for tool, of in tools["tools"].items()
    ]
    columns = [f"{tools['rows']:,} rows to integers on disk", "time", "CPU time", "peak memory"]
    return (
        f"{table(head, rows)}\n\nSpeeds are in million rows a second, with one thread. Peak memory is that of preparing, opening "
        f"and feeding, Python and its imports included.\n\n{table(columns, others)}"
    )


NEW_VALUES = {
    "FLIP_ID-unknown": "FLIP_ID of the old days, finetuned further; new values stay unknown",
    "FLIP_ID-mean": "FLIP_ID, `--init_from`, but starting from the mean",
    "FLIP_ID-text": "FLIP_ID, `--init_from`",
    "FLIP_ID-scratch": "FLIP_ID from scratch on all days, alignment included",
    "FLIP-unknown": "FLIP of the old days, finetuned further; new values stay unknown",
    "FLIP-mean": "FLIP, `--init_from`, but starting from the mean",
    "FLIP-text": "FLIP, `--init_from`",
    "FLIP-text-scoring-text": 'FLIP, `--init_from`, and scored with `cold_start="text"`',
    "FLIP-scratch": "FLIP from scratch on all days",
    "scoring-unknown": "FLIP of the old days scores the test rows",
    "scoring-mean": "FLIP of the old days scores them, new values as the mean of their field",
    "scoring-text": 'FLIP of the old days scores them with `cold_start="text"`',
}


def new_values() -> str:
    """What a start of new values is worth, on days that training never saw."""
    parts = []
    for name, title in {"demo": "The demo", "movielens-1m": "MovieLens-1M"}.items():
        if not (RESULTS / f"new_values-{name}.json").exists():
            continue
        measured = load(f"new_values-{name}.json")
        runs, (old, new, end) = measured["figures"], measured["ends"]
        mean = {system: {which: mean_auc(runs, system, which) for which in ("all", "new")} for system in NEW_VALUES}
        rows = []
        for system, label in NEW_VALUES.items():
            seconds = np.mean([run[system].get("seconds", 0) for run in runs])
            aucs = [f"{mean[system][which]:.3f}" for which in ("all", "new")]
            rows.append([label, *aucs, f"{seconds:.0f}" if seconds else "–"])
        gains = ", ".join(
            f"{mean[f'{system}-text']['new'] - mean[f'{system}-mean']['new']:+.4f} for {system}"
            for system in ("FLIP_ID", "FLIP")
        )
        scored = mean["scoring-text"]["new"] - mean["scoring-mean"]["new"]
        parts += [
            f"**{title}**: {old:,} rows of old days, {new - old:,} of new ones and {end - new:,} test rows after them, "
            f"{runs[0]['rows']['new']:,} of these with a value that the old days do not have (*new*). Test AUC, mean of "
            f"{len(runs)} seeds:",
            table(["", "all rows", "new", "seconds"], rows),
            f"Starting from the words instead of the mean changed the AUC on the new rows, after finetuning, by {gains}; "
            f"scoring with the words instead of the mean changed it by {scored:+.4f}.",
        ]
    return "\n\n".join(parts)


def mean_auc(runs: list[dict[str, Any]], system: str, which: str) -> float:
    return float(np.mean([run[system]["auc"][which] for run in runs]))


def icl_layer_norm() -> str:
    """ICL's loss at the end of the demo's pretraining."""
    measured = load("icl_layer_norm.json")
    losses = {name: of["icl_loss"] for name, of in measured["losses"].items()}
    kinds = list(dict.fromkeys(name.split(", ")[0] for name in losses))
    rows = [[kind, *(f"{losses[f'{kind}, {how} layer norm']:.2f}" for how in ("without", "with"))] for kind in kinds]
    return table([f"ICL's loss, of log B = {measured['loss_of_chance']:.2f}", "without layer norm", "with it"], rows)


def scoring() -> str:
    """Rows/s of every way to score, and the time that one row takes."""
    measured = load("scoring.json")["models"]
    ways = {"list of dicts": "pipeline, dicts", "DataFrame": "DataFrame", "Parquet to Parquet": "score command"}
    rows = []
    for name, r in measured.items():
        cells = [f"{r[way]['rows_per_second']:,.0f} ({r[way]['ratio']:.2f})" for way in ways]
        p50, p99 = (r["latency"][f"pipeline_p{p}_ms"] for p in (50, 99))
        bare = f"{r['bare loop']['rows_per_second']:,.0f}"
        rows.append([name, bare, *cells, f"{p50:.1f} / {p99:.1f} ms", f"{r['latency']['bare_p50_ms']:.1f} ms"])
    head = ["scoring, rows/s", "bare loop", *ways.values(), "one row, p50 / p99", "bare, p50"]
    return (
        f"{table(head, rows)}\n\nBatches of 1,024, raw rows in, probabilities out; in brackets, the ratio to a loop that only "
        "calls the model, on tensors made beforehand. DCNv2 and a text tower of TinyBERT's size; two cores. The "
        f"median of {' and '.join(sorted({str(r['rounds']) for r in measured.values()}, key=int))} rounds."
    )


def runtimes() -> str:
    """Of each model and runtime one row; FLIP_ID, which has no text tower, stands there once."""
    rows: list[list[str]] = []
    for model, by_threads in load("serving.json")["models"].items():
        one, two = by_threads["1 threads"], by_threads["2 threads"]
        for system in one if not rows else [name for name in one if name != "FLIP_ID"]:
            name = system if system == "FLIP_ID" else f"{system}, {model.rpartition('-')[2]} layers"
            for runtime, f in one[system].items():
                both, first = two[system][runtime], one[system]["torch fp32"]
                row = [name, runtime, f"{f['megabytes']:.1f}", f"{f['row_p50_ms']:.1f} / {f['row_p99_ms']:.1f}"]
                row.append(f"{f['rank_p50_ms']:.1f}" if "rank_p50_ms" in f else "–")
                row.append(f"{f['rows_per_second']:,.0f} ({f['rows_per_second'] / first['rows_per_second']:.1f})")
                base = two[system]["torch fp32"]["rows_per_second"]
                row.append(f"{both['rows_per_second']:,.0f} ({both['rows_per_second'] / base:.1f})")
                rows.append([*row, f"{f['auc']:.4f} ({f['auc'] - first['auc']:+.4f})"])
    head = [
        "model",
        "runtime",
        "MB",
        "one row, p50 / p99 ms",
        "100 candidates, ms",
        "rows/s, 1 core",
        "rows/s, 2 cores",
    ]
    return table([*head, "AUC"], rows)


def goodreads_join() -> str:
    """Time and memory of the engines that can join GoodReads."""
    names = {"duckdb": "DuckDB", "polars": "Polars, streaming"}
    rows = []
    for file in ("goodreads_join.json", "goodreads_join_20m.json"):
        measured = load(file)
        for engine, name in names.items():
            r = measured.get(engine)
            if r is None or r["seconds"] is None:
                continue
            cells = [f"{r['seconds']:,.0f}", f"{r['cpu_seconds']:,.0f}", f"{r['peak_mib']:,.0f}"]
            rows.append(
                [f"{measured['interactions'] / 1e6:.0f}", f"{measured['books']:,}", f"{name} {r['version']}", *cells]
            )
    imports = min(run["imports_mib"] for run in load("goodreads_join.json")["duckdb"]["rounds"])
    head = ["million interactions", "books", "engine", "seconds", "CPU seconds", "peak memory, MiB"]
    return (
        f"{table(head, rows)}\n\nOf the memory, {imports:,.0f} MiB are the imports. At 2 million the best of three rounds; at 20 "
        "million one round, of ten copies of the 2 million with other users and books, while the load of the machine changed: "
        "only memory and CPU seconds compare there."
    )


def cluster_fit() -> str:
    """Time and memory of the engines that can fit a vocabulary beyond one machine."""
    names = {
        "one": "one process, all rows at once",
        "one_by_parts": "one process, part by part",
        "ray_tasks": "Ray, tasks",
        "ray_data": "Ray Data",
        "spark": "Spark",
    }
    rows = []
    for file in ("cluster_fit_100k.json", "cluster_fit.json"):
        measured = load(file)
        for engine, name in names.items():
            r = measured[engine]
            cells = [f"{r[key]:,.0f}" for key in ("start_seconds", "seconds", "cpu_seconds", "peak_mib")]
            cells[1] = f"{r['seconds']:.1f}"
            size = f"{r['installed_mib']:,.0f}" if r["installed_mib"] else "–"
            rows.append([f"{measured['rows'] / 1e6:g}", f"{name} {r['version'] or ''}".strip(), *cells, size])
    head = ["million rows", "engine", "start, s", "fold, s", "CPU seconds", "peak memory, MiB", "installed, MiB"]
    return (
        f"{table(head, rows)}\n\nOne round each, in 8 files, while the load of the machine changed: CPU seconds and memory, of "
        "all processes together, compare best. Spark's size is without Java. Most of an engine's CPU seconds are the same for a "
        "twentieth of the rows: its start and its workers' imports (PyTorch, Transformers). It pays off for logs that take one "
        "machine a long time."
    )


def alignment() -> str:
    """What figures 5 and 6 show, in numbers, of each pretraining that was looked at."""
    rows = []
    for name, title in {"demo": "demo", **DATASETS}.items():
        file = RESULTS / f"alignment-{name}.json"
        for variant, of in load(file.name)["checkpoints"].items() if file.exists() else ():
            matrix, fields = of["mean_matrix"], len(of["fields"])
            largest = [f"{matrix[f'largest_of_{side}'] * fields:.0f} of {fields}" for side in ("row", "column")]
            means = [f"{matrix[key]:.2f}" for key in ("mean_diagonal", "mean_off_diagonal")]
            rank = f"{of['effective_rank']:.1f} of {of['embedding_size']}"
            rows.append([title, variant, *largest, *means, f"{of['mean_cosine']:.2f}", rank])
    head = ["dataset", "pretraining", "diagonal largest of its row", "of its column", "mean on it", "off it"]
    return table([*head, "embeddings' mean cosine", "their effective rank"], rows)


def results_in_short() -> str:
    """For readers in a hurry: of each dataset with enough seeds, our systems and what each is compared with."""
    rows, sentences = [], []
    for name, title in DATASETS.items():
        runs, compared = load_runs(RESULTS / name), comparisons_of(RESULTS / name).get("table2", {})
        if max((len(runs[system]) for system in compared), default=0) < MIN_SEEDS:
            continue
        for system in dict.fromkeys([*(record["against"] for record in compared.values()), *compared]):
            rows.append([title, TITLES[base_name(system)], *figures_of(runs[system])])
        sentences += verdicts(name)
    return table(["", "", "seeds", "test AUC", "test logloss"], rows) + "\n\n" + "\n".join(sentences)


def verdicts(name: str) -> list[str]:
    """What Table 2 of a dataset says of our systems, a line for each comparison."""
    lines, comparisons = [], comparisons_of(RESULTS / name)
    for group in ("table2", "ctrl"):
        for system, record in comparisons.get(group, {}).items():
            difference, p = against(record)[:2]
            kind = "ID models" if KINDS[base_name(system)] == "ID" else "baselines"
            what = (
                f"the best of {record['best_of']} {kind}"
                if group == "table2"
                else "which also serves the tabular tower alone"
            )
            verdict = "better" if record["is_better"] else "not shown to be better"
            lines.append(
                f"- {DATASETS[name]}, {TITLES[base_name(system)]} against {TITLES[base_name(record['against'])]}, {what}: AUC "
                f"{difference}, logloss {record['logloss']['difference']:+.4f}, p = {p} over {len(record['seeds_a'])} seeds: "
                f"{verdict}."
            )
    return lines


def results() -> str:
    """The tables of each dataset that has been measured."""
    parts = []
    for name, title in DATASETS.items():
        folder, tables = RESULTS / name, {}
        if runs := load_runs(folder):
            tables["all systems (Table 2)"] = table2(folder).markdown() + "\n\n" + "\n".join(verdicts(name))
            sizes = sizes_of(runs)
            for size in sizes if any(base_name(system).endswith((*ABLATIONS, *CONTROLS)) for system in runs) else ():
                what = f", {size} recipes" if len(sizes) > 1 else ""
                tables[f"parts of the pretraining (Table 5){what}"] = table5(folder, size).markdown()
            tables["what was chosen on validation"] = searches(folder).markdown()
        if load_runs(folder, is_refitted=False):
            tables["before the refit"] = before_refit(folder).markdown()
        parts += [f"**{title}: {what}**\n\n{of}" for what, of in tables.items()]
    return "\n\n".join(parts)


def render(text: str) -> str:
    """The text with each table between its marks."""
    for section in (
        quickstart,
        results_in_short,
        speed,
        scale,
        runtimes,
        goodreads_join,
        cluster_fit,
        new_values,
        icl_layer_norm,
        alignment,
        results,
        models,
        stage_settings,
    ):
        begin, end = f"<!-- {section.__name__} -->", f"<!-- end of {section.__name__} -->"
        if begin in text:
            before, rest = text.split(begin)
            text = f"{before}{begin}\n{section()}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    (RESULTS / RUNS_FILE).write_text(all_runs(RESULTS).csv())
    for page in PAGES:
        page.write_text(render(page.read_text()))
        print(f"rendered {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
