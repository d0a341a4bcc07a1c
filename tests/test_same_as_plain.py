"""The mount behaves as a plain directory of the same filesystem does, operation by operation.

Random operations run on both; results, errors, times that move, and the trees must be the same,
but for the differences that docs/design.md lists. ``CKPTFS_OPERATIONS=100000`` makes a long run.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mounts
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from twin import Description, Different, Twins, twins
from twin_draws import (
    EXCHANGE,
    REFUSED_BY_FUSE,
    data,
    fallocate_modes,
    flags,
    modes,
    names,
    offsets,
    owners,
    paths,
    picks,
    sizes,
    times,
    workers,
    xattrs,
)

_STEPS = 50
_OPERATIONS = int(os.environ.get("CKPTFS_OPERATIONS", "4000"))
_SLOTS = 8


class SamePlain(RuleBasedStateMachine):
    """One example: operations in a fresh pair of directories."""

    pair: Twins  # of the run

    def __init__(self) -> None:
        super().__init__()
        self.pair.start()
        self.model = self.pair.model

    # --- asking ----------------------------------------------------------------------------------

    def by_path(
        self, worker: int, what: str, path: str, *rest: Any, watched: Any = None, **how: Any
    ) -> Any:
        """An operation on a path: its times, and those of its directory, are watched."""
        if watched is None:
            watched = _around(path)
        answers = self.pair.ask(worker, what, path, *rest, watched=watched)
        self.pair.compare(worker, (worker, what, path, *rest), answers, **how)
        return answers[1]

    def by_metadata(
        self, worker: int, what: str, path: str, *rest: Any, follow: bool = True, **how: Any
    ) -> None:
        """As ``by_path``, for what the owner, mode or xattrs of a file may forbid: while somebody
        else writes the file they are those of another version, and such an answer parts the two."""
        status, hidden = self.pair.plain(path, follow), self._hidden(path, worker, follow)
        answers = self.pair.ask(worker, what, path, *rest, watched=_around(path))
        parted = hidden and answers[0].ok != answers[1].ok
        if status is not None and parted:
            self.model.split.add(status.st_ino)
        if status is not None and what == "truncate" and answers[1].ok:
            self.model.truncated(worker, status, self.pair.real_name(path).endswith(".log"))
        self.pair.compare(worker, (worker, what, path, *rest), answers, masked=parted, **how)

    def by_slot(
        self,
        pick: int,
        what: str,
        *rest: Any,
        reads: bool = False,
        writes: bool = False,
        **how: Any,
    ) -> Any:
        """An operation on one of the open descriptors."""
        (worker, slot), description = self._picked(pick)
        if writes:
            self.model.written(description)
        # the kernel keeps the times of a FIFO that is written to itself
        quiet = self.model.masked(description) or not (description.is_file or not writes)
        watched = () if quiet else (slot,)
        answers = self.pair.ask(worker, what, slot, *rest, watched=watched)
        masked = reads and self.model.masked(description)
        self.pair.compare(
            worker, (worker, what, slot, description.path, *rest), answers, masked=masked, **how
        )
        return answers[1]

    def _picked(self, pick: int) -> tuple[tuple[int, int], Description]:
        return list(self.model.open.items())[pick % len(self.model.open)]

    def _free_slot(self) -> int:
        return next(n for n in range(100) if all(slot != n for _, slot in self.model.open))

    def _hidden(self, path: str, worker: int, follow: bool = True) -> bool:
        status = self.pair.plain(path, follow)
        return status is not None and self.model.hidden(status.st_ino, worker)

    def _some_open(self) -> bool:
        return bool(self.model.open)

    # --- descriptors -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.open) < _SLOTS)
    @rule(worker=workers, path=paths, flags=flags, mode=modes)
    def open_any(self, worker: int, path: str, flags: int, mode: int) -> None:
        self._open(worker, path, flags, mode)

    @precondition(lambda self: len(self.model.open) < _SLOTS)
    @rule(
        worker=workers,
        path=names,
        flags=st.sampled_from([0, os.O_TRUNC, os.O_TRUNC, os.O_APPEND]),
        mode=modes,
    )
    def open_to_write(self, worker: int, path: str, flags: int, mode: int) -> None:
        self._open(worker, path, flags | os.O_CREAT | os.O_RDWR, mode)

    def _open(self, worker: int, path: str, flags: int, mode: int) -> None:
        before, slot = self.pair.plain(path), self._free_slot()
        if before is not None and stat.S_ISFIFO(before.st_mode):
            flags |= os.O_NONBLOCK
        if before is not None and (stat.S_ISCHR(before.st_mode) or stat.S_ISBLK(before.st_mode)):
            return  # nodev
        name = self.pair.real_name(path)
        # what an open makes is a version to be committed, even where it is opened for reading
        writing = bool(flags & (os.O_ACCMODE | os.O_TRUNC)) or before is None
        writing = writing and not flags & os.O_PATH
        question = worker, "open", slot, path, flags, oct(mode)
        joins_unseen = self._hidden(path, worker)
        answers = self.pair.ask(
            worker, "open", slot, path, flags, mode, watched=[*_around(path), slot]
        )
        ours, theirs = answers
        tmpfile = flags & os.O_TMPFILE == os.O_TMPFILE
        if ours.ok and theirs.ok:
            status = theirs.after[-1]
            assert status is not None
            self.model.opened(
                worker,
                slot,
                Description(
                    status[0],
                    path,
                    writing,
                    name.endswith(".log"),
                    stat.S_ISREG(status[4]) and not flags & os.O_PATH,
                    {(worker, slot)},
                    direct=bool(flags & os.O_DIRECT),
                    stale=bool(flags & os.O_PATH) and stat.S_ISREG(status[4]),
                ),
                flags,
                before,
            )
        elif ours.ok != theirs.ok and (tmpfile or joins_unseen):
            if before is not None and not tmpfile:
                self.model.split.add(before.st_ino)  # the owner or mode of another version
            opened = self.pair.sides[0 if ours.ok else 1][worker]
            opened.send("close", slot)
            opened.answer()
            answers[0 if ours.ok else 1].after[-1] = None
        for answer in answers:
            answer.before.pop(), answer.after.pop()
            if joins_unseen and answer.before:
                answer.before[0] = None  # the path shows another version than before
        self.pair.compare(
            worker,
            question,
            answers,
            commits=writing,
            joins=bool(flags & os.O_TRUNC) and before is not None and before.st_size == 0,
            masked=joins_unseen and ours.ok != theirs.ok,
            allowed=lambda ours, theirs: tmpfile and ours == ("error", "ENOTSUP"),
        )

    @precondition(_some_open)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        (worker, slot), description = self._picked(pick)
        watched = _around(description.path)
        answers = self.pair.ask(worker, "close", slot, watched=watched)
        self.model.closed(worker, slot)
        if description.writing:
            self.pair.settle()
        self.pair.compare(
            worker, (worker, "close", slot, description.path), answers, commits=description.writing
        )

    @precondition(lambda self: 0 < len(self.model.open) < _SLOTS)
    @rule(pick=picks)
    def dup(self, pick: int) -> None:
        (worker, _), description = self._picked(pick)
        new = self._free_slot()
        self.by_slot(pick, "dup", new)
        self.model.open[worker, new] = description
        description.holders.add((worker, new))

    @precondition(_some_open)
    @rule(pick=picks, size=sizes)
    def read(self, pick: int, size: int) -> None:
        self.by_slot(pick, "read", size, reads=True)

    @precondition(_some_open)
    @rule(pick=picks, size=sizes, offset=offsets)
    def pread(self, pick: int, size: int, offset: int) -> None:
        self.by_slot(pick, "pread", size, offset, reads=True)

    @precondition(_some_open)
    @rule(pick=picks, sizes=st.lists(sizes, min_size=1, max_size=3))
    def readv(self, pick: int, sizes: list[int]) -> None:
        self.by_slot(pick, "readv", sizes, reads=True)

    @precondition(_some_open)
    @rule(pick=picks, data=data)
    def write(self, pick: int, data: bytes) -> None:
        self.by_slot(pick, "write", data, writes=True)

    @precondition(_some_open)
    @rule(pick=picks, data=data, offset=offsets)
    def pwrite(self, pick: int, data: bytes, offset: int) -> None:
        self.by_slot(pick, "pwrite", data, offset, writes=True)

    @precondition(_some_open)
    @rule(pick=picks, parts=st.lists(data, min_size=1, max_size=3))
    def writev(self, pick: int, parts: list[bytes]) -> None:
        self.by_slot(pick, "writev", parts, writes=True)

    @precondition(_some_open)
    @rule(pick=picks, block=st.integers(0, 3), data=st.none() | st.binary(min_size=1, max_size=1))
    def direct(self, pick: int, block: int, data: bytes | None) -> None:
        self.by_slot(pick, "direct", block, data, reads=data is None, writes=data is not None)

    @precondition(_some_open)
    @rule(
        pick=picks, offset=offsets, whence=st.sampled_from([0, 1, 2, os.SEEK_DATA, os.SEEK_HOLE, 9])
    )
    def lseek(self, pick: int, offset: int, whence: int) -> None:
        if self._picked(pick)[1].is_file:  # the end of a directory is no number of bytes
            self.by_slot(pick, "lseek", offset, whence, reads=True)

    @precondition(_some_open)
    @rule(pick=picks, size=sizes)
    def ftruncate(self, pick: int, size: int) -> None:
        self.by_slot(pick, "ftruncate", size, writes=True)

    @precondition(_some_open)
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

    @precondition(_some_open)
    @rule(pick=picks, other=picks, size=sizes, at=offsets, to=offsets)
    def copy_range(self, pick: int, other: int, size: int, at: int, to: int) -> None:
        (worker, slot), source = self._picked(pick)
        (other_worker, target_slot), target = self._picked(other)
        if other_worker != worker or not (source.is_file and target.is_file):
            return
        if source.direct or target.direct:  # a plain file wants it aligned
            return
        self.model.written(target)
        if self.model.masked(source):
            self.model.split.add(target.inode)
        masked = self.model.masked(source) or self.model.masked(target)
        answers = self.pair.ask(worker, "copy_range", slot, target_slot, size, at, to)
        self.pair.compare(
            worker,
            (worker, "copy_range", source.path, target.path, size, at, to),
            answers,
            masked=masked,
        )

    @precondition(_some_open)
    @rule(pick=picks, only_data=st.booleans())
    def sync(self, pick: int, only_data: bool) -> None:
        self.by_slot(pick, "sync", only_data)

    @precondition(_some_open)
    @rule(pick=picks, offset=offsets, data=st.none() | data)
    def map(self, pick: int, offset: int, data: bytes | None) -> None:
        if not self._picked(pick)[1].is_file:
            return  # which error depends on the kind of inode, not on us
        self.by_slot(pick, "map", offset, data, reads=True, writes=data is not None, commits=True)
        self._picked(pick)[1].flushed = True  # Python maps a duplicate, and closes it

    @precondition(_some_open)
    @rule(pick=picks)
    def fstat(self, pick: int) -> None:
        self.by_slot(pick, "fstat", reads=True)

    @precondition(_some_open)
    @rule(pick=picks, mode=modes)
    def fchmod(self, pick: int, mode: int) -> None:
        self.by_slot(pick, "fchmod", mode, writes=True)

    @precondition(_some_open)
    @rule(pick=picks, uid=owners, gid=owners)
    def fchown(self, pick: int, uid: int, gid: int) -> None:
        self.by_slot(pick, "fchown", uid, gid, writes=True)

    @precondition(_some_open)
    @rule(pick=picks, key=xattrs, value=data)
    def fsetxattr(self, pick: int, key: str, value: bytes) -> None:
        self.by_slot(pick, "fsetxattr", key, value, writes=True)

    @precondition(_some_open)
    @rule(pick=picks, how=st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]))
    def take_flock(self, pick: int, how: int) -> None:
        self.by_slot(pick, "flock", how, reads=True, commits=True)

    @precondition(_some_open)
    @rule(
        pick=picks,
        how=st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]),
        start=offsets,
        length=sizes,
    )
    def take_lockf(self, pick: int, how: int, start: int, length: int) -> None:
        self.by_slot(pick, "lockf", how, start, length, reads=True, commits=True)

    # --- paths -----------------------------------------------------------------------------------

    @rule(worker=workers, path=paths, follow=st.booleans())
    def look(self, worker: int, path: str, follow: bool) -> None:
        self.by_path(worker, "stat", path, follow, masked=self._hidden(path, worker, follow))

    @rule(worker=workers, path=paths)
    def read_path(self, worker: int, path: str) -> None:
        status = self.pair.plain(path)
        if status is not None and not (
            stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        ):
            return
        self.by_path(worker, "read_path", path, masked=self._hidden(path, worker))

    @rule(worker=workers, path=paths, size=sizes)
    def truncate(self, worker: int, path: str, size: int) -> None:
        self.by_metadata(worker, "truncate", path, size, commits=True)

    @rule(worker=workers, path=paths)
    def unlink(self, worker: int, path: str) -> None:
        self.by_path(worker, "unlink", path)

    @rule(worker=workers, path=paths)
    def rmdir(self, worker: int, path: str) -> None:
        self.by_path(worker, "rmdir", path)

    @rule(worker=workers, path=paths, mode=modes)
    def mkdir(self, worker: int, path: str, mode: int) -> None:
        self.by_path(worker, "mkdir", path, mode)

    @rule(worker=workers, path=st.sampled_from(["d", "e", "d/s"]))
    def mkdir_for_use(self, worker: int, path: str) -> None:
        self.by_path(worker, "mkdir", path, 0o777)

    @rule(worker=workers, to=paths, path=paths)
    def symlink(self, worker: int, to: str, path: str) -> None:
        answers = self.pair.ask(worker, "symlink", to, path, watched=_around(path))
        self.pair.compare(worker, (worker, "symlink", to, path), answers)

    @rule(worker=workers, path=paths)
    def readlink(self, worker: int, path: str) -> None:
        self.by_path(worker, "readlink", path)

    @rule(
        worker=workers,
        path=paths,
        kind=st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR]),
        mode=modes,
    )
    def mknod(self, worker: int, path: str, kind: int, mode: int) -> None:
        self.by_path(
            worker, "mknod", path, kind | mode, os.makedev(1, 3) if kind == stat.S_IFCHR else 0
        )

    @rule(worker=workers, old=paths, new=paths, follow=st.booleans())
    def link(self, worker: int, old: str, new: str, follow: bool) -> None:
        status = self.pair.plain(old, follow)
        staged = status is not None and any(d.writing for d in self.model.of(status.st_ino))
        if staged:
            return
        answers = self.pair.ask(
            worker, "link", old, new, follow, watched=[*_around(old), *_around(new)]
        )
        self.pair.compare(worker, (worker, "link", old, new, follow), answers)

    @rule(
        worker=workers,
        old=paths,
        new=paths,
        how=st.sampled_from([0, 0, 0, 0, 1, 2, 2, 2, 3, 8]),
    )
    def rename(self, worker: int, old: str, new: str, how: int) -> None:
        before = self.pair.plain(old, False), self.pair.plain(new, False)
        answers = self.pair.ask(
            worker, "rename", old, new, how, watched=[*_around(old), *_around(new)]
        )
        if answers[1].ok:
            self.model.renamed(*before)
            if how == EXCHANGE:
                self.model.renamed(*reversed(before))
            else:
                self.model.replaced(*before)
        for answer in answers:
            if answer.ok:  # the times of a file are watched, not those of a name
                answer.after[0], answer.after[2] = answer.after[2], answer.after[0]
        links = None not in before and before[0].st_ino == before[1].st_ino
        if links and before[0].st_ino in self.model.split:
            return  # its names have parted on the mount, where this replaces one
        self.pair.compare(
            worker,
            (worker, "rename", old, new, how),
            answers,
            allowed=lambda ours, theirs: links and ours[1] in ("EACCES", "EPERM"),
        )

    @rule(worker=workers, path=paths, mode=modes)
    def chmod(self, worker: int, path: str, mode: int) -> None:
        self.by_metadata(worker, "chmod", path, mode)

    @rule(worker=workers, path=paths, uid=owners, gid=owners, follow=st.booleans())
    def chown(self, worker: int, path: str, uid: int, gid: int, follow: bool) -> None:
        self.by_metadata(worker, "chown", path, uid, gid, follow, follow=follow)

    @rule(worker=workers, path=paths, atime=times, mtime=times, follow=st.booleans())
    def utimens(self, worker: int, path: str, atime: int, mtime: int, follow: bool) -> None:
        self.by_metadata(worker, "utimens", path, atime, mtime, follow, follow=follow)

    @rule(worker=workers, path=paths, mode=st.integers(0, 7), effective=st.booleans())
    def access(self, worker: int, path: str, mode: int, effective: bool) -> None:
        masked = self._hidden(path, worker)
        self.by_path(worker, "access", path, mode, effective, masked=masked)

    @rule(
        worker=workers,
        path=paths,
        key=xattrs,
        value=data,
        how=st.sampled_from([0, 0, 1, 2]),
        follow=st.booleans(),
    )
    def setxattr(
        self, worker: int, path: str, key: str, value: bytes, how: int, follow: bool
    ) -> None:
        self.by_metadata(worker, "setxattr", path, key, value, how, follow, follow=follow)

    @rule(worker=workers, path=paths, key=xattrs)
    def getxattr(self, worker: int, path: str, key: str) -> None:
        self.by_path(worker, "getxattr", path, key, masked=self._hidden(path, worker))

    @rule(worker=workers, path=paths, follow=st.booleans())
    def listxattr(self, worker: int, path: str, follow: bool) -> None:
        self.by_path(worker, "listxattr", path, follow, masked=self._hidden(path, worker, follow))

    @rule(worker=workers, path=paths, key=xattrs)
    def removexattr(self, worker: int, path: str, key: str) -> None:
        self.by_metadata(worker, "removexattr", path, key)

    @rule(worker=workers, path=paths)
    def listdir(self, worker: int, path: str) -> None:
        self.by_path(worker, "listdir", path)

    @rule(worker=workers, path=paths)
    def statfs(self, worker: int, path: str) -> None:
        self.by_path(worker, "statfs", path)

    @rule(worker=workers, mask=st.sampled_from([0o022, 0o077, 0o000]))
    def umask(self, worker: int, mask: int) -> None:
        answers = self.pair.ask(worker, "umask", mask)
        self.pair.compare(worker, (worker, "umask", mask), answers)

    @rule(worker=st.sampled_from([0, 1]))
    def compare_trees(self, worker: int) -> None:
        self.pair.compare_trees(worker)

    def teardown(self) -> None:
        if self.pair.over:
            return
        while self.model.open:
            self.close(0)
        self.pair.compare_trees(1)


def _around(path: str) -> list[str]:
    """The path and its directory."""
    return [path, os.path.dirname(path.rstrip("/")) or "."] if len(path) < 300 else []


# --- tests ---------------------------------------------------------------------------------------


@pytest.fixture
def pair(disk_dir: Path) -> Iterator[Twins]:
    plain = disk_dir.parent / "plain"
    plain.mkdir()
    with (
        mounts.served(disk_dir, limit_s=24 * 3600) as served,
        twins(disk_dir, plain, served.abort) as pair,
    ):
        yield pair


def test_the_mount_does_what_the_plain_directory_does(pair: Twins) -> None:
    SamePlain.pair = pair
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        SamePlain,
        settings=settings(
            max_examples=max(1, _OPERATIONS * 11 // 10 // _STEPS),  # some draws say nothing
            stateful_step_count=_STEPS,
            phases=(Phase.generate, Phase.shrink),
            deadline=None,
            database=None,
            derandomize="CKPTFS_OPERATIONS" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{pair.operations} operations, {pair.succeeded} of them succeeded")
    assert pair.operations > 0.75 * _OPERATIONS, "hypothesis has given up early"
    assert pair.succeeded > 0.3 * pair.operations


class _ForgetsModes(SamePlain):
    """A mount whose chmod does nothing would look like this."""

    def chmod(self, worker: int, path: str, mode: int) -> None:
        worker_there = self.pair.sides[1][worker]
        worker_there.send("chmod", path, mode)
        assert worker_there.answer().ok


@pytest.mark.parametrize("path", ["f", "d", "h"])
def test_control_a_dropped_chmod_is_seen(pair: Twins, path: str) -> None:
    _ForgetsModes.pair = pair
    machine = _ForgetsModes()
    machine.look(0, path, True)
    machine.chmod(0, path, 0o640)
    with pytest.raises(Different):
        machine.look(0, path, True)
    with pytest.raises(Different):
        machine.compare_trees(1)
