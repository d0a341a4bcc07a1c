"""Going on with a committed version: an open for writing that does not truncate it.

The staged file shares the blocks of its base where the filesystem can (XFS, btrfs). Elsewhere
(ext4) it has a hole there, filled once something below the end of the base is changed. Where the
file has only grown, its commit copies what was added behind the committed file itself:

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
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from ckptfs.disk import osfs
from ckptfs.disk.digest import CHUNK_BYTES, Before, Hasher, digest_file, hash_range
from ckptfs.disk.filesystem import FileSystem
from ckptfs.errors import RecordDamaged, Rotten
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.records.layout import Layout
from ckptfs.structure import Verdict
from ckptfs.versions.life import Step
from ckptfs.versions.staged import Base, Fingerprint, Inode, Staged

COPIED_AT_ONCE_BYTES = 1 << 20  # a short file is copied when it is opened, a rename commits it
_STATES_REMEMBERED = 1024  # about 4 KB each

# Whether nobody else has the committed inode open, or gets it before the block ends.
Alone = Callable[[Inode], contextlib.AbstractContextManager[bool]]


def nobody_else(inode: Inode) -> contextlib.AbstractContextManager[bool]:
    return contextlib.nullcontext(True)


class Growth:
    def __init__(self, layout: Layout) -> None:
        self.layout, self.fs = layout, layout.fs
        self.copied_at_once_bytes = COPIED_AT_ONCE_BYTES
        self.torn: set[Inode] = set()  # longer than recorded, and could not be cut back
        self._states: OrderedDict[Inode, tuple[Fingerprint, str, Hasher]] = OrderedDict()
        self._guard = threading.Lock()

    def fingerprint(self, fd: int) -> Fingerprint:
        status = self.fs.stat(fd)
        return status.st_size, status.st_mtime_ns

    # --- the staged file -------------------------------------------------------------------------

    def start(self, staged: Staged, at: int, name: str, *, lazily: bool) -> None:
        """Let ``staged`` go on from the verified version at ``at/name``. ``lazily``: it may be
        left with a hole, for callers that know of :class:`Base`."""
        with contextlib.ExitStack() as on_error:
            fd = self.fs.open(at, name, osfs.O_RDONLY)
            on_error.callback(self.fs.close, fd)
            record = self._record(fd)
            base = self._base(fd, record)
            try:
                self.fs.clone(fd, staged.fd)
                shared = True
            except OSError:
                shared = False
            if lazily and base is not None and base[2].size_bytes > self.copied_at_once_bytes:
                on_error.pop_all()
                staged.base = Base(self.fs, fd, *base)
                staged.base.filled = shared
                if not shared:
                    self.fs.truncate(staged.fd, staged.base.size)
                    self._note(staged, staged.base.size)
            elif not shared:
                self.fs.copy(fd, staged.fd, 0, self.fs.stat(fd).st_size)
            self.fs.copy_times(fd, staged.fd)
            staged.continues = Verdict(record.structure) if record else None
        staged.as_opened = self.fingerprint(staged.fd)

    def _record(self, fd: int) -> Record | None:
        with contextlib.suppress(RecordDamaged):
            return self.layout.read_record(fd)
        return None

    def _base(self, fd: int, record: Record | None) -> tuple[Inode, Fingerprint, Record] | None:
        """None where the bytes are not known to be those of the record: somebody may be storing
        to them through a mapping, without a trace."""
        at = self.fingerprint(fd)
        if record is None or record.live or at != (record.size_bytes, record.mtime_ns):
            return None
        return self._inode(fd), at, record

    def _inode(self, fd: int) -> Inode:
        status = self.fs.stat(fd)
        return status.st_dev, status.st_ino

    def change(self, staged: Staged, offset: int) -> None:
        """Ahead of every write or cut at ``offset``. The caller holds ``staged.lock``."""
        base = staged.base
        if base is not None and offset < base.size:
            self.fill(staged)
            base.intact = False

    def fill(self, staged: Staged) -> None:
        """Copy the bytes of the base into the hole; does nothing where there is none."""
        base = staged.base
        if base is None or base.filled:
            return
        untouched = self.fingerprint(staged.fd) == staged.as_opened
        self.fs.copy(base.fd, staged.fd, 0, base.size)
        if untouched:
            self.fs.copy_times(base.fd, staged.fd)
        base.intact = base.intact and self.fingerprint(base.fd) == base.fingerprint
        base.filled = True
        self._note(staged, 0)

    def _note(self, staged: Staged, missing_bytes: int) -> None:
        """For who finds the version in salvage after a crash."""
        with contextlib.suppress(OSError):
            note = fmt.staged_note(staged.path, missing_bytes)
            self.fs.setxattr(staged.fd, fmt.XATTR, note)

    def read(self, staged: Staged, size: int, offset: int) -> bytes:
        if staged.base is None:
            return self.fs.read(staged.fd, size, offset)
        return staged.base.read(staged.fd, size, offset)

    # --- its digest ------------------------------------------------------------------------------

    def hash(self, staged: Staged, size: int, algorithm: str, clean: Before | None) -> Hasher:
        """Of the whole version; of an intact base only what came after it is read."""
        base = staged.base
        if base is None or not base.intact:
            return hash_range(self.fs, staged.fd, (0, size), algorithm, before=clean, sums=True)
        state = self._state(base, algorithm)
        added = base.size, size
        return hash_range(self.fs, staged.fd, added, algorithm, after=state, before=clean)

    def _state(self, base: Base, algorithm: str) -> Hasher:
        with self._guard:
            at, of, state = self._states.get(base.inode, (None, "", None))
        if state is not None and (at, of) == (base.fingerprint, algorithm):
            return state
        state = hash_range(self.fs, base.fd, (0, base.size), algorithm, sums=True)
        # Else rot since the open would get a digest of its own.
        if base.record.algorithm == algorithm and not base.record.digest.endswith(
            f":{state.hexdigest()}"
        ):
            raise Rotten("the version that was gone on with has rotted meanwhile")
        return state

    def remember(self, staged: Staged, algorithm: str) -> None:
        """The version is committed as it was digested: who goes on with it goes on hashing."""
        if staged.hasher is None or staged.sealed is None:
            return
        with contextlib.suppress(OSError), self._guard:
            inode = self._inode(staged.fd)
            self._states[inode] = staged.sealed, algorithm, staged.hasher
            self._states.move_to_end(inode)
            if len(self._states) > _STATES_REMEMBERED:
                self._states.popitem(last=False)

    # --- its commit in place ---------------------------------------------------------------------

    def in_place(self, staged: Staged, at: int, name: str) -> bool:
        """Whether the version is the committed one with less added than there was. Who adds more
        has the base copied into the hole: nothing is written twice but the shorter part."""
        base = staged.base
        if base is None or base.filled or not base.intact or self.layout.has_sidecar(base.fd):
            return False
        try:
            status = self.fs.lstat(at, name)
        except FileNotFoundError:
            return False
        return (
            (status.st_dev, status.st_ino) == base.inode
            and (status.st_size, status.st_mtime_ns) == base.fingerprint
            and status.st_nlink == 1  # history or the user may hold another name of this inode
            and self.fs.stat(staged.fd).st_size <= 2 * base.size
        )

    def extend(
        self, staged: Staged, at: int, name: str, record_of: Callable[[Fingerprint], Record]
    ) -> Record:
        """Add to the committed file what the version has added; both are one file on return, and
        durable. Raises what failed, with the old version in place, or its inode in ``torn``."""
        base = staged.base
        assert base is not None
        with osfs.opened(self.fs, at, name, osfs.O_RDWR) as fd:
            intent = f"{staged.txid}-{base.record.generation}{fmt.GROWS}"
            self.fs.link(at, name, self.layout.stage, intent)
            try:
                self.fs.fsync_dir(self.layout.stage)
                self.fs.step(Step.INTENDED)
                self.fs.copy(staged.fd, fd, base.size, self.fs.stat(staged.fd).st_size)
                self.fs.fsync(fd)
                self.fs.step(Step.ADDED)
                record = record_of(self.fingerprint(fd))
                self.layout.write_record(fd, record)
                self.fs.step(Step.RECORDED)
                self.fs.fsync(fd)
                self.fs.step(Step.EXTENDED)
            except BaseException:
                self._back(fd, base.record, base.inode, intent)
                raise
            with contextlib.suppress(OSError):  # recovery does it
                self.fs.unlink(self.layout.stage, intent)
                self.fs.unlink(self.layout.stage, staged.txid)
            self.fs.redirect(staged.fd, fd)
            staged.sealed = record.size_bytes, record.mtime_ns
            staged.base = None
        return record

    def _back(self, fd: int, record: Record, inode: Inode, intent: str) -> None:
        """Back to the old version. Its record is durable before the file is cut: one of a longer
        version would outlive the bytes."""
        try:
            if self.fingerprint(fd) != (record.size_bytes, record.mtime_ns):
                self.layout.write_record(fd, record)
                self.fs.fsync(fd)
                cut_back(self.layout, fd, record)
        except OSError:
            self.torn.add(inode)
            return
        with contextlib.suppress(OSError):
            self.fs.unlink(self.layout.stage, intent)
            self.fs.fsync_dir(self.layout.stage)  # the record is that of the intent, as it was


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
    return layout.put_aside(layout.stage, draft, layout.salvage, story)


def _has_digest(fs: FileSystem, fd: int, record: Record) -> bool:
    whole = fs.stat(fd).st_size == record.size_bytes
    return whole and digest_file(fs, fd, record.size_bytes, record.algorithm) == record.digest
