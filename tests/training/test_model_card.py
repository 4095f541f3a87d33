from __future__ import annotations

import ast
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from transformers import PreTrainedTokenizerFast, SchedulerType

from modeling_flip import FeatureVocabulary, Field, FlipForCTR, FlipForPreTraining, FlipProcessor
from modeling_flip.training.model_card import (
    cell,
    code,
    example_value,
    is_hub_id,
    model_card,
    one_line,
    results_table,
    text,
)
from modeling_flip.training.publishing import write_curve
from modeling_flip.training.recipe import read_yaml
from tests.hub.card_rules import FRONT_MATTER, check_card

RESULTS: dict[str, Any] = {
    "validation_auc": 0.71,
    "test_auc": 0.7,
    "test_logloss": 0.5,
    "test_ne": 0.81,
    "test_ece": 0.02,
    "test_text_auc": 0.65,
    "test_text_logloss": 0.6,
    "test_unseen_auc": 0.55,
    "test_unseen_rows": 1234,
    "rows": {"train": 1000, "test": 20000},
    "recipe": {"dataset_name": "me/clicks", "text_model_name_or_path": "somebody/bert", "license": "mit"},
    "versions": {"torch": "2.13.0"},
    "hardware": {"gpu": None, "cpus": 2, "machine": "x86_64", "processes": 1},
    "wall_time": {"total_seconds": 61.2},
}


@pytest.fixture
def processor(wordpiece: PreTrainedTokenizerFast) -> FlipProcessor:
    rows = [{"user": 1, "title": "a | b *c*"}, {"user": 1, "title": "x" * 60}, {"user": 2, "title": "a | b *c*"}]
    return FlipProcessor.fit(rows, ["user", "title"], wordpiece)


def make(cls: Any, processor: FlipProcessor, text_model: Path, **settings: Any) -> Any:
    sizes = {"embedding_size": 4, "hidden_sizes": [8], "projection_size": 8}
    return cls.from_text_pretrained(text_model, processor, **sizes, **settings)


def metadata(card: str) -> dict[str, Any]:
    assert check_card(card, "model") == ([], [])
    return yaml.safe_load(card.split("---\n")[1])


def test_metadata_say_what_it_was_made_of(processor: FlipProcessor, tiny_text_model: Path) -> None:
    model = make(FlipForCTR, processor, tiny_text_model)
    card = model_card(model, processor, "me/flip", RESULTS)
    data = metadata(card)
    assert (data["base_model"], data["datasets"], data["license"]) == ("somebody/bert", ["me/clicks"], "mit")
    assert data["pipeline_tag"] == "tabular-classification"
    (validation, test) = data["model-index"][0]["results"]
    assert validation["dataset"] == {"type": "me/clicks", "name": "clicks", "split": "validation"}
    assert [m["type"] for m in validation["metrics"]] == ["roc_auc"]
    assert {m["type"]: m["value"] for m in test["metrics"]} == {
        "roc_auc": 0.7,
        "log_loss": 0.5,
        "normalized_entropy": 0.81,
        "ece": 0.02,
    }


def test_what_is_not_known_or_not_public_is_left_out(processor: FlipProcessor, tiny_text_model: Path) -> None:
    model = make(FlipForCTR, processor, tiny_text_model)
    local = RESULTS | {"recipe": {"dataset_name": "clicks.csv", "text_model_name_or_path": str(tiny_text_model)}}
    for results in (None, local):
        data = metadata(model_card(model, processor, "me/flip", results))
        assert not {"base_model", "datasets"} & set(data)
        assert data["license"] == "unknown"
    assert "model-index" not in metadata(model_card(model, processor, "me/flip"))
    assert "**Not evaluated on a test set.**" in model_card(model, processor, "me/flip")
    tabular = make(FlipForCTR, processor, tiny_text_model, towers="tabular")
    assert "base_model" not in metadata(model_card(tabular, processor, "me/flip", RESULTS))


