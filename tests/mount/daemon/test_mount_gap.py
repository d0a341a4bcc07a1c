"""No moment is unprotected: a daemon is killed and its directory mounted again, while programs that
try again and again save, append and read. None may get the plain directory, none may lose what a
close has acknowledged. ``CKPTFS_KILLS=200`` makes a long run."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mounts
import pytest
from mounts import Served

_KILLS = int(os.environ.get("CKPTFS_KILLS", "8"))
_PROGRAM = """
import json, os, sys, time
directory, what, number, device = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
path, plain, refused, acknowledged = f"{directory}/{what}{number}", 0, 0, 0
flags = {"save": os.O_TRUNC, "add": os.O_APPEND}[what] | os.O_WRONLY | os.O_CREAT
print(flush=True)
while not os.path.exists(sys.argv[5]):
    try:
        fd = os.open(path, flags)
    except OSError:
        refused += 1
        time.sleep(0.0005)
        continue
    try:
        try:
            plain += os.fstat(fd).st_dev == device
            os.write(fd, f"{acknowledged + 1}\\n".encode())
        finally:
            os.close(fd)
    except OSError:
        continue
    acknowledged += 1
print(json.dumps([plain, refused, acknowledged]))
"""


@contextlib.contextmanager
def _at_work(directory: Path, end: Path) -> Iterator[list[tuple[str, subprocess.Popen[str]]]]:
    """Two that save and two that append, each to its own file."""
    device, started = str(directory.parent.stat().st_dev), []
    try:
        for what in ("save", "add"):
            for number in "12":
                command = [mounts.PYTHON, "-c", _PROGRAM, directory, what, number, device, end]
                child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                assert child.stdout is not None
                child.stdout.readline()
                started.append((what + number, child))
        yield started
    finally:
        end.touch()
        for _, child in started:
            if not _ends(child):
                child.kill()
            child.wait(10)


def _ends(child: subprocess.Popen[str]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)
        return True
    return False


def _results(
    served: Served, started: list[tuple[str, subprocess.Popen[str]]], end: Path
) -> tuple[int, int]:
    """How many opens got the plain directory, and how many were refused; nothing is lost."""
    end.touch()
    plain = refused = 0
    for name, child in started:
        out, _ = child.communicate(timeout=30)
        direct, failed, acknowledged = json.loads(out)
        plain, refused = plain + direct, refused + failed
        lines = [int(line) for line in (served.path / name).read_text().split()]
        assert acknowledged > 0
        if name.startswith("save"):
            assert lines and lines[0] in (acknowledged, acknowledged + 1)
        else:
            assert set(range(1, acknowledged + 1)) <= set(lines)
    return plain, refused


def _kill(served: Served) -> None:
    os.kill(served.pid, 9)
    served.wait_until(lambda: not Path(f"/proc/{served.pid}/root").exists())


@pytest.mark.kernel_only(mounts.ONE_INODE)
def test_a_dead_mount_is_replaced_without_a_gap(disk_dir: Path, tmp_path: Path) -> None:
    end = tmp_path / "end"
    with mounts.served(disk_dir, limit_s=mounts.TEST_LIMIT_S + 3 * _KILLS) as served:
        with _at_work(served.path, end) as started:
            for _ in range(_KILLS):
                time.sleep(0.1)
                _kill(served)
                served.start()
            time.sleep(0.1)
            plain, refused = _results(served, started, end)
        assert plain == 0 and refused > 0
        assert mounts.ckptfs("verify", served.path).returncode == 0
    assert str(disk_dir) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.kernel_only(mounts.ONE_INODE)
@pytest.mark.parametrize("command", ["mount", "umount"])
def test_a_connection_that_outlives_its_daemon_is_ended(disk_dir: Path, command: str) -> None:
    """The kernel may keep a thread of a killed daemon, and with it the device: requests waited for
    ever. Here the test keeps the device."""
    with mounts.served(disk_dir) as served:
        (served.path / "a.pt").write_bytes(b"old")
        kept = _device_of(served.pid)
        waiting = None
        try:
            _kill(served)
            save = "import sys; open(sys.argv[1], 'wb').write(b'new')"
            command_line = [mounts.PYTHON, "-c", save, served.path / "a.pt"]
            waiting = subprocess.Popen(command_line, stderr=subprocess.DEVNULL)
            if command == "mount":
                served.start()
                assert (served.path / "a.pt").read_bytes() == b"old"
            else:
                assert mounts.ckptfs("umount", served.path).returncode == 0
                assert (disk_dir / "a.pt").read_bytes() == b"old"
                served.start()
        finally:
            os.close(kept)
            if waiting is not None:
                waiting.kill()
                waiting.wait(10)


@pytest.mark.kernel_only(mounts.ONE_INODE)
def test_commands_answer_where_the_daemon_does_not(mount: Served) -> None:
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        commands = ["status", "status --check", "verify", "log", "doctor", "mount"]
        with ThreadPoolExecutor(len(commands)) as pool:
            asked = [pool.submit(mounts.ckptfs, *c.split(), mount.path) for c in commands]
        for command, told in zip(commands, asked, strict=True):
            done = told.result()
            assert done.returncode == 8, (command, done)
            assert "does not answer" in done.stdout + done.stderr, (command, done)
    finally:
        os.kill(mount.pid, signal.SIGCONT)


def _device_of(pid: int) -> int:
    """A duplicate of a daemon's descriptor of ``/dev/fuse``."""
    number = -1
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it is the daemon's for a moment
            if os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/fuse":
                number = int(fd)
    pidfd = os.pidfd_open(pid)
    duplicate: int = ctypes.CDLL(None).syscall(438, pidfd, number, 0)  # pidfd_getfd
    os.close(pidfd)
    assert duplicate >= 0
    return duplicate


@pytest.mark.kernel_only(mounts.ONE_INODE)
def test_control_a_gap_is_seen(disk_dir: Path, tmp_path: Path) -> None:
    """The dead mount is taken away first."""
    end = tmp_path / "end"
    with mounts.served(disk_dir) as served:
        with _at_work(served.path, end) as started:
            _kill(served)
            subprocess.run(["umount", "-l", served.path], check=True, timeout=10)
            served.start()
            end.touch()
            outs = [json.loads(child.communicate(timeout=30)[0]) for _, child in started]
        assert sum(plain for plain, _, _ in outs) > 0
