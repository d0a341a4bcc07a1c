"""Verified opens (C5): rotten bytes are rolled back to the newest good generation, or refused.

The damaged version goes to quarantine, nothing is deleted. What was found good is remembered until
its size, mtime or ctime move. Thread-safe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ckptfs.checking import rollback
from ckptfs.checking.examine import ROTTEN, Condition, Finding, Stamp, examine, stamp
from ckptfs.checking.remembered import Remembered
from ckptfs.disk import osfs
from ckptfs.disk.locks import leaf
from ckptfs.errors import RecordDamaged, Rotten
from ckptfs.history import earlier
from ckptfs.modes import Outside
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place
from ckptfs.versions.recording import record


class Guard:
    """Over one store."""

    def __init__(self, core: Core, outside: Outside) -> None:
        self.core, self.layout, self.fs = core, core.layout, core.fs
        self.outside = outside
        # whether a process may write the inode without a commit
        self.written_here: Callable[[tuple[int, int]], bool] = lambda inode: False
        self._known = Remembered()
        self._guard = leaf()

    # --- what is known to be good ----------------------------------------------------------------

    def remember(self, fd: int) -> None:
        """The version of ``fd`` is as its record says; asked again only once it changes."""
        self._remember(stamp(self.fs.stat(fd)))

    def _remember(self, seen: Stamp) -> None:
        with self._guard:
            self._known.add(seen)

    def known_good(self, at: int, name: str) -> bool:
        seen = stamp(self.fs.lstat(at, name))
        with self._guard:
            return seen in self._known

    def known(self) -> bytes:
        """For the program that goes on."""
        with self._guard:
            return self._known.packed()

    def resume(self, known: bytes) -> None:
        with self._guard:
            self._known.update(known)

    # --- checking --------------------------------------------------------------------------------

    def check(self, place: Place, **how: Any) -> Finding:
        """Examine what stands there, whatever is remembered of it, and see to what has rotted: see
        ``repair`` and ``replaced`` of the answer. A rollback is durable on return.
        ``how`` is as for :func:`examine`.
        Raises Rotten where no good generation is left.
        """
        at, name, path = place
        while True:
            before = stamp(self.fs.lstat(at, name))
            if before[0] in self.core.order.torn:
                raise Rotten(
                    f"{path}: half extended, and could not be cut back; remount to repair it"
                )
            finding = examine(self.layout, at, name, outside=self.outside, **how)
            finding = replace(finding, path=path)
            if finding.touched and self.written_here(before[0]):
                finding = replace(finding, condition=Condition.MODIFIED)
            if finding.condition not in ROTTEN:
                if finding.condition is not Condition.BUSY:
                    self._remember(before)
                return finding
            with self.core.order.path_locks(place):
                if stamp(self.fs.lstat(at, name)) == before:
                    return self._mend(place, finding)
            # Replaced or rolled back by somebody else meanwhile, or merely linked: look again.

    def require_good(self, place: Place, lineage: str) -> None:
        """Make sure that a kept generation of the lineage gives good bytes. Raises Rotten."""
        at, name, path = place
        with (
            contextlib.suppress(RecordDamaged),  # looked at below
            osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd,
        ):
            if not earlier.holds(self.layout, at, lineage, self.layout.read_record(fd)):
                raise Rotten(f"{path}: it is a version of another file")
        if self.known_good(at, name):
            return
        before = stamp(self.fs.lstat(at, name))
        finding = examine(self.layout, at, name, called=path)
        if finding.condition in ROTTEN:
            raise Rotten(f"{path}: {finding.detail}")
        self._remember(before)

    def _mend(self, place: Place, finding: Finding) -> Finding:
        if finding.proven:
            self.core.order.require_writable()
            record(self.core, place, rollback.lineage_of(self.core, place))
            return replace(finding, repair="given a new record")
        lineage, generation = rollback.newest_good(self.core, place, finding)
        self.core.order.require_writable()
        rollback.quarantine(self.core, place, finding)
        rollback.bring_back(self.core, lineage, generation, place)
        done = f"rolled back to generation {generation}"
        return replace(finding, repair=done, replaced=True)

    # --- at the user's wish ----------------------------------------------------------------------

    def stamp_at(self, place: Place) -> Stamp | None:
        status = rollback.status_at(self.core, place)
        return None if status is None else stamp(status)

    def restore(
        self, place: Place, finding: Finding, to: int | None, seen: Stamp | None
    ) -> int | None:
        """Bring back generation ``to``, or the newest good one, in place of what is rotten or not
        there at all. Durable on return. Returns the generation; None if the path is no more as
        it was ``seen``. Raises NoSuchGeneration."""
        self.core.order.require_writable()
        with self.core.order.path_locks(place):
            if self.stamp_at(place) != seen:
                return None
            lineage = rollback.lineage_of(self.core, place)
            generation = rollback.chosen(self.core, lineage, place.path, to)
            if finding.condition is not Condition.MISSING:
                rollback.quarantine(self.core, place, finding)
            rollback.bring_back(self.core, lineage, generation, place)
        return generation
