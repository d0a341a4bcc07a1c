"""What there is, who asks, what is open, and what is being written: the data of the operations.

Threading: a node's place is guarded by the lock of the operations, every field of ``Version`` and
``Handle`` by ``Versions.lock``.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from ckptfs.errors import CkptfsError
from ckptfs.store import Place
from ckptfs.versions.life import (
    HOLDS,
    USES,
    VISIBLE,
    WRITERS,
    Blow,
    Hold,
    Parting,
    State,
    Turn,
    Use,
    Writers,
    after,
)
from ckptfs.versions.staged import Base, Fingerprint, Staged

from ..processes import writers
from .compact import Numbered, Rare, shared
from .descriptors import Folder, OpenFolders
from .identity import ROOT_ID, Identity, Listed, identity, lstat
from .listing import Listing
from .locks import LockSet

VirtualKey = tuple[int, str, Identity]


class Node(Numbered):
    """``parent`` is None for the root and for what the mount alone shows."""

    __slots__ = ("name", "parent")

    def __init__(self, nodeid: int, parent: Directory | None, name: str, ident: Identity) -> None:
        super().__init__(nodeid, ident)
        self.parent, self.name = parent, shared(name)

    def path(self) -> str:
        """Relative to the root, for messages and patterns; never used to resolve."""
        names, above = [self.name], self.parent
        while above is not None and above.id != ROOT_ID:
            names.append(above.name)
            above = above.parent
        return "/".join(reversed(names))


class Directory(Node, Folder):
    __slots__ = ("children", "folders", "gone", "names")

    def __init__(
        self,
        nodeid: int,
        parent: Directory | None,
        name: str,
        ident: Identity,
        folders: OpenFolders,
    ) -> None:
        super().__init__(nodeid, parent, name, ident)
        self.folders = folders
        self.children = 0  # nodes in it that live
        self.names: dict[str, Node | list[Node]] = {}  # those that a lookup finds
        self.gone = False  # removed, or replaced by a rename

    def child_path(self, name: str) -> str:
        return name if self.id == ROOT_ID else f"{self.path()}/{name}"

    def at(self, name: str) -> Place:
        return Place(self.fd, name, self.child_path(name))

    def opened_by(self) -> OpenFolders:
        return self.folders

    def place(self) -> tuple[Folder, str] | None:
        return (self.parent, self.name) if self.parent is not None and not self.gone else None

    def is_at(self, status: os.stat_result) -> bool:
        return identity(status) == self.ident

    def status(self) -> os.stat_result:
        """Without opening it, where that is not needed: many are looked at once."""
        if self.parent is not None and not self.gone and not self.folders.is_open(self):
            status = lstat(self.parent.fd, self.name)
            if status is not None and self.is_at(status):
                return status
        return os.fstat(self.fd)

    def find(self, name: str, ident: Identity) -> Node | None:
        found = self.names.get(name)
        if isinstance(found, list):
            return next((node for node in found if node.ident == ident), None)
        return found if found is not None and found.ident == ident else None

    def enter(self, node: Node) -> None:
        """A name can have several: its versions, each another inode."""
        others = [each for each in self._of(node.name) if each.ident != node.ident]
        self.names[node.name] = [*others, node] if others else node

    def leave(self, node: Node) -> None:
        left = [each for each in self._of(node.name) if each is not node]
        if len(left) > 1:
            self.names[node.name] = left
        elif left:
            self.names[node.name] = left[0]
        else:
            self.names.pop(node.name, None)

    def _of(self, name: str) -> list[Node]:
        found = self.names.get(name, [])
        return found if isinstance(found, list) else [found]


class Openable(Node):
    """What can have handles."""

    __slots__ = ("rare",)
    _handles: Rare[set[Handle] | None] = Rare(None)

    def __init__(self, nodeid: int, parent: Directory | None, name: str, ident: Identity) -> None:
        self.rare: dict[str, Any] | None = None
        super().__init__(nodeid, parent, name, ident)

    @property
    def handles(self) -> AbstractSet[Handle]:
        return self._handles or frozenset()

    def hold(self, handle: Handle) -> None:
        if self._handles is None:
            self._handles = {handle}
        else:
            self._handles.add(handle)

    def let_go(self, handle: Handle) -> None:
        if self._handles is not None:
            self._handles.discard(handle)
            self._handles = self._handles or None


class File(Openable):
    """One version of a file name, or a symlink or special file: such a one has ``fd`` (O_PATH)
    once its name was removed, since whoever has it open has no handle."""

    __slots__ = ()
    fd: Rare[int] = Rare(-1)
    stands_for = Rare(0)  # the inode that it will replace, whose number it shows: vim looks
    version: Rare[Version | None] = Rare(None)  # while it is staged or live
    of: Rare[File | None] = Rare(None)  # whose alias it is
    stands_in = Rare(False)  # what is asked of the alias is meant for that one
    aliased = Rare(False)  # so that it may change without the kernel's knowledge
    replaced = Rare(False)  # by a commit
    gone = Rare(False)  # its name was taken away, and never leads to it again
    last: Rare[os.stat_result | None] = Rare(None)  # when it lost its name
    superseded = Rare(False)  # by a rollback: who holds it open keeps it, nobody else gets it

    @property
    def is_plain(self) -> bool:
        """Nothing is to be said of it but what stands on the disk."""
        return self.rare is None


def stands(node: File) -> bool:
    """Whether its name is that of this very inode on disk. A number alone does not tell: it may
    be that of another file by now."""
    status = lstat(node.parent.fd, node.name) if node.parent is not None else None
    return status is not None and identity(status) == node.ident and not is_gone(node)


def is_gone(node: File) -> bool:
    """Whether its name was taken away by the mount, or that of the file whose alias it is."""
    return node.gone or (node.of is not None and node.of.gone)


def changes_unseen(node: File) -> bool:
    """Whether it may change without the kernel's knowledge: by an alias, or by a mapping."""
    if node.aliased or any(each.flags & os.O_ACCMODE == os.O_RDWR for each in node.handles):
        return True
    # Where the kernel carries the data a mapping keeps no handle.
    return node.version is not None and bool(node.version.mappers)


