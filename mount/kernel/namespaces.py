"""A mount namespace of one's own: mount(2) without rights on the machine.

Whoever may make a user namespace has CAP_SYS_ADMIN in it, and with it mounts FUSE in a mount
namespace that belongs to it. Nobody outside sees the mount, and it ends with its last process.
Only the caller's own user and group exist inside, under their own numbers; its process ids are
those of the outside, so that ``/proc`` says the truth about them.
"""

from __future__ import annotations

import ctypes
import os

from ckptfs import osfs
from ckptfs.errors import CannotServe

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_libc = ctypes.CDLL(None, use_errno=True)


def enter_own() -> bool:
    """Give this process, which must have one thread, a mount namespace of its own: as it is where
    it may have one, else within a user namespace. Whether it stays in its user namespace.

    Raises CannotServe where neither is allowed.
    """
    try:
        stays = _may_unshare_mounts()
        if not stays:
            _enter_user_namespace()
        osfs.check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))
    except OSError as error:
        raise CannotServe(
            f"no user namespace may be made here ({error.strerror}): allow it (sysctl "
            "user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns; in a container its seccomp profile), "
            "or use `ckptfs mount` as root or with fusermount3"
        ) from None
    return stays


def _may_unshare_mounts() -> bool:
    return os.geteuid() == 0 and _libc.unshare(_CLONE_NEWNS) == 0


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    osfs.check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
    _write("/proc/self/setgroups", "deny")  # else an unprivileged process may not map its group
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
