"""Data where the kernel does not carry it: no passthrough, or a version that goes on from a long
committed one. Of the latter every write is seen here, so the bytes that no one touched need not be
copied or hashed again (``ckptfs.versions.extend``).

Threading: any thread. What takes a version's lock, or copies, runs where it may block.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ckptfs.disk import osfs

from ..view.answers import Slow, T
from ..view.model import Caller, Handle
from .context import Mount


def read(mount: Mount, handle_id: int, size: int, offset: int) -> bytes | Slow[bytes]:
    handle = mount.handle(handle_id)
    base = handle.base
    if base is None:
        return os.pread(handle.fd, size, offset)
    return Slow(lambda: base.read(handle.fd, size, offset))


def note_writer(mount: Mount, handle_id: int, caller: Caller) -> None:
    wrote = mount.handle(handle_id).wrote
    if caller.pid not in wrote:
        wrote.update((caller.pid, caller.process))


def write(
    mount: Mount, handle_id: int, data: memoryview, offset: int, *, cached: bool = False
) -> int | Slow[int]:
    """``cached``: from the page cache, where each page has its place."""
    handle = mount.handle(handle_id)
    appends = bool(handle.flags & os.O_APPEND) and not cached
    if handle.base is not None:
        kept = bytes(data)  # the buffer is the next request's
        return Slow(lambda: _write(mount, handle, kept, offset, appends))
    try:
        if appends:
            with mount.lock:
                return os.pwrite(handle.fd, data, os.fstat(handle.fd).st_size)
        return os.pwrite(handle.fd, data, offset)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    return _write_with_room(mount, handle, bytes(data), offset, appends)


def _write_with_room(
    mount: Mount, handle: Handle, data: bytes, offset: int, appends: bool
) -> Slow[int]:
    def write() -> int:
        if not appends:
            return os.pwrite(handle.fd, data, offset)
        with mount.lock:
            return os.pwrite(handle.fd, data, os.fstat(handle.fd).st_size)

    return Slow(lambda: _changing_bytes(mount, handle, offset, write, len(data)))


def _write(mount: Mount, handle: Handle, data: bytes, offset: int, appends: bool) -> int:
    def write() -> int:
        return os.pwrite(handle.fd, data, at)

    assert handle.version is not None
    with handle.version.staged.lock:
        at = os.fstat(handle.fd).st_size if appends else offset
        return _changing_bytes(mount, handle, at, write, len(data))


def cut(mount: Mount, handle: Handle, size: int) -> None:
    _changing_bytes(mount, handle, size, lambda: os.ftruncate(handle.fd, size))


def fallocate(mount: Mount, handle_id: int, mode: int, offset: int, length: int) -> Slow[None]:
    handle = mount.handle(handle_id)

    def allocate() -> None:
        mount.store.room.before_freeing()  # it may punch a hole
        osfs.allocate(handle.fd, mode, offset, length)

    return Slow(lambda: _changing_bytes(mount, handle, offset, allocate, length))


def copy_range(
    mount: Mount, source_id: int, at: int, target_id: int, to: int, size: int
) -> Slow[int]:
    source, target = mount.handle(source_id), mount.handle(target_id)

    def copy() -> int:
        return os.copy_file_range(source.fd, target.fd, size, at, to)

    def run() -> int:
        if source.version is not None:
            with source.version.staged.lock:
                mount.store.saves.fill(source.version.staged)
        return _changing_bytes(mount, target, to, copy, size)

    return Slow(run)


def _changing_bytes(
    mount: Mount, handle: Handle, offset: int, change: Callable[[], T], size: int = 0
) -> T:
    """Change what lies at ``offset`` and behind it, ``size`` bytes. A commit that is under way
    comes first; where there is no room, it is made."""
    staged = handle.version.staged if handle.version is not None else None
    try:
        if handle.base is None or staged is None:
            return mount.store.room.retried(change, lambda: size, handle.fd)
        with staged.lock:
            mount.store.saves.change(staged, offset)
            return mount.store.room.retried(change, lambda: size, handle.fd)
    except OSError as error:
        if error.errno == errno.ENOSPC and staged is not None:
            mount.store.room.doubts.doubt(staged)
        raise


def seek(mount: Mount, handle_id: int, offset: int, whence: int) -> int:
    handle = mount.handle(handle_id)
    if handle.base is None:
        return os.lseek(handle.fd, offset, whence)
    size = os.fstat(handle.fd).st_size  # the holes of its file are not those of the version
    if offset >= size:
        raise OSError(errno.ENXIO, "past the end")
    return offset if whence == os.SEEK_DATA else size


def drop_set_id(handle: Handle) -> None:
    """A write by somebody without the right to keep them clears the set-id bits."""
    os.chown(handle.fd, -1, -1)  # an unchanged owner: the kernel clears them as for any chown
