"""The pages build as a site, strictly: every link, anchor and picture of them is there.

What is outside of docs/ (README, CONTRIBUTING, CHANGELOG) is no page; the files that it links to
are looked up.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")

PROJECT = Path(__file__).parents[2]
# Not -q: it takes the warnings that --strict counts.
BUILD = (sys.executable, "-m", "mkdocs", "build", "--strict")


def built(project: Path, into: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BUILD, "--config-file", project / "mkdocs.yml", "--site-dir", into],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = built(PROJECT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    pages = {page.stem for page in (PROJECT / "docs").glob("*.md")} - {"index"}
    assert {folder.parent.name for folder in site.glob("*/index.html")} == pages
    assert (site / "index.html").exists()


class _Prose(HTMLParser):
    """The text of paragraphs and table cells, without code."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in ("p", "td", "li"):
            self.found.append("")
        if tag in ("code", "pre", "script"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.found and not self.open:
            self.found[-1] += data


def test_no_markup_is_left_in_the_text(site: Path) -> None:
    """A list right below a paragraph, or a table with a bar in a cell, reads well on a code host
    and is one run of text here."""
    for page in site.glob("**/index.html"):
        prose = _Prose()
        prose.feed(page.read_text(encoding="utf-8"))
        left = [text for text in prose.found if re.search(r"(^|\n)[-*] |\*\*|`|\| ", text)]
        assert not left, f"{page.parent.name}: {left}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[page](nowhere.md)", "nowhere.md"),
        ("[section](design.md#nowhere)", "#nowhere"),
        ("![picture](nowhere.svg)", "nowhere.svg"),
    ],
)
def test_what_leads_nowhere_is_seen(tmp_path: Path, text: str, told: str) -> None:
    """The control."""
    for name in ("docs", "mkdocs.yml"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, tmp_path / name)
    with open(tmp_path / "docs/glossary.md", "a") as page:
        page.write(f"\n{text}\n")
    done = built(tmp_path, tmp_path / "site")
    assert done.returncode == 1 and told in done.stderr, done


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_what_is_no_page_lead_somewhere(name: str) -> None:
    text = (PROJECT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in link or (PROJECT / link).exists(), link


def absent(text: str) -> list[str]:
    """Files of the code that it names, and that are not there."""
    named = re.findall(r"`([\w/]+\.py)`", text)
    return [name for name in named if not (PROJECT / name).exists()]


def test_files_that_the_design_names_are_there() -> None:
    text = (PROJECT / "docs/design.md").read_text(encoding="utf-8")
    assert absent(text) == []
    assert absent(f"{text} `mount/nowhere.py`") == ["mount/nowhere.py"]  # the control
