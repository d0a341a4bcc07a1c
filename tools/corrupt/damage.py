"""Damage, done to a directory that no daemon serves. Times stay, as rot moves none, but for what
programs and people do."""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from ckptfs.errors import RecordDamaged
from ckptfs.records import format as fmt
from ckptfs.records.format import Record

from .draw import OF_BYTES, PAGE_BYTES, Kind, Trial

Ranges = list[tuple[int, int]]  # bytes, from and up to
_TRIES = 1000
_ARCHIVE_END = re.compile(rb"PK\x05\x06.{18}(?=PK\x03\x04|\Z)", re.DOTALL)  # without a comment


class Undamageable(Exception):
    """There is nothing that this kind of damage would change."""


@contextlib.contextmanager
def rotting(path: Path) -> Iterator[int]:
    """A descriptor to write to; on the medium, and under the old times, after the block."""
    before = path.stat()
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        yield fd
        os.fsync(fd)
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    finally:
        os.close(fd)


def damage_bytes(path: Path, kind: Kind, draw: random.Random) -> Ranges:
    """Do one of OF_BYTES to a file. Returns where it differs now; raises Undamageable."""
    with rotting(path) as fd:
        size = os.fstat(fd).st_size
        if size == 0 and kind is not Kind.EXTENDED:
            raise Undamageable(f"{path}: empty")
        return _BYTES[kind](fd, size, draw)


def _bit(fd: int, size: int, draw: random.Random) -> Ranges:
    return _xor(fd, draw.randrange(size), bytes([1 << draw.randrange(8)]))


def _byte(fd: int, size: int, draw: random.Random) -> Ranges:
    return _xor(fd, draw.randrange(size), bytes([draw.randrange(1, 256)]))


def _xor(fd: int, at: int, mask: bytes) -> Ranges:
    old = os.pread(fd, len(mask), at)
    os.pwrite(fd, bytes(a ^ b for a, b in zip(old, mask, strict=True)), at)
    return [(at, at + len(mask))]


def _burst(fd: int, size: int, draw: random.Random) -> Ranges:
    length = min(size, draw.randint(8, PAGE_BYTES))
    at = draw.randrange(size - length + 1)
    old = os.pread(fd, length, at)
    new = draw.randbytes(length)
    os.pwrite(fd, new if new != old else bytes([old[0] ^ 1]) + old[1:], at)
    return [(at, at + length)]


