"""A mount in place of a dead one, without a moment in which the plain directory shows.

The daemon was killed, its mount answers ENOTCONN. Taken away first, it would let programs that try
again write to the plain directory, unprotected. So the new mount is put beneath the dead one, and
that goes once the new one serves. Needs Linux 6.5 (MOVE_MOUNT_BENEATH) and CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading

from ckptfs.disk import osfs
from ckptfs.errors import CannotServe

_libc = ctypes.CDLL(None, use_errno=True)
# linux/mount.h, and the numbers that these calls have on every architecture
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_CLOEXEC, _NOSUID, _NODEV = 1, 2, 4
_FROM_EMPTY_PATH, _BENEATH = 0x4, 0x200
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x20000, 0x4000, 0x40000, 2
_AT_FDCWD = -100


def covered(mountpoint: str) -> int:
    """A descriptor of what the topmost mount at ``mountpoint`` hides. Raises CannotServe."""
    found: list[int | OSError] = []

    def look() -> None:
        """In a mount namespace that ends with the thread; descriptors are the process's."""
        try:
            _check(_libc.unshare(_CLONE_NEWNS))
            _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
            _check(_libc.umount2(os.fsencode(mountpoint), _MNT_DETACH))
            found.append(osfs.open_directory(mountpoint))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise CannotServe(f"{mountpoint}: cannot look below its dead mount: {found[0].strerror}")
    return found[0]


def mount_beneath(
    mountpoint: str, device: int, strings: dict[str, str], flags: tuple[str, ...]
) -> bool:
    """Mount FUSE on ``device`` beneath the topmost mount at ``mountpoint``, which goes on to be
    what programs meet. False where the kernel cannot. Raises OSError."""
    context = mounted = -1
    try:
        context = _call(_FSOPEN, b"fuse", _CLOEXEC)
        for key, value in {**strings, "fd": str(device)}.items():
            _call(_FSCONFIG, context, _SET_STRING, key.encode(), os.fsencode(value), 0)
        for flag in flags:
            _call(_FSCONFIG, context, _SET_FLAG, flag.encode(), None, 0)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        mounted = _call(_FSMOUNT, context, _CLOEXEC, _NOSUID | _NODEV)
        to, how = os.fsencode(mountpoint), _FROM_EMPTY_PATH | _BENEATH
        _call(_MOVE_MOUNT, mounted, b"", _AT_FDCWD, to, how)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL):
            return False
        raise
    finally:
        for fd in (context, mounted):
            if fd >= 0:
                os.close(fd)
    return True


def _call(number: int, *arguments: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
