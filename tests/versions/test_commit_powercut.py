"""C1, C2, C3 through a power cut: every crash point of every step, every state it may leave.

Each scenario runs the real commit code over a ``CrashFs``. Ahead of every call that changes or
syncs something, and after the last one, the power goes: all states that the filesystem may then
show are recovered by the real recovery and judged by one checker. The controls break the commit on
purpose and show that the same checker sees it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from harness import NEW, NEWER, OLD, condition, look_on, two_versions

from ckptfs.checking.examine import Condition
from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError
from ckptfs.modes import Mode
from ckptfs.store import Options, Store
from ckptfs.tools.harness.broken import RecordAfterFsync, RenameBeforeFsync, without
from ckptfs.tools.harness.crashfs import CrashFs
from ckptfs.tools.harness.faults import (
    CHANGES,
    SYNCS,
    Before,
    Call,
    Ignoring,
)
from ckptfs.versions.commit import stage

Contents = dict[str, bytes | None]
Wrap = Callable[[Any], Any]


@dataclass(frozen=True)
class Step:
    """``after``: what the paths hold once it is done. ``durable``: from its return on, in modes
    that promise it; else with the next step that is."""

    run: Callable[[Store], object]
    after: Contents
    durable: bool = True


@dataclass(frozen=True)
class Scenario:
    prepare: Callable[[Store], object]
    before: Contents
    steps: list[Step]
    implies: tuple[str, str] | None = None  # C3: where the second is new, so is the first
    keeps_renamed: bool = False
    spoil: Callable[[CrashFs], None] = lambda fs: None  # right before the steps


@dataclass
class Point:
    """One instant at which the power goes, and what each path may hold then."""

    state: CrashFs
    allowed: dict[str, set[bytes | None]]


@dataclass
class Outcome:
    violations: set[str] = field(default_factory=set)
    states: int = 0
    sampled: int = 0  # points whose states were too many to list


def no_wrap(fs: Any) -> Any:
    return fs


def run(
    scenario: Scenario,
    mode: Mode = Mode.ATOMIC_DIRSYNC,
    wrap: Wrap = no_wrap,
    until: str | None = None,
) -> Outcome:
    """Judge every state; with ``until``, up to the first violation that begins so."""
    outcome = Outcome()
    seen: set[Hashable] = set()
    for point in crash_points(scenario, mode, wrap):
        if until is not None and any(found.startswith(until) for found in outcome.violations):
            break
        states = point.state.crash_states(scenario.keeps_renamed)
        outcome.sampled += not states.exhaustive
        for state in states:
            key = state.identity(), tuple((p, frozenset(c)) for p, c in point.allowed.items())
            if key not in seen:
                seen.add(key)
                outcome.states += 1
                outcome.violations |= judge(state, point.allowed, scenario, mode)
    return outcome


def crash_points(scenario: Scenario, mode: Mode, wrap: Wrap) -> list[Point]:
    fs = CrashFs()
    prepared = Store(fs, fs.root, "store", Options(mode=mode))
    scenario.prepare(prepared)
    fs.sync_all(fs.root)
    scenario.spoil(fs)
    allowed = {path: {content} for path, content in scenario.before.items()}
    points: list[Point] = []

    def power_goes() -> None:
        points.append(Point(fs.snapshot(), {path: set(kept) for path, kept in allowed.items()}))

    def ahead(call: Call) -> None:
        makes = call.method == "open" and call.arguments[2] & os.O_CREAT
        if call.method in CHANGES | SYNCS or makes:
            power_goes()

    store = Store(wrap(Before(fs, ahead)), fs.root, "store", Options(mode=mode))
    for step in scenario.steps:
        for path, content in step.after.items():
            allowed[path].add(content)
        with contextlib.suppress(CkptfsError, OSError):  # broken commits may stumble; see `judge`
            step.run(store)
        if step.durable and mode.syncs_directories:
            done = scenario.steps[: scenario.steps.index(step) + 1]
            for path, content in {k: v for each in done for k, v in each.after.items()}.items():
                allowed[path] = {content}
        power_goes()
    return points


def judge(
    state: CrashFs, allowed: dict[str, set[bytes | None]], scenario: Scenario, mode: Mode
) -> set[str]:
    """What is wrong after recovery, in words; nothing for a state that keeps the promises."""
    wrong: set[str] = set()
    store = Store(state, state.root, "store", Options(mode=mode))
    store.recover()
    found: Contents = {}
    for path, contents in allowed.items():
        found[path] = recovered(store, path, wrong)
        if found[path] not in contents:
            lost = "C2: a returned put is gone" if len(contents) == 1 else "C1: neither old nor new"
            wrong.add(lost)
    if scenario.implies is not None and mode.syncs_directories:
        first, second = scenario.implies
        if found[second] != scenario.before[second] and found[first] == scenario.before[first]:
            wrong.add("C3: the later one is there without the earlier one")
    if state.listdir(store.layout.stage):
        wrong.add("recovery left something in stage")
    goes_on(store, wrong)
    return wrong


def recovered(store: Store, path: str, wrong: set[str]) -> bytes | None:
    try:
        content = store.get(path)
    except FileNotFoundError:
        return None
    except CkptfsError as error:
        wrong.add(f"C1: {type(error).__name__}")
        return None
    if condition(store, path) is not Condition.OK:
        wrong.add(f"C1: no sound record: {condition(store, path).value}")
    return content


def goes_on(store: Store, wrong: set[str]) -> None:
    """The recovered store takes a new version, under a number that was never used."""
    used = {int(name) for folder in history_folders(store) for name in folder}
    record = store.put("probe", b"probe")
    if store.get("probe") != b"probe" or record.generation <= max(used, default=0):
        wrong.add("the recovered store does not go on")


def history_folders(store: Store) -> list[list[str]]:
    folders = []
    for name in store.fs.listdir(store.layout.history):
        with osfs.opened(store.fs, store.layout.history, name, osfs.DIRECTORY) as fd:
            folders.append(store.fs.listdir(fd))
    return folders


# --- scenarios -----------------------------------------------------------------------------------


def put(path: str, data: bytes) -> Step:
    return Step(lambda store: store.put(path, data), {path: data})


def put_in_pieces(store: Store) -> None:
    """As a program writes: several writes, any of which the disk may have and any not."""
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=True, truncate=True)
    try:
        for at in range(0, len(NEW), 900):
            store.fs.write(staged.fd, NEW[at : at + 900], at)
        store.saves.commit(staged, store.root, "a.pt")
    finally:
        store.fs.close(staged.fd)


def with_old(*paths: str) -> Callable[[Store], None]:
    def prepare(store: Store) -> None:
        for path in paths:
            make_folders(store, path)
            store.put(path, OLD)

    return prepare


def make_folders(store: Store, path: str) -> None:
    """What the mount does for mkdir."""
    at = store.fs.open(store.root, ".", osfs.DIRECTORY)
    for name in path.split("/")[:-1]:
        if name not in store.fs.listdir(at):
            store.fs.mkdir(at, name, 0o755)
            store.order.note_changed_dir(at)
        below = store.fs.open(at, name, osfs.DIRECTORY)
        store.fs.close(at)
        at = below
    store.fs.close(at)


def interrupted(store: Store) -> None:
    """A crash before this one left a version in stage."""
    with_old("a.pt")(store)
    staged = stage(store.core, "a.pt")
    store.fs.write(staged.fd, NEW, 0)
    store.fs.close(staged.fd)


SCENARIOS = {
    "put new": Scenario(lambda store: None, {"a.pt": None}, [put("a.pt", NEW)]),
    "put overwrite": Scenario(with_old("a.pt"), {"a.pt": OLD}, [put("a.pt", NEW)]),
    "put overwrite twice": Scenario(
        with_old("a.pt"), {"a.pt": OLD}, [put("a.pt", NEW), put("a.pt", NEWER)]
    ),
    "put in pieces": Scenario(
        with_old("a.pt"), {"a.pt": OLD}, [Step(put_in_pieces, {"a.pt": NEW})]
    ),
    "put empty": Scenario(with_old("a.pt"), {"a.pt": OLD}, [put("a.pt", b"")]),
    "rename onto": Scenario(
        lambda store: (store.put("a.pt", OLD), store.put("b.tmp", NEW)),
        {"a.pt": OLD, "b.tmp": NEW},
        [Step(lambda store: store.rename("b.tmp", "a.pt"), {"a.pt": NEW, "b.tmp": None})],
    ),
    "unlink, put": Scenario(
        with_old("a.pt"),
        {"a.pt": OLD},
        [
            Step(lambda store: store.unlink("a.pt"), {"a.pt": None}, durable=False),
            put("a.pt", NEW),
        ],
    ),
    "mkdir chain": Scenario(
        lambda store: None,
        {"run/step/a.pt": None},
        [
            Step(lambda store: make_folders(store, "run/step/a.pt"), {}, durable=False),
            put("run/step/a.pt", NEW),
        ],
    ),
    "shard, then marker": Scenario(
        with_old("one/a.pt", "two/latest"),
        {"one/a.pt": OLD, "two/latest": OLD},
        [put("one/a.pt", NEW), put("two/latest", NEW)],
        implies=("one/a.pt", "two/latest"),
    ),
    "roll back": Scenario(
        two_versions,
        {"a.pt": OLD},
        [Step(lambda store: store.get("a.pt"), {"a.pt": OLD})],
        spoil=lambda fs: fs.rot("a.pt", 5),
    ),
    "recover": Scenario(interrupted, {"a.pt": OLD}, [Step(lambda store: store.recover(), {})]),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_C1_C2_C3_hold_after_every_power_cut(name: str, record_property: Any) -> None:
    outcome = run(SCENARIOS[name])
    assert outcome.violations == set()
    assert outcome.states > 10
    record_property("states", outcome.states)
    record_property("points_sampled", outcome.sampled)


@pytest.mark.parametrize("name", ["put new", "put overwrite", "shard, then marker"])
def test_C1_holds_in_atomic_nodirsync_after_every_power_cut(name: str) -> None:
    assert run(SCENARIOS[name], Mode.ATOMIC_NODIRSYNC).violations == set()


def test_C1_a_rename_onto_never_loses_the_only_copy() -> None:
    """No order of calls protects from a filesystem that keeps only the removal; those that people
    use do not. Then the renamed bytes are always under one of the two names."""
    scenario = SCENARIOS["rename onto"]
    for point in crash_points(scenario, Mode.ATOMIC_DIRSYNC, no_wrap):
        for state in point.state.crash_states(keeps_renamed=True):
            store = Store(state, state.root, "store", Options())
            store.recover()
            assert NEW in (recovered(store, "a.pt", set()), recovered(store, "b.tmp", set()))


def test_C1_the_first_mount_of_a_directory_survives_every_power_cut() -> None:
    """``format`` stands only where all that it speaks for does."""
    fs = CrashFs()
    fd = fs.open(fs.root, "mine.pt", os.O_RDWR | os.O_CREAT)
    fs.write(fd, OLD, 0)
    fs.sync_all(fs.root)
    snapshots: list[CrashFs] = []
    watched = Before(fs, lambda call: snapshots.append(fs.snapshot()))
    store = Store(watched.fs, fs.root, "store", Options())
    store.recover()
    store.put("first.pt", NEW)
    for snapshot in [*snapshots, fs.snapshot()]:
        for state in snapshot.crash_states():
            again = Store(state, state.root, "store", Options())
            again.recover()
            assert again.get("mine.pt") == OLD
            again.put("second.pt", NEWER)
            assert again.get("second.pt") == NEWER
            with contextlib.suppress(FileNotFoundError):
                assert again.get("first.pt") == NEW


def resealed_states(wrap: Wrap) -> Iterator[Store]:
    """A version is written in place after its commit (mmap) and sealed again. The power goes once
    the new record is being written; before that nothing protects what a program maps."""
    fs = CrashFs()
    store = Store(fs, fs.root, "store", Options())
    store.put("a.pt", OLD)
    staged = store.saves.stage("a.pt", fs.root, "a.pt", exists=True, truncate=True)
    fs.write(staged.fd, NEW, 0)
    store.saves.commit(staged, fs.root, "a.pt")
    fs.write(staged.fd, b"stored", 0)
    fs.write(staged.fd, b"through a map", 500)
    snapshots: list[CrashFs] = []

    def ahead(call: Call) -> None:
        if snapshots or call.method == "setxattr":
            snapshots.append(fs.snapshot())

    watched = wrap(Before(fs, ahead))
    look_on(store, watched)
    store.saves.reseal(staged)
    for snapshot in [*snapshots, fs.snapshot()]:
        for state in snapshot.crash_states():
            yield Store(state, state.root, "store", Options())


def test_C1_a_live_version_that_is_sealed_again_is_never_taken_for_rot() -> None:
    written = b"stored" + NEW[6:500] + b"through a map" + NEW[513:]
    assert {store.get("a.pt") for store in resealed_states(no_wrap)} == {written}


def test_control_a_record_that_outruns_its_bytes_is_seen() -> None:
    def wrap(fs: Any) -> Any:
        calls: list[Call] = []

        def first_fsync(call: Call) -> bool:
            if call.method == "fsync":
                calls.append(call)
            return call.method == "fsync" and len(calls) == 1

        return Ignoring(fs, first_fsync)

    assert OLD in {store.get("a.pt") for store in resealed_states(wrap)}


# --- controls: the same checker over commits that were broken on purpose -------------------------


def without_first(method: str) -> Wrap:
    """Only the first put's directory stays unsynced: what it loses, the second must not have."""

    def wrap(fs: Any) -> Any:
        done: list[Call] = []

        def ignored(call: Call) -> bool:
            if call.method == "rename" and call.arguments[3] == "a.pt":
                done.append(call)
            return call.method == method and len(done) == 1 and not later(call)

        def later(call: Call) -> bool:
            done.append(call)
            return False

        return Ignoring(fs, ignored)

    return wrap


