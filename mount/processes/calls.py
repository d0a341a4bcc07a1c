"""What a request does not say of the system call that it was made by. Linux.

Which descriptor, where libfuse hands over no more than a path; which kind of lock (``locks.py``).
While its request is unanswered, a thread stands in a system call that ``/proc`` shows: with the
descriptor as its first argument (fstat, fchmod, fsetxattr), or with a link of it as the path.
Asking takes the rights of a debugger: root has them; without root a process of the same user may
be asked, unless Yama forbids it.

Nothing here makes a request to another FUSE server, which might never answer. Any thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import stat
import struct
import threading
import time

from . import writers

_PROBE = 0xCF01  # an ioctl without argument that nobody has
_SYS_PIDFD_GETFD = 438  # one number on all architectures
_AT_FDCWD, _AT_STATX_DONT_SYNC = -100, 0x4000
_STATX = struct.Struct("=28xH106xII112x")  # mode, major and minor number of the device
_TRIES, _PAUSE_S = 100, 0.0002
_NUMBERS = range(1 << 20)  # descriptors; what is above are addresses
_PATH_BYTES = 4096
_OFD_LOCKS = range(36, 39)  # F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW
_LINK = re.compile(rb"/(?:proc/(?:self|thread-self)|dev)/fd/(\d{1,7})\Z")
_STANDARD = {b"/dev/stdin": 0, b"/dev/stdout": 1, b"/dev/stderr": 2}

_libc = ctypes.CDLL(None, use_errno=True)


class Unknown(Exception):
    """The call of a thread cannot be seen."""


def descriptor(tid: int, mountpoint: str, name: str = "") -> int | None:
    """The number of the descriptor that the call of thread ``tid`` names, if it is one of a file
    on the mount; None if the call names a path, one that ends in ``name`` if that is given: a
    symlink of another name may lead to a descriptor. Raises Unknown."""
    if not hasattr(_libc, "statx") or writers.thread_group(tid) is None:
        raise Unknown
    first, second = _arguments(tid)
    if _is_file(tid, first, mountpoint):
        return first
    path = _string(tid, first) or _string(tid, second)
    link = _LINK.match(path)
    number = int(link[1]) if link else _STANDARD.get(path, -1)
    if _is_file(tid, number, mountpoint):
        return number
    if not path or (name and os.path.basename(path) != os.fsencode(name)):
        raise Unknown
    return None


def asks_for_ofd(tid: int) -> bool:
    """Whether it is an OFD lock that thread ``tid`` waits for in fcntl; no if it cannot be seen."""
    try:
        return _arguments(tid)[1] in _OFD_LOCKS
    except Unknown:
        return False


def _arguments(tid: int) -> tuple[int, int]:
    for _ in range(_TRIES):
        try:
            with open(f"/proc/{tid}/syscall", "rb") as file:
                fields = file.read().split()
        except OSError:
            raise Unknown from None
        if fields != [b"running"]:
            break
        time.sleep(_PAUSE_S)  # it is on its way to sleep: its request has no answer
    if len(fields) < 7:
        raise Unknown
    return int(fields[1], 16), int(fields[2], 16)


def _is_file(tid: int, number: int, mountpoint: str) -> bool:
    if number not in _NUMBERS:
        return False
    try:
        mode, device = _status(f"/proc/{tid}/fd/{number}")
        return stat.S_ISREG(mode) and device == _status(mountpoint)[1]
    except FileNotFoundError:
        return False
    except OSError:
        raise Unknown from None


def _status(path: str) -> tuple[int, tuple[int, int]]:
    """Mode and device, as the kernel has them."""
    buffer = ctypes.create_string_buffer(_STATX.size)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, 0, buffer):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mode, *device = _STATX.unpack(buffer.raw)
    return mode, (device[0], device[1])


def _string(tid: int, address: int) -> bytes:
    if address in _NUMBERS:
        return b""
    try:
        fd = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise Unknown from None
    try:
        return os.pread(fd, _PATH_BYTES, address).split(b"\0", 1)[0]
    except (OSError, OverflowError):  # no address
        return b""
    finally:
        os.close(fd)


class Probes:
    """Which open file a descriptor of another process stands for: an ioctl on a duplicate of it
    comes to the session as a request with the handle. No lock of the inode is taken for it, which
    whoever waits for the answer may hold."""

    def __init__(self) -> None:
        self._found: dict[int, int | None] = {}  # by the thread that looks

    def look(self, tid: int, number: int) -> int | None:
        """The handle; None for what the session did not open. Raises Unknown."""
        fd, me = _duplicate(tid, number), threading.get_native_id()
        self._found[me] = None
        try:
            with contextlib.suppress(OSError):
                fcntl.ioctl(fd, _PROBE)
            return self._found[me]
        finally:
            del self._found[me]
            # A close does wait for such locks.
            threading.Thread(target=os.close, args=(fd,), daemon=True).start()

    def answer(self, tid: int, handle_id: int) -> None:
        """At every ioctl, by thread ``tid``."""
        if tid in self._found:
            self._found[tid] = handle_id


def _duplicate(tid: int, number: int) -> int:
    try:
        pidfd = os.pidfd_open(writers.thread_group(tid) or 0)
    except OSError:
        raise Unknown from None
    try:
        fd: int = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if fd < 0:
        raise Unknown
    return fd
