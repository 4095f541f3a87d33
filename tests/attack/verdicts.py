"""What came of a run, beside what a straight one leaves: the same bits, one clear line, or a defect."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.attack.forks import in_child
from tests.attack.moments import LOGS
from tests.attack.scenarios import OUTPUT, Ended

SAME, LINE = "same bits", "one clear line"
CURVE, REPORT, FIGURES, WEIGHTS = "other curve", "other report", "OTHER FIGURES", "OTHER BITS"
LEFT, MISSING = "LEFTOVERS", "MISSING"
TRACEBACK, BARE, UNCLEAR, HANGS, KILLED = "TRACEBACK", "LINE WITHOUT REMEDY", "UNCLEAR", "HANGS", "KILLED"
OUTCOMES = (SAME, LINE, CURVE, REPORT, FIGURES, WEIGHTS, LEFT, MISSING, TRACEBACK, BARE, UNCLEAR, HANGS, KILLED)
GOOD = (SAME, LINE)
# Files that tell of times and speeds beside what must be the same.
REPORTS = ("README.md", "all_results.json", "run.json", "pretraining_results.json", "training_curve.png")
PASSING = re.compile(r"^(wall_time|ended|resumed|commit|hardware|.*_seconds|.*_per_second)$")
PASSING_ROW = re.compile(r"(?i)\b(time|speed|commit)\b.*\|")
PROGRESS = re.compile(r"[^\n]*\d+%\|.*\|[^\n\]]*\[[^\]]*\]")  # a bar of tqdm's
REMEDY = re.compile(r"\b(delete|choose|give|set|again|anew|free|remove|lower|wait)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """What came of a run.

    Attributes:
        outcome: one of OUTCOMES.
        detail: the files that differ, or the last line of stderr.
    """

    outcome: str
    detail: str = ""

    @property
    def good(self) -> bool:
        return self.outcome in GOOD


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder of a finished run, with a digest of what must be the same in each run of the command."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] == LOGS:
            continue
        found[name] = "folder" if path.is_dir() else hashlib.sha256(_lasting(path)).hexdigest()
    return found


def _lasting(path: Path) -> bytes:
    """A file without times, speeds, and whether the run was resumed."""
    data = path.read_bytes()
    if path.name == "README.md":
        return b"\n".join(line for line in data.splitlines() if not PASSING_ROW.search(line.decode()))
    if path.suffix == ".json" and (path.name in REPORTS or path.parent.name == "manifests"):
        with suppress(ValueError):
            content = json.loads(data)
            if path.parent.name == "manifests":  # sealed with times in it
                seal = content.pop("sha256", None)
                content["is_sealed"] = seal == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            return json.dumps(_without_passing(content, path), sort_keys=True).encode()
    return data


def _without_passing(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_passing(part, path) for key, part in value.items() if not PASSING.match(key)}
        if path.parent.name == "manifests":  # it says the size and SHA-256 of files; those of reports pass with them
            kept = {key: _checked(path, key, part) for key, part in kept.items()}
        return kept
    return [_without_passing(part, path) for part in value] if isinstance(value, list) else value


def _checked(path: Path, name: str, said: Any) -> Any:
    """What a manifest says of a report: whether it is true."""
    if Path(name).name not in REPORTS or not isinstance(said, dict) or "sha256" not in said:
        return said
    file = path.parents[1] / name
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == said["sha256"]


def judge(ended: Ended, folder: Path, expected: dict[str, str], but: Sequence[str] = ()) -> Verdict:
    """What came of a run, where a straight one leaves `expected`; `but` are inputs that were damaged on purpose."""
    if ended.code is None:
        return Verdict(HANGS)
    if ended.code:
        lines = [line for line in ended.error.splitlines() if line.strip() and not PROGRESS.fullmatch(line)]
        last = PROGRESS.sub("", lines[-1]) if lines else ""  # a bar has no end of line of its own
        if "Traceback (most recent call last)" in ended.error:
            return Verdict(TRACEBACK, last)
        if ended.code < 0:
            return Verdict(KILLED, signal.Signals(-ended.code).name)
        if last.startswith("train.py: error: "):
            return Verdict(LINE if REMEDY.search(last) else BARE, last)
        return Verdict(UNCLEAR, last)
    try:
        in_child(lambda: quietly(predict, folder))
    except RuntimeError:
        return Verdict(WEIGHTS, "the model that it left cannot be loaded: exit 0")
    found = contents(folder)
    names = (found.keys() | expected.keys()) - set(but)
    differ = sorted(name for name in names & found.keys() & expected.keys() if found[name] != expected[name])
    weighty = [n for n in differ if Path(n).name not in REPORTS and "manifests" not in Path(n).parts]
    missing, left = (
        sorted((expected.keys() - found.keys()) - set(but)),
        sorted((found.keys() - expected.keys()) - set(but)),
    )
    if weighty:
        return Verdict(WEIGHTS, ", ".join(weighty))
    if missing:
        return Verdict(MISSING, ", ".join(missing))
    if differ:
        drawn = all(name.endswith(".png") for name in differ)
        figures = any(name.endswith("_results.json") for name in differ)
        return Verdict(FIGURES if figures else CURVE if drawn else REPORT, ", ".join(differ))
    return Verdict(LEFT, ", ".join(left)) if left else Verdict(SAME)


def predict(folder: Path) -> None:
    """Score the rows with the model that a run has left, and write the probabilities beside it."""
    import torch

    from modeling_flip import FlipForCTR, FlipProcessor
    from modeling_flip.training.splits import load_splits

    os.chdir(folder)
    torch.set_num_threads(1)
    model, processor = FlipForCTR.from_pretrained(OUTPUT).eval(), FlipProcessor.from_pretrained(OUTPUT)
    with torch.no_grad():
        logits = model(**processor(load_splits("clicks.csv")["test"].to_table())).logits
    Path("predictions").write_text(json.dumps(logits.tolist()))


def quietly(task: Callable[[Path], None], folder: Path) -> None:
    (folder / LOGS).mkdir(exist_ok=True)
    log = os.open(folder / LOGS / "predict", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    task(folder)
