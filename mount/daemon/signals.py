"""The signals that a daemon takes: to end, to let be, and for its log."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from ckptfs.errors import MountBusy

from . import logfile

_STOPPED_BY = {signal.SIGTERM, signal.SIGINT}
_LEAVE_IT = signal.SIGUSR1  # to ourselves: no more of these is taken
_AWAITED = {*_STOPPED_BY, _LEAVE_IT, signal.SIGHUP}
_LOOK_S = 0.002


class Signals:
    """Waited for by one thread: a handler would run in the main thread, which may be about to wait
    for a request."""

    def __init__(self, *, has_terminal: bool) -> None:
        """``has_terminal``: the daemon logs to it."""
        self._has_terminal = has_terminal
        self._stopped, self._left_pending = threading.Event(), threading.Lock()

    @staticmethod
    def block() -> None:
        """By the thread that all others inherit it from."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)

    @property
    def stopping(self) -> bool:
        return self._stopped.is_set()

    def wait_to_stop(self) -> None:
        """One that comes at a restart is left to the program that follows. SIGHUP is for the log,
        as from logrotate(8), unless it is the end of the terminal that we log to."""
        while (number := signal.sigwait(_AWAITED)) not in _STOPPED_BY:
            if number == _LEAVE_IT:
                with self._left_pending:
                    pass
            elif self._has_terminal:
                break
            else:
                logfile.reopen()
        self._stopped.set()

    @contextlib.contextmanager
    def pending(self) -> Iterator[None]:
        """Inside a signal to stop stays pending. Raises MountBusy once there was one."""
        with self._left_pending:
            os.kill(os.getpid(), _LEAVE_IT)
            while _LEAVE_IT in signal.sigpending() and not self._stopped.is_set():
                time.sleep(_LOOK_S)
            if self._stopped.is_set():
                raise MountBusy("it was asked to stop")
            yield
