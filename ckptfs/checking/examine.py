"""Is a file as its record says? Nothing is changed here; any thread may call.

Damaged or modified: bytes or a size that differ from the record under the very mtime that it
names have rotted; where the mtime moved, somebody saved, edited or damaged the file behind ckptfs,
and the evidence says which (``edit_or_damage.py``). A mismatch is confirmed once by a read that
bypasses the page cache, since bad memory exists.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ckptfs.disk import osfs, sums
from ckptfs.disk.digest import ALGORITHMS, Before, digest_file
from ckptfs.disk.filesystem import FileSystem, Status
from ckptfs.errors import RecordDamaged
from ckptfs.history import earlier
from ckptfs.modes import Outside
from ckptfs.records import edit_or_damage
from ckptfs.records import format as fmt
from ckptfs.records.edit_or_damage import Evidence, Kind
from ckptfs.records.format import Record
from ckptfs.records.layout import Layout
from ckptfs.structure import Verdict

Stamp = tuple[tuple[int, int], tuple[int, int, int]]
_LOOK_AGAIN_AFTER_S = (0.02, 0.2, None)  # at what is being changed
_UNREADABLE = {errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)}


class Condition(enum.Enum):
    OK = "ok"
    UNREAD = "unread"  # record, size and time agree; the bytes were not asked for
    DAMAGED = "damaged"  # the bytes rotted under an intact record
    STALE = "stale"  # they are those of an earlier generation: a write was lost
    RECORD_DAMAGED = "record-damaged"  # the record fails its own checksum
    RECORD_MISSING = "record-missing"  # no record, though history knows the path
    BROKEN = "broken"  # as committed, but not a whole file of its format
    MODIFIED = "modified"  # saved or edited behind ckptfs: served as it is
    UNRECORDED = "unrecorded"  # was there before ckptfs, or written in place
    UNREADABLE = "unreadable"
    MISSING = "missing"  # asked for by name, or known to history
    BUSY = "busy"  # was being written all the while
    LINKED = "linked"  # has a name outside of the directory, by which it can be changed in place
    MISPLACED = "misplaced"  # a generation of another file, put there by somebody
    UNREACHABLE = "unreachable"  # a generation that no path leads to
    LEFTOVER = "leftover"  # of a crash: the next mount clears it
    STRAY = "stray"  # in ``.ckptfs``, and not of ckptfs: left alone


ROTTEN = frozenset({Condition.DAMAGED, Condition.STALE, Condition.RECORD_DAMAGED})
BAD = ROTTEN | {
    Condition.RECORD_MISSING,
    Condition.BROKEN,
    Condition.UNREADABLE,
    Condition.MISSING,
    Condition.UNREACHABLE,
    Condition.MISPLACED,
}
_SETTLED = frozenset({Condition.OK, Condition.UNREAD, Condition.BROKEN, Condition.UNRECORDED})


class Subject(enum.Enum):
    """What a finding is about."""

    FILE = "file"
    GENERATION = "generation"
    CONTROL = "control"  # something else in ``.ckptfs``


class Kept(NamedTuple):
    """A generation that history holds."""

    lineage: str
    generation: int

    @property
    def path(self) -> str:
        """Where it lies, relative to the directory."""
        return f"{fmt.CONTROL}/{fmt.HISTORY}/{self.lineage}/{self.generation}"

    @classmethod
    def named(cls, path: str) -> Kept | None:
        """Of a path that was typed, or asked for; None for those of other things."""
        steps = path.split("/")
        if steps[:2] == [fmt.CONTROL, fmt.HISTORY] and len(steps) == 4:
            lineage, name = steps[2:]
            return cls(lineage, int(name)) if earlier.is_generation(name) else None
        return None


@dataclass(frozen=True)
class Finding:
    path: str
    condition: Condition
    size_bytes: int = 0
    record: Record | None = None
    detail: str = ""
    ranges: tuple[tuple[int, int], ...] = ()  # of bytes, from and up to, that differ
    proven: bool = False  # the bytes are what a damaged record says they are
    touched: bool = False  # its time is not that of its record
    repair: str = ""  # what was done about it
    replaced: bool = False  # so that the name stands for another inode now
    kept: Kept | None = None  # the generation that it is about
    of: str = ""  # the path that this generation is of, where that is known
    control: bool = False  # it is about something else in ``.ckptfs``
    highest: int = 0  # generation there is, of a counter that is behind it

    @property
    def subject(self) -> Subject:
        if self.kept is not None:
            return Subject.GENERATION
        return Subject.CONTROL if self.control else Subject.FILE


def examine(
    layout: Layout,
    at: int,
    name: str,
    *,
    outside: Outside = Outside.JUDGE,
    called: str = "",
    direct: bool = False,
    quick: bool = False,
    before: Before | None = None,
) -> Finding:
    """Compare ``at/name`` with its record. ``outside``: what other bytes under another time are;
    ``called``: the path by whose name they are judged, where that is not ``name``.
    ``direct`` reads past the page cache, ``quick`` no bytes at all; ``before`` is called ahead of
    each chunk.

    Raises OSError where the file cannot be opened.
    """
    for wait_s in _LOOK_AGAIN_AFTER_S:
        status = layout.fs.lstat(at, name)
        if not osfs.is_regular(status):  # opening a FIFO would wait for its writer
            raise OSError(errno.EINVAL, "not a regular file")
        was = stamp(status)
        finding = _examine_once(layout, at, name, outside, called, direct, quick, before)
        if finding.condition in _SETTLED:
            return finding
        unchanged = stamp(layout.fs.lstat(at, name)) == was
        if unchanged and not _is_being_extended(layout, was[0][1]):
            return finding
        if wait_s is not None:
            time.sleep(wait_s)
    return Finding(name, Condition.BUSY, finding.size_bytes, detail="written while it was read")


def examine_at(layout: Layout, path: str, at: int, name: str, **how: Any) -> Finding:
    """Examine ``at/name``, which is ``path``; errors become findings."""
    try:
        return replace(examine(layout, at, name, **how), path=path)
    except FileNotFoundError:
        return Finding(path, Condition.MISSING, detail="no such file")
    except OSError as error:
        return Finding(path, Condition.UNREADABLE, detail=error.strerror or str(error))


def _examine_once(
    layout: Layout,
    at: int,
    name: str,
    outside: Outside,
    called: str,
    direct: bool,
    quick: bool,
    before: Before | None,
) -> Finding:
    fs = layout.fs
    with osfs.opened(fs, at, name, osfs.O_RDONLY) as fd:
        status = fs.stat(fd)
        size = status.st_size
        try:
            record = layout.read_record(fd)
            if record is not None and record.algorithm not in ALGORITHMS:
                raise RecordDamaged(f"record names an unknown checksum {record.algorithm!r}")
        except RecordDamaged as error:
            proven = not quick and _is_what_it_says(layout, fd, size)
            detail = f"{error}; the bytes are those it names" if proven else str(error)
            return Finding(name, Condition.RECORD_DAMAGED, size, None, detail, proven=proven)
        if record is None:
            return Finding(name, Condition.UNRECORDED, size)
        touched = status.st_mtime_ns != record.mtime_ns
        if quick and touched:
            return _modified(name, size, record)
        if quick and size == record.size_bytes:
            return Finding(name, Condition.UNREAD, size, record)
        found, trouble = _digest(fs, at, name, fd, record, size, direct, before)
        if found == record.digest and size == record.size_bytes:
            broken = record.structure == Verdict.BROKEN.value
            return Finding(name, Condition.BROKEN if broken else Condition.OK, size, record)
        if fs.stat(fd).st_mtime_ns != status.st_mtime_ns:
            return _modified(name, size, record)
        if touched and not trouble:
            told = _judged(layout, fd, called or name, size, record, found, outside)
            if told.kind is not Kind.DAMAGED:
                return _modified(name, size, record, told.kind.value)
            trouble = told.reason
        damaged = Finding(name, Condition.DAMAGED, size, record, trouble, touched=touched)
        return _damage(layout, fd, damaged, found)


def _modified(
    name: str, size: int, record: Record, detail: str = "changed outside ckptfs"
) -> Finding:
    return Finding(name, Condition.MODIFIED, size, record, detail, touched=True)


def _judged(
    layout: Layout,
    fd: int,
    path: str,
    size: int,
    record: Record,
    digest: str,
    outside: Outside,
) -> Evidence:
    """What other bytes under another time are. Raises OSError."""
    if outside is Outside.ACCEPT:
        return Evidence(Kind.EDITED)
    if outside is Outside.REFUSE and not record.live:
        return Evidence(Kind.DAMAGED, "changed outside ckptfs")
    if _kept_as(layout, record, digest) is not None:
        return Evidence(Kind.SAVED)  # somebody has brought it back himself

    def read(offset: int, length: int) -> bytes:
        return layout.fs.read(fd, length, offset)

    def differing() -> list[tuple[int, int]] | None:
        with contextlib.suppress(ValueError, struct.error):  # any owner can write records
            return sums.differing(layout.fs, fd, size, record.size_bytes, record.sums)
        return None

    return edit_or_damage.judge(path, size, read, record, differing)


def _kept_as(layout: Layout, record: Record, digest: str) -> int | None:
    """The generation in history that has these bytes."""
    for generation in earlier.generations(layout, record.lineage):
        found = earlier.record_of(layout, record.lineage, generation)
        if found is not None and found.digest == digest:
            return found.generation
    return None


def _digest(
    fs: FileSystem,
    at: int,
    name: str,
    fd: int,
    record: Record,
    size: int,
    direct: bool,
    before: Before | None,
) -> tuple[str, str]:
    """The digest of the file, read again from the disk if it is not as recorded; and what kept it
    from being read."""
    found = trouble = ""
    for past_cache in (direct, True):
        if found == record.digest:
            break
        try:
            with _opened_again(fs, at, name, fd, past_cache) as again:
                found = digest_file(fs, again, size, record.algorithm, before)
        except OSError as error:
            if error.errno in _UNREADABLE:
                trouble = f"cannot be read: {error.strerror}"
            elif not past_cache:
                raise
    return found, trouble


@contextlib.contextmanager
def _opened_again(fs: FileSystem, at: int, name: str, fd: int, past_cache: bool) -> Iterator[int]:
    if not past_cache:
        yield fd
        return
    direct = fs.open_direct(at, name)
    try:
        yield direct
    finally:
        fs.close(direct)


def _damage(layout: Layout, fd: int, finding: Finding, digest: str) -> Finding:
    """What is known of a damage: where it is, and whether the bytes are those of another time."""
    record, size = finding.record, finding.size_bytes
    assert record is not None
    generation = _kept_as(layout, record, digest)
    if generation is not None:
        detail = f"the bytes are those of generation {generation}"
        return replace(finding, condition=Condition.STALE, detail=detail)
    ranges: list[tuple[int, int]] = []
    with contextlib.suppress(OSError, ValueError, struct.error):  # any owner can write records
        ranges = sums.differing(layout.fs, fd, size, record.size_bytes, record.sums)
    detail = finding.detail or "digest does not match the record"
    if size != record.size_bytes and not finding.detail:
        detail = f"{size} bytes, where {record.size_bytes} are recorded"
    if ranges:
        detail += f"; {_told(ranges)} of {record.size_bytes}"
    return replace(finding, detail=detail, ranges=tuple(ranges))


def _told(ranges: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"{start}-{end - 1}" for start, end in ranges[:4])
    more = f" and {len(ranges) - 4} more ranges" if len(ranges) > 4 else ""
    return f"bytes {shown}{more}"


def _is_what_it_says(layout: Layout, fd: int, size: int) -> bool:
    """Whether a damaged record still names the digest of these very bytes."""
    value = layout.raw_record(fd) or b""
    with contextlib.suppress(OSError):
        return any(
            fmt.names_digest(value, digest_file(layout.fs, fd, size, algorithm))
            for algorithm in ALGORITHMS
        )
    return False


def _is_being_extended(layout: Layout, inode: int) -> bool:
    """Whether a commit is adding to the file at this moment, by the intent it has in stage."""
    for name in layout.fs.listdir(layout.stage):
        if name.endswith(fmt.GROWS):
            with contextlib.suppress(FileNotFoundError):
                if layout.fs.lstat(layout.stage, name).st_ino == inode:
                    return True
    return False


def stamp(status: Status) -> Stamp:
    """Identity and state of a version: ctime moves with every change that anybody can make."""
    return (status.st_dev, status.st_ino), (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
