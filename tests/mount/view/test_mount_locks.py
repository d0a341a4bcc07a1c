"""Advisory locks hold by path, across the versions of a file.

The bug this closes: each open for writing has a version, hence an inode, of its own, and the kernel
keeps locks by inode; two processes that opened 'w' and locked would both have got the lock.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import mounts
import pytest
from actors import actors

from ckptfs.mount.view.locks import TO_THE_END, Lock, Locks, Wait

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


# --- processes that coordinate by a lock see each other's bytes ----------------------------------

_COUNT = """
import fcntl, sys
path, times = sys.argv[1], int(sys.argv[2])
for _ in range(times):
    with open(path, "r+") as f:
        fcntl.lockf(f, fcntl.LOCK_EX)
        n = int(f.read())
        f.seek(0)
        f.write(f"{n + 1:08}")
        f.flush()
        fcntl.lockf(f, fcntl.LOCK_UN)
"""
_COUNT_HELD_OPEN = """
import fcntl, os, sys
path, times = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_RDWR)
for _ in range(times):
    fcntl.flock(fd, fcntl.LOCK_EX)
    n = int(os.pread(fd, 8, 0))
    os.pwrite(fd, b"%08d" % (n + 1), 0)
    fcntl.flock(fd, fcntl.LOCK_UN)
"""
_COUNT_UNLOCKED = _COUNT.replace("fcntl.lockf", "(lambda *_: None)")


def _in_parallel(code: str, count: int, *arguments: object) -> list[str]:
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(count)
    ]
    outcomes = []
    for process in processes:
        out, err = process.communicate(timeout=mounts.CHILD_LIMIT_S)
        assert process.returncode == 0, err
        outcomes.append(out)
    return outcomes


@pytest.mark.parametrize("code", [_COUNT, _COUNT_HELD_OPEN], ids=["reopened", "held open"])
def test_a_counter_under_a_lock_loses_nothing(mount: mounts.Served, code: str) -> None:
    path = mount.path / "counter.pt"
    path.write_text("00000000")
    _in_parallel(code, 4, path, 100)
    assert path.read_text() == "00000400"


def test_control_a_counter_without_a_lock_loses_some(mount: mounts.Served) -> None:
    path = mount.path / "counter.pt"
    path.write_text("00000000")
    for _ in range(5):
        _in_parallel(_COUNT_UNLOCKED, 4, path, 100)
        if path.read_text() != "00002000":
            return
    pytest.skip("they never met")


@pytest.mark.kernel_only(mounts.OWN_LOCKS)
def test_a_follower_reads_what_the_leader_wrote_under_its_lock(mount: mounts.Served) -> None:
    """Leader election: the leader keeps the file open and locked for as long as it lives."""
    path = mount.path / "leader"
    path.write_text("the one before")
    with actors(mount.path, 3) as (leader, follower, other):
        elect = (
            "import fcntl; f = open('leader', 'r+'); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        )
        leader.do(elect + "; f.truncate(0); f.write('first'); f.flush()")
        assert follower.errno_of(elect) == "EAGAIN"
        assert follower.content("leader") == other.content("leader") == "first"
        leader.do("f.write(' again'); f.flush()")
        assert other.content("leader") == "first again"
        follower.do("f.close()")
        leader.do("f.close()")
        follower.do(elect + "; f.truncate(0); f.write('second'); f.flush()")
        assert other.content("leader") == follower.content("leader") == "second"


@pytest.mark.kernel_only(mounts.OWN_LOCKS)
def test_a_lock_file_that_each_truncates_is_not_emptied_by_who_does_not_get_it(
    mount: mounts.Served,
) -> None:
    with actors(mount.path, 2) as (holder, other):
        take = (
            "import fcntl; f = open('lockfile', 'w'); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        )
        holder.do(take + "; f.write('holder'); f.flush()")
        assert other.errno_of(take) == "EAGAIN"
        other.do("f.close()")
        assert other.content("lockfile") == "holder"
        holder.do("f.close()")
        assert other.content("lockfile") == "holder"
        other.do(take + "; f.write('other'); f.close()")
        assert holder.content("lockfile") == "other"


@pytest.mark.kernel_only(mounts.OWN_LOCKS)
@pytest.mark.parametrize("opens", ["ahead", "in turn"])
def test_who_does_not_get_a_lock_file_sees_what_its_holder_writes(
    mount: mounts.Served, opens: str
) -> None:
    """While it has the file open that it truncated, and however many there are. Whoever truncates
    it once it is shared empties it, as on any directory."""
    with actors(mount.path, 3) as (holder, *others):
        take = "fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        for each in (holder, *others):
            each.do("import fcntl")
            if opens == "ahead" or each is holder:
                each.do("f = open('lockfile', 'w')")
        holder.do(take)
        for each in others:
            if opens == "in turn":
                each.do("f = open('lockfile', 'w')")
            assert each.errno_of(take) == "EAGAIN"
            holder.do("f.seek(0); f.write('holder'); f.flush()")
            assert {each.content("lockfile") for each in (holder, *others)} == {"holder"}
        for each in others:
            each.do("f.close()")
            assert each.content("lockfile") == "holder"
        holder.do("f.write(' ended'); f.close()")
        assert {each.content("lockfile") for each in (holder, *others)} == {"holder ended"}


def test_asking_for_no_lock_makes_no_second_locker(mount: mounts.Served) -> None:
    """Unlocking what is not locked, and F_GETLK, by one descriptor, and a lock by another."""
    code = """
