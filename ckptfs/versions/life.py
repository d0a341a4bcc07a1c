"""The life of one version, as tables. Pure.

Its commit:

    stage -> seal -> keep -> publish -> settle        (docs/design.md, "Commit")

Invariants: ``PUBLISHED`` is reached only through ``SEALED``, so a version that is visible under its
name has durable data and a record. Of several that are published as one it is reached by all, once
their intent has its name: nobody aborts what the next mount carries out.

In a mount, beside it: its *use* by those who open it, what has become of its *writers*, and each
open descriptor of it. What else is known of a version are facts, which decide and are no states.

An event that a table does not list raises :class:`~ckptfs.errors.IllegalTransition` and leaves the
state as it was. ``docs/design.md`` shows the tables as pictures (``tests/house/drawn.py``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar

from ckptfs.errors import IllegalTransition

# --- its commit ----------------------------------------------------------------------------------


class State(enum.Enum):
    OPEN = "open"  # being written in the shadow tree
    SEALING = "sealing"  # written back, digested, recorded
    SEALED = "sealed"  # data and record durable, not visible
    PUBLISHED = "published"  # visible under its name, or will be: an intent says so
    SETTLED = "settled"  # and its name is durable
    IN_PLACE = "in place"  # stands under its name without a record: several write it under a lock
    ABORTED = "aborted"  # never published; the bytes are in salvage


class Event(enum.Enum):
    SEAL = "seal"
    SEALED = "sealed"
    WRITTEN = "written"  # changed after its seal and before its publish
    PUBLISH = "publish"
    SETTLE = "settle"
    RESEAL = "reseal"  # changed after its publish: a live version gets a new record
    EXPOSE = "expose"  # gives up being a transaction
    ABORT = "abort"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.OPEN, Event.SEAL): State.SEALING,
    (State.SEALING, Event.SEALED): State.SEALED,
    (State.SEALED, Event.WRITTEN): State.OPEN,
    (State.SEALED, Event.PUBLISH): State.PUBLISHED,
    (State.PUBLISHED, Event.SETTLE): State.SETTLED,
    (State.SETTLED, Event.RESEAL): State.SETTLED,
    (State.OPEN, Event.EXPOSE): State.IN_PLACE,
    (State.OPEN, Event.ABORT): State.ABORTED,
    (State.SEALING, Event.ABORT): State.ABORTED,
    (State.SEALED, Event.ABORT): State.ABORTED,
}


class Step(str, enum.Enum):
    """What a commit has just done, in its order. Said through ``FileSystem.step``, where harnesses
    count, stop or kill; see ``tools.crash``."""

    STAGED = "staged"  # an empty file in the shadow tree
    DIGESTED = "digested"  # its pages clean, its digest known
    RECORDED = "recorded"  # the record set, not durable yet
    SEALED = "sealed"  # data and record fsynced
    KEPT = "kept"  # what it replaces linked into history
    PUBLISHED = "published"  # renamed onto its path
    SETTLED = "settled"  # its directory fsynced
    # A file that was added to where it lies takes these in place of sealed to settled:
    INTENDED = "intended"  # linked into stage
    ADDED = "added"  # what is new copied behind the old end, and fsynced
    EXTENDED = "extended"  # the record for all of it fsynced


VISIBLE = frozenset({State.PUBLISHED, State.SETTLED, State.IN_PLACE})
FINAL = frozenset({State.SETTLED, State.IN_PLACE, State.ABORTED})


# --- in a mount: who uses it ---------------------------------------------------------------------


class Use(enum.Enum):
    JOINABLE = "joinable"  # who opens its path for writing goes on with it
    CLOSING = "closing"  # all have closed it: it is committed or dropped, or was, and nobody joins
    LINGERING = "lingering"  # published, and mapped by somebody when all had closed it
    ENDED = "ended"  # its descriptor is closed


class Turn(enum.Enum):
    CLOSE = "close"  # everybody has closed it, or a commit of it begins
    GO_ON = "go on"  # somebody has it open yet, so it is not due
    MAP = "map"  # somebody was found to have it mapped
    UNMAP = "unmap"  # nobody was
    END = "end"


USES: dict[tuple[Use, Turn], Use] = {
    (Use.JOINABLE, Turn.CLOSE): Use.CLOSING,
    (Use.JOINABLE, Turn.GO_ON): Use.JOINABLE,
    (Use.JOINABLE, Turn.MAP): Use.LINGERING,
    (Use.JOINABLE, Turn.UNMAP): Use.JOINABLE,
    (Use.JOINABLE, Turn.END): Use.ENDED,
    (Use.CLOSING, Turn.CLOSE): Use.CLOSING,
    (Use.CLOSING, Turn.GO_ON): Use.JOINABLE,
    (Use.CLOSING, Turn.MAP): Use.LINGERING,
    (Use.CLOSING, Turn.UNMAP): Use.CLOSING,
    (Use.CLOSING, Turn.END): Use.ENDED,
    (Use.LINGERING, Turn.CLOSE): Use.LINGERING,
    (Use.LINGERING, Turn.GO_ON): Use.LINGERING,  # opened where it stands
    (Use.LINGERING, Turn.MAP): Use.LINGERING,
    (Use.LINGERING, Turn.UNMAP): Use.CLOSING,
    (Use.LINGERING, Turn.END): Use.ENDED,
    # Several releases run one after the other, and the last ones find it ended.
    (Use.ENDED, Turn.CLOSE): Use.ENDED,
    (Use.ENDED, Turn.MAP): Use.ENDED,
    (Use.ENDED, Turn.UNMAP): Use.ENDED,
}


# --- what has become of its writers --------------------------------------------------------------


class Writers(enum.Enum):
    WHOLE = "whole"  # none has died over it
    MAULED = "mauled"  # one that had it from its parent crashed: its structure decides
    KILLED = "killed"  # one that had opened it was killed, or what a crash left is not whole


class Blow(enum.Enum):
    CRASH = "crash"
    KILL = "kill"


WRITERS: dict[tuple[Writers, Blow], Writers] = {
    (Writers.WHOLE, Blow.CRASH): Writers.MAULED,
    (Writers.WHOLE, Blow.KILL): Writers.KILLED,
    (Writers.MAULED, Blow.CRASH): Writers.MAULED,
    (Writers.MAULED, Blow.KILL): Writers.KILLED,
    (Writers.KILLED, Blow.CRASH): Writers.KILLED,
    (Writers.KILLED, Blow.KILL): Writers.KILLED,
}


# --- one descriptor of it ------------------------------------------------------------------------


class Hold(enum.Enum):
    OPEN = "open"
    LEFT = "left"  # who closed a duplicate of it last was killed
    CLOSED = "closed"  # by the process that opened it, which so says that it is done


class Parting(enum.Enum):
    PASS = "pass"  # a duplicate is closed, which says nothing: shells, forked children
    LEAVE = "leave"  # one is closed by the death of its process
    CLOSE = "close"


HOLDS: dict[tuple[Hold, Parting], Hold] = {
    (Hold.OPEN, Parting.PASS): Hold.OPEN,
    (Hold.OPEN, Parting.LEAVE): Hold.LEFT,
    (Hold.OPEN, Parting.CLOSE): Hold.CLOSED,
    (Hold.LEFT, Parting.PASS): Hold.OPEN,
    (Hold.LEFT, Parting.LEAVE): Hold.LEFT,
    (Hold.LEFT, Parting.CLOSE): Hold.CLOSED,
    (Hold.CLOSED, Parting.PASS): Hold.CLOSED,
    (Hold.CLOSED, Parting.LEAVE): Hold.CLOSED,
    (Hold.CLOSED, Parting.CLOSE): Hold.CLOSED,
}


# --- all of them ---------------------------------------------------------------------------------

S = TypeVar("S", bound=enum.Enum)
E = TypeVar("E", bound=enum.Enum)


def after(table: Mapping[tuple[S, E], S], state: S, event: E) -> S:
    """The state after ``event``. Raises IllegalTransition where the table has no entry."""
    try:
        return table[state, event]
    except KeyError:
        raise IllegalTransition(f"{event.value} in state {state.value}") from None


def advance(state: State, event: Event) -> State:
    """The same of its commit."""
    return after(TRANSITIONS, state, event)
