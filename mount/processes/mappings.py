"""Which files processes have mapped, shared and writable: ``/proc/<pid>/maps``.

Reading it may block. Opening it waits for the lock that execve(2) holds while it flushes
close-on-exec descriptors, and that process may wait for the server; reading it waits for whoever
changes the mappings. So a thread reads, and is left behind where it blocks; there is one such
thread per process at most.

Who asks while a look is under way shares the next one with all who wait for it: a program that
exits with many files open costs a few looks at the machine, not one per file. Any thread.
"""

from __future__ import annotations

import enum
import functools
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Set
from typing import Generic, NamedTuple, TypeVar

from . import proc

log = logging.getLogger("ckptfs.writers")

_LOOK_S, _LOOKS = 0.02, 250  # at the mappings of a process
_BLOCKED_S = 0.2
_ASSUMED_S = 60.0  # that a stranger who cannot be looked at may have mapped anything
_PART_BYTES = 1 << 16
_GONE = (FileNotFoundError, ProcessLookupError)
_SHARED_WRITABLE = re.compile(rb"^\S+ .w.s \S+ (\S+) (\d+)", re.MULTILINE)


class Unseen(enum.Enum):
    """Why it is not known what a process has mapped."""

    DENIED = "we have no right to look"
    BLOCKED = "nobody can look for now"


Found = Set[int] | Unseen  # inode numbers


class Everywhere(NamedTuple):
    numbers: Set[int]
    denied: Set[int]  # processes
    blocked: bool  # some process may have mapped anything


_filesystem: bytes | None = None  # as ``maps`` writes its device


def look_on(device: int) -> None:
    """Only files of the filesystem that is served by this descriptor of ``/dev/fuse`` count. Where
    the kernel does not tell which one that is, all do that have one of the inode numbers."""
    global _filesystem
    number = proc.connection(device)
    _filesystem = None if number is None else b"00:%02x" % number


# --- one look for all who wait -------------------------------------------------------------------

K = TypeVar("K")
A = TypeVar("A")


class _Look(Generic[A]):
    answer: A
    error: BaseException | None = None
    done = False


class Shared(Generic[K, A]):
    """Calls of a function of which all who ask for the same share one that began after they did."""

    def __init__(self, function: Callable[[K], A]) -> None:
        self._function = function
        self._changed = threading.Condition()
        self._next: dict[K, _Look[A]] = {}  # not begun yet
        self._running: set[K] = set()

    def __call__(self, key: K) -> A:
        with self._changed:
            look = self._next.setdefault(key, _Look())
            self._changed.wait_for(lambda: look.done or key not in self._running)
            if not look.done:
                del self._next[key]
                self._running.add(key)
        if not look.done:
            self._do(key, look)
        if look.error is not None:
            raise look.error
        return look.answer

    def _do(self, key: K, look: _Look[A]) -> None:
        try:
            look.answer = self._function(key)
        except BaseException as error:
            look.error = error
        with self._changed:
            look.done = True
            self._running.discard(key)
            self._changed.notify_all()


# --- looking -------------------------------------------------------------------------------------


