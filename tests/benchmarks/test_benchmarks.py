"""The benchmarks run at small sizes, and compare what they say they compare."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from benchmarks import (
    cluster_fit,
    data_pipeline,
    distributed,
    movielens_like,
    new_values,
    preparation_tools,
    pretraining_step,
    quickstart,
    scale,
    scoring,
    small_text_model,
    sparse_step,
    tabular_training,
)
from data_scripts import demo
from modeling_flip import (
    CtrPredictionPipeline,
    FlipConfig,
    FlipForCTR,
    FlipForPreTraining,
    FlipProcessor,
    PretrainingCollator,
)
from modeling_flip.serving import score
from modeling_flip.training.command_line import parse_recipe


def test_the_published_step_computes_our_losses() -> None:
    """Padding and extra passes change no loss; MLM's average alone is over tokens, not rows."""
    torch.manual_seed(0)
    model, processor, rows = pretraining_step.build(4)
    model.eval()
    model.mlm.bias.data.normal_(std=3)  # tokens are no longer about equally likely, nor are their losses alike
    batch = PretrainingCollator(processor, text_mask_ratio=0.5)(rows.__getitems__([0, 1, 2, 3]))
    assert processor.tokenizer is not None
    padded = pretraining_step.pad(batch, 100, processor.tokenizer.pad_token_id)
    assert padded["input_ids"].shape == (4, 100)
    with torch.no_grad():
        ours = model(**batch)
        one_row = {k: v[:1] for k, v in batch.items()}  # of one row, both averages are the same
        torch.testing.assert_close(
            pretraining_step.published_loss(model, pretraining_step.pad(one_row, 100, 0)), model(**one_row).loss
        )
        theirs = pretraining_step.published_loss(model, padded)
    by_token = ours_by_token(model, batch) - ours.mlm_loss
    assert by_token.abs() > 1e-3
    # The difference of two losses of about 35: their float noise, not its own.
    torch.testing.assert_close(theirs - ours.loss, by_token, atol=1e-4, rtol=0)


