"""verify beside a mount that is being written finds no damage where there is none.

``CKPTFS_LOAD_S=600`` makes the ten minutes of a long run.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from harness import rot

from ckptfs.checking.examine import BAD

_LOAD_S = float(os.environ.get("CKPTFS_LOAD_S", "10"))

# Everything that training directories see, for ever, in one directory.
WRITER = """
import mmap, os, random, shutil, sqlite3, sys
os.chdir(sys.argv[1])
pick = random.Random(sys.argv[2])
me = sys.argv[2]
os.mkdir(me)

def overwrite():
    with open(f"{me}/{pick.randrange(5)}.pt", "wb") as file:
        file.write(pick.randbytes(pick.choice([10, 5000, 3 << 20])))

def add():
    with open(f"{me}/grows.bin", "ab") as file:
        file.write(pick.randbytes(pick.choice([10, 2 << 20])))
    if os.path.getsize(f"{me}/grows.bin") > 40 << 20:
        os.unlink(f"{me}/grows.bin")

def store():
    with open(f"{me}/mapped.npy", "w+b") as file:
        file.truncate(1 << 20)
        view = mmap.mmap(file.fileno(), 1 << 20)
    for _ in range(20):
        view[pick.randrange(1 << 20)] = 7
    view.close()

def by_rename():
    with open(f"{me}/tmp", "wb") as file:
        file.write(pick.randbytes(100_000))
    os.rename(f"{me}/tmp", f"{me}/{pick.randrange(3)}.safetensors")

def directory():
    os.mkdir(f"{me}/tmp-checkpoint")
    for rank in range(3):
        with open(f"{me}/tmp-checkpoint/{rank}.distcp", "wb") as file:
            file.write(pick.randbytes(200_000))
    name = f"{me}/checkpoint-{pick.randrange(3)}"
    shutil.rmtree(name, ignore_errors=True)
    os.rename(f"{me}/tmp-checkpoint", name)

def edit():
    try:
        with open(f"{me}/{pick.randrange(5)}.pt", "r+b") as file:
            file.seek(pick.randrange(4096))
            file.write(b"edited")
    except FileNotFoundError:
        pass

def metadata():
    name = f"{me}/{pick.randrange(5)}.pt"
    try:
        os.utime(name)
        os.chmod(name, 0o640)
        os.setxattr(name, "user.note", b"x")
    except FileNotFoundError:
        pass

def database():
    with sqlite3.connect(f"{me}/db.sqlite") as db:
        db.execute("create table if not exists t (x)")
        db.execute("insert into t values (?)", (pick.random(),))

while True:
    pick.choice([overwrite, add, store, by_rename, directory, edit, metadata, database])()
    print(end=".", flush=True)
"""


@contextlib.contextmanager
def written(directory: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory), name], stdout=subprocess.PIPE
        )
        for name in ("one", "two")
    ]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate(timeout=30)


def verified(directory: Path) -> Iterator[dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-m", "ckptfs", "verify", "--json", str(directory)],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode in (0, 4), done
    *rows, _summary = map(json.loads, done.stdout.splitlines())
    yield from rows


@pytest.mark.parametrize("relayed", [False, True], ids=["passthrough", "relayed"])
def test_C5_no_false_damage_under_load(relayed: bool, disk_dir: Path) -> None:
    told: Counter[str] = Counter()
    runs = 0
    options = ["--no-passthrough"] if relayed else []
    with mounts.served(disk_dir, *options, limit_s=_LOAD_S + 120), written(disk_dir) as writers:
        deadline = time.monotonic() + _LOAD_S / 2
        while time.monotonic() < deadline:
            for row in verified(disk_dir):
                told[row["condition"]] += 1
                assert row["condition"] not in {condition.value for condition in BAD}, row
            runs += 1
        assert all(writer.poll() is None for writer in writers)
    print(f"{runs} runs: {dict(told)}")
    assert runs >= 2 and told["ok"] > 20


def test_control_damage_is_seen_under_load(disk_dir: Path) -> None:
    with mounts.served(disk_dir) as served, written(disk_dir):
        (disk_dir / "still.pt").write_bytes(os.urandom(100_000))
        rot(served.below / "still.pt", 5)
        found = {row["path"]: row["condition"] for row in verified(disk_dir)}
        assert found["still.pt"] == "damaged"
