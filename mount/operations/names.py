"""Names that come and go: directories, links, special files, and their removal.

Threading: any thread. What waits for a commit is left as ``Slow``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from ckptfs.disk import osfs
from ckptfs.records import format as fmt

from ..view.answers import Entry, New, Slow, stale
from ..view.descriptors import Descriptor
from ..view.identity import ROOT_ID, lstat
from ..view.model import Caller, Directory, File, Node, Version, stands
from ..view.nodes import NodeTable
from ..writers import closing, committing, naming
from . import setdirs
from .context import Mount
from .looking import entry_of
from .owning import or_nothing, own_at, owner


def mkdir(mount: Mount, parent_id: int, name: str, new: New) -> Entry:
    parent = writable_parent(mount, parent_id, name)
    with mount.lock:
        _require_unused(mount, parent, name)
        mount.sets.wrote(parent, new.caller)
        if lstat(parent.fd, name) is None and setdirs.gathers(mount, parent, name):
            touch(parent)
            return setdirs.make(mount, parent, name, new)
        os.mkdir(name, new.mode & 0o777, dir_fd=parent.fd)
        with or_nothing(parent, name, os.rmdir):
            own_at(mount.store.fs, parent, name, new)
        return _made(mount, parent, name)


def symlink(mount: Mount, parent_id: int, name: str, target: str, caller: Caller) -> Entry:
    parent = writable_parent(mount, parent_id, name)
    with mount.lock:
        _require_free(mount, parent, name)
        os.symlink(target, name, dir_fd=parent.fd)
        with or_nothing(parent, name):
            uid, gid = owner(parent, caller)
            os.chown(name, uid, gid, dir_fd=parent.fd, follow_symlinks=False)
        return _made(mount, parent, name)


def mknod(mount: Mount, parent_id: int, name: str, new: New, device: int) -> Entry:
    parent = writable_parent(mount, parent_id, name)
    with mount.lock:
        _require_free(mount, parent, name)
        os.mknod(name, new.mode, device, dir_fd=parent.fd)
        with or_nothing(parent, name):
            own_at(mount.store.fs, parent, name, new)
        return _made(mount, parent, name)


def link(
    mount: Mount, nodeid: int, parent_id: int, name: str, caller: Caller
) -> Entry | Slow[Entry]:
    """A second name for a committed file. Of one that was closed, or whose own writer asks
    for the name, the commit comes first."""
    parent = writable_parent(mount, parent_id, name)
    node = mount.nodes.get(nodeid)
    if not isinstance(node, File) or node.parent is None:
        raise PermissionError(errno.EPERM, "cannot be linked")
    source, version = node.parent, node.version

    def link() -> Entry:
        if version is not None:
            closing.wait_settled(mount.versions, version)
            committing.publish_named(mount.versions, version, caller)
        with mount.store.order.path_lock(source.fd, node.name), mount.lock:
            return _link(mount, node, source, parent, name)

    return Slow(link)


def _link(mount: Mount, node: File, source: Directory, parent: Directory, name: str) -> Entry:
    if node.version is not None and node.version.unpublished:
        raise OSError(errno.EOPNOTSUPP, "not committed yet")
    if not stands(node):
        raise stale()
    _require_free(mount, parent, name)
    with mount.metadata.unchanged_bytes(source, node.name):
        mount.store.files.link(source.at(node.name), parent.at(name))
    mount.caches.drop_attributes(node.id)  # the new name is another node
    return _made(mount, parent, name)


def _require_unused(mount: Mount, parent: Directory, name: str) -> None:
    if mount.versions.at(parent, name) or mount.sets.at(parent, name):
        raise FileExistsError(errno.EEXIST, "exists")


def _require_free(mount: Mount, parent: Directory, name: str) -> None:
    _require_unused(mount, parent, name)
    check_device(mount.nodes, parent)


def unlink(mount: Mount, parent_id: int, name: str) -> Slow[None]:
    parent = writable_parent(mount, parent_id, name)

    def unlink() -> None:
        mount.store.room.before_freeing()
        with naming.held(mount.versions, parent, name) as staged:
            try:
                with losing_its_name(mount, parent, name):
                    mount.store.files.unlink(parent.at(name))
            except FileNotFoundError:
                if not staged:
                    raise
                touch(parent)
            with mount.lock:
                orphan(mount, staged)
                mount.locks.renamed((parent.ident, name), None)

    return Slow(unlink)


def orphan(mount: Mount, versions: list[Version]) -> None:
    """The kernel knows it of the one that it has removed alone: another caller's."""
    for version in versions:
        naming.orphan(mount.versions, version)
        mount.caches.drop_attributes(version.node.id)


@contextlib.contextmanager
def losing_its_name(mount: Mount, parent: Directory, name: str) -> Iterator[None]:
    """Who has it open by O_PATH has no handle, and asks for its status all the same. A regular
    file is not kept for that: freeing it can take long, and is not left to a FORGET."""
    with mount.versions.replacing(parent, name) as node:
        if not isinstance(node, File):
            with _removing(mount, node):
                yield
            return
        with osfs.opened(mount.store.fs, parent.fd, name, os.O_PATH) as fd:
            yield
            node.last = os.fstat(fd)
            if node.kind != stat.S_IFREG and node.fd < 0 and mount.room.for_users():
                node.fd = Descriptor(os.dup(fd))
    mount.caches.drop_attributes(node.id)  # its writer removes another node, its version


def rmdir(mount: Mount, parent_id: int, name: str) -> Slow[None]:
    """Waits for a publish that speaks of its path."""
    parent = writable_parent(mount, parent_id, name)

    def rmdir() -> None:
        with setdirs.held(mount, (parent, name)) as pendings:
            for pending in pendings:
                setdirs.remove(mount, pending)
                return
            with mount.store.order.steady_directories(), mount.lock:
                _rmdir(mount, parent, name)

    return Slow(rmdir)


def _rmdir(mount: Mount, parent: Directory, name: str) -> None:
    status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
    node = mount.nodes.find(parent, name, status)
    setdirs.require_nothing_below(mount, node)
    with _removing(mount, node):
        os.rmdir(name, dir_fd=parent.fd)
    mount.store.order.note_changed_dir(parent.fd)


@contextlib.contextmanager
def _removing(mount: Mount, node: Node | None) -> Iterator[None]:
    """A directory is removed, or replaced by a rename; somebody may stand in it."""
    with mount.nodes.moving(node):
        yield
        if isinstance(node, Directory):
            with mount.lock:
                mount.nodes.removed(node, stays_open=mount.room.for_users())


def check_device(nodes: NodeTable, parent: Directory) -> None:
    if parent.ident[0] != nodes.root.ident[0]:
        raise OSError(errno.EXDEV, "another filesystem below the served directory")


def writable_parent(mount: Mount, parent_id: int, name: str) -> Directory:
    mount.store.order.require_writable()
    if parent_id == ROOT_ID and name == fmt.CONTROL:
        raise PermissionError(errno.EPERM, "this name belongs to ckptfs")
    return mount.nodes.directory(parent_id)


def _made(mount: Mount, parent: Directory, name: str) -> Entry:
    mount.store.order.note_changed_dir(parent.fd)
    status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
    return entry_of(mount, mount.nodes.committed(parent, name, status), status)


def touch(parent: Directory) -> None:
    """A staged name came or went: readdir shows it, so the directory's times move."""
    with contextlib.suppress(OSError):
        osfs.touch(parent.fd)
