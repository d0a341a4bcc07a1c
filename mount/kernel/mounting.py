"""Getting a ``/dev/fuse`` descriptor mounted, and away again.

As root, and in a namespace of one's own, mount(2) is called; else ``fusermount3`` (set-uid) hands
the descriptor over a socket named in ``_FUSE_COMMFD``. Source: libfuse's ``mount.c``, Linux
``fs/fuse/inode.c`` for the options.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

from ckptfs.disk import osfs
from ckptfs.errors import CannotServe

from ..processes.mounts import FS_TYPE, MountEntry, id_of, topmost
from .beneath import mount_beneath

# Not a path: mkfs and others stat the source of every mount, and would hang on a stuck server.
_SOURCE = "ckptfs"
_MS_NOSUID, _MS_NODEV = 2, 4
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_TURN_S = 1.0
_CAP_SYS_RESOURCE = 24
_CONNECTIONS = "/sys/fs/fuse/connections"
_CAPABILITY_VERSION_3 = 0x20080522
_ADVICE = {
    False: "load the fuse module, or give the container the device (--device /dev/fuse)",
    True: "it must be open to all, as udev makes it (chmod 666 /dev/fuse)",
}
_NO_HELPER = (
    "fusermount3 is not installed, and only root mounts without it; install the package fuse3, or "
    "use `ckptfs run DIR -- COMMAND`, which needs neither"
)
_libc = ctypes.CDLL(None, use_errno=True)


def mount(mountpoint: str, *, allow_other: bool) -> int:
    """Mount on ``mountpoint``; the descriptor to serve. Raises CannotServe."""
    if os.geteuid() == 0:
        return mount_directly(mountpoint)
    return _mount_by_helper(mountpoint, allow_other=allow_other)


def mount_in_place_of(mountpoint: str) -> int | None:
    """Mount as root beneath the dead mount at ``mountpoint``, which is to be taken away once this
    one serves; None where the kernel cannot. Raises CannotServe."""
    device, source = _device(), {"source": _SOURCE, "subtype": FS_TYPE.partition(".")[2]}
    strings = {**source, "rootmode": "40000", "user_id": "0", "group_id": "0"}
    try:
        if mount_beneath(mountpoint, device, strings, ("default_permissions", "allow_other")):
            return device
    except OSError as error:
        os.close(device)
        raise CannotServe(f"{mountpoint}: cannot mount: {error.strerror}") from None
    os.close(device)
    return None


def _device() -> int:
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise CannotServe(
            f"/dev/fuse: {error.strerror}; {_ADVICE[error.errno == errno.EACCES]}"
        ) from None


def mount_directly(mountpoint: str, options: str = "default_permissions,allow_other") -> int:
    """Needs CAP_SYS_ADMIN in the user namespace of the caller's mount namespace."""
    device = _device()
    uid, gid = os.geteuid(), os.getegid()
    given = f"fd={device},rootmode=40000,user_id={uid},group_id={gid}"
    result = _libc.mount(
        _SOURCE.encode(),
        os.fsencode(mountpoint),
        FS_TYPE.encode(),
        ctypes.c_ulong(_MS_NOSUID | _MS_NODEV),
        ",".join(filter(None, [given, options])).encode(),
    )
    if result != 0:
        code = ctypes.get_errno()
        os.close(device)
        hint = "; mounting needs CAP_SYS_ADMIN" if code == errno.EPERM else ""
        raise CannotServe(f"{mountpoint}: cannot mount: {os.strerror(code)}{hint}")
    return device


