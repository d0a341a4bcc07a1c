"""Operations on descriptors, of the machine of test_same_as_plain.py."""

from __future__ import annotations

import fcntl
import os

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from twin_draws import (
    REFUSED_BY_FUSE,
    data,
    fallocate_modes,
    modes,
    offsets,
    owners,
    picks,
    sizes,
    xattrs,
)
from twin_machine import Asking, some_open


class Descriptors(Asking):
    @precondition(some_open)
    @rule(pick=picks, size=sizes)
    def read(self, pick: int, size: int) -> None:
        self.by_slot(pick, "read", size, reads=True)

    @precondition(some_open)
    @rule(pick=picks, size=sizes, offset=offsets)
    def pread(self, pick: int, size: int, offset: int) -> None:
        self.by_slot(pick, "pread", size, offset, reads=True)

    @precondition(some_open)
    @rule(pick=picks, sizes=st.lists(sizes, min_size=1, max_size=3))
    def readv(self, pick: int, sizes: list[int]) -> None:
        self.by_slot(pick, "readv", sizes, reads=True)

    @precondition(some_open)
    @rule(pick=picks, data=data)
    def write(self, pick: int, data: bytes) -> None:
        self.by_slot(pick, "write", data, writes=True)

    @precondition(some_open)
    @rule(pick=picks, data=data, offset=offsets)
    def pwrite(self, pick: int, data: bytes, offset: int) -> None:
        self.by_slot(pick, "pwrite", data, offset, writes=True)

    @precondition(some_open)
    @rule(pick=picks, parts=st.lists(data, min_size=1, max_size=3))
    def writev(self, pick: int, parts: list[bytes]) -> None:
        self.by_slot(pick, "writev", parts, writes=True)

    @precondition(some_open)
    @rule(pick=picks, block=st.integers(0, 3), data=st.none() | st.binary(min_size=1, max_size=1))
    def direct(self, pick: int, block: int, data: bytes | None) -> None:
        self.by_slot(pick, "direct", block, data, reads=data is None, writes=data is not None)

    @precondition(some_open)
    @rule(
        pick=picks, offset=offsets, whence=st.sampled_from([0, 1, 2, os.SEEK_DATA, os.SEEK_HOLE, 9])
    )
    def lseek(self, pick: int, offset: int, whence: int) -> None:
        if self._picked(pick)[1].is_file:  # the end of a directory is no number of bytes
            self.by_slot(pick, "lseek", offset, whence, reads=True)

    @precondition(some_open)
    @rule(pick=picks, size=sizes)
    def ftruncate(self, pick: int, size: int) -> None:
        self.by_slot(pick, "ftruncate", size, writes=True)

    @precondition(some_open)
    @rule(pick=picks, mode=fallocate_modes, offset=offsets, length=sizes)
    def fallocate(self, pick: int, mode: int, offset: int, length: int) -> None:
        if mode & REFUSED_BY_FUSE and not self._picked(pick)[1].is_file:
            return
        if mode & REFUSED_BY_FUSE:
            (worker, slot), _ = self._picked(pick)
            self.pair.sides[0][worker].send("fallocate", slot, mode, offset, length)
            assert not self.pair.sides[0][worker].answer().ok
            return
        self.by_slot(pick, "fallocate", mode, offset, length, writes=True)

    @precondition(some_open)
    @rule(pick=picks, other=picks, size=sizes, at=offsets, to=offsets)
    def copy_range(self, pick: int, other: int, size: int, at: int, to: int) -> None:
        (worker, slot), source = self._picked(pick)
        (other_worker, target_slot), target = self._picked(other)
        if other_worker != worker or not (source.is_file and target.is_file):
            return
        if (source.flags | target.flags) & os.O_DIRECT:  # a plain file wants it aligned
            return
        answers = self.pair.ask(worker, "copy_range", slot, target_slot, size, at, to)
        if any(answer.ok for answer in answers):
            self.model.written(target)
            if self.model.masked(source):
                self.model.part(target.inode)
        masked = self.model.masked(source) or self.model.masked(target)
        self.pair.compare(
            worker,
            (worker, "copy_range", source.path, target.path, size, at, to),
            answers,
            masked=masked,
        )

    @precondition(some_open)
    @rule(pick=picks, only_data=st.booleans())
    def sync(self, pick: int, only_data: bool) -> None:
        lost = self._picked(pick)[1].inode in self.model.lost  # every writer of it hears of that
        self.by_slot(pick, "sync", only_data, allowed=lambda ours, theirs: lost)

    @precondition(some_open)
    @rule(pick=picks, offset=offsets, data=st.none() | data)
    def map(self, pick: int, offset: int, data: bytes | None) -> None:
        if not self._picked(pick)[1].is_file:
            return  # which error depends on the kind of inode, not on us
        self.by_slot(pick, "map", offset, data, reads=True, writes=data is not None, commits=True)
        self.model.flushed(self._picked(pick)[1])  # Python maps a duplicate, and closes it

    @precondition(some_open)
    @rule(pick=picks)
    def fstat(self, pick: int) -> None:
        self.by_slot(pick, "fstat", reads=True)

    @precondition(some_open)
    @rule(pick=picks, mode=modes)
    def fchmod(self, pick: int, mode: int) -> None:
        self.by_slot(pick, "fchmod", mode, writes=True)

    @precondition(some_open)
    @rule(pick=picks, uid=owners, gid=owners)
    def fchown(self, pick: int, uid: int, gid: int) -> None:
        self.by_slot(pick, "fchown", uid, gid, writes=True)

    @precondition(some_open)
    @rule(pick=picks, key=xattrs, value=data)
    def fsetxattr(self, pick: int, key: str, value: bytes) -> None:
        self.by_slot(pick, "fsetxattr", key, value, writes=True)

    @precondition(some_open)
    @rule(pick=picks, how=st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]))
    def take_flock(self, pick: int, how: int) -> None:
        self.model.locked(self._picked(pick)[1])
        self.by_slot(pick, "flock", how, reads=True, commits=True)

    @precondition(some_open)
    @rule(
        pick=picks,
        how=st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]),
        start=offsets,
        length=sizes,
    )
    def take_lockf(self, pick: int, how: int, start: int, length: int) -> None:
        self.model.locked(self._picked(pick)[1])
        self.by_slot(pick, "lockf", how, start, length, reads=True, commits=True)

    @precondition(some_open)
    @rule(
        pick=picks,
        how=st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]),
        start=offsets,
        length=sizes,
    )
    def take_ofd_lock(self, pick: int, how: int, start: int, length: int) -> None:
        self.model.locked(self._picked(pick)[1])
        self.by_slot(pick, "ofd", how, start, length, reads=True, commits=True)
