"""The model card of a checkpoint: what a reader of its Hub page needs. Every figure is measured or left out."""

from __future__ import annotations

import contextlib
import json
import math
import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from pprint import pformat
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from .calibration import sampling_shift
from .recipe import to_yaml
from .summary import caution

CURVE_FILE = "training_curve.png"
KINDS = {
    (
        "flip",
        "both",
    ): "FLIP: a tabular tower that reads feature IDs and a language model that reads the same row as a sentence",
    ("flip", "tabular"): "the tabular tower of FLIP: an ID model",
    ("flip", "text"): "the text tower of FLIP: a language model that reads each row as a sentence",
    ("ctr_bert", "text"): "CTR-BERT: a language model for the user's fields and one for the item's",
    ("morec", "tabular"): "MoRec: an ID model that reads the item as text",
    ("p5", "text"): "P5: a language model that is asked whether the user clicks",
}
METRICS = {
    "auc": ("roc_auc", "AUC"),
    "logloss": ("log_loss", "logloss"),
    "ne": ("normalized_entropy", "normalised entropy"),
    "ece": ("ece", "calibration error (ECE)"),
    "gauc": ("gauc", "AUC within groups (gAUC)"),
}
ROWS = {"": "this model", "tabular_": "its tabular tower alone", "text_": "its text tower alone"}
SPLITS = {"validation": "validation", "test": "test", "test_unseen": "test, with an unseen value"}
# On the validation rows Platt scaling makes these as good as it can: there they are no estimate for other rows.
FITTED = ("logloss", "ne", "ece")
EXAMPLES = 3
# Metrics of fewer rows are noise.
ROWS_TO_TELL = 200

EXAMPLE = """from transformers import pipeline

score = pipeline("ctr-prediction", model={source!r}, {revision}trust_remote_code=True)
rows = [
    {known},
    {unknown},
]
for row, scored in zip(rows, score(rows)):
    print(f"{{scored['probability']:.3f}}", row)"""

USE = """
{example}

This needs `transformers`, `torch` and `pyarrow`. `trust_remote_code=True` runs the Python files of this repository: read them
first, and name a `revision`. With the package `modeling-flip` installed, write `import modeling_flip` and leave it out; then no
code is loaded from here. Rows are a dict, a list of dicts, a DataFrame, an Arrow table, a `datasets.Dataset` or a generator.
`return_towers=True` adds each tower's probability, and {group_by} the rank within each {group}.
"""

CITATION = """
```bibtex
@inproceedings{wang2024flip,
  title     = {{FLIP}: Fine-grained Alignment between {ID}-based Models and Pretrained Language Models for {CTR} Prediction},
  author    = {Wang, Hangyu and Lin, Jianghao and Li, Xiangyang and Chen, Bo and Zhu, Chenxu and Tang, Ruiming and
               Zhang, Weinan and Yu, Yong},
  booktitle = {Proceedings of the 18th ACM Conference on Recommender Systems (RecSys '24)},
  year      = {2024},
  doi       = {10.1145/3640457.3688106}
}
```
"""


