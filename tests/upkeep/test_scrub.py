"""Reading everything again in the background: rot is found before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import mounts
import pytest
from harness import NEW, NEWER, OLD, contents, lineage, rot, store_on, two_versions

from ckptfs.disk.real import OsFs
from ckptfs.store import Store
from ckptfs.tools.faults import Call, Intercepted
from ckptfs.upkeep.scrub import Scrub


def nothing() -> set[str]:
    return set()


def scrubbed(store: Store, busy: set[str] | None = None) -> dict[str, int]:
    result = Scrub(store, 0, lambda: busy or set()).run()
    found = result["found"]
    assert isinstance(found, dict)
    return found


def test_rot_is_rolled_back_in_files_and_set_aside_in_history(quick_dir: Path) -> None:
    store = store_on(quick_dir, keep=2)
    for data in (OLD, NEW, NEWER):
        store.put("a.pt", data)
    store.put("b.pt", NEW)
    assert scrubbed(store) == {"ok": 2, "earlier ok": 2}
    of = lineage(store, "a.pt")
    rot(quick_dir / "a.pt")
    rot(quick_dir / ".ckptfs" / "history" / of / "1")
    assert scrubbed(store) == {"damaged": 1, "ok": 1, "earlier damaged": 1}
    assert (quick_dir / "a.pt").read_bytes() == NEW
    assert len(contents(quick_dir / ".ckptfs" / "quarantine")) == 2
    assert scrubbed(store) == {"ok": 2}
    store.close()


def test_what_cannot_be_repaired_and_what_is_being_written_is_left(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    store.put("a.pt", NEW)
    store.put("b.pt", NEW)
    (quick_dir / "train.log").write_bytes(b"in place")
    rot(quick_dir / "a.pt")
    assert scrubbed(store, {"b.pt"}) == {"lost": 1}
    assert [event["event"] for event in store.events].count("rotten") == 1
    store.close()


def test_it_reads_past_the_page_cache(quick_dir: Path) -> None:
    opened: list[str] = []

    class Watching(Intercepted):
        def around(self, call: Call) -> object:
            if call.method == "open_direct":
                opened.append(str(call.arguments[1]))
            return call.run()

    store = store_on(quick_dir, Watching(OsFs()))
    two_versions(store)
    opened.clear()
    scrubbed(store)
    assert len(opened) == 2
    store.close()


def test_it_can_be_stopped_between_two_chunks(quick_dir: Path) -> None:
    reading = threading.Event()

    class Slow(Intercepted):
        def around(self, call: Call) -> object:
            if call.method == "readinto":
                reading.set()
                time.sleep(0.2)
            return call.run()

    store = store_on(quick_dir)
    store.put("a.bin", os.urandom(64 << 20))
    store.close()
    again = store_on(quick_dir, Slow(OsFs()))
    scrub = Scrub(again, 0.001, nothing)
    scrub.start()
    assert reading.wait(20)
    scrub.stop()
    assert scrub.last() == {}, "it did not come to its end"
    again.close()


def test_the_next_one_is_due_however_often_it_is_mounted(quick_dir: Path) -> None:
    store = store_on(quick_dir)
    two_versions(store)
    assert Scrub(store, 3600, nothing)._due_in_s() > 3500
    assert Scrub(store, 0.0001, nothing)._due_in_s() == 0
    scrubbed(store)
    store.close()
    again = store_on(quick_dir)
    assert 3500 < Scrub(again, 3600, nothing)._due_in_s() <= 3600
    again.close()


def test_a_mount_scrubs_and_says_so(disk_dir: Path) -> None:
    with mounts.served(disk_dir, "--scrub-interval", "1s") as served:
        for data in (OLD, NEW):
            (disk_dir / "a.pt").write_bytes(data)
        rot(served.below / "a.pt")
        with (disk_dir / "a.pt").open("rb", buffering=0) as reader:  # verified as it is opened
            assert reader.read() == OLD
        rot(served.below / "a.pt")
        (disk_dir / "a.pt").stat()
        deadline = time.monotonic() + 30
        while served.status()["counts"].get("rotten", 0) == 0:
            assert time.monotonic() < deadline, served.status()
            time.sleep(0.1)
        while not served.status()["scrub"]["last"]:
            assert time.monotonic() < deadline, served.status()
            time.sleep(0.1)
        told = subprocess.run(
            [sys.executable, "-m", "ckptfs", "status", str(disk_dir)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert "scrub" in told.stdout, told
    assert "Traceback" not in served.log_text()


@pytest.mark.parametrize("given", ["7", "5x", "-1", "nan", "1w"])
def test_an_interval_is_a_time(given: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ckptfs", "mount", "--scrub-interval", given, str(tmp_path / "no")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == (8 if given == "7" else 16), done
    assert done.stderr.count("\n") == 1
