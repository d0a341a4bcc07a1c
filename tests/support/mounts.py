"""Real mounts for tests: started by the command, ended whatever happens.

A dead or stuck FUSE server blocks every process that touches its mount. So a watchdog aborts the
connection when a test takes too long, and every child that touches the mount has a timeout.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import rot

from ckptfs.tools.rig import PLAIN_PROGRAM

PYTHON = sys.executable
CONNECTIONS = Path("/sys/fs/fuse/connections")
TEST_LIMIT_S = 60.0
CHILD_LIMIT_S = 30.0

# Why a test is marked kernel_only: what libfuse's path API cannot do (docs/design.md).
ONE_INODE = "libfuse has one inode for all versions of a path, so pages and sizes would mix"
NO_NAME = "libfuse answers fstat of a deleted file with ENOENT: it has no path"
NOT_THERE = "libfuse's path API does not have it"
NO_CACHE = "through libfuse the kernel keeps no names and no attributes"
OWN_LOCKS = "libfuse leaves locks to the kernel: the daemon does not hear of them"


def binding() -> str:
    """How the mounts of this run speak FUSE (``pytest --binding``)."""
    return os.environ.get("CKPTFS_BINDING", "kernel")


def why_no_mounts() -> str:
    """Why this machine cannot carry the mount tests; empty if it can."""
    if sys.platform != "linux":
        return "not Linux"
    if os.geteuid() != 0:
        return "mount(2) needs root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no usable /dev/fuse"
    return ""


def ckptfs(*arguments: object, limit_s: float = CHILD_LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Run the command; never raises for its exit code."""
    command = [PYTHON, "-m", "ckptfs", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit_s)


def python(
    code: str, *arguments: object, limit_s: float = CHILD_LIMIT_S, cwd: Path | None = None
) -> str:
    """Run a program in a process of its own; its stdout. Raises if it fails."""
    command = [PYTHON, "-c", code, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shell(script: str, cwd: Path, limit_s: float = CHILD_LIMIT_S) -> str:
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=limit_s, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Served:
    """One directory served over itself, with the options given to `ckptfs mount`."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        prefix: tuple[str, ...] = (),
        program: tuple[str, ...] = PLAIN_PROGRAM,
    ) -> None:
        self.path, self.options, self.prefix, self.program = directory, options, prefix, program
        self.log = directory.parent / f"{directory.name}.log"
        self.pid = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.table = "/proc/self/mountinfo"

    def ckptfs(
        self, *words: object, limit_s: float = CHILD_LIMIT_S
    ) -> subprocess.CompletedProcess[str]:
        return ckptfs(*words, limit_s=limit_s)

    def start(self) -> Served:
        """Mount in the background, as a user does; returns once it serves."""
        done = self.ckptfs("mount", self.path, "--log", self.log, *self.options)
        assert done.returncode == 0, done.stderr
        self.pid = self.status()["pid"]
        return self

    def start_in_foreground(self) -> Served:
        """As a child of the test, so that ``prefix`` (unshare…) can change its surroundings."""
        command = [*self.prefix, PYTHON, *self.program, "mount", str(self.path), "--foreground"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stderr=log, stdout=log)
        deadline = time.monotonic() + CHILD_LIMIT_S
        while not self.mounted():
            assert self.process.poll() is None, self.log_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.status()
        return self

    def mounted(self) -> bool:
        return self._mount_entry() is not None

    def _mount_entry(self) -> list[str] | None:
        with open(self.table, errors="surrogateescape") as mounts:
            for line in mounts:
                fields = line.split()
                if fields[4] == str(self.path) and "fuse.ckptfs" in fields:
                    return fields
        return None

    def status(self) -> dict[str, Any]:
        done = self.ckptfs("status", self.path, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def events(self, what: str) -> list[dict[str, Any]]:
        return [event for event in self.status()["events"] if event["event"] == what]

    @property
    def below(self) -> Path:
        """The directory under the mount, by the daemon's own descriptor."""
        status = self.status()
        return Path(f"/proc/{status['pid']}/fd/{status['root_fd']}")

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def umount(self) -> None:
        done = self.ckptfs("umount", self.path)
        assert done.returncode == 0, done.stderr

    def wait_until(self, condition: Any, limit_s: float = 10.0) -> None:
        """For what follows a RELEASE, which no process waits for."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            time.sleep(0.01)

    def abort(self) -> None:
        """Fail every request of the connection: frees whoever is blocked on it."""
        entry = self._mount_entry()
        if entry is None:
            return
        if not os.path.ismount(CONNECTIONS):
            subprocess.run(["mount", "-t", "fusectl", "none", CONNECTIONS], check=False)
        number = entry[2].partition(":")[2]
        with contextlib.suppress(OSError):
            (CONNECTIONS / number / "abort").write_text("1")

    def detach(self) -> int:
        return subprocess.run(["umount", "-l", self.path], check=False).returncode

    def end(self) -> None:
        """Whatever state it is in: no mount, no process is left."""
        with contextlib.suppress(Exception):
            if self.mounted():
                self.ckptfs("umount", self.path, limit_s=10)
        if self.mounted():
            self.abort()
        while self.mounted():
            if self.detach() != 0:
                break
        for pid in {self.pid, self.process.pid if self.process else 0} - {0}:
            _kill(pid)
        if self.process is not None:
            self.process.wait(10)


def _kill(pid: int) -> None:
    """End our own server; it may have ended, and its number may belong to another by now."""
    with contextlib.suppress(OSError):
        if b"ckptfs" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def served(directory: Path, *options: str, limit_s: float = TEST_LIMIT_S) -> Iterator[Served]:
    """A mount of ``directory`` that ends with the block."""
    mount = Served(directory, *options)
    with ending(mount, limit_s):
        yield mount.start()


@contextlib.contextmanager
def ending(mount: Served, limit_s: float = TEST_LIMIT_S) -> Iterator[Served]:
    """The mount is ended after the block, and aborted if the block takes longer than allowed."""
    watchdog = threading.Timer(limit_s, mount.abort)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield mount
        assert "Traceback" not in mount.log_text(), mount.log_text()
    finally:
        watchdog.cancel()
        mount.end()
        shutil.rmtree(mount.path, ignore_errors=True)


def roll_back(mount: Served, name: str) -> None:
    for content in ("old", "new"):
        (mount.path / name).write_text(content)
    rot(mount.below / name)
    assert (mount.path / name).read_text() == "old"


HOLD = """
import os, sys, time
file = open(sys.argv[1], "wb", buffering=0)
file.write(sys.argv[2].encode())
print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def child(code: str, *arguments: object, **how: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line, and that goes on until its stdin is closed."""
    process = subprocess.Popen(
        [PYTHON, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **how,  # type: ignore[call-overload]
    )
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None and process.stdout.readline(), "the child said nothing"
        yield process
    finally:
        watchdog.cancel()
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)
        process.kill()
        process.communicate()
