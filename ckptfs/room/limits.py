"""Salvage and quarantine stay within bounds, by bytes and by number. Thread-safe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ckptfs.disk.locks import Rank, ranked
from ckptfs.records.aside import Amount, Aside
from ckptfs.room.expendable import Expendable, Item, Kind


class Limits:
    """Of one store; ``let_go`` says whether the item is gone."""

    def __init__(
        self,
        aside: Aside,
        expendable: Expendable,
        let_go: Callable[[Item, str], bool],
        bounds: Amount,
    ) -> None:
        self._aside, self._expendable, self._let_go = aside, expendable, let_go
        self.bounds = bounds
        self._fits = Amount(-1, -1)  # how much may be put aside in all before it is bounded again
        self._bounding = ranked(Rank.BOUNDING, reentrant=False)

    def bound_if_due(self) -> None:
        """Each time that something was put aside."""
        if not self._aside.added.fits(self._fits):
            with contextlib.suppress(OSError):  # the next one does it
                self.bound()

    def bound(self) -> None:
        """Let go of salvage, then of quarantine, while they are more than the bounds. Takes as long
        as there is of it. What nothing else is left of goes last."""
        with self._bounding:
            before, left = self._aside.added, self._aside.amount()
            if not left.fits(self.bounds):
                left = self._let_aside_go(left)
            self._fits = before + self.bounds - left

    def _let_aside_go(self, left: Amount) -> Amount:
        """Returns how much is left."""
        judged, last = self._expendable.judged(), list[Item]()
        limit = f"more than {self.bounds.size_bytes} bytes or {self.bounds.count} files"

        def let_go(item: Item) -> Amount:
            if left.fits(self.bounds) or not self._let_go(item, limit):
                return left
            return left - Amount(1, item.size_bytes)

        for item in self._expendable.of(Kind.SALVAGE):
            left = let_go(item)
        for item in () if left.fits(self.bounds) else self._expendable.of(Kind.QUARANTINE):
            if left.fits(self.bounds):
                break
            if judged.may_go(item):
                left = let_go(item)
            else:
                last.append(item)
        for item in last:
            left = let_go(item)
        return left
