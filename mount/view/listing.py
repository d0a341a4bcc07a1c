"""Lists of directories, read by position.

The kernel keeps lists of its own and drops them when it likes: midway through a directory it then
asks from a position that another handle was given, before names came and went. So a position means
the same in every list of a directory, whatever is in it: it is a hash of the name. A commit changes
the inode of a name and, on btrfs, its place in the directory below; its position stays. The hash
has a key, which every program of a mount has and nobody else knows: who can make names cannot give
one the position of somebody else's. Names that share a position all the same are read together.

Threading: a list is filled by one thread, and read by any afterwards.
"""

from __future__ import annotations

import os
import struct
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice

from .identity import Listed

_DOTS = {".": 1, "..": 2}  # first, as everywhere; 0 is where a list begins
_NAMED = 4  # a bit that all other positions have
_LAST = (1 << 63) - 1  # of an off_t; the 62 bits left tell millions of names apart
_BUCKET_SHIFT = 63 - 10  # so that what is sorted at once stays in the processor's cache
_KEY_BYTES, _SECRET_BYTES = 8, 16
# A key, which sorts as the position does, and the kernel's struct fuse_dirent.
_RECORD = struct.Struct(f"<{_KEY_BYTES}sQQII")
_ENTRY = struct.Struct("<QQII")
_PADDING = [b"\0" * (-size % 8) for size in range(8)]
_ENCODING = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


def _key(position: int) -> bytes:
    return position.to_bytes(_KEY_BYTES, "big")


def new_key() -> bytes:
    return os.urandom(_SECRET_BYTES)


def parts(entry: bytes) -> tuple[str, int, int, int]:
    """Name, inode number, type and position."""
    inode, position, size, kind = _ENTRY.unpack_from(entry)
    return os.fsdecode(entry[_ENTRY.size :][:size]), inode, kind << 12, position


class Listing:
    """Entries as bytes, which take half of what tuples would; sorted where they are read."""

    def __init__(self, key: bytes) -> None:
        self._secret = key
        self._buckets: defaultdict[int, list[bytes]] = defaultdict(list)
        self._order: list[int] = []
        self._read = 0, 0

    def _position(self, name: str) -> int:
        hashed = blake2b(self._secret + os.fsencode(name), digest_size=_KEY_BYTES).digest()
        return _DOTS.get(name) or int.from_bytes(hashed, "big") & _LAST | _NAMED

    def add(self, names: Iterable[Listed]) -> None:
        buckets, pack, padding = self._buckets, _RECORD.pack, _PADDING
        hash_of, secret, as_int = blake2b, self._secret, int.from_bytes
        encoding, errors = _ENCODING
        for name, inode, kind in names:  # every name of the directory: calls would be felt
            raw = name.encode(encoding, errors)
            hashed = as_int(hash_of(secret + raw, digest_size=_KEY_BYTES).digest(), "big")
            position = _DOTS.get(name) or hashed & _LAST | _NAMED  # as in _position
            key, size = position.to_bytes(_KEY_BYTES, "big"), len(raw)
            record = pack(key, inode, position, size, kind >> 12) + raw + padding[size & 7]
            buckets[position >> _BUCKET_SHIFT].append(record)

    def discard(self, name: str) -> None:
        position = self._position(name)
        number, key = position >> _BUCKET_SHIFT, _key(position)
        self._buckets[number] = [
            record
            for record in self._buckets[number]
            if not record.startswith(key) or parts(record[_KEY_BYTES:])[0] != name
        ]

    def replace(self, entry: Listed) -> None:
        self.discard(entry[0])
        self.add([entry])

    def read(self, position: int, room: int, more: int = 0) -> list[bytes]:
        """Entries after ``position``, as many as ``room`` bytes hold if each gets ``more``."""
        entries = self._fitting(position, room, more)
        self._read = position, parts(entries[-1])[3] if entries else position
        return entries

    def _fitting(self, position: int, room: int, more: int) -> list[bytes]:
        entries: list[bytes] = []
        here, after = position >> _BUCKET_SHIFT, _key(position + 1)
        if len(self._order) != len(self._buckets):
            self._order = sorted(self._buckets)
        for number in self._order[bisect_left(self._order, here) :]:
            bucket = self._buckets[number] = sorted(self._buckets[number])
            start = bisect_left(bucket, after) if number == here else 0
            for record in islice(bucket, start, None):
                room -= len(record) - _KEY_BYTES + more
                if room < 0:
                    return _whole(entries, record)
                entries.append(record[_KEY_BYTES:])
        return entries

    def goes_on(self, position: int) -> bool:
        """Whether what was read last led to ``position``."""
        first, last = self._read
        return first <= position <= last


def _whole(entries: list[bytes], after: bytes) -> list[bytes]:
    """Without those of the position that the next one has: reading goes on behind a position."""
    position = parts(after[_KEY_BYTES:])[3]
    together = [entry for entry in entries if parts(entry)[3] != position]
    return together or entries
