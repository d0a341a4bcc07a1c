"""The commit state table: what it lists happens, what it does not list cannot."""

from __future__ import annotations

import itertools

import pytest

from ckptfs.errors import IllegalTransition
from ckptfs.modes import Mode
from ckptfs.versions.life import FINAL, TRANSITIONS, VISIBLE, Event, State, advance
from ckptfs.versions.staged import Staged

PAIRS = list(itertools.product(State, Event))


@pytest.mark.parametrize(("state", "event"), [pair for pair in PAIRS if pair not in TRANSITIONS])
def test_an_unlisted_event_raises_and_leaves_the_state(state: State, event: Event) -> None:
    version = Staged("tx", -1, "a.pt", (0, 0), state=state)
    with pytest.raises(IllegalTransition, match=f"{event.value} in state {state.value}"):
        version.advance(event)
    assert version.state is state


@pytest.mark.parametrize(("state", "event"), list(TRANSITIONS))
def test_a_listed_event_leads_where_the_table_says(state: State, event: Event) -> None:
    version = Staged("tx", -1, "a.pt", (0, 0), state=state)
    version.advance(event)
    assert version.state is advance(state, event) is TRANSITIONS[state, event]


def into(table: dict[tuple[State, Event], State], target: State) -> set[tuple[State, Event]]:
    return {pair for pair, reached in table.items() if reached is target}


def test_C1_published_is_reached_only_through_sealed() -> None:
    assert into(TRANSITIONS, State.PUBLISHED) == {(State.SEALED, Event.PUBLISH)}
    assert into(TRANSITIONS, State.SEALED) == {(State.SEALING, Event.SEALED)}


def test_control_a_shortcut_to_published_would_be_seen() -> None:
    broken = {**TRANSITIONS, (State.OPEN, Event.PUBLISH): State.PUBLISHED}
    assert into(broken, State.PUBLISHED) != {(State.SEALED, Event.PUBLISH)}


def test_every_state_can_be_reached_from_open() -> None:
    reached, before = {State.OPEN}, set()
    while reached != before:
        before = set(reached)
        reached |= {after for (state, _), after in TRANSITIONS.items() if state in reached}
    assert reached == set(State)


def test_what_is_visible_is_never_aborted() -> None:
    assert all((state, Event.ABORT) not in TRANSITIONS for state in VISIBLE | FINAL)
    assert {state for state, _ in TRANSITIONS if state in FINAL} == {State.SETTLED}


def test_modes_say_what_they_sync() -> None:
    assert [mode.value for mode in Mode if mode.syncs_directories] == ["atomic_dirsync"]
    assert [mode.value for mode in Mode if not mode.transactional] == ["unsafe"]
