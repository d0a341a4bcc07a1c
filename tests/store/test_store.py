"""The store as a whole: contents, names, patterns, salvage, and the thread that writes behind."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from harness import NEW, NEWER, OLD, condition, contents, lineage, store_on, two_versions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptfs.checking.examine import Condition
from ckptfs.disk.real import OsFs
from ckptfs.errors import BrokenStructure
from ckptfs.modes import Mode
from ckptfs.room.writeback import Writeback
from ckptfs.store import Store
from ckptfs.tools.faults import Call, FailAlways, Intercepted
from ckptfs.versions.life import Event, State
from ckptfs.versions.order import Place
from ckptfs.versions.seal import seal
from ckptfs.versions.standing import keep_replaced, replaced_by
from ckptfs.versions.tickets import give_ticket

pytestmark = pytest.mark.usefixtures("no_leaks")


def control(directory: Path) -> Path:
    return directory / ".ckptfs"


def salvage(directory: Path) -> list[bytes]:
    return contents(control(directory) / "salvage")


# --- contents ------------------------------------------------------------------------------------


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(versions=st.lists(st.binary(max_size=3000), min_size=1, max_size=4))
def test_C1_C9_what_was_put_last_is_there_as_a_plain_file(
    versions: list[bytes], quick_dir: Path
) -> None:
    store = store_on(quick_dir)
    for data in versions:
        store.put("a.pt", data)
        assert store.get("a.pt") == (quick_dir / "a.pt").read_bytes() == data
    assert os.listdir(control(quick_dir) / "stage") == []
    store.close()


def test_C1_large_contents_are_written_and_read_whole(quick_dir: Path) -> None:
    """read(2) and write(2) may do less than they were asked for: 2 GiB at most."""

    class Partial(Intercepted):
        def around(self, call: Call) -> object:
            if call.method == "read" and call.arguments[1] > 1000:
                return call.run()[:1000]
            if call.method == "write" and len(call.arguments[1]) > 1000:
                fd, data, offset = call.arguments
                return os.pwrite(fd, data[:1000], offset)
            return call.run()

    store = store_on(quick_dir, Partial(OsFs()))
    data = os.urandom(123_456)
    store.put("a.pt", data)
    assert store.get("a.pt") == (quick_dir / "a.pt").read_bytes() == data
    store.close()


def test_C9_a_new_version_keeps_mode_owner_and_xattrs(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("a.pt", OLD)
    (quick_dir / "a.pt").chmod(0o640)
    os.setxattr(quick_dir / "a.pt", "user.mine", b"m")
    if os.geteuid() == 0:
        os.chown(quick_dir / "a.pt", 1234, 4321)
    before = (quick_dir / "a.pt").stat()
    store.put("a.pt", NEW)
    after = (quick_dir / "a.pt").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert os.getxattr(quick_dir / "a.pt", "user.mine") == b"m"
    assert condition(store, "a.pt") is Condition.OK
    store.close()


def test_C7_an_open_file_keeps_the_version_it_was_opened_on(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("a.pt", OLD)
    with (quick_dir / "a.pt").open("rb") as reader:
        store.put("a.pt", NEW)
        assert reader.read() == OLD
    store.close()


def test_C1_concurrent_puts_on_one_path_leave_one_whole_version(quick_dir: Path) -> None:
    store = store_on(quick_dir, keep=30)
    datas = [bytes([number]) * 5000 for number in range(12)]
    threads = [threading.Thread(target=store.put, args=("a.pt", data)) for data in datas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("a.pt") in datas
    kept = [path.read_bytes() for path in (control(quick_dir) / "history").glob("*/*")]
    assert sorted([*kept, store.get("a.pt")]) == datas
    store.close()


def test_C4_a_broken_version_never_replaces_a_sound_one(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    import numpy as np

    np.savez(quick_dir / "draft.npz", a=np.arange(100))
    sound = (quick_dir / "draft.npz").read_bytes()
    store.put("a.npz", sound)
    with pytest.raises(BrokenStructure, match="the sound one stays"):
        store.put("a.npz", sound[:-30])
    assert store.get("a.npz") == sound
    assert salvage(quick_dir) == [sound[:-30]]
    store.close()
    lax = store_on(quick_dir, validate=False)
    lax.put("a.npz", sound[:-30])
    assert lax.get("a.npz") == sound[:-30]
    lax.close()


# --- names ---------------------------------------------------------------------------------------


def test_C7_rename_and_unlink(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    (quick_dir / "run").mkdir()
    store.put("a.pt", OLD)
    store.rename("a.pt", "run/b.pt")
    assert store.get("run/b.pt") == OLD
    with pytest.raises(FileNotFoundError):
        store.get("a.pt")
    store.unlink("run/b.pt")
    assert os.listdir(quick_dir / "run") == []
    for missing in (store.get, store.unlink):
        with pytest.raises(FileNotFoundError):
            missing("run/b.pt")
    store.close()


@pytest.mark.parametrize("target", ["symlink", "dangling symlink", "fifo", "file"])
@pytest.mark.parametrize("source", ["symlink", "file"])
def test_a_rename_onto_anything_but_a_directory_works(
    source: str, target: str, quick_dir: Path
) -> None:
    """`latest` is often a symlink that is replaced by a rename; opening it here gives ELOOP, and
    opening a FIFO waits for ever."""
    store = store_on(quick_dir)
    store.put("a.pt", OLD)
    store.put("new", NEW)
    if source == "symlink":
        (quick_dir / "new").unlink()
        (quick_dir / "new").symlink_to("a.pt")
    if target == "file":
        store.put("latest", NEWER)
    elif target == "fifo":
        os.mkfifo(quick_dir / "latest")
    else:
        (quick_dir / "latest").symlink_to("a.pt" if target == "symlink" else "nowhere")
    store.rename("new", "latest")
    assert (quick_dir / "latest").read_bytes() == (OLD if source == "symlink" else NEW)
    assert (quick_dir / "a.pt").read_bytes() == OLD
    store.close()


def test_a_commit_onto_a_fifo_or_symlink_replaces_the_name(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("a.pt", OLD)
    os.mkfifo(quick_dir / "fifo")
    (quick_dir / "link").symlink_to("a.pt")
    for name in ("fifo", "link"):
        staged = store.saves.stage(name, store.root, name, exists=False, truncate=True)
        store.fs.write(staged.fd, NEW, 0)
        store.saves.commit(staged, store.root, name)
        store.fs.close(staged.fd)
        assert store.get(name) == NEW
    assert store.get("a.pt") == OLD
    store.close()


def test_C1_a_file_written_in_place_is_synced_before_it_takes_over_a_name(quick_dir: Path) -> None:
    synced: list[int] = []

    class Watching(Intercepted):
        def around(self, call: Call) -> object:
            if call.method == "fsync":
                synced.append(os.fstat(call.arguments[0]).st_ino)
            return call.run()

    store = store_on(quick_dir, Watching(OsFs()))
    store.put("a.pt", OLD)
    (quick_dir / "train.log").write_bytes(NEW)
    inode = (quick_dir / "train.log").stat().st_ino
    store.rename("train.log", "a.pt")
    assert inode in synced
    assert store.get("a.pt") == NEW
    store.close()


def test_a_live_version_that_takes_over_a_name_stays_of_its_lineage(quick_dir: Path) -> None:
    """Who has it open writes on: it is recorded anew, as what it is by then."""
    store = store_on(quick_dir)
    store.put("b.pt", OLD)
    before = lineage(store, "b.pt")
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    store.fs.write(staged.fd, NEW, 0)
    store.saves.commit(staged, store.root, "a.pt")
    store.rename("a.pt", "b.pt")
    store.fs.write(staged.fd, NEW + NEW, 0)
    assert store.saves.reseal(staged)
    store.fs.close(staged.fd)
    assert store.get("b.pt") == NEW + NEW
    assert lineage(store, "b.pt") == before
    store.close()


def test_C3_a_directory_that_cannot_be_noted_is_synced_at_once(quick_dir: Path) -> None:
    """No descriptor left to remember it by: the change is made, so it must not fail."""

    class NoDescriptors(Intercepted):
        synced = 0

        def around(self, call: Call) -> object:
            if call.method == "open" and call.arguments[1] == "." and self.synced >= 0:
                raise OSError(errno.EMFILE, "too many open files")
            self.synced += call.method == "fsync_dir"
            return call.run()

    store = store_on(quick_dir)
    store.order.fs = limited = NoDescriptors(OsFs())
    store.order.note_changed_dir(store.root)
    assert limited.synced == 1
    store.close()


def test_a_name_behind_a_symlinked_folder_is_refused(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    (quick_dir / "real").mkdir()
    (quick_dir / "bent").symlink_to("real")
    for path in ("bent/a.pt", "missing/a.pt"):
        with pytest.raises(OSError):
            store.put(path, NEW)
    store.close()


# --- patterns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "in_place"),
    [
        ("train.log", True),
        ("run/1/train.log", True),
        ("events.out.tfevents.170.host", True),
        ("metrics.csv", True),
        ("history.jsonl", True),
        ("wandb/run-1/files/output.pt", True),
        ("runs/wandb/latest.pt", True),
        (".git/index", True),
        ("model.db", True),
        ("trials.sqlite3", True),
        ("trials.sqlite-wal", True),
        ("data.mdb", True),
        ("x.db-journal", True),
        (".x.lock", True),
        ("model.pt", False),
        ("model.safetensors", False),
        ("wandb.pt", False),
        ("mywandb/model.pt", False),
        ("log", False),
        ("catalog", False),
        ("log.pt", False),
        ("model.LOG", False),
        ("optimizer.bin", False),
        (".github/workflow.yml", False),
    ],
)
def test_in_place_patterns(path: str, in_place: bool, quick_dir: Path) -> None:
    store = store_on(quick_dir)
    assert store.in_place(path) is in_place
    store.close()


def test_in_place_patterns_of_the_user_and_of_unsafe(quick_dir: Path) -> None:
    store = store_on(quick_dir, in_place=("tb/*.bin", "scratch/**", "*.tmp"))
    wanted = {"tb/x.bin": True, "x.bin": False, "a/scratch/x/y.pt": True, "a/b.tmp": True}
    assert {path: store.in_place(path) for path in wanted} == wanted
    store.close()
    unsafe = store_on(quick_dir, mode=Mode.UNSAFE)
    assert unsafe.in_place("model.pt")
    unsafe.close()


def test_C5_a_file_opened_in_place_lets_go_of_record_and_history(quick_dir: Path) -> None:
    """Else rollback would bring back bytes that were overwritten, and call the rest rot."""
    store = store_on(quick_dir)
    store.put("a.pt", OLD)
    of = lineage(store, "a.pt")
    place = Place(store.root, "a.pt", "a.pt")
    replaced = replaced_by(store.core, place)
    keep_replaced(store.core, replaced, place)
    store.files.open_in_place(place)
    assert condition(store, "a.pt") is Condition.UNRECORDED
    assert os.listdir(control(quick_dir) / "history" / of) == []
    (quick_dir / "a.pt").write_bytes(NEW)
    assert store.get("a.pt") == NEW
    store.close()


# --- salvage -------------------------------------------------------------------------------------


def test_C6_an_aborted_version_publishes_nothing_and_is_salvaged(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("a.pt", OLD)
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=True, truncate=True)
    store.fs.write(staged.fd, NEW, 0)
    store.saves.abort(staged, "writer was killed by signal 9")
    store.fs.close(staged.fd)
    assert staged.state is State.ABORTED
    assert store.get("a.pt") == OLD
    assert salvage(quick_dir) == [NEW]
    (note,) = store.layout.aside.entries(store.layout.salvage)
    assert (note["path"], note["reason"]) == ("a.pt", "writer was killed by signal 9")
    assert store.counts["aborted"] == 1
    store.close()


def test_C6_recovery_salvages_what_was_in_flight(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    for name, data in (("a.pt", NEW), ("b.pt", b""), ("c.pt", NEWER)):
        staged = store.saves.stage(name, store.root, name, exists=False, truncate=True)
        store.fs.write(staged.fd, data, 0)
        store.fs.close(staged.fd)
    (control(quick_dir) / "stage" / "generation.0011223344556677").write_text("17")
    store.close()
    again = Store.open(str(quick_dir))
    assert sorted(salvage(quick_dir)) == sorted([NEW, NEWER])
    assert {note["path"] for note in again.layout.aside.entries(again.layout.salvage)} == {
        "a.pt",
        "c.pt",
    }
    assert os.listdir(control(quick_dir) / "stage") == []
    assert again.recover() == 0
    again.close()


def test_C6_a_version_caught_between_seal_and_publish_keeps_its_name(quick_dir: Path) -> None:
    """Its record has taken the place of the note with its path; the lineage tells it."""
    store = store_on(quick_dir)
    two_versions(store)
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=True, truncate=True)
    store.fs.write(staged.fd, NEWER, 0)
    staged.advance(Event.SEAL)
    seal(store.core, staged, give_ticket(store.core, Place(store.root, "a.pt", "a.pt")))
    store.fs.close(staged.fd)
    store.close()
    again = Store.open(str(quick_dir))
    (note,) = again.layout.aside.entries(again.layout.salvage)
    assert note["path"] == "a.pt"
    assert salvage(quick_dir) == [NEWER]
    again.close()


def test_salvage_is_bounded_and_the_oldest_goes_first(quick_dir: Path) -> None:
    store = store_on(quick_dir, salvage_bytes=2500)
    for number in range(5):
        staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
        store.fs.write(staged.fd, bytes([number]) * 1000, 0)
        store.saves.abort(staged, "test")
        store.fs.close(staged.fd)
    assert {data[0] for data in salvage(quick_dir)} == {3, 4}
    assert len(list((control(quick_dir) / "salvage").iterdir())) == 4  # each with its note
    store.close()


def test_aborts_at_once_do_not_stumble_over_each_other(quick_dir: Path) -> None:
    """One thread listed a note that another had let go of, and its abort raised."""
    store = store_on(quick_dir, salvage_bytes=1500)
    errors: list[BaseException] = []

    def aborts() -> None:
        try:
            for _ in range(25):
                staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
                store.fs.write(staged.fd, bytes(1000), 0)
                store.saves.abort(staged, "test")
                store.fs.close(staged.fd)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=aborts) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store.close()


def test_salvage_without_room_for_its_note_is_salvage_all_the_same(quick_dir: Path) -> None:
    """A full disk: the bytes stayed in stage, unlisted and unbounded, and no mount was possible
    until somebody else made room."""
    store = store_on(quick_dir)
    faults = FailAlways(OsFs(), "write", errno.ENOSPC)
    for name in ("a.pt", "b.pt"):
        staged = store.saves.stage(name, store.root, name, exists=False, truncate=True)
        store.fs.write(staged.fd, NEW, 0)
        store.layout.fs = store.layout.aside.fs = faults
        if name == "a.pt":
            store.saves.abort(staged, "no space")
        else:
            assert store.recover() == 1  # what a crash left
        store.fs.close(staged.fd)
        store.layout.fs = store.layout.aside.fs = OsFs()
    assert faults.calls == 3  # the alarm finds none either
    assert contents(control(quick_dir) / "stage") == []
    assert salvage(quick_dir) == [NEW, NEW]
    assert [note["size"] for note in store.layout.aside.entries(store.layout.salvage)] == [
        len(NEW)
    ] * 2
    store.room.limits.bounds = replace(store.room.limits.bounds, size_bytes=0)
    store.room.limits.bound()
    assert store.layout.aside.entries(store.layout.salvage) == []
    store.close()


def _abort(store: Store, size_bytes: int) -> None:
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    store.fs.write(staged.fd, b"x" * size_bytes, 0)
    store.saves.abort(staged, "its writer was killed")
    store.fs.close(staged.fd)


def test_salvage_is_bounded_after_each_abort(quick_dir: Path) -> None:
    _abort(store := store_on(quick_dir, salvage_bytes=100_000), 30_000)
    for size_bytes in (40_000, 50_000, 60_000, 30_000, 5_000):
        _abort(store, size_bytes)
        assert size_bytes <= sum(map(len, salvage(quick_dir))) <= 100_000
    store.close()


def test_an_abort_takes_no_longer_the_more_salvage_there_is(
    quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is killed again and again leaves thousands of entries: to read their notes at
    each took the daemon tens of megabytes."""
    _abort(store := store_on(quick_dir), 10)
    listed: list[int] = []
    listdir = store.fs.listdir
    monkeypatch.setattr(store.fs, "listdir", lambda at: listed.append(at) or listdir(at))
    for _ in range(5):
        _abort(store, 10)
    assert store.layout.salvage not in listed
    assert len(salvage(quick_dir)) == 6
    store.close()


