"""Whose history is whose: a lineage, and the paths that it is the history of.

The record of a file names a lineage, so the history follows the file through renames, those behind
ckptfs too. But a record belongs to the inode, and hard links of one inode are several paths. So:

- The note on the directory of a lineage names its paths. They share the history while they are
  names of one version. A hard link that is made through the store is noted.
- The first of them that still carries the lineage *keeps* it: it takes the history along to its
  next version, and the others are left with theirs and no history. A path that does not keep its
  lineage begins a new one with its next version. So does a path that no note names, if one that
  is named carries the lineage: it is a copy made outside, or was left.
- A path that is deleted or renamed over leaves its lineage. The last one takes the history along.
- What stands at a path may not be able to tell its lineage: a symlink, a file that is written in
  place, a hard link of a file that has another lineage. Then the lineage is *pinned*: whatever
  stands at the paths of its note has it. Marks in history say which are, so that their notes are
  known without a search.

Invariant: every generation is reached from a path: by a note that names it and by what stands
there, or by the note alone where nothing stands there any more. ``orphans.py`` checks that.

Thread-safe. ``lock`` is held for the changes of a lineage that must not mix: nothing is made
durable inside, and no other lock is taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import Status
from ckptfs.disk.locks import Rank, ranked
from ckptfs.errors import RecordDamaged
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.records.format import HistoryNote, Record
from ckptfs.records.layout import Layout

Where = Callable[[str], contextlib.AbstractContextManager[tuple[int, str]]]


@dataclass(frozen=True)
class Standing:
    """What stands at a path, and which history is its own. ``lineage`` is empty where there is
    none: of a file without a record, of a copy."""

    path: str
    status: Status | None = None
    record: Record | None = None  # None where it is damaged, too
    lineage: str = ""
    keeps: bool = False  # takes the lineage along when it moves on
    names: tuple[str, ...] = ()  # all paths of the lineage

    @property
    def is_file(self) -> bool:
        return self.status is not None and osfs.is_regular(self.status)

    def is_same_inode(self, other: Standing) -> bool:
        mine, others = self.status, other.status
        if mine is None or others is None:
            return False
        return (mine.st_dev, mine.st_ino) == (others.st_dev, others.st_ino)


class Lineages:
    """Of one store."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.fs = layout, layout.fs
        self.lock = ranked(Rank.LINEAGES)
        self.pinned: set[str] = set()
        self.pins: dict[str, str] = {}  # pinned lineages by path
        # where paths moved to, while somebody walks the tree and could miss them
        self.watch: set[str] | None = None
        self.read_pins()

    def read_pins(self) -> None:
        self.pinned = earlier.pinned(self.layout)
        self.pins = {}
        for lineage in self.pinned:
            self._update_pins(lineage, earlier.note(self.layout, lineage) or HistoryNote())

    def moved(self, *paths: str) -> None:
        if self.watch is not None:
            self.watch.update(paths)

    # --- what a path has -------------------------------------------------------------------------

    def look(self, at: int, name: str, path: str) -> Standing:
        """What stands at ``path``, ``at/name``. Raises OSError where it cannot be read."""
        try:
            status = self.fs.lstat(at, name)
        except FileNotFoundError:
            return Standing(path)
        record, lineage = None, self.pins.get(path, "")
        if osfs.is_regular(status):  # opening a FIFO would wait for its writer
            with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
                status = self.fs.stat(fd)
                try:
                    record = self.layout.read_record(fd)
                    lineage = lineage or (record.lineage if record else "")
                except RecordDamaged:
                    lineage = lineage or self._by_remains(fd, path)
        found = Standing(path, status, record)
        if not lineage:
            return found
        names = (earlier.note(self.layout, lineage) or HistoryNote()).paths
        keeper = next((each for each in names if each == path or self.carries(each, lineage)), path)
        if path != keeper and path not in names:
            return found
        return replace(found, lineage=lineage, keeps=path == keeper, names=names)

    def look_at(self, path: str) -> Standing:
        with self._place(path) as (at, name):
            return self.look(at, name, path)

    def _place(self, path: str) -> contextlib.AbstractContextManager[tuple[int, str]]:
        return osfs.place(self.fs, self.layout.root, path)

    def carries(self, path: str, lineage: str, where: Where | None = None) -> bool:
        """Whether what stands at ``path`` is of the lineage. Where that cannot be told it is:
        history is not to go for a directory that cannot be read. ``where`` finds its directory,
        if not :func:`osfs.place` does."""
        try:
            with where(path) if where else self._place(path) as (at, name):
                status = self.fs.lstat(at, name)
                if path in self.pins:
                    return self.pins[path] == lineage
                if not osfs.is_regular(status):
                    return False
                with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
                    value = self.layout.raw_record(fd) or b""
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        try:
            record = Record.from_bytes(value)
            return record is not None and record.lineage == lineage
        except RecordDamaged:
            return fmt.names_lineage(value, lineage)

    def _by_remains(self, fd: int, path: str) -> str:
        """A damaged record is believed if what is left of it agrees with what history knows the
        path by: a path alone is no proof, since directories are renamed outside, too."""
        lineage = earlier.lineages_by_path(self.layout).get(path, "")
        value = self.layout.raw_record(fd) or b""
        return lineage if lineage and fmt.names_lineage(value, lineage) else ""

    def readable(self, at: int, name: str, path: str) -> str:
        """Whose history is shown and rolled back to at ``path``; empty where there is none. Of a
        path where nothing stands, that which history knows it by. A hard link that was made
        outside shares that of the path it was made from, until they part."""
        found = self.look(at, name, path)
        if found.status is None:
            return earlier.lineages_by_path(self.layout).get(path, "")
        if found.lineage or found.record is None:
            return found.lineage
        return found.record.lineage if self.names_of(found.record.lineage, found) else ""

    def names_of(self, lineage: str, found: Standing) -> tuple[str, ...]:
        """The paths that history knows the lineage by and that are names of what was ``found``."""
        names = (earlier.note(self.layout, lineage) or HistoryNote()).paths
        return tuple(each for each in names if self.is_name(each, found))

    def is_name(self, path: str, found: Standing) -> bool:
        with (
            contextlib.suppress(OSError),
            self._place(path) as (at, name),
        ):
            return Standing(path, self.fs.lstat(at, name)).is_same_inode(found)
        return False

    def is_shared(self, lineage: str, path: str) -> bool:
        """Whether other paths rely on the history, too."""
        names = (earlier.note(self.layout, lineage) or HistoryNote()).paths
        return any(each != path and self.carries(each, lineage) for each in names)

    # --- what history gets -----------------------------------------------------------------------

    def link(
        self,
        at: int,
        name: str,
        path: str,
        lineage: str,
        generation: int,
        *,
        told: str,
        pin: bool,
    ) -> tuple[int, bool]:
        """See :func:`history.link`; ``pin`` as well, by a mark that is as durable as the name of
        the lineage."""
        with self.lock:
            folder, made = earlier.link(self.layout, at, name, lineage, generation, path, told)
            try:
                marked = pin and self.pin(lineage)
                self._update_pins(lineage, earlier.note(self.layout, lineage) or HistoryNote())
            except OSError:
                self.fs.close(folder)
                raise
        return folder, made or marked

    def pin(self, lineage: str) -> bool:
        """Let whatever stands at its paths have the lineage. False if it is so already. Durable
        once the names in history are."""
        with self.lock:
            if lineage in self.pinned:
                return False
            earlier.pin(self.layout, lineage)
            self.pinned.add(lineage)
            self._update_pins(lineage, earlier.note(self.layout, lineage) or HistoryNote())
        return True

    def give(self, lineage: str, paths: tuple[str, ...]) -> None:
        """The lineage is that of these paths."""
        self.set_note(lineage, HistoryNote(paths))

    def forget(self, lineage: str) -> int:
        """Drop the whole lineage. Returns how many generations went."""
        with self.lock:
            self._update_pins(lineage, HistoryNote())
            self.pinned.discard(lineage)
            return earlier.forget(self.layout, lineage)

    def drop_marks(self) -> None:
        """Of lineages that are gone: a crash leaves them."""
        with self.lock:
            for lineage in sorted(self.pinned):
                if earlier.note(self.layout, lineage) is None:
                    self.forget(lineage)

    # --- notes -----------------------------------------------------------------------------------

    def renote(self, lineage: str, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        """Let its note name other paths, if there is one; what cannot be set is a hint less."""
        with self.lock, contextlib.suppress(OSError):
            note = earlier.note(self.layout, lineage)
            if note is not None:
                new = HistoryNote(tuple(dict.fromkeys(change(note.paths))))
                if new != note:
                    self.set_note(lineage, new)

    def set_note(self, lineage: str, note: HistoryNote) -> None:
        """Not durable on return."""
        if lineage:
            with self.lock:
                earlier.set_note(self.layout, lineage, note)
                self._update_pins(lineage, note)

    def _update_pins(self, lineage: str, note: HistoryNote) -> None:
        if lineage in self.pinned:
            for path in [path for path, pinned in self.pins.items() if pinned == lineage]:
                del self.pins[path]
            self.pins.update(dict.fromkeys(note.paths, lineage))
