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
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ckptfs import osfs

if TYPE_CHECKING:
    from ckptfs.mount.model import Handle, Version

ROOT_ID = 1
CONTROL_ID = 2  # .ckptfs as the mount shows it
STATUS_ID = 3  # .ckptfs/status.json
HISTORY_ID = 4  # .ckptfs/history
_FIRST_ID = 16

# st_dev, st_ino and the file type, since a freed inode number may come back as something else
Identity = tuple[int, int, int]
Listed = tuple[str, int, int]  # name, inode number, type
_Key = tuple[int, str, Identity]


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


def lstat(at: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None


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
        names, above = [self.name], self.parent
        while above is not None and above.id != ROOT_ID:
            names.append(above.name)
            above = above.parent
        return "/".join(reversed(names))

    def key(self) -> _Key:
        return (self.parent.id if self.parent else 0), self.name, self.ident


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
        self.of: File | None = None  # whose alias it is
        self.stands_in = False  # what is asked of the alias is meant for that one
        self.aliased = False  # so that it may change without the kernel's knowledge
        self.replaced = False  # by a commit
        self.gone = False  # its name was taken away, and never leads to it again
        self.last: os.stat_result | None = None  # when it lost its name
        self.superseded = False  # by a rollback: who holds it open keeps it, nobody else gets it


def stands(node: File) -> bool:
    """Whether its name is that of this very inode on disk. A number alone does not tell: it may
    be that of another file by now."""
    status = lstat(node.parent.fd, node.name) if node.parent is not None else None
    return status is not None and identity(status) == node.ident and not is_gone(node)


def is_gone(node: File) -> bool:
    """Whether its name was taken away by the mount, or that of the file whose alias it is."""
    return node.gone or (node.of is not None and node.of.gone)


class Virtual(Node):
    """What the mount alone shows, read-only: ``.ckptfs`` and what lies in it. ``name`` is its
    path, and it lies in ``above``."""

    def __init__(self, nodeid: int, above: Virtual | None, name: str, ident: Identity) -> None:
        super().__init__(nodeid, None, name, ident)
        self.above = above
        self.handles: set[Handle] = set()

    def key(self) -> _Key:
        return (self.above.id if self.above else ROOT_ID), self.name, self.ident

    def status(self) -> os.stat_result:
        raise NotImplementedError

    def child(self, name: str) -> Virtual:
        raise NotADirectoryError(errno.ENOTDIR, "not a directory")

    def entries(self) -> Iterable[Listed]:
        return ()

    def getxattr(self, key: str) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "no extended attributes")

    def listxattr(self) -> list[str]:
        raise OSError(errno.EOPNOTSUPP, "no extended attributes")


class NodeTable:
    def __init__(self, root_fd: int) -> None:
        self.root = Directory(ROOT_ID, None, "", osfs.duplicate(root_fd))
        self.root.lookups = 1
        self._by_id: dict[int, Node] = {ROOT_ID: self.root}
        self._by_key: dict[_Key, Node] = {}
        self._ids = itertools.count(_FIRST_ID)
        self._lost: WeakValueDictionary[Identity, File] = WeakValueDictionary()

    def get(self, nodeid: int) -> Node:
        try:
            node = self._by_id[nodeid]
        except KeyError:
            raise OSError(errno.ESTALE, "unknown node") from None
        return node.of if isinstance(node, File) and node.of and node.stands_in else node

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

    def alias(self, node: File, status: os.stat_result) -> File:
        """Another node of a file, which no lookup finds; it keeps the file's known. That of a
        committed one is an inode of its own, which may lose its name to another."""
        assert node.parent is not None
        alias = File(next(self._ids), node.parent, node.name, status)
        node.parent.children += 1
        self._by_id[alias.id] = alias
        self._make_alias(alias, node)
        alias.stands_in = node.version is not None
        return alias

    def is_open(self, nodeid: int) -> bool:
        opened = self._by_id[nodeid]
        return isinstance(opened, File) and bool(opened.handles)

    def stand_in(self, nodeid: int, node: File) -> None:
        """The kernel opens ``node`` by the alias of another one, by which it goes on asking."""
        alias = self._by_id[nodeid]
        if isinstance(alias, File) and alias is not node:
            left = alias.of
            self._make_alias(alias, node)
            alias.stands_in = True
            if left is not None:
                self.forget(left.id, 1)

    def _make_alias(self, alias: File, node: File) -> None:
        node.aliased, alias.of = True, node
        node.lookups += 1

    def fix(self, node: Virtual) -> None:
        """One that is never forgotten."""
        self._by_id[node.id] = node

    def virtual(self, key: _Key, make: Callable[[int], Virtual]) -> Virtual:
        node = self._by_key.get(key)
        if node is None:
            node = make(next(self._ids))
            self._add(node)
        assert isinstance(node, Virtual) and node.key() == key
        return node

    def _add(self, node: Node) -> None:
        if node.parent is not None:
            node.parent.children += 1
        self._by_id[node.id] = node
        self._by_key[node.key()] = node

    def _drop_key(self, node: Node) -> None:
        if self._by_key.get(node.key()) is node:
            del self._by_key[node.key()]

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

    def standing(self, parent: Directory, name: str) -> Node | None:
        """That of what stands at the path, if the kernel knows it."""
        status = lstat(parent.fd, name)
        return self.find(parent, name, status) if status is not None else None

    def detach(self, node: Node) -> None:
        """The node has lost its name; it lives on while the kernel holds it open."""
        self._drop_key(node)

    def lose(self, node: File) -> None:
        """Its name is another inode's from here on, which gets a node of its own."""
        self._drop_key(node)
        node.gone = True
        self._lost[node.ident] = node

    def changes_elsewhere(self, node: File) -> bool:
        """Whether somebody may change the file by a node that has lost its name, another one's."""
        lost = self._lost.get(node.ident)
        return lost is not None and lost is not node and _in_use(lost)

    def forget(self, nodeid: int, lookups: int) -> None:
        node = self._by_id.get(nodeid)
        if node is None or nodeid < _FIRST_ID:
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
            if isinstance(at, File) and at.of is not None:
                self.forget(at.of.id, 1)
            at = at.parent


def _in_use(node: Node) -> bool:
    if node.id < _FIRST_ID:
        return True
    if isinstance(node, File):
        return bool(node.version or node.handles)
    if isinstance(node, Virtual):
        return bool(node.handles)
    return isinstance(node, Directory) and node.children > 0
