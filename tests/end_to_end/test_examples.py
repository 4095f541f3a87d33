"""Every script in examples/, on fewer rows, and docs/python.md, which quotes them."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from data_scripts import demo
from modeling_flip import TABULAR_TOWERS, FlipForCTR, FlipProcessor

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {path.stem: path.read_text() for path in (ROOT / "examples").glob("[!_]*.py")}


@pytest.fixture(scope="module")
def rows() -> datasets.DatasetDict:
    return datasets.DatasetDict({name: split.select(range(600)) for name, split in demo.load().items()})


@pytest.fixture
def run(
    rows: datasets.DatasetDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """`run("name")` → what the example prints, in a folder of its own."""

    def run_example(name: str) -> str:
        capsys.readouterr()
        runpy.run_module(f"examples.{name}")
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "load", lambda: rows)
    return run_example


def test_a_dataframe_becomes_scores_in_fifteen_lines_and_so_does_a_stream(run: Callable[[str], str]) -> None:
    code = EXAMPLES["dataframe_to_scores"].rpartition('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    probabilities = [float(p) for p in re.findall(r"'probability': ([\d.]+)", run("dataframe_to_scores"))]
    assert len(probabilities) == 3 and all(0 < p < 1 for p in probabilities)
    fields = FlipProcessor.from_pretrained("outputs/examples/clicks").fields
    assert fields == ["user_id", "age", "occupation", "interest", "item_id", "title", "category"]
    run("score_a_stream")


def test_towers_are_aligned_then_finetuned(run: Callable[[str], str]) -> None:
    assert "'test_tabular_auc'" in run("pretrain_then_finetune")
    alone = FlipForCTR.from_pretrained("outputs/examples/flip-id")
    assert alone.config.towers == "tabular"
    assert FlipProcessor.from_pretrained("outputs/examples/flip-id").tokenizer is None


def test_a_tower_of_ones_own_is_trained(run: Callable[[str], str]) -> None:
    try:
        assert "'test_auc'" in run("own_tabular_tower")
        assert FlipForCTR.from_pretrained("outputs/examples/two-layers").config.tabular_tower == "two_layers"
    finally:
        TABULAR_TOWERS.pop("two_layers")


def test_no_example_is_without_its_test() -> None:
    assert set(EXAMPLES) == {"dataframe_to_scores", "score_a_stream", "pretrain_then_finetune", "own_tabular_tower"}


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
