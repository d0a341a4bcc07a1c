"""Names: directories, links, removing and renaming."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from ckptfs.disk import osfs
from ckptfs.records import format as fmt
from ckptfs.versions.staged import fingerprint

from ..view.descriptors import Descriptor
from ..view.identity import ROOT_ID, identity, lstat
from ..view.listing import Listing
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
from ..writers import closing, committing, naming
from .base import Base, Entry, New, Slow, or_nothing, own, owner, stale

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_LARGE_BYTES = 128 << 10  # of a directory: listing some thousands of names takes a while


class Namespace(Base):
    """Operations on names, staged ones too."""

    def readlink(self, nodeid: int) -> str:
        node = self.nodes.get(nodeid)
        assert isinstance(node, File)
        with self.inode(node) as inode:
            return os.readlink("", dir_fd=inode)

    def opendir(self, nodeid: int) -> Handle:
        node = self.nodes.get(nodeid)
        if isinstance(node, File):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        handle = self._handle(node, -1, 0)
        # While nothing is staged in it, names come and go by requests only.
        handle.cached = isinstance(node, Directory) and not self.versions.any_below(node)
        return handle

    def readdir(
        self, handle_id: int, position: int, room: int, more: int = 0
    ) -> list[bytes] | Slow[list[bytes]]:
        """Entries of a ``Listing`` after ``position``, staged names too; none is the end. The list
        is taken anew at 0, and where the handle may have gone back there in the kernel's cache."""
        handle = self.handle(handle_id)
        node, kept = handle.node, handle.listing if position else None
        if kept is not None and handle.cached and not kept.goes_on(position):
            kept = None

        def read() -> list[bytes]:
            listing = kept or self._list(node)
            entries = listing.read(position, room, more)
            handle.listing = listing if entries else None
            return entries

        if kept is None and (isinstance(node, Virtual) or _is_large(node)):
            return Slow(read)  # history reads records
        return read()

    def _list(self, node: Node) -> Listing:
        listing = Listing(self.listing_key)
        above = node.above or self.nodes.root if isinstance(node, Virtual) else node.parent or node
        listing.add((name, at.ident[1], stat.S_IFDIR) for name, at in ((".", node), ("..", above)))
        if isinstance(node, Virtual):
            listing.add(node.entries())
        elif isinstance(node, Directory):
            self._add_names(node, listing)
        return listing

    def _add_names(self, node: Directory, listing: Listing) -> None:
        """A publish moves its name to another place on disk (btrfs), where a list that is being
        read misses it, or finds it twice; so such names are looked up afterwards."""
        with self._written_in(node) as written:
            with (
                osfs.opened(self.store.fs, node.fd, ".", osfs.DIRECTORY) as fd,
                os.scandir(fd) as entries,
            ):
                listing.add((each.name, each.inode(), _type_of(each)) for each in entries)
            with self.lock:
                for name in written:
                    # In this order: it is staged until after it was published.
                    staged, status = self.versions.at(node, name), lstat(node.fd, name)
                    if status is not None:
                        listing.replace((name, status.st_ino, stat.S_IFMT(status.st_mode)))
                    elif staged:
                        listing.replace((name, staged[-1].node.ident[1], stat.S_IFREG))
        if node.id == ROOT_ID:
            listing.discard(fmt.CONTROL)

    @contextlib.contextmanager
    def _written_in(self, node: Directory) -> Iterator[set[str]]:
        """Names that versions are staged under, those included that come inside the block."""
        written: set[str] = set()

        def note(parent: Directory, name: str) -> None:
            if parent is node:
                written.add(name)

        with self.lock:
            written.update(name for name, _ in self.versions.below(node))
            self.versions.watchers.append(note)
        try:
            yield written
        finally:
            with self.lock:
                self.versions.watchers.remove(note)

    def releasedir(self, handle_id: int) -> None:
        with self.lock:
            handle = self.handles.pop(handle_id, None)
            if handle is not None and isinstance(handle.node, Virtual):
                handle.node.let_go(handle)
                self.nodes.drop_if_forgotten(handle.node)

    def mkdir(self, parent_id: int, name: str, new: New) -> Entry:
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            if self.versions.at(parent, name):
                raise FileExistsError(errno.EEXIST, "exists")
            os.mkdir(name, new.mode & 0o777, dir_fd=parent.fd)
            with or_nothing(parent, name, os.rmdir):
                self._own(parent, name, new)
            return self._made(parent, name)

    def _own(self, parent: Directory, name: str, new: New) -> None:
        with osfs.opened(self.store.fs, parent.fd, name, os.O_PATH) as fd:
            own(f"/proc/self/fd/{fd}", parent, new)

    def symlink(self, parent_id: int, name: str, target: str, caller: Caller) -> Entry:
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            self._require_free(parent, name)
            os.symlink(target, name, dir_fd=parent.fd)
            with or_nothing(parent, name):
                uid, gid = owner(parent, caller)
                os.chown(name, uid, gid, dir_fd=parent.fd, follow_symlinks=False)
            return self._made(parent, name)

    def mknod(self, parent_id: int, name: str, new: New, device: int) -> Entry:
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            self._require_free(parent, name)
            os.mknod(name, new.mode, device, dir_fd=parent.fd)
            with or_nothing(parent, name):
                self._own(parent, name, new)
            return self._made(parent, name)

    def link(self, nodeid: int, parent_id: int, name: str, caller: Caller) -> Entry | Slow[Entry]:
        """A second name for a committed file. Of one that was closed, or whose own writer asks
        for the name, the commit comes first."""
        parent = self._writable_parent(parent_id, name)
        node = self.nodes.get(nodeid)
        if not isinstance(node, File) or node.parent is None:
            raise PermissionError(errno.EPERM, "cannot be linked")
        source, version = node.parent, node.version

        def link() -> Entry:
            if version is not None:
                closing.wait_settled(self.versions, version)
                committing.publish_named(self.versions, version, caller)
            with self.store.order.path_lock(source.fd, node.name), self.lock:
                return self._link(node, source, parent, name)

        return Slow(link)

    def _link(self, node: File, source: Directory, parent: Directory, name: str) -> Entry:
        if node.version is not None and node.version.unpublished:
            raise OSError(errno.EOPNOTSUPP, "not committed yet")
        if not stands(node):
            raise stale()
        self._require_free(parent, name)
        with self.metadata.unchanged_bytes(source, node.name):
            self.store.files.link(source.at(node.name), parent.at(name))
        self.caches.drop_attributes(node.id)  # the new name is another node
        return self._made(parent, name)

    def _require_free(self, parent: Directory, name: str) -> None:
        if self.versions.at(parent, name):
            raise FileExistsError(errno.EEXIST, "exists")
        self._check_device(parent)

    # --- removing and renaming -------------------------------------------------------------------

    def unlink(self, parent_id: int, name: str) -> Slow[None]:
        parent = self._writable_parent(parent_id, name)

        def unlink() -> None:
            self.store.room.before_freeing()
            with naming.held(self.versions, parent, name) as staged:
                try:
                    with self._losing_its_name(parent, name):
                        self.store.files.unlink(parent.at(name))
                except FileNotFoundError:
                    if not staged:
                        raise
                    self._touch(parent)
                with self.lock:
                    self._orphan(staged)
                    self.locks.renamed((parent.ident, name), None)

        return Slow(unlink)

    def _orphan(self, versions: list[Version]) -> None:
        """The kernel knows it of the one that it has removed alone: another caller's."""
        for version in versions:
            naming.orphan(self.versions, version)
            self.caches.drop_attributes(version.node.id)

    @contextlib.contextmanager
    def _losing_its_name(self, parent: Directory, name: str) -> Iterator[None]:
        """Who has it open by O_PATH has no handle, and asks for its status all the same. A regular
        file is not kept for that: freeing it can take long, and is not left to a FORGET."""
        with self.versions.replacing(parent, name) as node:
            if not isinstance(node, File):
                with self._removing(node):
                    yield
                return
            with osfs.opened(self.store.fs, parent.fd, name, os.O_PATH) as fd:
                yield
                node.last = os.fstat(fd)
                if node.kind != stat.S_IFREG and node.fd < 0 and self.room.for_users():
                    node.fd = Descriptor(os.dup(fd))
        self.caches.drop_attributes(node.id)  # its writer removes another node, its version

    def rmdir(self, parent_id: int, name: str) -> None:
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            node = self.nodes.find(parent, name, status)
            if isinstance(node, Directory) and self.versions.any_below(node):
                raise OSError(errno.ENOTEMPTY, "files are being written in it")
            with self._removing(node):
                os.rmdir(name, dir_fd=parent.fd)
            self.store.order.note_changed_dir(parent.fd)

    @contextlib.contextmanager
    def _removing(self, node: Node | None) -> Iterator[None]:
        """A directory is removed, or replaced by a rename; somebody may stand in it."""
        with self.nodes.moving(node):
            yield
            if isinstance(node, Directory):
                with self.lock:
                    self.nodes.removed(node, stays_open=self.room.for_users())

    def rename(
        self,
        parent_id: int,
        name: str,
        new_parent_id: int,
        new_name: str,
        flags: int,
        caller: Caller,
    ) -> Slow[None] | None:
        """Committed files: a commit of the target. Open versions are carried along; one that its
        writer has fsynced, as it is by now, is committed first."""
        parent = self._writable_parent(parent_id, name)
        target = self._writable_parent(new_parent_id, new_name)
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "not supported")

        if (parent, name) == (target, new_name):
            return None

        def rename() -> None:
            self._publish_finished(parent, name, caller)
            with self.lock:
                self.versions.tell(parent, name)
                self.versions.tell(target, new_name)
            with naming.held(self.versions, parent, name, (target, new_name)) as held:
                change = self._exchange if flags & RENAME_EXCHANGE else self._rename
                change(parent, name, target, new_name, flags, caller, held)

        return Slow(rename)

    def _publish_finished(self, parent: Directory, name: str, caller: Caller) -> None:
        """What was fsynced, or closed by who gives the name, and was not changed since."""
        with self.lock:
            versions = list(self.versions.at(parent, name))
        for version in versions:
            now = fingerprint(self.store.fs, version.staged.fd)
            if now in (version.synced, version.closers.get(caller.process or 0)):
                committing.publish_named(self.versions, version, caller)

    def _rename(
        self,
        parent: Directory,
        name: str,
        target: Directory,
        new_name: str,
        flags: int,
        caller: Caller,
        held: list[Version],
    ) -> None:
        with self.lock:
            moving = [v for v in self.versions.at(parent, name) if v in held]
            replaced = [v for v in self.versions.at(target, new_name) if v in held]
            status, taken = lstat(parent.fd, name), lstat(target.fd, new_name)
            node = self.nodes.find(parent, name, status) if status else None
            if flags & RENAME_NOREPLACE and (taken or replaced):
                raise FileExistsError(errno.EEXIST, "exists")
            if status is None and not moving:
                raise FileNotFoundError(errno.ENOENT, "no such file")
            if status is None and taken and stat.S_ISDIR(taken.st_mode):
                raise IsADirectoryError(errno.EISDIR, "is a directory")
            there = self.nodes.find(target, new_name, taken) if taken else None
            if isinstance(there, Directory) and self.versions.any_below(there):
                raise OSError(errno.ENOTEMPTY, "files are being written in it")
        with self.nodes.moving(node):
            if status is None:
                self._touch(parent)
                self._touch(target)
            elif taken is None or identity(taken) != identity(status):  # else rename(2) is nothing
                with self._losing_its_name(target, new_name):
                    self._rename_committed(parent, name, target, new_name, status)
            with self.lock:
                self._orphan(replaced)
                for version in moving:
                    naming.move(self.versions, version, target, new_name, caller)
                if node is not None:
                    self.nodes.move(node, target, new_name)
                    self.caches.drop_attributes(node.id)  # its ctime has moved
                self.locks.renamed((parent.ident, name), (target.ident, new_name))

    def _exchange(
        self,
        parent: Directory,
        name: str,
        target: Directory,
        new_name: str,
        flags: int,
        caller: Caller,
        held: list[Version],
    ) -> None:
        """Committed files and staged versions of both names; of each name one may be missing."""
        with self.lock:
            places = (parent, name), (target, new_name)
            staged = [[v for v in self.versions.at(*place) if v in held] for place in places]
            found = [lstat(folder.fd, entry) for folder, entry in places]
            nodes = [
                self.nodes.find(*p, s) if s else None for p, s in zip(places, found, strict=True)
            ]
        if not all(s or v for s, v in zip(found, staged, strict=True)):
            raise FileNotFoundError(errno.ENOENT, "no such file")
        with self.nodes.moving(*nodes):
            self._exchange_committed(places, found)
            with self.lock:
                for versions, node, place in zip(staged, nodes, reversed(places), strict=True):
                    for version in versions:
                        naming.move(self.versions, version, *place, None)
                    if node is not None:
                        self.nodes.move(node, *place)
                        self.caches.drop_attributes(node.id)
                self.locks.exchanged((parent.ident, name), (target.ident, new_name))

    def _exchange_committed(
        self,
        places: tuple[tuple[Directory, str], tuple[Directory, str]],
        found: list[os.stat_result | None],
    ) -> None:
        (parent, name), (target, new_name) = places
        if all(found):
            with (
                self.metadata.unchanged_bytes(parent, name),
                self.metadata.unchanged_bytes(target, new_name),
            ):
                self.store.files.exchange(parent.at(name), target.at(new_name))
        elif found[0] is not None:
            self._rename_committed(parent, name, target, new_name, found[0])
        elif found[1] is not None:
            self._rename_committed(target, new_name, parent, name, found[1])
        else:
            self._touch(parent)
            self._touch(target)

    def _rename_committed(
        self, parent: Directory, name: str, target: Directory, new_name: str, status: os.stat_result
    ) -> None:
        unchanged = self.metadata.unchanged_bytes
        is_file = stat.S_ISREG(status.st_mode)
        with unchanged(parent, name) if is_file else contextlib.nullcontext():
            self.store.files.rename(parent.at(name), target.at(new_name))


def _is_large(node: Node) -> bool:
    return isinstance(node, Directory) and os.fstat(node.fd).st_size > _LARGE_BYTES


def _type_of(entry: os.DirEntry[str]) -> int:
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
