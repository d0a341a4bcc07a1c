"""What a store can let go of, and in which order; and what it never lets go of by itself.

1. Salvage: bytes that were never published, so nobody was promised them.
2. Quarantine, where a good version of the path is left: damaged bytes that were rolled back.
3. History, where a newer good version is left: first what is not the newest generation of its
   file, then that, where the file as it stands is good.

The oldest goes first in each. What is left for a person to decide: quarantine of a path that has no
good version, since nothing else is left of it. Good means proven: a record, and the bytes were read
from the disk, past the page cache, and are what it says. That something was good once, when it was
committed or last opened, does not do: it may have rotted since.

Invariant: whatever is let go, at any instant, every path keeps a good version that it had. So what
proves that is looked at ahead of each unlink, and read again where it has changed. Nothing need be
durable for that: what stays is not touched. Thread-safe; no lock but that of the lineages is taken,
for the single unlink.
"""

from __future__ import annotations

import contextlib
import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ckptfs.checking.examine import Condition, Stamp, examine, stamp
from ckptfs.checking.opens import Guard
from ckptfs.disk import osfs
from ckptfs.disk.locks import leaf
from ckptfs.errors import RecordDamaged
from ckptfs.history import earlier
from ckptfs.modes import Mode, Outside
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.records.layout import Layout
from ckptfs.structure import Verdict
from ckptfs.versions.core import Core

_ANY = 1 << 63  # above all generations


class Kind(enum.Enum):
    SALVAGE = "salvage"
    QUARANTINE = "quarantine"
    HISTORY = "history"


ASIDE = (Kind.SALVAGE, Kind.QUARANTINE)


@dataclass(frozen=True)
class Item:
    """A file that could go."""

    kind: Kind
    name: str  # of an entry; of a generation lineage/number
    path: str | None
    size_bytes: int
    freed_bytes: int  # what the disk gets back, as far as can be told
    time_ns: int
    reason: str = ""
    newest: bool = False  # generation of its file
    uid: int = -1  # its owner

    @property
    def told(self) -> str:
        return f"{self.kind.value}/{self.name}"


def folder_of(layout: Layout, kind: Kind) -> int:
    """In which items of the kind lie."""
    return {
        Kind.SALVAGE: layout.salvage,
        Kind.QUARANTINE: layout.quarantine,
        Kind.HISTORY: layout.history,
    }[kind]


def item_of(kind: Kind, story: dict[str, object]) -> Item:
    """An entry of salvage or quarantine, as :meth:`Aside.entries` gives it."""
    size, path = int(str(story["size"])), story["path"]
    return Item(
        kind,
        str(story["id"]),
        path if isinstance(path, str) else None,
        size,
        size,
        int(str(story["time_ns"])),
        str(story["reason"]),
        uid=int(str(story["uid"])),
    )


class Judged:
    """What was found good, while one look lasts: to prove it takes reading. No more is read than
    the budget; what it does not suffice for is not proven."""

    def __init__(self, guard: Guard, budget_bytes: float) -> None:
        self.layout, self.fs = guard.layout, guard.fs
        self.lineages = guard.core.lineages
        self._left_bytes = budget_bytes
        self._proven: dict[tuple[Stamp, Record], bool] = {}

    def may_go(self, item: Item) -> bool:
        """Whether a good version is left without it. May read what stands at its path."""
        if item.kind is Kind.SALVAGE:
            return True
        if item.kind is Kind.QUARANTINE:
            return item.path is not None and self._has_good(item.path)
        lineage, number = _generation(item.name)
        return number < self._floor(lineage)

    def _floor(self, lineage: str) -> int:
        """A good version stands for all generations below this number."""
        note = earlier.note(self.layout, lineage)
        if note is None or note.leaving:
            return 0
        if note.paths and all(self._stands_good(path, lineage) for path in note.paths):
            return _ANY
        limit = min((self._number_at(path, lineage) for path in note.paths), default=_ANY)
        for generation in earlier.generations(self.layout, lineage):
            # A rollback takes what is older than what has rotted.
            if generation < limit and self._kept_good(lineage, generation):
                return generation
        return 0

    def _has_good(self, path: str) -> bool:
        lineage = ""
        with (
            contextlib.suppress(OSError),
            osfs.place(self.fs, self.layout.root, path) as (at, name),
        ):
            lineage = self.lineages.readable(at, name, path)
            if self._is_good(at, name, path):
                return True
        kept = earlier.generations(self.layout, lineage)
        return any(self._kept_good(lineage, generation) for generation in kept)

    def _stands_good(self, path: str, lineage: str) -> bool:
        with (
            contextlib.suppress(OSError),
            osfs.place(self.fs, self.layout.root, path) as (at, name),
        ):
            of = self.lineages.look(at, name, path).lineage
            return of == lineage and self._is_good(at, name, path)
        return False

    def _number_at(self, path: str, lineage: str) -> int:
        with contextlib.suppress(OSError):
            record = self.lineages.look_at(path).record
            if record is not None and record.lineage == lineage:
                return record.generation
        return _ANY

    def _kept_good(self, lineage: str, generation: int) -> bool:
        with (
            contextlib.suppress(OSError),
            osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder,
        ):
            path = earlier.noted_path(self.layout, lineage) or ""
            return self._is_good(folder, str(generation), path, lineage)
        return False

    def _is_good(self, at: int, name: str, path: str, lineage: str = "") -> bool:
        """Proven by its record; a generation is of its ``lineage``, too."""
        try:
            status = self.fs.lstat(at, name)
            with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
                record = self.layout.read_record(fd)
        except RecordDamaged:
            return False
        if record is None or record.structure == Verdict.BROKEN.value or record.live:
            return False
        if (status.st_size, status.st_mtime_ns) != (record.size_bytes, record.mtime_ns):
            return False
        if lineage and not earlier.holds(self.layout, at, lineage, record):
            return False
        key = stamp(status), record
        if key not in self._proven:
            if status.st_size > self._left_bytes:
                return False
            self._left_bytes -= status.st_size
            found = examine(self.layout, at, name, called=path, direct=True)
            self._proven[key] = found.condition is Condition.OK
        return self._proven[key]


