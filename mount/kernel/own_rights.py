"""A session within a user namespace: the daemon is the judge of every access.

There the kernel cannot be. Ids that the namespace does not have are to it no ids at all, and it
refuses whatever would write to their inodes (seen: EACCES, EOVERFLOW), owner or group. So the
kernel is shown ids that it knows, and is told not to judge (no ``default_permissions``). Every
process that it lets through is the caller's, with the rights that the daemon itself has outside of
the namespace, supplementary groups too. So each request may do what the daemon may, by access(2)
ahead of it: what the commit will need is asked when a file is opened, not when it is closed.

No name is cached: every lookup is to find that the directory may be searched.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from ..view.identity import lstat
from ..view.model import Caller, Directory, File, Virtual
from . import judge, wire
from .context import Handler, Kernel
from .handlers import HANDLERS, attributes, directories, files, names
from .handlers.shapes import names_in
from .judge import Judge
from .wire import Op

_FOR_EXECUTION = 0x20  # FMODE_EXEC, which the kernel leaves among the flags of an open


def _require(kernel: Kernel, nodeid: int, mask: int) -> None:
    if not _allows(kernel, nodeid, mask):
        raise PermissionError(errno.EACCES, "permission denied")


def _allows(kernel: Kernel, nodeid: int, mask: int) -> bool:
    with kernel.mount.lock:  # no version ends in here
        node = kernel.mount.nodes.get(nodeid)
        if isinstance(node, Virtual):
            return not mask & os.W_OK
        if isinstance(node, File) and (node.version is None or not node.version.active):
            if node.parent is None or lstat(node.parent.fd, node.name) is None:
                return True  # the request itself has the answer
            return os.access(node.name, mask, dir_fd=node.parent.fd)
        if isinstance(node, Directory):
            directory = node.fd
            return os.access(directory.link(), mask)
        assert isinstance(node, File) and node.version is not None
        return os.access(f"/proc/self/fd/{node.version.staged.fd}", mask)


def _require_change(kernel: Kernel, parent_id: int, name: str) -> None:
    """Whether the name may be made, taken away or given to another inode."""
    _require(kernel, parent_id, os.W_OK | os.X_OK)
    parent = kernel.mount.nodes.get(parent_id)
    if isinstance(parent, Directory):
        above, there = os.fstat(parent.fd), _standing(kernel, parent, name)
        sticky = above.st_mode & stat.S_ISVTX and kernel.uid not in (0, above.st_uid)
        if sticky and there is not None and there.st_uid != kernel.uid:
            raise PermissionError(errno.EPERM, "another user's, in a sticky directory")


def _standing(kernel: Kernel, parent: Directory, name: str) -> os.stat_result | None:
    with kernel.mount.lock:
        pending = kernel.mount.sets.at(parent, name)
        return lstat(parent.fd, name) if pending is None else os.fstat(pending.node.fd)


def _require_writing(kernel: Kernel, nodeid: int, caller: Caller) -> None:
    """Whether the file may be written. A version replaces it, and it is read for that."""
    node = kernel.mount.nodes.get(nodeid)
    if not isinstance(node, File) or node.parent is None:
        return
    if node.version is not None and caller.pid in node.version.expected:
        return  # sent back to open the version that was begun for it
    _require(kernel, nodeid, os.R_OK | os.W_OK)
    if node.version is None and not kernel.mount.in_place(node.parent, node.name):
        _require_change(kernel, node.parent.id, node.name)


def _access(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> None:
    _require(kernel, nodeid, wire.ACCESS_IN.unpack_from(body)[0])


def _lookup(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    _require(kernel, nodeid, os.X_OK)
    return names.lookup(kernel, nodeid, caller, body)


def _opendir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    _require(kernel, nodeid, os.R_OK)
    return directories.opendir(kernel, nodeid, caller, body)


def _open(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    flags, _ = wire.OPEN_IN.unpack_from(body)
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        _require_writing(kernel, nodeid, caller)
    else:
        _require(kernel, nodeid, os.R_OK | (os.X_OK if flags & _FOR_EXECUTION else 0))
    return files.open_file(kernel, nodeid, caller, body)


def _create(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    _require_change(kernel, nodeid, names_in(body[wire.CREATE_IN.size :])[0])
    return files.create(kernel, nodeid, caller, body)


def _unlink(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    _require_change(kernel, nodeid, names_in(body)[0])
    return names.unlink(kernel, nodeid, caller, body)


def _rename(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    (target,) = wire.RENAME_IN.unpack_from(body)
    _require_rename(kernel, nodeid, target, names_in(body[wire.RENAME_IN.size :]))
    return names.rename(kernel, nodeid, caller, body)


def _rename2(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    target, _, _ = wire.RENAME2_IN.unpack_from(body)
    _require_rename(kernel, nodeid, target, names_in(body[wire.RENAME2_IN.size :]))
    return names.rename2(kernel, nodeid, caller, body)


def _require_rename(kernel: Kernel, nodeid: int, target: int, pair: list[str]) -> None:
    for parent_id, name in zip((nodeid, target), pair, strict=True):
        _require_change(kernel, parent_id, name)


def _setattr(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    fields = wire.SETATTR_IN.unpack_from(body)
    if fields[0] & wire.FATTR_SIZE and not fields[0] & wire.FATTR_FH:
        _require_writing(kernel, nodeid, caller)
    return attributes.set_attributes(kernel, nodeid, caller, body)


def _setxattr(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    if isinstance(kernel.mount.nodes.get(nodeid), File):  # a command, perhaps
        _require(kernel, nodeid, os.W_OK)
    return attributes.setxattr(kernel, nodeid, caller, body)


_JUDGED: dict[int, Handler] = {
    Op.LOOKUP: _lookup,
    Op.SETATTR: _setattr,
    Op.UNLINK: _unlink,
    Op.RENAME: _rename,
    Op.OPEN: _open,
    Op.SETXATTR: _setxattr,
    Op.OPENDIR: _opendir,
    Op.ACCESS: _access,
    Op.CREATE: _create,
    Op.RENAME2: _rename2,
}


def daemon(groups: frozenset[int]) -> Judge:
    """``groups`` are those that the user namespace has under their own numbers."""
    uid, own_gid = os.geteuid(), os.getegid()

    def shown(status: os.stat_result, inode: int) -> bytes:
        gid = status.st_gid if status.st_gid in groups else own_gid
        return wire.attr(status, inode, (uid, gid))

    wanted = judge.KERNEL.wanted & ~wire.POSIX_ACL  # with which the kernel would be the judge
    return Judge(HANDLERS | _JUDGED, wanted, shown, name_s=0)
