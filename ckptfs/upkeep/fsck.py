"""The check of a whole directory: files against their records, history, and what a crash left.

It can run beside a mount that is being written: what changes while it is looked at is looked at
again, and what belongs to the daemon (stage, links on their way) is left to it. Nothing is changed
by :class:`Check`; :func:`repair` needs the store to itself.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate

from ckptfs.checking import orphans
from ckptfs.checking.examine import ROTTEN, Condition, Finding, examine_at
from ckptfs.disk import digest, osfs
from ckptfs.disk.filesystem import Status
from ckptfs.history import earlier
from ckptfs.history.lineages import Lineages
from ckptfs.modes import Outside
from ckptfs.records import format as fmt
from ckptfs.records import parts
from ckptfs.records.format import HistoryNote
from ckptfs.records.layout import Layout
from ckptfs.records.walk import walk
from ckptfs.store import Store

_AHEAD = 4  # files a job that wait their turn: results come in order, memory is bounded
_LONG_BYTES = 512 << 10
_NOT_THERE = (FileNotFoundError, NotADirectoryError)
_UNREACHED = frozenset({Condition.UNREACHABLE, Condition.LEFTOVER})
_Job = tuple[int, Callable[[], Finding]]  # bytes to read, and the reading


@dataclass(frozen=True)
class Scope:
    """What to look at."""

    paths: tuple[str, ...] = ()  # files and folders; none, or an empty one: everything
    jobs: int = 1
    quick: bool = False  # records, sizes and times; no bytes
    direct: bool = False  # past the page cache
    part: int = 1  # of ``parts``, whose bytes are read; the others get the quick look
    parts: int = 1
    outside: Outside = Outside.JUDGE
    served: bool = False  # a daemon works here

    def reads(self, path: str) -> bool:
        """Whether its bytes are looked at; the same files in every run."""
        if self.quick:
            return False
        return zlib.crc32(path.encode("utf-8", "surrogateescape")) % self.parts == self.part - 1


class Check:
    """One run. ``generations`` and ``files`` count what it looked at."""

    def __init__(self, layout: Layout, scope: Scope) -> None:
        self.layout, self.fs, self.scope = layout, layout.fs, scope
        self.files = self.generations = 0
        self.others: list[str] = []  # ckptfs directories below, which are not looked at
        self._asked = frozenset(scope.paths)
        self.whole = not scope.paths or "" in scope.paths
        self._known = earlier.lineages_by_path(layout)
        self._kept = frozenset(earlier.lineages(layout))
        self._pinned = earlier.pinned(layout)
        self._live: set[str] = set()  # lineages with history whose file was seen
        self._elsewhere: set[str] = set()  # those of files that were not looked at
        self._orphans: dict[str, HistoryNote] = {}  # lineages that no path leads to
        self._names: Counter[int] = Counter()  # of inodes that have several
        self._linked: dict[int, tuple[str, int]] = {}
        self._highest = 0

    def files_only(self) -> Iterator[Finding]:
        return self._files(self._found())

    def kept(self) -> Iterator[Finding]:
        """What history holds of the files that were looked at, and of those it knows there."""
        yield from list(self._history(sorted(self._orphans)))  # one repair lets all of them go
        others = sorted(self._kept - self._orphans.keys())
        yield from self._history(filter(self._covers_lineage, others))

    def findings(self) -> Iterator[Finding]:
        """Everything there is to say, sound files included, in the order of the walk."""
        yield from self.files_only()
        yield from self._missing()
        self._orphans = self._unreached()
        yield from self.kept()
        if self.whole:
            yield from self._strays()
        if not self.scope.served and self.whole:
            yield from self.leftovers()
            yield from self._counter()
            yield from self._links()

    def asked_for(self, path: str) -> bool:
        """Whether the path, or a folder that it lies in, was named."""
        return bool({"", path} & self._asked) or self._lies_in_one_asked_for(path)

    def _lies_in_one_asked_for(self, path: str) -> bool:
        folders = accumulate(path.split("/")[:-1], lambda above, name: f"{above}/{name}")
        return any(folder in self._asked for folder in folders)

    def _covers(self, path: str) -> bool:
        return self.whole or self.asked_for(path)

    def _covers_lineage(self, lineage: str) -> bool:
        if self.whole or lineage in self._live:
            return True
        note = earlier.note(self.layout, lineage)
        return note is not None and any(map(self.asked_for, note.paths))

    # --- files -----------------------------------------------------------------------------------

    def _found(self) -> Iterator[tuple[str, Status | None]]:
        """The files that stand where was asked for."""
        if self.whole:
            yield from walk(self.fs, self.layout.root, others=self.others)
            return
        for path in dict.fromkeys(self.scope.paths):
            if not self._lies_in_one_asked_for(path):
                yield from self._found_at(path)

    def _found_at(self, path: str) -> Iterator[tuple[str, Status | None]]:
        try:
            with osfs.place(self.fs, self.layout.root, path) as (at, name):
                status = self.fs.lstat(at, name)
                if not osfs.is_directory(status):
                    yield path, status
                    return
                with osfs.opened(self.fs, at, name, osfs.DIRECTORY) as folder:
                    yield from walk(self.fs, folder, f"{path}/", self.others)
        except _NOT_THERE:
            return
        except OSError:
            yield path, None

    def _files(self, found: Iterable[tuple[str, Status | None]]) -> Iterator[Finding]:
        def jobs() -> Iterator[_Job]:
            for path, status in found:
                self.files += 1
                self._note_links(path, status)
                if status is None:
                    yield 0, lambda path=path: _unreadable(path)  # type: ignore[misc]
                    continue
                yield status.st_size, lambda path=path: self._examine(path)  # type: ignore[misc]

        for finding in self._in_order(jobs()):
            if finding.condition is Condition.MISSING:
                continue  # deleted or renamed since the walk came by
            record = finding.record
            if record is not None and record.lineage in self._kept:
                self._live.add(record.lineage)
                self._highest = max(self._highest, record.generation)
            known = self._known.get(finding.path)
            if finding.condition is Condition.UNRECORDED and known and known not in self._pinned:
                detail = f"history knows it as lineage {known}"
                finding = replace(finding, condition=Condition.RECORD_MISSING, detail=detail)
            yield finding

    def _examine(self, path: str, *, quick: bool = False) -> Finding:
        try:
            with osfs.place(self.fs, self.layout.root, path) as (at, name):
                quick = quick or not self.scope.reads(path)
                how = {"quick": quick, "direct": self.scope.direct, "outside": self.scope.outside}
                return examine_at(self.layout, path, at, name, **how)
        except _NOT_THERE:
            return Finding(path, Condition.MISSING, detail="no such file")
        except OSError as error:
            return Finding(path, Condition.UNREADABLE, detail=error.strerror or str(error))

    def again(self, path: str) -> Finding:
        """A second look at one thing."""
        generation = generation_of(path)
        return self._generation(*generation) if generation else self._examine(path)

    def _in_order(self, jobs: Iterator[_Job]) -> Iterator[Finding]:
        """Examine in parallel, in the order given. Memory: 8 MiB a job at most."""
        waiting: deque[Future[Finding]] = deque()
        with ThreadPoolExecutor(self.scope.jobs, thread_name_prefix="ckptfs-verify") as pool:
            try:
                for size, job in _announced(jobs):
                    if size >= _LONG_BYTES and self.scope.jobs > 1:
                        waiting.append(pool.submit(_begin, size, job))
                    else:  # handing it over would cost more than reading it
                        done = Future[Finding]()
                        done.set_result(_begin(size, job))
                        waiting.append(done)
                    while len(waiting) > self.scope.jobs * _AHEAD or (
                        waiting and waiting[0].done()
                    ):
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # interrupted: no need to read on
                digest.expect(-sum(future.cancel() for future in waiting))

    def _missing(self) -> Iterator[Finding]:
        """Files that history knows, or that were named, and that are not there."""
        told = []
        for path, generation in self._gone():
            told.append(f"{path}/")
            detail = f"deleted outside ckptfs; history has generation {generation}"
            yield Finding(path, Condition.MISSING, detail=detail)
        for path in dict.fromkeys(self.scope.paths):
            if not self._is_there(path) and not any(p.startswith(f"{path}/") for p in told):
                yield Finding(path, Condition.MISSING, detail="no such file")

    def _gone(self) -> Iterator[tuple[str, int]]:
        """What only history knows, with its newest generation. One that was renamed while the walk
        was under way, or to where the walk did not come, is looked for everywhere."""
        known = {p: lineage for p, lineage in self._known.items() if self._covers(p)}
        gone = {p: lineage for p, lineage in known.items() if lineage not in self._live}
        gone = {p: lineage for p, lineage in gone.items() if not self._stands(p, lineage)}
        if gone:
            self._look_elsewhere()
        for path, lineage in gone.items():
            kept = earlier.generations(self.layout, lineage)
            note = earlier.note(self.layout, lineage)
            noted = note is not None and path in note.paths and not note.leaving
            if lineage not in self._elsewhere and kept and noted:  # and not deleted just now
                yield path, kept[0]

    def _look_elsewhere(self) -> None:
        """For files that were renamed while the walk was under way, or to where it did not come."""
        if self.scope.served or not self.whole:
            for path, _ in walk(self.fs, self.layout.root):
                found = self._examine(path, quick=True).record
                self._elsewhere |= {found.lineage} if found else set()

    def _stands(self, path: str, lineage: str) -> bool:
        """Whether what the lineage is of stands there, or it cannot be told. That of a pinned one
        need not be a file."""
        return self._is_there(path, bool if lineage in self._pinned else osfs.is_regular)

    def _is_there(self, path: str, of_kind: Callable[[Status], bool] = bool) -> bool:
        try:
            with osfs.place(self.fs, self.layout.root, path) as (at, name):
                return of_kind(self.fs.lstat(at, name))
        except _NOT_THERE:
            return False
        except OSError:
            return True

    def _unreached(self) -> dict[str, HistoryNote]:
        """What no path leads to. A file that carries it and is not noted was renamed outside."""
        found = self._orphaned()
        if found:
            self._look_elsewhere()
            again = self._orphaned()  # while a commit, a rename or a deletion was under way
            found = {lineage: note for lineage, note in found.items() if again.get(lineage) == note}
        return found

    def _orphaned(self) -> dict[str, HistoryNote]:
        unseen = self._kept - self._live - self._elsewhere
        unseen = frozenset(filter(self._covers_lineage, unseen))
        found = orphans.find(Lineages(self.layout)).orphans if unseen else {}
        return {
            lineage: note
            for lineage, note in found.items()
            if lineage in unseen and not (note.leaving and self.scope.served)
        }

    # --- history ---------------------------------------------------------------------------------

    def _history(self, lineages: Iterable[str]) -> Iterator[Finding]:
        def jobs() -> Iterator[_Job]:
            for lineage in lineages:
                for generation in reversed(earlier.generations(self.layout, lineage)):
                    where = lineage, generation
                    yield _LONG_BYTES, lambda at=where: self._generation(*at)  # type: ignore[misc]

        for finding in self._in_order(jobs()):
            if finding.condition is Condition.MISSING:
                continue  # a commit let it go meanwhile
            self.generations += 1
            if finding.record is not None:
                self._highest = max(self._highest, finding.record.generation)
            yield finding

    def _generation(self, lineage: str, generation: int) -> Finding:
        path = generation_path(lineage, generation)
        quick, direct = not self.scope.reads(path), self.scope.direct
        of = earlier.noted_path(self.layout, lineage)
        how = {"quick": quick, "direct": direct, "called": of or ""}
        try:
            with osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder:
                name = str(generation)
                self._note_links(path, self.fs.lstat(folder, name))
                found = examine_at(self.layout, path, folder, name, **how)
                if not earlier.holds(self.layout, folder, lineage, found.record):
                    return _misplaced(found)
        except FileNotFoundError:
            return Finding(path, Condition.MISSING)
        if lineage in self._orphans and found.condition not in ROTTEN:
            return _unreachable(found, self._orphans[lineage])
        if of is not None and found.condition is not Condition.OK:
            found = replace(found, detail=f"of {of}; {found.detail}".rstrip("; "))
        return found

    # --- what belongs to nobody ------------------------------------------------------------------

    def leftovers(self) -> Iterator[Finding]:
        """Of a crash. The next mount clears them."""
        for name in sorted(self.fs.listdir(self.layout.stage)):
            status = self.fs.lstat(self.layout.stage, name)
            if not osfs.is_regular(status):
                continue
            self._note_links("", status)
            path = f"{fmt.CONTROL}/{fmt.STAGE}/{name}"
            yield Finding(path, Condition.LEFTOVER, status.st_size, detail="of a crash")

    def _strays(self) -> Iterator[Finding]:
        """What lies in ``.ckptfs`` and cannot be of ckptfs. It is left alone."""
        layout, fs = self.layout, self.fs
        for folder, where in (
            (layout.stage, fmt.STAGE),
            (layout.salvage, fmt.SALVAGE),
            (layout.quarantine, fmt.QUARANTINE),
            (layout.sidecar, fmt.SIDECAR),
        ):
            yield from self._not_of_ours(folder, where, lambda _, found: osfs.is_regular(found))
        yield from self._not_of_ours(
            layout.history, fmt.HISTORY, lambda _, found: osfs.is_directory(found)
        )
        for lineage in earlier.lineages(layout):
            with (
                contextlib.suppress(*earlier.NO_FOLDER),
                osfs.opened(fs, layout.history, lineage, osfs.DIRECTORY) as folder,
            ):
                where = f"{fmt.HISTORY}/{lineage}"
                yield from self._not_of_ours(folder, where, lambda n, _: earlier.is_generation(n))

    def _not_of_ours(
        self, folder: int, where: str, is_ours: Callable[[str, Status], bool]
    ) -> Iterator[Finding]:
        for name in sorted(self.fs.listdir(folder)):
            with contextlib.suppress(FileNotFoundError):
                status = self.fs.lstat(folder, name)
                if not is_ours(name, status):
                    detail = f"{parts.kind(status)} that is not of ckptfs"
                    yield Finding(f"{fmt.CONTROL}/{where}/{name}", Condition.STRAY, detail=detail)

    def _counter(self) -> Iterator[Finding]:
        """Of files that were copied from another directory, records and all, it knows nothing: each
        goes on from its own number."""
        counted = self.layout.stored_counter()
        if counted < self._highest:
            detail = f"counts to {counted}, there is generation {self._highest}"
            yield Finding(f"{fmt.CONTROL}/{fmt.COUNTER}", Condition.DAMAGED, detail=detail)

    def _note_links(self, path: str, status: Status | None) -> None:
        if status is not None and status.st_nlink > 1 and osfs.is_regular(status):
            self._names[status.st_ino] += 1
            if path or status.st_ino not in self._linked:
                self._linked[status.st_ino] = path, status.st_nlink

    def _links(self) -> Iterator[Finding]:
        for folder in (self.layout.quarantine, self.layout.salvage):
            for name in self.fs.listdir(folder):
                self._note_links("", self.fs.lstat(folder, name))
        for inode, (path, links) in self._linked.items():
            if self._names[inode] < links and path:
                outside = links - self._names[inode]
                detail = f"{outside} of its {links} names lie outside: it can be changed in place"
                yield Finding(path, Condition.LINKED, detail=detail)


def _unreadable(path: str) -> Finding:
    return Finding(path, Condition.UNREADABLE, detail="the directory cannot be read")


def _misplaced(found: Finding) -> Finding:
    named = f"lineage {found.record.lineage}" if found.record else "another lineage"
    return replace(found, condition=Condition.MISPLACED, detail=f"is a version of {named}")


def _unreachable(found: Finding, note: HistoryNote) -> Finding:
    of = ", ".join(note.paths) or "an unknown path"
    if note.leaving:
        detail = f"of a crash while {of} was deleted"
        return replace(found, condition=Condition.LEFTOVER, detail=detail)
    detail = f"no path leads to it; it was kept for {of}"
    return replace(found, condition=Condition.UNREACHABLE, detail=detail)


def _announced(jobs: Iterator[_Job]) -> Iterator[_Job]:
    """The jobs, each once it is known whether a long one follows: the digest of a long file takes
    all cores if it is the only one."""
    held: _Job | None = None
    try:
        for job in jobs:
            if job[0] >= _LONG_BYTES:
                digest.expect(1)
            ready, held = held, job
            if ready is not None:
                yield ready
        ready, held = held, None
        if ready is not None:
            yield ready
    finally:
        if held is not None and held[0] >= _LONG_BYTES:
            digest.expect(-1)


def _begin(size_bytes: int, job: Callable[[], Finding]) -> Finding:
    if size_bytes >= _LONG_BYTES:
        digest.expect(-1)
    return job()


def generation_path(lineage: str, generation: int) -> str:
    """Where a generation lies, relative to the directory."""
    return f"{fmt.CONTROL}/{fmt.HISTORY}/{lineage}/{generation}"


def generation_of(path: str) -> tuple[str, int] | None:
    """The lineage and number of a generation, by its path; None for other paths."""
    steps = path.split("/")
    if steps[:2] == [fmt.CONTROL, fmt.HISTORY] and len(steps) == 4:
        return (steps[2], int(steps[3])) if earlier.is_generation(steps[3]) else None
    return None


def repair(store: Store, finding: Finding, *, asked_for: bool = False) -> Finding:
    """See to one finding; ``repair`` of the answer says what was done, if anything. Rotten files
    are rolled back, rotten generations put into quarantine, unreachable ones let go, counters
    raised. Edits made outside stay, deletions too unless the file was ``asked_for``. Durable on
    return."""
    done = ""
    generation = generation_of(finding.path)
    if generation is not None and finding.condition in ROTTEN:
        done = store.history.set_aside(*generation)
    elif finding.path == f"{fmt.CONTROL}/{fmt.COUNTER}":
        store.layout.next_generation(int(finding.detail.rsplit(" ", 1)[1]))
        done = "raised"
    elif finding.condition in ROTTEN:
        done = store.repair(finding.path).repair
    elif finding.condition is Condition.MISSING and asked_for:
        done = f"brought back generation {store.history.rollback(finding.path)}"
    elif generation is not None and finding.condition in _UNREACHED:
        done = _tidied(store, *generation)
    elif finding.condition is Condition.LEFTOVER:
        done = "cleared"  # by the recovery that opening the store is
    return replace(finding, repair=done)


def _tidied(store: Store, lineage: str, generation: int) -> str:
    """One look through history sees to all that is unreachable."""
    if store.history.is_orphan(lineage):
        store.history.tidy()
    if generation in earlier.generations(store.layout, lineage):
        return f"given back to {earlier.noted_path(store.layout, lineage)}"
    return "let go"
