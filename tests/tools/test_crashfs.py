"""The power-cut model itself: what it keeps, what it may lose, and the calls it stands for."""

from __future__ import annotations

import errno
import os

import pytest

from ckptfs.disk import osfs
from ckptfs.tools.crashfs import CrashFs

CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL


def content(fs: CrashFs, name: str) -> bytes | None:
    try:
        with osfs.opened(fs, fs.root, name, os.O_RDONLY) as fd:
            return fs.read(fd, 100, 0)
    except FileNotFoundError:
        return None


def after(fs: CrashFs, name: str, **how: bool) -> set[bytes | None]:
    return {content(state, name) for state in fs.crash_states(**how)}


def made(fs: CrashFs, name: str, data: bytes) -> int:
    fd = fs.open(fs.root, name, CREATE)
    fs.write(fd, data, 0)
    return fd


def test_name_bytes_and_size_persist_independently() -> None:
    fs = CrashFs()
    made(fs, "a", b"xyz")
    assert after(fs, "a") == {None, b"", b"\0\0\0", b"xyz"}


def test_fsync_makes_bytes_durable_but_not_the_name() -> None:
    fs = CrashFs()
    fs.fsync(made(fs, "a", b"xyz"))
    assert after(fs, "a") == {None, b"xyz"}
    fs.fsync_dir(fs.root)
    assert after(fs, "a") == {b"xyz"}


def test_fsync_of_a_directory_makes_no_bytes_durable() -> None:
    fs = CrashFs()
    made(fs, "a", b"xyz")
    fs.fsync_dir(fs.root)
    assert after(fs, "a") == {b"", b"\0\0\0", b"xyz"}


@pytest.mark.parametrize("step", ["clean", "start_writeback"])
def test_writeback_makes_nothing_durable(step: str) -> None:
    fs = CrashFs()
    fd = made(fs, "a", b"xyz")
    fs.fsync_dir(fs.root)
    getattr(fs, step)(fd, 0, 3)
    assert b"" in after(fs, "a")


def test_each_of_two_writes_may_be_lost() -> None:
    fs = CrashFs()
    fd = made(fs, "a", b"0000")
    fs.sync_all(fs.root)
    fs.write(fd, b"11", 0)
    fs.write(fd, b"22", 2)
    assert after(fs, "a") == {b"0000", b"1100", b"0022", b"1122"}


def test_an_xattr_persists_apart_from_the_bytes() -> None:
    fs = CrashFs()
    fd = made(fs, "a", b"0")
    fs.sync_all(fs.root)
    fs.setxattr(fd, "user.x", b"v")
    fs.write(fd, b"1", 0)
    seen = set()
    for state in fs.crash_states():
        with osfs.opened(state, state.root, "a", os.O_RDONLY) as there:
            seen.add((state.read(there, 1, 0), state.getxattr(there, "user.x")))
    assert seen == {(b"0", None), (b"0", b"v"), (b"1", None), (b"1", b"v")}


def test_both_halves_of_a_rename_persist_independently() -> None:
    fs = CrashFs()
    made(fs, "a", b"1")
    made(fs, "b", b"2")
    fs.sync_all(fs.root)
    fs.rename(fs.root, "a", fs.root, "b")
    seen = {(content(state, "a"), content(state, "b")) for state in fs.crash_states()}
    assert seen == {(b"1", b"2"), (b"1", b"1"), (None, b"1"), (None, b"2")}
    kept = {
        (content(state, "a"), content(state, "b")) for state in fs.crash_states(keeps_renamed=True)
    }
    assert kept == seen - {(None, b"2")}


def test_link_unlink_and_mkdir_are_pending_until_the_directory_is_synced() -> None:
    fs = CrashFs()
    made(fs, "a", b"1")
    fs.sync_all(fs.root)
    fs.link(fs.root, "a", fs.root, "c")
    fs.unlink(fs.root, "a")
    fs.mkdir(fs.root, "d", 0o700)
    names = {frozenset(state.live[1].entries) for state in fs.crash_states()}
    assert len(names) == 8
    fs.fsync_dir(fs.root)
    assert {frozenset(state.live[1].entries) for state in fs.crash_states()} == {
        frozenset({"c", "d"})
    }


def test_a_truncated_and_rewritten_file_may_be_cut_or_mixed() -> None:
    fs = CrashFs()
    fd = made(fs, "a", b"old")
    fs.sync_all(fs.root)
    fs.truncate(fd, 0)
    fs.write(fd, b"ne", 0)
    assert {b"old", b"", b"ne"} <= after(fs, "a")
    fs.fsync(fd)
    assert after(fs, "a") == {b"ne"}


def test_mtime_moves_with_every_write() -> None:
    fs = CrashFs()
    fd = made(fs, "a", b"1")
    times = [fs.stat(fd).st_mtime_ns]
    for _ in range(3):
        fs.write(fd, b"1", 0)
        times.append(fs.stat(fd).st_mtime_ns)
    assert times == sorted(set(times))


def test_too_many_changes_are_sampled_and_it_says_so() -> None:
    fs = CrashFs()
    for number in range(20):
        fs.mkdir(fs.root, str(number), 0o700)
    states = fs.crash_states()
    assert not states.exhaustive
    assert states.possible == 2**20
    names = [frozenset(state.live[1].entries) for state in states]
    assert {frozenset(str(n) for n in range(cut)) for cut in range(21)} <= set(names)  # prefixes
    assert [frozenset(state.live[1].entries) for state in fs.crash_states()] == names  # the same
    assert CrashFs().crash_states().exhaustive


def test_a_snapshot_is_not_moved_by_what_comes_later() -> None:
    fs = CrashFs()
    fd = made(fs, "a", b"1")
    snapshot = fs.snapshot()
    fs.write(fd, b"2", 0)
    fs.sync_all(fs.root)
    assert after(snapshot, "a") == {None, b"", b"\0", b"1"}


@pytest.mark.parametrize("bad", ["missing", "exists", "not a directory", "closed"])
def test_errors_are_those_of_the_kernel(bad: str) -> None:
    fs = CrashFs()
    fs.close(made(fs, "a", b"1"))
    with pytest.raises(OSError) as caught:
        if bad == "missing":
            fs.unlink(fs.root, "b")
        elif bad == "exists":
            fs.open(fs.root, "a", CREATE)
        elif bad == "not a directory":
            fs.open(fs.root, "a", osfs.DIRECTORY)
        else:
            fs.read(1 << 21, 1, 0)
    codes = {"missing": errno.ENOENT, "exists": errno.EEXIST, "not a directory": errno.ENOTDIR}
    assert caught.value.errno == codes.get(bad, errno.EBADF)
