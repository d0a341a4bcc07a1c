"""Shadow staging and the commit steps, one method per step.

    stage -> seal -> keep -> publish -> settle

Promises (C1, C2): a path holds one whole committed version at every instant, across crashes
too; ``commit`` returning means settled, as durable as the mode says; ``commit`` raising means the
old version stays and the new bytes lie in salvage, but for a full disk: they are gone.

Threading: any number of commits run at once. Digests run unlocked; from seal to settle the target
path is locked, so that history and publish agree on what is replaced. A failed fsync is final for
its version (the next one would return 0 over lost data, seen on ext4, XFS and btrfs); a failed
directory fsync makes the whole store read-only, since what is on disk is then unknown.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace

from ckptfs import structure
from ckptfs.disk import osfs
from ckptfs.errors import BrokenStructure
from ckptfs.records import evidence
from ckptfs.records import format as fmt
from ckptfs.records.evidence import Kind
from ckptfs.records.format import Record
from ckptfs.structure import Proof, Read, Structure, Verdict
from ckptfs.versions.extend import Alone, nobody_else
from ckptfs.versions.life import VISIBLE, Event, State, Step
from ckptfs.versions.names import Names
from ckptfs.versions.staged import Digested, Fingerprint, Staged
from ckptfs.versions.standing import Replaced

_SEAL_ATTEMPTS = 2
DIGESTED_TWICE_BYTES = 1 << 20


class Committer(Names):
    """The commit protocol over one store."""

    # --- stage ---------------------------------------------------------------------------------

    def stage(self, path: str) -> Staged:
        """Start an empty version in the shadow tree. Nothing is durable on return."""
        self.require_writable()
        txid = fmt.new_txid()
        flags = osfs.O_RDWR | osfs.O_CREAT | osfs.O_EXCL
        fd = self.fs.open(self.layout.stage, txid, flags)
        with contextlib.suppress(OSError):  # only helps salvage to name the bytes
            self.fs.setxattr(fd, fmt.XATTR, fmt.staged_note(path))
        self.fs.step(Step.STAGED)
        try:
            return Staged(txid, fd, path, self.fingerprint(fd))
        except OSError:
            self.fs.close(fd)
            raise

    def inherit(self, staged: Staged, at: int, name: str) -> None:
        """Take owner, mode, ACL, label and xattrs of the version at ``at/name``."""
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as current:
            self.fs.copy_metadata(current, staged.fd, skip=fmt.XATTR)

    def changed(self, staged: Staged) -> bool:
        """Whether it was written since its seal or, before that, since it was opened."""
        moved = self.fingerprint(staged.fd) != (staged.sealed or staged.as_opened)
        return moved or (staged.touched and staged.state is State.OPEN)

    # --- commit --------------------------------------------------------------------------------

    def commit(self, staged: Staged, at: int, name: str, alone: Alone = nobody_else) -> Record:
        """Seal, keep, publish, settle. Durable on return as the mode says.

        Raises what failed; the version is then in salvage (gone, if the disk is full) and the old
        one in place, unless the failure came after publish (a directory fsync), which makes the
        store read-only.
        """
        with staged.lock:
            try:
                self.require_writable()
                staged.advance(Event.SEAL)
                self.digest(staged)
                with self.path_lock(at, name):
                    replaced = self.replaced_by(at, name, staged.path)
                    record = self._extend(staged, replaced, at, name, alone)
                    if record is None:
                        record = self.seal(staged, replaced)
                        self.keep_replaced(replaced, at, name, staged.path)
                        self.fs.step(Step.KEPT)
                        self.publish(staged, at, name)
                        self.settle(staged, at)
                        if replaced is not None:
                            self.tell_kept(staged.path, replaced)
                    self.settle_history(replaced, staged.path)
                self.growth.remember(staged, self.checksum)
                staged.base = None
            except BaseException as error:
                if self.growth.torn:
                    self.poison("a file that was extended could not be cut back")
                if staged.state not in VISIBLE and staged.state is not State.ABORTED:
                    if self._lacked_room(error):
                        self.discard(staged)  # in salvage it would be in the way of the next one
                    else:
                        self.abort(staged, str(error) or type(error).__name__)
                raise
        return record

    def _lacked_room(self, error: BaseException) -> bool:
        if getattr(error, "errno", None) != errno.ENOSPC:
            return False
        with contextlib.suppress(OSError):
            return self.fs.space(self.layout.root).is_full
        return False

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
        clean = None if dirty else self.cleaning(staged.fd, size)
        staged.hasher = self.growth.hash(staged, size, self.checksum, clean)
        judged = self._proven(staged, self.judge_staged(staged))
        staged.digested = Digested.of(before, self.checksum, staged.hasher, judged)
        self.fs.step(Step.DIGESTED)

    def judge_staged(self, staged: Staged) -> Structure:
        return self.judge(staged.path, *self._content(staged))

    def is_whole(self, staged: Staged) -> bool:
        """Whether no write to it can be missing: by checksums that its format carries, else by its
        structure where it was begun empty, for a lost write leaves a hole then. Reads all of it,
        where there are checksums."""
        size, read = self._content(staged)
        if self.judge(staged.path, size, read).verdict is not Verdict.SOUND:
            return False
        proof = structure.prove(size, read).proof
        begun_empty = staged.base is None and staged.as_opened[0] == 0
        full = begun_empty and (size == 0 or self.fs.next_hole(staged.fd, 0) >= size)
        return proof is Proof.HOLDS or (proof is Proof.NONE and full)

    def _content(self, staged: Staged) -> tuple[int, Read]:
        size = self.fs.stat(staged.fd).st_size
        return size, lambda offset, length: self.growth.read(staged, length, offset)

    def _proven(self, staged: Staged, judged: Structure) -> Structure:
        """What was written into a sound version must be whole by all that its format tells: a part
        that was overwritten shows nowhere else."""
        if self.validate and staged.continues is Verdict.SOUND:
            found = evidence.by_format(staged.path, *self._content(staged), Verdict.SOUND)
            if found is not None and found.kind is Kind.DAMAGED:
                return Structure(Verdict.BROKEN, found.reason)
        return judged

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
            self.fs.step(Step.RECORDED)
            self.fs.fsync(staged.fd)
            staged.sealed, staged.record = before, record
            if self._held_still(staged, before):
                break
            staged.digested = None  # written meanwhile: once more; after that it is live
        staged.advance(Event.SEALED)
        self.fs.step(Step.SEALED)
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

    def _require_sound(self, staged: Staged, judged: Structure, replaced: Replaced | None) -> None:
        over_sound = replaced is not None and replaced.verdict is Verdict.SOUND
        if judged.verdict is Verdict.BROKEN and replaced is not None and over_sound:
            raise BrokenStructure(
                f"{staged.path}: the new version is not whole ({judged.reason}); "
                f"the sound one stays, generation {replaced.generation}; "
                "the new bytes are in salvage"
            )

    def publish(self, staged: Staged, at: int, name: str) -> None:
        """The rename: the commit point. Directories changed before it are durable first."""
        self.sync_changed_dirs()
        self.fs.rename(self.layout.stage, staged.txid, at, name)
        staged.advance(Event.PUBLISH)
        self.fs.step(Step.PUBLISHED)

    def settle(self, staged: Staged, at: int) -> None:
        """Make the name durable."""
        self.sync_dir(at)
        staged.advance(Event.SETTLE)
        self.fs.step(Step.SETTLED)

    def expose(self, staged: Staged, at: int, name: str) -> None:
        """Give up the transaction: the version stands under its name as it is, without a record,
        and is written in place. What it replaces is kept."""
        with staged.lock, self.path_lock(at, name):
            self.require_writable()
            replaced = self.replaced_by(at, name, staged.path)
            if replaced is not None:
                replaced = replace(replaced, pin=True)
            self.growth.fill(staged)
            self.layout.remove_record(staged.fd)
            self.keep_replaced(replaced, at, name, staged.path)
            self.sync_changed_dirs()
            self.fs.rename(self.layout.stage, staged.txid, at, name)
            staged.advance(Event.EXPOSE)
            self.sync_dir(at)  # before anything goes that it replaces
            self.settle_history(replaced, staged.path)

    def make_durable(self, staged: Staged) -> None:
        """The bytes of a live version that changes on; who closes it last has it recorded. A
        failure is final for it."""
        if staged.writeback_error is not None:
            raise staged.writeback_error
        try:
            self.fs.fsync(staged.fd)
        except OSError as error:
            staged.writeback_error = error
            raise

    def reseal(self, staged: Staged) -> bool:
        """If a live version changed after its publish, give it a new record, durable on return,
        and return True."""
        with staged.lock:
            if staged.state is not State.SETTLED:
                return False
            assert staged.record is not None
            if not self.changed(staged):
                self.mark_live(staged, live=False)
                return False
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

    def mark_live(self, staged: Staged, *, live: bool = True) -> None:
        """Note in its record that a live version may change where it stands: should the daemon be
        killed before it is recorded anew, that is no damage. Durable ahead of such a change, since
        filesystems keep the order of changes to one inode."""
        with staged.lock:
            record = staged.record
            if staged.state is State.SETTLED and record is not None and record.live is not live:
                staged.record = self._write_anew(staged.fd, record, live=live)

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