def _mount_by_helper(mountpoint: str, *, allow_other: bool) -> int:
    helper = shutil.which("fusermount3")
    if helper is None:
        raise CannotServe(_NO_HELPER)
    options = f"fsname={_SOURCE},subtype=ckptfs,default_permissions,nosuid,nodev"
    if allow_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = subprocess.run(
            [helper, "-o", options, "--", mountpoint],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise CannotServe(f"{mountpoint}: {_refusal(done.stderr)}")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _refusal(stderr: str) -> str:
    """What fusermount3 said, in one line, and what to do about it."""
    said = " ".join(stderr.split()) or "fusermount3 failed"
    for words, advice in (
        (
            "user_allow_other",
            "; write user_allow_other into /etc/fuse.conf, or leave --allow-other",
        ),
        ("/dev/fuse", f"; {_ADVICE[False]}"),
        ("Operation not permitted", "; fusermount3 must be set-uid root; else use `ckptfs run`"),
        ("determine username", "; this user id has no name here (/etc/passwd); use `ckptfs run`"),
        ("no write access", "; mount on a directory of your own"),
    ):
        if words in said:
            return said + advice
    return said


class NotOnTop(OSError):
    """The mount is not there any more, or another one covers it."""


def unmount(mount: MountEntry, *, lazy: bool = False, force: bool = False) -> None:
    """Take away this mount, and no other that its path may lead to by now. ``force`` ends the
    connection first, for root. Raises NotOnTop; OSError: EBUSY while somebody holds the mount
    (never if ``lazy``)."""
    with _one_at_a_time():
        if os.geteuid() != 0:
            _require_on_top(mount)
            _unmount_by_helper(mount.point, lazy=lazy)
        elif lazy:
            _detach(mount, _MNT_FORCE if force else 0)
        else:  # a descriptor of it would keep it busy
            _require_on_top(mount)
            _umount2(mount.point, (_MNT_FORCE if force else 0) | _UMOUNT_NOFOLLOW)


def _detach(mount: MountEntry, flags: int) -> None:
    fd = os.open(mount.point, os.O_PATH | os.O_CLOEXEC)
    try:
        if id_of(fd) != mount.id:
            raise _not_on_top(mount)
        _require_on_top(mount)
        _umount2(f"/proc/self/fd/{fd}", flags | _MNT_DETACH)
    finally:
        os.close(fd)


def _require_on_top(mount: MountEntry) -> None:
    here = topmost(mount.point)
    if here is None or (here.id, here.device) != (mount.id, mount.device):
        raise _not_on_top(mount)


def _not_on_top(mount: MountEntry) -> NotOnTop:
    return NotOnTop(errno.EINVAL, "another mount is there, or none", mount.point)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Between the look at a path and its unmounting no other of us, in this mount namespace, takes
    away what was seen there. Whoever keeps the lock is not waited for longer than a moment."""
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _TURN_S
        while not osfs.try_lock(namespace) and time.monotonic() < deadline:
            time.sleep(_TURN_S / 100)
        yield
    finally:
        os.close(namespace)


def _umount2(path: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(path), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def _unmount_by_helper(mountpoint: str, *, lazy: bool) -> None:
    helper = shutil.which("fusermount3") or "fusermount3"
    command = [helper, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        busy = "busy" in done.stderr
        code = errno.EBUSY if busy else errno.EPERM
        raise OSError(code, done.stderr.strip() or os.strerror(code), mountpoint)


def abort(mountpoint: str) -> None:
    """End the connection of the topmost mount: its requests fail with ENOTCONN. Raises
    CannotServe. Needs root, or the user who mounted it."""
    found = topmost(mountpoint)
    abort_connection(found.device if found else "")


def abort_connection(device: str) -> None:
    """As :func:`abort`, by the ``device`` of its mounts: some may be left elsewhere."""
    number = device.partition(":")[2]
    if not os.path.isdir(f"{_CONNECTIONS}/{number}"):
        _libc.mount(b"none", _CONNECTIONS.encode(), b"fusectl", ctypes.c_ulong(0), None)
    try:
        with open(f"{_CONNECTIONS}/{number}/abort", "wb") as file:
            file.write(b"1")
    except OSError as error:
        raise CannotServe(f"FUSE {number}: cannot end its connection: {error.strerror}") from None


def drop_reserve_rights() -> None:
    """Give up CAP_SYS_RESOURCE: passthrough writes run with our rights, and would otherwise go
    into root's reserved blocks and past quotas. No effect where it is not held."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # two sets of effective, permitted, inheritable
    if _libc.capget(ctypes.byref(header), ctypes.byref(data)) != 0:
        return
    for index in range(3):
        data[index] &= ~(1 << _CAP_SYS_RESOURCE) & 0xFFFFFFFF
    _libc.capset(ctypes.byref(header), ctypes.byref(data))
