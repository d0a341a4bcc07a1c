"""What no request tells of a set: that its writers have ended, or write no more. A thread looks, as
long as a set is on its way; the end of a writer wakes it at once.

Threading: the thread holds no lock between two looks; who holds ``Sets.lock`` may wake it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading

from ckptfs.disk.worker import started

from . import deciding
from .table import Sets

log = logging.getLogger("ckptfs.sets")

_LOOK_S = 0.2
_REAPED_S = 0.01


class SetWatch:
    def __init__(self, sets: Sets) -> None:
        self._sets = sets
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def wake(self) -> None:
        """The caller holds ``Sets.lock``. Where no thread is to be had it begins with the next
        call."""
        if self._thread is None and not self._stopped.is_set():
            self._thread = started(self._run, "sets")

    def stop(self) -> None:
        """The thread has ended on return."""
        self._stopped.set()
        with self._sets.lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wait_for_an_end()
            try:
                self.look()
            except Exception:
                log.exception("looking at sets failed by a defect")
            with self._sets.lock:
                if not self._sets.all():
                    self._thread = None
                    return

    def look(self) -> None:
        deciding.settle_all(self._sets)

    def _wait_for_an_end(self) -> None:
        """Of one that writes a set; or a while."""
        poll = select.poll()
        with self._sets.lock:
            processes = [p for each in self._sets.all() for p in each.writers.values()]
            copies = [os.dup(p.fileno()) for p in processes if p.fileno() >= 0]
        try:
            for fd in copies:
                poll.register(fd, select.POLLIN)
            if poll.poll(_LOOK_S * 1000):
                self._stopped.wait(_REAPED_S)  # its parent is about to wait for it
        finally:
            for fd in copies:
                with contextlib.suppress(OSError):
                    os.close(fd)
