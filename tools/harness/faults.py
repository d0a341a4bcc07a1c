"""Wrappers of a :class:`~ckptfs.disk.filesystem.FileSystem`: calls are counted, failed, dropped.

After pebble's errorfs: the code under test is handed the wrapper and knows nothing of it. Each
wrapper says in ``around`` what becomes of a call; which methods there are is read off the protocol,
so a method that is added to it is covered from then on. Wrappers stack. Thread-safe.
"""

from __future__ import annotations

import errno as _errno
import os
import threading
import time
from collections.abc import Callable, Container
from typing import Any, cast

from ckptfs.disk.filesystem import FileSystem

_POLL_S = 0.02

Hook = Callable[["Call"], None]

METHODS = frozenset(name for name in vars(FileSystem) if not name.startswith("_"))
# close(2) of a local filesystem reports nothing that an fsync did not; the clock, a process's own
# table of descriptors and the name of a step are no disk.
NEVER_FAIL = frozenset({"close", "now_ns", "redirect", "step"})
_MAKES = {"write", "truncate", "clone", "copy", "link", "mkdir"}
_NAMES = {"rename", "exchange", "unlink", "rmdir"}
CHANGES = frozenset(_MAKES | _NAMES | {"setxattr", "removexattr", "copy_metadata", "copy_times"})
SYNCS = frozenset({"start_writeback", "clean", "fsync", "fsync_dir", "sync_all"})


class Call:
    """One call of a method on the filesystem below."""

    def __init__(self, method: str, arguments: tuple[Any, ...], run: Callable[[], Any]) -> None:
        self.method, self.arguments, self.run = method, arguments, run


class Intercepted:
    """Passes every call of the protocol through ``around``. Subclasses override that."""

    def __init__(self, below: FileSystem | Intercepted) -> None:
        self.below = below

    def __getattr__(self, method: str) -> Any:
        if method not in METHODS:
            raise AttributeError(method)
        run = getattr(self.below, method)

        def call(*arguments: Any, **named: Any) -> Any:
            given = (*arguments, *named.values())
            return self.around(Call(method, given, lambda: run(*arguments, **named)))

        return call

    def around(self, call: Call) -> Any:
        return call.run()

    @property
    def fs(self) -> FileSystem:
        """This object, as what it stands for."""
        return cast(FileSystem, self)


class FailNth(Intercepted):
    """The ``k``-th call raises ``OSError(errno)``; the others go through.

    ``calls`` counts those that could fail, ``failed`` is the one that did. With ``methods``, only
    these count. ``k`` 0 fails nothing: a first run tells how many calls there are. With
    ``lasting``, so do all that follow: a disk that is gone.
    """

    def __init__(
        self,
        below: FileSystem | Intercepted,
        k: int,
        errno: int = _errno.EIO,
        methods: Container[str] = METHODS - NEVER_FAIL,
        lasting: bool = False,
    ) -> None:
        super().__init__(below)
        self.k, self.errno, self.methods, self.lasting = k, errno, methods, lasting
        self.calls = 0
        self.failed: Call | None = None
        self._guard = threading.Lock()

    def around(self, call: Call) -> Any:
        if call.method in self.methods:
            with self._guard:
                self.calls += 1
                fails = self.calls == self.k or (self.lasting and 0 < self.k < self.calls)
            if fails:
                self.failed = self.failed or call
                return self.fail(call)
        return call.run()

    def fail(self, call: Call) -> Any:
        """What becomes of the ``k``-th call."""
        raise OSError(self.errno, f"injected: {os.strerror(self.errno)}")


class ShortNth(FailNth):
    """The ``k``-th write takes only a part and says so; a copy stops half way, its disk is full."""

    METHODS = frozenset({"write", "copy"})

    def __init__(
        self,
        below: FileSystem | Intercepted,
        k: int,
        errno: int = _errno.ENOSPC,
        methods: Container[str] = METHODS,
    ) -> None:
        super().__init__(below, k, errno, methods)

    def fail(self, call: Call) -> Any:
        return fall_short(self.below, call, self.errno)


