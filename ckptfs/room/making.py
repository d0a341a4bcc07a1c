"""Room on the disk: how much salvage and quarantine take, and what is given up before a save fails.

``make_room`` is the one way: it lets go of what ``expendable.py`` says, in that order, until there
is as much as is needed. It is asked by whoever has met ENOSPC, which then tries again, and ahead of
that by who is about to write. A file that is let go is one line in the log.

A write that the kernel carries tells ENOSPC to its program alone. So that room which is made after
it does not hide it, ``look`` counts the moments in which the disk was found full: a version that
was open in one may lack what found no room (``in_doubt``).

Threading: no lock is held while room is made, so several may do it at once; each looks before every
file that it lets go of. Callers may hold any lock but that of an entry in use.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from ckptfs.checking.opens import Guard
from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.locks import leaf
from ckptfs.disk.space import Space
from ckptfs.records.aside import Amount, held_bytes
from ckptfs.room.doubts import Doubts
from ckptfs.room.expendable import Expendable, Item, Kind
from ckptfs.room.limits import Limits
from ckptfs.room.sizes import UsualSizes
from ckptfs.telling.events import say
from ckptfs.versions.staged import Staged

_RESERVE_BYTES = 2 << 20  # for names, records and directories; more than what counts as full
_AHEAD_BYTES = 64 << 20  # at most, beyond what a save is expected to take
_PROOF_BYTES, _PROOF_SHARE = 1 << 30, 4  # read to prove others good: so much, and times the need
_SPENT_S = 5.0  # until it is looked through again, where too little could be let go
_SETTLE_S = (0.0, 0.02, 0.1)  # a filesystem frees blocks behind the unlink
_TRIES_WITH_ROOM = 4  # who lets go of something may wait for a lock that the save holds
_NOBODY = -1
_Spent = tuple[float, int, tuple[Amount, int]]  # monotonic, how much was needed, what there was
T = TypeVar("T")


class DiskRoom:
    """Of one store."""

    def __init__(self, guard: Guard, bounds: Amount) -> None:
        self.expendable = Expendable(guard)
        self.layout, self.fs = guard.layout, guard.fs
        self.limits = Limits(guard.layout.aside, self.expendable, self.let_go, bounds)
        self.sizes, self.doubts = UsualSizes(guard.layout), Doubts()
        self._freeing = leaf()  # of the two counts; equal while nothing is let go of
        self._begun = self._ended = 0
        self._spent: dict[int, _Spent] = {}  # by user: when too little could be let go, for what
        self._saves = 0
        self._here = threading.local()

    # --- room for what is written ----------------------------------------------------------------

    def look(self) -> Space:
        """What is left now. A full disk is noted: a write may have found it so."""
        space = self.fs.space(self.layout.root)
        if space.is_full:
            self.doubts.fulls += 1
        return space

    def make_room(self, needed_bytes: int = 0, uid: int = _NOBODY) -> bool:
        """Give up what is expendable until ``needed_bytes`` can be written, and a little more.
        Whether they can. Earlier versions and quarantine go for a save of their own user alone.
        Raises OSError where the disk does not say what is left."""
        if _holds(self.look(), needed_bytes):
            return True
        if getattr(self._here, "busy", False) or self._is_spent(needed_bytes, uid):
            return False
        self._here.busy = True
        try:
            return self._give_up(needed_bytes, uid)
        finally:
            self._here.busy = False

    @contextlib.contextmanager
    def saving(self, staged: Staged) -> Iterator[None]:
        """What finds no room inside is a save of this version's owner."""
        before = getattr(self._here, "fd", -1)
        self._here.fd = staged.fd
        try:
            yield
        finally:
            self._here.fd = before

    def _is_spent(self, needed_bytes: int, uid: int) -> bool:
        if uid not in self._spent:
            return False
        since, needed, there_was = self._spent[uid]
        lately = time.monotonic() < since + _SPENT_S
        return lately and needed_bytes >= needed and there_was == self._what_there_is()

    def _what_there_is(self) -> tuple[Amount, int]:
        """Of salvage and quarantine, and of earlier versions: each save leaves one."""
        return self.layout.aside.added, self._saves

    def _give_up(self, needed_bytes: int, uid: int) -> bool:
        there_was = self._what_there_is()  # more may come while it is looked through
        judged = self.expendable.judged(_PROOF_BYTES + _PROOF_SHARE * needed_bytes)
        start, freed_bytes = self.look(), 0
        for item in self._candidates(needed_bytes, uid):
            if not (judged.may_go(item) and self.let_go(item, "for room on the disk")):
                continue
            freed_bytes += item.freed_bytes
            promised = start._replace(free_bytes=start.free_bytes + freed_bytes, has_inodes=True)
            if _holds(promised, needed_bytes):
                if self._settled(needed_bytes):
                    return True
                start, freed_bytes = self.look(), 0
        if self._settled(needed_bytes):
            return True
        self._spent[uid] = time.monotonic(), needed_bytes, there_was
        return False

    def _candidates(self, needed_bytes: int, uid: int) -> Iterator[Item]:
        """No earlier version goes for nothing, and none for somebody else's save."""
        for kind in Kind:
            items, space = self.expendable.of(kind), self.look()
            if kind is not Kind.SALVAGE:
                items = [item for item in items if item.uid == uid]
            if space.has_inodes:
                items = [item for item in items if item.freed_bytes]
                most = space.free_bytes + sum(item.freed_bytes for item in items)
                enough = _holds(space._replace(free_bytes=most), needed_bytes)
                if kind is Kind.HISTORY and not enough:
                    return
            yield from items

    def _settled(self, needed_bytes: int) -> bool:
        """Whether there is room, once the disk knows what was let go of. Less than its length is
        freed where others share the blocks, or have it open."""
        for wait_s in _SETTLE_S:
            time.sleep(wait_s)
            if _holds(self.look(), needed_bytes):
                return True
            self.fs.sync_all(self.layout.root)  # btrfs frees when its transaction ends
        return False

    def let_go(self, item: Item, why: str) -> bool:
        self.before_freeing()
        with self._freeing:
            self._begun += 1
        try:
            gone = self.expendable.let_go(item)
        finally:
            with self._freeing:
                self._ended += 1
        if gone:
            what = item.told if item.kind is Kind.HISTORY else f"{item.kind.value} {item.name}"
            told = f"{what} is let go: {why}; {item.size_bytes} bytes"
            say(logging.WARNING, item.path or "?", told)
        return gone

    def clean(self, items: Iterable[Item]) -> list[Item]:
        """Let go of them because somebody asks for it, who has looked at what they are; of an
        earlier version only while a newer good one is left. Returns those that are gone by that."""
        judged = self.expendable.judged()
        return [
            item
            for item in items
            if (item.kind is not Kind.HISTORY or judged.may_go(item))
            and self.let_go(self.expendable.found(item), "asked for")
        ]

    def retried(self, work: Callable[[], T], needed_bytes: Callable[[], int], fd: int | None) -> T:
        """Do ``work``, which may be begun anew, and writes to ``fd`` if that is known; where it
        finds no room, again once there is. There may be enough of it because something was let go
        of since, by anybody; else there is none for what was asked: in the xattrs of an inode."""
        tries = _TRIES_WITH_ROOM
        while True:
            ended = self._ended
            try:
                return work()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                if self._has_room(needed_bytes()):
                    tries -= 1
                    if self._begun == ended or not tries:
                        raise
                elif not self._found(needed_bytes(), fd):
                    raise

    def _has_room(self, needed_bytes: int) -> bool:
        with contextlib.suppress(OSError):
            return _holds(self.look(), needed_bytes)
        return False

    def _found(self, needed_bytes: int, fd: int | None) -> bool:
        with contextlib.suppress(OSError):
            return self.make_room(
                needed_bytes, _owner(self.fs, getattr(self._here, "fd", -1) if fd is None else fd)
            )
        return False

    # --- ahead of it -----------------------------------------------------------------------------

    def saved(self, path: str, size_bytes: int) -> None:
        """``size_bytes``: what it takes on the disk."""
        self._saves += 1
        self.sizes.note(path, size_bytes)

    def is_short_of(self, expected_bytes: int, uid: int) -> bool:
        """Whether room should be made before that much is written."""
        if not expected_bytes or self._is_spent(_with_margin(expected_bytes), uid):
            return False
        with contextlib.suppress(OSError):
            return not _holds(self.look(), _with_margin(expected_bytes))
        return False

    def ahead_of(self, expected_bytes: int, uid: int) -> None:
        """Make room for what this user is going to write, if it is to be had."""
        if self.is_short_of(expected_bytes, uid):
            with contextlib.suppress(OSError):
                self.make_room(_with_margin(expected_bytes), uid)

    def before_freeing(self) -> None:
        """Blocks are about to come back: whoever found none by now is not to look as if he had."""
        with contextlib.suppress(OSError):
            self.look()

    # --- what found no room ----------------------------------------------------------------------

    def begins(self, staged: Staged, stands_bytes: int) -> None:
        """Another is being written; ``stands_bytes`` is what it takes the place of."""
        is_full = False
        with contextlib.suppress(OSError):
            is_full = self.look().is_full
        self.doubts.begins(staged, is_full=is_full)
        staged.expected_bytes = self.sizes.expected(staged.path, stands_bytes)

    def failed(self, staged: Staged) -> None:
        """A save has failed for lack of room, and its bytes are gone: the next of its kind is to
        find some. They come back once everybody has closed it."""
        with contextlib.suppress(OSError):
            status = self.fs.stat(staged.fd)
            size = held_bytes(status)
            expected = max(size, staged.expected_bytes)
            self.sizes.note(staged.path, expected)
            self.make_room(_with_margin(expected) - size, status.st_uid)


