"""What the platform has beside the calls of the filesystem protocol, and conveniences over it.

With ``real`` the only module below ``mount/`` that calls ``os``, ``fcntl`` or the xattr calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat as stat_module
import sys
from collections.abc import Iterator

from ckptfs.disk.filesystem import FileSystem, Status

O_RDONLY, O_RDWR, O_WRONLY = os.O_RDONLY, os.O_RDWR, os.O_WRONLY
O_CREAT, O_EXCL, O_TRUNC, O_APPEND = os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND
NOFOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | NOFOLLOW
NEVER_XATTR = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP})
NO_XATTR = NEVER_XATTR | {errno.ENOSPC, errno.E2BIG, errno.EPERM}  # or not for this file
_ALL_BITS = 0o7777
libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW = -100, 0x100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # in tv_nsec
NOW = -(1 << 63)  # a time
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}  # no function in libc
_IOPRIO_THREAD, _IOPRIO_IDLE = 1, 3 << 13


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


def check(result: int) -> None:
    """Raise the error that a call through ctypes has left in errno."""
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_regular(status: Status) -> bool:
    return stat_module.S_ISREG(status.st_mode)


def is_directory(status: Status) -> bool:
    return stat_module.S_ISDIR(status.st_mode)


def open_directory(path: str) -> int:
    """An open descriptor of ``path``, symlinks followed (it is the user's own argument)."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def allocate(fd: int, mode: int, offset: int, size: int) -> None:
    """fallocate(2) with its modes. Linux."""
    check(libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)))


def set_times(
    path: str, atime_ns: int | None, mtime_ns: int | None, *, at: int | None = None
) -> None:
    """utimensat(2); ``NOW`` is the kernel's clock, None keeps. A name in the directory ``at`` is
    not followed if it is a symlink. Linux."""
    times = (ctypes.c_long * 4)(*_timespec(atime_ns), *_timespec(mtime_ns))
    where, flags = (_AT_FDCWD, 0) if at is None else (at, _AT_SYMLINK_NOFOLLOW)
    check(libc.utimensat(where, os.fsencode(path), times, flags))


def touch(fd: int) -> None:
    """Move mtime and ctime to the present, as a change would; the atime stays. Linux."""
    check(libc.futimens(fd, (ctypes.c_long * 4)(*_timespec(None), *_timespec(NOW))))


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
        libc.syscall(number, _IOPRIO_THREAD, 0, _IOPRIO_IDLE)


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