def test_a_doubtful_result_is_doubted_and_one_of_few_rows_not_told(
    processor: FlipProcessor, tiny_text_model: Path
) -> None:
    model = make(FlipForCTR, processor, tiny_text_model)
    card = model_card(model, processor, "me/flip", RESULTS)
    assert "On the 1,234 test rows with such a value its AUC was 0.5500" in card and "| test, with an unseen" in card
    assert "Check this" not in card
    few = {"test_unseen_rows": 14, "leaks": {"spent_eur": "why"}}
    card = model_card(model, processor, "me/flip", RESULTS | few)
    assert "0.5500" not in card and "14 test rows hold a value never seen in training" in card
    assert "- **Check this**: AUC 0.7000 may be too high: check 'spent\\_eur' (why).\n" in card


def test_what_was_undefined_in_older_results_is_no_figure(processor: FlipProcessor, tiny_text_model: Path) -> None:
    model = make(FlipForCTR, processor, tiny_text_model)
    card = model_card(model, processor, "me/flip", RESULTS | {"test_gauc": float("nan"), "test_gauc_rows": 0.0})
    assert "nan" not in card.split("## Citation")[0] and "gAUC" not in card
    metadata(card)


PLATT = {
    "calibration": "platt",
    "logit_scale": 0.8,
    "logit_shift": -0.1,
    "validation_logloss": 0.5,
    "validation_ne": 0.8,
}
OWN_ROWS = "ECE on validation are of the rows that its calibration was fitted to"


def test_metrics_of_the_rows_that_platt_scaling_was_fitted_to_are_told_apart(
    processor: FlipProcessor, tiny_text_model: Path
) -> None:
    model = make(FlipForCTR, processor, tiny_text_model)
    measured = {}
    for results in (RESULTS | PLATT, RESULTS | PLATT | {"logit_scale": 1.0, "logit_shift": 0.0}):
        card = model_card(model, processor, "me/flip", results)
        validation, test = metadata(card)["model-index"][0]["results"]
        assert len(test["metrics"]) == 4
        measured[OWN_ROWS in card] = [metric["type"] for metric in validation["metrics"]]
    assert measured == {True: ["roc_auc"], False: ["roc_auc", "log_loss", "normalized_entropy"]}


@pytest.mark.parametrize(
    ("results", "fitted", "corrected"),
    [
        ({"calibration": "platt", "logit_scale": 0.8, "logit_shift": 0.0}, True, False),
        ({"calibration": "platt", "logit_scale": 1.0, "logit_shift": -0.1}, True, False),
        ({"calibration": "platt", "logit_scale": 1.0, "logit_shift": 0.0}, False, False),
        ({"calibration": "platt", "negative_sampling_rate": 0.1, "logit_scale": 0.8, "logit_shift": -2.0}, True, True),
        (
            *({"calibration": "platt", "negative_sampling_rate": 0.1, "logit_scale": 1.0, "logit_shift": np.log(0.1)},),
            *(False, True),
        ),
        ({"negative_sampling_rate": 0.1, "logit_scale": 1.0, "logit_shift": np.log(0.1)}, False, True),
    ],
)
def test_a_calibration_is_told_where_something_was_fitted(
    results: dict[str, Any], fitted: bool, corrected: bool, processor: FlipProcessor, tiny_text_model: Path
) -> None:
    card = model_card(make(FlipForCTR, processor, tiny_text_model), processor, "me/flip", RESULTS | results)
    assert ("by Platt scaling" in card) == fitted
    assert ("kept 0.1 of its non-clicks" in card) == corrected
    assert ("Its probabilities are" in card) == (fitted or corrected)


