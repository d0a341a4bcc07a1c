"""Do the checksums that a format itself carries hold, of every byte that its readers use?

Zip archives have a CRC-32 of each member (.pt, .npz, each piece of a .distcp), gzip and bzip2 a
CRC-32 of the whole, xz the checksum that its writer chose. Unlike :func:`ckptfs.structure.check`
this reads the whole file, and unpacks what is packed, in pieces. Any thread may call.
"""

from __future__ import annotations

import bz2
import enum
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ckptfs.structure.base import Broken, File, Read, Unjudged, pieces, quoted
from ckptfs.structure.zips import ZIP_END, ZIP_LOCAL, Entry, members

_PIECE_BYTES = 1 << 20  # that comes out at once
_UNPACKED_LEAST_BYTES, _UNPACKED_TIMES = 4 << 30, 16  # of a file that was made to keep us busy
_XZ_MEMORY_BYTES = 256 << 20
_STORED, _DEFLATED = 0, 8
_RAW, _GZIP = -15, 31  # window bits
_TOO_MUCH_MEMORY = "Memory usage limit exceeded"


class Proof(enum.Enum):
    HOLDS = "holds"
    FAILS = "fails"
    NONE = "none"  # it carries no checksums, or not of everything


class Proven(NamedTuple):
    proof: Proof
    reason: str = ""  # of one that fails


_NONE = Proven(Proof.NONE)


def prove(size_bytes: int, read: Read) -> Proven:
    """``read`` is as for :func:`ckptfs.structure.check`, whose verdict is SOUND where there is one.
    An OSError of it is passed on."""
    head = read(0, 6)
    unpack = next((unpack for magic, unpack in _PACKED.items() if head.startswith(magic)), None)
    try:
        if head[:4] in (ZIP_LOCAL, ZIP_END):
            return _prove_zip(File(size_bytes, read), read)
        if unpack is not None:
            for _ in _unpacked(unpack, pieces(read, 0, size_bytes), _Budget(size_bytes)):
                pass
            return Proven(Proof.HOLDS)
    except Unjudged:
        return _NONE
    except Broken as broken:
        return Proven(Proof.FAILS, str(broken))
    return _NONE


# --- zip -----------------------------------------------------------------------------------------


def _prove_zip(file: File, read: Read) -> Proven:
    """A writer may leave checksums out (torch.serialization.set_crc32_options, skip_data): 0."""
    try:
        found = [(entry, at) for entry, at in members(file) if entry.size_bytes]
    finally:
        file.close()
    summed = [(entry, at) for entry, at in found if entry.crc]
    if sum(entry.stored_bytes for entry, _ in summed) > file.size:
        return _NONE  # several share their bytes: made to keep us busy
    budget = _Budget(file.size)
    for entry, at in summed:
        if entry.encrypted or entry.method not in (_STORED, _DEFLATED):
            return _NONE
        if _crc(entry, at, read, budget) != entry.crc:
            raise Broken(f"zip entry {quoted(entry.name)} fails its checksum")
    return Proven(Proof.HOLDS) if summed and len(summed) == len(found) else _NONE


def _crc(entry: Entry, at: int, read: Read, budget: _Budget) -> int:
    crc = 0
    content = pieces(read, at, at + entry.stored_bytes)
    if entry.method == _DEFLATED:
        content = _unpacked(lambda: _Zlib(_RAW), content, budget)
    for piece in content:
        crc = zlib.crc32(piece, crc)
    return crc


# --- compressed streams --------------------------------------------------------------------------


class _Budget:
    """Of what comes out."""

    def __init__(self, size_bytes: int) -> None:
        self._left = max(_UNPACKED_LEAST_BYTES, _UNPACKED_TIMES * size_bytes)

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Unjudged


class _Zlib:
    """zlib's decompressor with the interface that those of bz2 and lzma have."""

    def __init__(self, window_bits: int) -> None:
        self._stream = zlib.decompressobj(window_bits)
        self.eof, self.needs_input = False, True

    def decompress(self, data: bytes, most: int) -> bytes:
        unpacked = self._stream.decompress(self._stream.unconsumed_tail + data, most)
        self.eof, self.needs_input = self._stream.eof, not self._stream.unconsumed_tail
        return unpacked

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data


_PACKED: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b\x08": lambda: _Zlib(_GZIP),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES),
}


def _unpacked(new: Callable[[], Any], packed: Iterator[bytes], budget: _Budget) -> Iterator[bytes]:
    """What is in one stream, or in several end to end; readers pass over zeros behind them. Raises
    Broken where a stream ends early or its decompressor finds it wrong."""
    stream = new()
    for piece in packed:
        rest = piece
        while rest or not (stream.needs_input or stream.eof):
            if stream.eof:
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                stream = new()
            try:
                unpacked = stream.decompress(rest, _PIECE_BYTES)
            except (zlib.error, OSError, lzma.LZMAError) as error:
                if str(error) == _TOO_MUCH_MEMORY:
                    raise Unjudged from None
                raise Broken("compressed data fails its checksum") from None
            budget.take(len(unpacked))
            yield unpacked
            rest = stream.unused_data if stream.eof else b""
    if not stream.eof:
        raise Broken("cut short within compressed data")
