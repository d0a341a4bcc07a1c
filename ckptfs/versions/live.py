"""Versions that are published and change on, while a process has them open or mapped. Thread-safe:
each under its own lock."""

from __future__ import annotations

from ckptfs.versions.core import Core
from ckptfs.versions.life import Event, State
from ckptfs.versions.recording import rerecord, write_anew
from ckptfs.versions.seal import digest
from ckptfs.versions.staged import Staged, fingerprint


def changed(core: Core, staged: Staged) -> bool:
    """Whether it was written since its seal or, before that, since it was opened."""
    moved = fingerprint(core.fs, staged.fd) != (staged.sealed or staged.as_opened)
    return moved or (staged.touched and staged.state is State.OPEN)


def make_durable(core: Core, staged: Staged) -> None:
    """The bytes of a live version that changes on; who closes it last has it recorded. A
    failure is final for it."""
    if staged.writeback_error is not None:
        raise staged.writeback_error
    try:
        core.fs.fsync(staged.fd)
    except OSError as error:
        staged.writeback_error = error
        raise


def reseal(core: Core, staged: Staged) -> bool:
    """If a live version changed after its publish, give it a new record, durable on return,
    and return True."""
    with staged.lock:
        if staged.state is not State.SETTLED:
            return False
        assert staged.record is not None
        if not changed(core, staged):
            mark_live(core, staged, live=False)
            return False
        staged.digested = None
        try:
            # The bytes first: a record that a power cut kept without them would call them rot.
            core.fs.fsync(staged.fd)
            digest(core, staged)
            assert staged.digested is not None
            staged.record = rerecord(core, staged.fd, staged.record, staged.digested)
        except OSError as error:
            staged.writeback_error = error
            raise
        staged.advance(Event.RESEAL)
        staged.sealed = staged.digested.at
        return True


def mark_live(core: Core, staged: Staged, *, live: bool = True) -> None:
    """Note in its record that a live version may change where it stands: should the daemon be
    killed before it is recorded anew, that is no damage. Durable ahead of such a change, since
    filesystems keep the order of changes to one inode."""
    with staged.lock:
        record = staged.record
        if staged.state is State.SETTLED and record is not None and record.live is not live:
            staged.record = write_anew(core, staged.fd, record, live=live)
