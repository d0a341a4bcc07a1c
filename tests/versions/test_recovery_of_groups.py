"""What recovery does with the intent of a group: it carries it out as a whole, whatever somebody
did in the plain directory before the next mount, and loses no byte of his. What it cannot carry out
blocks nobody from reading, and stays for a later mount."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from groups import (
    AFTER,
    EDITED,
    MEMBERS,
    cut_within_the_group,
    opened,
    publish_all,
    salvaged,
    sealed,
    shown,
)
from harness import NEW, NEWER, OLD, look_on, store_on

from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.errors import StoreReadOnly
from ckptfs.records import format as fmt
from ckptfs.store import Store
from ckptfs.tools.harness.crashfs import CrashFs
from ckptfs.tools.harness.faults import Before, Call, FailAlways, FailNth, Intercepted
from ckptfs.versions import commit
from ckptfs.versions.life import Step


def in_stage(store: Store) -> list[str]:
    return store.fs.listdir(store.layout.stage)


# --- a member has no place


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
    assert in_stage(store) == []


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
    assert in_stage(store) == []


# --- something else stands there


def _write(fs: CrashFs, name: str) -> None:
    with osfs.opened(fs, fs.root, name, osfs.O_RDWR | osfs.O_CREAT) as fd:
        fs.truncate(fd, 0)
        fs.write(fd, EDITED, 0)


def _edit(fs: CrashFs) -> None:
    _write(fs, "a.pt")


def _replace(fs: CrashFs) -> None:
    _write(fs, "a.pt.tmp")
    fs.rename(fs.root, "a.pt.tmp", fs.root, "a.pt")


EDITS = {"edited": _edit, "replaced": _replace}


@pytest.mark.parametrize("how", EDITS)
@pytest.mark.parametrize("at", [Step.INTENDED, Step.PUBLISHED])
def test_what_somebody_put_there_is_in_salvage_and_the_group_is_whole(
    how: str, at: Step, caplog: pytest.LogCaptureFixture
) -> None:
    state = cut_within_the_group(at)
    EDITS[how](state)
    store = opened(state)
    store.recover()
    published = at is Step.PUBLISHED and how == "edited"  # it was the new version that he edited
    assert shown(store) == ({**AFTER, "a.pt": EDITED} if published else AFTER)
    assert salvaged(store) == ([] if published else [EDITED])
    assert in_stage(store) == []
    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert any(each.startswith("a.pt: put below the mount") for each in told) is not published


@pytest.mark.parametrize("how", EDITS)
def test_C1_a_power_cut_in_the_recovery_loses_nothing_of_what_somebody_put_there(how: str) -> None:
    """Recovered once more, all is there: the group, and his bytes. He had synced them."""
    fs = cut_within_the_group(Step.INTENDED)
    EDITS[how](fs)
    fs.sync_all(fs.root)
    store = opened(fs)
    snapshots: list[CrashFs] = []
    look_on(store, Before(fs, lambda call: snapshots.append(fs.snapshot())))
    store.recover()
    for snapshot in [*snapshots, fs.snapshot()]:
        for state in snapshot.crash_states(keeps_renamed=True):
            again = opened(state)
            again.recover()
            assert shown(again) == AFTER
            assert set(salvaged(again)) == {EDITED}


def test_what_was_put_where_a_name_was_to_go_stays() -> None:
    state = cut_within_the_group(Step.INTENDED)
    _write(state, "c.pt")
    store = opened(state)
    store.recover()
    assert shown(store) == {**AFTER, "c.pt": EDITED}


def test_a_path_that_somebody_deleted_gets_its_version() -> None:
    state = cut_within_the_group(Step.INTENDED)
    state.unlink(state.root, "a.pt")
    store = opened(state)
    store.recover()
    assert shown(store) == AFTER


def test_what_is_no_file_keeps_its_place(quick_dir: Path) -> None:
    """Salvage is for files. CrashFs has nothing else."""
    _cut(quick_dir)
    (quick_dir / "a.pt").unlink()
    (quick_dir / "a.pt").symlink_to("elsewhere")
    store = Store.open(str(quick_dir))
    assert (quick_dir / "a.pt").is_symlink()
    assert store.get("sub/b.pt") == NEWER
    assert salvaged(store) == [NEW]
    store.close()


# --- it cannot be carried out


class Killed(BaseException):
    pass


class KillAtIntent(Intercepted):
    """Nothing more is done from there on."""

    dead = False

    def around(self, call: Call) -> Any:
        if not self.dead:
            self.dead = call.method == "step" and call.arguments[0] is Step.INTENDED
        if self.dead and call.method != "close":
            raise Killed
        return call.run()


def _cut(directory: Path) -> None:
    """As a kill of the daemon leaves it behind the intent."""
    store = store_on(directory)
    before_group_on(store)
    changes = [sealed(store, path, content) for path, content in MEMBERS.items()]
    look_on(store, KillAtIntent(OsFs()))
    with pytest.raises(Killed):
        publish_all(store, *changes)


def before_group_on(store: Store) -> None:
    store.put("a.pt", OLD)
    store.fs.mkdir(store.root, "sub", 0o755)


REFUSED: dict[str, Callable[[Any], FailAlways]] = {
    "no permission": lambda fs: FailAlways(fs, "rename", errno.EPERM),
    "no room": lambda fs: FailAlways(fs, "link", errno.ENOSPC),
    "a bad disk": lambda fs: FailAlways(fs, "link", errno.EIO),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_carried_out_stays_and_the_store_can_be_read(
    why: str, quick_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _cut(quick_dir)
    stage = sorted(path.name for path in (quick_dir / ".ckptfs" / "stage").iterdir())
    failing = REFUSED[why](OsFs())
    store = Store.open(str(quick_dir), fs=failing.fs)
    assert failing.calls
    failing.armed = False
    told = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert any("a.pt, sub/b.pt" in each and "injected" in each for each in told)
    assert store.get("a.pt") == OLD
    with pytest.raises(StoreReadOnly, match=r"a\.pt, sub/b\.pt"):
        store.put("a.pt", EDITED)
    store.close()
    left = {path.name for path in (quick_dir / ".ckptfs" / "stage").iterdir()}
    assert set(stage) <= left
    again = Store.open(str(quick_dir))
    assert {path: again.get(path) for path in MEMBERS} == MEMBERS
    again.put("a.pt", EDITED)
    again.close()


def test_C1_each_call_of_the_recovery_fails_and_the_next_mount_carries_it_out() -> None:
    """Until then nothing is committed that it would put the group's versions over."""
    nth = 0
    while True:
        nth += 1
        state = cut_within_the_group(Step.INTENDED)
        store = opened(state)
        failing = FailNth(state, nth)
        look_on(store, failing)
        try:
            store.recover()
        except OSError:
            store.order.poison("it did not open")
        look_on(store, state)
        if failing.failed is None:
            break
        if store.order.poisoned is None:
            assert shown(store) == AFTER, failing.failed.method
        again = opened(state.snapshot())
        again.recover()
        assert shown(again) == AFTER, failing.failed.method
    assert nth > 20


def test_an_intent_that_cannot_be_read_stays() -> None:
    state = cut_within_the_group(Step.INTENDED)
    store = opened(state)
    before = set(in_stage(store))
    look_on(store, FailAlways(state, "read"))
    store.recover()
    assert store.order.poisoned
    assert set(in_stage(store)) == before
    again = opened(state.snapshot())
    again.recover()
    assert shown(again) == AFTER


def test_unfinished_versions_of_others_wait_beside_it() -> None:
    """Nobody knows any more whether the intent speaks of them, if it cannot be read."""
    state = cut_within_the_group(Step.INTENDED)
    store = opened(state)
    version = commit.stage(store.core, "d.pt")
    store.fs.write(version.fd, EDITED, 0)
    look_on(store, FailAlways(state, "link"))
    store.recover()
    assert version.txid in in_stage(store)
    again = opened(state.snapshot())
    again.recover()
    assert salvaged(again) == [EDITED]
    assert shown(again) == AFTER


def test_control_the_group_was_not_carried_out_before_the_cut() -> None:
    assert shown(opened(cut_within_the_group(Step.INTENDED))) != AFTER
