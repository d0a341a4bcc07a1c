"""Versions on their way: begun, written, committed or given up. What the mount and the library do
with a version they do here; told to the log and to the room that the disk has.

Thread-safe: each version under its own lock.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator

from ckptfs.checking.opens import Guard
from ckptfs.disk.filesystem import FileSystem, Status
from ckptfs.errors import RecordDamaged, Superseded
from ckptfs.records.aside import held_bytes
from ckptfs.records.format import Record
from ckptfs.room.making import DiskRoom
from ckptfs.store.opens import Opens
from ckptfs.structure import Verdict
from ckptfs.telling.events import DISK_FULL, Events
from ckptfs.telling.tally import Tally
from ckptfs.versions import commit, live, origin, seal
from ckptfs.versions.core import Core
from ckptfs.versions.extend import Alone, nobody_else
from ckptfs.versions.life import State
from ckptfs.versions.order import Place
from ckptfs.versions.staged import Staged, Stood, fingerprint


class Saves:
    """Of one store."""

    def __init__(
        self, core: Core, guard: Guard, opens: Opens, room: DiskRoom, events: Events, tally: Tally
    ) -> None:
        self._core, self._fs, self._guard, self._opens = core, core.fs, guard, opens
        self._room, self._events, self._tally = room, events, tally
        # Whether others work in the directory by now, while who has a file open goes on.
        self.released: Callable[[], bool] = lambda: False

    # --- begun -----------------------------------------------------------------------------------

    def stage(
        self,
        path: str,
        at: int,
        name: str,
        *,
        exists: bool,
        truncate: bool,
        lazily: bool = False,
    ) -> Staged:
        """Start a version of ``at/name``: empty, or from the verified committed bytes.

        ``exists`` says that a committed version stands there; the new one inherits its metadata.
        ``lazily``: of a long one the bytes may be missing at first; see :class:`Base`.
        Nothing is durable on return. Raises OSError (no room, no permission) and Rotten.
        """
        place = Place(at, name, path)
        if exists and not truncate:
            self._opens.verify(place)
        staged = commit.stage(self._core, path)
        try:
            stands = _status(self._fs, at, name) if exists else None
            self._room.begins(staged, held_bytes(stands) if stands and truncate else 0)
            if exists:
                staged.stood = Stood.of(stands) if stands else None
                commit.inherit(self._core, staged, at, name)
                if not truncate:
                    self._go_on_from(staged, place, lazily)
        except BaseException:
            with _known_to_nobody_else(staged):
                self.discard(staged)
            _close(self._fs, staged)
            raise
        return staged

    @contextlib.contextmanager
    def staging(
        self, path: str, at: int, name: str, *, exists: bool, truncate: bool, lazily: bool = False
    ) -> Iterator[Staged]:
        """As :meth:`stage`; what is not committed inside leaves nothing behind."""
        staged = self.stage(path, at, name, exists=exists, truncate=truncate, lazily=lazily)
        with _known_to_nobody_else(staged):
            try:
                yield staged
            finally:
                if staged.state is State.OPEN:
                    self.discard(staged)
                _close(self._fs, staged)

    def reopen(self, path: str, fd: int) -> Staged:
        """The committed version itself, open for reading and writing at ``fd``, to be written
        where it is and without a transaction; :meth:`reseal` records it anew. One without a
        record, or that has lost its name, stays without."""
        record = None
        with contextlib.suppress(RecordDamaged):
            record = self._core.layout.read_record(fd) if self._fs.stat(fd).st_nlink else None
        staged = Staged("", fd, path, fingerprint(self._fs, fd), State.IN_PLACE)
        if record is not None:
            staged.state = State.SETTLED
            staged.record, staged.sealed = record, (record.size_bytes, record.mtime_ns)
        return staged

    def commit(self, staged: Staged, at: int, name: str, alone: Alone = nobody_else) -> Record:
        """See :func:`ckptfs.versions.commit.commit`; counted, and remembered as verified. Raises
        Superseded."""
        if self._changed_without_us(staged, at, name) and self.released():
            reason = "the mount was released, and the file was changed in the plain directory since"
            self.abort(staged, reason)
            raise Superseded(f"{staged.path}: {reason}")
        begun_s = time.monotonic()
        try:
            with self._room.saving(staged):
                record = commit.commit(self._core, staged, Place(at, name, staged.path), alone)
        except BaseException as error:
            self._events.not_committed(staged.path, error)
            if getattr(error, "errno", None) == errno.ENOSPC:
                self._room.failed(staged)
            raise
        self._tally.committed(record.size_bytes, time.monotonic() - begun_s)
        with contextlib.suppress(OSError):
            self._room.saved(staged.path, held_bytes(self._fs.stat(staged.fd)))
        with contextlib.suppress(OSError):  # it is committed; the next open verifies it then
            self._guard.remember(staged.fd)
        self._events.note("committed", staged.path)
        return record

    def abort(self, staged: Staged, reason: str) -> None:
        """Never publish: the old version stays, the log says why. The bytes go to salvage, but of
        what found no room: the next would find none either."""
        if reason == DISK_FULL:
            self.discard(staged)
            self._events.not_committed(staged.path, reason)
            self._room.failed(staged)
            return
        entry = commit.abort(self._core, staged, reason)
        self._events.not_committed(staged.path, reason, entry)
        self._room.limits.bound_if_due()

    def may_lack_bytes(self, staged: Staged) -> bool:
        """Whether a write to the version may have found no room, of which its program alone was
        told; see :meth:`Doubts.in_doubt`. May read all of it."""
        if self._room.look().is_full and self._room.doubts.is_unseen(staged):
            return True
        return self._room.doubts.in_doubt(staged) and not seal.is_whole(self._core, staged)

    def reseal(self, staged: Staged) -> bool:
        """Record a live version anew if it was written since its seal, and say whether it was."""
        try:
            if not live.reseal(self._core, staged):
                return False
        except OSError as error:
            self._events.not_committed(staged.path, error)
            raise
        self._guard.remember(staged.fd)
        return True

    def _changed_without_us(self, staged: Staged, at: int, name: str) -> bool:
        """Whether there stands what stood there neither when the version was begun nor by a
        commit."""
        stands = _status(self._fs, at, name)
        if stands is None or Stood.of(stands) == staged.stood:
            return False
        return not self._guard.known_good(at, name)

    def _go_on_from(self, staged: Staged, place: Place, lazily: bool) -> None:
        at_least = self._core.copied_at_once_bytes if lazily else None
        origin.start(self._core.layout, staged, place.at, place.name, at_least)

    # --- while it is written: the caller holds ``staged.lock`` -----------------------------------

    def change(self, staged: Staged, offset: int) -> None:
        """Ahead of every write or cut at ``offset``."""
        origin.change(staged, offset)

    def fill(self, staged: Staged) -> None:
        """Let its file hold all of its bytes, those included that it goes on from."""
        origin.fill(staged)

    def read(self, staged: Staged, size: int, offset: int) -> bytes:
        return origin.read(self._fs, staged, size, offset)

    def is_changed(self, staged: Staged) -> bool:
        """Whether it was written since its seal or, before that, since it was opened."""
        return live.changed(self._core, staged)

    def verdict(self, staged: Staged) -> Verdict:
        return seal.judge_staged(self._core, staged).verdict

    # --- its other ends --------------------------------------------------------------------------

    def expose(self, staged: Staged, at: int, name: str) -> None:
        """Let it stand at the path as it is, without a record, to be written in place."""
        commit.expose(self._core, staged, Place(at, name, staged.path))

    def discard(self, staged: Staged) -> None:
        """Drop a version that its own user deleted, or that never changed."""
        commit.discard(self._core, staged)

    def remove_name(self, staged: Staged) -> None:
        """Its own user deleted it: it lives on, without a link, while it is open."""
        commit.remove_name(self._core, staged)

    # --- published, and changing on --------------------------------------------------------------

    def make_durable(self, staged: Staged) -> None:
        """Its bytes; a failure is final for it. Raises OSError."""
        live.make_durable(self._core, staged)

    def mark_live(self, staged: Staged) -> None:
        """Note in its record that it may change where it stands. Raises OSError."""
        live.mark_live(self._core, staged)


def _status(fs: FileSystem, at: int, name: str) -> Status | None:
    with contextlib.suppress(OSError):
        return fs.lstat(at, name)
    return None


@contextlib.contextmanager
def _known_to_nobody_else(staged: Staged) -> Iterator[None]:
    """Its lock is free, whatever this thread holds, so it is not waited for."""
    staged.lock.acquire(blocking=False)
    try:
        yield
    finally:
        staged.lock.release()


def _close(fs: FileSystem, staged: Staged) -> None:
    fs.close(staged.fd)
    if staged.base is not None:
        staged.base.close()
