"""Renders the README's results table from benchmarks/results/*.json, each a run's all_results.json.

python benchmarks/results_table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: benchmarks/results_table.py -->", "<!-- end of results -->"
DATASETS = {"movielens-1m": "MovieLens-1M", "movielens-100k": "MovieLens-100K"}
SYSTEMS = {("tabular", False): "{tower} from scratch", ("tabular", True): "FLIP_ID", ("text", True): "FLIP_PLM"}
TOWERS = {"dcnv2": "DCNv2", "deepfm": "DeepFM", "autoint": "AutoInt"}


def system(recipe: dict[str, Any]) -> str:
    pretrained = "pretraining" in recipe or "pretrained_model_name_or_path" in recipe
    name = SYSTEMS.get((recipe["towers"], pretrained), "FLIP" if pretrained else "both towers, not aligned")
    return name.format(tower=TOWERS.get(recipe["tabular_tower"], recipe["tabular_tower"]))


def render(folder: Path) -> str:
    """The table in Markdown, a row for each JSON file."""
    rows = []
    for path in sorted(folder.glob("movielens-*/*.json")):
        r = json.loads(path.read_text())
        recipe = r["recipe"]
        text = Path(recipe.get("text_model_name_or_path") or "–").name if recipe["towers"] != "tabular" else "–"
        cells = [
            DATASETS[recipe["dataset_name"]],
            system(recipe),
            text,
            f"{r['test_auc']:.4f}",
            f"{r['test_logloss']:.4f}",
            f"{r['validation_auc']:.4f}",
            f"{r['wall_time']['total_seconds'] / 60:.0f} min",
            f"[{path.stem}.json]({path.relative_to(ROOT)})",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    head = ["dataset", "system", "text tower", "test AUC", "test logloss", "validation AUC", "time, 2 cores", "run"]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *rows])


def inserted(readme: str, table: str) -> str:
    """The README with the table between its marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(inserted(readme.read_text(), render(ROOT / "benchmarks" / "results")))
    print(f"rendered {readme.name}")


if __name__ == "__main__":
    main()
