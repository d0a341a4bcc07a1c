"""Seal apart from publish: tickets in the order of closes, and what stands there at the publish.

A version that was sealed earlier takes the place of what stands there by then, whatever that is:
that is kept, and the number of the new one is above its own. C4 holds as in a commit."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from groups import opened, placed, publish_all, publish_one, sealed, staged, two_closed
from harness import NEW, NEWER, OLD, lineage, look_on, recorded

from ckptfs.disk import osfs
from ckptfs.disk.space import Space
from ckptfs.errors import BrokenStructure
from ckptfs.history import earlier
from ckptfs.store import Store
from ckptfs.tools.harness.crashfs import CrashFs
from ckptfs.tools.harness.faults import Before, Call, FailNth, Intercepted
from ckptfs.versions import commit
from ckptfs.versions.life import State, Step
from ckptfs.versions.publish import Delete
from ckptfs.versions.seal import seal
from ckptfs.versions.tickets import give_ticket

BETWEEN = b"between " * 300


def whole() -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.ones(100)}, file)
    return file.getvalue()


def generations(store: Store) -> list[int]:
    """Of a.pt, newest first."""
    return earlier.generations(store.layout, lineage(store, "a.pt"))


def kept(store: Store) -> list[bytes]:
    found, of = [], lineage(store, "a.pt")
    with osfs.opened(store.fs, store.layout.history, of, osfs.DIRECTORY) as folder:
        for generation in generations(store):
            with osfs.opened(store.fs, folder, str(generation), osfs.O_RDONLY) as fd:
                found.append(store.fs.read(fd, 1 << 20, 0))
    return found


def test_versions_are_sealed_in_any_order_and_published_in_that_of_their_tickets() -> None:
    store = opened(CrashFs())
    store.put("a.pt", OLD)
    of = lineage(store, "a.pt")
    closed = two_closed(store)
    for version, ticket, _ in reversed(closed):
        seal(store.core, version, ticket)
    for each in closed:
        publish_one(store, *each)
    assert store.get("a.pt") == NEWER
    assert lineage(store, "a.pt") == of
    assert [ticket.generation for _, ticket, _ in closed] == [2, 3]
    assert recorded(store, "a.pt").generation == 3
    assert store.history.rollback("a.pt") == 2
    assert store.get("a.pt") == NEW
    assert store.history.rollback("a.pt", 1) == 1


def test_the_first_of_a_path_is_followed_by_one_of_its_lineage() -> None:
    store = opened(CrashFs())
    closed = two_closed(store)
    for version, ticket, place in closed:
        seal(store.core, version, ticket)
        publish_one(store, version, ticket, place)
    assert store.get("a.pt") == NEWER
    assert store.history.rollback("a.pt") == closed[0][1].generation


def test_a_version_whose_forerunner_was_dropped_replaces_what_stands() -> None:
    store = opened(CrashFs())
    store.put("a.pt", OLD)
    (dropped, _, _), (version, ticket, place) = two_closed(store)
    seal(store.core, version, ticket)
    commit.discard(store.core, dropped)
    publish_one(store, version, ticket, place)
    assert store.get("a.pt") == NEWER
    store.history.rollback("a.pt")
    assert store.get("a.pt") == OLD


def test_a_version_that_follows_is_recorded_anew_where_another_history_came_there() -> None:
    store = opened(CrashFs())
    (dropped, _, _), (version, ticket, place) = two_closed(store)
    seal(store.core, version, ticket)
    commit.discard(store.core, dropped)
    store.put("a.pt", OLD)
    of = lineage(store, "a.pt")
    publish_one(store, version, ticket, place)
    assert version.state is State.SETTLED
    assert lineage(store, "a.pt") == of != ticket.lineage
    store.history.rollback("a.pt")
    assert store.get("a.pt") == OLD


def test_a_version_that_follows_what_was_deleted_begins_a_history() -> None:
    store = opened(CrashFs())
    (first, before, place), (second, after, other) = two_closed(store)
    seal(store.core, first, before)
    seal(store.core, second, after)
    publish_one(store, first, before, place)
    publish_all(store, Delete(place))
    publish_one(store, second, after, other)
    assert store.get("a.pt") == NEWER
    assert lineage(store, "a.pt") != after.lineage


# --- somebody else came there


def _commit(store: Store) -> None:
    store.put("a.pt", BETWEEN)


def _rename(store: Store) -> None:
    store.put("b.pt", BETWEEN)
    store.rename("b.pt", "a.pt")


def _rename_away(store: Store) -> None:
    store.rename("a.pt", "z.pt")
    store.put("a.pt", BETWEEN)


def _roll_back(store: Store) -> None:
    store.put("a.pt", BETWEEN)
    store.put("a.pt", NEWER)
    store.history.rollback("a.pt")


MEANWHILE: dict[str, Callable[[Store], None]] = {
    "committed": _commit,
    "renamed onto": _rename,
    "renamed away": _rename_away,
    "rolled back": _roll_back,
}


@pytest.mark.parametrize("stood", [True, False])
@pytest.mark.parametrize("what", MEANWHILE)
def test_C1_what_came_there_since_the_ticket_is_kept(what: str, stood: bool) -> None:
    """It was committed: its writer was told so."""
    if what == "renamed away" and not stood:
        return
    store = opened(CrashFs())
    if stood:
        store.put("a.pt", OLD)
    install = sealed(store, "a.pt", NEW)
    MEANWHILE[what](store)
    publish_all(store, install)
    assert store.get("a.pt") == NEW
    assert recorded(store, "a.pt").generation > max(generations(store))
    assert kept(store)[0] == BETWEEN
    if what == "renamed away":
        assert lineage(store, "a.pt") != lineage(store, "z.pt")


def test_a_version_whose_path_was_deleted_since_the_ticket_begins_a_history() -> None:
    store = opened(CrashFs())
    store.put("a.pt", OLD)
    install = sealed(store, "a.pt", NEW)
    store.unlink("a.pt")
    publish_all(store, install)
    assert store.get("a.pt") == NEW
    assert lineage(store, "a.pt") != install.ticket.lineage


def test_generations_are_in_the_order_of_the_publishes() -> None:
    """What was dropped left a gap, into which the next version would fall."""
    store = opened(CrashFs(), keep=1)
    store.put("a.pt", OLD)
    (dropped, _, _), (version, ticket, place) = two_closed(store)
    seal(store.core, version, ticket)
    commit.discard(store.core, dropped)
    store.put("a.pt", BETWEEN)
    publish_one(store, version, ticket, place)
    assert store.get("a.pt") == NEWER
    assert kept(store) == [BETWEEN]
    assert recorded(store, "a.pt").generation > max(generations(store))


def test_who_is_published_late_comes_after_who_was_to_follow() -> None:
    fs = CrashFs()
    store = opened(fs)
    store.put("a.pt", OLD)
    first, second = two_closed(store)
    for version, ticket, _ in (first, second):
        seal(store.core, version, ticket)
    look_on(store, FailNth(fs, 1, methods={"rename"}))
    with pytest.raises(OSError, match="injected"):
        publish_one(store, *first)
    look_on(store, fs)
    publish_one(store, *second)
    publish_one(store, *first)
    assert store.get("a.pt") == NEW
    assert kept(store)[:2] == [NEWER, OLD]


def test_a_version_that_was_recorded_anew_is_not_published_by_its_first_ticket() -> None:
    """The publish failed, and what came between is gone again."""
    fs = CrashFs()
    store = opened(fs)
    install = sealed(store, "a.pt", NEW)
    store.put("a.pt", BETWEEN)
    look_on(store, FailNth(fs, 1, methods={"rename"}))
    with pytest.raises(OSError, match="injected"):
        publish_all(store, install)
    look_on(store, fs)
    store.unlink("a.pt")
    publish_all(store, install)
    store.put("a.pt", NEWER)
    record = install.staged.record
    assert record is not None and recorded(store, "a.pt").lineage == record.lineage
    assert kept(store)[0] == NEW


# --- C4


def test_C4_a_broken_version_that_was_sealed_ahead_replaces_no_sound_one() -> None:
    store = opened(CrashFs())
    first, place = staged(store, "a.pt", whole())
    ticket = give_ticket(store.core, place)
    second, other = staged(store, "a.pt", whole()[:-100])
    after = give_ticket(store.core, other, ticket)
    seal(store.core, second, after)
    seal(store.core, first, ticket)
    publish_one(store, first, ticket, place)
    with pytest.raises(BrokenStructure):
        publish_one(store, second, after, other)
    assert store.get("a.pt") == whole()


def test_C4_nor_does_one_that_was_written_to_until_it_was_sealed() -> None:
    """Nothing but its record tells what was found in it."""
    fs = CrashFs()
    store = opened(fs)
    first, place = staged(store, "a.pt", whole())
    ticket = give_ticket(store.core, place)
    second, other = staged(store, "a.pt", whole()[:-100])
    after = give_ticket(store.core, other, ticket)

    def write(call: Call) -> None:
        if call.method == "step" and call.arguments[0] is Step.RECORDED:
            fs.write(second.fd, b"P", 0)

    look_on(store, Before(fs, write))
    seal(store.core, second, after)
    look_on(store, fs)
    seal(store.core, first, ticket)
    publish_one(store, first, ticket, place)
    with pytest.raises(BrokenStructure):
        publish_one(store, second, after, other)
    assert second.state is State.SEALED
    assert store.get("a.pt") == whole()


class Full(Intercepted):
    """There is no room for the generation counter either."""

    def around(self, call: Call) -> object:
        if call.method == "space":
            return Space(0, 1 << 30)
        if call.method == "open" and str(call.arguments[1]).startswith("generation."):
            raise OSError(28, "No space left on device")
        return call.run()


def test_C4_a_broken_version_is_told_as_broken_on_a_full_disk_and_is_in_salvage() -> None:
    fs = CrashFs()
    opened(fs).put("a.pt", whole())
    store = Store(Full(fs).fs, fs.root, "store", opened(fs).options)  # the next mount
    with pytest.raises(BrokenStructure):
        store.put("a.pt", whole()[:-100])
    assert len(store.layout.aside.entries(store.layout.salvage)) == 1


def test_a_version_that_is_refused_uses_up_no_number() -> None:
    store = opened(CrashFs())
    store.put("a.pt", whole())
    with pytest.raises(BrokenStructure):
        store.put("a.pt", whole()[:-100])
    store.put("a.pt", whole())
    assert recorded(store, "a.pt").generation == 2


# --- with a hole


def test_C5_what_was_begun_lazily_has_the_bytes_of_its_base_when_it_is_sealed() -> None:
    """It is no extension of what stands there, which is another file by its turn."""
    fs, base = CrashFs(), b"x" * (3 << 20)
    store = opened(fs)
    store.put("a.pt", base)
    place = placed(store, "a.pt")
    how = {"exists": True, "truncate": False, "lazily": True}
    version = store.saves.stage("a.pt", place.at, "a.pt", **how)
    assert version.has_hole
    store.fs.write(version.fd, b"tail", len(base))
    ticket = give_ticket(store.core, place)
    seal(store.core, version, ticket)
    assert not version.has_hole
    publish_one(store, version, ticket, place)
    again = opened(fs.snapshot())
    assert again.get("a.pt") == base + b"tail"
    again.history.rollback("a.pt")
    assert again.get("a.pt") == base
