"""`verify DIR PATH…`: of a folder, all that history knows below it.

Bugs these close: a missing file that `verify DIR` reports and `verify DIR FOLDER` did not, which
is how one checkpoint is looked at; and a repair that reached less, or more, than was named.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from harness import NEW, OLD, rot, store_on
from verdicts import ckptfs, conditions, rows_of

FILES = ("a.pt", "run/b.pt", "run/sub/c.pt", "runner/d.pt")


def build(directory: Path) -> None:
    """Files with a past, in folders and beside them."""
    store = store_on(directory)
    for path in FILES:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        for data in (OLD, NEW):
            store.put(path, data)
    store.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints"
    path.mkdir()
    build(path)
    return path


@contextlib.contextmanager
def served_or_not(directory: Path, served: bool) -> Iterator[Path]:
    """Where the files themselves lie: what happens there happens outside of ckptfs."""
    with mounts.served(directory) if served else contextlib.nullcontext() as mount:
        yield mount.below if mount else directory


def missing(directory: Path, *paths: object) -> list[str]:
    found = conditions(directory, *paths)
    assert set(found.values()) <= {"missing"}, found
    return sorted(found)


@pytest.mark.parametrize("served", [False, True])
def test_a_missing_file_is_reported_for_each_folder_above_it(served: bool, directory: Path) -> None:
    with served_or_not(directory, served) as below:
        (below / "run/sub/c.pt").unlink()
        for path in ("run", "run/sub", "run/sub/c.pt"):
            assert missing(directory, path) == ["run/sub/c.pt"], path
            ckptfs("verify", directory, path, code=4)
        for path in ("runner", "a.pt", "run/b.pt"):
            assert missing(directory, path) == [], path
            ckptfs("verify", directory, path, code=0)


@pytest.mark.parametrize("served", [False, True])
def test_a_missing_folder_is_all_that_was_in_it(served: bool, directory: Path) -> None:
    with served_or_not(directory, served) as below:
        shutil.rmtree(below / "run")
        both = ["run/b.pt", "run/sub/c.pt"]
        assert missing(directory, "run") == both
        assert missing(directory, "run/sub") == both[1:]
        assert missing(directory, "run/sub/c.pt", "run", "a.pt", "run") == both, "each once"


def test_history_of_a_folder_is_looked_at(directory: Path) -> None:
    kept = sorted((directory / ".ckptfs/history").glob("*/*"))
    of_run = [path for path in kept if b"run/" in os.getxattr(path.parent, "user.ckptfs")]
    for path in of_run:
        rot(path)
    found = conditions(directory, "run")
    assert sorted(found) == sorted(str(path.relative_to(directory)) for path in of_run)
    assert set(found.values()) == {"damaged"} and conditions(directory, "runner") == {}
    shutil.rmtree(directory / "run")
    assert list(conditions(directory, "run").values()).count("damaged") == len(of_run)


def test_what_never_was_is_no_such_file(directory: Path) -> None:
    for path in ("nosuch.pt", "nosuch/x", "a.pt/x"):
        assert conditions(directory, path) == {path: "missing"}
        assert "no such file" in ckptfs("verify", directory, path, code=4)


def test_a_file_that_was_moved_is_missing_where_it_was_named_only(directory: Path) -> None:
    (directory / "run/b.pt").rename(directory / "moved.pt")
    assert missing(directory) == []
    assert missing(directory, "run") == []
    assert missing(directory, "run/b.pt") == ["run/b.pt"]


@pytest.mark.parametrize("what", ["a directory", "a symlink", "a file in place of its folder"])
def test_something_else_in_its_place_is_not_the_file(what: str, directory: Path) -> None:
    if what == "a file in place of its folder":
        shutil.rmtree(directory / "run/sub")
        store = store_on(directory)
        store.put("run/sub", NEW)
        store.close()
    else:
        (directory / "run/sub/c.pt").unlink()
        if what == "a directory":
            (directory / "run/sub/c.pt").mkdir()
        else:
            (directory / "run/sub/c.pt").symlink_to("/nowhere")
    assert missing(directory) == ["run/sub/c.pt"]
    assert missing(directory, "run") == ["run/sub/c.pt"]


# --- how a path is written -----------------------------------------------------------------------


def verified(directory: str | Path, cwd: Path, *paths: object) -> str:
    command = [sys.executable, "-m", "ckptfs", "verify", str(directory), *map(str, paths)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("served", [False, True])
def test_each_way_to_write_a_path(served: bool, directory: Path) -> None:
    with served_or_not(directory, served) as below:
        (below / "run/sub/c.pt").unlink()
        (below / "latest").symlink_to("run")
        outside, run = directory.parent, directory / "run"
        for cwd, top, path in (
            (outside, directory, "./run/"),
            (outside, directory, "run//sub/../"),
            (outside, directory, directory / "run"),
            (outside, directory, "latest"),
            (outside, directory.name, f"{directory.name}/run"),
            (directory, ".", "run"),
            (directory, directory, "./run/"),
            (run, "..", "sub/c.pt"),
            (run, directory, "."),
            (run, "..", "sub/"),
            (outside, directory, "."),
        ):
            told = verified(top, cwd, path)
            assert "run/sub/c.pt: deleted outside" in told, (cwd, top, path, told)
        for path in ("..", "../x", "/etc", ""):
            ckptfs("verify", directory, path, code=16)


def test_a_mount_at_a_place_of_its_own(directory: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "there"
    mountpoint.mkdir()
    mount = mounts.Served(mountpoint)
    with mounts.ending(mount):
        done = mount.ckptfs("mount", directory, mountpoint, "--log", mount.log)
        assert done.returncode == 0, done.stderr
        mount.pid = mount.status()["pid"]
        (directory / "run/b.pt").unlink()
        for top, path in (
            (directory, "run"),
            (mountpoint, "run"),
            (mountpoint, directory / "run"),
            (directory, mountpoint / "run"),
        ):
            assert missing(top, path) == ["run/b.pt"], (top, path)


# --- repair --------------------------------------------------------------------------------------


@pytest.mark.parametrize("served", [False, True])
def test_repair_brings_back_what_was_named_and_no_more(served: bool, directory: Path) -> None:
    with served_or_not(directory, served) as below:
        for path in FILES:
            (below / path).unlink()
        ckptfs("verify", "--repair", directory, "run", code=1)
        assert missing(directory) == ["a.pt", "runner/d.pt"]
        assert (directory / "run/sub/c.pt").read_bytes() == OLD
        told = ckptfs("verify", "--repair", directory, code=4)
        assert "verify --repair" in told and missing(directory) == ["a.pt", "runner/d.pt"]
        ckptfs("verify", "--repair", directory, ".", code=1)
        assert missing(directory) == []


@pytest.mark.parametrize("served", [False, True])
def test_repair_makes_the_folder_that_is_gone(served: bool, directory: Path) -> None:
    """For the owner of the file alone: how the folder was is not known."""
    with served_or_not(directory, served) as below:
        os.chown(below / "run/sub/c.pt", 12345, 12346)
        for kept in (below / ".ckptfs/history").glob("*/*"):
            os.chown(kept, 12345, 12346)
        shutil.rmtree(below / "run")
        assert not (directory / "run").exists(), "which the kernel remembers"
        ckptfs("verify", "--repair", directory, "run/sub", code=1)
        assert missing(directory) == ["run/b.pt"]
        assert (directory / "run/sub/c.pt").read_bytes() == OLD
        for folder in ("run", "run/sub"):
            status = (directory / folder).stat()
            assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o700, 12345, 12346)
        rows, summary = rows_of(directory, "--repair", "run")
        assert summary["repaired"] == 1 and rows[-1]["repair"], rows


@pytest.mark.parametrize("served", [False, True])
def test_a_folder_is_made_for_nothing(served: bool, directory: Path) -> None:
    """Only where there is something to bring back to it."""
    with served_or_not(directory, served) as below:
        for kept in (below / ".ckptfs/history").glob("*/*"):
            rot(kept)
        shutil.rmtree(below / "run")
        ckptfs("verify", "--repair", directory, "run", "nosuch/x", code=4)
        assert not (below / "run").exists() and not (below / "nosuch").exists()


def test_adopt_of_a_folder_accepts_what_is_gone_there(directory: Path) -> None:
    (directory / "run/b.pt").unlink()
    (directory / "a.pt").unlink()
    assert "1 adopted" in ckptfs("adopt", directory, "run", code=0)
    assert missing(directory) == ["a.pt"]


def test_adopt_from_a_list_of_files_with_a_past(directory: Path) -> None:
    sums = directory.parent / "sha256.txt"
    sums.write_bytes(subprocess.check_output(["sha256sum", "a.pt"], cwd=directory))
    told = ckptfs("adopt", directory, "--from", sums, code=0)
    assert "0 adopted" in told and "not" not in told
