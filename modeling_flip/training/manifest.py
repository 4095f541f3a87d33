"""What went into each stage of a run and what came out of it: `manifests/STAGE.json` in the run's folder.

Written when the stage begins, and again when it is complete. A resumed run compares its inputs with the recorded ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import pyarrow as pa
import torch
import transformers
from accelerate import PartialState
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..row_dataset import FlipDataset
from ..version import __version__

FOLDER = "manifests"
KEYS = {"stage", "complete", "inputs", "outputs", "sha256"}
PACKAGE = Path(__file__).parents[1]
ROWS_AT_ONCE = 1 << 20
TEXT_MODEL_PARTS = {
    "config_sha256": "another configuration",
    "tokenizer_sha256": "another tokenizer",
    "weights_sha256": "other weights",
}
DELETED = "{} was deleted or replaced during this run: delete what is left of it, and run again"
REMEDY = (
    "a run must finish with the inputs it began with. Restore them, choose another --output_dir, or delete the folder to "
    "start again"
)


# ---- files


def write(path: Path, text: str) -> None:
    """Writes a file atomically, and syncs it to the disk."""
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def path_of(run_folder: Path, stage: str) -> Path:
    return run_folder / FOLDER / f"{stage}.json"


@dataclass
class Outputs:
    """The outputs of a stage: figures, and files in the run's folder."""

    figures: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


@contextmanager
def recorded(run_folder: Path, stage: str, inputs: Mapping[str, Any]) -> Iterator[Outputs]:
    """Record, on the main process, the inputs of a stage when it begins, and its outputs when it ends.

    Raises:
        ValueError: the run's folder was deleted or replaced during the stage.
    """
    outputs, path = Outputs(), path_of(run_folder, stage)
    content = {"stage": stage, "complete": False, "inputs": dict(inputs)}
    begun = _sealed(content)
    if PartialState().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, begun)
    yield outputs
    if PartialState().is_main_process:
        if not path.is_file() or path.read_text() != begun:
            raise ValueError(DELETED.format(run_folder))
        made = {
            file.relative_to(run_folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256_of_file(file)}
            for file in sorted(outputs.files)
        }
        write(path, _sealed(content | {"complete": True, "outputs": {"figures": outputs.figures, "files": made}}))


