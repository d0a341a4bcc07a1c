"""The facade that mount, tools and commands use: one store over one directory.

Everything here is true without FUSE. Paths are relative to the root, ``/``-separated, text with
surrogate escapes. Thread-safe but for ``open`` and ``close``.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import logging
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ckptfs.checking import orphans
from ckptfs.checking.examine import ROTTEN, Condition, Finding, examine_at
from ckptfs.checking.opens import Guard, shows_no_more
from ckptfs.checking.orphans import Orphans
from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem, Status
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe, CkptfsError, NoSuchGeneration, RecordDamaged, Superseded
from ckptfs.history import earlier
from ckptfs.history.sharing import Sharing, never
from ckptfs.modes import Mode, Outside
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.records.layout import Amount, Layout, held_bytes
from ckptfs.room.making import DiskRoom, patient
from ckptfs.telling.alarms import Alarms
from ckptfs.telling.events import DISK_FULL, Events, say
from ckptfs.telling.tally import Tally
from ckptfs.versions import extend
from ckptfs.versions.commit import Committer
from ckptfs.versions.extend import Alone, nobody_else
from ckptfs.versions.life import State
from ckptfs.versions.staged import Staged, Stood

IN_PLACE = (
    "*.lock",
    "events.out.tfevents.*",
    *("*.log", "*.out", "*.err", "*.csv", "*.jsonl"),
    *("wandb/**", ".git/**"),
    *("*.db", "*.sqlite*", "*.mdb", "*-journal", "*-wal", "*-shm"),
    *("*.duckdb", "*.wal", "MANIFEST-[0-9]*"),  # DuckDB; LevelDB and RocksDB
)


@dataclass(frozen=True)
class Options:
    mode: Mode = Mode.ATOMIC_DIRSYNC
    checksum: str = "blake3"
    keep: int = 1  # earlier generations retained per path
    verify_opens: bool = True
    validate: bool = True
    outside: Outside = Outside.JUDGE  # of files that were changed behind ckptfs
    in_place: tuple[str, ...] = ()
    salvage_bytes: int = 16 << 30  # of salvage and quarantine together
    salvage_entries: int = 10_000
    share: bool = True  # the daemon lets near-identical generations share their blocks


def keeping_all(checksum: str = "blake3") -> Options:
    """For commands, which do not know how much the mount keeps: they let nothing go."""
    return Options(checksum=checksum, keep=1 << 30, salvage_bytes=1 << 62, salvage_entries=1 << 62)


class Store:
    """One directory and its control directory."""

    def __init__(self, fs: FileSystem, root: int, where: str, options: Options) -> None:
        self.root, self.where, self.options = root, where, options
        self.fs, give_room = patient(fs)
        self.layout = Layout.create(self.fs, root, where)
        self.committer = Committer(
            self.layout, options.mode, options.checksum, options.keep, options.validate
        )
        self.guard = Guard(self.committer, options.outside)
        self.room = DiskRoom(self.guard, Amount(options.salvage_entries, options.salvage_bytes))
        give_room(self.room)
        self.orphans = Orphans(self.committer)
        self.sharing = Sharing(self.layout)
        self.alarms, self.tally = Alarms(self.layout), Tally()
        self._events = Events(fs.now_ns, self.alarms)
        self.note, self.counts = self._events.note, self._events.counts
        self.events = self._events.recent  # the latest
        self.patterns = IN_PLACE + options.in_place
        # Whether others work in the directory by now, while who has a file open goes on.
        self.released: Callable[[], bool] = lambda: False

    @classmethod
    def open(
        cls,
        directory: str,
        options: Options | None = None,
        mountpoint: str = "",
        root: int | None = None,
    ) -> Store:
        """Open ``directory`` for serving: layout, lock, recovery. ``root`` is a descriptor of it,
        for the store to close, where its path leads elsewhere. Raises CannotServe and kin."""
        fs = OsFs()
        root = osfs.open_directory(directory) if root is None else root
        try:
            store = cls(fs, root, directory, options or Options())
        except BaseException:
            fs.close(root)
            raise
        try:
            store.layout.take_lock(directory, mountpoint)
            store.layout.probe_xattrs()
            store.recover()
        except BaseException as error:
            store.close()
            if isinstance(error, OSError):
                raise CannotServe(
                    f"{directory}: cannot be opened for serving: {error.strerror}; "
                    "ckptfs needs a writable directory"
                ) from None
            raise
        return store

    @classmethod
    def resume(
        cls, directory: str, options: Options, root: int, lock: int, *, same_mode: bool
    ) -> Store:
        """Go on with what this process served as another program, and holds open. Nothing is
        recovered: what lies in stage is being written. Raises CannotServe."""
        store = cls(OsFs(), root, directory, options)
        store.layout.keep_lock(lock)
        store.layout.probe_xattrs()
        if not same_mode:  # what the other mode has not synced no commit would
            store.fs.sync_all(root)
        return store

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.committer.sync_changed_dirs()
        self.alarms.save()
        self.layout.close()
        self.fs.close(self.root)

    # --- recovery --------------------------------------------------------------------------------

    def recover(self) -> int:
        """Clear what a crash left in stage: bytes go to salvage, empty drafts away; nothing is
        guessed, and of what lies outside stage only the notes of history are read. What stands
        below the root, by whomever it was made, is durable on return: a later commit syncs only
        what it changes itself. Returns how many versions were salvaged."""
        salvaged = 0
        put_back = earlier.put_back(self.layout)
        if put_back:
            self.committer.lineages.read_pins()
        for lineage in put_back:
            path = earlier.noted_path(self.layout, lineage) or "?"
            say(logging.WARNING, path, "its history lay under the name of another; put back")
        names = self.fs.listdir(self.layout.stage)
        for name in sorted(names, key=lambda name: not name.endswith(fmt.GROWS)):
            status = self.fs.lstat(self.layout.stage, name)
            if not osfs.is_regular(status):  # none of ours
                continue
            if name.endswith(fmt.GROWS):  # ahead of the versions that they belong to
                salvaged += extend.recover(self.layout, name) is not None
                continue
            salvaged += self._recover_version(name, status)
        self.room.bound()
        self.fs.sync_all(self.root)
        return salvaged

    def _recover_version(self, name: str, status: Status) -> bool:
        """Whether what was being written as ``name`` went to salvage."""
        with osfs.opened(self.fs, self.layout.stage, name, osfs.O_RDONLY) as fd:
            note = self.fs.getxattr(fd, fmt.XATTR) or b""
        missing = fmt.missing_of_note(note)
        # A version with a second name was published, or is on its way to quarantine.
        if "." in name or status.st_size == missing or status.st_nlink > 1:
            self.fs.unlink(self.layout.stage, name)
            return False
        story: dict[str, object] = {
            "path": self._path_of_staged(note),
            "reason": "unfinished when the daemon or the machine stopped",
        }
        if missing:
            story["bytes_missing_at_start"] = missing
        with contextlib.suppress(OSError):  # no room for its name: the next mount tries again
            entry = self.layout.put_aside(self.layout.stage, name, self.layout.salvage, story)
            told = f"{story['reason']}; salvage {entry}"
            say(logging.WARNING, str(story["path"] or "?"), told)
            return True
        return False

    def _path_of_staged(self, note: bytes) -> str | None:
        """Where a version that was under way was to stand: by its note or, from the seal on, by
        the lineage in its record, if history knows that."""
        with contextlib.suppress(RecordDamaged):
            record = Record.from_bytes(note)
            if record is not None:
                return earlier.noted_path(self.layout, record.lineage)
        return fmt.path_of_note(note)

    # --- versions --------------------------------------------------------------------------------

    def in_place(self, path: str) -> bool:
        """Whether files of this path are written in place, outside any transaction."""
        if not self.options.mode.transactional:
            return True
        name = path.rpartition("/")[2]
        for pattern in self.patterns:
            if pattern.endswith("/**"):
                if f"/{path}".find(f"/{pattern[:-2]}") >= 0:
                    return True
            elif fnmatch.fnmatchcase(path if "/" in pattern else name, pattern):
                return True
        return False

    def stage(
        self,
        path: str,
        at: int,
        name: str,
        *,
        exists: bool,
        truncate: bool,
        lazily: bool = False,
    ) -> Staged:
        """Start a version of ``at/name``: empty, or from the verified committed bytes.

        ``exists`` says that a committed version stands there; the new one inherits its metadata.
        ``lazily``: of a long one the bytes may be missing at first; see :class:`Growth`.
        Nothing is durable on return. Raises OSError (no room, no permission) and Rotten.
        """
        if exists and not truncate:
            self.verify_open(path, at, name)
        staged = self.committer.stage(path)
        try:
            stands = self._status(at, name) if exists else None
            self.room.begins(staged, held_bytes(stands) if stands and truncate else 0)
            if exists:
                staged.stood = Stood.of(stands) if stands else None
                self.committer.inherit(staged, at, name)
                if not truncate:
                    self.committer.growth.start(staged, at, name, lazily=lazily)
        except BaseException:
            self.committer.discard(staged)
            self._close(staged)
            raise
        return staged

    @contextlib.contextmanager
    def staging(
        self, path: str, at: int, name: str, *, exists: bool, truncate: bool, lazily: bool = False
    ) -> Iterator[Staged]:
        """As :meth:`stage`; what is not committed inside leaves nothing behind."""
        staged = self.stage(path, at, name, exists=exists, truncate=truncate, lazily=lazily)
        try:
            yield staged
        finally:
            if staged.state is State.OPEN:
                self.committer.discard(staged)
            self._close(staged)

    def reopen(self, path: str, fd: int) -> Staged:
        """The committed version itself, open for reading and writing at ``fd``, to be written
        where it is and without a transaction; :meth:`reseal` records it anew. One without a
        record, or that has lost its name, stays without."""
        record = None
        with contextlib.suppress(RecordDamaged):
            record = self.layout.read_record(fd) if self.fs.stat(fd).st_nlink else None
        staged = Staged("", fd, path, self.committer.fingerprint(fd), State.IN_PLACE)
        if record is not None:
            staged.state = State.SETTLED
            staged.record, staged.sealed = record, (record.size_bytes, record.mtime_ns)
        return staged

    def _close(self, staged: Staged) -> None:
        self.fs.close(staged.fd)
        if staged.base is not None:
            staged.base.close()

    def commit(self, staged: Staged, at: int, name: str, alone: Alone = nobody_else) -> Record:
        """See :meth:`Committer.commit`; counted, and remembered as verified. Raises Superseded."""
        if self._changed_without_us(staged, at, name) and self.released():
            reason = "the mount was released, and the file was changed in the plain directory since"
            self.abort(staged, reason)
            raise Superseded(f"{staged.path}: {reason}")
        begun_s = time.monotonic()
        try:
            with self.room.saving(staged):
                record = self.committer.commit(staged, at, name, alone)
        except BaseException as error:
            self._events.not_committed(staged.path, error)
            if getattr(error, "errno", None) == errno.ENOSPC:
                self.room.failed(staged)
            raise
        self.tally.committed(record.size_bytes, time.monotonic() - begun_s)
        with contextlib.suppress(OSError):
            self.room.saved(staged.path, held_bytes(self.fs.stat(staged.fd)))
        with contextlib.suppress(OSError):  # it is committed; the next open verifies it then
            self.guard.remember(staged.fd)
        self.note("committed", staged.path)
        return record

    def _changed_without_us(self, staged: Staged, at: int, name: str) -> bool:
        """Whether there stands what stood there neither when the version was begun nor by a
        commit."""
        stands = self._status(at, name)
        if stands is None or Stood.of(stands) == staged.stood:
            return False
        return not self.guard.known_good(at, name)

    def _status(self, at: int, name: str) -> Status | None:
        with contextlib.suppress(OSError):
            return self.fs.lstat(at, name)
        return None

    def abort(self, staged: Staged, reason: str) -> None:
        """Never publish: the old version stays, the log says why. The bytes go to salvage, but of
        what found no room: the next would find none either."""
        if reason == DISK_FULL:
            self.committer.discard(staged)
            self._events.not_committed(staged.path, reason)
            self.room.failed(staged)
            return
        entry = self.committer.abort(staged, reason)
        self._events.not_committed(staged.path, reason, entry)
        self.room.bound_if_due()

    def may_lack_bytes(self, staged: Staged) -> bool:
        """Whether a write to the version may have found no room, of which its program alone was
        told; see :meth:`DiskRoom.in_doubt`. May read all of it."""
        if self.room.look().is_full and self.room.is_unseen(staged):
            return True
        return self.room.in_doubt(staged) and not self.committer.is_whole(staged)

    def reseal(self, staged: Staged) -> bool:
        """Record a live version anew if it was written since its seal, and say whether it was."""
        try:
            if not self.committer.reseal(staged):
                return False
        except OSError as error:
            self._events.not_committed(staged.path, error)
            raise
        self.guard.remember(staged.fd)
        return True

    def verify_open(self, path: str, at: int, name: str, *, live: bool = False) -> Finding | None:
        """Ensure that an open of ``at/name`` reads good bytes; see :meth:`Guard.check`. None where
        they were known to be good.

        ``live``: a process may still map the version; what was stored through the mapping since
        its seal is recorded first, not taken for an edit.
        """
        if not self.options.verify_opens:
            return None
        if live:
            self.committer.reseal_committed(at, name)
        found = None if self.guard.known_good(at, name) else self.check(path, at, name)
        self.tally.verified()
        return found

    def check(self, path: str, at: int, name: str, **how: Any) -> Finding:
        """:meth:`Guard.check`, and what was found is noted."""
        try:
            finding = self.guard.check(at, name, path, **how)
        except (CkptfsError, OSError) as error:
            self._events.not_served(path, error)
            raise
        if finding.replaced:
            was = f"generation {finding.record.generation} " if finding.record else ""
            words = map(shlex.quote, (self.where, path))
            undo = f"`ckptfs adopt {' '.join(words)} --quarantined` takes back what was there"
            self.note("rolled back", path, f"{finding.detail}; {was}{finding.repair}; {undo}")
            self.room.bound_if_due()
        elif finding.repair:
            self.note("mended", path, f"{finding.detail}; {finding.repair}")
        elif finding.condition is Condition.MODIFIED:
            self.note("modified outside", path)
        return finding

    def verify_kept(self, path: str, at: int, name: str, lineage: str) -> None:
        """Ensure that an open of the kept generation ``at/name`` of the lineage reads good bytes;
        ``path`` is for messages. Raises Rotten: nothing stands behind it."""
        try:
            self.guard.require_good(at, name, path, lineage)
        except (CkptfsError, OSError) as error:
            self._events.not_served(path, error)
            raise

    # --- by path, for programs that use the store as a library ----------------------------------

    def _place(self, path: str) -> contextlib.AbstractContextManager[tuple[int, str]]:
        return osfs.place(self.fs, self.root, path)

    def put(self, path: str, data: bytes) -> Record:
        """Install ``data`` at ``path``. Durable on return as the mode says (C1, C2)."""
        return self._write(path, data, truncate=True)

    def append(self, path: str, data: bytes) -> Record:
        """Add ``data`` to what stands at ``path``, if anything. Durable on return as :meth:`put`;
        a long file grows in place, so nobody should be reading it (C7)."""
        return self._write(path, data, truncate=False)

    def _write(self, path: str, data: bytes, *, truncate: bool) -> Record:
        with self._place(path) as (at, name):
            exists = name in self.fs.listdir(at)
            how = {"exists": exists, "truncate": truncate, "lazily": True}
            with self.staging(path, at, name, **how) as staged:
                start = offset = self.fs.stat(staged.fd).st_size
                try:
                    while offset < start + len(data):
                        offset += self.fs.write(staged.fd, data[offset - start :], offset)
                except BaseException as error:
                    self.abort(staged, str(error))
                    raise
                return self.commit(staged, at, name)

    def get(self, path: str) -> bytes:
        """The verified bytes at ``path`` (C5). Raises Rotten, FileNotFoundError."""
        with self._place(path) as (at, name):
            self.verify_open(path, at, name)
            with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
                return _read_whole(self.fs, fd, self.fs.stat(fd).st_size)

    def repair(self, path: str) -> Finding:
        """Check the file now, and roll it back if it has rotted; see :meth:`check`."""
        with self._place(path) as (at, name):
            return self.check(path, at, name)

    def set_aside(self, lineage: str, generation: int) -> str:
        """Put a generation that has rotted into quarantine. Durable on return. Says what was
        done; nothing, where it is good after all."""
        name = str(generation)
        with osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder:
            path = earlier.noted_path(self.layout, lineage)
            finding = examine_at(self.layout, name, folder, name, called=path or "", direct=True)
            if finding.condition not in ROTTEN:
                return ""
            story: dict[str, object] = {
                "path": path,
                "reason": f"generation {generation}: {finding.detail}",
            }
            self.layout.put_aside(folder, name, self.layout.quarantine, story)
            self.committer.sync_dir(self.layout.quarantine)
            self.committer.sync_dir(folder)
        self.note("set aside", path or lineage, f"generation {generation} has rotted")
        self.room.bound_if_due()
        return "put into quarantine"

    def adopt(self, path: str) -> Record:
        """Record the file as it is: one that was there before, or was edited outside. Durable on
        return. Without a record that tells its lineage it begins one. Raises Rotten for what no
        edit has made different."""
        with self._place(path) as (at, name):
            return self.adopt_at(path, at, name)

    def adopt_at(self, path: str, at: int, name: str) -> Record:
        with self.committer.path_lock(at, name):
            record = self.committer.record(at, name, path)
        self.note("adopted", path)
        return record

    def take_back(self, path: str) -> Record:
        """Make what was last put into quarantine of ``path`` its version again, whatever it holds;
        what stands there becomes a generation. Durable on return. Raises NoSuchGeneration."""
        with self._place(path) as (at, name):
            return self.take_back_at(path, at, name)

    def take_back_at(self, path: str, at: int, name: str) -> Record:
        with self.committer.path_lock(at, name):
            entry = self.quarantined(path)
            before = self.guard.status_at(at, name)
            with self.room.expendable.using(entry):
                record = self.committer.bring_in(self.layout.quarantine, entry, at, name, path)
            self.guard.replaced(path, before)
            self.layout.drop_aside(self.layout.quarantine, entry)
        self.note("adopted", path, "what was in quarantine")
        return record

    def owner_in_quarantine(self, path: str) -> int:
        return self.fs.lstat(self.layout.quarantine, self.quarantined(path)).st_uid

    def quarantined(self, path: str) -> str:
        """The last entry of ``path`` in quarantine. Raises NoSuchGeneration."""
        for story in reversed(self.layout.set_aside(self.layout.quarantine)):
            if story["path"] == path:
                return str(story["id"])
        raise NoSuchGeneration(f"{path}: nothing of it lies in quarantine")

    def take(self, finding: Finding, known: dict[str, str]) -> bool:
        """Accept what was found as it is: adopt the file or, where it was deleted outside, let its
        history go, as ``rm`` through a mount does. False for what is written in place."""
        path = finding.path
        if finding.condition is Condition.MISSING:
            self.committer.lineages.leave(known.get(path, ""), path)
            return path in known
        if self.in_place(path):
            return False
        self.adopt(path)
        return True

    def tidy(self, pause: Callable[[], None] = orphans.nothing) -> orphans.Outcome:
        """Let history go that no path leads to; see :mod:`ckptfs.checking.orphans`. ``pause`` is
        called every now and then. Takes as long as history is wide and, where there is such, the
        tree."""
        outcome = self.orphans.settle(pause)
        for path in outcome.given_back:
            self.note("given back", path, "its history, which a crash or a rename outside cut off")
        if outcome.let_go:
            self.note("let go", "", f"{outcome.let_go} earlier versions that no path led to")
        return outcome

    def rollback(self, path: str, to: int | None = None) -> int:
        """Make generation ``to``, or the newest good one, what stands at ``path``. What stood
        there is kept as a generation itself or, if it has rotted, in quarantine; who has it open
        keeps it. Directories that went with the file are made. Durable on return. Returns the
        generation. Raises NoSuchGeneration."""
        self.guard.make_folders(path, to)
        with self._place(path) as (at, name):
            return self.rollback_at(path, at, name, to)

    def rollback_at(self, path: str, at: int, name: str, to: int | None) -> int:
        generation = None
        while generation is None:
            seen = self.guard.stamp_at(at, name)
            finding = examine_at(self.layout, path, at, name)
            if finding.condition is Condition.UNREADABLE and self.committer.is_no_file(at, name):
                finding = Finding(path, Condition.MISSING)  # what replaced it has no bytes to keep
            if finding.condition in ROTTEN or finding.condition is Condition.MISSING:
                generation = self.guard.restore(at, name, finding, to, seen)
            else:
                generation = self._revert(path, at, name, to)
        self.room.bound_if_due()
        was = f"from generation {finding.record.generation} " if finding.record else ""
        told = f"asked for; {was}to generation {generation}"
        self.note("rolled back", path, told, level=logging.INFO)
        return generation

    def _revert(self, path: str, at: int, name: str, to: int | None) -> int:
        """Commit the bytes of an earlier generation anew."""
        lineage = self.guard.lineage_of(at, name, path)
        generation = self.guard.chosen(lineage, path, to)
        before = self.fs.lstat(at, name)
        with self.staging(path, at, name, exists=True, truncate=True) as staged:
            with (
                osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder,
                osfs.opened(self.fs, folder, str(generation), osfs.O_RDONLY) as fd,
            ):
                try:
                    self.fs.clone(fd, staged.fd)
                except OSError:
                    self.fs.copy(fd, staged.fd, 0, self.fs.stat(fd).st_size)
                if not shows_no_more(self.fs.stat(staged.fd), self.fs.stat(fd)):
                    self.fs.copy_metadata(fd, staged.fd, skip=fmt.XATTR)
                self.fs.copy_times(fd, staged.fd)
            self.commit(staged, at, name)
            self.guard.replaced(path, before)
        return generation

    def share(self, path: str, stopped: Callable[[], bool] = never) -> int:
        """Let the generations that history holds of ``path`` share the blocks that are as in the
        committed version, where the filesystem can; see :mod:`ckptfs.history.sharing`. Takes about
        as long as reading them all. Returns how many bytes came to be shared. Raises OSError where
        the path is gone."""
        with self._place(path) as (at, name):
            lineage = self.committer.lineages.look(at, name, path).lineage
            shared = self.sharing.share_history(at, name, lineage, stopped)
        if shared:
            self.note("shared", path, f"{shared} bytes")
        return shared

    def rename(self, path: str, target: str) -> None:
        with self._place(path) as (at, name), self._place(target) as (to, new):
            self.committer.rename(at, name, to, new, (path, target))

    def exchange(self, path: str, other: str) -> None:
        with self._place(path) as (at, name), self._place(other) as (to, new):
            self.committer.exchange(at, name, to, new, (path, other))

    def link(self, path: str, target: str) -> None:
        """Give the file another name. Durable once something is committed after it."""
        with self._place(path) as (at, name), self._place(target) as (to, new):
            self.committer.link(at, name, to, new, (path, target))
            self.committer.note_changed_dir(to)

    def unlink(self, path: str) -> None:
        with self._place(path) as (at, name):
            self.committer.unlink(at, name, path)


def _read_whole(fs: FileSystem, fd: int, size: int) -> bytes:
    """One read(2) gives 2 GiB at most."""
    content = bytearray()
    while len(content) < size and (data := fs.read(fd, size - len(content), len(content))):
        content += data
    return bytes(content)
