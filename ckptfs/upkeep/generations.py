"""What history holds against its records, and what of it no path leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ckptfs.checking import orphans
from ckptfs.checking.examine import ROTTEN, Condition, Finding, Kept, examine_at
from ckptfs.disk import osfs
from ckptfs.history import earlier
from ckptfs.history.lineages import Lineages
from ckptfs.records.format import HistoryNote
from ckptfs.records.layout import Layout
from ckptfs.upkeep.reading import LONG_BYTES, Job, in_order
from ckptfs.upkeep.scope import Scope
from ckptfs.upkeep.seen import Seen


class GenerationCheck:
    """Of one run. ``count`` are those that were looked at."""

    def __init__(
        self, layout: Layout, scope: Scope, seen: Seen, look_elsewhere: Callable[[], None]
    ) -> None:
        """``look_elsewhere``: for files that the walk has not come by."""
        self.layout, self.fs, self.scope, self.seen = layout, layout.fs, scope, seen
        self.count = 0
        self._look_elsewhere = look_elsewhere
        self._orphans: dict[str, HistoryNote] = {}  # lineages that no path leads to

    def findings(self) -> Iterator[Finding]:
        """What history holds of the files that were looked at, and of those it knows there."""
        yield from list(self._history(sorted(self._orphans)))  # one repair lets all of them go
        others = sorted(self.seen.kept - self._orphans.keys())
        yield from self._history(filter(self._covers_lineage, others))

    def look_for_unreached(self) -> None:
        """What no path leads to. A file that carries it and is not noted was renamed outside."""
        found = self._orphaned()
        if found:
            self._look_elsewhere()
            again = self._orphaned()  # while a commit, a rename or a deletion was under way
            found = {lineage: note for lineage, note in found.items() if again.get(lineage) == note}
        self._orphans = found

    def _orphaned(self) -> dict[str, HistoryNote]:
        unseen = self.seen.kept - self.seen.live - self.seen.elsewhere
        unseen = frozenset(filter(self._covers_lineage, unseen))
        found = orphans.find(Lineages(self.layout)).orphans if unseen else {}
        return {
            lineage: note
            for lineage, note in found.items()
            if lineage in unseen and not (note.leaving and self.scope.served)
        }

    def _covers_lineage(self, lineage: str) -> bool:
        if self.scope.whole or lineage in self.seen.live:
            return True
        note = earlier.note(self.layout, lineage)
        return note is not None and any(map(self.scope.asked_for, note.paths))

    def _history(self, lineages: Iterable[str]) -> Iterator[Finding]:
        def jobs() -> Iterator[Job]:
            for lineage in lineages:
                for generation in reversed(earlier.generations(self.layout, lineage)):
                    kept = Kept(lineage, generation)
                    yield LONG_BYTES, lambda kept=kept: self.examine(kept)  # type: ignore[misc]

        for finding in in_order(jobs(), self.scope.jobs):
            if finding.condition is Condition.MISSING:
                continue  # a commit let it go meanwhile
            self.count += 1
            if finding.record is not None:
                self.seen.highest = max(self.seen.highest, finding.record.generation)
            yield finding

    def examine(self, kept: Kept) -> Finding:
        return replace(self._examine(kept), kept=kept)

    def _examine(self, kept: Kept) -> Finding:
        (lineage, generation), path = kept, kept.path
        quick, direct = not self.scope.reads(path), self.scope.direct
        of = earlier.noted_path(self.layout, lineage)
        how = {"quick": quick, "direct": direct, "called": of or ""}
        try:
            with osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder:
                name = str(generation)
                self.seen.links.note(self.fs.lstat(folder, name), path, kept)
                found = examine_at(self.layout, path, folder, name, **how)
                if not earlier.holds(self.layout, folder, lineage, found.record):
                    return _misplaced(found)
        except FileNotFoundError:
            return Finding(path, Condition.MISSING)
        if lineage in self._orphans and found.condition not in ROTTEN:
            return _unreachable(found, self._orphans[lineage])
        if of is not None and found.condition is not Condition.OK:
            found = replace(found, of=of, detail=f"of {of}; {found.detail}".rstrip("; "))
        return found


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
