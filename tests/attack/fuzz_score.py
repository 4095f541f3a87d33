"""Files of every kind, whole and damaged, through the score command.

What must hold: as many finite probabilities as there are rows, or exit code 2 and one line that names the file; nothing is left
behind; and a file that is whole gives what the same rows give from Python.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from modeling_flip import CtrPredictionPipeline
from modeling_flip.serving import score
from modeling_flip.table_files import open_table

from .fuzz_pipeline import NOISE, READ, WORDS

NAMES = [field.name for field in READ]
SUFFIXES = (
    ".csv",
    ".csv",
    ".tsv",
    ".jsonl",
    ".ndjson",
    ".json",
    ".parquet",
    ".csv.gz",
    ".tsv.gz",
    ".jsonl.gz",
    ".CSV",
    ".txt",
    "",
)
FILE_NAMES = ("rows", "a b", "ünï", "-x", "a%20b", "#1", "x.y", "'q'", "train")
# The cells of a whole file: what every kind of file can hold, and one line of a CSV is not another.
PLAIN = [w for w in WORDS if w.isprintable() and "\ud800" not in w and w.strip() and len(w) < 100 and w[0] not in "[{"]
PLAIN += ["[1, 2]", "['a', 'b']", "[]", '["a", null, 1.5, true]']


class Case:
    """A file and what is known of it.

    Attributes:
        rows: what it says, where it is whole and Python can say it; None where it was damaged.
    """

    def __init__(self, path: Path, data: bytes, rows: list[dict[str, Any]] | None, arguments: list[str], note: str):
        self.path, self.data, self.rows, self.arguments, self.note = path, data, rows, arguments, note


# ---- whole files


def make_rows(draw: random.Random) -> list[dict[str, Any]]:
    names = draw.sample(NAMES, draw.randint(1, 6))
    return [{name: draw.choice(PLAIN) for name in names} for _ in range(draw.choice([1, 2, 5, 20]))]


def as_csv(draw: random.Random, rows: list[dict[str, Any]], delimiter: str) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(
        file,
        delimiter=delimiter,
        lineterminator=draw.choice(["\n", "\r\n"]),
        quoting=draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    )
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return file.getvalue().encode()


def as_json(draw: random.Random, rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) + "\n" for row in rows).encode()


def as_parquet(draw: random.Random, rows: list[dict[str, Any]]) -> bytes:
    columns = {name: pa.array([row[name] for row in rows]) for name in rows[0]}
    if draw.random() < 0.3:
        columns = {name: column.dictionary_encode() for name, column in columns.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression=draw.choice(["none", "snappy", "zstd", "gzip"]))
    return sink.getvalue().to_pybytes()


# ---- damage of text


def _ragged(draw: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    lines[at] = draw.choice(
        ["a,b,c,d,e,f,g,h\n", "x\n", "\n", ",\n", '"\n', "{}\n", "[1]\n", "null\n", "5\n", '{"a": \n', lines[at] * 2]
    )
    return "".join(lines)


def _header(draw: random.Random, text: str) -> str:
    first, _, rest = text.partition("\n")
    twice = first.split(",")[0]
    first = draw.choice(
        [f"{first},{twice}", f"{first},", f",{first}", f'{first},""', f"{first},probability", f"{first}, ", "x,y", ""]
    )
    return f"{first}\n{rest}"


def _odd_json(draw: random.Random, text: str) -> str:
    cells = [
        *("1", "1.5", "true", "null", '"a"', "[1, 2]", '["a", null]', "[[1]]", "{}", '{"a": 1}', "NaN"),
        *("Infinity", "1e999", "9" * 30, "9" * 5000),
        *('"\\ud800"', '"\\u0000"', "[]", "[true, 1, 2.5]", '[{"a": 1}]', "-0.0"),
        *('""', "1E400", "[" * 2000 + "]" * 2000, '"' + "x" * 100_000 + '"'),
    ]  # fmt: skip
    names = draw.sample(NAMES, 3)
    lines = []
    for _ in range(draw.choice([1, 3, 30])):
        own = draw.sample(names, draw.randint(1, 3))
        lines.append("{" + ", ".join(f'"{name}": {draw.choice(cells)}' for name in own) + "}\n")
    return "".join(lines)


OF_TEXT: dict[str, Callable[[random.Random, str], str]] = {
    "ragged": _ragged,
    "header": _header,
    "quote": lambda draw, text: text.replace(draw.choice(",\n a"), '"', draw.choice([1, 2, -1])),
    "delimiters": lambda draw, text: text.replace(",", draw.choice(";|\t "), draw.choice([1, -1])),
    "control": lambda draw, text: text.replace(draw.choice("aeo1"), draw.choice([*"\x00\x1f\x0b\x85\u2028\r\ufeff"])),
    "no last line break": lambda draw, text: text.rstrip("\r\n"),
    "blank lines": lambda draw, text: "\n" * draw.randint(1, 3) + text.replace("\n", "\n\n", 1) + "\n" * draw.randint(0, 3),
    "huge cell": lambda draw, text: text.replace("a", "y" * draw.choice([70_000, 200_000]), 1),
    "header alone": lambda draw, text: text.partition("\n")[0] + draw.choice(["", "\n"]),
    "odd JSON": _odd_json,
    "repeated": lambda draw, text: text * 2,
    "array": lambda draw, text: "[" + text.replace("}\n{", "},\n{") + "]",
    "old line breaks": lambda draw, text: text.replace("\n", "\r"),
}  # fmt: skip


# ---- damage of bytes


def _flipped(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 3, 20])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


OF_BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "flipped": _flipped,
    "cut": _cut,
    "empty": lambda draw, data: draw.choice([b"", b"\n", b"   \n ", b"\x00", codecs.BOM_UTF8, b"\r\n\r\n"]),
    "random": lambda draw, data: draw.randbytes(draw.choice([1, 10, 1000])),
    "zeros": lambda draw, data: bytes(draw.choice([1, 100, 5000])),
    "behind": lambda draw, data: data + draw.choice([b"\x00", b"junk", b"\xff\xfe", data[:20]]),
    "another kind": lambda draw, data: draw.choice([gzip.compress(data), b"PK\x03\x04", b"<html>", b"PAR1" + data + b"PAR1"]),
    "hole": lambda draw, data: data[: len(data) // 3] + data[len(data) // 2 :],
}  # fmt: skip
ENCODINGS = (
    "idna",
    "punycode",
    "undefined",
    "unicode_escape",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-32",
    "cp1252",
    "latin-1",
    "shift_jis",
    "utf-7",
    "utf-8",
)


def odd_parquet(draw: random.Random) -> bytes:
    """Columns of any types, as `fuzz_pipeline` makes them."""
    from .fuzz_pipeline import arrow_column

    rng = np.random.default_rng(draw.randrange(2**32))
    names = draw.sample(NAMES, draw.randint(1, 4))
    size = draw.choice([0, 1, 7])
    columns = [arrow_column(rng, size, "list" in name) for name in names]
    if draw.random() < 0.1:
        names[-1] = names[0]
    table = pa.Table.from_arrays(columns, names)
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(table, sink)
    except (pa.ArrowException, OSError):
        return odd_parquet(draw)
    return sink.getvalue().to_pybytes()


def make_case(draw: random.Random, folder: Path) -> Case:
    suffix = draw.choice(SUFFIXES)
    path = folder / f"{draw.choice(FILE_NAMES)}{suffix}"
    rows: list[dict[str, Any]] | None = make_rows(draw)
    assert rows is not None
    kind = suffix.lower().removesuffix(".gz")
    arguments: list[str] = []
    if kind == ".parquet":
        data, note = as_parquet(draw, rows), "whole"
        if draw.random() < 0.4:
            data, note, rows = odd_parquet(draw), "types", None
    else:
        is_json = "json" in kind
        data = as_json(draw, rows) if is_json else as_csv(draw, rows, "\t" if kind == ".tsv" else ",")
        note = "whole"
        if draw.random() < 0.5:
            note = draw.choice(list(OF_TEXT))
            data = OF_TEXT[note](draw, data.decode()).encode(errors="replace")
            rows = None
        if draw.random() < 0.15:
            encoding = draw.choice(ENCODINGS)
            with contextlib.suppress(UnicodeError):
                data, rows, note = data.decode().encode(encoding, "replace"), None, f"{note}, {encoding}"
            if draw.random() < 0.5:
                arguments = ["--encoding", draw.choice([encoding, *ENCODINGS, "nonsense", "rot13", "base64"])]
        if draw.random() < 0.05:
            arguments, rows = (
                [*arguments, "--delimiter", draw.choice([",", ";", "\\t", "", "ab", '"', "a", "\x00", "§"])],
                None,
            )
    damage = draw.choice(list(OF_BYTES)) if draw.random() < 0.3 else None
    if damage is not None and not suffix.endswith(".gz"):
        data, rows, note = OF_BYTES[damage](draw, data), None, f"{note}, {damage}"
    if suffix.endswith(".gz"):
        data = gzip.compress(data)
        if damage is not None:
            data, rows, note = OF_BYTES[damage](draw, data), None, f"{note}, gz {damage}"
    if suffix in (".txt", "") or arguments:
        rows = None
    return Case(path, data, rows, arguments, note)


# ---- what must hold


def cases(seed: int, files: int, only: int | None = None) -> Iterator[tuple[int, random.Random]]:
    for number in range(files):
        if only in (None, number):
            yield number, random.Random(f"score {seed} {number}")


def fuzz(
    pipe: CtrPredictionPipeline, checkpoint: Path, folder: Path, seed: int, files: int, only: int | None = None
) -> list[str]:
    """So many files through the command; what did not hold, one line each. Their files stay in the folder."""
    faults = []
    with patch.object(score, "load_pipeline", return_value=pipe):
        for number, draw in cases(seed, files, only):
            here = folder / f"score-{seed}-{number}"
            here.mkdir(parents=True)
            case = make_case(draw, here)
            found = _one_file(pipe, checkpoint, case, draw)
            faults += [f"score --seed {seed} --only {number} ({case.path}: {case.note}): {fault}" for fault in found]
            if not found:
                shutil.rmtree(here)
    return faults


def _one_file(pipe: CtrPredictionPipeline, checkpoint: Path, case: Case, draw: random.Random) -> list[str]:
    if draw.random() < 0.01:
        case.path.mkdir()
    elif draw.random() < 0.99:
        case.path.write_bytes(case.data)
    output = case.path.parent / draw.choice(["scores.parquet", "scores.parquet", "scores.csv"])
    arguments = ["--model", str(checkpoint), f"--input={case.path}", "--output", str(output), "--device", "cpu"]
    said, wrong = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
            code = score.main([*arguments, *case.arguments])
    except BaseException as error:
        return [f"{type(error).__name__}: {str(error)[:300]}"]
    faults = []
    left = {path.name for path in case.path.parent.iterdir()} - {case.path.name}
    lines = wrong.getvalue().splitlines()
    if code == 0:
        if left != {output.name}:
            faults.append(f"left behind: {sorted(left)}")
        return faults + _check_scores(pipe, case, output)
    if code != 2:
        faults.append(f"exit code {code}")
    if left:
        faults.append(f"left behind: {sorted(left)}")
    errors = [line for line in lines if line.startswith("score: error: ")]
    if len(errors) != 1 or lines[-1] != errors[0]:
        faults.append(f"not one line: {wrong.getvalue()[-500:]!r}")
    elif not any(
        word in errors[0]
        for word in (
            str(case.path),
            output.name,
            *map(repr, [*NAMES, "probability"]),
            *case.arguments,
            *map(repr, case.arguments),
        )
    ):
        faults.append(f"names neither file nor field: {errors[0][:300]}")
    if case.rows is not None and case.path.is_file():
        faults.append(f"a whole file is refused: {errors[:1]}")
    return faults


def _check_scores(pipe: CtrPredictionPipeline, case: Case, output: Path) -> list[str]:
    if output.suffix == ".csv":
        whole = arrow_csv.ReadOptions(block_size=1 << 26)
        table = arrow_csv.read_csv(output, whole, arrow_csv.ParseOptions(newlines_in_values=True))
        scores = table["probability"].to_numpy()
    else:
        scores = pq.read_table(output)["probability"].to_numpy()
    faults = []
    if not (np.isfinite(scores) & (scores >= 0) & (scores <= 1)).all():
        faults.append(f"no probabilities: {scores[:5]}")
    said = dict(zip(case.arguments[::2], case.arguments[1::2], strict=True))
    read = sum(
        map(len, open_table(case.path, encoding=said.get("--encoding"), delimiter=said.get("--delimiter")).batches())
    )
    if len(scores) != read:
        faults.append(f"{len(scores)} scores of {read} rows")
    if case.rows is not None:
        expected = [row["probability"] for row in pipe(case.rows)]
        if len(expected) != len(scores) or np.abs(scores - expected).max() > NOISE:
            faults.append(f"scored otherwise than from Python: {scores[:5]}, not {expected[:5]}; rows {case.rows[:2]}")
    return faults
