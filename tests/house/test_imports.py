"""Imports run one way, and one module speaks to the operating system."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
FOLDERS = {"ckptfs": "ckptfs", "mount": "ckptfs.mount", "tools": "ckptfs.tools"}
LAYERS = {
    **dict.fromkeys(["errors", "shown", "threads", "units"], 0),
    **dict.fromkeys(
        ["protocol", "osfs", "structure", "format", "digest", "sums", "keyed", "zeros"], 1
    ),
    **dict.fromkeys(
        ["parts", "layout", "history", "ordering", "staged", "growth", "committed", "commit"], 2
    ),
    **dict.fromkeys(["evidence", "lineages", "names"], 2),
    **dict.fromkeys(
        ["verify", "walk", "guard", "sets", "pipeline", "writeback", "sharing", "usage", "events"],
        3,
    ),
    **dict.fromkeys(["remembered", "expendable", "room", "alarms", "tally"], 3),
    "orphans": 3,
    "store": 4,
    **dict.fromkeys(["fsck", "adoption", "scrub"], 4),
    "mount": 5,
    "tools": 5,
    "cli": 6,
    "__init__": 6,
    "__main__": 7,
}
SYSTEM = {"os", "fcntl", "shutil", "subprocess", "ctypes", "xattr", "pathlib"}
FREE = {"osfs.py", "cli.py"}  # the filesystem; the top layer, which starts daemons and shells
SOURCES = sorted(path for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py"))


def imported(module: str, source: str) -> set[str]:
    """Dotted names of all that the module imports, also within functions and for types."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                whole = ".".join([*package, *filter(None, [node.module])])
            found |= {f"{whole}.{alias.name}" for alias in node.names}
    return found


def absolute_to_itself(module: str, source: str) -> list[str]:
    """Imports of its own top folder by the name that only an installation gives it."""
    top = ".".join(module.split(".")[:2])
    return [
        node.module or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        and not node.level
        and f"{node.module}.".startswith(f"{top}.")
    ]


def layer_of(module: str) -> int | None:
    """The layer of a dotted name below ckptfs; None outside."""
    package, _, rest = module.partition(".")
    if package != "ckptfs":
        return None
    return LAYERS.get(rest.partition(".")[0])


def upward(module: str, source: str) -> list[str]:
    here = layer_of(module)
    assert here is not None, f"{module} has no layer: give it one in LAYERS"
    above = [name for name in imported(module, source) if (layer_of(name) or 0) > here]
    # Neighbours in the top layers do not know each other.
    package = module.split(".")[1]
    if package in ("mount", "tools"):
        other = {"mount": "ckptfs.tools", "tools": "ckptfs.mount"}[package]
        above += [name for name in imported(module, source) if f"{name}.".startswith(f"{other}.")]
    return above


def system_calls(source: str) -> set[str]:
    return {name.partition(".")[0] for name in imported("", source)} & SYSTEM


def dotted(path: Path) -> str:
    folder, *rest = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest])


@pytest.mark.parametrize("top", ["mount", "tools"])
def test_a_folder_that_is_installed_elsewhere_is_relative_to_itself(top: str) -> None:
    paths = sorted((PROJECT / top).rglob("*.py"))
    assert [p.name for p in paths if absolute_to_itself(dotted(p), p.read_text())] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_imports_run_downward(path: Path) -> None:
    assert upward(dotted(path), path.read_text()) == []


@pytest.mark.parametrize("path", sorted((PROJECT / "ckptfs").rglob("*.py")), ids=lambda p: p.name)
def test_only_osfs_speaks_to_the_operating_system(path: Path) -> None:
    if path.name not in FREE:
        assert system_calls(path.read_text()) == set()


def test_no_import_cycle_within_the_store() -> None:
    graph = {
        path.stem: {
            name.split(".")[1]
            for name in imported(dotted(path), path.read_text())
            if name.startswith("ckptfs.")
        }
        for path in (PROJECT / "ckptfs").rglob("*.py")
    }
    done: set[str] = set()
    while ready := {name for name, below in graph.items() if below & set(graph) <= done} - done:
        done |= ready
    assert done == set(graph)


def test_control_wrong_imports_are_seen() -> None:
    assert upward("ckptfs.layout", "from ckptfs.store import Store") == ["ckptfs.store.Store"]
    assert upward("ckptfs.store", "def f():\n    import ckptfs.mount.kernel")
    assert upward("ckptfs.tools.bench", "from ckptfs.mount import operations")
    assert upward("ckptfs.mount.kernel.wire", "from ...store import x") == []
    assert upward("ckptfs.mount.kernel.wire", "from ...tools import x") == ["ckptfs.tools.x"]
    assert absolute_to_itself("ckptfs.tools.rig", "def f():\n    from ckptfs.tools import x")
    assert not absolute_to_itself("ckptfs.tools.rig", "from . import x\nfrom ckptfs import y")
    assert upward("ckptfs.commit", "from ckptfs import history, osfs") == []
    assert system_calls("from os import path\nimport fcntl as f") == {"os", "fcntl"}
