"""What is left of a disk, and when it counts as full."""

from __future__ import annotations

from typing import NamedTuple

_FULL_BYTES = 1 << 20


class Space(NamedTuple):
    """What is left of a filesystem, to an ordinary user."""

    free_bytes: int
    total_bytes: int  # 0 of one that does not say how large it is (ramfs): that has room
    has_inodes: bool = True

    @property
    def is_full(self) -> bool:
        """Whether a write may have found no room. XFS refuses them with a few blocks left."""
        return not self.holds(_FULL_BYTES)

    def holds(self, size_bytes: int) -> bool:
        return not self.total_bytes or (self.has_inodes and self.free_bytes >= size_bytes)
