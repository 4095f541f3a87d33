"""The quickstart: DCNv2 from scratch, FLIP_ID, FLIP_PLM and FLIP on the demo, then FLIP scoring raw rows in a fresh process.

python -m benchmarks.quickstart
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.recipe import Recipe
from modeling_flip.training.stages import run
from train import complete_recipe, load_data

RECIPE = "configuration/quickstart.yaml"
# Runs in a process of its own, as a newcomer would write it.
SCORE = """
import sys
from data_scripts import demo
from modeling_flip import FlipForCTR, FlipProcessor

folder = sys.argv[1]
model, processor = FlipForCTR.from_pretrained(folder).eval(), FlipProcessor.from_pretrained(folder)
row = demo.load()["test"][0]
row.pop("label")
other = {**row, "interest": "unknown"}
unseen = {**row, "item_id": "never-seen", "title": "A Title Nobody Has Seen"}
probabilities = model(**processor([row, other, unseen])).logits.sigmoid()
for sentence, probability in zip(processor.texts([row, other, unseen]), probabilities.tolist()):
    print(f"  {probability:.3f}  {sentence}")
"""


def systems(recipe: Recipe) -> dict[str, Recipe]:
    """FLIP first: its pretraining serves FLIP_ID and FLIP_PLM too."""
    beside = Path(f"{recipe.output_dir}-towers")
    pretrained = str(Path(recipe.output_dir) / "pretraining")
    tower = replace(recipe, pretraining=None, pretrained_model_name_or_path=pretrained)
    return {
        "FLIP": recipe,
        "FLIP_ID": replace(tower, towers="tabular", output_dir=str(beside / "flip-id")),
        "FLIP_PLM": replace(tower, towers="text", output_dir=str(beside / "flip-plm")),
        "DCNv2": replace(recipe, pretraining=None, towers="tabular", output_dir=str(beside / "dcnv2")),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["", "              AUC   logloss   AUC, unseen items", "-" * 50]
    for name in ("DCNv2", "FLIP_ID", "FLIP_PLM", "FLIP"):
        r = results[name]
        lines.append(f"{name:9} {r['test_auc']:8.4f}  {r['test_logloss']:8.4f}  {r['test_unseen_auc']:18.4f}")
    rows, unseen = results["FLIP"]["rows"]["test"], results["FLIP"]["test_unseen_rows"]
    return "\n".join([*lines, f"{rows:,} test rows, {unseen:,} of them with an item never seen in training", ""])


def main() -> None:
    started = time.perf_counter()
    recipe = complete_recipe(parse_recipe([RECIPE, *sys.argv[1:]]))
    data = load_data(recipe)
    results = {}
    for name, system in systems(recipe).items():
        print(f"\n=== {name} ===", flush=True)
        results[name] = run(system, data)
    print(table(results))
    print(f"FLIP, reloaded from {recipe.output_dir} in a fresh process, scores three rows; the last item is new to it:")
    subprocess.run([sys.executable, "-c", SCORE, recipe.output_dir], check=True)
    print(
        f"\n{time.perf_counter() - started:.0f} s. The model, its processor and all_results.json are in {recipe.output_dir}/."
        "\nNext: your own data, with `python train.py configuration/quickstart.yaml --dataset_name FILE.csv "
        "\n--label_column clicked --text_model_name_or_path MODEL --output_dir outputs/mine` (README, «Your own data»)."
    )


if __name__ == "__main__":
    main()
