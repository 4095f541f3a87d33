"""Every model of the paper, and the settings of a stage, as tables: from the docstrings and settings of the classes."""

from __future__ import annotations

import dataclasses
import inspect

from benchmarks.paper_runs import TABLE2
from benchmarks.paper_tables import TITLES, Table
from modeling_flip import TABULAR_TOWERS, FlipTrainingArguments
from modeling_flip.ctr_models import CTR_MODELS

# Those that are FLIP's classes with other settings.
OF_FLIP = {
    "flip": "FLIP (Wang et al., RecSys '24): both towers, aligned field by field, then finetuned together.",
    "flip-id": "FLIP's tabular tower, finetuned alone: an ID model that starts from aligned embeddings.",
    "flip-plm": "FLIP's text tower, finetuned alone.",
    "ctrl": "CTRL (Li et al., 2023): both towers are aligned by contrast alone, with the similarity Σ_s max_t ⟨a_s, b_t⟩ of "
    "their parts; then the tabular tower is finetuned.",
    "ptab": "PTab (Liu et al., 2022): masked language modelling on the rows' sentences, then the text tower is finetuned.",
}


def models() -> str:
    """Markdown, a table for each kind: name, recipe and class, and what it computes, with its source."""
    tables = []
    for kind, names in (TABLE2 | {"not in the paper's tables": ("dcn-mix",)}).items():
        rows = [
            [f"**{TITLES[name]}**", f"`{name}.yaml`", f"`{class_of(name).__name__}`", idea_of(name)] for name in names
        ]
        tables.append(
            f"## {kind[0].upper()}{kind[1:]}\n\n{Table([['', 'recipe', 'class', 'what it computes'], *rows]).markdown()}"
        )
    return "\n\n".join(tables)


def class_of(name: str) -> type:
    key = name.replace("-", "_")
    return TABULAR_TOWERS.get(key) or CTR_MODELS.get(key) or CTR_MODELS["flip"]


def idea_of(name: str) -> str:
    """The docstring of the model's class on one line, or what its settings make of FLIP."""
    doc = OF_FLIP.get(name) or inspect.getdoc(class_of(name)) or ""
    return " ".join(doc.split())


def stage_settings() -> str:
    """Markdown: what FlipTrainingArguments adds to TrainingArguments, or has another default for."""
    fields = {field.name: field for field in dataclasses.fields(FlipTrainingArguments)}
    rows = []
    for name in FlipTrainingArguments.__annotations__:
        field = fields[name]
        default = "" if field.default in (None, dataclasses.MISSING) else f"`{str(field.default).lower()}`"
        rows.append([f"`{name}`", default, field.metadata["help"]])
    return Table([["setting", "default", "what it does"], *rows]).markdown()
