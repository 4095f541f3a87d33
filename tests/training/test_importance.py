from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from modeling_flip import CtrPredictionPipeline, FlipConfig, FlipForCTR, FlipProcessor
from modeling_flip.training.importance import Importance, field_importance, importance_table, main
from modeling_flip.training.metrics import ctr_metrics

RNG = np.random.default_rng(0)
N = 400
COLUMNS = {name: RNG.choice(["a", "b", "c"], N).tolist() for name in ("strong", "weak", "unread")}
WEIGHTS = {"strong": {"a": -2.0, "b": 0.0, "c": 2.0}, "weak": {"a": -0.5, "b": 0.0, "c": 0.5}}
LOGITS = np.array([sum(WEIGHTS[name][COLUMNS[name][i]] for name in WEIGHTS) for i in range(N)])
ROWS = pa.table(COLUMNS)
CLICKS = (RNG.random(N) < 1 / (1 + np.exp(-LOGITS))).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose logit is the sum of a weight for each value; it reads nothing of the third field."""
    processor = FlipProcessor.fit(ROWS, list(COLUMNS))
    sizes: dict[str, Any] = {"embedding_size": 2, "hidden_sizes": [2], "tabular_tower": "wide_deep"}
    model = FlipForCTR(FlipConfig(towers="tabular", **sizes, **processor.config_settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        features = processor.encode(ROWS).feature_ids()
        for i, name in enumerate(WEIGHTS):
            for value, weight in WEIGHTS[name].items():
                model.flip.feature_embeddings.first_order.weight[features[COLUMNS[name].index(value), i]] = weight
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def score(checkpoint: Path) -> CtrPredictionPipeline:
    return CtrPredictionPipeline(FlipForCTR.from_pretrained(checkpoint), FlipProcessor.from_pretrained(checkpoint))


@pytest.fixture(scope="module")
def rows_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    csv.write_csv(ROWS.append_column("clicked", pa.array(np.where(CLICKS == 1, "yes", "no"))), path)
    return path


def test_what_a_field_is_worth_is_what_shuffling_it_costs(score: CtrPredictionPipeline) -> None:
    assert score.logits(score.encode(ROWS)) == pytest.approx(LOGITS, abs=1e-5)
    fields = field_importance(score, ROWS, CLICKS, repeats=5)
    assert [field.field for field in fields] == ["strong", "weak", "unread"]
    strong, weak, unread = fields
    assert strong.auc_drop > 4 * weak.auc_drop > 0.01
    assert strong.logloss_rise > 4 * weak.logloss_rise > 0.01
    assert (unread.auc_drop, unread.auc_drop_std, unread.logloss_rise, unread.logloss_rise_std) == (0, 0, 0, 0)
    # By hand: without its own weight the logit is a weight drawn from the others'.
    before, rng, drops = ctr_metrics(LOGITS, CLICKS), np.random.default_rng(1), []
    own = np.array([WEIGHTS["strong"][value] for value in COLUMNS["strong"]])
    for _ in range(30):
        drops.append(before["auc"] - ctr_metrics(LOGITS - own + rng.permutation(own), CLICKS)["auc"])
    assert strong.auc_drop == pytest.approx(np.mean(drops), abs=3 * float(np.std(drops)))
    assert 0 < strong.auc_drop_std < 3 * np.std(drops)


def test_it_is_the_same_again_and_another_with_another_seed(score: CtrPredictionPipeline) -> None:
    first, again, other = (field_importance(score, ROWS, CLICKS, repeats=2, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_both_views_of_a_field_are_shuffled_together(wordpiece: PreTrainedTokenizerFast) -> None:
    processor = FlipProcessor.fit(ROWS, list(COLUMNS), wordpiece)
    rows = {**COLUMNS, "strong": ["a", "never seen"] * (N // 2)}
    order = np.random.default_rng(0).permutation(N)
    encoded = processor.encode(rows)
    ids = encoded.value_ids.copy()
    ids[:, 0] = ids[order, 0]
    shuffled = replace(encoded, value_ids=ids)
    expected = processor.encode(rows | {"strong": [rows["strong"][i] for i in order]})
    assert np.array_equal(shuffled.feature_ids(), expected.feature_ids())
    assert np.array_equal(processor.sentences(shuffled)["input_ids"], processor.sentences(expected)["input_ids"])


def test_the_command_prints_the_table_and_writes_plot_and_json(
    checkpoint: Path, rows_csv: Path, tmp_path: Path, capsys: Any
) -> None:
    transformers_logging.enable_progress_bar()  # whatever a test before has done
    command = ["--model", str(checkpoint), "--data", str(rows_csv), "--label_column", "clicked", "--repeats", "2"]
    more = [
        "--positive_label",
        "yes",
        "--rows",
        "300",
        "--output",
        f"{tmp_path}/plot.png",
        "--json",
        f"{tmp_path}/a.json",
    ]
    assert main([*command, *more]) == 0
    printed = capsys.readouterr()
    assert "scoring 300 rows" in printed.err and "7/7" in printed.err  # once as they are, twice for each field
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines] == ["field", "strong", "weak", "unread"]
    assert "0.0000 ± 0.0000" in lines[-1]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["rows"], written["repeats"]) == (300, 2)
    assert f"{written['fields'][0]['auc_drop']:.4f} ± " in lines[1]


def test_the_table_stands_under_its_head() -> None:
    text = importance_table([Importance("user id", 0.1235, 0.001, 0.2, 0.01), Importance("x", -0.0001, 0.0, 0.0, 0.0)])
    assert text.splitlines() == [
        "field          drop of AUC    rise of logloss",
        "user id    0.1235 ± 0.0010    0.2000 ± 0.0100",
        "x         -0.0001 ± 0.0000    0.0000 ± 0.0000",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "0"], "--rows is 0; it must be 1 or more"),
        (["--repeats", "-1"], "--repeats is -1; it must be 1 or more"),
        (["--output", "plot.pdf"], "--output is plot.pdf; name a .png file"),
        (["--json", "absent/a.json"], "folder absent of --json does not exist; make it first"),
        (["--label_column", "clicks"], "has no column 'clicks'; its columns are .*; did you mean 'clicked'"),
        ([], "holds 'yes' .*labels are 0 or 1"),
        (["--positive_label", "yes", "--rows", "1"], r"needs rows with clicks and without; all 1 have label"),
        (["--positive_label", "yes", "--data", "absent.csv"], "absent.csv does not exist"),
        (["--positive_label", "yes", "--model", "/absent/model"], "/absent/model"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: list[str], message: str, checkpoint: Path, rows_csv: Path, capfd: Any
) -> None:
    command = ["--model", str(checkpoint), "--data", str(rows_csv), "--label_column", "clicked", *options]
    assert main(command) == 2
    printed = capfd.readouterr().err.strip().splitlines()
    assert len([line for line in printed if line.startswith("importance: error: ")]) == 1
    assert re.search(message, printed[-1])


def test_a_field_that_the_file_lacks_is_named(checkpoint: Path, tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "rows.csv"
    csv.write_csv(ROWS.drop_columns(["weak"]).append_column("clicked", pa.array(CLICKS.astype(int))), path)
    assert main(["--model", str(checkpoint), "--data", str(path), "--label_column", "clicked"]) == 2
    assert "'weak'" in capfd.readouterr().err
