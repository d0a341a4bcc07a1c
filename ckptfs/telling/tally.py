"""How long commits took, of how many bytes, and how many opens were verified. Any thread."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import Any

from ckptfs.disk.locks import leaf

# A small file takes milliseconds, a checkpoint of hundreds of GB minutes.
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_RECENT = 1000  # of many small files beside a checkpoint, too


class Tally:
    def __init__(self) -> None:
        self._guard = leaf()
        self._commits = [0] * (len(BOUNDS_S) + 1)  # by how long they took; the last: longer
        self._seconds, self._bytes, self._verified = 0.0, 0, 0
        self._sizes: deque[int] = deque(maxlen=_RECENT)

    def committed(self, size_bytes: int, seconds: float) -> None:
        """``seconds`` from the beginning of the commit until it was durable as the mode says."""
        with self._guard:
            self._commits[bisect_left(BOUNDS_S, seconds)] += 1
            self._seconds += seconds
            self._bytes += size_bytes
            self._sizes.append(size_bytes)

    def verified(self) -> None:
        with self._guard:
            self._verified += 1

    def largest_recent(self) -> int:
        with self._guard:
            return max(self._sizes, default=0)

    def told(self) -> dict[str, Any]:
        """As JSON has it, for the status and for a restart."""
        with self._guard:
            return {
                "bounds_s": list(BOUNDS_S),
                "commits": list(self._commits),
                "seconds": self._seconds,
                "bytes": self._bytes,
                "largest_recent_bytes": max(self._sizes, default=0),
                "verified_opens": self._verified,
            }

    def resume(self, told: dict[str, Any]) -> None:
        """Go on from what another program counted, if it counted alike."""
        if told.get("bounds_s") != list(BOUNDS_S):
            return
        with self._guard:
            self._commits, self._seconds = list(told["commits"]), told["seconds"]
            self._bytes, self._verified = told["bytes"], told["verified_opens"]
            self._sizes.append(told["largest_recent_bytes"])
