"""A power cut in a change of names leaves every path what it had kept before or what it has after,
and nothing that no path leads to once the next mount has looked: each state that the disk can be
left in, for each step.

A deletion takes the history of its path along at once, so that is not asked for here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ckptfs.checking import orphans
from ckptfs.disk import osfs
from ckptfs.history import earlier
from ckptfs.store import Options, Store
from ckptfs.tools.crashfs import CrashFs
from ckptfs.tools.faults import CHANGES, SYNCS, Before, Call
from ckptfs.versions import names, publish
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place
from ckptfs.versions.standing import Replaced, keep_replaced, settle_history

Kept = dict[str, tuple[bytes, list[bytes]]]  # of each path its content, and what is kept of it


def store_over(fs: CrashFs, wrapped: object = None) -> Store:
    return Store(wrapped or fs, fs.root, "store", Options(keep=2))  # type: ignore[arg-type]


def put_all(store: Store, path: str, *contents: bytes) -> None:
    for content in contents:
        store.put(path, content)


def kept(store: Store, paths: str) -> Kept:
    found: Kept = {}
    for path in paths:
        with osfs.place(store.fs, store.root, path) as (at, name):
            if name not in store.fs.listdir(at):
                continue
            with osfs.opened(store.fs, at, name, osfs.O_RDONLY) as fd:
                content = store.fs.read(fd, 1000, 0)
            lineage = store.core.lineages.readable(at, name, path)
        found[path] = (
            content,
            [
                generation(store, lineage, number)
                for number in earlier.generations(store.layout, lineage)
            ],
        )
    return found


def generation(store: Store, lineage: str, number: int) -> bytes:
    with (
        osfs.opened(store.fs, store.layout.history, lineage, osfs.DIRECTORY) as folder,
        osfs.opened(store.fs, folder, str(number), osfs.O_RDONLY) as fd,
    ):
        return store.fs.read(fd, 1000, 0)


@dataclass(frozen=True)
class Scenario:
    prepare: Callable[[Store], object]
    act: Callable[[Store], object]


def two_names(store: Store) -> None:
    put_all(store, "a", b"a1", b"a2", b"a3")
    store.link("a", "b")


def two_files(store: Store) -> None:
    put_all(store, "a", b"a1", b"a2")
    put_all(store, "x", b"x1", b"x2")


def three_names(store: Store) -> None:
    two_files(store)
    store.link("x", "y")


def a_pinned_one(store: Store) -> None:
    three_names(store)
    store.rename("y", "a")


def open_in_place(store: Store) -> None:
    store.files.open_in_place(Place(store.root, "a", "a"))


def expose(store: Store) -> None:
    staged = store.saves.stage("a", store.root, "a", exists=True, truncate=True)
    store.fs.write(staged.fd, b"a4", 0)
    store.fs.fsync(staged.fd)  # of what is written in place no more is promised
    store.saves.expose(staged, store.root, "a")


SCENARIOS = {
    "overwrite the first name": Scenario(two_names, lambda store: store.put("a", b"a4")),
    "overwrite the second name": Scenario(two_names, lambda store: store.put("b", b"b4")),
    "delete the first name": Scenario(two_names, lambda store: store.unlink("a")),
    "link": Scenario(two_files, lambda store: store.link("a", "b")),
    "rename a file with a past onto": Scenario(two_files, lambda store: store.rename("x", "a")),
    "rename one of two names onto": Scenario(three_names, lambda store: store.rename("y", "a")),
    "rename one of two names": Scenario(two_names, lambda store: store.rename("a", "c")),
    "rename what is pinned": Scenario(a_pinned_one, lambda store: store.rename("a", "c")),
    "overwrite what is pinned": Scenario(a_pinned_one, lambda store: store.put("a", b"a4")),
    "open in place": Scenario(two_names, open_in_place),
    "expose": Scenario(two_names, expose),
}


def outcomes(scenario: Scenario) -> Iterator[tuple[Kept, Kept, Store]]:
    """What was kept before the step and is after it, and the store in each state between."""
    fs = CrashFs()
    prepared = store_over(fs)
    scenario.prepare(prepared)
    fs.sync_all(fs.root)
    snapshots: list[CrashFs] = []

    def ahead(call: Call) -> None:
        if call.method in CHANGES | SYNCS:
            snapshots.append(fs.snapshot())

    before = kept(prepared, "abcxy")
    store = store_over(fs, Before(fs, ahead).fs)
    scenario.act(store)
    after = kept(store, "abcxy")
    for snapshot in [*snapshots, fs.snapshot()]:
        for state in snapshot.crash_states(keeps_renamed=True):
            yield before, after, store_over(state)


def lost(name: str) -> int:
    """In how many states a path has lost some of its history. None has what nothing leads to."""
    states, losses = 0, 0
    for before, after, store in outcomes(SCENARIOS[name]):
        states += 1
        store.recover()
        store.history.tidy()
        assert orphans.find(store.core.lineages) == orphans.Found()
        for path, (content, found) in kept(store, "abcxy").items():
            ways = [way[path] for way in (before, after) if path in way]
            here = {*found, content}
            losses += not any(content == way[0] and set(way[1]) <= here for way in ways)
    assert states > 10
    return losses


@pytest.mark.parametrize("name", SCENARIOS)
def test_C5_no_power_cut_takes_a_history_from_its_path(name: str) -> None:
    assert lost(name) == 0


def test_control_a_note_that_is_not_durable_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_sync_pin", lambda core, lineage: None)
    assert lost("rename what is pinned") > 0


def test_control_a_history_that_goes_first_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_early(core: Core, replaced: Replaced | None, place: Place) -> None:
        keep_replaced(core, replaced, place)
        settle_history(core, replaced, place.path)

    monkeypatch.setattr(publish, "keep_replaced", too_early)
    assert lost("overwrite the first name") > 0
