"""Names: directories, links, removing and renaming."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from ckptfs import format as fmt
from ckptfs import osfs
from ckptfs.mount.base import Base, Entry, Slow, lstat, own, owner
from ckptfs.mount.nodes import ROOT_ID, Directory, File, Node
from ckptfs.mount.versions import Caller, Handle

RENAME_NOREPLACE = 1


class Namespace(Base):
    """Operations on names, staged ones too."""

    def readlink(self, nodeid: int) -> str:
        node = self.nodes.get(nodeid)
        assert node.parent is not None
        return os.readlink(node.name, dir_fd=node.parent.fd)

    def opendir(self, nodeid: int) -> Handle:
        node = self.nodes.get(nodeid)
        if isinstance(node, File):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return self._handle(node, -1, 0)

    def listing(self, handle_id: int, restart: bool) -> list[tuple[str, int, int]]:
        """``(name, inode, type)`` of every name, staged ones too; taken anew on ``restart``."""
        handle = self.handle(handle_id)
        if restart:
            handle.listing = list(self._list(handle.node))
        return handle.listing

    def _list(self, node: Node) -> Iterator[tuple[str, int, int]]:
        yield ".", node.ident[1], stat.S_IFDIR
        yield "..", (node.parent or node).ident[1], stat.S_IFDIR
        if not isinstance(node, Directory):
            return
        seen = set()
        with os.scandir(node.fd) as entries:
            for entry in entries:
                if node.id == ROOT_ID and entry.name == fmt.CONTROL:
                    continue
                seen.add(entry.name)
                yield entry.name, entry.inode(), _type_of(entry)
        with self.lock:
            staged = list(self.versions.below(node))
        for name, version in staged:
            if name not in seen:
                yield name, version.node.ident[1], stat.S_IFREG

    def releasedir(self, handle_id: int) -> None:
        with self.lock:
            self.handles.pop(handle_id, None)

    def mkdir(self, parent_id: int, name: str, mode: int, caller: Caller) -> Entry:
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            if self.versions.at(parent, name):
                raise FileExistsError(errno.EEXIST, "exists")
            os.mkdir(name, mode & 0o777, dir_fd=parent.fd)
            with osfs.opened(self.store.fs, parent.fd, name, osfs.DIRECTORY) as fd:
                own(fd, parent, mode, caller, directory=True)
            return self._made(parent, name)

    def symlink(self, parent_id: int, name: str, target: str, caller: Caller) -> Entry:
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            self._require_free(parent, name)
            os.symlink(target, name, dir_fd=parent.fd)
            uid, gid = owner(parent, caller)
            os.chown(name, uid, gid, dir_fd=parent.fd, follow_symlinks=False)
            return self._made(parent, name)

    def mknod(self, parent_id: int, name: str, mode: int, device: int, caller: Caller) -> Entry:
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            self._require_free(parent, name)
            os.mknod(name, mode, device, dir_fd=parent.fd)
            uid, gid = owner(parent, caller)
            os.chown(name, uid, gid, dir_fd=parent.fd, follow_symlinks=False)
            return self._made(parent, name)

    def link(self, nodeid: int, parent_id: int, name: str) -> Entry:
        """A second name for a committed file. One that is being written has no link yet."""
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            node = self.nodes.get(nodeid)
            if not isinstance(node, File) or node.parent is None:
                raise PermissionError(errno.EPERM, "cannot be linked")
            if node.version is not None and node.version.unpublished:
                raise OSError(errno.EOPNOTSUPP, "not committed yet")
            self._require_free(parent, name)
            with self.versions.unchanged_bytes(node.parent, node.name):
                os.link(
                    node.name,
                    name,
                    src_dir_fd=node.parent.fd,
                    dst_dir_fd=parent.fd,
                    follow_symlinks=False,
                )
            return self._made(parent, name)

    def _require_free(self, parent: Directory, name: str) -> None:
        if self.versions.at(parent, name):
            raise FileExistsError(errno.EEXIST, "exists")
        self._check_device(parent)

    # --- removing and renaming -------------------------------------------------------------------

    def unlink(self, parent_id: int, name: str) -> Slow[None]:
        parent = self._writable_parent(parent_id, name)

        def unlink() -> None:
            with self.versions.held(parent, name):
                with self.lock:
                    staged = list(self.versions.at(parent, name))
                    for version in staged:
                        self.versions.orphan(version)
                    self.locks.renamed((parent.id, name), None)
                try:
                    self.store.committer.unlink(parent.fd, name)
                except FileNotFoundError:
                    if not staged:
                        raise

        return Slow(unlink)

    def rmdir(self, parent_id: int, name: str) -> None:
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            node = self.nodes.find(parent, name, status)
            if isinstance(node, Directory) and any(self.versions.below(node)):
                raise OSError(errno.ENOTEMPTY, "files are being written in it")
            os.rmdir(name, dir_fd=parent.fd)
            if node is not None:
                self.nodes.detach(node)
            self.store.committer.note_changed_dir(parent.fd)

    def rename(
        self, parent_id: int, name: str, new_parent_id: int, new_name: str, flags: int
    ) -> Slow[None] | None:
        """Committed files: a commit of the target. Open versions are carried along."""
        parent = self._writable_parent(parent_id, name)
        target = self._writable_parent(new_parent_id, new_name)
        if flags & ~RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "not supported")

        if (parent, name) == (target, new_name):
            return None

        def rename() -> None:
            with self.versions.held(parent, name, (target, new_name)):
                self._rename(parent, name, target, new_name, flags)

        return Slow(rename)

    def _rename(
        self, parent: Directory, name: str, target: Directory, new_name: str, flags: int
    ) -> None:
        with self.lock:
            moving = list(self.versions.at(parent, name))
            replaced = list(self.versions.at(target, new_name))
            status, taken = lstat(parent.fd, name), lstat(target.fd, new_name)
            node = self.nodes.find(parent, name, status) if status else None
            if flags & RENAME_NOREPLACE and (taken or replaced):
                raise FileExistsError(errno.EEXIST, "exists")
            if status is None and not moving:
                raise FileNotFoundError(errno.ENOENT, "no such file")
            if status is None and taken and stat.S_ISDIR(taken.st_mode):
                raise IsADirectoryError(errno.EISDIR, "is a directory")
        if status is not None:
            self._rename_committed(parent, name, target, new_name, status)
        with self.lock:
            for version in replaced:
                self.versions.orphan(version)
            for version in moving:
                self.versions.move(version, target, new_name)
            if node is not None:
                self.nodes.move(node, target, new_name)
            self.locks.renamed((parent.id, name), (target.id, new_name))

    def _rename_committed(
        self, parent: Directory, name: str, target: Directory, new_name: str, status: os.stat_result
    ) -> None:
        committer = self.store.committer
        if stat.S_ISREG(status.st_mode):
            with self.versions.unchanged_bytes(parent, name, (target, new_name)):
                committer.rename(parent.fd, name, target.fd, new_name)
            return
        os.rename(name, new_name, src_dir_fd=parent.fd, dst_dir_fd=target.fd)
        committer.note_changed_dir(parent.fd)
        committer.note_changed_dir(target.fd)


def _type_of(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