def test_salvage_that_cannot_be_written_leaves_the_bytes_in_stage(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    store.fs.write(staged.fd, NEW, 0)
    faults = FailAlways(OsFs(), "rename", errno.ENOSPC)
    store.layout.fs = store.layout.aside.fs = faults
    store.saves.abort(staged, "test")
    store.fs.close(staged.fd)
    assert contents(control(quick_dir) / "stage") == [NEW]
    faults.armed = False
    assert store.recover() == 1
    assert salvage(quick_dir) == [NEW]
    store.close()


# --- the thread that writes behind ---------------------------------------------------------------


class Watched(Intercepted):
    """Tells when writeback was started, and may refuse it."""

    def __init__(self, refuse: int = 0) -> None:
        super().__init__(OsFs())
        self.refuse = refuse
        self.started = threading.Event()
        self.ranges: list[tuple[int, int]] = []

    def around(self, call: Call) -> object:
        if call.method != "start_writeback":
            return call.run()
        self.ranges.append(call.arguments[1:])
        self.started.set()
        if self.refuse:
            raise OSError(self.refuse, "refused")
        return call.run()


@contextlib.contextmanager
def writing_behind(fs: Watched) -> object:
    writeback = Writeback(fs.fs)
    try:
        yield writeback
    finally:
        writeback.stop()


def test_writeback_runs_behind_the_writer_and_starts_each_range_once(quick_dir: Path) -> None:
    fs = Watched()
    store = store_on(quick_dir, fs)
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    with writing_behind(fs) as writeback:
        writeback.add(staged)
        for step in (1, 2):
            fs.started.clear()
            store.fs.truncate(staged.fd, (step + 1) * (8 << 20) + 5)
            assert fs.started.wait(20)
        writeback.remove(staged)
    assert fs.ranges == [(0, 8 << 20), (8 << 20, 8 << 20)]  # the tail is still being written
    store.saves.commit(staged, store.root, "a.pt")
    store.fs.close(staged.fd)
    assert (quick_dir / "a.pt").stat().st_size == (24 << 20) + 5
    store.close()


def test_C2_an_error_behind_the_writer_fails_its_close(quick_dir: Path) -> None:
    fs = Watched(refuse=errno.EIO)
    store = store_on(quick_dir, fs)
    staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
    with writing_behind(fs) as writeback:
        writeback.add(staged)
        store.fs.write(staged.fd, bytes(17 << 20), 0)
        assert fs.started.wait(20)
        writeback.remove(staged)
    fs.refuse = 0
    with pytest.raises(OSError) as caught:
        store.saves.commit(staged, store.root, "a.pt")
    assert caught.value.errno == errno.EIO
    assert not (quick_dir / "a.pt").exists()
    store.fs.close(staged.fd)
    store.close()


def test_after_remove_the_thread_leaves_the_descriptor_alone(quick_dir: Path) -> None:
    fs = Watched()
    store = store_on(quick_dir, fs)
    with writing_behind(fs) as writeback:
        for _ in range(50):
            staged = store.saves.stage("a.pt", store.root, "a.pt", exists=False, truncate=True)
            writeback.add(staged)
            store.fs.truncate(staged.fd, 9 << 20)
            writeback.remove(staged)
            store.saves.discard(staged)
            store.fs.close(staged.fd)
            assert staged.writeback_error is None
    store.close()


def test_C6_recovery_tells_what_is_missing_as_an_abort_does(quick_dir: Path) -> None:
    """Of a long file that was gone on with the staged one has a hole; without more it is empty."""
    store = store_on(quick_dir)
    store.core.copied_at_once_bytes = 0
    old, how = OLD * 50, {"exists": True, "truncate": False, "lazily": True}
    added = {"a.pt": NEW, "b.pt": b"", "filled.pt": NEW}
    for name, data in added.items():
        store.put(name, old)
        staged = store.saves.stage(name, store.root, name, **how)
        store.fs.write(staged.fd, data, len(old))
        if not staged.has_hole:
            pytest.skip("a clone, which has no hole")
        if name == "filled.pt":
            store.saves.fill(staged)
        store.fs.close(staged.fd)
    store.close()
    again = Store.open(str(quick_dir))
    found = again.layout.aside.entries(again.layout.salvage)
    told = {str(note["path"]): note.get("bytes_missing_at_start") for note in found}
    assert told == {"a.pt": len(old), "filled.pt": None}
    again.close()
