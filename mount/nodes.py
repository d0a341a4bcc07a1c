"""The node table: what the kernel's node ids stand for.

One node per directory for all callers (swapping one breaks getcwd of whoever stands in it); one
node per *version* of a file name, because the kernel allows one backing file per inode. A node
lives while the kernel remembers it (``lookups``), a version is to be committed under it, or a node
below it lives: the kernel forgets directories of which a file is still being committed, and would
get another number for them, under which nobody knew of the version. Callers hold the lock of the
operations.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from typing import TYPE_CHECKING

from ckptfs import format as fmt
from ckptfs import osfs

if TYPE_CHECKING:
    from ckptfs.mount.versions import Handle, Version

ROOT_ID = 1
CONTROL_ID = 2  # .ckptfs as the mount shows it
STATUS_ID = 3  # .ckptfs/status.json
_FIRST_ID = 16

# st_dev, st_ino and the file type, since a freed inode number may come back as something else
Identity = tuple[int, int, int]


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


class Node:
    """``parent`` is None for the root and for what has lost its name. ``fd`` goes with the last
    reference."""

    fd = -1

    def __init__(self, nodeid: int, parent: Directory | None, name: str, ident: Identity) -> None:
        self.id, self.parent, self.name, self.ident = nodeid, parent, name, ident
        self.lookups = 0

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def path(self) -> str:
        """Relative to the root, for messages and patterns; never used to resolve."""
        if self.parent is None or self.parent.id == ROOT_ID:
            return self.name
        return f"{self.parent.path()}/{self.name}"


class Directory(Node):
    """Holds its directory open."""

    def __init__(self, nodeid: int, parent: Directory | None, name: str, fd: int) -> None:
        super().__init__(nodeid, parent, name, identity(os.fstat(fd)))
        self.fd = fd
        self.children = 0  # nodes in it that live

    def child_path(self, name: str) -> str:
        return name if self.id == ROOT_ID else f"{self.path()}/{name}"


class File(Node):
    """One version of a file name, or a symlink or special file: such a one has ``fd`` (O_PATH)
    once its name was removed, since whoever has it open has no handle."""

    def __init__(
        self, nodeid: int, parent: Directory | None, name: str, status: os.stat_result
    ) -> None:
        super().__init__(nodeid, parent, name, identity(status))
        self.kind = stat.S_IFMT(status.st_mode)
        self.stands_for = 0  # the inode that it will replace, whose number it shows: vim looks
        self.version: Version | None = None  # while it is staged or live
        self.handles: set[Handle] = set()
        self.rotten = False  # rolled back: who holds it open keeps it, nobody else gets it


class Virtual(Node):
    """The control directory and what can be read in it."""


_Key = tuple[int, str, Identity]


class NodeTable:
    def __init__(self, root_fd: int) -> None:
        self.root = Directory(ROOT_ID, None, "", osfs.duplicate(root_fd))
        self.root.lookups = 1
        self._by_id: dict[int, Node] = {ROOT_ID: self.root}
        for nodeid, name, kind in (
            (CONTROL_ID, fmt.CONTROL, stat.S_IFDIR),
            (STATUS_ID, f"{fmt.CONTROL}/status.json", stat.S_IFREG),
        ):
            self._by_id[nodeid] = Virtual(nodeid, self.root, name, (0, nodeid, kind))
        self._by_key: dict[_Key, Node] = {}
        self._ids = itertools.count(_FIRST_ID)

    def get(self, nodeid: int) -> Node:
        try:
            return self._by_id[nodeid]
        except KeyError:
            raise OSError(errno.ESTALE, "unknown node") from None

    def directory(self, nodeid: int) -> Directory:
        node = self.get(nodeid)
        if not isinstance(node, Directory):
            raise PermissionError(errno.EPERM, "the control directory is read-only")
        return node

    def committed(self, parent: Directory, name: str, status: os.stat_result) -> Node:
        """The node of what stands at ``parent/name`` on disk."""
        key = parent.id, name, identity(status)
        node = self._by_key.get(key)
        if node is None:
            if stat.S_ISDIR(status.st_mode):
                fd = os.open(name, osfs.DIRECTORY, dir_fd=parent.fd)
                node = Directory(next(self._ids), parent, name, fd)
            else:
                node = File(next(self._ids), parent, name, status)
            self._add(node)
        return node

    def staged(self, parent: Directory, name: str, status: os.stat_result) -> File:
        """A new node for a version that is being written."""
        node = File(next(self._ids), parent, name, status)
        self._add(node)
        return node

    def _add(self, node: Node) -> None:
        assert node.parent is not None
        node.parent.children += 1
        self._by_id[node.id] = node
        self._by_key[node.parent.id, node.name, node.ident] = node

    def _drop_key(self, node: Node) -> None:
        if node.parent is not None:
            key = node.parent.id, node.name, node.ident
            if self._by_key.get(key) is node:
                del self._by_key[key]

    def move(self, node: Node, parent: Directory, name: str) -> None:
        self._drop_key(node)
        left, node.parent, node.name = node.parent, parent, name
        parent.children += 1
        self._by_key[parent.id, name, node.ident] = node
        if left is not None:
            left.children -= 1
            self.drop_if_forgotten(left)

    def find(self, parent: Directory, name: str, status: os.stat_result) -> Node | None:
        return self._by_key.get((parent.id, name, identity(status)))

    def detach(self, node: Node) -> None:
        """The node has lost its name; it lives on while the kernel holds it open."""
        self._drop_key(node)

    def forget(self, nodeid: int, lookups: int) -> None:
        node = self._by_id.get(nodeid)
        if node is None or isinstance(node, Virtual) or nodeid == ROOT_ID:
            return
        node.lookups -= lookups
        self.drop_if_forgotten(node)

    def drop_if_forgotten(self, node: Node) -> None:
        at: Node | None = node
        while at is not None and at.lookups <= 0 and not _in_use(at) and at.id in self._by_id:
            self._drop_key(at)
            del self._by_id[at.id]
            if at.parent is not None:
                at.parent.children -= 1
            at = at.parent


def _in_use(node: Node) -> bool:
    if isinstance(node, File):
        return bool(node.version or node.handles)
    return isinstance(node, Directory) and node.children > 0
