"""Where the threads that read requests stop for a while, so that no request is half done.

Those that wait for a request are woken by one that the daemon makes itself. What nobody reads waits
in the kernel, and fails only if the daemon ends.

Threading: any thread may close the gate, one at a time, but none that reads.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from ckptfs.disk.worker import started

_ASKING_S = 0.002  # between two requests: a mount that is not ours any more answers at once


class Gate:
    def __init__(self, readers: int = 1) -> None:
        self.readers = readers
        self._waiting = 0
        self._changed = threading.Condition()
        self._closed_at: float | None = None
        self._closed_s = 0.0  # altogether, but for now

    def pass_through(self) -> None:
        """A reader is about to ask for a request, and has answered or handed on the last one."""
        if self._closed_at is not None:
            with self._changed:
                self._waiting += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed_at is None)
                self._waiting -= 1

    def now(self) -> float:
        """Seconds by a clock that stands still while the gate is closed: for what a program is
        given to ask again."""
        with self._changed:
            at = time.monotonic() if self._closed_at is None else self._closed_at
            return at - self._closed_s

    @contextlib.contextmanager
    def closed(self, mountpoint: str, limit_s: float) -> Iterator[bool]:
        """No request is read inside; gives False where some reader did not come in time."""
        over = threading.Event()
        with self._changed:
            self._closed_at = time.monotonic()
        try:
            asking = started(lambda: self._ask(mountpoint, over), "gate")
            with self._changed:
                stopped = self._changed.wait_for(self._all_wait, limit_s if asking else 0)
            yield stopped
        finally:
            with self._changed:
                over.set()
                self._closed_s += time.monotonic() - self._closed_at
                self._closed_at = None
                self._changed.notify_all()

    def _all_wait(self) -> bool:
        return self._waiting == self.readers

    def _ask(self, mountpoint: str, over: threading.Event) -> None:
        """A request for each reader that waits for one. The last may be answered by nobody before
        the gate is open again; a thread that waits so can still be killed."""
        stopped = False
        while not stopped:
            with contextlib.suppress(OSError):  # the mount is gone, and with it the readers
                os.statvfs(mountpoint)
            with self._changed:
                stopped = self._changed.wait_for(
                    lambda: over.is_set() or self._all_wait(), _ASKING_S
                )
