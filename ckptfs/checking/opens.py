"""Verified opens (C5): rotten bytes are rolled back to the newest good generation, or refused.

The damaged version goes to quarantine, nothing is deleted. What was found good is remembered until
its size, mtime or ctime move. Thread-safe.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ckptfs.checking.examine import ROTTEN, Condition, Finding, Stamp, examine, stamp
from ckptfs.checking.remembered import Remembered
from ckptfs.disk import osfs
from ckptfs.disk.filesystem import Status
from ckptfs.errors import NoSuchGeneration, RecordDamaged, Rotten
from ckptfs.history import earlier
from ckptfs.modes import Outside
from ckptfs.records import format as fmt
from ckptfs.versions.commit import Committer


class Guard:
    """Over one store."""

    def __init__(self, committer: Committer, outside: Outside) -> None:
        self.committer, self.layout, self.fs = committer, committer.layout, committer.fs
        self.outside = outside
        # whether a process may write the inode without a commit
        self.written_here: Callable[[tuple[int, int]], bool] = lambda inode: False
        # told of a path that was rolled back, and of what stood there, if anything
        self.replaced: Callable[[str, Status | None], None] = lambda path, before: None
        self._known = Remembered()
        self._guard = threading.Lock()

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

    def check(self, at: int, name: str, path: str, **how: Any) -> Finding:
        """Examine ``at/name``, which is ``path``, whatever is remembered of it, and see to what
        has rotted: see ``repair`` and ``replaced`` of the answer. A rollback is durable on return.
        ``how`` is as for :func:`examine`.
        Raises Rotten where no good generation is left.
        """
        while True:
            before = stamp(self.fs.lstat(at, name))
            if before[0] in self.committer.growth.torn:
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
            with self.committer.path_lock(at, name):
                if stamp(self.fs.lstat(at, name)) == before:
                    return self._mend(at, name, finding)
            # Replaced or rolled back by somebody else meanwhile, or merely linked: look again.

    def require_good(self, at: int, name: str, path: str, lineage: str) -> None:
        """Make sure that a kept generation of the lineage gives good bytes. Raises Rotten."""
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

    def _mend(self, at: int, name: str, finding: Finding) -> Finding:
        if finding.proven:
            self.committer.require_writable()
            lineage = self.lineage_of(at, name, finding.path)
            self.committer.record(at, name, finding.path, lineage)
            return replace(finding, repair="given a new record")
        lineage, generation = self._newest_good(at, name, finding)
        self.committer.require_writable()
        self._quarantine(at, name, finding)
        self._install(lineage, generation, at, name, finding.path)
        done = f"rolled back to generation {generation}"
        return replace(finding, repair=done, replaced=True)

    def _newest_good(self, at: int, name: str, finding: Finding) -> tuple[str, int]:
        """The newest good generation before the rotten one. All are before it where its record
        does not tell the lineage."""
        record = finding.record
        lineage = self.lineage_of(at, name, finding.path)
        told = record is not None and record.lineage == lineage
        told = told and lineage not in self.committer.lineages.pinned
        for generation in earlier.generations(self.layout, lineage):
            older = not told or (record is not None and generation < record.generation)
            if older and self._is_good(lineage, generation):
                return lineage, generation
        raise Rotten(
            f"{finding.path}: {finding.detail}, and no good generation is left; the file is where "
            "it was, restore it from a copy"
        )

    def _is_good(self, lineage: str, generation: int, *, asked: bool = False) -> bool:
        """Proven by its record or, where a user ``asked`` for it, not disproven."""
        path = earlier.noted_path(self.layout, lineage)
        with (
            contextlib.suppress(OSError),
            osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder,
        ):
            found = examine(self.layout, folder, str(generation), called=path or "")
            if not earlier.holds(self.layout, folder, lineage, found.record):
                return False
            return found.condition is Condition.OK or (asked and found.condition not in ROTTEN)
        return False

    def _quarantine(self, at: int, name: str, finding: Finding) -> None:
        """Give the damaged file a second name in quarantine, durable on return."""
        draft = fmt.new_txid()
        self.fs.link(at, name, self.layout.stage, draft)
        story: dict[str, object] = {"path": finding.path, "reason": finding.detail}
        self.layout.put_aside(self.layout.stage, draft, self.layout.quarantine, story)
        self.committer.sync_dir(self.layout.quarantine)

    def _install(self, lineage: str, generation: int, at: int, name: str, path: str) -> None:
        """Let ``path``, ``at/name``, be that generation. By way of stage: history lets go of the
        good version only once it is settled."""
        before = self.status_at(at, name)
        with osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder:
            draft = fmt.new_txid()
            self.fs.link(folder, str(generation), self.layout.stage, draft)
            if before is not None and osfs.is_regular(before):
                self._inherit(at, name, draft)
            self._require_told(lineage, draft)
            self.fs.rename(self.layout.stage, draft, at, name)
            self.replaced(path, before)
            self.committer.sync_dir(at)
            if not self.committer.lineages.is_shared(lineage, path):
                with contextlib.suppress(OSError):
                    self.fs.unlink(folder, str(generation))

    def _require_told(self, lineage: str, draft: str) -> None:
        """A version that two paths had has the lineage of one of them in its record."""
        with osfs.opened(self.fs, self.layout.stage, draft, osfs.O_RDONLY) as fd:
            record = self.layout.read_record(fd)
        if record is None or record.lineage != lineage:
            self.committer.lineages.pin(lineage)
            self.committer.sync_dir(self.layout.history)

    def _inherit(self, at: int, name: str, draft: str) -> None:
        """Who may read a file may have changed since that generation: mode and ACL are those of
        the version that it replaces. But not if that is another user's, or open to more: who
        renames a file of his own onto somebody else's must not come to read what was there."""
        with (
            contextlib.suppress(FileNotFoundError),
            osfs.opened(self.fs, at, name, osfs.O_RDONLY) as replaced,
            osfs.opened(self.fs, self.layout.stage, draft, osfs.O_RDONLY) as good,
        ):
            if shows_no_more(self.fs.stat(replaced), self.fs.stat(good)):
                self.fs.copy_metadata(replaced, good, skip=fmt.XATTR)
                self.fs.fsync(good)

    # --- at the user's wish ----------------------------------------------------------------------

    def status_at(self, at: int, name: str) -> Status | None:
        with contextlib.suppress(FileNotFoundError):
            return self.fs.lstat(at, name)
        return None

    def stamp_at(self, at: int, name: str) -> Stamp | None:
        status = self.status_at(at, name)
        return None if status is None else stamp(status)

    def restore(
        self, at: int, name: str, finding: Finding, to: int | None, seen: Stamp | None
    ) -> int | None:
        """Bring back generation ``to``, or the newest good one, in place of what is rotten or not
        there at all. Durable on return. Returns the generation; None if the path is no more as
        it was ``seen``. Raises NoSuchGeneration."""
        self.committer.require_writable()
        with self.committer.path_lock(at, name):
            if self.stamp_at(at, name) != seen:
                return None
            lineage = self.lineage_of(at, name, finding.path)
            generation = self.chosen(lineage, finding.path, to)
            if finding.condition is not Condition.MISSING:
                self._quarantine(at, name, finding)
            self._install(lineage, generation, at, name, finding.path)
        return generation

    def make_folders(self, path: str, to: int | None) -> None:
        """Make the directories that are gone together with ``path``, if there is a generation to
        bring back. They are for its owner alone: nobody knows who else was let in. Durable on
        return. Raises NoSuchGeneration."""
        folders = osfs.steps(path)[:-1]
        at = self.fs.open(self.layout.root, ".", osfs.DIRECTORY)
        try:
            for name in folders:
                try:
                    below = self.fs.open(at, name, osfs.DIRECTORY)
                except FileNotFoundError:
                    below = self._make_folder(at, name, self._status_of(path, to))
                self.fs.close(at)
                at = below
        finally:
            self.fs.close(at)

    def _make_folder(self, at: int, name: str, like: Status) -> int:
        self.committer.require_writable()
        self.fs.mkdir(at, name, 0o700)
        fd = self.fs.open(at, name, osfs.DIRECTORY)
        osfs.give(fd, like)
        self.committer.sync_dir(at)
        return fd

    def _status_of(self, path: str, to: int | None) -> Status:
        """Of the generation that is to be brought back to ``path``."""
        lineage = earlier.lineages_by_path(self.layout).get(path, "")
        generation = self.chosen(lineage, path, to)
        with osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder:
            return self.fs.lstat(folder, str(generation))

    def lineage_of(self, at: int, name: str, path: str) -> str:
        """Whose history is that of the file at ``path``, ``at/name``; empty where it has none: see
        :meth:`Lineages.readable`."""
        return self.committer.lineages.readable(at, name, path)

    def chosen(self, lineage: str, path: str, to: int | None) -> int:
        """That generation, or the newest one, if it is good. Raises NoSuchGeneration."""
        kept = earlier.generations(self.layout, lineage)
        for generation in kept:
            if to in (None, generation) and self._is_good(
                lineage, generation, asked=to is not None
            ):
                return generation
        which = "no good generation" if to is None else f"no good generation {to}"
        known = ", ".join(map(str, kept)) or "none"
        raise NoSuchGeneration(f"{path}: {which} in history; there is: {known}")


def shows_no_more(now: Status, then: Status) -> bool:
    """Whether owner and mode of ``now`` let nobody in that those of ``then`` kept out."""
    return now.st_uid == then.st_uid and not now.st_mode & ~then.st_mode & 0o777
