"""The demo in a real browser: what stands on the page is what the pipeline says, and nothing comes from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, pipeline

from modeling_flip import (
    CTRBertForCTR,
    CtrPredictionPipeline,
    FlipForCTR,
    FlipProcessor,
    MoRecForCTR,
    P5ForCTR,
)
from modeling_flip.serving import explain
from modeling_flip.serving.export import main as export_command
from modeling_flip.training import publishing, reliability

gr = pytest.importorskip("gradio", reason="the extra demo is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from modeling_flip.serving import demo

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
HOSTILE = """<img src=x onerror="window.hacked=1">${window.hacked=1}{{value}}"""
ROWS = [
    {"user_id": "1", "gender": "female", "item_id": "10", "title": "Toy Story (1995)"},
    {"user_id": "2", "gender": "male", "item_id": "20", "title": "東京物語"},
    {"user_id": "3", "gender": "", "item_id": "30", "title": "It's a Wonderful Life"},
    {"user_id": "1", "gender": "female", "item_id": "20", "title": "東京物語"},
]
ROOT = Path(__file__).resolve().parents[2]
START = ".venv/bin/python -m modeling_flip.serving.demo --model outputs/"
(COMMAND,) = (line for line in (ROOT / "docs" / "demo.md").read_text().splitlines() if line.startswith(START))
FIELDS, ITEMS = list(ROWS[0]), ["item_id", "title"]
RESULTS = {"test_auc": 0.7132, "test_tabular_auc": 0.6708, "test_ece": 0.0332, "history": []}
PNG = bytes.fromhex(  # one white pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63f80f0001010100"
    "1bb6ee560000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def folders(
    tiny_text_model: Path, wordpiece: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A random FLIP that tells rows apart, and its towers, each a checkpoint; the first with a run's results and rows."""
    folder = tmp_path_factory.mktemp("checkpoints")
    processor = FlipProcessor.fit(ROWS, FIELDS, wordpiece)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [8]}
    model = FlipForCTR.from_text_pretrained(tiny_text_model, processor, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder / "both", processor=processor)
    for towers, its in {"tabular": processor.tabular_only(), "text": processor}.items():
        FlipForCTR.from_pretrained(folder / "both", towers=towers).save_pretrained(folder / towers, processor=its)
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": wordpiece.sep_token_id}
    t5 = T5Config(vocab_size=len(wordpiece), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, **ids)
    T5ForConditionalGeneration(t5).save_pretrained(folder / "t5")
    item = {"item_fields": [FIELDS.index(field) for field in ITEMS]}
    baselines = {
        "CTR-BERT": CTRBertForCTR.from_text_pretrained(tiny_text_model, processor, **sizes, **item),
        "MoRec": MoRecForCTR.from_text_pretrained(tiny_text_model, processor, **sizes, **item),
        "P5": P5ForCTR.from_text_pretrained(folder / "t5", processor),
    }
    for name, baseline in baselines.items():
        baseline.save_pretrained(folder / name, processor=processor)
    (folder / "both" / demo.RESULTS_FILE).write_text(json.dumps(RESULTS))
    (folder / "both" / "reliability.png").write_bytes(PNG)
    (folder / "rows.jsonl").write_text("".join(json.dumps({**row, "clicked": 1}) + "\n" for row in ROWS))
    return {path.name.removesuffix(".jsonl"): path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def score(folders: dict[str, Path]) -> Callable[[str], CtrPredictionPipeline]:
    def load(name: str) -> CtrPredictionPipeline:
        folder = folders[name]
        return pipeline("ctr-prediction", model=str(folder))

    return load


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def is_here(host: str) -> bool:
    return host in ("127.0.0.1", "localhost", "::1")


@pytest.fixture
def visit(browser: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`visit("--model", …)` → the page of the command, loaded. Neither it nor its server may call anywhere, or complain."""
    servers: list[Any] = []
    wrong: list[str] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not is_here(address[0]):
            wrong.append(f"the server connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda self: servers.append(self))

    def open_page(*arguments: Any) -> Any:
        assert demo.main([*map(str, arguments)]) == 0
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(30_000)
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
        page.on(
            "request",
            lambda sent: None if re.match(r"data:|blob:|http://127\.0\.0\.1:", sent.url) else wrong.append(sent.url),
        )
        page.goto(servers[-1].local_url)
        page.wait_for_selector("#attribution td")
        return page

    yield open_page
    for server in servers:
        server.close()
    assert wrong == []


def text_of(page: Any, where: str) -> str:
    return " ".join(page.locator(where).inner_text().split())


def cells(page: Any, where: str) -> list[list[str]]:
    """Of the tables in a part of the page, heads too."""
    return [line.locator("th, td").all_inner_texts() for line in page.locator(f"{where} tr").all()]


def predict(page: Any, **values: str) -> None:
    """Type values, and wait for the answer."""
    for field, value in values.items():
        entry = page.get_by_label(field, exact=True)
        entry.fill(value)
        entry.press("Enter")
    page.click("#predict")
    wait_for(page, [*values.values()][-1])


def wait_for(page: Any, value: str) -> None:
    """Until the last part of an answer has it; all parts come at once."""
    page.wait_for_function("value => document.querySelector('#attribution').textContent.includes(value)", arg=value)


def percent(probability: float) -> str:
    return f"{probability:.1%}"


@NEEDS_CHROMIUM
def test_every_part_of_the_page(
    folders: dict[str, Path], visit: Callable[..., Any], score: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    its = score("both")
    monkeypatch.chdir(tmp_path)  # as the reader of the docs, who has the quickstart's model
    Path("outputs").mkdir()
    Path("outputs/quickstart").symlink_to(folders["both"])
    Path("rows.jsonl").symlink_to(folders["rows"])
    page = visit(*COMMAND.split()[3:])

    def check(row: dict[str, Any]) -> None:
        scored, logits = its(row, return_towers=True), explain.logits_of(its, [row])
        said, alpha = text_of(page, "#prediction"), its.model.alpha.item()
        assert said.startswith(percent(scored["probability"]))
        for tower in ("tabular", "text"):
            logit, weight = logits[f"{tower}_logits"][0], alpha if tower == "tabular" else 1 - alpha
            line = f"{tower} tower {demo.signed(logit)} {percent(scored[f'{tower}_probability'])} "
            assert line + ("α = " if tower == "tabular" else "1 − α = ") + f"{weight:.3f}" in said
        assert f"text = {demo.signed(logits['logits'][0])}" in said
        shown = text_of(page, "#sentence")
        (sentence,) = its.processor.texts([row])
        assert re.sub(r"\s", "", sentence) in re.sub(r"\s", "", shown)
        by_field = {line[0]: line[1:] for line in cells(page, "#attribution")[1:]}
        for a in explain.attributions(its, row):
            added = [demo.signed(value) for value in (a.probability, a.tabular_logit, a.text_logit)]
            assert by_field[a.field] == [row[a.field] or "–", *added]

    # An example row, another one, and one that somebody types.
    check(ROWS[0])
    page.get_by_label("Example row").click()
    page.get_by_role("option", name="2 · 2 · male").click()
    wait_for(page, ROWS[1]["title"])
    check(ROWS[1])
    assert "Never seen" not in text_of(page, "#prediction")
    typed = {**ROWS[1], "gender": "", "title": HOSTILE}
    predict(page, gender="", title=HOSTILE)
    check(typed)
    assert text_of(page, "#prediction").endswith("Never seen in training: title")
    assert page.evaluate("window.hacked") is None and page.locator("img[src=x]").count() == 0

    page.get_by_role("tab", name="An unseen item").click()
    for chosen in (ITEMS, ["item_id"]):
        if chosen != ITEMS:
            page.get_by_label("title", exact=True).last.uncheck()
            page.wait_for_function("document.querySelectorAll('#unseen table')[0].rows.length == 2")
        replaced = explain.never_seen(its.processor, typed, chosen)
        assert list(replaced) == chosen
        before, after = its([typed, {**typed, **replaced}], return_towers=True)
        shown = cells(page, "#unseen")
        assert shown[1 : 1 + len(chosen)] == [[field, typed[field], replaced[field]] for field in chosen]
        names = {"the model": "probability"} | {f"{t} tower alone": f"{t}_probability" for t in ("tabular", "text")}
        for name, column in names.items():
            (line,) = (line for line in shown if line[0] == name)
            change = demo.signed(100 * (after[column] - before[column]), "+.1f")
            assert line[3:] == [percent(before[column]), percent(after[column]), f"{change} points"]

    page.get_by_role("tab", name="Rank items").click()
    page.click("#rank")
    page.wait_for_selector("#ranking td")
    candidates = [{item: row[item] for item in ITEMS} for row in ROWS[:3]]  # the fourth row has the second's item
    user = {field: value for field, value in typed.items() if field not in ITEMS}
    expected = [
        [str(place), percent(found["probability"]), *candidates[found["index"]].values()]
        for place, found in enumerate(its.rank(user, candidates), 1)
    ]
    assert cells(page, "#ranking")[1:] == expected

    page.get_by_role("tab", name="Results of the run").click()
    page.wait_for_selector("#results img")
    shown = cells(page, "#results")
    assert shown == [
        ["", "", "AUC", "ECE"],
        ["test rows", "the model", "0.7132", "0.0332"],
        ["test rows", "tabular tower alone", "0.6708", "–"],
    ]
    assert page.eval_on_selector_all("#results img", "images => images.map(image => image.naturalWidth)") == [1]


@NEEDS_CHROMIUM
@pytest.mark.parametrize(
    ("name", "towers"),
    [
        ("tabular", ["tabular"]),
        ("text", ["text"]),
        ("CTR-BERT", ["text"]),
        ("MoRec", ["tabular", "text"]),
        ("P5", ["text"]),
    ],
)
def test_a_model_with_one_logit_shows_one_and_the_towers_it_has(
    name: str, towers: list[str], folders: dict[str, Path], visit: Callable[..., Any], score: Any
) -> None:
    its = score(name)
    page = visit("--model", folders[name])  # without rows: values of training
    row = explain.sampled_rows(its.processor, demo.EXAMPLES)[0]
    said = text_of(page, "#prediction")
    assert said.startswith(percent(its(row)["probability"]))
    assert "α" not in said
    assert [tower for tower in demo.TOWERS if f"{tower} tower" in page.content()] == towers
    assert ("which this model does not read" in text_of(page, "#sentence")) == ("text" not in towers)
    assert [len(line) for line in cells(page, "#attribution")] == [4] * (1 + len(FIELDS))
    page.get_by_role("tab", name="An unseen item").click()
    assert cells(page, "#unseen")[-1][0] == "the model"
    page.get_by_role("tab", name="Results of the run").click()
    assert "no all_results.json" in text_of(page, "#results")


def test_make_demo_trains_where_need_be_and_opens_the_page() -> None:
    done = subprocess.run(["make", "-n", "-B", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    commands = [line for line in done.stdout.splitlines() if "pip install" not in line and line.startswith(".venv")]
    assert commands == [
        ".venv/bin/python train.py configuration/quickstart.yaml",
        ".venv/bin/python -m data_scripts.demo --output_dir outputs/demo-rows",
        COMMAND.replace("rows.jsonl", "outputs/demo-rows/test.parquet"),
    ]


def test_names_and_values_are_text() -> None:
    found = [explain.Attribution(HOSTILE, 0.1, 0.1), explain.Attribution("a", -0.1, -0.1)]
    logits = {"logits": 0.5}
    config = type("Config", (), {"logit_scale": 2.0, "logit_shift": -0.5})
    made = [
        demo.attribution_html(found, {HOSTILE: HOSTILE}),
        demo.prediction_html(logits, config, 1.0, [HOSTILE]),
        demo.prediction_html(logits, config, 1.0, cut=[HOSTILE]),
        demo.unseen_html({HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}, logits, logits),
        demo.ranking_html([{"index": 0, "probability": 0.5}], [{HOSTILE: HOSTILE}], [HOSTILE]),
    ]
    for html in made:
        assert "<img" not in html and "&lt;img" in html
    assert (
        "logit +0.500, calibrated 2.000 · (+0.500) −0.500 = +0.500" in made[1]
    )  # the scale and the shift undone, and done


def test_the_files_of_a_run_are_those_that_training_leaves() -> None:
    assert demo.RESULTS_FILE == publishing.RESULTS_FILE
    assert [*demo.PLOTS] == [reliability.RELIABILITY_FILE, publishing.CURVE_FILE]


def test_example_rows_are_the_first_of_a_file(tmp_path: Path, folders: dict[str, Path], score: Any) -> None:
    columns = score("both").processor.vocabulary.columns
    assert demo.read_examples(folders["rows"], columns) == ROWS
    many = tmp_path / "many.csv"
    many.write_text("title,clicked\n" + "".join(f"film {i},1\n" for i in range(99)))
    assert demo.read_examples(many, columns) == [{"title": f"film {i}"} for i in range(demo.EXAMPLES)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/absent/model"], "/absent/model"),
        (["--rows", "absent.csv"], "absent.csv does not exist"),
        (["--rows", "other.csv"], "has no field of the model; its columns are ['x']"),
        (["--rows", "empty.csv"], "empty.csv has no rows"),
        (["--push_to_space", "me/demo"], "is a folder, and a Space loads its model from the Hub: push it first"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], message: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("x\n1\n")
    Path("empty.csv").write_text("title\n")
    assert demo.main(["--model", str(folders["both"]), *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("demo: error: ") and message in line


def test_an_exported_model_is_refused(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    exported = str(tmp_path / "exported")
    assert export_command(["--model", str(folders["tabular"]), "--output", exported]) == 0
    assert demo.main(["--model", exported]) == 2
    assert "is exported, and has kept neither α nor calibration: give its checkpoint" in capsys.readouterr().err


def test_too_many_items_to_rank_are_refused(score: Any) -> None:
    for candidates in ([], [{"title": None}], [{"title": "x"}] * 1_001):
        with pytest.raises(gr.Error, match="items to rank; give 1 to 1,000"):
            demo.ranked_of(score("both"), ROWS[0], candidates, 5)
