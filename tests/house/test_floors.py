"""A folder is a floor: it imports itself and the floors below, never up, sideways, in a circle."""

from __future__ import annotations

import ast

import pytest
from code_of import TOPS, imported, imports_of, modules, source

FLOORS = (
    "errors listeners modes shown units structure",
    "disk",
    "records",
    "history telling",
    "versions",
    "checking",
    "room",
    "sets",
    "store",
    "upkeep",
    "mount.processes",
    "mount.view",
    "mount.writers",
    "mount.sets",
    "mount.operations",
    "mount.kernel mount.libfuse",
    "mount.daemon",
    "mount tools.harness",
    "tools",
    "cli",
    "__main__",
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names.split()}
SYSTEM = {"os", "fcntl", "shutil", "subprocess", "ctypes", "xattr", "pathlib"}
# Those that speak to the operating system for all; the command line, which starts daemons.
FREE = {"ckptfs.disk.filesystem", "ckptfs.disk.osfs", "ckptfs.disk.real", "ckptfs.__main__"}


def floor(module: str) -> str:
    steps = module.split(".")[1:]
    within = ".".join(steps[:2])
    return within if within in LEVEL else steps[0]


def wrong(module: str, text: str) -> list[str]:
    """What it imports of floors that are not below its own."""
    here = floor(module)
    names = {name for name in imported(module, text) if name.startswith("ckptfs.")}
    return sorted(name for name in names if floor(name) != here and not _is_below(name, here))


def _is_below(name: str, here: str) -> bool:
    of_tools = here.partition(".")[0] == "tools"
    stranger = of_tools and name.startswith("ckptfs.mount")  # they start it as users do
    return LEVEL.get(floor(name), -1) < LEVEL[here] and not stranger


def system_calls(text: str) -> set[str]:
    return {name.partition(".")[0] for name in imported("", text)} & SYSTEM


def absolute_to_itself(module: str, text: str) -> list[str]:
    """Imports of its own top folder by the name that only an installation gives it."""
    top = ".".join(module.split(".")[:2])
    return [
        node.module or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
        and not node.level
        and f"{node.module}.".startswith(f"{top}.")
    ]


def test_every_file_has_a_floor() -> None:
    assert {floor(name) for name in modules() if "." in name} == set(LEVEL)
    assert [name for name in modules() if floor(f"{name}.") == "mount"] == ["ckptfs.mount"]


def test_imports_run_downward() -> None:
    found = {name: wrong(name, source(name)) for name in modules() if "." in name}
    assert {name: up for name, up in found.items() if up} == {}


def test_only_the_filesystem_speaks_to_the_operating_system() -> None:
    top = LEVEL["mount.processes"]
    below = [name for name in modules() if "." in name and LEVEL[floor(name)] < top]
    found = {name: system_calls(source(name)) for name in below if name not in FREE}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize("top", ["mount", "tools"])
def test_a_folder_that_is_installed_elsewhere_is_relative_to_itself(top: str) -> None:
    names = [name for name in modules() if f"{name}.".startswith(f"{TOPS[top]}.")]
    assert [name for name in names if absolute_to_itself(name, source(name))] == []


def circles(graph: dict[str, set[str]]) -> set[str]:
    """What is left when everything is taken away that imports nothing that is left."""
    left = dict(graph)
    while ends := {name for name, below in left.items() if not below & set(left)}:
        left = {name: below for name, below in left.items() if name not in ends}
    return set(left)


def test_there_is_no_circle_among_files() -> None:
    assert circles({name: imports_of(name) for name in modules()}) == set()


def test_control_wrong_imports_are_seen() -> None:
    assert wrong("ckptfs.records.layout", "from ckptfs.store import Store") == [
        "ckptfs.store.Store"
    ]
    assert wrong("ckptfs.store", "def f():\n    import ckptfs.mount.kernel")
    assert wrong("ckptfs.history.sharing", "from ckptfs.telling import events")
    assert wrong("ckptfs.tools.bench", "from ckptfs.mount import operations")
    assert wrong("ckptfs.mount.kernel.wire", "from ...tools import x") == ["ckptfs.tools.x"]
    assert wrong("ckptfs.mount.kernel.wire", "from ...store import x") == []
    assert wrong("ckptfs.mount.kernel.wire", "from ..libfuse import x")
    assert wrong("ckptfs.mount.view.nodes", "from ..operations import x")
    assert wrong("ckptfs.mount.daemon.run", "from ..kernel import x") == []
    assert wrong("ckptfs.versions.commit", "from ckptfs.disk import osfs") == []
    assert absolute_to_itself("ckptfs.tools.rig", "def f():\n    from ckptfs.tools import x")
    assert not absolute_to_itself("ckptfs.tools.rig", "from . import x\nfrom ckptfs import y")
    assert system_calls("from os import path\nimport fcntl as f") == {"os", "fcntl"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}
