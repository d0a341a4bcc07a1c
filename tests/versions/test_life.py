"""The tables of a version's life in a mount: what they list happens, nothing else can."""

from __future__ import annotations

import contextlib
import enum
import itertools
from typing import Any, cast

import pytest

from ckptfs.errors import IllegalTransition
from ckptfs.mount.view.model import File, Handle, Version
from ckptfs.versions.life import (
    HOLDS,
    USES,
    WRITERS,
    Blow,
    Hold,
    Parting,
    Turn,
    Use,
    Writers,
    after,
)
from ckptfs.versions.staged import Staged

Table = dict[tuple[Any, Any], Any]
TABLES: list[tuple[Table, type[enum.Enum], type[enum.Enum]]] = [
    (cast(Table, USES), Use, Turn),
    (cast(Table, WRITERS), Writers, Blow),
    (cast(Table, HOLDS), Hold, Parting),
]
ALL = [(table, pair) for table, *kinds in TABLES for pair in itertools.product(*kinds)]
UNLISTED = [(table, pair) for table, pair in ALL if pair not in table]
NODE = cast(File, None)


def changed(state: enum.Enum, event: enum.Enum) -> enum.Enum:
    """What a version or a handle in this state is in after the event, or if it raised."""
    version = Version(Staged("tx", -1, "a.pt", (0, 0)), NODE, None, set(), False, True)
    handle = Handle(1, NODE, -1, 0, None)
    if isinstance(state, Use) and isinstance(event, Turn):
        version.use = state
        _ignoring(lambda: version.turn(event))
        return version.use
    if isinstance(state, Writers) and isinstance(event, Blow):
        version.writers = state
        _ignoring(lambda: version.strike(event))
        return version.writers
    assert isinstance(state, Hold) and isinstance(event, Parting)
    handle.hold = state
    _ignoring(lambda: handle.part(event))
    return handle.hold


def _ignoring(change: Any) -> None:
    with contextlib.suppress(IllegalTransition):
        change()


@pytest.mark.parametrize(("table", "pair"), UNLISTED, ids=str)
def test_an_unlisted_event_raises_and_leaves_the_state(table: Table, pair: Any) -> None:
    state, event = pair
    with pytest.raises(IllegalTransition, match=f"{event.value} in state {state.value}"):
        after(table, state, event)
    assert changed(state, event) is state


def test_a_listed_event_leads_where_the_table_says() -> None:
    for table, (state, event) in ALL:
        if (state, event) in table:
            assert changed(state, event) is after(table, state, event) is table[state, event]


def test_what_has_ended_stays_so() -> None:
    assert {state for (before, _), state in USES.items() if before is Use.ENDED} == {Use.ENDED}
    assert (Use.ENDED, Turn.GO_ON) not in USES and (Use.ENDED, Turn.END) not in USES


def test_c6_nothing_brings_a_killed_writer_back() -> None:
    after_kill = {state for (before, _), state in WRITERS.items() if before is Writers.KILLED}
    assert after_kill == {Writers.KILLED}
    assert {state for (_, blow), state in WRITERS.items() if blow is Blow.KILL} == {Writers.KILLED}


def test_what_its_opener_has_closed_stays_closed() -> None:
    assert {state for (before, _), state in HOLDS.items() if before is Hold.CLOSED} == {Hold.CLOSED}


@pytest.mark.parametrize(("table", "states", "events"), TABLES, ids=["use", "writers", "hold"])
def test_every_state_can_be_reached_and_every_event_is_used(
    table: Table, states: type[enum.Enum], events: type[enum.Enum]
) -> None:
    first = next(iter(states))
    assert {first, *table.values()} == set(states)
    assert {event for _, event in table} == set(events)
