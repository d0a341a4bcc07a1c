"""Who asks, what is open, and what is being written: the data of the operations.

Threading: every field of ``Version`` and ``Handle`` is guarded by ``Versions.lock``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from ckptfs.errors import CkptfsError
from ckptfs.versions.life import VISIBLE, State
from ckptfs.versions.staged import Base, Fingerprint, Staged

from . import writers
from .listing import Listing
from .locks import LockSet
from .nodes import Directory, File, Node


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
    flushed: bool = False  # closed by the process that opened it
    bystander: bool = False  # may never write: another joined while nothing was written
    killed: bool = False  # the last process that closed it was killed
    as_joined: Fingerprint | None = None  # what its version held when it was opened
    listing: Listing | None = None  # of a directory, while it is read
    cached: bool = False  # so that the kernel may list it without asking
    locks: LockSet = field(default_factory=LockSet)  # of the path it was opened by
    wrote: set[int | None] = field(default_factory=set)  # threads and processes, if we carry it
    owners: set[int] = field(default_factory=set)  # of the locks that were asked for by it
    locker: int | None = None  # the process that asked last, 0 if it is unknown
    base: Base | None = None  # where the bytes are that ``fd`` may lack

    @property
    def opened_node(self) -> int:
        return self.carrier or self.node.id

    @property
    def is_guest(self) -> bool:
        """Opened by a node that others have open, too."""
        return bool(self.carrier) and self.relayed


@dataclass(eq=False)
class Version:
    """A staged or live version, and who takes part in it."""

    staged: Staged
    node: File
    at: tuple[Directory, str] | None  # where it will be published; None once it was deleted
    members: set[int]  # processes that opened it for writing: they see it under its name
    fresh: bool  # created or truncated: commits even if nothing was written
    known: bool  # whether its writers can be told apart
    user: int | None = None  # who began it
    # threads that were answered ESTALE and will open it next, since when
    expected: dict[int, float] = field(default_factory=dict)
    public: bool = False  # finished: shown to everybody though its disk work goes on
    closing: bool = False  # being committed or dropped: nobody joins it any more
    ended: bool = False  # its descriptor is closed
    lingering: bool = False  # everybody has closed it, but somebody has it mapped
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
    killed: bool = False
    mauled: bool = False  # a process that had it from its parent has crashed, and has written
    failure: OSError | CkptfsError | None = None
    handles: set[Handle] = field(default_factory=set)

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
        return all(handle.flushed or handle.bystander for handle in self.handles)


Before = dict[Version, Fingerprint]
