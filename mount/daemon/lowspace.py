"""Whether the last save would fit on the disk again: said before it happens, once, and in the
status as long as it is so.

What is being written counts as free: it is what the next save takes the place of, or it fails.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable

from ckptfs.disk import osfs
from ckptfs.disk.locks import leaf
from ckptfs.disk.worker import started
from ckptfs.store import Store

log = logging.getLogger("ckptfs.space")

EVENT = "low space"
_LOOK_S = 30.0
_LEAST_SHARE, _LEAST_BYTES = 100, 1 << 30  # free in any case: one part of so many, but no more


class LowSpace:
    """``staged`` gives the descriptors of what is being written."""

    def __init__(self, store: Store, staged: Callable[[], Iterable[int]]) -> None:
        self._store, self._staged = store, staged
        self._told = ""
        self._guard = leaf()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = started(self._run, "space")

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            self.look()

    def look(self) -> str:
        """What is low; empty where nothing is. The first that finds it so says it."""
        with contextlib.suppress(OSError):
            found = self._found()
            with self._guard:
                was, self._told = self._told, found
            if found and not was:
                log.warning("%s", found)
                self._store.alarms.tell(EVENT, "", found)
            elif was and not found:
                log.info("there is room for the last save again")
            return found
        return ""

    def _found(self) -> str:
        space = self._store.fs.space(self._store.root)
        total = space.total_bytes
        free = space.free_bytes + sum(map(_held_bytes, self._staged()))
        largest = self._store.tally.largest_recent()
        if not total or free >= max(largest, min(total // _LEAST_SHARE, _LEAST_BYTES)):
            return ""
        told = f"{EVENT}: {free >> 20} MiB free"
        if free < largest:
            last = f"the largest of the last saves, of {largest >> 20} MiB"
            told += f", and {last}, would not fit, unless salvage or earlier versions go"
        return told


def _held_bytes(fd: int) -> int:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        return osfs.allocated_bytes(os.fstat(fd))
    return 0
