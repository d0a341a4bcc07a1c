"""Who watches a file or a directory (inotify, fanotify) is told what a plain directory tells. A
watch of a file stands on an inode, of which a commit makes an old version: it ends with it, so that
the watcher looks again."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import NOT_THERE, Served, served

pytestmark = pytest.mark.kernel_only(reason=NOT_THERE)

MODIFY, ATTRIB, CLOSE_WRITE, MOVED_TO = 0x2, 0x4, 0x8, 0x80
CREATE, DELETE, DELETE_SELF, MOVE_SELF, IGNORED = 0x100, 0x200, 0x400, 0x800, 0x8000
_ALL = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
_FAN_NONBLOCK, _FAN_REPORT_FID = 0x2, 0x200
_LIMIT_S = 10.0
_FAN_EVENT = struct.Struct("=IBBHQii")
_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """The watches of one instance."""

    def __init__(self) -> None:
        self.fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        assert self.fd >= 0

    def watch(self, path: Path) -> int:
        number = _libc.inotify_add_watch(self.fd, os.fsencode(path), _ALL)
        assert number >= 0, os.strerror(ctypes.get_errno())
        return int(number)

    def events(self, number: int, until: int) -> list[tuple[int, str]]:
        """What one watch is told, up to an event of ``until``."""
        found, end = [], time.monotonic() + _LIMIT_S
        while True:
            left = end - time.monotonic()
            assert left > 0, [(hex(mask), name) for mask, name in found]
            if not select.select([self.fd], [], [], left)[0]:
                continue
            data = memoryview(os.read(self.fd, 1 << 16))
            while data:
                watch, mask, _, length = struct.unpack_from("=iIII", data)
                name = bytes(data[16 : 16 + length]).rstrip(b"\0").decode()
                data = data[16 + length :]
                if watch == number:
                    found.append((mask, name))
            if any(mask & until for mask, _ in found):
                return found


@pytest.fixture
def inotify() -> Iterator[Inotify]:
    watches = Inotify()
    yield watches
    os.close(watches.fd)


@pytest.fixture(scope="module", params=["passthrough", "relayed"])
def mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("watches") / "d"
    directory.mkdir()
    options = ["--no-passthrough"] if request.param == "relayed" else []
    with served(directory, *options) as mount:
        yield mount


def save(path: Path, mode: str = "wb", size: int = 100) -> None:
    code = f"import sys; f = open(*sys.argv[1:3]); f.write(bytes({size}))"
    command = [sys.executable, "-c", code, path, mode]
    subprocess.run(command, check=True, timeout=30)


def masks(events: list[tuple[int, str]]) -> int:
    found = 0
    for mask, _ in events:
        found |= mask
    return found


HOW = ["wb", "r+b", "ab", "truncate", "long append", "rename"]


@pytest.mark.parametrize("how", HOW)
def test_the_watch_of_a_file_is_told_of_every_save_over_it(
    mount: Served, inotify: Inotify, how: str
) -> None:
    """It ends with DELETE_SELF. Who looks again watches what stands there now."""
    path = mount.path / f"{how}.pt"
    save(path, size=2 << 20 if how == "long append" else 200)
    for turn in range(3):
        number = inotify.watch(path)
        if how == "truncate":
            os.truncate(path, 150 - turn)
        elif how == "rename":
            save(mount.path / "new")
            os.rename(mount.path / "new", path)
        else:
            save(path, "ab" if how == "long append" else how)
        assert masks(inotify.events(number, IGNORED)) & DELETE_SELF


def test_a_watch_is_told_at_the_begin_and_at_the_commit(mount: Served, inotify: Inotify) -> None:
    """At the commit too, where who looked again found what it replaces."""
    path = mount.path / "twice.pt"
    save(path)
    number = inotify.watch(path)
    code = "import sys; f = open(sys.argv[1], 'wb'); print(flush=True); input(); f.write(b'new')"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stdin is not None
        writer.stdout.readline()
        assert masks(inotify.events(number, IGNORED)) & DELETE_SELF
        number = inotify.watch(path)
        assert path.read_bytes() == bytes(100)
        writer.communicate(b"\n", timeout=30)
    assert masks(inotify.events(number, IGNORED)) & DELETE_SELF
    assert path.read_bytes() == b"new"


def test_a_watch_is_told_of_a_rollback(mount: Served, inotify: Inotify) -> None:
    path = mount.path / "rolled.pt"
    path.write_bytes(b"first")
    path.write_bytes(b"second")
    number = inotify.watch(path)
    done = mount.ckptfs("rollback", mount.path, path)
    assert done.returncode == 0, done.stderr
    assert masks(inotify.events(number, IGNORED)) & DELETE_SELF
    assert path.read_bytes() == b"first"


def test_the_watch_of_a_directory_is_told_as_on_a_plain_one(
    mount: Served, inotify: Inotify, plain_dir: Path
) -> None:
    told = []
    for directory in (mount.path, plain_dir):
        folder = directory / "folder"
        folder.mkdir()
        number = inotify.watch(folder)
        save(folder / "a")
        save(folder / "a")
        save(folder / "a", "ab")
        os.rename(folder / "a", folder / "b")
        (folder / "b").unlink()
        events = [(mask, name) for mask, name in inotify.events(number, DELETE)]
        told.append([event for event in events if event[0] != MODIFY])
    assert told[0] == told[1]


def test_who_reads_and_maps_the_old_version_is_not_disturbed(
    mount: Served, inotify: Inotify
) -> None:
    path = mount.path / "read.pt"
    path.write_bytes(b"old" * 3000)
    inotify.watch(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as old:
        save(path, size=10)
        assert old[:] == b"old" * 3000
        assert file.read() == b"old" * 3000
        assert os.fstat(file.fileno()).st_size == 9000
        assert os.stat(path).st_nlink == 1
        assert Path(f"/proc/self/fd/{file.fileno()}").read_bytes() == b"old" * 3000
    assert path.read_bytes() == bytes(10)


def test_a_mark_of_fanotify_is_told(mount: Served) -> None:
    path = mount.path / "marked.pt"
    save(path)
    fd = _libc.fanotify_init(_FAN_NONBLOCK | _FAN_REPORT_FID, os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        pytest.skip("no fanotify here")
    try:
        mark = ctypes.c_uint64(MODIFY | CLOSE_WRITE | DELETE_SELF)
        assert _libc.fanotify_mark(fd, 1, mark, -100, os.fsencode(path)) == 0
        save(path)
        seen, end = 0, time.monotonic() + _LIMIT_S
        while not seen & DELETE_SELF and time.monotonic() < end:
            if select.select([fd], [], [], 0.1)[0]:
                data = memoryview(os.read(fd, 4096))
                while data:
                    length, _, _, _, mask, _, _ = _FAN_EVENT.unpack_from(data)
                    seen, data = seen | mask, data[length:]
        assert seen & DELETE_SELF
    finally:
        os.close(fd)
