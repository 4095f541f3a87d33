"""The paper's tables and figures as data: which systems each compares, and what makes them out of recipes.

A system's name is its recipe's, without `-small`: the small recipes are those that a machine without a GPU can run, with a small
text tower. A system without a recipe of its own is made of the dataset's FLIP recipe, by `SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from benchmarks.protocol import System
from modeling_flip.training.recipe import read_yaml

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"small": "-small", "paper": ""}
# Of each kind of system, cheapest first and the best baselines before the others: a budget may end anywhere.
ID_MODELS = ("dcnv2", "dcn", "deepfm", "pnn", "wide-deep", "autoint", "xdeepfm", "afn", "afm")
TABLE2 = {
    "ID": ("flip-id", *ID_MODELS),
    "ID + text": ("flip", "ctrl", "morec"),
    "text": ("flip-plm", "ptab", "ctr-bert", "p5"),
}
# Shown where they have been measured, though they are not in the paper.
ALSO = {
    "flip-id-searched": "ID",
    "dcnv2-searched": "ID",
    "flip-searched": "ID + text",
    "dcn-mix": "ID",
    "pnn-outer": "ID",
    "dcnv2-sparse": "ID",
    "morec-cached": "ID + text",
}
KINDS = {name: kind for kind, names in TABLE2.items() for name in names} | ALSO
WITHOUT_PRETRAINING = ("--pretraining", "null")
CTRL = ("--model.mlm_weight", "0", "--model.mtm_weight", "0", "--model.icl_subspaces", "4")
PTAB = ("--model.mtm_weight", "0", "--model.icl_weight", "0", "--model.joint_reconstruction", "false")
SETTINGS: dict[str, tuple[str, ...]] = {
    "flip": (),
    "flip-id": ("--towers", "tabular"),
    "flip-plm": ("--towers", "text"),
    "ctrl": ("--towers", "tabular", *CTRL),
    "ptab": ("--towers", "text", *PTAB, "--pretraining.text_masking", "token"),
    "morec": (*WITHOUT_PRETRAINING, "--model_type", "morec"),
    "ctr-bert": (*WITHOUT_PRETRAINING, "--model_type", "ctr_bert"),
    "p5": (*WITHOUT_PRETRAINING, "--model_type", "p5"),
} | {
    name: (*WITHOUT_PRETRAINING, "--towers", "tabular", "--tabular_tower", name.replace("-", "_")) for name in ID_MODELS
}
# Table 5: FLIP without a part of its pretraining.
ABLATIONS = {
    "without-mlm": ("w/o MLM", ("--model.mlm_weight", "0")),
    "without-mtm": ("w/o MTM", ("--model.mtm_weight", "0")),
    "without-icl": ("w/o ICL", ("--model.icl_weight", "0")),
    "without-mlm-mtm": ("w/o MLM & MTM", ("--model.mlm_weight", "0", "--model.mtm_weight", "0")),
    "without-pretraining": ("w/o MLM & MTM & ICL", WITHOUT_PRETRAINING),
    "token-masking": ("w/o field-level masking", ("--pretraining.text_masking", "token")),
    "without-joint-reconstruction": ("w/o joint reconstruction", ("--model.joint_reconstruction", "false")),
}
# Beside them for FLIP_ID, though not in the paper: is it the words that help, or the longer training?
CONTROLS = {
    "without-text": (
        "MTM alone, without the sentence",
        ("--model.mlm_weight", "0", "--model.icl_weight", "0", "--model.joint_reconstruction", "false"),
    ),
}
# Which is its tower, DCNv2; the paper's size has another batch than DCNv2's recipe, and so a run of its own.
NEVER_ALIGNED = ("small", "flip-id", "without-pretraining")
TOWERS = ("dcnv2", "autoint", "deepfm")  # table 3
# Table 4, beside the recipe's text tower. MiniLM's first layers are made as docs/results.md says; the demo's by `reproduce`.
DEMO_TEXT_MODELS = {"bert-2x32": "outputs/text-models/demo-bert-2x32"}
DEMO_T5 = "outputs/text-models/demo-t5"
TEXT_MODELS = {
    "small": {"minilm-2-layers": "outputs/text-models/all-MiniLM-L6-v2-2-layers"},
    "paper": {"roberta-base": "FacebookAI/roberta-base", "roberta-large": "FacebookAI/roberta-large"},
}
MASK_RATIOS = (0.3, 0.6)  # figure 3, beside the recipe's 0.15
TEMPERATURES = (0.05, 0.1, 0.3, 0.5, 1.0)  # figure 4, beside the recipe's 0.7
# Figure 6: pretrainings whose embeddings are drawn.
EMBEDDINGS = ("without-mlm-mtm", "without-mlm", "without-mtm", "")
TARGETS = ("table2", "table3", "table4", "table5", "figure3", "figure4", "figure5", "figure6")
RATES = ("learning_rate", "text_learning_rate")


def trials_of(name: str, recipe: Path) -> list[tuple[str, ...]]:
    """What a system's search tries, as many settings for each system: its recipe, half its learning rates, and a tenth of its
    penalty on embeddings, or, where it has no tabular tower, some weight decay."""
    settings = read_yaml(recipe.read_text())
    model, finetuning = settings.get("model", {}), settings["finetuning"]
    half = [(f"--finetuning.{key}", f"{finetuning[key] / 2:g}") for key in RATES if key in finetuning]
    weaker = ("--model.embedding_l2", f"{model.get('embedding_l2', 1e-4) / 10:g}")
    return [(), tuple(chain(*half)), ("--finetuning.weight_decay", "0.1") if KINDS[name] == "text" else weaker]


def recipe_of(dataset: str, size: str, name: str) -> tuple[Path, str] | None:
    """A system's recipe, and what the names of its runs end with. Where a dataset has none of the system's own, it is FLIP's, to
    which SETTINGS are added; where it has none of the size, it is the paper's. None where there are no recipes."""
    folder = ROOT / "configuration" / dataset
    endings = dict.fromkeys((SIZES[size], ""))
    found = [(folder / f"{one}{ending}.yaml", ending) for one in (name, "flip") for ending in endings]
    return next(((path, ending) for path, ending in found if path.exists()), None)


