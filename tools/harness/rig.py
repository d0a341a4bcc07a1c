"""Mounts to measure on, and measuring by turns.

Each subject runs once per round, in an order that is turned round every time, so that a disk that
is slow for a while is slow for all of them. A mount always ends with its block: taken away by
force if it does not end by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe

from .study import Row

Subject = Callable[[], float]  # does the work once and returns the seconds that count
Samples = dict[str, list[float]]

PLAIN_PROGRAM = ("-m", "ckptfs")
_COMMAND_LIMIT_S = 120.0
_VERIFIED = (0, 1, 4)  # exit codes: clean, repaired, something is wrong
_MOUNT_LIMIT_S = 600.0  # for what one mount does


def alternate(
    subjects: Mapping[str, Subject], rounds: int, on: Path, step: Callable[[], None] = lambda: None
) -> Samples:
    """Measure every subject once per round. One round more goes first, to warm up, uncounted.
    ``on`` is a path on the filesystem that they share; ``step`` is called after each round."""
    samples: Samples = {name: [] for name in subjects}
    for number in range(rounds + 1):
        names: Iterable[str] = subjects if number % 2 else reversed(list(subjects))
        for name in names:
            sync(on)  # what one subject left dirty must not be billed to the next
            seconds = subjects[name]()
            if number:
                samples[name].append(seconds)
        step()
    return samples


def timed(work: Callable[[], object], after: Callable[[], object] = lambda: None) -> Subject:
    """The seconds of ``work``; ``after`` clears up and does not count."""

    def subject() -> float:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        after()
        return seconds

    return subject


def memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def sync(path: Path) -> None:
    """The filesystem of ``path``, and no other: somebody may count what is written to his."""
    fd = os.open(path, os.O_RDONLY)
    try:
        OsFs().sync_all(fd)
    finally:
        os.close(fd)


def fill_page_cache(path: Path) -> None:
    """Read a sparse file of the size of memory at ``path``, so that no memory is left free."""
    step = 8 << 20
    with open(path, "w+b", buffering=0) as ballast:
        ballast.truncate(memory())
        buffer = bytearray(step)
        while ballast.readinto(buffer):
            pass


class Mount:
    """One directory served over itself, started and ended by the commands that users have.
    ``program`` stands for ckptfs where its daemon is to be another one; see ``hooked``."""

    def __init__(self, path: Path, *options: str, program: tuple[str, ...] = PLAIN_PROGRAM) -> None:
        self.path, self.options, self.program = path, options, program

    def start(self) -> Mount:
        with contextlib.suppress(FileExistsError):  # asks nothing of a dead mount
            self.path.mkdir()
        log = self.path.with_suffix(".log")
        done = self._ckptfs("mount", str(self.path), "--log", str(log), *self.options)
        if done.returncode != 0:
            raise CannotServe(done.stderr.strip() or f"{self.path}: could not be mounted")
        return self

    def stop(self) -> None:
        done = self._ckptfs("umount", str(self.path))
        if done.returncode != 0:
            raise CannotServe(done.stderr.strip())

    def __enter__(self) -> Mount:
        try:
            return self.start()
        except BaseException:
            self.take_away()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.take_away()

    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.path / ".ckptfs/status.json").read_text()))

    def below(self) -> Path:
        """The directory under the mount."""
        status = self.status()
        return Path(f"/proc/{status['pid']}/fd/{status['root_fd']}")

    def _ckptfs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *self.program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S)

    def abort(self) -> bool:
        """Fail every request of the mount, which frees who waits for it. False: not mounted."""
        device = mounted_device(self.path)
        if device is None:
            return False
        with contextlib.suppress(OSError):
            abort = Path("/sys/fs/fuse/connections", device.partition(":")[2], "abort")
            abort.write_text("1")
        return True

    def take_away(self) -> None:
        """Nothing is left, whatever state it is in."""
        while self.abort():
            if subprocess.run(["umount", "-l", str(self.path)], check=False).returncode != 0:
                return


@contextlib.contextmanager
def served(
    folder: Path,
    *options: str,
    program: tuple[str, ...] = PLAIN_PROGRAM,
    limit_s: float = _MOUNT_LIMIT_S,
) -> Iterator[Mount]:
    """A mount that is aborted when it takes too long."""
    mount = Mount(folder, *options, program=program)
    watchdog = threading.Timer(limit_s, mount.abort)
    watchdog.daemon = True
    watchdog.start()
    try:
        with mount:
            yield mount
    finally:
        watchdog.cancel()


def verify(folder: Path, limit_s: float = _MOUNT_LIMIT_S) -> tuple[int, list[Row]]:
    """The exit code and the findings of ``ckptfs verify``, sound files included. Raises CannotServe
    where it could not run."""
    command = [sys.executable, *PLAIN_PROGRAM, "verify", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    if done.returncode not in _VERIFIED:
        raise CannotServe(done.stderr.strip() or f"verify ended with {done.returncode}")
    lines = map(json.loads, done.stdout.splitlines())
    return done.returncode, [line for line in lines if "path" in line]


def mounted_device(path: Path) -> str | None:
    """``major:minor`` of the ckptfs mount at ``path``; None if there is none. Cannot hang."""
    for fields in mount_table():
        if fields[4] == str(path) and "fuse.ckptfs" in fields:
            return fields[2]
    return None


def mount_table() -> list[list[str]]:
    """The fields of each line of ``/proc/self/mountinfo``; see proc(5). Asks no mount anything."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return [line.split() for line in mounts]
