"""The real filesystem.

Platform quirks, each with its cause:
- btrfs lists a directory as it was when the descriptor was opened, or last rewound, so directories
  are opened anew for every listing.
- macOS: ``fsync`` stops at the drive's cache, ``F_FULLFSYNC`` does not.
- ``sync_file_range`` cleans pages only where the file's own mapping holds them (ext4, XFS, btrfs,
  f2fs); on overlayfs and others it succeeds and does nothing, so there ``clean`` is an fsync.
- ``SEEK_DATA`` is trusted on the same: others have told holes where unwritten pages were (ZFS).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat as stat_module
import struct
import sys
import time
from collections.abc import Iterator

if sys.platform != "linux":  # Linux has these calls in the standard library
    import xattr as _xattr

from ckptfs.disk.filesystem import Extent, Status
from ckptfs.disk.osfs import (
    DIRECTORY,
    NO_XATTR,
    NOFOLLOW,
    allocated_bytes,
    check,
    give,
    libc,
    opened,
)
from ckptfs.disk.space import Space

_NO_DATA = frozenset({errno.ENODATA, getattr(errno, "ENOATTR", errno.ENODATA)})
_GRANTS = frozenset({"system.posix_acl_access", "security.capability"})
_NOATIME, _NO_ACCESS = getattr(os, "O_NOATIME", 0), getattr(os, "O_PATH", 0)
_COPY_CHUNK = 4 << 20
_SYNC_WAIT_BEFORE, _SYNC_WRITE, _SYNC_WAIT_AFTER = 1, 2, 4
_FICLONE, _FIDEDUPERANGE, _FS_IOC_FIEMAP = 0x40049409, 0xC0189436, 0xC020660B
_DEDUPE = struct.Struct("=QQHHIqQQiI")  # with room for one target
_DEDUPE_BYTES = 16 << 20  # more in one call is cut short
_DEDUPE_SAME = 0
_FIEMAP, _FIEMAP_EXTENT, _FIEMAP_BATCH = struct.Struct("=QQIIII"), struct.Struct("=QQQ16xI12x"), 128
_EXTENT_LAST, _EXTENT_SHARED = 0x1, 0x2000
_EXTENT_NO_PLACE = 0x2 | 0x4 | 0x8 | 0x100 | 0x200 | 0x800  # from UNKNOWN to UNWRITTEN
_RENAME_EXCHANGE = 2
_BTRFS = 0x9123683E
_KNOWN = frozenset({0xEF53, 0x58465342, _BTRFS, 0xF2F52010})  # ext4, XFS, btrfs, f2fs


def _data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where data lies. All of a file that has its blocks: what was preallocated stays so."""
    status = os.fstat(fd)
    if allocated_bytes(status) >= status.st_size:
        yield start, end
        return
    at = start
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more of it
                return
            raise
        if at < end:
            stop = min(os.lseek(fd, at, os.SEEK_HOLE), end)
            yield at, stop
            at = stop


