"""Near-identical generations share their blocks, where the filesystem can (XFS, btrfs).

``Sharing`` lets an earlier generation in history refer to the blocks of the committed version
wherever both hold the same bytes at the same offsets. ``Sharer`` does it behind the commits.

Nothing can be lost by it. The filesystem itself compares the two ranges, with both inodes locked,
before it lets one refer to the other's blocks, so a race with a writer shares nothing; it moves no
size, time or xattr, so records stay true. The committed file is not changed at all, and its bytes
were durable before its publish. What is changed, the block map of the old generation, is in the
filesystem's own journal (XFS) or tree (btrfs): after a crash a range refers to its old blocks or to
equal ones. What it costs: rot in a shared block is rot in both versions.

An extent of btrfs stays allocated as a whole while anybody refers to a part of it, so sharing all
but one block of a generation frees nothing there (seen). What is left of such an extent is
therefore written once more, into a file without a name, from which the generation shares it.

Threading: any thread may call; descriptors are the caller's or opened here.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import Extent
from ckptfs.disk.worker import started
from ckptfs.errors import RecordDamaged
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout

MIN_BYTES = 1 << 20  # of a file: less is not worth it
# Compared, shared and let go at a time: the kernel finds in the cache what it compares, so both
# inodes are locked for milliseconds.
_WINDOW_BYTES = 4 << 20
_READ_BYTES = 512 << 10
_PIECE_BYTES = 64 << 10  # no range that is shared is shorter; a multiple of every block size
_MAX_LEFT = 4096  # ranges that differ, of one file: a bound of memory
_QUEUE_LIMIT = 1000
_QUIET_S, _QUIET_LIMIT_S = 1.0, 30.0

Range = tuple[int, int]
_NEVER = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EXDEV})


def never() -> bool:
    return False


class Sharing:
    """What one store shares. Remembers filesystems that cannot."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.fs = layout, layout.fs
        self._cannot: set[int] = set()  # st_dev

    def share_history(
        self, at: int, name: str, lineage: str, stopped: Callable[[], bool] = never
    ) -> int:
        """Let all generations that history holds of ``at/name`` share blocks with it. All, since
        one that shares with a generation between keeps the old blocks of that one. Returns how
        many bytes came to be shared. Raises OSError where the file is gone."""
        if not osfs.is_regular(self.fs.lstat(at, name)):  # a FIFO would wait for its writer
            return 0
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as live:
            try:
                record = self.layout.read_record(live)
            except RecordDamaged:
                return 0
            if record is None:
                return 0
            total = 0
            for generation in earlier.generations(self.layout, lineage):
                if not stopped():
                    total += self._share_generation(live, lineage, str(generation), stopped)
            return total

    def _share_generation(
        self, live: int, lineage: str, generation: str, stopped: Callable[[], bool]
    ) -> int:
        with contextlib.suppress(OSError):
            folder = self.fs.open(self.layout.history, lineage, osfs.DIRECTORY)
            try:
                target = self.fs.open(folder, generation, osfs.O_RDONLY)
            finally:
                self.fs.close(folder)
            try:
                return self.share(live, target, stopped)
            finally:
                self.fs.close(target)
        return 0

    def share(self, source: int, target: int, stopped: Callable[[], bool] = never) -> int:
        """Let ``target`` refer to the blocks of ``source`` where both hold the same bytes. Returns
        how many bytes came to be shared. Never raises: where it cannot go on, it ends.

        Both are open for reading; without rights the kernel wants ``target`` to be the caller's.
        """
        total = 0
        try:
            mine, theirs = self.fs.stat(source), self.fs.stat(target)
            end = min(mine.st_size, theirs.st_size)
            if end < MIN_BYTES or mine.st_dev in self._cannot or mine.st_ino == theirs.st_ino:
                return 0
            if mine.st_size != theirs.st_size:
                end -= end % _PIECE_BYTES  # a last block is shared with another last one only
            left: list[Range] = []
            asked = False
            for start, stop in _windows(self._unshared(source, target, end)):
                if stopped() or self.fs.stat(target).st_nlink == 0:
                    return total
                if not asked:  # whether it can at all, before anything is read for it
                    self.fs.dedupe(source, target, start, min(start + _PIECE_BYTES, stop))
                    asked = True
                total += self._share_window(source, target, (start, stop), left)
            _add(left, end, theirs.st_size)
            if self.fs.pins_extents(target) and sum(b - a for a, b in left) <= total // 2:
                self._move(target, left, stopped)
        except OSError as error:
            if error.errno in _NEVER:
                self._cannot.add(mine.st_dev)
        return total

    def _unshared(self, source: int, target: int, end: int) -> Iterator[Range]:
        """Where the target has blocks that are not the source's already. Holes have none."""
        others = self.fs.extents(source)
        other = next(others, None)
        for extent in self.fs.extents(target):
            at, stop = extent.start, min(extent.end, end)
            while at < stop:
                while other is not None and other.end <= at:
                    other = next(others, None)
                if other is None or other.start >= stop:
                    yield at, stop
                    break
                if other.start > at:
                    yield at, other.start
                    at = other.start
                upto = min(stop, other.end)
                places = extent.place, other.place
                if None in places or _shift(extent) != _shift(other):
                    yield at, upto
                at = upto

    def _share_window(self, source: int, target: int, window: Range, left: list[Range]) -> int:
        total, at = 0, window[0]
        for start, end in self._equal(source, target, window):
            _add(left, at, start)
            shared = self.fs.dedupe(source, target, start, end)
            total, at = total + shared, start + shared
        _add(left, at, window[1])
        self.fs.drop_cache(target, *window)
        return total

    def _equal(self, source: int, target: int, window: Range) -> list[Range]:
        """The ranges, in whole pieces but for the last, in which both hold the same."""
        found: list[Range] = []
        for at in range(*window, _READ_BYTES):
            size = min(_READ_BYTES, window[1] - at)
            mine, theirs = self.fs.read(source, size, at), self.fs.read(target, size, at)
            if mine == theirs and len(mine) == size:
                _add(found, at, at + size)
                continue
            for skip in range(0, size, _PIECE_BYTES):
                stop = min(skip + _PIECE_BYTES, size)
                if mine[skip:stop] == theirs[skip:stop] and len(mine) >= stop:
                    _add(found, at + skip, at + stop)
        return found

    def _move(self, target: int, ranges: list[Range], stopped: Callable[[], bool]) -> None:
        """Write these bytes of the target anew, into small extents, and let the target share them.
        A crash leaves a file in stage that recovery removes, if it had its name still."""
        draft = f"{fmt.new_txid()}.moved"
        fd = self.fs.open(self.layout.stage, draft, osfs.O_RDWR | osfs.O_CREAT | osfs.O_EXCL)
        try:
            self.fs.unlink(self.layout.stage, draft)
            for start, end in _windows(iter(ranges)):
                if stopped():
                    return
                for at in range(start, end, _READ_BYTES):
                    self.fs.write(fd, self.fs.read(target, min(_READ_BYTES, end - at), at), at)
                self.fs.fsync(fd)
                self.fs.dedupe(fd, target, start, end)
        finally:
            self.fs.close(fd)