def test_an_epoch_was_chosen_only_where_one_was() -> None:
    assert "the epoch was chosen on validation; the test set" in results_table(RESULTS | {"best_epoch": 2.0})
    for results in (RESULTS, RESULTS | {"best_epoch": None, "epochs": 3.0}):
        table = results_table(results)
        assert "chosen" not in table and "the test set was scored once" in table
    first = {"validation_auc": 0.7, "test_auc": 0.6}
    refit = RESULTS | {"selection": first | {"best_epoch": 2.0}, "best_epoch": None}
    assert "the number of epochs was chosen on validation rows, which were then" in results_table(refit)
    table = results_table(refit | {"selection": first | {"best_epoch": None}})
    assert "chosen" not in table and "the validation rows were then trained on as well" in table
    assert "before that: validation AUC 0.7000, test AUC 0.6000" in table


def test_every_tower_that_was_measured_has_a_row() -> None:
    table = results_table(RESULTS)
    assert "| validation | this model | 0.7100 | – | – | – |" in table
    assert "| test | this model | 0.7000 | 0.5000 | 0.8100 | 0.0200 |" in table
    assert "| test | its text tower alone | 0.6500 | 0.6000 | – | – |" in table
    assert "tabular tower" not in table
    assert "Train: 1,000 rows; test: 20,000 rows; 1,234 test rows hold a value never seen" in table
    assert results_table({}) == ""


def test_fields_have_sizes_and_examples_that_break_no_table(processor: FlipProcessor, tiny_text_model: Path) -> None:
    card = model_card(make(FlipForCTR, processor, tiny_text_model), processor, "me/flip")
    assert "| `user` | categorical | user is … | 2 | 3 | `1`, `2` |" in card
    assert rf"| `title` | categorical | title is … | 2 | 3 | `a \| b *c*`, `{'x' * 39}…` |" in card
    assert "7 features in all" in card


@pytest.mark.parametrize(
    ("value", "as_text", "as_code", "as_cell"),
    [
        ("two\nlines `x` <b>", r"two lines \`x\` \<b\>", "``two lines `x` <b>``", None),
        ("`", r"\`", "`` ` ``", None),
        ("``x", r"\`\`x", "``` ``x ```", None),
        (" ", "", "` `", None),
        ("a|b", r"a\|b", "`a|b`", r"`a\|b`"),
        ("a\\|b", r"a\\\|b", r"`a\|b`", r"`a\ \|b`"),
        ("![](http://x)", r"!\[\](http\://x)", "`![](http://x)`", None),
        ("www.x.org", r"www\.x.org", "`www.x.org`", None),
        ("a\x1b\u202eb", "a\ufffd\ufffdb", "`a\ufffd\ufffdb`", None),
    ],
)
def test_words_of_others(value: str, as_text: str, as_code: str, as_cell: str | None) -> None:
    assert (text(value), code(value), cell(value)) == (as_text, as_code, as_cell or as_code)


def test_fields_of_every_kind_are_told(wordpiece: PreTrainedTokenizerFast, tiny_text_model: Path) -> None:
    rows = {"user": ["a", "a", "b"], "price": [1.5, 1.5, 2], "tags": [["x", "y"], ["x"], []], "words": ["so it is"] * 3}
    kinds = {"user": "categorical", "price": "numeric", "tags": "list", "words": "text"}
    fields: list[dict[str, Any]] = [{"name": name, "kind": kind} for name, kind in kinds.items()]
    fields[0]["min_count"], fields[1]["type"] = 2, "number"
    fields.append({"name": "row_id", "kind": "ignored", "reason": "one value a row"})
    processor = FlipProcessor.fit(rows | {"row_id": [1, 2, 3]}, fields, wordpiece)
    card = model_card(make(FlipForCTR, processor, tiny_text_model), processor, "me/flip")
    for line in (
        "| `user` | categorical | user is … | 2 | 2 | `a`, `b` |",
        "| `price` | numeric | price is … | 2 | 3 | `1.5`, `2` |",
        "| `tags` | list | tags is … | 2 | 3 | `x`, `y` |",
        "| `words` | text | words is … | – | – |  |",
        "Values seen fewer than 2 times in `user` share",
        "Left out: `row_id` (one value a row).",
    ):
        assert line in card, line
    assert "{'user': 'a', 'price': 1.5, 'tags': ['x', 'y']}" in card
    assert "{'user': 'never seen before', 'price': 1.5, 'tags': ['x', 'y']}" in card


