"""Near-identical generations cost what differs, and nobody can tell but by the space.

On images of XFS and btrfs, where blocks are really shared, and of ext4, where they are not.
"""

from __future__ import annotations

import ctypes
import errno as errors
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mounts
import pytest
from harness import condition, lineage, store_on
from images import Mounted, mounted_image

from ckptfs.checking.examine import Condition
from ckptfs.disk.real import OsFs
from ckptfs.history import sharing
from ckptfs.history.sharing import Sharer
from ckptfs.store import Store

MIB = 1 << 20
SIZE, CHANGED = 64 * MIB, MIB


def bytes_of(seed: int, size: int = SIZE) -> bytearray:
    return bytearray(random.Random(seed).randbytes(size))


def next_version(content: bytearray, number: int) -> bytearray:
    """One MiB of it changes."""
    changed = bytearray(content)
    at = (number * 7 + 3) % (len(content) // MIB) * MIB
    changed[at : at + CHANGED] = bytes_of(1000 + number, CHANGED)
    return changed


@pytest.fixture(params=["xfs", "btrfs"])
def shares_blocks(request: pytest.FixtureRequest, _mounts: dict[str, Mounted]) -> Iterator[Mounted]:
    """A fresh directory on a filesystem that can."""
    mounted = mounted_image(request.param, _mounts)
    directory = Path(tempfile.mkdtemp(dir=mounted.path))
    yield Mounted(mounted.kind, directory, mounted.image)
    shutil.rmtree(directory, ignore_errors=True)


def used_bytes(path: Path) -> int:
    """As ``df`` says, once it has stopped to change: XFS and btrfs free blocks behind."""
    last = -1
    for _ in range(20):
        with open_fd(path) as fd:
            OsFs().sync_all(fd)
        status = os.statvfs(path)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        if used == last:
            break
        last = used
        time.sleep(0.3)
    return last


class open_fd:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._fd = os.open(self._path, os.O_RDONLY)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def generations(store: Store, directory: Path, path: str = "a.bin") -> list[Path]:
    """Newest first."""
    folder = directory / ".ckptfs/history" / lineage(store, path)
    return sorted(folder.iterdir(), key=lambda entry: -int(entry.name))


def exclusive(path: Path) -> int:
    with open_fd(path) as fd:
        return OsFs().exclusive_bytes(fd)


def stamps(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns


def put_versions(store: Store, count: int, size: int = SIZE) -> list[bytes]:
    """Commit so many versions; what they hold, newest first."""
    content = bytes_of(0, size)
    written = []
    for number in range(count):
        content = next_version(content, number)
        store.put("a.bin", bytes(content))
        written.append(bytes(content))
    return written[::-1]


def test_a_generation_costs_what_differs(shares_blocks: Mounted) -> None:
    directory = shares_blocks.path
    store = store_on(directory, validate=False)
    empty = used_bytes(directory)
    written = put_versions(store, 2)
    (old,) = generations(store, directory)
    apart, before = used_bytes(directory), (stamps(directory / "a.bin"), stamps(old))
    # the control: without sharing the space is doubled
    assert apart - empty >= 2 * SIZE
    assert exclusive(old) >= SIZE

    assert store.history.share("a.bin") == SIZE - CHANGED

    assert (stamps(directory / "a.bin"), stamps(old)) == before
    assert 0 <= exclusive(old) - CHANGED <= 8192  # and a block for the record
    assert used_bytes(directory) - empty <= SIZE + CHANGED + 4 * MIB
    assert (directory / "a.bin").read_bytes() == written[0]
    assert old.read_bytes() == written[1]
    assert condition(store, "a.bin") is Condition.OK
    assert store.get("a.bin") == written[0]
    assert store.history.share("a.bin") == 0  # there is nothing left to do
    store.close()


def test_every_generation_kept_costs_what_differs(shares_blocks: Mounted) -> None:
    """Sharing with the newest alone would leave the older ones on blocks that it gave up."""
    directory = shares_blocks.path
    store = store_on(directory, validate=False, keep=3)
    empty = used_bytes(directory)
    size = 16 * MIB
    content = bytes_of(0, size)
    written = []
    for number in range(4):
        content = next_version(content, number)
        store.put("a.bin", bytes(content))
        store.history.share("a.bin")
        written.append(bytes(content))
    kept = generations(store, directory)
    assert [entry.read_bytes() for entry in kept] == written[2::-1]
    # the i-th differs from the live one in i MiB
    assert used_bytes(directory) - empty <= size + (1 + 2 + 3) * MIB + 4 * MIB
    store.close()


@pytest.mark.parametrize("length", [MIB, 5 * MIB + 1, 9 * MIB + 4097])
@pytest.mark.parametrize("grown", [0, 1, 4096, 3 * MIB + 5])
def test_lengths_need_not_be_round_nor_equal(
    length: int, grown: int, shares_blocks: Mounted
) -> None:
    directory = shares_blocks.path
    store = store_on(directory, validate=False)
    old, new = bytes(bytes_of(1, length)), bytes(bytes_of(1, length) + bytes_of(2, grown))
    for first, second in ((old, new), (new, old)):
        store.put("a.bin", first)
        store.put("a.bin", second)
        shared = store.history.share("a.bin")
        assert length - sharing._PIECE_BYTES < shared <= length
        assert (directory / "a.bin").read_bytes() == second
        assert generations(store, directory)[0].read_bytes() == first
        assert condition(store, "a.bin") is Condition.OK
        store.unlink("a.bin")
    store.close()


def test_holes_stay_holes_and_are_not_read(shares_blocks: Mounted) -> None:
    directory = shares_blocks.path
    for name in "ab":
        with (directory / name).open("wb") as file:
            file.write(bytes_of(1, 2 * MIB))
            file.seek(1 << 40)
            file.write(bytes_of(2, 2 * MIB))
    store = store_on(directory, validate=False)
    blocks = (directory / "b").stat().st_blocks
    with open_fd(directory / "a") as source, open_fd(directory / "b") as target:
        assert store.sharing.share(source, target) == 4 * MIB
    assert (directory / "b").stat().st_blocks == blocks
    assert exclusive(directory / "b") <= 8192
    store.close()


def test_what_differs_everywhere_is_left_alone(shares_blocks: Mounted) -> None:
    directory = shares_blocks.path
    store = store_on(directory, validate=False)
    store.put("a.bin", bytes(bytes_of(1, 8 * MIB)))
    store.put("a.bin", bytes(bytes_of(2, 8 * MIB)))
    (old,) = generations(store, directory)
    with open_fd(old) as fd:
        before = list(store.fs.extents(fd))
        assert store.history.share("a.bin") == 0
        assert list(store.fs.extents(fd)) == before
    store.close()


def test_a_clone_is_not_read_again(shares_blocks: Mounted) -> None:
    """A file that was opened to go on shares its blocks from the start."""
    directory = shares_blocks.path
    store = store_on(directory, validate=False)
    store.put("a.bin", bytes(bytes_of(1, 8 * MIB)))
    store.append("a.bin", b"more" * 1000)
    read: list[int] = []
    store.sharing.fs = Counting(read)
    assert store.history.share("a.bin") == 0
    assert sum(read) == 0
    store.close()


class Counting(OsFs):
    def __init__(self, read: list[int]) -> None:
        super().__init__()
        self._read = read

    def read(self, fd: int, size: int, offset: int) -> bytes:
        data = super().read(fd, size, offset)
        self._read.append(len(data))
        return data


def test_where_blocks_cannot_be_shared_nothing_happens(ext4_dir: Path, quick_dir: Path) -> None:
    for directory in (ext4_dir, quick_dir):
        store = store_on(directory, validate=False)
        written = put_versions(store, 2, 4 * MIB)
        read: list[int] = []
        store.sharing.fs = Counting(read)
        assert store.history.share("a.bin") == 0
        assert sum(read) == 0
        assert store.sharing._cannot  # not asked again
        (old,) = generations(store, directory)
        assert old.read_bytes() == written[1]
        assert exclusive(old) >= 4 * MIB
        assert condition(store, "a.bin") is Condition.OK
        store.close()


def test_short_missing_and_foreign_files_are_left(shares_blocks: Mounted) -> None:
    directory = shares_blocks.path
    store = store_on(directory, validate=False)
    put_versions(store, 2, MIB)
    (directory / "plain").write_bytes(b"x" * 2 * MIB)
    os.mkfifo(directory / "fifo")
    assert store.history.share("plain") == 0
    assert store.history.share("fifo") == 0
    with pytest.raises(FileNotFoundError):
        store.history.share("gone")
    store.put("small", b"x" * 1000)
    store.put("small", b"x" * 1000)
    assert store.history.share("small") == 0
    store.close()


class Failing(OsFs):
    def __init__(self, error: int, calls: list[int]) -> None:
        super().__init__()
        self._error, self._calls = error, calls

    def dedupe(self, source: int, target: int, start: int, end: int) -> int:
        self._calls.append(start)
        raise OSError(self._error, os.strerror(self._error))


@pytest.mark.parametrize("error", ["EOPNOTSUPP", "EINVAL", "EXDEV", "ETXTBSY", "ENOSPC", "EPERM"])
def test_no_error_of_the_kernel_gets_out(error: str, ext4_dir: Path) -> None:
    store = store_on(ext4_dir, validate=False)
    put_versions(store, 2, 2 * MIB)
    calls: list[int] = []
    store.sharing.fs = Failing(getattr(errors, error), calls)
    assert store.history.share("a.bin") == store.history.share("a.bin") == 0
    assert len(calls) == (1 if error in ("EOPNOTSUPP", "EINVAL", "EXDEV") else 2)
    store.close()


def test_a_writer_meanwhile_loses_nothing(shares_blocks: Mounted) -> None:
    """The committed file is stored to, in place, while it is compared: the kernel looks again."""
    directory = shares_blocks.path
    a, b = directory / "a", directory / "b"
    content = bytes_of(1, 16 * MIB)
    a.write_bytes(content)
    b.write_bytes(content)
    store = store_on(directory, validate=False)
    stop = threading.Event()
    stores: dict[int, bytes] = {}

    def scribble() -> None:
        chance = random.Random(3)
        with a.open("r+b", buffering=0) as file:
            while not stop.is_set():
                at = chance.randrange(len(content) - 100)
                stores.clear()
                os.pwrite(file.fileno(), b"!" * 100, at)
                content[at : at + 100] = b"!" * 100

    writer = threading.Thread(target=scribble)
    old = bytes(content)
    writer.start()
    try:
        with open_fd(a) as source, open_fd(b) as target:
            for _ in range(20):
                store.sharing.share(source, target)
    finally:
        stop.set()
        writer.join()
    assert b.read_bytes() == old
    assert a.read_bytes() == content
    store.close()


def test_commits_go_on_while_blocks_are_shared(shares_blocks: Mounted) -> None:
    directory = shares_blocks.path
    store = store_on(directory, validate=False, keep=2)
    content = bytes_of(0, 8 * MIB)
    stop = threading.Event()
    failures: list[BaseException] = []

    def share() -> None:
        while not stop.is_set():
            try:
                store.history.share("a.bin")
            except FileNotFoundError:
                pass
            except BaseException as error:
                failures.append(error)

    worker = threading.Thread(target=share)
    worker.start()
    try:
        for number in range(12):
            content = next_version(content, number)
            store.put("a.bin", bytes(content))
            assert store.get("a.bin") == content
    finally:
        stop.set()
        worker.join()
    assert not failures
    assert condition(store, "a.bin") is Condition.OK
    assert len(generations(store, directory)) == 2
    assert not os.listdir(directory / ".ckptfs/stage")
    store.close()


# --- behind the commits


def test_the_worker_waits_for_quiet_and_does_a_path_once() -> None:
    done: list[str] = []
    sharer = Sharer(lambda path, stopped: done.append(path) or 0, quiet_s=0.3)
    assert sharer._thread is None
    sharer.add("small", MIB - 1)
    assert sharer._thread is None
    for _ in range(5):
        sharer.add("a", MIB)
        sharer.add("b", MIB)
    assert done == []
    deadline = time.monotonic() + 5
    while len(done) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert done == ["a", "b"]
    sharer.stop()
    assert not sharer._thread.is_alive()
    sharer.add("late", MIB)
    assert not sharer._queue


def test_the_worker_alone_yields_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the number of ioprio_get is that of x86_64")
    idle = 3
    get = ctypes.CDLL(None).syscall
    found: list[int] = []
    sharer = Sharer(lambda path, stopped: found.append(get(252, 1, 0) >> 13) or 0, quiet_s=0)
    sharer.add("a", MIB)
    deadline = time.monotonic() + 5
    while not found and time.monotonic() < deadline:
        time.sleep(0.01)
    sharer.stop()
    assert found == [idle]
    assert get(252, 1, 0) >> 13 != idle


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_QUEUE_LIMIT", 3)
    sharer = Sharer(lambda path, stopped: 0, quiet_s=60)
    for number in range(10):
        sharer.add(str(number), MIB)
    assert list(sharer._queue) == ["0", "1", "2"]
    sharer.stop()


def test_the_worker_ends_at_once(shares_blocks: Mounted) -> None:
    directory = shares_blocks.path
    store = store_on(directory, validate=False)
    put_versions(store, 2)
    begun = threading.Event()
    found: list[int] = []

    def share(path: str, stopped: Any) -> int:
        begun.set()
        while not stopped():
            time.sleep(0.001)
        found.append(store.history.share(path, stopped))
        return 0

    sharer = Sharer(share, quiet_s=0)
    sharer.add("a.bin", SIZE)
    assert begun.wait(5)
    start = time.monotonic()
    sharer.stop()
    assert time.monotonic() - start < 0.5
    assert found == [0]
    store.close()


def test_a_failing_job_does_not_end_the_worker() -> None:
    done: list[str] = []

    def share(path: str, stopped: Any) -> int:
        done.append(path)
        raise FileNotFoundError

    sharer = Sharer(share, quiet_s=0)
    for path in ("a", "b"):
        sharer.add(path, MIB)
    deadline = time.monotonic() + 5
    while len(done) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    sharer.stop()
    assert done == ["a", "b"]


@pytest.mark.parametrize("by", ["overwrite", "rename"])
def test_the_daemon_shares_behind_the_commits(by: str, shares_blocks: Mounted) -> None:
    reason = mounts.why_no_mounts()
    if reason:
        pytest.skip(f"cannot mount here: {reason}")
    directory = shares_blocks.path / "served"
    directory.mkdir()
    first = bytes_of(0, 16 * MIB)
    second = next_version(first, 1)
    with mounts.served(directory, limit_s=mounts.TEST_LIMIT_S) as mount:
        path = mount.path / "a.bin"
        for content in (first, second):
            if by == "overwrite":
                path.write_bytes(content)
            else:
                (mount.path / "a.tmp").write_bytes(content)
                (mount.path / "a.tmp").rename(path)
        mount.wait_until(lambda: mount.events("shared"), limit_s=20)
        (event,) = mount.events("shared")
        assert event["path"] == "a.bin"
        assert event["detail"] == f"{15 * MIB} bytes"
        (old,) = (mount.below / ".ckptfs/history").glob("*/*")
        assert 0 <= exclusive(old) - MIB <= 8192
        assert old.read_bytes() == first
        assert path.read_bytes() == second
        done = mount.ckptfs("verify", mount.path)
        assert done.returncode == 0, done.stdout
        mount.umount()


def test_an_umount_does_not_wait_for_it(shares_blocks: Mounted) -> None:
    reason = mounts.why_no_mounts()
    if reason:
        pytest.skip(f"cannot mount here: {reason}")
    directory = shares_blocks.path / "served"
    directory.mkdir()
    with mounts.served(directory, limit_s=mounts.TEST_LIMIT_S) as mount:
        content = bytes_of(0)
        (mount.path / "a.bin").write_bytes(content)
        (mount.path / "a.bin").write_bytes(next_version(content, 1))
        time.sleep(1.0)  # it is about to begin
        start = time.monotonic()
        mount.umount()
        assert time.monotonic() - start < 5
    store = Store.open(str(directory)) if directory.exists() else None
    assert store is None or not os.listdir(directory / ".ckptfs/stage")
    if store is not None:
        store.close()
