"""How far a reader has to go: the moves from file to file of a save, of a rotten open and of a
repair, counted over the calls of one process.

    python tests/house/journeys.py

prints them. A move is a call into another file of the project than the call before.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from ckptfs.cli import commands
from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.mount.operations import closing, looking, opening
from ckptfs.mount.operations.context import Mount
from ckptfs.mount.view.identity import ROOT_ID
from ckptfs.mount.view.model import Caller, Handle
from ckptfs.mount.writers.closing import stop
from ckptfs.store import Options, Store

PROJECT = Path(__file__).parents[2]
DATA = b"a checkpoint " * 20_000


class Journey(NamedTuple):
    moves: int
    files: int


class Way:
    """The files that were at work, in order, each as often as it was come to."""

    def __init__(self, tops: tuple[str, ...]) -> None:
        self._tops = tops
        self.stops: list[str] = []
        self._guard = threading.Lock()

    def profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        name, is_import = frame.f_code.co_filename, frame.f_code.co_name == "<module>"
        if event == "call" and not is_import and name.startswith(self._tops):
            with self._guard:
                if not self.stops or self.stops[-1] != name:
                    self.stops.append(name)

    @property
    def journey(self) -> Journey:
        return Journey(max(0, len(self.stops) - 1), len(set(self.stops)))


@contextmanager
def travelled(*tops: Path) -> Iterator[Way]:
    way = Way(tuple(f"{top}{os.sep}" for top in tops or (PROJECT / "ckptfs", PROJECT / "mount")))
    threading.setprofile(way.profile)
    sys.setprofile(way.profile)
    try:
        yield way
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


@contextmanager
def _served(directory: Path) -> Iterator[Mount]:
    store = Store(OsFs(), osfs.open_directory(str(directory)), str(directory), Options())
    mount = Mount(store, dict)
    try:
        yield mount
    finally:
        stop(mount.versions)
        store.close()


def _caller() -> Caller:
    return Caller(os.getuid(), os.getgid(), os.getpid())


def _open(mount: Mount, flags: int) -> Handle:
    """As the kernel does it, which looks again after ESTALE."""
    for _ in range(2):
        node = looking.lookup(mount, ROOT_ID, "a.pt", _caller()).node
        try:
            handle = opening.open(mount, node.id, flags, _caller())
            return handle if isinstance(handle, Handle) else handle.run()
        except OSError as error:
            if error.strerror != "look again":
                raise
    raise AssertionError("sent back twice")


def _close(mount: Mount, handle: Handle) -> None:
    if (work := closing.flush(mount, handle.id, _caller())) is not None:
        work.run()


def _release(mount: Mount, handle: Handle) -> None:
    if (work := closing.release(mount, handle.id)) is not None:
        work.run()


def _twice(directory: Path) -> None:
    with _served(directory) as mount:
        for number in range(2):
            mount.store.put("a.pt", DATA + bytes([number]))


def _rot(directory: Path) -> None:
    path = directory / "a.pt"
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"A")
        os.fsync(file.fileno())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def a_save(directory: Path) -> Journey:
    """From the close of a version that replaces one to its settle."""
    _twice(directory)
    with _served(directory) as mount:
        handle = _open(mount, os.O_WRONLY | os.O_TRUNC)
        os.write(handle.fd, DATA)
        with travelled() as way:
            _close(mount, handle)
        _release(mount, handle)
    return way.journey


def a_rotten_open(directory: Path) -> Journey:
    """From the open of a file that has rotted to the descriptor of the good version."""
    _twice(directory)
    _rot(directory)
    with _served(directory) as mount:
        with travelled() as way:
            handle = _open(mount, os.O_RDONLY)
        assert os.pread(handle.fd, len(DATA), 0) == DATA
        _release(mount, handle)
    return way.journey


def a_repair(directory: Path) -> Journey:
    """``verify --repair`` of one file that has rotted."""
    _twice(directory)
    _rot(directory)
    with travelled() as way, open(os.devnull, "w") as nowhere:
        told, sys.stdout = sys.stdout, nowhere
        try:
            commands(["verify", "--repair", str(directory)], standalone_mode=False)
        except SystemExit:
            pass
        finally:
            sys.stdout = told
    assert (directory / "a.pt").read_bytes()[: len(DATA)] == DATA
    return way.journey


JOURNEYS: dict[str, Callable[[Path], Journey]] = {
    "close to settle": a_save,
    "rotten open": a_rotten_open,
    "verify --repair": a_repair,
}


def main() -> None:
    for name, journey in JOURNEYS.items():
        with tempfile.TemporaryDirectory() as directory:
            found = journey(Path(directory))
        print(f"{name:16} {found.moves:4} moves over {found.files:2} files")


if __name__ == "__main__":
    main()
