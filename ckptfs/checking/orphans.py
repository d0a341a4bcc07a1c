"""History that no path leads to: found, given back to a file that is of its lineage, or let go.

None comes about while a store is served (the invariant of ``lineages.py``). It is left by a crash,
by what is done to the files behind ckptfs, and by versions of ckptfs that kept one generation a
step of each file that had a hard link.

A lineage is reached where what stands at a path of its note is of it. Where nothing stands there,
or what stands there has no intact record, the note alone must do: the file was deleted outside, and
can be brought back. Of several lineages that claim one such path that counts which a command would
take. All others are orphans, unless some file elsewhere carries them: then it was renamed outside.
To find that file the tree is walked, but only where there are orphans.

Nothing is let go that changed since it was looked at. Thread-safe.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ckptfs.disk import osfs
from ckptfs.disk.locks import Rank, ranked
from ckptfs.disk.worker import started
from ckptfs.errors import RecordDamaged
from ckptfs.history import earlier
from ckptfs.history.lineages import Lineages
from ckptfs.records.format import HistoryNote
from ckptfs.records.layout import Layout
from ckptfs.records.walk import walk
from ckptfs.versions.core import Core

log = logging.getLogger("ckptfs.orphans")

_FOLDERS_OPEN = 64
_TURN_S = 0.005  # of work between two pauses of the same length


class Stopped(Exception):
    pass


def nothing() -> None:
    pass


@dataclass
class Found:
    """What history looks like, by its notes and by what stands where they say."""

    orphans: dict[str, HistoryNote] = field(default_factory=dict)
    staying: dict[str, HistoryNote] = field(default_factory=dict)  # were to go, but the file stands


def find(lineages: Lineages, pause: Callable[[], None] = nothing) -> Found:
    """Which lineages their own notes do not show to be reached. Takes as long as history is
    wide."""
    layout, found = lineages.layout, Found()
    claimed: dict[str, list[str]] = {}  # paths that a note alone speaks for, and whose note
    with _Folders(layout) as folders:
        for lineage in earlier.lineages(layout):
            pause()
            note = earlier.note(layout, lineage)
            if note is None:
                continue
            if any(lineages.carries(path, lineage, folders.place) for path in note.paths):
                if note.leaving:
                    found.staying[lineage] = note
                continue
            found.orphans[lineage] = note
            for path in () if note.leaving else note.paths:
                if _is_missing(lineages, path, lineage):
                    claimed.setdefault(path, []).append(lineage)
    for names in claimed.values():
        taken = max(names, key=lambda each: earlier.rank(layout, each, lineages.pinned))
        found.orphans.pop(taken, None)
    return found


class _Folders:
    """Directories of the tree that stay open from one look to the next."""

    def __init__(self, layout: Layout) -> None:
        self._layout, self._fds = layout, OrderedDict[str, int]()

    def __enter__(self) -> _Folders:
        return self

    def __exit__(self, *error: object) -> None:
        for fd in self._fds.values():
            self._layout.fs.close(fd)

    @contextlib.contextmanager
    def place(self, path: str) -> Iterator[tuple[int, str]]:
        """As :func:`osfs.place`."""
        folder, _, name = path.rpartition("/")
        if folder not in self._fds:
            with osfs.place(self._layout.fs, self._layout.root, path) as (at, _):
                self._fds[folder] = self._layout.fs.open(at, ".", osfs.DIRECTORY)
        self._fds.move_to_end(folder)
        if len(self._fds) > _FOLDERS_OPEN:
            self._layout.fs.close(self._fds.popitem(last=False)[1])
        yield self._fds[folder], name


def _is_missing(lineages: Lineages, path: str, lineage: str) -> bool:
    """Whether nothing at ``path`` speaks against its being the path of the lineage."""
    if lineages.pins.get(path, lineage) != lineage:
        return False
    try:
        with osfs.place(lineages.fs, lineages.layout.root, path) as (at, name):
            if not osfs.is_regular(lineages.fs.lstat(at, name)):
                return True
            with osfs.opened(lineages.fs, at, name, osfs.O_RDONLY) as fd:
                return lineages.layout.read_record(fd) is None
    except (OSError, RecordDamaged):
        return True


@dataclass
class Outcome:
    """What became of orphans."""

    let_go: int = 0  # generations
    given_back: list[str] = field(default_factory=list)  # to these paths


class Orphans:
    """Of one store that nobody else changes."""

    def __init__(self, core: Core) -> None:
        self.layout, self.fs = core.layout, core.fs
        self.order, self.lineages = core.order, core.lineages
        self._running = ranked(Rank.TIDYING, reentrant=False)

    def settle(self, pause: Callable[[], None] = nothing) -> Outcome:
        """Give each orphan back, or let it go."""
        with self._running:
            outcome = Outcome()
            self.lineages.drop_marks()
            self.lineages.watch = set()  # what is renamed from here on may be missed by the walk
            try:
                found = find(self.lineages, pause)
                for lineage, note in found.staying.items():
                    self._stay(lineage, note)
                carriers = self._carriers(found.orphans, pause) if found.orphans else {}
                for lineage in sorted(found.orphans, key=self._rank, reverse=True):
                    pause()
                    note = found.orphans[lineage]
                    self._settle(lineage, note, carriers.get(lineage, []), outcome)
            finally:
                self.lineages.watch = None
            return outcome

    def _rank(self, lineage: str) -> tuple[bool, int]:
        return earlier.rank(self.layout, lineage, self.lineages.pinned)

    def _carriers(
        self, found: dict[str, HistoryNote], pause: Callable[[], None]
    ) -> dict[str, list[str]]:
        """The paths of files that are of these lineages."""
        carriers: dict[str, list[str]] = {}
        for path in self._all_paths(pause):
            with contextlib.suppress(OSError, RecordDamaged):
                with (
                    osfs.place(self.fs, self.layout.root, path) as (at, name),
                    osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd,
                ):
                    record = self.layout.read_record(fd)
                if record is not None and record.lineage in found and path not in self._pins:
                    carriers.setdefault(record.lineage, []).append(path)
        return carriers

    @property
    def _pins(self) -> dict[str, str]:
        return self.lineages.pins

    def _all_paths(self, pause: Callable[[], None]) -> Iterator[str]:
        """Of files, those included that are renamed meanwhile."""
        for path, status in walk(self.fs, self.layout.root):
            pause()
            if status is not None:
                yield path
        while self.lineages.watch:
            moved = self.lineages.watch.pop()
            with (
                contextlib.suppress(OSError),
                osfs.place(self.fs, self.layout.root, moved) as (at, name),
            ):
                if not osfs.is_directory(self.fs.lstat(at, name)):
                    yield moved
                    continue
                with osfs.opened(self.fs, at, name, osfs.DIRECTORY) as folder:
                    yield from (path for path, _ in walk(self.fs, folder, f"{moved}/"))

    def _stay(self, lineage: str, note: HistoryNote) -> None:
        self._wait_for(note.paths)
        with self.lineages.lock:
            if earlier.note(self.layout, lineage) == note:
                self.lineages.give(lineage, note.paths)

    def _settle(
        self, lineage: str, note: HistoryNote, carriers: list[str], outcome: Outcome
    ) -> None:
        self._wait_for(note.paths)
        with self.lineages.lock, contextlib.suppress(OSError):
            if earlier.note(self.layout, lineage) != note:
                return
            if any(self.lineages.carries(path, lineage) for path in note.paths):
                return
            back = self._kin(lineage, carriers)
            if back:
                self.lineages.give(lineage, back)
            elif bereft := self._bereft(note.paths):
                self.lineages.give(lineage, (bereft,))
                self.lineages.pin(lineage)
                self.order.sync_dir(self.layout.history)
                back = (bereft,)
            else:
                outcome.let_go += self.lineages.forget(lineage)
            outcome.given_back += back

    def _wait_for(self, paths: tuple[str, ...]) -> None:
        """What is under way at these paths has ended on return: a note comes before what it
        notes."""
        for path in paths:
            with (
                contextlib.suppress(OSError),
                osfs.place(self.fs, self.layout.root, path) as place,
                self.order.path_lock(*place),
            ):
                pass

    def _kin(self, lineage: str, carriers: list[str]) -> tuple[str, ...]:
        """Of files that carry the lineage all names of one."""
        still = [path for path in carriers if self.lineages.carries(path, lineage)]
        for path in still[:1]:
            found = self.lineages.look_at(path)
            return tuple(each for each in still if self.lineages.is_name(each, found))
        return ()

    def _bereft(self, paths: tuple[str, ...]) -> str | None:
        """A path that a crash in a rename has left with the lineage of another one."""
        for path in paths:
            with contextlib.suppress(OSError):
                found = self.lineages.look_at(path)
                if found.record is not None and not found.lineage:
                    return path
        return None


class Tidier:
    """One thread that settles orphans once, beside the mount that has just begun to serve."""

    def __init__(self, settle: Callable[[Callable[[], None]], object]) -> None:
        self._settle = settle
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._turn_s = 0.0

    def start(self, wait_s: float) -> None:
        """Returns once it is done, or after ``wait_s``: in a small store it is done at once."""
        self._thread = started(self._run, "orphans")
        if self._thread is not None:
            self._thread.join(wait_s)

    def stop(self) -> None:
        """No thread of it is left on return."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        osfs.yield_disk()
        self._turn_s = time.monotonic()
        try:
            self._settle(self._pause)
        except Stopped:
            pass
        except OSError as error:
            log.warning("history was not looked through: %s", error)

    def _pause(self) -> None:
        """Half of the time is the others'."""
        worked_s = time.monotonic() - self._turn_s
        if self._stopping.is_set():
            raise Stopped
        if worked_s > _TURN_S:
            if self._stopping.wait(worked_s):
                raise Stopped
            self._turn_s = time.monotonic()
