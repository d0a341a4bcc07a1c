"""Manifests: what each published set consists of, one self-checking file a set.

    .ckptfs/sets/<id>     ``<check> <json>``, installed whole

The directory is known again by its path and its inode number. Pure but for reading and installing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem
from ckptfs.errors import RecordDamaged
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout
from ckptfs.records.walk import files as files_below
from ckptfs.sets import names
from ckptfs.sets.life import SetState


@dataclass(frozen=True)
class Member:
    path: str  # relative to the set
    size_bytes: int
    digest: str  # of its record; empty where it has none, as what is written in place
    generation: int = 0


@dataclass(frozen=True)
class Manifest:
    id: str
    number: int  # of all sets of a directory the newest has the largest
    path: str  # relative to the root
    inode: int  # of the directory
    profile: str
    state: str  # as in ``life``
    committed_ns: int
    files: tuple[Member, ...]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> int | None:
        return names.step(self.name)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def series(self) -> str:
        return series_of(self.path)

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.files)

    @property
    def digest(self) -> str:
        """Over all of it: BLAKE2b of its files' names and digests."""
        listed = "".join(f"{each.digest} {each.path}\n" for each in self.files)
        return (
            f"blake2b:{hashlib.blake2b(listed.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"
        )

    def to_bytes(self) -> bytes:
        return fmt.checked(json.dumps(asdict(self)))

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Raises RecordDamaged."""
        try:
            found: dict[str, Any] = json.loads(fmt.body_of(content))
        except RecordDamaged:
            raise RecordDamaged("the manifest of a set is damaged") from None
        found["files"] = tuple(Member(**each) for each in found["files"])
        return cls(**found)


def series_of(path: str) -> str:
    """Without the number of its step; those of the directories above it stay."""
    above, slash, name = path.rpartition("/")
    return f"{above}{slash}{names.series(name)}"


def members(layout: Layout, fd: int) -> tuple[Member, ...]:
    """What the directory holds, in order."""
    found = []
    for each in files_below(layout.fs, fd):
        if each.status is not None:
            found.append(_member(layout, each.at, each.name, each.path, each.status.st_size))
    return tuple(found)


def _member(layout: Layout, at: int, name: str, path: str, size_bytes: int) -> Member:
    with contextlib.suppress(RecordDamaged, OSError):
        with osfs.opened(layout.fs, at, name, osfs.O_RDONLY) as fd:
            record = layout.read_record(fd)
        if record is not None:
            return Member(path, size_bytes, record.digest, record.generation)
    return Member(path, size_bytes, "")


def read(fs: FileSystem, at: int, name: str) -> Manifest:
    """Raises RecordDamaged, OSError."""
    with osfs.opened(fs, at, name, osfs.O_RDONLY) as fd:
        return Manifest.from_bytes(fs.read(fd, fs.stat(fd).st_size, 0))


def all_of(layout: Layout) -> list[Manifest]:
    """Those that can be read, the oldest first."""
    found = []
    for name in layout.fs.listdir(layout.sets):
        if "." not in name:
            with contextlib.suppress(RecordDamaged, OSError, TypeError, KeyError, ValueError):
                found.append(read(layout.fs, layout.sets, name))
    return sorted(found, key=lambda each: each.number)


def is_there(layout: Layout, manifest: Manifest) -> bool:
    """Whether its directory stands where it was published."""
    with (
        contextlib.suppress(OSError),
        osfs.place(layout.fs, layout.root, manifest.path) as (at, name),
    ):
        return layout.fs.lstat(at, name).st_ino == manifest.inode
    return False


def newest(manifests: Iterable[Manifest], path: str) -> Manifest | None:
    """Of the series that ``path`` belongs to; one that is complete, if there is any."""
    of = series_of(path)
    found = [each for each in manifests if each.series == of]
    complete = [each for each in found if each.state == SetState.COMPLETE.value]
    return next(iter((complete or found)[-1:]), None)
