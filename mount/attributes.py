"""Attributes: sizes, owners, modes, times, extended attributes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ckptfs import format as fmt
from ckptfs import osfs
from ckptfs.mount.base import Slow, T, stale
from ckptfs.mount.files import Files
from ckptfs.mount.nodes import Directory, File, Node, Virtual, identity
from ckptfs.mount.versions import Handle, Version

_SET_ID = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True)
class Change:
    """What a SETATTR asks for; None keeps. ``times`` maps the old pair to the new one."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    times: Callable[[int, int], tuple[int, int]] | None = None
    drop_set_id: bool = False

    @property
    def metadata(self) -> bool:
        asked = (self.mode, self.uid, self.gid, self.times)
        return self.drop_set_id or any(value is not None for value in asked)


class Attributes(Files):
    """Changes and queries of metadata; a size that changes without a handle is a commit."""

    @contextlib.contextmanager
    def _changing(self, node: Node, handle: Handle | None = None) -> Iterator[str]:
        """A path under /proc that names the node's inode, for calls that change its metadata."""
        self.store.committer.require_writable()
        if isinstance(node, Virtual):
            raise PermissionError(errno.EPERM, "this name belongs to ckptfs")
        if isinstance(node, Directory):
            yield f"/proc/self/fd/{node.fd}"
            return
        assert isinstance(node, File) and node.parent is not None
        with self.lock:  # a descriptor of our own: the version's is closed once it has ended
            version = node.version if node.version is not None and node.version.active else None
            if version is not None or handle is not None:
                fd = os.dup(version.staged.fd if version else handle.fd)  # type: ignore[union-attr]
            else:
                fd = os.open(node.name, os.O_PATH | osfs.NOFOLLOW, dir_fd=node.parent.fd)
        try:
            if identity(os.fstat(fd)) != node.ident:
                raise stale()
            with self.versions.metadata_change(node.parent, node.name, version):
                yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    def setattr(
        self, nodeid: int, handle_id: int | None, change: Change
    ) -> os.stat_result | Slow[os.stat_result]:
        node = self.nodes.get(nodeid)
        handle = self.handles.get(handle_id) if handle_id is not None else None
        if change.size is not None:
            return Slow(lambda: self._truncate(node, handle, change))

        def change_metadata() -> os.stat_result:
            self._set_metadata(node, handle, change)
            return self.getattr(nodeid, handle_id)

        return self._in_turn(node, change_metadata)

    def _in_turn(self, node: Node, work: Callable[[], T]) -> T | Slow[T]:
        """A change of a version that has a writer waits for a commit that is under way."""
        return Slow(work) if isinstance(node, File) and node.version is not None else work()

    def _truncate(self, node: Node, handle: Handle | None, change: Change) -> os.stat_result:
        if not isinstance(node, File) or node.parent is None:
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        assert change.size is not None
        version = node.version
        if handle is not None:
            os.ftruncate(handle.fd, change.size)
        elif version is not None and self._truncate_version(version, change.size):
            pass
        elif self.store.in_place(node.path()):
            other = self._open_in_place(node, os.O_RDWR)
            os.ftruncate(other.fd, change.size)
            self.release(other.id)
        elif self.getattr(node.id, None).st_size != change.size:
            self._truncate_committed(node, node.parent, change.size)
            raise stale()  # the path stands for the new version now
        self._set_metadata(node, handle, change)
        return self.getattr(node.id, handle.id if handle else None)

    def _truncate_version(self, version: Version, size: int) -> bool:
        """Whether the version was still there to be cut."""
        with version.staged.lock:
            if version.ended or not version.active:
                return False
            os.ftruncate(version.staged.fd, size)
            return True

    def _truncate_committed(self, node: File, parent: Directory, size: int) -> None:
        """truncate(2) of a committed file: a whole transaction of its own."""
        self._check_device(parent)
        store = self.store
        path, keep_content = node.path(), size > 0
        staged = store.stage(path, parent.fd, node.name, exists=True, truncate=not keep_content)
        try:
            os.ftruncate(staged.fd, size)
            store.commit(staged, parent.fd, node.name)
        finally:
            os.close(staged.fd)

    def _set_metadata(self, node: Node, handle: Handle | None, change: Change) -> None:
        if not change.metadata:
            return
        if isinstance(node, File) and self._is_symlink(node):
            self._set_symlink(node, change)
            return
        with self._changing(node, handle) as path:
            if change.uid is not None or change.gid is not None:
                os.chown(path, _or_keep(change.uid), _or_keep(change.gid))
            if change.mode is not None:
                os.chmod(path, change.mode & 0o7777)
            if change.drop_set_id:
                os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & ~_SET_ID)
            if change.times is not None:
                status = os.stat(path)
                os.utime(path, ns=change.times(status.st_atime_ns, status.st_mtime_ns))

    def _is_symlink(self, node: File) -> bool:
        return stat.S_ISLNK(node.kind)

    def _set_symlink(self, node: File, change: Change) -> None:
        assert node.parent is not None
        where: dict[str, Any] = {"dir_fd": node.parent.fd, "follow_symlinks": False}
        if change.uid is not None or change.gid is not None:
            os.chown(node.name, _or_keep(change.uid), _or_keep(change.gid), **where)
        if change.times is not None:
            status = os.stat(node.name, **where)
            os.utime(node.name, ns=change.times(status.st_atime_ns, status.st_mtime_ns), **where)

    # --- extended attributes ---------------------------------------------------------------------

    @contextlib.contextmanager
    def _inode(self, node: Node) -> Iterator[str | int]:
        """What names the node's inode, for calls that only look: a descriptor where one is open
        (the kernel asks for an xattr before the first write to every file), else a path."""
        if isinstance(node, Virtual):
            raise OSError(errno.EOPNOTSUPP, "no extended attributes")
        if isinstance(node, Directory):
            yield node.fd
            return
        assert isinstance(node, File) and node.parent is not None
        with self.lock:  # the version does not end in here
            if node.version is not None and node.version.active:
                yield node.version.staged.fd
                return
        fd = os.open(node.name, os.O_PATH | osfs.NOFOLLOW, dir_fd=node.parent.fd)
        try:
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.EOPNOTSUPP, "no extended attributes on symlinks")
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    def getxattr(self, nodeid: int, key: str) -> bytes:
        with self._inode(self.nodes.get(nodeid)) as inode:
            return os.getxattr(inode, key)

    def listxattr(self, nodeid: int) -> list[str]:
        """Ours is hidden: shutil.copy2 would carry it along."""
        with self._inode(self.nodes.get(nodeid)) as inode:
            return [key for key in os.listxattr(inode) if key != fmt.XATTR]

    def setxattr(self, nodeid: int, key: str, value: bytes, flags: int) -> Slow[None] | None:
        self._refuse_ours(key)
        node = self.nodes.get(nodeid)

        def set_xattr() -> None:
            with self._changing(node) as path:
                os.setxattr(path, key, value, flags)

        return self._in_turn(node, set_xattr)

    def removexattr(self, nodeid: int, key: str) -> Slow[None] | None:
        self._refuse_ours(key)
        node = self.nodes.get(nodeid)

        def remove_xattr() -> None:
            with self._changing(node) as path:
                os.removexattr(path, key)

        return self._in_turn(node, remove_xattr)

    def _refuse_ours(self, key: str) -> None:
        if key == fmt.XATTR:
            raise PermissionError(errno.EPERM, "the record is written by commits alone")


def _or_keep(value: int | None) -> int:
    return -1 if value is None else value
