"""The code of the project, as its rules look at it: files by their installed names, and imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).parents[2]
TOPS = {"ckptfs": "ckptfs", "mount": "ckptfs.mount", "tools": "ckptfs.tools"}


@cache
def modules() -> dict[str, Path]:
    """All that is installed: its dotted name, its file."""
    found = {}
    for top, dotted in TOPS.items():
        for path in sorted((PROJECT / top).rglob("*.py")):
            steps = path.relative_to(PROJECT / top).with_suffix("").parts
            found[".".join([dotted, *steps]).removesuffix(".__init__")] = path
    return found


def source(module: str) -> str:
    return modules()[module].read_text()


def imported(module: str, text: str) -> set[str]:
    """Dotted names of all that the module imports, also relative, in functions and for types."""
    return {name for node in ast.walk(ast.parse(text)) for name in _names(module, node)}


def imports_of(module: str) -> set[str]:
    """The modules of the project that it imports, but for itself and what it is in."""
    found = {_module(name) for name in imported(module, source(module))} - {""}
    return {name for name in found if not f"{module}.".startswith(f"{name}.")}


def _names(module: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        at = [node.module] if node.module else []
        if node.level:
            is_package = module in modules() and modules()[module].name == "__init__.py"
            steps = module.split(".")
            at = steps[: len(steps) - node.level + is_package] + at
        yield from (".".join([*at, alias.name]) for alias in node.names)


def _module(name: str) -> str:
    """The module that a dotted name is, or is in; empty where that is none of the project."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name
