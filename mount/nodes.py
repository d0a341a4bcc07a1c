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
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from ckptfs.disk import osfs

from .compact import ById, Numbered, Rare, shared
from .descriptors import Descriptor, Folder, OpenFolders, Room

if TYPE_CHECKING:
    from .model import Handle, Version

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


class Node(Numbered):
    """``parent`` is None for the root and for what the mount alone shows."""

    __slots__ = ("name", "parent")

    def __init__(self, nodeid: int, parent: Directory | None, name: str, ident: Identity) -> None:
        super().__init__(nodeid, ident)
        self.parent, self.name = parent, shared(name)

    def path(self) -> str:
        """Relative to the root, for messages and patterns; never used to resolve."""
        names, above = [self.name], self.parent
        while above is not None and above.id != ROOT_ID:
            names.append(above.name)
            above = above.parent
        return "/".join(reversed(names))


class Directory(Node, Folder):
    __slots__ = ("children", "folders", "gone", "names")

    def __init__(
        self,
        nodeid: int,
        parent: Directory | None,
        name: str,
        ident: Identity,
        folders: OpenFolders,
    ) -> None:
        super().__init__(nodeid, parent, name, ident)
        self.folders = folders
        self.children = 0  # nodes in it that live
        self.names: dict[str, Node | list[Node]] = {}  # those that a lookup finds
        self.gone = False  # removed, or replaced by a rename

    def child_path(self, name: str) -> str:
        return name if self.id == ROOT_ID else f"{self.path()}/{name}"

    def opened_by(self) -> OpenFolders:
        return self.folders

    def place(self) -> tuple[Folder, str] | None:
        return (self.parent, self.name) if self.parent is not None and not self.gone else None

    def is_at(self, status: os.stat_result) -> bool:
        return identity(status) == self.ident

    def status(self) -> os.stat_result:
        """Without opening it, where that is not needed: many are looked at once."""
        if self.parent is not None and not self.gone and not self.folders.is_open(self):
            status = lstat(self.parent.fd, self.name)
            if status is not None and self.is_at(status):
                return status
        return os.fstat(self.fd)

    def find(self, name: str, ident: Identity) -> Node | None:
        found = self.names.get(name)
        if isinstance(found, list):
            return next((node for node in found if node.ident == ident), None)
        return found if found is not None and found.ident == ident else None

    def enter(self, node: Node) -> None:
        """A name can have several: its versions, each another inode."""
        others = [each for each in self._of(node.name) if each.ident != node.ident]
        self.names[node.name] = [*others, node] if others else node

    def leave(self, node: Node) -> None:
        left = [each for each in self._of(node.name) if each is not node]
        if len(left) > 1:
            self.names[node.name] = left
        elif left:
            self.names[node.name] = left[0]
        else:
            self.names.pop(node.name, None)

    def _of(self, name: str) -> list[Node]:
        found = self.names.get(name, [])
        return found if isinstance(found, list) else [found]


class Openable(Node):
    """What can have handles."""

    __slots__ = ("rare",)
    _handles: Rare[set[Handle] | None] = Rare(None)

    def __init__(self, nodeid: int, parent: Directory | None, name: str, ident: Identity) -> None:
        self.rare: dict[str, Any] | None = None
        super().__init__(nodeid, parent, name, ident)

    @property
    def handles(self) -> AbstractSet[Handle]:
        return self._handles or frozenset()

    def hold(self, handle: Handle) -> None:
        if self._handles is None:
            self._handles = {handle}
        else:
            self._handles.add(handle)

    def let_go(self, handle: Handle) -> None:
        if self._handles is not None:
            self._handles.discard(handle)
            self._handles = self._handles or None


class File(Openable):
    """One version of a file name, or a symlink or special file: such a one has ``fd`` (O_PATH)
    once its name was removed, since whoever has it open has no handle."""

    __slots__ = ()
    fd: Rare[int] = Rare(-1)
    stands_for = Rare(0)  # the inode that it will replace, whose number it shows: vim looks
    version: Rare[Version | None] = Rare(None)  # while it is staged or live
    of: Rare[File | None] = Rare(None)  # whose alias it is
    stands_in = Rare(False)  # what is asked of the alias is meant for that one
    aliased = Rare(False)  # so that it may change without the kernel's knowledge
    replaced = Rare(False)  # by a commit
    gone = Rare(False)  # its name was taken away, and never leads to it again
    last: Rare[os.stat_result | None] = Rare(None)  # when it lost its name
    superseded = Rare(False)  # by a rollback: who holds it open keeps it, nobody else gets it

    @property
    def is_plain(self) -> bool:
        """Nothing is to be said of it but what stands on the disk."""
        return self.rare is None


def stands(node: File) -> bool:
    """Whether its name is that of this very inode on disk. A number alone does not tell: it may
    be that of another file by now."""
    status = lstat(node.parent.fd, node.name) if node.parent is not None else None
    return status is not None and identity(status) == node.ident and not is_gone(node)


def is_gone(node: File) -> bool:
    """Whether its name was taken away by the mount, or that of the file whose alias it is."""
    return node.gone or (node.of is not None and node.of.gone)


