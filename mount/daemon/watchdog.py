"""A daemon that was killed keeps nobody waiting.

Its thread that has the kernel drop a name waits for the lock of the directory. Who renames in it
holds that lock until the daemon answers. Killed just then, the thread cannot end, so neither can
the process, and the kernel does not take the connection for lost: all who use the mount would wait
for ever (``fuse_reverse_inval_entry`` in Linux ``fs/fuse/dir.c``; seen on 6.18, 8 of 45 kills). So
a process beside the daemon looks whether it is dead and cannot end, and ends the connection.

Threading: the process is forked before there is a second thread, and has one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import NoReturn

from ckptfs.errors import CannotServe

from ..kernel import mounting
from ..processes import writers

_LOOK_S = 0.5
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


class Watchdog:
    """Of this process, from now on; it ends with it."""

    def __init__(self) -> None:
        watched, read_end, write_end = os.getpid(), *os.pipe()
        self._write_end = write_end
        self.pid = os.fork()
        if self.pid == 0:
            os.close(write_end)
            _watch(watched, read_end)
        os.close(read_end)

    def watch(self, connection: str) -> None:
        """The mount is served by this connection, as major:minor; empty: by none that is known."""
        with contextlib.suppress(OSError):
            os.write(self._write_end, connection.encode())
        os.close(self._write_end)


def _watch(pid: int, read_end: int) -> NoReturn:
    try:
        pidfd = os.pidfd_open(pid)
        os.setsid()
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        connection = os.read(read_end, 64).decode()
        _let_go_of_all_but(pidfd)
        if connection and _cannot_end(pid, pidfd):
            with contextlib.suppress(CannotServe):
                mounting.abort_connection(connection)
    except BaseException:  # nothing of the daemon's is to run here
        os._exit(1)
    os._exit(0)


def _let_go_of_all_but(pidfd: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.closerange(3, pidfd)
    os.closerange(pidfd + 1, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    os.chdir("/")


def _cannot_end(pid: int, pidfd: int) -> bool:
    """Wait for its end. Whether a part of it is left behind."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll(_LOOK_S * 1000):
        if writers.is_zombie(pid):
            time.sleep(_LOOK_S)  # its threads may be about to end
            return not poll.poll(0)
    return False
