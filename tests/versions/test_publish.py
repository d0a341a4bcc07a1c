"""Seal apart from publish: tickets in the order of closes, several changes as one step.

C1 and C2 of a group: after a power cut anywhere all of it is there, or nothing."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from harness import NEW, NEWER, OLD, lineage, look_on

from ckptfs.disk import osfs
from ckptfs.errors import BrokenStructure, CkptfsError, Rotten
from ckptfs.modes import Mode
from ckptfs.records import format as fmt
from ckptfs.records import intents
from ckptfs.store import Options, Place, Store
from ckptfs.tools.harness.crashfs import CrashFs
from ckptfs.tools.harness.faults import Before, Call, FailNth, Ignoring
from ckptfs.versions import commit
from ckptfs.versions import publish as publish_module
from ckptfs.versions.life import State, Step
from ckptfs.versions.publish import Delete, Install, publish
from ckptfs.versions.seal import seal
from ckptfs.versions.staged import Staged
from ckptfs.versions.tickets import Ticket, give_ticket

Wrap = Callable[[Any], Any]
MEMBERS = {"a.pt": NEW, "sub/b.pt": NEWER}
BEFORE = {"a.pt": OLD, "sub/b.pt": None, "c.pt": OLD}
AFTER = {**MEMBERS, "c.pt": None}


def no_wrap(fs: Any) -> Any:
    return fs


def opened(fs: Any, mode: Mode = Mode.ATOMIC_DIRSYNC) -> Store:
    return Store(fs, fs.root, "store", Options(mode, keep=5))


def staged(store: Store, path: str, content: bytes) -> tuple[Staged, Place]:
    with osfs.place(store.fs, store.root, path) as (at, name):
        place = Place(store.fs.open(at, ".", osfs.DIRECTORY), name, path)
    version = commit.stage(store.core, path)
    store.fs.write(version.fd, content, 0)
    return version, place


def sealed(store: Store, path: str, content: bytes) -> Install:
    version, place = staged(store, path, content)
    ticket = give_ticket(store.core, place)
    seal(store.core, version, ticket)
    return Install(version, ticket, place)


def publish_group(store: Store) -> None:
    installs = [sealed(store, path, content) for path, content in MEMBERS.items()]
    gone = Delete(Place(store.root, "c.pt", "c.pt"))
    with store.order.path_locks(*(each.place for each in installs), gone.place):
        publish(store.core, [*installs, gone])


def before_group(fs: Any, mode: Mode = Mode.ATOMIC_DIRSYNC) -> Store:
    store = opened(fs, mode)
    for path in ("a.pt", "c.pt"):
        store.put(path, OLD)
    store.fs.mkdir(store.root, "sub", 0o755)
    store.order.note_changed_dir(store.root)
    store.put("sub/other.pt", OLD)
    return store


def shown(store: Store) -> dict[str, bytes | None]:
    def content(path: str) -> bytes | None:
        try:
            return store.get(path)
        except FileNotFoundError:
            return None
        except Rotten:
            return b"rotten"

    return {path: content(path) for path in BEFORE}


def states_of_group(wrap: Wrap, mode: Mode) -> Iterator[tuple[bool, Store]]:
    """What a power cut at any call may leave, recovered; and whether the group had returned."""
    fs = CrashFs()
    store = before_group(fs, mode)
    fs.sync_all(fs.root)
    snapshots: list[CrashFs] = []
    watched = wrap(Before(fs, lambda call: snapshots.append(fs.snapshot())))
    look_on(store, watched)
    publish_group(store)
    seen = set()
    for done, snapshot in [*((False, each) for each in snapshots), (True, fs.snapshot())]:
        for state in snapshot.crash_states():
            if (done, state.identity()) not in seen:
                seen.add((done, state.identity()))
                again = opened(state, mode)
                again.recover()
                yield done, again


def violations(wrap: Wrap = no_wrap, mode: Mode = Mode.ATOMIC_DIRSYNC) -> Iterator[str]:
    for done, store in states_of_group(wrap, mode):
        held = shown(store)
        if held not in (BEFORE, AFTER):
            yield "C1: torn"
        if done and held != AFTER:
            yield "C2: lost"
        if store.fs.listdir(store.layout.stage):
            yield "left in stage"


@pytest.mark.parametrize("mode", [Mode.ATOMIC_DIRSYNC, Mode.ATOMIC_NODIRSYNC])
def test_C1_C2_a_group_is_there_as_a_whole_or_not_at_all(mode: Mode) -> None:
    """Of a group the directories are synced in each mode."""
    assert set(violations(mode=mode)) == set()


def without(method: str, matches: Callable[[Call], bool] = lambda call: True) -> Wrap:
    return lambda fs: Ignoring(fs, lambda call: call.method == method and matches(call))


@pytest.mark.parametrize(
    ("broken", "seen"),
    [(without("fsync"), "C1"), (without("fsync_dir"), "C")],
)
def test_control_a_group_whose_intent_is_not_durable_is_seen(broken: Wrap, seen: str) -> None:
    assert any(each.startswith(seen) for each in violations(broken))


def test_control_renames_without_an_intent_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intents, "read_group", lambda layout, name: [])
    assert "C1: torn" in violations()


def test_control_a_version_that_leaves_stage_at_once_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A filesystem may keep that it is gone from there, and lose where it went."""
    monkeypatch.setattr(publish_module, "put", publish_module._move)
    assert "C1: torn" in violations(lambda fs: Ignoring(fs, _is_last_unlink))


