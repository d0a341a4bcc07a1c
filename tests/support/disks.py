"""Filesystems in image files, to be filled and broken, each a test's own: ``disk``, ``ext4``."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from images import Mounted, make_image, mount_image

from ckptfs.tools.rig import sync

LIMIT_S = 60


class Disk(Mounted):
    """A filesystem in an image file, and a directory on it that can be served."""

    @property
    def served(self) -> Path:
        return self.path / "checkpoints"

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [str(word) for word in words]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)

    def umount(self) -> None:
        done = self.run("umount", self.path)
        assert done.returncode == 0, done.stderr

    def fill(self) -> Path:
        """Leave no room: a file that takes it all."""
        ballast = self.path / "ballast"
        fd = os.open(ballast, os.O_RDWR | os.O_CREAT)
        try:
            for step in (64 << 20, 8 << 20, 1 << 20, 64 << 10, 4 << 10):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(fd, os.fstat(fd).st_size, step)
        finally:
            os.close(fd)
        return ballast

    def end(self) -> None:
        while os.path.ismount(self.path):
            if self.run("umount", "-l", self.path).returncode != 0:
                break
        assert self.image is not None
        self.image.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_of(kind: str, folder: Path) -> Iterator[Disk]:
    if mounts.why_no_mounts():
        pytest.skip(f"cannot mount here: {mounts.why_no_mounts()}")
    disk = Disk(kind, folder / kind, folder / f"{kind}.img")
    make_image(disk)
    try:
        mount_image(disk)
        disk.served.mkdir()
        yield disk
    finally:
        disk.end()


@contextlib.contextmanager
def serving(disk: Disk, *options: str) -> Iterator[mounts.Served]:
    """Unmounted at the end of the block, or aborted. The log lies on a disk without trouble."""
    served = mounts.Served(disk.served, *options)
    served.log = disk.image.parent / "served.log"
    watchdog = threading.Timer(mounts.TEST_LIMIT_S, served.abort)
    watchdog.start()
    try:
        yield served.start()
        served.umount()
        assert "Traceback" not in served.log_text(), served.log_text()
    finally:
        watchdog.cancel()
        served.end()


def verified(path: Path) -> None:
    done = mounts.ckptfs("verify", path)
    assert done.returncode == 0, done.stdout


def leave(disk: Disk, free_bytes: int) -> None:
    """Take all but that much of the disk away, as far as it can be told."""
    with open(disk.path / "ballast", "ab") as file, contextlib.suppress(OSError):
        while (much := free_on(disk) - free_bytes) > 0:
            size = os.fstat(file.fileno()).st_size
            os.posix_fallocate(file.fileno(), size, min(much, 8 << 20))
            sync(disk.path)


def free_on(disk: Disk) -> int:
    status = os.statvfs(disk.path)
    return status.f_bavail * status.f_frsize


def killed_save(path: Path, size: int) -> None:
    """Its bytes go to salvage."""
    code = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    file.write(bytes(int(sys.argv[2])))
    os.kill(os.getpid(), 9)
"""
    with pytest.raises(AssertionError):
        mounts.python(code, path, size)
