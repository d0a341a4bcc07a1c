"""Where a damaged file is damaged: short sums of its blocks, kept in its record.

The digest says whether a file is as it was committed, the sums say which part is not. They guard
nothing, so 32 bits each of a fast hash (XXH3) do. A file has at most 256 blocks, of the smallest
power of two times 64 KiB that suffices: with its sums a record is shorter than 2 KB, and lies
in the one disk block that its xattr takes anyway. The sum of a block is that of its units of
64 KiB, so a file that grows goes on summing and joins blocks two by two.
"""

from __future__ import annotations

import base64
import struct
from array import array
from mmap import mmap

from xxhash import xxh3_64, xxh3_64_intdigest

from ckptfs.disk.filesystem import FileSystem

UNIT_BYTES = 64 << 10
MAX_BLOCKS = 256
_MASK = (1 << 32) - 1
_ZEROS = bytes(UNIT_BYTES)


class Sums:
    """The sums of what was given to ``update`` so far. Not thread-safe."""

    def __init__(self) -> None:
        self._sums = array("I")
        self._units_per_block = 1
        self._units = 0  # that are complete
        self._open: xxh3_64 | None = None  # the unit that is not
        self._filled = 0  # bytes in it

    def update(self, data: memoryview | mmap) -> None:
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                end = min(len(view), at + UNIT_BYTES - self._filled)
                self._take(view[at:end])
                at = end

    def _take(self, part: memoryview) -> None:
        if self._open is None and len(part) == UNIT_BYTES:
            self._add(xxh3_64_intdigest(part, self._units))
            return
        if self._open is None:
            self._open = xxh3_64(seed=self._units)
        self._open.update(part)
        self._filled += len(part)
        if self._filled == UNIT_BYTES:
            self._add(self._open.intdigest())
            self._open, self._filled = None, 0

    def _add(self, unit: int) -> None:
        """The number of a unit is its seed, so that two that changed places differ."""
        if self._units % self._units_per_block == 0:
            if len(self._sums) == MAX_BLOCKS:
                pairs = zip(self._sums[::2], self._sums[1::2], strict=True)
                self._sums = array("I", [(a + b) & _MASK for a, b in pairs])
                self._units_per_block *= 2
            self._sums.append(0)
        self._sums[-1] = (self._sums[-1] + unit) & _MASK
        self._units += 1

    def copy(self) -> Sums:
        other = Sums()
        other._sums, other._units_per_block = self._sums[:], self._units_per_block
        other._units, other._filled = self._units, self._filled
        other._open = self._open.copy() if self._open else None
        return other

    def text(self) -> str:
        """``units per block:sums``, for the record; empty where there is but one block."""
        whole = self.copy()
        if whole._open is not None:
            whole._add(whole._open.intdigest())
        if len(whole._sums) < 2:
            return ""
        packed = struct.pack(f"<{len(whole._sums)}I", *whole._sums)
        encoded = base64.urlsafe_b64encode(packed).rstrip(b"=").decode()
        return f"{whole._units_per_block}:{encoded}"


def block_bytes(text: str) -> int:
    """How long the blocks are that have a sum each; 0 where there are none, or nobody can tell: any
    owner can write records."""
    units = text.partition(":")[0]
    return int(units) * UNIT_BYTES if units.isdecimal() else 0


def differing(
    fs: FileSystem, fd: int, size_bytes: int, recorded_bytes: int, text: str
) -> list[tuple[int, int]]:
    """The byte ranges, from and up to, in which a file of ``size_bytes`` is not what was recorded:
    blocks whose sums differ, and what was cut off or added. Empty where the sums tell nothing.
    Raises OSError, and ValueError for what are no sums."""
    found = []
    if text:
        _, _, encoded = text.partition(":")
        length = block_bytes(text)
        if not length:
            raise ValueError("sums without the length of a block")
        packed = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        for number, (recorded,) in enumerate(struct.iter_unpack("<I", packed)):
            at = number * length
            end = min(at + length, recorded_bytes)
            if end > size_bytes or _sum(fs, fd, at, end) != recorded:
                found.append((at, end))
    elif size_bytes < recorded_bytes:
        found.append((size_bytes, recorded_bytes))
    if size_bytes > recorded_bytes:
        found.append((recorded_bytes, size_bytes))
    return _joined(found)


def _sum(fs: FileSystem, fd: int, start: int, end: int) -> int:
    total = 0
    for at in range(start, end, UNIT_BYTES):
        length = min(UNIT_BYTES, end - at)
        is_hole = fs.next_data(fd, at) >= at + length
        data = _ZEROS[:length] if is_hole else fs.read(fd, length, at)
        total += xxh3_64_intdigest(data, at // UNIT_BYTES)
    return total & _MASK


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined
