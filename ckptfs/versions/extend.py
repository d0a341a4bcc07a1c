"""Going on with a committed version that was only added to: what is new is copied behind the
committed file itself.

    link it into stage; fsync(stage)        the intent, found at recovery without a search; its
                                            name has the generation that is extended
    copy; fsync(data)                       the record still speaks of the old size
    record; fsync                           <- the commit point
    unlink the link

Before the commit point recovery cuts the file back to its recorded size, after it there is nothing
to do. The caller holds the path's lock and keeps readers away meanwhile: the inode is the one that
the old version has. Thread-safe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from ckptfs.disk import osfs
from ckptfs.disk.digest import CHUNK_BYTES, digest_file
from ckptfs.disk.filesystem import FileSystem
from ckptfs.errors import RecordDamaged
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.records.layout import Layout
from ckptfs.versions.core import Core
from ckptfs.versions.life import Step
from ckptfs.versions.order import Place
from ckptfs.versions.staged import Fingerprint, Inode, Staged, fingerprint

# Whether nobody else has the committed inode open, or gets it before the block ends.
Alone = Callable[[Inode], contextlib.AbstractContextManager[bool]]


def nobody_else(inode: Inode) -> contextlib.AbstractContextManager[bool]:
    return contextlib.nullcontext(True)


def can_extend(layout: Layout, staged: Staged, place: Place) -> bool:
    """Whether the version is the committed one with less added than there was. Who adds more
    has the base copied into the hole: nothing is written twice but the shorter part."""
    base = staged.base
    if base is None or base.filled or not base.intact or layout.has_sidecar(base.fd):
        return False
    try:
        status = layout.fs.lstat(place.at, place.name)
    except FileNotFoundError:
        return False
    return (
        (status.st_dev, status.st_ino) == base.inode
        and (status.st_size, status.st_mtime_ns) == base.fingerprint
        and status.st_nlink == 1  # history or the user may hold another name of this inode
        and layout.fs.stat(staged.fd).st_size <= 2 * base.size
    )


def extend(
    core: Core, staged: Staged, place: Place, record_of: Callable[[Fingerprint], Record]
) -> Record:
    """Add to the committed file what the version has added; both are one file on return, and
    durable. Raises what failed, with the old version in place, or its inode in ``torn``."""
    base, layout, fs = staged.base, core.layout, core.fs
    assert base is not None
    with osfs.opened(fs, place.at, place.name, osfs.O_RDWR) as fd:
        intent = f"{staged.txid}-{base.record.generation}{fmt.GROWS}"
        fs.link(place.at, place.name, layout.stage, intent)
        try:
            fs.fsync_dir(layout.stage)
            fs.step(Step.INTENDED)
            fs.copy(staged.fd, fd, base.size, fs.stat(staged.fd).st_size)
            fs.fsync(fd)
            fs.step(Step.ADDED)
            record = record_of(fingerprint(fs, fd))
            layout.write_record(fd, record)
            fs.step(Step.RECORDED)
            fs.fsync(fd)
            fs.step(Step.EXTENDED)
        except BaseException:
            _back(core, fd, base.record, base.inode, intent)
            raise
        with contextlib.suppress(OSError):  # recovery does it
            fs.unlink(layout.stage, intent)
            fs.unlink(layout.stage, staged.txid)
        fs.redirect(staged.fd, fd)
        staged.sealed = record.size_bytes, record.mtime_ns
        staged.base = None
    return record


def _back(core: Core, fd: int, record: Record, inode: Inode, intent: str) -> None:
    """Back to the old version. Its record is durable before the file is cut: one of a longer
    version would outlive the bytes."""
    layout, fs = core.layout, core.fs
    try:
        if fingerprint(fs, fd) != (record.size_bytes, record.mtime_ns):
            layout.write_record(fd, record)
            fs.fsync(fd)
            cut_back(layout, fd, record)
    except OSError:
        core.order.torn.add(inode)
        return
    with contextlib.suppress(OSError):
        fs.unlink(layout.stage, intent)
        fs.fsync_dir(layout.stage)  # the record is that of the intent, as it was


def cut_back(layout: Layout, fd: int, record: Record) -> None:
    """Cut a file that was being extended back to its recorded size. Durable on return."""
    fs = layout.fs
    if fs.stat(fd).st_size > record.size_bytes:
        fs.truncate(fd, record.size_bytes)
    mtime = fs.stat(fd).st_mtime_ns
    if mtime != record.mtime_ns:
        layout.write_record(fd, replace(record, mtime_ns=mtime))
    fs.fsync(fd)


def recover(layout: Layout, name: str) -> str | None:
    """What a crash left of an extension; ``name`` is its intent, in stage. What the file has behind
    its recorded end is cut off, and goes to salvage where the version that was being added does not
    hold it: somebody may have added to the file since. Returns that entry of salvage. Durable."""
    fs, kept = layout.fs, None
    staged, _, generation = name.removesuffix(fmt.GROWS).partition("-")
    with (
        osfs.opened(fs, layout.stage, name, osfs.O_RDWR) as fd,
        contextlib.suppress(RecordDamaged),  # then nothing says how long it was
    ):
        record = layout.read_record(fd)
        # Of a later generation it is over, but for the name of the intent.
        if record is not None and str(record.generation) == generation:
            if fs.stat(fd).st_size > record.size_bytes:
                if not _holds(layout, staged, fd, record.size_bytes):
                    kept = _put_added_aside(layout, fd, record.size_bytes)
                cut_back(layout, fd, record)
            elif _has_digest(fs, fd, record):  # it was cut back, but for the time in its record
                cut_back(layout, fd, record)
    layout.fs.unlink(layout.stage, name)
    layout.fs.fsync_dir(layout.stage)
    return kept


def _holds(layout: Layout, staged: str, fd: int, start: int) -> bool:
    """Whether the staged version begins, from ``start`` on, with what the file has there."""
    fs, size = layout.fs, layout.fs.stat(fd).st_size
    try:
        with osfs.opened(fs, layout.stage, staged, osfs.O_RDONLY) as other:
            return all(
                fs.read(fd, CHUNK_BYTES, at) == fs.read(other, min(CHUNK_BYTES, size - at), at)
                for at in range(start, size, CHUNK_BYTES)
            )
    except FileNotFoundError:
        return False


def _put_added_aside(layout: Layout, fd: int, start: int) -> str:
    draft = fmt.new_txid()
    make = osfs.O_RDWR | osfs.O_CREAT | osfs.O_EXCL
    with osfs.opened(layout.fs, layout.stage, draft, make) as added:
        layout.fs.copy(fd, added, start, layout.fs.stat(fd).st_size)
    story: dict[str, object] = {
        "reason": "behind the end of a file that was being added to",
        "bytes_missing_at_start": start,
    }
    return layout.aside.put(layout.stage, draft, layout.salvage, story)


def _has_digest(fs: FileSystem, fd: int, record: Record) -> bool:
    whole = fs.stat(fd).st_size == record.size_bytes
    return whole and digest_file(fs, fd, record.size_bytes, record.algorithm) == record.digest
