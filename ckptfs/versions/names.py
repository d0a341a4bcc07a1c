"""What becomes of names: renamed, exchanged, linked, deleted, written in place. Thread-safe.

A rename onto a file is a commit of its target: what stood there is kept, its lineage goes on. See
``lineages.py`` for which path has which history.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import replace

from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError, RecordDamaged
from ckptfs.history.lineages import Standing
from ckptfs.versions.standing import Committed, Replaced

_Place = tuple[int, str]  # an open directory, and a name in it


class Names(Committed):
    # --- renaming --------------------------------------------------------------------------------

    def rename(self, at: int, name: str, to: int, target: str, paths: tuple[str, str]) -> None:
        """Rename a committed file, ``paths[0]``, onto ``paths[1]``, ``to/target``: keeps what stood
        there, takes over its lineage. Durable on return as the mode says; of a directory before
        the next publish."""
        self.require_writable()
        if osfs.is_directory(self.fs.lstat(at, name)):
            with self.lineages.moving_directory(*paths):
                self.fs.rename(at, name, to, target)
            self.note_changed_dir(at)
            self.note_changed_dir(to)
            return
        with self._locked((at, name), (to, target)):
            source = self.lineages.look(at, name, paths[0])
            there = self.lineages.look(to, target, paths[1])
            if source.is_same_inode(there):
                return  # as rename(2)
            if not self.mode.transactional:
                with self.lineages.losing(there), self.lineages.moving(source, paths[1]):
                    self.fs.rename(at, name, to, target)
                return
            if there.is_file:
                self._make_durable(source, (at, name))
            replaced = None
            if there.record is not None or source.record is not None:
                replaced = self.replaced(there, to, target)  # else nothing was ever committed there
            if replaced is None and not there.keeps:
                with self.lineages.losing(there), self.lineages.moving(source, paths[1]):
                    self._sync_pin(source.lineage)
                    self._rename(at, name, to, target)
            else:
                with self.lineages.losing(source):
                    self._take_over(source, (at, name), there, (to, target), replaced)
                self.lineages.moved(paths[1])

    def _take_over(
        self, source: Standing, old: _Place, there: Standing, new: _Place, replaced: Replaced | None
    ) -> None:
        """The path of ``there`` goes on with its history."""
        left = None
        if self._can_tell(source):
            left = self._adopt_lineage(*old, replaced.lineage if replaced else there.lineage)
        elif replaced is not None:
            replaced = replace(replaced, pin=True)
        try:
            self.keep_replaced(replaced, *new, there.path)
            self._rename(*old, *new)
        except OSError:
            if left is not None:  # histories of two paths must not mix
                with contextlib.suppress(OSError):
                    self._adopt_lineage(*old, left)
            raise
        if replaced is not None:
            self.settle_history(replaced, there.path)
            self.tell_kept(there.path, replaced)
        else:
            self.lineages.keep_alone(there.lineage, there.path)

    def _rename(self, at: int, name: str, to: int, target: str) -> None:
        self.sync_changed_dirs()
        self.fs.rename(at, name, to, target)
        self.sync_dir(to)
        self.sync_dir(at)

    def _sync_pin(self, lineage: str) -> None:
        """The note of a pinned lineage is no hint."""
        if lineage in self.lineages.pinned and self.mode.syncs_directories:
            with (
                contextlib.suppress(FileNotFoundError),
                osfs.opened(self.fs, self.layout.history, lineage, osfs.DIRECTORY) as folder,
            ):
                self.fs.fsync(folder)

    def _can_tell(self, found: Standing) -> bool:
        """Whether its record can be that of one path alone: hard links have one between them."""
        return found.record is not None and not self._has_other_name(found)

    def _make_durable(self, found: Standing, place: _Place) -> None:
        """Of what is written in place nobody else does."""
        if found.is_file and found.record is None:
            with osfs.opened(self.fs, *place, osfs.O_RDONLY) as fd:
                self.fs.fsync(fd)

    def _adopt_lineage(self, at: int, name: str, lineage: str) -> str | None:
        """Give a committed file another lineage, durably. Returns the one it leaves, if any."""
        # A commit of the target, hence a number above all that history holds of it.
        generation = self.layout.next_generation()
        with osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd, contextlib.ExitStack() as written:
            written.enter_context(self.lineages.lock)  # who writes it may record it anew meanwhile
            try:
                record = self.layout.read_record(fd)
            except RecordDamaged:
                return None
            if record is None:
                return None
            new = replace(record, lineage=lineage, generation=generation)
            try:
                self.layout.write_record(fd, new)
                written.close()
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
        with self._locked((at, name), (to, target)):
            found = (
                self.lineages.look(at, name, paths[0]),
                self.lineages.look(to, target, paths[1]),
            )
            self.sync_changed_dirs()
            self.fs.exchange(at, name, to, target)
            self.sync_dir(to)
            if at != to:
                self.sync_dir(at)
            if not found[0].is_same_inode(found[1]):
                self.lineages.exchanged(*found)

    @contextlib.contextmanager
    def _locked(self, *places: _Place) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for place in sorted(set(places)):
                stack.enter_context(self.path_lock(*place))
            yield

    # --- hard links, and the end of a name -------------------------------------------------------

    def link(self, at: int, name: str, to: int, target: str, paths: tuple[str, str]) -> None:
        """Give the committed file ``paths[0]`` another name, ``paths[1]``. Takes no lock of a path.
        Not durable on return."""
        self.require_writable()
        found = self.lineages.look(at, name, paths[0])
        with contextlib.suppress(FileNotFoundError):
            self.fs.lstat(to, target)
            raise FileExistsError(errno.EEXIST, "exists", paths[1])
        with self.lineages.sharing(found, paths[1]):
            self.fs.link(at, name, to, target)

    def unlink(self, at: int, name: str, path: str) -> None:
        """Delete a name and, with the last one, its history. Durable before the next publish."""
        self.require_writable()
        with self.path_lock(at, name):
            found = self._found(at, name, path)
            self._drop_sidecar(found, at, name)
            with self.lineages.losing(found):
                self.fs.unlink(at, name)
                self.note_changed_dir(at)

    def _found(self, at: int, name: str, path: str) -> Standing:
        """As :meth:`Lineages.look`; what cannot be read can be deleted all the same."""
        status = self.fs.lstat(at, name)
        try:
            return self.lineages.look(at, name, path)
        except (OSError, CkptfsError):
            return Standing(path, status)

    def _drop_sidecar(self, found: Standing, at: int, name: str) -> None:
        if not self.layout.uses_sidecars or found.record is None:
            return
        if not self._has_other_name(found):
            with contextlib.suppress(OSError), osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
                self.layout.drop_sidecar(fd)

    def _has_other_name(self, found: Standing) -> bool:
        """Whether there may be a hard link other than the one that its own history holds."""
        if found.status is None or found.record is None:
            return False
        others = found.status.st_nlink - 1
        return others > 0 and others > self._links_in_history(found, found.record.generation)

    # --- in place --------------------------------------------------------------------------------

    def open_in_place(self, at: int, name: str, path: str) -> None:
        """Prepare a committed file for writing in place: its record goes first, durably, and a
        link that history may hold of this very inode is let go."""
        with self.path_lock(at, name), osfs.opened(self.fs, at, name, osfs.O_RDONLY) as fd:
            found = self.lineages.look(at, name, path)
            lineage = found.record.lineage if found.record else found.lineage
            self.unlink_history_of(fd, lineage)
            if self.lineages.names_of(lineage, found):  # of which none must miss its record
                self.lineages.pin(lineage)
                self.sync_dir(self.layout.history)
            self.layout.remove_record(fd)
