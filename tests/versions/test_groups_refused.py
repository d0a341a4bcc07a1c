"""Groups that are refused: what cannot be carried out is found before anything is done, and behind
a group that failed nothing is changed any more."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
from groups import (
    AFTER,
    BEFORE,
    EDITED,
    before_group,
    group,
    opened,
    placed,
    publish_all,
    salvaged,
    sealed,
    shown,
    staged,
)
from harness import NEW, NEWER, look_on

from ckptfs.errors import IllegalTransition, StoreReadOnly
from ckptfs.records import format as fmt
from ckptfs.store import Store
from ckptfs.tools.harness.crashfs import CrashFs
from ckptfs.tools.harness.faults import METHODS, NEVER_FAIL, Before, Call, FailNth
from ckptfs.versions import commit
from ckptfs.versions.life import State, Step
from ckptfs.versions.publish import Delete, Install, publish
from ckptfs.versions.tickets import give_ticket

# --- the store became read-only meanwhile


def fail_group(store: Store, fs: Any) -> None:
    """Behind its intent."""
    changes = group(store)
    look_on(store, FailNth(fs, 2, methods={"rename"}))  # the first one gives the intent its name
    with pytest.raises(OSError, match="injected"):
        publish_all(store, *changes)
    look_on(store, fs)


def test_C2_a_version_that_was_sealed_is_not_published_behind_a_group_that_failed() -> None:
    fs = CrashFs()
    store = before_group(fs)
    other = sealed(store, "a.pt", EDITED)
    fail_group(store, fs)
    with pytest.raises(StoreReadOnly):
        publish_all(store, other)
    assert other.staged.state is State.SEALED


def test_C2_a_commit_that_was_under_way_is_refused_behind_a_group_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next mount would put the version of the group over it."""
    fs = CrashFs()
    store = before_group(fs)
    version, place = staged(store, "a.pt", EDITED)
    digest = commit.digest

    def digest_while_a_group_fails(*arguments: Any) -> None:
        digest(*arguments)
        fail_group(store, fs)

    monkeypatch.setattr(commit, "digest", digest_while_a_group_fails)
    with pytest.raises(StoreReadOnly):
        commit.commit(store.core, version, place)
    again = opened(fs.snapshot())
    again.recover()
    assert shown(again) == AFTER
    assert EDITED in salvaged(again)


WAITING: dict[str, Callable[[Store], object]] = {
    "deletes": lambda store: store.unlink("a.pt"),
    "renames": lambda store: store.rename("a.pt", "d.pt"),
    "exchanges": lambda store: store.exchange("a.pt", "c.pt"),
}


@pytest.mark.parametrize("what", WAITING)
def test_who_has_waited_for_a_group_that_failed_changes_nothing(what: str) -> None:
    store = before_group(CrashFs())
    told: list[BaseException] = []

    def change() -> None:
        try:
            WAITING[what](store)
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=change)
    with store.order.path_lock(store.root, "a.pt"):
        thread.start()
        thread.join(0.2)
        store.order.poison("a group failed")
    thread.join()
    assert [type(each) for each in told] == [StoreReadOnly]
    assert shown(store) == BEFORE


# --- what cannot be carried out


def _unsealed(store: Store) -> list[Install | Delete]:
    version, place = staged(store, "sub/b.pt", NEWER)
    return [Install(version, give_ticket(store.core, place), place)]


def _aborted(store: Store) -> list[Install | Delete]:
    install = sealed(store, "sub/b.pt", NEWER)
    commit.abort(store.core, install.staged, "gone")
    return [install]


def _twice(store: Store) -> list[Install | Delete]:
    install = sealed(store, "sub/b.pt", NEWER)
    return [install, Install(install.staged, install.ticket, placed(store, "d.pt"))]


def _one_path(store: Store) -> list[Install | Delete]:
    return [sealed(store, "c.pt", NEWER), Delete(placed(store, "c.pt"))]


def _over_directory(store: Store) -> list[Install | Delete]:
    install = sealed(store, "d", NEWER)
    store.fs.mkdir(store.root, "d", 0o755)
    return [install]


