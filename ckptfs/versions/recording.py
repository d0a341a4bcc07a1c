"""Records of what stands under its name: made, made anew, and taken away. Thread-safe."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from ckptfs.disk import osfs
from ckptfs.disk.digest import CHUNK_BYTES, Before, hash_range
from ckptfs.errors import RecordDamaged, Rotten
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place
from ckptfs.versions.staged import Digested, fingerprint
from ckptfs.versions.standing import (
    judge_open,
    keep_replaced,
    replaced_by,
    replacing,
    settle_history,
)
from ckptfs.versions.tickets import Ticket, ticket_after

_WRITEBACK_AHEAD_BYTES = 64 << 20


def new_record(core: Core, digested: Digested, ticket: Ticket) -> Record:
    size, mtime = digested.at
    return Record(
        digest=digested.digest,
        size_bytes=size,
        mtime_ns=mtime,
        lineage=ticket.lineage,
        generation=ticket.generation,
        committed_ns=core.fs.now_ns(),
        mode=core.mode,
        structure=digested.structure.verdict.value,
        sums=digested.sums,
    )


def record(core: Core, place: Place, lineage: str = "") -> Record:
    """Record what stands there as it is; of ``lineage`` where its record does not tell. Durable on
    return. The caller holds the path's lock."""
    core.order.require_writable()
    there = core.lineages.look(*place)
    old, replaced = there.record, replacing(core, there, place)
    if replaced is not None:  # all names of the file stay with it
        told = old.lineage if old is not None else lineage or replaced.lineage
        replaced = replace(replaced, lineage=told)
    with osfs.opened(core.fs, place.at, place.name, osfs.O_RDONLY) as fd:
        if old is not None:
            unlink_history_of(core, fd, old.lineage)
        core.fs.fsync(fd)
        digested = digest_open(core, place.path, fd, core.checksum)
        record = new_record(core, digested, ticket_after(core, replaced))
        _require_edited(core, place.path, old, record)
        core.layout.write_record(fd, record)
        core.fs.fsync(fd)
    return record


def _require_edited(core: Core, path: str, old: Record | None, new: Record) -> None:
    """Other bytes under the very time of the record have rotted: not to be made official."""
    if (
        old is not None
        and old.mtime_ns == new.mtime_ns
        and old.algorithm == new.algorithm
        and old.digest != new.digest
    ):
        raise Rotten(f"{path}: has rotted, which is no edit; `ckptfs verify --repair` first")


def bring_in(core: Core, folder: int, entry: str, place: Place) -> Record:
    """Let a file of ours that lies in ``folder`` be what stands at the place, recorded as it is;
    what it replaces is kept. Durable on return. The caller holds the path's lock."""
    core.order.require_writable()
    replaced = None
    with contextlib.suppress(FileNotFoundError):
        replaced = replaced_by(core, place)
    draft = fmt.new_txid()
    with osfs.opened(core.fs, folder, entry, osfs.O_RDONLY) as fd:
        digested = digest_open(core, place.path, fd, core.checksum)
        record = new_record(core, digested, ticket_after(core, replaced))
        core.layout.write_record(fd, record)
        core.fs.fsync(fd)
        core.fs.link(folder, entry, core.layout.stage, draft)
    keep_replaced(core, replaced, place)
    core.order.sync_changed_dirs()
    core.fs.rename(core.layout.stage, draft, place.at, place.name)
    core.order.sync_dir(place.at)
    settle_history(core, replaced, place.path)
    return record


def reseal_committed(core: Core, at: int, name: str) -> None:
    """Give a version without a writer a new record, durable on return, if a store through an
    old mapping moved its mtime. Does nothing while size and mtime are as recorded."""
    with core.order.path_lock(at, name), osfs.opened(core.fs, at, name, osfs.O_RDWR) as fd:
        try:
            record = core.layout.read_record(fd)
        except RecordDamaged:  # the open that follows sees to it
            return
        before = fingerprint(core.fs, fd)
        if record is None or before == (record.size_bytes, record.mtime_ns):
            return
        core.fs.fsync(fd)
        rerecord(core, fd, record, digest_open(core, name, fd, record.algorithm))


def rerecord(core: Core, fd: int, record: Record, digested: Digested) -> Record:
    """Record a committed file whose bytes were changed in place. Durable on return."""
    size, mtime = digested.at
    new = write_anew(
        core,
        fd,
        record,
        digest=digested.digest,
        size_bytes=size,
        mtime_ns=mtime,
        structure=digested.structure.verdict.value,
        sums=digested.sums,
        live=False,
    )
    core.fs.fsync(fd)
    return new


def rerecord_times(core: Core, fd: int, record: Record) -> Record:
    """Record a committed file whose times were set. As durable as the times themselves: a
    crash between the two leaves a file that reads as touched, with its digest intact."""
    mtime = core.fs.stat(fd).st_mtime_ns
    if mtime == record.mtime_ns:
        return record
    return write_anew(core, fd, record, mtime_ns=mtime)


def write_anew(core: Core, fd: int, record: Record, **changed: Any) -> Record:
    """Not durable. A rename may have given the file another lineage since it was recorded."""
    with core.lineages.lock:
        with contextlib.suppress(RecordDamaged):
            now = core.layout.read_record(fd) or record
            record = replace(record, lineage=now.lineage, generation=now.generation)
        new = replace(record, **changed)
        core.layout.write_record(fd, new)
    return new


def digest_open(core: Core, path: str, fd: int, algorithm: str) -> Digested:
    """What is in a file that stands under its name."""
    before = fingerprint(core.fs, fd)
    clean = cleaning(core, fd, before[0])  # from here on a store through a mapping is seen
    hasher = hash_range(core.fs, fd, (0, before[0]), algorithm, before=clean, sums=True)
    return Digested.of(before, algorithm, hasher, judge_open(core, path, fd))


def cleaning(core: Core, fd: int, size: int) -> Before:
    """Clean each chunk before it is read, with writeback of the next ones under way: handing
    the whole file to the disk first would keep the hash waiting for as long as that takes."""
    started = 0

    def clean(offset: int, length: int) -> None:
        nonlocal started
        started = max(started, offset + CHUNK_BYTES)  # a chunk is written by its own cleaning
        while started < min(size, offset + _WRITEBACK_AHEAD_BYTES):
            core.fs.start_writeback(fd, started, CHUNK_BYTES)
            started += CHUNK_BYTES
        core.fs.clean(fd, offset, length)

    return clean


def unlink_history_of(core: Core, fd: int, lineage: str) -> None:
    """The file is, or will be, changed in place: no generation is to change with it."""
    inode = core.fs.stat(fd).st_ino
    with core.lineages.lock, contextlib.suppress(FileNotFoundError):
        generations = map(str, earlier.generations(core.layout, lineage))
        with osfs.opened(core.fs, core.layout.history, lineage, osfs.DIRECTORY) as folder:
            going = [n for n in generations if core.fs.lstat(folder, n).st_ino == inode]
            for number in going:
                core.fs.unlink(folder, number)
            if going:
                core.order.sync_dir(folder)
