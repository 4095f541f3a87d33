"""What a dry run finds, says, and leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import train
from modeling_flip import FlipTrainer
from modeling_flip.training import dry_run, timing
from modeling_flip.training.command_line import parse_recipe, without_dry_run
from modeling_flip.training.dry_run import DryRun, inspect
from modeling_flip.training.dry_run_report import amount, duration, show
from modeling_flip.training.recipe import Recipe, stage_arguments
from modeling_flip.training.stages import run
from modeling_flip.training.timing import evaluations_of, steps_of

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.FEW_STEPS, "max_steps", 3)


def inspected(recipe: Recipe, tables: Any, scratch: Path) -> DryRun:
    scratch.mkdir(exist_ok=True)
    return inspect(recipe, tables, scratch=scratch)


LONG = " ".join(["discover", "boots", "and", "tents"] * 30)
DAYS = pd.date_range("2025-03-01", periods=400, freq="h")


def advertising_log() -> pd.DataFrame:
    """400 impressions in time order. `session` is another every second row, `spent` follows one click in two."""
    rng = np.random.default_rng(0)
    device = rng.integers(0, 2, 400)
    click = rng.random(400) < np.array([0.2, 0.7])[device]
    return pd.DataFrame(
        {
            "shown_at": DAYS,
            "user": rng.integers(0, 20, 400),
            "session": 10**6 + np.arange(400) // 2,
            "device": np.array(["phone", "desktop"])[device],
            "spent": np.where(click & (np.arange(400) % 2 == 0), 1, 0),
            "landing_page": [f"{LONG} {i}" for i in range(400)],
            "slot": rng.integers(0, 4, 400),
            "clicked": click.astype(int),
        }
    )


@pytest.fixture(scope="module")
def ads_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ads") / "ads.csv"
    advertising_log().to_csv(path, index=False)
    return path


@pytest.fixture
def ads(ads_csv: Path, recipe: MakeRecipe) -> Recipe:
    return recipe("--dataset_name", ads_csv, "--time_column", "shown_at", "--group_column", "user")


def test_what_is_found_in_an_advertising_log(
    ads: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    report = inspected(ads, train.load_data(ads), tmp_path / "scratch")
    splits = report.splits
    assert {name: facts.rows for name, facts in splits.items()} == {"train": 324, "validation": 36, "test": 40}
    log = advertising_log()
    for name, rows in {"train": log[:324], "validation": log[324:360], "test": log[360:]}.items():
        facts = splits[name]
        assert facts.click_rate == pytest.approx(rows["clicked"].mean())
        assert (facts.begins, facts.ends) == (rows["shown_at"].min(), rows["shown_at"].max())
        by_user = rows.groupby("user")["clicked"]
        assert facts.groups == rows["user"].nunique()
        assert facts.ranked == pytest.approx(by_user.transform("mean").between(0, 1, inclusive="neither").mean())
    assert (splits["train"].unseen, splits["test"].unseen) == (None, 1.0)  # sessions do not come again

    sentences = report.sentences
    assert sentences is not None
    median, most, longest = sentences.quantiles
    assert 128 == sentences.max_length < median <= most <= longest  # the text model's limit
    assert sentences.share_cut == 1.0
    assert sentences.cut_fields == {"landing_page": 1.0, "slot": 1.0}
    assert (
        not sentences.examples[0].endswith(".") and sentences.examples[0].count("discover") == 5
    )  # as far as it is read
    assert len(sentences.examples) == 3 and sentences.examples[0].startswith("user is ")

    assert [hint.partition(":")[0] for hint in report.hints] == ["'session'"]
    assert "100% of the test rows have a value that no training row has" in report.hints[0]
    assert [stage.name for stage in report.stages] == ["pretraining", "finetuning"]
    assert not (tmp_path / "out").exists()
    # Before training, both in a dry run and in a run: a column that gives the click away, and texts and sentences that are cut.
    said, table = caplog.text, capsys.readouterr().out
    assert "'spent' is used, but check it: each of the" in said and "exclude_fields" in said
    assert "'landing_page' is used, but check it: 100.0% of its texts are cut to their first 64 words" in said
    assert "too short for some sentences; cut or dropped: 'landing_page' in 100.0% of the training rows" in said
    assert "validation rows: 100% of the values of 'session' were never seen in training" in said
    assert said.count("never seen in training") == 1
    assert "is a click: if it is known only after the click" in table

    printed = show(report, "python train.py recipe.yaml")
    order = [
        "Splits",
        "Groups",
        "Sentences",
        "example 3",
        "Features (rows",
        "Hints",
        "Parameters",
        "Time",
        "To train, run",
    ]
    assert [printed.index(word) for word in order] == sorted(printed.index(word) for word in order)
    assert printed.endswith("\n  python train.py recipe.yaml")
    assert max(len(line) for line in printed.splitlines() if "example" not in line) < 220


def test_a_run_says_before_it_trains_what_a_dry_run_says(
    ads: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(_: Any, prepared: Any) -> None:
        (leak,) = prepared.reports["leaks"].items()
        assert leak[0] == "spent" and leak[1].startswith("each of the ")
        raise InterruptedError

    monkeypatch.setattr("modeling_flip.training.stages.align", stop)
    with pytest.raises(InterruptedError):
        run(ads, train.load_data(ads))
    assert "'spent' is used, but check it: each of the" in caplog.text
    assert "of its texts are cut to their first 64 words" in caplog.text
    assert "too short for some sentences; cut or dropped" in caplog.text
    assert "larger --max_length" not in caplog.text  # the text model reads no more


@pytest.fixture
def clicks(recipe: MakeRecipe) -> tuple[Recipe, dict[str, pa.Table]]:
    made = recipe()
    return made, {split: rows.to_table() for split, rows in train.load_data(made).items()}


def test_gradients_of_sparse_tables_are_as_large_as_a_batch(recipe: MakeRecipe, tmp_path: Path) -> None:
    made = recipe("--finetuning.sparse_embeddings", "true")
    _, stage = inspected(made, train.load_data(made), tmp_path / "scratch").stages
    table = stage.parameters["feature embeddings"]
    assert stage.gradients == stage.weights - 4 * table


def test_size_of_the_model_and_its_memory(clicks: Any, tmp_path: Path) -> None:
    recipe, data = clicks
    torch.manual_seed(3)
    report = inspected(recipe, data, tmp_path / "scratch")
    results = run(recipe, data)
    for stage in report.stages:
        assert stage.weights == stage.gradients == 4 * sum(stage.parameters.values())
        assert stage.optimizer_state == pytest.approx(2 * stage.weights, rel=0.01)  # Adam's two moments, and steps
        assert stage.peak_memory is not None and stage.peak_memory > stage.weights
    aligned, finetuned = report.stages
    assert sum(finetuned.parameters.values()) == results["num_parameters"]
    for part in ("feature embeddings", "tabular tower", "text tower"):
        assert aligned.parameters[part] == finetuned.parameters[part] > 0
    assert aligned.parameters["heads"] > finetuned.parameters["heads"] == 32 + 1 + 1  # text classifier and α
    assert finetuned.parameters["feature embeddings"] == report.features[1] * 4


def test_steps_are_those_that_training_takes(clicks: Any, tmp_path: Path) -> None:
    recipe, data = clicks
    report = inspected(recipe, data, tmp_path / "scratch")
    aligned, finetuned = report.stages
    assert (aligned.steps, finetuned.steps) == (2 * 11, 2 * 11)  # 162 rows, 16 a step
    assert (aligned.may_stop_early, finetuned.may_stop_early) == (False, True)
    assert (aligned.timed_steps, finetuned.timed_steps) == (2, 2)
    assert (aligned.evaluated_rows, finetuned.evaluated_rows) == (0, 2 * 18 + 20)
    assert aligned.training_seconds == 22 * aligned.seconds_per_step > 0
    printed = show(report, "x")
    assert "pretraining: 22 steps of 16 rows × " in printed and "finetuning: at most 22 steps of 16 rows × " in printed


@pytest.mark.parametrize(
    ("arguments", "rows", "steps", "evaluations"),
    [
        ({"num_train_epochs": 3}, 100, 3 * 7, 3),
        ({"num_train_epochs": 3, "dataloader_drop_last": True}, 100, 3 * 6, 3),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 4}, 100, 2 * 2, 2),
        ({"num_train_epochs": 0.5}, 100, 4, 1),
        ({"max_steps": 10}, 100, 10, 2),
        ({"max_steps": 10, "eval_strategy": "steps", "eval_steps": 4}, 100, 10, 3),  # and after the last step
        ({"max_steps": 12, "eval_strategy": "steps", "eval_steps": 4}, 100, 12, 3),
        ({"max_steps": 10, "eval_strategy": "steps", "eval_steps": 4, "eval_delay": 5}, 100, 10, 2),
        ({"num_train_epochs": 3, "eval_delay": 2}, 100, 3 * 7, 2),
        ({"stop_after_epochs": 1, "eval_strategy": "steps", "eval_steps": 4}, 100, 7, 1),
        ({"max_steps": 10, "eval_strategy": "steps", "eval_steps": 0.25}, 100, 10, 4),
        ({"eval_strategy": "no"}, 16, 3, 0),
    ],
)
def test_steps_and_evaluations_by_hand(
    arguments: dict[str, Any], rows: int, steps: int, evaluations: int, tmp_path: Path
) -> None:
    free = {"per_device_train_batch_size": 16, "load_best_model_at_end": False, "early_stopping_patience": None}
    made = Recipe("x", str(tmp_path), use_cpu=True, finetuning=free | {"save_strategy": "no"} | arguments)
    counted, epochs = steps_of(stage_arguments(made, "finetuning"), rows, 1)
    assert (counted, evaluations_of(stage_arguments(made, "finetuning"), counted, epochs)) == (steps, evaluations)


STEPS = ("--finetuning.eval_strategy", "steps", "--finetuning.eval_steps", 4, "--finetuning.save_strategy", "steps")
LAST_WEIGHTS = ("--finetuning.load_best_model_at_end", "false")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--max_eval_samples", 12),
        ("--group_column", "user_id"),
        ("--calibration", "platt"),
        ("--negative_sampling_rate", 0.5),
        (*STEPS, "--max_eval_samples", 9),
        ("--finetuning.eval_strategy", "no", *LAST_WEIGHTS),
    ],
    ids=str,
)
def test_rows_that_are_scored_are_those_of_the_run(
    arguments: tuple[str, ...], recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--towers", "tabular", "--finetuning.early_stopping_patience", "null", *arguments)
    made = replace(recipe(*given), pretraining=None)
    (stage,) = inspected(made, train.load_data(made), tmp_path / "scratch").stages
    scored: list[int] = []
    loop = FlipTrainer.evaluation_loop

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = loop(*args, **kwargs)
        scored.append(output.num_samples)
        return output

    monkeypatch.setattr(FlipTrainer, "evaluation_loop", counted)
    run(made, train.load_data(made))
    assert stage.evaluated_rows == sum(scored)


def test_what_min_count_would_leave(clicks: Any, tmp_path: Path) -> None:
    recipe, data = clicks
    alone = replace(recipe, towers="tabular", pretraining=None)
    train_rows, fields = data["train"].to_pandas(), ["user_id", "age", "title", "genre"]
    expected = {
        k: sum(int((train_rows[name].value_counts() >= k).sum()) + 1 for name in fields) + 1 for k in (1, 2, 5, 10)
    }
    for min_count in (1, 5):
        report = inspected(replace(alone, min_count=min_count), data, tmp_path / "scratch")
        assert report.features == expected
        assert report.sentences is None
        assert f"unknown feature. It is {min_count} now" in show(report, "x")
    assert expected[1] > expected[10]


def test_nothing_is_trained(clicks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = clicks
    seen = []

    class Watched(timing.ShortTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            before = {name: weight.clone() for name, weight in self.model.named_parameters()}
            output = super().train(*args, **kwargs)
            seen.append(all(torch.equal(before[name], weight) for name, weight in self.model.named_parameters()))
            return output

    monkeypatch.setattr(timing, "ShortTrainer", Watched)
    hot = {
        "learning_rate": 1e30,
        "weight_decay": 0.1,
        "num_train_epochs": 1,
    }  # a rate that would spoil the weights at once
    inspected(replace(recipe, pretraining=hot, finetuning=hot), data, tmp_path / "scratch")
    assert seen == [True, True]


def test_the_batches_are_from_all_over_an_epoch(clicks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = clicks
    orders = []

    class Watched(timing.ShortTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            sampler = super()._get_train_sampler(train_dataset)
            whole = list(timing.FlipTrainer._get_train_sampler(self, train_dataset))
            orders.append(([*sampler], whole))
            return sampler

    monkeypatch.setattr(timing, "ShortTrainer", Watched)
    inspected(replace(recipe, pretraining=None), data, tmp_path / "scratch")
    some, whole = orders[0]
    batches = [whole[i : i + 16] for i in range(0, 160, 16)]  # the last of the epoch has two rows alone
    assert [some[i : i + 16] for i in range(0, 48, 16)] == [batches[0], batches[4], batches[9]]


def test_errors_are_those_of_a_run(clicks: Any, tmp_path: Path) -> None:
    recipe, data = clicks
    wrong = [
        (replace(recipe, tabular_tower="dcnv3"), data),
        (replace(recipe, label_column="click"), data),
        (replace(recipe, fields=["user_id", "agee"]), data),
        (replace(recipe, model={"hidden_sizes": [8], "deep": True}), data),
        (recipe, {"train": data["train"], "test": data["test"]}),
        (replace(recipe, max_length=1000), data),
    ]
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("\\documentclass{article}")
    wrong.append((recipe, data))
    for one, tables in wrong:
        messages = []
        for run_it in (lambda a, b: inspected(a, b, tmp_path / "scratch"), run):
            with pytest.raises(
                ValueError, match=r"tabular_tower|missing|deep|something else|reads at most 128 tok"
            ) as raised:
                run_it(one, tables)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
    assert "holds something else" in messages[0]


def test_a_run_that_has_begun_is_told(clicks: Any, tmp_path: Path) -> None:
    recipe, data = clicks
    alone = replace(recipe, towers="tabular", pretraining=None)
    report = inspected(alone, data, tmp_path / "scratch")
    assert not report.is_begun and "already" not in show(report, "x")
    run(alone, data)
    before = sorted(path.stat().st_mtime_ns for path in Path(recipe.output_dir).rglob("*"))
    report = inspected(alone, data, tmp_path / "scratch")
    assert f"{recipe.output_dir} already holds this run, finished or not: train.py would continue it" in show(
        report, "x"
    )
    assert sorted(path.stat().st_mtime_ns for path in Path(recipe.output_dir).rglob("*")) == before


@pytest.mark.parametrize("family", ["wordpiece", "unigram"])
def test_lengths_without_a_token_table_are_those_of_whole_sentences(
    family: str, tokenizers: Any, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from modeling_flip import FlipProcessor
    from modeling_flip.training.preparation import Prepared

    def facts(is_exact: bool) -> dry_run.SentenceFacts:
        processor = FlipProcessor.fit(rows, None, tokenizers[family], max_length=12)
        processor.gathers_tokens = is_exact
        encoded = processor.encode(rows)
        return dry_run.facts_of_sentences(Prepared(processor, {"train": encoded}, encoded, {}, {}))

    assert facts(True) == facts(False)
    assert facts(False).quantiles[2] > 12 and facts(False).share_cut > 0


def test_the_flag_is_of_the_command_alone(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert without_dry_run(["r.yaml", "--dry_run", "--seed", "1"]) == (["r.yaml", "--seed", "1"], True)
    assert without_dry_run(["r.yaml", "--seed", "1"]) == (["r.yaml", "--seed", "1"], False)
    for wrong in ("--dry-run", "--dryrun", "--dry_run=true"):
        arguments, is_dry = without_dry_run([str(recipe_file), "--output_dir", "x", wrong])
        assert not is_dry
        with pytest.raises(SystemExit):
            parse_recipe(arguments)
        assert "did you mean dry_run?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_recipe(["--help"])
    assert "[--dry_run]" in capsys.readouterr().out


def test_how_numbers_are_written() -> None:
    assert [amount(n) for n in (None, 0, 1023, 1024, 1536, 5 << 20, 3 << 30, 5000 << 30)] == [
        *("–", "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3.0 GiB", "5,000.0 GiB"),
    ]
    assert [duration(s) for s in (0.2, 1, 99, 100, 600, 7200)] == [
        "under 1 s",
        "1 s",
        "99 s",
        "2 min",
        "10 min",
        "2.0 h",
    ]
