"""C2 on a full disk: what is not needed is given up before a save fails, in the order that an
operator would choose, and never the last good version of anything."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import rot, store_on
from smalldisk import MIB, SmallDisk, abort, version

from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.errors import Rotten
from ckptfs.records.aside import Amount
from ckptfs.room import making
from ckptfs.room.expendable import Item, Kind
from ckptfs.room.making import DiskRoom
from ckptfs.store import Store
from ckptfs.telling.events import DISK_FULL
from ckptfs.tools.harness.faults import Call, FailNth, Intercepted
from ckptfs.units import parse_bytes, parse_seconds
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope
from ckptfs.versions.order import Place
from ckptfs.versions.standing import keep_replaced, replaced_by

UID = os.getuid()


def rolled_back(store: Store, directory: Path, path: str) -> None:
    """What stands at the path goes to quarantine."""
    rot(directory / path, 17)
    store.guard.resume(b"")
    store.repair(path)


def lies(directory: Path, kind: Kind) -> list[int]:
    """The numbers of the versions there."""
    found = []
    for folder, _, names in os.walk(directory / ".ckptfs" / kind.value):
        found += [(Path(folder) / n).read_bytes()[0] for n in names if not n.endswith(".json")]
    return sorted(found)


def kept(store: Store, directory: Path) -> list[int]:
    return lies(directory, Kind.HISTORY)


def squeeze(store: Store, disk: SmallDisk, free_bytes: int) -> None:
    disk.size_bytes += free_bytes - disk.free_bytes()


@pytest.fixture
def disk(quick_dir: Path) -> SmallDisk:
    return SmallDisk(quick_dir, 1 << 40)


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("17", 17),
        ("512M", 512 << 20),
        ("10G", 10 << 30),
        ("1.5k", 1536),
        ("1T", 1 << 40),
        ("10 GiB", 10 << 30),
        ("3gb", 3 << 30),
        ("9B", 9),
    ],
)
def test_sizes_have_units(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "-1", "ten", "1X", "1e3", "inf", "nan", "9999999P"])
def test_what_is_no_size_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="not a size, such as 512M, 10G or 1T"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "-1", "d", "1w", "inf", "1e400"])
def test_what_is_no_time_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="not a time, such as 90s, 15m, 12h or 7d"):
        parse_seconds(text)


# --- bounds --------------------------------------------------------------------------------------


def test_salvage_and_quarantine_are_bounded_together_and_salvage_goes_first(
    quick_dir: Path,
) -> None:
    store = store_on(quick_dir, salvage_bytes=11_000, keep=9)
    for number in (1, 2):
        store.put("a.pt", version(number, 4000))
    rolled_back(store, quick_dir, "a.pt")
    for number in (11, 12):
        abort(store, "b.pt", number, 4000)
    assert lies(quick_dir, Kind.SALVAGE) == [12]
    assert lies(quick_dir, Kind.QUARANTINE) == [2]
    store.put("a.pt", version(3, 4000))
    rolled_back(store, quick_dir, "a.pt")
    assert lies(quick_dir, Kind.SALVAGE) == []
    assert lies(quick_dir, Kind.QUARANTINE) == [2, 3]
    store.put("a.pt", version(4, 4000))
    rolled_back(store, quick_dir, "a.pt")
    assert lies(quick_dir, Kind.QUARANTINE) == [3, 4]  # the oldest went
    store.close()


def test_they_are_bounded_by_their_number_too(quick_dir: Path) -> None:
    store = store_on(quick_dir, salvage_entries=3)
    for number in range(5):
        abort(store, "a.pt", number, 1000)
    assert lies(quick_dir, Kind.SALVAGE) == [2, 3, 4]
    store.close()


def test_what_nothing_else_is_left_of_goes_last(quick_dir: Path) -> None:
    """In quarantine lie the only bytes of a file whose good version was deleted since."""
    store = store_on(quick_dir)
    for path in ("gone.pt", "good.pt"):
        for number in (1, 2):
            store.put(path, version(number, 5000))
        rolled_back(store, quick_dir, path)
    store.unlink("gone.pt")
    abort(store, "a.pt", 9, 5000)
    left = []
    for count in (2, 1, 0):
        store.room.limits.bounds = Amount(count, 1 << 40)
        store.room.limits.bound()
        left.append(
            sorted(
                str(item.path)
                for kind in (Kind.SALVAGE, Kind.QUARANTINE)
                for item in store.room.expendable.of(kind)
            )
        )
    assert left == [["gone.pt", "good.pt"], ["gone.pt"], []]
    store.close()


# --- giving up -----------------------------------------------------------------------------------


def full_of_everything(store: Store, directory: Path) -> None:
    """Two of salvage, two of quarantine, earlier versions of two files."""
    for number in (1, 2, 3):
        store.put("a.pt", version(number))
        store.put("b.pt", version(10 + number))
    for number in (21, 22):
        store.put("c.pt", version(20))
        store.put("c.pt", version(number))
        rolled_back(store, directory, "c.pt")
    for number in (31, 32):
        abort(store, "d.pt", number)


def test_it_goes_in_order_and_just_enough(quick_dir: Path, disk: SmallDisk) -> None:
    store = store_on(quick_dir, disk.fs, keep=9)
    full_of_everything(store, quick_dir)
    kinds = (Kind.SALVAGE, Kind.QUARANTINE, Kind.HISTORY)
    assert [lies(quick_dir, kind) for kind in kinds[:2]] == [[31, 32], [21, 22]]
    everything = kept(store, quick_dir)
    gone: list[list[int]] = []
    before = {kind: lies(quick_dir, kind) for kind in kinds}
    while True:
        squeeze(store, disk, 2 * MIB)
        store.room._spent.clear()
        if not store.room.make_room(3 * MIB, UID):
            break
        now = {kind: lies(quick_dir, kind) for kind in kinds}
        gone += [sorted(set(before[kind]) - set(now[kind])) for kind in kinds if now != before]
        before = now
    flat = [number for numbers in gone for number in numbers]
    assert flat[:4] == [31, 32, 21, 22]
    assert flat[4:] == [1, 11, 2, 12, 20] and everything == sorted(flat[4:])
    assert {"a.pt": version(3), "b.pt": version(13), "c.pt": version(20)} == {
        path: store.get(path) for path in ("a.pt", "b.pt", "c.pt")
    }
    store.close()


def test_a_save_finds_the_room_that_salvage_took(
    quick_dir: Path, disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_on(quick_dir, disk.fs)
    for number in range(3):
        abort(store, "a.pt", number)
    squeeze(store, disk, 5 * MIB)
    store.put("new.pt", version(9, 5 * MIB))
    assert store.get("new.pt") == version(9, 5 * MIB)
    assert lies(quick_dir, Kind.SALVAGE) == [1, 2]
    told = [record.getMessage() for record in caplog.records if "let go" in record.getMessage()]
    (line,) = told
    assert line.startswith("a.pt: salvage ") and line.endswith(f"; {4 * MIB} bytes")
    assert caplog.records[-1].levelno == logging.WARNING
    store.close()


def test_control_a_call_that_is_not_made_again_fails(quick_dir: Path, disk: SmallDisk) -> None:
    store = store_on(quick_dir, disk.fs)
    abort(store, "a.pt", 1)
    squeeze(store, disk, MIB)
    store.fs.room = None  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="no room"):
        store.put("new.pt", version(9))
    store.close()


@pytest.mark.parametrize("room_for", [0, MIB])
def test_names_and_records_find_room_too(quick_dir: Path, room_for: int) -> None:
    """A disk without a block left: staging, the record, history and the rename are made again."""
    disk = SmallDisk(quick_dir, 1 << 40, strict=True)
    store = store_on(quick_dir, disk.fs)
    store.put("a.pt", version(1, 1000))
    abort(store, "b.pt", 2)
    squeeze(store, disk, room_for // 2)
    store.put("a.pt", version(3, 1000))
    assert disk.refused
    assert store.get("a.pt") == version(3, 1000)
    assert kept(store, quick_dir) == [1]
    store.close()


def test_a_save_that_fails_for_lack_of_room_leaves_nothing_behind(
    quick_dir: Path, disk: SmallDisk
) -> None:
    store = store_on(quick_dir, disk.fs)
    store.put("a.pt", version(1))
    squeeze(store, disk, 6 * MIB)
    for _ in range(3):
        staged = store.saves.stage("a.pt", store.root, "a.pt", exists=True, truncate=True)
        with pytest.raises(OSError, match="no room"):
            for block in range(100):
                store.fs.write(staged.fd, version(2, MIB), block * MIB)
        store.saves.abort(staged, DISK_FULL)
        store.fs.close(staged.fd)
        assert disk.free_bytes() >= 6 * MIB - 4096  # for the alarm
    assert not os.listdir(quick_dir / ".ckptfs/salvage")
    assert not os.listdir(quick_dir / ".ckptfs/stage")
    assert store.get("a.pt") == version(1)
    store.close()


def test_what_was_killed_on_a_disk_with_room_goes_to_salvage_as_before(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    abort(store, "a.pt", 7)
    assert lies(quick_dir, Kind.SALVAGE) == [7]
    store.close()


# --- never the last good version -----------------------------------------------------------------


def give_up_all(store: Store, disk: SmallDisk) -> None:
    squeeze(store, disk, 3 * MIB)
    store.room._spent.clear()
    while store.room.make_room(2 * MIB, UID):
        squeeze(store, disk, 3 * MIB)


def versions(store: Store, count: int) -> None:
    for number in range(1, count + 1):
        store.put("a.pt", version(number))


def test_C8_where_the_file_has_rotted_its_newest_good_generation_stays(
    quick_dir: Path, disk: SmallDisk
) -> None:
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 4)
    rot(quick_dir / "a.pt", 9)
    store.guard.resume(b"")
    give_up_all(store, disk)
    assert kept(store, quick_dir) == [3]
    assert store.get("a.pt") == version(3)
    store.close()


def test_rot_that_no_stamp_shows_is_read(quick_dir: Path, disk: SmallDisk) -> None:
    """What was committed or opened by this very daemon may have rotted since."""
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 4)
    rot(quick_dir / "a.pt", 9)
    known = store.guard.known_good
    store.guard.known_good = lambda at, name: True  # type: ignore[method-assign]
    give_up_all(store, disk)
    assert kept(store, quick_dir) == [3]
    store.guard.known_good = known  # type: ignore[method-assign]
    assert store.get("a.pt") == version(3)
    store.close()


def test_C8_what_rots_while_room_is_made_keeps_its_generation(
    quick_dir: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 4)
    let_go = store.room.expendable.let_go

    def and_rots(item: Item) -> bool:
        gone = let_go(item)
        rot(quick_dir / "a.pt", 9)
        monkeypatch.setattr(store.room.expendable, "let_go", let_go)
        return gone

    monkeypatch.setattr(store.room.expendable, "let_go", and_rots)
    squeeze(store, disk, MIB)
    assert not store.room.make_room(8 * MIB, UID)
    assert kept(store, quick_dir) == [3]
    store.guard.resume(b"")
    assert store.get("a.pt") == version(3)
    store.close()


@pytest.mark.skipif(UID != 0, reason="only root can give files away")
def test_nobody_s_earlier_versions_go_for_somebody_else_s_save(
    quick_dir: Path, disk: SmallDisk
) -> None:
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 3)
    for path in [quick_dir / "a.pt", *(quick_dir / ".ckptfs/history").glob("*/*")]:
        os.chown(path, 60001, 60001)
    squeeze(store, disk, MIB)
    for uid in (0, 60002):
        assert not store.room.make_room(3 * MIB, uid)
    assert kept(store, quick_dir) == [1, 2]
    assert store.room.make_room(3 * MIB, 60001)
    assert kept(store, quick_dir) == [2]
    store.close()


def test_what_is_longer_than_is_worth_to_read_stays(
    quick_dir: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file is read in its whole length, though it takes nothing."""
    monkeypatch.setattr(making, "_PROOF_BYTES", MIB)
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 3)
    store.put("a.pt", version(4) + bytes(60 * MIB))
    give_up_all(store, disk)
    assert kept(store, quick_dir) == [3]  # which was read, and the file was not
    store.close()


