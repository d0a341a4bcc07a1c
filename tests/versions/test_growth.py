"""A long file that is gone on with keeps C1, C2 and C5 at every instant, and costs what was added.

On a filesystem that shares blocks the staged version is a clone; elsewhere the committed file
itself grows. Every crash point and every failing call of both, with controls that break them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import NEW, OLD, condition, contents, rot, store_on
from test_commit_faults import Scenario as Faulty
from test_commit_faults import faults_of, held
from test_commit_powercut import Contents, Step, Wrap, judge, no_wrap

from ckptfs.checking.examine import Condition
from ckptfs.disk.real import OsFs
from ckptfs.errors import CkptfsError, Rotten
from ckptfs.modes import Mode
from ckptfs.store import Options, Store
from ckptfs.tools.crashfs import CrashFs
from ckptfs.tools.faults import (
    CHANGES,
    SYNCS,
    Before,
    Call,
    FailAlways,
    Ignoring,
    Intercepted,
    without,
)

MORE, MOST = b"and more " * 90, b"and most " * 80
MODES = [Mode.ATOMIC_DIRSYNC, Mode.ATOMIC_NODIRSYNC]


def lazy(store: Store) -> Store:
    store.core.copied_at_once_bytes = 100
    return store


def append(data: bytes) -> Callable[[Store], object]:
    return lambda store: lazy(store).append("a.pt", data)


# --- power cuts ----------------------------------------------------------------------------------


def violations(
    steps: list[Step],
    mode: Mode = Mode.ATOMIC_DIRSYNC,
    wrap: Wrap = no_wrap,
    *,
    shares_blocks: bool = False,
) -> set[str]:
    """Over every state that a power cut ahead of any call, or a kill there, may leave."""
    fs = CrashFs(shares_blocks=shares_blocks)
    Store(fs, fs.root, "store", Options(mode=mode)).put("a.pt", OLD)
    fs.sync_all(fs.root)
    allowed: set[bytes | None] = {OLD}
    points: list[tuple[CrashFs, set[bytes | None]]] = []

    def power_goes(call: Call | None = None) -> None:
        if call is None or call.method in CHANGES | SYNCS:
            points.append((fs.snapshot(), set(allowed)))

    store = Store(wrap(Before(fs, power_goes)), fs.root, "store", Options(mode=mode))
    for step in steps:
        allowed.add(step.after["a.pt"])
        with contextlib.suppress(CkptfsError, OSError):
            step.run(store)
        if mode.syncs_directories:
            allowed = {step.after["a.pt"]}
        power_goes()
    found: set[str] = set()
    seen = set()
    before: Contents = {"a.pt": OLD}
    for snapshot, contents_allowed in points:
        for state in snapshot.crash_states():
            key = state.identity(), frozenset(contents_allowed)
            if key not in seen:
                seen.add(key)
                found |= judge(state, {"a.pt": contents_allowed}, _scenario(before), mode)
    assert len(seen) > 20
    return found


def _scenario(before: Contents) -> Any:
    from test_commit_powercut import Scenario

    return Scenario(lambda store: None, before, [])


ONCE = [Step(append(MORE), {"a.pt": OLD + MORE})]
TWICE = [*ONCE, Step(append(MOST), {"a.pt": OLD + MORE + MOST})]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shares_blocks", [False, True])
def test_C1_C2_an_append_survives_every_power_cut(mode: Mode, shares_blocks: bool) -> None:
    assert violations(TWICE, mode, shares_blocks=shares_blocks) == set()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("k", [1, 2])
def test_C1_an_append_that_fails_survives_every_power_cut(k: int, code: int) -> None:
    """The k-th fsync fails: the file is cut back, and the power may go at any call of that."""

    class Fails(Intercepted):
        calls = 0

        def around(self, call: Call) -> Any:
            if call.method == "fsync":
                self.calls += 1
                if self.calls == k:
                    raise OSError(code, "injected")
            return call.run()

    steps = [Step(append(MORE), {"a.pt": OLD + MORE})]
    wrong = violations(steps, wrap=lambda fs: Fails(fs))
    assert wrong <= {"C2: a returned put is gone"}  # it did not return


def interrupted(fs: CrashFs) -> CrashFs:
    """As a kill leaves it: added to, not recorded."""
    store = Store(fs, fs.root, "store", Options())
    store.put("a.pt", OLD)
    fs.sync_all(fs.root)
    halves: list[CrashFs] = []

    def ahead(call: Call) -> None:
        if call.method == "setxattr" and fs.lstat(fs.root, "a.pt").st_size > len(OLD):
            halves.append(fs.snapshot())

    append(MORE)(Store(Before(fs, ahead).fs, fs.root, "store", Options()))
    assert halves
    return halves[0]


def test_C1_recovery_itself_survives_every_power_cut() -> None:
    seen = set()  # most calls change nothing, so most cuts leave what others do
    for half in interrupted(CrashFs()).crash_states():
        cuts: list[CrashFs] = []
        watched = Before(half, lambda call, half=half, cuts=cuts: cuts.append(half.snapshot()))
        Store(watched.fs, half.root, "store", Options()).recover()
        for cut, before in zip(cuts, [None, *cuts], strict=False):
            if before and (cut.pending, cut.identity()) == (before.pending, before.identity()):
                continue
            for state in cut.crash_states():
                if state.identity() in seen:
                    continue
                seen.add(state.identity())
                again = Store(state, state.root, "store", Options())
                again.recover()
                assert again.get("a.pt") == OLD
                assert condition(again, "a.pt") is Condition.OK


def without_nth_fsync(n: int) -> Wrap:
    def wrap(fs: Any) -> Any:
        calls: list[Call] = []

        def ignored(call: Call) -> bool:
            if call.method == "fsync":
                calls.append(call)
            return call.method == "fsync" and len(calls) == n

        return Ignoring(fs, ignored)

    return wrap


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        (without_nth_fsync(1), "C1"),  # the record outruns the bytes
        (without_nth_fsync(3), "C2"),  # the second is the generation counter's
        (without("link"), "C1"),
        (without("fsync_dir"), "C1"),
    ],
)
def test_control_a_broken_extension_is_seen(broken: Wrap, seen: str) -> None:
    found = violations(ONCE, wrap=broken)
    assert any(each.startswith(seen) for each in found), found


def test_a_file_without_room_for_its_record_costs_others_nothing(ext4_dir: Path) -> None:
    (ext4_dir / "full.pt").write_bytes(b"mine")
    os.setxattr(ext4_dir / "full.pt", "user.mine", b"m" * 3900)
    store = lazy(store_on(ext4_dir))
    for path in ("full.pt", "a.pt"):
        store.put(path, OLD)
    assert list((ext4_dir / ".ckptfs" / "sidecar").iterdir())
    before = {path: (ext4_dir / path).stat().st_ino for path in ("full.pt", "a.pt")}
    for path in before:
        store.append(path, MORE)
        assert store.get(path) == OLD + MORE
    assert (ext4_dir / "a.pt").stat().st_ino == before["a.pt"]
    assert (ext4_dir / "full.pt").stat().st_ino != before["full.pt"]
    store.close()


# --- what is not its own ------------------------------------------------------------------------


def salvaged(store: Store) -> list[int]:
    return [int(str(each["size"])) for each in store.layout.aside.entries(store.layout.salvage)]


@pytest.mark.parametrize("name", ["0011223344556677", "0011223344556677-1"])
def test_an_intent_that_is_over_cuts_nothing(name: str, quick_dir: Path) -> None:
    """Its unlink was not durable, and somebody has added to the file without ckptfs."""
    store = lazy(store_on(quick_dir))
    store.put("a.pt", OLD)
    append(MORE)(store)
    store.close()
    os.link(quick_dir / "a.pt", quick_dir / ".ckptfs" / "stage" / f"{name}.grows")
    with open(quick_dir / "a.pt", "ab") as file:
        file.write(MOST)
    again = store_on(quick_dir)
    again.recover()
    assert (quick_dir / "a.pt").read_bytes() == OLD + MORE + MOST
    assert not list((quick_dir / ".ckptfs" / "stage").iterdir())
    again.close()


@pytest.mark.parametrize("added_outside", [b"", b"by somebody else"])
def test_what_is_cut_off_is_kept_where_the_staged_version_does_not_hold_it(
    added_outside: bytes,
) -> None:
    fs = interrupted(CrashFs())
    fd = fs.open(fs.root, "a.pt", os.O_RDWR)
    size = fs.stat(fd).st_size
    fs.write(fd, added_outside, size)
    store = Store(fs, fs.root, "store", Options())
    assert store.recover() == (2 if added_outside else 1)  # the staged version is one of them
    assert store.get("a.pt") == OLD
    if added_outside:
        kept = max(salvaged(store))
        assert kept >= len(MORE) + len(added_outside)


# --- failing calls -------------------------------------------------------------------------------


APPEND = Faulty(
    lambda store: store.put("a.pt", OLD),
    append(MORE),
    {"a.pt": OLD},
    {"a.pt": OLD + MORE},
)


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC"])
def test_C1_C2_after_any_failed_call(fault: str, quick_dir: Path) -> None:
    attempts = told = 0
    for this in faults_of(APPEND, quick_dir, fault):
        attempts += 1
        now = held(this.directory, APPEND.old)
        if this.error is None:
            assert now == APPEND.new, f"{this.failed} was hidden"
        elif this.store.order.poisoned is None:
            told += 1
            assert now == APPEND.old, f"{this.failed} raised {this.error!r}"
            assert condition(this.store, "a.pt") is Condition.OK, this.failed
        else:
            assert this.failed == "fsync_dir"
    assert told >= 4
    assert attempts > 15


def test_C5_a_file_that_could_not_be_cut_back_is_not_served(quick_dir: Path) -> None:
    faults = FailAlways(OsFs(), "fsync")
    faults.armed = False
    store = lazy(store_on(quick_dir, faults))
    store.put("a.pt", OLD)
    store.layout.next_generation()
    faults.armed = True
    with pytest.raises(OSError):
        store.append("a.pt", MORE)
    faults.armed = False
    with pytest.raises(Rotten):
        store.get("a.pt")
    assert store.order.poisoned
    store.close()
    again = store_on(quick_dir)
    again.recover()
    assert again.get("a.pt") == OLD
    assert condition(again, "a.pt") is Condition.OK
    again.close()


# --- what it costs, and what becomes of the parts ------------------------------------------------


class Reads(Intercepted):
    """Counts the bytes that pass, by direction."""

    def __init__(self, below: Any) -> None:
        super().__init__(below)
        self.hashed = self.copied = 0

    def around(self, call: Call) -> Any:
        result = call.run()
        if call.method == "readinto":
            self.hashed += result
        if call.method == "copy":
            self.copied += call.arguments[3] - call.arguments[2]
        return result


@pytest.mark.parametrize("checksum", ["blake3", "sha256"])
def test_only_what_was_added_is_copied_and_hashed(ext4_dir: Path, checksum: str) -> None:
    counted = Reads(OsFs())
    store = lazy(store_on(ext4_dir, counted, checksum=checksum))
    content = b""
    for step in range(20):
        store.append("a.pt", b"%4d" % step * 1000)
        content += b"%4d" % step * 1000
    assert store.get("a.pt") == content
    assert condition(store, "a.pt") is Condition.OK
    assert counted.copied <= len(content) * 1.1
    assert counted.hashed <= 3 * len(content)  # the last verification included
    store.close()


def test_another_name_is_not_extended_along(ext4_dir: Path) -> None:
    store = lazy(store_on(ext4_dir))
    store.put("a.pt", OLD)
    (ext4_dir / "b.pt").hardlink_to(ext4_dir / "a.pt")
    store.append("a.pt", MORE)
    assert (ext4_dir / "b.pt").read_bytes() == OLD
    assert store.get("a.pt") == OLD + MORE
    store.close()


def test_rot_in_the_base_is_not_given_a_digest_of_its_own(ext4_dir: Path) -> None:
    store = lazy(store_on(ext4_dir))
    store.put("a.pt", OLD)
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=True, truncate=False, lazily=True)
    rot(ext4_dir / "a.pt", 5)
    store.core.digests.forget()
    store.fs.write(staged.fd, MORE, len(OLD))
    with pytest.raises(Rotten):
        store.saves.commit(staged, store.root, "a.pt")
    store.fs.close(staged.fd)
    (saved,) = contents(ext4_dir / ".ckptfs" / "salvage")
    assert saved == bytes(len(OLD)) + MORE
    store.close()


def test_a_base_that_was_replaced_meanwhile_is_gone_on_with_all_the_same(ext4_dir: Path) -> None:
    store = lazy(store_on(ext4_dir))
    store.put("a.pt", OLD)
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=True, truncate=False, lazily=True)
    store.put("a.pt", NEW)
    store.fs.write(staged.fd, MORE, len(OLD))
    store.saves.commit(staged, store.root, "a.pt")
    store.fs.close(staged.fd)
    assert store.get("a.pt") == OLD + MORE
    assert condition(store, "a.pt") is Condition.OK
    store.close()
