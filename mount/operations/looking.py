"""What a name stands for, and what is told of it: lookups, attributes, inodes.

Threading: any thread. Nothing here waits for a commit.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

from ckptfs.disk import osfs
from ckptfs.records import format as fmt

from ..view import aliases
from ..view.answers import Entry, stale, with_links, without_names
from ..view.identity import ROOT_ID, identity
from ..view.model import (
    Caller,
    Directory,
    File,
    Node,
    Virtual,
    changes_unseen,
    is_gone,
    stands,
)
from ..writers import visibility
from .context import Mount


def lookup(mount: Mount, parent_id: int, name: str, caller: Caller) -> Entry:
    with mount.lock:
        virtual = _virtual(mount, parent_id, name)
        if virtual is not None:
            return entry_of(mount, virtual, virtual.status())
        parent = mount.nodes.directory(parent_id)
        pending = mount.sets.at(parent, name) if mount.sets.by_folder else None
        if pending is not None:
            return entry_of(mount, pending.node, os.fstat(pending.node.fd))
        staged = mount.versions.at(parent, name)
        if staged:
            own = visibility.visible_to(mount.versions, caller, parent, name)
            if own is not None:
                return entry_of(mount, own.node, os.fstat(own.staged.fd))
        try:
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            if not staged:
                raise
            return entry_of(mount, staged[-1].node, os.fstat(staged[-1].staged.fd))
        entry = entry_of(mount, mount.nodes.committed(parent, name, status), status)
        return replace(entry, going=any(version.expected for version in staged))


def entry_of(mount: Mount, node: Node, status: os.stat_result) -> Entry:
    node.lookups += 1
    return Entry(node, status, _name_lasts(mount, node), status_lasts(mount, node, status))


def alias(mount: Mount, entry: Entry) -> Entry:
    """A node of its own for whoever has looked a file up."""
    assert isinstance(entry.node, File)
    with mount.lock:
        alias = aliases.alias(mount.nodes, entry.node, entry.status)
        alias.lookups += 1
        forget(mount, entry.node.id, 1)
    mount.caches.drop_attributes(entry.node.id)  # from here on it changes by the alias, too
    return Entry(alias, entry.status, False, False)


def _name_lasts(mount: Mount, node: Node) -> bool:
    """While a version is staged, its path is another file to its writer than to others. A
    directory is one node for all callers; nobody moves a name but by a request. A set that is on
    its way goes when its writers are killed."""
    if isinstance(node, File) and node.parent is not None:
        return not mount.versions.at(node.parent, node.name)
    if isinstance(node, Directory) and node.parent is not None:
        return mount.sets.at(node.parent, node.name) is None
    return isinstance(node, Directory)


def status_lasts(mount: Mount, node: Node, status: os.stat_result) -> bool:
    """Not of a directory that a publish is going to change, nor of a file that changes behind
    its node: by another of its names, be it gone, or by a mapping; nor of an alias, by which
    another file may be opened next."""
    if isinstance(node, Directory):
        return not mount.versions.any_below(node) and node.id not in mount.sets.by_folder
    if not isinstance(node, File):
        return False
    if node.is_plain:
        return status.st_nlink == 1 and not mount.nodes.lost.changes(node)
    if node.of is not None or changes_unseen(node):
        return False
    return status.st_nlink == 1 and not mount.nodes.lost.changes(node)


def _virtual(mount: Mount, parent_id: int, name: str) -> Virtual | None:
    """What is found there below ``.ckptfs``; None anywhere else."""
    if parent_id == ROOT_ID:
        return mount.control if name == fmt.CONTROL else None
    parent = mount.nodes.get(parent_id)
    return parent.child(name) if isinstance(parent, Virtual) else None


def forget(mount: Mount, nodeid: int, lookups: int) -> None:
    with mount.lock:
        mount.nodes.forget(nodeid, lookups)


def getattr(mount: Mount, nodeid: int, handle_id: int | None) -> os.stat_result:
    with mount.lock:
        node = mount.nodes.get(nodeid)
        if isinstance(node, Virtual):
            return node.status()
        if isinstance(node, Directory):
            return with_links(node.status(), len(mount.sets.below(node)))
        assert isinstance(node, File)
        handle = mount.handles.get(handle_id) if handle_id is not None else None
        if handle is not None:
            return os.fstat(handle.fd)
        return _file_status(node)


def size_of(mount: Mount, nodeid: int) -> int:
    """0 where it has none, or cannot be told."""
    with contextlib.suppress(OSError):
        return getattr(mount, nodeid, None).st_size
    return 0


def _file_status(node: File) -> os.stat_result:
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


@contextlib.contextmanager
def inode_of(mount: Mount, node: File) -> Iterator[int]:
    """A descriptor of what the node stands for, whatever has its name by now: the kernel has
    looked at the rights over that one. Good for calls by ``/proc/self/fd``; nothing is waited
    for, as an open of a FIFO would. Raises ESTALE where there is none any more."""
    fd = _inode_of(mount, node)
    try:
        yield fd
    finally:
        os.close(fd)


def _inode_of(mount: Mount, node: File) -> int:
    with mount.lock:  # no version or handle ends in here
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


def readlink(mount: Mount, nodeid: int) -> str:
    node = mount.nodes.get(nodeid)
    assert isinstance(node, File)
    with inode_of(mount, node) as inode:
        return os.readlink("", dir_fd=inode)
