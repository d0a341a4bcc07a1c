"""``--on-event COMMAND``: run when something happened that somebody must look at.

One at a time, in a thread of its own; what comes meanwhile waits in a bounded queue. The daemon
waits for no command: one that takes too long is killed, with its process group. Nothing of
what users choose, such as the name of a file, is in the command: it has that in its environment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque

from ckptfs.disk.worker import started
from ckptfs.shown import shown

log = logging.getLogger("ckptfs.hook")

News = tuple[str, str, str]  # event, path, detail
_LIMIT_S = 60.0
_GRACE_S = 2.0  # at a restart, or the end
_LOOK_S = 0.05
# The daemon's threads take no signals, and what they start would inherit that.
_SHELL = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [])
for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL)
os.execv("/bin/sh", ["sh", "-c", sys.argv[1]])
"""


class Hook:
    def __init__(self, command: str, untold: deque[News], directory: str, mountpoint: str) -> None:
        self._command, self._untold = command, untold
        self._where = {"CKPTFS_DIRECTORY": directory, "CKPTFS_MOUNTPOINT": mountpoint}
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is news in the queue."""
        self._woken.set()

    def start(self) -> None:
        self._stopping.clear()
        self._woken.set()
        self._thread = started(self._run, "on-event")

    def stop(self) -> None:
        """No command and no thread is left on return; what is untold stays in the queue."""
        self._stopping.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.wait()
            self._woken.clear()
            while self._untold and not self._stopping.is_set():
                self._tell(self._untold.popleft())

    def _tell(self, news: News) -> None:
        event, path, detail = news
        told = {"CKPTFS_EVENT": event, "CKPTFS_PATH": path, "CKPTFS_DETAIL": shown(detail)}
        try:
            process = subprocess.Popen(
                [sys.executable, "-IS", "-c", _SHELL, self._command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={**os.environ, **self._where, **told},
                close_fds=True,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            log.warning("--on-event was not run for %s %s: %s", event, path, error)
            return
        code = self._ended(process)
        if code:
            how = "was killed, for it took too long" if code < 0 else f"ended with {code}"
            log.warning("the command of --on-event, for %s %s, %s", event, path, how)

    def _ended(self, process: subprocess.Popen[bytes]) -> int:
        """Its exit status, once it has one."""
        deadline_s = time.monotonic() + _LIMIT_S
        while process.poll() is None:
            if self._stopping.is_set():
                deadline_s = min(deadline_s, time.monotonic() + _GRACE_S)
            if time.monotonic() > deadline_s:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return process.wait()
            time.sleep(_LOOK_S)
        return process.returncode
