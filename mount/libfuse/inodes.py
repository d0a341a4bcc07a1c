"""What one inode of the kernel stands for, where libfuse has one per name.

The kernel keeps pages and a size per inode, and libfuse's path API has one inode for all versions
of a path. So data of versions goes past the page cache, where every handle reads its own version;
and whoever asks for what the kernel would mix (a page for a mapping, the end that lseek goes to)
while versions meet in the inode is answered EIO. Names that are renamed over get another inode.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ckptfs.disk.locks import leaf

from ..view.identity import Identity, identity
from ..view.model import Handle

Place = tuple[int, str]  # id of the directory, name


@dataclass(eq=False)
class Opened:
    """One open file of an inode."""

    writes: bool
    process: int  # that opened it
    expected: Identity | None = None  # its version, until it has a handle; None: one to be begun
    handle: Handle | None = None
    cached: bool = False  # its data goes through the page cache, so it can be mapped shared
    inode: Inode = field(default_factory=lambda: Inode())

    @property
    def ident(self) -> Identity | None:
        """Of its version: what was appended to it may have gone into the committed file."""
        return identity(os.fstat(self.handle.fd)) if self.handle else self.expected


@dataclass(eq=False)
class Inode:
    opens: set[Opened] = field(default_factory=set)
    named: bool = True  # until its name is deleted or taken


class Inodes:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = leaf()
        self._by_place: dict[Place, Inode] = {}

    def enter(self, place: Place, opened: Opened) -> bool:
        """Before an open. False if it would take pages away that another version has mapped, and
        that may hold stores which are not written yet."""
        with self._lock:
            inode = self._by_place.get(place) or opened.inode
            if any(o.cached and o.writes and o.ident != opened.ident for o in inode.opens):
                return False
            opened.inode = self._by_place[place] = inode
            inode.opens.add(opened)
            return True

    def complete(self, opened: Opened, handle: Handle, *, may_cache: bool) -> None:
        """The open succeeded."""
        with self._lock:
            opened.handle = handle
            opened.cached = may_cache and len(self._idents(opened.inode)) == 1

    def leave(self, opened: Opened) -> None:
        with self._lock:
            inode = opened.inode
            inode.opens.discard(opened)
            if not inode.opens:
                for place in [p for p, value in self._by_place.items() if value is inode]:
                    del self._by_place[place]

    def moved(self, old: Place, new: Place | None) -> None:
        """A rename, or a removal, of the name: libfuse does the same with its inodes."""
        with self._lock:
            inode = self._by_place.pop(old, None)
            replaced = self._by_place.pop(new, None) if new else inode
            if replaced is not None:
                replaced.named = False
            if inode is not None and new is not None:
                self._by_place[new] = inode

    def opens(self, place: Place) -> dict[Opened, Identity | None]:
        """What is open, of which version."""
        with self._lock:
            inode = self._by_place.get(place)
            return {opened: opened.ident for opened in inode.opens} if inode else {}

    def meets_others(self, opened: Opened, shown: Identity | None) -> bool:
        """Whether other versions are open in its inode, or its path shows another one."""
        with self._lock:
            idents = self._idents(opened.inode)
            if opened.inode.named and shown is not None:
                idents.add(shown)
            return len(idents) > 1

    @staticmethod
    def _idents(inode: Inode) -> set[Identity | None]:
        return {opened.ident for opened in inode.opens}
