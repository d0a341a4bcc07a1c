"""The rows of the benchmark: each compares the mount with the plain directory."""

from __future__ import annotations

from collections.abc import Callable

from .cost import ROW, cost
from .directories import many_files, metadata, verification
from .files import loads, memory, paper, saves, small_files, small_writes
from .measure import Bench

Row = Callable[[Bench, set[str]], None]

USUAL: dict[str, Row] = {
    "1": saves,
    "2": saves,
    "3": loads,
    "4": small_writes,
    "7": small_files,
    "6": memory,
    "8": many_files,
    "verify": verification,
    "9": metadata,
    "paper": paper,
}
ROWS: dict[str, Row] = {**USUAL, ROW: cost}
ON_THE_MOUNT = {"1", "2", "3", "4", "6", "7"}