def model_card(
    model: Any,
    processor: Any,
    source: str,
    results: Mapping[str, Any] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    curves: Sequence[str] = (),
    reliability: str | None = None,
    tags: Sequence[str] = (),
    revision: str | None = None,
) -> str:
    """The text of README.md, metadata and all.

    Args:
        model: one that predicts clicks, or FlipForPreTraining.
        processor: its FlipProcessor.
        source: the Hub id or folder that loads it.
        results: of its training, as in all_results.json, or as much of it as has been measured.
        hyperparameters: those of its training.
        curves: plots of its training, beside the card.
        reliability: its reliability plot on the test set, beside the card.
        tags: additional tags.
        revision: the branch that it is pushed to, if not main.
    """
    # Older results hold nan where gAUC is undefined.
    results = {k: v for k, v in (results or {}).items() if not (isinstance(v, float) and math.isnan(v))}
    recipe = results.get("recipe") or {}
    name = Path(source).name.removeprefix(".")  # until it is whole, a pretraining folder is hidden
    pretraining = type(model).__name__ == "FlipForPreTraining"
    sections = [
        "---\n" + metadata(model, name, results, recipe, tags).to_yaml() + "\n---\n",
        f"# {text(name)}\n",
        introduction(model, processor, results, recipe, pretraining),
    ]
    if not pretraining:
        sections += ["## How to use\n", how_to_use(processor, source, revision)]
    sections += ["## Fields\n", field_table(processor)]
    if table := results_table(results):
        sections += ["## Results\n", table]
        if reliability:
            sections.append(f"![Test: click rate against predicted probability]({reliability})")
    sections += ["## Training\n", training(model, results, recipe, hyperparameters or {}, curves)]
    sections += ["## Limits\n", limits(processor, results), "## Citation\n", CITATION]
    return "\n".join(section.strip("\n") + "\n" for section in sections)


def metadata(
    model: Any, name: str, results: Mapping[str, Any], recipe: Mapping[str, Any], tags: Sequence[str]
) -> ModelCardData:
    """What the Hub indexes: the YAML at the top of the card."""
    dataset = recipe.get("dataset_name")
    named = dataset if is_hub_id(dataset) else None
    text_model = results.get("text_model") or recipe.get("text_model_name_or_path")
    evaluated = [
        EvalResult(
            task_type="tabular-classification",
            task_name="Click-through rate prediction",
            dataset_type=named or "tabular",
            dataset_name=one_line(Path(dataset).name if dataset else "") or "training data",
            dataset_split=split,
            metric_type=kind,
            metric_name=title,
            metric_value=round(results[f"{split}_{metric}"], 6),
        )
        for split in ("validation", "test")
        for metric, (kind, title) in METRICS.items()
        if f"{split}_{metric}" in results
        and not (split == "validation" and metric in FITTED and is_platt_scaled(results))
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="tabular-classification",
        license=recipe.get("license", "unknown"),
        tags=[model.config.model_type, "ctr-prediction", "click-through-rate", "recommendation", "tabular", *tags],
        datasets=[named] if named else None,
        metrics=["roc_auc", "log_loss"],
        base_model=text_model if is_hub_id(text_model) and has_text(model) else None,
        model_name=one_line(name) if evaluated else None,
        eval_results=evaluated or None,
        ignore_metadata_errors=False,
    )


def is_hub_id(name: Any) -> bool:
    """Whether a name may be a repo on the Hub: `owner/name`, and not a local file or folder."""
    return isinstance(name, str) and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


def has_text(model: Any) -> bool:
    return model.config.towers != "tabular" or model.config.model_type == "morec"


def introduction(
    model: Any, processor: Any, results: Mapping[str, Any], recipe: Mapping[str, Any], pretraining: bool
) -> str:
    config = model.config
    kind = KINDS.get((config.model_type, config.towers), config.model_type)
    parts = []
    if config.towers != "text":
        parts.append(f"Tabular tower: {code(config.tabular_tower)}.")
    if has_text(model):
        family = getattr(config.text_config, "model_type", "")
        text_model = results.get("text_model") or recipe.get("text_model_name_or_path") or family
        made = {f"{Path(recipe[key]).name}-text-model" for key in ("output_dir", "dataset_name") if recipe.get(key)}
        own = ", a tiny one made from the training rows, which was never pretrained" * (Path(text_model).name in made)
        parts.append(f"Text tower: {code(text_model)}{own}.")
    does = (
        "Pretrained, not finetuned: it cannot predict clicks yet."
        if pretraining
        else (
            "It predicts the probability that a row of a click log is clicked, from "
            + ", ".join(map(code, processor.fields))
            + "."
        )
    )
    state = "" if pretraining or "test_auc" in results else "\n\n**Not evaluated on a test set.**"
    trained = f" Trained on {code(Path(recipe['dataset_name']).name)}." if recipe.get("dataset_name") else ""
    return f"{kind[0].upper()}{kind[1:]}. {does}{trained} {' '.join(parts)}{state}"