def _shift(extent: Extent) -> int | None:
    return None if extent.place is None else extent.place - extent.start


def _windows(ranges: Iterator[Range]) -> Iterator[Range]:
    """The ranges, joined where they touch, in windows that end at multiples of their length."""
    start = end = 0
    for begin, stop in ranges:
        if begin != end:
            if start < end:
                yield start, end
            start = begin
        end = stop
        while end - start >= _WINDOW_BYTES:
            cut = start + _WINDOW_BYTES
            cut -= cut % _WINDOW_BYTES
            yield start, cut
            start = cut
    if start < end:
        yield start, end


def _add(ranges: list[Range], start: int, end: int) -> None:
    """Append a range, joined with the last one if they touch or the list is long enough."""
    if start >= end:
        return
    if ranges and (ranges[-1][1] == start or len(ranges) >= _MAX_LEFT):
        start = ranges.pop()[0]
    ranges.append((start, end))


class Sharer:
    """One thread that shares the blocks of a path's generations some time after its commits.

    It waits until nothing was committed for a second, so that it does not compete with a save of
    many files. A path that is added again while it waits is done once; what no longer finds
    room in the queue is left out, and its blocks stay apart until its next commit.
    """

    def __init__(
        self, share: Callable[[str, Callable[[], bool]], int], quiet_s: float = _QUIET_S
    ) -> None:
        self._share, self._quiet_s = share, quiet_s
        self._queue: dict[str, None] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._added_s = self._first_s = 0.0

    def add(self, path: str, size_bytes: int) -> None:
        """A version of that size was replaced. Never waits."""
        if size_bytes < MIN_BYTES:
            return
        with self._changed:
            if self._stopping.is_set() or len(self._queue) >= _QUEUE_LIMIT:
                return
            self._added_s = time.monotonic()
            if not self._queue:
                self._first_s = self._added_s
            self._queue[path] = None
            if self._thread is None:
                self._thread = started(self._run, "sharing")
            self._changed.notify()

    def stop(self, limit_s: float = 1.0) -> None:
        """No thread of it is left on return, but for one that the disk keeps waiting."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(limit_s)

    def _run(self) -> None:
        osfs.yield_disk()
        while (path := self._next()) is not None:
            with contextlib.suppress(OSError):  # deleted meanwhile
                self._share(path, self._stopping.is_set)

    def _next(self) -> str | None:
        with self._changed:
            while not self._stopping.is_set():
                if not self._queue:
                    self._changed.wait()
                    continue
                now = time.monotonic()
                due = min(self._added_s + self._quiet_s, self._first_s + _QUIET_LIMIT_S)
                if now >= due:
                    path = next(iter(self._queue))
                    del self._queue[path]
                    return path
                self._changed.wait(due - now)
        return None
