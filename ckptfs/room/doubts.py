"""Which versions may lack what found no room: where the kernel carries the data, a write that
fails is told to its program alone."""

from __future__ import annotations

from ckptfs.versions.staged import Staged

_IN_DOUBT = -1


class Doubts:
    """Of one store."""

    def __init__(self) -> None:
        self.fulls = 0  # moments in which the disk was found full
        self.sees_writes = False  # all of them, so that none failed unseen

    def begins(self, staged: Staged, *, is_full: bool) -> None:
        staged.fulls = self.fulls
        if is_full and not self.sees_writes:
            self.doubt(staged)

    def doubt(self, staged: Staged) -> None:
        """A write to it has failed for lack of room, or may have."""
        staged.fulls = _IN_DOUBT

    def in_doubt(self, staged: Staged) -> bool:
        """Whether it may lack what found no room."""
        missed = self.is_unseen(staged) and staged.fulls != self.fulls
        return staged.fulls == _IN_DOUBT or missed

    def is_unseen(self, staged: Staged) -> bool:
        """Whether writes to it pass the store, so that it hears of none that fails."""
        return not self.sees_writes and staged.base is None
