"""Draws the figures of the README and of docs/how_flip_works.md, from what the processor and the collator make of a demo row.

python -m benchmarks.figures
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from transformers import AutoTokenizer

from data_scripts import demo
from modeling_flip import FlipProcessor, PretrainingCollator

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"
INK, GREY, LINE, PAPER = "#1f2937", "#6b7280", "#cbd5e1", "#f8fafc"
TABLE, TABLE_PALE = "#2563eb", "#dbeafe"
TEXT, TEXT_PALE = "#c2410c", "#ffedd5"
BOTH, BOTH_PALE = "#6d28d9", "#ede9fe"
FIELDS = ["user_id", "occupation", "title"]
ROW = 105  # a training row whose masks hide the occupation in the table and the title in the sentence


def main(folder: Path = FOLDER) -> None:
    views = masked_views()
    # Text is drawn as shapes, so that it looks the same wherever it is shown; the same figure is the same file.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "flip"}):
        for name, figure in {"method": method(views), "masking": masking(views)}.items():
            figure.savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})


def masked_views() -> dict[str, Any]:
    """A row of the demo, and what the collator makes of it with field-level and with token-level masking."""
    log = demo.load()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(demo.text_model(folder, log))
    processor = FlipProcessor.fit(log["train"], tokenizer=tokenizer, label="label", fields=FIELDS)
    rows = processor.encode(log["train"])
    views: dict[str, Any] = {"row": {name: log["train"][ROW][name] for name in FIELDS}}
    for kind in ("field", "token"):
        batch = PretrainingCollator(processor, text_masking=kind)(rows.__getitems__([ROW]))
        of_row = {name: tensor[0].tolist() for name, tensor in batch.items()}
        views[kind] = {
            "feature_ids": of_row["feature_ids"],
            "masked_features": [label >= 0 for label in of_row["mtm_labels"]],
            "tokens": tokenizer.convert_ids_to_tokens(of_row["input_ids"]),
            "masked_tokens": tokenizer.convert_ids_to_tokens(of_row["masked_input_ids"]),
        }
    return views


# ---- the figures; lengths are in inches, from the lower left corner


def method(views: dict[str, Any]) -> Figure:
    """FLIP's two stages: §3.2 and §3.3 of the paper, Figure 2."""
    figure, axes = canvas(10, 6.75)
    panel(
        axes,
        0.1,
        2.3,
        9.8,
        4.35,
        "1  Pretraining",
        "whole fields are masked on one side, and recovered with the other's help",
    )
    panel(axes, 0.1, 0.1, 9.8, 2.05, "2  Finetuning", "both towers predict the click; one learned weight mixes them")

    row, ids = views["row"], views["field"]["feature_ids"]
    hidden = views["field"]["masked_features"]
    middle = 4.3  # the height of what is between the two towers
    box(axes, 0.3, middle - 0.7, 1.62, 1.4, "", "white", LINE)
    words(axes, 1.11, middle + 0.86, "one row, read twice", 8.5, GREY)
    for i, (name, value) in enumerate(row.items()):
        words(axes, 0.4, middle + 0.54 - 0.44 * i, name.replace("_", " "), 7.5, GREY, ha="left")
        words(axes, 0.4, middle + 0.36 - 0.44 * i, value, 8.5, INK, ha="left")

    heights = {"v̂": 5.75, "v": 4.95, "w": 3.65, "ŵ": 2.85}
    for symbol, masked in (("v", [False] * 3), ("v̂", hidden)):
        for i, (name, feature, is_masked) in enumerate(zip(row, ids, masked, strict=True)):
            colours = (TABLE, TABLE, "white") if is_masked else ("white", TABLE, INK)
            x, y = 2.35 + 0.84 * i, heights[symbol]
            box(axes, x, y - 0.19, 0.78, 0.38, "<MASK>" if is_masked else f"{feature}", *colours, size=8.5)
            if symbol == "v̂":
                words(axes, x + 0.39, y + 0.29, name.replace("_", " "), 7.5, GREY)
    for symbol, key in (("w", "tokens"), ("ŵ", "masked_tokens")):
        sentence(axes, 2.35, heights[symbol], views["field"][key])

    arrow(axes, (1.96, middle + 0.3), (2.27, heights["v"]), GREY, bend=-0.15)
    arrow(axes, (1.96, middle - 0.3), (2.27, heights["w"]), GREY, bend=0.15)
    for masked, plain in (("v̂", "v"), ("ŵ", "w")):
        up = 1 if masked == "v̂" else -1
        gap = 0.22 if up > 0 else 0.31
        arrow(axes, (3.6, heights[plain] + up * gap), (3.6, heights[masked] - up * gap), GREY)
        words(axes, 3.7, (heights[plain] + heights[masked]) / 2, "masked copy", 7.5, GREY, ha="left")
    tower(axes, 5.1, 4.65, 1.4, "tabular tower", "DCNv2, DeepFM, …", TABLE, TABLE_PALE)
    tower(axes, 5.1, 2.55, 1.4, "text tower", "BERT, GPT-2, …", TEXT, TEXT_PALE)
    for symbol, y in heights.items():
        colour = TABLE if symbol in "v̂" else TEXT
        arrow(axes, (4.86, y), (5.08, y), colour)
        words(axes, 6.66, y, symbol, 12, colour, style="italic")

    losses = {
        "MTM": (5.35, "recover the feature", f"occupation is {ids[hidden.index(True)]}", "among noise features"),
        "ICL": (3.98, "find the partner", "this table ↔ this sentence", "among the batch's rows"),
        "MLM": (2.61, "recover the words", f"title is {row['title'].lower()}", "in the whole vocabulary"),
    }
    for name, (y, what, example, among) in losses.items():
        pale, colour = {"MTM": (TABLE_PALE, TABLE), "ICL": (BOTH_PALE, BOTH), "MLM": (TEXT_PALE, TEXT)}[name]
        box(axes, 7.75, y - 0.1, 2.0, 0.84, "", pale, colour)
        words(axes, 7.85, y + 0.54, name, 9.5, colour, ha="left", weight="bold")
        words(axes, 8.3, y + 0.54, what, 8.5, INK, ha="left")
        words(axes, 7.85, y + 0.31, example, 8, INK, ha="left", style="italic")
        words(axes, 7.85, y + 0.11, among, 8, GREY, ha="left")
    for start, y, colour in (
        ("v̂", 5.9, TABLE),
        ("w", 5.55, TEXT),
        ("v", 4.5, TABLE),
        ("w", 4.2, TEXT),
        ("v", 3.15, TABLE),
        ("ŵ", 2.8, TEXT),
    ):
        arrow(axes, (6.82, heights[start]), (7.7, y), colour)

    for y, name, pale, colour, letter in (
        (1.3, "tabular tower", TABLE_PALE, TABLE, "ID"),
        (0.55, "text tower", TEXT_PALE, TEXT, "PLM"),
    ):
        what = "the row's feature IDs" if letter == "ID" else "the row's sentence"
        words(axes, 0.3, y, what, 8.5, INK, ha="left")
        arrow(axes, (1.9, y), (2.3, y), colour)
        box(axes, 2.35, y - 0.22, 1.4, 0.44, name, pale, colour, size=9, weight="bold")
        arrow(axes, (3.8, y), (4.2, y), colour)
        words(axes, 4.28, y, f"$\\mathrm{{logit}}_{{\\mathrm{{{letter}}}}}$", 10.5, colour, ha="left")
    arrow(axes, (5.05, 1.3), (5.75, 1.02), TABLE, "× α")
    arrow(axes, (5.05, 0.55), (5.75, 0.84), TEXT, "× (1 − α)", below=True)
    box(axes, 5.8, 0.66, 3.95, 0.54, "", BOTH_PALE, BOTH)
    formula = r"$\hat{y} = \sigma(\alpha\,\mathrm{logit}_{\mathrm{ID}} + (1-\alpha)\,\mathrm{logit}_{\mathrm{PLM}})$"
    words(axes, 7.77, 0.93, formula, 11, INK)
    words(axes, 7.77, 0.42, "each logit has a click loss of its own, too", 8, GREY)
    return figure


