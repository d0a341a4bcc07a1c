"""When a file is finished, as a table: what a close, a release and what is due come to, of each
kind of version. Without a mount; ``test_mount_finished.py`` has the same by system calls."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from ckptfs.mount.processes.writers import Fate
from ckptfs.mount.writers import finished
from ckptfs.mount.writers.finished import Do, Finishing, Flushed, Released
from ckptfs.versions.life import FINAL, VISIBLE, State, Use, Writers

CLOSE = Flushed(  # the one close of who has opened and written it
    Fate.ALIVE,
    by_opener=True,
    is_last=True,
    unpublished=True,
    changed=True,
    may_map=False,
    fresh=False,
)
UNCHANGED = replace(CLOSE, changed=False)
FLUSHES = [
    ("the last of its writers closes it", CLOSE, Do.FINISH),
    ("others have it yet", replace(CLOSE, is_last=False), Do.WAIT),
    ("a forked child closes it", replace(CLOSE, by_opener=False), Do.NOTHING),
    ("a child is killed", replace(CLOSE, by_opener=False, fate=Fate.KILLED), Do.NOTHING),
    ("its writer exits", replace(CLOSE, fate=Fate.EXITING), Do.FINISH),
    ("its writer is killed", replace(CLOSE, fate=Fate.KILLED), Do.FINISH),
    ("nothing was written", UNCHANGED, Do.NOTHING),
    ("nothing was written, others have it", replace(UNCHANGED, is_last=False), Do.NOTHING),
    ("it is new and empty", replace(UNCHANGED, fresh=True), Do.COMMIT_EMPTY),
    ("it may be mapped", replace(UNCHANGED, may_map=True), Do.LOOK_FOR_MAPPING),
    ("new, maybe mapped", replace(UNCHANGED, may_map=True, fresh=True), Do.LOOK_FOR_MAPPING),
    (
        "its mapper is killed",
        replace(UNCHANGED, may_map=True, fate=Fate.KILLED),
        Do.NOTHING,
    ),
    (
        "the mapper of a new one exits",
        replace(UNCHANGED, may_map=True, fresh=True, fate=Fate.EXITING),
        Do.COMMIT_EMPTY,
    ),
    ("it is live", replace(UNCHANGED, unpublished=False), Do.FINISH),
    ("it is live, others have it", replace(CLOSE, unpublished=False, is_last=False), Do.FINISH),
]


@pytest.mark.parametrize(("close", "do"), [row[1:] for row in FLUSHES], ids=[r[0] for r in FLUSHES])
def test_what_a_flush_comes_to(close: Flushed, do: Do) -> None:
    assert finished.at_flush(close) is do


def test_a_flush_of_a_descriptor_that_was_not_opened_by_who_closes_it_never_commits() -> None:
    for fate, *flags in itertools.product(Fate, *[(False, True)] * 5):
        assert finished.at_flush(Flushed(fate, False, *flags)) is Do.NOTHING


def test_c6_the_kill_of_who_has_opened_it_and_not_closed_it_is_that_of_a_writer() -> None:
    for by_opener, closed, own in itertools.product((False, True), repeat=3):
        killed = finished.kills(by_opener=by_opener, closed=closed, own=own)
        assert killed == ((by_opener, closed, own) == (True, False, True))


@pytest.mark.parametrize(
    ("fresh", "writers", "untouched", "whole"),
    [
        (True, Writers.WHOLE, True, True),
        (True, Writers.MAULED, True, True),
        (True, Writers.KILLED, True, False),
        (False, Writers.WHOLE, True, False),
        (True, Writers.WHOLE, False, False),
    ],
)
def test_which_empty_version_is_whole(
    fresh: bool, writers: Writers, untouched: bool, whole: bool
) -> None:
    assert finished.empty_is_whole(fresh, writers, untouched=untouched) == whole


@pytest.mark.parametrize(
    ("left", "closed", "do"),
    [
        (True, False, Do.NOTHING),
        (True, True, Do.FINISH),
        (False, True, Do.END),
    ],
)
def test_what_a_release_comes_to(left: bool, closed: bool, do: Do) -> None:
    assert finished.at_release(left=left, closed=closed) is do


SHOWN = Released(unpublished=True, named=True, fresh=True, known=True, writers=Writers.WHOLE)


def test_what_is_shown_before_its_disk_work_is_done() -> None:
    assert finished.is_shown(SHOWN) and finished.is_shown(replace(SHOWN, writers=Writers.MAULED))
    for name in ("unpublished", "named", "fresh", "known"):
        assert not finished.is_shown(replace(SHOWN, **{name: False}))
    assert not finished.is_shown(replace(SHOWN, writers=Writers.KILLED))


OPEN = Finishing(
    State.OPEN,
    Use.CLOSING,
    Writers.WHOLE,
    failed=False,
    named=True,
    closed=True,
    released=False,
)
SETTLED = replace(OPEN, state=State.SETTLED)
MAULED = replace(OPEN, writers=Writers.MAULED)
KILLED = replace(OPEN, writers=Writers.KILLED)
DELETED = replace(OPEN, named=False)
DUE = [
    ("written and closed", OPEN, Do.COMMIT),
    ("released", replace(OPEN, released=True), Do.COMMIT),
    ("its writer was killed", KILLED, Do.SALVAGE),
    ("a child crashed", MAULED, Do.JUDGE),
    ("a child crashed over what is sound", replace(MAULED, judged=True), Do.COMMIT),
    ("it has failed", replace(OPEN, failed=True), Do.FAIL),
    ("failed and killed", replace(KILLED, failed=True), Do.FAIL),
    ("it has ended", replace(OPEN, use=Use.ENDED), Do.NOTHING),
    ("ended and failed", replace(OPEN, use=Use.ENDED, failed=True), Do.NOTHING),
    ("deleted, and open", DELETED, Do.NOTHING),
    ("deleted, and released", replace(DELETED, released=True), Do.DROP),
    ("deleted, its writer killed", replace(DELETED, writers=Writers.KILLED), Do.SALVAGE),
    ("aborted", replace(OPEN, state=State.ABORTED), Do.NOTHING),
    ("aborted, its writer killed", replace(KILLED, state=State.ABORTED), Do.NOTHING),
    ("aborted and deleted", replace(DELETED, state=State.ABORTED, released=True), Do.NOTHING),
    ("in place", replace(OPEN, state=State.IN_PLACE), Do.NOTHING),
    ("live, and closed by all", SETTLED, Do.RESEAL),
    ("live, and open", replace(SETTLED, closed=False), Do.MAKE_DURABLE),
    ("live, and mapped", replace(SETTLED, use=Use.LINGERING), Do.MAKE_DURABLE),
    ("live, its writer killed", replace(SETTLED, writers=Writers.KILLED), Do.RESEAL),
    ("live, a child crashed", replace(SETTLED, writers=Writers.MAULED), Do.RESEAL),
    ("live, its name gone", replace(SETTLED, named=False, released=True), Do.RESEAL),
]


@pytest.mark.parametrize(("version", "do"), [row[1:] for row in DUE], ids=[row[0] for row in DUE])
def test_what_is_due(version: Finishing, do: Do) -> None:
    assert finished.at_finish(version) is do


def every_finishing() -> list[Finishing]:
    flags = itertools.product((False, True), repeat=5)
    kinds = itertools.product(State, Use, Writers)
    return [Finishing(*kind, *more) for kind, more in itertools.product(kinds, flags)]


def test_c6_no_version_of_a_killed_writer_is_committed() -> None:
    for version in every_finishing():
        if version.writers is Writers.KILLED:
            assert finished.at_finish(version) is not Do.COMMIT


def test_what_is_visible_is_neither_dropped_nor_salvaged_and_what_is_not_is_never_resealed() -> (
    None
):
    lost, sealed = {Do.DROP, Do.SALVAGE, Do.JUDGE, Do.COMMIT}, {Do.RESEAL, Do.MAKE_DURABLE}
    for version in every_finishing():
        do = finished.at_finish(version)
        assert version.state not in VISIBLE | FINAL or do not in lost
        assert version.state is State.SETTLED or do not in sealed


def test_it_is_judged_once() -> None:
    for version in every_finishing():
        if version.judged:
            assert finished.at_finish(version) is not Do.JUDGE


@pytest.mark.parametrize(
    ("fresh", "meant", "released", "complete"),
    [
        (False, False, True, False),
        (True, False, False, False),
        (True, True, False, True),
        (True, False, True, True),
        (False, True, True, False),
    ],
)
def test_when_an_empty_version_is_complete(
    fresh: bool, meant: bool, released: bool, complete: bool
) -> None:
    assert finished.empty_is_complete(fresh, meant, released=released) == complete
