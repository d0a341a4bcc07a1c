"""The life of a set: what its table lists happens, nothing else can; what an open one comes to."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from ckptfs.errors import IllegalTransition
from ckptfs.sets.life import (
    SETS,
    Decision,
    Ending,
    Facts,
    SetEvent,
    SetState,
    advance,
    decide,
)

WAIT, PUBLISH = Decision.WAIT, Decision.PUBLISH
UNMARKED, SALVAGE = Decision.PUBLISH_UNMARKED, Decision.SALVAGE
OPEN = Facts(complete=False, written=False, writers=Ending.LIVE)
ENDED, FAILED = replace(OPEN, writers=Ending.ENDED_WELL), replace(OPEN, writers=Ending.FAILED)
UNKNOWN = replace(OPEN, writers=Ending.UNKNOWN)
COMPLETE = replace(OPEN, complete=True)
DECISIONS = [
    ("between two files", OPEN, WAIT),
    ("in a file", replace(OPEN, written=True), WAIT),
    ("all of it is there", COMPLETE, PUBLISH),
    ("it is written once more", replace(COMPLETE, written=True), WAIT),
    ("its writers ended", ENDED, UNMARKED),
    ("its writers ended, one file is on its way", replace(ENDED, written=True), WAIT),
    ("its writers ended, complete", replace(ENDED, complete=True), PUBLISH),
    ("one was killed", FAILED, SALVAGE),
    ("one was killed, a stranger has it open", replace(FAILED, written=True), WAIT),
    ("one was killed behind the last file", replace(FAILED, complete=True), PUBLISH),
    ("one was killed, though asked", replace(FAILED, asked=True), SALVAGE),
    ("one was killed, though the next is begun", replace(FAILED, next_begun=True), SALVAGE),
    ("nobody knows how they ended", UNKNOWN, UNMARKED),
    ("nobody knows, and a version was aborted", replace(UNKNOWN, aborted=True), SALVAGE),
    ("aborted, and saved again", replace(UNKNOWN, aborted=True, complete=True), PUBLISH),
    ("aborted, and its writers go on", replace(OPEN, aborted=True), WAIT),
    ("aborted, and its writers ended well", replace(ENDED, aborted=True), UNMARKED),
    ("asked", replace(OPEN, asked=True), PUBLISH),
    ("asked in a file", replace(OPEN, asked=True, written=True), WAIT),
    ("the next is begun", replace(OPEN, next_begun=True), UNMARKED),
    ("the next is begun in a file of it", replace(OPEN, next_begun=True, written=True), WAIT),
    ("quiet", replace(OPEN, quiet_s=30.0), UNMARKED),
    ("not for long", replace(OPEN, quiet_s=29.9), WAIT),
    ("quiet as its user wants", replace(OPEN, quiet_s=5.0, settle_after_s=5.0), UNMARKED),
    ("quiet in a long write", replace(OPEN, quiet_s=99.0, written=True), WAIT),
]


@pytest.mark.parametrize(
    ("facts", "do"), [row[1:] for row in DECISIONS], ids=[r[0] for r in DECISIONS]
)
def test_what_is_done_with_an_open_set(facts: Facts, do: Decision) -> None:
    assert decide(facts) is do


def _all_facts() -> list[Facts]:
    flags = itertools.product((False, True), repeat=5)
    kinds = itertools.product(flags, Ending, (0.0, 60.0))
    return [
        Facts(complete, written, writers, aborted, quiet, begun, asked)
        for (complete, written, aborted, begun, asked), writers, quiet in kinds
    ]


def test_nothing_is_published_while_a_file_of_it_is_open() -> None:
    for facts in _all_facts():
        if facts.written:
            assert decide(facts) in (WAIT, SALVAGE)


def test_only_what_failed_is_salvaged_and_nothing_that_is_complete() -> None:
    for facts in _all_facts():
        if decide(facts) is SALVAGE:
            assert not facts.complete
            assert facts.writers is Ending.FAILED or facts.aborted


def test_no_set_waits_for_ever_once_its_writers_are_gone() -> None:
    for facts in _all_facts():
        if facts.writers is not Ending.LIVE and not facts.written:
            assert decide(facts) is not WAIT


@pytest.mark.parametrize(("state", "event"), [*itertools.product(SetState, SetEvent)])
def test_what_is_not_listed_raises(state: SetState, event: SetEvent) -> None:
    if (state, event) in SETS:
        assert advance(state, event) is SETS[state, event]
    else:
        with pytest.raises(IllegalTransition):
            advance(state, event)


def test_what_is_published_torn_or_dropped_is_final() -> None:
    left = {state for state, _ in SETS}
    assert set(SetState) - left == {SetState.PUBLISHED, SetState.TORN, SetState.DROPPED}
    ways = {state for (state, event) in SETS if event is SetEvent.PUBLISH}
    assert ways == {SetState.COMPLETE, SetState.UNMARKED}