def test_C8_where_the_newest_generation_has_rotted_too_the_one_before_stays(
    quick_dir: Path, disk: SmallDisk
) -> None:
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 4)
    (folder,) = (quick_dir / ".ckptfs/history").iterdir()
    newest = max(folder.iterdir(), key=lambda path: int(path.name))
    for path in (quick_dir / "a.pt", newest):
        rot(path, 9)
    store.guard.resume(b"")
    give_up_all(store, disk)
    assert kept(store, quick_dir) == [2, 3]
    assert store.get("a.pt") == version(2)
    store.close()


def test_where_nothing_is_good_nothing_goes(quick_dir: Path, disk: SmallDisk) -> None:
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 3)
    for path in [quick_dir / "a.pt", *(quick_dir / ".ckptfs/history").glob("*/*")]:
        rot(path, 9)
    store.guard.resume(b"")
    give_up_all(store, disk)
    assert kept(store, quick_dir) == [1, 2]
    with pytest.raises(Rotten):
        store.get("a.pt")
    store.close()


@pytest.mark.parametrize("how", ["deleted outside", "edited outside", "record lost"])
def test_what_stands_there_unproven_counts_for_nothing(
    how: str, quick_dir: Path, disk: SmallDisk
) -> None:
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 3)
    path = quick_dir / "a.pt"
    if how == "deleted outside":
        path.unlink()
    elif how == "edited outside":
        path.write_bytes(version(99))
        assert store.get("a.pt") == version(99)  # from here on it is known to be served as it is
    else:
        os.removexattr(path, "user.ckptfs")
    give_up_all(store, disk)
    assert kept(store, quick_dir) == [2]
    store.close()


