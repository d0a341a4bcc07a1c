"""C1 and C4 of a set: after a power cut anywhere all of it stands under its name, or nothing, and
what was written is in salvage then."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import NEW, NEWER, look_on

from ckptfs.disk import osfs
from ckptfs.modes import Mode
from ckptfs.records import format as fmt
from ckptfs.sets import manifest as manifests
from ckptfs.sets import staging
from ckptfs.store import Options, Place, Store
from ckptfs.tools.harness.crashfs import CrashFs
from ckptfs.tools.harness.faults import Before, Call, Ignoring

Wrap = Callable[[Any], Any]
FILES = {"model.pt": NEW, "sub/optimizer.pt": NEWER}


def opened(fs: Any, mode: Mode = Mode.ATOMIC_DIRSYNC) -> Store:
    return Store(fs, fs.root, "store", Options(mode))


def written(store: Store, path: str = "epoch-1") -> tuple[str, int]:
    """A set in stage, its files committed, by id and descriptor."""
    txid, fd = store.sets.make(path)
    store.fs.mkdir(fd, "sub", 0o755)
    with osfs.opened(store.fs, fd, "sub", osfs.DIRECTORY) as sub:
        for at, name, content in ((fd, "model.pt", NEW), (sub, "optimizer.pt", NEWER)):
            with store.saves.staging(f"{path}/{name}", at, name, exists=False, truncate=True) as v:
                store.fs.write(v.fd, content, 0)
                store.saves.commit(v, at, name)
    return txid, fd


def publish(store: Store, txid: str, fd: int, path: str = "epoch-1") -> None:
    place = Place(store.root, path, path)
    store.sets.publish(txid, fd, place, store.sets.profiles.named(path), unmarked=False)


def shown(store: Store, path: str = "epoch-1") -> dict[str, bytes]:
    """What stands below the name, as anybody sees it below the mount."""
    found = {}
    for name in FILES:
        try:
            found[name] = store.get(f"{path}/{name}")
        except FileNotFoundError:
            continue
    return found


def salvaged(store: Store) -> dict[str, bytes]:
    found = {}
    for story in store.layout.aside.entries(store.layout.salvage):
        with osfs.opened(store.fs, store.layout.salvage, str(story["id"]), osfs.O_RDONLY) as fd:
            found[str(story["path"])] = store.fs.read(fd, 1 << 20, 0)
    return found


def states(wrap: Wrap, mode: Mode) -> Iterator[tuple[str, Store]]:
    """What a power cut at any call of the publish may leave, recovered, and how far it had come."""
    fs = CrashFs()
    store = opened(fs, mode)
    txid, fd = written(store)
    if not mode.syncs_directories:
        fs.sync_all(fs.root)
    snapshots: list[CrashFs] = []
    watched = wrap(Before(fs, lambda call: snapshots.append(fs.snapshot())))
    look_on(store, watched)
    publish(store, txid, fd)
    seen = set()
    for done, snapshot in [*(("", each) for each in snapshots), ("done", fs.snapshot())]:
        for state in snapshot.crash_states():
            if (done, state.identity()) not in seen:
                seen.add((done, state.identity()))
                again = opened(state, mode)
                again.recover()
                yield done, again


def violations(wrap: Wrap = lambda fs: fs, mode: Mode = Mode.ATOMIC_DIRSYNC) -> Iterator[str]:
    for done, store in states(wrap, mode):
        held = shown(store)
        if held not in ({}, FILES):
            yield "C4: torn"
        if done and held != FILES:
            yield "C2: lost"
        if held == FILES and [each.path for each in manifests.all_of(store.layout)] != ["epoch-1"]:
            yield "no manifest"
        if not held and salvaged(store) != {f"epoch-1/{n}": c for n, c in FILES.items()}:
            yield "bytes are nowhere"
        if store.fs.listdir(store.layout.stage):
            yield "left in stage"


@pytest.mark.parametrize("mode", [Mode.ATOMIC_DIRSYNC, Mode.ATOMIC_NODIRSYNC])
def test_C1_C4_a_set_is_there_as_a_whole_or_not_at_all(mode: Mode) -> None:
    assert set(violations(mode=mode)) == set()


def without(method: str, matches: Callable[[Call], bool] = lambda call: True) -> Wrap:
    return lambda fs: Ignoring(fs, lambda call: call.method == method and matches(call))


def test_control_a_set_whose_directories_are_not_durable_is_seen() -> None:
    assert set(violations(without("fsync_dir"))) & {"C4: torn", "C2: lost", "bytes are nowhere"}


def test_what_stands_under_the_name_is_left_alone() -> None:
    store = opened(CrashFs())
    store.fs.mkdir(store.root, "epoch-1", 0o755)
    store.order.note_changed_dir(store.root)
    store.put("epoch-1/mine.pt", NEW)
    txid, fd = written(store)
    with pytest.raises(OSError) as raised:
        publish(store, txid, fd)
    assert raised.value.errno == errno.ENOTEMPTY
    assert store.get("epoch-1/mine.pt") == NEW
    store.recover()
    assert salvaged(store) == {f"epoch-1/{name}": content for name, content in FILES.items()}
    assert store.fs.listdir(store.layout.stage) == []


def test_a_set_that_is_put_aside_leaves_its_files_by_their_names() -> None:
    store = opened(CrashFs())
    txid, _ = written(store)
    assert store.sets.put_aside(txid) == 2
    assert salvaged(store) == {f"epoch-1/{name}": content for name, content in FILES.items()}
    assert store.fs.listdir(store.layout.stage) == []


def test_a_manifest_that_is_damaged_leaves_the_bytes_in_salvage() -> None:
    store = opened(CrashFs())
    txid, _ = written(store)
    make = osfs.O_WRONLY | osfs.O_CREAT
    with osfs.opened(store.fs, store.layout.stage, f"{txid}{fmt.MANIFEST}", make) as fd:
        store.fs.write(fd, b"0123 {}\n", 0)
    store.recover()
    assert salvaged(store).keys() == {f"epoch-1/{name}" for name in FILES}


def test_ids_of_sets_are_no_kind_of_a_version() -> None:
    assert set(staging.KINDS) == {fmt.MANIFEST, fmt.SET}