def test_the_value_that_nobody_has_seen_is_of_a_field_that_can_hold_it(
    wordpiece: PreTrainedTokenizerFast, tiny_text_model: Path
) -> None:
    fields: list[dict[str, Any]] = [{"name": "price", "kind": "numeric", "type": "number"}, {"name": "user"}]
    processor = FlipProcessor.fit({"price": [1.5, 2.5], "user": ["a", "a"]}, fields, wordpiece)
    card = model_card(make(FlipForCTR, processor, tiny_text_model), processor, "me/flip")
    assert "{'price': 1.5, 'user': 'never seen before'}" in card
    assert 'group_by="user"' in card


def test_a_pretraining_checkpoint_promises_no_clicks(processor: FlipProcessor, tiny_text_model: Path) -> None:
    model = make(FlipForPreTraining, processor, tiny_text_model)
    own = {"recipe": {"output_dir": "outputs/mine"}, "text_model": "outputs/mine-text-model"}
    settings = {"lr_scheduler_type": SchedulerType.LINEAR}
    card = model_card(model, processor, "outputs/.pretraining", own, settings, ["training_curve.png"])
    assert "\n# pretraining\n" in card
    assert "| lr_scheduler_type | linear |" in card
    assert "![Alignment: loss over the epochs](training_curve.png)" in card
    assert "Text tower: `outputs/mine-text-model`, a tiny one made from the training rows, which was never" in card
    card = model_card(model, processor, "me/flip")
    assert "tiny one" not in card
    assert "Pretrained, not finetuned" in card
    assert "How to use" not in card
    assert metadata(card)


@pytest.mark.parametrize(
    ("name", "is_id"),
    [("me/x", True), ("demo", False), ("data/clicks.csv", True), ("/tmp/x", False), ("a/b/c", False), (None, False)],
)
def test_ids(name: str | None, is_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) == is_id
    if is_id:  # the same name of a file here is a file
        (tmp_path / str(name)).parent.mkdir(exist_ok=True)
        (tmp_path / str(name)).write_text("")
        assert not is_hub_id(name)


# ---- cards of tables and recipes that somebody has made to say more

HTML = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
WORDS = st.text(min_size=1, max_size=30) | st.sampled_from(
    [
        "<img src=x onerror=alert(1)>",
        "![x](http://x.org/y.png)",
        "[x](javascript:y)",
        "</td></table><script>",
        "`</code><b>`",
        "a``b`",
        "```\n# heading\n```yaml",
        "~~~\n<b>\n~~~",
        "a | b",
        "\\|",
        "\\`|`",
        "---",
        "a\n\n---\n\n# b",
        "&lt;b&gt; *x* __y__ ~~z~~",
        "x\u2028```\u2028<i>",
        "'''",
        '"""',
        "{known}",
    ]
)
RECIPES = st.dictionaries(
    WORDS,
    st.recursive(WORDS | st.none() | st.integers() | st.booleans(), lambda x: st.lists(x, max_size=3)),
    max_size=4,
)


class Elements(HTMLParser):
    """The elements of a page, with their attributes, in their order."""

    def __init__(self, card: str):
        super().__init__()
        self.found: list[Any] = []
        self.feed(HTML.render(FRONT_MATTER.sub("", card, count=1)))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, attrs))


