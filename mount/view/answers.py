"""What operations are asked for, and what they answer with. Data, and the words of a refusal."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .model import Caller, Node

T = TypeVar("T")


@dataclass(frozen=True)
class Slow(Generic[T]):
    """The rest of an operation, to be run where it may block."""

    run: Callable[[], T]
    user: int | None = None  # whose it is, where its request does not tell


@dataclass(frozen=True)
class Entry:
    """A name, its node, and whether a binding may remember that and the attributes."""

    node: Node
    status: os.stat_result
    name_lasts: bool
    status_lasts: bool
    going: bool = False  # it is about to be looked up by who replaces it


@dataclass(frozen=True)
class New:
    """Who makes an inode, and with which mode. The umask counts where no default ACL does."""

    caller: Caller
    mode: int
    umask: int


@dataclass(frozen=True)
class Change:
    """What a SETATTR asks for; None keeps. A time may be ``osfs.NOW``."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    drop_set_id: bool = False

    @property
    def sets_times(self) -> bool:
        return self.atime_ns is not None or self.mtime_ns is not None

    @property
    def metadata(self) -> bool:
        asked = (self.mode, self.uid, self.gid, self.atime_ns, self.mtime_ns)
        return self.drop_set_id or any(value is not None for value in asked)


# The kernel looks the path up again and opens what it finds then; at most once.
stale = functools.partial(OSError, errno.ESTALE, "look again")


def without_names(status: os.stat_result) -> os.stat_result:
    """As a plain directory shows what was replaced."""
    return _with_links(status, 0)


def with_links(status: os.stat_result, more: int) -> os.stat_result:
    """Of a directory in which as many more are seen as it has on the disk. Where the filesystem
    counts none (btrfs), none are counted."""
    return _with_links(status, status.st_nlink + more) if more and status.st_nlink > 1 else status


def _with_links(status: os.stat_result, links: int) -> os.stat_result:
    keys = ("atime_ns", "mtime_ns", "ctime_ns", "blksize", "blocks", "rdev")
    more = {f"st_{key}": getattr(status, f"st_{key}") for key in keys}
    return os.stat_result((*status[:3], links, *status[4:10]), more)
