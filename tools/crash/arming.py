"""One fault in a daemon, armed from outside: the k-th call of its store fails.

The daemon runs over :func:`armed` (see ``tools.hooked``) and maps the file of a :class:`Switch`;
whoever maps it too arms a fault within microseconds, and hears how many calls there were and which
one failed. Calls that the mount makes past the store (``mkdir``, relayed data) are not among them.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptfs import layout
from ckptfs.errors import CkptfsError
from ckptfs.osfs import FileSystem
from ckptfs.store import Store
from ckptfs.tools.faults import METHODS, NEVER_FAIL, Call, Intercepted, ShortNth, fall_short


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


class Switch:
    """The control file, mapped. One process arms, the other counts."""

    _FORMAT = struct.Struct("=IIII32s")  # k (0: disarmed), number of the fault, calls, done, failed

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, self._FORMAT.size)
            self._map = mmap.mmap(fd, self._FORMAT.size)
        finally:
            os.close(fd)
        self._guard = threading.Lock()

    def arm(self, fault: str, k: int) -> None:
        self._FORMAT.pack_into(self._map, 0, 0, _NAMES.index(fault), 0, 0, b"")
        struct.pack_into("=I", self._map, 0, k)

    def disarm(self) -> None:
        struct.pack_into("=I", self._map, 0, 0)

    @property
    def calls(self) -> int:
        return int(self._FORMAT.unpack_from(self._map)[2])

    @property
    def failed(self) -> str:
        """The method that failed; empty if none did."""
        return str(self._FORMAT.unpack_from(self._map)[4].rstrip(b"\0").decode())

    def count(self, method: str) -> Fault | None:
        """The fault of this call, if it is the one that fails."""
        with self._guard:
            k, number, calls, done, _ = self._FORMAT.unpack_from(self._map)
            fault = FAULTS[_NAMES[number]]
            if k == 0 or method not in fault.methods:
                return None
            fails = not done and calls + 1 == k
            failed = method.encode() if fails else self.failed.encode()
            self._FORMAT.pack_into(self._map, 0, k, number, calls + 1, done or fails, failed)
            return fault if fails else None


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
    honest = Store.commit

    def commit(store: Store, *arguments: Any) -> Any:
        try:
            return honest(store, *arguments)
        except (OSError, CkptfsError):
            return None

    Store.commit = commit  # type: ignore[method-assign, assignment]
    return armed(fs, switch)
