"""Promises are cited by the names that docs/promises.md defines, and all of these are tested."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SOURCES = [
    path for top in ("ckptfs", "mount", "tools", "tests") for path in (PROJECT / top).rglob("*.py")
]
PAGES = [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]
_DEFINITION = re.compile(r"^\| \*\*(C\d+)\*\* \|", re.MULTILINE)
_CITATION = re.compile(r"(?<![A-Za-z0-9])C(\d)(?![A-Za-z0-9])")
_OF_A_TEST = re.compile(r"def test_((?:[cC]\d+_)+)")
_ELSEWHERE = re.compile(r"\bDESIGN\b|§")  # pages that are not of the project


def defined() -> set[str]:
    return set(_DEFINITION.findall((PROJECT / "docs" / "promises.md").read_text()))


def cited(text: str) -> set[str]:
    return {f"C{number}" for number in _CITATION.findall(text)}


def promises_of_tests(text: str) -> set[str]:
    return {
        f"C{number}" for names in _OF_A_TEST.findall(text) for number in re.findall(r"\d+", names)
    }


def test_what_is_cited_is_defined() -> None:
    known = defined()
    unknown = {path.name: cited(path.read_text()) - known for path in (*SOURCES, *PAGES)}
    assert {name for name, names in unknown.items() if names} == {Path(__file__).name}  # control


def test_what_is_defined_is_tested() -> None:
    found = set().union(*(promises_of_tests(path.read_text()) for path in SOURCES))
    assert defined() - found == set()


def test_no_page_is_cited_that_is_not_of_the_project() -> None:
    found = [path.name for path in SOURCES if _ELSEWHERE.search(path.read_text())]
    assert found == [Path(__file__).name]


def test_control_a_citation_of_nothing_is_seen() -> None:
    assert cited("kept (C1, C0)") - defined() == {"C0"}
    assert cited("0xC3, AC4, C5x") == set()
    assert promises_of_tests("def test_c2_C3_it_holds()") == {"C2", "C3"}
    assert _ELSEWHERE.search("as DESIGN says")
