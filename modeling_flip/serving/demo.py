"""A page that shows what a model does with a row: `python -m modeling_flip.serving.demo --model FOLDER_OR_HUB_ID`.

It needs the extra `demo`. Everything runs on this machine, and the page loads nothing from elsewhere.
`--push_to_space OWNER/NAME` makes a Space of the Hub of it instead.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from huggingface_hub import HfApi
from transformers import pipeline
from transformers.utils import cached_file

from ..commands import missing_extra
from ..fields import Field
from ..pipeline_flip import CtrPredictionPipeline
from ..table_files import READ, in_parts, open_table
from .explain import (
    Attribution,
    Row,
    attributions,
    cell_text,
    cut_fields,
    item_fields,
    known_values,
    logits_of,
    never_seen,
    sampled_rows,
    sentence_pieces,
    sigmoid,
    unseen_fields,
)
from .exported import ExportedForCTR

try:
    import gradio as gr
except ImportError as error:
    raise missing_extra("demo", __name__, "demo") from error

# What training leaves beside the weights, as far as the page shows it.
RESULTS_FILE = "all_results.json"
PLOTS = {"reliability.png": "Are its probabilities click rates?", "training_curve.png": "How it was trained"}
METRICS = {"auc": "AUC", "logloss": "logloss", "ne": "NE", "ece": "ECE", "gauc": "gAUC"}
TOWERS = {"tabular": "tabular tower", "text": "text tower"}
EXAMPLES, CANDIDATES, CHOICES, MOST_CANDIDATES, FIELDS_IN_LINE = 20, 10, 200, 1_000, 4
# Of the values in the sentence, field by field, and again from the first.
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626", "#9333ea", "#a16207")
FONT, MONO = ["ui-sans-serif", "system-ui", "sans-serif"], ["ui-monospace", "Consolas", "monospace"]  # none is fetched
STYLE = """
.flip h1 {margin: 0 0 4px} .flip table {width: 100%; border-collapse: collapse; margin: 4px 0 8px}
.flip :is(table, tr, th, td) {border: 0 !important}
.flip :is(thead, tbody) :is(th, td) {padding: 5px 10px; border-bottom: 1px solid var(--border-color-primary) !important}
.flip th {text-align: left} .flip tr > :first-child {padding-left: 0 !important}
.gradio-container input[role=listbox] {text-overflow: ellipsis} #predict, #rank {align-self: center; height: 48px}
.flip .n {text-align: right !important; font-variant-numeric: tabular-nums; white-space: nowrap}
.flip .big {font-size: 2.4em; font-weight: 700; line-height: 1.2} .flip .note {color: var(--body-text-color-subdued)}
.flip .bar {display: inline-block; position: relative; width: 130px; height: 12px; vertical-align: middle; margin-left: 10px;
  background: linear-gradient(var(--border-color-primary), var(--border-color-primary)) center / 1px 100% no-repeat}
