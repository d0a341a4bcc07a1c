"""Tickets: what a version is to be is fixed when it is closed, in the order of the closes.

So it can be sealed before its turn, while what it comes after is not on the disk yet. Whether a
ticket still holds is looked at when the version is published.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place
from ckptfs.versions.standing import Replaced, replaced_by


@dataclass(frozen=True)
class Ticket:
    lineage: str
    generation: int
    replaced: Replaced | None  # on the disk when the ticket was given
    follows: bool = False  # another version of its path, which is published before it


def give_ticket(core: Core, place: Place, after: Ticket | None = None) -> Ticket:
    """For the next version of a path; ``after`` is that of the one before it, if it has not been
    published yet. The caller holds the lock of the path. Nothing is durable on return."""
    if after is not None:
        generation = core.layout.next_generation(after.generation)
        return Ticket(after.lineage, generation, None, follows=True)
    return ticket_after(core, replaced_by(core, place))


def still_holds(ticket: Ticket, record: Record, standing: Replaced | None) -> bool:
    """Whether a version with this record may take the place of what stands there by now: it has
    the lineage of that, and a higher number."""
    if (record.lineage, record.generation) != (ticket.lineage, ticket.generation):
        return False  # it was recorded anew since
    if standing is None:
        return ticket.replaced is None and not ticket.follows
    return standing.lineage == ticket.lineage and standing.generation < ticket.generation


def ticket_after(core: Core, replaced: Replaced | None) -> Ticket:
    """For what takes the place of that."""
    last = replaced.record.generation if replaced and replaced.record else 0
    lineage = replaced.lineage if replaced else fmt.new_lineage()
    return Ticket(lineage, core.layout.next_generation(last), replaced)
