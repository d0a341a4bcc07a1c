"""How much a save is going to take: by what stands there, or what was saved under such a name."""

from __future__ import annotations

import contextlib
import re

from ckptfs.records.layout import Layout
from ckptfs.versions.staged import Staged

_GROWTH_AHEAD = 4  # times as much as was written since the last look
_SHARE_AHEAD = 20  # of the disk, at most, for what nobody knows the length of
_NAMES_REMEMBERED = 1024


class UsualSizes:
    """Of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._usual: dict[str, int] = {}  # lengths of saves, by the kind of their names

    def expected(self, path: str, stands_bytes: int = 0) -> int:
        """How much a save at the path will take, by what stands there or was saved last under a
        name of its kind; 0 where nothing tells."""
        return stands_bytes or self._usual.get(_kind_of(path), 0)

    def note(self, path: str, size_bytes: int) -> None:
        """What a save at the path takes on the disk."""
        if len(self._usual) >= _NAMES_REMEMBERED:
            self._usual.clear()
        self._usual[_kind_of(path)] = size_bytes

    def still_to_come(self, staged: Staged, size_bytes: int, grown_bytes: int) -> int:
        """Of a version of this size that has grown since the last look."""
        if grown_bytes <= 0:
            return 0
        missing = staged.expected_bytes - size_bytes
        if missing > 0:
            return missing
        with contextlib.suppress(OSError):
            total_bytes = self._layout.fs.space(self._layout.root).total_bytes
            return min(_GROWTH_AHEAD * grown_bytes, total_bytes // _SHARE_AHEAD)
        return 0


def _kind_of(path: str) -> str:
    """The name, whatever its numbers: ``step-000100.pt`` and ``step-000200.pt`` are of a kind."""
    return re.sub(r"\d+", "0", path.rpartition("/")[2])
