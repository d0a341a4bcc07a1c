"""Trees as deep as somebody cares to make them, and what changes while they are walked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import mounts
import pytest
from harness import open_descriptors
from mounts import Served

from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.records.walk import walk

_DEPTH = 1200  # more than Python recurses
_LONG_S = 180.0
_MAKE = """
import os, sys
os.chdir(sys.argv[1])
for _ in range(int(sys.argv[2])):
    os.mkdir("d")
    with open("top", "w") as file:
        file.write("x")
    os.chdir("d")
with open("deep.pt", "w") as file:
    file.write("x")
"""


@pytest.fixture
def deep(quick_dir: Path) -> Path:
    mounts.python(_MAKE, quick_dir, 200)
    return quick_dir


def test_all_are_found_with_few_descriptors(deep: Path, no_leaks: None) -> None:
    root = osfs.open_directory(str(deep))
    before, most, found = len(open_descriptors()), 0, []
    for path, status in walk(OsFs(), root):
        assert status is not None and status.st_size == 1
        found.append(path)
        most = max(most, len(open_descriptors()))
    assert found == sorted(found) and len(found) == len(set(found)) == 201
    assert most - before < 40
    os.close(root)


def test_an_end_on_the_way_leaves_no_descriptor(deep: Path, no_leaks: None) -> None:
    root = osfs.open_directory(str(deep))
    found = walk(OsFs(), root)
    assert next(found)[0].endswith("deep.pt")
    found.close()  # type: ignore[attr-defined]
    os.close(root)


def test_a_directory_that_is_moved_away_does_not_lead_elsewhere(deep: Path) -> None:
    outside = deep.with_name(f"{deep.name}-outside")
    outside.mkdir()
    (outside / "secret").write_text("x")
    root = osfs.open_directory(str(deep))
    found = walk(OsFs(), root)
    next(found)
    half = deep / "/".join("d" * 100)
    half.rename(outside / "d")
    rest = [path for path, _ in found]
    assert not any(path.endswith("secret") for path in rest)
    assert {"top", "d/top"} <= set(rest)
    os.close(root)
    (outside / "d").rename(half)
    shutil.rmtree(outside)


def test_commands_and_scrub_take_any_depth(disk_dir: Path) -> None:
    with mounts.served(disk_dir, "--scrub-interval=1s", limit_s=_LONG_S) as served:
        mounts.python(_MAKE, served.path, _DEPTH, limit_s=_LONG_S)
        served.wait_until(lambda: _scrubbed(served) == {"ok": _DEPTH + 1}, limit_s=60)
        for command in ("verify", "status", "log", "export-sums"):
            done = mounts.ckptfs(command, served.path)
            assert (done.returncode, done.stderr) == (0, ""), (command, done)
        mounts.shell("rm -r d", served.path, limit_s=_LONG_S)  # pytest recurses


def _scrubbed(served: Served) -> object:
    return served.status()["scrub"]["last"].get("found")
