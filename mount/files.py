"""Opening, creating, closing, and data where the kernel does not carry it.

An open for writing gets a version of its own, hence a node of its own: the kernel is answered
ESTALE once, looks the path up again, and opens the node that the lookup then gives (DESIGN §7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NoReturn

from ckptfs import osfs
from ckptfs.mount.base import Base, Entry, Slow, exists, own, stale
from ckptfs.mount.locks import LockSet
from ckptfs.mount.nodes import STATUS_ID, Directory, File, Virtual, identity
from ckptfs.mount.versions import Caller, Handle, Version


class Replaced(OSError):
    """Another version stands under the name since the kernel looked it up."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "look again")


class Files(Base):
    """Open file descriptions."""

    def open(self, nodeid: int, flags: int, caller: Caller) -> Handle | Slow[Handle]:
        node = self.nodes.get(nodeid)
        if isinstance(node, Virtual):
            return self._open_virtual(node, flags)
        if not isinstance(node, File) or node.parent is None:
            raise OSError(errno.EISDIR if isinstance(node, Directory) else errno.ENXIO, "no file")
        writing = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if not writing:
            return self._open_for_reading(node, node.parent, flags)
        if self.store.in_place(node.path()):
            return Slow(lambda: self._open_in_place(node, flags))
        return self._open_for_writing(node, node.parent, flags, caller)

    def _open_virtual(self, node: Virtual, flags: int) -> Handle:
        if node.id != STATUS_ID:
            raise IsADirectoryError(errno.EISDIR, "a directory")
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EPERM, "read-only")
        fd = os.memfd_create("status.json")
        os.write(fd, self.status_json())
        handle = self._handle(node, fd, flags)
        handle.relayed = True
        return handle

    def _open_for_reading(self, node: File, parent: Directory, flags: int) -> Handle | Slow[Handle]:
        with self.lock:
            version = node.version
            if version is not None and version.active:
                return self._handle(node, os.dup(version.staged.fd), flags)
        if not self.store.options.verify_opens or self.store.guard.known_good(parent.fd, node.name):
            with contextlib.suppress(Replaced):
                return self._open_committed(node, flags)

        def verified() -> Handle:
            while True:
                status = os.stat(node.name, dir_fd=parent.fd, follow_symlinks=False)
                live = self.versions.sealed_here(identity(status))
                if self.store.verify_open(node.path(), parent.fd, node.name, live=live):
                    node.rotten = identity(status) == node.ident
                    raise stale()  # rolled back: the name stands for another inode now
                with contextlib.suppress(Replaced):
                    return self._open_current(node, parent, status, flags)

        return Slow(verified)

    def _open_current(
        self, node: File, parent: Directory, verified: os.stat_result, flags: int
    ) -> Handle:
        """Open what stands under the name now, on the node of the version that the kernel looked
        up: it looks again only once, and versions can follow each other faster than that."""
        fd = os.open(node.name, os.O_RDONLY | osfs.NOFOLLOW, dir_fd=parent.fd)
        status = os.fstat(fd)
        with self.lock:
            if identity(status) != identity(verified) or not stat.S_ISREG(status.st_mode):
                os.close(fd)
                raise Replaced
            if node.rotten:
                os.close(fd)
                raise stale()
            for other in node.handles:  # a node has one file as long as it is open at all
                os.dup2(other.fd, fd, inheritable=False)
                break
            return self._handle(node, fd, flags)

    def _open_committed(self, node: File, flags: int) -> Handle:
        assert node.parent is not None
        access = os.O_RDWR if flags & os.O_ACCMODE != os.O_RDONLY else os.O_RDONLY
        fd = os.open(node.name, access | osfs.NOFOLLOW, dir_fd=node.parent.fd)
        if identity(os.fstat(fd)) != node.ident:
            os.close(fd)
            raise Replaced
        return self._handle(node, fd, flags)

    def _open_in_place(self, node: File, flags: int) -> Handle:
        assert node.parent is not None
        self.store.committer.require_writable()
        self.store.committer.open_in_place(node.parent.fd, node.name)
        handle = self._open_committed(node, flags | os.O_RDWR)
        if flags & os.O_TRUNC:
            os.ftruncate(handle.fd, 0)
        return handle

    def _open_for_writing(
        self, node: File, parent: Directory, flags: int, caller: Caller
    ) -> Handle | Slow[Handle]:
        truncate = bool(flags & os.O_TRUNC)
        self._check_device(parent)
        with self.lock:
            version = node.version
            if version is not None and version.unpublished and self._joins(version, flags, caller):
                return self._write_handle(node, version, flags, caller)
            expecting = self._expecting(parent, node.name, caller)
            if expecting is not None:  # /proc/self/fd/N: no LOOKUP came between the two OPENs
                if version is not None and version.active:
                    return Slow(lambda: self._open_itself(node, version, expecting, flags, caller))
                return self._write_handle(node, expecting, flags, caller)
            if truncate and not self._due(parent, node.name):
                self._start(parent, node.name, caller, truncate=True)

        def start() -> Handle:
            while True:
                for version in self._due(parent, node.name):
                    self.versions.wait_settled(version)
                with self.store.committer.path_lock(parent.fd, node.name):
                    if not self._due(parent, node.name):
                        self._start(parent, node.name, caller, truncate=truncate)

        return Slow(start)

    def _open_itself(
        self, node: File, version: Version, needless: Version, flags: int, caller: Caller
    ) -> Handle:
        """A descriptor that is opened again by its link stands for the file that it has open."""
        self.versions.dismiss(needless, caller)
        with self.lock:
            if version.ended:
                raise stale()
            handle = self._write_handle(node, version, flags, caller)
            if flags & os.O_TRUNC:
                os.ftruncate(handle.fd, 0)
            return handle

    def _joins(self, version: Version, flags: int, caller: Caller) -> bool:
        if caller.pid in version.expected:
            return True
        if not flags & os.O_TRUNC:
            return version.joinable
        empty = os.fstat(version.staged.fd).st_size == 0
        return version.joinable and empty and flags & os.O_ACCMODE == os.O_RDWR

    def _expecting(self, parent: Directory, name: str, caller: Caller) -> Version | None:
        for version in self.versions.at(parent, name):
            if caller.pid in version.expected:
                return version
        return None

    def _due(self, parent: Directory, name: str) -> list[Version]:
        """Versions of a path that everybody has closed, and that are not committed yet."""
        with self.lock:
            return [v for v in self.versions.at(parent, name) if v.closing and v.unpublished]

    def _start(self, parent: Directory, name: str, caller: Caller, *, truncate: bool) -> NoReturn:
        """Make a version for this caller, or choose the youngest that it can join, and send it
        back to look the path up again."""
        with self.lock:
            youngest = self.versions.at(parent, name)[-1:]
            if youngest and youngest[0].joinable and not truncate:
                self._send_back(youngest[0], caller)
        version = self.versions.begin(
            parent, name, caller, exists=exists(parent.fd, name), truncate=truncate
        )
        self._send_back(version, caller)

    def _send_back(self, version: Version, caller: Caller) -> NoReturn:
        self.versions.expect(version, caller)
        raise stale()

    def _write_handle(self, node: File, version: Version, flags: int, caller: Caller) -> Handle:
        handle = self._handle(node, os.dup(version.staged.fd), flags)
        handle.relayed = node is not version.node
        self.versions.join(version, handle, caller)
        return handle

    def create(
        self, parent_id: int, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, Handle]:
        parent = self._writable_parent(parent_id, name)
        path = parent.child_path(name)
        with self.lock:
            taken = exists(parent.fd, name) or bool(self.versions.at(parent, name))
            if taken and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "exists")
            if self.store.in_place(path):
                return self._create_in_place(parent, name, flags, mode, caller)
            if taken:  # made by somebody else since the kernel looked
                raise stale()
            self._check_device(parent)
            version = self.versions.begin(parent, name, caller, exists=False, truncate=True)
            own(version.staged.fd, parent, mode, caller)
            entry = self._entry(version.node, os.fstat(version.staged.fd))
            return entry, self._write_handle(version.node, version, flags, caller)

    def _create_in_place(
        self, parent: Directory, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, Handle]:
        keep = flags & (os.O_EXCL | os.O_TRUNC)
        fd = os.open(name, os.O_RDWR | os.O_CREAT | keep | osfs.NOFOLLOW, 0o600, dir_fd=parent.fd)
        own(fd, parent, mode, caller)
        self.store.committer.note_changed_dir(parent.fd)
        status = os.fstat(fd)
        node = self.nodes.committed(parent, name, status)
        return self._entry(node, status), self._handle(node, fd, flags)

    # --- data, where the kernel does not carry it ------------------------------------------------

    def read(self, handle_id: int, size: int, offset: int) -> bytes:
        return os.pread(self.handle(handle_id).fd, size, offset)

    def write(self, handle_id: int, data: memoryview, offset: int) -> int:
        handle = self.handle(handle_id)
        if handle.flags & os.O_APPEND:
            with self.lock:
                return os.pwrite(handle.fd, data, os.fstat(handle.fd).st_size)
        return os.pwrite(handle.fd, data, offset)

    def flush(self, handle_id: int, caller: Caller) -> Slow[None] | None:
        work = self.versions.flush(self.handle(handle_id), caller)
        return None if work is None else Slow(work)

    def release(self, handle_id: int) -> Slow[None] | None:
        with self.lock:
            handle = self.handles.pop(handle_id)
            if isinstance(handle.node, File):
                handle.node.handles.discard(handle)
        work = self.versions.release(handle)
        os.close(handle.fd)
        with self.lock:
            if isinstance(handle.node, File):
                self.nodes.drop_if_forgotten(handle.node)
        return None if work is None else Slow(work)

    def fsync(self, handle_id: int) -> Slow[None]:
        """The bytes are durable on return, in stage as in place; a staged name is not
        published by it."""
        handle = self.handle(handle_id)

        def sync() -> None:
            version = handle.version
            try:
                self.store.fs.fsync(handle.fd)
                if version is not None and version.unpublished:
                    self.store.committer.sync_dir(self.store.layout.stage)
            except OSError as error:
                if version is not None and version.failure is None:
                    self.versions.fail(version, error)
                raise

        return Slow(sync)

    def fsync_dir(self, nodeid: int) -> Slow[None]:
        directory = self.nodes.directory(nodeid)

        def sync() -> None:
            self.store.committer.sync_changed_dirs()
            self.store.committer.sync_dir(directory.fd)

        return Slow(sync)

    def fallocate(self, handle_id: int, mode: int, offset: int, length: int) -> None:
        handle = self.handle(handle_id)
        if mode:
            raise OSError(errno.EOPNOTSUPP, "only plain allocation")
        os.posix_fallocate(handle.fd, offset, length)

    def seek(self, handle_id: int, offset: int, whence: int) -> int:
        return os.lseek(self.handle(handle_id).fd, offset, whence)

    # --- locks -----------------------------------------------------------------------------------

    def lock_set(self, handle_id: int) -> LockSet:
        """The locks of the path that the handle was opened by."""
        handle = self.handle(handle_id)
        if handle.locks is None:
            with self.lock:
                parent = handle.node.parent
                handle.locks = self.locks.of(parent.id if parent else 0, handle.node.name)
        return handle.locks

    def unlock_all(self, handle_id: int, owner: int, *, is_flock: bool) -> None:
        """A close ends the POSIX locks of its process, the last one the flock of the open file."""
        locks = self.handle(handle_id).locks
        if locks is not None:
            self.locks.drop_owner(locks, owner, is_flock=is_flock)

    def statfs(self) -> os.statvfs_result:
        return os.fstatvfs(self.store.root)
