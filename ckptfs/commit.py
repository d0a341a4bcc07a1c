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
from collections.abc import Callable
from dataclasses import dataclass, replace

from ckptfs import format as fmt
from ckptfs import history, osfs, structure
from ckptfs.digest import CHUNK_BYTES, Before, Hasher, hash_range
from ckptfs.errors import BrokenStructure, CkptfsError, RecordDamaged
from ckptfs.format import Record
from ckptfs.growth import Alone, Growth, nobody_else
from ckptfs.layout import Layout
from ckptfs.ordering import Ordering
from ckptfs.protocol import VISIBLE, Event, Mode, State
from ckptfs.staged import Digested, Fingerprint, Staged
from ckptfs.structure import Structure, Verdict

_SEAL_ATTEMPTS = 2
DIGESTED_TWICE_BYTES = 1 << 20
_WRITEBACK_AHEAD_BYTES = 64 << 20


@dataclass(frozen=True)
class Replaced:
    """The version that a commit replaces."""

    record: Record | None
    lineage: str
    verdict: Verdict


class Committer(Ordering):
    """The commit protocol over one store."""

    def __init__(
        self, layout: Layout, mode: Mode, checksum: str, keep: int, validate: bool
    ) -> None:
        super().__init__(layout.fs, mode)
        self.layout = layout
        self.checksum, self.keep, self.validate = checksum, keep, validate
        self.growth = Growth(layout)
        # Told of each path whose last version went to history, and how long that is.
        self.kept: Callable[[str, int], None] = lambda path, size_bytes: None

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

    def fingerprint(self, fd: int) -> Fingerprint:
        return self.growth.fingerprint(fd)

    def changed(self, staged: Staged) -> bool:
        """Whether it was written since its seal or, before that, since it was opened."""
        moved = self.fingerprint(staged.fd) != (staged.sealed or staged.as_opened)
        return moved or (staged.touched and staged.state is State.OPEN)

    # --- commit --------------------------------------------------------------------------------

    def commit(self, staged: Staged, at: int, name: str, alone: Alone = nobody_else) -> Record:
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
                    record = self._extend(staged, replaced, at, name, alone)
                    if record is None:
                        record = self.seal(staged, replaced)
                        self.keep_replaced(replaced, at, name)
                        self.publish(staged, at, name)
                        self.settle(staged, at)
                        self.prune(replaced)
                        if replaced is not None:
                            self._tell_kept(staged.path, replaced)
                self.growth.remember(staged, self.checksum)
                staged.base = None
            except BaseException as error:
                if self.growth.torn:
                    self.poisoned = "a file that was extended could not be cut back"
                if staged.state not in VISIBLE and staged.state is not State.ABORTED:
                    self.abort(staged, str(error) or type(error).__name__)
                raise
        return record

    def _extend(
        self, staged: Staged, replaced: Replaced | None, at: int, name: str, alone: Alone
    ) -> Record | None:
        """Commit what was only added to by adding it to the committed file; see ``growth``. None
        where that cannot be: the version is whole then, and replaces what stands there."""
        base = staged.base
        if base is None or base.filled:
            return None
        if replaced is not None and self.growth.in_place(staged, at, name):
            with alone(base.inode) as is_alone:
                if is_alone:
                    assert staged.digested is not None
                    digested = staged.digested
                    self._require_sound(staged, digested.structure, replaced)

                    def record_of(now: Fingerprint) -> Record:
                        staged.advance(Event.SEALED)
                        return self.new_record(digested._replace(at=now), replaced)

                    staged.record = self.growth.extend(staged, at, name, record_of)
                    staged.advance(Event.PUBLISH)
                    staged.advance(Event.SETTLE)
                    return staged.record
        self.growth.fill(staged)
        if staged.digested is not None and base.intact:
            staged.digested = staged.digested._replace(at=self.fingerprint(staged.fd))
        else:
            staged.digested = None
        return None

    def digest(self, staged: Staged) -> None:
        """Clean the pages, digest them and judge the structure.

        The pages are cleaned first because a store through mmap to a dirty page moves no mtime;
        to a clean one it does, and the seal sees it. ``clean`` waits for the data chunk by chunk,
        so hashing overlaps the writeback; the fsync that makes it durable comes with the record.
        A small version is digested once more after that instead: waiting for the disk costs more.
        """
        if staged.writeback_error is not None:
            raise staged.writeback_error
        before = self.fingerprint(staged.fd)
        size = before[0]
        # What fills a hole is copied before it is durable, and nobody can map it.
        dirty = staged.has_hole or size <= DIGESTED_TWICE_BYTES
        clean = None if dirty else self._cleaning(staged.fd, size)
        staged.hasher = self.growth.hash(staged, size, self.checksum, clean)
        judged = self.judge_staged(staged)
        staged.digested = _digested(before, self.checksum, staged.hasher, judged)

    def _cleaning(self, fd: int, size: int) -> Before:
        """Clean each chunk before it is read, with writeback of the next ones under way: handing
        the whole file to the disk first would keep the hash waiting for as long as that takes."""
        started = 0

        def clean(offset: int, length: int) -> None:
            nonlocal started
            started = max(started, offset + CHUNK_BYTES)  # a chunk is written by its own cleaning
            while started < min(size, offset + _WRITEBACK_AHEAD_BYTES):
                self.fs.start_writeback(fd, started, CHUNK_BYTES)
                started += CHUNK_BYTES
            self.fs.clean(fd, offset, length)

        return clean

    def judge(self, path: str, size: int, read: Callable[[int, int], bytes]) -> Structure:
        if not self.validate:
            return Structure(Verdict.UNKNOWN, "")
        return structure.check(path.rpartition("/")[2], size, read)

    def judge_staged(self, staged: Staged) -> Structure:
        size = self.fs.stat(staged.fd).st_size
        return self.judge(staged.path, size, lambda offset, n: self.growth.read(staged, n, offset))

    def judge_open(self, path: str, fd: int) -> Structure:
        size = self.fs.stat(fd).st_size
        return self.judge(path, size, lambda offset, n: self.fs.read(fd, n, offset))

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
                verdict = self.judge_open(name, fd).verdict
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
            before = staged.digested.at
            self._require_sound(staged, staged.digested.structure, replaced)
            record = self.new_record(staged.digested, replaced)
            self.layout.write_record(staged.fd, record)
            self.fs.fsync(staged.fd)
            staged.sealed, staged.record = before, record
            if self._held_still(staged, before):
                break
            staged.digested = None  # written meanwhile: once more; after that it is live
        staged.advance(Event.SEALED)
        return record

    def _held_still(self, staged: Staged, digested_at: Fingerprint) -> bool:
        """Whether the bytes are those that were digested. From the fsync on a store shows in the
        mtime; before it, a store to a dirty page showed in nothing but the bytes."""
        if self.fingerprint(staged.fd) != digested_at:
            return False
        size = digested_at[0]
        if size > DIGESTED_TWICE_BYTES:
            return True
        assert staged.hasher is not None
        again = self.growth.hash(staged, size, self.checksum, None)
        return again.hexdigest() == staged.hasher.hexdigest()

    def new_record(self, digested: Digested, replaced: Replaced | None) -> Record:
        size, mtime = digested.at
        last = replaced.record.generation if replaced and replaced.record else 0
        return Record(
            digest=digested.digest,
            size_bytes=size,
            mtime_ns=mtime,
            lineage=replaced.lineage if replaced else fmt.new_lineage(),
            generation=self.layout.next_generation(last),
            committed_ns=self.fs.now_ns(),
            mode=self.mode,
            structure=digested.structure.verdict.value,
            sums=digested.sums,
        )

    def _require_sound(self, staged: Staged, judged: Structure, replaced: Replaced | None) -> None:
        over_sound = replaced is not None and replaced.verdict is Verdict.SOUND
        if judged.verdict is Verdict.BROKEN and over_sound:
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

    def _tell_kept(self, path: str, replaced: Replaced) -> None:
        if self.keep > 0 and replaced.record is not None:
            self.kept(path, replaced.record.size_bytes)

    def expose(self, staged: Staged, at: int, name: str) -> None:
        """Give up the transaction: the version stands under its name as it is, without a record,
        and is written in place. What it replaces is kept."""
        with staged.lock, self.path_lock(at, name):
            self.require_writable()
            replaced = self.replaced_by(at, name)
            self.growth.fill(staged)
            self.layout.remove_record(staged.fd)
            self.keep_replaced(replaced, at, name)
            self.sync_changed_dirs()
            self.fs.rename(self.layout.stage, staged.txid, at, name)
            staged.advance(Event.EXPOSE)
            self.note_changed_dir(at)
            self.prune(replaced)

    def reseal(self, staged: Staged) -> bool:
        """If a live version changed after its publish, give it a new record, durable on return,
        and return True."""
        with staged.lock:
            if staged.state is not State.SETTLED or not self.changed(staged):
                return False
            assert staged.record is not None
            staged.digested = None
            try:
                # The bytes first: a record that a power cut kept without them would call them rot.
                self.fs.fsync(staged.fd)
                self.digest(staged)
                assert staged.digested is not None
                staged.record = self.rerecord(staged.fd, staged.record, staged.digested)
            except OSError as error:
                staged.writeback_error = error
                raise
            staged.advance(Event.RESEAL)
            staged.sealed = staged.digested.at
            return True

    def reseal_committed(self, at: int, name: str) -> None:
        """The same for a version without a writer: a store through an old mapping moves the
        mtime. Does nothing while size and mtime are as recorded."""
        with self.path_lock(at, name), osfs.opened(self.fs, at, name, osfs.O_RDWR) as fd:
            record = self.layout.read_record(fd)
            before = self.fingerprint(fd)
            if record is None or before == (record.size_bytes, record.mtime_ns):
                return
            self.fs.fsync(fd)
            self.rerecord(fd, record, self.digest_open(name, fd, record.algorithm))

    def digest_open(self, path: str, fd: int, algorithm: str) -> Digested:
        """What is in a file that stands under its name."""
        before = self.fingerprint(fd)
        hasher = hash_range(self.fs, fd, (0, before[0]), algorithm, sums=True)
        return _digested(before, algorithm, hasher, self.judge_open(path, fd))

    def rerecord(self, fd: int, record: Record, digested: Digested) -> Record:
        """Record a committed file whose bytes were changed in place. Durable on return."""
        size, mtime = digested.at
        new = replace(
            record,
            digest=digested.digest,
            size_bytes=size,
            mtime_ns=mtime,
            structure=digested.structure.verdict.value,
            sums=digested.sums,
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
            story: dict[str, object] = {"path": staged.path, "reason": reason}
            missing = 0
            if staged.base is not None and staged.has_hole:
                missing = story["bytes_missing_at_start"] = staged.base.size
            if self.fs.stat(staged.fd).st_size == missing:
                self._remove(staged)
                return None
            with contextlib.suppress(OSError):  # recovery at the next mount does it
                return self.layout.put_aside(
                    self.layout.stage, staged.txid, self.layout.salvage, story
                )
            return None

    def remove_name(self, staged: Staged) -> None:
        """Its own user deleted it: it lives on, without a link, while it is open."""
        self._remove(staged)

    def discard(self, staged: Staged) -> None:
        """Drop a version that its own user deleted, or that never changed."""
        with staged.lock:
            staged.advance(Event.ABORT)
            self._remove(staged)

    def _remove(self, staged: Staged) -> None:
        with contextlib.suppress(OSError):
            self.fs.unlink(self.layout.stage, staged.txid)

    # --- a rename by the user is a commit of its target -------------------------------------------

    def rename(self, at: int, name: str, to: int, target: str, path: str) -> None:
        """Rename a committed file onto ``to/target``, which is ``path``: keeps what stood there,
        takes over its lineage. Durable on return as the mode says."""
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
                self._tell_kept(path, replaced)

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

    def exchange(self, at: int, name: str, to: int, target: str) -> None:
        """Swap two names. Both versions stay and keep their lineage, so history has nothing to
        keep. Durable on return as the mode says."""
        self.require_writable()
        with contextlib.ExitStack() as stack:
            for place in sorted({(at, name), (to, target)}):
                stack.enter_context(self.path_lock(*place))
            self.sync_changed_dirs()
            self.fs.exchange(at, name, to, target)
            self.sync_dir(to)
            if at != to:
                self.sync_dir(at)

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


def _digested(at: Fingerprint, algorithm: str, hasher: Hasher, judged: Structure) -> Digested:
    sums = hasher.sums.text() if hasher.sums else ""
    return Digested(at, f"{algorithm}:{hasher.hexdigest()}", sums, judged)
