"""Opens and changes of a name that other processes take away, replace and save over at the same
time. Of a plain directory they never answer ESTALE, and ENOENT only where the name was gone: the
kernel looks a path up again once per call, so the mount has one ESTALE to give."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import CHILD_LIMIT_S, ckptfs, served

_RACER = """
import contextlib, collections, errno, json, os, sys, time
role, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
mine, count = f"by-{os.getpid()}", 0

def opened(flags):
    f = os.open(name, flags, 0o644)
    os.fstat(f)
    if flags & os.O_ACCMODE:
        os.write(f, b"x" * 200)
    os.close(f)

def put(onto):
    f = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(f, b"y" * 100)
    os.close(f)
    os.rename(mine, onto)

def cut():
    global count
    count += 1
    os.truncate(name, count % 3 * 50)

roles = {
    "away": lambda: os.rename(name, "target"),
    "unlink": lambda: os.unlink(name),
    "replace": lambda: put(name),
    "save over": lambda: opened(os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    "create": lambda: opened(os.O_RDWR | os.O_CREAT),
    "truncate": lambda: opened(os.O_WRONLY | os.O_TRUNC),
    "edit": lambda: opened(os.O_RDWR),
    "read": lambda: opened(os.O_RDONLY),
    "create to read": lambda: opened(os.O_RDONLY | os.O_CREAT),
    "cut": cut,
    "chmod": lambda: os.chmod(name, 0o644),
    "touch": lambda: os.utime(name),
    "label": lambda: os.setxattr(name, "user.label", b"1"),
    "labels": lambda: os.listxattr(name),
}
found, end = collections.Counter(), time.monotonic() + seconds
while time.monotonic() < end:
    try:
        roles[role]()
        found[""] += 1
    except OSError as error:
        found[errno.errorcode[error.errno]] += 1
print(json.dumps(found))
"""

# What HDF5 does: it looks whether it may write, and then makes the file anew.
_REOPENER = """
import json, os, sys
name, rounds, wrong = sys.argv[1], int(sys.argv[2]), []
for n in range(rounds):
    looked = os.open(name, os.O_RDWR)
    os.fstat(looked)
    os.close(looked)
    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    sizes = [os.fstat(file).st_size]
    os.fchmod(file, 0o600 + n % 2)
    os.setxattr(file, "user.round", b"%d" % n)
    sizes += [os.write(file, b"z" * (n + 1)), os.fstat(file).st_size]
    os.close(file)
    if sizes != [0, n + 1, n + 1]:
        wrong.append(sizes)
    found = os.stat(name).st_mode & 0o777, os.getxattr(name, "user.round")
    if found != (0o600 + n % 2, b"%d" % n):
        wrong.append(str(found))
print(json.dumps(wrong))
"""

_CREATING = ("save over", "create", "create to read")
_OF_WHAT_IS_THERE = (*_CREATING, "truncate", "edit", "read")
_CHANGING = ("cut", "chmod", "touch", "label", "labels")
_SECONDS = 0.5


def race(directory: Path, name: str, *roles: str) -> list[collections.Counter[str]]:
    """What each of the roles was answered; "" is success."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, role, name, str(_SECONDS)],
            cwd=directory,
            stdout=subprocess.PIPE,
        )
        for role in roles
    ]
    answers = [racer.communicate(timeout=CHILD_LIMIT_S)[0] for racer in racers]
    checked = ckptfs("verify", directory).stdout
    found = {line.split()[0] for line in checked.splitlines()}  # "broken": no .pt file is written
    assert not found & {"damaged", "stale", "modified", "missing", "unreachable"}, checked
    assert not _kept_open(directory)
    return [collections.Counter(json.loads(answer)) for answer in answers]


def _kept_open(directory: Path) -> list[str]:
    """What the daemon has open though nobody can use it any more: versions whose name is gone."""
    pid = json.loads((directory / ".ckptfs/status.json").read_text())["pid"]
    found: list[str] = []
    for _ in range(30):  # what the last close left to do, and who was sent to look again
        found = []
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(link))
        found = [each for each in found if "/stage/" in each and each.endswith("(deleted)")]
        if not found:
            break
        time.sleep(0.1)
        (directory / "other").write_bytes(b"")
    return found


@pytest.fixture(
    scope="module",
    params=[("atomic_dirsync",), ("atomic_nodirsync",), ("unsafe",), ("atomic_dirsync", "relay")],
    ids=" ".join,
)
def contested(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    mode, *relay = request.param
    options = ["--mode", mode, *(["--no-passthrough"] if relay else [])]
    directory = tmp_path_factory.mktemp("races") / "d"
    directory.mkdir()
    with served(directory, *options, limit_s=120):
        yield directory


# one that is written in versions, and one in place
@pytest.mark.parametrize("name", ["k.pt", "k.lock"])
@pytest.mark.parametrize("other", ["away", "unlink"])
def test_a_create_never_misses_the_name_that_others_take_away(
    contested: Path, name: str, other: str
) -> None:
    *creators, _ = race(contested, name, *_CREATING, other)
    for role, found in zip(_CREATING, creators, strict=True):
        assert set(found) == {""}, (role, found)


@pytest.mark.parametrize("name", ["k.pt", "k.lock"])
@pytest.mark.parametrize("other", ["replace", "save over"])
@pytest.mark.parametrize("roles", [_OF_WHAT_IS_THERE, _CHANGING], ids=["opens", "changes"])
def test_a_name_that_is_always_there_is_never_missed(
    contested: Path, name: str, other: str, roles: tuple[str, ...]
) -> None:
    with contextlib.suppress(FileExistsError):
        (contested / name).write_bytes(b"first")
    *racers, _ = race(contested, name, *roles, other)
    for role, found in zip(roles, racers, strict=True):
        assert set(found) == {""}, (role, found)


@pytest.mark.parametrize("name", ["k.pt", "k.lock"])
def test_a_descriptor_tells_of_the_file_that_it_has_open(contested: Path, name: str) -> None:
    """An open for writing that is given up and another one right after it: the kernel has looked
    the first one's version up, which ends meanwhile, and opens by its node what comes next."""
    (contested / name).write_bytes(b"first")
    command = [sys.executable, "-c", _REOPENER, name, "100"]
    run = subprocess.run(command, cwd=contested, stdout=subprocess.PIPE, timeout=CHILD_LIMIT_S)
    assert json.loads(run.stdout) == []
