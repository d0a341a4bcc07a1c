"""The check of a whole directory: files against their records, history, and what a crash left.

It can run beside a mount that is being written: what changes while it is looked at is looked at
again, and what belongs to the daemon (stage, links on their way) is left to it. Nothing is changed
here; see ``carry_out.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckptfs.checking.examine import Finding
from ckptfs.records.layout import Layout
from ckptfs.upkeep import strays
from ckptfs.upkeep.files import FileCheck
from ckptfs.upkeep.generations import GenerationCheck
from ckptfs.upkeep.scope import Scope
from ckptfs.upkeep.seen import Seen


class Check:
    """One run. ``generations`` and ``files`` count what it looked at."""

    def __init__(self, layout: Layout, scope: Scope) -> None:
        self.layout, self.scope = layout, scope
        self._seen = Seen(layout)
        self._files = FileCheck(layout, scope, self._seen)
        look_elsewhere = self._files.look_elsewhere
        self._generations = GenerationCheck(layout, scope, self._seen, look_elsewhere)

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
