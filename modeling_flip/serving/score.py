"""Score a file of rows: `python -m modeling_flip.score --model ID_OR_FOLDER --input rows.csv --output scores.parquet`.

The input is CSV, TSV, JSON lines (all of these also gzipped) or Parquet. The output, Parquet or CSV, has the same columns and
rows in the same order, and a column `probability`. Types stay too; the cells of CSV and TSV are text, exactly as it is written.
The file is opened as in training (`table_files`), and each cell is read by its field's type, which the checkpoint holds: the
same row gets the same probability from any kind of file. A row that cannot be read is an error, and none is left out: the output
has a row for each of the input.

Files may be of any size: rows are read, scored and written in parts. Finished parts stay in OUTPUT.parts until all are there,
so that the same command continues after an interruption. A record beside them names what they depend on: the model, the
settings, and the SHA-256 of the input. If only the content of the input has changed, all of it is scored again; parts of
another model or file are refused.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import csv
from tqdm.contrib.logging import logging_redirect_tqdm  # type: ignore[import-untyped]
from transformers import AutoModelForSequenceClassification
from transformers.utils import CONFIG_NAME, cached_file, logging
from transformers.utils.hub import extract_commit_hash

from ..commands import ends_in_order, exit_code, failed, sole_writer
from ..fields import did_you_mean
from ..pipeline_flip import BACKENDS, DEFAULT_BATCH_SIZE, PROBABILITIES, TOWER_PROBABILITIES, CtrPredictionPipeline
from ..processing_flip import FlipProcessor
from ..table_files import READ, TableFile, in_parts, open_table
from ..version import __version__

ROWS_PER_PART = 32_768
OUTPUT_SUFFIXES = (".parquet", ".csv")
# Of the files that a score depends on.
MODEL_SUFFIXES = (".json", ".safetensors", ".parquet", ".onnx", ".data", ".xml", ".bin")
# In the folder of parts: the record of the run, and keys of it.
RUN_FILE, INPUT_CONTENT, OUTPUT = "run.json", "input_sha256", "output"

logger = logging.get_logger(__name__)


def open_input(path: Path, delimiter: str | None = None, encoding: str | None = None) -> TableFile:
    """The rows of a file, opened as training opens them.

    Raises:
        ValueError, FileNotFoundError: as `open_table`; or it is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; score one file at a time")
    table = open_table(path, delimiter=delimiter, encoding=encoding)
    if path.suffix.lower() == ".parquet":  # metadata such as pandas' index is not rows, but is kept
        written = pq.read_schema(path)
        metadata = written.metadata
        if table.schema != written.remove_metadata():  # classes of `datasets`, which have their names now
            del metadata[b"huggingface"]
        return replace(table, schema=table.schema.with_metadata(metadata))
    return table


def check_has_field(table: TableFile, fields: Sequence[str]) -> None:
    """Raises ValueError if no column of a file is a field of the model."""
    if not set(fields) & set(table.schema.names):
        raise ValueError(
            f"{table.path} has no field of the model; its columns: {table.schema.names}; the model's fields: {fields}"
        )


