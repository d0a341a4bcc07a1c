"""Ckptfs directories in each other, and a daemon's log and terminal that go."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import PYTHON, Served, ckptfs, ending, served, shell


@contextlib.contextmanager
def once(directory: Path) -> Iterator[None]:
    """Served meanwhile; what is saved stays."""
    mount = Served(directory).start()
    try:
        yield
    finally:
        if ckptfs("umount", directory).returncode != 0:
            mount.end()


@pytest.fixture
def inner(disk_dir: Path) -> Iterator[Path]:
    """A ckptfs directory in a plain one, with one file."""
    inner = disk_dir / "runs" / "one"
    inner.mkdir(parents=True)
    with once(inner):
        (inner / "a.pt").write_bytes(b"saved")
    yield inner


def mount_refused(directory: Path, tmp_path: Path, names: Path) -> None:
    done = ckptfs("mount", directory, "--log", tmp_path / "log")
    assert done.returncode == 8 and f"{names} " in done.stderr.replace(",", " "), done
    ran = ckptfs("run", directory, "true")
    assert ran.returncode == 8 and ran.stderr == done.stderr


def test_one_in_another_is_refused_by_its_name(inner: Path, tmp_path: Path) -> None:
    outer = inner.parent.parent
    mount_refused(outer, tmp_path, inner)
    with once(inner):
        mount_refused(outer, tmp_path, inner)
    assert ckptfs("strip", "--yes", inner).returncode == 0
    with once(outer):
        mount_refused(inner, tmp_path, outer)
        assert (inner / "a.pt").read_bytes() == b"saved"
    mount_refused(inner, tmp_path, outer)


def test_a_copy_that_was_put_into_one_keeps_its_records_and_stops_no_mount(
    inner: Path, tmp_path: Path
) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    with once(outer):
        (outer / "b.pt").write_bytes(b"saved")
    shutil.copytree(inner, outer / "copy")
    mount = Served(outer)
    with ending(mount):
        done = ckptfs("mount", outer, "--log", mount.log)
        mount.pid = mount.status()["pid"]
        assert done.returncode == 0 and f"{outer}/copy is a ckptfs directory" in done.stderr
        assert "1 files checked: 1 ok" in ckptfs("verify", outer).stdout
        mount.umount()
        assert ckptfs("strip", "--yes", outer).returncode == 0
        records_stayed(outer / "copy")


def records_stayed(copy: Path) -> None:
    assert "user.ckptfs" in os.listxattr(copy / "a.pt")
    assert "1 files checked: 1 ok" in ckptfs("verify", copy).stdout


def test_nobody_hides_or_refuses_what_is_others(disk_dir: Path, tmp_path: Path) -> None:
    """By a ``.ckptfs`` of his own in a directory that is not his."""
    folder = disk_dir / "runs"
    folder.mkdir()
    with once(disk_dir):
        (folder / "a.pt").write_bytes(b"saved")
    for place in (folder, disk_dir.parent):
        (place / ".ckptfs").mkdir()
        (place / ".ckptfs/format").write_text("anything")
        os.chown(place / ".ckptfs", 65534, 65534)
    assert "2 files checked: 1 ok" in ckptfs("verify", disk_dir).stdout
    with once(disk_dir):
        assert (folder / "a.pt").read_bytes() == b"saved"
    os.chown(folder / ".ckptfs", 0, 0)
    assert "runs: a ckptfs directory itself, not looked at" in ckptfs("verify", disk_dir).stdout


def test_a_rotated_log_is_gone_on_with_under_its_name(disk_dir: Path) -> None:
    with served(disk_dir) as mount:
        rotated = mount.log.with_suffix(".1")
        mount.log.rename(rotated)
        os.kill(mount.pid, signal.SIGHUP)
        mount.wait_until(mount.log.exists)
        (disk_dir / "a").write_bytes(b"saved")
        mount.umount()
        mount.wait_until(lambda: "ended;" in mount.log_text())
        assert "serving" in rotated.read_text() and "ended;" not in rotated.read_text()


def test_a_mount_ends_in_order_when_its_terminal_is_closed(disk_dir: Path) -> None:
    """It was killed, and left a dead mount."""
    mount = Served(disk_dir)
    with ending(mount):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(PYTHON, [PYTHON, "-m", "ckptfs", "mount", str(disk_dir), "--foreground"])
        mount.wait_until(mount.mounted)
        mount.wait_until(lambda: ckptfs("status", disk_dir).returncode == 0)
        shell("echo saved > a", disk_dir)
        os.close(terminal)
        mount.wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
        assert not mount.mounted() and (disk_dir / "a").read_text() == "saved\n"
        assert subprocess.run(["umount", disk_dir], stderr=subprocess.DEVNULL).returncode != 0


def test_only_files_without_a_record_are_warned_of(disk_dir: Path, tmp_path: Path) -> None:
    """A backup that was restored with its xattrs was said to have none."""
    with once(disk_dir):
        (disk_dir / "a.pt").write_bytes(b"saved")
    shutil.rmtree(disk_dir / ".ckptfs")
    assert os.listxattr(disk_dir / "a.pt") == ["user.ckptfs"]
    done = ckptfs("mount", disk_dir, "--log", tmp_path / "log")
    assert (done.returncode, done.stderr) == (0, "")
    assert ckptfs("umount", disk_dir).returncode == 0
    shutil.rmtree(disk_dir / ".ckptfs")
    (disk_dir / "b.pt").write_bytes(b"there before")
    done = ckptfs("mount", disk_dir, "--log", tmp_path / "log")
    assert "warning: 1 file has no record yet" in done.stderr
    assert ckptfs("umount", disk_dir).returncode == 0


@pytest.mark.parametrize("command", ["log", "verify", "rollback", "adopt"])
def test_a_file_in_no_ckptfs_directory_says_so(tmp_path: Path, command: str) -> None:
    """It was said to be no directory."""
    (tmp_path / "last.pt").write_bytes(b"plain")
    done = ckptfs(command, tmp_path / "last.pt")
    assert done.returncode == 8 and "last.pt: lies in no ckptfs directory" in done.stderr, done