def masking(views: dict[str, Any]) -> Figure:
    """The tokens of a sentence, plain, and masked by whole fields and one by one."""
    figure, axes = canvas(10, 2.1)
    panel(axes, 0.1, 0.1, 9.8, 1.9)
    plain = views["field"]["tokens"]
    lines = {"the sentence": plain}
    lines |= {f"by {kind}": views[kind]["masked_tokens"] for kind in ("field", "token")}
    for line, (name, tokens) in enumerate(lines.items()):
        x, y = 1.5, 1.61 - 0.56 * line
        words(axes, 0.3, y, name, 9, INK, ha="left", weight="bold" if name == "by field" else "normal")
        for column, token in list(enumerate(tokens))[1:-1]:
            width = 0.08 * max(len(of_line[column]) for of_line in lines.values()) + 0.11
            colours = ("white", LINE) if token == plain[column] else (TEXT, TEXT, "white")
            box(axes, x, y - 0.18, width, 0.36, token, *colours, size=8)
            x += width + 0.05
    return figure


# ---- what they are drawn of


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def panel(axes: Axes, x: float, y: float, width: float, height: float, title: str = "", says: str = "") -> None:
    """A sheet of paper, so that what is on it can be read on a page of any colour."""
    box(axes, x, y, width, height, "", PAPER, LINE, rounding=0.12)
    words(axes, x + 0.2, y + height - 0.25, title, 11, INK, ha="left", weight="bold")
    words(axes, x + 1.65, y + height - 0.25, says, 9, GREY, ha="left")


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    label: str,
    face: str,
    edge: str,
    ink: str = INK,
    rounding: float = 0.06,
    **font: Any,
) -> None:
    style = f"round,pad=0,rounding_size={rounding}"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=0.9))
    words(axes, x + width / 2, y + height / 2, label, font.pop("size", 9), ink, **font)