def score_file(
    pipe: CtrPredictionPipeline,
    table: TableFile,
    output: Path,
    batch_size: int = DEFAULT_BATCH_SIZE,
    return_towers: bool = False,
    run: dict[str, Any] | None = None,
) -> int:
    """Score the rows of a file, and write them with their probabilities to another. One process at a time may write there.

    Args:
        pipe: the model and its processor.
        table: the rows, of `open_input`; at least one column must be a field of the model.
        output: a .parquet or .csv file that does not exist yet; it appears only when complete. If this same run has already
            written it, and was killed while cleaning up, it stays as it is.
        batch_size: rows per batch.
        return_towers: write the towers' probabilities too.
        run: what these scores depend on. Parts left by a run that differs in it are not continued.

    Returns:
        The number of rows.

    Raises:
        ValueError: a file cannot be read or written, a column is missing or in the way, or parts of another run are.
    """
    schema = table.schema
    check_has_field(table, pipe.processor.fields)
    added = added_columns(return_towers)
    check_output(output, schema, added)
    for name in added:
        schema = schema.append(pa.field(name, pa.float64()))
    if output.suffix == ".csv":
        check_csv_holds(schema)

    folder = parts_folder(output)
    with open(table.path, "rb") as file:  # size and time are not enough: a rewritten file can have the same
        content = hashlib.file_digest(file, "sha256").hexdigest()
    settings = {"batch_size": batch_size, "return_towers": return_towers, "rows_per_part": ROWS_PER_PART}
    this_run = {"input": str(table.path.resolve()), INPUT_CONTENT: content, **settings, **(run or {})}
    record = begin_or_continue(folder, this_run)
    check_output_is_new(output, record)
    if output.exists():
        finish(folder)
        logger.warning(f"{output} is finished; delete it to score again")
        return int(record[OUTPUT]["rows"])
    parts: list[Path] = []
    num_rows = 0
    finished = len(list(folder.glob("part-*.parquet"))) * ROWS_PER_PART
    try:
        with (
            logging_redirect_tqdm(),
            logging.tqdm(total=table.num_rows, initial=finished, unit=" rows", unit_scale=True) as bar,
        ):
            for rows in in_parts(table.batches(), ROWS_PER_PART):
                parts.append(folder / f"part-{len(parts):05d}.parquet")
                num_rows += len(rows)
                if parts[-1].exists():
                    continue
                for name, column in pipe.probabilities(rows, batch_size, return_towers).items():
                    rows = rows.append_column(name, pa.array(column))
                with whole(parts[-1]) as file:
                    pq.write_table(rows, file)
                bar.update(len(rows))
    except Exception:
        if not any(folder.glob("part-*.parquet")):  # there is nothing to continue
            finish(folder)
        raise
    if num_rows == 0:
        finish(folder)
        raise ValueError(f"{table.path} has columns but no rows")
    made = folder / f"output{output.suffix}"
    with whole(made) as file:
        write_output(parts, schema, file, output.suffix)
    # If the run is killed before all of its parts are deleted, the record shows that this output is its own.
    write_record(folder, this_run | {OUTPUT: {"rows": num_rows} | identity(made)})
    made.replace(output)
    finish(folder)
    return num_rows


def added_columns(return_towers: bool) -> list[str]:
    return list((PROBABILITIES | (TOWER_PROBABILITIES if return_towers else {})).values())


def check_output(output: Path, schema: pa.Schema, added: Iterable[str]) -> None:
    """Raises ValueError if the output exists, its folder does not, or the input already has a column to be added."""
    check_output_is_new(output, read_record(parts_folder(output)))
    if not output.parent.is_dir():
        raise ValueError(f"folder {output.parent} does not exist; make it first")
    for name in added:
        if name in schema.names:
            raise ValueError(f"the input has a column {name!r} already; rename it or leave it out")


def check_csv_holds(schema: pa.Schema) -> None:
    """Raises ValueError where a CSV file cannot hold a column."""
    for field in schema:
        try:
            if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
                raise pa.ArrowTypeError("bytes are not text")
            csv.write_csv(pa.schema([field]).empty_table(), pa.BufferOutputStream())
        except pa.ArrowException as error:
            raise ValueError(
                f"column {field.name!r} has type {field.type}, which CSV cannot hold; write Parquet"
            ) from error


def check_output_is_new(output: Path, record: Mapping[str, Any]) -> None:
    """Raises ValueError if the output exists, unless it is the one in the record."""
    if output.exists() and not identity(output).items() <= record.get(OUTPUT, {}).items():
        with contextlib.suppress(OSError):
            parts_folder(output).rmdir()  # it is empty: the run was killed just before removing it
        raise ValueError(f"{output} exists; delete it or choose another name")


