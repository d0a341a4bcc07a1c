"""What somebody must look at is told until he says that he has.

`status --check` was 0 after a rollback, a failed save and a file that could not be served, so that
monitoring heard of none. What is ordinary, such as a trainer that is preempted, is no alarm.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import mounts
import pytest
from actors import actors
from harness import rot, store_on, two_versions
from mounts import Served, ckptfs, roll_back

from ckptfs.disk.real import OsFs
from ckptfs.errors import CkptfsError, Rotten
from ckptfs.records import format as fmt
from ckptfs.telling.alarms import Alarms
from ckptfs.tools import hooked
from ckptfs.upkeep.scrub import Scrub


def check(directory: Path) -> tuple[int, list[str]]:
    """The exit code of `status --check`, and the alarms that it names."""
    done = ckptfs("status", directory, "--check")
    lines = [line for line in done.stdout.splitlines() if line.startswith("ALARM ")]
    return done.returncode, [line.split(None, 1)[1] for line in lines]


def warnings(mount: Served) -> list[str]:
    found = [line.split(" ", 2)[2] for line in mount.log_text().splitlines()]
    return [line for line in found if line.startswith(("WARNING", "ERROR"))]


# --- through a mount -----------------------------------------------------------------------------


@pytest.mark.kernel_only("libfuse cannot hand its session over")
def test_an_alarm_stays_until_somebody_has_looked_at_it(mount: Served) -> None:
    assert check(mount.path) == (0, [])
    roll_back(mount, "last checkpoint.bin")
    code, (alarm,) = check(mount.path)
    assert code == 2
    assert alarm.startswith("rolled back last checkpoint.bin: digest does not match the record")
    undo = f"`ckptfs adopt {mount.path} 'last checkpoint.bin' --quarantined`"
    assert "generation 2 rolled back to generation 1; " in alarm and undo in alarm
    assert warnings(mount) == [
        "WARNING last checkpoint.bin: rolled back: " + alarm.partition(": ")[2].rpartition(" (")[0]
    ]
    everywhere = ckptfs("status")
    assert everywhere.returncode == 2 and "1 alarm" in everywhere.stdout
    assert ckptfs("restart", mount.path).returncode == 0
    assert undo in ckptfs("status", mount.path).stdout
    mount.umount()
    assert check(mount.path) == (1, [alarm])
    mount.start()
    assert check(mount.path) == (2, [alarm])
    done = ckptfs("ack", mount.path)
    assert done.returncode == 0 and alarm in done.stdout, done.stderr
    assert check(mount.path) == (0, [])
    mount.umount()
    assert check(mount.path) == (1, [])


def test_what_is_ordinary_is_no_alarm(mount: Served) -> None:
    with actors(mount.path, 1) as (user,):
        user.do("open('whole.bin', 'w').write('whole')")
        user.do("f = open('half.bin', 'w'); f.write('half' * 9000); f.flush()")
        user.kill()
    mount.wait_until(lambda: mount.events("aborted"))
    (mount.path / "whole.bin").write_text("new")
    assert ckptfs("rollback", mount.path, "whole.bin").returncode == 0
    assert check(mount.path) == (0, [])


def test_what_could_not_be_served_or_saved_is_an_alarm_and_one_line(mount: Served) -> None:
    (mount.path / "once.bin").write_text("only")
    rot(mount.below / "once.bin")
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            (mount.path / "once.bin").read_text()
    with zipfile.ZipFile(mount.path / "model.zip", "w") as archive:
        archive.writestr("weights", bytes(5000))
    whole = (mount.path / "model.zip").read_bytes()
    with pytest.raises(OSError, match="Bad message"):
        (mount.path / "model.zip").write_bytes(whole[:3000])
    code, (rotten, refused) = check(mount.path)
    assert code == 2
    assert rotten.startswith("rotten once.bin: digest does not match") and "3 times" in rotten
    assert refused.startswith("aborted model.zip: the new version is not whole")
    assert "generation 2; the new bytes" in refused
    first, second = warnings(mount)
    assert first.startswith("ERROR once.bin: rotten: digest does not match")
    assert second.startswith("WARNING model.zip: aborted: the new version is not whole")


def test_a_failed_fsync_is_an_alarm_and_one_line(disk_dir: Path, tmp_path: Path) -> None:
    trigger = tmp_path / "trigger"
    program = hooked.program("ckptfs.tools.faults:FailWhile", trigger)
    mount = Served(disk_dir, program=program)
    with mounts.ending(mount):
        mount.start_in_foreground()
        armed = Path(f"{trigger}.fsync")
        armed.touch()
        with pytest.raises(OSError, match="Input/output"):
            (mount.path / "model.bin").write_bytes(b"new" * 1000)
        armed.unlink()
        code, (alarm,) = check(mount.path)
        assert code == 2 and alarm.startswith("aborted model.bin: ") and "[Errno 5]" in alarm
        assert [line for line in warnings(mount) if "model.bin" in line] == [
            "WARNING model.bin: aborted: [Errno 5] injected"
        ]


def test_only_who_looks_after_the_mount_sees_alarms_and_takes_them_back(quick_dir: Path) -> None:
    if mounts.why_no_mounts() or not (shutil.which("setpriv") and shutil.which("setfattr")):
        pytest.skip("needs root, setpriv and setfattr")
    os.chmod(quick_dir, 0o755)
    served = quick_dir / "served"
    served.mkdir()
    with mounts.served(served) as mount:
        roll_back(mount, "secret.bin")
        control = served / fmt.CONTROL
        told = _as_nobody("cat", control / "status.json")
        if "Permission denied" in told.stderr:
            pytest.skip("another user does not come to the test's directory")
        assert '"rolled back"' in told.stdout and "secret.bin" not in told.stdout
        refused = _as_nobody("setfattr", "-n", "user.ckptfs.ack", "-v", "9", control)
        assert refused.returncode != 0
        assert check(served)[0] == 2


def _as_nobody(*command: object) -> subprocess.CompletedProcess[str]:
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    words = [*user, *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, timeout=30)


# --- without one ---------------------------------------------------------------------------------


def test_what_a_scrub_finds_is_an_alarm(tmp_path: Path) -> None:
    store = store_on(tmp_path)
    two_versions(store)
    store.put("b.pt", b"only")
    rot(tmp_path / "b.pt")
    (folder,) = [each for each in (tmp_path / ".ckptfs/history").iterdir() if each.is_dir()]
    rot(next(folder.iterdir()))
    Scrub(store, 0, set).run()
    alarms = {alarm.event: alarm.path for alarm in store.alarms.all()}
    assert alarms == {"rotten": "b.pt", "set aside": "a.pt"}
    store.close()


class _Unreadable(OsFs):
    def getxattr(self, fd: int, name: str) -> bytes | None:
        raise OSError(errno.EIO, "Input/output error")


def test_a_file_that_the_disk_does_not_give_is_an_alarm(tmp_path: Path) -> None:
    store_on(tmp_path).put("a.pt", b"content")
    store = store_on(tmp_path, _Unreadable())
    with pytest.raises(OSError, match="Input/output"):
        store.get("a.pt")
    (alarm,) = store.alarms.all()
    assert (alarm.event, alarm.path, alarm.detail) == ("unreadable", "a.pt", "Input/output error")


def test_what_a_directory_that_is_not_served_has_of_alarms_is_taken_back(tmp_path: Path) -> None:
    store = store_on(tmp_path)
    store.put("a.pt", b"content")
    rot(tmp_path / "a.pt")
    with pytest.raises(Rotten):
        store.get("a.pt")
    store.close()
    assert check(tmp_path)[0] == 1 and len(check(tmp_path)[1]) == 1
    assert "1 alarm" in ckptfs("ack", tmp_path).stdout
    assert check(tmp_path) == (1, [])
    assert not (tmp_path / fmt.CONTROL / fmt.ALARMS).exists()


def test_there_is_a_bound_to_alarms_and_none_is_lost(tmp_path: Path) -> None:
    store = store_on(tmp_path)
    strange = "\udcff" * 200
    for number in range(100):
        store.note("rotten", f"{number}-{strange}.pt", "x" * 2000)
    store.note("rolled back", "last.pt", "the newest")
    for alarms in (store.alarms, Alarms(store.layout)):
        kept = alarms.all()
        assert len(kept) <= 20 and {alarm.event for alarm in kept} == {"rotten", "rolled back"}
    store.alarms.save()
    assert sum(alarm.count for alarm in store.alarms.all()) == 101
    assert (tmp_path / fmt.CONTROL / fmt.ALARMS).stat().st_size < 1 << 16
    store.close()
    assert sum(alarm.count for alarm in Alarms(store_on(tmp_path).layout).all()) == 101


def test_an_alarm_that_comes_after_the_look_stays(tmp_path: Path) -> None:
    alarms = store_on(tmp_path).alarms
    alarms.note("rotten", "a.pt", "first")
    seen = alarms.all()[-1].number
    alarms.note("rotten", "b.pt", "second")
    alarms.ack(seen)
    assert [alarm.path for alarm in alarms.all()] == ["b.pt"]


class _Full(OsFs):
    full = False

    def write(self, fd: int, data: bytes, offset: int) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(fd, data, offset)


def test_alarms_that_cannot_be_written_fail_nothing_and_are_written_later(tmp_path: Path) -> None:
    fs = _Full()
    store = store_on(tmp_path, fs)
    store.put("a.pt", b"content")
    rot(tmp_path / "a.pt")
    fs.full = True
    with pytest.raises(CkptfsError, match="no good generation"):
        store.get("a.pt")
    assert Alarms(store.layout).all() == [] and len(store.alarms.all()) == 1
    fs.full = False
    store.close()
    assert len(Alarms(store_on(tmp_path).layout).all()) == 1
    assert list((tmp_path / fmt.CONTROL / fmt.STAGE).iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        '{"alarms": 7}',
        '{"alarms": [7, null, {"event": "rotten"}]}',
        '{"alarms": [{"event": 1, "path": "", "detail": "", "count": 1, "first_ns": 1, '
        '"last_ns": 1, "number": 1}]}',
        '{"alarms": [{"event": "rotten", "path": "", "detail": "", "count": -1, "first_ns": 1, '
        '"last_ns": 1, "number": 1}]}',
        "nonsense",
    ],
)
def test_a_note_of_alarms_that_is_none_is_not_believed(tmp_path: Path, content: str) -> None:
    store_on(tmp_path).close()
    (tmp_path / fmt.CONTROL / fmt.ALARMS).write_text(content)
    assert store_on(tmp_path).alarms.all() == []
