"""Listing directories: what stands on the disk, and what is staged.

Threading: any thread. What reads records, or many names, is left as ``Slow``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from ckptfs.disk import osfs
from ckptfs.records import format as fmt

from ..view.answers import Slow
from ..view.identity import ROOT_ID, lstat
from ..view.listing import Listing
from ..view.model import Directory, File, Handle, Node, Virtual
from .context import Mount

_LARGE_BYTES = 128 << 10  # of a directory: listing some thousands of names takes a while


def opendir(mount: Mount, nodeid: int) -> Handle:
    node = mount.nodes.get(nodeid)
    if isinstance(node, File):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory")
    handle = mount.add_handle(node, -1, 0)
    # While nothing is staged in it, names come and go by requests only.
    handle.cached = isinstance(node, Directory) and not (
        mount.versions.any_below(node) or mount.sets.any_below(node)
    )
    return handle


def readdir(
    mount: Mount, handle_id: int, position: int, room: int, more: int = 0
) -> list[bytes] | Slow[list[bytes]]:
    """Entries of a ``Listing`` after ``position``, staged names too; none is the end. The list
    is taken anew at 0, and where the handle may have gone back there in the kernel's cache."""
    handle = mount.handle(handle_id)
    node, kept = handle.node, handle.listing if position else None
    if kept is not None and handle.cached and not kept.goes_on(position):
        kept = None

    def read() -> list[bytes]:
        listing = kept or _list(mount, node)
        entries = listing.read(position, room, more)
        handle.listing = listing if entries else None
        return entries

    if kept is None and (isinstance(node, Virtual) or _is_large(node)):
        return Slow(read)  # history reads records
    return read()


def _list(mount: Mount, node: Node) -> Listing:
    listing = Listing(mount.listing_key)
    above = node.above or mount.nodes.root if isinstance(node, Virtual) else node.parent or node
    listing.add((name, at.ident[1], stat.S_IFDIR) for name, at in ((".", node), ("..", above)))
    if isinstance(node, Virtual):
        listing.add(node.entries())
    elif isinstance(node, Directory):
        _add_names(mount, node, listing)
    return listing


def _add_names(mount: Mount, node: Directory, listing: Listing) -> None:
    """A publish moves its name to another place on disk (btrfs), where a list that is being
    read misses it, or finds it twice; so such names are looked up afterwards."""
    with _written_in(mount, node) as written:
        with (
            osfs.opened(mount.store.fs, node.fd, ".", osfs.DIRECTORY) as fd,
            os.scandir(fd) as entries,
        ):
            listing.add((each.name, each.inode(), _type_of(each)) for each in entries)
        with mount.lock:
            for name in written:
                # In this order: it is staged until after it was published.
                staged, status = mount.versions.at(node, name), lstat(node.fd, name)
                pending = mount.sets.at(node, name)
                if pending is not None:
                    listing.replace((name, pending.node.ident[1], stat.S_IFDIR))
                elif status is not None:
                    listing.replace((name, status.st_ino, stat.S_IFMT(status.st_mode)))
                elif staged:
                    listing.replace((name, staged[-1].node.ident[1], stat.S_IFREG))
    if node.id == ROOT_ID:
        listing.discard(fmt.CONTROL)


@contextlib.contextmanager
def _written_in(mount: Mount, node: Directory) -> Iterator[set[str]]:
    """Names of what is on its way, of that included which comes inside the block."""
    versions = mount.versions
    written: set[str] = set()

    def note(parent: Directory, name: str) -> None:
        if parent is node:
            written.add(name)

    with versions.lock:
        written.update(name for name, _ in (*versions.below(node), *mount.sets.below(node)))
        versions.watchers.append(note)
    try:
        yield written
    finally:
        with versions.lock:
            versions.watchers.remove(note)


def releasedir(mount: Mount, handle_id: int) -> None:
    with mount.lock:
        handle = mount.handles.pop(handle_id, None)
        if handle is not None and isinstance(handle.node, Virtual):
            handle.node.let_go(handle)
            mount.nodes.drop_if_forgotten(handle.node)


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