def test_what_was_rolled_back_to_keeps_what_is_older(quick_dir: Path, disk: SmallDisk) -> None:
    """A rollback takes what is older than what has rotted, however good newer ones are."""
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 5)
    rot(quick_dir / "a.pt", 9)
    store.guard.resume(b"")
    third = sorted(int(p.name) for p in (quick_dir / ".ckptfs/history").glob("*/*"))[2]
    store.history.rollback("a.pt", third)
    assert store.get("a.pt") == version(3)
    rot(quick_dir / "a.pt", 9)
    store.guard.resume(b"")
    give_up_all(store, disk)
    assert kept(store, quick_dir) == [2, 4]
    assert store.get("a.pt") == version(2)
    store.close()


def test_quarantine_of_what_has_no_good_version_stays(quick_dir: Path, disk: SmallDisk) -> None:
    store = store_on(quick_dir, disk.fs)
    versions(store, 2)
    rolled_back(store, quick_dir, "a.pt")
    rot(quick_dir / "a.pt", 9)
    store.guard.resume(b"")
    give_up_all(store, disk)
    assert lies(quick_dir, Kind.QUARANTINE) == [2]
    store.close()


def test_no_earlier_version_goes_for_nothing(quick_dir: Path, disk: SmallDisk) -> None:
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 4)
    squeeze(store, disk, 3 * MIB)
    assert not store.room.make_room(64 * MIB, UID)
    assert kept(store, quick_dir) == [1, 2, 3]
    store.close()


