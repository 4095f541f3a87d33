"""Every command and every block of code in the README and docs/, run as written but for sizes that make them quick."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModel, AutoTokenizer

import train
from benchmarks import results_table
from modeling_flip.fields import make_field
from modeling_flip.training.command_line import without_dry_run, without_tune

pytestmark = pytest.mark.usefixtures("few_demo_rows")
ROOT = Path(__file__).resolve().parents[2]
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text() for page in results_table.PAGES}
DATA = ROOT.parent / "shared" / "datasets"
BLOCK = re.compile(r"```(bash|python|yaml)\n(.*?)```", re.DOTALL)
BLOCKS = [(page, *block) for page, text in PAGES.items() for block in BLOCK.findall(text)]
BASH = [(page, line) for page, kind, block in BLOCKS if kind == "bash" for line in block.strip().splitlines()]
COMMANDS = list(dict.fromkeys(line for _, line in BASH))
TRAIN, PYTHON = ".venv/bin/python train.py ", ".venv/bin/python -m benchmarks."
SERVING = tuple(f".venv/bin/python -m modeling_flip.serving.{name} " for name in ("serve", "export"))
SERVING += ("curl ", "docker ")
COMPARE = [line.removeprefix(f"{PYTHON}compare ") for line in COMMANDS if line.startswith(f"{PYTHON}compare ")]
# The Quickstart's way from a file to a score over HTTP, beside training: test_quickstart.py goes it.
NEWCOMER = [line for page, line in BASH if page == "docs/index.md" and not line.startswith(TRAIN)]
# Those that speak to the Hub, or score a file: tests/hub/test_readme_on_the_hub.py runs them.
# Or open the demo: tests/serving/test_demo.py and tests/hub/test_space.py do.
DEMO = [command for command in COMMANDS if "serving.demo" in command or command == "make demo"]
ELSEWHERE = [c for c in COMMANDS if ("me/flip" in c or "modeling_flip.score" in c) and c not in [*DEMO, *NEWCOMER]]
QUICK = ["--max_train_samples", "256", "--finetuning.max_steps", "2", "--finetuning.per_device_train_batch_size", "16"]
QUICK_PRETRAINING = ["--pretraining.max_steps", "2", "--pretraining.per_device_train_batch_size", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clicks_csv: Path, tiny_text_model: Path) -> Path:
    """Where the README's reader stands: a clone, with data, and text models under the names that it uses."""
    here = tmp_path_factory.mktemp("clone")
    for name, target in (("configuration", ROOT / "configuration"), ("data", DATA)):
        (here / name).symlink_to(target)
    (here / "outputs" / "text-models").mkdir(parents=True)
    (here / "outputs" / "text-models" / "all-MiniLM-L6-v2-2-layers").symlink_to(tiny_text_model)
    (here / "sentence-transformers").mkdir()
    (here / "sentence-transformers" / "all-MiniLM-L6-v2").symlink_to(tiny_text_model)
    (here / "clicks.csv").write_text(clicks_csv.read_text().replace("genre", "category"))
    (here / "new-days.csv").write_text((here / "clicks.csv").read_text().replace("Toy Story 8", "Das Boot"))
    return here


def python_blocks(page: str) -> list[str]:
    return [block for other, kind, block in BLOCKS if (other, kind) == (page, "python")]


