"""What stands under its name, and what a change of that name replaces: looked at, kept in history,
recorded anew. Thread-safe; see ``commit.py`` for how a version comes there, ``names.py`` for what
becomes of names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ckptfs import structure
from ckptfs.disk import osfs
from ckptfs.disk.digest import CHUNK_BYTES, Before, hash_range
from ckptfs.errors import RecordDamaged, Rotten
from ckptfs.history import earlier
from ckptfs.history.lineages import Lineages, Standing
from ckptfs.modes import Mode
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.records.layout import Layout
from ckptfs.structure import Structure, Verdict
from ckptfs.versions.extend import Growth
from ckptfs.versions.order import Ordering
from ckptfs.versions.staged import Digested, Fingerprint

_WRITEBACK_AHEAD_BYTES = 64 << 20


@dataclass(frozen=True)
class Replaced:
    """The version that a commit replaces, and the lineage that its path goes on with."""

    record: Record | None
    lineage: str
    verdict: Verdict
    generation: int  # its name in history
    shared: bool = False  # the lineage had other paths, which stay behind
    leaves: str = ""  # another lineage that the path had so far
    pin: bool = False  # what comes instead cannot tell its lineage


class Committed(Ordering):
    def __init__(
        self, layout: Layout, mode: Mode, checksum: str, keep: int, validate: bool
    ) -> None:
        super().__init__(layout.fs, mode)
        self.layout = layout
        self.checksum, self.keep, self.validate = checksum, keep, validate
        self.growth = Growth(layout)
        self.lineages = Lineages(layout)
        # told of each path whose last version went to history, and how long that is
        self.kept: Callable[[str, int], None] = lambda path, size_bytes: None

    def fingerprint(self, fd: int) -> Fingerprint:
        return self.growth.fingerprint(fd)

    # --- what stands there -----------------------------------------------------------------------

    def judge(self, path: str, size: int, read: Callable[[int, int], bytes]) -> Structure:
        if not self.validate:
            return Structure(Verdict.UNKNOWN, "")
        return structure.check(path.rpartition("/")[2], size, read)

    def judge_open(self, path: str, fd: int) -> Structure:
        size = self.fs.stat(fd).st_size
        return self.judge(path, size, lambda offset, n: self.fs.read(fd, n, offset))

    def replaced_by(self, at: int, name: str, path: str) -> Replaced | None:
        """What stands at the target, ``path``. A damaged record counts as none: the bytes are
        kept."""
        return self.replaced(self.lineages.look(at, name, path), at, name)

    def replaced(self, there: Standing, at: int, name: str) -> Replaced | None:
        if not there.is_file:
            return None
        record, lineage = there.record, there.lineage
        verdict = Verdict(record.structure) if record else self._judge_at(at, name)
        shared = len(there.names) > 1
        if not there.keeps:  # the history stays with other names: that of two must not mix
            new, number = fmt.new_lineage(), record.generation if record else 0
            return Replaced(record, new, verdict, number, leaves=lineage)
        return Replaced(record, lineage, verdict, self._number(there), shared)

    def _number(self, there: Standing) -> int:
        """That of the record, if it is the newest of the lineage: an older version may have come
        back, or a link of another file. What has a damaged record is the first to go again."""
        number = there.record.generation if there.record else 0
        newest = max(earlier.generations(self.layout, there.lineage), default=-1)
        if there.record is None and there.lineage not in self.lineages.pinned:
            return number
        if newest < number or self._links_in_history(there, newest):
            return max(newest, number)
        return self.layout.next_generation()

    def _links_in_history(self, there: Standing, generation: int) -> int:
        """Whether its history holds a link of what stands there, under that number."""
        assert there.status is not None
        with (
            contextlib.suppress(FileNotFoundError),
            osfs.opened(self.fs, self.layout.history, there.lineage, osfs.DIRECTORY) as folder,
        ):
            found = self.fs.lstat(folder, str(generation))
            return int(found.st_ino == there.status.st_ino)
        return 0

    def _judge_at(self, at: int, name: str) -> Verdict:
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            return self.judge_open(name, fd).verdict

    def is_no_file(self, at: int, name: str) -> bool:
        """Whether something else than a file stands there: a symlink, a FIFO."""
        return not osfs.is_regular(self.fs.lstat(at, name))

    def keep_replaced(self, replaced: Replaced | None, at: int, name: str, path: str) -> None:
        """Link the replaced version of ``path``, ``at/name``, into history; the link is durable on
        return."""
        if replaced is None or self.keep == 0:
            return
        lineage, number = replaced.lineage, replaced.generation
        told = replaced.record.lineage if replaced.record else ""
        folder, made = self.lineages.link(
            at, name, path, lineage, number, told=told, pin=replaced.pin
        )
        try:
            if replaced.pin and self.mode.syncs_directories:  # its note is no hint
                self.fs.fsync(folder)
            self.sync_dir(folder)
            if made:
                self.sync_dir(self.layout.history)
        finally:
            self.fs.close(folder)

    def settle_history(self, replaced: Replaced | None, path: str) -> None:
        """Once the new version is settled, let go of generations past the retention, and of what
        the path has no more to do with."""
        if replaced is None:  # the lineage begins here
            return
        with contextlib.suppress(OSError):  # the next commit or mount does it
            if self.keep == 0:
                self.lineages.forget(replaced.lineage)
            with self.lineages.lock:
                earlier.prune(self.layout, replaced.lineage, self.keep)
            if replaced.leaves:
                self.lineages.leave(replaced.leaves, path)
            if replaced.shared and not replaced.leaves:
                self.lineages.keep_alone(replaced.lineage, path)

    def tell_kept(self, path: str, replaced: Replaced) -> None:
        if self.keep > 0 and replaced.record is not None:
            self.kept(path, replaced.record.size_bytes)

    def reseal_committed(self, at: int, name: str) -> None:
        """Give a version without a writer a new record, durable on return, if a store through an
        old mapping moved its mtime. Does nothing while size and mtime are as recorded."""
        with self.path_lock(at, name), osfs.opened(self.fs, at, name, osfs.O_RDWR) as fd:
            try:
                record = self.layout.read_record(fd)
            except RecordDamaged:  # the open that follows sees to it
                return
            before = self.fingerprint(fd)
            if record is None or before == (record.size_bytes, record.mtime_ns):
                return
            self.fs.fsync(fd)
            self.rerecord(fd, record, self.digest_open(name, fd, record.algorithm))

    def cleaning(self, fd: int, size: int) -> Before:
        """Clean each chunk before it is read, with writeback of the next ones under way: handing
        the whole file to the disk first would keep the hash waiting for as long as that takes."""
        started = 0

        def clean(offset: int, length: int) -> None:
            nonlocal started
            started = max(started, offset + CHUNK_BYTES)  # a chunk is written by its own cleaning
            while started < min(size, offset + _WRITEBACK_AHEAD_BYTES):
                self.fs.start_writeback(fd, started, CHUNK_BYTES)
                started += CHUNK_BYTES
            self.fs.clean(fd, offset, length)

        return clean

    def digest_open(self, path: str, fd: int, algorithm: str) -> Digested:
        """What is in a file that stands under its name."""
        before = self.fingerprint(fd)
        clean = self.cleaning(fd, before[0])  # from here on a store through a mapping is seen
        hasher = hash_range(self.fs, fd, (0, before[0]), algorithm, before=clean, sums=True)
        return Digested.of(before, algorithm, hasher, self.judge_open(path, fd))

    def rerecord(self, fd: int, record: Record, digested: Digested) -> Record:
        """Record a committed file whose bytes were changed in place. Durable on return."""
        size, mtime = digested.at
        new = self._write_anew(
            fd,
            record,
            digest=digested.digest,
            size_bytes=size,
            mtime_ns=mtime,
            structure=digested.structure.verdict.value,
            sums=digested.sums,
            live=False,
        )
        self.fs.fsync(fd)
        return new

    def _write_anew(self, fd: int, record: Record, **changed: Any) -> Record:
        """Not durable. A rename may have given the file another lineage since it was recorded."""
        with self.lineages.lock:
            with contextlib.suppress(RecordDamaged):
                now = self.layout.read_record(fd) or record
                record = replace(record, lineage=now.lineage, generation=now.generation)
            new = replace(record, **changed)
            self.layout.write_record(fd, new)
        return new

    def record(self, at: int, name: str, path: str, lineage: str = "") -> Record:
        """Record what stands at ``path``, ``at/name``, as it is; of ``lineage`` where its record
        does not tell. Durable on return. The caller holds the path's lock."""
        self.require_writable()
        there = self.lineages.look(at, name, path)
        old, replaced = there.record, self.replaced(there, at, name)
        if replaced is not None:  # all names of the file stay with it
            told = old.lineage if old is not None else lineage or replaced.lineage
            replaced = replace(replaced, lineage=told)
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            if old is not None:
                self.unlink_history_of(fd, old.lineage)
            self.fs.fsync(fd)
            record = self.new_record(self.digest_open(path, fd, self.checksum), replaced)
            self._require_edited(path, old, record)
            self.layout.write_record(fd, record)
            self.fs.fsync(fd)
        return record

    def bring_in(self, folder: int, entry: str, at: int, name: str, path: str) -> Record:
        """Let ``path``, ``at/name``, be a file of ours that lies in ``folder``, recorded as it is;
        what it replaces is kept. Durable on return. The caller holds the path's lock."""
        self.require_writable()
        replaced = None
        with contextlib.suppress(FileNotFoundError):
            replaced = self.replaced_by(at, name, path)
        draft = fmt.new_txid()
        with osfs.opened(self.fs, folder, entry, osfs.O_RDONLY) as fd:
            record = self.new_record(self.digest_open(path, fd, self.checksum), replaced)
            self.layout.write_record(fd, record)
            self.fs.fsync(fd)
            self.fs.link(folder, entry, self.layout.stage, draft)
        self.keep_replaced(replaced, at, name, path)
        self.sync_changed_dirs()
        self.fs.rename(self.layout.stage, draft, at, name)
        self.sync_dir(at)
        self.settle_history(replaced, path)
        return record

    def unlink_history_of(self, fd: int, lineage: str) -> None:
        """The file is, or will be, changed in place: no generation is to change with it."""
        inode = self.fs.stat(fd).st_ino
        with self.lineages.lock, contextlib.suppress(FileNotFoundError):
            generations = map(str, earlier.generations(self.layout, lineage))
            with osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder:
                going = [n for n in generations if self.fs.lstat(folder, n).st_ino == inode]
                for number in going:
                    self.fs.unlink(folder, number)
                if going:
                    self.sync_dir(folder)

    def _require_edited(self, path: str, old: Record | None, new: Record) -> None:
        """Other bytes under the very time of the record have rotted: not to be made official."""
        if (
            old is not None
            and old.mtime_ns == new.mtime_ns
            and old.algorithm == new.algorithm
            and old.digest != new.digest
        ):
            raise Rotten(f"{path}: has rotted, which is no edit; `ckptfs verify --repair` first")

    def new_record(self, digested: Digested, replaced: Replaced | None) -> Record:
        size, mtime = digested.at
        last = replaced.record.generation if replaced and replaced.record else 0
        return Record(
            digest=digested.digest,
            size_bytes=size,
            mtime_ns=mtime,
            lineage=replaced.lineage if replaced else fmt.new_lineage(),
            generation=self.layout.next_generation(last),
            committed_ns=self.fs.now_ns(),
            mode=self.mode,
            structure=digested.structure.verdict.value,
            sums=digested.sums,
        )

    def rerecord_times(self, fd: int, record: Record) -> Record:
        """Record a committed file whose times were set. As durable as the times themselves: a
        crash between the two leaves a file that reads as touched, with its digest intact."""
        mtime = self.fs.stat(fd).st_mtime_ns
        if mtime == record.mtime_ns:
            return record
        return self._write_anew(fd, record, mtime_ns=mtime)