def _zero_block(fd: int, size: int, draw: random.Random) -> Ranges:
    for _ in range(_TRIES):
        at = draw.randrange(-(-size // PAGE_BYTES)) * PAGE_BYTES
        length = min(PAGE_BYTES, size - at)
        if any(os.pread(fd, length, at)):
            os.pwrite(fd, bytes(length), at)
            return [(at, at + length)]
    raise Undamageable("zeros throughout")


def _zero_half(fd: int, size: int, draw: random.Random) -> Ranges:
    halves = [(0, size // 2), (size // 2, size)]
    draw.shuffle(halves)
    for start, end in halves:
        if any(os.pread(fd, end - start, start)):
            os.pwrite(fd, bytes(end - start), start)
            return [(start, end)]
    raise Undamageable("zeros throughout")


def _truncated(fd: int, size: int, draw: random.Random) -> Ranges:
    left = draw.choice([0, size - 1, draw.randrange(size), draw.randrange(size)])
    os.ftruncate(fd, left)
    return [(left, size)]


def _extended(fd: int, size: int, draw: random.Random) -> Ranges:
    length = draw.randint(1, PAGE_BYTES)
    os.pwrite(fd, draw.choice([bytes(length), draw.randbytes(length)]), size)
    return [(size, size + length)]


def _swapped(fd: int, size: int, draw: random.Random) -> Ranges:
    blocks = size // PAGE_BYTES
    for _ in range(_TRIES if blocks > 1 else 0):
        places = [number * PAGE_BYTES for number in draw.sample(range(blocks), 2)]
        first, second = (os.pread(fd, PAGE_BYTES, at) for at in places)
        if first != second:
            os.pwrite(fd, second, places[0])
            os.pwrite(fd, first, places[1])
            return [(at, at + PAGE_BYTES) for at in sorted(places)]
    raise Undamageable("no two blocks that differ")


_BYTES: dict[Kind, Callable[[int, int, random.Random], Ranges]] = {
    Kind.BIT: _bit,
    Kind.BYTE: _byte,
    Kind.BURST: _burst,
    Kind.ZERO_BLOCK: _zero_block,
    Kind.ZERO_HALF: _zero_half,
    Kind.TRUNCATED: _truncated,
    Kind.EXTENDED: _extended,
    Kind.SWAPPED: _swapped,
}


def replace_content(path: Path, content: bytes) -> Ranges:
    """Other bytes in the same inode, under the same times and record."""
    with rotting(path) as fd:
        size = os.fstat(fd).st_size
        if os.pread(fd, size, 0) == content:
            raise Undamageable(f"{path}: the same already")
        os.pwrite(fd, content, 0)
        os.ftruncate(fd, len(content))
        return [(0, max(size, len(content)))]


# --- what programs and people do -----------------------------------------------------------------


def write_into(path: Path, draw: random.Random) -> Ranges:
    """As dd with conv=notrunc: up to a tenth of the file. Raises OSError of its close."""
    size = path.stat().st_size
    length = min(size, draw.randint(16, max(PAGE_BYTES, size // 10)))
    at = draw.randrange(size - length + 1)
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, draw.randbytes(length), at)
    finally:
        os.close(fd)
    return [(at, at + length)]


def _cut(path: Path, draw: random.Random) -> Ranges:
    size = path.stat().st_size
    left = draw.choice([0, draw.randrange(size), draw.randrange(size)])
    os.truncate(path, left)
    return [(left, size)]


def _copy_part(path: Path, content: bytes, draw: random.Random) -> Ranges:
    """As a copy in place that was killed."""
    length = max(1, int(min(len(content), path.stat().st_size) * draw.uniform(0.05, 0.95)))
    with open(path, "r+b") as file:
        if file.read(length) == content[:length]:
            raise Undamageable(f"{path}: begins in the same way")
        file.seek(0)
        file.write(content[:length])
    return [(0, length)]


def archives(content: bytes) -> frozenset[bytes]:
    """The zip archives that lie in a file end to end; all of it where there are none."""
    ends = [match.end() for match in _ARCHIVE_END.finditer(content)]
    return frozenset(content[a:b] for a, b in pairwise([0, *ends, len(content)]) if a < b)


# --- records -------------------------------------------------------------------------------------


def spoil(value: bytes, draw: random.Random) -> bytes:
    """A bit, a byte or several bytes of a record changed."""
    spoilt = bytearray(value)
    how = draw.choice(["bit", "byte", "several"])
    if how == "bit":
        spoilt[draw.randrange(len(value))] ^= 1 << draw.randrange(8)
    else:
        count = 1 if how == "byte" else draw.randint(2, 16)
        for at in draw.sample(range(len(value)), min(count, len(value))):
            spoilt[at] ^= draw.randrange(1, 256)
    return bytes(spoilt)


def sidecar_of(root: Path, path: Path) -> Path:
    return root / fmt.CONTROL / fmt.SIDECAR / str(path.stat().st_ino)


def record_of(root: Path, path: Path) -> Record | None:
    """The record of a file, wherever it lies. Raises nothing."""
    value = b""
    with contextlib.suppress(OSError):
        value = sidecar_of(root, path).read_bytes()
    with contextlib.suppress(OSError):
        value = os.getxattr(path, fmt.XATTR)
    with contextlib.suppress(RecordDamaged):
        return Record.from_bytes(value)
    return None


def kept(root: Path, lineage: str) -> list[Path]:
    """The generations in history, newest first."""
    with contextlib.suppress(FileNotFoundError):
        names = os.listdir(root / fmt.CONTROL / fmt.HISTORY / lineage)
        numbers = sorted((int(name) for name in names if name.isdigit()), reverse=True)
        return [root / fmt.CONTROL / fmt.HISTORY / lineage / str(n) for n in numbers]
    return []


DONOR = "donor.bin"


def damage(root: Path, trial: Trial, older: bytes) -> Ranges:
    """Do to the trial's file below ``root`` what the trial is about; ``older`` is its content one
    version before. Returns where the file differs now. Raises Undamageable."""
    path, draw = root / trial.path, trial.draw("damage")
    if trial.kind in OF_BYTES:
        return damage_bytes(path, trial.kind, draw)
    if trial.kind is Kind.STALE:
        return replace_content(path, older)
    if trial.kind is Kind.WRITTEN:
        return write_into(path, draw)
    if trial.kind is Kind.CUT:
        return _cut(path, draw)
    if trial.kind is Kind.COPIED:
        return _copy_part(path, older, draw)
    record = record_of(root, path)
    if record is None:
        raise Undamageable(f"{trial.path}: has no record")
    if trial.kind is Kind.RECORD_DAMAGED:
        os.setxattr(path, fmt.XATTR, spoil(os.getxattr(path, fmt.XATTR), draw))
    elif trial.kind is Kind.RECORD_MISSING:
        os.removexattr(path, fmt.XATTR)
    elif trial.kind is Kind.RECORD_FOREIGN:
        donor = root / trial.directory / DONOR
        os.setxattr(path, fmt.XATTR, os.getxattr(donor, fmt.XATTR))
    elif trial.kind is Kind.SIDECAR:
        sidecar = sidecar_of(root, path)
        if not sidecar.exists():
            raise Undamageable("records have room in xattrs on this filesystem")
        replace_content(sidecar, spoil(sidecar.read_bytes(), draw))
    else:
        for generation in kept(root, record.lineage):
            damage_bytes(generation, _small_enough(draw, generation), draw)
        if trial.kind is Kind.BOTH:
            return damage_bytes(path, _small_enough(draw, path), draw)
    return []


def _small_enough(draw: random.Random, path: Path) -> Kind:
    blocks = path.stat().st_size // PAGE_BYTES
    return draw.choice([kind for kind in OF_BYTES if blocks > 2 or kind is not Kind.SWAPPED])
