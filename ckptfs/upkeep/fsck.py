"""The check of a whole directory: files against their records, history, and what a crash left.

It can run beside a mount that is being written: what changes while it is looked at is looked at
again, and what belongs to the daemon (stage, links on their way) is left to it. Nothing is changed
by :class:`Check`; :func:`repair` needs the store to itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckptfs.checking.examine import ROTTEN, Condition, Finding, Kept
from ckptfs.history import earlier
from ckptfs.records.layout import Layout
from ckptfs.store import Store
from ckptfs.upkeep import strays
from ckptfs.upkeep.files import Files
from ckptfs.upkeep.generations import Generations
from ckptfs.upkeep.scope import Scope
from ckptfs.upkeep.seen import Seen

_UNREACHED = frozenset({Condition.UNREACHABLE, Condition.LEFTOVER})


class Check:
    """One run. ``generations`` and ``files`` count what it looked at."""

    def __init__(self, layout: Layout, scope: Scope) -> None:
        self.layout, self.scope = layout, scope
        self._seen = Seen(layout)
        self._files = Files(layout, scope, self._seen)
        look_elsewhere = self._files.look_elsewhere
        self._generations = Generations(layout, scope, self._seen, look_elsewhere)

    @property
    def files(self) -> int:
        return self._files.count

    @property
    def generations(self) -> int:
        return self._generations.count

    @property
    def others(self) -> list[str]:
        """ckptfs directories below, which are not looked at."""
        return self._files.others

    def files_only(self) -> Iterator[Finding]:
        return self._files.findings(self._files.found())

    def kept(self) -> Iterator[Finding]:
        """What history holds of the files that were looked at, and of those it knows there."""
        return self._generations.findings()

    def findings(self) -> Iterator[Finding]:
        """Everything there is to say, sound files included, in the order of the walk."""
        yield from self.files_only()
        yield from self._files.missing()
        self._generations.look_for_unreached()
        yield from self.kept()
        if self.scope.whole:
            yield from strays.strays(self.layout)
        if not self.scope.served and self.scope.whole:
            yield from self.leftovers()
            yield from strays.counter(self.layout, self._seen.highest)
            yield from self._seen.links.findings(self.layout)

    def leftovers(self) -> Iterator[Finding]:
        """Of a crash. The next mount clears them."""
        return strays.leftovers(self.layout, self._seen.links)

    def again(self, finding: Finding) -> Finding:
        """A second look at one thing."""
        if finding.kept is not None:
            return self._generations.examine(finding.kept)
        return self._files.examine(finding.path)


def repair(store: Store, finding: Finding, *, asked_for: bool = False) -> Finding:
    """See to one finding; ``repair`` of the answer says what was done, if anything. Rotten files
    are rolled back, rotten generations put into quarantine, unreachable ones let go, counters
    raised. Edits made outside stay, deletions too unless the file was ``asked_for``. Durable on
    return."""
    done = ""
    if finding.kept is not None and finding.condition in ROTTEN:
        done = store.history.set_aside(*finding.kept)
    elif finding.highest:
        store.layout.next_generation(finding.highest)
        done = "raised"
    elif finding.condition in ROTTEN:
        done = store.repair(finding.path).repair
    elif finding.condition is Condition.MISSING and asked_for:
        done = f"brought back generation {store.history.rollback(finding.path)}"
    elif finding.kept is not None and finding.condition in _UNREACHED:
        done = _tidied(store, finding.kept)
    elif finding.condition is Condition.LEFTOVER:
        done = "cleared"  # by the recovery that opening the store is
    return replace(finding, repair=done)


def _tidied(store: Store, kept: Kept) -> str:
    """One look through history sees to all that is unreachable."""
    lineage, generation = kept
    if store.history.is_orphan(lineage):
        store.history.tidy()
    if generation in earlier.generations(store.layout, lineage):
        return f"given back to {earlier.noted_path(store.layout, lineage)}"
    return "let go"
