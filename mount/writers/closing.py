"""What a close, a release and the end of a mapping bring about, as ``finished`` decides.

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
from ckptfs.versions.life import Blow, Hold, Parting, Turn, Use, Writers

from ..processes import holders, writers
from ..processes.writers import Fate
from ..view.model import Caller, Handle, Version
from . import committing, finished, mapped, overtaking
from .finished import Do, Finishing, Flushed, Released
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
        version.known &= fate is not Fate.UNKNOWN
        if fate is Fate.KILLED:
            _note_death(versions, version, handle, caller, process)
        else:
            handle.part(Parting.PASS)
        do = finished.at_flush(_flushed(versions, version, handle, process, fate))
        if do is Do.NOTHING or process is None:
            return None
        if do is Do.LOOK_FOR_MAPPING:
            return lambda: _close_mapped_or_unwritten(versions, version, handle, process)
        if do is Do.COMMIT_EMPTY:
            return lambda: _close_unwritten(versions, version, handle, process)
        handle.part(Parting.CLOSE)
        if do is Do.WAIT:
            _note_content(versions, version, handle, caller, process)
            return None
    return lambda: _close(versions, version)


def _note_death(
    versions: Versions, version: Version, handle: Handle, caller: Caller, process: int | None
) -> None:
    """What the death of a process that had the handle open says of what was written."""
    by_opener = process is not None and process == handle.opener
    own = version.user in (None, handle.user)
    if finished.kills(by_opener=by_opener, closed=handle.flushed, own=own):
        version.strike(Blow.KILL)
    handle.part(Parting.LEAVE)
    crashed = not by_opener and writers.crashed(caller.pid)
    if crashed and _may_have_written(versions, process, caller, handle):
        version.strike(Blow.CRASH)


def _flushed(
    versions: Versions, version: Version, handle: Handle, process: int | None, fate: Fate
) -> Flushed:
    by_opener = process is not None and process == handle.opener
    others = (each for each in tuple(version.handles) if each is not handle)
    unpublished = version.unpublished  # once: it may be published meanwhile
    return Flushed(
        fate,
        by_opener,
        is_last=all(each.flushed or each.bystander for each in others),
        unpublished=unpublished,
        changed=by_opener and unpublished and overtaking.changed(versions, version),
        may_map=handle.flags & os.O_ACCMODE == os.O_RDWR,
        fresh=version.fresh,
    )


def _note_content(
    versions: Versions, version: Version, handle: Handle, caller: Caller, process: int
) -> None:
    """What the version holds when one of its writers is done with it, and others are not."""
    now = overtaking.content(versions, version)
    wrote = process in handle.wrote or writers.has_written(caller.pid)
    if wrote and now != handle.as_joined:  # touch(1) moves the time of it, too
        version.closers[process] = now


def _may_have_written(
    versions: Versions, process: int | None, caller: Caller, handle: Handle
) -> bool:
    """Whether a process that has the handle from its parent wrote by it. Where the kernel
    carries the data that is told from its having written at all, and to no file of its own."""
    if process in handle.wrote:
        return True
    own = any(each.opener == process for each in versions.handles.values())
    return not own and writers.has_written(caller.pid)


def _close_mapped_or_unwritten(
    versions: Versions, version: Version, handle: Handle, process: int
) -> None:
    if not _close_mapped(versions, version, handle, process):
        _close_unwritten(versions, version, handle, process)


def _close_mapped(versions: Versions, version: Version, handle: Handle, process: int) -> bool:
    """numpy.memmap("r+") closes the file that it has mapped ahead of the first store, of which
    nothing tells: the version goes live now, or its flushed stores would end with a kill."""
    if not writers.map_for_writing({process}, frozenset(version.numbers)):
        return False
    with version.staged.lock, versions.lock:
        version.staged.touched = True
        handle.part(Parting.CLOSE)
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
            whole = version.fresh and version.held and version.writers is not Writers.KILLED
            asked = version.joinable and whole
        if not asked or process is None or {each.opener for each in handles} != {process}:
            continue
        if not holders.holds(process, frozenset(version.numbers)):
            with contextlib.suppress(OSError, CkptfsError):  # others hear of it
                _finish_empty(versions, version, handles)


def _finish_empty(versions: Versions, version: Version, closed: Set[Handle]) -> None:
    """Commit it where these are all that have it open: nobody may be about to write it who
    would write in place then, be it a bystander."""
    with version.staged.lock, versions.lock:
        fresh = version.fresh
        untouched = fresh and overtaking.is_untouched(versions, version)
        if not finished.empty_is_whole(fresh, version.writers, untouched=untouched):
            return
        for handle in closed:
            handle.part(Parting.CLOSE)
        if not all(handle.flushed for handle in version.handles):
            return
        version.is_meant = True
    _close(versions, version)


def _close(versions: Versions, version: Version) -> None:
    due = version.unpublished and overtaking.is_complete(versions, version)
    if due and not _close_to_joiners(versions, version):
        return  # somebody has joined meanwhile: the last close commits
    _finish(versions, version, released=False)


def _close_to_joiners(versions: Versions, version: Version) -> bool:
    """Whether everybody has closed it, those included who are about to open it. From then on
    an open starts a version of its own: it would write to what is being sealed."""
    with versions.arrived:
        versions.arrived.wait_for(lambda: not version.expected, _EXPECTED_S)
        version.expected.clear()
        closed = version.closed
        version.turn(Turn.CLOSE if closed else Turn.GO_ON)
        return closed


def release(versions: Versions, handle: Handle) -> Callable[[], None] | None:
    """The last duplicate is closed. Nobody waits for the work that is returned."""
    version = handle.version
    if version is None:
        return None
    with versions.lock:
        version.handles.discard(handle)
        # The last that had it from its opener, so nobody has said that it is whole.
        if handle.hold is Hold.LEFT and version.user in (None, handle.user):
            version.strike(Blow.KILL)
        do = finished.at_release(left=bool(version.handles), closed=version.closed)
        if do is Do.NOTHING:
            return None
        if do is Do.FINISH:
            return lambda: _close(versions, version)
        if not version.expected:
            version.turn(Turn.CLOSE)
            # Without any FLUSH no open of it returned: who opened it was killed meanwhile.
            version.fresh = version.fresh and version.held
            with contextlib.suppress(OSError, CkptfsError):  # what follows hears of it
                shown = finished.is_shown(_released(version))
                version.public |= shown and not overtaking.overtaken(versions, version)
    return lambda: _release(versions, version)


def _released(version: Version) -> Released:
    return Released(
        version.unpublished, version.at is not None, version.fresh, version.known, version.writers
    )


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


def settle_lingering(versions: Versions, version: Version) -> None:
    """Seal it once nobody has it mapped any more."""
    with version.staged.lock:
        if not version.handles:
            with contextlib.suppress(OSError, CkptfsError):  # nobody is left to hear of it
                _release(versions, version)


def _finish(versions: Versions, version: Version, *, released: bool) -> None:
    """Commit what is complete. Raises what a commit raises, once for each who closes."""
    with version.staged.lock:
        do = finished.at_finish(_finishing(version, released))
        if do is Do.JUDGE:
            _judge(versions, version)
            do = finished.at_finish(_finishing(version, released, judged=True))
        if do is Do.SALVAGE:
            committing.publish_unfinished(versions, version)
            do = finished.at_finish(_finishing(version, released, judged=True))
        _carry_out(do, versions, version, released)


def _finishing(version: Version, released: bool, *, judged: bool = False) -> Finishing:
    return Finishing(
        version.staged.state,
        version.use,
        version.writers,
        failed=version.failure is not None,
        named=version.at is not None,
        closed=version.closed,
        released=released,
        judged=judged,
    )


def _judge(versions: Versions, version: Version) -> None:
    """Whether what a crashed process may have written is whole all the same."""
    if not overtaking.changed(versions, version):
        return
    if committing.judged(versions, version) is not Verdict.SOUND:
        version.strike(Blow.KILL)


def _carry_out(do: Do, versions: Versions, version: Version, released: bool) -> None:
    if do is Do.FAIL and version.failure is not None:
        committing.abort(versions, version, str(version.failure))
        raise version.failure
    if do is Do.SALVAGE:
        _salvage(versions, version)
    elif do is Do.MAKE_DURABLE:
        mapped.mark_live(versions, version)
        versions.store.saves.make_durable(version.staged)
    elif do is Do.RESEAL:
        if versions.store.saves.reseal(version.staged):
            versions.sealed(version)
    elif do is Do.DROP:
        versions.store.saves.discard(version.staged)
    elif do is Do.COMMIT:
        _commit_if_due(versions, version, released)


def _salvage(versions: Versions, version: Version) -> None:
    """Others that write it too must hear of it: 0 from close says "committed"."""
    version.failure = WriterKilled(
        f"{version.staged.path}: a process that wrote it was killed; the bytes are in salvage"
    )
    committing.abort(versions, version, KILLED)
    raise version.failure


def _commit_if_due(versions: Versions, version: Version, released: bool) -> None:
    try:
        complete = overtaking.is_complete(versions, version, released=released)
        closing = version.use is not Use.JOINABLE
        done = closing and complete and committing.commit_in_turn(versions, version)
    except OSError as error:
        committing.abort(versions, version, str(error))
        raise
    if not done:
        _not_due(versions, version, released)


def _not_due(versions: Versions, version: Version, released: bool) -> None:
    """It is overtaken, or unchanged: nobody waits for it, and who has it open may go on."""
    with versions.lock:
        version.turn(Turn.CLOSE if released else Turn.GO_ON)
        if released:
            versions.unplace(version)
    if released:
        versions.store.saves.discard(version.staged)


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
            version.turn(Turn.UNMAP)
            _finish(versions, version, released=True)
        versions.end(version)
    versions.writeback.stop()
