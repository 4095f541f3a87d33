"""Export a model: `python -m modeling_flip.serving.export --model ID_OR_FOLDER --output FOLDER [--format onnx|openvino] …`.

The folder scores raw rows like any checkpoint, with the pipeline, the score command and the endpoint; but its model is a graph
that ONNX Runtime or OpenVINO computes. It appears only when the graph has given the model's logits on rows: those of `--rows`,
or rows drawn from the vocabulary. With `--precision int8` matrices are multiplied in 8 bits, with scales found for each batch;
with `int8-static`, with scales found once, on rows of `--rows`. An int8 model is measured on these rows, beside the model that it
comes from, so they need labels.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging as std_logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..checkpoint_files import write_checksums
from ..commands import ends_in_order, exit_code, failed, sole_writer
from ..fields import did_you_mean
from ..pipeline_flip import PROBABILITIES, TOWER_PROBABILITIES, CtrPredictionPipeline
from ..row_dataset import FlipDataset
from ..text_tower import text_towers_of
from ..training.data import read_labels
from ..version import __version__
from .exported import EXPORTED, FILES, ExportedConfig, ExportedForCTR, imported
from .score import load_pipeline, open_input

# A graph in fp32 differs from the model by float noise; beyond this, in a logit, or as a share of one above 1, it computes
# something else.
LARGEST_DIFFERENCE = 1e-3
PRECISIONS = ("fp32", "int8", "int8-static")
# Rows that the graph is checked on, and those that the scales of int8-static are found on.
CHECKED_ROWS, CALIBRATION_BATCH = 512, 32
MOST_DRAWN_TOKENS = 32
REPORT_FILE = "export.json"
# Axes of an input that are not the model's own: rows, tokens and members of lists.
FREE_AXES = {"feature_ids": (0,), "list_feature_ids": (0, 2), "user_index": (0,), "item_index": (0,)}


class Graph(torch.nn.Module):
    """A model whose inputs and outputs are tensors alone."""

    def __init__(self, model: Any, inputs: Sequence[str], outputs: Sequence[str]):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = self.model(**dict(zip(self.inputs, batch, strict=True)))
        return tuple(made[name] for name in self.outputs)


def export(
    pipe: CtrPredictionPipeline,
    output: Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    rows: FlipDataset | None = None,
) -> dict[str, Any]:
    """Write a model as a graph, with its processor, to a new folder.

    Args:
        pipe: the model and its processor, in fp32 on the CPU.
        output: the folder; it must not exist, and appears only when the graph has been checked.
        format: "onnx" or "openvino".
        precision: "fp32", "int8" (ONNX alone) or "int8-static".
        rows: rows to check, calibrate and measure on, which for int8 must have labels; by default some drawn from the vocabulary.

    Returns:
        What `export.json` holds: the largest difference of a logit, the sizes of the files in bytes, and where the rows have
        labels AUC and logloss of the model and of the graph.

    Raises:
        ValueError: the model cannot be exported so, or the graph computes something else.
        ImportError: the extra `serving`, or `openvino`, is not installed.
    """
    check_choices(format, precision, rows)
    if isinstance(pipe.model, ExportedForCTR) or pipe.model.dtype != torch.float32:
        kind = "exported already" if isinstance(pipe.model, ExportedForCTR) else f"in {pipe.model.dtype}"
        raise ValueError(f"the model is {kind}; export the checkpoint, loaded with dtype='float32'")
    if output.exists():
        raise ValueError(f"{output} exists; delete it or choose another name")
    model, processor = pipe.model.eval(), pipe.processor
    checked = sample(rows) if rows is not None else drawn_rows(pipe)
    with temporary_folder(output) as folder:
        graph, names = make_graph(pipe, checked)
        file = folder / FILES[format]
        batches = pipe.batches(checked, CALIBRATION_BATCH)["batches"] if precision != "fp32" else []
        (write_onnx if format == "onnx" else write_openvino)(graph, file, precision, batches)
        config = ExportedConfig(
            exported_from=model.config.model_type,
            file=file.name,
            precision=precision,
            inputs=list(model.inputs),
            outputs=names,
            towers=model.config.towers,
            item_fields=list(model.config.item_fields),
            **processor.config_settings,
        )
        processor.save_pretrained(folder)
        for code in folder.glob("*.py"):  # for checkpoints that bring their own code; this one needs the package
            code.unlink()
        config.save_pretrained(folder)
        exported = CtrPredictionPipeline(ExportedForCTR(config, file), processor)
        report = {
            "model": Path(model.config.name_or_path).name,
            "format": format,
            "precision": precision,
            "rows": len(checked),
            "largest_difference": check_equal(pipe, exported, checked, exact=precision == "fp32"),
            "bytes": {"model": model_bytes(model), "graph": sum(f.stat().st_size for f in folder.glob("model.*"))},
            "modeling_flip": __version__,
        }
        if rows is not None and rows.labels is not None:
            report["measured"] = {"rows": len(rows), "model": measured(pipe, rows), "graph": measured(exported, rows)}
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
        write_checksums(folder, EXPORTED)
        folder.replace(output)
    return report


def check_choices(format: str, precision: str, rows: FlipDataset | None) -> None:
    """Raises ValueError for what does not go together."""
    if format == "openvino" and precision == "int8":
        raise ValueError("OpenVINO's int8 has scales found once: choose --precision int8-static")
    if precision != "fp32" and (rows is None or rows.labels is None):
        raise ValueError(
            f"precision {precision} may change the scores, so it is measured: give --rows a file of labelled rows, and "
            "--label_column"
        )
    imported("onnxruntime" if format == "onnx" else "openvino", "serving" if format == "onnx" else "openvino")
    if format == "openvino" and precision != "fp32":
        imported("nncf", "openvino")


# ---- the graph


def make_graph(pipe: CtrPredictionPipeline, rows: FlipDataset) -> tuple[Any, list[str]]:
    """The model as an ONNX program, for any number of rows and tokens, and the names of its outputs.

    Raises:
        ValueError: torch cannot export it.
    """
    imported("onnxscript", "serving")
    # Of several rows, so that no axis has the length 1, which some exporters take for fixed.
    batch = pipe.batches(sample(rows, 5), 5)["batches"][0]
    with torch.no_grad():
        made = pipe.model(**batch)
    names = [name for name in PROBABILITIES | TOWER_PROBABILITIES if made.get(name) is not None]
    free = [FREE_AXES.get(name, (0, 1)) for name in batch]
    shapes = tuple({axis: torch.export.Dim.DYNAMIC for axis in axes} for axes in free)
    try:
        # Of attention, decomposed: torch cannot export T5's fused one for sentences of any length.
        with quiet(), with_attention(pipe.model, "eager"):
            program = torch.onnx.export(
                Graph(pipe.model, list(batch), names).eval(),
                tuple(batch.values()),
                dynamo=True,
                input_names=list(batch),
                output_names=names,
                dynamic_shapes=(shapes,),
                verbose=False,
            )
    except Exception as error:  # of many kinds, none of them public
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        family = getattr(pipe.model.config.text_config, "model_type", None)
        raise ValueError(
            f"torch cannot export a {type(pipe.model).__name__} with tabular tower {pipe.model.config.tabular_tower!r} and text "
            f"tower {family!r}: {reason}"
        ) from error
    return program, names


@contextlib.contextmanager
def with_attention(model: Any, implementation: str) -> Iterator[None]:
    """Meanwhile the text towers compute their attention so."""
    towers = text_towers_of(model)
    before = [tower.config._attn_implementation for tower in towers]
    for tower in towers:
        tower.set_attn_implementation(implementation)
    try:
        yield
    finally:
        for tower, own in zip(towers, before, strict=True):
            tower.set_attn_implementation(own)


def write_onnx(program: Any, file: Path, precision: str, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """The graph for ONNX Runtime."""
    if precision == "fp32":
        program.save(file)
        return
    quantization = imported("onnxruntime.quantization", "serving")
    with tempfile.TemporaryDirectory() as scratch, quiet():
        whole, ready = Path(scratch) / "whole.onnx", Path(scratch) / "ready.onnx"
        program.save(whole)
        quantization.quant_pre_process(whole, ready, skip_symbolic_shape=True)
        settings = {
            "weight_type": quantization.QuantType.QInt8,
            "per_channel": True,
            "op_types_to_quantize": ["MatMul", "Gemm"],  # the rest costs nearly no time
        }
        if precision == "int8":
            quantization.quantize_dynamic(ready, file, **settings)
        else:
            quantization.quantize_static(ready, file, calibration_reader(batches), **settings)


def calibration_reader(batches: Sequence[Mapping[str, torch.Tensor]]) -> Any:
    """The batches as ONNX Runtime asks for them."""
    waiting = ({name: tensor.numpy() for name, tensor in batch.items()} for batch in batches)

    class Reader(imported("onnxruntime.quantization", "serving").CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(waiting, None)

    return Reader()


def write_openvino(program: Any, file: Path, precision: str, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """The graph for OpenVINO, with its weights in `model.bin`."""
    openvino = imported("openvino", "openvino")
    with tempfile.TemporaryDirectory() as scratch, quiet():
        program.save(Path(scratch) / "model.onnx")
        model = openvino.convert_model(Path(scratch) / "model.onnx")
        if precision != "fp32":
            nncf = imported("nncf", "openvino")
            arrays = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in batches]
            model = nncf.quantize(
                model, nncf.Dataset(arrays), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(arrays)
            )
        openvino.save_model(model, file, compress_to_fp16=False)


# ---- rows to check on


def drawn_rows(pipe: CtrPredictionPipeline) -> FlipDataset:
    """CHECKED_ROWS rows of values drawn from the vocabulary, a tenth of the cells missing; lists have up to three members, and
    texts, of which a vocabulary keeps none, are tokens drawn from the tokenizer's."""
    rng, vocabulary, tokenizer = np.random.default_rng(0), pipe.processor.vocabulary, pipe.processor.tokenizer
    columns: dict[str, pa.Array] = {}
    for field in vocabulary.columns:
        seen = vocabulary.values[field.features_of or field.name].cast(pa.string())
        if field.kind == "text" and tokenizer is not None:
            texts = [rng.integers(len(tokenizer), size=size) for size in range(1, MOST_DRAWN_TOKENS)]
            seen = pa.array(tokenizer.batch_decode(texts, skip_special_tokens=True), pa.string())
        if not len(seen):
            seen = pa.nulls(1, pa.string())
        is_missing = rng.random(CHECKED_ROWS) < 0.1
        if field.kind == "list":
            sizes = np.where(is_missing, 0, rng.integers(1, 4, size=CHECKED_ROWS))
            offsets = pa.array(np.concatenate([[0], sizes.cumsum()]), pa.int32())
            members = seen.take(pa.array(rng.integers(len(seen), size=offsets[-1].as_py())))
            columns[field.name] = pa.ListArray.from_arrays(offsets, members)
        else:
            columns[field.name] = seen.take(pa.array(rng.integers(len(seen), size=CHECKED_ROWS), mask=is_missing))
    return pipe.encode(pa.table(columns))


