"""The life of a set, from the making of its directory on, and who decides what becomes of it. Pure.

Invariant: under its name on the disk stands nothing of a set, or all of it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class State(str, enum.Enum):
    OPEN = "open"  # on its way: seen through the mount, in stage on the disk
    COMPLETE = "complete"  # published: all that its profile expects is there
    UNMARKED = "unmarked"  # published, without a word that it is complete
    TORN = "torn"  # in salvage
    DROPPED = "dropped"  # removed by its user


class Event(enum.Enum):
    FINISH = "finish"
    LEAVE = "leave"
    BREAK = "break"
    REMOVE = "remove"


STATES: Mapping[tuple[State, Event], State] = {
    (State.OPEN, Event.FINISH): State.COMPLETE,
    (State.OPEN, Event.LEAVE): State.UNMARKED,
    (State.OPEN, Event.BREAK): State.TORN,
    (State.OPEN, Event.REMOVE): State.DROPPED,
}


class Job(enum.Enum):
    """Of all processes that wrote in the set."""

    LIVE = "live"  # one does
    ENDED_WELL = "ended well"
    FAILED = "failed"  # one was killed, or ended with another status than 0
    UNKNOWN = "unknown"  # none is left, and how they ended nobody can tell


class Do(enum.Enum):
    WAIT = "wait"
    PUBLISH = "publish"
    PUBLISH_UNMARKED = "publish unmarked"
    SALVAGE = "salvage"


@dataclass(frozen=True)
class Facts:
    complete: bool  # all that its profile expects is there and closed
    written: bool  # a file of it is open for writing, or on its way
    writers: Job
    quiet_s: float  # since something was written or closed in it
    next_begun: bool  # its writers have begun the next of its series
    asked: bool  # its directory was fsynced
    aborted: bool = False  # what was written to a file of it was not committed
    settle_after_s: float = 30.0


def decide(facts: Facts) -> Do:
    """A job that has failed takes along what is not complete; all other bytes come under their
    name sooner or later."""
    if facts.written:
        return Do.WAIT  # its close, or the end of its writer, brings the question again
    if facts.complete or (facts.asked and not facts.aborted):
        return Do.PUBLISH
    if facts.writers is Job.FAILED or (facts.aborted and facts.writers is not Job.LIVE):
        return Do.SALVAGE
    over = facts.next_begun or facts.writers is not Job.LIVE
    if over or facts.quiet_s >= facts.settle_after_s:
        return Do.PUBLISH_UNMARKED
    return Do.WAIT
