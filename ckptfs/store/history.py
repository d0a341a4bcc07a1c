"""What users do with what is kept: back to an earlier generation, out of quarantine, taken as it
is, shared, let go. Paths are relative to the root; ``…_at`` is for who has the directory open.

Thread-safe.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from ckptfs.checking import orphans, rollback
from ckptfs.checking.examine import ROTTEN, Condition, Finding, examine_at
from ckptfs.checking.opens import Guard
from ckptfs.checking.orphans import Orphans
from ckptfs.disk import osfs
from ckptfs.errors import NoSuchGeneration
from ckptfs.history import earlier, moves
from ckptfs.history.sharing import Sharing, never
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.room.making import DiskRoom
from ckptfs.store.saves import Saves
from ckptfs.telling.events import Events
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place, place_of
from ckptfs.versions.recording import bring_in, record
from ckptfs.versions.standing import is_no_file


class History:
    """Of one store."""

    def __init__(
        self,
        core: Core,
        guard: Guard,
        saves: Saves,
        room: DiskRoom,
        events: Events,
        sharing: Sharing,
    ) -> None:
        self._core, self._layout, self._fs = core, core.layout, core.fs
        self._guard, self._saves, self._room, self._events = guard, saves, room, events
        self._orphans, self._sharing = Orphans(core), sharing

    def _place(self, path: str) -> contextlib.AbstractContextManager[Place]:
        return place_of(self._fs, self._layout.root, path)

    def rollback(self, path: str, to: int | None = None) -> int:
        """Make generation ``to``, or the newest good one, what stands at ``path``. What stood
        there is kept as a generation itself or, if it has rotted, in quarantine; who has it open
        keeps it. Directories that went with the file are made. Durable on return. Returns the
        generation. Raises NoSuchGeneration."""
        rollback.make_folders(self._core, path, to)
        with self._place(path) as place:
            return self.rollback_at(place, to)

    def rollback_at(self, place: Place, to: int | None) -> int:
        at, name, path = place
        generation = None
        while generation is None:
            seen = self._guard.stamp_at(place)
            finding = examine_at(self._layout, path, at, name)
            if finding.condition is Condition.UNREADABLE and is_no_file(self._core, place):
                finding = Finding(path, Condition.MISSING)  # what replaced it has no bytes to keep
            if finding.condition in ROTTEN or finding.condition is Condition.MISSING:
                generation = self._guard.restore(place, finding, to, seen)
            else:
                generation = self._revert(place, to)
        self._room.limits.bound_if_due()
        was = f"from generation {finding.record.generation} " if finding.record else ""
        told = f"asked for; {was}to generation {generation}"
        self._events.note("rolled back", path, told, level=logging.INFO)
        return generation

    def _revert(self, place: Place, to: int | None) -> int:
        """Commit the bytes of an earlier generation anew."""
        at, name, path = place
        lineage = rollback.lineage_of(self._core, place)
        generation = rollback.chosen(self._core, lineage, path, to)
        before = self._fs.lstat(at, name)
        with self._saves.staging(path, at, name, exists=True, truncate=True) as staged:
            with (
                osfs.opened(self._fs, self._layout.history, lineage, osfs.DIRECTORY) as folder,
                osfs.opened(self._fs, folder, str(generation), osfs.O_RDONLY) as fd,
            ):
                try:
                    self._fs.clone(fd, staged.fd)
                except OSError:
                    self._fs.copy(fd, staged.fd, 0, self._fs.stat(fd).st_size)
                if not rollback.shows_no_more(self._fs.stat(staged.fd), self._fs.stat(fd)):
                    self._fs.copy_metadata(fd, staged.fd, skip=fmt.XATTR)
                self._fs.copy_times(fd, staged.fd)
            self._saves.commit(staged, at, name)
            self._core.rolled_back(path, before)
        return generation

    def take_back(self, path: str) -> Record:
        """Make what was last put into quarantine of ``path`` its version again, whatever it holds;
        what stands there becomes a generation. Durable on return. Raises NoSuchGeneration."""
        with self._place(path) as place:
            return self.take_back_at(place)

    def take_back_at(self, place: Place) -> Record:
        path = place.path
        with self._core.order.path_locks(place):
            entry = self.quarantined(path)
            before = rollback.status_at(self._core, place)
            with self._room.expendable.using(entry):
                taken = bring_in(self._core, self._layout.quarantine, entry, place)
            self._core.rolled_back(path, before)
            self._layout.aside.drop(self._layout.quarantine, entry)
        self._events.note("adopted", path, "what was in quarantine")
        return taken

    def owner_in_quarantine(self, path: str) -> int:
        return self._fs.lstat(self._layout.quarantine, self.quarantined(path)).st_uid

    def quarantined(self, path: str) -> str:
        """The last entry of ``path`` in quarantine. Raises NoSuchGeneration."""
        for story in reversed(self._layout.aside.entries(self._layout.quarantine)):
            if story["path"] == path:
                return str(story["id"])
        raise NoSuchGeneration(f"{path}: nothing of it lies in quarantine")

    def set_aside(self, lineage: str, generation: int) -> str:
        """Put a generation that has rotted into quarantine. Durable on return. Says what was
        done; nothing, where it is good after all."""
        name = str(generation)
        with osfs.opened(self._fs, self._layout.history, lineage, osfs.DIRECTORY) as folder:
            path = earlier.noted_path(self._layout, lineage)
            finding = examine_at(self._layout, name, folder, name, called=path or "", direct=True)
            if finding.condition not in ROTTEN:
                return ""
            story: dict[str, object] = {
                "path": path,
                "reason": f"generation {generation}: {finding.detail}",
            }
            self._layout.aside.put(folder, name, self._layout.quarantine, story)
            self._core.order.sync_dir(self._layout.quarantine)
            self._core.order.sync_dir(folder)
        self._events.note("set aside", path or lineage, f"generation {generation} has rotted")
        self._room.limits.bound_if_due()
        return "put into quarantine"

    def adopt(self, path: str) -> Record:
        """Record the file as it is: one that was there before, or was edited outside. Durable on
        return. Without a record that tells its lineage it begins one. Raises Rotten for what no
        edit has made different."""
        with self._place(path) as place:
            return self.adopt_at(place)

    def adopt_at(self, place: Place) -> Record:
        with self._core.order.path_locks(place):
            adopted = record(self._core, place)
        self._events.note("adopted", place.path)
        return adopted

    def forget(self, path: str, known: dict[str, str]) -> bool:
        """Let the history go of a file that was deleted outside, as ``rm`` through a mount does.
        ``known`` are the lineages by path. Whether it has one."""
        moves.leave(self._core.lineages, known.get(path, ""), path)
        return path in known

    def tidy(self, pause: Callable[[], None] = orphans.nothing) -> orphans.Outcome:
        """Let history go that no path leads to; see :mod:`ckptfs.checking.orphans`. ``pause`` is
        called every now and then. Takes as long as history is wide and, where there is such, the
        tree."""
        outcome = self._orphans.settle(pause)
        for path in outcome.given_back:
            self._events.note(
                "given back", path, "its history, which a crash or a rename outside cut off"
            )
        if outcome.let_go:
            self._events.note(
                "let go", "", f"{outcome.let_go} earlier versions that no path led to"
            )
        return outcome

    def share(self, path: str, stopped: Callable[[], bool] = never) -> int:
        """Let the generations that history holds of ``path`` share the blocks that are as in the
        committed version, where the filesystem can; see :mod:`ckptfs.history.sharing`. Takes about
        as long as reading them all. Returns how many bytes came to be shared. Raises OSError where
        the path is gone."""
        with self._place(path) as place:
            lineage = self._core.lineages.look(*place).lineage
            shared = self._sharing.share_history(place.at, place.name, lineage, stopped)
        if shared:
            self._events.note("shared", path, f"{shared} bytes")
        return shared

    def lineage_of(self, place: Place) -> str:
        """Whose history is that of the file; empty where it has none."""
        return rollback.lineage_of(self._core, place)

    def is_orphan(self, lineage: str) -> bool:
        """Whether no path leads to it. Takes as long as the tree is wide."""
        return lineage in orphans.find(self._core.lineages).orphans
