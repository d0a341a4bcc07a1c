"""One version on its way, and the committed bytes that it may go on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ckptfs.disk.digest import Hasher
from ckptfs.disk.filesystem import FileSystem, Status
from ckptfs.disk.locks import Rank, ranked
from ckptfs.records.format import Record
from ckptfs.structure import Structure, Verdict
from ckptfs.versions.life import Event, State, advance

Fingerprint = tuple[int, int]  # size in bytes, mtime in ns: moves with every write the kernel sees
Inode = tuple[int, int]  # st_dev, st_ino


def fingerprint(fs: FileSystem, fd: int) -> Fingerprint:
    status = fs.stat(fd)
    return status.st_size, status.st_mtime_ns


def inode_of(fs: FileSystem, fd: int) -> Inode:
    status = fs.stat(fd)
    return status.st_dev, status.st_ino


class Stood(NamedTuple):
    """What was found under a name."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: Status) -> Stood:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Digested(NamedTuple):
    """What was found in the bytes of a version."""

    at: Fingerprint
    digest: str  # algorithm:hex
    sums: str
    structure: Structure

    @classmethod
    def of(cls, at: Fingerprint, algorithm: str, hasher: Hasher, structure: Structure) -> Digested:
        sums = hasher.sums.text() if hasher.sums else ""
        return cls(at, f"{algorithm}:{hasher.hexdigest()}", sums, structure)


class Base:
    """The committed version that a staged one goes on from. Until it is ``filled`` the staged file
    has a hole where these bytes belong, so only who knows that may read or write it. The
    descriptor goes with the last reference: readers of an aborted version still need it."""

    def __init__(
        self, fs: FileSystem, fd: int, inode: Inode, at: Fingerprint, record: Record
    ) -> None:
        self.fs, self.fd, self.inode, self.fingerprint, self.record = fs, fd, inode, at, record
        self.size = at[0]
        self.filled = False  # the staged file has these bytes, too
        self.intact = True  # nothing below ``size`` was written or cut

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """From ``fd``, the staged file, and what it lacks from the base."""
        if self.filled or offset >= self.size:
            return self.fs.read(fd, size, offset)
        head = self.fs.read(self.fd, min(size, self.size - offset), offset)
        return head + self.fs.read(fd, size - len(head), offset + len(head))

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd != -1:
            self.fs.close(fd)

    __del__ = close


@dataclass
class Staged:
    """``fd`` is open for reading and writing until ``close``."""

    txid: str
    fd: int
    path: str  # for messages and salvage, not for resolving
    as_opened: Fingerprint
    state: State = State.OPEN
    touched: bool = False  # its owner, mode, times or xattrs were changed: commits like a write
    continues: Verdict | None = None  # of the version with whose bytes it began, if it did
    sealed: Fingerprint | None = None
    record: Record | None = None
    digested: Digested | None = None
    hasher: Hasher | None = None  # at the end of what was digested
    base: Base | None = None
    stood: Stood | None = None  # what stood at its path when it was begun
    fulls: int = 0  # how often the disk had been found full when it was begun (``DiskRoom``)
    expected_bytes: int = 0  # its length, if that can be told
    # the first error that background writeback saw; final, as an fsync's would be
    writeback_error: OSError | None = None
    lock: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.lock = ranked(Rank.VERSION, self.txid)

    def __getstate__(self) -> dict[str, Any]:
        """For another program. A digest is for the commit under way, and there is none."""
        return {**self.__dict__, "digested": None, "hasher": None}

    def advance(self, event: Event) -> None:
        self.state = advance(self.state, event)

    @property
    def may_be_marked(self) -> bool:
        """Whether it has a record that does not tell yet that the file may change."""
        return self.state is State.SETTLED and self.record is not None and not self.record.live

    @property
    def has_hole(self) -> bool:
        return self.base is not None and not self.base.filled