def sample(rows: FlipDataset, size: int = CHECKED_ROWS) -> FlipDataset:
    """Rows from the whole, evenly."""
    return rows.__getitems__(np.linspace(0, len(rows) - 1, min(size, len(rows))).astype(np.int64))


def read_rows(
    path: Path,
    label_column: str | None,
    positive_label: str | None = None,
    positive_above: float | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[pa.Table, np.ndarray | None]:
    """The rows of a file, and the clicks (N,) of a column of it, read as in training.

    Raises:
        ValueError: the file cannot be read, has no rows or no such column, or the labels are none, or all alike.
    """
    table = open_input(path, delimiter, encoding).to_table()
    if not len(table):
        raise ValueError(f"{path} has no rows; give a file with some, or leave --rows out")
    if label_column is None:
        return table, None
    if label_column not in table.column_names:
        known = did_you_mean(label_column, table.column_names)
        raise ValueError(f"{path} has no column {label_column!r}; its columns are {table.column_names}{known}")
    clicks = read_labels(table[label_column], label_column, str(path), positive_label, positive_above)
    if len(np.unique(clicks)) < 2:
        raise ValueError(
            f"AUC needs rows with a click and rows without, but {label_column!r} of {path} is the same in all"
        )
    return table, clicks


def check_equal(pipe: CtrPredictionPipeline, exported: CtrPredictionPipeline, rows: FlipDataset, exact: bool) -> float:
    """The largest difference of a logit (its share, of logits beyond ±1), over batches of one row and of many.

    Raises:
        ValueError: it is not finite, or more than noise in a graph that should be exact.
    """
    largest = 0.0
    for some, size in ((rows.__getitems__(np.arange(min(3, len(rows)))), 1), (rows, 7), (rows, len(rows))):
        logits = pipe.logits(some, size)
        differences = np.abs(logits - exported.logits(some, size)) / np.maximum(1, np.abs(logits))
        difference = differences.max(initial=0.0)
        largest = max(largest, float(difference))
        if not np.isfinite(difference) or (exact and difference > LARGEST_DIFFERENCE):
            raise ValueError(
                f"the graph computes something else than the model: a logit differs by {difference:.3g} (at most "
                f"{LARGEST_DIFFERENCE:g} is noise); nothing was written. Please report it, with the versions of torch and onnx"
            )
    return largest


def measured(pipe: CtrPredictionPipeline, rows: FlipDataset) -> dict[str, float]:
    """AUC and logloss of rows with labels."""
    from sklearn.metrics import log_loss, roc_auc_score

    probabilities = 1 / (1 + np.exp(-pipe.logits(rows)))
    return {
        "auc": float(roc_auc_score(rows.labels, probabilities)),
        "logloss": float(log_loss(rows.labels, probabilities)),
    }


# ---- files


@contextlib.contextmanager
def temporary_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output, which is to be renamed to it; what is left of it in the end is removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what exporters and quantisers print of their own steps; errors are raised all the same."""
    level = std_logging.root.manager.disable
    std_logging.disable(std_logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        std_logging.disable(level)


def model_bytes(model: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())


# ---- the command


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="export",
        usage="python -m modeling_flip.serving.export --model ID_OR_FOLDER --output FOLDER [options]",
        description=(
            "Write a model as a graph for ONNX Runtime or OpenVINO, with all that it needs to score raw rows. The graph is "
            "compared with the model before the folder appears; an int8 model is measured beside it."
        ),
    )
    parser.add_argument("--model", required=True, metavar="ID_OR_FOLDER", help="a model on the Hub, or a folder")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--format", choices=list(FILES), default="onnx", help="default: %(default)s")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="int8: scales found for each batch; int8-static: scales found once, on --rows (default: %(default)s)",
    )
    parser.add_argument("--towers", choices=("both", "tabular", "text"), help="default: those of the checkpoint")
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FILE",
        help="rows to check and to measure on, and to find scales with (default: rows drawn from the vocabulary)",
    )
    parser.add_argument(
        "--label_column", metavar="NAME", help="the column of clicks in --rows; AUC and logloss are then measured"
    )
    parser.add_argument("--positive_label", metavar="WORD", help="the label that means a click, such as yes")
    parser.add_argument(
        "--positive_above", type=float, metavar="NUMBER", help="labels above this are clicks, such as 3"
    )
    parser.add_argument("--delimiter", help="what separates the cells of --rows in a text file (default: detected)")
    parser.add_argument("--encoding", help="encoding of --rows in a text file, such as cp1252 (default: detected)")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub (default: main)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 where all went well, 2 where it could not, 130 or 143 where it was interrupted."""
    args = make_parser().parse_args(arguments)
    try:
        if args.label_column is not None and args.rows is None:
            raise ValueError("--label_column names a column of --rows, but --rows is missing: add it")
        reading = {name: getattr(args, name) for name in ("positive_label", "positive_above", "delimiter", "encoding")}
        if args.label_column is None and (args.positive_label, args.positive_above) != (None, None):
            raise ValueError("--positive_label and --positive_above need --label_column, which is missing: add it")
        with ends_in_order(), sole_writer(args.output):
            towers = {} if args.towers is None else {"towers": args.towers}
            labelled = None if args.rows is None else read_rows(args.rows, args.label_column, **reading)
            pipe = load_pipeline(args.model, args.revision, "cpu", return_towers=False, dtype="float32", **towers)
            rows = None if labelled is None else pipe.processor.encode(*labelled, strict=False)
            report = export(pipe, args.output, format=args.format, precision=args.precision, rows=rows)
    except KeyboardInterrupt as interrupt:
        print("\nexport: interrupted; nothing was written", file=sys.stderr)
        return exit_code(interrupt)
    except Exception as error:
        return failed("export", error, args.output.parent)
    print(summary(report))
    print(f"written: {args.output}")
    return 0


def summary(report: Mapping[str, Any]) -> str:
    """What a report says, as Markdown: the model and the graph side by side."""
    precision = f"{report['format']}, {report['precision']}"
    sizes = {name: f"{size / 1e6:.1f} MB" for name, size in report["bytes"].items()}
    lines = ["| | size | AUC | logloss |", "| --- | --- | --- | --- |"]
    for name, title in {"model": "model", "graph": precision}.items():
        figures = report.get("measured", {}).get(name)
        shown = [f"{figures[key]:.4f}" for key in ("auc", "logloss")] if figures else ["–", "–"]
        lines.append(f"| {title} | {sizes[name]} | {' | '.join(shown)} |")
    said = f"largest difference of a logit on {report['rows']:,} rows: {report['largest_difference']:.2g}"
    return "\n".join([*lines, said])


if __name__ == "__main__":
    sys.exit(main())
