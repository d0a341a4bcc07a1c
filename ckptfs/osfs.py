"""The filesystem the store runs on: a small protocol, and the real one.

The only module below ``mount/`` that calls ``os``, ``fcntl`` or the xattr calls. Names are resolved
from directory descriptors and never through a symlink. Every method raises ``OSError`` and nothing
else. Durability is stated per method; what is not stated is not durable. Thread-safe.

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
from typing import NamedTuple, Protocol

if sys.platform != "linux":  # Linux has these calls in the standard library
    import xattr as _xattr

O_RDONLY, O_RDWR, O_WRONLY = os.O_RDONLY, os.O_RDWR, os.O_WRONLY
O_CREAT, O_EXCL, O_TRUNC, O_APPEND = os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND
NOFOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | NOFOLLOW
NEVER_XATTR = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP})
NO_XATTR = NEVER_XATTR | {errno.ENOSPC, errno.E2BIG, errno.EPERM}  # or not for this file
_NO_DATA = frozenset({errno.ENODATA, getattr(errno, "ENOATTR", errno.ENODATA)})
_GRANTS = frozenset({"system.posix_acl_access", "security.capability"})
_NOATIME, _NO_ACCESS = getattr(os, "O_NOATIME", 0), getattr(os, "O_PATH", 0)
_ALL_BITS = 0o7777
_COPY_CHUNK = 4 << 20
_FULL_BYTES = 1 << 20

Status = os.stat_result


class Extent(NamedTuple):
    """Blocks of a file, in bytes. ``place`` is where they lie on the disk, as a number to compare;
    None where it tells nothing (compressed, inline, not written yet)."""

    start: int
    end: int
    place: int | None
    shared: bool  # with another file, or another part of this one


class Space(NamedTuple):
    """What is left of a filesystem, to an ordinary user."""

    free_bytes: int
    total_bytes: int  # 0 of one that does not say how large it is (ramfs): that has room
    has_inodes: bool = True

    @property
    def is_full(self) -> bool:
        """Whether a write may have found no room. XFS refuses them with a few blocks left."""
        return not self.holds(_FULL_BYTES)

    def holds(self, size_bytes: int) -> bool:
        return not self.total_bytes or (self.has_inodes and self.free_bytes >= size_bytes)


class FileSystem(Protocol):
    """What the commit code needs of a filesystem. ``at`` is an open directory."""

    def open(self, at: int, name: str, flags: int, mode: int = 0o600) -> int:
        """Reading by it moves no access time, where that is to be had: nobody has asked for it."""

    def open_direct(self, at: int, name: str) -> int:
        """Open for reading past the page cache; where there is no such way, past the pages that
        could be dropped. Read with ``readinto`` and aligned buffers."""

    def close(self, fd: int) -> None: ...
    def stat(self, fd: int) -> Status: ...
    def lstat(self, at: int, name: str) -> Status: ...
    def listdir(self, fd: int) -> list[str]: ...

    def read(self, fd: int, size: int, offset: int) -> bytes: ...
    def readinto(self, fd: int, buffer: bytearray | memoryview | mmap.mmap, offset: int) -> int: ...
    def next_data(self, fd: int, offset: int) -> int:
        """Where data may lie next, from ``offset`` on; the size of the file where there is no more.
        What comes before is a hole. It is ``offset`` where the filesystem does not tell."""

    def next_hole(self, fd: int, offset: int) -> int:
        """Where the next hole begins, from ``offset`` on, which is below the size of the file; that
        size where there is none, or the filesystem does not tell."""

    def write(self, fd: int, data: bytes, offset: int) -> int: ...
    def truncate(self, fd: int, size: int) -> None: ...
    def clone(self, source: int, target: int) -> None:
        """Make ``target`` hold what ``source`` does by sharing its blocks; else raises OSError."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Make ``target``, which has nothing there yet, hold these bytes of ``source``. Holes stay
        holes."""

    def copy_times(self, source: int, target: int) -> None:
        """Give ``target`` the access and modification time of ``source``."""

    def dedupe(self, source: int, target: int, start: int, end: int) -> int:
        """Let ``target`` refer to the blocks of ``source`` where it holds the same bytes, which the
        filesystem compares itself. Returns how many bytes, from ``start`` on; moves no time."""

    def extents(self, fd: int) -> Iterator[Extent]:
        """Where the file has blocks, in order. Raises OSError where that is not to be had."""

    def exclusive_bytes(self, fd: int) -> int:
        """What the file takes on the disk that no other shares."""

    def space(self, fd: int) -> Space:
        """Of the filesystem that ``fd`` lies on."""

    def pins_extents(self, fd: int) -> bool:
        """Whether all of an extent stays allocated while a file refers to a part of it (btrfs)."""

    def drop_cache(self, fd: int, start: int, end: int) -> None:
        """Let clean pages go."""

    def redirect(self, fd: int, to: int) -> None:
        """Let ``fd`` stand for the open file of ``to``; whoever uses it meanwhile gets either."""

    def start_writeback(self, fd: int, offset: int, size: int) -> None:
        """Begin writing dirty pages out (size 0: to the end). Nothing is durable on return."""

    def clean(self, fd: int, offset: int, size: int) -> None:
        """Write the pages out and wait: a later store through mmap then moves the mtime.
        Not durable on return. An error here is as final as one of fsync."""

    def fsync(self, fd: int) -> None:
        """The file's data, size and xattrs are durable on return; its name is not."""

    def fsync_dir(self, fd: int) -> None:
        """Every name made in or removed from the directory before is durable on return."""

    def sync_all(self, fd: int) -> None:
        """Everything on the filesystem of ``fd`` is durable on return."""

    def rename(self, at: int, name: str, to: int, target: str) -> None: ...
    def exchange(self, at: int, name: str, to: int, target: str) -> None:
        """Swap two names in one step. Linux."""

    def link(self, at: int, name: str, to: int, target: str) -> None: ...
    def unlink(self, at: int, name: str) -> None: ...
    def mkdir(self, at: int, name: str, mode: int) -> None: ...
    def rmdir(self, at: int, name: str) -> None: ...

    def getxattr(self, fd: int, key: str) -> bytes | None: ...
    def setxattr(self, fd: int, key: str, value: bytes) -> None: ...
    def removexattr(self, fd: int, key: str) -> None: ...
    def copy_metadata(self, source: int, target: int, skip: str) -> None:
        """Give ``target`` the owner, mode, ACL, label, access time and xattrs of ``source``,
        less ``skip``; it grants nobody more than ``source`` does."""

    def now_ns(self) -> int: ...
    def step(self, name: str) -> None:
        """A commit has reached this step of the protocol. Nothing is done here: a harness around
        the filesystem counts steps, or kills the process at one."""


