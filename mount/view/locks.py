"""Advisory locks: ranges and flock, held by path, across the versions of a file.

The kernel would hold them per node, hence per version, and two processes that each opened the path
for writing would both get "the" exclusive lock. A set follows its path through renames and leaves
it with the name. Where a second process takes a lock beside the writer of a version that is not
committed, the path is *shared*: it is written in place from then on. The kernel may know a file by
several nodes, each with a size of its own. So whoever gets a lock has what others wrote meanwhile
by another one, as clients of NFS have: that of his node is asked for anew. Waiting locks are
granted by whoever lets go; nobody blocks a thread meanwhile. What is answered, and in which order,
is what the kernel's ``fs/locks.c`` does.
Thread-safe; grants are called without the guard held.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

from ckptfs.disk.locks import leaf

from ..processes import calls
from .identity import Identity

TO_THE_END = 0x7FFFFFFFFFFFFFFF
_CIRCLE = 11  # waits that the kernel follows
_INTERRUPTED = 100

Grant = Callable[[int], None]  # with 0, or the errno that ends the wait
_Path = tuple[Identity, str]  # its directory, which the kernel may know by another node by now


@dataclass(eq=False)
class Lock:
    """Bytes ``start`` to ``end``, both included, held or asked for by one owner: a table of
    descriptors (POSIX), or an open file description (flock, OFD). Which of them is not said."""

    owner: int
    start: int
    end: int
    exclusive: bool
    is_flock: bool
    pid: int
    nodeid: int = 0  # by which the kernel has the file open
    blocked: list[Wait] = field(default_factory=list)  # by this one; they exclude no other of them
    blocker: Lock | None = None  # another one, held or asked for before

    @property
    def holder(self) -> tuple[bool, int]:
        return self.is_flock, self.owner

    def overlaps(self, other: Lock) -> bool:
        return self.start <= other.end and other.start <= self.end

    def covers(self, other: Lock) -> bool:
        return self.start <= other.start and other.end <= self.end

    def conflicts(self, other: Lock) -> bool:
        others = self.owner != other.owner and self.is_flock == other.is_flock
        return others and (self.exclusive or other.exclusive) and self.overlaps(other)

    def continues(self, other: Lock) -> bool:
        """Whether the two, of one holder, are one lock."""
        touch = self.start - 1 <= other.end and other.start - 1 <= self.end
        return touch and self.exclusive == other.exclusive

    def without(self, start: int, end: int) -> list[Lock]:
        """What is left when its holder sets another one there. It is itself only if that is all."""
        if end < self.start or self.end < start:
            return [self]
        left = []
        if self.start < start:
            left.append(replace(self, end=start - 1, blocked=[]))
        if self.end > end:
            left.append(replace(self, start=end + 1, blocked=[]))
        return left


@dataclass(eq=False)
class Wait:
    """A request that has no answer yet, and the thread that made it."""

    locks: LockSet
    lock: Lock
    request: int
    thread: int
    grant: Grant

    def __getstate__(self) -> dict[str, Any]:
        """For another program, which answers by itself."""
        return {**self.__dict__, "grant": None}


@dataclass(eq=False)
class LockSet:
    """The locks of one file: by holder in the order in which they came, of each by start."""

    held: dict[tuple[bool, int], list[Lock]] = field(default_factory=dict)
    woken: list[Wait] = field(default_factory=list)  # are to ask again
    current: frozenset[int] = frozenset()  # nodes whose size is as the last writer left it

    def of_holder(self, lock: Lock) -> list[Lock]:
        return self.held.get(lock.holder, [])

    def conflict(self, lock: Lock) -> Lock | None:
        every = chain.from_iterable(self.held.values())
        return next((held for held in every if held.conflicts(lock)), None)

    def attempt(self, lock: Lock) -> Lock | None:
        """Take it; the lock that stands in the way, if one does. A flock of the other kind is
        given up before the new one is asked for."""
        if lock.is_flock and any(held.exclusive != lock.exclusive for held in self.of_holder(lock)):
            self.drop(lock)
        found = self.conflict(lock)
        if found is None:
            self._put(lock)
        return found

    def drop(self, lock: Lock) -> None:
        for held in self.of_holder(lock):
            if held.exclusive and held.overlaps(lock):
                self.current &= {held.nodeid}
        self._hold(lock.holder, self._without(lock, lock.start, lock.end))

    def _put(self, lock: Lock) -> None:
        """Locks that it continues are one with it: the first that it meets, if it replaces none
        before."""
        mine = self.of_holder(lock)
        alike = [held for held in mine if held.continues(lock)]
        first = next((held for held in mine if held in alike or lock.covers(held)), None)
        start = min(held.start for held in [lock, *alike])
        end = max(held.end for held in [lock, *alike])
        locks = self._without(lock, start, end)
        if first is not None and first in alike:
            self.wake(lock)
            lock = first
        lock.start, lock.end = start, end
        self._hold(lock.holder, sorted([*locks, lock], key=lambda held: held.start))

    def _without(self, lock: Lock, start: int, end: int) -> list[Lock]:
        return [rest for held in self.of_holder(lock) for rest in held.without(start, end)]

    def _hold(self, holder: tuple[bool, int], locks: list[Lock]) -> None:
        for held in self.held.get(holder, []):
            if held.blocked and held not in locks:
                self.wake(held)
        if locks:
            self.held[holder] = locks
        else:
            self.held.pop(holder, None)

    def block(self, wait: Wait, blocker: Lock) -> None:
        """It waits for the last one in the way that waits for the other, so that one is woken at
        a time of those that exclude each other."""
        while True:
            ahead = (other.lock for other in blocker.blocked if other.lock.conflicts(wait.lock))
            first = next(ahead, None)
            if first is None:
                break
            blocker = first
        wait.lock.blocker = blocker
        blocker.blocked.append(wait)

    def wake(self, lock: Lock) -> None:
        """Whoever waits for it."""
        for wait in lock.blocked:
            wait.lock.blocker = None
        self.woken += lock.blocked
        lock.blocked = []


_Waits = dict[int, Wait]  # by request; who was blocked last is the last


class Locks:
    def __init__(self) -> None:
        self._sets: WeakValueDictionary[_Path, LockSet] = WeakValueDictionary()
        self._shared: set[_Path] = set()  # paths that several processes wrote under a lock
        self._waits: _Waits = {}
        self._interrupted: deque[int] = deque(maxlen=_INTERRUPTED)  # requests that did not wait yet
        self._guard = leaf()
        self.renew: Callable[[int], None] = lambda nodeid: None  # has attributes asked for anew

    def carried(self) -> dict[str, Any]:
        """For the program that goes on."""
        with self._guard:
            sets = dict(self._sets)
            return {"sets": sets, "shared": self._shared, "waits": self._waits}

    def resume(self, carried: dict[str, Any], granting: Callable[[int], Grant]) -> None:
        """``granting`` has the answer to a request."""
        with self._guard:
            self._sets.update(carried["sets"])
            self._shared, self._waits = carried["shared"], carried["waits"]
            for request, wait in self._waits.items():
                wait.grant = granting(request)

    def of(self, parent: Identity, name: str) -> LockSet:
        """The set of a path; it lives while somebody refers to it."""
        with self._guard:
            found = self._sets.get((parent, name))
            if found is None:
                found = self._sets[parent, name] = LockSet()
            return found

    def renamed(self, old: _Path, new: _Path | None) -> None:
        """The locks follow the file; with None it has lost its name."""
        with self._guard:
            moved = self._sets.pop(old, None)
            shared = old in self._shared
            self._shared -= {old, new}
            if new is not None:
                self._shared |= {new} if shared else set()
                self._sets.pop(new, None)
                if moved is not None:
                    self._sets[new] = moved

    def share(self, path: _Path) -> None:
        with self._guard:
            self._shared.add(path)

    def shared(self, parent: Identity, name: str) -> bool:
        """Whether the file of this path is written in place."""
        with self._guard:
            return (parent, name) in self._shared

    def exchanged(self, one: _Path, other: _Path) -> None:
        with self._guard:
            moved = self._sets.pop(one, None), self._sets.pop(other, None)
            for path, locks in zip((other, one), moved, strict=True):
                if locks is not None:
                    self._sets[path] = locks
            shared = {one, other} & self._shared
            self._shared -= shared
            self._shared |= {other if path == one else one for path in shared}

    def test(self, locks: LockSet, lock: Lock) -> Lock | None:
        """The lock that stands in the way, if any."""
        with self._guard:
            return locks.conflict(lock)

    def own(self, locks: LockSet, lock: Lock) -> Lock | None:
        """The first of the same holder that lies in there."""
        with self._guard:
            return next((held for held in locks.of_holder(lock) if held.overlaps(lock)), None)

    def take(self, locks: LockSet, lock: Lock) -> None:
        """Raises BlockingIOError (EAGAIN) where another one stands in the way."""
        with self._guard:
            found = locks.attempt(lock)
            if found is None:
                self._has(locks, lock)
            over = self._wake(locks)  # what it had there before may have been more
        _answer(over)
        if found is not None:
            raise BlockingIOError(errno.EAGAIN, "locked by another")

    def wait(self, wait: Wait) -> None:
        """Take the lock when it is free; ``grant`` is called then, perhaps at once."""
        with self._guard:
            if wait.request in self._interrupted:
                over = [(wait, errno.EINTR)]
            else:
                self._waits[wait.request] = wait
                wait.locks.woken.append(wait)
                over = self._wake(wait.locks)
        _answer(over)

    def drop(self, locks: LockSet, lock: Lock) -> None:
        with self._guard:
            locks.drop(lock)
            over = self._wake(locks)
        _answer(over)

    def drop_owner(self, locks: LockSet, owner: int, *, is_flock: bool) -> None:
        self.drop(locks, Lock(owner, 0, TO_THE_END, False, is_flock, 0))

    def interrupt(self, request: int) -> None:
        """A signal ends the wait of this request, if it waits for a lock, or comes to it."""
        with self._guard:
            wait = self._waits.pop(request, None)
            if wait is None:
                self._interrupted.append(request)
                return
            assert wait.lock.blocker is not None
            wait.lock.blocker.blocked.remove(wait)
            wait.locks.wake(wait.lock)
            over = [(wait, errno.EINTR), *self._wake(wait.locks)]
        _answer(over)

    def _wake(self, locks: LockSet) -> list[tuple[Wait, int]]:
        """Let those ask who were woken. Who got an answer, and which."""
        over = []
        while locks.woken:
            wait = locks.woken.pop(0)
            error = self._ask(wait)
            if error is not None:
                del self._waits[wait.request]
                over.append((wait, error))
        return over

    def _ask(self, wait: Wait) -> int | None:
        """With what the wait ends; None where it goes on."""
        found = wait.locks.attempt(wait.lock)
        if found is None:
            self._has(wait.locks, wait.lock)
            return 0
        wait.locks.wake(wait.lock)
        if _closes_a_circle(self._waits, wait, found):
            return errno.EDEADLK
        wait.locks.block(wait, found)
        self._waits[wait.request] = self._waits.pop(wait.request)
        return None

    def _has(self, locks: LockSet, lock: Lock) -> None:
        """It is about to be told. Once for all that share it: an answer that is on its way would
        not be believed."""
        others = frozenset() if lock.exclusive else locks.current
        if lock.nodeid not in locks.current:
            self.renew(lock.nodeid)
        locks.current = others | {lock.nodeid}


def _answer(over: list[tuple[Wait, int]]) -> None:
    for wait, error in over:
        wait.grant(error)


def _closes_a_circle(waits: _Waits, wait: Wait, blocker: Lock) -> bool:
    """Whether POSIX locks wait for each other, as far as the kernel follows them. It follows no
    wait for an OFD lock, which another thread may give back."""
    at = blocker
    for _ in range(_CIRCLE):
        found = None if at.is_flock else _wait_of(waits, at)
        if found is None:
            return False
        at = found.lock
        while at.blocker is not None:
            at = at.blocker
        if at.owner == wait.lock.owner:
            return not calls.asks_for_ofd(wait.thread)
    return False


def _wait_of(waits: _Waits, lock: Lock) -> Wait | None:
    """What the holder of this lock waits for, if that is a POSIX lock: the last such wait."""
    for wait in reversed(waits.values()):
        blocker = wait.lock.blocker if wait.lock.holder == lock.holder else None
        if blocker is not None and not _is_ofd(waits, blocker):
            return wait
    return None


def _is_ofd(waits: _Waits, lock: Lock) -> bool:
    """Matters, and is known, of those only whose owner waits itself."""
    threads = (each.thread for each in waits.values() if each.lock.holder == lock.holder)
    return any(map(calls.asks_for_ofd, threads))
