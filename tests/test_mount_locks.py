"""Advisory locks hold by path, across the versions of a file.

The bug this closes: each open for writing has a version, hence an inode, of its own, and the kernel
keeps locks by inode; two processes that opened 'w' and locked would both have got the lock.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import mounts
import pytest

TRY = """
import fcntl, sys
how, mode, path = sys.argv[1:]
f = open(path, mode)
try:
    if how == "flock":
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("got it")
except BlockingIOError:
    print("locked")
"""
WAIT = """
import fcntl, sys
f = open(sys.argv[1], "r+")
print("waiting", flush=True)
fcntl.lockf(f, fcntl.LOCK_EX)
print("got it", flush=True)
sys.stdin.read()
"""
KINDS = pytest.mark.parametrize("how", ["flock", "posix"])


def _lock(how: str, file: object) -> None:
    (fcntl.flock if how == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@KINDS
@pytest.mark.parametrize("name", ["model.pt", "train.lock"])
def test_two_private_versions_share_one_lock(mount: mounts.Served, how: str, name: str) -> None:
    path = mount.path / name
    with open(path, "w") as file:
        _lock(how, file)
        assert mounts.python(TRY, how, "w", path) == "locked\n"
        assert mounts.python(TRY, how, "r+", path) == "locked\n"
    assert mounts.python(TRY, how, "r+", path) == "got it\n"


@KINDS
def test_control_without_a_lock_it_is_free(mount: mounts.Served, how: str) -> None:
    with open(mount.path / "model.pt", "w"):
        assert mounts.python(TRY, how, "w", mount.path / "model.pt") == "got it\n"


def test_ranges_are_split_and_do_not_conflict(mount: mounts.Served) -> None:
    path = mount.path / "x.db"
    path.write_bytes(bytes(100))
    tried = """
import fcntl, sys
f = open(sys.argv[1], "r+")
for start, size in ((0, 10), (10, 10), (20, 10)):
    try:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, size, start)
        print("free")
    except BlockingIOError:
        print("locked")
"""
    with open(path, "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 30, 0)
        fcntl.lockf(file, fcntl.LOCK_UN, 10, 10)
        assert mounts.python(tried, path).split() == ["locked", "free", "locked"]


def test_a_waiting_lock_is_granted_at_close_and_ended_by_a_signal(mount: mounts.Served) -> None:
    path = mount.path / "x.db"
    path.write_bytes(b"x")
    with open(path, "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        granted, killed = (_waiting(path) for _ in range(2))
        killed.kill()
        assert killed.wait(mounts.CHILD_LIMIT_S) != 0
        assert granted.poll() is None
    assert granted.stdout is not None
    assert granted.communicate(timeout=mounts.CHILD_LIMIT_S)[0] == "got it\n"


def _waiting(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WAIT, path]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


def test_a_lock_ends_with_its_killed_holder(mount: mounts.Served) -> None:
    path = mount.path / "x.db"
    path.write_bytes(b"x")
    holder = _waiting(path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "got it\n"
    assert mounts.python(TRY, "posix", "r+", path) == "locked\n"
    holder.kill()
    holder.wait(mounts.CHILD_LIMIT_S)
    assert mounts.python(TRY, "posix", "r+", path) == "got it\n"


def test_a_lock_follows_a_rename(mount: mounts.Served) -> None:
    path = mount.path / "a.db"
    path.write_bytes(b"x")
    with open(path, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        path.rename(mount.path / "b.db")
        assert mounts.python(TRY, "flock", "r+", mount.path / "b.db") == "locked\n"
        assert mounts.python(TRY, "flock", "w", path) == "got it\n"