def _behind(change: Callable[[Store], object]) -> Callable[[Store], list[Install | Delete]]:
    def changes(store: Store) -> list[Install | Delete]:
        install = sealed(store, "sub/b.pt", NEWER)
        change(store)
        return [install]

    return changes


def _exchange(store: Store) -> None:
    store.fs.mkdir(store.root, "moved", 0o755)
    store.exchange("sub", "moved")


def _remove(store: Store) -> None:
    store.unlink("sub/other.pt")
    store.fs.rmdir(store.root, "sub")


IMPOSSIBLE: dict[str, tuple[Callable[[Store], list[Install | Delete]], object]] = {
    "not sealed": (_unsealed, IllegalTransition),
    "aborted": (_aborted, IllegalTransition),
    "one version twice": (_twice, errno.EINVAL),
    "two changes of one path": (_one_path, errno.EINVAL),
    "a directory to be deleted": (lambda store: [Delete(placed(store, "sub"))], errno.EISDIR),
    "a directory to be replaced": (_over_directory, errno.EISDIR),
    "nothing to be deleted": (lambda store: [Delete(placed(store, "no.pt"))], errno.ENOENT),
    "its directory renamed": (_behind(lambda store: store.rename("sub", "moved")), errno.ESTALE),
    "its directory exchanged": (_behind(_exchange), errno.ESTALE),
    "its directory removed": (_behind(_remove), errno.ESTALE),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_C1_a_group_that_cannot_be_carried_out_leaves_all_as_it_was(what: str) -> None:
    make, told = IMPOSSIBLE[what]
    fs = CrashFs()
    store = before_group(fs)
    changes = [sealed(store, "a.pt", NEW), *make(store)]
    with pytest.raises((OSError, IllegalTransition)) as failed:
        publish_all(store, *changes)
    assert told in (type(failed.value), getattr(failed.value, "errno", None))
    assert store.order.poisoned is None
    assert shown(store) == BEFORE
    assert not any(name.endswith(fmt.GROUP) for name in fs.listdir(store.layout.stage))
    publish_all(store, changes[0])
    assert store.get("a.pt") == NEW


def test_no_change_is_no_call() -> None:
    store = before_group(CrashFs())
    counting = FailNth(store.fs, 0, methods=METHODS - NEVER_FAIL)
    look_on(store, counting)
    publish(store.core, [])
    assert counting.calls == 0


# --- directories keep their names meanwhile


MOVES: dict[str, Callable[[Store], object]] = {
    "renamed": lambda store: store.rename("sub", "moved"),
    "exchanged": lambda store: store.exchange("sub", "other"),
}


@pytest.mark.parametrize("what", MOVES)
def test_no_directory_is_moved_while_an_intent_speaks_of_paths(what: str) -> None:
    fs = CrashFs()
    store = before_group(fs)
    fs.mkdir(store.root, "other", 0o755)
    moved = threading.Thread(target=lambda: MOVES[what](store))
    alive = []

    def move(call: Call) -> None:
        if call.method == "step" and call.arguments[0] is Step.INTENDED:
            moved.start()
            moved.join(0.2)
            alive.append(moved.is_alive())

    changes = group(store)
    look_on(store, Before(fs, move))
    publish_all(store, *changes)
    moved.join()
    assert alive == [True]
    where = {"renamed": "moved/b.pt", "exchanged": "other/b.pt"}[what]
    assert store.get(where) == NEWER


def test_C3_a_directory_that_was_renamed_is_noted_before_an_intent_speaks_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else who comes between the two has nothing to sync."""
    store = before_group(CrashFs())
    steady = threading.Thread(target=lambda: _enter(store))
    alive = []

    def note(at: int) -> None:
        if not alive:
            steady.start()
            steady.join(0.2)
            alive.append(steady.is_alive())

    monkeypatch.setattr(store.order, "note_changed_dir", note)
    store.rename("sub", "moved")
    steady.join()
    assert alive == [True]


def _enter(store: Store) -> None:
    with store.order.steady_directories():
        pass
