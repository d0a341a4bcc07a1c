"""Locks that know their rank, and locks by key.

Who holds a lock takes only locks of higher ranks: so no two threads wait for each other. Of one
rank several may be held where they are taken in the order of their keys. Under tests (``check``)
a lock that is taken out of order fails, though nobody was there to wait for.
"""

from __future__ import annotations

import contextlib
import enum
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any


class LockOrder(AssertionError):
    """A lock is taken by who holds one of a higher rank."""


class Rank(enum.IntEnum):
    """In the order in which they may be taken. Each says what it guards."""

    TIDYING = enum.auto()  # history is looked through by one at a time
    SET = enum.auto()  # one set on its way: what is decided of it, and its name
    VERSION = enum.auto()  # one version on its way, its file and its state
    PATH = enum.auto()  # what stands under one name, and the history of it
    DIRECTORIES = enum.auto()  # no directory is renamed: an intent speaks of paths
    SYNCING = enum.auto()  # directories that changed are synced ahead of a publish
    ALARM_FILE = enum.auto()  # the file of alarms
    COUNTER = enum.auto()  # the generation counter
    BOUNDING = enum.auto()  # salvage and quarantine are kept within bounds
    TABLES = enum.auto()  # the mount's tables: no I/O that waits
    LINEAGES = enum.auto()  # notes and pins of lineages
    LEAF = enum.auto()  # fields of one object: nothing else is taken inside


_report: Callable[[str], object] | None = None
_here = threading.local()


def check(report: Callable[[str], object]) -> None:
    """From here on locks that are made are checked; what is taken out of order is told to
    ``report`` as well. For tests: each costs some microseconds."""
    global _report
    _report = report


def ranked(rank: Rank, key: Any = None, *, reentrant: bool = True) -> Any:
    """A lock, to be used as :class:`threading.RLock` or, if not ``reentrant``, ``Lock``."""
    lock = threading.RLock() if reentrant else threading.Lock()
    return Checked(lock, rank, key, reentrant) if _report is not None else lock


def leaf() -> Any:
    return ranked(Rank.LEAF, reentrant=False)


class Checked:
    """Raises LockOrder, in the thread that takes it out of order, before it would wait."""

    def __init__(self, lock: Any, rank: Rank, key: Any, reentrant: bool) -> None:
        self._lock, self.rank, self.key, self._reentrant = lock, rank, key, reentrant

    def __reduce__(self) -> Any:
        return ranked, (self.rank, self.key)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_error: object) -> None:
        self.release()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        held = _held()
        if blocking:
            self._require_order(held)
        taken = bool(self._lock.acquire(blocking, timeout))
        if taken:
            held.append(self)
        return taken

    def _require_order(self, held: list[Checked]) -> None:
        if self in held:
            if not self._reentrant:
                raise _wrong(f"{self.rank.name} is taken twice")
            return
        for other in held:
            if other.rank > self.rank or (other.rank == self.rank and not self._follows(other)):
                raise _wrong(
                    f"{self.rank.name} {self.key} is taken while {other.rank.name} {other.key} "
                    "is held"
                )

    def _follows(self, other: Checked) -> bool:
        return self.key is not None and other.key is not None and bool(other.key < self.key)

    def release(self) -> None:
        held = _held()
        held.reverse()
        held.remove(self)
        held.reverse()
        self._lock.release()

    # As a condition uses it: it waits with the lock given back.

    def _is_owned(self) -> bool:
        return self in _held()

    def _release_save(self) -> int:
        held = _held()
        times = held.count(self)
        for _ in range(times):
            self.release()
        return times

    def _acquire_restore(self, times: int) -> None:
        for _ in range(times):
            self._lock.acquire()
            _held().append(self)


def _wrong(what: str) -> LockOrder:
    assert _report is not None
    _report("".join([f"{what}\n", *traceback.format_stack(limit=12)]))
    return LockOrder(what)


def _held() -> list[Checked]:
    """By this thread, in the order in which they were taken."""
    held: list[Checked] | None = getattr(_here, "held", None)
    if held is None:
        held = _here.held = []
    return held


class KeyedLocks:
    """A lock of this rank per key, gone when nobody holds it."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._guard = leaf()
        self._locks: dict[object, tuple[Any, int]] = {}

    @contextlib.contextmanager
    def held(self, key: object) -> Iterator[None]:
        with self._guard:
            lock, users = self._locks.get(key) or (ranked(self._rank, key), 0)
            self._locks[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = lock, users - 1
