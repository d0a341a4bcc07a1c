"""Data where the kernel does not carry it: no passthrough, or a version that goes on from a long
committed one. Of the latter every write is seen here, so the bytes that no one touched need not be
copied or hashed again (``ckptfs.versions.extend``). What takes a version's lock, or copies, runs
where it may block."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ckptfs.disk import osfs

from ..view.model import Caller, Handle
from .base import Base, Slow, T


class Relay(Base):
    def read(self, handle_id: int, size: int, offset: int) -> bytes | Slow[bytes]:
        handle = self.handle(handle_id)
        base = handle.base
        if base is None:
            return os.pread(handle.fd, size, offset)
        return Slow(lambda: base.read(handle.fd, size, offset))

    def note_writer(self, handle_id: int, caller: Caller) -> None:
        wrote = self.handle(handle_id).wrote
        if caller.pid not in wrote:
            wrote.update((caller.pid, caller.process))

    def write(
        self, handle_id: int, data: memoryview, offset: int, *, cached: bool = False
    ) -> int | Slow[int]:
        """``cached``: from the page cache, where each page has its place."""
        handle = self.handle(handle_id)
        appends = bool(handle.flags & os.O_APPEND) and not cached
        if handle.base is not None:
            kept = bytes(data)  # the buffer is the next request's
            return Slow(lambda: self._write(handle, kept, offset, appends))
        try:
            if appends:
                with self.lock:
                    return os.pwrite(handle.fd, data, os.fstat(handle.fd).st_size)
            return os.pwrite(handle.fd, data, offset)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        return self._write_with_room(handle, bytes(data), offset, appends)

    def _write_with_room(
        self, handle: Handle, data: bytes, offset: int, appends: bool
    ) -> Slow[int]:
        def write() -> int:
            if not appends:
                return os.pwrite(handle.fd, data, offset)
            with self.lock:
                return os.pwrite(handle.fd, data, os.fstat(handle.fd).st_size)

        return Slow(lambda: self._changing_bytes(handle, offset, write, len(data)))

    def _write(self, handle: Handle, data: bytes, offset: int, appends: bool) -> int:
        def write() -> int:
            return os.pwrite(handle.fd, data, at)

        assert handle.version is not None
        with handle.version.staged.lock:
            at = os.fstat(handle.fd).st_size if appends else offset
            return self._changing_bytes(handle, at, write, len(data))

    def cut(self, handle: Handle, size: int) -> None:
        self._changing_bytes(handle, size, lambda: os.ftruncate(handle.fd, size))

    def fallocate(self, handle_id: int, mode: int, offset: int, length: int) -> Slow[None]:
        handle = self.handle(handle_id)

        def allocate() -> None:
            self.store.room.before_freeing()  # it may punch a hole
            osfs.allocate(handle.fd, mode, offset, length)

        return Slow(lambda: self._changing_bytes(handle, offset, allocate, length))

    def copy_range(self, source_id: int, at: int, target_id: int, to: int, size: int) -> Slow[int]:
        source, target = self.handle(source_id), self.handle(target_id)

        def copy() -> int:
            return os.copy_file_range(source.fd, target.fd, size, at, to)

        def run() -> int:
            if source.version is not None:
                with source.version.staged.lock:
                    self.store.saves.fill(source.version.staged)
            return self._changing_bytes(target, to, copy, size)

        return Slow(run)

    def _changing_bytes(
        self, handle: Handle, offset: int, change: Callable[[], T], size: int = 0
    ) -> T:
        """Change what lies at ``offset`` and behind it, ``size`` bytes. A commit that is under way
        comes first; where there is no room, it is made."""
        staged = handle.version.staged if handle.version is not None else None
        try:
            if handle.base is None or staged is None:
                return self.store.room.retried(change, lambda: size, handle.fd)
            with staged.lock:
                self.store.saves.change(staged, offset)
                return self.store.room.retried(change, lambda: size, handle.fd)
        except OSError as error:
            if error.errno == errno.ENOSPC and staged is not None:
                self.store.room.doubts.doubt(staged)
            raise

    def seek(self, handle_id: int, offset: int, whence: int) -> int:
        handle = self.handle(handle_id)
        if handle.base is None:
            return os.lseek(handle.fd, offset, whence)
        size = os.fstat(handle.fd).st_size  # the holes of its file are not those of the version
        if offset >= size:
            raise OSError(errno.ENXIO, "past the end")
        return offset if whence == os.SEEK_DATA else size
