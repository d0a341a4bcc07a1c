"""What happens in trial n of seed S: drawn from these two numbers and from nothing else."""

from __future__ import annotations

import enum
import math
import random
from dataclasses import dataclass

PAGE_BYTES = 4096
FORMATS = ("pt", "safetensors", "dcp", "npz", "json")
DCP_FILES = (".metadata", "__0_0.distcp")
_MIN_BYTES = 1 << 10
_BLOCKS_MIN_BYTES = 4 * PAGE_BYTES
_LARGEST_EVERY = 4000  # trials; one of them has exactly the largest size
_BANDS = (  # upper end in bytes, share of the trials; log-uniform within a band
    (64 << 10, 0.70),
    (1 << 20, 0.20),
    (8 << 20, 0.08),
    (64 << 20, 0.018),
    (256 << 20, 0.002),
)


class Kind(enum.Enum):
    """A kind of damage. The values stand in rows and tables."""

    BIT = "one bit flipped"
    BYTE = "one byte changed"
    BURST = "burst of 8-4096 bytes"
    ZERO_BLOCK = "4 KiB block zeroed"
    ZERO_HALF = "half zeroed"
    TRUNCATED = "truncated"
    EXTENDED = "extended"
    SWAPPED = "two 4 KiB blocks swapped"
    STALE = "stale content, new record"
    BOTH = "file and its history damaged"
    RECORD_DAMAGED = "record damaged"
    RECORD_MISSING = "record missing"
    RECORD_FOREIGN = "record of another file"
    SIDECAR = "sidecar record damaged"
    HISTORY = "history damaged"
    # by programs and people, so that times move as for an edit:
    WRITTEN = "overwritten in place"
    CUT = "cut by a program"
    COPIED = "partly copied over"
    LIVE = "overwritten below a live mount"
    THROUGH = "overwritten through the mount"

    @property
    def changes_bytes(self) -> bool:
        """Whether the file's own bytes are other ones afterwards."""
        return self not in _BYTES_STAY


_BYTES_STAY = frozenset(
    {Kind.RECORD_DAMAGED, Kind.RECORD_MISSING, Kind.RECORD_FOREIGN, Kind.SIDECAR, Kind.HISTORY}
)
OF_BYTES = (
    *(Kind.BIT, Kind.BYTE, Kind.BURST, Kind.ZERO_BLOCK, Kind.ZERO_HALF),
    *(Kind.TRUNCATED, Kind.EXTENDED, Kind.SWAPPED),
)
OUTSIDE = frozenset({Kind.WRITTEN, Kind.CUT, Kind.COPIED, Kind.LIVE, Kind.THROUGH})
WHILE_SERVED = frozenset({Kind.LIVE, Kind.THROUGH})
_WITH_CHECKSUMS = ("pt", "npz")  # what is written into others through a mount, is a save
_OF_BLOCKS = frozenset({Kind.ZERO_BLOCK, Kind.SWAPPED})
_NEED_HISTORY = frozenset({Kind.STALE, Kind.BOTH, Kind.HISTORY, Kind.COPIED})
NEED_OLDER = frozenset({Kind.STALE, Kind.COPIED})  # the content one version before
_WRITTEN_IN_PLACE = ("pt", "npz", "json")  # so that a version inherits what fills its xattrs


@dataclass(frozen=True)
class Trial:
    seed: int
    number: int
    kind: Kind
    format: str
    size_bytes: int  # of the newest version, about
    earlier_bytes: int  # of the version before it
    versions: int
    target: str  # the file of the checkpoint that is damaged

    def draw(self, what: str) -> random.Random:
        """Chance for one part of the trial, independent of the others."""
        return random.Random(f"{self.seed}/{self.number}/{what}")

    @property
    def directory(self) -> str:
        return f"t{self.number:06}"

    @property
    def path(self) -> str:
        return f"{self.directory}/{self.target}"


def trial(seed: int, number: int, max_bytes: int) -> Trial:
    """Every run of as many trials as there are kinds has each kind once."""
    draw = random.Random(f"{seed}/{number}")
    kinds = list(Kind)
    turn, place = divmod(number, len(kinds))
    kind = random.Random(f"{seed}/kinds/{turn}").sample(kinds, len(kinds))[place]
    forms = {Kind.SIDECAR: _WRITTEN_IN_PLACE, Kind.THROUGH: _WITH_CHECKSUMS}.get(kind, FORMATS)
    form = draw.choice(forms)
    size = max_bytes if number % _LARGEST_EVERY == _LARGEST_EVERY // 2 else _size(draw, max_bytes)
    if kind in _OF_BLOCKS:
        size = max(size, _BLOCKS_MIN_BYTES)
    grows = draw.random() < 0.3
    alone = draw.random() < 0.15 and kind not in _NEED_HISTORY
    metadata = draw.random() < 0.3 and kind not in _OF_BLOCKS
    target = DCP_FILES[0 if metadata else 1] if form == "dcp" else f"model.{form}"
    earlier = max(_MIN_BYTES, int(size * draw.uniform(0.5, 0.95))) if grows else size
    return Trial(seed, number, kind, form, size, earlier, 1 if alone else 2, target)


def _size(draw: random.Random, max_bytes: int) -> int:
    lower, chance = _MIN_BYTES, draw.random()
    for upper, share in _BANDS:
        chance -= share
        if chance < 0 or upper >= max_bytes:
            break
        lower = upper
    logs = math.log(lower), math.log(max(lower, min(upper, max_bytes)))
    return int(math.exp(draw.uniform(*logs)))
