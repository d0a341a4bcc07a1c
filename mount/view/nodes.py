"""The node table: what the kernel's node ids stand for.

One node per directory for all callers (swapping one breaks getcwd of whoever stands in it); one
node per *version* of a file name, because the kernel allows one backing file per inode. A node
lives while the kernel remembers it (``lookups``), a version is to be committed under it, or a node
below it lives: the kernel forgets directories of which a file is still being committed, and would
get another number for them, under which nobody knew of the version. Callers hold the lock of the
operations.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator

from ckptfs.disk import osfs

from .compact import ById
from .descriptors import Descriptor, Folder, OpenFolders, Room
from .identity import FIRST_ID, ROOT_ID, Identity, identity, lstat
from .model import Directory, File, Node, Virtual, VirtualKey


class Lost:
    """Files that have lost their name to another inode, and that the kernel knows."""

    def __init__(self) -> None:
        self._by_identity: dict[Identity, File] = {}

    def has(self, node: Node) -> bool:
        return self._by_identity.get(node.ident) is node

    def add(self, node: File) -> None:
        self._by_identity[node.ident] = node

    def drop(self, node: Node) -> None:
        del self._by_identity[node.ident]

    def changes(self, node: File) -> bool:
        """Whether somebody may change the file by one of these, another node."""
        lost = self._by_identity.get(node.ident) if self._by_identity else None
        return lost is not None and lost is not node and _in_use(lost)


class NodeTable:
    def __init__(self, root_fd: int, room: Room) -> None:
        self.folders = OpenFolders(room.directories)
        self.root = Directory(ROOT_ID, None, "", identity(os.fstat(root_fd)), self.folders)
        self.folders.keep_open(self.root, Descriptor(osfs.duplicate(root_fd)))
        self.root.lookups = 1
        self.by_id = ById[Node]()
        self.by_id.add(self.root)
        self._virtual: dict[VirtualKey, Virtual] = {}
        self.ids = itertools.count(FIRST_ID)
        self.lost = Lost()

    def get(self, nodeid: int) -> Node:
        node = self.by_id.get(nodeid)
        if node is None:
            raise OSError(errno.ESTALE, "unknown node")
        return node.of if isinstance(node, File) and node.of and node.stands_in else node

    def directory(self, nodeid: int) -> Directory:
        node = self.get(nodeid)
        if not isinstance(node, Directory):
            raise PermissionError(errno.EPERM, "the control directory is read-only")
        return node

    def committed(self, parent: Directory, name: str, status: os.stat_result) -> Node:
        """The node of what stands at ``parent/name`` on disk."""
        ident = identity(status)
        node = parent.find(name, ident)
        if node is None:
            if stat.S_ISDIR(status.st_mode):
                node = Directory(next(self.ids), parent, name, ident, self.folders)
            else:
                node = File(next(self.ids), parent, name, ident)
            self._add(node, parent)
        return node

    def staged(self, parent: Directory, name: str, status: os.stat_result) -> File:
        """A new node for a version that is being written."""
        node = File(next(self.ids), parent, name, identity(status))
        self._add(node, parent)
        return node

    def virtual(self, key: VirtualKey, make: Callable[[int], Virtual]) -> Virtual:
        node = self._virtual.get(key)
        if node is None:
            node = make(next(self.ids))
            self._virtual[key] = node
            self.by_id.add(node)
        assert node.key() == key
        return node

    def every(self) -> Iterator[Node]:
        return iter(self.by_id)

    def is_known(self, node: Node) -> bool:
        return self.by_id.get(node.id) is node

    def restore(self, node: Node, *, found: bool, lost: bool) -> None:
        """One of an earlier program; ``found`` by a lookup of its name."""
        self.by_id.add(node)
        if lost and isinstance(node, File):
            self.lost.add(node)
        if isinstance(node, Virtual):
            self._virtual[node.key()] = node
        elif node.parent is not None:
            node.parent.children += 1
            if found:
                node.parent.enter(node)

    def _add(self, node: Node, parent: Directory) -> None:
        parent.children += 1
        parent.enter(node)
        self.by_id.add(node)

    def move(self, node: Node, parent: Directory, name: str) -> None:
        self.detach(node)
        left, node.parent, node.name = node.parent, parent, name
        parent.children += 1
        parent.enter(node)
        if left is not None:
            left.children -= 1
            self.drop_if_forgotten(left)

    def find(self, parent: Directory, name: str, status: os.stat_result) -> Node | None:
        return parent.find(name, identity(status))

    def standing(self, parent: Directory, name: str) -> Node | None:
        """That of what stands at the path, if the kernel knows it."""
        status = lstat(parent.fd, name)
        return parent.find(name, identity(status)) if status is not None else None

    @contextlib.contextmanager
    def moving(self, *nodes: Node | None) -> Iterator[None]:
        """Their names change on the disk and here, so meanwhile they lead nowhere."""
        with contextlib.ExitStack() as stack:
            for node in nodes:
                if isinstance(node, Directory):
                    stack.enter_context(self.folders.pinned(node))
            yield

    def removed(self, node: Directory, *, stays_open: bool) -> None:
        """A directory has lost its name; who stands in it can still ask, if it ``stays_open``."""
        if stays_open and self.folders.is_open(node):
            self.folders.keep_open(node, node.fd)
        self.detach(node)
        node.gone = True

    def detach(self, node: Node) -> None:
        """The node has lost its name; it lives on while the kernel holds it open."""
        if isinstance(node, Virtual):
            self._virtual.pop(node.key(), None)
        elif node.parent is not None:
            node.parent.leave(node)

    def lose(self, node: File) -> None:
        """Its name is another inode's from here on, which gets a node of its own."""
        self.detach(node)
        node.gone = True
        if self.by_id.get(node.id) is node:  # the kernel knows it
            self.lost.add(node)

    def forget(self, nodeid: int, lookups: int) -> None:
        node = self.by_id.get(nodeid)
        if node is None or nodeid < FIRST_ID:
            return
        node.lookups -= lookups
        self.drop_if_forgotten(node)

    def drop_if_forgotten(self, node: Node) -> None:
        at: Node | None = node
        while at is not None and at.lookups <= 0 and not _in_use(at) and self.by_id.get(at.id):
            self.detach(at)
            self.by_id.remove(at)
            if isinstance(at, Folder):
                self.folders.close(at)
            if self.lost.has(at):
                self.lost.drop(at)
            if at.parent is not None:
                at.parent.children -= 1
            if isinstance(at, File) and at.of is not None:
                self.forget(at.of.id, 1)
            at = at.parent


def _in_use(node: Node) -> bool:
    if node.id < FIRST_ID:
        return True
    if isinstance(node, File):
        return not node.is_plain and bool(node.version or node.handles)
    if isinstance(node, Virtual):
        return bool(node.handles)
    return isinstance(node, Directory) and node.children > 0
