"""File operations over the store: names, handles, visibility. No FUSE types.

What an operation needs that may be slow (fsync, digest, copy, verify) it returns as a
:class:`Slow`, which the session runs elsewhere, so that the loop goes on answering. Expected
failures are ``OSError`` and ``CkptfsError``, which carry their errno.

Threading: the tables are guarded by ``versions.lock``; operations may run in any thread.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ckptfs import format as fmt
from ckptfs import osfs
from ckptfs.mount import writers
from ckptfs.mount.nodes import (
    CONTROL_ID,
    ROOT_ID,
    STATUS_ID,
    Directory,
    File,
    Node,
    NodeTable,
    Virtual,
    identity,
)
from ckptfs.mount.versions import Caller, Handle, Version, Versions
from ckptfs.protocol import VISIBLE
from ckptfs.store import Store

T = TypeVar("T")
_SET_ID = stat.S_ISUID | stat.S_ISGID
RENAME_NOREPLACE = 1


@dataclass(frozen=True)
class Slow(Generic[T]):
    """The rest of an operation, to be run where it may block."""

    run: Callable[[], T]


@dataclass(frozen=True)
class Entry:
    node: Node
    status: os.stat_result


def stale() -> OSError:
    """The kernel looks the path up again and opens what it finds then; at most once."""
    return OSError(errno.ESTALE, "look again")


class Operations:
    def __init__(self, store: Store, status: Callable[[], dict[str, Any]]) -> None:
        self.store = store
        self.nodes = NodeTable(store.root)
        self.versions = Versions(store, self.nodes)
        self.lock = self.versions.lock
        self.handles: dict[int, Handle] = {}
        self._ids = itertools.count(1)
        self._status = status
        self._mounted_ns = time.time_ns()

    # --- names -----------------------------------------------------------------------------------

    def lookup(self, parent_id: int, name: str, caller: Caller) -> Entry:
        with self.lock:
            if parent_id <= STATUS_ID:
                virtual = self._virtual(parent_id, name)
                if virtual is not None:
                    return self._entry(virtual, self._virtual_status(virtual))
            parent = self.nodes.directory(parent_id)
            staged = self.versions.at(parent, name)
            if staged:
                own = self.versions.visible_to(caller, parent, name)
                if own is not None:
                    return self._entry(own.node, os.fstat(own.staged.fd))
            try:
                status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            except FileNotFoundError:
                if not staged:
                    raise
                return self._entry(staged[-1].node, os.fstat(staged[-1].staged.fd))
            return self._entry(self.nodes.committed(parent, name, status), status)

    def _entry(self, node: Node, status: os.stat_result) -> Entry:
        node.lookups += 1
        return Entry(node, status)

    def _virtual(self, parent_id: int, name: str) -> Node | None:
        if parent_id == ROOT_ID and name == fmt.CONTROL:
            return self.nodes.get(CONTROL_ID)
        if parent_id == CONTROL_ID:
            if name == "status.json":
                return self.nodes.get(STATUS_ID)
            raise FileNotFoundError(errno.ENOENT, "not shown through the mount")
        return None

    def _virtual_status(self, node: Node) -> os.stat_result:
        is_dir = node.id == CONTROL_ID
        mode = stat.S_IFDIR | 0o555 if is_dir else stat.S_IFREG | 0o444
        size = 0 if is_dir else len(self.status_json())
        when = self._mounted_ns
        times = {"st_atime_ns": when, "st_mtime_ns": when, "st_ctime_ns": when}
        fields = (mode, node.id, 0, 1, os.getuid(), os.getgid(), size, 0, 0, 0)
        return os.stat_result(fields, times)

    def status_json(self) -> bytes:
        return json.dumps(self._status(), indent=1).encode() + b"\n"

    def forget(self, nodeid: int, lookups: int) -> None:
        with self.lock:
            self.nodes.forget(nodeid, lookups)

    def getattr(self, nodeid: int, handle_id: int | None) -> os.stat_result:
        with self.lock:
            node = self.nodes.get(nodeid)
            if isinstance(node, Virtual):
                return self._virtual_status(node)
            if isinstance(node, Directory):
                return os.fstat(node.fd)
            assert isinstance(node, File)
            handle = self.handles.get(handle_id) if handle_id is not None else None
            if handle is not None:
                return os.fstat(handle.fd)
            return self._file_status(node)

    def _file_status(self, node: File) -> os.stat_result:
        """From the version's own descriptor, or the path while it still is this version."""
        if node.version is not None and node.version.active:
            return os.fstat(node.version.staged.fd)
        if node.parent is not None:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(node.name, dir_fd=node.parent.fd, follow_symlinks=False)
                if identity(status) == node.ident:
                    return status
        for handle in node.handles:
            return os.fstat(handle.fd)
        raise stale()

    def readlink(self, nodeid: int) -> str:
        node = self.nodes.get(nodeid)
        assert node.parent is not None
        return os.readlink(node.name, dir_fd=node.parent.fd)

    # --- opening ---------------------------------------------------------------------------------

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
            return self._open_committed(node, flags)

        def verified() -> Handle:
            live = self.versions.sealed_here(node.ident)
            if self.store.verify_open(node.path(), parent.fd, node.name, live=live):
                raise stale()  # rolled back: the name stands for another inode now
            return self._open_committed(node, flags)

        return Slow(verified)

    def _open_committed(self, node: File, flags: int) -> Handle:
        assert node.parent is not None
        access = os.O_RDWR if flags & os.O_ACCMODE != os.O_RDONLY else os.O_RDONLY
        fd = os.open(node.name, access | osfs.NOFOLLOW, dir_fd=node.parent.fd)
        if identity(os.fstat(fd)) != node.ident:
            os.close(fd)
            raise stale()
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
        with self.lock:
            version = node.version
            if version is not None and version.unpublished and self._joins(version, flags, caller):
                return self._write_handle(node, version, flags, caller)
            waiting = self._waiting_for(parent, node.name, caller)
            if waiting is not None:  # /proc/self/fd/N: no LOOKUP came between the two OPENs
                return self._write_handle(node, waiting, flags, caller)
            youngest = self.versions.at(parent, node.name)[-1:]
            if youngest and not truncate:
                self._send_back(youngest[0], caller)
            if truncate and version is None:
                self._start(parent, node.name, caller, truncate=True, wait_for=None)

        def start() -> Handle:
            self._start(parent, node.name, caller, truncate=truncate, wait_for=version)
            raise AssertionError("unreachable")

        return Slow(start)

    def _joins(self, version: Version, flags: int, caller: Caller) -> bool:
        if version.waiting is not None:
            return version.waiting[0] == caller.pid
        if version.public:
            return False
        if not flags & os.O_TRUNC:
            return True
        empty = os.fstat(version.staged.fd).st_size == 0
        return empty and flags & os.O_ACCMODE == os.O_RDWR

    def _waiting_for(self, parent: Directory, name: str, caller: Caller) -> Version | None:
        for version in self.versions.at(parent, name):
            if version.waiting and version.waiting[0] == caller.pid:
                return version
        return None

    def _start(
        self,
        parent: Directory,
        name: str,
        caller: Caller,
        *,
        truncate: bool,
        wait_for: Version | None,
    ) -> None:
        """Make a version for this caller and send it back to look the path up again."""
        if wait_for is not None:
            self.versions.wait_settled(wait_for)
        exists = _exists(parent.fd, name)
        version = self.versions.begin(parent, name, caller, exists=exists, truncate=truncate)
        self._send_back(version, caller)

    def _send_back(self, version: Version, caller: Caller) -> None:
        process = writers.thread_group(caller.pid)
        with self.lock:
            if not version.handles:
                version.waiting = caller.pid, time.monotonic()
            if process is not None:
                version.members.add(process)
        raise stale()

    def _write_handle(self, node: File, version: Version, flags: int, caller: Caller) -> Handle:
        handle = self._handle(node, os.dup(version.staged.fd), flags)
        handle.relayed = node is not version.node
        self.versions.join(version, handle, caller)
        return handle

    def _handle(self, node: Node, fd: int, flags: int) -> Handle:
        handle = Handle(next(self._ids), node, fd, flags, None)
        with self.lock:
            self.handles[handle.id] = handle
            if isinstance(node, File):
                node.handles.add(handle)
        return handle

    def create(
        self, parent_id: int, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, Handle]:
        parent = self._writable_parent(parent_id, name)
        path = parent.child_path(name)
        with self.lock:
            taken = _exists(parent.fd, name) or bool(self.versions.at(parent, name))
            if taken and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "exists")
            if self.store.in_place(path):
                return self._create_in_place(parent, name, flags, mode, caller)
            if taken:  # made by somebody else since the kernel looked
                raise stale()
            self._check_device(parent)
            version = self.versions.begin(parent, name, caller, exists=False, truncate=True)
            _own(version.staged.fd, parent, mode, caller)
            entry = self._entry(version.node, os.fstat(version.staged.fd))
            return entry, self._write_handle(version.node, version, flags, caller)

    def _create_in_place(
        self, parent: Directory, name: str, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, Handle]:
        keep = flags & (os.O_EXCL | os.O_TRUNC)
        fd = os.open(name, os.O_RDWR | os.O_CREAT | keep | osfs.NOFOLLOW, 0o600, dir_fd=parent.fd)
        _own(fd, parent, mode, caller)
        self.store.committer.note_changed_dir(parent.fd)
        status = os.fstat(fd)
        node = self.nodes.committed(parent, name, status)
        return self._entry(node, status), self._handle(node, fd, flags)

    def _check_device(self, parent: Directory) -> None:
        if parent.ident[0] != self.nodes.root.ident[0]:
            raise OSError(errno.EXDEV, "another filesystem below the served directory")

    def _writable_parent(self, parent_id: int, name: str) -> Directory:
        self.store.committer.require_writable()
        if parent_id == ROOT_ID and name == fmt.CONTROL:
            raise PermissionError(errno.EPERM, "this name belongs to ckptfs")
        return self.nodes.directory(parent_id)

    # --- data, where the kernel does not carry it ------------------------------------------------

    def handle(self, handle_id: int) -> Handle:
        try:
            return self.handles[handle_id]
        except KeyError:
            raise OSError(errno.EBADF, "unknown handle") from None

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

    def statfs(self) -> os.statvfs_result:
        return os.fstatvfs(self.store.root)

    # --- directories -----------------------------------------------------------------------------

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
                _own(fd, parent, mode, caller, directory=True)
            return self._made(parent, name)

    def _made(self, parent: Directory, name: str) -> Entry:
        self.store.committer.note_changed_dir(parent.fd)
        status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        return self._entry(self.nodes.committed(parent, name, status), status)

    def symlink(self, parent_id: int, name: str, target: str, caller: Caller) -> Entry:
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            self._require_free(parent, name)
            os.symlink(target, name, dir_fd=parent.fd)
            uid, gid = _owner(parent, caller)
            os.chown(name, uid, gid, dir_fd=parent.fd, follow_symlinks=False)
            return self._made(parent, name)

    def mknod(self, parent_id: int, name: str, mode: int, device: int, caller: Caller) -> Entry:
        parent = self._writable_parent(parent_id, name)
        with self.lock:
            self._require_free(parent, name)
            os.mknod(name, mode, device, dir_fd=parent.fd)
            uid, gid = _owner(parent, caller)
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
            staged = self._settled_versions(parent, name)
            with self.lock:
                for version in staged:
                    self.versions.orphan(version)
            try:
                self.store.committer.unlink(parent.fd, name)
            except FileNotFoundError:
                if not staged:
                    raise

        return Slow(unlink)

    def _settled_versions(self, parent: Directory, name: str) -> list[Version]:
        """The unpublished versions of a path, none of them in the middle of a commit."""
        with self.lock:
            versions = list(self.versions.at(parent, name))
        for version in versions:
            self.versions.wait_settled(version)
        with self.lock:
            return [v for v in versions if v in self.versions.at(parent, name)]

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
    ) -> Slow[None]:
        """Committed files: a commit of the target. Open versions are carried along."""
        parent = self._writable_parent(parent_id, name)
        target = self._writable_parent(new_parent_id, new_name)
        if flags & ~RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "not supported")

        def rename() -> None:
            moving = self._settled_versions(parent, name)
            replaced = self._settled_versions(target, new_name)
            with self.lock:
                exists = _exists(target.fd, new_name)
                if flags & RENAME_NOREPLACE and (exists or replaced):
                    raise FileExistsError(errno.EEXIST, "exists")
                status = _lstat(parent.fd, name)
                node = self.nodes.find(parent, name, status) if status else None
                if status is None and not moving:
                    raise FileNotFoundError(errno.ENOENT, "no such file")
                over_directory = exists and stat.S_ISDIR(
                    os.stat(new_name, dir_fd=target.fd, follow_symlinks=False).st_mode
                )
                if status is None and over_directory:
                    raise IsADirectoryError(errno.EISDIR, "is a directory")
            if status is not None:
                self._rename_committed(parent, name, target, new_name, status)
            with self.lock:
                if (parent, name) == (target, new_name):
                    return
                for version in replaced:
                    self.versions.orphan(version)
                for version in moving:
                    self.versions.move(version, target, new_name)
                if node is not None:
                    self.nodes.move(node, target, new_name)

        return Slow(rename)

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

    # --- attributes ------------------------------------------------------------------------------

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
        version = node.version if node.version is not None and node.version.active else None
        if version is not None or handle is not None:
            fd = version.staged.fd if version is not None else handle.fd  # type: ignore[union-attr]
            with self.versions.metadata_change(node.parent, node.name, version):
                yield f"/proc/self/fd/{fd}"
            return
        fd = os.open(node.name, os.O_PATH | osfs.NOFOLLOW, dir_fd=node.parent.fd)
        try:
            if identity(os.fstat(fd)) != node.ident:
                raise stale()
            with self.versions.metadata_change(node.parent, node.name, None):
                yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    def setattr(self, nodeid: int, handle_id: int | None, change: Change) -> os.stat_result | Slow[os.stat_result]:
        node = self.nodes.get(nodeid)
        handle = self.handles.get(handle_id) if handle_id is not None else None
        if change.size is not None:
            return Slow(lambda: self._truncate(node, handle, change))
        self._set_metadata(node, handle, change)
        return self.getattr(nodeid, handle_id)

    def _truncate(self, node: Node, handle: Handle | None, change: Change) -> os.stat_result:
        if not isinstance(node, File) or node.parent is None:
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        assert change.size is not None
        version = node.version
        if handle is not None:
            os.ftruncate(handle.fd, change.size)
        elif version is not None and version.active:
            os.ftruncate(version.staged.fd, change.size)
        elif self.store.in_place(node.path()):
            other = self._open_in_place(node, os.O_RDWR)
            os.ftruncate(other.fd, change.size)
            self.release(other.id)
        elif self._file_status(node).st_size != change.size:
            self._truncate_committed(node, node.parent, change.size)
            raise stale()  # the path stands for the new version now
        self._set_metadata(node, handle, change)
        return self.getattr(node.id, handle.id if handle else None)

    def _truncate_committed(self, node: File, parent: Directory, size: int) -> None:
        """truncate(2) of a committed file: a whole transaction of its own."""
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
        return stat.S_ISLNK(self._file_status(node).st_mode)

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
    def _inode(self, node: Node) -> Iterator[str]:
        """A path under /proc that names the node's inode, for calls that only look."""
        if isinstance(node, Virtual):
            raise OSError(errno.EOPNOTSUPP, "no extended attributes")
        if isinstance(node, Directory):
            yield f"/proc/self/fd/{node.fd}"
            return
        assert isinstance(node, File) and node.parent is not None
        if node.version is not None and node.version.active:
            yield f"/proc/self/fd/{node.version.staged.fd}"
            return
        fd = os.open(node.name, os.O_PATH | osfs.NOFOLLOW, dir_fd=node.parent.fd)
        try:
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.EOPNOTSUPP, "no extended attributes on symlinks")
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    def getxattr(self, nodeid: int, key: str) -> bytes:
        with self._inode(self.nodes.get(nodeid)) as path:
            return os.getxattr(path, key)

    def listxattr(self, nodeid: int) -> list[str]:
        """Ours is hidden: shutil.copy2 would carry it along."""
        with self._inode(self.nodes.get(nodeid)) as path:
            return [key for key in os.listxattr(path) if key != fmt.XATTR]

    def setxattr(self, nodeid: int, key: str, value: bytes, flags: int) -> None:
        self._refuse_ours(key)
        with self._changing(self.nodes.get(nodeid)) as path:
            os.setxattr(path, key, value, flags)

    def removexattr(self, nodeid: int, key: str) -> None:
        self._refuse_ours(key)
        with self._changing(self.nodes.get(nodeid)) as path:
            os.removexattr(path, key)

    def _refuse_ours(self, key: str) -> None:
        if key == fmt.XATTR:
            raise PermissionError(errno.EPERM, "the record is written by commits alone")


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


def _or_keep(value: int | None) -> int:
    return -1 if value is None else value


def _lstat(at: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _exists(at: int, name: str) -> bool:
    return _lstat(at, name) is not None


def _owner(parent: Directory, caller: Caller) -> tuple[int, int]:
    """A new inode belongs to the caller, its group to a setgid directory."""
    above = os.fstat(parent.fd)
    return caller.uid, above.st_gid if above.st_mode & stat.S_ISGID else caller.gid


def _own(
    fd: int, parent: Directory, mode: int, caller: Caller, *, directory: bool = False
) -> None:
    """Owner and mode of a new inode, before anybody can see it."""
    os.fchown(fd, *_owner(parent, caller))
    if directory and os.fstat(parent.fd).st_mode & stat.S_ISGID:
        mode |= stat.S_ISGID
    os.fchmod(fd, mode & 0o7777)


def _type_of(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