def _holds(space: Space, needed_bytes: int) -> bool:
    return space.holds(needed_bytes + _RESERVE_BYTES)


def _with_margin(expected_bytes: int) -> int:
    return expected_bytes + min(expected_bytes // 16, _AHEAD_BYTES)


def _owner(fs: FileSystem, fd: int) -> int:
    with contextlib.suppress(OSError):
        return fs.stat(fd).st_uid
    return _NOBODY


# --- calls that are made again --------------------------------------------------------------------

_METHODS = tuple(name for name in vars(FileSystem) if not name.startswith("_"))
_TARGETS = {"write": 0, "setxattr": 0, "clone": 1, "copy": 1}  # which argument is written to
_TAKING = ("open", "write", "clone", "copy", "rename", "exchange", "link", "mkdir", "setxattr")


class _Patient:
    """The filesystem below, whose calls are made again where they found no room and it was made.
    An fsync is not: its failure is final."""

    def __init__(self, below: FileSystem) -> None:
        self._below = below
        self.room: DiskRoom | None = None
        for name in _METHODS:
            call = getattr(below, name)
            setattr(self, name, self._patient(name, call) if name in _TAKING else call)

    def _patient(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        at = _TARGETS.get(name)

        def patient(*arguments: Any, **named: Any) -> Any:
            if self.room is None:
                return call(*arguments, **named)
            return self.room.retried(
                lambda: call(*arguments, **named),
                lambda: self._needed(name, arguments),
                None if at is None else arguments[at],
            )

        return patient

    def _needed(self, name: str, arguments: tuple[Any, ...]) -> int:
        if name == "write":
            return len(arguments[1])
        if name == "copy":
            _, target, start, end = arguments
            return max(0, int(end) - int(start) - held_bytes(self._below.stat(target)))
        return 0


def patient(fs: FileSystem) -> tuple[FileSystem, Callable[[DiskRoom], None]]:
    """The filesystem that makes calls again, and what gives it the room to do so."""
    made = _Patient(fs)

    def give(room: DiskRoom) -> None:
        made.room = room

    return cast(FileSystem, made), give
