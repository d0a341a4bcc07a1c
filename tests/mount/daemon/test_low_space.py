"""Low space is said before a save fails for it: the last one would not fit again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import mounts
import pytest
from disks import Disk, leave
from harness import store_on
from mounts import ckptfs

from ckptfs.mount.daemon.lowspace import LowSpace

MIB = 1 << 20


def test_low_space_is_an_alarm_while_it_lasts(ext4: Disk, tmp_path: Path) -> None:
    out = tmp_path / "told"
    command = f'echo "$CKPTFS_EVENT: $CKPTFS_DETAIL" >> {out}'
    with mounts.served(ext4.served, "--keep", "0", "--on-event", command) as mount:
        (mount.path / "last.bin").write_bytes(b"x" * 30 * MIB)
        assert ckptfs("status", mount.path, "--check").returncode == 0
        leave(ext4, 20 * MIB)
        for _ in range(2):
            done = ckptfs("status", mount.path, "--check")
            assert done.returncode == 2
            assert "low space: " in done.stdout and "30 MiB, would not fit" in done.stdout
        assert ckptfs("ack", mount.path).returncode == 0
        assert mount.status()["low_space"] is True
        told = [line for line in mount.log_text().splitlines() if "low space" in line]
        assert len(told) == 1 and " WARNING " in told[0]
        mount.wait_until(out.exists)
        (ext4.path / "ballast").unlink()
        mount.wait_until(lambda: not mount.status()["low_space"])
        assert ckptfs("status", mount.path, "--check").returncode == 0
        assert out.read_text().count("low space") == 2  # the event, and its detail


def test_what_is_being_written_does_not_count_as_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each save on a small disk were low space while it lasts."""
    store = store_on(tmp_path)
    space = os.statvfs(tmp_path)
    free = space.f_bavail * space.f_frsize
    with tempfile.TemporaryFile(dir=tmp_path) as staged:
        os.posix_fallocate(staged.fileno(), 0, 64 * MIB)
        values = list(space)
        values[4] = (free - 64 * MIB) // space.f_frsize
        monkeypatch.setattr(os, "fstatvfs", lambda fd: os.statvfs_result(values))
        store.tally.committed(free - 32 * MIB, 1.0)
        assert LowSpace(store, lambda: [staged.fileno()]).look() == ""
        assert LowSpace(store, list).look()
    store.close()
