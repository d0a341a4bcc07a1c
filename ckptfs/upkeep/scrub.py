"""Reading everything again now and then: rot is found while there is a good version to go back to.

One thread beside the mount, at idle I/O priority, reading past the page cache (which would hide
what the disk has come to, and which the trainer needs) at most half of the time. What has rotted
is seen to as an open would. When the last scrub ended, and what it found, lies in
``.ckptfs/scrub``, so that the next one is due at its time however often it is mounted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from ckptfs.checking.examine import Condition, Kept, examine_at
from ckptfs.checking.remedy import remedy
from ckptfs.disk import osfs
from ckptfs.disk.worker import started
from ckptfs.errors import CkptfsError
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.records import parts
from ckptfs.records.walk import walk
from ckptfs.store import Place, Store
from ckptfs.upkeep.carry_out import mend

log = logging.getLogger("ckptfs.scrub")

_LOOK_S = 60.0  # between looks at the clock, which may be set


class _Stopped(Exception):
    pass


class Scrub:
    """``busy`` says which paths are being written: their bytes are on the way to a digest."""

    def __init__(self, store: Store, interval_s: float, busy: Callable[[], set[str]]) -> None:
        self.store, self.fs, self.interval_s, self._busy = store, store.fs, interval_s, busy
        self.running: dict[str, int] = {}  # files and bytes so far, while it runs
        self._last = _told(store.layout.read_note(fmt.SCRUB))
        self._woke_s = 0.0  # monotonic
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self.interval_s > 0:
            self._thread = started(self._run, "scrub")

    def stop(self) -> None:
        """Returns once it has let go of the store: between two chunks."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def last(self) -> dict[str, object]:
        """What the last one that came to its end found; empty if there was none."""
        return self._last

    def status(self) -> dict[str, object]:
        return {"interval_s": self.interval_s, "last": self.last(), "running": self.running}

    def _run(self) -> None:
        osfs.yield_disk()
        while not self._stopping.wait(min(_LOOK_S, self._due_in_s())):
            if self._due_in_s() <= 0:
                self.run()

    def _due_in_s(self) -> float:
        since_ns = self._last.get("ended_ns")
        if (
            not isinstance(since_ns, int) or since_ns > self.fs.now_ns()
        ):  # none, or by a wrong clock
            since_ns = self.fs.lstat(self.store.layout.control, fmt.FORMAT).st_mtime_ns
        return max(0.0, since_ns / 1e9 + self.interval_s - self.fs.now_ns() / 1e9)

    def run(self) -> dict[str, object]:
        """Read everything once. Returns what it found, as ``last`` will."""
        started_ns, found = self.fs.now_ns(), Counter[str]()
        self.running = {"files": 0, "bytes": 0}
        self._woke_s = time.monotonic()
        try:
            for what, size in self._everything():
                self._pause(0, 0)
                found[what] += 1
                files, so_far = self.running["files"], self.running["bytes"]
                self.running = {"files": files + 1, "bytes": so_far + size}
        except _Stopped:
            pass
        except OSError as error:  # a directory that cannot be read
            found[f"not all: {error.strerror}"] += 1
        result: dict[str, object] = {
            "started_ns": started_ns,
            "ended_ns": self.fs.now_ns(),
            **self.running,
            "found": dict(found),
        }
        self.running = {}
        if not self._stopping.is_set():
            self._last = result
            log.info("scrubbed: %s", dict(found))
            with contextlib.suppress(OSError):  # no room: known until the mount ends
                self.store.layout.write_note(fmt.SCRUB, result)
        return result

    def _everything(self) -> Iterator[tuple[str, int]]:
        """The condition and size of every file and generation; what has rotted is seen to."""
        store = self.store
        for path, status in walk(self.fs, store.root):
            if status is None:
                store.note("unreadable", path, "the directory cannot be read")
                yield "unreadable", 0
                continue
            if path in self._busy() or store.in_place(path):
                continue
            with contextlib.suppress(FileNotFoundError):
                yield self._file(path), status.st_size
        for lineage in earlier.lineages(store.layout):
            for generation in earlier.generations(store.layout, lineage):
                with contextlib.suppress(FileNotFoundError):
                    yield self._generation(lineage, generation)

    def _file(self, path: str) -> str:
        try:
            with osfs.place(self.fs, self.store.root, path) as (at, name):
                place = Place(at, name, path)
                found = self.store.opens.check(place, direct=True, before=self._pause)
                return found.condition.value
        except FileNotFoundError:
            raise
        except (CkptfsError, OSError):
            return "lost"

    def _pause(self, offset: int, length: int) -> None:
        """Ahead of every chunk, wait as long as the last one took."""
        now = time.monotonic()
        if self._stopping.wait(min(1.0, now - self._woke_s)):
            raise _Stopped
        self._woke_s = time.monotonic()

    def _generation(self, lineage: str, generation: int) -> tuple[str, int]:
        layout, name = self.store.layout, str(generation)
        with osfs.opened(self.fs, layout.history, lineage, osfs.DIRECTORY) as folder:
            finding = examine_at(
                layout,
                name,
                folder,
                name,
                called=earlier.noted_path(layout, lineage) or "",
                direct=True,
                before=self._pause,
            )
        finding = replace(finding, kept=Kept(lineage, generation))
        mend(self.store, finding, remedy(finding))
        if finding.condition is Condition.UNREADABLE:
            path = earlier.noted_path(layout, lineage) or lineage
            self.store.note("unreadable", path, f"generation {generation}: {finding.detail}")
        return f"earlier {finding.condition.value}", finding.size_bytes


def _told(note: dict[str, object]) -> dict[str, object]:
    """What a scrub has written; empty for what none has."""
    found = note.get("found")
    times = all(parts.is_time(note.get(key)) for key in ("started_ns", "ended_ns"))
    sizes = all(parts.is_count(note.get(key)) for key in ("files", "bytes"))
    if times and sizes and isinstance(found, dict) and all(map(parts.is_count, found.values())):
        return note
    return {}
