"""C5: an open never hands out rotten bytes, and an edit is not mistaken for rot."""

from __future__ import annotations

import errno
import json
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import (
    NEW,
    NEWER,
    OLD,
    condition,
    contents,
    examine,
    rot,
    store_on,
    touch,
    two_versions,
)
from images import Mounted

from ckptfs.checking import examine as checking
from ckptfs.checking import opens
from ckptfs.checking.examine import BAD, Condition
from ckptfs.disk.real import OsFs
from ckptfs.errors import Rotten
from ckptfs.records import format as fmt
from ckptfs.records.walk import walk
from ckptfs.store import Store
from ckptfs.tools.harness.faults import BadMemory, Call, Intercepted
from ckptfs.upkeep.fsck import Check
from ckptfs.upkeep.scope import Scope

pytestmark = pytest.mark.usefixtures("no_leaks")

SIZES = [1, 4096, 5000, (4 << 20) + 12345]


def store_of_two(directory: Path, **options: object) -> Store:
    store = store_on(directory, **options)
    two_versions(store)
    return store


def quarantine(directory: Path) -> Path:
    return directory / ".ckptfs" / "quarantine"


def test_C5_a_rotten_file_is_rolled_back_and_quarantined(quick_dir: Path) -> None:
    store = store_of_two(quick_dir)
    rot(quick_dir / "a.pt", 100)
    damaged = (quick_dir / "a.pt").read_bytes()
    assert condition(store, "a.pt") is Condition.DAMAGED
    assert store.get("a.pt") == OLD
    assert (quick_dir / "a.pt").read_bytes() == OLD
    assert contents(quarantine(quick_dir)) == [damaged]
    (note,) = quarantine(quick_dir).glob("*.json")
    assert json.loads(note.read_text())["path"] == "a.pt"
    assert [event["event"] for event in store.events].count("rolled back") == 1
    assert condition(store, "a.pt") is Condition.OK
    store.put("a.pt", NEWER)
    assert store.get("a.pt") == NEWER
    store.close()


def test_C5_rollback_passes_over_rotten_generations(quick_dir: Path) -> None:
    store = store_on(quick_dir, keep=3)
    for data in (OLD, NEW, NEWER, b"newest" * 50):
        store.put("a.pt", data)
    history = sorted((quick_dir / ".ckptfs" / "history").rglob("*"), key=lambda p: p.name)
    newest_kept = next(path for path in history if path.is_file() and path.name == "3")
    rot(newest_kept)
    rot(quick_dir / "a.pt")
    assert store.get("a.pt") == NEW
    store.close()


@pytest.mark.parametrize("keep", [0, 1])
def test_C5_without_a_good_generation_the_open_fails_and_the_file_stays(
    keep: int, quick_dir: Path
) -> None:
    store = store_of_two(quick_dir, keep=keep)
    for path in [quick_dir / "a.pt", *(quick_dir / ".ckptfs" / "history").glob("*/*")]:
        rot(path)
    damaged = (quick_dir / "a.pt").read_bytes()
    for _ in range(2):
        with pytest.raises(Rotten, match=r"a\.pt") as caught:
            store.get("a.pt")
    assert caught.value.errno == errno.EIO
    assert (quick_dir / "a.pt").read_bytes() == damaged
    store.close()


@pytest.mark.parametrize("edit", ["append", "rewrite", "cut"])
def test_C5_an_edit_made_outside_is_served_and_told(edit: str, quick_dir: Path) -> None:
    store = store_of_two(quick_dir)
    edited = {"append": NEW + b"more", "rewrite": b"N" + NEW[1:], "cut": NEW[:10]}[edit]
    (quick_dir / "a.pt").write_bytes(edited)
    touch(quick_dir / "a.pt")
    assert condition(store, "a.pt") is Condition.MODIFIED
    assert store.get("a.pt") == edited
    assert contents(quarantine(quick_dir)) == []
    store.close()


def test_C5_the_same_bytes_under_a_new_time_are_what_was_committed(quick_dir: Path) -> None:
    store = store_of_two(quick_dir)
    touch(quick_dir / "a.pt")
    assert examine(store, "a.pt").condition is Condition.OK
    assert store.get("a.pt") == NEW
    store.close()


@pytest.mark.parametrize("size", SIZES)
def test_C5_a_bad_read_from_the_cache_is_confirmed_on_the_disk(size: int, tmp_path: Path) -> None:
    """Bad memory must not cost a good file. Small files too: their confirming read was refused by
    O_DIRECT, for its buffer was not aligned, and counted as a mismatch."""
    memory = BadMemory(OsFs())
    memory.armed = False
    store = store_on(tmp_path, memory)
    data = os.urandom(size)
    store.put("a.pt", data)
    memory.armed = True
    assert condition(store, "a.pt") is Condition.OK
    assert memory.flips > 0
    memory.armed = False
    assert store.get("a.pt") == data
    assert contents(quarantine(tmp_path)) == []
    store.close()


