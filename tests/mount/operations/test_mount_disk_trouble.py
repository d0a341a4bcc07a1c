"""C1, C2 in real trouble: a full disk, no room for xattrs, a filesystem that stops, a clock that
goes back. Each on a filesystem of its own in an image file, under a mount."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import mounts
import pytest
from disks import LIMIT_S, Disk, disk_of, serving, verified
from harness import rot
from images import mount_image

from ckptfs.tools import hooked, rig
from ckptfs.tools.rig import sync

OLD, NEW = b"old " * 50_000, b"new " * 60_000
XFS_SHUT_DOWN = 0x8004587D  # XFS_IOC_GOINGDOWN


SAVE = """
import json, os, sys
path, data = sys.argv[1], sys.argv[2].encode() * int(sys.argv[3])

def save():
    told = []
    def call(function, *arguments):
        try:
            return function(*arguments)
        except OSError as error:
            told.append([function.__name__, error.errno])
            raise
    try:
        fd = call(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[call(os.write, fd, rest):]
            call(os.fsync, fd)
        finally:
            call(os.close, fd)
    except OSError:
        pass
    return told

for line in sys.stdin:
    told = save()
    try:
        with open(path, "rb") as file:
            content = file.read()
        found = "new" if content == data else content[:4].decode() + str(len(content))
    except OSError as error:
        found = error.errno
    print(json.dumps([told, found]), flush=True)
"""


class Saver:
    """A program that saves whenever it is told to, in a process that is given up on in time."""

    def __init__(self, path: Path, data: bytes) -> None:
        command = [sys.executable, "-c", SAVE, str(path), data[:4].decode(), str(len(data) // 4)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def save(self) -> tuple[list[int], Any]:
        """The errnos it was told, and what it reads then: ``new``, else the first bytes and the
        length; an errno where it cannot read."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        assert select.select([self._process.stdout], [], [], LIMIT_S)[0], "it hangs"
        told, found = json.loads(self._process.stdout.readline())
        return [code for _, code in told], found


KEPT = f"old {len(OLD)}"


# --- no room -------------------------------------------------------------------------------------


def test_c2_saves_on_a_full_disk_say_so_until_it_is_freed(disk: Disk) -> None:
    with serving(disk) as served, Saver(served.path / "a.pt", NEW) as saver:
        for _ in range(3):  # from now on there is history, so that a commit takes little room
            (served.path / "a.pt").write_bytes(OLD)
        ballast = disk.fill()
        for number in range(10):
            if number % 2:  # room for a part of it
                os.truncate(ballast, ballast.stat().st_size - (64 << 10))
            told, found = saver.save()
            assert told
            assert set(told) <= {errno.ENOSPC}
            assert found == KEPT
        assert mounts.ckptfs("status", served.path, "--check").returncode == 2
        ballast.unlink()
        sync(disk.path)
        assert saver.save() == ([], "new")
        verified(served.path)
    verified(disk.served)
    assert (disk.served / "a.pt").read_bytes() == NEW


def test_control_written_in_place_the_old_version_is_lost_on_a_full_disk(disk: Disk) -> None:
    with serving(disk, "--mode", "unsafe") as served, Saver(served.path / "a.pt", NEW) as saver:
        (served.path / "a.pt").write_bytes(OLD)
        ballast = disk.fill()
        told, found = saver.save()
        assert told[0] == errno.ENOSPC
        assert found not in (KEPT, "new")
        ballast.unlink()


def test_a_truncate_that_the_filesystem_refuses_leaves_nothing_behind(ext4: Disk) -> None:
    """Each left a whole copy in stage until the next mount."""
    with serving(ext4) as served:
        path = served.path / "a.pt"
        path.write_bytes(OLD)
        open_before = len(os.listdir(f"/proc/{served.pid}/fd"))
        for _ in range(3):
            with pytest.raises(OSError) as refused:
                os.truncate(path, 17 << 40)  # more than a file of ext4 can have
            assert refused.value.errno == errno.EFBIG
        assert not os.listdir(served.below / ".ckptfs/stage")
        assert len(os.listdir(f"/proc/{served.pid}/fd")) <= open_before
        assert path.read_bytes() == OLD
        verified(served.path)


def test_c2_records_go_to_sidecars_where_the_xattrs_of_a_file_are_full(ext4: Disk) -> None:
    with serving(ext4) as served:
        path = served.path / "a.pt"
        path.write_bytes(OLD)
        _fill_xattrs(path)
        with Saver(path, NEW) as saver:
            assert saver.save() == ([], "new")
        assert os.getxattr(path, "user.fill0")  # inherited
        assert any((served.below / ".ckptfs/sidecar").iterdir())
        assert any("sidecar" in warning for warning in served.status()["degraded"])
        verified(served.path)
        _killed_in_a_save(served)
        served.start()
        assert path.read_bytes() == NEW
        assert any("sidecar" in warning for warning in served.status()["degraded"])
        rot(served.below / "a.pt", 9)
        verified_by_reading = mounts.python(
            "import sys; sys.stdout.write(open(sys.argv[1]).read(4))", path
        )
        assert verified_by_reading == "old "  # the record in the sidecar noticed it
        verified(served.path)
    verified(ext4.served)


def _fill_xattrs(path: Path) -> None:
    """Until not even one of a byte fits."""
    number = 0
    for size in (1000, 200, 20, 1):
        with contextlib.suppress(OSError):
            while True:
                os.setxattr(path, f"user.fill{number}", b"x" * size)
                number += 1
    assert number > 3


def _killed_in_a_save(served: mounts.Served) -> None:
    """The daemon is, while somebody writes."""
    with contextlib.suppress(OSError), open(served.path / "a.pt", "wb") as file:
        file.write(b"half")
        file.flush()
        os.kill(served.pid, 9)
        mounts.Served.wait_until(served, lambda: not Path(f"/proc/{served.pid}/root").exists())


# --- a filesystem that stops ---------------------------------------------------------------------


def test_c2_a_disk_that_turns_read_only_fails_saves_and_serves_reads(ext4: Disk) -> None:
    """What ``errors=remount-ro`` does; only unmounting ends it."""
    with serving(ext4) as served, Saver(served.path / "a.pt", NEW) as saver:
        (served.path / "a.pt").write_bytes(OLD)
        assert ext4.run("mount", "-o", "remount,abort", ext4.path).returncode == 0
        for _ in range(3):
            told, found = saver.save()
            assert told
            assert set(told) <= {errno.EROFS, errno.EIO}
            assert found == KEPT
        assert mounts.ckptfs("status", served.path).returncode == 0
    ext4.umount()
    assert ext4.run("e2fsck", "-fy", ext4.image).returncode in (0, 1)
    mount_image(ext4)
    _goes_on(ext4)


def test_c2_a_version_that_was_open_when_the_disk_stopped_is_not_saved(ext4: Disk) -> None:
    with serving(ext4) as served:
        path = served.path / "a.pt"
        path.write_bytes(OLD)
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, NEW)
        assert ext4.run("mount", "-o", "remount,abort", ext4.path).returncode == 0
        with pytest.raises(OSError) as told:
            os.close(fd)
        assert told.value.errno in (errno.EROFS, errno.EIO)
        assert path.read_bytes() == OLD


