"""What every change of the store obeys: one at a time per path, directories durable in order, and
nothing more once it is unknown what is on disk. Thread-safe."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.locks import KeyedLocks, Rank, leaf, ranked
from ckptfs.errors import StoreReadOnly, final
from ckptfs.modes import Mode
from ckptfs.versions.staged import Inode

log = logging.getLogger("ckptfs.ordering")

_DIRS_HELD = 64  # that have changed; where there are more, all of their filesystem is synced


class Place(NamedTuple):
    """A name in an open directory. The path is for history and for messages, not for resolving."""

    at: int
    name: str
    path: str


@contextlib.contextmanager
def place_of(fs: FileSystem, root: int, path: str) -> Iterator[Place]:
    """As :func:`osfs.place`."""
    with osfs.place(fs, root, path) as (at, name):
        yield Place(at, name, path)


class Ordering:
    def __init__(self, fs: FileSystem, mode: Mode) -> None:
        self.fs, self._syncs_directories = fs, mode.syncs_directories
        self.poisoned: str | None = None
        self.torn: set[Inode] = set()  # files longer than recorded, that could not be cut back
        self._paths = KeyedLocks(Rank.PATH)
        self._dirty: dict[tuple[int, int], int] = {}
        self._many_dirty: set[int] = set()  # devices
        self._dirty_lock = leaf()
        self._dir_syncs = ranked(Rank.SYNCING, reentrant=False)
        self._moves = ranked(Rank.DIRECTORIES, reentrant=False)

    def note_changed_dir(self, at: int) -> None:
        """A name was made in or removed from ``at``: durable before the next publish."""
        if not self._syncs_directories:
            return
        try:
            status = self.fs.stat(at)
            key = (status.st_dev, status.st_ino)
            with self._dirty_lock:
                if key in self._dirty:
                    return
                held = sum(device == key[0] for device, _ in self._dirty)
                if held >= _DIRS_HELD:
                    self._many_dirty.add(key[0])
                else:
                    self._dirty[key] = self.fs.open(at, ".", osfs.DIRECTORY)
        except OSError:  # no descriptor left to keep it by; the change is made, so do not fail it
            self.sync_dir(at)

    def sync_changed_dirs(self) -> None:
        """btrfs may persist directory B before A, so order needs an fsync of each. A publish
        waits here for the directories that another one is syncing; who notes one does not."""
        with self._dir_syncs:
            with self._dirty_lock:
                dirty, self._dirty = self._dirty, {}
                many, self._many_dirty = self._many_dirty, set()
            for (device, _), fd in dirty.items():
                try:
                    if device in many:
                        many.discard(device)
                        self._sync(self.fs.sync_all, fd)
                    self.sync_dir(fd)
                finally:
                    self.fs.close(fd)

    def sync_dir(self, fd: int) -> None:
        """fsync a directory if the mode does; a failure makes the store read-only."""
        if self._syncs_directories:
            self.fsync_dir(fd)

    def fsync_dir(self, fd: int) -> None:
        """The same in each mode."""
        self._sync(self.fs.fsync_dir, fd)

    def _sync(self, sync: Callable[[int], None], fd: int) -> None:
        try:
            sync(fd)
        except OSError as error:
            self.poison(f"directory fsync failed: {error.strerror}")
            raise final(error) from None

    def poison(self, reason: str) -> None:
        """What is on disk is unknown from here on."""
        if self.poisoned is None:
            log.error("read-only: %s; check the disk, remount", reason)
        self.poisoned = reason

    def require_writable(self) -> None:
        if self.poisoned is not None:
            raise StoreReadOnly(f"the store is read-only: {self.poisoned}; check the disk, remount")

    def steady_directories(self) -> contextlib.AbstractContextManager[object]:
        """No directory is renamed inside: an intent speaks of paths."""
        moves: contextlib.AbstractContextManager[object] = self._moves
        return moves

    @contextlib.contextmanager
    def changing(self, *places: Place) -> Iterator[None]:
        """As :meth:`path_locks`, for who changes what stands there: who waited for a publish that
        failed finds the store read-only."""
        with self.path_locks(*places):
            self.require_writable()
            yield

    @contextlib.contextmanager
    def path_lock(self, at: int, name: str) -> Iterator[None]:
        with self._paths.held(self._key(at, name)):
            yield

    def path_locks(self, *places: Place) -> contextlib.AbstractContextManager[None]:
        """Of one or several, in one order for all."""
        if len(places) == 1:
            return self.path_lock(places[0].at, places[0].name)
        return self._locks_of({self._key(place.at, place.name) for place in places})

    @contextlib.contextmanager
    def _locks_of(self, keys: set[tuple[int, int, str]]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for key in sorted(keys):
                stack.enter_context(self._paths.held(key))
            yield

    def _key(self, at: int, name: str) -> tuple[int, int, str]:
        status = self.fs.stat(at)
        return status.st_dev, status.st_ino, name
