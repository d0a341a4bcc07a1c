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

import dataclasses
import errno
import os
import stat
from typing import Any

from ..operations.base import Entry
from ..operations.whole import Operations
from ..view.identity import lstat
from ..view.model import Caller, Directory, File, Virtual
from . import wire
from .session import Session, names

_FOR_EXECUTION = 0x20  # FMODE_EXEC, which the kernel leaves among the flags of an open


class OwnRightsSession(Session):
    """``groups`` are those that the user namespace has under their own numbers."""

    wanted = Session.wanted & ~wire.POSIX_ACL  # with which the kernel would be the judge

    def __init__(
        self, device: int, operations: Operations, *, passthrough: bool, groups: frozenset[int]
    ) -> None:
        super().__init__(device, operations, passthrough=passthrough)
        self._groups, self._gid = groups, os.getegid()

    # --- what is shown ---------------------------------------------------------------------------

    def _shown(self, status: os.stat_result, inode: int) -> bytes:
        gid = status.st_gid if status.st_gid in self._groups else self._gid
        return wire.attr(status, inode, (self._uid, gid))

    def _entry(self, entry: Entry) -> bytes:
        return super()._entry(dataclasses.replace(entry, name_lasts=False))

    # --- what is allowed -------------------------------------------------------------------------

    def _require(self, nodeid: int, mask: int) -> None:
        if not self._allows(nodeid, mask):
            raise PermissionError(errno.EACCES, "permission denied")

    def _allows(self, nodeid: int, mask: int) -> bool:
        with self.ops.lock:  # no version ends in here
            node = self.ops.nodes.get(nodeid)
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

    def _require_change(self, parent_id: int, name: str) -> None:
        """Whether the name may be made, taken away or given to another inode."""
        self._require(parent_id, os.W_OK | os.X_OK)
        parent = self.ops.nodes.get(parent_id)
        if isinstance(parent, Directory):
            above, there = os.fstat(parent.fd), lstat(parent.fd, name)
            sticky = above.st_mode & stat.S_ISVTX and self._uid not in (0, above.st_uid)
            if sticky and there is not None and there.st_uid != self._uid:
                raise PermissionError(errno.EPERM, "another user's, in a sticky directory")

    def _require_writing(self, nodeid: int, caller: Caller) -> None:
        """Whether the file may be written. A version replaces it, and it is read for that."""
        node = self.ops.nodes.get(nodeid)
        if not isinstance(node, File) or node.parent is None:
            return
        if node.version is not None and caller.pid in node.version.expected:
            return  # sent back to open the version that was begun for it
        self._require(nodeid, os.R_OK | os.W_OK)
        if node.version is None and not self.ops.in_place(node.parent, node.name):
            self._require_change(node.parent.id, node.name)

    # --- requests --------------------------------------------------------------------------------

    def _access(self, nodeid: int, caller: Caller, body: memoryview) -> None:
        self._require(nodeid, wire.ACCESS_IN.unpack_from(body)[0])

    def _lookup(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        self._require(nodeid, os.X_OK)
        return super()._lookup(nodeid, caller, body)

    def _opendir(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        self._require(nodeid, os.R_OK)
        return super()._opendir(nodeid, caller, body)

    def _open(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        flags, _ = wire.OPEN_IN.unpack_from(body)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._require_writing(nodeid, caller)
        else:
            self._require(nodeid, os.R_OK | (os.X_OK if flags & _FOR_EXECUTION else 0))
        return super()._open(nodeid, caller, body)

    def _create(self, nodeid: int, caller: Caller, body: memoryview) -> bytes:
        self._require_change(nodeid, names(body[wire.CREATE_IN.size :])[0])
        return super()._create(nodeid, caller, body)

    def _unlink(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        self._require_change(nodeid, names(body)[0])
        return super()._unlink(nodeid, caller, body)

    def _rename(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        (target,) = wire.RENAME_IN.unpack_from(body)
        self._require_rename(nodeid, target, names(body[wire.RENAME_IN.size :]))
        return super()._rename(nodeid, caller, body)

    def _rename2(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        target, _, _ = wire.RENAME2_IN.unpack_from(body)
        self._require_rename(nodeid, target, names(body[wire.RENAME2_IN.size :]))
        return super()._rename2(nodeid, caller, body)

    def _require_rename(self, nodeid: int, target: int, pair: list[str]) -> None:
        for parent_id, name in zip((nodeid, target), pair, strict=True):
            self._require_change(parent_id, name)

    def _setattr(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        fields = wire.SETATTR_IN.unpack_from(body)
        if fields[0] & wire.FATTR_SIZE and not fields[0] & wire.FATTR_FH:
            self._require_writing(nodeid, caller)
        return super()._setattr(nodeid, caller, body)

    def _setxattr(self, nodeid: int, caller: Caller, body: memoryview) -> Any:
        if isinstance(self.ops.nodes.get(nodeid), File):  # a command, perhaps
            self._require(nodeid, os.W_OK)
        return super()._setxattr(nodeid, caller, body)