def card_of(
    names: list[str], values: list[str], words: str, reason: str, dataset: str, recipe: dict[str, Any], source: str
) -> tuple[str, list[dict[str, str]]]:
    """A card, and the rows that its example scores."""
    schema = [Field(name=name, words=words) for name in names[:-1]]
    schema.append(Field(name=names[-1], kind="ignored", reason=reason))
    counted = np.arange(len(values), 0, -1)
    texts = {name: pa.array(values) for name in names[:-1]}
    vocabulary = FeatureVocabulary(tuple(schema), texts, dict.fromkeys(texts, counted), dict.fromkeys(texts, 0))
    config = SimpleNamespace(model_type="flip", towers="both", tabular_tower="dcnv2", text_config=None)
    model = SimpleNamespace(config=config, num_parameters=lambda: 10)
    processor = SimpleNamespace(vocabulary=vocabulary, fields=vocabulary.fields)
    results = RESULTS | {"recipe": recipe | {"dataset_name": dataset, "license": "mit"}, "text_model": words}
    results["hardware"] = {"gpu": words, "cpus": 2, "machine": words, "processes": 1}
    card = model_card(model, processor, source, results, {"lr_scheduler_type": words}, revision=words)
    known = {name: values[0] for name in names[:-1]}
    return card, [known, known | {names[0]: "never seen before"}]


@given(
    names=st.lists(WORDS, min_size=2, max_size=4, unique=True),
    values=st.lists(WORDS, min_size=1, max_size=3, unique=True),
    words=WORDS,
    reason=WORDS,
    dataset=WORDS,
    recipe=RECIPES,
    source=WORDS,
)
@example(
    names=["<img src=x>", "`a|", "\\"],
    values=["</td>", "``\\|", "![](http://x)"],
    words="](x)",
    reason="<b>",
    dataset="```\x85",
    recipe={"a": "b\n```\n# c\n", "d": ["~~~", "````"]},
    source="a/```\n<b>",
)
def test_names_values_and_recipes_add_nothing_to_the_page(
    names: list[str], values: list[str], words: str, reason: str, dataset: str, recipe: dict[str, Any], source: str
) -> None:
    card, rows = card_of(names, values, words, reason, dataset, recipe, source)
    harmless, _ = card_of(
        [f"name {i}" for i in range(len(names))],
        [f"value {i}" for i in range(len(values))],
        *("words", "a reason", "clicks", {"seed": 1}, "me/flip"),
    )
    assert Elements(card).found == Elements(harmless).found
    body = FRONT_MATTER.sub("", card, count=1)
    blocks = {token.info: token.content for token in HTML.parse(body) if token.type == "fence"}
    assert read_yaml(blocks["yaml"]) == recipe | {"dataset_name": dataset, "license": "mit"}
    assigned = {
        ast.unparse(node.targets[0]): node.value
        for node in ast.parse(blocks["python"]).body
        if isinstance(node, ast.Assign)
    }
    assert ast.literal_eval(assigned["rows"]) == rows
    score = assigned["score"]
    assert isinstance(score, ast.Call)
    assert ast.literal_eval(score.keywords[0].value) == source
    front = FRONT_MATTER.match(card)
    assert front is not None
    data = yaml.safe_load(front.group(2))
    assert data["license"] == "mit"
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == (one_line(Path(dataset).name) or "training data")


@pytest.mark.parametrize(("value", "shown"), [(7, 7), (2.5, 2.5), ("inf", "inf"), ("seven", "seven")])
def test_the_example_of_a_number_may_be_none(value: Any, shown: Any) -> None:
    field = Field(name="a", kind="numeric")
    assert example_value(FlipProcessor.fit([{"a": value}], [field]), field) == shown


def test_the_curve_is_drawn_where_something_was_logged(tmp_path: Path) -> None:
    history = [{"loss": 0.7, "icl_loss": 0.3, "epoch": 0.5}, {"eval_auc": 0.6, "eval_text_auc": 0.5, "epoch": 1.0}]
    write_curve(tmp_path / "plot.png", history)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n")
    write_curve(tmp_path / "none.png", [{"train_loss": 0.7, "epoch": 1.0}])
    assert not (tmp_path / "none.png").exists()
