"""What the checks of all formats share: bounded exact reads, and how a verdict is reached."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Read = Callable[[int, int], bytes]

# Anybody can write a file, and who judges it is the daemon of all: what is over these is UNKNOWN.
# Headers, directories and pickles are far shorter: 10 MiB describe 100,000 tensors.
METADATA_LIMIT_BYTES = 10 << 20
ENTRIES_LIMIT = 100_000
_READ_LIMIT_BYTES = 512 << 20  # in all: the steps below, of two blocks each
_STEPS_LIMIT = 1 << 16
_HEAVY_BYTES, _HEAVY_STEPS = 64 << 10, 1000
_BLOCK_BYTES, _PIECE_BYTES = 4096, 1 << 20
U16, U32, U64 = struct.Struct("<H"), struct.Struct("<L"), struct.Struct("<Q")


class Broken(Exception):
    """Certainly not whole; the message is the reason."""


class Unjudged(Exception):
    """No format known here, or no certainty."""


@contextmanager
def broken_only_if(certain: bool) -> Iterator[None]:
    try:
        yield
    except Broken:
        if certain:
            raise
        raise Unjudged from None


# Parsing needs the interpreter all the time: several at once gain nothing, and keep everybody else
# waiting. A leaf of the order of locks.
_heavy = threading.Lock()


class File:
    """Exact reads. They come in aligned blocks, as small headers often lie side by side. Who reads
    much is the only one to do so until ``close``."""

    def __init__(self, size: int, read: Read) -> None:
        self.size = size
        self.steps_left = _STEPS_LIMIT
        self._bytes_left = _READ_LIMIT_BYTES
        self._read = read
        self._block = b""
        self._block_at = 0
        self._is_heavy = False

    def close(self) -> None:
        if self._is_heavy:
            self._is_heavy = False
            _heavy.release()

    def bytes(self, at: int, length: int) -> bytes:
        self.steps_left -= 1
        much = length > _HEAVY_BYTES or self.steps_left < _STEPS_LIMIT - _HEAVY_STEPS
        if much and not self._is_heavy:
            _heavy.acquire()
            self._is_heavy = True
        skip = at - self._block_at
        if skip >= 0 and skip + length <= len(self._block):
            return self._block[skip : skip + length]
        if at < 0 or at + length > self.size:
            raise Broken("cut short: it refers to bytes past its end")
        start = at & -_BLOCK_BYTES
        stop = min(self.size, (at + length + _BLOCK_BYTES - 1) & -_BLOCK_BYTES)
        self._bytes_left -= stop - start
        if self._bytes_left < 0:
            raise Unjudged
        block = self._read(start, stop - start)
        if len(block) != stop - start:
            raise Unjudged
        if length <= _BLOCK_BYTES:  # larger pieces are wanted once
            self._block, self._block_at = block, start
        return block[at - start : at - start + length]


def pieces(read: Read, start: int, end: int) -> Iterator[bytes]:
    """What lies between, one after the other. Raises Unjudged for a file that shrinks meanwhile."""
    while start < end:
        piece = read(start, min(_PIECE_BYTES, end - start))
        if not piece:
            raise Unjudged
        yield piece
        start += len(piece)


def quoted(name: bytes | str) -> str:
    return ascii(name[:80].decode("utf-8", "replace") if isinstance(name, bytes) else name[:80])
