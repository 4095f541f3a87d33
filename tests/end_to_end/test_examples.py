"""Every script and notebook in examples/, on fewer rows, and docs/python.md, which quotes them."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

import train
from modeling_flip import TABULAR_TOWERS, FlipConfig, FlipForCTR, FlipProcessor
from modeling_flip.feature_vocabulary import VOCABULARY_FILE

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {path.stem: path.read_text() for path in (ROOT / "examples").glob("[!_]*.py")}
NOTEBOOK = ROOT / "examples" / "own_data.ipynb"


pytestmark = pytest.mark.usefixtures("few_demo_rows")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """`run("name")` → what the example prints, in a folder of its own."""

    def run_example(name: str) -> str:
        capsys.readouterr()
        runpy.run_module(f"examples.{name}")
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return run_example


def test_a_dataframe_becomes_scores_in_fifteen_lines_and_so_does_a_stream(run: Callable[[str], str]) -> None:
    code = EXAMPLES["dataframe_to_scores"].rpartition('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    probabilities = [float(p) for p in re.findall(r"'probability': ([\d.]+)", run("dataframe_to_scores"))]
    assert len(probabilities) == 3 and all(0 < p < 1 for p in probabilities)
    fields = FlipProcessor.from_pretrained("outputs/examples/clicks").fields
    assert fields == ["user_id", "age", "occupation", "interest", "item_id", "title", "category"]
    run("score_a_stream")
    ranked = [float(p) for p in re.findall(r"^(0\.\d+)  \w", run("rank_candidates"), flags=re.MULTILINE)]
    assert len(ranked) == 5 and ranked == sorted(ranked, reverse=True)


def test_towers_are_aligned_then_finetuned(run: Callable[[str], str]) -> None:
    assert "'test_tabular_auc'" in run("pretrain_then_finetune")
    alone = FlipForCTR.from_pretrained("outputs/examples/flip-id")
    assert alone.config.towers == "tabular"
    assert FlipProcessor.from_pretrained("outputs/examples/flip-id").tokenizer is None
    said = run("cold_start")
    tabular = re.findall(r"^([\d.]+)  tabular_probability", said, flags=re.MULTILINE)
    assert len(tabular) == 2 and tabular[0] != tabular[1]  # only what is predicted from the words differs
    assert len(set(re.findall(r"^([\d.]+)  text_probability", said, flags=re.MULTILINE))) == 1


def test_a_tower_of_ones_own_is_trained(run: Callable[[str], str]) -> None:
    try:
        assert "'test_auc'" in run("own_tabular_tower")
        assert FlipForCTR.from_pretrained("outputs/examples/two-layers").config.tabular_tower == "two_layers"
    finally:
        TABULAR_TOWERS.pop("two_layers")


def test_towers_are_compared(run: Callable[[str], str]) -> None:
    aucs = re.findall(r"^(\w+): AUC (0\.\d+)", run("compare_towers"), flags=re.MULTILINE)
    assert [name for name, _ in aucs] == ["dcnv2", "deepfm", "autoint", "wide_deep"] and len(set(aucs)) == 4


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells are plain Python, so no kernel is needed; and it shows what each gives."""
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    probabilities = [one["probability"] for one in names["best"]]
    assert len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True)
    assert sum(bool(cell["outputs"]) for cell in cells) == 7


def test_a_cluster_fits_what_one_machine_fits(
    run: Callable[[str], str], few_demo_rows: datasets.DatasetDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray runs on this machine; the two processors are the same files."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -c constraints.txt -e '.[cluster]'")
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        run("fit_on_a_cluster")
    finally:
        ray.shutdown()
    FlipProcessor.fit(few_demo_rows["train"], label="label").save_pretrained("outputs/examples/one")
    files = [{f.name: f.read_bytes() for f in (tmp_path / "outputs/examples" / n).iterdir()} for n in ("fitted", "one")]
    assert VOCABULARY_FILE in files[0] and files[0] == files[1]


def test_training_starts_from_a_processor_fitted_elsewhere(
    few_demo_rows: datasets.DatasetDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/data.md's way: an untrained model with that processor is a checkpoint. The vocabulary is not fitted again."""
    monkeypatch.chdir(tmp_path)
    processor = FlipProcessor.fit(few_demo_rows["train"].select(range(75)), label="label")
    FlipForCTR(FlipConfig.from_processor(processor)).save_pretrained("fitted", processor=processor)
    arguments = (
        "--dataset_name demo --towers tabular --pretrained_model_name_or_path fitted --output_dir trained --use_cpu"
    )
    train.main([*arguments.split(), "--cache_dir", "cache", "--finetuning.max_steps", "2"])
    before, after = ((tmp_path / name / VOCABULARY_FILE).read_bytes() for name in ("fitted", "trained"))
    assert before == after


def test_no_example_is_without_its_test() -> None:
    assert set(EXAMPLES) == {
        *("dataframe_to_scores", "score_a_stream", "pretrain_then_finetune", "own_tabular_tower"),
        *("fit_on_a_cluster", "rank_candidates", "cold_start", "compare_towers"),
    }
    assert [path.name for path in (ROOT / "examples").glob("*.ipynb")] == [NOTEBOOK.name]


def test_the_page_quotes_the_examples_line_by_line() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    lines = {line.strip() for code in EXAMPLES.values() for line in code.splitlines()}
    quoted = [
        line for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) for line in block.splitlines()
    ]
    whole = EXAMPLES["dataframe_to_scores"].rpartition('"""')[2].split("\n")
    assert [line for line in quoted if line][:15] == [line for line in whole if line]  # with its imports, to be copied
    assert len(quoted) > 10 and [line for line in quoted if line.strip() not in lines] == []
    for name in re.findall(r"\(\.\./(examples[\w/.]*)\)", page):
        assert (ROOT / name).exists()