def fall_short(below: Any, call: Call, errno: int) -> int:
    """Do half of a ``write`` or a ``copy``."""
    if call.method == "write":
        fd, data, offset = call.arguments
        return int(below.write(fd, data[: (len(data) + 1) // 2], offset))
    source, target, start, end = call.arguments
    below.copy(source, target, start, (start + end) // 2)
    raise OSError(errno, f"injected: {os.strerror(errno)}")


class FailAlways(Intercepted):
    """Every call of ``method`` raises while ``armed``; ``calls`` counts the refused ones."""

    def __init__(
        self, below: FileSystem | Intercepted, method: str, errno: int = _errno.EIO
    ) -> None:
        super().__init__(below)
        self.method, self.errno = method, errno
        self.armed = True
        self.calls = 0

    def around(self, call: Call) -> Any:
        if call.method == self.method and self.armed:
            self.calls += 1
            raise OSError(self.errno, f"injected: {os.strerror(self.errno)}")
        return call.run()


class ClockGoingBack(Intercepted):
    """Whoever asks for the time hears that it is a year earlier than the last time."""

    YEAR_NS = 365 * 86_400 * 10**9

    def __init__(self, below: FileSystem | Intercepted) -> None:
        super().__init__(below)
        self.years = 0

    def around(self, call: Call) -> Any:
        if call.method != "now_ns":
            return call.run()
        self.years += 1
        return call.run() - self.years * self.YEAR_NS


def clock_going_back(fs: FileSystem, argument: str) -> Intercepted:
    """For ``hooked``."""
    return ClockGoingBack(fs)


class FailWhile(Intercepted):
    """Calls of a method fail with EIO while the file ``stem.method`` exists: from outside, for as
    long as one likes."""

    def __init__(self, below: FileSystem | Intercepted, stem: str) -> None:
        super().__init__(below)
        self.stem = stem

    def around(self, call: Call) -> Any:
        if os.path.exists(f"{self.stem}.{call.method}"):
            raise OSError(_errno.EIO, "injected")
        return call.run()


class LongReadsWait(Intercepted):
    """Reads of files of ``LONG_BYTES`` and more wait while the file ``trigger`` exists."""

    LONG_BYTES = 64 << 20

    def __init__(self, below: FileSystem | Intercepted, trigger: str) -> None:
        super().__init__(below)
        self.trigger = trigger

    def around(self, call: Call) -> Any:
        if call.method == "readinto" and os.fstat(call.arguments[0]).st_size >= self.LONG_BYTES:
            while os.path.exists(self.trigger):
                time.sleep(_POLL_S)
        return call.run()


class Before(Intercepted):
    """Runs ``hook`` ahead of every call: counting, stopping, looking at the state so far."""

    def __init__(self, below: FileSystem | Intercepted, hook: Hook) -> None:
        super().__init__(below)
        self.hook = hook

    def around(self, call: Call) -> Any:
        self.hook(call)
        return call.run()


class Ignoring(Intercepted):
    """Calls that ``ignored`` picks return at once and do nothing: how a step is left out, for the
    controls that show a checker at work. ``calls`` counts them."""

    def __init__(self, below: FileSystem | Intercepted, ignored: Callable[[Call], bool]) -> None:
        super().__init__(below)
        self.ignored = ignored
        self.calls = 0

    def around(self, call: Call) -> Any:
        if self.ignored(call):
            self.calls += 1
            return None
        return call.run()


class BadMemory(Intercepted):
    """Reads through the page cache have the lowest bit of their first byte flipped, reads past it
    do not: a bad memory cell under a sound disk. ``direct_too`` is a bad disk."""

    def __init__(self, below: FileSystem | Intercepted, direct_too: bool = False) -> None:
        super().__init__(below)
        self.direct_too = direct_too
        self.armed = True
        self.flips = 0
        self._direct: set[int] = set()

    def around(self, call: Call) -> Any:
        result = call.run()
        if call.method == "open_direct":
            self._direct.add(result)
        elif call.method == "close":
            self._direct.discard(call.arguments[0])
        elif call.method in ("read", "readinto") and result and self._lies(call):
            self.flips += 1
            if call.method == "read":
                return bytes([result[0] ^ 1]) + result[1:]
            call.arguments[1][0] ^= 1
        return result

    def _lies(self, call: Call) -> bool:
        return self.armed and (self.direct_too or call.arguments[0] not in self._direct)
