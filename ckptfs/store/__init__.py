"""The only door to a directory, for mount, tools and commands: one store over one directory.

Everything here is true without FUSE. Paths are relative to the root, ``/``-separated, text with
surrogate escapes. Thread-safe but for ``open`` and ``close``.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging

from ckptfs.checking.examine import Finding
from ckptfs.checking.opens import Guard
from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe
from ckptfs.history import earlier
from ckptfs.history.sharing import Sharing
from ckptfs.records.aside import Amount
from ckptfs.records.format import Record
from ckptfs.records.layout import Layout
from ckptfs.room.making import DiskRoom, patient
from ckptfs.sets import staging
from ckptfs.store.files import StandingFiles
from ckptfs.store.history import History
from ckptfs.store.opens import Opens
from ckptfs.store.options import IN_PLACE, Options, keeping_all
from ckptfs.store.saves import Saves
from ckptfs.store.sets import SetStore
from ckptfs.telling.alarms import Alarms
from ckptfs.telling.events import Events, say
from ckptfs.telling.tally import Tally
from ckptfs.versions import recovery
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place, place_of

__all__ = ["IN_PLACE", "Options", "Place", "Store", "keeping_all"]


class Store:
    """One directory and its control directory. Its parts: ``saves`` has the versions on their way,
    ``opens`` verifies what is read, ``files`` changes names, ``history`` what is kept, ``room`` the
    space of the disk; ``order`` is for who changes the directory beside them."""

    def __init__(self, fs: FileSystem, root: int, where: str, options: Options) -> None:
        self.root, self.where, self.options = root, where, options
        self.fs, give_room = patient(fs)
        self.layout = Layout.create(self.fs, root, where)
        core = Core(self.layout, options.mode, options.checksum, options.keep, options.validate)
        self.core, self.order = core, core.order
        self.kept, self.rolled_back = core.kept, core.rolled_back
        self.alarms, self.tally = Alarms(self.layout), Tally()
        events = Events(fs.now_ns, self.alarms)
        self.note, self.counts = events.note, events.counts
        self.events = events.recent  # the latest
        self.guard = Guard(core, options.outside)
        self.room = DiskRoom(self.guard, Amount(options.salvage_entries, options.salvage_bytes))
        give_room(self.room)
        self.opens = Opens(self.guard, self.room, events, self.tally, where, options.verify_opens)
        self.saves = Saves(core, self.guard, self.opens, self.room, events, self.tally)
        self.files = StandingFiles(core)
        self.sharing = Sharing(self.layout)
        self.sets = SetStore(core, self.options)
        self.history = History(core, self.guard, self.saves, self.room, events, self.sharing)
        self.patterns = IN_PLACE + options.in_place

    @classmethod
    def open(
        cls,
        directory: str,
        options: Options | None = None,
        mountpoint: str = "",
        root: int | None = None,
        fs: FileSystem | None = None,
    ) -> Store:
        """Open ``directory`` for serving: layout, lock, recovery. ``root`` is a descriptor of it,
        for the store to close, where its path leads elsewhere; all that is done goes through
        ``fs``. Raises CannotServe and kin."""
        fs = fs or OsFs()
        root = osfs.open_directory(directory) if root is None else root
        try:
            store = cls(fs, root, directory, options or Options())
        except BaseException:
            fs.close(root)
            raise
        try:
            store.layout.lock.take(directory, mountpoint)
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
        cls,
        directory: str,
        options: Options,
        root: int,
        lock: int,
        *,
        same_mode: bool,
        fs: FileSystem | None = None,
    ) -> Store:
        """Go on with what this process served as another program, and holds open. Nothing is
        recovered: what lies in stage is being written. Raises CannotServe."""
        store = cls(fs or OsFs(), root, directory, options)
        store.layout.lock.keep(lock)
        store.layout.probe_xattrs()
        if not same_mode:  # what the other mode has not synced no commit would
            store.fs.sync_all(root)
        return store

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.order.sync_changed_dirs()
        self.alarms.save()
        self.layout.close()
        self.fs.close(self.root)

    def recover(self) -> int:
        """Clear what a crash left in stage; of what lies outside stage only the notes of history
        are read. What stands below the root, by whomever it was made, is durable on return: a later
        commit syncs only what it changes itself. Returns how many versions were salvaged."""
        put_back = earlier.put_back(self.layout)
        if put_back:
            self.core.lineages.read_pins()
        for lineage in put_back:
            path = earlier.noted_path(self.layout, lineage) or "?"
            say(logging.WARNING, path, "its history lay under the name of another; put back")
        salvaged = recovery.recover(self.core, staging.KINDS)
        self.room.limits.bound()
        self.fs.sync_all(self.root)
        return salvaged

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

    def _place(self, path: str) -> contextlib.AbstractContextManager[Place]:
        return place_of(self.fs, self.root, path)

    def put(self, path: str, data: bytes) -> Record:
        """Install ``data`` at ``path``. Durable on return as the mode says (C1, C2)."""
        return self._write(path, data, truncate=True)

    def append(self, path: str, data: bytes) -> Record:
        """Add ``data`` to what stands at ``path``, if anything. Durable on return as :meth:`put`;
        a long file grows in place, so nobody should be reading it (C7)."""
        return self._write(path, data, truncate=False)

    def _write(self, path: str, data: bytes, *, truncate: bool) -> Record:
        with self._place(path) as (at, name, _):
            exists = name in self.fs.listdir(at)
            how = {"exists": exists, "truncate": truncate, "lazily": True}
            with self.saves.staging(path, at, name, **how) as staged:
                start = offset = self.fs.stat(staged.fd).st_size
                try:
                    while offset < start + len(data):
                        offset += self.fs.write(staged.fd, data[offset - start :], offset)
                except BaseException as error:
                    self.saves.abort(staged, str(error))
                    raise
                return self.saves.commit(staged, at, name)

    def get(self, path: str) -> bytes:
        """The verified bytes at ``path`` (C5). Raises Rotten, FileNotFoundError."""
        with self._place(path) as place:
            self.opens.verify(place)
            with osfs.opened(self.fs, place.at, place.name, osfs.O_RDONLY) as fd:
                return _read_whole(self.fs, fd, self.fs.stat(fd).st_size)

    def repair(self, path: str) -> Finding:
        """Check the file now, and roll it back if it has rotted; see :meth:`Opens.check`."""
        with self._place(path) as place:
            return self.opens.check(place)

    def rename(self, path: str, target: str) -> None:
        with self._place(path) as old, self._place(target) as new:
            self.files.rename(old, new)

    def exchange(self, path: str, other: str) -> None:
        with self._place(path) as one, self._place(other) as another:
            self.files.exchange(one, another)

    def link(self, path: str, target: str) -> None:
        """Give the file another name. Durable once something is committed after it."""
        with self._place(path) as old, self._place(target) as new:
            self.files.link(old, new)
            self.order.note_changed_dir(new.at)

    def unlink(self, path: str) -> None:
        with self._place(path) as place:
            self.files.unlink(place)


def _read_whole(fs: FileSystem, fd: int, size: int) -> bytes:
    """One read(2) gives 2 GiB at most."""
    content = bytearray()
    while len(content) < size and (data := fs.read(fd, size - len(content), len(content))):
        content += data
    return bytes(content)
