"""A daemon in a container of its own, seen from outside: a sidecar, a privileged DaemonSet.

Bugs these close: a process id that means another process out here (umount waited for that one, and
verify looked through its descriptors), and lost C6 that status did not tell.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import PYTHON, Served, ckptfs, ending


@pytest.fixture
def sidecar(disk_dir: Path) -> Iterator[Served]:
    """Its own mount and pid namespace; the mount comes out by a shared bind (Bidirectional)."""
    volume = disk_dir.parent
    subprocess.run(["mount", "--bind", volume, volume], check=True)
    mount = Served(
        disk_dir,
        prefix=(
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("--propagation", "unchanged"),
        ),
    )
    try:
        subprocess.run(["mount", "--make-shared", volume], check=True)
        with ending(mount):
            yield mount.start_in_foreground()
    finally:
        subprocess.run(["umount", "-l", volume], check=True)


def test_a_daemon_in_another_pid_namespace(sidecar: Served) -> None:
    path = sidecar.path
    program = "import sys; f = open(sys.argv[1], 'w'); f.write('whole'); f.close()"
    subprocess.run([PYTHON, "-c", program, path / "f"], check=True, timeout=20)
    status = sidecar.status()
    assert status["pid"] < os.getpid()
    assert any("--pid=host" in line for line in status["degraded"])
    for command in ("verify", "log"):
        done = ckptfs(command, path)
        assert done.returncode == 8 and "another pid namespace" in done.stderr, done
    done = ckptfs("umount", path)
    assert done.returncode == 0, done
    assert not sidecar.mounted()
    assert (path / "f").read_text() == "whole"
    assert "1 ok" in ckptfs("verify", path).stdout
