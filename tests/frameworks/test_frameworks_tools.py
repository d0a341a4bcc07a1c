"""What lives in training directories beside checkpoints: locks, databases, logs, repositories.

They are written in place, or closed like any other file; through the mount they work as on the
filesystem below.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from actors import actors
from mounts import Served, ckptfs, python, served, shell
from training import changes
from trees import Tree

# --- filelock ------------------------------------------------------------------------------------

_COUNT = """
import filelock, os, sys
pids = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        lock = getattr(filelock, sys.argv[1])(sys.argv[2])
        for _ in range(25):
            with lock:
                os.mkdir("inside")  # fails if another one is
                os.rmdir("inside")
        os._exit(0)
    pids.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
"""


@pytest.mark.parametrize("kind", ["FileLock", "SoftFileLock"])
@pytest.mark.parametrize("name", ["run.lock", "run.guard"], ids=["in-place", "versioned"])
def test_filelock_excludes_other_processes(tree: Tree, kind: str, name: str) -> None:
    pytest.importorskip("filelock")
    python(_COUNT, kind, name, cwd=tree.path)


def test_a_filelock_goes_with_its_killed_holder(tree: Tree) -> None:
    pytest.importorskip("filelock")
    with tree.actors(2) as (holder, other):
        for actor in (holder, other):
            actor.do("import filelock; lock = filelock.FileLock('run.lock')")
        holder.do("lock.acquire()")
        with_timeout = "lock.acquire(timeout=0)"
        assert "Timeout" in other.errno_of(with_timeout)
        holder.kill()
        other.do("lock.acquire(timeout=20)")


# --- sqlite --------------------------------------------------------------------------------------

_INSERTS = """
import sqlite3
db = sqlite3.connect('trials.db', isolation_level=None)
db.execute('pragma cache_size = 10')  # pages go to the file before the commit
db.execute('begin')
db.executemany('insert into trials values (?, ?)', ((n, 'x' * 1000) for n in range(2000)))
"""


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("relay", [(), ("--no-passthrough",)], ids=["passthrough", "relay"])
def test_sqlite_survives_a_writer_killed_in_a_transaction(
    disk_dir: Path, journal: str, relay: tuple[str, ...]
) -> None:
    with served(disk_dir, *relay) as mount:
        with actors(disk_dir, 2) as (writer, reader):
            reader.do("import sqlite3; db = sqlite3.connect('trials.db', isolation_level=None)")
            reader.do(f"db.execute('pragma journal_mode = {journal}')")
            reader.do("db.execute('create table trials (n integer, text text)')")
            reader.do("db.execute(\"insert into trials values (-1, 'kept')\")")
            writer.do(_INSERTS)
            names = {path.name for path in disk_dir.iterdir()}
            assert f"trials.db-{'journal' if journal == 'delete' else 'wal'}" in names
            writer.kill()
            assert reader.value("db.execute('select * from trials').fetchall()") == [[-1, "kept"]]
            assert reader.value("db.execute('pragma integrity_check').fetchone()") == ["ok"]
            reader.do("db.execute('insert into trials values (1, 2)'); db.close()")
        assert ckptfs("verify", disk_dir).returncode == 0
        mount.umount()
        with sqlite3.connect(disk_dir / "trials.db") as db:
            assert db.execute("select count(*) from trials").fetchone() == (2,)
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)


# --- TensorBoard ---------------------------------------------------------------------------------


def _scalars(path: Path) -> list[float]:
    """The values of "loss" in an event file: in each record the tag, the float, a checksum."""
    found = re.findall(rb"\x04loss\x15(.{4}).{4}", path.read_bytes(), re.DOTALL)
    return [struct.unpack("<f", value)[0] for value in found]


def test_tensorboard_events_are_seen_while_the_writer_lives(tree: Tree) -> None:
    if find_spec("tensorboardX") is None:
        pytest.skip("no tensorboardX")
    with tree.actors(1) as (writer,):
        writer.do("from tensorboardX import SummaryWriter; w = SummaryWriter('.')")
        (path,) = tree.path.glob("events.out.tfevents.*")

        def seen() -> list[float]:
            writer.do("w.flush()")  # a thread takes the records from a queue
            return _scalars(path)

        for step in range(4):
            writer.do(f"w.add_scalar('loss', {step}, {step})")
            tree.mount.wait_until(lambda step=step: seen() == list(range(step + 1)))
        writer.kill()
    assert _scalars(path) == [0, 1, 2, 3]


def test_tensorboard_goes_on_after_a_writer_that_was_killed_while_it_wrote(tree: Tree) -> None:
    if find_spec("tensorboardX") is None:
        pytest.skip("no tensorboardX")
    start = "from tensorboardX import SummaryWriter; w = SummaryWriter('.', purge_step={}, {})"
    with tree.actors(2) as (killed, resumed):
        killed.do(start.format(0, "max_queue=1, filename_suffix='.1'"))
        killed.send(
            "import itertools\n"
            "for step in itertools.count(): w.add_scalar('loss', step, step); w.flush()"
        )
        (first,) = tree.path.glob("events.out.tfevents.*")
        tree.mount.wait_until(lambda: len(_scalars(first)) > 50)
        killed.kill()
        found = _scalars(first)
        assert found == list(range(len(found))) and len(found) > 50
        resumed.do(start.format(len(found), "filename_suffix='.2'"))
        resumed.do(f"w.add_scalar('loss', {len(found)}, {len(found)}); w.close()")
    (second,) = tree.path.glob("events.out.tfevents.*.2")
    assert _scalars(first) == found and _scalars(second) == [len(found)]


# --- git -----------------------------------------------------------------------------------------


_GIT = """
set -e
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_COMMITTER_NAME=a
export GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_EMAIL=a@b
edit() { for n in $(seq 20); do echo "$1 $n" > "config$n.yaml"; done; }
"""


@pytest.fixture
def repository(mount: Served) -> Path:
    """With three commits."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    path = mount.path / "run"
    path.mkdir()
    commits = "for n in 1 2 3; do edit $n; git add .; git commit -q -m $n; done"
    shell(f"{_GIT} git init -q; git config gc.auto 0; {commits}", path)
    return path