def identity(path: Path) -> dict[str, int]:
    """Identifies a file: stays the same when it is renamed, and changes when another file takes its name."""
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


# ---- the folder of parts


def parts_folder(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


def read_record(folder: Path) -> dict[str, Any]:
    """What the parts in a folder depend on, and the output made from them; {} if nothing is recorded."""
    path = folder / RUN_FILE
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a record of a run ({error}); delete the folder {folder}") from error


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    with whole(folder / RUN_FILE) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it gets its name only when it is complete and on the disk."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with open(unfinished, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def begin_or_continue(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Make the folder of parts, or check that its parts belong to the same run; parts of an input that has since changed are
    deleted.

    Returns:
        the record of the run.

    Raises:
        ValueError: they are of another.
    """
    if not (folder / RUN_FILE).exists():
        if folder.exists() and any(p.name != f"{RUN_FILE}.tmp" for p in folder.iterdir()):
            raise ValueError(
                f"{folder} holds other files, but it is where parts would be written; choose another output"
            )
        folder.mkdir(exist_ok=True)
        write_record(folder, run)
    record = read_record(folder)
    differing = [name for name in sorted((record.keys() | run.keys()) - {OUTPUT}) if record.get(name) != run.get(name)]
    if differing == [INPUT_CONTENT]:
        logger.warning(f"{run['input']} has changed since part of it was scored: all of it is scored again")
        delete_parts(folder)
        write_record(folder, run)
        return dict(run)
    if differing:
        raise ValueError(
            f"{folder} holds parts of a run that differs in {', '.join(differing)}; repeat that run's command to finish it, "
            "delete the folder, or choose another output"
        )
    return record


def write_output(parts: Iterable[Path], schema: pa.Schema, file: BinaryIO, suffix: str) -> None:
    """The parts, one after the other, as one Parquet or CSV file."""
    writer = pq.ParquetWriter(file, schema) if suffix == ".parquet" else csv.CSVWriter(file, schema)
    with writer:
        for part in parts:
            columns = zip(pq.read_table(part).columns, schema.types, strict=True)
            # A cast to the same type is harmless, except for Arrow's lists of null.
            cast = [column if column.type == kind else column.cast(kind) for column, kind in columns]
            writer.write_table(pa.Table.from_arrays(cast, schema=schema))


def finish(folder: Path) -> None:
    """Remove what stands in the folder of parts, and the folder."""
    delete_parts(folder)
    (folder / RUN_FILE).unlink()
    with contextlib.suppress(OSError):  # other files are in it: it stays
        folder.rmdir()


def delete_parts(folder: Path) -> None:
    for pattern in ("part-*", "output.*"):
        for file in folder.glob(pattern):
            file.unlink()


def load_pipeline(
    model: str,
    revision: str | None,
    device: str | None,
    return_towers: bool,
    cold_start: str | None = None,
    backend: str | None = None,
    **kwargs: Any,
) -> CtrPredictionPipeline:
    """Model and processor of a checkpoint; `kwargs` are dtype and towers."""
    loaded = AutoModelForSequenceClassification.from_pretrained(model, revision=revision, **kwargs)
    processor = FlipProcessor.from_pretrained(model, revision=revision)
    options: dict[str, Any] = {"task": "ctr-prediction", "device": device, "return_towers": return_towers}
    return CtrPredictionPipeline(loaded, processor, cold_start=cold_start, backend=backend, **options)


def model_version(model: str, revision: str | None) -> dict[str, Any]:
    """Identifies a version of a model: a Hub repo's commit, or size and time of a folder's files.

    Raises:
        ValueError: there is no such model.
    """
    try:
        config_file = cached_file(model, CONFIG_NAME, revision=revision)
    except OSError as error:
        folder = Path(model)
        if folder.is_dir():
            raise
        near = [other.name for other in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ValueError(
            f"there is no folder {model}{did_you_mean(folder.name, near)}; and the Hub does not give it: {error}"
        ) from error
    if not Path(model).is_dir():
        return {"model": model, "revision": extract_commit_hash(config_file, None)}
    files = sorted(p for p in Path(model).iterdir() if p.suffix in MODEL_SUFFIXES)
    stats = {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in files}
    return {"model": str(Path(model).resolve()), "revision": None, "model_files": stats}


def _output(text: str) -> Path:
    if Path(text).suffix not in OUTPUT_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text} ends in neither {' nor '.join(OUTPUT_SUFFIXES)}")
    return Path(text)


def _device(text: str) -> str:
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # no such device, or a torch built without it
        raise argparse.ArgumentTypeError(f"{text} cannot be used: {str(error).splitlines()[0]}") from error
    return text


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="score",
        usage="python -m modeling_flip.score --model ID_OR_FOLDER --input FILE --output FILE [options]",
        description=(
            "Score a file: write its rows to a new file with one more column, `probability`, that of a click. Rows, columns "
            "and types stay as they are; cells of CSV and TSV are copied as text. If it is interrupted, run the same command "
            "again to continue."
        ),
    )
    parser.add_argument("--model", required=True, metavar="ID_OR_FOLDER", help="a model on the Hub, or a folder")
    parser.add_argument("--input", required=True, type=Path, metavar="FILE", help=f"rows to score: {READ}")
    parser.add_argument(
        "--output",
        required=True,
        type=_output,
        metavar="FILE",
        help="the file to write, .parquet or .csv (always with commas, in UTF-8)",
    )
    parser.add_argument(
        "--delimiter",
        help=r"character between the cells of a CSV, such as ';' or '\t' (default: detected among , ; tab |)",
    )
    parser.add_argument("--encoding", help="encoding of a text file, such as utf-16 or cp1252 (default: detected)")
    parser.add_argument(
        "--batch_size", type=positive, default=DEFAULT_BATCH_SIZE, help="rows per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--towers", choices=("both", "tabular", "text"), help="which towers to load (default: those of the checkpoint)"
    )
    parser.add_argument(
        "--return_towers",
        action="store_true",
        help="also write the probability from each tower alone, `tabular_probability` and `text_probability`",
    )
    parser.add_argument(
        "--cold_start",
        choices=("text",),
        help="values never seen in training get the embedding that the text tower predicts for their words (default: their "
        "field's unknown feature)",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="what computes the model: torch, or for an exported one onnx or openvino (default: what its files are for)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub (default: main)")
    parser.add_argument(
        "--device", type=_device, help="cpu, cuda, cuda:1, … (default: the first accelerator, else the CPU)"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="type of the weights (default: auto, as saved)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 where all went well, 2 where it could not, 130 or 143 where it was interrupted."""
    args = make_parser().parse_args(arguments)
    given = {"towers": args.towers, "cold_start": args.cold_start, "backend": args.backend}
    settings = {"dtype": args.dtype} | {name: value for name, value in given.items() if value is not None}
    try:
        # Before the model is loaded, which may take long.
        table = open_input(args.input, args.delimiter, args.encoding)
        check_output(args.output, table.schema, added_columns(args.return_towers))
        with ends_in_order(), sole_writer(args.output):
            version = model_version(args.model, args.revision)
            pipe = load_pipeline(args.model, version["revision"], args.device, args.return_towers, **settings)
            reading = {"delimiter": args.delimiter, "encoding": args.encoding}
            run = version | settings | reading | {"device": str(pipe.device), "modeling_flip": __version__}
            num_rows = score_file(pipe, table, args.output, args.batch_size, args.return_towers, run)
    except KeyboardInterrupt as interrupt:
        print("\nscore: interrupted; the same command continues where it stopped", file=sys.stderr)
        return exit_code(interrupt)
    except Exception as error:
        return failed("score", error, args.output.parent)
    print(f"{num_rows:,} rows scored: {args.output}")
    return 0