def name_of_runs(dataset: str, size: str, name: str, variant: str = "") -> str:
    """What the results of a system, or of a variant of it, are called."""
    if (size, name, variant) == NEVER_ALIGNED:
        return name_of_runs(dataset, size, "dcnv2")
    _, ending = recipe_of(dataset, size, name) or (None, "")
    return f"{name}-{variant}{ending}" if variant else f"{name}{ending}"


def system(dataset: str, size: str, name: str, *settings: str, variant: str = "", num_trials: int = 1) -> System:
    """A system of Table 2, or a variant of it, which adds settings.

    Raises:
        ValueError: the dataset has no recipe for it.
    """
    if (size, name, variant) == NEVER_ALIGNED:
        return system(dataset, size, "dcnv2", num_trials=num_trials)
    if (found := recipe_of(dataset, size, name)) is None:
        raise ValueError(
            f"there is no recipe for {name} on {dataset}: configuration/{dataset} has no {name}.yaml, and no flip.yaml"
        )
    recipe, ending = found
    added = () if recipe.stem == f"{name}{ending}" else SETTINGS[name]
    t5 = ("--text_model_name_or_path", DEMO_T5) if (name, dataset) == ("p5", "demo") else ()
    title = name_of_runs(dataset, size, name, variant)
    return System(title, str(recipe), (*added, *t5, *settings), tuple(trials_of(name, recipe)[:num_trials]))


def systems_of(target: str, dataset: str, size: str, num_trials: int = 1) -> list[System]:
    """The systems of a table or figure, in the order in which they are run."""

    def one(name: str, *settings: str, variant: str = "") -> System:
        return system(dataset, size, name, *settings, variant=variant, num_trials=num_trials)

    studied = figure_system(size)
    if target == "table2":
        first = ("dcnv2", "flip-id", "flip", "flip-plm")
        return [one(name) for name in (*first, *(name for name in KINDS if name not in (*first, *ALSO)))]
    if target == "table3":
        found = []
        for tower in TOWERS:
            found.append(one(tower))
            settings, variant = ([], "") if tower == "dcnv2" else (["--tabular_tower", tower], tower)
            found += [one(name, *settings, variant=variant) for name in ("flip-id", "flip", "flip-plm")]
        return found
    if target == "table4":
        return [one(name) for name in ("flip-id", "flip", "flip-plm")] + [
            one(name, "--text_model_name_or_path", path, variant=variant)
            for variant, path in text_models(dataset, size).items()
            for name in ("flip-id", "flip", "flip-plm")
        ]
    if target == "table5":
        found = []
        for name in ("flip-id", "flip"):
            found.append(one(name))
            found += [one(name, *given, variant=variant) for variant, (_, given) in parts_of(name).items()]
        return found
    if target == "figure3":
        return [one(studied)] + [
            one(studied, f"--pretraining.{side}_mask_ratio", str(ratio), variant=f"{side}-mask-{ratio:g}")
            for side in ("text", "tabular")
            for ratio in MASK_RATIOS
        ]
    if target == "figure4":
        return [one(studied)] + [
            one(studied, "--model.temperature", str(tau), variant=f"temperature-{tau:g}") for tau in TEMPERATURES
        ]
    if target == "figure5":
        return [one(studied)]
    if target == "figure6":
        return [one(studied, *(ABLATIONS[v][1] if v else ()), variant=v) for v in EMBEDDINGS]
    raise ValueError(f"{target!r} is no table or figure; it must be one of {', '.join(TARGETS)}")


def parts_of(name: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The variants of FLIP, or of FLIP_ID, in Table 5: what they are called, and their settings."""
    return ABLATIONS | CONTROLS if name == "flip-id" else ABLATIONS


def text_models(dataset: str, size: str) -> dict[str, str]:
    """The text towers of Table 4 beside the recipe's."""
    return DEMO_TEXT_MODELS if dataset == "demo" else TEXT_MODELS[size]


def figure_system(size: str) -> str:
    """What figures 3 to 6 show: FLIP, as in the paper, or with the small recipes FLIP_ID, which is finetuned in minutes."""
    return "flip" if size == "paper" else "flip-id"


def runs_of(
    targets: Sequence[str], dataset: str, size: str, seeds: Sequence[int], num_trials: int = 1
) -> list[tuple[System, int]]:
    """Every run that these need, once, in the order in which they are made: all systems of a seed before the next seed."""
    wanted = {one.name: one for target in targets for one in systems_of(target, dataset, size, num_trials)}
    return [(one, seed) for seed in seeds for one in wanted.values()]
