"""What stands under its name, and what a change of that name replaces: looked at, kept in history,
renamed, deleted, recorded anew. Thread-safe; see ``commit.py`` for how a version comes there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from ckptfs import format as fmt
from ckptfs import history, osfs, structure
from ckptfs.digest import CHUNK_BYTES, Before, hash_range
from ckptfs.errors import CkptfsError, RecordDamaged, Rotten
from ckptfs.format import Record
from ckptfs.growth import Growth
from ckptfs.layout import Layout
from ckptfs.ordering import Ordering
from ckptfs.protocol import Mode
from ckptfs.staged import Digested, Fingerprint
from ckptfs.structure import Structure, Verdict

_WRITEBACK_AHEAD_BYTES = 64 << 20


@dataclass(frozen=True)
class Replaced:
    """The version that a commit replaces."""

    record: Record | None
    lineage: str
    verdict: Verdict


class Committed(Ordering):
    def __init__(
        self, layout: Layout, mode: Mode, checksum: str, keep: int, validate: bool
    ) -> None:
        super().__init__(layout.fs, mode)
        self.layout = layout
        self.checksum, self.keep, self.validate = checksum, keep, validate
        self.growth = Growth(layout)
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

    def replaced_by(self, at: int, name: str) -> Replaced | None:
        """What stands at the target. A damaged record counts as none: the bytes are kept."""
        if not self._is_file(at, name):
            return None
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            status = self.fs.stat(fd)
            try:
                record = self.layout.read_record(fd)
            except RecordDamaged:
                record = None
            if record is None:
                verdict = self.judge_open(name, fd).verdict
                return Replaced(None, fmt.new_lineage(), verdict)
            # The lineage stays with the other file: histories of two paths must not mix.
            own = self._has_lineage(status, record)
            shared = self._has_other_name(status, record) or not own
            lineage = fmt.new_lineage() if shared else record.lineage
            return Replaced(record, lineage, Verdict(record.structure))

    def _is_file(self, at: int, name: str) -> bool:
        """Symlinks cannot be opened here, and opening a FIFO would wait for its writer."""
        try:
            return osfs.is_regular(self.fs.lstat(at, name))
        except FileNotFoundError:
            return False

    def _has_other_name(self, status: osfs.Status, record: Record) -> bool:
        """Whether a hard link other than the one that history may hold carries this version."""
        others = status.st_nlink - 1
        return others > 0 and others > self._links_in_history(status.st_ino, record)

    def _has_lineage(self, status: osfs.Status, record: Record) -> bool:
        """Whether the history is its own: a copy made outside (``cp -a``) names that of another."""
        return not history.has_another_file(self.layout, record.lineage, status.st_ino)

    def _links_in_history(self, inode: int, record: Record) -> int:
        with (
            contextlib.suppress(FileNotFoundError),
            osfs.opened(self.fs, self.layout.history, record.lineage, osfs.DIRECTORY) as folder,
        ):
            return int(self.fs.lstat(folder, str(record.generation)).st_ino == inode)
        return 0

    def keep_replaced(self, replaced: Replaced | None, at: int, name: str, path: str) -> None:
        """Link the replaced version of ``path``, ``at/name``, into history; the link is durable on
        return."""
        if replaced is None or self.keep == 0:
            return
        generation = replaced.record.generation if replaced.record else 0
        folder, made = history.link(self.layout, at, name, replaced.lineage, generation, path)
        try:
            self.sync_dir(folder)
            if made:
                self.sync_dir(self.layout.history)
        finally:
            self.fs.close(folder)

    def prune(self, replaced: Replaced | None) -> None:
        """Once the new version is settled, let go of generations past the retention."""
        if replaced is not None:  # else the lineage begins here
            with contextlib.suppress(OSError):  # the next commit prunes again
                history.prune(self.layout, replaced.lineage, self.keep)

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
        new = replace(
            record,
            digest=digested.digest,
            size_bytes=size,
            mtime_ns=mtime,
            structure=digested.structure.verdict.value,
            sums=digested.sums,
        )
        self.layout.write_record(fd, new)
        self.fs.fsync(fd)
        return new

    def record(self, at: int, name: str, path: str, lineage: str = "") -> Record:
        """Record what stands at ``path``, ``at/name``, as it is; of ``lineage`` where its record
        does not tell. Durable on return. The caller holds the path's lock."""
        self.require_writable()
        replaced = self.replaced_by(at, name)
        if replaced is not None and replaced.record is None and lineage:
            replaced = replace(replaced, lineage=lineage)
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            if replaced is not None and replaced.record is not None:
                self._unlink_history_of(fd, replaced.record)
            self.fs.fsync(fd)
            record = self.new_record(self.digest_open(path, fd, self.checksum), replaced)
            self._require_edited(path, replaced.record if replaced else None, record)
            self.layout.write_record(fd, record)
            self.fs.fsync(fd)
        return record

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
        new = replace(record, mtime_ns=mtime)
        self.layout.write_record(fd, new)
        return new

    # --- a rename by the user is a commit of its target -------------------------------------------

    def rename(self, at: int, name: str, to: int, target: str, path: str) -> None:
        """Rename a committed file onto ``path``, ``to/target``: keeps what stood there, takes over
        its lineage. Durable on return as the mode says."""
        self.require_writable()
        if not self.mode.transactional:
            self.fs.rename(at, name, to, target)
            return
        with self.path_lock(to, target):
            replaced = self.replaced_by(to, target)
            left = None
            if replaced is not None:
                left = self._adopt_lineage(at, name, replaced.lineage)
            try:
                if replaced is not None:
                    # what is written in place has no record that could be missing
                    noted = path if self._has_record(at, name) else ""
                    self.keep_replaced(replaced, to, target, noted)
                self.sync_changed_dirs()
                self.fs.rename(at, name, to, target)
            except OSError:
                if left is not None:  # histories of two paths must not mix
                    with contextlib.suppress(OSError):
                        self._adopt_lineage(at, name, left)
                raise
            self.sync_dir(to)
            self.sync_dir(at)
            if replaced is not None:
                with contextlib.suppress(OSError):
                    history.prune(self.layout, replaced.lineage, self.keep)
                    if left is not None:
                        history.forget(self.layout, left)
                self._tell_kept(path, replaced)
            else:
                self._follow(to, target, path)

    def _has_record(self, at: int, name: str) -> bool:
        if not self._is_file(at, name):
            return False
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            return self.layout.raw_record(fd) is not None

    def _follow(self, at: int, name: str, path: str) -> None:
        """History hears of the new path of a file."""
        with contextlib.suppress(OSError, RecordDamaged):
            if self._is_file(at, name):
                with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
                    record = self.layout.read_record(fd)
                    if record is not None and self._has_lineage(self.fs.stat(fd), record):
                        history.follow(self.layout, record.lineage, path)

    def moved_directory(self, path: str, target: str) -> None:
        """History hears of the new paths of the files below. Takes as long as history is wide."""
        with contextlib.suppress(OSError):
            for known, lineage in history.lineages_by_path(self.layout).items():
                if known.startswith(f"{path}/"):
                    history.follow(self.layout, lineage, target + known[len(path) :])

    def _tell_kept(self, path: str, replaced: Replaced) -> None:
        if self.keep > 0 and replaced.record is not None:
            self.kept(path, replaced.record.size_bytes)

    def _adopt_lineage(self, at: int, name: str, lineage: str) -> str | None:
        """Give a committed file another lineage, durably. Returns the one it leaves, if any."""
        if not self._is_file(at, name):
            return None
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            try:
                record = self.layout.read_record(fd)
            except RecordDamaged:
                return None
            if record is None:
                self.fs.fsync(fd)  # written in place: nobody else makes its bytes durable
                return None
            # A commit of the target, hence a number above all that history holds of it.
            generation = self.layout.next_generation()
            new = replace(record, lineage=lineage, generation=generation)
            try:
                self.layout.write_record(fd, new)
                self.fs.fsync(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    self.layout.write_record(fd, record)
                raise
            return record.lineage if record.lineage != lineage else None

    def exchange(self, at: int, name: str, to: int, target: str, paths: tuple[str, str]) -> None:
        """Swap two names, which are ``paths``. Both versions stay and keep their lineage, so
        history has nothing to keep. Durable on return as the mode says."""
        self.require_writable()
        with contextlib.ExitStack() as stack:
            for place in sorted({(at, name), (to, target)}):
                stack.enter_context(self.path_lock(*place))
            self.sync_changed_dirs()
            self.fs.exchange(at, name, to, target)
            self.sync_dir(to)
            if at != to:
                self.sync_dir(at)
            self._follow(at, name, paths[0])
            self._follow(to, target, paths[1])

    def unlink(self, at: int, name: str) -> None:
        """Delete a name and, with the last one, its history. Durable before the next publish."""
        self.require_writable()
        with self.path_lock(at, name):
            lineage = self._last_lineage(at, name)
            if lineage is not None:  # a crash on the way to the end must not read as a loss
                history.follow(self.layout, lineage, "")
            self.fs.unlink(at, name)
            self.note_changed_dir(at)
            if lineage is not None:
                with contextlib.suppress(OSError):
                    history.forget(self.layout, lineage)

    def _last_lineage(self, at: int, name: str) -> str | None:
        """The lineage that ends with this name: None while another hard link carries it."""
        if not self._is_file(at, name):
            return None
        try:
            with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
                record, status = self.layout.read_record(fd), self.fs.stat(fd)
                if record is None or self._has_other_name(status, record):
                    return None
                self.layout.drop_sidecar(fd)
                return record.lineage if self._has_lineage(status, record) else None
        except (OSError, CkptfsError):
            return None

    def open_in_place(self, at: int, name: str) -> None:
        """Prepare a committed file for writing in place: its record goes first, durably, and a
        link that history may hold of this very inode is let go."""
        with self.path_lock(at, name), osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            try:
                record = self.layout.read_record(fd)
            except RecordDamaged:
                record = None
            self.layout.remove_record(fd)
            if record is not None:
                self._unlink_history_of(fd, record)
                if self._has_lineage(self.fs.stat(fd), record):  # no record will be missing there
                    history.follow(self.layout, record.lineage, "")

    def _unlink_history_of(self, fd: int, record: Record) -> None:
        if not self._links_in_history(self.fs.stat(fd).st_ino, record):
            return
        with osfs.opened(self.fs, self.layout.history, record.lineage, osfs.DIRECTORY) as folder:
            self.fs.unlink(folder, str(record.generation))
            self.sync_dir(folder)
