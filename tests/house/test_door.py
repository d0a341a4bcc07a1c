"""The store is the only door: who is above it asks the store, not what the store is made of."""

from __future__ import annotations

import ast
import re

from code_of import imported, modules, source

INSIDE = tuple(f"ckptfs.{each}" for each in ("versions", "checking", "room", "sets", "store"))
VERSIONS = "ckptfs.versions."
# All of ``life`` is a table; of the others, what a version is.
DATA = {
    "ckptfs.versions.staged.Base",
    "ckptfs.versions.staged.Fingerprint",
    "ckptfs.versions.staged.Inode",
    "ckptfs.versions.staged.Staged",
    "ckptfs.versions.staged.fingerprint",
}


def is_inside(module: str) -> bool:
    return module.startswith(INSIDE)


def reaches_in(text: str) -> bool:
    """``….store.core``, which is what a store is made of, or what is private to its parts."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    return any(re.search(r"\bstore\.(core|\w+\._\w+)$", ast.unparse(node)) for node in nodes)


def no_data(module: str, text: str) -> set[str]:
    """What it imports of the versions that is no data."""
    names = {name for name in imported(module, text) if f"{name}.".startswith(VERSIONS)}
    return {name for name in names if name not in DATA and not name.startswith(f"{VERSIONS}life.")}


def test_nobody_reaches_into_the_store() -> None:
    outside = [name for name in modules() if not is_inside(name)]
    assert {name for name in outside if reaches_in(source(name))} == set()


def test_of_versions_only_data_is_known_outside() -> None:
    found = {name: no_data(name, source(name)) for name in modules() if not is_inside(name)}
    assert {name: made for name, made in found.items() if made} == {}


def test_control_ways_around_the_door_are_seen() -> None:
    assert reaches_in("def f(self):\n    self.store.core.lineages.look(1)")
    assert reaches_in("x = store.core")
    assert reaches_in("store.history._orphans.settle()")
    assert not reaches_in("core = store.saves.fill('core')")
    above = "ckptfs.mount.operations.files"
    assert no_data(above, "def f():\n    from ckptfs.versions.commit import Committer") == {
        "ckptfs.versions.commit.Committer"
    }
    assert no_data(above, "from ckptfs.versions import commit") == {"ckptfs.versions.commit"}
    assert no_data(above, "import ckptfs.versions.order")
    assert no_data(above, "from ...versions.extend import Growth")
    assert no_data(above, "from ckptfs.versions import *")
    assert not no_data(above, "from ckptfs.versions.life import State")
    assert not no_data(above, "from ckptfs.versions.staged import Base, Staged")
    assert not no_data(above, "from ..writers.versions import Versions")
    assert is_inside("ckptfs.versions.commit") and is_inside("ckptfs.store")
    assert not is_inside("ckptfs.mount.writers.versions")