def test_control_a_read_that_is_bad_on_the_disk_too_is_damage(tmp_path: Path) -> None:
    disk = BadMemory(OsFs(), direct_too=True)
    disk.armed = False
    store = store_on(tmp_path, disk)
    store.put("a.pt", NEW)
    disk.armed = True
    assert condition(store, "a.pt") is Condition.DAMAGED
    disk.armed = False
    store.close()


def damage_record(path: Path, *at: int) -> None:
    record = bytearray(os.getxattr(path, fmt.XATTR))
    for offset in at:
        record[offset] ^= 1
    os.setxattr(path, fmt.XATTR, bytes(record))


@pytest.mark.parametrize("at", [0, 30, 90, 100, 130, 200])
def test_C5_a_damaged_record_that_still_names_the_bytes_is_written_anew(
    at: int, quick_dir: Path
) -> None:
    store = store_of_two(quick_dir)
    before = examine(store, "a.pt").record
    damage_record(quick_dir / "a.pt", at)
    assert condition(store, "a.pt") is Condition.RECORD_DAMAGED
    assert store.get("a.pt") == NEW
    after = examine(store, "a.pt").record
    assert before is not None and after is not None
    assert (after.digest, after.lineage) == (before.digest, before.lineage)
    assert after.generation > before.generation
    rot(quick_dir / "a.pt")
    assert store.get("a.pt") == OLD
    store.close()


def test_C5_bytes_that_no_record_speaks_for_are_rolled_back(quick_dir: Path) -> None:
    store = store_of_two(quick_dir)
    damage_record(quick_dir / "a.pt", *range(20, 80))
    assert condition(store, "a.pt") is Condition.RECORD_DAMAGED
    assert store.get("a.pt") == OLD
    assert contents(quarantine(quick_dir)) == [NEW]
    store.close()


def test_C5_and_refused_where_nothing_tells_whose_history_it_is(quick_dir: Path) -> None:
    """The path is no proof: a directory that was renamed outside leaves it to another file."""
    store = store_of_two(quick_dir)
    os.setxattr(quick_dir / "a.pt", fmt.XATTR, b"")
    with pytest.raises(Rotten):
        store.get("a.pt")
    assert (quick_dir / "a.pt").read_bytes() == NEW
    store.close()