class Virtual(Openable):
    """What the mount alone shows, read-only: ``.ckptfs`` and what lies in it. ``name`` is its
    path, and it lies in ``above``."""

    __slots__ = ("above",)

    def __init__(self, nodeid: int, above: Virtual | None, name: str, ident: Identity) -> None:
        super().__init__(nodeid, None, name, ident)
        self.above = above

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
    def __init__(self, root_fd: int, room: Room) -> None:
        self.folders = OpenFolders(room.directories)
        self.root = Directory(ROOT_ID, None, "", identity(os.fstat(root_fd)), self.folders)
        self.folders.keep_open(self.root, Descriptor(osfs.duplicate(root_fd)))
        self.root.lookups = 1
        self._by_id = ById[Node]()
        self._by_id.add(self.root)
        self._virtual: dict[_Key, Virtual] = {}
        self.ids = itertools.count(_FIRST_ID)
        self._lost: dict[Identity, File] = {}

    def get(self, nodeid: int) -> Node:
        node = self._by_id.get(nodeid)
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

    def alias(self, node: File, status: os.stat_result) -> File:
        """Another node of a file, which no lookup finds; it keeps the file's known. That of a
        committed one is an inode of its own, which may lose its name to another."""
        assert node.parent is not None
        alias = File(next(self.ids), node.parent, node.name, identity(status))
        node.parent.children += 1
        self._by_id.add(alias)
        self._make_alias(alias, node)
        alias.stands_in = node.version is not None
        return alias

    def is_open(self, nodeid: int) -> bool:
        """Whether somebody has opened a file by that very node."""
        opened = self._by_id.get(nodeid)
        return isinstance(opened, File) and bool(opened.handles)

    def stand_in(self, nodeid: int, node: File) -> None:
        """The kernel opens ``node`` by the alias of another one, by which it goes on asking."""
        alias = self._by_id.get(nodeid)
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
        self._by_id.add(node)

    def virtual(self, key: _Key, make: Callable[[int], Virtual]) -> Virtual:
        node = self._virtual.get(key)
        if node is None:
            node = make(next(self.ids))
            self._virtual[key] = node
            self._by_id.add(node)
        assert node.key() == key
        return node

    def every(self) -> Iterator[Node]:
        return iter(self._by_id)

    def is_known(self, node: Node) -> bool:
        return self._by_id.get(node.id) is node

    def is_lost(self, node: Node) -> bool:
        """Whether it has lost its name to another inode, and the kernel knows it."""
        return self._lost.get(node.ident) is node

    def restore(self, node: Node, *, found: bool, lost: bool) -> None:
        """One of an earlier program; ``found`` by a lookup of its name."""
        self._by_id.add(node)
        if lost and isinstance(node, File):
            self._lost[node.ident] = node
        if isinstance(node, Virtual):
            self._virtual[node.key()] = node
        elif node.parent is not None:
            node.parent.children += 1
            if found:
                node.parent.enter(node)

    def _add(self, node: Node, parent: Directory) -> None:
        parent.children += 1
        parent.enter(node)
        self._by_id.add(node)

    def _drop_key(self, node: Node) -> None:
        if isinstance(node, Virtual):
            self._virtual.pop(node.key(), None)
        elif node.parent is not None:
            node.parent.leave(node)

    def move(self, node: Node, parent: Directory, name: str) -> None:
        self._drop_key(node)
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
        return self.find(parent, name, status) if status is not None else None

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
        self._drop_key(node)

    def lose(self, node: File) -> None:
        """Its name is another inode's from here on, which gets a node of its own."""
        self._drop_key(node)
        node.gone = True
        if self._by_id.get(node.id) is node:  # the kernel knows it
            self._lost[node.ident] = node

    def changes_elsewhere(self, node: File) -> bool:
        """Whether somebody may change the file by a node that has lost its name, another one's."""
        lost = self._lost.get(node.ident) if self._lost else None
        return lost is not None and lost is not node and _in_use(lost)

    def forget(self, nodeid: int, lookups: int) -> None:
        node = self._by_id.get(nodeid)
        if node is None or nodeid < _FIRST_ID:
            return
        node.lookups -= lookups
        self.drop_if_forgotten(node)

    def drop_if_forgotten(self, node: Node) -> None:
        at: Node | None = node
        while at is not None and at.lookups <= 0 and not _in_use(at) and self._by_id.get(at.id):
            self._drop_key(at)
            self._by_id.remove(at)
            if isinstance(at, Folder):
                self.folders.close(at)
            if isinstance(at, File) and self._lost.get(at.ident) is at:
                del self._lost[at.ident]
            if at.parent is not None:
                at.parent.children -= 1
            if isinstance(at, File) and at.of is not None:
                self.forget(at.of.id, 1)
            at = at.parent


def _in_use(node: Node) -> bool:
    if node.id < _FIRST_ID:
        return True
    if isinstance(node, File):
        return not node.is_plain and bool(node.version or node.handles)
    if isinstance(node, Virtual):
        return bool(node.handles)
    return isinstance(node, Directory) and node.children > 0