_libc = ctypes.CDLL(None, use_errno=True)
_SYNC_WAIT_BEFORE, _SYNC_WRITE, _SYNC_WAIT_AFTER = 1, 2, 4
_FICLONE, _FIDEDUPERANGE, _FS_IOC_FIEMAP = 0x40049409, 0xC0189436, 0xC020660B
_DEDUPE = struct.Struct("=QQHHIqQQiI")  # with room for one target
_DEDUPE_BYTES = 16 << 20  # more in one call is cut short
_DEDUPE_SAME = 0
_FIEMAP, _FIEMAP_EXTENT, _FIEMAP_BATCH = struct.Struct("=QQIIII"), struct.Struct("=QQQ16xI12x"), 128
_EXTENT_LAST, _EXTENT_SHARED = 0x1, 0x2000
_EXTENT_NO_PLACE = 0x2 | 0x4 | 0x8 | 0x100 | 0x200 | 0x800  # from UNKNOWN to UNWRITTEN
_RENAME_EXCHANGE = 2
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW = -100, 0x100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # in tv_nsec
NOW = -(1 << 63)  # a time
_BTRFS = 0x9123683E
_KNOWN = frozenset({0xEF53, 0x58465342, _BTRFS, 0xF2F52010})  # ext4, XFS, btrfs, f2fs
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}  # no function in libc
_IOPRIO_THREAD, _IOPRIO_IDLE = 1, 3 << 13


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
            check(_libc.syncfs(fd))

    def rename(self, at: int, name: str, to: int, target: str) -> None:
        os.rename(name, target, src_dir_fd=at, dst_dir_fd=to)

    def exchange(self, at: int, name: str, to: int, target: str) -> None:
        names = os.fsencode(name), os.fsencode(target)
        check(_libc.renameat2(at, names[0], to, names[1], _RENAME_EXCHANGE))

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


def spare_access_time(fd: int) -> None:
    """Reading by it moves no access time from here on, where that is to be had."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # for the owner alone
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NOATIME)


def give(target: int, old: Status) -> int:
    """Give ``target`` the owner and group of ``old``, as far as the process may; the mode bits
    that it may keep.
    Without rights the writer owns it, and what was meant for another group is for nobody."""
    try:
        os.fchown(target, old.st_uid, old.st_gid)
        return _ALL_BITS
    except PermissionError:
        pass
    try:
        os.fchown(target, -1, old.st_gid)
        return _ALL_BITS & ~(stat_module.S_ISUID | stat_module.S_ISGID)
    except PermissionError:
        return _ALL_BITS & ~(stat_module.S_ISUID | stat_module.S_ISGID | stat_module.S_IRWXG)


def _sync_file_range(fd: int, offset: int, size: int, flags: int) -> None:
    check(_libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), flags))


def check(result: int) -> None:
    """Raise the error that a call through ctypes has left in errno."""
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _fs_type(fd: int) -> int:
    """``f_type`` of statfs(2): its first word; Python's ``statvfs`` leaves it out."""
    buffer = (ctypes.c_long * 32)()
    return int(buffer[0]) if _libc.fstatfs(fd, ctypes.byref(buffer)) == 0 else 0


