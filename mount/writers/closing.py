"""When is a file finished, and what follows?

A version commits at the FLUSH with which its last open write handle was closed by the process
that opened it; at the last RELEASE where no such FLUSH came (descriptors passed to children,
unknown writers); never where one of its writers was killed. After its commit it
stays *live* while a write handle or a writable mapping remains, and is sealed again when it
changed; who opens the path for writing without O_TRUNC then writes to that very inode.

Threading: ``flush`` and ``release`` hold ``Versions.lock`` alone and return what takes longer;
that runs under the version's ``staged.lock``, which is always taken first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Set

from ckptfs.errors import CkptfsError, WriterKilled
from ckptfs.structure import Verdict
from ckptfs.telling.events import KILLED
from ckptfs.versions.life import State

from ..processes import holders, writers
from ..processes.writers import Fate
from ..view.model import Caller, Handle, Version
from . import committing, mapped, overtaking
from .versions import Versions

_EXPECTED_S = 1.0  # how long a close waits for an open that was sent to look again


def flush(versions: Versions, handle: Handle, caller: Caller) -> Callable[[], None] | None:
    """One close of one duplicate. Returns the work that the close must wait for, if any."""
    version = handle.version
    if version is None:
        return None
    process, fate = writers.fate(caller.pid)
    with versions.lock:
        version.held = True
        handle.killed = fate is Fate.KILLED
        if fate is Fate.UNKNOWN:
            version.known = False
        if process is None or process != handle.opener:
            if fate is Fate.KILLED and writers.crashed(caller.pid):
                version.mauled |= _may_have_written(versions, process, caller, handle)
            return None  # a forked child, or unknown: its RELEASE decides
        if fate is Fate.KILLED and not handle.flushed:
            version.killed |= version.user in (None, handle.user)
        if version.unpublished and not overtaking.changed(versions, version):
            may_map = handle.flags & os.O_ACCMODE == os.O_RDWR and fate is Fate.ALIVE
            if not may_map and not version.fresh:
                return None

            def close() -> None:
                if not (may_map and _close_mapped(versions, version, handle, process)):
                    _close_unwritten(versions, version, handle, process)

            return close
        handle.flushed = True
        if version.unpublished and not version.closed:
            now = overtaking.content(versions, version)
            wrote = process in handle.wrote or writers.has_written(caller.pid)
            if wrote and now != handle.as_joined:  # touch(1) moves the time of it, too
                version.closers[process] = now
            return None
    return lambda: _close(versions, version)


def _may_have_written(
    versions: Versions, process: int | None, caller: Caller, handle: Handle
) -> bool:
    """Whether a process that has the handle from its parent wrote by it. Where the kernel
    carries the data that is told from its having written at all, and to no file of its own."""
    if process in handle.wrote:
        return True
    own = any(each.opener == process for each in versions.handles.values())
    return not own and writers.has_written(caller.pid)


def _close_mapped(versions: Versions, version: Version, handle: Handle, process: int) -> bool:
    """numpy.memmap("r+") closes the file that it has mapped ahead of the first store, of which
    nothing tells: the version goes live now, or its flushed stores would end with a kill."""
    if not writers.map_for_writing({process}, frozenset(version.numbers)):
        return False
    with version.staged.lock, versions.lock:
        version.staged.touched = True
        handle.flushed = True
        if not version.closed:
            return True
    _close(versions, version)
    mapped.mark_live(versions, version)
    return True


def _close_unwritten(versions: Versions, version: Version, handle: Handle, process: int) -> None:
    """It is whole once its openers have closed it, not where that was a duplicate, as shells
    close it before they write, nor where a child has it, for which it was opened."""
    synced = version.synced is not None and version.synced == version.staged.as_opened
    if synced or not holders.holds_or_gave(process, frozenset(version.numbers)):
        _finish_empty(versions, version, {handle})


def close_empty(versions: Versions, asked_of: Iterable[Version], process: int | None) -> None:
    """Commit those that are empty and that their opener, which asks, has closed, whatever its
    children have yet."""
    for version in asked_of:
        with versions.lock:
            handles = set(version.handles)
            asked = version.joinable and version.fresh and version.held and not version.killed
        if not asked or process is None or {each.opener for each in handles} != {process}:
            continue
        if not holders.holds(process, frozenset(version.numbers)):
            with contextlib.suppress(OSError, CkptfsError):  # others hear of it
                _finish_empty(versions, version, handles)


def _finish_empty(versions: Versions, version: Version, closed: Set[Handle]) -> None:
    """Commit it where these are all that have it open: nobody may be about to write it who
    would write in place then, be it a bystander."""
    with version.staged.lock, versions.lock:
        if not version.fresh or version.killed or not overtaking.is_untouched(versions, version):
            return
        for handle in closed:
            handle.flushed = True
        if not all(handle.flushed for handle in version.handles):
            return
        version.is_meant = True
    _close(versions, version)


def _close(versions: Versions, version: Version) -> None:
    due = version.unpublished and _is_complete(versions, version)
    if due and not _close_to_joiners(versions, version):
        return  # somebody has joined meanwhile: the last close commits
    _finish(versions, version, released=False)


def _close_to_joiners(versions: Versions, version: Version) -> bool:
    """Whether everybody has closed it, those included who are about to open it. From then on
    an open starts a version of its own: it would write to what is being sealed."""
    with versions.arrived:
        versions.arrived.wait_for(lambda: not version.expected, _EXPECTED_S)
        version.expected.clear()
        version.closing = version.closed
        return version.closing


def release(versions: Versions, handle: Handle) -> Callable[[], None] | None:
    """The last duplicate is closed. Nobody waits for the work that is returned."""
    version = handle.version
    if version is None:
        return None
    with versions.lock:
        version.handles.discard(handle)
        # The last that had it from its opener, so nobody has said that it is whole.
        theirs = version.user in (None, handle.user)
        version.killed |= theirs and handle.killed and not handle.flushed
        if version.handles:
            return (lambda: _close(versions, version)) if version.closed else None
        if not version.expected:
            version.closing = True
            # Without any FLUSH no open of it returned: who opened it was killed meanwhile.
            version.fresh = version.fresh and version.held
            finished = version.unpublished and version.at and not version.killed
            shown = finished and version.known and version.fresh
            with contextlib.suppress(OSError, CkptfsError):  # what follows hears of it
                version.public |= bool(shown and not overtaking.overtaken(versions, version))
    return lambda: _release(versions, version)


def _release(versions: Versions, version: Version) -> None:
    if not _close_to_joiners(versions, version):
        return
    with version.staged.lock:
        was_live = version.live
        if mapped.lingers(versions, version):
            return
        try:
            _finish(versions, version, released=True)
        finally:
            if was_live or not mapped.lingers(versions, version):
                versions.end(version)


def _is_complete(versions: Versions, version: Version) -> bool:
    return overtaking.changed(versions, version) or (version.fresh and version.is_meant)


def settle_lingering(versions: Versions, version: Version) -> None:
    """Seal it once nobody has it mapped any more."""
    with version.staged.lock:
        if not version.handles:
            with contextlib.suppress(OSError, CkptfsError):  # nobody is left to hear of it
                _release(versions, version)


def _finish(versions: Versions, version: Version, *, released: bool) -> None:
    """Commit what is complete. Raises what a commit raises, once for each who closes."""
    staged = version.staged
    with staged.lock:
        if version.ended:
            return
        if version.failure is not None:
            committing.abort(versions, version, str(version.failure))
            raise version.failure
        if version.mauled and version.unpublished and overtaking.changed(versions, version):
            version.killed |= committing.judged(versions, version) is not Verdict.SOUND
        if version.killed and version.unpublished:
            committing.publish_unfinished(versions, version)
        if version.killed and version.unpublished:
            # Others that write it too must hear of it: 0 from close says "committed".
            version.failure = WriterKilled(
                f"{staged.path}: a process that wrote it was killed; the bytes are in salvage"
            )
            committing.abort(versions, version, KILLED)
            raise version.failure
        if staged.state is State.SETTLED:
            if version.lingering or not version.closed:  # it changes on: durable, at least
                mapped.mark_live(versions, version)
                versions.store.committer.make_durable(staged)
            elif versions.store.reseal(staged):
                versions.sealed(version)
        elif version.at is None:
            if released and version.unpublished:
                versions.store.committer.discard(staged)
        elif staged.state is State.OPEN:
            try:
                complete = _is_complete(versions, version) or (released and version.fresh)
                done = version.closing and complete and committing.commit_in_turn(versions, version)
            except OSError as error:
                committing.abort(versions, version, str(error))
                raise
            if not done:
                _not_due(versions, version, released)


def _not_due(versions: Versions, version: Version, released: bool) -> None:
    """It is overtaken, or unchanged: nobody waits for it, and who has it open may go on."""
    with versions.lock:
        version.closing = released
        if released:
            versions.unplace(version)
    if released:
        versions.store.committer.discard(version.staged)


def wait_settled(versions: Versions, version: Version) -> None:
    """Return once a commit that is due is over; made here if its turn has not come."""
    with version.staged.lock, contextlib.suppress(OSError, CkptfsError):  # others hear of it
        if version.closing:
            _finish(versions, version, released=not version.handles)


def stop(versions: Versions) -> None:
    """No thread of it is left on return, and what was only mapped is sealed."""
    versions.watch.stop()
    for version in list(versions.lingering):
        with version.staged.lock, contextlib.suppress(OSError, CkptfsError):
            version.lingering = False
            _finish(versions, version, released=True)
        versions.end(version)
    versions.writeback.stop()
