"""A recorded file whose bytes are no longer those of its record, and whose time moved: was it saved
or edited without ckptfs, or is it damaged? Pure; any thread may call.

People overwrite a checkpoint in place (``dd conv=notrunc``, a script with ``r+b``), cut it, copy
half of it; all that moves the mtime as an edit does. What tells them apart, the first that says
anything:

1. Its structure: broken, where it was not when it was recorded, is damage.
2. The checksums that its format carries: a save if they hold, damage if they fail.
3. Text that reads as its name says is an edit; damage where it does not, or is no text any more.
4. Its blocks, by the sums in the record. Added to: an edit. Cut off, or of the same size, with half
   of it or more as recorded: damage; so are zeros where there was data. Else a save. A file of one
   block (64 KiB) has no sums: nothing tells, and it is served.

What it says of a file is never the end of its bytes: damage goes to quarantine, from where
``ckptfs adopt --quarantined`` takes it back.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from ckptfs import structure
from ckptfs.disk import sums
from ckptfs.records.format import Record
from ckptfs.structure import Proof, Read, Verdict, text
from ckptfs.structure.base import Unjudged, pieces

_PICKLE = b"\x80"
_HEAD_BYTES = 64
_ZEROS = "zeros where there was data"
Ranges = list[tuple[int, int]]


class Kind(enum.Enum):
    LIVE = "written where it stands, and not recorded since"
    SAVED = "saved anew outside ckptfs"
    EDITED = "edited outside ckptfs"
    UNPROVEN = "changed outside ckptfs; nothing tells whether by a save or by damage"
    DAMAGED = "damaged"


class Evidence(NamedTuple):
    kind: Kind
    reason: str = ""  # of damage, a clause


def judge(
    path: str, size_bytes: int, read: Read, record: Record, differing: Callable[[], Ranges | None]
) -> Evidence:
    """``read`` is as for :func:`ckptfs.structure.check`; ``differing`` gives the ranges of bytes
    that are not as recorded, as :func:`ckptfs.disk.sums.differing` does, or None where the sums are
    none. An OSError of them is passed on."""
    if record.live:
        return Evidence(Kind.LIVE)
    name = path.rpartition("/")[2].lower()
    if size_bytes == 0:
        reads = _is_text(name) and not text.trouble_with(name, "")  # no JSON is empty
        return Evidence(Kind.EDITED) if reads else _damaged("emptied")
    return (
        by_format(name, size_bytes, read, Verdict(record.structure))
        or _by_text(name, size_bytes, read, record)
        or _by_blocks(size_bytes, read, record, differing())
    )


def _damaged(reason: str) -> Evidence:
    return Evidence(Kind.DAMAGED, reason)


def _is_text(name: str) -> bool:
    return name.endswith(text.SUFFIXES)


def by_format(name: str, size: int, read: Read, before: Verdict) -> Evidence | None:
    """What structure and checksums say of a file that was as ``before``; None: nothing. Reads the
    whole file. ``name`` may be a path."""
    if before is Verdict.BROKEN:
        return None  # it was not whole then either
    found = structure.check(name, size, read)
    if found.verdict is Verdict.BROKEN:
        return _damaged(found.reason)
    proven = structure.prove(size, read)
    if proven.proof is Proof.HOLDS:
        return Evidence(Kind.SAVED)
    if proven.proof is Proof.FAILS:
        return _damaged(proven.reason)
    if before is Verdict.SOUND and found.verdict is not Verdict.SOUND:
        head = read(0, _HEAD_BYTES)
        if head.startswith(structure.ARCHIVE):
            return _damaged("it is no whole archive any more")
        if not head.startswith((_PICKLE, structure.ARRAY)):  # torch's format of old is a pickle
            return _damaged("no longer a file of its format")
    return None


def _by_text(name: str, size: int, read: Read, record: Record) -> Evidence | None:
    found = text.text_of(size, read) if record.structure != Verdict.SOUND.value else None
    if found is None:
        is_short = size <= text.LIMIT_BYTES
        return _damaged("no text any more") if is_short and _is_text(name) else None
    trouble = text.trouble_with(name, found)
    return _damaged(trouble) if trouble else Evidence(Kind.EDITED)


def _by_blocks(size: int, read: Read, record: Record, differing: Ranges | None) -> Evidence:
    block = sums.block_bytes(record.sums)
    if not block or differing is None:
        all_zero = _is_zero(read, 0, size)
        return _damaged(_ZEROS) if all_zero else Evidence(Kind.UNPROVEN)
    common = min(size, record.size_bytes)
    changed = [(start, min(end, common)) for start, end in differing if start < common]
    changed_bytes = sum(end - start for start, end in changed)
    if size > record.size_bytes:
        return Evidence(Kind.SAVED if changed else Kind.EDITED)
    if changed_bytes > common / 2:
        return _damaged(_ZEROS) if _are_zeroed(read, changed, block) else Evidence(Kind.SAVED)
    if size < record.size_bytes:
        return _damaged(f"cut off: {size} bytes, where {record.size_bytes} are recorded")
    return _damaged(f"overwritten in place: {changed_bytes} of {size} bytes are not as recorded")


def _are_zeroed(read: Read, changed: Ranges, block: int) -> bool:
    """Whether there are zeros where data was. The blocks at both ends hold some data, too."""
    inner = [(start + block, end - block) for start, end in changed if end - start > 2 * block]
    return bool(inner) and all(_is_zero(read, start, end) for start, end in inner)


def _is_zero(read: Read, start: int, end: int) -> bool:
    try:
        return not any(piece.strip(b"\0") for piece in pieces(read, start, end))
    except Unjudged:
        return False
