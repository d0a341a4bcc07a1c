"""The files of a directory against their records, and those that are not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ckptfs.checking.examine import Condition, Finding, Kept, examine_at
from ckptfs.disk import osfs
from ckptfs.disk.filesystem import Status
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout
from ckptfs.records.walk import walk
from ckptfs.upkeep.reading import Job, in_order
from ckptfs.upkeep.scope import Scope
from ckptfs.upkeep.seen import Seen

_NOT_THERE = (FileNotFoundError, NotADirectoryError)


class FileCheck:
    """Of one run. ``count`` are those that were looked at."""

    def __init__(self, layout: Layout, scope: Scope, seen: Seen) -> None:
        self.layout, self.fs, self.scope, self.seen = layout, layout.fs, scope, seen
        self.count = 0
        self.others: list[str] = []  # ckptfs directories below, which are not looked at

    def found(self) -> Iterator[tuple[str, Status | None]]:
        """The files that stand where was asked for."""
        if self.scope.whole:
            yield from walk(self.fs, self.layout.root, others=self.others)
            return
        for path in dict.fromkeys(self.scope.paths):
            if not self.scope.lies_in_one_asked_for(path):
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

    def findings(self, found: Iterable[tuple[str, Status | None]]) -> Iterator[Finding]:
        def jobs() -> Iterator[Job]:
            for path, status in found:
                self.count += 1
                self.seen.links.note(status, path)
                if status is None:
                    yield 0, lambda path=path: _unreadable(path)  # type: ignore[misc]
                    continue
                yield status.st_size, lambda path=path: self.examine(path)  # type: ignore[misc]

        for finding in in_order(jobs(), self.scope.jobs):
            if finding.condition is Condition.MISSING:
                continue  # deleted or renamed since the walk came by
            record = finding.record
            if record is not None and record.lineage in self.seen.kept:
                self.seen.live.add(record.lineage)
                self.seen.highest = max(self.seen.highest, record.generation)
            yield self._known_to_history(_named(finding))

    def _known_to_history(self, finding: Finding) -> Finding:
        lineage = self.seen.known.get(finding.path)
        unrecorded = finding.condition is Condition.UNRECORDED
        if not unrecorded or not lineage or lineage in self.seen.pinned:
            return finding
        detail = f"history knows it as lineage {lineage}"
        return replace(finding, condition=Condition.RECORD_MISSING, detail=detail)

    def examine(self, path: str, *, quick: bool = False) -> Finding:
        try:
            with osfs.place(self.fs, self.layout.root, path) as (at, name):
                quick = quick or not self.scope.reads(path)
                how = {"quick": quick, "direct": self.scope.direct, "outside": self.scope.outside}
                return examine_at(self.layout, path, at, name, **how)
        except _NOT_THERE:
            return Finding(path, Condition.MISSING, detail="no such file")
        except OSError as error:
            return Finding(path, Condition.UNREADABLE, detail=error.strerror or str(error))

    def missing(self) -> Iterator[Finding]:
        """Files that history knows, or that were named, and that are not there."""
        told = []
        for path, generation in self._gone():
            told.append(f"{path}/")
            detail = f"deleted outside ckptfs; history has generation {generation}"
            yield Finding(path, Condition.MISSING, detail=detail)
        for path in dict.fromkeys(self.scope.paths):
            if not self._is_there(path) and not any(p.startswith(f"{path}/") for p in told):
                yield _named(Finding(path, Condition.MISSING, detail="no such file"))

    def _gone(self) -> Iterator[tuple[str, int]]:
        """What only history knows, with its newest generation. One that was renamed while the walk
        was under way, or to where the walk did not come, is looked for everywhere."""
        known = {p: lineage for p, lineage in self.seen.known.items() if self.scope.covers(p)}
        gone = {p: lineage for p, lineage in known.items() if lineage not in self.seen.live}
        gone = {p: lineage for p, lineage in gone.items() if not self._stands(p, lineage)}
        if gone:
            self.look_elsewhere()
        for path, lineage in gone.items():
            kept = earlier.generations(self.layout, lineage)
            note = earlier.note(self.layout, lineage)
            noted = note is not None and path in note.paths and not note.leaving
            if lineage not in self.seen.elsewhere and kept and noted:  # and not deleted just now
                yield path, kept[0]

    def look_elsewhere(self) -> None:
        """For files that were renamed while the walk was under way, or to where it did not come."""
        if self.scope.served or not self.scope.whole:
            for path, _ in walk(self.fs, self.layout.root):
                found = self.examine(path, quick=True).record
                self.seen.elsewhere |= {found.lineage} if found else set()

    def _stands(self, path: str, lineage: str) -> bool:
        """Whether what the lineage is of stands there, or it cannot be told. That of a pinned one
        need not be a file."""
        return self._is_there(path, bool if lineage in self.seen.pinned else osfs.is_regular)

    def _is_there(self, path: str, of_kind: Callable[[Status], bool] = bool) -> bool:
        try:
            with osfs.place(self.fs, self.layout.root, path) as (at, name):
                return of_kind(self.fs.lstat(at, name))
        except _NOT_THERE:
            return False
        except OSError:
            return True


def _named(finding: Finding) -> Finding:
    """No walk comes to ``.ckptfs``, but a path in it may be typed."""
    if not finding.path.startswith(f"{fmt.CONTROL}/"):
        return finding
    kept = Kept.named(finding.path)
    return replace(finding, kept=kept, control=kept is None)


def _unreadable(path: str) -> Finding:
    return Finding(path, Condition.UNREADABLE, detail="the directory cannot be read")
