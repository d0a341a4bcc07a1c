"""Shadow staging and the commit steps, one method per step.

    stage -> seal -> keep -> publish -> settle

Promises (DESIGN C1, C2): a path holds one whole committed version at every instant, across crashes
too; ``commit`` returning means settled, as durable as the mode says; ``commit`` raising means the
old version stays and the new bytes lie in salvage.

Threading: any number of commits run at once. Digests run unlocked; from seal to settle the target
path is locked, so that history and publish agree on what is replaced. A failed fsync is final for
its version (the next one would return 0 over lost data, seen on ext4, XFS and btrfs); a failed
directory fsync makes the whole store read-only, since what is on disk is then unknown.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ckptfs import format as fmt
from ckptfs import history, osfs, structure
from ckptfs.digest import CHUNK_BYTES, Before, digest_file
from ckptfs.errors import BrokenStructure, CkptfsError, RecordDamaged, StoreReadOnly
from ckptfs.format import Record
from ckptfs.layout import Layout
from ckptfs.protocol import VISIBLE, Event, Mode, State, advance
from ckptfs.structure import Structure, Verdict

Fingerprint = tuple[int, int]  # size in bytes, mtime in ns: moves with every write the kernel sees
_SEAL_ATTEMPTS = 2
_WRITEBACK_AHEAD_BYTES = 64 << 20


@dataclass
class Staged:
    """One version on its way. ``fd`` is open for reading and writing until ``close``."""

    txid: str
    fd: int
    path: str  # for messages and salvage, not for resolving
    as_opened: Fingerprint
    state: State = State.OPEN
    sealed: Fingerprint | None = None
    record: Record | None = None
    digested: tuple[Fingerprint, str, Structure] | None = None
    # the first error that background writeback saw; final, as an fsync's would be
    writeback_error: OSError | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def advance(self, event: Event) -> None:
        self.state = advance(self.state, event)


@dataclass(frozen=True)
class Replaced:
    """The version that a commit replaces."""

    record: Record | None
    lineage: str
    verdict: Verdict


class Committer:
    """The commit protocol over one store."""

    def __init__(
        self, layout: Layout, mode: Mode, checksum: str, keep: int, validate: bool
    ) -> None:
        self.layout, self.fs = layout, layout.fs
        self.mode, self.checksum, self.keep, self.validate = mode, checksum, keep, validate
        self.poisoned: str | None = None
        self._paths = _KeyedLocks()
        self._dirty: dict[tuple[int, int], int] = {}
        self._dirty_lock = threading.Lock()
        self._dir_syncs = threading.Lock()

    # --- stage ---------------------------------------------------------------------------------

    def stage(self, path: str) -> Staged:
        """Start an empty version in the shadow tree. Nothing is durable on return."""
        self.require_writable()
        txid = fmt.new_txid()
        flags = osfs.O_RDWR | osfs.O_CREAT | osfs.O_EXCL
        fd = self.fs.open(self.layout.stage, txid, flags)
        with contextlib.suppress(OSError):  # only helps salvage to name the bytes
            self.fs.setxattr(fd, fmt.XATTR, fmt.staged_note(path))
        try:
            return Staged(txid, fd, path, self.fingerprint(fd))
        except OSError:
            self.fs.close(fd)
            raise

    def inherit(self, staged: Staged, at: int, name: str) -> None:
        """Take owner, mode, ACL, label and xattrs of the version at ``at/name``."""
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as current:
            self.fs.copy_metadata(current, staged.fd, skip=fmt.XATTR)

    def copy_content(self, staged: Staged, source: int) -> None:
        """Start from the bytes of ``source``, sharing its blocks where the filesystem can."""
        self.fs.copy(source, staged.fd, self.fs.stat(source).st_size)
        staged.as_opened = self.fingerprint(staged.fd)

    def fingerprint(self, fd: int) -> Fingerprint:
        status = self.fs.stat(fd)
        return status.st_size, status.st_mtime_ns

    def changed(self, staged: Staged) -> bool:
        """Whether it was written since its seal or, before that, since it was opened."""
        return self.fingerprint(staged.fd) != (staged.sealed or staged.as_opened)

    # --- commit --------------------------------------------------------------------------------

    def commit(self, staged: Staged, at: int, name: str) -> Record:
        """Seal, keep, publish, settle. Durable on return as the mode says.

        Raises what failed; the version is then in salvage and the old one in place, unless the
        failure came after publish (a directory fsync), which makes the store read-only.
        """
        with staged.lock:
            try:
                self.require_writable()
                staged.advance(Event.SEAL)
                self.digest(staged)
                with self.path_lock(at, name):
                    replaced = self.replaced_by(at, name)
                    record = self.seal(staged, replaced)
                    self.keep_replaced(replaced, at, name)
                    self.publish(staged, at, name)
                    self.settle(staged, at)
                    self.prune(replaced)
            except BaseException as error:
                if staged.state not in VISIBLE and staged.state is not State.ABORTED:
                    self.abort(staged, str(error) or type(error).__name__)
                raise
        return record

    def digest(self, staged: Staged) -> None:
        """Clean the pages, digest them and judge the structure.

        The pages are cleaned first because a store through mmap to a dirty page moves no mtime;
        to a clean one it does, and the seal sees it. ``clean`` waits for the data chunk by chunk,
        so hashing overlaps the writeback; the fsync that makes it durable comes with the record.
        """
        if staged.writeback_error is not None:
            raise staged.writeback_error
        before = self.fingerprint(staged.fd)
        size = before[0]
        value = digest_file(
            self.fs, staged.fd, size, self.checksum, self._cleaning(staged.fd, size)
        )
        staged.digested = before, value, self.judge(staged.path, staged.fd, size)

    def _cleaning(self, fd: int, size: int) -> Before:
        """Clean each chunk before it is read, with writeback of the next ones under way: handing
        the whole file to the disk first would keep the hash waiting for as long as that takes."""
        started = CHUNK_BYTES  # the first chunk is written by its own cleaning

        def clean(offset: int, length: int) -> None:
            nonlocal started
            while started < min(size, offset + _WRITEBACK_AHEAD_BYTES):
                self.fs.start_writeback(fd, started, CHUNK_BYTES)
                started += CHUNK_BYTES
            self.fs.clean(fd, offset, length)

        return clean

    def judge(self, path: str, fd: int, size: int) -> Structure:
        if not self.validate:
            return Structure(Verdict.UNKNOWN, "")
        name = path.rpartition("/")[2]
        return structure.check(name, size, lambda offset, n: self.fs.read(fd, n, offset))

    def replaced_by(self, at: int, name: str) -> Replaced | None:
        """What stands at the target. A damaged record counts as none: the bytes are kept."""
        if not self._is_file(at, name):
            return None
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            status = self.fs.stat(fd)
            try:
                record = self.layout.read_record(fd)
            except RecordDamaged:
                record = None
            if record is None:
                verdict = self.judge(name, fd, status.st_size).verdict
                return Replaced(None, fmt.new_lineage(), verdict)
            # The lineage stays with the other hard link: histories of two paths must not mix.
            shared = self._has_other_name(status, record)
            lineage = fmt.new_lineage() if shared else record.lineage
            return Replaced(record, lineage, Verdict(record.structure))

    def _is_file(self, at: int, name: str) -> bool:
        """Symlinks cannot be opened here, and opening a FIFO would wait for its writer."""
        try:
            return osfs.is_regular(self.fs.lstat(at, name))
        except FileNotFoundError:
            return False

    def _has_other_name(self, status: osfs.Status, record: Record) -> bool:
        """Whether a hard link other than the one that history may hold carries this version."""
        others = status.st_nlink - 1
        return others > 0 and others > self._links_in_history(status.st_ino, record)

    def _links_in_history(self, inode: int, record: Record) -> int:
        with (
            contextlib.suppress(FileNotFoundError),
            osfs.opened(self.fs, self.layout.history, record.lineage, osfs.DIRECTORY) as folder,
        ):
            return int(self.fs.lstat(folder, str(record.generation)).st_ino == inode)
        return 0

    def seal(self, staged: Staged, replaced: Replaced | None) -> Record:
        """Give the version its record and make both durable. Raises BrokenStructure."""
        for _ in range(_SEAL_ATTEMPTS):
            if staged.digested is None:
                self.digest(staged)
            assert staged.digested is not None
            before, value, judged = staged.digested
            if judged.verdict is Verdict.BROKEN and replaced is not None:
                self._refuse_broken(staged, judged, replaced)
            record = Record(
                digest=value,
                size_bytes=before[0],
                mtime_ns=before[1],
                lineage=replaced.lineage if replaced else fmt.new_lineage(),
                generation=self.layout.next_generation(),
                committed_ns=self.fs.now_ns(),
                mode=self.mode,
                structure=judged.verdict.value,
            )
            self.layout.write_record(staged.fd, record)
            self.fs.fsync(staged.fd)
            staged.sealed, staged.record = before, record
            if self.fingerprint(staged.fd) == before:
                break
            staged.digested = None  # written meanwhile: once more; after that it is live
        staged.advance(Event.SEALED)
        return record

    def _refuse_broken(self, staged: Staged, judged: Structure, replaced: Replaced) -> None:
        if replaced.verdict is Verdict.SOUND:
            raise BrokenStructure(
                f"{staged.path}: the new version is not whole ({judged.reason}); "
                "the sound one stays, the new bytes are in salvage"
            )

    def keep_replaced(self, replaced: Replaced | None, at: int, name: str) -> None:
        """Link the replaced version into history; the link is durable on return."""
        if replaced is None or self.keep == 0:
            return
        generation = replaced.record.generation if replaced.record else 0
        folder, made = history.link(self.layout, at, name, replaced.lineage, generation)
        try:
            self.sync_dir(folder)
            if made:
                self.sync_dir(self.layout.history)
        finally:
            self.fs.close(folder)

    def publish(self, staged: Staged, at: int, name: str) -> None:
        """The rename: the commit point. Directories changed before it are durable first."""
        self.sync_changed_dirs()
        self.fs.rename(self.layout.stage, staged.txid, at, name)
        staged.advance(Event.PUBLISH)

    def settle(self, staged: Staged, at: int) -> None:
        """Make the name durable."""
        self.sync_dir(at)
        staged.advance(Event.SETTLE)

    def prune(self, replaced: Replaced | None) -> None:
        """Once the new version is settled, let go of generations past the retention."""
        if replaced is not None:  # else the lineage begins here
            with contextlib.suppress(OSError):  # the next commit prunes again
                history.prune(self.layout, replaced.lineage, self.keep)

    def reseal(self, staged: Staged) -> None:
        """A live version changed after its publish: give it a new record, durable on return."""
        with staged.lock:
            if staged.state is not State.SETTLED or not self.changed(staged):
                return
            assert staged.record is not None
            staged.digested = None
            try:
                self.digest(staged)
                assert staged.digested is not None
                # The bytes first: a record that a power cut kept without them would call them rot.
                self.fs.fsync(staged.fd)
                staged.record = self.rerecord(staged.fd, staged.record, staged.digested)
            except OSError as error:
                staged.writeback_error = error
                raise
            staged.advance(Event.RESEAL)
            staged.sealed = staged.digested[0]

    def reseal_committed(self, at: int, name: str) -> None:
        """The same for a version without a writer: a store through an old mapping moves the
        mtime. Does nothing while size and mtime are as recorded."""
        with self.path_lock(at, name), osfs.opened(self.fs, at, name, osfs.O_RDWR) as fd:
            record = self.layout.read_record(fd)
            before = self.fingerprint(fd)
            if record is None or before == (record.size_bytes, record.mtime_ns):
                return
            self.fs.fsync(fd)
            value = digest_file(self.fs, fd, before[0], record.algorithm)
            self.rerecord(fd, record, (before, value, self.judge(name, fd, before[0])))

    def rerecord(
        self, fd: int, record: Record, digested: tuple[Fingerprint, str, Structure]
    ) -> Record:
        """Record a committed file whose bytes were changed in place. Durable on return."""
        (size, mtime), digest, judged = digested
        new = replace(
            record,
            digest=digest,
            size_bytes=size,
            mtime_ns=mtime,
            structure=judged.verdict.value,
        )
        self.layout.write_record(fd, new)
        self.fs.fsync(fd)
        return new

    def rerecord_times(self, fd: int, record: Record) -> Record:
        """Record a committed file whose times were set. As durable as the times themselves: a
        crash between the two leaves a file that reads as touched, with its digest intact."""
        mtime = self.fs.stat(fd).st_mtime_ns
        if mtime == record.mtime_ns:
            return record
        new = replace(record, mtime_ns=mtime)
        self.layout.write_record(fd, new)
        return new

    # --- the other end ---------------------------------------------------------------------------

    def abort(self, staged: Staged, reason: str) -> str | None:
        """Never publish this version: its bytes go to salvage, whose entry is returned."""
        with staged.lock:
            staged.advance(Event.ABORT)
            if self.fs.stat(staged.fd).st_size == 0:
                self._remove(staged)
                return None
            story: dict[str, object] = {"path": staged.path, "reason": reason}
            with contextlib.suppress(OSError):  # recovery at the next mount does it
                return self.layout.put_aside(
                    self.layout.stage, staged.txid, self.layout.salvage, story
                )
            return None

    def discard(self, staged: Staged) -> None:
        """Drop a version that its own user deleted, or that never changed."""
        with staged.lock:
            staged.advance(Event.ABORT)
            self._remove(staged)

    def _remove(self, staged: Staged) -> None:
        with contextlib.suppress(OSError):
            self.fs.unlink(self.layout.stage, staged.txid)

    # --- directories ---------------------------------------------------------------------------

    def note_changed_dir(self, at: int) -> None:
        """A name was made in or removed from ``at``: durable before the next publish."""
        if not self.mode.syncs_directories:
            return
        try:
            status = self.fs.stat(at)
            key = (status.st_dev, status.st_ino)
            with self._dirty_lock:
                if key not in self._dirty:
                    self._dirty[key] = self.fs.open(at, ".", osfs.DIRECTORY)
        except OSError:  # no descriptor left to keep it by; the change is made, so do not fail it
            self.sync_dir(at)

    def sync_changed_dirs(self) -> None:
        """btrfs may persist directory B before A, so order needs an fsync of each. A publish
        waits here for the directories that another one is syncing; who notes one does not."""
        with self._dir_syncs:
            with self._dirty_lock:
                dirty, self._dirty = self._dirty, {}
            for fd in dirty.values():
                try:
                    self.sync_dir(fd)
                finally:
                    self.fs.close(fd)

    def sync_dir(self, fd: int) -> None:
        """fsync a directory if the mode does; a failure makes the store read-only."""
        if not self.mode.syncs_directories:
            return
        try:
            self.fs.fsync_dir(fd)
        except OSError as error:
            self.poisoned = f"directory fsync failed: {error.strerror}"
            raise

    def require_writable(self) -> None:
        if self.poisoned is not None:
            raise StoreReadOnly(f"the store is read-only: {self.poisoned}; check the disk, remount")

    @contextlib.contextmanager
    def path_lock(self, at: int, name: str) -> Iterator[None]:
        status = self.fs.stat(at)
        with self._paths.held((status.st_dev, status.st_ino, name)):
            yield

    # --- a rename by the user is a commit of its target -------------------------------------------

    def rename(self, at: int, name: str, to: int, target: str) -> None:
        """Rename a committed file onto ``to/target``: keeps what stood there, takes over its
        lineage. Durable on return as the mode says."""
        self.require_writable()
        if not self.mode.transactional:
            self.fs.rename(at, name, to, target)
            return
        with self.path_lock(to, target):
            replaced = self.replaced_by(to, target)
            left = None
            if replaced is not None:
                left = self._adopt_lineage(at, name, replaced.lineage)
            try:
                self.keep_replaced(replaced, to, target)
                self.sync_changed_dirs()
                self.fs.rename(at, name, to, target)
            except OSError:
                if left is not None:  # histories of two paths must not mix
                    with contextlib.suppress(OSError):
                        self._adopt_lineage(at, name, left)
                raise
            self.sync_dir(to)
            self.sync_dir(at)
            if replaced is not None:
                with contextlib.suppress(OSError):
                    history.prune(self.layout, replaced.lineage, self.keep)
                    if left is not None:
                        history.forget(self.layout, left)

    def _adopt_lineage(self, at: int, name: str, lineage: str) -> str | None:
        """Give a committed file another lineage, durably. Returns the one it leaves, if any."""
        if not self._is_file(at, name):
            return None
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            try:
                record = self.layout.read_record(fd)
            except RecordDamaged:
                return None
            if record is None:
                self.fs.fsync(fd)  # written in place: nobody else makes its bytes durable
                return None
            # A commit of the target, hence a number above all that history holds of it.
            generation = self.layout.next_generation()
            new = replace(record, lineage=lineage, generation=generation)
            try:
                self.layout.write_record(fd, new)
                self.fs.fsync(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    self.layout.write_record(fd, record)
                raise
            return record.lineage if record.lineage != lineage else None

    def unlink(self, at: int, name: str) -> None:
        """Delete a name and, with the last one, its history. Durable before the next publish."""
        self.require_writable()
        with self.path_lock(at, name):
            lineage = self._last_lineage(at, name)
            self.fs.unlink(at, name)
            self.note_changed_dir(at)
            if lineage is not None:
                with contextlib.suppress(OSError):
                    history.forget(self.layout, lineage)

    def _last_lineage(self, at: int, name: str) -> str | None:
        """The lineage that ends with this name: None while another hard link carries it."""
        if not self._is_file(at, name):
            return None
        try:
            with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
                record = self.layout.read_record(fd)
                if record is None or self._has_other_name(self.fs.stat(fd), record):
                    return None
                self.layout.drop_sidecar(fd)
                return record.lineage
        except (OSError, CkptfsError):
            return None

    def open_in_place(self, at: int, name: str) -> None:
        """Prepare a committed file for writing in place: its record goes first, durably, and a
        link that history may hold of this very inode is let go."""
        with self.path_lock(at, name), osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            try:
                record = self.layout.read_record(fd)
            except RecordDamaged:
                record = None
            self.layout.remove_record(fd)
            if record is not None:
                self._unlink_history_of(fd, record)

    def _unlink_history_of(self, fd: int, record: Record) -> None:
        if not self._links_in_history(self.fs.stat(fd).st_ino, record):
            return
        with osfs.opened(self.fs, self.layout.history, record.lineage, osfs.DIRECTORY) as folder:
            self.fs.unlink(folder, str(record.generation))
            self.sync_dir(folder)


class _KeyedLocks:
    """A lock per key, gone when nobody holds it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[object, tuple[threading.RLock, int]] = {}

    @contextlib.contextmanager
    def held(self, key: object) -> Iterator[None]:
        with self._guard:
            lock, users = self._locks.get(key, (threading.RLock(), 0))
            self._locks[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = lock, users - 1
