"""The pictures of docs/design.md are those of the tables in the code, and of the code itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from code_of import PROJECT
from drawn import BEGIN, PAGE, WAYS, Stop, Way, as_svg, overlong, picture, with_pictures

from ckptfs.versions.life import TRANSITIONS, Event, State


def functions(text: str) -> set[str]:
    """With the class, or the function, that each is in."""
    return set(_functions(ast.parse(text), ""))


def _functions(tree: ast.AST, within: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        name = within
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{within}.{node.name}" if within else node.name
        if isinstance(node, ast.FunctionDef):
            yield name
        yield from _functions(node, name)


def missing(way: Way) -> list[str]:
    """What it names and is not there."""
    return [
        f"{stop.path}: {stop.function}"
        for stop in way.stops
        if stop.floor not in way.floors
        or not (PROJECT / stop.path).exists()
        or stop.function not in functions((PROJECT / stop.path).read_text())
    ]


def test_the_page_shows_the_tables_as_they_are() -> None:
    """``python tests/house/drawn.py --write`` draws them anew."""
    page = PAGE.read_text()
    assert page.count(BEGIN) == 1
    assert with_pictures(page) == page


@pytest.mark.parametrize("name", WAYS)
def test_the_ways_are_drawn_as_they_are(name: str) -> None:
    """Likewise."""
    assert (PAGE.parent / name).read_text() == as_svg(WAYS[name])
    assert f"({name})" in PAGE.read_text()


@pytest.mark.parametrize("name", WAYS)
def test_what_is_on_the_way_is_there(name: str) -> None:
    assert missing(WAYS[name]) == []
    assert [stop for stop in WAYS[name].stops if overlong(stop)] == []


def test_control_what_is_not_there_is_seen() -> None:
    floors = ("ckptfs/versions",)
    there = Stop("ckptfs/versions", "order.py", "Ordering.sync_dir", "")
    gone = there._replace(function="sync_dir"), there._replace(file="orders.py")
    elsewhere = Stop("ckptfs/store", "saves.py", "Saves.commit", "")
    found = missing(Way("", floors, (there, *gone, elsewhere)))
    assert found == [
        "ckptfs/versions/order.py: sync_dir",
        "ckptfs/versions/orders.py: Ordering.sync_dir",
        "ckptfs/store/saves.py: Saves.commit",
    ]
    assert functions("class A:\n def b(self):\n  def c(): pass\nif 1:\n def d(): pass") == {
        "A.b",
        "A.b.c",
        "d",
    }
    assert overlong(there._replace(words="w" * 60)) and not overlong(there)


def test_control_another_table_is_another_picture() -> None:
    assert picture({**TRANSITIONS, (State.OPEN, Event.PUBLISH): State.PUBLISHED}) != picture(
        TRANSITIONS
    )
    table = {(State.OPEN, Event.SEAL): State.SEALING, (State.SEALING, Event.ABORT): State.ABORTED}
    assert "    open --> sealing: seal\n    sealing --> aborted: abort\n" in picture(table)
