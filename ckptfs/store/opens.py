"""Verified opens (C5), told: what is read is good, or rolled back, or refused. Thread-safe."""

from __future__ import annotations

import shlex
from typing import Any

from ckptfs.checking.examine import Condition, Finding
from ckptfs.checking.opens import Guard
from ckptfs.errors import CkptfsError
from ckptfs.room.making import DiskRoom
from ckptfs.telling.events import Events
from ckptfs.telling.tally import Tally
from ckptfs.versions.order import Place
from ckptfs.versions.recording import reseal_committed


class Opens:
    """Of one store, whose directory is named ``where`` in messages."""

    def __init__(
        self, guard: Guard, room: DiskRoom, events: Events, tally: Tally, where: str, verifies: bool
    ) -> None:
        self._core, self._guard, self._room = guard.core, guard, room
        self._events, self._tally = events, tally
        self._where, self._verifies = where, verifies

    def verify(self, place: Place, *, live: bool = False) -> Finding | None:
        """Ensure that an open of the file reads good bytes; see :meth:`Guard.check`. None where
        they were known to be good.

        ``live``: a process may still map the version; what was stored through the mapping since
        its seal is recorded first, not taken for an edit.
        """
        if not self._verifies:
            return None
        if live:
            reseal_committed(self._core, place.at, place.name)
        found = None if self._guard.known_good(place.at, place.name) else self.check(place)
        self._tally.verified()
        return found

    def check(self, place: Place, **how: Any) -> Finding:
        """:meth:`Guard.check`, and what was found is noted."""
        path = place.path
        try:
            finding = self._guard.check(place, **how)
        except (CkptfsError, OSError) as error:
            self._events.not_served(path, error)
            raise
        if finding.replaced:
            was = f"generation {finding.record.generation} " if finding.record else ""
            words = map(shlex.quote, (self._where, path))
            undo = f"`ckptfs adopt {' '.join(words)} --quarantined` takes back what was there"
            self._events.note(
                "rolled back", path, f"{finding.detail}; {was}{finding.repair}; {undo}"
            )
            self._room.limits.bound_if_due()
        elif finding.repair:
            self._events.note("mended", path, f"{finding.detail}; {finding.repair}")
        elif finding.condition is Condition.MODIFIED:
            self._events.note("modified outside", path)
        return finding

    def verify_kept(self, place: Place, lineage: str) -> None:
        """Ensure that an open of this kept generation of the lineage reads good bytes. Raises
        Rotten: nothing stands behind it."""
        try:
            self._guard.require_good(place, lineage)
        except (CkptfsError, OSError) as error:
            self._events.not_served(place.path, error)
            raise
