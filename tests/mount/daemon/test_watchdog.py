"""A daemon that is dead and cannot end keeps nobody waiting: a part of it stands in the kernel, for
a lock that a program holds which waits for its answer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest

# One thread is left when the first has ended: so the process is dead, and cannot end.
DEAD = """
import ctypes, sys, threading, time
from ckptfs.mount.daemon.watchdog import Watchdog
Watchdog().watch(sys.argv[1])
threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
if sys.argv[2] == "stuck":
    ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.fixture
def mount(disk_dir: Path) -> Iterator[mounts.Served]:
    with mounts.served(disk_dir) as served:
        yield served


def _is_served(mount: mounts.Served) -> bool:
    try:
        mount.path.stat()
    except OSError as error:
        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        return False
    return True


def _dies(mount: mounts.Served, how: str) -> subprocess.Popen[bytes]:
    device = os.stat(mount.path).st_dev
    connection = f"{os.major(device)}:{os.minor(device)}"
    return subprocess.Popen([sys.executable, "-c", DEAD, connection, how])


@pytest.mark.kernel_only("libfuse tells the kernel of no name")
def test_the_connection_of_a_daemon_that_cannot_end_is_ended(mount: mounts.Served) -> None:
    dead = _dies(mount, "stuck")
    try:
        mount.wait_until(lambda: not _is_served(mount))
    finally:
        dead.kill()
        dead.wait(10)


def test_a_daemon_that_ends_takes_no_other_mount_along(mount: mounts.Served) -> None:
    assert _dies(mount, "ends").wait(20) == 0
    time.sleep(1.5)
    assert _is_served(mount)


def test_the_watchdog_goes_with_its_daemon(mount: mounts.Served) -> None:
    def watchdogs() -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(mount.pid)], capture_output=True, text=True)
        return [int(each) for each in found.stdout.split()]

    left = watchdogs()
    assert left
    mount.umount()
    mount.wait_until(lambda: not any(Path(f"/proc/{each}").exists() for each in left))