def test_C5_and_refused_where_there_is_nothing_to_roll_back_to(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("a.pt", NEW)
    damage_record(quick_dir / "a.pt", *range(20, 60))
    with pytest.raises(Rotten):
        store.get("a.pt")
    store.put("a.pt", NEWER)  # and is no obstacle for the next version
    assert store.get("a.pt") == NEWER
    store.close()


@pytest.mark.parametrize("edit", [lambda data: data[:-1], lambda data: data + b"x"])
def test_C5_another_size_under_the_very_mtime_is_damage(
    edit: Callable[[bytes], bytes], quick_dir: Path
) -> None:
    store = store_of_two(quick_dir)
    before = (quick_dir / "a.pt").stat()
    (quick_dir / "a.pt").write_bytes(edit(NEW))
    os.utime(quick_dir / "a.pt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert condition(store, "a.pt") is Condition.DAMAGED
    assert store.get("a.pt") == OLD
    store.close()


def test_C5_older_bytes_under_the_new_record_are_told_from_rot(quick_dir: Path) -> None:
    store = store_of_two(quick_dir)
    before = (quick_dir / "a.pt").stat()
    (quick_dir / "a.pt").write_bytes(OLD)
    os.utime(quick_dir / "a.pt", ns=(before.st_atime_ns, before.st_mtime_ns))
    finding = examine(store, "a.pt")
    assert finding.condition is Condition.STALE
    assert "generation 1" in finding.detail
    assert store.get("a.pt") == OLD
    store.close()


def test_C5_a_file_that_the_disk_cannot_read_is_rolled_back(quick_dir: Path) -> None:
    store = store_of_two(quick_dir)
    inode = (quick_dir / "a.pt").stat().st_ino
    store.close()

    class BadSector(Intercepted):
        def around(self, call: Call) -> object:
            if call.method == "readinto" and os.fstat(call.arguments[0]).st_ino == inode:
                raise OSError(errno.EIO, "bad sector")
            return call.run()

    again = store_on(quick_dir, BadSector(OsFs()))
    finding = examine(again, "a.pt")
    assert (finding.condition, finding.detail[:14]) == (Condition.DAMAGED, "cannot be read")
    assert again.get("a.pt") == OLD
    again.close()


def test_the_damaged_bytes_are_located(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("a.bin", os.urandom(1 << 20))
    rot(quick_dir / "a.bin", 300_000)
    finding = examine(store, "a.bin")
    assert finding.ranges == ((262144, 327680),)
    assert "bytes 262144-327679 of 1048576" in finding.detail
    store.close()


def test_C9_a_file_without_a_record_is_served(quick_dir: Path) -> None:
    (quick_dir / "mine.pt").write_bytes(OLD)
    store = store_on(quick_dir)
    assert condition(store, "mine.pt") is Condition.UNRECORDED
    assert store.get("mine.pt") == OLD
    store.close()


def test_C5_a_broken_structure_under_a_new_name_is_told(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("a.npz", b"PK\x03")
    assert condition(store, "a.npz") is Condition.BROKEN
    assert store.get("a.npz") == b"PK\x03"
    store.close()


def test_C5_each_version_is_read_once_until_it_changes(quick_dir: Path) -> None:
    store = store_of_two(quick_dir)
    store.close()
    reads: list[int] = []

    class Counting(Intercepted):
        def around(self, call: Call) -> object:
            if call.method == "readinto":
                reads.append(1)
            return call.run()

    again = store_on(quick_dir, Counting(OsFs()))
    assert again.get("a.pt") == again.get("a.pt") == NEW
    assert len(reads) == 1
    rot(quick_dir / "a.pt")
    assert again.get("a.pt") == OLD
    again.close()


def test_C5_a_link_made_meanwhile_does_not_let_rot_through(
    quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that kept the version and then failed moved its ctime; the open took that for a
    new version and served the rotten one."""
    store = store_of_two(quick_dir)
    rot(quick_dir / "a.pt")
    honest = checking.examine
    links: list[str] = []

    def examine_then_link(*given: object, **named: object) -> checking.Finding:
        finding = honest(*given, **named)
        if not links:
            links.append("b")
            os.link(quick_dir / "a.pt", quick_dir / "b")
        return finding

    monkeypatch.setattr(opens, "examine", examine_then_link)
    assert store.get("a.pt") == OLD
    store.close()


def test_C5_many_readers_of_a_rotten_file_all_get_the_good_one(quick_dir: Path) -> None:
    store = store_of_two(quick_dir)
    rot(quick_dir / "a.pt")
    seen: list[bytes] = []
    threads = [threading.Thread(target=lambda: seen.append(store.get("a.pt"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [OLD] * 8
    assert len(contents(quarantine(quick_dir))) == 1
    store.close()


def test_the_walk_finds_regular_files_only_and_not_its_own(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    (quick_dir / "run" / ".ckptfs").mkdir(parents=True)
    for path in ("a.pt", "run/b.pt", "run/.ckptfs/c.pt"):
        store.put(path, NEW)
    (quick_dir / "link").symlink_to("a.pt")
    os.mkfifo(quick_dir / "fifo")
    paths = [path for path, _ in walk(store.fs, store.root)]
    assert paths == ["a.pt", "run/.ckptfs/c.pt", "run/b.pt"]
    rot(quick_dir / "run" / "b.pt")
    scope = Scope((*paths, "gone"), jobs=3)
    found = {f.path: f.condition for f in Check(store.layout, scope).findings()}
    assert [path for path, seen in found.items() if seen in BAD] == ["run/b.pt", "gone"]
    assert found["gone"] is Condition.MISSING
    store.close()


# --- on the filesystems that people keep checkpoints on ------------------------------------------


def test_C1_C5_C9_put_get_rename_rollback(loop_fs: Mounted) -> None:
    store = Store.open(str(loop_fs.path))
    store.put("a.pt", OLD)
    store.put("b.tmp", NEW * 5000)
    store.rename("b.tmp", "a.pt")
    assert (loop_fs.path / "a.pt").read_bytes() == store.get("a.pt") == NEW * 5000
    rot(loop_fs.path / "a.pt", 4 << 20)
    assert store.get("a.pt") == OLD
    assert len(contents(quarantine(loop_fs.path))) == 1
    store.close()


@pytest.mark.parametrize("size", SIZES)
def test_C5_a_mismatch_is_confirmed_by_a_direct_read(size: int, loop_fs: Mounted) -> None:
    memory = BadMemory(OsFs())
    memory.armed = False
    store = store_on(loop_fs.path, memory)
    store.put("a.pt", os.urandom(size))
    memory.armed = True
    assert condition(store, "a.pt") is Condition.OK
    assert memory.flips > 0
    memory.armed = False
    store.close()


def test_C5_rot_on_the_medium_is_never_handed_out(loop_fs: Mounted) -> None:
    """The bit flips in the image, below the filesystem. btrfs notices itself and says EIO, which
    is damage like any other."""
    store = Store.open(str(loop_fs.path))
    old, new = os.urandom(1 << 16), os.urandom(1 << 16)
    store.put("a.pt", old)
    store.put("a.pt", new)
    store.close()
    flip_on_medium(loop_fs, new[:512])
    fd = os.open(loop_fs.path / "a.pt", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    again = Store.open(str(loop_fs.path))
    assert again.get("a.pt") == old
    (moved,) = (path for path in quarantine(loop_fs.path).iterdir() if path.suffix != ".json")
    if loop_fs.kind == "btrfs":
        with pytest.raises(OSError):
            moved.read_bytes()
    again.close()


def flip_on_medium(mounted: Mounted, marker: bytes) -> None:
    assert mounted.image is not None
    with mounted.image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
        at = image.find(marker)
        assert at >= 0, "the bytes are not on the medium: was the commit not durable?"
        assert image.find(marker, at + 1) == -1
        image[at] ^= 1
        image.flush()
