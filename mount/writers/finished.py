"""When is a file finished, and what follows? Pure: facts in, what to do out.

A version commits at the FLUSH with which its last open write handle was closed by the process
that opened it; at the last RELEASE where no such FLUSH came (descriptors passed to children,
unknown writers); never where one of its writers was killed. After its commit it stays *live* while
a write handle or a writable mapping remains, and is sealed again when it changed; who opens the
path for writing without O_TRUNC then writes to that very inode.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ckptfs.versions.life import VISIBLE, State, Use, Writers

from ..processes.writers import Fate


class Do(enum.Enum):
    NOTHING = "nothing"
    WAIT = "wait"  # others have it open yet: the last of them commits
    FINISH = "finish"  # look what is due, see ``at_finish``
    END = "end"  # the same, for the last time: nobody has it open any more
    LOOK_FOR_MAPPING = "look for mapping"  # live from now on if there is one, else as an empty one
    COMMIT_EMPTY = "commit empty"  # if nobody who may write it has a descriptor left
    COMMIT = "commit"  # if it is complete, else as ``LEAVE``
    DROP = "drop"
    JUDGE = "judge"  # by its structure, whether it is whole
    SALVAGE = "salvage"  # but for what is good as far as it goes
    FAIL = "fail"  # as before
    RESEAL = "reseal"
    MAKE_DURABLE = "make durable"  # it changes on


# --- a FLUSH: one close of one duplicate ---------------------------------------------------------


@dataclass(frozen=True)
class Flushed:
    fate: Fate  # of the process that closes
    by_opener: bool  # else by a child that has it from its parent, or by whoever
    is_last: bool  # everybody else who is known to write the version has closed it
    unpublished: bool
    changed: bool  # since it was begun; of an unpublished one
    may_map: bool  # opened for reading and writing
    fresh: bool  # created or truncated


def at_flush(close: Flushed) -> Do:
    """One that changed nothing says nothing, for shells close a duplicate before they write; but
    for what is empty, and for what may be mapped and is written from now on."""
    if not close.by_opener:
        return Do.NOTHING  # its RELEASE decides
    if close.unpublished and not close.changed:
        if close.may_map and close.fate is Fate.ALIVE:
            return Do.LOOK_FOR_MAPPING
        return Do.COMMIT_EMPTY if close.fresh else Do.NOTHING
    return Do.FINISH if close.is_last or not close.unpublished else Do.WAIT


def kills(*, by_opener: bool, closed: bool, own: bool) -> bool:
    """Whether a process that is killed takes the version along: one that had opened it and not
    closed it before (``closed``), of the user who began it (``own``). Others end as they like."""
    return by_opener and own and not closed


def empty_is_whole(fresh: bool, writers: Writers, *, untouched: bool) -> bool:
    """Whether a version without a byte is what its openers meant, once all have closed it."""
    return fresh and writers is not Writers.KILLED and untouched


# --- a RELEASE: nobody has that description any more ---------------------------------------------


def at_release(*, left: bool, closed: bool) -> Do:
    """``left``: others have the version open; ``closed``: all of them have closed it, but for
    duplicates and bystanders."""
    if left:
        return Do.FINISH if closed else Do.NOTHING
    return Do.END


@dataclass(frozen=True)
class Released:
    """A version that nobody has open, and that nobody is on the way to open."""

    unpublished: bool
    named: bool
    fresh: bool  # created or truncated, and some open of it returned
    known: bool  # its writers can be told apart
    writers: Writers


def is_shown(version: Released) -> bool:
    """Whether everybody sees it though its disk work goes on, unless it is overtaken."""
    whole = version.unpublished and version.named and version.writers is not Writers.KILLED
    return whole and version.known and version.fresh


# --- what is due, under the version's own lock ---------------------------------------------------


@dataclass(frozen=True)
class Finishing:
    state: State  # of its commit
    use: Use
    writers: Writers
    failed: bool
    named: bool  # not deleted or replaced under its name
    closed: bool  # by everybody who is known to write it
    released: bool  # by everybody
    judged: bool = False  # what a crash left, just now

    @property
    def unpublished(self) -> bool:
        return self.state not in VISIBLE and self.state is not State.ABORTED


def at_finish(version: Finishing) -> Do:
    if version.use is Use.ENDED:
        return Do.NOTHING
    if version.failed:
        return Do.FAIL
    if version.unpublished and version.writers is Writers.KILLED:
        return Do.SALVAGE
    if version.unpublished and version.writers is Writers.MAULED and not version.judged:
        return Do.JUDGE
    if version.state is State.SETTLED:
        changes_on = version.use is Use.LINGERING or not version.closed
        return Do.MAKE_DURABLE if changes_on else Do.RESEAL
    if not version.named:
        return Do.DROP if version.released and version.unpublished else Do.NOTHING
    return Do.COMMIT if version.state is State.OPEN else Do.NOTHING


def empty_is_complete(fresh: bool, meant: bool, *, released: bool) -> bool:
    """Whether there is something to commit though nothing was written: what is empty is whole by
    the word of its openers (``meant``), or once nobody can write it any more."""
    return fresh and (meant or released)