def test_the_readme_is_read_in_three_minutes() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 120
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_the_readme_has_no_command_that_is_not_run() -> None:
    known = [*ELSEWHERE, *DEMO, *NEWCOMER[1:]]
    others = {line for line in COMMANDS if not line.startswith(TRAIN) and line not in known}
    others -= {line for line in others if line.startswith(SERVING)}  # tests/serving runs these
    benchmarks = {line for line in others if line.startswith(PYTHON)}  # tests/benchmarks runs these
    scripts = {"pretraining_step", "data_pipeline", "tabular_training", "sparse_step", "scoring", "compare", "scale"}
    scripts |= {
        "distributed",
        "small_text_model",
        "new_values",
        "preparation_tools",
        "reproduce",
        "search",
        "alignment",
    }
    scripts |= {"serving", "serving_load"}
    assert {line.removeprefix(PYTHON).split()[0] for line in benchmarks} == scripts
    others -= benchmarks
    # The first is what `make install` does; CI runs the second, and with it the first.
    assert others == {
        "python3 -m venv .venv && .venv/bin/python -m pip install -c constraints.txt -e .",
        "make test",
    }
    makefile = (ROOT / "Makefile").read_text()
    assert "-m pip install --quiet --disable-pip-version-check -c constraints.txt -e" in makefile
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(TRAIN) and c not in ELSEWHERE])
def test_training_commands_run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arguments = shlex.split(command.removeprefix(TRAIN))
    if "data/" in command and not DATA.exists():
        pytest.skip("MovieLens is not at hand")
    of_recipe, is_dry = without_dry_run(arguments)
    of_recipe, num_trials = without_tune(of_recipe)
    if of_recipe[0] == "outputs/tuned/best.yaml" and not Path(of_recipe[0]).exists():
        (first,) = (c for c in COMMANDS if "--tune" in c)
        train.main([*shlex.split(first.removeprefix(TRAIN)), "--tune", "1", *QUICK, *QUICK_PRETRAINING])
    recipe = train.parse_recipe(of_recipe)
    if recipe.init_from is not None and not Path(recipe.init_from).exists():
        (first,) = (c for c in COMMANDS if c.endswith(f" --output_dir {recipe.init_from}"))
        train.main([*shlex.split(first.removeprefix(TRAIN)), *QUICK, *QUICK_PRETRAINING])
    output_dir, pretraining = recipe.output_dir, recipe.pretraining is not None
    few = [] if num_trials is None else ["--tune", "1"]
    train.main([*arguments, *few, *QUICK, *(QUICK_PRETRAINING if pretraining else [])])
    made = folder / output_dir / ("all_results.json" if num_trials is None else "best.yaml")
    assert made.exists() != is_dry


@pytest.mark.parametrize("command", COMPARE)
def test_comparisons_name_recipes_and_settings_that_exist(command: str) -> None:
    """Running them is what the committed results are; here, that each recipe takes what it is given."""
    options, _, given = command.partition(" -- ")
    recipes = [ROOT / word for word in shlex.split(options) if word.endswith(".yaml")]
    for recipe in recipes:
        assert train.parse_recipe([str(recipe), *shlex.split(given)]).raw_dir is not None
    assert recipes


def test_code_blocks_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    if not (folder / "outputs" / "quickstart").exists():
        train.main(["configuration/quickstart.yaml", *QUICK, *QUICK_PRETRAINING])
    (use,) = python_blocks("README.md")
    (layers,) = python_blocks("docs/results.md")
    assert len([line for line in use.splitlines() if line.strip()]) <= 10
    names: dict[str, Any] = {}
    exec(compile(use, "README.md", "exec"), names)
    assert len(names["probabilities"]) == 2 and all(0 < p < 1 for p in names["probabilities"])
    assert "user id is 190. age is unknown. occupation is engineer." in capsys.readouterr().out
    (folder / "outputs" / "text-models" / "all-MiniLM-L6-v2-2-layers").unlink(missing_ok=True)
    exec(compile(layers, "README.md", "exec"), {})
    saved = folder / "outputs" / "text-models" / "all-MiniLM-L6-v2-2-layers"
    assert AutoModel.from_pretrained(saved).config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(saved).is_fast
    t5 = folder / "outputs" / "text-models" / "t5-tiny"
    train.main(
        ["configuration/movielens-100k/p5.yaml", "--dataset_name", "demo", "--text_model_name_or_path", str(t5), *QUICK]
    )


def test_the_fields_that_the_readme_declares_are_fields() -> None:
    (declared,) = [block for page, kind, block in BLOCKS if (page, kind) == ("docs/data.md", "yaml")]
    fields = [make_field({"name": name, **field}) for name, field in yaml.safe_load(declared)["fields"].items()]
    assert [field.kind for field in fields] == ["numeric", "list", "list"]


def test_the_tables_are_what_the_committed_results_say() -> None:
    assert {page: results_table.render(text) for page, text in PAGES.items()} == PAGES
