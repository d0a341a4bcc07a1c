"""Ratios of alternating measurements, how far they can be trusted, and sizes in words. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_RESAMPLES = 4000
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_OUTSIDE = 0.025  # of the resamples, on either side of the interval


@dataclass(frozen=True)
class Estimate:
    """A median with its bootstrap 95% interval."""

    median: float
    low: float
    high: float

    def map(self, factor: float, offset: float = 0.0) -> Estimate:
        return Estimate(*(x * factor + offset for x in (self.median, self.low, self.high)))


def estimate(values: Sequence[float], seed: int = 1) -> Estimate:
    """Median of ``values``; the interval holds 95% of the medians of resamples with replacement.
    The same values always give the same interval. Raises ValueError for no values."""
    if not values:
        raise ValueError("nothing was measured")
    draw = random.Random(seed)
    medians = sorted(
        statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES)
    )
    low = medians[int(_OUTSIDE * _RESAMPLES)]
    high = medians[int((1 - _OUTSIDE) * _RESAMPLES) - 1]
    return Estimate(statistics.median(values), low, high)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Median of the ratios round by round: what slows a whole round down cancels out."""
    return estimate([a / b for a, b in zip(ours, theirs, strict=True)])


def size_text(size_bytes: int) -> str:
    for letter in ("G", "M", "K"):
        if size_bytes >= _UNITS[letter]:
            return f"{size_bytes / _UNITS[letter]:g} {letter}iB"
    return f"{size_bytes} bytes"