@pytest.mark.parametrize(
    ("broken", "name", "seen"),
    [
        (without("fsync"), "put new", "C1: no sound record"),
        (without("fsync"), "put overwrite", "C1: neither old nor new"),
        (without("fsync"), "put in pieces", "C1: neither old nor new"),
        (without("fsync"), "put overwrite", "C2"),
        (without("fsync_dir"), "put new", "C2"),
        (without("fsync_dir"), "put overwrite", "C2"),
        (without("fsync_dir"), "mkdir chain", "C2"),
        (without("fsync_dir"), "shard, then marker", "C3"),
        (without_first("fsync_dir"), "shard, then marker", "C3"),
        (RenameBeforeFsync, "put new", "C1"),
        (RenameBeforeFsync, "put overwrite", "C1: neither old nor new"),
        (RecordAfterFsync, "put new", "C1: no sound record: unrecorded"),
        (RecordAfterFsync, "put overwrite", "C1: no sound record: unrecorded"),
        (without("fsync_dir"), "rename onto", "C2"),
    ],
)
def test_control_a_broken_commit_is_seen(broken: Wrap, name: str, seen: str) -> None:
    violations = run(SCENARIOS[name], wrap=broken, until=seen).violations
    assert any(violation.startswith(seen) for violation in violations), violations


def test_control_a_rollback_that_moves_the_damaged_file_away_first_is_seen() -> None:
    def spoil(store: Store) -> None:
        with contextlib.suppress(FileNotFoundError):
            store.fs.rename(store.root, "a.pt", store.layout.quarantine, "taken")
        store.fs.fsync_dir(store.root)
        store.put("a.pt", OLD)

    scenario = Scenario(
        two_versions,
        {"a.pt": OLD},
        [Step(spoil, {"a.pt": OLD})],
        spoil=lambda fs: fs.rot("a.pt", 5),
    )
    assert "C2: a returned put is gone" in run(scenario).violations
