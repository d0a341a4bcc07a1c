"""A mount namespace of one's own: mount(2) without rights on the machine.

Whoever may make a user namespace has CAP_SYS_ADMIN in it, and with it mounts FUSE in a mount
namespace that belongs to it. Nobody outside sees the mount, and it ends with its last process.
Inside exist, under their own numbers, the caller's user and group, and those of its other groups
that ``newgidmap`` grants (/etc/subgid). Its process ids are those of the outside, so that ``/proc``
says the truth about them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable

from ckptfs.disk import osfs
from ckptfs.errors import CannotServe

from ..processes import writers

_APART = ("ns/user", "ns/mnt", "ns/pid", "root")
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_libc = ctypes.CDLL(None, use_errno=True)


def enter_own(has_groups: Callable[[], bool]) -> bool:
    """Give this process, which must have one thread, a mount namespace of its own: as it is where
    it may have one, else within a user namespace. Whether it stays in its user namespace.
    ``has_groups`` is called within a new one: whether its groups were mapped from outside.

    Raises CannotServe where neither is allowed.
    """
    try:
        stays = _may_unshare_mounts()
        if not stays:
            _enter_user_namespace(has_groups)
        osfs.check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))
    except OSError as error:
        raise CannotServe(
            f"no user namespace may be made here ({error.strerror}): allow it (sysctl "
            "user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns; in a container its seccomp profile), "
            "or use `ckptfs mount` as root or with fusermount3"
        ) from None
    return stays


def is_at_home(pid: int) -> bool:
    """Whether that thread, which waits for us, is in the namespaces of this process and under its
    root: so that what it may do and what it calls by a path is what we do by it. False where it
    cannot be told: of another user's thread without CAP_SYS_PTRACE, too."""
    if pid <= 0 or not writers.proc_is_ours():
        return False
    try:
        return all(_link(str(pid), what) == _link("self", what) for what in _APART)
    except OSError:
        return False


def _link(pid: str, what: str) -> str:
    return os.readlink(f"/proc/{pid}/{what}")  # the root may lie in the mount: it is not asked


def _may_unshare_mounts() -> bool:
    return os.geteuid() == 0 and _libc.unshare(_CLONE_NEWNS) == 0


def _enter_user_namespace(has_groups: Callable[[], bool]) -> None:
    uid, gid = os.geteuid(), os.getegid()
    osfs.check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
    if not has_groups():
        _write("/proc/self/setgroups", "deny")  # else an unprivileged process may not map its group
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")


def map_groups(pid: int) -> frozenset[int]:
    """From outside: map what may be mapped of the caller's groups into the new user namespace of
    ``pid``. Returns them; none where its own is all that may be."""
    gid, helper = os.getegid(), shutil.which("newgidmap")
    others = {group for group in os.getgroups() if group != gid and _is_granted(group)}
    if helper is None or not others:
        return frozenset()
    groups = sorted({gid, *others})
    ranges = [str(number) for group in groups for number in (group, group, 1)]
    done = subprocess.run([helper, str(pid), *ranges], capture_output=True, check=False)
    return frozenset(groups if done.returncode == 0 else ())


def _is_granted(group: int) -> bool:
    """By /etc/subgid, which names users by name or number."""
    try:
        lines = osfs.read_text("/etc/subgid").splitlines()
    except OSError:
        return False
    user = {str(os.getuid())}
    with contextlib.suppress(KeyError):
        user.add(pwd.getpwuid(os.getuid()).pw_name)
    for line in lines:
        name, *numbers = line.split(":")
        if name in user and len(numbers) == 2 and all(map(str.isdigit, numbers)):
            first, count = map(int, numbers)
            if first <= group < first + count:
                return True
    return False


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
