"""What the daemon logs: each thing once, at its level, and nothing of what is ordinary.

Bugs these close: two warnings for each killed writer, one for every open of a rotten file, a line
for blocks that were not shared; and none at all for a rollback, a full disk, or what was salvaged.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import mounts
import pytest
from actors import actors
from harness import rot, store_on
from mounts import Served

from ckptfs.errors import BrokenStructure
from ckptfs.shown import OneLine
from ckptfs.telling.alarms import Alarms
from ckptfs.telling.events import DISK_FULL, Events

LONG = 2 << 20  # bytes of a version whose blocks would be shared


def lines(mount: Served, *levels: str) -> list[str]:
    """Level and message of what was logged."""
    found = [line.split(" ", 2)[2] for line in mount.log_text().splitlines()]
    return [line for line in found if not levels or line.startswith(levels)]


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "ckptfs")
    return caplog


@pytest.fixture
def alarms(tmp_path: Path) -> Iterator[Alarms]:
    store = store_on(tmp_path)
    yield store.alarms
    store.close()


def test_ordinary_use_says_nothing(disk_dir: Path) -> None:
    with mounts.served(disk_dir) as mount:
        with actors(disk_dir, 1) as (user,):
            for version in range(3):
                user.do(f"open('last.pt', 'wb').write(bytes([{version}]) * {LONG})")
                user.do(f"open('tmp', 'wb').write(b'{version}' * {LONG}); os.rename('tmp', 'f.pt')")
                user.do(f"open('all.bin', 'ab').write(b'{version}' * {LONG})")
                user.do("open('train.log', 'a').write('line')")
            user.do("os.mkdir('d'); os.rename('f.pt', 'd/f.pt'); os.unlink('last.pt')")
            user.do("import shutil; shutil.rmtree('d'); open('empty', 'w').close()")
            user.do("os.chmod('all.bin', 0o600); os.utime('all.bin'); os.truncate('all.bin', 9)")
            assert user.errno_of("open('nosuch')") == "ENOENT"
            time.sleep(1.3)  # then blocks of what has been replaced, and is gone by now, are shared
        mount.umount()
        started, ended = lines(mount)
        assert started.startswith(f"INFO serving {disk_dir} at {disk_dir}: ")
        assert ended.startswith("INFO ended; ")


def test_a_killed_writer_is_one_line_with_its_salvage(mount: Served) -> None:
    with actors(mount.path, 1) as (user,):
        user.do("f = open('model.bin', 'w'); f.write('half' * 9000); f.flush()")
        user.kill()
    mount.wait_until(lambda: lines(mount, "WARNING"))
    mount.wait_until(lambda: not mount.status()["writing"])
    (entry,) = (mount.below / ".ckptfs/salvage").glob("*.json")
    why = "aborted: its writer was killed before it closed it"
    assert lines(mount)[1:] == [f"WARNING model.bin: {why}; salvage {entry.stem}"]


def test_rot_is_told_once_and_a_rollback_is(mount: Served) -> None:
    for name in ("once.bin", "again.bin"):
        (mount.path / name).write_text("old")
    (mount.path / "again.bin").write_text("new")
    for name in ("once.bin", "again.bin"):
        rot(mount.below / name)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            (mount.path / "once.bin").read_text()
        assert (mount.path / "again.bin").read_text() == "old"
    rotten, rolled_back = lines(mount)[1:]
    assert rotten.startswith("ERROR once.bin: rotten: digest does not match the record")
    assert rolled_back.startswith("WARNING again.bin: rolled back: digest does not match")


def test_what_a_dead_daemon_left_is_told_by_the_next(mount: Served) -> None:
    with actors(mount.path, 1) as (user,):
        user.do("f = open('model.bin', 'w'); f.write('half' * 9000); f.flush()")
        os.kill(mount.pid, signal.SIGKILL)
        user.kill()
    mount.start()
    (entry,) = (mount.below / ".ckptfs/salvage").glob("*.json")
    why = "unfinished when the daemon or the machine stopped"
    assert lines(mount, "WARNING") == [f"WARNING model.bin: {why}; salvage {entry.stem}"]


# --- what is told of, without a mount ------------------------------------------------------------


def test_a_full_disk_is_told_when_it_becomes_full_and_when_it_is_no_more(
    alarms: Alarms, caplog: pytest.LogCaptureFixture
) -> None:
    events = Events(time.time_ns, alarms)
    for _ in range(2):
        for number in range(3):
            events.not_committed(f"{number}.pt", DISK_FULL, f"{number}")
            events.not_committed("other.pt", OSError(errno.ENOSPC, "No space left on device"))
        events.note("committed", "small")
        events.note("committed", "small")
    assert (
        events.counts["aborted"] == 12 and events.recent[0]["detail"] == f"{DISK_FULL}; salvage 0"
    )
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "0.pt: the disk is full: from here on what finds no room is not committed"),
        ("INFO", "there is room on the disk again"),
    ] * 2


def test_what_is_not_over_is_not_told_again(
    alarms: Alarms, caplog: pytest.LogCaptureFixture
) -> None:
    events = Events(time.time_ns, alarms)
    for _ in range(2):
        for _ in range(3):
            events.not_committed("f.pt", BrokenStructure("f.pt: the new version is not whole"))
        events.note("committed", "f.pt")
    told = ["f.pt: aborted: the new version is not whole"] * 2
    assert [record.getMessage() for record in caplog.records] == told


def test_what_is_kept_of_what_was_told_has_a_bound(
    alarms: Alarms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each abort names a salvage entry of its own, so no two are the same news."""
    monkeypatch.setattr("ckptfs.telling.events.say", lambda *_: None)
    events = Events(time.time_ns, alarms)
    tracemalloc.start()
    try:
        for number in range(30_000):
            events.not_committed("f.pt", "the writer was killed", f"{number:032}")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4 << 20


def test_a_line_is_one_line_whatever_a_file_is_called() -> None:
    name = "a\n2026-01-01 00:00:00,000 ERROR b\udcff\x1b[2J"
    given = {"msg": "%s: %s", "args": (name, "rotten"), "exc_info": None}
    line = OneLine().format(logging.makeLogRecord(given))
    assert line == r"a\n2026-01-01 00:00:00,000 ERROR b\xff\x1b[2J: rotten"


def test_a_store_becomes_read_only_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_on(tmp_path)
    for _ in range(2):
        store.order.poison("directory fsync failed: Input/output error")
    (record,) = caplog.records
    assert (
        record.levelname == "ERROR" and "read-only: directory fsync failed" in record.getMessage()
    )
    store.close()


def test_salvage_that_is_let_go_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_on(tmp_path, salvage_bytes=10)
    staged = store.saves.stage("f.pt", store.root, "f.pt", exists=False, truncate=True)
    store.fs.write(staged.fd, b"half" * 9000, 0)
    store.saves.abort(staged, "its writer was killed")
    os.close(staged.fd)
    let_go, aborted = sorted(record.getMessage() for record in caplog.records)[::-1]
    assert "f.pt: salvage" in let_go and "is let go" in let_go and "aborted" in aborted
    store.close()
