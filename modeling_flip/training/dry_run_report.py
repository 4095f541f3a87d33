"""What a dry run finds, as text for a person."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .dry_run import DryRun, SentenceFacts, moment
from .timing import HEADS, PARTS

LONGEST_EXAMPLE = 600  # characters


def show(report: DryRun, command: str) -> str:
    """The report as text; `command` is the one that trains."""
    parts = [show_splits(report)]
    if report.sentences is not None:
        parts.append(show_sentences(report.sentences))
    parts += [show_features(report), show_hints(report.hints), show_size(report), show_time(report)]
    begun = f"{report.output_dir} already holds this run, finished or not: train.py would continue it.\n"
    parts.append(
        f"Nothing was trained or saved. {begun if report.is_begun else ''}To train, run the same without --dry_run:\n  {command}"
    )
    return "\n\n".join(parts)


def show_splits(report: DryRun) -> str:
    header = ["", "rows", "click rate", "rows with unseen values", "from", "to"]
    table = [header]
    for name, facts in report.splits.items():
        unseen = "–" if facts.unseen is None else percent(facts.unseen)
        table.append(
            [name, f"{facts.rows:,}", percent(facts.click_rate), unseen, moment(facts.begins), moment(facts.ends)]
        )
    if all(facts.begins is None for facts in report.splits.values()):
        table = [line[:4] for line in table]
    text = "Splits (an unseen value is one that no training row has)\n" + aligned(table)
    if report.group_column is not None:
        groups = [["", "groups", "rows in groups with both clicks and non-clicks"]]
        groups += [[name, f"{facts.groups:,}", percent(facts.ranked or 0.0)] for name, facts in report.splits.items()]
        text += f"\n\nGroups: the values of {report.group_column!r}, within which gAUC ranks\n{aligned(groups)}"
    return text


def show_sentences(sentences: SentenceFacts) -> str:
    median, most, longest = sentences.quantiles
    cut = f"{percent(sentences.share_cut)} of the sentences are longer and are cut."
    lines = [
        "Sentences, as the text tower reads them",
        f"  tokens: {median:,.0f} (median), {most:,.0f} (95th percentile), {longest:,.0f} (longest)",
        f"  max_length: {sentences.max_length:,} tokens. " + (cut if sentences.share_cut else "None is cut."),
    ]
    for name, share in sorted(sentences.cut_fields.items(), key=lambda item: -item[1]):
        lines.append(f"    {name!r} loses words or is dropped in {percent(share)} of the training rows")
    for i, example in enumerate(sentences.examples, 1):
        shown = example if len(example) <= LONGEST_EXAMPLE else f"{example[:LONGEST_EXAMPLE]} …"
        lines.append(f"  example {i}: {shown}")
    return "\n".join(lines)


def show_features(report: DryRun) -> str:
    table = [
        ["min_count", *(str(k) for k in report.features)],
        ["features", *(f"{n:,}" for n in report.features.values())],
    ]
    return (
        "Features (rows of the embedding table) by min_count: values seen less often share their field's unknown feature. It "
        f"is {report.min_count} now\n" + aligned(table)
    )


def show_hints(hints: Sequence[str]) -> str:
    if not hints:
        return "Hints: none"
    return "Hints\n" + "\n".join(f"  - {hint}" for hint in hints)


def show_size(report: DryRun) -> str:
    stages = report.stages
    table = [["", *(stage.name for stage in stages)]]
    for part in (*PARTS.values(), HEADS):
        table.append([part, *(f"{stage.parameters[part]:,}" for stage in stages)])
    table.append(["all parameters", *(f"{sum(stage.parameters.values()):,}" for stage in stages)])
    for name in ("weights", "gradients", "optimizer_state"):
        table.append([name.replace("_", " "), *(amount(getattr(stage, name)) for stage in stages)])
    of = "this process so far, with its rows and libraries" if report.device == "cpu" else f"the {report.device} device"
    steps = min(stage.timed_steps for stage in stages)
    table.append(["peak memory, at least", *(amount(stage.peak_memory) for stage in stages)])
    return f"Parameters and memory (the peak is that of {of}, after {steps} steps)\n{aligned(table)}"


def show_time(report: DryRun) -> str:
    processes = f", {report.processes} processes" if report.processes > 1 else ""
    lines = [f"Time, estimated from a few steps on this machine ({report.device}{processes})"]
    lines.append(f"  preparation: {duration(report.preparation_seconds)} (measured)")
    total = report.preparation_seconds
    for stage in report.stages:
        most = "at most " if stage.may_stop_early else ""
        lines.append(
            f"  {stage.name}: {most}{stage.steps:,} steps of {stage.rows_per_step:,} rows × {stage.seconds_per_step:.3g} s "
            f"(median of {stage.timed_steps}) = {duration(stage.training_seconds)}"
        )
        if stage.evaluated_rows_per_second:
            lines.append(
                f"    evaluation: {most}{stage.evaluated_rows:,} rows ÷ {stage.evaluated_rows_per_second:,.0f} rows/s = "
                f"{duration(stage.evaluation_seconds)}"
            )
        total += stage.training_seconds + stage.evaluation_seconds
    if report.refit is not None:
        again = report.refit * sum(stage.training_seconds for stage in report.stages)
        lines.append(f"  refit, the same on training and validation rows: at most {duration(again)}")
        total += again
    return "\n".join([*lines, f"  together: about {duration(total)}"])


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right, indented."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = (
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in table
    )
    return "\n".join(f"  {line}".rstrip() for line in lines)


def percent(share: float) -> str:
    return f"{share:.1%}"


def amount(size: int | None) -> str:
    """Bytes as people write them."""
    if size is None:
        return "–"
    if size < 1024:
        return f"{size} B"
    power = min(3, int(math.log(size, 1024)))
    return f"{size / 1024**power:,.1f} {' KMG'[power]}iB"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
