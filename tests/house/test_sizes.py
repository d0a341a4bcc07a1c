"""No file is longer than a reader takes in, no object does everything, and none is put together by
inheritance: what an object uses it is handed."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator

from code_of import modules, source

LINES, METHODS = 400, 20
# One method for each call of the operating system.
CALLS = {
    "ckptfs.disk.filesystem.FileSystem",
    "ckptfs.disk.real.OsFs",
    "ckptfs.tools.harness.crashfs.CrashFs",
}
NO_BASES = {"Ordering", "Committed", "Base", "Relay", "Files", "Namespace", "Attributes"}

# What is larger today. What goes from the code goes from here; nothing is added.
LONG: set[str] = set()
LARGE: set[str] = set()
INHERITED: set[str] = set()


def classes(text: str) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef))


def large(module: str, text: str) -> set[str]:
    """Its classes with too many methods: properties and dunder methods are some, too."""
    return {f"{module}.{one.name}" for one in classes(text) if _methods(one) > METHODS}


def _methods(one: ast.ClassDef) -> int:
    return sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in one.body)


def inherited(module: str, text: str) -> set[str]:
    """Its classes that take code of those that were to share it."""
    return {f"{module}.{one.name}" for one in classes(text) if NO_BASES & set(_bases(one))}


def _bases(one: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).rpartition(".")[2].partition("[")[0] for base in one.bases]


def test_no_file_is_too_long() -> None:
    assert {name for name in modules() if source(name).count("\n") > LINES} == LONG


def test_no_class_does_everything() -> None:
    found = set().union(*(large(name, source(name)) for name in modules()))
    assert found - CALLS == LARGE
    assert found >= CALLS  # or it is no exception any more


def test_no_code_is_shared_by_inheritance() -> None:
    found = set().union(*(inherited(name, source(name)) for name in modules()))
    assert found == INHERITED


def test_control_what_is_too_large_is_seen() -> None:
    def of(count: int) -> str:
        plain = "".join(f"    def f{number}(self): ...\n" for number in range(count - 2))
        others = "    async def g(self): ...\n    @property\n    def p(self): ...\n"
        return f"class A:\n    x: int = 0\n{plain}{others}"

    assert large("m", of(METHODS)) == set()
    assert large("m", of(METHODS + 1)) == {"m.A"}
    inner = textwrap.indent(of(METHODS + 1), "    ")
    assert large("m", f"def f():\n{inner}") == {"m.A"}


def test_control_inheritance_is_seen() -> None:
    assert inherited("m", "class A(Other, names.Relay): ...") == {"m.A"}
    assert inherited("m", "class A(Base[int]): ...") == {"m.A"}
    assert inherited("m", "class A(Protocol, Database): x: Base") == set()