import fcntl, struct
open("m.pt", "w").write("old")
a, b = open("m.pt", "r+"), open("m.pt", "r+")
fcntl.flock(a, fcntl.LOCK_UN)
fcntl.lockf(a, fcntl.LOCK_UN)
fcntl.fcntl(a, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
fcntl.lockf(b, fcntl.LOCK_EX)
b.write("new"); b.flush()
"""
    mounts.python(code, cwd=mount.path)
    assert mount.ckptfs("verify", mount.path).returncode == 0
    assert os.getxattr(mount.below / "m.pt", "user.ckptfs")


@KINDS
def test_a_lock_of_one_process_alone_leaves_the_transaction(mount: mounts.Served, how: str) -> None:
    """HDF5 locks every file that it opens; a reader that is refused changes nothing either."""
    path = mount.path / "model.h5"
    path.write_text("old")
    call = "flock" if how == "flock" else "lockf"
    with actors(mount.path, 2) as (writer, reader):
        writer.do(f"import fcntl; f = open('model.h5', 'w+'); fcntl.{call}(f, fcntl.LOCK_EX)")
        writer.do("f.write('new'); f.flush()")
        refused = (
            f"import fcntl; g = open('model.h5'); fcntl.{call}(g, fcntl.LOCK_SH | fcntl.LOCK_NB)"
        )
        assert reader.errno_of(refused) == "EAGAIN"
        assert reader.content("model.h5") == "old"
        writer.do("f.close()")
        assert reader.content("model.h5") == "new"
        reader.do(refused + "; g.close()")
        writer.do("f = open('model.h5', 'w'); f.write('newer'); f.flush()")
        assert reader.content("model.h5") == "new"
        writer.kill()
    mount.wait_until(lambda: not mount.status()["writing"])
    assert path.read_text() == "new"
    assert mounts.ckptfs("verify", mount.path).returncode == 0


_STORE = """
import datetime, sys
import torch.distributed as dist
path, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = dist.FileStore(path, size)
store.set_timeout(datetime.timedelta(seconds=20))
store.set(f"from{rank}", str(rank) * 100)
for other in range(size):
    assert store.get(f"from{other}") == str(other).encode() * 100
for _ in range(20):
    store.add("count", 1)
store.add("done", 1)
while store.add("done", 0) < size:
    pass
assert store.add("count", 0) == 20 * size
print("agreed")
"""


@pytest.mark.kernel_only(mounts.OWN_LOCKS)
@pytest.mark.parametrize("size", [2, 4])
def test_torch_processes_meet_in_a_file_store(mount: mounts.Served, size: int) -> None:
    pytest.importorskip("torch")
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _STORE, mount.path / "store", str(rank), str(size)],
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for rank in range(size)
    ]
    for process in processes:
        out, err = process.communicate(timeout=mounts.TEST_LIMIT_S)
        assert out == "agreed\n", err


def test_who_gets_a_lock_is_not_shown_the_size_from_before_it() -> None:
    """The kernel may have the file open by several nodes, of which each has a size of its own:
    that of a node is asked for anew once another's holder may have written. Of those that share a
    lock it is asked once: an answer that is on its way would not be believed after the next."""
    locks, asked = Locks(), list[int]()
    locks.renew = asked.append
    held = locks.of((1, 0, 0), "store")

    def lock(owner: int, nodeid: int, *, exclusive: bool = True) -> Lock:
        return Lock(owner, 0, TO_THE_END, exclusive, True, 0, nodeid)

    def in_turn(owner: int, nodeid: int) -> list[int]:
        asked.clear()
        locks.take(held, lock(owner, nodeid))
        locks.drop_owner(held, owner, is_flock=True)
        return [*asked]

    assert [in_turn(1, 7), in_turn(2, 7), in_turn(3, 8), in_turn(1, 7)] == [[7], [], [8], [7]]
    locks.take(held, lock(3, 8))
    asked.clear()
    for owner, nodeid in ((1, 7), (2, 7), (4, 8)):  # wait, and get it together
        shared = lock(owner, nodeid, exclusive=False)
        locks.wait(Wait(held, shared, owner, 0, lambda error: None))
    assert asked == []
    locks.drop_owner(held, 3, is_flock=True)
    assert asked == [7]
    for owner in (1, 2, 4):
        locks.drop_owner(held, owner, is_flock=True)
    assert in_turn(4, 8) == []


@pytest.mark.kernel_only(mounts.NO_NAME)
def test_a_link_of_a_descriptor_is_opened_beside_who_writes_its_name(mount: mounts.Served) -> None:
    """`>> /dev/stderr` of a job whose log was deleted, and is written anew by another."""
    with actors(mount.path, 2) as (job, other):
        job.do("fd = os.open('run.txt', os.O_RDWR | os.O_CREAT); os.write(fd, b'old')")
        (mount.path / "run.txt").unlink()
        other.do("g = open('run.txt', 'a'); g.write('new'); g.flush()")
        mount.wait_until(lambda: (mount.below / "run.txt").exists())
        job.do("again = os.open(f'/proc/self/fd/{fd}', os.O_WRONLY | os.O_APPEND)")
        job.do("os.write(again, b'er'); os.close(again)")
        assert job.value("os.pread(fd, 9, 0).decode()") == "older"
        other.do("g.close()")
    assert (mount.path / "run.txt").read_text() == "new"
