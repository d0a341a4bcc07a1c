"""A daemon that dies at a step of the commit. Light: a timed mount imports it.

:class:`Control` is a page shared between the daemon and who kills it: which step is deadly, and
which one was reached last, which outlives the daemon.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import threading
from pathlib import Path

from ckptfs.disk.filesystem import FileSystem

from ...harness.faults import Before, Call

_ARMED = struct.Struct("<I16s")  # how many times more, of which step
_REACHED = struct.Struct("<16s")
_REACHED_AT = 64


class Control:
    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._page = mmap.mmap(fd, mmap.PAGESIZE)
        finally:
            os.close(fd)

    @classmethod
    def make(cls, path: Path) -> Control:
        path.write_bytes(bytes(mmap.PAGESIZE))
        return cls(str(path))

    def arm(self, step: str, count: int) -> None:
        """The ``count``-th time that ``step`` is reached from now on is deadly; 0: none is. What
        was reached before is forgotten."""
        _REACHED.pack_into(self._page, _REACHED_AT, b"")
        _ARMED.pack_into(self._page, 0, count, step.encode())

    @property
    def reached(self) -> str:
        """The last step since it was armed; empty if there was none."""
        (name,) = _REACHED.unpack_from(self._page, _REACHED_AT)
        return str(name.rstrip(b"\0").decode())

    def note(self, step: str) -> bool:
        """``step`` was reached. Whether that is deadly."""
        name = step.encode()
        _REACHED.pack_into(self._page, _REACHED_AT, name)
        count, armed = _ARMED.unpack_from(self._page, 0)
        if not count or armed.rstrip(b"\0") != name:
            return False
        _ARMED.pack_into(self._page, 0, count - 1, armed)
        return bool(count == 1)

    def close(self) -> None:
        self._page.close()


def dying(fs: FileSystem, control: str) -> Before:
    """For ``harness.hooked``: the process kills itself where the control, a file, says so."""
    shared, guard = Control(control), threading.Lock()

    def reach(call: Call) -> None:
        if call.method == "step":
            with guard:
                if shared.note(call.arguments[0].value):
                    os.kill(os.getpid(), signal.SIGKILL)

    return Before(fs, reach)
