"""Where the threads that read requests stop for a while, so that no request is half done.

Those that wait for a request are woken by one that the daemon makes itself. What nobody reads waits
in the kernel, and fails only if the daemon ends.

Threading: any thread may close the gate, one at a time, but none that reads.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator


class Gate:
    def __init__(self, readers: int = 1) -> None:
        self.readers = readers
        self._closed = False
        self._waiting = 0
        self._changed = threading.Condition()

    def pass_through(self) -> None:
        """A reader is about to ask for a request, and has answered or handed on the last one."""
        if self._closed:
            with self._changed:
                self._waiting += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._closed)
                self._waiting -= 1

    @contextlib.contextmanager
    def closed(self, mountpoint: str, limit_s: float) -> Iterator[bool]:
        """No request is read inside; gives False where some reader did not come in time."""
        with self._changed:
            self._closed = True
        try:
            threading.Thread(target=self._ask, args=(mountpoint,), daemon=True).start()
            with self._changed:
                stopped = self._changed.wait_for(self._all_wait, limit_s)
            yield stopped
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()

    def _all_wait(self) -> bool:
        return self._waiting == self.readers

    def _ask(self, mountpoint: str) -> None:
        """A request for each reader that waits for one. The last may be answered by nobody before
        the gate is open again; a thread that waits so can still be killed."""
        while self._closed and not self._all_wait():
            with contextlib.suppress(OSError):  # the mount is gone, and with it the readers
                os.statvfs(mountpoint)