def test_what_a_commit_has_just_kept_stays(quick_dir: Path, disk: SmallDisk) -> None:
    """It has linked the old version into history, and finds no room to publish the new one."""
    store = store_on(quick_dir, disk.fs, keep=9)
    versions(store, 3)
    with osfs.place(store.fs, store.root, "a.pt") as (at, name):
        place = Place(at, name, "a.pt")
        replaced = replaced_by(store.core, place)
        keep_replaced(store.core, replaced, place)
    give_up_all(store, disk)
    assert kept(store, quick_dir) == [3]
    store.close()


def test_C8_a_crash_at_any_unlink_leaves_a_good_version_of_everything(quick_dir: Path) -> None:
    number = 0
    while True:
        number += 1
        directory = quick_dir / str(number)
        directory.mkdir()
        disk = SmallDisk(directory, 1 << 40)
        store = store_on(directory, disk.fs, keep=9)
        full_of_everything(store, directory)
        squeeze(store, disk, 2 * MIB)
        store.close()
        faults = FailNth(disk, number, errno.EIO, {"unlink"}, lasting=True)
        store = store_on(directory, faults.fs, keep=9)
        with contextlib.suppress(OSError):
            store.room.make_room(40 * MIB, UID)
        store.close()
        again = store_on(directory, keep=9)
        for path, data in (("a.pt", 3), ("b.pt", 13), ("c.pt", 20)):
            assert again.get(path) == version(data)
        report = Check(again.layout, Scope())
        assert {f.condition.value for f in report.findings()} <= {"ok"}
        again.close()
        if faults.failed is None:
            break
    assert number > 8


