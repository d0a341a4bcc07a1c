"""Attributes of a node, and of the filesystem; extended ones, among them the commands."""

from __future__ import annotations

import errno
import os
from typing import Any

from ckptfs.disk import osfs

from ...operations import attributes, commands, looking, xattrs
from ...view import acl
from ...view.answers import Change, Slow
from ...view.identity import CONTROL_ID
from ...view.model import Caller
from .. import namespaces, wire
from ..again import NO_REPLY
from ..context import Kernel
from .shapes import names_in, sized, then


def get_attributes(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    flags, _, handle = wire.GETATTR_IN.unpack_from(body)
    status = looking.getattr(kernel.mount, nodeid, handle if flags & wire.GETATTR_FH else None)
    return kernel.answers.attr(nodeid, status)


def set_attributes(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    fields = wire.SETATTR_IN.unpack_from(body)
    valid, handle = fields[0], fields[2]
    result = attributes.setattr(
        kernel.mount, nodeid, handle if valid & wire.FATTR_FH else None, _change(valid, fields)
    )
    return then(result, lambda status: kernel.answers.attr(nodeid, status))


def statfs(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    s = attributes.statfs(kernel.mount)
    return wire.STATFS_OUT.pack(
        s.f_blocks,
        s.f_bfree,
        s.f_bavail,
        s.f_files,
        s.f_ffree,
        s.f_bsize,
        s.f_namemax,
        s.f_frsize,
        0,
    )


def getxattr(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    size, _ = wire.GETXATTR_IN.unpack_from(body)
    key = names_in(body[wire.GETXATTR_IN.size :])[0]
    try:
        return sized(xattrs.getxattr(kernel.mount, nodeid, key), size)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP and key in acl.KEYS:
            raise OSError(errno.ENODATA, "no ACLs here") from None  # asked on every path walk
        raise


def listxattr(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    size, _ = wire.GETXATTR_IN.unpack_from(body)
    keys = xattrs.listxattr(kernel.mount, nodeid, caller)
    return sized(b"".join(os.fsencode(key) + b"\0" for key in keys), size)


def setxattr(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> object:
    size, flags = wire.SETXATTR_IN.unpack_from(body)
    key, _, value = bytes(body[wire.SETXATTR_IN.size :]).partition(b"\0")
    if os.fsdecode(key) == commands.RESTART and nodeid == CONTROL_ID and kernel.restart:
        # It names the program that we become: root of a container is not to choose it.
        if caller.uid not in (0, kernel.uid) or not namespaces.is_at_home(caller.pid):
            raise PermissionError(errno.EPERM, "not for everybody")
        kernel.restart(caller.request, value[:size])
        return NO_REPLY
    return xattrs.setxattr(kernel.mount, nodeid, os.fsdecode(key), value[:size], flags, caller)


def removexattr(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None] | None:
    return xattrs.removexattr(kernel.mount, nodeid, names_in(body)[0])


def _change(valid: int, fields: tuple[int, ...]) -> Change:
    _, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields
    known = (
        wire.FATTR_MODE
        | wire.FATTR_UID
        | wire.FATTR_GID
        | wire.FATTR_SIZE
        | wire.FATTR_ATIME
        | wire.FATTR_MTIME
    )
    new_atime = osfs.NOW if valid & wire.FATTR_ATIME_NOW else _time(atime, atime_ns)
    new_mtime = osfs.NOW if valid & wire.FATTR_MTIME_NOW else _time(mtime, mtime_ns)
    return Change(
        size=size if valid & wire.FATTR_SIZE else None,
        mode=mode if valid & wire.FATTR_MODE else None,
        uid=uid if valid & wire.FATTR_UID else None,
        gid=gid if valid & wire.FATTR_GID else None,
        atime_ns=new_atime if valid & wire.FATTR_ATIME else None,
        mtime_ns=new_mtime if valid & wire.FATTR_MTIME else None,
        # valid without any attribute is the kernel's order to clear set-id bits (KILLPRIV_V2)
        drop_set_id=bool(valid & wire.FATTR_KILL_SUIDGID) or not valid & known,
    )


def _time(seconds: int, nanoseconds: int) -> int:
    return wire.signed64(seconds) * 10**9 + nanoseconds
