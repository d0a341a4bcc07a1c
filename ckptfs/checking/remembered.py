"""Which versions were found to be good, in little room: 44 bytes each, of 131,072 at most.

A table of buckets: each has the packed stamps of the last eight inodes that came to it. So memory
has its bound, and a daemon that has served for months looks as it did after its first hours.

Threading: the caller's lock.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptfs.checking.examine import Stamp

_BUCKET_BITS = 14
_IN_BUCKET = 8
_KEY_BYTES = 16
_ENTRY = struct.Struct("<QQQQQ")
_64_BITS = (1 << 64) - 1  # ns of 584 years: more than filesystems have of dates
_SPREADS = 0x9E3779B97F4A7C15  # numbers that count up, by one or by any step, over all buckets


def _packed(seen: Stamp) -> bytes:
    (device, inode), (size, mtime_ns, ctime_ns) = seen
    return _ENTRY.pack(device, inode, size, mtime_ns & _64_BITS, ctime_ns & _64_BITS)


def _bucket_of(entry: bytes) -> int:
    inode: int = _ENTRY.unpack_from(entry)[1]
    return (inode * _SPREADS & _64_BITS) >> (64 - _BUCKET_BITS)


def _find(start: bytes, bucket: bytes) -> int:
    """Where the entry is that begins so; -1: nowhere."""
    at = bucket.find(start)
    while at > 0 and at % _ENTRY.size:
        at = bucket.find(start, at + 1)
    return at


class Remembered:
    """Stamps, one of each inode; the oldest of a bucket gives way."""

    def __init__(self) -> None:
        self._buckets = [b""] * (1 << _BUCKET_BITS)

    def __contains__(self, seen: Stamp) -> bool:
        entry = _packed(seen)
        return _find(entry, self._buckets[_bucket_of(entry)]) >= 0

    def add(self, seen: Stamp) -> None:
        self._add(_packed(seen))

    def _add(self, entry: bytes) -> None:
        number = _bucket_of(entry)
        bucket = self._buckets[number]
        at = _find(entry[:_KEY_BYTES], bucket)
        if at >= 0:
            bucket = bucket[:at] + bucket[at + _ENTRY.size :]
        self._buckets[number] = bucket[-(_IN_BUCKET - 1) * _ENTRY.size :] + entry

    def packed(self) -> bytes:
        """For :meth:`update`."""
        return b"".join(self._buckets)

    def update(self, packed: bytes) -> None:
        for at in range(0, len(packed), _ENTRY.size):
            self._add(packed[at : at + _ENTRY.size])