def ours_by_token(model: FlipForPreTraining, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Our MLM loss averaged over all masked tokens: rows weighted by how many they have."""
    counts = (batch["mlm_labels"] != -100).sum(1)
    with torch.no_grad():
        rows = [model(**{k: v[i : i + 1] for k, v in batch.items()}).mlm_loss for i in range(len(counts))]
    return (torch.stack(rows) * counts).sum() / counts.sum()


def test_pretraining_step_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures.json"
    one_layer = {"num_hidden_layers": 1}
    monkeypatch.setattr(pretraining_step, "BertConfig", lambda **sizes: BertConfig(**sizes | one_layer))
    # A CPU without instructions for bf16 takes minutes for a large product in it.
    small = partial(pretraining_step.matrix_product_peak, size=64)
    monkeypatch.setattr(pretraining_step, "matrix_product_peak", small)
    monkeypatch.setattr(sys, "argv", ["pretraining_step.py", "--batch_size", "4", "--rounds", "1", "--json", str(path)])
    pretraining_step.main()
    figures = json.loads(path.read_text())
    assert set(figures) == {"published", "fp32", "bf16"}
    for name in ("fp32", "bf16"):
        ratio = figures[name]["samples_per_second"] / figures["published"]["samples_per_second"]
        assert figures[name]["ratio"] == pytest.approx(ratio)
        assert figures[name]["peak_memory_mib"] > 0
    # The published step scores every position against the vocabulary: more FLOPs for the same rows.
    flops = {name: of["flops_per_second"] / of["samples_per_second"] for name, of in figures.items()}
    assert flops["published"] > 2 * flops["fp32"] and flops["fp32"] == pytest.approx(flops["bf16"])
    for of in figures.values():
        assert of["share_of_peak"] == pytest.approx(of["flops_per_second"] / of["matrix_product_peak"])


def test_flops_of_a_step_are_those_of_its_matrix_products() -> None:
    model = torch.nn.Linear(3, 5, bias=False)

    def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(batch["x"]).sum()

    variant = pretraining_step.Variant(loss, model, bf16=False)  # type: ignore[arg-type]
    variant.count_flops({"x": torch.ones(7, 3)})
    assert variant.flops == 2 * (2 * 7 * 3 * 5)  # forward, and the gradient of the weights


@pytest.mark.slow
def test_distributed_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures.json"
    cases = ["one process", "table in two parts"]
    arguments = ["--steps", "1", "--batch_size", "4", "--features", "100", "--json", str(path), "--only", *cases]
    monkeypatch.setattr(sys, "argv", ["distributed.py", *arguments])
    distributed.main()
    figures = json.loads(path.read_text())["cases"]
    assert list(figures) == cases
    assert figures["one process"].keys() >= {"samples_per_second", "ms_per_step", "ms_per_checkpoint"}
    assert figures["table in two parts"]["processes"] == 2


def test_data_pipeline_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures.json"
    arguments = ["data_pipeline.py", "--rows", "2000", "--batch_size", "64", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    data_pipeline.main()
    figures = json.loads(path.read_text())
    assert set(figures) == {"encode_rows_per_second", "feed_tabular_rows_per_second", "feed_text_rows_per_second"}
    assert min(figures.values()) > 0


@pytest.fixture
def exact_afterwards() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("exact_afterwards")
def test_tabular_training_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--towers", "dcnv2", "afm", "--batch_sizes", "32", "64", "--samples", "128", "--rounds", "1"]
    arguments += ["--float32_matmul_precision", "medium", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["tabular_training.py", *arguments])
    tabular_training.main()
    assert torch.get_float32_matmul_precision() == "medium"
    figures = json.loads(path.read_text())
    assert set(figures) == {f"{tower}, batch {size}" for tower in ("dcnv2", "afm") for size in (32, 64)}
    for figure in figures.values():
        ratio = figure["trainer_samples_per_second"] / figure["bare_samples_per_second"]
        assert figure["ratio"] == pytest.approx(ratio)


def test_sparse_step_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--features", "200", "--rounds", "1", "--steps", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["sparse_step.py", *arguments])
    monkeypatch.setattr(sparse_step, "NUM_ROWS", 256)
    monkeypatch.setattr(sparse_step, "BATCH_SIZES", {"finetuning": 32, "mtm": 16})
    sparse_step.main()
    seconds = json.loads(path.read_text())["step_seconds"]
    trained = {f"{stage}, {kind}" for stage in ("finetuning", "mtm") for kind in ("dense", "sparse")}
    bare = {f"bare loop, {candidate}" for candidate in sparse_step.candidates()}
    assert set(seconds) == trained | bare | {"finetuning, sparse, uniform rows"}
    assert all(set(of) == {"200"} and min(of.values()) > 0 for of in seconds.values())


def test_scale_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "alone", lambda function, *arguments: function(*arguments))  # in this process
    monkeypatch.setattr(scale, "FED_ROWS", 500)
    monkeypatch.setattr(scale, "STEPS", 2)
    monkeypatch.setattr(sparse_step, "NUM_ROWS", 256)
    monkeypatch.setattr(sparse_step, "BATCH_SIZES", {"finetuning": 32, "mtm": 16})
    files = ["--json", str(tmp_path / "scale.json"), "--plot", str(tmp_path / "scale.png")]
    given = ["--rows", "3000", "6000", "--features", "300", "900", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["scale.py", *given, *files])
    scale.main()
    figures = json.loads((tmp_path / "scale.json").read_text())
    assert figures["rows"] == 6000 and [run["rows"] for run in figures["runs"]] == [3000, 6000]
    assert figures["step_seconds"].keys() == {"300", "900"}
    for name in (
        "prepare_rows_per_second",
        "prepare_peak_mib",
        "encode_rows_per_second",
        "open_seconds",
        "open_peak_mib",
    ):
        assert figures[name] > 0
    assert figures["feed_rows_per_second"] > 0 and min(figures["step_seconds"].values()) > 0
    assert (tmp_path / "scale.png").stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scale.json", "scale.png"]


def test_other_tools_prepare_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation_tools, "alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(
        sys, "argv", ["tools.py", "--rows", "2000", "--features", "300", "--json", str(tmp_path / "t.json")]
    )
    preparation_tools.main()
    tools = json.loads((tmp_path / "t.json").read_text())["tools"]
    assert {"modeling_flip", "pandas", "datasets map"} <= tools.keys() <= {*preparation_tools.TOOLS}


def test_the_bare_loop_trains_as_the_trainer_does() -> None:
    """The same model, rows and update: a first step from the same weights moves them alike."""
    table = movielens_like.rows(64)
    processor = FlipProcessor.fit(table, movielens_like.FIELDS)
    rows = processor.encode(table, "label")
    sizes = {"num_features": processor.vocabulary.num_features, "num_fields": len(processor.fields)}
    torch.manual_seed(0)
    first = FlipForCTR(FlipConfig(towers="tabular", hidden_sizes=[8], embedding_size=4, **sizes))
    second = copy.deepcopy(first)
    assert rows.labels is not None
    feature_ids, labels = torch.from_numpy(rows.feature_ids()), torch.from_numpy(rows.labels)
    assert tabular_training.bare_loop(first, feature_ids, labels, 64, 1) > 0
    assert tabular_training.through_trainer(second, processor, rows, 64, 1) > 0
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_scoring_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures.json"
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    arguments = ["--rows", "300", "--text_rows", "60", "--batch_size", "16", "--rounds", "1", "--latencies", "3"]
    arguments += ["--text_config", json.dumps(sizes), "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["scoring.py", *arguments])
    monkeypatch.setattr(scoring, "command_seconds", lambda *_: 1.0)
    scoring.main()
    figures = json.loads(path.read_text())["models"]
    assert {name: figure["rows"] for name, figure in figures.items()} == {"FLIP_ID": 300, "FLIP_PLM": 60, "FLIP": 60}
    for figure in figures.values():
        bare = figure["bare loop"]["rows_per_second"]
        for way in scoring.WAYS:
            assert figure[way]["ratio"] == pytest.approx(figure[way]["rows_per_second"] / bare)
        assert 0 < figure["latency"]["pipeline_p50_ms"] <= figure["latency"]["pipeline_p99_ms"]


@pytest.mark.parametrize("name", scoring.TOWERS)
def test_the_bare_loop_scores_as_the_pipeline_does(name: str) -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    table = movielens_like.rows(50)
    pipe = scoring.build(name, table, sizes)
    logits = scoring.bare_loop(pipe, scoring.bare_batches(pipe, table, 16))
    probabilities = sorted(score["probability"] for score in pipe(table))
    assert sorted(1 / (1 + np.exp(-logits))) == pytest.approx(probabilities, abs=1e-6)


def test_the_timed_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, not in one of its own."""

    def run(command: list[str], check: bool, stdout: int) -> None:
        assert command[:3] == [sys.executable, "-m", "modeling_flip.score"] and check
        assert score.main(command[3:]) == 0

    monkeypatch.setattr(scoring, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL))
    table = movielens_like.rows(50)
    assert scoring.command_seconds(scoring.build("FLIP_ID", table, {}), table, 16) > 0


def test_the_small_text_model_reads_its_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["small_text_model.py", "--dataset_name", "demo"])
    small_text_model.main()
    folder = Path("outputs/text-models/demo-bert-2x128")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == AutoModel.from_pretrained(folder).get_input_embeddings().num_embeddings
    assert tokenizer.tokenize("occupation is engineer.") == ["occupation", "is", "engineer", "."]
    names = ("pad", "unk", "cls", "sep", "mask")
    assert [getattr(tokenizer, f"{n}_token") for n in names] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize("dataset", ["movielens-1m", "bookcrossing"])
def test_small_recipes_name_the_folder_of_the_small_text_model(dataset: str) -> None:
    recipes = list(Path("configuration", dataset).glob("*-small.yaml"))
    assert recipes
    named = {parse_recipe([str(path)]).text_model_name_or_path for path in recipes}
    assert named == {str(small_text_model.default_folder(dataset))}


@pytest.mark.usefixtures("few_demo_rows")
def test_quickstart_ends_with_a_table_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is to run in a fresh process runs in this one, which makes no difference but in time."""

    def run(command: list[str], check: bool) -> None:
        assert command[:2] == [sys.executable, "-c"] and check
        monkeypatch.setattr(sys, "argv", command[1:2] + command[3:])
        exec(command[2], {})

    monkeypatch.setattr(quickstart, "subprocess", SimpleNamespace(run=run))
    quick = ["--pretraining.max_steps", "2", "--finetuning.max_steps", "2"]
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *quick, "--output_dir", str(tmp_path / "quickstart")])
    quickstart.main()
    printed = capsys.readouterr().out
    for name in ("DCNv2", "FLIP_ID", "FLIP_PLM", "FLIP"):
        assert f"\n{name} " in printed
    assert "item id is never-seen. title is A Title Nobody Has Seen." in printed
    assert "Next: " in printed


def test_all_systems_of_the_quickstart_share_one_pretraining() -> None:
    systems = quickstart.systems(parse_recipe([quickstart.RECIPE]))
    assert list(systems) == ["FLIP", "FLIP_ID", "FLIP_PLM", "DCNv2"]
    assert {name for name, s in systems.items() if s.pretraining} == {"FLIP"}
    assert systems["FLIP_ID"].pretrained_model_name_or_path == "outputs/quickstart/pretraining"
    assert systems["DCNv2"].pretrained_model_name_or_path is None


def test_the_fold_by_parts_is_the_fit_of_all_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The engines are compared on files whose parts differ; tests/end_to_end/test_examples.py runs Ray."""
    cluster_fit.write_files(tmp_path, 3000, 2000, 3)
    sums = []
    for engine in ("one", "one_by_parts"):
        cluster_fit.run(engine, tmp_path)
        sums.append(json.loads(capsys.readouterr().out)["sha256"])
    assert sums[0] == sums[1] and len(list(tmp_path.iterdir())) == 3