class _Reader(threading.Thread):
    """Looks at one process after the other, until it is left behind."""

    def __init__(self, processes: Iterable[int]) -> None:
        super().__init__(name="ckptfs-maps", daemon=True)
        self.waiting = deque(processes)
        self.found: dict[int, Found] = {}
        self.at = 0
        self.opened = False  # its ``maps``, which nobody can who meets execve
        self.left_s: float | None = None  # monotonic
        self._lock = threading.Lock()

    def run(self) -> None:
        while self._next():
            found = self._maps(f"/proc/{self.at}")
            with self._lock:
                if self.left_s is None:
                    self.found[self.at] = found
        if self.left_s is not None:
            _left.pop(self.at, None)

    def _next(self) -> bool:
        with self._lock:
            if self.left_s is not None or not self.waiting:
                return False
            self.opened = False
            self.at = self.waiting.popleft()
            return True

    def _maps(self, folder: str) -> Found:
        try:
            found = self._mapped(f"{folder}/maps")
            if found is None:
                threads = os.listdir(f"{folder}/task")
                for thread in threads if len(threads) > 1 else ():
                    found = found or self._mapped(f"{folder}/task/{thread}/maps")
        except PermissionError:
            return Unseen.DENIED
        except _GONE:
            return frozenset()
        except OSError:  # no descriptor or memory left for it
            return Unseen.BLOCKED
        return found or frozenset()

    def _mapped(self, path: str) -> Set[int] | None:
        """None where there is no line: of what has ended, but its other threads may go on."""
        numbers: set[int] = set()
        rest = b""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except _GONE:
            return None
        try:
            self.opened, part = True, os.read(fd, _PART_BYTES)
            if not part:
                return None
            while part:
                whole, _, rest = (rest + part).rpartition(b"\n")
                for device, number in _SHARED_WRITABLE.findall(whole):
                    if _filesystem in (None, device):
                        numbers.add(int(number))
                part = os.read(fd, _PART_BYTES)
            return numbers
        finally:
            os.close(fd)

    def wait(self) -> None:
        """Until it is done, or is left behind at a process."""
        at, looks, asleep = 0, 0, 0
        while self.is_alive() and self.left_s is None:
            self.join(_LOOK_S)
            if self.at != at:
                at, looks, asleep = self.at, 0, 0
            looks += 1
            asleep = asleep + 1 if _sleeps(self.native_id) else 0
            if asleep * _LOOK_S >= _BLOCKED_S or looks >= _LOOKS:
                self._leave(at)

    def _leave(self, at: int) -> None:
        with self._lock:
            if self.at == at and at not in self.found and self.is_alive():
                _left[at] = self
                self.left_s = time.monotonic()

    def told(self) -> Found:
        """Of the process that it was left behind at. One in execve has let go of its mappings."""
        assert self.left_s is not None
        if not self.opened and _sleeps(self.native_id):
            return frozenset()
        old = time.monotonic() - self.left_s > _ASSUMED_S
        return Unseen.DENIED if old else Unseen.BLOCKED


_left: dict[int, _Reader] = {}  # by the process that they wait for


def _sleeps(thread: int | None) -> bool:
    """Whether a thread of ours sleeps in a system call that no signal ends."""
    stat = proc.read(f"/proc/self/task/{thread}/stat") or b") ?"
    return stat[stat.rindex(b")") + 2 :].startswith(b"D")


def _look_at(processes: Iterable[int]) -> dict[int, Found]:
    found: dict[int, Found] = {}
    waiting = deque[int]()
    for process in processes:
        reader = _left.get(process)
        if reader is None:
            waiting.append(process)
        else:
            found[process] = reader.told()
    while waiting:
        reader = _Reader(waiting)
        try:
            reader.start()
        except RuntimeError:  # there is no thread to be had
            return found | dict.fromkeys(waiting, Unseen.BLOCKED)
        reader.wait()
        found.update(reader.found)
        if reader.left_s is not None:
            found[reader.at] = reader.told()
        waiting = reader.waiting
    return found


def _look_everywhere(_: None) -> Everywhere:
    try:
        found = _look_at([int(entry) for entry in os.listdir("/proc") if entry.isdigit()])
    except OSError:
        return Everywhere(frozenset(), frozenset(), True)
    seen = [each for each in found.values() if not isinstance(each, Unseen)]
    return Everywhere(
        frozenset().union(*seen),
        {process for process, each in found.items() if each is Unseen.DENIED},
        Unseen.BLOCKED in found.values(),
    )


_of: Shared[int, Found] = Shared(lambda process: _look_at([process])[process])
_everywhere = Shared(_look_everywhere)


class Snapshot:
    """What is mapped: each process is looked at once, when it is first asked about."""

    def __init__(self) -> None:
        self.of: Callable[[int], Found] = functools.cache(_of)
        self.everywhere: Callable[[], Everywhere] = functools.cache(lambda: _everywhere(None))