class Expendable:
    """Of one store."""

    def __init__(self, guard: Guard) -> None:
        self.guard, self.layout, self.fs = guard, guard.layout, guard.fs
        self._in_use: set[str] = set()  # entries that are being taken back
        self._using = leaf()

    def judged(self, budget_bytes: float = math.inf) -> Judged:
        return Judged(self.guard, budget_bytes)

    # --- what there is ---------------------------------------------------------------------------

    def of(self, kind: Kind) -> list[Item]:
        """In the order in which it would go."""
        return self._generations() if kind is Kind.HISTORY else self._aside(kind)

    def _aside(self, kind: Kind) -> list[Item]:
        stories = self.layout.aside.entries(folder_of(self.layout, kind))
        return [item_of(kind, story) for story in stories]

    def _generations(self) -> list[Item]:
        found = [item for lineage in earlier.lineages(self.layout) for item in self._kept(lineage)]
        return sorted(found, key=lambda item: (item.newest, _generation(item.name)[1]))

    def _kept(self, lineage: str) -> Iterator[Item]:
        path = earlier.noted_path(self.layout, lineage)
        newest = True
        for generation in earlier.generations(self.layout, lineage):
            with contextlib.suppress(OSError):
                yield self._kept_item(lineage, generation, path, newest=newest)
                newest = False

    def _kept_item(self, lineage: str, generation: int, path: str | None, *, newest: bool) -> Item:
        with (
            osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder,
            osfs.opened(self.fs, folder, str(generation), osfs.O_RDONLY) as fd,
        ):
            status = self.fs.stat(fd)
            time_ns = status.st_mtime_ns
            with contextlib.suppress(RecordDamaged):
                record = self.layout.read_record(fd)
                time_ns = record.committed_ns if record else time_ns
            freed = self.fs.exclusive_bytes(fd) if status.st_nlink == 1 else 0
        name = f"{lineage}/{generation}"
        told = f"generation {generation}"
        size, uid = status.st_size, status.st_uid
        return Item(Kind.HISTORY, name, path, size, freed, time_ns, told, newest, uid)

    def found(self, item: Item) -> Item:
        """As it is now: a request names it only."""
        with contextlib.suppress(OSError):
            if item.kind is Kind.HISTORY:
                lineage, generation = _generation(item.name)
                path = earlier.noted_path(self.layout, lineage)
                return self._kept_item(lineage, generation, path, newest=False)
            story = self.layout.aside.story(folder_of(self.layout, item.kind), item.name)
            return item_of(item.kind, story)
        return item

    # --- letting go ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def using(self, entry: str) -> Iterator[None]:
        """This entry of salvage or quarantine does not go inside."""
        with self._using:
            self._in_use.add(entry)
        try:
            yield
        finally:
            with self._using:
                self._in_use.discard(entry)

    def let_go(self, item: Item) -> bool:
        """Whether it is gone by that. Who has it open keeps it."""
        with contextlib.suppress(OSError):
            if item.kind is Kind.HISTORY:
                return self._let_generation_go(*_generation(item.name))
            with self._using:
                if item.name not in self._in_use:
                    return self._let_entry_go(folder_of(self.layout, item.kind), item.name)
        return False

    def _let_entry_go(self, folder: int, name: str) -> bool:
        """The note goes last: without it nobody would know what the bytes are."""
        if not osfs.is_regular(self.fs.lstat(folder, name)):
            return False
        for each in (name, f"{name}{fmt.NOTE}"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                self.fs.unlink(folder, each)
        return True

    def _let_generation_go(self, lineage: str, generation: int) -> bool:
        """Not what has another name: it is a version that stands, or is being brought back."""
        with (
            self.guard.core.lineages.lock,
            osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder,
        ):
            if self.fs.lstat(folder, str(generation)).st_nlink > 1:
                return False
            return earlier.drop(self.layout, folder, generation)


def to_look_at(layout: Layout) -> Expendable:
    """Of a directory that nobody serves, to look only: nothing is changed by it."""
    core = Core(layout, Mode.ATOMIC_DIRSYNC, "blake3", 1 << 30, True)
    return Expendable(Guard(core, Outside.JUDGE))


def _generation(name: str) -> tuple[str, int]:
    lineage, _, number = name.partition("/")
    return lineage, int(number)


def parse(text: str) -> Item | None:
    """An item as it is named in a request, ``kind/name``; None for what is none."""
    kind, _, name = text.partition("/")
    lineage, _, number = name.partition("/")
    plain = lineage and "." not in lineage and "\0" not in text  # a note, or a way out
    if kind not in {each.value for each in Kind} or not plain:
        return None
    if (kind == Kind.HISTORY.value) is not earlier.is_generation(number):
        return None
    if number and kind != Kind.HISTORY.value:
        return None
    return Item(Kind(kind), name, None, 0, 0, 0)