def test_old_days_new_days_and_test_rows_follow_each_other() -> None:
    ends = new_values.DATASETS["demo"][1]
    old, new, test = new_values.days("demo", None, ends)
    given = demo.load()
    rows = [row for split in ("train", "validation", "test") for row in given[split]["item_id"]]
    assert [*old["item_id"].to_pylist(), *new["item_id"].to_pylist(), *test["item_id"].to_pylist()] == rows
    assert {name: len(part) for name, part in new_values.splits(new, test).items()} == {
        "train": 4320,
        "validation": 480,
        "test": 4800,
    }


def test_the_mean_start_is_used_for_training_and_scoring(
    tiny_text_model: Path, wordpiece: PreTrainedTokenizerFast
) -> None:
    processor = FlipProcessor.fit({"title": ["das boot", "toy story", "usual suspects"]}, ["title"], wordpiece)
    model = FlipForCTR.from_text_pretrained(tiny_text_model, processor, embedding_size=4, hidden_sizes=[8]).eval()
    with new_values.mean_start():
        pipe = CtrPredictionPipeline(model, processor, cold_start="text", device=-1)
        rows = pipe.preprocess([{"title": "a wonderful life"}])["more"]
    torch.testing.assert_close(rows[0], model.flip.feature_embeddings.rows(torch.arange(1, 4)).mean(0))
