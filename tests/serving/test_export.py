"""Exported models: the model's own logits for every model, tower and kind of field, whole folders, int8 that is measured."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import csv
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
    set_seed,
)
from transformers.pipelines import base as pipelines_base

from modeling_flip import (
    TABULAR_TOWERS,
    CTRBertForCTR,
    CtrPredictionPipeline,
    Field,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    MoRecForCTR,
    P5ForCTR,
)
from modeling_flip.serving import export as export_module
from modeling_flip.serving.export import LARGEST_DIFFERENCE, drawn_rows, export, read_rows
from modeling_flip.serving.export import main as export_command
from modeling_flip.serving.exported import ExportedForCTR
from modeling_flip.serving.score import main as score_command

onnx = pytest.importorskip("onnx")
set_external_data = pytest.importorskip("onnx.external_data_helper").set_external_data
for runtime in ("onnxruntime", "onnxscript"):
    pytest.importorskip(runtime)

FIELDS = [
    Field(name="user_id", side="user"),
    Field(name="age", kind="numeric", type="number", side="user"),
    Field(name="history", kind="list", side="user"),
    Field(name="title", side="item"),
    Field(name="note", kind="text", side="item"),
]
WORDS = ["toy", "story", "the", "usual", "suspects", "a", "wonderful", "life"]
SIZES: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [8]}
ITEM = {"item_fields": [3, 4]}


def make_rows(size: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "user_id": f"u{rng.integers(9)}",
            "age": None if rng.random() < 0.2 else round(float(rng.normal(30, 9)), 1),
            "history": [f"i{i}" for i in rng.integers(9, size=rng.integers(4))],
            "title": " ".join(rng.choice(WORDS, rng.integers(1, 6))),
            "note": " ".join(rng.choice(WORDS, rng.integers(9))),
            "clicked": int(rng.integers(2)),
        }
        for _ in range(size)
    ]


ROWS = make_rows(200)
STRANGE = [{"user_id": "nobody", "title": "東京 " * 9, "age": "x"}, {"title": None, "history": ["?"]}, dict(ROWS[0])]


@pytest.fixture(scope="module")
def processor(wordpiece: PreTrainedTokenizerFast) -> FlipProcessor:
    return FlipProcessor.fit(ROWS[:150], FIELDS, wordpiece)


@pytest.fixture(scope="module")
def tiny_bert(processor: FlipProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one layer: what an export costs grows with them."""
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(processor.tokenizer), **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_t5(processor: FlipProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    config = T5Config(
        vocab_size=len(processor.tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def lively(model: Any) -> Any:
    """With larger weights than at the start, so that logits differ by more than noise."""
    set_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


MODELS: dict[str, Callable[[Path, Path, FlipProcessor], Any]] = {
    "FLIP, calibrated": lambda bert, t5, p: FlipForCTR.from_text_pretrained(
        bert, p, **SIZES, text_pooling="mean", logit_scale=0.5, logit_shift=1.0
    ),
    "FLIP_PLM": lambda bert, t5, p: FlipForCTR.from_text_pretrained(bert, p, **SIZES, towers="text"),
    "CTR-BERT": lambda bert, t5, p: CTRBertForCTR.from_text_pretrained(bert, p, **SIZES, **ITEM),
    "MoRec, frozen": lambda bert, t5, p: MoRecForCTR.from_text_pretrained(
        bert, p, **SIZES, **ITEM, freeze_text_tower=True, tabular_tower="deepfm"
    ),
    "P5": lambda bert, t5, p: P5ForCTR.from_text_pretrained(t5, p),
} | {
    f"FLIP_ID, {tower}": lambda bert, t5, p, tower=tower: FlipForCTR.from_text_pretrained(
        None, p, **SIZES, towers="tabular", tabular_tower=tower
    )
    for tower in TABULAR_TOWERS
    if tower not in ("dcnv2", "deepfm")  # those of the models above
}


@pytest.mark.parametrize("kind", MODELS)
def test_an_exported_model_gives_the_models_logits(
    kind: str, tiny_bert: Path, tiny_t5: Path, processor: FlipProcessor, tmp_path: Path
) -> None:
    pipe = CtrPredictionPipeline(lively(MODELS[kind](tiny_bert, tiny_t5, processor)), processor)
    report = export(pipe, tmp_path / "exported")
    assert report["largest_difference"] < LARGEST_DIFFERENCE
    loaded = pipeline("ctr-prediction", model=str(tmp_path / "exported"))
    assert isinstance(loaded.model, ExportedForCTR)
    for rows in (ROWS[150:], STRANGE):
        ours, theirs = (p.logits(p.encode(rows), batch_size=3) for p in (pipe, loaded))
        assert np.ptp(ours) > 1e-3
        np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=1e-4)
    if pipe.model.config.towers == "both":  # each tower's by its own name
        ours, theirs = (p(ROWS[150:], return_towers=True) for p in (pipe, loaded))
        for expected, scored in zip(ours, theirs, strict=True):
            assert scored == pytest.approx(expected, abs=1e-5)


# ---- a small model's folder


@pytest.fixture(scope="module")
def checkpoint(processor: FlipProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    model = lively(FlipForCTR.from_text_pretrained(None, processor.tabular_only(), **SIZES, towers="tabular"))
    model.save_pretrained(folder, processor=processor.tabular_only())
    return folder


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file


@pytest.fixture(scope="module")
def exported(checkpoint: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    rows = ["--rows", str(rows_file), "--label_column", "clicked"]
    assert export_command(["--model", str(checkpoint), "--output", str(folder), *rows]) == 0
    return folder


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert export_command([*map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_the_command_measures_and_the_folder_brings_no_code(exported: Path, checkpoint: Path) -> None:
    report = json.loads((exported / "export.json").read_text())
    assert report["measured"]["rows"] == len(ROWS)
    assert report["measured"]["graph"]["auc"] == pytest.approx(report["measured"]["model"]["auc"], abs=1e-4)
    clicks, pipe = np.array([row["clicked"] for row in ROWS]), pipeline("ctr-prediction", model=str(checkpoint))
    logits = pipe.logits(pipe.encode(ROWS))
    wins = (logits[clicks == 1][:, None] > logits[clicks == 0]).mean()
    assert report["measured"]["model"]["auc"] == pytest.approx(wins, abs=1e-3)
    assert not list(exported.glob("*.py")) and not list(exported.glob("*.safetensors"))
    assert [path.name for path in exported.parent.iterdir()] == ["onnx"]  # no temporary folder, no lock


def test_the_score_command_reads_an_exported_folder(
    exported: Path, checkpoint: Path, rows_file: Path, tmp_path: Path
) -> None:
    scores = {}
    for model, more in {checkpoint: [], exported: ["--backend", "onnx"]}.items():
        output = tmp_path / f"{model.name}.parquet"
        given = ["--model", str(model), "--input", str(rows_file), "--output", str(output), *more]
        assert score_command(given) == 0
        scores[model] = pq.read_table(output)["probability"].to_numpy()
    np.testing.assert_allclose(scores[exported], scores[checkpoint], atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "openvino-of-nothing"])
def test_a_runtime_that_cannot_read_the_folder_is_refused(exported: Path, backend: str) -> None:
    with pytest.raises(ValueError, match=rf"backend is '{backend}'.*a model for onnx and openvino"):
        pipeline("ctr-prediction", model=str(exported), backend=backend)


def test_a_checkpoint_is_not_taken_for_an_exported_model(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"backend is 'onnx'.*export it first: python -m modeling_flip.serving.export"):
        pipeline("ctr-prediction", model=str(checkpoint), backend="onnx")


@pytest.mark.parametrize(
    ("given", "says"),
    [({"towers": "text"}, "towers is 'text'.*has 'tabular'"), ({"dtype": torch.bfloat16}, "dtype is torch.bfloat16")],
)
def test_what_was_settled_by_the_export_cannot_be_asked_for(exported: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AutoModelForSequenceClassification.from_pretrained(exported, **given)


def test_an_exported_model_is_copied_instead_of_saved(exported: Path, tmp_path: Path) -> None:
    pipe = pipeline("ctr-prediction", model=str(exported))
    with pytest.raises(
        ValueError, match=f"an exported model is not saved again: copy its folder, {re.escape(str(exported))},"
    ):
        pipe.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_damaged_graph_is_refused(exported: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(exported, damaged)
    content = bytearray((damaged / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.onnx is cut short or was changed"):
        pipeline("ctr-prediction", model=str(damaged))


@pytest.fixture
def unsigned(exported: Path, tmp_path: Path) -> Path:
    """A copy whose checksums say nothing, as of a folder that somebody made to do harm."""
    folder = tmp_path / "unsigned"
    shutil.copytree(exported, folder)
    (folder / "model.sha256").unlink()
    return folder


def test_a_graph_of_another_folder_is_refused(unsigned: Path) -> None:
    shutil.copy(unsigned / "model.onnx", unsigned.parent)
    config = (unsigned / "config.json").read_text()
    (unsigned / "config.json").write_text(config.replace('"model.onnx"', '"../model.onnx"'))
    with pytest.raises(
        ValueError, match=r"names the file '\.\./model\.onnx'; it must be one of model\.onnx, model\.xml"
    ):
        pipeline("ctr-prediction", model=str(unsigned))


def test_weights_of_another_folder_are_refused(unsigned: Path) -> None:
    graph = onnx.load(unsigned / "model.onnx")
    weight = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (unsigned.parent / "secret").write_bytes(weight.raw_data)
    set_external_data(weight, "../secret")
    weight.ClearField("raw_data")
    (unsigned / "model.onnx").write_bytes(graph.SerializeToString())
    for backend in ("onnx", "openvino"):
        pytest.importorskip("openvino" if backend == "openvino" else "onnxruntime")
        with pytest.raises(ValueError, match=rf"{backend} cannot read .*outside|{backend} cannot read .*escapes"):
            pipeline("ctr-prediction", model=str(unsigned), backend=backend)(ROWS[0])


def test_the_score_command_says_in_a_line_that_a_graph_is_none(
    unsigned: Path, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (unsigned / "model.onnx").write_bytes(b"no graph")
    given = ["--model", str(unsigned), "--input", str(rows_file), "--output", str(tmp_path / "scores.parquet")]
    assert score_command(given) == 2
    assert re.match(
        r"score: error: onnx cannot read .*model\.onnx: .*; download", capsys.readouterr().err.splitlines()[-1]
    )
    assert not list(tmp_path.glob("scores*"))


@pytest.mark.parametrize(
    ("module", "extra", "options"),
    [
        ("onnxruntime", "serving", []),
        ("onnxscript", "serving", []),
        ("openvino", "openvino", ["--format", "openvino"]),
        ("nncf", "openvino", ["--format", "openvino", "--precision", "int8-static"]),
    ],
)
def test_a_missing_extra_is_named(
    module: str,
    extra: str,
    options: list[str],
    exported: Path,
    checkpoint: Path,
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if module == "nncf":
        pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, module, None)
    says = f"error: {module} is not installed: pip install -c constraints.txt -e '.[{extra}]'\n"
    rows = ["--rows", rows_file, "--label_column", "clicked"]
    error = error_of(capsys, "--model", checkpoint, "--output", tmp_path / "out", *options, *rows)
    assert error.endswith(f"export: {says}")
    if module in ("onnxruntime", "openvino"):
        given = ["--model", str(exported), "--input", str(rows_file), "--output", str(tmp_path / "scores.parquet")]
        assert score_command([*given, "--backend", "onnx" if module == "onnxruntime" else module]) == 2
        assert capsys.readouterr().err.endswith(f"score: {says}")
    assert not list(tmp_path.iterdir())


def test_labels_are_read_as_in_training(tmp_path: Path) -> None:
    file = tmp_path / "ratings.txt.csv"
    file.write_text("stars;café\n1;a\n5;b\n4;c\n3;d\n", encoding="cp1252")
    table, clicks = read_rows(file, "stars", positive_above=3, delimiter=";", encoding="cp1252")
    assert clicks is not None and clicks.tolist() == [0, 1, 1, 0]
    assert table.column_names == ["stars", "café"]


def test_beside_an_accelerator_exported_models_stay_on_the_cpu(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines_base, "is_torch_cuda_available", lambda: True)
    assert pipeline("ctr-prediction", model=str(exported)).device == torch.device("cpu")


def test_what_is_no_checkpoint_in_fp32_is_not_exported(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    given = {exported: ({}, "exported already"), checkpoint: ({"dtype": torch.bfloat16}, "in torch.bfloat16")}
    for folder, (more, says) in given.items():
        with pytest.raises(ValueError, match=f"the model is {says}; export the checkpoint"):
            export(pipeline("ctr-prediction", model=str(folder), **more), tmp_path / "out")


def test_a_graph_that_computes_something_else_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline("ctr-prediction", model=str(checkpoint))
    other = pipeline("ctr-prediction", model=str(checkpoint))
    with torch.no_grad():
        other.model.flip.feature_embeddings.embedding.weight[3] += 1.0  # of one feature alone
    make_graph = export_module.make_graph
    monkeypatch.setattr(export_module, "make_graph", lambda pipe, rows: make_graph(other, rows))
    with pytest.raises(ValueError, match=r"computes something else than the model: a logit differs by"):
        export(pipe, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_rows_are_drawn_of_every_kind_of_field(wordpiece: PreTrainedTokenizerFast, tiny_bert: Path) -> None:
    fields = [*FIELDS, Field(name="friends", kind="list", features_of="user_id")]
    processor = FlipProcessor.fit([row | {"friends": ["u1"]} for row in ROWS], fields, wordpiece)
    pipe = CtrPredictionPipeline(FlipForCTR.from_text_pretrained(tiny_bert, processor, **SIZES), processor)
    rows = drawn_rows(pipe)
    features, members = rows.feature_ids(), rows.list_feature_ids()
    assert all(len(np.unique(column)) > 3 for column in features.T)
    assert ((members >= 0).sum(2) > 1).any(0).all()  # of both list fields
    notes = {sentence.partition("note is ")[2] for sentence in processor.texts_of(rows)}
    assert len(notes) > 20


def test_an_int8_model_is_measured(checkpoint: Path, tmp_path: Path) -> None:
    pipe = pipeline("ctr-prediction", model=str(checkpoint))
    with pytest.raises(ValueError, match=r"precision int8 may change the scores.*--rows"):
        export(pipe, tmp_path / "unmeasured", precision="int8", rows=pipe.encode(ROWS))
    rows = pipe.processor.encode(ROWS, "clicked")
    for precision in ("int8", "int8-static"):
        report = export(pipe, tmp_path / precision, precision=precision, rows=rows)
        assert 0 < report["largest_difference"] < 0.5
        assert report["measured"]["graph"]["auc"] == pytest.approx(report["measured"]["model"]["auc"], abs=0.02)
        assert b"QuantizeLinear" in (tmp_path / precision / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--precision", "int8"), "precision int8 may change the scores, so it is measured: give --rows"),
        (("--label_column", "clicked"), "--label_column names a column of --rows, but --rows is missing"),
        (("--rows", "{rows}", "--label_column", "clickd"), "no column 'clickd'"),
        (("--rows", "{rows}", "--label_column", "user_id"), "--positive_label u"),
        (("--rows", "{rows}", "--positive_above", "3"), "need --label_column, which is missing"),
        (("--rows", "{empty}"), "has no rows; give a file with some"),
        (
            ("--rows", "{rows}", "--label_column", "user_id", "--positive_label", "u99"),
            "never holds positive_label 'u99'",
        ),
        (("--rows", "nowhere.csv"), "nowhere.csv"),
        (("--format", "openvino", "--precision", "int8"), "choose --precision int8-static"),
        (("--towers", "text"), "towers"),
    ],
)
def test_the_command_says_what_is_wrong_and_writes_nothing(
    checkpoint: Path,
    rows_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    empty = rows_file.with_name("empty.parquet")
    pq.write_table(pq.read_table(rows_file).slice(0, 0), empty)
    given = [argument.format(rows=rows_file, empty=empty) for argument in arguments]
    assert says in error_of(capsys, "--model", checkpoint, "--output", tmp_path / "out", *given)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(exported: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "exists; delete it" in error_of(capsys, "--model", checkpoint, "--output", exported)


def test_a_pretraining_checkpoint_is_refused(
    processor: FlipProcessor, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FlipForPreTraining.from_text_pretrained(tiny_bert, processor, **SIZES).save_pretrained(
        tmp_path / "pretraining", processor=processor
    )
    assert "scores would be noise" in error_of(
        capsys, "--model", tmp_path / "pretraining", "--output", tmp_path / "out"
    )


# ---- OpenVINO


def test_openvino_reads_both_formats(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    command = ["--model", str(checkpoint), "--output", str(tmp_path / "ov"), "--format", "openvino"]
    assert export_command(command) == 0
    expected = pipeline("ctr-prediction", model=str(checkpoint))(ROWS)
    for folder, more in ((tmp_path / "ov", {}), (exported, {"backend": "openvino"})):
        pipe = pipeline("ctr-prediction", model=str(folder), **more)
        assert pipe.model.backend == "openvino"
        for scored, wanted in zip(pipe(ROWS, batch_size=7), expected, strict=True):
            assert scored["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
    with pytest.raises(ValueError, match=r"backend is 'onnx'.*a model for openvino"):
        pipeline("ctr-prediction", model=str(tmp_path / "ov"), backend="onnx")


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_threads_get_their_own_scores(exported: Path, backend: str) -> None:
    pytest.importorskip("openvino" if backend == "openvino" else "onnxruntime")
    pipe = pipeline("ctr-prediction", model=str(exported), backend=backend)
    batches = [pipe.batches(pipe.encode(ROWS[first : first + 100]), 100)["batches"][0] for first in (0, 100)]
    expected = [pipe.model(**batch).logits for batch in batches]

    def differs(which: int) -> float:
        return max(float((pipe.model(**batches[which]).logits - expected[which]).abs().max()) for _ in range(300))

    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(differs, (0, 1))) < 1e-5


# ---- what docs/serving.md says


def test_the_pages_commands_run(
    checkpoint: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
    commands = re.findall(r"^\.venv/bin/python -m modeling_flip\.serving\.export (.*)$", page, re.MULTILINE)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(commands) == 3 and len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "outputs/quickstart")
    csv.write_csv(pq.read_table(rows_file).drop(["history"]).rename_columns({"clicked": "label"}), "rows.csv")
    for command in commands:
        assert export_command(command.split()) == 0
    exec(blocks[0], {})


def test_the_benchmark_compares_runtimes(checkpoint: Path, rows_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.serving", str(checkpoint), "--rows", str(rows_file)]
    command += ["--label_column", "clicked", "--systems", "FLIP_ID", "--runtimes", "torch fp32", "ONNX int8"]
    command += ["--threads", "1", "--rounds", "1", "--latencies", "3", "--batches", "1", "--json", str(tmp_path / "j")]
    subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[2], stdout=subprocess.DEVNULL)
    of_system = json.loads((tmp_path / "j").read_text())["models"]["small"]["1 threads"]["FLIP_ID"]
    assert of_system["ONNX int8"]["auc"] == pytest.approx(of_system["torch fp32"]["auc"], abs=0.02)
    for figures in of_system.values():
        assert all(figures[name] > 0 for name in ("megabytes", "row_p50_ms", "rank_p50_ms", "rows_per_second"))