def how_to_use(processor: Any, source: str, revision: str | None) -> str:
    """Code that runs as it stands: one row of the most frequent values, and one with an unseen value."""
    known_row = {
        field.name: example
        for field in processor.vocabulary.columns
        if (example := example_value(processor, field)) is not None
    }
    # A field that can hold any word and can group rows.
    columns = processor.vocabulary.columns
    new = next((f.name for f in columns if f.kind == "categorical"), columns[0].name)
    unknown_row = known_row | {new: "never seen before"}
    branch = f"revision={revision!r}, " if revision else ""
    example = EXAMPLE.format(source=source, revision=branch, known=literal(known_row), unknown=literal(unknown_row))
    group_by = f"group_by={json.dumps(new, ensure_ascii=False)}"
    return USE.format(example=fenced("python", example), group_by=code(group_by), group=code(new))


def example_value(processor: Any, field: Any) -> Any:
    """A cell that a row may hold: the most frequent value; None if training kept no values, as for text."""
    values = top_values(processor, field.name)
    if not values:
        return None
    if field.kind == "list":
        return values
    if field.kind == "numeric" and field.type in ("integer", "number"):
        with contextlib.suppress(ValueError):  # a word, or inf, is shown as text
            return json.loads(values[0])
    return values[0]


def literal(row: dict[str, Any]) -> str:
    """A row as it stands in the list of the example."""
    return textwrap.indent(pformat(row, width=100, sort_dicts=False), "    ").strip()


def top_values(processor: Any, field: str) -> list[str]:
    """The values, or members of lists, seen most often in training; empty for text, which is not kept."""
    vocabulary = processor.vocabulary
    order = np.argsort(-vocabulary.counts[field], kind="stable")[:EXAMPLES]
    return [vocabulary.values[field][int(i)].as_py() for i in order]