def is_complete(run_folder: Path, stage: str) -> bool:
    """Whether a stage was recorded as complete."""
    try:
        return bool(_read(path_of(run_folder, stage))["complete"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def check_outputs(run_folder: Path, stage: str) -> None:
    """Raises ValueError if a file of a complete stage is missing or has changed; ignores stages that are not complete."""
    path = path_of(run_folder, stage)
    if not path.exists():
        return
    try:
        content = _read(path)
        files = dict(content["outputs"]["files"]) if content["complete"] else {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a manifest ({error!r})") from error
    for name, saved in files.items():
        file = run_folder / name
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        if sha256_of_file(file) != saved["sha256"]:
            raise ValueError(f"{file} is cut short or was changed: its SHA-256 is not the saved one")


def check_same_inputs(run_folder: Path, stage: str, inputs: Mapping[str, Any]) -> None:
    """Raises ValueError if the data, the vocabulary or the text model have changed since the stage began in this folder."""
    path = path_of(run_folder, stage)
    if not path.exists():
        return
    try:
        before = _read(path)["inputs"]
        changed = [*_changes(before, json.loads(_json(inputs)))]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a manifest ({error!r}); delete the folder {run_folder} to start again"
        ) from error
    if changed:
        raise ValueError(f"{run_folder} was begun with other inputs: {'; '.join(changed)}; {REMEDY}")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for split, ours in now["data"].items():
        theirs = before["data"][split]
        if theirs["rows"] != ours["rows"]:
            yield f"split {split!r} had {theirs['rows']:,} rows and now has {ours['rows']:,}"
            continue
        for what in ("labels", "values"):
            if theirs[f"{what}_sha256"] != ours[f"{what}_sha256"]:
                yield f"split {split!r} had other {what}"
    if before["vocabulary"] != now["vocabulary"]:
        yield "the training rows had another vocabulary"
    ours, theirs = now["text_model"] or {}, before["text_model"] or {}
    for key, what in TEXT_MODEL_PARTS.items():
        if theirs.get(key, ours.get(key)) != ours.get(key):
            yield f"the text model {ours.get('name')!r} had {what}"


def _sealed(content: Mapping[str, Any]) -> str:
    """A manifest, with the SHA-256 of its own content: most of it is compared with nothing, and a flipped bit would stay."""
    return _json({**content, "sha256": _sha256_of_json(content)})


def _read(path: Path) -> dict[str, Any]:
    """A manifest without its seal; older ones have none.

    Raises:
        ValueError: its content is not what was written.
    """
    content: dict[str, Any] = json.loads(path.read_text())
    seal = content.pop("sha256", None)
    if content.keys() - KEYS or seal not in (None, _sha256_of_json(content)):
        raise ValueError("its content was changed")
    return content


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


# ---- fingerprints


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_rows(rows: FlipDataset) -> dict[str, Any]:
    """How many rows, and the SHA-256 of their labels and of their values, seen in training or not."""
    labels, values = hashlib.sha256(), hashlib.sha256()
    for first in range(0, len(rows), ROWS_AT_ONCE):
        values.update(np.ascontiguousarray(rows.value_ids[first : first + ROWS_AT_ONCE], "<i4").tobytes())
        if rows.labels is not None:
            labels.update(np.ascontiguousarray(rows.labels[first : first + ROWS_AT_ONCE], "<f4").tobytes())
    values.update(np.ascontiguousarray(rows.local.columns, "<i4").tobytes())
    for first in range(0, len(rows.local.texts), ROWS_AT_ONCE):
        values.update(_bytes_of(rows.local.texts[first : first + ROWS_AT_ONCE]))
    return {"rows": len(rows), "labels_sha256": labels.hexdigest(), "values_sha256": values.hexdigest()}


def _bytes_of(texts: pa.Array) -> bytes:
    """The end offsets of the texts, then the texts end to end."""
    texts = texts.cast(pa.large_string())
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = texts.buffers()[2]
    ends = np.asarray(offsets - offsets[0], "<i8").tobytes()
    return ends + (data[int(offsets[0]) : int(offsets[-1])].to_pybytes() if data is not None else b"")


def describe_text_model(
    name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, str | None]:
    """Name of the text model, SHA-256 of its settings and tokenizer, and of its weights if it is a folder."""
    settings = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    sha256: dict[str, str | None] = {"config": _sha256_of_json(settings), "tokenizer": None, "weights": None}
    if tokenizer is not None:
        sha256["tokenizer"] = tokenizer_sha256(tokenizer)
    if Path(name).is_dir():
        sha256["weights"] = _sha256_of_json([sha256_of_file(file) for file in sorted(Path(name).glob("*.safetensors"))])
    return {"name": name} | {f"{part}_sha256": value for part, value in sha256.items()}


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    steps = json.loads(tokenizer.backend_tokenizer.to_str())
    return _sha256_of_json(steps | {"truncation": None, "padding": None})  # these each call sets


def _sha256_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


# ---- circumstances


def environment() -> dict[str, Any]:
    """Commit, versions and hardware."""
    cuda = torch.cuda.is_available()
    return {
        "commit": commit(),
        "versions": {"modeling_flip": __version__, "python": platform.python_version()}
        | {m.__name__: m.__version__ for m in (torch, transformers, datasets, accelerate)},
        "hardware": {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "gpu": torch.cuda.get_device_name() if cuda else None,
            "processes": PartialState().num_processes,
        },
    }


def write_run(path: Path, facts: Mapping[str, Any], inputs: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """What repeating a run takes beside its recipe.yaml, in one file: command line, commit, all installed packages, hardware and
    processes, SHA-256 of the data, the vocabulary and the text model, and when it ended after how long."""
    content = {
        "command": shlex.join(sys.argv),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_time": results["wall_time"],
        "resumed": results["resumed"],
        **{key: facts[key] for key in ("seed", "commit", "hardware")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted((d.metadata["Name"], d.version) for d in metadata.distributions())),
        **inputs,
    }
    write(path, _json(content))


def commit() -> str | None:
    """The commit of modeling-flip's own checkout, if the package is in one; inside another repository it would be that
    one's."""
    root = PACKAGE.parent
    try:
        if "name = modeling-flip" not in (root / "setup.cfg").read_text().splitlines():
            return None
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        # Changes of the code only: benchmarks write results and the README between runs.
        changed = _git("status", "--porcelain", "-uno", "--", ":/*.py")
        return _git("rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
