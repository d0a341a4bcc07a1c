"""What the operations share: tables, nodes, handles, and the words they answer with."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

from ckptfs.disk import osfs
from ckptfs.records import format as fmt
from ckptfs.records.aside import held_bytes
from ckptfs.store import Store

from ..view import acl, listing
from ..view.control import Control
from ..view.descriptors import Room
from ..view.identity import ROOT_ID, identity, lstat
from ..view.locks import Locks, LockSet
from ..view.model import (
    Caller,
    Directory,
    File,
    Handle,
    Node,
    Version,
    Virtual,
    is_gone,
    stands,
)
from ..view.nodes import NodeTable
from ..writers import mapped, visibility
from ..writers.versions import Versions
from ..writers.watch import Watch
from .metadata import Metadata

T = TypeVar("T")


@dataclass(frozen=True)
class Slow(Generic[T]):
    """The rest of an operation, to be run where it may block."""

    run: Callable[[], T]
    user: int | None = None  # whose it is, where its request does not tell


@dataclass(frozen=True)
class Entry:
    """A name, its node, and whether a binding may remember that and the attributes."""

    node: Node
    status: os.stat_result
    name_lasts: bool
    status_lasts: bool
    going: bool = False  # it is about to be looked up by who replaces it


def nothing() -> None:
    """What follows where nothing does."""


class Dropped(NamedTuple):
    """A name that the kernel is to look up again: see :meth:`Caches.drop_name`."""

    parent_id: int
    name: str
    gone: int
    then: Callable[[], None]
    begun: Callable[[], None]


class Caches:
    """What a binding remembers of names and attributes, to be told of changes that do not come
    through it. This one remembers nothing."""

    def drop_attributes(self, nodeid: int) -> None:
        """They are asked for again once this returns. Never waits for a request."""

    def drop_name(
        self,
        parent_id: int,
        name: str,
        gone: int = 0,
        then: Callable[[], None] = nothing,
        begun: Callable[[], None] = nothing,
    ) -> None:
        """The name is looked up again, soon after this returns: ``begun`` is called ahead of it,
        ``then`` after it. Who watches the node ``gone``, if the name stood for that, is told that
        it is deleted."""
        self._drop(Dropped(parent_id, name, gone, then, begun))

    def _drop(self, dropped: Dropped) -> None:
        dropped.begun()
        dropped.then()


@dataclass(frozen=True)
class New:
    """Who makes an inode, and with which mode. The umask counts where no default ACL does."""

    caller: Caller
    mode: int
    umask: int


def stale() -> OSError:
    """The kernel looks the path up again and opens what it finds then; at most once."""
    return OSError(errno.ESTALE, "look again")


class Base:
    """Lookup and attributes of nodes; the tables that every operation works on."""

    def __init__(self, store: Store, status: Callable[[], dict[str, Any]]) -> None:
        self.store = store
        self.room = Room.of_process()
        self.nodes = NodeTable(store.root, self.room)
        self.versions = Versions(store, self.nodes, Watch)
        self.lock = self.versions.lock
        self.handles = self.versions.handles
        self.metadata = Metadata(store)
        self.locks = Locks()
        self.caches = Caches()
        self.versions.sealed = self._sealed
        self.versions.replaced = self._replaced
        store.rolled_back.add(self._superseded)
        store.guard.written_here = functools.partial(mapped.may_be_written, self.versions)
        self._guests: dict[int, Handle] = {}  # by nodes that others have open, too
        self.ids = itertools.count(1)
        self.listing_key = listing.new_key()
        self.control = Control(store, self.nodes, status)

    def _sealed(self, version: Version) -> None:
        self.caches.drop_attributes(version.node.id)
        if version.at is None:
            return
        parent, name = version.at
        self.caches.drop_attributes(parent.id)
        with self.lock:
            extended = self.nodes.find(parent, name, os.fstat(version.staged.fd))
        if extended is not None and extended is not version.node:
            self.caches.drop_attributes(extended.id)

    def _replaced(self, node: Node) -> None:
        """By a commit, which the kernel does not know of."""
        if isinstance(node, File):
            node.replaced = True
        if node.parent is not None:
            self.caches.drop_name(node.parent.id, node.name, node.id)

    def lookup(self, parent_id: int, name: str, caller: Caller) -> Entry:
        with self.lock:
            virtual = self._virtual(parent_id, name)
            if virtual is not None:
                return self._entry(virtual, virtual.status())
            parent = self.nodes.directory(parent_id)
            staged = self.versions.at(parent, name)
            if staged:
                own = visibility.visible_to(self.versions, caller, parent, name)
                if own is not None:
                    return self._entry(own.node, os.fstat(own.staged.fd))
            try:
                status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            except FileNotFoundError:
                if not staged:
                    raise
                return self._entry(staged[-1].node, os.fstat(staged[-1].staged.fd))
            entry = self._entry(self.nodes.committed(parent, name, status), status)
            return replace(entry, going=any(version.expected for version in staged))

    def _entry(self, node: Node, status: os.stat_result) -> Entry:
        node.lookups += 1
        return Entry(node, status, self._name_lasts(node), self.status_lasts(node, status))

    def alias(self, entry: Entry) -> Entry:
        """A node of its own for whoever has looked a file up."""
        assert isinstance(entry.node, File)
        with self.lock:
            alias = self.nodes.alias(entry.node, entry.status)
            alias.lookups += 1
            self.forget(entry.node.id, 1)
        self.caches.drop_attributes(entry.node.id)  # from here on it changes by the alias, too
        return Entry(alias, entry.status, False, False)

    def _name_lasts(self, node: Node) -> bool:
        """While a version is staged, its path is another file to its writer than to others. A
        directory is one node for all callers; nobody moves a name but by a request."""
        if isinstance(node, File) and node.parent is not None:
            return not self.versions.at(node.parent, node.name)
        return isinstance(node, Directory)

    def status_lasts(self, node: Node, status: os.stat_result) -> bool:
        """Not of a directory that a publish is going to change, nor of a file that changes behind
        its node: by another of its names, be it gone, or by a mapping; nor of an alias, by which
        another file may be opened next."""
        if isinstance(node, Directory):
            return not self.versions.any_below(node)
        if not isinstance(node, File):
            return False
        if node.is_plain:
            return status.st_nlink == 1 and not self.nodes.changes_elsewhere(node)
        if node.of is not None or self._changes_unseen(node):
            return False
        return status.st_nlink == 1 and not self.nodes.changes_elsewhere(node)

    def _changes_unseen(self, node: File) -> bool:
        """Whether it may change without the kernel's knowledge: by an alias, or by a mapping."""
        if node.aliased or any(each.flags & os.O_ACCMODE == os.O_RDWR for each in node.handles):
            return True
        # Where the kernel carries the data a mapping keeps no handle.
        return node.version is not None and bool(node.version.mappers)

    def _virtual(self, parent_id: int, name: str) -> Virtual | None:
        """What is found there below ``.ckptfs``; None anywhere else."""
        if parent_id == ROOT_ID:
            return self.control if name == fmt.CONTROL else None
        parent = self.nodes.get(parent_id)
        return parent.child(name) if isinstance(parent, Virtual) else None

    def _superseded(self, path: str, before: os.stat_result | None) -> None:
        """A file was rolled back: readers keep what they have open, everybody else looks the name
        up anew, or that of the directory that was made for it."""
        *folders, name = path.split("/")
        parent = self.nodes.root
        with self.lock:
            for folder in folders:
                found = self.nodes.standing(parent, folder)
                if not isinstance(found, Directory):  # the kernel knows at most that it is absent
                    name = folder
                    break
                parent = found
            old = self.nodes.find(parent, name, before) if before else None
            if isinstance(old, File):
                old.superseded = True
                self.nodes.lose(old)
            self.versions.tell(parent, name)
        self.caches.drop_attributes(parent.id)
        self.caches.drop_name(parent.id, name, old.id if old else 0)

    def forget(self, nodeid: int, lookups: int) -> None:
        with self.lock:
            self.nodes.forget(nodeid, lookups)

    def getattr(self, nodeid: int, handle_id: int | None) -> os.stat_result:
        with self.lock:
            node = self.nodes.get(nodeid)
            if isinstance(node, Virtual):
                return node.status()
            if isinstance(node, Directory):
                return node.status()
            assert isinstance(node, File)
            handle = self.handles.get(handle_id) if handle_id is not None else None
            if handle is not None:
                return os.fstat(handle.fd)
            return self._file_status(node)

    def about_to_save(self, nodeid: int, flags: int) -> int:
        """How many bytes an open with these flags is about to write, as far as can be told."""
        if flags & os.O_ACCMODE == os.O_RDONLY or not flags & os.O_TRUNC:
            return 0
        with contextlib.suppress(OSError):
            node = self.nodes.get(nodeid)
            if isinstance(node, File):
                held = held_bytes(self.getattr(nodeid, None))
                return self.store.room.sizes.expected(node.name, held)
        return 0

    def size_of(self, nodeid: int) -> int:
        """0 where it has none, or cannot be told."""
        with contextlib.suppress(OSError):
            return self.getattr(nodeid, None).st_size
        return 0

    def _file_status(self, node: File) -> os.stat_result:
        """From the version's own descriptor, or the path while it still is this version."""
        if node.version is not None and node.version.active:
            return os.fstat(node.version.staged.fd)
        if node.parent is not None and stands(node):
            with contextlib.suppress(FileNotFoundError):
                return os.stat(node.name, dir_fd=node.parent.fd, follow_symlinks=False)
        for handle in node.handles:
            open_file = os.fstat(handle.fd)
            in_history = node.replaced and open_file.st_nlink == 1
            return without_names(open_file) if in_history else open_file
        if node.fd >= 0:
            return os.fstat(node.fd)
        if node.last is not None:
            return node.last
        raise stale()

    # --- shared by the operations ----------------------------------------------------------------

    @contextlib.contextmanager
    def inode(self, node: File) -> Iterator[int]:
        """A descriptor of what the node stands for, whatever has its name by now: the kernel has
        looked at the rights over that one. Good for calls by ``/proc/self/fd``; nothing is waited
        for, as an open of a FIFO would. Raises ESTALE where there is none any more."""
        fd = self._inode(node)
        try:
            yield fd
        finally:
            os.close(fd)

    def _inode(self, node: File) -> int:
        with self.lock:  # no version or handle ends in here
            if node.version is not None and node.version.active:
                return os.dup(node.version.staged.fd)
            for handle in node.handles:  # its name may be gone
                return os.dup(handle.fd)
            if node.fd >= 0:
                return os.dup(node.fd)
            if node.parent is not None and not is_gone(node):
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open(node.name, os.O_PATH | osfs.NOFOLLOW, dir_fd=node.parent.fd)
                    if identity(os.fstat(fd)) == node.ident:
                        return fd
                    os.close(fd)
        raise stale()

    def count_from(self, handle_id: int, nodeid: int) -> None:
        """The numbers of an earlier program are not given again."""
        self.ids, self.nodes.ids = itertools.count(handle_id), itertools.count(nodeid)

    def handle(self, handle_id: int) -> Handle:
        try:
            return self.handles[handle_id]
        except KeyError:
            raise OSError(errno.EBADF, "unknown handle") from None

    def _handle(self, node: Node, fd: int, flags: int) -> Handle:
        handle = Handle(next(self.ids), node, fd, flags, None)
        with self.lock:
            self.handles[handle.id] = handle
            maps = flags & os.O_ACCMODE == os.O_RDWR
            begins = maps and not (isinstance(node, File) and self._changes_unseen(node))
            if isinstance(node, File | Virtual):
                handle.locks = self._locks_of(node)
                node.hold(handle)
            # A mapping may change them from here on. Not where it may already: who has asked for
            # them just then, under a lock, would go on with a size from before another wrote.
            if begins:
                self.caches.drop_attributes(node.id)
        return handle

    def opened(self, node: File, fd: int, flags: int) -> Handle:
        """A file open at ``fd``, whatever has become of the node's name."""
        return self._handle(node, fd, flags)

    def give(self, handle: Handle, nodeid: int) -> None:
        """The kernel opens an alias in place of the handle's own node. By one that others have open
        only the daemon can carry it."""
        with self.lock:
            shared = self.nodes.is_open(nodeid)
            if shared:
                self._guests[nodeid] = handle
            elif isinstance(handle.node, File):
                self.nodes.stand_in(nodeid, handle.node)
            handle.carrier, handle.relayed = nodeid, shared
        self.caches.drop_attributes(handle.node.id)
        self.caches.drop_attributes(nodeid)  # the size that a read by it ends at is another now

    def recall_guests(self) -> None:
        """Of an earlier program."""
        handles = self.handles.values()
        self._guests = {handle.carrier: handle for handle in handles if handle.is_guest}

    def _stand_in_for_last(self, gone: Handle) -> None:
        """Once its own handles are closed a node is that of its guest."""
        if self._guests.get(gone.carrier) is gone:
            del self._guests[gone.carrier]
        guest = self._guests.get(gone.node.id)
        if guest is not None and not self.nodes.is_open(gone.node.id):
            del self._guests[gone.node.id]
            if isinstance(guest.node, File):
                self.nodes.stand_in(gone.node.id, guest.node)

    def _locks_of(self, node: File | Virtual) -> LockSet:
        """Those of its path; where it is open already those that it had then, since its name may
        stand for another file by now."""
        for handle in node.handles:
            return handle.locks
        return self.locks.of((node.parent or self.nodes.root).ident, node.name)

    def in_place(self, parent: Directory, name: str) -> bool:
        """Whether the path is written in place: by its pattern, or because of its locks."""
        return self.locks.shared(parent.ident, name) or self.store.in_place(parent.child_path(name))

    def _touch(self, parent: Directory) -> None:
        """A staged name came or went: readdir shows it, so the directory's times move."""
        with contextlib.suppress(OSError):
            osfs.touch(parent.fd)

    def _check_device(self, parent: Directory) -> None:
        if parent.ident[0] != self.nodes.root.ident[0]:
            raise OSError(errno.EXDEV, "another filesystem below the served directory")

    def _writable_parent(self, parent_id: int, name: str) -> Directory:
        self.store.order.require_writable()
        if parent_id == ROOT_ID and name == fmt.CONTROL:
            raise PermissionError(errno.EPERM, "this name belongs to ckptfs")
        return self.nodes.directory(parent_id)

    def _made(self, parent: Directory, name: str) -> Entry:
        self.store.order.note_changed_dir(parent.fd)
        status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        return self._entry(self.nodes.committed(parent, name, status), status)