def field_table(processor: Any) -> str:
    vocabulary = processor.vocabulary
    offsets = vocabulary.feature_offsets
    lines = [
        "| field | kind | in the sentence | values | features | seen most often |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for i, field in enumerate(vocabulary.columns):
        features = offsets[i + 1] - offsets[i]
        shared = f"{cell(field.features_of)}'s" if field.features_of else "–"
        cells = [
            cell(field.name),
            field.kind,
            text(f"{field.words} is …"),
            f"{len(vocabulary.values[field.name]):,}" if field.kind != "text" else "–",
            f"{features:,}" if features else shared,
            ", ".join(cell(cut(value)) for value in top_values(processor, field.name)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"{vocabulary.num_features:,} features in all, including an unknown one for each field and one mask."]
    rare = {field.name: field.least_count for field in vocabulary.columns if field.least_count > 1}
    if rare:
        named = ", ".join(f"{count} times in {code(name)}" for name, count in rare.items())
        lines[-1] += f" Values seen fewer than {named} share their field's unknown feature."
    left_out = [field for field in vocabulary.schema if field.kind == "ignored"]
    if left_out:
        reasons = "; ".join(
            code(field.name) + (f" ({text(field.reason)})" if field.reason else "") for field in left_out
        )
        lines += ["", f"Left out: {reasons}."]
    return "\n".join(lines)


# ---- Markdown of untrusted text: names, values, recipes


def text(value: str) -> str:
    """A value as plain text, with Markdown and HTML escaped."""
    escaped = re.sub(r"([\\`*_{}\[\]<>|~&#$])", r"\\\1", one_line(value))
    return re.sub(r"(?i):(?=//)|(?<=www)\.", r"\\\g<0>", escaped)  # no link, either


def code(value: str) -> str:
    """A value as inline code, delimited by more backticks than it contains."""
    value = one_line(value) or " "
    space = " " * (value.startswith("`") or value.endswith("`"))
    ticks = "`" * (_longest_run(value) + 1 if "`" in value else 1)
    return f"{ticks}{space}{value}{space}{ticks}"


def fenced(language: str, content: str) -> str:
    """A code block that its content cannot close."""
    fence = "`" * max(3, _longest_run(content) + 1)
    return f"{fence}{language}\n{content}\n{fence}"


def cell(value: str) -> str:
    """Inline code for a table cell: pipes are escaped, since they would end it, and a backslash before a pipe is kept apart,
    since some renderers would take it as escaped."""
    return code(value.replace("\\|", "\\ |")).replace("|", "\\|")


def cut(value: str) -> str:
    return value if len(value) <= 40 else value[:39] + "…"


def one_line(value: str) -> str:
    """Removes line breaks, control characters, and characters that change the writing direction."""
    unseen = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    words = " ".join(str(value).split())
    return "".join("\ufffd" if c in unseen or unicodedata.category(c) == "Cc" else c for c in words)


def _longest_run(content: str) -> int:
    return max(map(len, re.findall("`+", content)), default=0)


def results_table(results: Mapping[str, Any]) -> str:
    """One row for the model and one for each tower, on each split where they were measured."""
    keys = [f"{split}_{prefix}" for split in SPLITS for prefix in ROWS]
    metrics = [metric for metric in METRICS if any(results.get(key + metric) is not None for key in keys)]
    if not metrics:
        return ""
    lines = [
        "| rows | | " + " | ".join(METRICS[metric][1] for metric in metrics) + " |",
        "|" + " --- |" * (2 + len(metrics)),
    ]
    for split, split_title in SPLITS.items():
        if split == "test_unseen" and results.get("test_unseen_rows", 0) < ROWS_TO_TELL:
            continue
        for prefix, title in ROWS.items():
            values = [results.get(f"{split}_{prefix}{metric}") for metric in metrics]
            if any(value is not None for value in values):
                shown = ["–" if value is None else f"{value:.4f}" for value in values]
                lines.append(f"| {split_title} | {title} | " + " | ".join(shown) + " |")
    rows = results.get("rows") or {}
    said = [f"{split}: {count:,} rows" for split, count in rows.items()]
    if bad := results.get("bad_rows"):
        count = sum(sum(reasons.values()) for reasons in bad.values())
        said.append(f"{count:,} rows of the files could not be read and were left out")
    if "test_unseen_rows" in results:
        said.append(f"{results['test_unseen_rows']:,} test rows hold a value never seen in training")
    if (selection := results.get("selection")) is not None:
        before = ", ".join(f"{split} AUC {selection[f'{split}_auc']:.4f}" for split in ("validation", "test"))
        chosen = "the number of epochs was chosen on validation rows, which were then trained on as well"
        if selection.get("best_epoch") is None:
            chosen = "the validation rows were then trained on as well, for as many epochs"
        said.append(f"{chosen}; before that: {before}")
    elif "refit" in (results.get("recipe") or {}):
        said.append("the validation rows were trained on as well; the test set was scored once")
    elif "test_auc" in results:
        chosen = "the epoch was chosen on validation; " if results.get("best_epoch") is not None else ""
        said.append(f"{chosen}the test set was scored once")
    if "validation_logloss" in results and is_platt_scaled(results):
        said.append(
            "the model's logloss, normalised entropy and ECE on validation are of the rows that its calibration was fitted to"
        )
    alpha = results.get("alpha")
    if alpha is not None and "test_tabular_auc" in results:
        said.append(f"the tabular tower's share α of the logit is {alpha:.3f}")
    return "\n".join(lines) + ("\n\n" + sentence("; ".join(said)) if said else "")


def is_platt_scaled(results: Mapping[str, Any]) -> bool:
    """Whether its logits were fitted to the validation rows. Where Platt scaling was refused, older results name it all the
    same."""
    unfitted = 1, sampling_shift(results.get("negative_sampling_rate"))
    return "calibration" in results and (results.get("logit_scale"), results.get("logit_shift")) != unfitted


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def training(
    model: Any,
    results: Mapping[str, Any],
    recipe: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    curves: Sequence[str],
) -> str:
    parts = []
    for curve in curves:
        stage = "Alignment" if "/" in curve or type(model).__name__ == "FlipForPreTraining" else "Click prediction"
        drawn = "loss" if stage == "Alignment" else "loss and validation AUC"
        parts.append(f"{stage}:\n\n![{stage}: {drawn} over the epochs]({curve})")
    facts: dict[str, Any] = dict(hyperparameters)
    facts["parameters"] = f"{model.num_parameters():,}"
    for key, title in {"epochs": "epochs trained", "best_epoch": "best epoch", "seed": "seed"}.items():
        if results.get(key) is not None:
            facts[title] = results[key]
    wall_time = results.get("wall_time") or {}
    for phase in ("pretraining", "finetuning", "total"):
        if (seconds := wall_time.get(f"{phase}_seconds")) is not None:
            facts[f"{phase} time"] = f"{seconds:,.0f} s"
    if results.get("train_samples_per_second"):
        facts["training speed"] = f"{results['train_samples_per_second']:,.0f} rows/s"
    hardware = results.get("hardware")
    if hardware:
        device = hardware["gpu"] or f"{hardware['cpus']} CPU cores ({hardware['machine']})"
        facts["hardware"] = f"{hardware['processes']} × {device}" if hardware["processes"] > 1 else device
    if results.get("versions"):
        facts["versions"] = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    if results.get("commit"):
        facts["commit of modeling-flip"] = results["commit"]
    lines = [
        "| last stage | |",
        "| --- | --- |",
        *(f"| {key} | {text(shown(value))} |" for key, value in facts.items()),
    ]
    parts.append("\n".join(lines))
    if recipe:
        block = fenced("yaml", to_yaml(recipe).rstrip())
        parts.append(f"The recipe, which `python train.py recipe.yaml` runs again:\n\n{block}")
    return "\n\n".join(parts)


def shown(value: Any) -> str:
    value = getattr(value, "value", value)  # of an enumeration
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def limits(processor: Any, results: Mapping[str, Any]) -> str:
    unseen = "- **Unseen values** are not errors: the tabular side reads the field's unknown feature, the text side the words."
    if "test_unseen_auc" in results and results["test_unseen_rows"] >= ROWS_TO_TELL:
        unseen += (
            f" On the {results['test_unseen_rows']:,} test rows with such a value its AUC was "
            f"{results['test_unseen_auc']:.4f}, on all rows {results['test_auc']:.4f}."
        )
    calibration = (
        "- **Calibration** holds for logs like those it was trained on. Where clicks are more or less frequent, or rows were "
        "sampled by label, calibrate again."
    )
    if "logit_scale" in results:
        rate = results.get("negative_sampling_rate")
        done = ["fitted to the validation rows by Platt scaling"] * is_platt_scaled(results)
        done += [] if rate is None else [f"corrected for a log that kept {rate:.4g} of its non-clicks"]
        if done:
            calibration += f" Its probabilities are {' and '.join(done)}; those of a single tower are not."
        if rate is not None:
            calibration += " Logloss, normalised entropy and ECE are estimates for the whole log."
    if "test_ece" in results:
        before = f", {results['test_ece_before']:.4f} before" if "test_ece_before" in results else ""
        calibration += f" Expected calibration error on the test set: {results['test_ece']:.4f}{before}."
    doubts = caution(results)
    return "\n".join(
        [
            *([f"- **Check this**: {text(doubts)}."] if doubts else []),
            unseen,
            calibration,
            "- **Bias**: clicks depend on what was shown, where and to whom. The model learns that too, and differences "
            f"between groups of people if fields describe them. It reads: {', '.join(map(code, processor.fields))}. Evaluate "
            "such groups separately before it decides anything about people.",
            "- **Privacy**: `feature_vocab.parquet` holds every value of the training rows, IDs included, as plain text.",
        ]
    )