def test_several_that_need_room_at_once_all_find_it(quick_dir: Path, disk: SmallDisk) -> None:
    store = store_on(quick_dir, disk.fs)
    for number in range(8):
        abort(store, "a.pt", number)
    squeeze(store, disk, 2 * MIB)
    errors: list[BaseException] = []

    def save(name: str) -> None:
        try:
            store.put(name, version(1, 2 * MIB))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(f"{n}.pt",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(store.get(f"{n}.pt") == version(1, 2 * MIB) for n in range(4))
    store.close()


def test_room_that_another_makes_just_then_is_used(quick_dir: Path, disk: SmallDisk) -> None:
    """Something is let go of between the refusal and the look at the disk, and not counted yet."""
    gone, seen = threading.Event(), threading.Event()

    class LetGo(Intercepted):
        def around(self, call: Call) -> Any:
            if call.method == "unlink" and not gone.is_set():
                call.run()
                gone.set()
                assert seen.wait(10)
                return None
            try:
                return call.run()
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    other.start()
                    assert gone.wait(10)
                raise

    class Seen(DiskRoom):
        def _has_room(self, needed_bytes: int) -> bool:
            try:
                return super()._has_room(needed_bytes)
            finally:
                seen.set()

    store = store_on(quick_dir, LetGo(disk).fs)
    store.room.__class__ = Seen
    abort(store, "a.pt", 0, 64 * MIB)
    (item,) = store.room.expendable.of(Kind.SALVAGE)
    other = threading.Thread(target=store.room.let_go, args=(item, "for room on the disk"))
    squeeze(store, disk, 0)
    store.put("a.pt", version(1))
    other.join()
    assert disk.refused
    assert store.get("a.pt") == version(1)
    store.close()


def test_an_entry_that_is_being_taken_back_stays(quick_dir: Path, disk: SmallDisk) -> None:
    store = store_on(quick_dir, disk.fs)
    versions(store, 2)
    rolled_back(store, quick_dir, "a.pt")
    with store.room.expendable.using(store.history.quarantined("a.pt")):
        give_up_all(store, disk)
        assert lies(quick_dir, Kind.QUARANTINE) == [2]
    give_up_all(store, disk)
    assert lies(quick_dir, Kind.QUARANTINE) == []
    store.close()


# --- what found no room unseen -------------------------------------------------------------------


def test_a_version_that_was_open_while_the_disk_was_full_is_doubted(
    quick_dir: Path, disk: SmallDisk
) -> None:
    """The kernel told its program alone; room that was made since does not hide that."""
    store = store_on(quick_dir, disk.fs)
    staged = store.saves.stage("a.bin", store.root, "a.bin", exists=False, truncate=True)
    OsFs().write(staged.fd, version(1, 1000), 0)
    assert not store.saves.may_lack_bytes(staged)
    squeeze(store, disk, 0)
    store.room.look()
    squeeze(store, disk, 64 * MIB)
    assert store.saves.may_lack_bytes(staged)
    later = store.saves.stage("b.bin", store.root, "b.bin", exists=False, truncate=True)
    assert not store.saves.may_lack_bytes(later)
    store.room.doubts.sees_writes = True
    assert not store.saves.may_lack_bytes(staged)
    for each in (staged, later):
        store.saves.discard(each)
        store.fs.close(each.fd)
    store.close()


def test_what_its_structure_proves_whole_is_not_doubted(quick_dir: Path, disk: SmallDisk) -> None:
    import io
    import zipfile

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/version", b"3\n")
    store = store_on(quick_dir, disk.fs)
    verdicts = []
    for data in (content.getvalue(), content.getvalue()[:-9]):
        staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
        OsFs().write(staged.fd, data, 0)
        store.room.doubts.doubt(staged)
        verdicts.append(store.saves.may_lack_bytes(staged))
        store.saves.discard(staged)
        store.fs.close(staged.fd)
    assert verdicts == [False, True]
    store.close()


# --- ahead of it ---------------------------------------------------------------------------------


def test_a_save_is_expected_to_be_as_long_as_what_it_replaces_or_the_last_of_its_kind(
    quick_dir: Path, disk: SmallDisk
) -> None:
    store = store_on(quick_dir, disk.fs)
    store.put("step-100.pt", version(1))
    assert store.room.sizes.expected("step-200.pt") == 4 * MIB
    assert store.room.sizes.expected("d/step-7.pt") == 4 * MIB
    assert store.room.sizes.expected("rng-200.pt") == 0
    assert store.room.sizes.expected("step-100.pt", 17) == 17
    store.close()


def test_room_is_made_ahead_of_what_is_expected(quick_dir: Path, disk: SmallDisk) -> None:
    store = store_on(quick_dir, disk.fs)
    store.put("step-1.pt", version(1))
    abort(store, "b.pt", 2)
    squeeze(store, disk, 3 * MIB)
    store.room.ahead_of(store.room.sizes.expected("x.json"), UID)
    assert lies(quick_dir, Kind.SALVAGE) == [2]
    store.room.ahead_of(store.room.sizes.expected("step-2.pt"), UID)
    assert lies(quick_dir, Kind.SALVAGE) == []
    store.close()


def test_what_is_kept_while_a_disk_is_looked_through_is_found_the_next_time(
    quick_dir: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is made for what grows while a commit is under way, whose earlier version comes then."""
    store = store_on(quick_dir, disk.fs)
    store.put("a.pt", version(1))
    squeeze(store, disk, 5 * MIB)
    of = store.room.expendable.of

    def and_saves(kind: Kind) -> list[Item]:
        found = of(kind)
        if kind is Kind.HISTORY:
            monkeypatch.setattr(store.room.expendable, "of", of)
            store.put("a.pt", version(2, MIB))
        return found

    monkeypatch.setattr(store.room.expendable, "of", and_saves)
    assert not store.room.make_room(4 * MIB, UID)
    assert store.room.make_room(4 * MIB, UID)
    assert kept(store, quick_dir) == []
    store.close()


def test_a_disk_with_nothing_to_give_is_not_looked_through_again_and_again(
    quick_dir: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_on(quick_dir, disk.fs)
    store.put("step-1.pt", version(1))
    squeeze(store, disk, 3 * MIB)
    looked: list[Kind] = []
    of = store.room.expendable.of
    monkeypatch.setattr(store.room.expendable, "of", lambda kind: looked.append(kind) or of(kind))
    for _ in range(10):
        store.room.ahead_of(4 * MIB, UID)
    assert len(looked) == len(Kind)
    abort(store, "b.pt", 2)  # by now there is something
    assert store.room.is_short_of(4 * MIB, UID)
    store.close()
