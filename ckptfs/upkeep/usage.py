"""What a served directory takes on the disk, and what for.

Bytes are blocks in use, not lengths. An inode with several names counts once, under the first of
the classes in this order. Walks below a mount; what goes meanwhile is left out.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import Status
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout
from ckptfs.records.walk import files

_Inode = tuple[int, int]


@dataclass
class Share:
    """Of one class of files."""

    files: int = 0
    bytes: int = 0


@dataclass
class Usage:
    live: Share = field(default_factory=Share)
    history: Share = field(default_factory=Share)
    staged: Share = field(default_factory=Share)
    salvage: Share = field(default_factory=Share)
    quarantine: Share = field(default_factory=Share)
    # Of history's bytes those that no other file shares: what one generation less would free. A
    # block that two generations share with each other alone is not among them.
    history_exclusive_bytes: int = 0


def usage(layout: Layout) -> Usage:
    """Add up the tree. Raises OSError where a directory cannot be read."""
    found, seen = Usage(), set[_Inode]()
    for _, _, status in _files(layout, layout.root, but=fmt.CONTROL):
        _count(found.live, seen, status)
    for at, name, status in _files(layout, layout.history):
        if _count(found.history, seen, status):
            found.history_exclusive_bytes += _exclusive(layout, at, name)
    folders = [
        (found.staged, layout.stage),
        (found.salvage, layout.salvage),
        (found.quarantine, layout.quarantine),
    ]
    for share, folder in folders:
        for _, name, status in _files(layout, folder):
            if not name.endswith(fmt.NOTE):
                _count(share, seen, status)
    return found


def _count(share: Share, seen: set[_Inode], status: Status) -> bool:
    """Add a file, if it was not counted under another name. One of a single name is not noted."""
    if status.st_nlink > 1:
        inode = status.st_dev, status.st_ino
        if inode in seen:
            return False
        seen.add(inode)
    share.files += 1
    share.bytes += osfs.allocated_bytes(status)
    return True


def _exclusive(layout: Layout, at: int, name: str) -> int:
    with (
        contextlib.suppress(FileNotFoundError),
        osfs.opened(layout.fs, at, name, osfs.O_RDONLY) as fd,
    ):
        return layout.fs.exclusive_bytes(fd)
    return 0


def _files(layout: Layout, folder: int, but: str = "") -> Iterator[tuple[int, str, Status]]:
    for found in files(layout.fs, folder, but=but):
        if found.status is None:
            raise OSError(errno.EACCES, "cannot be read", found.path)
        yield found.at, found.name, found.status
