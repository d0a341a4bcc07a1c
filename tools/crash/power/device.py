"""Block devices whose every write is logged, and devices that show any image.

No device mapper is needed: QEMU's storage daemon serves an image as a file through FUSE, a loop
device stands on that file, and its driver ``blklogwrites`` writes what arrives there, flushes too,
in the format of dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckptfs.disk import osfs
from ckptfs.errors import CannotServe

from .states import SECTOR_BYTES, Entry, Extent

_DAEMON = "qemu-storage-daemon"
_LIMIT_S = 60.0
_HEADER = struct.Struct("<QQQQ")  # sector, sectors, flags, length of data
_FLUSH, _DISCARD = 1, 4
_PUNCH = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_READY_S = 10.0
_NOT_LAZY = "lazy_itable_init=0,lazy_journal_init=0"  # else a thread writes while we record

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Kind:
    """A filesystem: how it is made, and mounted."""

    name: str
    size_bytes: int
    make: tuple[str, ...]
    no_barriers: str = ""  # the mount option, where there is one


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "ext4",
            64 << 20,
            ("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-E", _NOT_LAZY),
            "barrier=0",
        ),
        Kind("xfs", 320 << 20, ("mkfs.xfs", "-q", "-f")),
        Kind("btrfs", 192 << 20, ("mkfs.btrfs", "-q", "-f"), "nobarrier"),
    )
}


def why_not(kind: str) -> str:
    """Why this machine cannot record such a filesystem; empty if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    for program in (_DAEMON, KINDS[kind].make[0]):
        if shutil.which(program) is None:
            return f"{program} is not installed; `sh .ci/packages` does"
    return ""


def run(*command: object) -> str:
    """The output of a command. Raises CannotServe with its complaint."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=_LIMIT_S
    )
    if done.returncode != 0:
        raise CannotServe(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def mount(device: str, at: Path, kind: str, options: str = "") -> None:
    """mount(2). Raises OSError."""
    words = (os.fsencode(word) for word in (device, at, kind))
    if _libc.mount(*words, 0, options.encode() or None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"mount {kind}")


def unmount(device: str, at: Path) -> None:
    """umount2(2). On return nobody has the filesystem: for a moment somebody may still look at it,
    and a mount namespace that was made meanwhile has a mount of its own. Raises OSError."""
    deadline = time.monotonic() + _READY_S
    for step in (partial(_umount2, at), partial(_open_alone, device)):
        while True:
            try:
                step()
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)


def _umount2(at: Path) -> None:
    if _libc.umount2(os.fsencode(at), 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(at))


def _open_alone(device: str) -> None:
    os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))  # EBUSY: it is mounted


def make(kind: Kind, image: Path) -> None:
    """An empty filesystem, as a sparse file."""
    with open(image, "wb") as file:
        file.truncate(kind.size_bytes)
    run(*kind.make, image)
    run("fallocate", "--dig-holes", image)


def extents(fd: int) -> Iterator[Extent]:
    """Where a sparse file has data."""
    end, size = 0, os.fstat(fd).st_size
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield Extent(start, end)


@contextlib.contextmanager
def loop(file: Path) -> Iterator[str]:
    """A block device on the file."""
    device = run("losetup", "--find", "--show", file)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


class Recorder:
    """A block device on ``image``; what is written to it goes to ``log``, too."""

    def __init__(self, image: Path, log: Path) -> None:
        self.image, self.log = image, log
        self._export = image.with_suffix(".export")

    @contextlib.contextmanager
    def recording(self) -> Iterator[str]:
        """The device, while it is there. The log is whole afterwards."""
        self.log.touch()
        self._export.touch()
        daemon = subprocess.Popen(self._command(), stdout=subprocess.DEVNULL)
        try:
            self._wait_ready(daemon)
            with loop(self._export) as device:
                yield device
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(_READY_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(_READY_S)
            if os.path.ismount(self._export):
                run("umount", "-l", self._export)

    def _command(self) -> list[str]:
        def node(driver: str, name: str, **options: object) -> list[str]:
            given = {"driver": driver, "node-name": name, **options}
            return ["--blockdev", ",".join(f"{key}={value}" for key, value in given.items())]

        sectors = {"log-sector-size": SECTOR_BYTES}
        return [
            _DAEMON,
            *node("file", "image", filename=self.image),
            *node("file", "log", filename=self.log),
            *node("blklogwrites", "logged", file="image", log="log", **sectors),
            "--export",
            f"type=fuse,id=export,node-name=logged,mountpoint={self._export},writable=on",
        ]

    def _wait_ready(self, daemon: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _READY_S
        while not os.path.ismount(self._export):
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise CannotServe(f"{_DAEMON} does not serve {self.image}")
            time.sleep(0.005)


def entries(log: bytes) -> Iterator[Entry]:
    """What a log says, in its order. The first sector is its superblock."""
    at = SECTOR_BYTES
    while at + _HEADER.size <= len(log):
        sector, sectors, flags, _ = _HEADER.unpack_from(log, at)
        begin, at = at, at + SECTOR_BYTES
        if flags & _FLUSH:
            yield Entry(begin, flush=True)
        if sectors:
            size = sectors * SECTOR_BYTES
            yield Entry(begin, sector * SECTOR_BYTES, size, 0 if flags & _DISCARD else at)
            at += 0 if flags & _DISCARD else size


class Screen:
    """A block device that shows one image after another."""

    def __init__(self, file: Path, size_bytes: int) -> None:
        self.fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self.fd, size_bytes)

    def show(self, image: bytes | bytearray, shown: list[Extent]) -> None:
        """Let the file hold ``image``, which is the ``shown`` parts one after another, and zeros
        elsewhere. Nobody has the device open: the kernel keeps nothing of it then."""
        for found in list(extents(self.fd)):
            self._clear(found, shown)
        view, at = memoryview(image), 0
        for extent in shown:
            size = extent.end - extent.start
            os.pwrite(self.fd, view[at : at + size], extent.start)
            at += size

    def _clear(self, found: Extent, shown: list[Extent]) -> None:
        """Punch what of ``found`` is not ``shown``."""
        at = found.start
        for extent in shown:
            if extent.end <= at or extent.start >= found.end:
                continue
            self._punch(at, extent.start)
            at = extent.end
        self._punch(at, found.end)

    def _punch(self, start: int, end: int) -> None:
        if start < end:
            osfs.allocate(self.fd, _PUNCH, start, end - start)

    def close(self) -> None:
        os.close(self.fd)
