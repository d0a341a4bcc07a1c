"""The life of a set, as a table, and what is to be done with one that is open. Pure.

    open -> complete | unmarked -> published

Invariant: nothing of a set is under its name on the disk before it is ``PUBLISHED``. What tears
goes to salvage as a whole, and the set before it stands.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ckptfs.versions.life import after

SETTLE_AFTER_S = 30.0


class SetState(enum.Enum):
    OPEN = "open"  # being written, in stage
    COMPLETE = "complete"  # its marker and all members are there, or somebody said so
    UNMARKED = "unmarked"  # nothing says so, but its writers are done with it
    PUBLISHED = "published"  # under its name, with a manifest
    TORN = "torn"  # to salvage, as one directory
    DROPPED = "dropped"  # removed by its user before it was published


class SetEvent(enum.Enum):
    COMPLETE = "complete"
    SETTLE = "settle"
    WRITE = "write"  # a file in it is opened for writing before it is published
    PUBLISH = "publish"
    TEAR = "tear"  # its writers failed, or its publish did
    DROP = "drop"


SETS: dict[tuple[SetState, SetEvent], SetState] = {
    (SetState.OPEN, SetEvent.WRITE): SetState.OPEN,
    (SetState.OPEN, SetEvent.COMPLETE): SetState.COMPLETE,
    (SetState.OPEN, SetEvent.SETTLE): SetState.UNMARKED,
    (SetState.OPEN, SetEvent.TEAR): SetState.TORN,
    (SetState.OPEN, SetEvent.DROP): SetState.DROPPED,
    (SetState.COMPLETE, SetEvent.WRITE): SetState.OPEN,
    (SetState.COMPLETE, SetEvent.PUBLISH): SetState.PUBLISHED,
    (SetState.COMPLETE, SetEvent.TEAR): SetState.TORN,
    (SetState.COMPLETE, SetEvent.DROP): SetState.DROPPED,
    (SetState.UNMARKED, SetEvent.WRITE): SetState.OPEN,
    (SetState.UNMARKED, SetEvent.COMPLETE): SetState.COMPLETE,
    (SetState.UNMARKED, SetEvent.PUBLISH): SetState.PUBLISHED,
    (SetState.UNMARKED, SetEvent.TEAR): SetState.TORN,
    (SetState.UNMARKED, SetEvent.DROP): SetState.DROPPED,
}


def advance(state: SetState, event: SetEvent) -> SetState:
    """Raises IllegalTransition where the table has no entry."""
    return after(SETS, state, event)


# --- what is to be done --------------------------------------------------------------------------


class Ending(enum.Enum):
    """Of the processes that wrote a set, and their descendants."""

    LIVE = "live"  # one of them is there yet
    ENDED_WELL = "ended well"  # all are gone, with status 0
    FAILED = "failed"  # all are gone; one was killed, or ended with another status
    UNKNOWN = "unknown"  # all are gone, and nobody can tell how


class Decision(enum.Enum):
    WAIT = "wait"
    PUBLISH = "publish"  # as complete
    PUBLISH_UNMARKED = "publish unmarked"
    SALVAGE = "salvage"


@dataclass(frozen=True)
class Facts:
    """Of a set that is open."""

    complete: bool  # see ckptfs.sets.complete
    written: bool  # a file of it is open for writing
    writers: Ending
    aborted: bool = False  # a version in it was
    quiet_s: float = 0.0  # since the last write or close
    next_begun: bool = False  # its writers began the next one of the series
    asked: bool = False  # fsync of the directory, or ``ckptfs commit``
    settle_after_s: float = SETTLE_AFTER_S
    # Nothing will tell that it is complete (the first of a series without a marker), and it was
    # not touched for far longer than ever between its files: it most likely is.
    left: bool = False


def decide(facts: Facts) -> Decision:
    """What somebody has open yet is waited for: a child may go on with what its parent began."""
    if facts.written:
        return Decision.WAIT
    if _failed(facts) and not facts.complete and (facts.aborted or not facts.left):
        return Decision.SALVAGE
    if facts.complete or facts.asked:
        return Decision.PUBLISH
    return Decision.PUBLISH_UNMARKED if _is_left(facts) else Decision.WAIT


def _failed(facts: Facts) -> bool:
    unknown = facts.writers is Ending.UNKNOWN
    return facts.writers is Ending.FAILED or (unknown and facts.aborted)


def _is_left(facts: Facts) -> bool:
    """Its writers are done with it, as far as can be told."""
    ended = facts.writers is not Ending.LIVE
    return ended or facts.next_begun or facts.quiet_s >= facts.settle_after_s