# --- conveniences over the protocol or the platform, for the store and the commands --------------


def is_regular(status: Status) -> bool:
    return stat_module.S_ISREG(status.st_mode)


def is_directory(status: Status) -> bool:
    return stat_module.S_ISDIR(status.st_mode)


def open_directory(path: str) -> int:
    """An open descriptor of ``path``, symlinks followed (it is the user's own argument)."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def allocate(fd: int, mode: int, offset: int, size: int) -> None:
    """fallocate(2) with its modes. Linux."""
    check(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)))


def set_times(
    path: str, atime_ns: int | None, mtime_ns: int | None, *, at: int | None = None
) -> None:
    """utimensat(2); ``NOW`` is the kernel's clock, None keeps. A name in the directory ``at`` is
    not followed if it is a symlink. Linux."""
    times = (ctypes.c_long * 4)(*_timespec(atime_ns), *_timespec(mtime_ns))
    where, flags = (_AT_FDCWD, 0) if at is None else (at, _AT_SYMLINK_NOFOLLOW)
    check(_libc.utimensat(where, os.fsencode(path), times, flags))


def touch(fd: int) -> None:
    """Move mtime and ctime to the present, as a change would; the atime stays. Linux."""
    check(_libc.futimens(fd, (ctypes.c_long * 4)(*_timespec(None), *_timespec(NOW))))


def touch_status(fd: int) -> None:
    """Move the ctime to the present, as a rename does."""
    os.fchmod(fd, stat_module.S_IMODE(os.fstat(fd).st_mode))


def _timespec(ns: int | None) -> tuple[int, int]:
    if ns is None or ns == NOW:
        return 0, UTIME_OMIT if ns is None else UTIME_NOW
    return ns // 10**9, ns % 10**9


def duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def try_lock(fd: int) -> bool:
    """Take the exclusive flock(2) of ``fd`` for this open file, without waiting."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def opened(fs: FileSystem, at: int, name: str, flags: int) -> Iterator[int]:
    fd = fs.open(at, name, flags)
    try:
        yield fd
    finally:
        fs.close(fd)


def steps(path: str) -> list[str]:
    """The names of a path that leads from the root to something below it. Raises OSError (EINVAL)
    for what may lead elsewhere."""
    names = path.split("/")
    if not names[-1] or {".", ".."} & set(names):
        raise OSError(errno.EINVAL, "not a path within the directory", path)
    return [name for name in names if name]


@contextlib.contextmanager
def place(fs: FileSystem, root: int, path: str) -> Iterator[tuple[int, str]]:
    """The directory of ``path`` (relative to ``root``) opened, and the name in it."""
    *folders, name = steps(path)
    at = fs.open(root, ".", DIRECTORY)
    try:
        for step in folders:
            below = fs.open(at, step, DIRECTORY)
            fs.close(at)
            at = below
        yield at, name
    finally:
        fs.close(at)


def allocated_bytes(status: Status) -> int:
    """What it takes on the disk; ``st_blocks`` counts in 512 bytes whatever a block is."""
    return status.st_blocks * 512


def yield_disk() -> None:
    """Let the calling thread wait for the disk behind everybody else. Linux. Not for the processor:
    all threads would wait for one that holds the interpreter's lock."""
    number = _IOPRIO_SET.get(os.uname().machine) if sys.platform == "linux" else None
    if number is not None:
        _libc.syscall(number, _IOPRIO_THREAD, 0, _IOPRIO_IDLE)


def cpu_count() -> int:
    return os.cpu_count() or 1


def host_name() -> str:
    return os.uname().nodename


def process_id() -> int:
    return os.getpid()


def read_text(path: str) -> str:
    """A list or a setting of the user's. Raises OSError."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


@contextlib.contextmanager
def new_file(path: str) -> Iterator[int]:
    """A file of the user's that was not there, open for writing; it goes where writing it fails.
    Raises FileExistsError, also for a symlink."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield fd
        finally:
            os.close(fd)
    except BaseException:
        os.unlink(path)
        raise


def real_path(path: str) -> str:
    """Absolute and without symlinks; need not exist. By the kernel, which asks nothing of the mount
    that stands there: its server may be stuck."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            found = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        if found.startswith("/") and not found.endswith(" (deleted)"):
            return found
    return os.path.realpath(path)