def _is_last_unlink(call: Call) -> bool:
    """Of a version that is in stage no more."""
    return call.method == "unlink" and len(str(call.arguments[1])) == len(fmt.new_txid())


def test_C1_a_group_that_fails_is_carried_out_by_the_next_mount_or_never_began() -> None:
    outcomes = set()
    for nth in itertools.count(1):
        fs = CrashFs()
        store = before_group(fs)
        failing = FailNth(fs, nth)
        look_on(store, failing)
        with contextlib.suppress(OSError, CkptfsError):
            publish_group(store)
        if failing.failed is None:
            break
        again = opened(fs.snapshot())
        again.recover()
        held = shown(again)
        assert held in (BEFORE, AFTER), failing.failed.method
        outcomes.add(held == AFTER)
    assert outcomes == {False, True}


# --- tickets


def two_closed(store: Store) -> list[tuple[Staged, Ticket, Place]]:
    """Two versions of one path, closed one after the other, of which none is on the disk yet."""
    first, place = staged(store, "a.pt", NEW)
    ticket = give_ticket(store.core, place)
    second, other = staged(store, "a.pt", NEWER)
    return [(first, ticket, place), (second, give_ticket(store.core, other, ticket), other)]


def publish_one(store: Store, version: Staged, ticket: Ticket, place: Place) -> None:
    with store.order.path_locks(place):
        publish(store.core, [Install(version, ticket, place)])


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


def test_a_broken_version_that_was_sealed_ahead_replaces_no_sound_one() -> None:
    whole = io.BytesIO()
    torch.save({"w": torch.ones(100)}, whole)
    store = opened(CrashFs())
    first, place = staged(store, "a.pt", whole.getvalue())
    ticket = give_ticket(store.core, place)
    second, other = staged(store, "a.pt", whole.getvalue()[:-100])
    after = give_ticket(store.core, other, ticket)
    seal(store.core, second, after)
    seal(store.core, first, ticket)
    publish_one(store, first, ticket, place)
    with pytest.raises(BrokenStructure):
        publish_one(store, second, after, other)
    assert store.get("a.pt") == whole.getvalue()


# --- what recovery cannot carry out


def cut_within_the_group(at: Step) -> CrashFs:
    """The store as a kill of the daemon leaves it just after that step; the page cache stays."""
    fs, left = CrashFs(), list[CrashFs]()
    store = before_group(fs)

    def behind(call: Call) -> None:
        if left or (call.method == "step" and call.arguments[0] is at):
            left.append(fs.snapshot())

    look_on(store, Before(fs, behind))
    publish_group(store)
    return left[1]


def salvaged(store: Store) -> list[bytes]:
    found = []
    for story in store.layout.aside.entries(store.layout.salvage):
        with osfs.opened(store.fs, store.layout.salvage, str(story["id"]), osfs.O_RDONLY) as fd:
            found.append(store.fs.read(fd, 1 << 20, 0))
    return found


@pytest.mark.parametrize("in_the_way", ["gone", "a file", "a directory"])
def test_a_member_that_has_no_place_any_more_is_in_salvage(in_the_way: str) -> None:
    """Somebody worked in the plain directory before the next mount."""
    state = cut_within_the_group(Step.INTENDED)
    store = opened(state)
    fs, root = store.fs, store.root
    with osfs.opened(fs, root, "sub", osfs.DIRECTORY) as sub:
        if in_the_way == "a directory":
            fs.mkdir(sub, "b.pt", 0o755)
        else:
            fs.unlink(sub, "other.pt")
    if in_the_way != "a directory":
        fs.rmdir(root, "sub")
    if in_the_way == "a file":
        fs.close(fs.open(root, "sub", osfs.O_RDWR | osfs.O_CREAT))
    store.recover()
    assert store.get("a.pt") == NEW
    assert salvaged(store) == [NEWER]
    assert store.fs.listdir(store.layout.stage) == []


def test_a_version_that_was_being_put_is_not_taken_for_published() -> None:
    """The daemon was killed between the second name in stage and the rename, and the directory
    is gone by the next mount."""
    state = cut_within_the_group(Step.INTENDED)
    store = opened(state)
    fs, stage = store.fs, store.layout.stage
    versions = [name for name in fs.listdir(stage) if "." not in name]
    for name in versions:
        fs.link(stage, name, stage, f"0{name}{fmt.PUT}")
    with osfs.opened(fs, store.root, "sub", osfs.DIRECTORY) as sub:
        fs.unlink(sub, "other.pt")
    fs.rmdir(store.root, "sub")
    store.recover()
    assert store.get("a.pt") == NEW
    assert salvaged(store) == [NEWER]
    assert fs.listdir(stage) == []
