"""An error of fsync reaches close() (C2), injected through osfs under a real mount.

A failed fsync is final: the kernel reports it once, and the next fsync returns 0 over lost data.
The faults are armed by a file, so that the same mount shows the control too.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest

DAEMON = """
import errno, os, sys
from ckptfs import osfs, store

class Faulty(osfs.OsFs):
    def fsync(self, fd):
        if os.path.exists(sys.argv[0] + ".fsync"):
            raise OSError(errno.EIO, "injected")
        super().fsync(fd)

    def fsync_dir(self, fd):
        if os.path.exists(sys.argv[0] + ".fsync_dir"):
            raise OSError(errno.EIO, "injected")
        super().fsync_dir(fd)

store.OsFs = Faulty
trigger, sys.argv = sys.argv[1], sys.argv[4:]
sys.argv[0] = trigger
from ckptfs.cli import main
main()
"""


@pytest.fixture
def faulty(disk_dir: Path, tmp_path: Path) -> Iterator[tuple[mounts.Served, Path]]:
    """A mount, and the stem of the files that arm its faults."""
    trigger = tmp_path / "trigger"
    served = mounts.Served(disk_dir, prefix=(sys.executable, "-c", DAEMON, str(trigger)))
    with mounts.ending(served):
        (served.start_in_foreground().path / "model.pt").write_bytes(b"old" * 1000)
        yield served, trigger


def _save(path: Path) -> int:
    """The errno of the close, 0 for success."""
    file = open(path, "wb", buffering=0)  # noqa: SIM115  its close is what is tested
    file.write(b"new" * 1000)
    try:
        file.close()
    except OSError as error:
        return error.errno or -1
    return 0


def test_c2_a_failed_fsync_reaches_close_and_the_old_version_stays(
    faulty: tuple[mounts.Served, Path],
) -> None:
    served, trigger = faulty
    path, armed = served.path / "model.pt", Path(f"{trigger}.fsync")
    armed.touch()
    assert _save(path) == errno.EIO
    assert path.read_bytes() == b"old" * 1000
    assert [e["path"] for e in served.events("aborted")] == ["model.pt"]
    assert "salvage" in mounts.ckptfs("log", served.path).stdout
    armed.unlink()
    assert _save(path) == 0  # the control: the same save without the fault
    assert path.read_bytes() == b"new" * 1000


def test_c2_a_failed_fsync_of_the_writer_is_final(faulty: tuple[mounts.Served, Path]) -> None:
    served, trigger = faulty
    path, armed = served.path / "model.pt", Path(f"{trigger}.fsync")
    with open(path, "wb", buffering=0) as file:
        file.write(b"new")
        armed.touch()
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(file)
        armed.unlink()
        with pytest.raises(OSError, match="Input/output"):
            file.close()
    assert path.read_bytes() == b"old" * 1000


def test_c2_a_failed_directory_fsync_makes_the_mount_read_only(
    faulty: tuple[mounts.Served, Path],
) -> None:
    served, trigger = faulty
    path, armed = served.path / "model.pt", Path(f"{trigger}.fsync_dir")
    armed.touch()
    assert _save(path) == errno.EIO
    armed.unlink()
    with pytest.raises(OSError) as refused:
        (served.path / "other").write_bytes(b"x")
    assert refused.value.errno == errno.EROFS
    assert path.read_bytes() in (b"old" * 1000, b"new" * 1000)
    done = mounts.ckptfs("status", served.path, "--check")
    assert done.returncode == 2
    assert "read-only" in done.stdout
