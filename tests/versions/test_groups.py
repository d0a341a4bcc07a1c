"""Several changes as one step: all of it, or nothing.

C1 and C2 of a group: after a power cut anywhere all of it is there, or nothing. So it is after a
failed call, whatever the caller does next as long as the store lets him."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from groups import (
    AFTER,
    BEFORE,
    EDITED,
    before_group,
    content_of,
    group,
    opened,
    publish_all,
    publish_group,
    sealed,
    shown,
)
from harness import NEW, NEWER, look_on

from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError, IllegalTransition, StoreReadOnly
from ckptfs.modes import Mode
from ckptfs.records import format as fmt
from ckptfs.records import intents
from ckptfs.store import Place, Store
from ckptfs.tools.harness.crashfs import CrashFs
from ckptfs.tools.harness.faults import Before, Call, FailNth, Ignoring
from ckptfs.versions import commit
from ckptfs.versions import publish as publish_module
from ckptfs.versions.life import State, Step
from ckptfs.versions.publish import Delete, Install

Wrap = Callable[[Any], Any]


def no_wrap(fs: Any) -> Any:
    return fs


def states_of(
    fs: CrashFs, store: Store, act: Callable[[], object], wrap: Wrap = no_wrap
) -> Iterator[tuple[bool, Store]]:
    """What a power cut at any call may leave, recovered; and whether ``act`` had returned."""
    snapshots: list[CrashFs] = []
    look_on(store, wrap(Before(fs, lambda call: snapshots.append(fs.snapshot()))))
    act()
    look_on(store, fs)
    seen = set()
    for done, snapshot in [*((False, each) for each in snapshots), (True, fs.snapshot())]:
        for state in snapshot.crash_states():
            if (done, state.identity()) not in seen:
                seen.add((done, state.identity()))
                again = opened(state, store.core.mode)
                again.recover()
                yield done, again


def violations(wrap: Wrap = no_wrap, mode: Mode = Mode.ATOMIC_DIRSYNC) -> Iterator[str]:
    fs = CrashFs()
    store = before_group(fs, mode)
    fs.sync_all(fs.root)
    for done, again in states_of(fs, store, lambda: publish_group(store), wrap):
        held = shown(again)
        if held not in (BEFORE, AFTER):
            yield "C1: torn"
        if done and held != AFTER:
            yield "C2: lost"
        if again.fs.listdir(again.layout.stage):
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


@pytest.mark.parametrize("mode", [Mode.ATOMIC_DIRSYNC, Mode.ATOMIC_NODIRSYNC])
def test_C1_a_directory_that_was_just_made_is_durable_before_the_intent(mode: Mode) -> None:
    """Recovery would not find it. In nodirsync nobody notes what changed."""
    fs = CrashFs()
    store = before_group(fs, mode)
    fs.mkdir(store.root, "top", 0o755)
    fs.sync_all(fs.root)
    with osfs.opened(fs, store.root, "top", osfs.DIRECTORY) as top:
        fs.mkdir(top, "run", 0o755)
        store.order.note_changed_dir(top)
    changes = sealed(store, "a.pt", NEW), sealed(store, "top/run/b.pt", NEWER)
    for done, again in states_of(fs, store, lambda: publish_all(store, *changes)):
        with contextlib.suppress(FileNotFoundError):
            assert (again.get("a.pt") == NEW) == (content_of(again, "top/run/b.pt") == NEWER)
        assert not done or again.get("a.pt") == NEW


def test_C1_what_was_written_below_the_mount_is_deleted_with_the_rest() -> None:
    """It is known by its size and time, and nobody has synced those."""
    fs = CrashFs()
    store = before_group(fs)
    fs.sync_all(fs.root)
    with osfs.opened(fs, store.root, "log", osfs.O_RDWR | osfs.O_CREAT) as fd:
        fs.write(fd, EDITED, 0)
    fs.fsync_dir(store.root)
    changes = sealed(store, "a.pt", NEW), Delete(Place(store.root, "log", "log"))
    for _, again in states_of(fs, store, lambda: publish_all(store, *changes)):
        assert (again.get("a.pt") == NEW) == ("log" not in again.fs.listdir(again.root))


# --- a call fails


FAILING = {"once": False, "from then on": True}


@pytest.mark.parametrize("lasting", FAILING.values(), ids=FAILING)
def test_C1_C2_a_group_that_fails_is_carried_out_by_the_next_mount_or_never_began(
    lasting: bool,
) -> None:
    """The caller aborts what is not published, and saves on while the store lets him. C2: what
    he saves then is not overwritten by the group."""
    outcomes = set()
    for nth in itertools.count(1):
        fs = CrashFs()
        store = before_group(fs)
        failing = FailNth(fs, nth, lasting=lasting)
        changes = group(store)
        look_on(store, failing)
        with contextlib.suppress(OSError, CkptfsError):
            publish_all(store, *changes)
        look_on(store, fs)
        if failing.failed is None:
            break
        _abort_all(store, changes)
        saved = _save(store)
        again = opened(fs.snapshot())
        again.recover()
        held = shown(again)
        whole = held["c.pt"] is None
        expected = AFTER if whole else BEFORE
        assert held == ({**expected, "a.pt": EDITED} if saved else expected), failing.failed.method
        outcomes.add((whole, saved))
    assert outcomes == set(itertools.product((False, True), repeat=2))


def _abort_all(store: Store, changes: list[Install | Delete]) -> None:
    for each in changes:
        if isinstance(each, Install) and each.staged.state is State.SEALED:
            commit.abort(store.core, each.staged, "failed")


def _save(store: Store) -> bool:
    with contextlib.suppress(StoreReadOnly):
        store.put("a.pt", EDITED)
        return True
    return False


@pytest.mark.parametrize("mode", Mode)
def test_C2_a_failed_sync_of_a_directory_makes_the_store_read_only(mode: Mode) -> None:
    for nth in itertools.count(1):
        store = before_group(CrashFs(), mode)
        changes = group(store)
        failing = FailNth(store.fs, nth, methods={"fsync_dir"})
        look_on(store, failing)
        with contextlib.suppress(OSError):
            publish_all(store, *changes)
        if failing.failed is None:
            break
        assert store.order.poisoned
    assert nth > 5


def test_C1_a_group_whose_daemon_is_stopped_behind_the_intent_is_not_torn_by_an_abort() -> None:
    fs = CrashFs()
    store = before_group(fs)
    changes = group(store)

    def stop(call: Call) -> None:
        if call.method == "step" and call.arguments[0] is Step.INTENDED:
            raise KeyboardInterrupt

    look_on(store, Before(fs, stop))
    with pytest.raises(KeyboardInterrupt):
        publish_all(store, *changes)
    assert store.order.poisoned
    look_on(store, fs)
    for each in changes:
        if isinstance(each, Install):
            with pytest.raises(IllegalTransition):
                commit.abort(store.core, each.staged, "stopped")
    again = opened(fs.snapshot())
    again.recover()
    assert shown(again) == AFTER


def test_C1_an_intent_whose_rename_fails_after_all_is_taken_back() -> None:
    """It has its name, and the call said that it has not."""
    fs = CrashFs()
    store = before_group(fs)
    changes = group(store)

    class Lying(FailNth):
        def fail(self, call: Call) -> Any:
            call.run()
            return super().fail(call)

    look_on(store, Lying(fs, 1, methods={"rename"}))
    with pytest.raises(OSError, match="injected"):
        publish_all(store, *changes)
    look_on(store, fs)
    assert store.order.poisoned is None
    store.put("a.pt", EDITED)
    for state in fs.snapshot().crash_states():
        again = opened(state)
        again.recover()
        assert shown(again) == {**BEFORE, "a.pt": EDITED}
