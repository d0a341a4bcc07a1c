"""One word, one thing: a class has a name of its own, and no data is in prose."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator

from code_of import modules, source

SAYS_NOTHING = {"base"}  # names of files that there may be one of
CUTS = {"split", "rsplit", "partition", "rpartition", "removeprefix", "removesuffix", "splitlines"}
READS = {"match", "search", "fullmatch", "findall", "finditer", "int", "float"}

# Words with two meanings today. What is renamed goes from here; nothing is added.
CLASSES = {
    "Below",
    "Bench",
    "Change",
    "Check",
    "Content",
    "Control",
    "Entry",
    "Extent",
    "File",
    "Found",
    "Inode",
    "Judge",
    "Kind",
    "Mount",
    "Node",
    "Op",
    "Progress",
    "Recording",
    "Row",
    "Session",
    "Share",
    "Shared",
    "Trial",
    "Violation",
    "Writer",
}
FILES: set[str] = set()
PROSE: set[str] = set()


def classes(text: str) -> list[str]:
    """Those that other files may name."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    return [node.name for node in nodes if not node.name.startswith("_")]


def doubles(named: Iterable[tuple[str, str]]) -> set[str]:
    """Of names and where they stand: the names that stand in more than one place."""
    places = defaultdict(list)
    for name, place in named:
        places[name].append(place)
    return {name for name, where in places.items() if len(where) > 1}


def takes_prose_apart(text: str) -> bool:
    """What a finding says in words is cut up, or read with a pattern, to get at a value."""
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return any(_is_detail(prose) for call in calls for prose in _taken_apart(call))


def _taken_apart(call: ast.Call) -> Iterator[ast.expr]:
    name = ast.unparse(call.func).rpartition(".")[2]
    if name in CUTS and isinstance(call.func, ast.Attribute):
        yield call.func.value
    if name in READS:
        yield from call.args


def _is_detail(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "detail"


def test_a_class_has_a_name_of_its_own() -> None:
    assert doubles((one, name) for name in modules() for one in classes(source(name))) == CLASSES


def test_a_file_that_says_nothing_by_its_name_is_alone() -> None:
    named = [(name.rpartition(".")[2], name) for name in modules()]
    assert doubles(named) & SAYS_NOTHING == FILES


def test_no_data_is_in_prose() -> None:
    assert {name for name in modules() if takes_prose_apart(source(name))} == PROSE


def test_control_two_meanings_are_seen() -> None:
    assert classes("class A:\n    class B: ...\n    class _C: ...") == ["A", "B"]
    assert doubles([("A", "m"), ("B", "m"), ("A", "n")]) == {"A"}
    assert doubles([("A", "m"), ("A", "m")]) == {"A"}  # twice in one file


def test_control_prose_that_is_taken_apart_is_seen() -> None:
    assert takes_prose_apart('int(finding.detail.rsplit(" ", 1)[1])')
    assert takes_prose_apart('detail = self.of(x).detail.removeprefix("of ")')
    assert takes_prose_apart('re.search(r"[0-9]+", finding.detail)')
    assert not takes_prose_apart('print(f"{finding.detail}; {len(x.split())}")')