class Virtual(Openable):
    """What the mount alone shows, read-only: ``.ckptfs`` and what lies in it. ``name`` is its
    path, and it lies in ``above``."""

    __slots__ = ("above",)

    def __init__(self, nodeid: int, above: Virtual | None, name: str, ident: Identity) -> None:
        super().__init__(nodeid, None, name, ident)
        self.above = above

    def key(self) -> VirtualKey:
        return (self.above.id if self.above else ROOT_ID), self.name, self.ident

    def status(self) -> os.stat_result:
        raise NotImplementedError

    def child(self, name: str) -> Virtual:
        raise NotADirectoryError(errno.ENOTDIR, "not a directory")

    def entries(self) -> Iterable[Listed]:
        return ()

    def getxattr(self, key: str) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "no extended attributes")

    def listxattr(self) -> list[str]:
        raise OSError(errno.EOPNOTSUPP, "no extended attributes")


@dataclass(frozen=True)
class Caller:
    """From the header of a request; ``pid`` is a thread id, 0 if it is unknown."""

    uid: int
    gid: int
    pid: int
    request: int = 0  # its number, for what is answered or interrupted later

    @functools.cached_property
    def process(self) -> int | None:
        """The process of the thread; None if it is unknown."""
        return writers.thread_group(self.pid)


