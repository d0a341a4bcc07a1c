"""Attributes: sizes, owners, modes, times, extended attributes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ckptfs.disk import osfs
from ckptfs.records import format as fmt

from ..view.identity import identity
from ..view.model import (
    Caller,
    Directory,
    File,
    Handle,
    Node,
    Version,
    Virtual,
    stands,
)
from ..writers import overtaking
from . import commands, requests
from .base import Slow, T, stale
from .files import Files

_SELINUX = "security.selinux"


@dataclass(frozen=True)
class Change:
    """What a SETATTR asks for; None keeps. A time may be ``osfs.NOW``."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    drop_set_id: bool = False

    @property
    def sets_times(self) -> bool:
        return self.atime_ns is not None or self.mtime_ns is not None

    @property
    def metadata(self) -> bool:
        asked = (self.mode, self.uid, self.gid, self.atime_ns, self.mtime_ns)
        return self.drop_set_id or any(value is not None for value in asked)


class Attributes(Files):
    """Changes and queries of metadata; a size that changes without a handle is a commit."""

    @contextlib.contextmanager
    def _changing(self, node: Node, handle: Handle | None = None) -> Iterator[str]:
        """A path under /proc that names the node's inode, for calls that change its metadata."""
        self.store.order.require_writable()
        _require_changeable(node)
        if isinstance(node, Directory):
            directory = node.fd
            yield directory.link()
            self.caches.drop_attributes(node.id)
            return
        assert isinstance(node, File) and node.parent is not None
        with contextlib.ExitStack() as stack:
            with self.lock:
                version = node.version if node.version and node.version.active else None
                if handle is not None and version is None:
                    fd = os.dup(handle.fd)
                    stack.callback(os.close, fd)
                else:
                    fd = stack.enter_context(self.inode(node))
            if identity(os.fstat(fd)) != node.ident:
                raise stale()
            # opening a FIFO to look at its record would wait for its writer
            if node.kind == stat.S_IFREG and (version is not None or stands(node)):
                change = self.metadata.metadata_change(node.parent, node.name, version)
                stack.enter_context(change)
            stack.callback(self.caches.drop_attributes, node.id)  # an xattr moves the ctime
            yield f"/proc/self/fd/{fd}"

    def setattr(
        self, nodeid: int, handle_id: int | None, change: Change
    ) -> os.stat_result | Slow[os.stat_result]:
        node = self.nodes.get(nodeid)
        _require_changeable(node)
        handle = self.handles.get(handle_id) if handle_id is not None else None
        if change.size is not None:
            return Slow(lambda: self._truncate(node, handle, change))

        def change_metadata() -> os.stat_result:
            for version in self._being_written(node):
                self._set_metadata(version, None, change)
            self._set_metadata(node, handle, change)
            return self.getattr(nodeid, handle_id)

        return self._in_turn(node, change_metadata)

    def _being_written(self, node: Node) -> list[File]:
        """The other versions of its path that are to replace this one: what somebody else than
        their writers changes of its metadata must not be lost with it."""
        if not isinstance(node, File) or node.parent is None:
            return []
        with self.lock:
            listed = self.versions.at(node.parent, node.name)
            others = [version.node for version in listed if version is not node.version]
            staged = len(others) < len(listed)
        return others if others and (staged or stands(node)) else []

    def _in_turn(self, node: Node, work: Callable[[], T]) -> T | Slow[T]:
        """A change of a version that has a writer waits for a commit that is under way."""
        has_writer = isinstance(node, File) and node.version is not None
        return Slow(work) if has_writer or self._being_written(node) else work()

    def _truncate(self, node: Node, handle: Handle | None, change: Change) -> os.stat_result:
        if not isinstance(node, File) or node.parent is None:
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        assert change.size is not None
        self.store.room.before_freeing()
        version = node.version
        if handle is not None:
            self.cut(handle, change.size)
        elif version is not None and self._truncate_version(version, change.size):
            pass
        elif self.in_place(node.parent, node.name):
            other = self._open_in_place(node, os.O_RDWR)
            os.ftruncate(other.fd, change.size)
            self.release(other.id)
        elif self.getattr(node.id, None).st_size != change.size:
            self._truncate_committed(node, node.parent, change.size)
            raise stale()  # the path stands for the new version now
        elif change.mtime_ns is None:  # no byte changes, but the time does
            change = replace(change, mtime_ns=osfs.NOW)
        self._set_metadata(node, handle, change)
        return self.getattr(node.id, handle.id if handle else None)

    def _truncate_version(self, version: Version, size: int) -> bool:
        """Whether the version was still there to be cut."""
        with version.staged.lock:
            if version.ended or not version.active:
                return False
            self.store.saves.change(version.staged, size)
            os.ftruncate(version.staged.fd, size)
            return True

    def _truncate_committed(self, node: File, parent: Directory, size: int) -> None:
        """truncate(2) of a committed file: a whole transaction of its own."""
        self._check_device(parent)
        store, at = self.store, (node.path(), parent.fd, node.name)
        with store.order.path_lock(parent.fd, node.name):
            if not stands(node):
                raise stale()
            with (
                self.versions.replacing(parent, node.name),
                store.saves.staging(*at, exists=True, truncate=size == 0) as staged,
            ):
                os.ftruncate(staged.fd, size)
                with self.lock:
                    overtaking.overtakes(self.versions, staged, parent, node.name, {})
                store.saves.commit(staged, parent.fd, node.name)
        self.caches.drop_attributes(parent.id)

    def _set_metadata(self, node: Node, handle: Handle | None, change: Change) -> None:
        if not change.metadata:
            return
        with self._changing(node, handle) as path:
            if change.drop_set_id or change.uid is not None or change.gid is not None:
                os.chown(path, _or_keep(change.uid), _or_keep(change.gid))  # clears set-id bits
            if change.mode is not None:
                os.chmod(path, change.mode & 0o7777)
            if change.sets_times:
                osfs.set_times(path, change.atime_ns, change.mtime_ns)

    # --- extended attributes ---------------------------------------------------------------------

    def _of_inode(self, node: Node, ask: Callable[[int | str], T]) -> T:
        """Asked of the node's inode, by calls that only look. The kernel asks for an xattr before
        the first write to every file, ``ls -l`` for two of each."""
        with self.lock:  # no version or handle ends in here
            if isinstance(node, Directory):
                return ask(node.fd)
            assert isinstance(node, File)
            if node.version is not None and node.version.active:
                return ask(node.version.staged.fd)
            for handle in node.handles:
                return ask(handle.fd)
            with self.inode(node) as inode:
                return ask(f"/proc/self/fd/{inode}")

    def getxattr(self, nodeid: int, key: str) -> bytes:
        try:
            node = self.nodes.get(nodeid)
            if isinstance(node, Virtual):
                return node.getxattr(key)
            return self._of_inode(node, lambda inode: os.getxattr(inode, key))
        except OSError as error:
            # Where SELinux runs it answers for its labels itself. ``ls`` would ask for one of
            # each file, if it were not told that there are none at all.
            if error.errno == errno.ENODATA and key == _SELINUX:
                raise OSError(errno.EOPNOTSUPP, "no labels") from None
            raise

    def listxattr(self, nodeid: int, caller: Caller) -> list[str]:
        """Ours is hidden: shutil.copy2 would carry it along. trusted.* is for root to see."""
        node = self.nodes.get(nodeid)
        keys = node.listxattr() if isinstance(node, Virtual) else self._of_inode(node, os.listxattr)
        keys = [key for key in keys if key != fmt.XATTR]
        return [key for key in keys if caller.uid == 0 or not key.startswith("trusted.")]

    def setxattr(
        self, nodeid: int, key: str, value: bytes, flags: int, caller: Caller
    ) -> Slow[None] | None:
        if key.startswith(commands.PREFIX):
            node = self.nodes.get(nodeid)
            return Slow(lambda: requests.perform(self, node, key, value, caller))
        return self._change_xattr(nodeid, key, lambda path: os.setxattr(path, key, value, flags))

    def removexattr(self, nodeid: int, key: str) -> Slow[None] | None:
        return self._change_xattr(nodeid, key, lambda path: os.removexattr(path, key))

    def _change_xattr(
        self, nodeid: int, key: str, change: Callable[[str], None]
    ) -> Slow[None] | None:
        """The record is written by commits alone. A tool that restores a copy made below a mount
        brings one along: it is told nothing, and nothing comes of it."""
        if key.startswith(commands.PREFIX):
            raise PermissionError(errno.EPERM, "a command, which is not there to be changed")
        node = self.nodes.get(nodeid)
        if key == fmt.XATTR:
            _require_changeable(node)
            return None

        def change_all() -> None:
            for inode in (*self._being_written(node), node):
                with self._changing(inode) as path:
                    change(path)

        return self._in_turn(node, change_all)


def _require_changeable(node: Node) -> None:
    if isinstance(node, Virtual):
        raise PermissionError(errno.EPERM, "this name belongs to ckptfs")


def _or_keep(value: int | None) -> int:
    return -1 if value is None else value
