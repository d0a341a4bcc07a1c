"""C1, C2 when a call fails: each call of a commit in turn raises EIO or ENOSPC.

After each fault the path holds the old or the new bytes whole, the caller was told the truth, the
new bytes are not lost, no descriptor leaks, and a fresh store on the directory serves and goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
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

from ckptfs.errors import CkptfsError, Rotten, StoreReadOnly
from ckptfs.fsck import Check, Scope
from ckptfs.osfs import OsFs
from ckptfs.store import Store
from ckptfs.tools.faults import METHODS, NEVER_FAIL, Before, Call, FailAlways, FailNth
from ckptfs.verify import BAD, Condition

ERRNOS = [errno.EIO, errno.ENOSPC]
FALLIBLE = METHODS - NEVER_FAIL


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
}
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
def attempt(directory: Path, scenario: Scenario, k: int, code: int) -> Any:
    directory.mkdir()
    prepared = store_on(directory)
    scenario.prepare(prepared)
    prepared.close()
    scenario.spoil(directory)
    before = open_descriptors()
    faults = FailNth(OsFs(), 0, code)
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


def how_many(tmp: Path, scenario: Scenario) -> int:
    with attempt(tmp / "count", scenario, 0, errno.EIO) as clean:
        assert clean.error is None
        return clean.faults.calls


def held(directory: Path, paths: dict[str, Any]) -> dict[str, bytes | None]:
    """What is there for a program that knows nothing of ckptfs (C9)."""
    return {
        path: (directory / path).read_bytes() if (directory / path).exists() else None
        for path in paths
    }


def faults_of(scenario: Scenario, tmp: Path, code: int) -> Any:
    for k in range(1, how_many(tmp, scenario) + 1):
        with attempt(tmp / str(k), scenario, k, code) as this:
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


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", SCENARIOS)
def test_C1_C2_after_any_failed_call(name: str, code: int, quick_dir: Path) -> None:
    scenario = SCENARIOS[name]
    attempts = absorbed = 0
    for this in faults_of(scenario, quick_dir, code):
        attempts += 1
        now = held(this.directory, scenario.old)
        if this.error is None:
            absorbed += 1
            assert now == scenario.new, f"{this.failed} was hidden"
        elif this.store.committer.poisoned is None:
            assert now == scenario.old, f"{this.failed} raised {this.error!r}"
        else:
            assert this.failed == "fsync_dir"
            assert now in (scenario.old, scenario.new)
        if isinstance(this.error, OSError):
            assert this.error.errno == code
    assert attempts - absorbed >= 4, "faults must be told"


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["new", "overwrite"])
def test_C2_the_new_bytes_of_a_failed_put_are_not_lost(
    name: str, code: int, quick_dir: Path
) -> None:
    salvaged = 0
    for this in faults_of(SCENARIOS[name], quick_dir, code):
        if this.error is None or not this.wrote(NEW):
            continue
        control = this.directory / ".ckptfs"
        kept = contents(control / "salvage") + contents(control / "stage")
        published = held(this.directory, {"a.pt": NEW})["a.pt"] == NEW
        assert NEW in kept or published, f"{this.failed} lost them"
        salvaged += NEW in contents(control / "salvage")
    assert salvaged > 5


@pytest.mark.parametrize("name", ["new", "overwrite", "rename onto"])
def test_C2_a_failed_fsync_is_never_tried_again(name: str, quick_dir: Path) -> None:
    failed = 0
    for this in faults_of(SCENARIOS[name], quick_dir, errno.EIO):
        if this.failed not in ("fsync", "clean", "start_writeback"):
            continue
        failed += 1
        assert this.error is not None
        assert not {"fsync", "clean"} & {call.method for call in this.later}
        assert not [call for call in this.reached("rename") if call.arguments[3] == "a.pt"]
    assert failed >= 1


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
def test_C5_a_fault_during_rollback_never_lets_rot_through(code: int, quick_dir: Path) -> None:
    told = 0
    for this in faults_of(ROLLBACK, quick_dir, code):
        assert this.result in (OLD, None), f"{this.failed} let rot through"
        told += this.error is not None
        history = this.directory / ".ckptfs" / "history"
        kept = [path.read_bytes() for path in history.rglob("*") if path.is_file()]
        assert OLD in [*kept, (this.directory / "a.pt").read_bytes()]
    assert told > 10


def test_C5_histories_of_two_paths_do_not_mix_after_a_failed_rename(quick_dir: Path) -> None:
    for this in faults_of(SCENARIOS["rename onto"], quick_dir, errno.EIO):
        fresh = store_on(this.directory)
        if this.error is not None and this.store.committer.poisoned is None:
            assert lineage(fresh, "a.pt") != lineage(fresh, "b.tmp"), this.failed
        fresh.close()


@pytest.mark.parametrize("name", ["new", "overwrite"])
def test_C2_a_failed_directory_fsync_after_publish_ends_all_writing(
    name: str, quick_dir: Path
) -> None:
    poisoned = 0
    for this in faults_of(SCENARIOS[name], quick_dir, errno.EIO):
        if this.store.committer.poisoned is None:
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
    staged = store.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    store.fs.write(staged.fd, NEW, 0)
    store.layout.next_generation()
    faults.armed = True
    with pytest.raises(OSError):
        store.put("b.pt", OLD)
    faults.armed = False
    with pytest.raises(StoreReadOnly):
        store.commit(staged, store.root, "a.pt")
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
    staged = store.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    store.fs.write(staged.fd, OLD, 0)
    store.commit(staged, store.root, "a.pt")
    store.fs.write(staged.fd, b"changed", 0)
    faults.armed = True
    with pytest.raises(OSError):
        store.reseal(staged)
    faults.armed = False
    with pytest.raises(OSError):
        store.reseal(staged)
    store.fs.close(staged.fd)
    store.close()


def test_C2_an_error_of_background_writeback_fails_the_commit(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    staged = store.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    store.fs.write(staged.fd, NEW, 0)
    staged.writeback_error = OSError(errno.EIO, "seen behind the writer")
    with pytest.raises(OSError, match="seen behind the writer"):
        store.commit(staged, store.root, "a.pt")
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
        for this in faults_of(scenario, quick_dir, errno.EIO)
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
