"""Renders the README's tables from benchmarks/results/: runs' all_results.json, and the benchmarks' --json.

python benchmarks/results_table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATASETS = {"movielens-1m": "MovieLens-1M", "movielens-100k": "MovieLens-100K"}
SYSTEMS = {("tabular", False): "{tower} from scratch", ("tabular", True): "FLIP_ID", ("text", True): "FLIP_PLM"}
TOWERS = {"dcnv2": "DCNv2", "deepfm": "DeepFM", "autoint": "AutoInt"}


def system(recipe: dict[str, Any]) -> str:
    pretrained = "pretraining" in recipe or "pretrained_model_name_or_path" in recipe
    name = SYSTEMS.get((recipe["towers"], pretrained), "FLIP" if pretrained else "both towers, not aligned")
    return name.format(tower=TOWERS.get(recipe["tabular_tower"], recipe["tabular_tower"]))


def load(*parts: str) -> dict[str, Any]:
    return json.loads(RESULTS.joinpath(*parts).read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def quickstart() -> str:
    rows = []
    for name in ("dcnv2", "flip-id", "flip-plm", "flip"):
        r = load("quickstart", f"{name}.json")
        figures = [f"{r[key]:.4f}" for key in ("test_auc", "test_logloss", "test_unseen_auc")]
        rows.append([system(r["recipe"]), *figures])
    return table(["", "test AUC", "test logloss", "AUC on rows with an unseen item"], rows)


def speed() -> str:
    step, pipeline = load("pretraining_step.json"), load("data_pipeline.json")
    names = {"published": "as published, fp32", "fp32": "ours, fp32", "bf16": "ours, bf16"}
    rows = []
    for name, label in names.items():
        r, ratio, memory = step[name], step[name].get("ratio", 1), step[name].get("memory_ratio", 1)
        rows.append(
            [label, f"{r['samples_per_second']:.0f}", f"{ratio:.1f}", f"{r['peak_memory_mib']:,.0f}", f"{memory:.2f}"]
        )
    head = ["pretraining step, 2 CPU cores, batch 64", "samples/s", "ratio", "peak memory, MiB", "of published"]
    figures = {
        name: f"{pipeline[f'{name}_rows_per_second'] / 1e6:.1f}" for name in ("encode", "feed_tabular", "feed_text")
    }
    return (
        f"{table(head, rows)}\n\nData, on the same machine, 8 fields: {figures['encode']} million rows/s from a column table to "
        f"integers; {figures['feed_tabular']} million rows/s in shuffled batches of 1,024 for the tabular tower, "
        f"{figures['feed_text']} million with sentences."
    )


def results() -> str:
    rows = []
    for path in sorted(RESULTS.glob("movielens-*/*.json")):
        r = json.loads(path.read_text())
        recipe = r["recipe"]
        text = Path(r.get("text_model", "–")).name
        figures = [f"{r[key]:.4f}" for key in ("test_auc", "test_logloss", "validation_auc")]
        minutes = f"{r['wall_time']['total_seconds'] / 60:.1f} min"
        link = f"[{path.stem}.json]({path.relative_to(ROOT)})"
        rows.append([DATASETS[recipe["dataset_name"]], system(recipe), text, *figures, minutes, link])
    head = ["dataset", "system", "text tower", "test AUC", "test logloss", "validation AUC", "time", "run"]
    return table(head, rows)


def render(readme: str) -> str:
    """The README with each table between its marks."""
    for section in (quickstart, speed, results):
        begin, end = f"<!-- {section.__name__} -->", f"<!-- end of {section.__name__} -->"
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{section()}\n{end}{rest.split(end)[1]}"
    return readme


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))
    print(f"rendered {readme.name}")


if __name__ == "__main__":
    main()
