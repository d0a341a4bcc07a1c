"""Names for what has become of a file that is no whole version. Pure."""

from __future__ import annotations

from collections.abc import Sequence

GONE, EMPTY, ZEROS = "gone", "empty", "zero-filled"
CUT, HOLES, MIXED, OTHER = "torn: cut short", "torn: zeros inside", "mixed", "garbled"
LOST = (GONE, EMPTY, ZEROS, CUT, HOLES, MIXED, OTHER)
_BLOCK_BYTES = 512
_NONE, _ZEROS = -1, -2


def damage(found: bytes | None, wholes: Sequence[bytes]) -> str:
    """``found``, or no file, where one of the ``wholes`` was to be; none of them has blocks of
    zeros, so that these tell of a size without data."""
    if found is None:
        return GONE
    if not found:
        return EMPTY
    if not any(found):
        return ZEROS
    if any(whole.startswith(found) for whole in wholes):
        return CUT
    sources = {_source(wholes, found, at) for at in range(0, len(found), _BLOCK_BYTES)}
    if _NONE in sources:
        return OTHER
    return HOLES if _ZEROS in sources else MIXED


def _source(wholes: Sequence[bytes], found: bytes, at: int) -> int:
    """Which version a block is of, or whether it is one as far as it is not zeros."""
    block = found[at : at + _BLOCK_BYTES]
    for number, whole in enumerate(wholes):
        if whole[at : at + len(block)] == block:
            return number
    written = block.rstrip(b"\0")
    return _ZEROS if any(whole.startswith(written, at) for whole in wholes) else _NONE
