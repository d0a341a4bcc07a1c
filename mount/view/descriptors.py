"""The descriptors of the process, and whom they are for.

The kernel remembers names by the million; a process has some thousand descriptors. So directories
are opened when they are used, and a bounded number of them stays open. One that was closed is
found again by its name in the directory above it, which never follows a symlink, and only if it is
the same inode.

What users have open has its own share: the rest is a reserve, in which the commits of others go on
when that share is used up.

Threading: any thread. The lock of the cache is held for no call of anybody else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ckptfs.disk import osfs
from ckptfs.disk.locks import leaf

_MAX_OPEN_DIRECTORIES = 2048
_OWN = "/proc/self/fd"
_MAX_RESERVE = 256  # the pool's threads, a few for each, and what the daemon itself holds


class Descriptor(int):
    """An open descriptor that is closed with the last reference to it. So a thread that is using it
    never finds another file behind the number. As text it would hold no reference."""

    def __del__(self) -> None:
        os.close(self)

    def __format__(self, spec: str) -> str:
        raise TypeError("the descriptor may be closed before its number is used")

    def link(self) -> str:
        """A path to what is open, for as long as the caller holds the descriptor."""
        return f"{_OWN}/{int(self)}"


class Folder:
    """A node that is a directory."""

    __slots__ = ()

    @property
    def fd(self) -> Descriptor:
        """Raises ESTALE where its name leads to another inode by now."""
        return self.opened_by().get(self)

    def opened_by(self) -> OpenFolders:
        raise NotImplementedError

    def place(self) -> tuple[Folder, str] | None:
        """The directory above it, and its name there; None where it has lost it."""
        raise NotImplementedError

    def is_at(self, status: os.stat_result) -> bool:
        """Whether ``status`` is that of its inode."""
        raise NotImplementedError


@dataclass(eq=False)
class _Open:
    fd: Descriptor
    used: bool = False  # since it was last looked at


class OpenFolders:
    """A bounded number of directories that are open. One that was used since it was last looked at
    stays. So does the root of a tree, and what has lost its name."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = leaf()
        self._open: OrderedDict[Folder, _Open] = OrderedDict()
        self._always: dict[Folder, Descriptor] = {}
        self._pins: Counter[Folder] = Counter()

    def get(self, folder: Folder) -> Descriptor:
        fd = self._if_open(folder)
        return self._look_up(folder) if fd is None else fd

    def _if_open(self, folder: Folder) -> Descriptor | None:
        found = self._open.get(folder)
        if found is None:
            return self._always.get(folder)
        found.used = True
        return found.fd

    def is_open(self, folder: Folder) -> bool:
        return folder in self._open or folder in self._always

    def _look_up(self, folder: Folder) -> Descriptor:
        while True:
            at, steps = self._way_to(folder)
            try:
                for step, name in reversed(steps):
                    at = self._enter(at, step, name)
                return at
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE):
                    raise
                if self._way_to(folder)[1][: len(steps)] == steps:
                    raise OSError(errno.ESTALE, "moved below the mount") from None
                # A directory above it was renamed meanwhile.

    def _way_to(self, folder: Folder) -> tuple[Descriptor, list[tuple[Folder, str]]]:
        """The next directory above it that is open; what lies between, from below."""
        steps: list[tuple[Folder, str]] = []
        at = folder
        while (fd := self._if_open(at)) is None:
            place = at.place()
            if place is None:
                raise OSError(errno.ESTALE, "it has no name")
            steps.append((at, place[1]))
            at = place[0]
        return fd, steps

    def _enter(self, at: Descriptor, folder: Folder, name: str) -> Descriptor:
        try:
            fd, keeps = Descriptor(os.open(name, osfs.DIRECTORY, dir_fd=at)), True
        except PermissionError:  # a daemon without rights; what a mode of 0 allows can be done
            flags = os.O_PATH | os.O_DIRECTORY | osfs.NOFOLLOW
            fd, keeps = Descriptor(os.open(name, flags, dir_fd=at)), False
        if not folder.is_at(os.fstat(fd)):
            raise OSError(errno.ESTALE, "another directory")
        return self._keep(folder, fd) if keeps else fd

    def _keep(self, folder: Folder, fd: Descriptor) -> Descriptor:
        with self._lock:
            found = self._open.setdefault(folder, _Open(fd))
            self._close_some()
        return found.fd

    def _close_some(self) -> None:
        for _ in range(2 * len(self._open)):
            if len(self._open) <= self.limit:
                return
            folder, found = self._open.popitem(last=False)
            if found.used or self._pins[folder]:
                found.used = False
                self._open[folder] = found

    @contextlib.contextmanager
    def pinned(self, folder: Folder) -> Iterator[None]:
        """It is open inside, so that its name need not lead to it."""
        with self._lock:
            self._pins[folder] += 1
        try:
            self.get(folder)
            yield
        finally:
            with self._lock:
                self._pins[folder] -= 1
                self._pins += Counter()  # of those that are left

    def keep_open(self, folder: Folder, fd: Descriptor) -> None:
        """Until it is closed: it is a root, or has lost its name."""
        with self._lock:
            self._always[folder] = fd
            self._open.pop(folder, None)

    def always_open(self) -> list[tuple[Folder, Descriptor]]:
        with self._lock:
            return list(self._always.items())

    def close(self, folder: Folder) -> None:
        """Nobody knows it any more."""
        with self._lock:
            self._open.pop(folder, None)
            self._always.pop(folder, None)


@dataclass(frozen=True)
class Room:
    """How many descriptors of the process what is for."""

    total: int

    @classmethod
    def of_process(cls) -> Room:
        return cls(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    @property
    def directories(self) -> int:
        return min(_MAX_OPEN_DIRECTORIES, self.total // 8)

    @property
    def reserve(self) -> int:
        return min(_MAX_RESERVE, self.total // 2)

    def is_left(self, reserve: int) -> bool:
        """Whether more than ``reserve`` descriptors are free."""
        return _in_use() < self.total - reserve

    def for_users(self) -> bool:
        """Whether a user may open something."""
        return self.is_left(self.reserve)

    def for_one_more(self, uid: int, held: Callable[[], int]) -> bool:
        """Whether this user may, who has ``held`` open: as many as he leaves to the others. Root
        and the daemon's own user may have them all."""
        left = self.total - self.reserve - _in_use()
        if uid in (0, os.geteuid()) or left > self.total // 2:
            return left > 0
        return left > held()

    def is_short(self) -> bool:
        """Whether users are about to be refused, or are."""
        return not self.is_left(self.reserve + self.reserve // 8)


def _in_use() -> int:
    count = os.stat(_OWN).st_size  # Linux 6.2
    return count or len(os.listdir(_OWN))


def no_room() -> OSError:
    """Not EMFILE: the limit of the caller's own process is another one."""
    return OSError(errno.ENFILE, "the descriptors that are for users are used up")
