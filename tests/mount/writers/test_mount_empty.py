"""A file without a byte (`touch DONE`, `: > f`) is as durable at its close as any other.

Its FLUSH does not tell whether it was the last: a shell closes its duplicate before it writes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from actors import Actor, actors

from ckptfs.mount.processes import holders

_KILLED_AFTER = """
import os, sys, time
directory, daemon = sys.argv[1], int(sys.argv[2])
child = 0
def fork():
    global child
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
def new(fork=lambda: None, sync=lambda fd: None, flags=os.O_CREAT | os.O_EXCL):
    fd = os.open(directory + "/f", flags | os.O_WRONLY, 0o644)
    fork()
    sync(fd)
    os.close(fd)
def sync_dir():
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
{saved}
os.kill(daemon, 9)
if child:
    os.kill(child, 9)
"""
_SAVES = {
    "touched": "new()",
    "emptied": "new(flags=os.O_TRUNC)",
    "fsynced, a child has it": "new(fork, os.fsync)",
    "a child has it, the directory is fsynced": "new(fork); sync_dir()",
    "emptied, a child has it, the directory is fsynced": "new(fork, flags=os.O_TRUNC); sync_dir()",
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[mounts.Served]:
    directory = tmp_path / "served"
    directory.mkdir()
    with mounts.served(directory) as mount:
        yield mount


@pytest.fixture
def writer(served: mounts.Served) -> Iterator[Actor]:
    with actors(served.path, 1) as (actor,):
        yield actor


@pytest.mark.parametrize("saved", _SAVES)
def test_c2_an_empty_file_is_durable_at_its_close(served: mounts.Served, saved: str) -> None:
    if "emptied" in saved:
        (served.path / "f").write_text("old")
    subprocess.run(
        [
            sys.executable,
            "-c",
            _KILLED_AFTER.format(saved=_SAVES[saved]),
            served.path,
            str(served.pid),
        ],
        check=True,
        timeout=mounts.CHILD_LIMIT_S,
    )
    served.wait_until(lambda: not Path(f"/proc/{served.pid}/root").exists())
    served.start()
    assert (served.path / "f").read_bytes() == b""


def test_c1_a_duplicate_or_a_child_that_may_yet_write_keeps_it_from_its_name(
    served: mounts.Served, writer: Actor
) -> None:
    (served.path / "f").write_text("old")
    writer.do("import subprocess; f = os.open('f', os.O_WRONLY | os.O_TRUNC); g = os.dup(f)")
    writer.do("os.close(f)")
    assert (served.below / "f").read_text() == "old"
    writer.do("p = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=g); os.close(g)")
    assert (served.below / "f").read_text() == "old"
    writer.do("p.stdin.write(b'new'); p.stdin.close(); p.wait()")
    served.wait_until(lambda: (served.path / "f").read_text() == "new")


def test_an_idle_descriptor_does_not_empty_what_was_saved_by_its_name(
    served: mounts.Served, writer: Actor
) -> None:
    writer.do("import tempfile; fd, name = tempfile.mkstemp(dir='.')")
    writer.do("open(name, 'wb').write(b'saved'); os.fsync(fd)")
    writer.do("d = os.open('.', os.O_RDONLY); os.fsync(d); os.close(fd); os.fsync(d)")
    (name,) = (path for path in served.path.iterdir() if path.name.startswith("tmp"))
    assert name.read_bytes() == (served.below / name.name).read_bytes() == b"saved"
    assert os.stat(name).st_nlink == 1


def test_c6_who_opens_and_closes_beside_a_writer_does_not_commit_for_it(
    served: mounts.Served,
) -> None:
    """The bystander's empty version would be committed, and torn in place by the writer."""
    file = served.path / "last.pt"
    file.write_bytes(b"old")
    with actors(served.path, 2) as (writer, other):
        writer.do("f = os.open('last.pt', os.O_WRONLY | os.O_TRUNC)")
        for mode in ("a", "r+"):
            other.do(f"open('last.pt', '{mode}').close()")
        other.do("f = open('last.pt', 'a'); os.fsync(f.fileno()); f.close()")
        other.do("d = os.open('.', os.O_RDONLY); os.fsync(d)")
        assert (served.below / "last.pt").read_bytes() == b"old"
        writer.do("os.write(f, b'HALF')")
        writer.kill()
    served.wait_until(lambda: served.events("aborted"))
    assert (served.below / "last.pt").read_bytes() == b"old"


def test_what_a_child_is_to_write_is_not_committed_by_others(served: mounts.Served) -> None:
    (served.path / "f").write_text("old")
    with actors(served.path, 2) as (parent, other):
        parent.do("import subprocess; f = open('f', 'wb')")
        parent.do("p = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=f); f.close()")
        other.do("d = os.open('.', os.O_RDONLY); os.fsync(d)")
        assert (served.below / "f").read_text() == "old"
        parent.do("p.stdin.write(b'new'); p.stdin.close(); p.wait()")
    served.wait_until(lambda: (served.path / "f").read_text() == "new")


_HELD = """
import os, sys, threading
{code}
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("code", "held"),
    [
        ("f = open(sys.argv[1])", True),
        ("f = open(sys.argv[1]); g = os.dup(f.fileno()); f.close()", True),
        ("", False),
        ("f = [os.open(sys.argv[1], 0)] + [os.dup(0) for _ in range(5000)]", True),
        ("f = open(sys.argv[1]); t = threading.Thread(target=sys.stdin.read); t.start()", True),
    ],
    ids=["open", "duplicate", "closed", "among thousands", "threads"],
)
def test_who_holds_a_file(tmp_path: Path, code: str, held: bool) -> None:
    path = tmp_path / "f"
    path.touch()
    raise_limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (9000, 9000))\n"
    child = subprocess.Popen(
        [sys.executable, "-c", _HELD.format(code=raise_limit + code), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        assert holders.holds(child.pid, {path.stat().st_ino}) == held
        assert holders.holds_or_gave(os.getpid(), {path.stat().st_ino}) == held
    finally:
        child.kill()
        child.wait()
    assert not holders.holds(child.pid, {path.stat().st_ino})