def without_names(status: os.stat_result) -> os.stat_result:
    """As a plain directory shows what was replaced."""
    keys = ("atime_ns", "mtime_ns", "ctime_ns", "blksize", "blocks", "rdev")
    more = {f"st_{key}": getattr(status, f"st_{key}") for key in keys}
    return os.stat_result((*status[:3], 0, *status[4:10]), more)


def exists(at: int, name: str) -> bool:
    return lstat(at, name) is not None


def owner(parent: Directory, caller: Caller) -> tuple[int, int]:
    """A new inode belongs to the caller, its group to a setgid directory."""
    above = os.fstat(parent.fd)
    return caller.uid, above.st_gid if above.st_mode & stat.S_ISGID else caller.gid


def own(inode: str | int, parent: Directory, new: New) -> None:
    """Owner, mode and ACL of a new inode, before anybody can see it. ``inode`` is a descriptor, or
    a path below /proc of what was made under its own name and has inherited its ACL already."""
    uid, gid = owner(parent, new.caller)
    os.chown(inode, uid, gid)
    mode, default = new.mode & 0o7777, default_acl(parent)
    if default is None:
        mode &= ~new.umask
    elif isinstance(inode, int):
        os.setxattr(inode, acl.ACCESS, acl.inherit(default, mode))
    if default is not None:  # the rest is what chown took away, or the ACL does not hold
        mode = mode & 0o7000 | os.stat(inode).st_mode & 0o777
    status = os.stat(inode)
    if stat.S_ISDIR(status.st_mode) and os.fstat(parent.fd).st_mode & stat.S_ISGID:
        mode |= stat.S_ISGID
    if mode != stat.S_IMODE(status.st_mode):
        os.chmod(inode, mode)


@contextlib.contextmanager
def or_nothing(
    parent: Directory, name: str, remove: Callable[..., None] = os.unlink
) -> Iterator[None]:
    """What was just made there goes again where it cannot be given to its owner (a quota)."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            remove(name, dir_fd=parent.fd)
        raise


def default_acl(parent: Directory) -> bytes | None:
    try:
        return os.getxattr(parent.fd, acl.DEFAULT)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise
