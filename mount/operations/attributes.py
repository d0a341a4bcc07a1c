"""Attributes: sizes, owners, modes, times. A size that changes without a handle is a commit.

Threading: any thread. What waits for a commit that is under way is left as ``Slow``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace

from ckptfs.disk import osfs

from ..view.answers import Change, Slow, T, stale
from ..view.identity import identity
from ..view.model import Directory, File, Handle, Node, Version, Virtual, stands
from ..writers import overtaking
from . import looking
from .closing import release
from .context import Mount
from .looking import inode_of
from .names import check_device
from .opening import open_in_place
from .relay import cut


def statfs(mount: Mount) -> os.statvfs_result:
    return os.fstatvfs(mount.store.root)


@contextlib.contextmanager
def changing(mount: Mount, node: Node, handle: Handle | None = None) -> Iterator[str]:
    """A path under /proc that names the node's inode, for calls that change its metadata."""
    mount.store.order.require_writable()
    require_changeable(node)
    if isinstance(node, Directory):
        directory = node.fd
        yield directory.link()
        mount.caches.drop_attributes(node.id)
        return
    assert isinstance(node, File) and node.parent is not None
    with contextlib.ExitStack() as stack:
        with mount.lock:
            version = node.version if node.version and node.version.active else None
            if handle is not None and version is None:
                fd = os.dup(handle.fd)
                stack.callback(os.close, fd)
            else:
                fd = stack.enter_context(inode_of(mount, node))
        if identity(os.fstat(fd)) != node.ident:
            raise stale()
        # opening a FIFO to look at its record would wait for its writer
        if node.kind == stat.S_IFREG and (version is not None or stands(node)):
            change = mount.metadata.metadata_change(node.parent, node.name, version)
            stack.enter_context(change)
        stack.callback(mount.caches.drop_attributes, node.id)  # an xattr moves the ctime
        yield f"/proc/self/fd/{fd}"


def setattr(
    mount: Mount, nodeid: int, handle_id: int | None, change: Change
) -> os.stat_result | Slow[os.stat_result]:
    node = mount.nodes.get(nodeid)
    require_changeable(node)
    handle = mount.handles.get(handle_id) if handle_id is not None else None
    if change.size is not None:
        return Slow(lambda: _truncate(mount, node, handle, change))

    def change_metadata() -> os.stat_result:
        for version in being_written(mount, node):
            _set_metadata(mount, version, None, change)
        _set_metadata(mount, node, handle, change)
        return looking.getattr(mount, nodeid, handle_id)

    return in_turn(mount, node, change_metadata)


def being_written(mount: Mount, node: Node) -> list[File]:
    """The other versions of its path that are to replace this one: what somebody else than
    their writers changes of its metadata must not be lost with it."""
    if not isinstance(node, File) or node.parent is None:
        return []
    with mount.lock:
        listed = mount.versions.at(node.parent, node.name)
        others = [version.node for version in listed if version is not node.version]
        staged = len(others) < len(listed)
    return others if others and (staged or stands(node)) else []


def in_turn(mount: Mount, node: Node, work: Callable[[], T]) -> T | Slow[T]:
    """A change of a version that has a writer waits for a commit that is under way."""
    has_writer = isinstance(node, File) and node.version is not None
    return Slow(work) if has_writer or being_written(mount, node) else work()


def _truncate(mount: Mount, node: Node, handle: Handle | None, change: Change) -> os.stat_result:
    if not isinstance(node, File) or node.parent is None:
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    assert change.size is not None
    mount.store.room.before_freeing()
    version = node.version
    if handle is not None:
        cut(mount, handle, change.size)
    elif version is not None and _truncate_version(mount, version, change.size):
        pass
    elif mount.in_place(node.parent, node.name):
        other = open_in_place(mount, node, os.O_RDWR)
        os.ftruncate(other.fd, change.size)
        release(mount, other.id)
    elif looking.getattr(mount, node.id, None).st_size != change.size:
        _truncate_committed(mount, node, node.parent, change.size)
        _cut_what_goes_on(mount, node.parent, node.name, change.size)
        raise stale()  # the path stands for the new version now
    elif change.mtime_ns is None:  # no byte changes, but the time does
        change = replace(change, mtime_ns=osfs.NOW)
    _set_metadata(mount, node, handle, change)
    return looking.getattr(mount, node.id, handle.id if handle else None)


def _truncate_version(mount: Mount, version: Version, size: int) -> bool:
    """Whether the version was still there to be cut."""
    with version.staged.lock:
        if version.ended or not version.active:
            return False
        mount.store.saves.change(version.staged, size)
        os.ftruncate(version.staged.fd, size)
        return True


def _cut_what_goes_on(mount: Mount, parent: Directory, name: str, size: int) -> None:
    """Versions that others have begun from the committed bytes: their closes would bring back what
    was cut off. Not those that were begun empty."""
    with mount.lock:
        going_on = [each for each in mount.versions.at(parent, name) if not each.fresh]
    for version in going_on:
        if _truncate_version(mount, version, size):
            mount.caches.drop_attributes(version.node.id)


def _truncate_committed(mount: Mount, node: File, parent: Directory, size: int) -> None:
    """truncate(2) of a committed file: a whole transaction of its own."""
    check_device(mount.nodes, parent)
    store, at = mount.store, (node.path(), parent.fd, node.name)
    with store.order.path_lock(parent.fd, node.name):
        if not stands(node):
            raise stale()
        with (
            mount.versions.replacing(parent, node.name),
            store.saves.staging(*at, exists=True, truncate=size == 0) as staged,
        ):
            os.ftruncate(staged.fd, size)
            with mount.lock:
                overtaking.overtakes(mount.versions, staged, parent, node.name, {})
            store.saves.commit(staged, parent.fd, node.name)
    mount.caches.drop_attributes(parent.id)


def _set_metadata(mount: Mount, node: Node, handle: Handle | None, change: Change) -> None:
    if not change.metadata:
        return
    with changing(mount, node, handle) as path:
        if change.drop_set_id or change.uid is not None or change.gid is not None:
            os.chown(path, _or_keep(change.uid), _or_keep(change.gid))  # clears set-id bits
        if change.mode is not None:
            os.chmod(path, change.mode & 0o7777)
        if change.sets_times:
            osfs.set_times(path, change.atime_ns, change.mtime_ns)


def require_changeable(node: Node) -> None:
    if isinstance(node, Virtual):
        raise PermissionError(errno.EPERM, "this name belongs to ckptfs")


def _or_keep(value: int | None) -> int:
    return -1 if value is None else value
