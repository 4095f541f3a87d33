"""The documentation's site, its figures, and what its pages say about the code."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import modeling_flip
from benchmarks import figures

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ATTRIBUTES = {"a": "href", "img": "src", "script": "src", "link": "href"}


class Page(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.links, self.loads = set[str](), set[str](), set[str]()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        if (target := given.get(ATTRIBUTES.get(tag, ""))) and given.get("rel") != "canonical":
            (self.links if tag == "a" else self.loads).add(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The site as `make docs` builds it, in a folder of its own; a warning is an error."""
    here = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, here / "docs")
    shutil.copy(ROOT / "mkdocs.yml", here)  # a link would be followed, and the checkout be built
    for name in ("modeling_flip", "examples", "CONTRIBUTING.md", "SECURITY.md"):
        (here / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((here / "build" / "docs").glob("*.html"))
    return {path: Page(path) for path in pages if path.stem != "404"}


def test_every_page_is_in_the_navigation(site: dict[Path, Page]) -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = re.findall(r"\w+\.md", str(nav))
    assert sorted(named) == sorted(path.name for path in DOCS.glob("*.md"))
    assert {path.stem for path in site} == {Path(name).stem for name in named}


def test_links_lead_somewhere(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        for link in page.links | page.loads:
            target = urlsplit(link)
            if target.scheme:
                continue
            other = (path.parent / unquote(target.path)).resolve() if target.path else path
            assert other.exists(), f"{path.name} leads to {link}"
            if target.fragment and other in site and not target.fragment.startswith("__"):
                assert unquote(target.fragment) in site[other].ids, f"{path.name} leads to {link}"


def test_the_site_is_read_without_a_network(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        assert not [url for url in page.loads if urlsplit(url).netloc], path.name
        assert "unpkg.com" not in path.read_text()


def test_every_public_name_is_in_the_reference(site: dict[Path, Page]) -> None:
    (reference,) = (page for path, page in site.items() if path.stem == "api")
    assert {f"modeling_flip.{name}" for name in modeling_flip.__all__} <= reference.ids


def test_the_figures_are_what_the_code_draws(tmp_path: Path) -> None:
    figures.main(tmp_path)
    for name in ("method.svg", "masking.svg"):
        assert (DOCS / "figures" / name).read_bytes() == (tmp_path / name).read_bytes(), "python -m benchmarks.figures"
        assert (DOCS / "figures" / name).stat().st_size < 150_000


def messages() -> list[str]:
    """Every string of the code, with … for what is put into it."""
    found = []
    for path in [ROOT / "train.py", *(ROOT / "modeling_flip").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_troubleshooting_quotes_messages_that_the_code_has() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"```text\n(.*)\n```", page)
    known = "\n".join(messages())
    assert len(quoted) > 25
    assert [message for message in quoted if message not in known] == []
