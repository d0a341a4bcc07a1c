"""One fault in a daemon, armed from outside: the k-th call of its store fails.

The daemon runs over :func:`armed` (see ``tools.hooked``) and maps the file of a :class:`Switch`;
whoever maps it too arms a fault within microseconds, and hears which call failed. Calls that the
mount makes past the store (``mkdir``, relayed data) are not among them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptfs.disk.filesystem import FileSystem
from ckptfs.errors import CkptfsError
from ckptfs.records import layout
from ckptfs.store.saves import Saves

from ..faults import METHODS, NEVER_FAIL, Call, Intercepted, ShortNth, fall_short


@dataclass(frozen=True)
class Fault:
    """What the k-th of these calls does."""

    errno: int
    methods: Container[str] = METHODS - NEVER_FAIL
    short: bool = False


FAULTS = {
    "EIO": Fault(errno.EIO),
    "ENOSPC": Fault(errno.ENOSPC),
    "EDQUOT": Fault(errno.EDQUOT),
    "EINTR": Fault(errno.EINTR),
    "short": Fault(errno.ENOSPC, ShortNth.METHODS, short=True),
    "fsync": Fault(errno.EIO, {"fsync", "clean", "start_writeback", "sync_all"}),
    "fsync_dir": Fault(errno.EIO, {"fsync_dir"}),
}
_NAMES = list(FAULTS)


class _Words(ctypes.Structure):
    _fields_ = (
        ("k", ctypes.c_uint32),  # 0: disarmed
        ("fault", ctypes.c_uint32),
        ("round", ctypes.c_uint32),
        ("failed", ctypes.c_char * 32),
    )


class Switch:
    """The control file, mapped. One process arms; the other counts, and tells what failed. Nobody
    writes a word of the other's: what was read a moment ago would be put over what is said now."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, ctypes.sizeof(_Words))
            self._words = _Words.from_buffer(mmap.mmap(fd, ctypes.sizeof(_Words)))
        finally:
            os.close(fd)
        self._guard = threading.Lock()
        self._round = self._calls = 0  # of the process that counts

    def arm(self, fault: str, k: int) -> None:
        self.disarm()
        self._words.fault = _NAMES.index(fault)
        self._words.failed = b""
        self._words.round += 1
        self._words.k = k

    def disarm(self) -> None:
        self._words.k = 0

    @property
    def failed(self) -> str:
        """The method that failed; empty if none did."""
        return bytes(self._words.failed).decode()

    def count(self, method: str) -> Fault | None:
        """The fault of this call, if it is the one that fails."""
        k, fault = self._words.k, FAULTS[_NAMES[self._words.fault]]
        if k == 0 or method not in fault.methods:
            return None
        with self._guard:
            if self._round != self._words.round:
                self._round, self._calls = self._words.round, 0
            self._calls += 1
            if self._calls != k:
                return None
            self._words.failed = method.encode()
            return fault


class Armed(Intercepted):
    """A fault meets the threads that somebody waits for. What runs behind them comes and goes with
    the clock: it would shift which call is the k-th."""

    _BEHIND = ("ckptfs-writeback", "ckptfs-sharing", "ckptfs-scrub")

    def __init__(self, below: FileSystem, switch: Switch) -> None:
        super().__init__(below)
        self._switch = switch

    def around(self, call: Call) -> Any:
        if threading.current_thread().name in self._BEHIND:
            return call.run()
        fault = self._switch.count(call.method)
        if fault is None:
            return call.run()
        if fault.short:
            return fall_short(self.below, call, fault.errno)
        raise OSError(fault.errno, f"injected: {os.strerror(fault.errno)}")


def armed(fs: FileSystem, switch: str) -> Intercepted:
    """Every commit reserves its number, so that these calls are among those that fail."""
    layout._GENERATIONS_RESERVED = 1
    return Armed(fs, Switch(Path(switch)))


def lying(fs: FileSystem, switch: str) -> Intercepted:
    """The control: a store whose commit reports success whatever happened."""
    honest = Saves.commit

    def commit(saves: Saves, *arguments: Any) -> Any:
        try:
            return honest(saves, *arguments)
        except (OSError, CkptfsError):
            return None

    Saves.commit = commit  # type: ignore[method-assign, assignment]
    return armed(fs, switch)