def words(
    axes: Axes, x: float, y: float, label: str, size: float, colour: str, ha: str = "center", **font: Any
) -> None:
    axes.text(x, y, label, fontsize=size, color=colour, ha=ha, va="center_baseline", **font)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    label: str = "",
    below: bool = False,
    bend: float = 0,
) -> None:
    style: dict[str, Any] = {
        "arrowstyle": "-|>",
        "mutation_scale": 9,
        "linewidth": 1.1,
        "color": colour,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **style))
    if label:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + (-0.2 if below else 0.2))
        words(axes, *middle, label, 8.5, colour, ha="left")


def tower(axes: Axes, x: float, y: float, height: float, name: str, such_as: str, colour: str, pale: str) -> None:
    box(axes, x, y, 1.35, height, "", pale, colour)
    words(axes, x + 0.675, y + height / 2 + 0.12, name, 9.5, colour, weight="bold")
    words(axes, x + 0.675, y + height / 2 - 0.12, such_as, 8, INK)


def sentence(axes: Axes, x: float, y: float, tokens: list[str]) -> None:
    """The sentence in a box, a line for each field."""
    box(axes, x, y - 0.3, 2.46, 0.6, "", "white", TEXT)
    for i, line in enumerate(" ".join(tokens[1:-1]).split(" .")[:-1]):
        words(axes, x + 0.1, y + 0.185 - 0.185 * i, f"{line.strip()}.", 8, TEXT if "[MASK]" in line else INK, ha="left")


if __name__ == "__main__":
    main()
