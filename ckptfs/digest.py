"""Digests of whole files, equal to what ``b3sum`` and ``sha256sum`` print.

Bounded memory at any file size: two buffers of 4 MiB, one being read while the other is hashed
(BLAKE3 is a tree hash, so its own threads share one buffer). The file is read with pread and never
mapped: a file that is cut short while it is read gives a wrong digest, not a SIGBUS. Thread-safe.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from blake3 import blake3

from ckptfs.errors import RecordDamaged, UsageError
from ckptfs.osfs import FileSystem

ALGORITHMS = ("blake3", "sha256")
CHUNK_BYTES = 4 << 20

Before = Callable[[int, int], None]


class Hasher(Protocol):
    def update(self, data: mmap.mmap | memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


def new_hasher(algorithm: str) -> Hasher:
    if algorithm == "blake3":
        return blake3(max_threads=blake3.AUTO)
    if algorithm == "sha256":
        return hashlib.sha256()
    raise UsageError(f"unknown checksum {algorithm!r}; known: {', '.join(ALGORITHMS)}")


def digest_file(
    fs: FileSystem, fd: int, size_bytes: int, algorithm: str, before: Before | None = None
) -> str:
    """``algorithm:hex`` of the first ``size_bytes`` of ``fd``.

    ``before(offset, length)`` is called ahead of each chunk's read; the seal passes
    ``fs.clean`` so that hashing one chunk overlaps the writeback of the next. Raises OSError from
    reading or from ``before``.
    """
    hasher = new_hasher(algorithm)
    if size_bytes <= CHUNK_BYTES:
        if before is not None:
            before(0, size_bytes)
        _digest_small(fs, fd, size_bytes, hasher)
    else:
        _digest_overlapped(fs, fd, size_bytes, hasher, before)
    return f"{algorithm}:{hasher.hexdigest()}"


def _digest_small(fs: FileSystem, fd: int, size_bytes: int, hasher: Hasher) -> None:
    if size_bytes == 0:
        return
    pages = -(-size_bytes // mmap.PAGESIZE)
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as buffer:  # aligned, as O_DIRECT asks
        offset = 0
        while offset < size_bytes and (count := fs.readinto(fd, buffer, offset)):
            with memoryview(buffer) as view, view[: min(count, size_bytes - offset)] as read:
                hasher.update(read)
            offset += count


def _digest_overlapped(
    fs: FileSystem, fd: int, size_bytes: int, hasher: Hasher, before: Before | None
) -> None:
    free: SimpleQueue[mmap.mmap | None] = SimpleQueue()
    full: SimpleQueue[tuple[mmap.mmap, int] | BaseException | None] = SimpleQueue()
    buffers = [mmap.mmap(-1, CHUNK_BYTES) for _ in range(2)]  # page-aligned, as O_DIRECT asks
    for buffer in buffers:
        free.put(buffer)

    def reader() -> None:
        try:
            offset = 0
            while offset < size_bytes and (buffer := free.get()) is not None:
                if before is not None:
                    before(offset, min(CHUNK_BYTES, size_bytes - offset))
                count = fs.readinto(fd, buffer, offset)
                if count == 0:
                    break
                full.put((buffer, min(count, size_bytes - offset)))
                offset += count
            full.put(None)
        except BaseException as error:  # handed to the caller's thread
            full.put(error)

    thread = threading.Thread(target=reader, name="ckptfs-digest", daemon=True)
    thread.start()
    try:
        while (item := full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            buffer, count = item
            hasher.update(buffer if count == CHUNK_BYTES else memoryview(buffer[:count]))
            free.put(buffer)
    finally:
        free.put(None)
        thread.join()


def same_digest(fs: FileSystem, fd: int, size_bytes: int, digest: str) -> bool:
    """Whether the first ``size_bytes`` of ``fd`` have ``digest`` (``algorithm:hex``)."""
    algorithm = digest.partition(":")[0]
    if algorithm not in ALGORITHMS:
        raise RecordDamaged(f"record names an unknown checksum {algorithm!r}")
    return digest_file(fs, fd, size_bytes, algorithm) == digest