def test_c2_a_filesystem_that_was_shut_down_fails_everything_and_hangs_nothing(
    tmp_path: Path,
) -> None:
    with disk_of("xfs", tmp_path) as xfs:
        with serving(xfs) as served, Saver(served.path / "a.pt", NEW) as saver:
            (served.path / "a.pt").write_bytes(OLD)
            _shut_down(xfs)
            for _ in range(3):
                told, found = saver.save()
                assert told
                assert set(told) <= {errno.EIO, errno.EROFS}
                assert found in (KEPT, errno.EIO)
        xfs.umount()
        mount_image(xfs)
        _goes_on(xfs)


def _shut_down(xfs: Disk) -> None:
    fd = os.open(xfs.path, os.O_RDONLY)
    libc, flags = ctypes.CDLL(None, use_errno=True), ctypes.c_uint32(1)  # the log is flushed
    assert libc.ioctl(fd, ctypes.c_ulong(XFS_SHUT_DOWN), ctypes.byref(flags)) == 0
    os.close(fd)


def _goes_on(disk: Disk) -> None:
    with serving(disk) as served, Saver(served.path / "a.pt", NEW) as saver:
        assert (served.path / "a.pt").read_bytes() == OLD
        assert saver.save() == ([], "new")
        verified(served.path)


def test_a_filesystem_cannot_be_made_read_only_while_it_is_served(disk: Disk) -> None:
    with serving(disk) as served, Saver(served.path / "a.pt", NEW) as saver:
        assert disk.run("mount", "-o", "remount,ro", disk.path).returncode != 0  # busy
        assert saver.save() == ([], "new")


# --- a clock that goes back ----------------------------------------------------------------------


def test_generations_and_rollback_do_not_depend_on_a_clock(disk_dir: Path) -> None:
    """It goes back a year whenever somebody looks, and the files are of any age."""
    program = hooked.program("ckptfs.tools.faults:clock_going_back", "")
    with rig.served(disk_dir, "--keep", "9", program=program) as mount:
        path = disk_dir / "a.pt"
        for number in range(4):
            path.write_text(f"version {number}")
            os.utime(path, (1_000_000_000 - number, 1_000_000_000 - number))
        history = disk_dir / ".ckptfs/history/a.pt"
        kept = sorted(int(name) for name in os.listdir(history))
        assert [(history / str(n)).read_text() for n in kept] == [f"version {n}" for n in range(3)]
        verified(disk_dir)
        assert mounts.ckptfs("rollback", disk_dir, "a.pt").returncode == 0
        assert path.read_text() == "version 2"
        assert mounts.ckptfs("rollback", disk_dir, "a.pt", "--to", kept[0]).returncode == 0
        assert path.read_text() == "version 0"
        log = mounts.ckptfs("log", disk_dir, "a.pt").stdout.splitlines()
        shown = [int(line.split()[1]) for line in log if line.startswith("generation")]
        assert shown == sorted(shown, reverse=True)
        assert len(shown) == 6
        assert "current" in log[0]
        rot(mount.below() / "a.pt", 5)
        assert path.read_text() == "version 2"  # the newest good one
        verified(disk_dir)
    verified(disk_dir)
