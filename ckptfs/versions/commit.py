"""Shadow staging and the commit steps, one function per step.

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

from ckptfs.disk import osfs
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.versions.core import Core
from ckptfs.versions.extend import Alone, can_extend, extend, nobody_else
from ckptfs.versions.life import VISIBLE, Event, State, Step
from ckptfs.versions.order import Place
from ckptfs.versions.origin import fill
from ckptfs.versions.publish import Install, carry_out
from ckptfs.versions.recording import new_record
from ckptfs.versions.seal import digest, found_sound, require_sound, seal
from ckptfs.versions.staged import Fingerprint, Staged, fingerprint
from ckptfs.versions.standing import Replaced, keep_replaced, replaced_by, settle_history
from ckptfs.versions.tickets import ticket_after


def stage(core: Core, path: str) -> Staged:
    """Start an empty version in the shadow tree. Nothing is durable on return."""
    core.order.require_writable()
    txid = fmt.new_txid()
    flags = osfs.O_RDWR | osfs.O_CREAT | osfs.O_EXCL
    fd = core.fs.open(core.layout.stage, txid, flags)
    with contextlib.suppress(OSError):  # only helps salvage to name the bytes
        core.fs.setxattr(fd, fmt.XATTR, fmt.staged_note(path))
    core.fs.step(Step.STAGED)
    try:
        return Staged(txid, fd, path, fingerprint(core.fs, fd))
    except OSError:
        core.fs.close(fd)
        raise


def inherit(core: Core, staged: Staged, at: int, name: str) -> None:
    """Take owner, mode, ACL, label and xattrs of the version at ``at/name``."""
    with osfs.opened(core.fs, at, name, osfs.O_RDONLY) as current:
        core.fs.copy_metadata(current, staged.fd, skip=fmt.XATTR)


def commit(core: Core, staged: Staged, place: Place, alone: Alone = nobody_else) -> Record:
    """Seal, keep, publish, settle. Durable on return as the mode says.

    Raises what failed; the version is then in salvage (gone, if the disk is full) and the old
    one in place, unless the failure came after publish (a directory fsync), which makes the
    store read-only.
    """
    with staged.lock:
        try:
            core.order.require_writable()
            staged.advance(Event.SEAL)
            digest(core, staged)
            with core.order.changing(place):
                replaced = replaced_by(core, place)
                record = _extend(core, staged, replaced, place, alone)
                if record is None:
                    found_sound(core, staged, replaced)
                    ticket = ticket_after(core, replaced)
                    record = seal(core, staged, ticket)
                    carry_out(core, [Install(staged, ticket, place)])
                else:
                    settle_history(core, replaced, staged.path)
            core.digests.remember(staged, core.checksum)
            staged.base = None
        except BaseException as error:
            if core.order.torn:
                core.order.poison("a file that was extended could not be cut back")
            if staged.state not in VISIBLE and staged.state is not State.ABORTED:
                if _lacked_room(core, error):
                    discard(core, staged)  # in salvage it would be in the way of the next one
                else:
                    abort(core, staged, str(error) or type(error).__name__)
            raise
    return record


def _lacked_room(core: Core, error: BaseException) -> bool:
    if getattr(error, "errno", None) != errno.ENOSPC:
        return False
    with contextlib.suppress(OSError):
        return core.fs.space(core.layout.root).is_full
    return False


def _extend(
    core: Core, staged: Staged, replaced: Replaced | None, place: Place, alone: Alone
) -> Record | None:
    """Commit what was only added to by adding it to the committed file; see ``extend.py``. None
    where that cannot be: the version replaces what stands there then."""
    base = staged.base
    if base is None or base.filled:
        return None
    if replaced is not None and can_extend(core.layout, staged, place):
        with alone(base.inode) as is_alone:
            if is_alone:
                assert staged.digested is not None
                digested = staged.digested
                require_sound(staged, digested.structure, replaced)

                def record_of(now: Fingerprint) -> Record:
                    staged.advance(Event.SEALED)
                    return new_record(core, digested._replace(at=now), ticket_after(core, replaced))

                staged.record = extend(core, staged, place, record_of)
                staged.advance(Event.PUBLISH)
                staged.advance(Event.SETTLE)
                return staged.record
    return None


def expose(core: Core, staged: Staged, place: Place) -> None:
    """Give up the transaction: the version stands under its name as it is, without a record,
    and is written in place. What it replaces is kept."""
    with staged.lock, core.order.changing(place):
        replaced = replaced_by(core, place)
        if replaced is not None:
            replaced = replace(replaced, pin=True)
        fill(staged)
        core.layout.remove_record(staged.fd)
        keep_replaced(core, replaced, place)
        core.order.sync_changed_dirs()
        core.fs.rename(core.layout.stage, staged.txid, place.at, place.name)
        staged.advance(Event.EXPOSE)
        core.order.sync_dir(place.at)  # before anything goes that it replaces
        settle_history(core, replaced, staged.path)


def abort(core: Core, staged: Staged, reason: str) -> str | None:
    """Never publish this version: its bytes go to salvage, whose entry is returned."""
    with staged.lock:
        staged.advance(Event.ABORT)
        story: dict[str, object] = {"path": staged.path, "reason": reason}
        missing = 0
        if staged.base is not None and staged.has_hole:
            missing = story["bytes_missing_at_start"] = staged.base.size
        if core.fs.stat(staged.fd).st_size == missing:
            remove_name(core, staged)
            return None
        with contextlib.suppress(OSError):  # recovery at the next mount does it
            return core.layout.aside.put(core.layout.stage, staged.txid, core.layout.salvage, story)
        return None


def remove_name(core: Core, staged: Staged) -> None:
    """Its own user deleted it: it lives on, without a link, while it is open."""
    with contextlib.suppress(OSError):
        core.fs.unlink(core.layout.stage, staged.txid)


def discard(core: Core, staged: Staged) -> None:
    """Drop a version that its own user deleted, or that never changed."""
    with staged.lock:
        staged.advance(Event.ABORT)
        remove_name(core, staged)
