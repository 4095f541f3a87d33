"""What the layer norm in front of ICL's projections is for: losses at the end of the demo's pretraining, with and without it.

python -m benchmarks.icl_layer_norm [--json PATH] [--key value …]
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from modeling_flip.training.command_line import parse_recipe
from modeling_flip.training.manifest import environment
from modeling_flip.training.stages import run
from train import complete_recipe, load_data

RECIPE = "configuration/quickstart.yaml"
WITHOUT: dict[str, dict[str, Any]] = {
    "FLIP": {},
    "w/o MLM": {"mlm_weight": 0},
    "w/o MLM & MTM": {"mlm_weight": 0, "mtm_weight": 0},
}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/icl-layer-norm"))
    parser.add_argument("--json", type=Path)
    args, rest = parser.parse_known_args(given)
    short = ["--finetuning.max_steps", "1", "--towers", "tabular", "--output_dir", str(args.output_dir / "unset")]
    recipe = complete_recipe(parse_recipe([RECIPE, *short, *rest]))
    data, losses = load_data(recipe), {}
    for number, (name, weights) in enumerate(WITHOUT.items()):
        for has_norm in (False, True):
            model = recipe.model | weights | {"icl_layer_norm": has_norm}
            folder = args.output_dir / f"{number}-{'with' if has_norm else 'without'}"
            results = run(replace(recipe, model=model, output_dir=str(folder)), data)
            losses[f"{name}, {'with' if has_norm else 'without'} layer norm"] = results["pretraining_losses"]
    batch = (recipe.pretraining or {})["per_device_train_batch_size"]
    print(f"\nICL's loss at the end of pretraining; of a model that knows nothing, log {batch} = {math.log(batch):.2f}")
    for name, of in losses.items():
        print(f"{name:35}{of['icl_loss']:.2f}")
    if args.json:
        content = {"losses": losses, "loss_of_chance": math.log(batch), "recipe": recipe.to_dict(), **environment()}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
