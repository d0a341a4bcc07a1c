"""The filesystem the store runs on, as a protocol: what ``real.OsFs`` and the harnesses implement.

Names are resolved from directory descriptors and never through a symlink. Every method raises
``OSError`` and nothing else. Durability is stated per method; what is not stated is not durable.
Thread-safe.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from ckptfs.disk.space import Space

Status = os.stat_result


class Extent(NamedTuple):
    """Blocks of a file, in bytes. ``place`` is where they lie on the disk, as a number to compare;
    None where it tells nothing (compressed, inline, not written yet)."""

    start: int
    end: int
    place: int | None
    shared: bool  # with another file, or another part of this one


class FileSystem(Protocol):
    """What the commit code needs of a filesystem. ``at`` is an open directory."""

    def open(self, at: int, name: str, flags: int, mode: int = 0o600) -> int:
        """Reading by it moves no access time, where that is to be had: nobody has asked for it."""

    def open_direct(self, at: int, name: str) -> int:
        """Open for reading past the page cache; where there is no such way, past the pages that
        could be dropped. Read with ``readinto`` and aligned buffers."""

    def close(self, fd: int) -> None: ...
    def stat(self, fd: int) -> Status: ...
    def lstat(self, at: int, name: str) -> Status: ...
    def listdir(self, fd: int) -> list[str]: ...

    def read(self, fd: int, size: int, offset: int) -> bytes: ...
    def readinto(self, fd: int, buffer: bytearray | memoryview | mmap.mmap, offset: int) -> int: ...
    def next_data(self, fd: int, offset: int) -> int:
        """Where data may lie next, from ``offset`` on; the size of the file where there is no more.
        What comes before is a hole. It is ``offset`` where the filesystem does not tell."""

    def next_hole(self, fd: int, offset: int) -> int:
        """Where the next hole begins, from ``offset`` on, which is below the size of the file; that
        size where there is none, or the filesystem does not tell."""

    def write(self, fd: int, data: bytes, offset: int) -> int: ...
    def truncate(self, fd: int, size: int) -> None: ...
    def clone(self, source: int, target: int) -> None:
        """Make ``target`` hold what ``source`` does by sharing its blocks; else raises OSError."""

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Make ``target``, which has nothing there yet, hold these bytes of ``source``. Holes stay
        holes."""

    def copy_times(self, source: int, target: int) -> None:
        """Give ``target`` the access and modification time of ``source``."""

    def dedupe(self, source: int, target: int, start: int, end: int) -> int:
        """Let ``target`` refer to the blocks of ``source`` where it holds the same bytes, which the
        filesystem compares itself. Returns how many bytes, from ``start`` on; moves no time."""

    def extents(self, fd: int) -> Iterator[Extent]:
        """Where the file has blocks, in order. Raises OSError where that is not to be had."""

    def exclusive_bytes(self, fd: int) -> int:
        """What the file takes on the disk that no other shares."""

    def space(self, fd: int) -> Space:
        """Of the filesystem that ``fd`` lies on."""

    def pins_extents(self, fd: int) -> bool:
        """Whether all of an extent stays allocated while a file refers to a part of it (btrfs)."""

    def drop_cache(self, fd: int, start: int, end: int) -> None:
        """Let clean pages go."""

    def redirect(self, fd: int, to: int) -> None:
        """Let ``fd`` stand for the open file of ``to``; whoever uses it meanwhile gets either."""

    def start_writeback(self, fd: int, offset: int, size: int) -> None:
        """Begin writing dirty pages out (size 0: to the end). Nothing is durable on return."""

    def clean(self, fd: int, offset: int, size: int) -> None:
        """Write the pages out and wait: a later store through mmap then moves the mtime.
        Not durable on return. An error here is as final as one of fsync."""

    def fsync(self, fd: int) -> None:
        """The file's data, size and xattrs are durable on return; its name is not."""

    def fsync_dir(self, fd: int) -> None:
        """Every name made in or removed from the directory before is durable on return."""

    def sync_all(self, fd: int) -> None:
        """Everything on the filesystem of ``fd`` is durable on return."""

    def rename(self, at: int, name: str, to: int, target: str) -> None: ...
    def exchange(self, at: int, name: str, to: int, target: str) -> None:
        """Swap two names in one step. Linux."""

    def link(self, at: int, name: str, to: int, target: str) -> None: ...
    def unlink(self, at: int, name: str) -> None: ...
    def mkdir(self, at: int, name: str, mode: int) -> None: ...
    def rmdir(self, at: int, name: str) -> None: ...

    def getxattr(self, fd: int, key: str) -> bytes | None: ...
    def setxattr(self, fd: int, key: str, value: bytes) -> None: ...
    def removexattr(self, fd: int, key: str) -> None: ...
    def copy_metadata(self, source: int, target: int, skip: str) -> None:
        """Give ``target`` the owner, mode, ACL, label, access time and xattrs of ``source``,
        less ``skip``; it grants nobody more than ``source`` does."""

    def now_ns(self) -> int: ...
    def step(self, name: str) -> None:
        """A commit has reached this step of the protocol. Nothing is done here: a harness around
        the filesystem counts steps, or kills the process at one."""
