"""C1, C2 when a call fails: each call of a commit in turn raises, or writes less than it was given.

After each fault the path holds the old or the new bytes whole, the caller was told the truth, the
new bytes are not lost, no descriptor leaks, and a fresh store on the directory serves and goes on.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import (
    NEW,
    NEWER,
    OLD,
    condition,
    contents,
    lineage,
    open_descriptors,
    rot,
    store_on,
    two_versions,
)

from ckptfs.checking.examine import BAD, Condition
from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.errors import CkptfsError, Rotten, StoreReadOnly
from ckptfs.records import format as fmt
from ckptfs.store import Store
from ckptfs.tools.harness.faults import (
    METHODS,
    NEVER_FAIL,
    Before,
    Call,
    FailAlways,
    FailNth,
    ShortNth,
)
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope
from ckptfs.versions.seal import DIGESTED_TWICE_BYTES

ERRNOS = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR]
FALLIBLE = METHODS - NEVER_FAIL
Faulty = Callable[[OsFs, int], FailNth]
FAULTS: dict[str, Faulty] = {
    **{errno.errorcode[code]: functools.partial(FailNth, errno=code) for code in ERRNOS},
    "short": ShortNth,
    "gone": functools.partial(FailNth, lasting=True),
}
LONG = NEW * (DIGESTED_TWICE_BYTES // len(NEW) + 100)
CHANGED, ADDED = b"c" + OLD[1:], b"added " * 100


@dataclass(frozen=True)
class Scenario:
    prepare: Callable[[Store], object]
    act: Callable[[Store], object]
    old: dict[str, bytes | None]
    new: dict[str, bytes | None]
    spoil: Callable[[Path], object] = lambda directory: None


def overwrite(store: Store) -> None:
    store.put("a.pt", OLD)


def two_files(store: Store) -> None:
    store.put("a.pt", OLD)
    store.put("b.tmp", NEW)


def directory(store: Store) -> None:
    osfs_root = store.root
    store.fs.mkdir(osfs_root, "d", 0o700)
    store.put("d/a.pt", OLD)
    store.put("d/a.pt", NEW)


def rename_directory(store: Store) -> None:
    store.rename("d", "e")


def long_ones(store: Store) -> Store:
    """Every file counts as a long one, of which only what is added is written."""
    store.core.copied_at_once_bytes = 0
    return store


def change(store: Store) -> None:
    """Open it again and write over its first bytes."""
    with osfs.place(store.fs, store.root, "a.pt") as (at, name):
        staged = long_ones(store).saves.stage(
            "a.pt", at, name, exists=True, truncate=False, lazily=True
        )
        try:
            try:
                store.saves.change(staged, 0)
                store.fs.write(staged.fd, CHANGED[:1], 0)
            except OSError as error:
                store.saves.abort(staged, str(error))
                raise
            store.saves.commit(staged, at, name)
        finally:
            store.fs.close(staged.fd)
            if staged.base is not None:
                staged.base.close()


SCENARIOS = {
    "new": Scenario(
        lambda store: None, lambda store: store.put("a.pt", NEW), {"a.pt": None}, {"a.pt": NEW}
    ),
    "overwrite": Scenario(
        overwrite, lambda store: store.put("a.pt", NEW), {"a.pt": OLD}, {"a.pt": NEW}
    ),
    "rename onto": Scenario(
        two_files,
        lambda store: store.rename("b.tmp", "a.pt"),
        {"a.pt": OLD, "b.tmp": NEW},
        {"a.pt": NEW, "b.tmp": None},
    ),
    "unlink": Scenario(
        two_versions, lambda store: store.unlink("a.pt"), {"a.pt": NEW}, {"a.pt": None}
    ),
    "long": Scenario(
        overwrite, lambda store: store.put("a.pt", LONG), {"a.pt": OLD}, {"a.pt": LONG}
    ),
    "append": Scenario(
        overwrite, lambda store: store.append("a.pt", NEW), {"a.pt": OLD}, {"a.pt": OLD + NEW}
    ),
    "extend": Scenario(
        overwrite,
        lambda store: long_ones(store).append("a.pt", ADDED),
        {"a.pt": OLD},
        {"a.pt": OLD + ADDED},
    ),
    "change": Scenario(overwrite, change, {"a.pt": OLD}, {"a.pt": CHANGED}),
    "rename directory": Scenario(
        directory,
        rename_directory,
        {"d/a.pt": NEW, "e/a.pt": None},
        {"d/a.pt": None, "e/a.pt": NEW},
    ),
    "rollback": Scenario(
        two_versions, lambda store: store.history.rollback("a.pt"), {"a.pt": NEW}, {"a.pt": OLD}
    ),
}
SHORT = {"unlink": 0, "rename directory": 0, "extend": 2, "change": 2}  # at least so many are told
ROLLBACK = Scenario(
    two_versions,
    lambda store: store.get("a.pt"),
    {"a.pt": OLD},
    {"a.pt": OLD},
    spoil=lambda directory: rot(directory / "a.pt", 9),
)


@dataclass
class Attempt:
    """One run of a scenario in which the k-th call failed."""

    directory: Path
    store: Store
    faults: FailNth
    k: int
    calls: list[Call] = field(default_factory=list)
    error: BaseException | None = None
    result: object = None

    @property
    def failed(self) -> str:
        return self.faults.failed.method if self.faults.failed else "nothing"

    def reached(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    @property
    def later(self) -> list[Call]:
        """The calls after the failed one."""
        countable = [at for at, call in enumerate(self.calls) if call.method in FALLIBLE]
        return self.calls[countable[self.k - 1] + 1 :]

    def wrote(self, data: bytes) -> bool:
        """Whether the new bytes were taken: only then is there anything to salvage."""
        failed = self.faults.failed
        refused = failed is not None and failed.method == "write" and failed.arguments[1] == data
        return not refused and any(call.arguments[1] == data for call in self.reached("write"))


@contextlib.contextmanager
def attempt(directory: Path, scenario: Scenario, k: int, faulty: Faulty) -> Any:
    directory.mkdir()
    prepared = store_on(directory)
    scenario.prepare(prepared)
    prepared.close()
    scenario.spoil(directory)
    before = open_descriptors()
    faults = faulty(OsFs(), 0)
    calls: list[Call] = []
    store = store_on(directory, Before(faults, calls.append))
    faults.k, faults.calls = k, 0
    calls.clear()
    this = Attempt(directory, store, faults, k, calls)
    try:
        this.result = scenario.act(store)
    except (OSError, CkptfsError) as error:
        this.error = error
    faults.k = 0
    yield this
    store.close()
    assert open_descriptors() <= before, f"{this.failed} leaks a descriptor"


def how_many(tmp: Path, scenario: Scenario, faulty: Faulty) -> int:
    with attempt(tmp / "count", scenario, 0, faulty) as clean:
        assert clean.error is None
        assert held(clean.directory, scenario.new) == scenario.new
        return clean.faults.calls


def held(directory: Path, paths: dict[str, Any]) -> dict[str, bytes | None]:
    """What is there for a program that knows nothing of ckptfs (C9)."""
    return {
        path: (directory / path).read_bytes() if (directory / path).exists() else None
        for path in paths
    }


def faults_of(scenario: Scenario, tmp: Path, fault: str = "EIO") -> Any:
    faulty = FAULTS[fault]
    for k in range(1, how_many(tmp, scenario, faulty) + 1):
        with attempt(tmp / str(k), scenario, k, faulty) as this:
            assert this.faults.failed is not None
            yield this
        serves_and_goes_on(this.directory, scenario)


def serves_and_goes_on(directory: Path, scenario: Scenario) -> None:
    store = store_on(directory)
    store.recover()
    for path in scenario.old:
        with contextlib.suppress(FileNotFoundError):
            assert store.get(path) in (scenario.old[path], scenario.new[path])
            assert condition(store, path) is Condition.OK
    bad = {
        f.path: f.condition for f in Check(store.layout, Scope()).findings() if f.condition in BAD
    }
    # a deletion whose look at the record failed leaves its history behind
    assert all(c is Condition.MISSING and scenario.new.get(p, 0) is None for p, c in bad.items()), (
        bad
    )
    assert store.fs.listdir(store.layout.stage) == []
    store.put("a.pt", NEWER)
    assert store.get("a.pt") == NEWER
    store.close()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_C1_C2_after_any_failed_call(name: str, fault: str, quick_dir: Path) -> None:
    scenario = SCENARIOS[name]
    attempts = absorbed = 0
    for this in faults_of(scenario, quick_dir, fault):
        attempts += 1
        now = held(this.directory, scenario.old)
        if this.error is None:
            absorbed += 1
            assert now == scenario.new, f"{this.failed} was hidden"
        elif this.store.order.poisoned is None:
            assert now == scenario.old, f"{this.failed} raised {this.error!r}"
        else:
            assert this.failed == "fsync_dir" or fault == "gone"
            torn = this.store.order.torn  # cut back at the next mount
            assert now in (scenario.old, scenario.new) or torn
        if isinstance(this.error, OSError):
            final = fault == "EINTR" and this.store.order.poisoned is not None
            assert this.error.errno == (errno.EIO if final else this.faults.errno)
    least = SHORT.get(name, 1) if fault == "short" else 4
    assert attempts - absorbed >= least, "faults must be told"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["new", "overwrite"])
def test_C2_the_new_bytes_of_a_failed_put_are_not_lost(
    name: str, fault: str, quick_dir: Path
) -> None:
    salvaged = 0
    for this in faults_of(SCENARIOS[name], quick_dir, fault):
        if this.error is None or not this.wrote(NEW):
            continue
        control = this.directory / ".ckptfs"
        kept = contents(control / "salvage") + contents(control / "stage")
        published = held(this.directory, {"a.pt": NEW})["a.pt"] == NEW
        assert NEW in kept or published, f"{this.failed} lost them"
        # what is gone takes no rename: the next mount moves them
        salvaged += NEW in (kept if fault == "gone" else contents(control / "salvage"))
    assert salvaged > (0 if fault == "short" else 5)


def give_up(store: Store) -> None:
    """What the mount does with the version of a killed writer."""
    with osfs.place(store.fs, store.root, "a.pt") as (at, name):
        staged = store.saves.stage("a.pt", at, name, exists=True, truncate=True)
        try:
            store.fs.write(staged.fd, NEW, 0)
            store.saves.abort(staged, "killed")
        finally:
            store.fs.close(staged.fd)


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"gone"}))
def test_C6_the_note_beside_salvage_is_whole_or_not_there(fault: str, quick_dir: Path) -> None:
    scenario = Scenario(overwrite, give_up, {"a.pt": OLD}, {"a.pt": OLD})
    noted = 0
    for this in faults_of(scenario, quick_dir, fault):
        assert held(this.directory, scenario.old) == scenario.old
        for note in (this.directory / ".ckptfs" / "salvage").glob("*.json"):
            assert json.loads(note.read_bytes())["path"] == "a.pt", this.failed
            noted += 1
    assert noted > (0 if fault == "short" else 5)


def test_C2_a_copy_goes_on_where_the_disk_takes_only_a_part(
    quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_on(quick_dir)
    overwrite(store)
    whole = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, at: whole(fd, data[: len(data) // 2 + 1], at)
    )
    store.append("a.pt", NEW)
    long_ones(store).append("a.pt", ADDED)
    change(store)
    assert store.get("a.pt") == CHANGED + NEW + ADDED
    assert condition(store, "a.pt") is Condition.OK
    store.close()


def begins_alarm(call: Call) -> bool:
    """A failure is noted in a file of its own, by the last that is done."""
    return call.method == "open" and call.arguments[1].startswith(f"{fmt.ALARMS}.")


@pytest.mark.parametrize("name", ["new", "overwrite", "rename onto"])
def test_C2_a_failed_fsync_is_never_tried_again(name: str, quick_dir: Path) -> None:
    failed = 0
    for this in faults_of(SCENARIOS[name], quick_dir):
        if this.failed not in ("fsync", "clean", "start_writeback"):
            continue
        failed += 1
        assert this.error is not None
        of_the_commit = itertools.takewhile(lambda call: not begins_alarm(call), this.later)
        assert not {"fsync", "clean"} & {call.method for call in of_the_commit}
        assert not [call for call in this.reached("rename") if call.arguments[3] == "a.pt"]
    assert failed >= 1


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"short"}))
def test_C5_a_fault_during_rollback_never_lets_rot_through(fault: str, quick_dir: Path) -> None:
    told = 0
    for this in faults_of(ROLLBACK, quick_dir, fault):
        assert this.result in (OLD, None), f"{this.failed} let rot through"
        told += this.error is not None
        history = this.directory / ".ckptfs" / "history"
        kept = [path.read_bytes() for path in history.rglob("*") if path.is_file()]
        assert OLD in [*kept, (this.directory / "a.pt").read_bytes()]
    assert told > 10


def test_C5_histories_of_two_paths_do_not_mix_after_a_failed_rename(quick_dir: Path) -> None:
    for this in faults_of(SCENARIOS["rename onto"], quick_dir):
        fresh = store_on(this.directory)
        if this.error is not None and this.store.order.poisoned is None:
            assert lineage(fresh, "a.pt") != lineage(fresh, "b.tmp"), this.failed
        fresh.close()


@pytest.mark.parametrize("name", ["new", "overwrite"])
def test_C2_a_failed_directory_fsync_after_publish_ends_all_writing(
    name: str, quick_dir: Path
) -> None:
    poisoned = 0
    for this in faults_of(SCENARIOS[name], quick_dir):
        if this.store.order.poisoned is None:
            continue
        poisoned += 1
        for refused in (
            lambda store: store.put("c.pt", NEWER),
            lambda store: store.unlink("a.pt"),
            lambda store: store.rename("a.pt", "d.pt"),
        ):
            with pytest.raises(StoreReadOnly):
                refused(this.store)
        assert not (this.directory / "c.pt").exists()
    assert poisoned >= 1


def test_C2_a_version_that_was_staged_before_is_refused_by_a_poisoned_store(
    quick_dir: Path,
) -> None:
    faults = FailAlways(OsFs(), "fsync_dir")
    faults.armed = False
    store = store_on(quick_dir, faults)
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    store.fs.write(staged.fd, NEW, 0)
    store.layout.next_generation()
    faults.armed = True
    with pytest.raises(OSError):
        store.put("b.pt", OLD)
    faults.armed = False
    with pytest.raises(StoreReadOnly):
        store.saves.commit(staged, store.root, "a.pt")
    assert not (quick_dir / "a.pt").exists()
    assert contents(quick_dir / ".ckptfs" / "salvage") == [NEW]
    assert store.get("b.pt") == OLD  # reading goes on
    store.fs.close(staged.fd)
    store.close()


def test_C2_an_fsync_that_failed_once_stays_failed_for_a_live_version(quick_dir: Path) -> None:
    """reseal: the page cache shows the new bytes and a second fsync would say all is well."""
    faults = FailAlways(OsFs(), "fsync")
    faults.armed = False
    store = store_on(quick_dir, faults)
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    store.fs.write(staged.fd, OLD, 0)
    store.saves.commit(staged, store.root, "a.pt")
    store.fs.write(staged.fd, b"changed", 0)
    faults.armed = True
    with pytest.raises(OSError):
        store.saves.reseal(staged)
    faults.armed = False
    with pytest.raises(OSError):
        store.saves.reseal(staged)
    store.fs.close(staged.fd)
    store.close()


def test_C2_an_error_of_background_writeback_fails_the_commit(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    store.fs.write(staged.fd, NEW, 0)
    staged.writeback_error = OSError(errno.EIO, "seen behind the writer")
    with pytest.raises(OSError, match="seen behind the writer"):
        store.saves.commit(staged, store.root, "a.pt")
    assert not (quick_dir / "a.pt").exists()
    assert contents(quick_dir / ".ckptfs" / "salvage") == [NEW]
    (note,) = (quick_dir / ".ckptfs" / "salvage").glob("*.json")
    assert json.loads(note.read_text())["path"] == "a.pt"
    store.fs.close(staged.fd)
    store.close()


def test_opening_a_store_fails_cleanly_at_every_call(quick_dir: Path) -> None:
    before = open_descriptors()
    k = calls = 0
    while k == calls:
        k += 1
        directory = quick_dir / str(k)
        directory.mkdir()
        faults = FailNth(OsFs(), k)
        with contextlib.suppress(OSError, CkptfsError):
            store = store_on(directory, faults)
            store.close()
        calls = faults.calls
        assert open_descriptors() <= before
        again = store_on(directory)
        again.put("a.pt", NEW)
        assert again.get("a.pt") == NEW
        again.close()
    assert calls > 10


def test_control_a_commit_that_swallows_errors_is_seen(
    quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loop over a put that reports success whatever happens."""
    honest = Store.put

    def lies(store: Store, path: str, data: bytes) -> None:
        with contextlib.suppress(OSError, CkptfsError):
            honest(store, path, data)

    scenario = Scenario(
        overwrite, lambda store: lies(store, "a.pt", NEW), {"a.pt": OLD}, {"a.pt": NEW}
    )
    hidden = [
        this.failed
        for this in faults_of(scenario, quick_dir)
        if this.error is None and held(this.directory, scenario.old) != scenario.new
    ]
    assert {"fsync", "rename"} <= set(hidden)


def test_control_without_a_good_generation_the_error_is_told(quick_dir: Path) -> None:
    store = store_on(quick_dir, keep=0)
    two_versions(store)
    rot(quick_dir / "a.pt", 9)
    with pytest.raises(Rotten):
        store.get("a.pt")
    store.close()