class OsFs:
    """The real filesystem."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}  # st_dev -> whether it is one of _KNOWN

    def open(self, at: int, name: str, flags: int, mode: int = 0o600) -> int:
        flags |= NOFOLLOW | os.O_NONBLOCK  # a FIFO that has taken the name would wait for a writer
        if not flags & (os.O_DIRECTORY | _NO_ACCESS):
            with contextlib.suppress(PermissionError):  # for the owner alone
                return os.open(name, flags | _NOATIME, mode, dir_fd=at)
        return os.open(name, flags, mode, dir_fd=at)

    def open_direct(self, at: int, name: str) -> int:
        with contextlib.suppress(OSError):
            return self.open(at, name, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        fd = self.open(at, name, os.O_RDONLY)
        if sys.platform == "linux":
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return fd

    close = staticmethod(os.close)
    stat = staticmethod(os.fstat)
    truncate = staticmethod(os.ftruncate)
    now_ns = staticmethod(time.time_ns)

    def step(self, name: str) -> None:
        pass

    def listdir(self, fd: int) -> list[str]:
        with opened(self, fd, ".", DIRECTORY) as anew:
            return os.listdir(anew)

    def lstat(self, at: int, name: str) -> Status:
        return os.stat(name, dir_fd=at, follow_symlinks=False)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def readinto(self, fd: int, buffer: bytearray | memoryview | mmap.mmap, offset: int) -> int:
        return os.preadv(fd, [buffer], offset)

    def next_data(self, fd: int, offset: int) -> int:
        if not self._is_known(fd):
            return offset
        try:
            return os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return max(offset, os.fstat(fd).st_size)
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return offset
            raise

    def next_hole(self, fd: int, offset: int) -> int:
        return os.lseek(fd, offset, os.SEEK_HOLE)

    def write(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def clone(self, source: int, target: int) -> None:
        if sys.platform != "linux":
            raise OSError(errno.EOPNOTSUPP, "no clones")
        fcntl.ioctl(target, _FICLONE, source)

    def dedupe(self, source: int, target: int, start: int, end: int) -> int:
        if sys.platform != "linux":
            raise OSError(errno.EOPNOTSUPP, "no deduplication")
        at = start
        while at < end:
            size = min(end - at, _DEDUPE_BYTES)
            request = bytearray(_DEDUPE.pack(at, size, 1, 0, 0, target, at, 0, 0, 0))
            fcntl.ioctl(source, _FIDEDUPERANGE, request, True)
            shared, status, _ = _DEDUPE.unpack(request)[-3:]
            if status < 0:
                raise OSError(-status, os.strerror(-status))
            if status != _DEDUPE_SAME or shared == 0:
                break
            at += shared
        return at - start

    def extents(self, fd: int) -> Iterator[Extent]:
        if sys.platform != "linux":
            raise OSError(errno.EOPNOTSUPP, "no extents")
        at, flags = 0, 0
        while not flags & _EXTENT_LAST:
            request = bytearray(_FIEMAP.size + _FIEMAP_BATCH * _FIEMAP_EXTENT.size)
            _FIEMAP.pack_into(request, 0, at, (1 << 64) - 1 - at, 0, 0, _FIEMAP_BATCH, 0)
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, request, True)
            found = int(_FIEMAP.unpack_from(request)[3])
            if found == 0:
                return
            for number in range(found):
                where = _FIEMAP.size + number * _FIEMAP_EXTENT.size
                at, place, length, flags = _FIEMAP_EXTENT.unpack_from(request, where)
                known = None if flags & _EXTENT_NO_PLACE else place
                yield Extent(at, at + length, known, bool(flags & _EXTENT_SHARED))
                at += length

    def exclusive_bytes(self, fd: int) -> int:
        allocated = allocated_bytes(os.fstat(fd))
        with contextlib.suppress(OSError):
            shared = sum(end - start for start, end, _, shared in self.extents(fd) if shared)
            return max(0, allocated - shared)
        return allocated

    def space(self, fd: int) -> Space:
        status = os.fstatvfs(fd)
        # btrfs makes inodes as it needs them, and says that it has none.
        has_inodes = status.f_files == 0 or status.f_favail > 0
        return Space(
            status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize, has_inodes
        )

    def pins_extents(self, fd: int) -> bool:
        return sys.platform == "linux" and _fs_type(fd) == _BTRFS

    def drop_cache(self, fd: int, start: int, end: int) -> None:
        if sys.platform == "linux":
            os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)

    def copy_times(self, source: int, target: int) -> None:
        status = os.fstat(source)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        for at, stop in _data_ranges(source, start, end):
            while at < stop:
                data = os.pread(source, min(_COPY_CHUNK, stop - at), at)
                if not data:
                    break
                view = memoryview(data)
                while view:
                    written = os.pwrite(target, view, at)
                    at, view = at + written, view[written:]
        if os.fstat(source).st_size < end:
            raise OSError(errno.EIO, "the source shrank while it was copied")
        if os.fstat(target).st_size < end:
            os.ftruncate(target, end)

    def redirect(self, fd: int, to: int) -> None:
        os.dup2(to, fd, inheritable=False)

    def start_writeback(self, fd: int, offset: int, size: int) -> None:
        if self._is_known(fd):
            _sync_file_range(fd, offset, size, _SYNC_WRITE)

    def clean(self, fd: int, offset: int, size: int) -> None:
        if self._is_known(fd):
            _sync_file_range(fd, offset, size, _SYNC_WAIT_BEFORE | _SYNC_WRITE | _SYNC_WAIT_AFTER)
        elif offset == 0:
            self.fsync(fd)

    def _is_known(self, fd: int) -> bool:
        device = os.fstat(fd).st_dev
        if device not in self._known:
            self._known[device] = sys.platform == "linux" and _fs_type(fd) in _KNOWN
        return self._known[device]

    def fsync(self, fd: int) -> None:
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)

    fsync_dir = fsync

    def sync_all(self, fd: int) -> None:
        if sys.platform != "linux":
            os.sync()
        else:
            check(libc.syncfs(fd))

    def rename(self, at: int, name: str, to: int, target: str) -> None:
        os.rename(name, target, src_dir_fd=at, dst_dir_fd=to)

    def exchange(self, at: int, name: str, to: int, target: str) -> None:
        names = os.fsencode(name), os.fsencode(target)
        check(libc.renameat2(at, names[0], to, names[1], _RENAME_EXCHANGE))

    def link(self, at: int, name: str, to: int, target: str) -> None:
        os.link(name, target, src_dir_fd=at, dst_dir_fd=to, follow_symlinks=False)

    def unlink(self, at: int, name: str) -> None:
        os.unlink(name, dir_fd=at)

    def mkdir(self, at: int, name: str, mode: int) -> None:
        os.mkdir(name, mode, dir_fd=at)

    def rmdir(self, at: int, name: str) -> None:
        os.rmdir(name, dir_fd=at)

    def getxattr(self, fd: int, key: str) -> bytes | None:
        try:
            if sys.platform != "linux":
                return bytes(_xattr.getxattr(fd, key))
            return os.getxattr(fd, key)
        except OSError as error:
            if error.errno in _NO_DATA or error.errno in NO_XATTR:
                return None
            raise

    def setxattr(self, fd: int, key: str, value: bytes) -> None:
        if sys.platform == "linux":
            os.setxattr(fd, key, value)
        else:
            _xattr.setxattr(fd, key, value)

    def removexattr(self, fd: int, key: str) -> None:
        try:
            if sys.platform == "linux":
                os.removexattr(fd, key)
            else:
                _xattr.removexattr(fd, key)
        except OSError as error:
            if error.errno not in _NO_DATA and error.errno not in NO_XATTR:
                raise

    def copy_metadata(self, source: int, target: int, skip: str) -> None:
        old, new = os.fstat(source), os.fstat(target)
        mode = stat_module.S_IMODE(old.st_mode)
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            mode &= give(target, old)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                keys = set(os.listxattr(source))
                for key in _GRANTS & set(os.listxattr(target)) - keys:
                    os.removexattr(target, key)
                for key in keys - {skip}:
                    with contextlib.suppress(OSError):
                        os.setxattr(target, key, os.getxattr(source, key))
        new = os.fstat(target)
        if mode != stat_module.S_IMODE(new.st_mode):
            os.fchmod(target, mode)
        os.utime(target, ns=(old.st_atime_ns, new.st_mtime_ns))


def _sync_file_range(fd: int, offset: int, size: int, flags: int) -> None:
    check(libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), flags))


def _fs_type(fd: int) -> int:
    """``f_type`` of statfs(2): its first word; Python's ``statvfs`` leaves it out."""
    buffer = (ctypes.c_long * 32)()
    return int(buffer[0]) if libc.fstatfs(fd, ctypes.byref(buffer)) == 0 else 0
