"""What a check has come by so far: what its parts tell each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ckptfs.checking.examine import Condition, Finding, Kept
from ckptfs.disk import osfs
from ckptfs.disk.filesystem import Status
from ckptfs.history import earlier
from ckptfs.records.layout import Layout


class Links:
    """Names of inodes that have several."""

    def __init__(self) -> None:
        self._names: Counter[int] = Counter()
        self._seen: dict[int, tuple[str, Kept | None, int]] = {}

    def note(self, status: Status | None, path: str = "", kept: Kept | None = None) -> None:
        """Of what stands at ``path``, which is a generation if it is ``kept``; empty for what is to
        be counted only."""
        if status is not None and status.st_nlink > 1 and osfs.is_regular(status):
            self._names[status.st_ino] += 1
            if path or status.st_ino not in self._seen:
                self._seen[status.st_ino] = path, kept, status.st_nlink

    def findings(self, layout: Layout) -> Iterator[Finding]:
        """Files that have a name outside of the directory."""
        for folder in (layout.quarantine, layout.salvage):
            for name in layout.fs.listdir(folder):
                self.note(layout.fs.lstat(folder, name))
        for inode, (path, kept, links) in self._seen.items():
            if self._names[inode] < links and path:
                outside = links - self._names[inode]
                detail = f"{outside} of its {links} names lie outside: it can be changed in place"
                yield Finding(path, Condition.LINKED, detail=detail, kept=kept)


class Seen:
    """By one run. History is as it was at its begin."""

    def __init__(self, layout: Layout) -> None:
        self.known = earlier.lineages_by_path(layout)
        self.kept = frozenset(earlier.lineages(layout))
        self.pinned = earlier.pinned(layout)
        self.live: set[str] = set()  # lineages with history whose file was seen
        self.elsewhere: set[str] = set()  # those of files that were not looked at
        self.highest = 0  # generation
        self.links = Links()
