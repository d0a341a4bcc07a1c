"""Digests of whole files, equal to what ``b3sum`` and ``sha256sum`` print.

Bounded memory at any file size. A large file on its own gets every core: two buffers of 4 MiB, one
being read while the other is hashed (BLAKE3 is a tree hash, so its own threads share one buffer).
Where enough files are digested at once to keep the cores busy, each gets one thread and one buffer
that fits the core's cache, which is a third faster in all. The file is read with pread and never
mapped: a file that is cut short while it is read gives a wrong digest, not a SIGBUS. Holes are not
read, and what a file begins with in zeros is hashed once for all files (``zeros.py``). Thread-safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from blake3 import blake3

from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.osfs import cpu_count
from ckptfs.disk.sums import Sums
from ckptfs.disk.worker import started
from ckptfs.disk.zeros import FROM_BYTES, Zeros, next_kept
from ckptfs.errors import UsageError

ALGORITHMS = ("blake3", "sha256")
CHUNK_BYTES = 4 << 20
_CACHED_BYTES = 512 << 10
_ZEROS = memoryview(bytes(CHUNK_BYTES))
_ALONE_FROM_BYTES = 2 << 20  # below that the threads cost more than they gain

Before = Callable[[int, int], None]


class _State(Protocol):
    def update(self, data: mmap.mmap | memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> _State: ...


@dataclass
class Hasher:
    """The digest of what was given to ``update`` so far and, for a commit, the sums that will tell
    where a damage is."""

    state: _State
    sums: Sums | None

    def update(self, data: mmap.mmap | memoryview) -> None:
        self.state.update(data)
        if self.sums is not None:
            self.sums.update(data)

    def hexdigest(self) -> str:
        return self.state.hexdigest()

    def copy(self) -> Hasher:
        return Hasher(self.state.copy(), self.sums.copy() if self.sums else None)


_zeros: Zeros[Hasher] = Zeros()


def new_hasher(algorithm: str, threads: int = 1, *, sums: bool = False) -> Hasher:
    summed = Sums() if sums else None
    if algorithm == "blake3":
        return Hasher(blake3(max_threads=threads), summed)
    if algorithm == "sha256":
        return Hasher(hashlib.sha256(), summed)
    raise UsageError(f"unknown checksum {algorithm!r}; known: {', '.join(ALGORITHMS)}")


_cores = cpu_count()
_running = 0
_expected = 0  # that are about to run
_running_lock = threading.Lock()


def expect(count: int) -> None:
    """So many digests of long files are about to be asked for: what runs meanwhile does not take
    all cores. Undone by as many negative ones, when they begin."""
    global _expected
    with _running_lock:
        _expected += count


@contextlib.contextmanager
def _counted() -> Iterator[bool]:
    """Count a digest among those that run; says whether the others leave cores idle."""
    global _running
    with _running_lock:
        idle = _running + _expected < max(1, _cores // 2)
        _running += 1
    try:
        yield idle
    finally:
        with _running_lock:
            _running -= 1


def digest_file(
    fs: FileSystem, fd: int, size_bytes: int, algorithm: str, before: Before | None = None
) -> str:
    """``algorithm:hex`` of the first ``size_bytes`` of ``fd``.

    ``before(offset, length)`` is called ahead of each chunk's read; the seal passes
    ``fs.clean`` so that hashing one chunk overlaps the writeback of the next. Raises OSError from
    reading or from ``before``.
    """
    hasher = hash_range(fs, fd, (0, size_bytes), algorithm, before=before)
    return f"{algorithm}:{hasher.hexdigest()}"


def hash_range(
    fs: FileSystem,
    fd: int,
    byte_range: tuple[int, int],
    algorithm: str,
    *,
    after: Hasher | None = None,
    before: Before | None = None,
    sums: bool = False,
) -> Hasher:
    """The state after hashing these bytes of ``fd``, following those of ``after``, which is left
    as it is."""
    start, end = byte_range
    with _counted() as idle:
        alone = idle and end - start >= _ALONE_FROM_BYTES
        threads = blake3.AUTO if alone else 1
        hasher = after.copy() if after else new_hasher(algorithm, threads, sums=sums)
        if after is None and start == 0:
            start = _hash_leading_hole(fs, fd, end, hasher, (algorithm, threads, sums), before)
        (_hash_overlapped if alone else _hash_serial)(fs, fd, start, end, hasher, before)
    return hasher


def _hash_leading_hole(
    fs: FileSystem,
    fd: int,
    end: int,
    hasher: Hasher,
    kind: tuple[str, int, bool],
    before: Before | None,
) -> int:
    """Take in what the file begins with in zeros, if it is long. Returns how many bytes."""
    done = 0
    while (hole_end := _leading_hole(fs, fd, end)) > done:
        known = _zeros.longest(kind, hole_end)
        if known is not None and known[0] > done:
            done, kept = known
            hasher.state, hasher.sums = kept.state, kept.sums
            continue
        stop = min(hole_end, next_kept(done), done + FROM_BYTES)
        if before is not None:
            before(done, stop - done)
        while done < stop:
            step = min(stop - done, CHUNK_BYTES)
            hasher.update(_ZEROS[:step])
            done += step
        _zeros.keep(kind, done, hasher)
    return done


def _leading_hole(fs: FileSystem, fd: int, end: int) -> int:
    """Where it ends: at the end, or so that what is left to read stays aligned."""
    if end < FROM_BYTES:
        return 0
    data = fs.next_data(fd, 0)
    return end if data >= end else data - data % CHUNK_BYTES


def _zeros_at(fs: FileSystem, fd: int, offset: int, length: int) -> memoryview | None:
    """So many zeros, where a hole is known to hold them: they need not be read."""
    return _ZEROS[:length] if fs.next_data(fd, offset) >= offset + length else None


def _hash_serial(
    fs: FileSystem, fd: int, start: int, end: int, hasher: Hasher, before: Before | None
) -> None:
    if start == end:
        return
    pages = -(-min(end - start, _CACHED_BYTES) // mmap.PAGESIZE)
    length = pages * mmap.PAGESIZE
    with mmap.mmap(-1, length) as buffer:  # aligned, as O_DIRECT asks
        offset = start
        while offset < end:
            wanted = min(length, end - offset)
            if before is not None:
                before(offset, wanted)
            zeros = _zeros_at(fs, fd, offset, wanted)
            if zeros is not None:
                hasher.update(zeros)
                offset += wanted
                continue
            count = fs.readinto(fd, buffer, offset)
            if count == 0:
                return
            with memoryview(buffer) as view, view[: min(count, end - offset)] as read:
                hasher.update(read)
            offset += count


def _hash_overlapped(
    fs: FileSystem, fd: int, start: int, end: int, hasher: Hasher, before: Before | None
) -> None:
    free: SimpleQueue[mmap.mmap | None] = SimpleQueue()
    full: SimpleQueue[tuple[mmap.mmap, mmap.mmap | memoryview] | BaseException | None] = (
        SimpleQueue()
    )
    buffers = [mmap.mmap(-1, CHUNK_BYTES) for _ in range(2)]  # page-aligned, as O_DIRECT asks
    for buffer in buffers:
        free.put(buffer)

    def fill(buffer: mmap.mmap, offset: int) -> mmap.mmap | memoryview:
        """In parts that are still in the core's cache when they are summed."""
        filled, wanted = 0, min(CHUNK_BYTES, end - offset)
        zeros = _zeros_at(fs, fd, offset, wanted)
        if zeros is not None:
            if hasher.sums is not None:
                hasher.sums.update(zeros)
            return zeros
        with memoryview(buffer) as view:
            while filled < wanted:
                with view[filled : filled + _CACHED_BYTES] as part:
                    count = fs.readinto(fd, part, offset + filled)
                    if count == 0:
                        break
                    count = min(count, wanted - filled)
                    if hasher.sums is not None:
                        hasher.sums.update(part[:count])
                    filled += count
        return buffer if filled == CHUNK_BYTES else memoryview(buffer[:filled])

    def reader() -> None:
        try:
            offset = start
            while offset < end and (buffer := free.get()) is not None:
                if before is not None:
                    before(offset, min(CHUNK_BYTES, end - offset))
                data = fill(buffer, offset)
                if len(data) == 0:
                    break
                full.put((buffer, data))
                offset += len(data)
            full.put(None)
        except BaseException as error:  # handed to the caller's thread
            full.put(error)

    thread = started(reader, "digest")
    if thread is None:
        _hash_serial(fs, fd, start, end, hasher, before)
        return
    try:
        while (item := full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            buffer, data = item
            hasher.state.update(data)
            free.put(buffer)
    finally:
        free.put(None)
        thread.join()
