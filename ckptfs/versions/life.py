"""The commit protocol: the life of one version as a table. Pure.

    stage -> seal -> keep -> publish -> settle        (docs/design.md, "Commit")

Invariant: ``PUBLISHED`` is reached only through ``SEALED``, so a version that is visible under its
name has durable data and a record. An event the table does not list raises
:class:`~ckptfs.errors.IllegalTransition` and leaves the state as it was.
"""

from __future__ import annotations

import enum

from ckptfs.errors import IllegalTransition


class State(enum.Enum):
    OPEN = "open"  # being written in the shadow tree
    SEALING = "sealing"  # written back, digested, recorded
    SEALED = "sealed"  # data and record durable, not visible
    PUBLISHED = "published"  # visible under its name
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


def advance(state: State, event: Event) -> State:
    """The state after ``event``. Raises IllegalTransition where the table has no entry."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event.value} in state {state.value}") from None