@dataclass(eq=False)
class Handle:
    """One open file description."""

    id: int
    node: Node
    fd: int
    flags: int
    opener: int | None  # its process
    user: int = 0  # who opened it: no RELEASE tells
    carrier: int = 0  # the node that the kernel has opened, where it is an alias of ``node``
    version: Version | None = None  # what it writes; None for readers and in-place files
    relayed: bool = False  # on another node than its version's: only the daemon can carry it
    hold: Hold = Hold.OPEN
    bystander: bool = False  # may never write: another joined while nothing was written
    as_joined: Fingerprint | None = None  # what its version held when it was opened
    listing: Listing | None = None  # of a directory, while it is read
    cached: bool = False  # so that the kernel may list it without asking
    locks: LockSet = field(default_factory=LockSet)  # of the path it was opened by
    wrote: set[int | None] = field(default_factory=set)  # threads and processes, if we carry it
    owners: set[int] = field(default_factory=set)  # of the locks that were asked for by it
    locker: int | None = None  # the process that asked last, 0 if it is unknown
    base: Base | None = None  # where the bytes are that ``fd`` may lack

    def part(self, parting: Parting) -> None:
        self.hold = after(HOLDS, self.hold, parting)

    @property
    def flushed(self) -> bool:
        """Closed by the process that opened it."""
        return self.hold is Hold.CLOSED

    @property
    def opened_node(self) -> int:
        return self.carrier or self.node.id

    @property
    def is_guest(self) -> bool:
        """Opened by a node that others have open, too."""
        return bool(self.carrier) and self.relayed


@dataclass(eq=False)
class Version:
    """A staged or live version, and who takes part in it. Its three states have their tables in
    ``ckptfs.versions.life``: of its commit (``staged``), its use and its writers. All else are
    facts, which decide with them (``writers.finished``)."""

    staged: Staged
    node: File
    at: tuple[Directory, str] | None  # where it will be published; None once it was deleted
    members: set[int]  # processes that opened it for writing: they see it under its name
    fresh: bool  # created or truncated: commits even if nothing was written
    known: bool  # whether its writers can be told apart
    user: int | None = None  # who began it
    use: Use = Use.JOINABLE
    writers: Writers = Writers.WHOLE
    # threads that were answered ESTALE and will open it next, since when
    expected: dict[int, float] = field(default_factory=dict)
    public: bool = False  # finished: shown to everybody though its disk work goes on
    appends: bool = False  # somebody opened it with O_APPEND
    is_log: bool = False  # published while it is written: good as far as it goes
    is_binary: bool = False  # was found to be neither text nor a database
    grows_since: float | None = None  # when the first write was noticed
    before: Before = field(default_factory=dict)  # what its begin took away of the others
    # what was committed at its path since it was opened, and what of it that took away
    overtakers: list[tuple[Staged, Fingerprint]] = field(default_factory=list)
    mappers: set[int] = field(default_factory=set)  # processes that opened it O_RDWR
    numbers: set[int] = field(default_factory=set)  # the inode numbers that it was shown under
    synced: Fingerprint | None = None  # what its writer has fsynced
    # what it held when a process closed it that had opened it and wrote, and others had it yet
    closers: dict[int, Fingerprint] = field(default_factory=dict)
    held: bool = False  # some process had a descriptor of it: a FLUSH came
    is_meant: bool = False  # without a byte written it is whole: who opened it is done with it
    failure: OSError | CkptfsError | None = None
    handles: set[Handle] = field(default_factory=set)

    def turn(self, event: Turn) -> None:
        self.use = after(USES, self.use, event)

    def strike(self, blow: Blow) -> None:
        self.writers = after(WRITERS, self.writers, blow)

    @property
    def closing(self) -> bool:
        """Being committed or dropped, or past that: nobody joins it as one that is staged."""
        return self.use is not Use.JOINABLE

    @property
    def ended(self) -> bool:
        return self.use is Use.ENDED

    @property
    def active(self) -> bool:
        """Staged, or published while somebody can still write to it."""
        return self.staged.state is not State.ABORTED

    @property
    def joinable(self) -> bool:
        return self.unpublished and not self.closing

    @property
    def unpublished(self) -> bool:
        return self.staged.state not in VISIBLE and self.staged.state is not State.ABORTED

    @property
    def live(self) -> bool:
        """Stands under its name, and somebody can still write to it."""
        return self.staged.state in VISIBLE and not self.ended

    @property
    def closed(self) -> bool:
        """By everybody who is known to write it."""
        handles = tuple(self.handles)  # others come and go where the lock is not held
        return all(handle.flushed or handle.bystander for handle in handles)


Before = dict[Version, Fingerprint]