.flip .bar i {position: absolute; top: 0; bottom: 0; border-radius: 2px}
.flip .tag {font-size: .8em; padding: 0 6px; border-radius: 8px; background: #f59e0b33; white-space: nowrap}
.flip img {max-width: 100%; background: #fff; border-radius: 6px} .flip .plots {display: flex; flex-wrap: wrap; gap: 24px}
.flip figure {flex: 1 1 380px; margin: 8px 0; max-width: 620px} .flip figcaption {font-weight: 600; margin-bottom: 6px}
"""
APP = """from modeling_flip.serving.demo import main

main({arguments!r})
"""
SPACE_CARD = """---
title: {title}
emoji: 🎯
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
app_file: app.py
models:
- {model}
tags:
- click-through-rate-prediction
---

What [{model}](https://huggingface.co/{model}) does with a row: its sentence, what each field adds, an
unseen item, a ranking. Made with `python -m modeling_flip.serving.demo --model {model} --push_to_space {space}`.
"""


# ---- parts of the page, as HTML: values and names are anyone's text, and escaped


def signed(value: float, form: str = "+.3f") -> str:
    """A number with its sign, a typographic one."""
    return f"{value:{form}}".replace("-", "−")


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Cells are HTML already, the head is text. `numbers` are the columns that stand to the right."""
    kinds = [' class="n"' if i in numbers else "" for i in range(len(head))]
    top = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(head, kinds, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def part(html: str) -> str:
    return f'<div class="flip">{html}</div>'


def bar(value: float, largest: float) -> str:
    """To the right of the middle if positive, else to the left."""
    share = 50 * abs(value) / largest if largest else 0
    left, colour = (50, "#2563eb") if value >= 0 else (50 - share, "#d97706")
    return f'<span class="bar"><i style="left:{left:.1f}%;width:{share:.1f}%;background:{colour}"></i></span>'


def prediction_html(
    logits: Mapping[str, float], config: Any, alpha: float, unseen: Sequence[str] = (), cut: Sequence[str] = ()
) -> str:
    """The probability, and how it comes about: from both towers' logits, or one; and the fields whose values training never saw,
    or the text tower does not read whole."""
    html = f'<div class="big">{sigmoid(logits["logits"]):.1%}</div><div>probability of a click</div>'
    if "text_logits" in logits:
        weights = {"tabular": ("α", alpha), "text": ("1 − α", 1 - alpha)}
        rows = []
        for tower, name in TOWERS.items():
            logit, (sign, weight) = logits[f"{tower}_logits"], weights[tower]
            rows.append([name, signed(logit), f"{sigmoid(logit):.1%}", f"{sign} = {weight:.3f}"])
        html += html_table(["", "logit", "alone it says", "weight"], rows, [1, 2, 3])
        joint = sum(weights[tower][1] * logits[f"{tower}_logits"] for tower in TOWERS)
        html += f"<div>α · tabular + (1 − α) · text = {signed(joint)}"
    else:
        joint = (logits["logits"] - config.logit_shift) / config.logit_scale
        html += f"<div>logit {signed(joint)}"
    if (config.logit_scale, config.logit_shift) != (1, 0):
        calibrated = f"{config.logit_scale:.3f} · ({signed(joint)}) {signed(config.logit_shift)}"
        html += f", calibrated {calibrated} = {signed(logits['logits'])}"
    html += f", and σ({signed(logits['logits'])}) = {sigmoid(logits['logits']):.1%}.</div>"
    if unseen:
        names = ", ".join(map(escape, unseen))
        html += f'<div class="note">Never seen in training: <span class="tag">{names}</span></div>'
    if cut:
        names = ", ".join(map(escape, cut))
        html += (
            f'<div class="note">Too far back in the sentence for the text tower: <span class="tag">{names}</span></div>'
        )
    return part(html)


def attribution_html(found: Sequence[Attribution], row: Row) -> str:
    """A row for each field, with a bar for each figure."""
    shown = {"probability": "to the probability", "logit": "to the logit"}
    if found[0].text_logit is not None:
        shown = {"probability": "to the probability"}
        shown |= {f"{tower}_logit": f"to the {name}'s logit" for tower, name in TOWERS.items()}
    largest = {key: max(abs(getattr(a, key)) for a in found) for key in shown}
    rows = []
    for a in sorted(found, key=lambda a: -abs(a.probability)):
        cells = [f"{signed(getattr(a, key))}{bar(getattr(a, key), largest[key])}" for key in shown]
        rows.append([escape(a.field), escape(row.get(a.field) or "–"), *cells])
    head = ["field", "value", *(f"adds {name}" for name in shown.values())]
    return part(html_table(head, rows, range(2, len(head))))


def unseen_html(row: Row, replaced: Row, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What was replaced, and what that does to the model and to each tower."""
    if not replaced:
        return part("No field is replaced: choose one above.")
    values = [[escape(name), escape(row.get(name) or "–"), escape(value)] for name, value in replaced.items()]
    names = {"logits": "the model"} | {f"{tower}_logits": f"{name} alone" for tower, name in TOWERS.items()}
    rows = []
    for key in (key for key in names if key in before):
        old, new = before[key], after[key]
        p, q = sigmoid(old), sigmoid(new)
        rows.append(
            [names[key], signed(old), signed(new), f"{p:.1%}", f"{q:.1%}", f"{signed(100 * (q - p), '+.1f')} points"]
        )
    head = ["", "logit", "logit, unseen", "probability", "probability, unseen", "change"]
    return part(
        html_table(["field", "in this row", "never seen"], values) + html_table(head, rows, range(1, len(head)))
    )


def ranking_html(ranked: Sequence[Mapping[str, Any]], candidates: Sequence[Row], names: Sequence[str]) -> str:
    """What `CtrPredictionPipeline.rank` returns, with the candidates' fields."""
    rows = [
        [
            str(place),
            f"{found['probability']:.1%}",
            *(escape(candidates[found["index"]][name] or "–") for name in names),
        ]
        for place, found in enumerate(ranked, 1)
    ]
    return part(html_table(["", "probability", *names], rows, [0, 1]))


def results_html(results: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """The metrics of the run, and its plots; a word where the checkpoint has none."""
    names = {"": "the model"} | {f"{tower}_": f"{name} alone" for tower, name in TOWERS.items()}
    splits = {"validation": "validation rows", "test": "test rows", "test_unseen": "test rows with an unseen value"}
    rows = []
    for split, which in splits.items():
        for tower, who in names.items():
            values = [results.get(f"{split}_{tower}{metric}") for metric in METRICS]
            if any(value is not None for value in values):
                rows.append([which, who, *("–" if value is None else f"{value:.4f}" for value in values)])
    kept = [i for i, column in enumerate(zip(*rows, strict=True)) if i < 2 or set(column) != {"–"}]
    head = ["", "", *METRICS.values()]
    html = html_table([head[i] for i in kept], [[row[i] for i in kept] for row in rows], range(2, len(kept)))
    html = html if rows else f"<div>The checkpoint has no {RESULTS_FILE}: training leaves it there.</div>"
    figures = "".join(
        f"<figure><figcaption>{escape(PLOTS[name])}</figcaption>"
        f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
        for name, png in plots.items()
    )
    return part(html + f'<div class="plots">{figures}</div>')


# ---- the page


def towers_of(model: Any) -> list[str]:
    """The towers of a model, by what it reads: keys of TOWERS."""
    reads = {"tabular": "feature_ids" in model.inputs, "text": any(name != "feature_ids" for name in model.inputs)}
    return [tower for tower in TOWERS if reads[tower]]


def shown_of(score: CtrPredictionPipeline, row: Row, chosen: Sequence[str]) -> tuple[Any, str, str, str]:
    """What the page shows of a row: the sentence in pieces, and as HTML the prediction, what each field adds, and what becomes of
    it where the values of the `chosen` fields are replaced by some that training never saw."""
    processor, replaced = score.processor, never_seen(score.processor, row, chosen)
    found = logits_of(score, [row, {**row, **replaced}])
    before, after = ({key: float(logits[i]) for key, logits in found.items()} for i in (0, 1))
    alpha = score.model.alpha.item() if "text_logits" in found else 1.0
    return (
        sentence_pieces(processor, row),
        prediction_html(before, score.model.config, alpha, unseen_fields(processor, row), cut_fields(processor, row)),
        attribution_html(attributions(score, row), row),
        unseen_html(row, replaced, before, after),
    )


def ranked_of(score: CtrPredictionPipeline, row: Row, candidates: Sequence[Row], top_k: int) -> str:
    """The best candidates for the user of a row, as HTML.

    Raises:
        gr.Error: there are none, or too many.
    """
    items = item_fields(score)
    candidates = [candidate for candidate in candidates if any(candidate.values())]
    if not 0 < len(candidates) <= MOST_CANDIDATES:
        raise gr.Error(f"there are {len(candidates):,} items to rank; give 1 to {MOST_CANDIDATES:,}")
    user = {field: value for field, value in row.items() if field not in items}
    return ranking_html(score.rank(user, candidates, top_k=top_k), candidates, items)


def row_of(fields: Sequence[str], cells: Sequence[Any]) -> dict[str, str | None]:
    """What has been typed, as a row; an empty cell is a missing value."""
    return {field: str(cell) if cell not in (None, "") else None for field, cell in zip(fields, cells, strict=True)}


def input_of(score: CtrPredictionPipeline, field: Field, value: str) -> gr.components.Component:
    """Where a field's value is typed, or chosen among known ones."""
    choices = [] if field.kind == "numeric" else known_values(score.processor.vocabulary, field, CHOICES)
    if not choices:
        return gr.Textbox(value, label=field.name)
    named = [("(missing)", ""), *((choice, choice) for choice in choices)]
    return gr.Dropdown(named, value=value, label=field.name, allow_custom_value=True)


def make_page(
    score: CtrPredictionPipeline,
    name: str,
    examples: Sequence[Mapping[str, str]],
    are_sampled: bool,
    results: Mapping[str, Any],
    plots: Mapping[str, bytes],
) -> gr.Blocks:
    """The page.

    Args:
        score: the model and its processor.
        name: what the model is called.
        examples: rows to begin with, of text as in a CSV.
        are_sampled: whether they were put together from single values.
        results, plots: of the run, as `read_results` gives them.
    """
    columns, fields, items = score.processor.vocabulary.columns, score.processor.fields, item_fields(score)
    towers, users = towers_of(score.model), [field for field in fields if field not in items]
    missing = {"tabular": "the field's unknown feature", "text": "the word “unknown”"}
    unseen_item = {"tabular": "has only each field's unknown feature", "text": "still reads the words"}
    intro = f"A row of a click log, and what <b>{escape(name)}</b> makes of it with its "
    intro += " and its ".join(TOWERS[tower] for tower in towers)
    labels = [(" · ".join([str(i), *filter(None, row.values())]), i - 1) for i, row in enumerate(examples, 1)]
    candidates = list(dict.fromkeys(tuple(row.get(item, "") for item in items) for row in examples))[:CANDIDATES]

    with gr.Blocks(title=f"{name} · modeling-flip", analytics_enabled=False) as page:
        gr.HTML(
            part(f"<h1>Will they click?</h1>{intro}. Change any value, also to one that nobody has ever seen."),
            padding=False,
        )
        with gr.Row(equal_height=True):
            example = gr.Dropdown(
                labels,
                value=0,
                label="Example row" + (", put together from values of training" if are_sampled else ""),
                scale=3,
                elem_id="example",
            )
            button = gr.Button("Predict", variant="primary", elem_id="predict")
        inputs = []
        for first in range(0, len(columns), FIELDS_IN_LINE):
            with gr.Row():
                for field in columns[first : first + FIELDS_IN_LINE]:
                    inputs.append(input_of(score, field, examples[0].get(field.name, "")))
        with gr.Row():
            sentence = gr.HighlightedText(
                label="The row as a sentence" + ("" if "text" in towers else ", which this model does not read"),
                color_map={field: COLOURS[i % len(COLOURS)] for i, field in enumerate(fields)},
                show_legend=False,
                show_inline_category=False,
                elem_id="sentence",
            )
            prediction = gr.HTML(elem_id="prediction", min_height=180)
        with gr.Tabs():
            with gr.Tab("What each field adds"):
                reads = ", ".join(f"the {TOWERS[tower]} reads {missing[tower]}" for tower in towers)
                gr.HTML(
                    part(
                        "Each field in turn is masked by a missing value; what the prediction then loses is what the field "
                        f"adds. Where a value is missing, {reads}."
                    )
                )
                attribution = gr.HTML(elem_id="attribution")
            with gr.Tab("An unseen item"):
                keeps = ", ".join(f"the {TOWERS[tower]} {unseen_item[tower]}" for tower in towers)
                gr.HTML(part(f"The same row with an item that training never saw: {keeps}."))
                can_be_new = [name for name in items if columns[fields.index(name)].kind == "categorical"]
                chosen = gr.CheckboxGroup(can_be_new, value=can_be_new, label="Fields to replace", elem_id="replaced")
                unseen = gr.HTML(elem_id="unseen")
            with gr.Tab("Rank items"):
                whose = f"the row above ({', '.join(map(escape, users))})" if users else "the row above"
                gr.HTML(
                    part(f"Which of these items would the user of {whose} click? Edit the cells, or paste your own.")
                )
                table = gr.Dataframe(
                    [list(cells) for cells in candidates],
                    headers=items,
                    column_count=len(items),
                    type="array",
                    datatype="str",
                    interactive=True,
                    buttons=[],
                    max_height=260,
                    elem_id="candidates",
                )
                with gr.Row(equal_height=True):
                    top_k = gr.Slider(1, CANDIDATES, value=5, step=1, label="How many to show", elem_id="top_k")
                    order = gr.Button("Rank", variant="primary", elem_id="rank")
                ranking = gr.HTML(elem_id="ranking")
            with gr.Tab("Results of the run"):
                gr.HTML(results_html(results, plots), elem_id="results")

        def show(chosen: Sequence[str], *cells: Any) -> tuple[Any, str, str, str]:
            return shown_of(score, row_of(fields, cells), chosen)

        def rank(table: Sequence[Sequence[Any]], top_k: float, *cells: Any) -> str:
            return ranked_of(score, row_of(fields, cells), [row_of(items, line) for line in table], int(top_k))

        def fill(index: int) -> list[str]:
            return [examples[index].get(field, "") for field in fields]

        calls: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        filled = example.change(fill, example, inputs, **calls)
        for event in (page.load, button.click, chosen.change, filled.then):
            event(show, [chosen, *inputs], [sentence, prediction, attribution, unseen], **calls)
        order.click(rank, [table, top_k, *inputs], ranking, **calls)
    return page


# ---- the command


def read_examples(path: Path, fields: Sequence[Field]) -> list[dict[str, str]]:
    """The first rows of a file, as text; other columns are left out.

    Raises:
        ValueError, OSError: it cannot be read, has no rows, or none of the fields.
    """
    file = open_table(path)
    wanted = [field for field in fields if field.name in file.schema.names]
    if not wanted:
        names = [field.name for field in fields]
        raise ValueError(f"{path} has no field of the model; its columns are {file.schema.names}, the fields {names}")
    parts = in_parts(file.batches([field.name for field in wanted]), EXAMPLES)
    first = next(parts, None)
    if first is None:
        raise ValueError(f"{path} has no rows; give a file with some, or leave --rows out")
    return [{field.name: cell_text(row[field.name], field) for field in wanted} for row in first.to_pylist()]


def read_results(model: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The metrics and the plots that a checkpoint has, a folder or a repo of the Hub."""
    found = {
        name: cached_file(model, name, _raise_exceptions_for_missing_entries=False) for name in (RESULTS_FILE, *PLOTS)
    }
    files = {name: Path(path).read_bytes() for name, path in found.items() if path is not None}
    return json.loads(files.pop(RESULTS_FILE, b"{}")), files


def write_space(folder: Path, model: str, space: str, examples: Sequence[Row] | None) -> None:
    """The files of a Space that shows a model of the Hub: the page, this package, and what it needs."""
    arguments = ["--model", model]
    if examples is not None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in examples)
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        arguments += ["--rows", "rows.jsonl"]
    (folder / "app.py").write_text(APP.format(arguments=arguments))
    needed = ["transformers", "torch", "numpy", "pyarrow", "safetensors"]  # Spaces have Gradio by sdk_version
    (folder / "requirements.txt").write_text("".join(f"{name}=={version(name).split('+')[0]}\n" for name in needed))
    title = json.dumps(f"{model.split('/')[-1]}: will they click?", ensure_ascii=False)
    card = SPACE_CARD.format(title=title, gradio=version("gradio"), model=model, space=space)
    (folder / "README.md").write_text(card, encoding="utf-8")
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))


def push_space(folder: Path, space: str, private: bool) -> str:
    """Create the Space if need be, bring the folder there in one commit, and return its URL.

    Raises:
        ConnectionError: the Hub refuses it, or cannot be reached; with what to do.
    """
    from ..training.hub import push_error, with_retries

    def attempt() -> str:
        api = HfApi()
        url = api.create_repo(space, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
        if private and not api.space_info(space).private:
            raise ValueError("it exists and is public; make it private, or choose another name")
        api.upload_folder(
            repo_id=space,
            repo_type="space",
            folder_path=folder,
            commit_message="Upload demo",
            delete_patterns=["rows.jsonl", "modeling_flip/*"],  # of an earlier push, where this one lacks them
        )
        return str(url)

    try:
        return with_retries(attempt)
    except Exception as error:  # each layer below has exceptions of its own
        raise ConnectionError(f"cannot push to {space!r}: {push_error(error)}") from error


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="ID_OR_FOLDER", help="a model on the Hub, or a folder")
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help=f"its first {EXAMPLES} rows are the page's examples: {READ}"
    )
    parser.add_argument(
        "--push_to_space",
        metavar="OWNER/NAME",
        help="make this Space of the Hub, with the --rows, instead of opening a page",
    )
    parser.add_argument("--private", action="store_true", help="make the Space private, if it has to be created")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 where all went well, 2 where it could not."""
    args = make_parser().parse_args(arguments)
    try:
        if args.push_to_space is not None and os.path.exists(args.model):
            raise ValueError(
                f"--model {args.model} is a folder, and a Space loads its model from the Hub: push it first, and give its id"
            )
        score = pipeline("ctr-prediction", model=args.model)
        if isinstance(score.model, ExportedForCTR):
            raise ValueError(f"{args.model} is exported, and has kept neither α nor calibration: give its checkpoint")
        examples = None if args.rows is None else read_examples(args.rows, score.processor.vocabulary.columns)
        if args.push_to_space is not None:
            with TemporaryDirectory() as folder:
                write_space(Path(folder), args.model, args.push_to_space, examples)
                print(f"pushed to {push_space(Path(folder), args.push_to_space, args.private)}")
            return 0
        shown = sampled_rows(score.processor, EXAMPLES) if examples is None else examples
        page = make_page(score, args.model, shown, examples is None, *read_results(args.model))
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        print(f"demo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    page.launch(
        theme=gr.themes.Default(font=FONT, font_mono=MONO), css=STYLE, footer_links=[], show_error=True, ssr_mode=False
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
