"""What the mount may show in place of what the plain side has: the listed differences as a model.

Of every regular file of the plain side it knows the version that is being written, who sees it, and
what everybody else is shown (:class:`Flight`), and which descriptors keep a version that is no
longer the one of the path. What cannot differ is compared; what has parted is *split* until the
last descriptor is closed, and then both sides are made equal again.

Where a rule of the mount turns on something that is not seen from here (whether a close has
published), the model takes the case that allows more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field

CHILD_OF = {3: 0}  # a worker that descends from another one
TEXT = bytes(range(0x20, 0x7F)) + b"\n"
_PLACED = ".log"  # names that are written in place by their pattern
_FORMATS = (".pt",)


def sees(worker: int) -> set[int]:
    """Who sees what this worker writes."""
    return {worker, *(child for child, parent in CHILD_OF.items() if parent == worker)}


def related(one: int, other: int) -> bool:
    return one in sees(other) or other in sees(one)


def is_text(content: bytes | None) -> bool:
    """Text for sure, as far as the mount looks."""
    return bool(content) and not (content or b"").translate(None, TEXT)


def is_binary(content: bytes) -> bool:
    """No text for sure."""
    return b"\0" in content[:100]


@dataclass(eq=False)
class Description:
    """One open file description of both sides."""

    inode: int  # on the plain side
    path: str
    at: str  # where its symlinks lead to
    writing: bool
    is_file: bool
    flags: int
    holders: set[tuple[int, int]]  # (worker, slot)
    flushed: bool = False  # a close of it was seen: it may have published
    stale: bool = False  # keeps a version that is no longer, or not, what the path shows
    in_place: bool = False  # what it writes is seen by all at once
    mapped: set[tuple[int, int]] = field(default_factory=set)  # writable mappings (worker, slot)

    @property
    def workers(self) -> set[int]:
        return {worker for worker, _ in self.holders | self.mapped}

    @property
    def patterned(self) -> bool:
        return self.at.endswith(_PLACED)


@dataclass
class Flight:
    """A version that is being written, or was published and is written on."""

    seers: set[int] | None  # None: everybody, for it is new
    shown: set[bytes] = field(default_factory=set)  # to the others, until it is published
    fresh: bool = True  # begun by creation or truncation
    touched: bool = False  # something was written to it, maybe
    appends: bool = False
    began: bytes = b""  # with this content
    mixed: bool = False  # not by text that is added alone, so maybe found to be no text once
    said: bool = False  # maybe somebody has said that it is whole: by a close, a rename, a lock


@dataclass
class Model:
    """Which files of the plain side are more than one version on the mount."""

    open: dict[tuple[int, int], Description] = field(default_factory=dict)
    maps: dict[tuple[int, int], Description] = field(default_factory=dict)
    flight: dict[int, Flight] = field(default_factory=dict)
    split: set[int] = field(default_factory=set)  # their versions have gone different ways
    lost: set[int] = field(default_factory=set)  # split, by a writer that was killed
    kept: set[int] = field(default_factory=set)  # replaced: history may have a link to them
    # stored to by a map, where the times move when the kernel writes the pages back
    late: set[int] = field(default_factory=set)

    def of(self, inode: int) -> list[Description]:
        found = [*self.open.values(), *self.maps.values()]
        return list({id(d): d for d in found if d.inode == inode}.values())

    def hidden(self, inode: int | None, worker: int) -> bool:
        """Whether a path of this file may show this worker another version."""
        if inode is None:
            return False
        if inode in self.split:
            return True
        flight = self.flight.get(inode)
        return flight is not None and flight.seers is not None and worker not in flight.seers

    def shown(self, inode: int | None, worker: int) -> set[bytes] | None:
        """The contents that it may show, besides that of the plain side; None: any."""
        if inode is None or not self.hidden(inode, worker):
            return set()
        return None if inode in self.split else self.flight[inode].shown

    def part(self, inode: int) -> None:
        self.split.add(inode)

    def forget(self, inode: int) -> None:
        """Both sides are the same again, or the file is gone."""
        for table in (self.split, self.lost, self.kept, self.late):
            table.discard(inode)
        self.flight.pop(inode, None)

    # --- opens -----------------------------------------------------------------------------------

    def opened(
        self,
        worker: int,
        slot: int,
        found: Description,
        before: os.stat_result | None,
        content: bytes,
    ) -> bool:
        """Whether it truncates a version of its own; ``content``: of the file before this open."""
        others = self.of(found.inode)
        self.open[worker, slot] = found
        if before is None:  # made by this open; numbers of removed inodes come back
            self.forget(found.inode)
            if found.is_file and not found.patterned:
                appends = bool(found.flags & os.O_APPEND)
                self.flight[found.inode] = Flight(None, appends=appends)
            return False
        if not found.is_file:
            return False
        if found.patterned:
            found.in_place = True
        elif not found.writing:
            found.stale = self.hidden(found.inode, worker)
        elif found.flags & os.O_TRUNC:
            return self._opened_to_truncate(worker, found, others, before, content)
        else:
            self._opened_to_go_on(worker, found, others, before, content)
        return False

    def _opened_to_truncate(
        self,
        worker: int,
        found: Description,
        others: list[Description],
        before: os.stat_result,
        content: bytes,
    ) -> bool:
        flight, written = self.flight.get(found.inode), _written(others)
        kin = all(related(worker, other) for d in written for other in d.workers)
        joins = any(not d.flushed for d in written) and not self.hidden(found.inode, worker)
        if joins and flight is not None and not flight.touched:
            both = before.st_size == 0 and found.flags & os.O_ACCMODE == os.O_RDWR
            if both or kin:
                flight.touched = before.st_size > 0
                self._see(flight, worker)
                return False
        added = flight is not None and flight.touched and not (flight.fresh or kin)
        if added or any(_adds_to_older(d, worker) for d in others):
            self.part(found.inode)  # what a stranger adds is not taken away
        self._begin(worker, found, before, content, fresh=True)
        # A log that was published by the clock is truncated where it stands.
        self.flight[found.inode].said = bool(written) and may_be_log(found.at)
        return True

    def _opened_to_go_on(
        self,
        worker: int,
        found: Description,
        others: list[Description],
        before: os.stat_result,
        content: bytes,
    ) -> None:
        flight, appends = self.flight.get(found.inode), bool(found.flags & os.O_APPEND)
        written = [d for d in _written(others) if not d.flushed or d.mapped]
        older = (d for d in others if d.stale and d.writing and _shows(d, worker))
        if self.hidden(found.inode, worker) and any(older):
            found.stale = True  # it joins the one that it sees
        elif any(d.at != found.at for d in written):  # by another link, be it gone, or name
            self.part(found.inode)
            self._begin(worker, found, before, content, fresh=False)  # the names part
        elif written:
            found.in_place = all(d.in_place for d in written)
            if flight is not None:
                flight.appends |= appends
                self._see(flight, worker)
        elif appends and is_text(content) and may_be_log(found.at):
            found.in_place = True
        else:
            self._begin(worker, found, before, content, fresh=False)

    def _see(self, flight: Flight, worker: int) -> None:
        if flight.seers is not None:
            flight.seers |= sees(worker)

    def _begin(
        self, worker: int, found: Description, before: os.stat_result, content: bytes, fresh: bool
    ) -> None:
        """A version of its own: what others have open is not the one of the path any more."""
        if before.st_nlink > 1:
            self.part(found.inode)
        for description in self.of(found.inode):
            description.stale = description is not found
        old = self.flight.get(found.inode)
        appends = bool(found.flags & os.O_APPEND)
        shown = {content} | (old.shown if old else set())
        began = b"" if fresh else content
        self.flight[found.inode] = Flight(sees(worker), shown, fresh, False, appends, began)

    # --- changes ---------------------------------------------------------------------------------

    def touched(self, description: Description) -> None:
        """Whether a mapping is stored to is not seen: it may be published as if it was."""
        if description.inode in self.flight and not description.stale:
            self.flight[description.inode].touched = True

    def written(self, description: Description, *, adds_text: bool = False) -> None:
        flight = self.flight.get(description.inode)
        if description.stale:
            self.part(description.inode)
        elif flight is not None:
            flight.touched = True
            flight.mixed |= not adds_text

    def masked(self, description: Description) -> bool:
        return description.stale or description.inode in self.split

    def truncated(self, worker: int, status: os.stat_result, at: str) -> None:
        """By its path, without a descriptor: a commit of its own, or a cut of what is written."""
        inode, written = status.st_ino, _written(self.of(status.st_ino))
        if at.endswith(_PLACED):
            return
        if status.st_nlink > 1 and any(d.at != at for d in written):
            self.part(inode)  # it is written by another of its names
        elif written:
            if self.hidden(inode, worker):
                self.part(inode)
            elif inode in self.flight:
                self.flight[inode].touched = self.flight[inode].mixed = True
        else:
            if status.st_nlink > 1:
                self.part(inode)
            for description in self.of(inode):
                description.stale = True

    def writes(self, inode: int | None, worker: int) -> bool:
        """Whether this worker has the version that is being written open for it."""
        found = [] if inode is None else _written(self.of(inode))
        return any(holder == worker for d in found for holder, _ in d.holders)

    def linked(self, inode: int) -> None:
        """A writer that gives its file a name publishes it; it writes on where it stands."""
        if inode not in self.split:
            self.flight.pop(inode, None)

    def locked(self, description: Description) -> None:
        """What a second process locks as well is written in place from there on. A lock file that
        another one has truncated meanwhile is that of its holder."""
        others = self.of(description.inode)
        if any((d.stale and d.writing) or d.at != description.at for d in others):
            self.part(description.inode)  # locks are those of a path, not of its other links
        if description.inode in self.flight:
            self.flight[description.inode].said = True

    def time_passed(self) -> None:
        """Text that is still open is published by the clock."""
        for flight in self.flight.values():
            flight.said = True

    def changed_by_path(self, inode: int) -> None:
        if inode in self.flight:
            self.flight[inode].touched = True

    def renamed(
        self,
        worker: int | None,
        source: os.stat_result | None,
        target: os.stat_result | None,
        contents: tuple[bytes, bytes],
    ) -> None:
        """What was not committed yet stands beside what was at its new name; all see it there if
        who writes it has put it there. ``worker``: None for an exchange; ``contents``: of both."""
        if source is None or (target is not None and source.st_ino == target.st_ino):
            return
        inode = source.st_ino
        writers = [d for d in _written(self.of(inode)) if not d.in_place]
        flight = self.flight.get(inode)
        if flight is not None:
            flight.said = True
        if writers and source.st_nlink > 1:
            self.part(inode)  # which of its names they write is not known here any more
        own = worker is not None and self.writes(inode, worker)
        if own and flight is not None and flight.began != contents[0]:
            flight.seers, flight.touched = None, True
        elif writers and target is not None:
            users = set().union(*(sees(worker) for d in writers for worker in d.workers))
            flight = self.flight.setdefault(inode, Flight(set(), said=True))
            flight.seers = users | (flight.seers or set())
            flight.shown.add(contents[1])

    def replaced(self, source: os.stat_result | None, target: os.stat_result | None) -> None:
        if source is None or target is None or source.st_ino == target.st_ino:
            return
        if stat.S_ISREG(target.st_mode):
            self.kept.add(target.st_ino)

    # --- ends ------------------------------------------------------------------------------------

    def closed(self, worker: int, slot: int) -> Description:
        self.flushed(self.open[worker, slot])
        return self._gone(worker, slot)

    def flushed(self, description: Description) -> None:
        description.flushed = True
        if description.inode in self.flight and description.writing:
            self.flight[description.inode].said = True

    def _gone(self, worker: int, slot: int) -> Description:
        description = self.open.pop((worker, slot))
        description.holders.discard((worker, slot))
        self._land(description.inode)
        return description

    def unmapped(self, worker: int, slot: int) -> Description:
        description = self.maps.pop((worker, slot))
        description.mapped.discard((worker, slot))
        self._land(description.inode)
        return description

    def _land(self, inode: int) -> None:
        """What nobody writes any more is committed; what is mapped only stands and is stored to."""
        flight, writers = self.flight.get(inode), [d for d in self.of(inode) if d.writing]
        if not writers:
            self.flight.pop(inode, None)
            if flight is not None and not flight.touched and self.of(inode):
                self.kept.add(inode)  # dropped; who has reopened it is left with a file of no name
        elif flight is not None and all(d.mapped and not d.holders for d in writers):
            flight.seers = None

    def with_children(self, worker: int) -> list[int]:
        return [*(child for child, parent in CHILD_OF.items() if parent == worker), worker]

    def killed(self, worker: int, contents: dict[int, bytes]) -> dict[int, set[bytes]]:
        """What each file that it had open for writing may hold now; ``contents``: of the plain
        side. Files with other writers are lost to them, too."""
        expected: dict[int, set[bytes]] = {}
        for table, end in ((self.open, self._gone), (self.maps, self.unmapped)):
            for holder, slot in [key for key in table if key[0] == worker]:
                description = table[holder, slot]
                flight = self.flight.get(description.inode)
                end(holder, slot)
                if not description.writing or not description.is_file or description.in_place:
                    continue
                self._lose(description, flight, contents.get(description.inode, b""), expected)
        return expected

    def _lose(
        self,
        description: Description,
        flight: Flight | None,
        content: bytes,
        expected: dict[int, set[bytes]],
    ) -> None:
        inode = description.inode
        if flight is None:
            return
        log = flight.appends and is_text(content) and may_be_log(description.at)
        if log and not description.stale and inode not in self.split:
            expected.setdefault(inode, {content})
            return
        if inode not in self.split:
            clock = may_be_log(description.at) and (flight.appends or not is_binary(content))
            maybe = {content} if clock or flight.said else set()
            expected.setdefault(inode, set()).update(flight.shown | maybe)
        self.split.add(inode)
        self.lost.add(inode)

    def restless(self) -> bool:
        """Whether something may be published or recorded without a call that says so."""
        live = any(d.writing and not d.patterned for d in self.open.values())
        return live or bool(self.flight or self.maps)


def _written(descriptions: Iterable[Description]) -> list[Description]:
    return [d for d in descriptions if d.writing and d.is_file and not d.stale]


def _shows(description: Description, worker: int) -> bool:
    return any(worker in sees(writer) for writer in description.workers)


def may_be_log(path: str) -> bool:
    return not path.endswith(_FORMATS)


def _adds_to_older(description: Description, worker: int) -> bool:
    """Whether a stranger of this worker may add to the bytes of a version that others have begun
    anew since."""
    strange = any(not related(worker, other) for other in description.workers)
    adds = description.writing and not description.flags & os.O_TRUNC
    return description.stale and description.is_file and adds and strange
