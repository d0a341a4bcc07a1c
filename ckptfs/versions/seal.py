"""Seal: the bytes of a version are clean, digested and judged, its record is set, and both are
durable. Nothing is visible yet. Any number of versions at once, under no lock of a path: what a
version will be stands on its ticket.

A failed fsync is final for its version: the next one would return 0 over lost data (seen on ext4,
XFS and btrfs).
"""

from __future__ import annotations

from ckptfs import structure
from ckptfs.errors import BrokenStructure
from ckptfs.records import edit_or_damage
from ckptfs.records.edit_or_damage import Kind
from ckptfs.records.format import Record
from ckptfs.structure import Proof, Read, Structure, Verdict
from ckptfs.versions.core import Core
from ckptfs.versions.life import Event, State, Step
from ckptfs.versions.origin import fill, read
from ckptfs.versions.recording import cleaning, new_record
from ckptfs.versions.staged import Base, Digested, Fingerprint, Staged, fingerprint
from ckptfs.versions.standing import Replaced, judge
from ckptfs.versions.tickets import Ticket

_SEAL_ATTEMPTS = 2
DIGESTED_TWICE_BYTES = 1 << 20


def digest(core: Core, staged: Staged) -> None:
    """Clean the pages, digest them and judge the structure.

    The pages are cleaned first because a store through mmap to a dirty page moves no mtime;
    to a clean one it does, and the seal sees it. ``clean`` waits for the data chunk by chunk,
    so hashing overlaps the writeback; the fsync that makes it durable comes with the record.
    A small version is digested once more after that instead: waiting for the disk costs more.
    """
    if staged.writeback_error is not None:
        raise staged.writeback_error
    before = fingerprint(core.fs, staged.fd)
    size = before[0]
    # What fills a hole is copied before it is durable, and nobody can map it.
    dirty = staged.has_hole or size <= DIGESTED_TWICE_BYTES
    clean = None if dirty else cleaning(core, staged.fd, size)
    staged.hasher = core.digests.hash(staged, size, core.checksum, clean)
    judged = _proven(core, staged, judge_staged(core, staged))
    staged.digested = Digested.of(before, core.checksum, staged.hasher, judged)
    core.fs.step(Step.DIGESTED)


def judge_staged(core: Core, staged: Staged) -> Structure:
    return judge(core, staged.path, *_content(core, staged))


def is_whole(core: Core, staged: Staged) -> bool:
    """Whether no write to it can be missing: by checksums that its format carries, else by its
    structure where it was begun empty, for a lost write leaves a hole then. Reads all of it,
    where there are checksums."""
    size, content = _content(core, staged)
    if judge(core, staged.path, size, content).verdict is not Verdict.SOUND:
        return False
    proof = structure.prove(size, content).proof
    begun_empty = staged.base is None and staged.as_opened[0] == 0
    full = begun_empty and (size == 0 or core.fs.next_hole(staged.fd, 0) >= size)
    return proof is Proof.HOLDS or (proof is Proof.NONE and full)


def _content(core: Core, staged: Staged) -> tuple[int, Read]:
    size = core.fs.stat(staged.fd).st_size
    return size, lambda offset, length: read(core.fs, staged, length, offset)


def _proven(core: Core, staged: Staged, judged: Structure) -> Structure:
    """What was written into a sound version must be whole by all that its format tells: a part
    that was overwritten shows nowhere else."""
    if core.validate and staged.continues is Verdict.SOUND:
        found = edit_or_damage.by_format(staged.path, *_content(core, staged), Verdict.SOUND)
        if found is not None and found.kind is Kind.DAMAGED:
            return Structure(Verdict.BROKEN, found.reason)
    return judged


def found_sound(core: Core, staged: Staged, replaced: Replaced | None) -> Digested:
    """What is found in the version as it takes the place of that: with the bytes of its base, and
    sound enough. Raises BrokenStructure. Takes no number, so it comes before a ticket where that
    can be had later: what is broken is told as broken, on a full disk too."""
    base = staged.base
    if base is not None and not base.filled:
        _fill(core, staged, base)
    if staged.digested is None:
        digest(core, staged)
    assert staged.digested is not None
    require_sound(staged, staged.digested.structure, replaced)
    return staged.digested


def _fill(core: Core, staged: Staged, base: Base) -> None:
    """Its digest, if it has one, is that of the whole already."""
    fill(staged)
    if staged.digested is not None and base.intact:
        staged.digested = staged.digested._replace(at=fingerprint(core.fs, staged.fd))
    else:
        staged.digested = None


def seal(core: Core, staged: Staged, ticket: Ticket) -> Record:
    """Give the version its record and make both durable, on return. Raises BrokenStructure, and
    OSError, which is final."""
    if staged.state is State.OPEN:
        staged.advance(Event.SEAL)
    for _ in range(_SEAL_ATTEMPTS):
        digested = found_sound(core, staged, ticket.replaced)
        before = digested.at
        record = new_record(core, digested, ticket)
        core.layout.write_record(staged.fd, record)
        core.fs.step(Step.RECORDED)
        core.fs.fsync(staged.fd)
        staged.sealed, staged.record = before, record
        if _held_still(core, staged, before):
            break
        staged.digested = None  # written meanwhile: once more; after that it is live
    staged.advance(Event.SEALED)
    core.fs.step(Step.SEALED)
    return record


def _held_still(core: Core, staged: Staged, digested_at: Fingerprint) -> bool:
    """Whether the bytes are those that were digested. From the fsync on a store shows in the
    mtime; before it, a store to a dirty page showed in nothing but the bytes."""
    if fingerprint(core.fs, staged.fd) != digested_at:
        return False
    size = digested_at[0]
    if size > DIGESTED_TWICE_BYTES:
        return True
    assert staged.hasher is not None
    again = core.digests.hash(staged, size, core.checksum, None)
    return again.hexdigest() == staged.hasher.hexdigest()


def require_sound(staged: Staged, judged: Structure, replaced: Replaced | None) -> None:
    """A broken version takes the place of no sound one. Raises BrokenStructure."""
    if replaced is None or replaced.verdict is not Verdict.SOUND:
        return
    if judged.verdict is Verdict.BROKEN:
        raise BrokenStructure(
            f"{staged.path}: the new version is not whole ({judged.reason}); "
            f"the sound one stays, generation {replaced.generation}; "
            "the new bytes are in salvage"
        )