def test_git_keeps_a_repository(mount: Served, repository: Path) -> None:
    shell(
        f"""{_GIT}
        git switch -q -c other HEAD~1 && git switch -q -
        git gc -q --prune=now
        git fsck --strict
        echo changed > config1.yaml
        test "$(git status --porcelain)" = " M config1.yaml"
        git stash -q && git stash pop -q
        git checkout -q config1.yaml
        test -z "$(git status --porcelain)"
        test "$(git log --oneline | wc -l)" = 3
        """,
        repository,
    )
    assert (repository / "config1.yaml").read_text() == "3 1\n"
    assert ckptfs("verify", mount.path).returncode == 0
    mount.umount()
    done = subprocess.run(["git", "fsck"], cwd=repository, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr


def _kill_at(process: subprocess.Popen[bytes], below: Path, change: int) -> bool:
    """Whether it had not ended by then."""
    for seen, _ in enumerate(changes(below, lambda: process.poll() is not None), 1):
        if seen == change:
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("command", ["git commit -qam killed", "git gc -q --prune=now"])
def test_a_killed_git_leaves_a_sound_repository(
    mount: Served, repository: Path, command: str
) -> None:
    """Killed at one change after another of its files. What is left is what a user of any
    filesystem clears away, a lock; then it goes on."""
    below, killed = mount.below / "run", 0
    for at in (1, 4, 16):
        heads = shell(f"{_GIT} edit at{at}; git add config7.yaml; git log --format=%H", repository)
        process = subprocess.Popen(
            ["bash", "-c", f"{_GIT} exec {command}"], cwd=repository, start_new_session=True
        )
        killed += _kill_at(process, below, at)
        for lock in ("**/*.lock", "gc.pid", "packed-refs.new"):
            for left_behind in (repository / ".git").glob(lock):
                left_behind.unlink()
        left = shell(f"{_GIT} git fsck --strict; git log --format=%H", repository)
        assert left.endswith(heads)
        shell(f"{_GIT} edit on{at}; git commit -qam on; git gc -q; git fsck --strict", repository)
    assert killed
    assert ckptfs("verify", mount.path).returncode == 0


# --- numpy.memmap --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [512, 8192], ids=["256k", "4m"])
@pytest.mark.parametrize("mode", ["w+", "r+"])
def test_c3_what_a_memmap_flushed_is_there_when_a_marker_says_so(
    tree: Tree, mode: str, width: int
) -> None:
    """Killed while the next rows are stored: on any filesystem the flushed ones stay."""
    pytest.importorskip("numpy")
    with tree.actors(2) as (writer, reader):
        for actor in (writer, reader):
            actor.do("from numpy.lib.format import open_memmap")
        writer.do(f"m = open_memmap('rows.npy', 'w+', 'i8', (64, {width})); m[:] = 1; del m")
        writer.do(f"m = open_memmap('rows.npy', {mode!r}, 'i8', (64, {width}))")
        writer.do("m[:8] = 2; m.flush(); f = open('rows.txt', 'w'); f.write('8'); f.close()")
        writer.do("m[8:12] = 3")
        writer.kill()
        assert reader.content("rows.txt") == "8"
        assert reader.value("int(open_memmap('rows.npy', 'r')[:8].sum())") == 2 * 8 * width
    tree.settle()
    tree.assert_clean()


def test_c5_a_memmap_of_a_killed_process_is_not_taken_for_damage(tree: Tree) -> None:
    """Its stores are in place once numpy has closed the descriptor: they stay, and are recorded."""
    pytest.importorskip("numpy")
    with tree.actors(2) as (writer, reader):
        writer.do("import numpy; m = numpy.memmap('a.bin', 'int64', 'w+', shape=(4096,))")
        writer.do("m[:2048] = 1; m.flush(); m[2048:] = 2")
        writer.kill()
        reader.do("import numpy")
        assert reader.value("int(numpy.memmap('a.bin', 'int64', 'r').sum())") == 2048 * 3
        assert reader.value("int(numpy.memmap('a.bin', 'int64', 'c').sum())") == 2048 * 3
    tree.settle()
    tree.assert_clean()


def test_a_sparse_file_that_is_changed_stays_sparse(ext4_dir: Path) -> None:
    """A memmap of 64 MiB, of which one row is stored at a time."""
    directory = ext4_dir / "served"
    directory.mkdir()
    with served(directory) as mount:
        path = directory / "rows.bin"
        with open(path, "wb") as file:
            file.truncate(64 << 20)
        with open(path, "r+b") as file:
            file.write(b"row")
        assert path.stat().st_size == 64 << 20
        assert (mount.below / "rows.bin").stat().st_blocks * 512 < 1 << 20
