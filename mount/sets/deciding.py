"""What becomes of a set, as ``ckptfs.sets.life`` decides: facts are collected here, and what was
decided is done.

Threading: any thread that holds no lock; ``settle`` takes the set's own.
"""

from __future__ import annotations

import contextlib
import logging
import time

from ckptfs.errors import CkptfsError
from ckptfs.sets.complete import Gathered, is_complete, is_told
from ckptfs.sets.life import Decision, Ending, Facts, decide
from ckptfs.sets.profiles import recognised
from ckptfs.telling.events import say

from ..processes.ends import End
from ..view.model import Directory
from .table import PendingSet, Sets

log = logging.getLogger("ckptfs.sets")

_LOOK_S = 0.02
_BRIEF_S, _LOOKS = 0.005, 10  # of the time a tenth may go into looking that is not brief
_LEFT_S, _PAUSES = 2.0, 5.0  # without a change, and as many times the longest pause before
_DECIDED_S = 5.0  # how long who looks for it waits for a decision


def settle_after(sets: Sets, pending: PendingSet, closed: str) -> None:
    """A file of it was closed. Of a set of thousands of files not each close looks through it,
    but that of its marker does; the watch does the rest."""
    marks = any(marker.path == closed for profile in pending.profiles for marker in profile.markers)
    brief = pending.look_s < _BRIEF_S
    if marks or brief or time.monotonic() - pending.looked_at >= _LOOKS * pending.look_s:
        settle(sets, pending)


def settle(sets: Sets, pending: PendingSet) -> bool:
    """Publish it or put it aside, if that is due. Whether it is no more on its way."""
    with pending.lock:
        if pending.gone:
            return True
        do = decide(_facts(sets, pending))
        if do is Decision.WAIT:
            return False
        if do is Decision.SALVAGE:
            put_aside(sets, pending)
        else:
            publish(sets, pending, unmarked=do is Decision.PUBLISH_UNMARKED)
        return True


def _facts(sets: Sets, pending: PendingSet) -> Facts:
    """Of one that is written nothing else counts: it is not looked through."""
    sets.learn_ranks(pending)
    with sets.lock:
        writers = _ending(pending)
        written = _is_written(sets, pending.node)
        quiet_s, pause_s = pending.quiet_s, pending.pause_s
    if written:
        return Facts(complete=False, written=True, writers=writers)
    began = time.monotonic()
    files, elder = sets.store.sets.files(pending.node.fd), sets.store.sets.elder(pending.path)
    pending.looked_at = time.monotonic()
    pending.look_s = pending.looked_at - began
    profile = recognised(pending.profiles, files)
    gathered = Gathered(dict.fromkeys(files, True), pending.ranks, elder, pending.marked)
    return Facts(
        complete=is_complete(profile, gathered),
        written=False,
        writers=writers,
        aborted=pending.aborted,
        quiet_s=quiet_s,
        next_begun=pending.next_begun,
        asked=pending.asked,
        settle_after_s=sets.store.options.settle_after_s,
        left=not is_told(profile, elder) and quiet_s >= max(_LEFT_S, _PAUSES * pause_s),
    )


def _ending(pending: PendingSet) -> Ending:
    """Of all that wrote in it: it lives while one does, and failed where one has."""
    ends = {each.end() for each in pending.writers.values()}
    if End.NONE in ends:
        return Ending.LIVE
    if End.BADLY in ends:
        return Ending.FAILED
    return Ending.UNKNOWN if End.UNKNOWN in ends or not ends else Ending.ENDED_WELL


def _is_written(sets: Sets, top: Directory) -> bool:
    """Whether somebody has a file of it open for writing, or one is being committed."""
    versions = sets.versions
    opened = (
        handle.version
        for handle in versions.handles.values()
        if handle.version is not None and not handle.flushed
    )
    return any(
        version.at is not None and is_within(version.at[0], top)
        for version in (*versions.all(), *opened)
    )


def is_within(directory: Directory, top: Directory) -> bool:
    at: Directory | None = directory
    while at is not None and at is not top:
        at = at.parent
    return at is top


def publish(sets: Sets, pending: PendingSet, *, unmarked: bool) -> None:
    """It stands under its name on the disk on return, durable as its files are. The caller holds
    its lock. Raises OSError; it is as it was then."""
    parent, name = pending.at
    fd, place = pending.node.fd, parent.at(name)
    sets.store.sets.publish(pending.txid, fd, place, pending.profiles, unmarked=unmarked)
    with sets.lock:
        sets.end(pending)
        sets.nodes.folders.close(pending.node)  # found by its name from here on
        sets.nodes.forget(pending.node.id, 1)
    sets.appeared(pending)


def put_aside(sets: Sets, pending: PendingSet) -> None:
    """Its writers are gone and it is not complete: what it holds goes to salvage as one."""
    count = sets.store.sets.put_aside(pending.txid)
    told = f"its writers ended before it was complete; {count} files are in salvage"
    say(logging.WARNING, pending.path, told)
    with sets.lock:
        sets.end(pending)
        sets.nodes.removed(pending.node, stays_open=False)
        sets.nodes.folders.close(pending.node)
        sets.nodes.forget(pending.node.id, 1)
    sets.vanished(pending)


def settle_all(sets: Sets) -> None:
    """All for which something is due; what fails is told and tried again."""
    for pending in sets.all():
        with contextlib.suppress(OSError, CkptfsError):
            settle(sets, pending)


def wait_decided(sets: Sets, failed: list[PendingSet]) -> None:
    """Who looks into a series right after its job was killed does not see what that has left."""
    deadline = time.monotonic() + _DECIDED_S
    for pending in failed:
        while has_failed(sets, pending) and time.monotonic() < deadline:
            if settle(sets, pending):
                break
            time.sleep(_LOOK_S)


def has_failed(sets: Sets, pending: PendingSet) -> bool:
    """Whether all that wrote in it are gone, and one of them badly."""
    with sets.lock:
        return not pending.gone and _ending(pending) is Ending.FAILED


def ask(sets: Sets, directory: Directory) -> None:
    """Its writer has synced the directory: what stands in it is the set."""
    pending = sets.holding(directory)
    if pending is not None and pending.node is directory:
        pending.asked = True
        settle(sets, pending)


def end_all(sets: Sets, *, undecided: bool) -> None:
    """At the end of the mount. Where nobody has anything open what is ``undecided`` is published:
    bytes that were saved are not taken away from who saved them."""
    sets.pause()
    for pending in sets.all():
        with pending.lock:
            if pending.gone:
                continue
            try:
                if not settle(sets, pending) and undecided:
                    publish(sets, pending, unmarked=True)
            except (OSError, CkptfsError) as error:
                log.warning("%s: stays in stage: %s", pending.path, error)
