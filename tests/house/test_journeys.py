"""A reader's way through the code gets no longer. Its goals: a save at most 90 moves over 11 files,
a rotten open 150 over 9, a repair 200 over 10."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from journeys import JOURNEYS, Journey, travelled

from ckptfs.disk import locks

TODAY = {
    "close to settle": Journey(moves=275, files=50),
    "rotten open": Journey(moves=420, files=34),
}


@pytest.mark.parametrize("name", TODAY)  # a repair looks at the machine's mounts, as many as it has
def test_no_journey_gets_longer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_report", None)  # what checks them is not on the way
    found = JOURNEYS[name](tmp_path)
    assert found.moves <= TODAY[name].moves and found.files <= TODAY[name].files, found


def test_control_moves_and_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def f(g): return g() + h() + h()\ndef h(): return 1\n")
    (tmp_path / "two.py").write_text("def g(): return 1\n")
    modules = []
    for name in ("one", "two"):
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        assert spec is not None and spec.loader is not None
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    with travelled(tmp_path) as way:
        modules[0].f(modules[1].g)
    assert sys.getprofile() is None
    assert way.journey == Journey(moves=2, files=2)  # from f to g, and to h
