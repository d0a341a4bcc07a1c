"""How a process ended, of one that is not ours: told by a descriptor of it, which no other process
can take over.

Linux 6.15 keeps the status once the process is reaped (PIDFD_GET_INFO, ``include/uapi/linux/
pidfd.h``); until then, and before, ``/proc`` shows that of a zombie to those who may trace it. Who
is reaped between two looks on an older kernel has ended in a way that nobody knows.

Threading: any thread.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import select
import struct
import time

from . import writers

_INFO = struct.Struct("<QQ11Ii")  # mask, cgroup; ids; the status, as wait(2) tells it
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, …)
_INFO_EXIT = 1 << 3
_REAPED_S = 0.5  # how long a parent is waited for, which most often waits for its child


class End(enum.Enum):
    NONE = "none"  # it lives
    WELL = "well"  # with a status of 0
    BADLY = "badly"  # with another one, or by a signal
    UNKNOWN = "unknown"


class Process:
    """One that is watched until it ends."""

    def __init__(self, pid: int, end: End = End.NONE) -> None:
        self.pid, self._end = pid, end
        self._fd = -1
        with contextlib.suppress(OSError):  # it is gone, or no descriptor is left
            self._fd = os.pidfd_open(pid)
        self._ended_at: float | None = None

    def __reduce__(self) -> tuple[type[Process], tuple[int, End]]:
        return Process, (self.pid, self.end())

    def fileno(self) -> int:
        """Readable once it has ended; -1 where that cannot be waited for."""
        return self._fd

    def end(self) -> End:
        """Of one that ended just now it is asked again for a while, if its status is not told."""
        if self._end is End.NONE:
            self._end = self._look()
            if self._end is not End.NONE:
                self.close()
        return self._end

    def _look(self) -> End:
        if self._fd < 0:
            return End.UNKNOWN if writers.is_gone(self.pid) else End.NONE
        if not _is_readable(self._fd):
            return End.NONE
        status = _status_of(self._fd)
        if status is None:
            status = writers.exit_status(self.pid)
        if status is not None:
            return End.BADLY if status else End.WELL
        self._ended_at = self._ended_at or time.monotonic()
        late = time.monotonic() - self._ended_at > _REAPED_S
        return End.UNKNOWN if late else End.NONE

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _status_of(pidfd: int) -> int | None:
    info = bytearray(_INFO.size)
    struct.pack_into("<Q", info, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.EREMOTE):
            return None
        raise
    mask, *_, status = _INFO.unpack(info)
    return int(status) if mask & _INFO_EXIT else None
