"""Advisory locks: POSIX ranges and flock, held by path, across the versions of a file.

The kernel would hold them per node, hence per version, and two processes that each opened the path
for writing would both get "the" exclusive lock. A set follows its path through renames and leaves
it with the name. Where a second process takes a lock beside the writer of a version that is not
committed, the path is *shared*: it is written in place from then on. Waiting locks are granted by
whoever lets go; nobody blocks a thread meanwhile.
Thread-safe; grants are called without the guard held.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary

from ckptfs.mount.nodes import Identity

TO_THE_END = 0x7FFFFFFFFFFFFFFF

Grant = Callable[[int], None]  # with 0, or the errno that ends the wait
_Path = tuple[Identity, str]  # its directory, which the kernel may know by another node by now


@dataclass(frozen=True)
class Lock:
    """Bytes ``start`` to ``end``, both included, for one owner."""

    owner: int
    start: int
    end: int
    exclusive: bool
    is_flock: bool
    pid: int

    def concerns(self, other: Lock) -> bool:
        overlap = self.start <= other.end and other.start <= self.end
        return overlap and self.is_flock == other.is_flock

    def conflicts(self, other: Lock) -> bool:
        exclusive = self.exclusive or other.exclusive
        return exclusive and self.owner != other.owner and self.concerns(other)

    def without(self, other: Lock) -> list[Lock]:
        """What is left when its owner sets ``other`` over it."""
        if self.owner != other.owner or not self.concerns(other):
            return [self]
        left = []
        if self.start < other.start:
            left.append(replace(self, end=other.start - 1))
        if self.end > other.end:
            left.append(replace(self, start=other.end + 1))
        return left


@dataclass(eq=False)
class LockSet:
    """The locks of one file."""

    held: list[Lock] = field(default_factory=list)
    waiting: list[tuple[int, Lock, Grant]] = field(default_factory=list)  # by request

    def conflict(self, lock: Lock) -> Lock | None:
        return next((held for held in self.held if held.conflicts(lock)), None)

    def drop(self, lock: Lock) -> None:
        self.held = [rest for held in self.held for rest in held.without(lock)]

    def put(self, lock: Lock) -> None:
        self.drop(lock)
        self.held.append(lock)


class Locks:
    def __init__(self) -> None:
        self._sets: WeakValueDictionary[_Path, LockSet] = WeakValueDictionary()
        self._shared: set[_Path] = set()  # paths that several processes wrote under a lock
        self._guard = threading.Lock()

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

    def take(self, locks: LockSet, lock: Lock) -> None:
        """Raises BlockingIOError (EAGAIN) where another one stands in the way."""
        with self._guard:
            if locks.conflict(lock) is not None:
                raise BlockingIOError(errno.EAGAIN, "locked by another")
            locks.put(lock)
        self._grant(locks)  # an exclusive lock may have become a shared one

    def wait(self, locks: LockSet, lock: Lock, request: int, grant: Grant) -> None:
        """Take the lock when it is free; ``grant`` is called with 0 then, perhaps at once."""
        with self._guard:
            locks.waiting.append((request, lock, grant))
        self._grant(locks)

    def drop(self, locks: LockSet, lock: Lock) -> None:
        with self._guard:
            locks.drop(lock)
        self._grant(locks)

    def drop_owner(self, locks: LockSet, owner: int, *, is_flock: bool) -> None:
        self.drop(locks, Lock(owner, 0, TO_THE_END, False, is_flock, 0))

    def interrupt(self, request: int) -> None:
        """A signal ends the wait of this request, if it waits for a lock."""
        with self._guard:
            ended = None
            for locks in list(self._sets.values()):
                for entry in locks.waiting:
                    if entry[0] == request:
                        locks.waiting.remove(entry)
                        ended = entry[2]
                        break
        if ended is not None:
            ended(errno.EINTR)

    def _grant(self, locks: LockSet) -> None:
        granted = []
        with self._guard:
            for entry in list(locks.waiting):
                if locks.conflict(entry[1]) is None:
                    locks.waiting.remove(entry)
                    locks.put(entry[1])
                    granted.append(entry[2])
        for grant in granted:
            grant(0)
