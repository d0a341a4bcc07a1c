"""The states in which a power cut may leave a block device, from the log of its writes. Pure.

A device keeps what was written before the last flush that ended. Of the writes after it any may be
on the medium and any not, and one may be there in part: 512-byte sectors are whole, no more. So the
power may go ahead of any entry of the log and leave

- flush: all that was written before, at the end of a flush,
- prefix: all that was written before, at any other entry,
- reordered: any of the writes that no flush has covered,
- torn: some sectors of some of them, too.
"""

from __future__ import annotations

import bisect
import enum
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

SECTOR_BYTES = 512
_PAGE_BYTES = 4096


class Extent(NamedTuple):
    start: int
    end: int


@dataclass(frozen=True)
class Entry:
    """One request: a flush, or a write of ``size`` bytes at ``offset``. ``position`` is where the
    log stood before it; ``data`` where its bytes are in the log, 0 for zeros."""

    position: int
    offset: int = 0
    size: int = 0
    data: int = 0
    flush: bool = False


class Cut(str, enum.Enum):
    FLUSH = "flush"
    PREFIX = "prefix"
    REORDERED = "reordered"
    TORN = "torn"


class Spec(NamedTuple):
    """One state: the power goes ahead of entry ``at``. ``seed`` draws which writes are lost."""

    cut: Cut
    at: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.cut.value}:{self.at}:{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Raises ValueError."""
        cut, at, seed = text.split(":")
        return cls(Cut(cut), int(at), int(seed))


def covering(extents: Iterable[Extent]) -> list[Extent]:
    """The pages that the extents lie in, joined where they touch."""
    found: list[Extent] = []
    for start, end in sorted(extents):
        start, end = start // _PAGE_BYTES * _PAGE_BYTES, -(-end // _PAGE_BYTES) * _PAGE_BYTES
        if found and start <= found[-1].end:
            found[-1] = Extent(found[-1].start, max(end, found[-1].end))
        else:
            found.append(Extent(start, end))
    return found


class Log:
    """What was written to a device that held ``base``: the data of its extents, joined."""

    def __init__(
        self, base: bytes, extents: Sequence[Extent], entries: Sequence[Entry], log: bytes
    ) -> None:
        self.entries, self._data = entries, log
        writes = (Extent(e.offset, e.offset + e.size) for e in entries if e.size)
        self.shown = covering(itertools.chain(extents, writes))
        self._starts = [extent.start for extent in self.shown]
        sizes = (extent.end - extent.start for extent in self.shown)
        self._at = [0, *itertools.accumulate(sizes)]
        self._flushes = [at for at, entry in enumerate(entries) if entry.flush]
        self._base = bytearray(self._at[-1])
        at = 0
        for start, end in extents:
            self._put(self._base, start, memoryview(base)[at : at + end - start])
            at += end - start
        self._durable, self._durable_at = bytearray(self._base), 0

    def _put(self, image: bytearray, offset: int, data: bytes | memoryview) -> None:
        part = bisect.bisect_right(self._starts, offset) - 1
        at = self._at[part] + offset - self._starts[part]
        image[at : at + len(data)] = data

    def _apply(self, image: bytearray, entry: Entry, sectors: Iterable[int] | None = None) -> None:
        data = memoryview(self._data)[entry.data : entry.data + entry.size]
        if not entry.data:
            data = memoryview(bytes(entry.size))
        if sectors is None:
            self._put(image, entry.offset, data)
            return
        for sector in sectors:
            at = sector * SECTOR_BYTES
            self._put(image, entry.offset + at, data[at : at + SECTOR_BYTES])

    def durable(self, at: int) -> int:
        """How many entries a flush has covered when the power goes ahead of entry ``at``."""
        flushes = bisect.bisect_left(self._flushes, at)
        return self._flushes[flushes - 1] if flushes else 0

    def pending(self, at: int) -> list[Entry]:
        """The writes whose fate is open."""
        return [entry for entry in self.entries[self.durable(at) : at] if entry.size]

    def image(self, spec: Spec) -> bytearray:
        """The bytes of ``shown`` in this state. Cheapest in the order of ``at``."""
        durable = self.durable(spec.at)
        if durable < self._durable_at:
            self._durable, self._durable_at = bytearray(self._base), 0
        for entry in self.entries[self._durable_at : durable]:
            if entry.size:
                self._apply(self._durable, entry)
        self._durable_at = durable
        image = bytearray(self._durable)
        for entry, sectors in survivors(self.pending(spec.at), spec):
            self._apply(image, entry, sectors)
        return image

    def position(self, at: int) -> int:
        """Where the log stood when the power went."""
        return self.entries[at].position if at < len(self.entries) else len(self._data)


def identity(image: bytes | bytearray) -> str:
    return blake3(image).hexdigest(length=12)


def survivors(pending: Sequence[Entry], spec: Spec) -> Iterator[tuple[Entry, list[int] | None]]:
    """Which of the open writes are on the medium; of a torn one, which sectors."""
    if spec.cut in (Cut.FLUSH, Cut.PREFIX):
        yield from ((entry, None) for entry in pending)
        return
    draw = random.Random(f"{spec}")
    lost = _lost(len(pending), draw)
    torn = set()
    if spec.cut is Cut.TORN:
        some = [n for n, entry in enumerate(pending) if entry.size > SECTOR_BYTES]
        torn = set(draw.sample(some, min(len(some), draw.choice([1, 1, 2, 5]))))
    for number, entry in enumerate(pending):
        if number in torn:
            yield entry, _some_sectors(entry.size, draw)
        elif number not in lost:
            yield entry, None


def _lost(count: int, draw: random.Random) -> set[int]:
    """Nearly all, nearly none, half of them, or a run: what disks and adversaries do."""
    if not count:
        return set()
    how = draw.randrange(5)
    few = draw.sample(range(count), min(count, draw.choice([1, 1, 2, 3])))
    if how == 0:
        return set(few)
    if how == 1:
        return set(range(count)) - set(few)
    if how == 2:
        start = draw.randrange(count)
        return set(range(start, draw.randint(start, count)))
    share = draw.random()
    return {number for number in range(count) if draw.random() < share}


def _some_sectors(size: int, draw: random.Random) -> list[int]:
    """In the order of the medium up to some sector, or any of them; half of the disks have
    sectors of 4 KiB inside."""
    unit = draw.choice([SECTOR_BYTES, min(size, _PAGE_BYTES)])
    count = -(-size // unit)
    if draw.random() < 0.5:
        units = list(range(draw.randrange(1, count) if count > 1 else 0))
    else:
        units = [number for number in range(count) if draw.random() < 0.5]
    each = unit // SECTOR_BYTES
    return [sector for u in units for sector in range(u * each, (u + 1) * each)]


def in_order(log: Log, first: int) -> list[Spec]:
    """The power goes ahead of each entry from ``first`` on, and after the last one."""
    ends = {flush + 1 for flush, entry in enumerate(log.entries) if entry.flush}
    return [
        Spec(Cut.FLUSH if at in ends else Cut.PREFIX, at)
        for at in range(first, len(log.entries) + 1)
    ]


def out_of_order(log: Log, moments: Iterable[Sequence[int]], seed: int) -> Iterator[Spec]:
    """Without end: reordered and torn by turns. ``moments`` are groups of entries ahead of which
    the power may go; each group has its turn, so that a rare one is looked at as often."""
    draw = random.Random(seed)
    open_ = [[at for at in group if log.pending(at)] for group in moments]
    groups = [group for group in open_ if group]
    for number in itertools.count():
        at = draw.choice(groups[number // 2 % len(groups)])
        yield Spec((Cut.REORDERED, Cut.TORN)[number % 2], at, draw.getrandbits(32))
