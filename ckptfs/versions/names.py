"""What becomes of names: renamed, exchanged, linked, deleted, written in place. Thread-safe.

A rename onto a file is a commit of its target: what stood there is kept, its lineage goes on. See
``lineages.py`` for which path has which history.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace

from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError, RecordDamaged
from ckptfs.history import moves
from ckptfs.history.lineages import Standing
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place
from ckptfs.versions.recording import unlink_history_of
from ckptfs.versions.standing import (
    Replaced,
    keep_replaced,
    links_in_history,
    replacing,
    settle_history,
    tell_kept,
)


def rename(core: Core, old: Place, new: Place) -> None:
    """Rename a committed file: keeps what stood at ``new``, takes over its lineage. Durable on
    return as the mode says; of a directory before the next publish."""
    core.order.require_writable()
    if osfs.is_directory(core.fs.lstat(old.at, old.name)):
        _rename_directory(core, old, new)
        return
    with core.order.changing(old, new):
        source, there = core.lineages.look(*old), core.lineages.look(*new)
        if source.is_same_inode(there):
            return  # as rename(2)
        if not core.mode.transactional:
            with moves.losing(core.lineages, there), moves.moving(core.lineages, source, new.path):
                core.fs.rename(old.at, old.name, new.at, new.name)
            return
        if there.is_file:
            make_durable(core, source, old)
        replaced = None
        if there.record is not None or source.record is not None:
            replaced = replacing(core, there, new)  # else nothing was ever committed there
        if replaced is None and not there.keeps:
            with moves.losing(core.lineages, there), moves.moving(core.lineages, source, new.path):
                _sync_pin(core, source.lineage)
                _rename(core, old, new)
        else:
            with moves.losing(core.lineages, source):
                _take_over(core, source, old, there, new, replaced)
            core.lineages.moved(new.path)


def _rename_directory(core: Core, old: Place, new: Place) -> None:
    """A group that comes next finds both directories noted: its intent speaks of the new path."""
    moving = moves.moving_directory(core.lineages, old.path, new.path)
    with core.order.steady_directories():
        core.order.require_writable()
        with moving:
            core.fs.rename(old.at, old.name, new.at, new.name)
        core.order.note_changed_dir(old.at)
        core.order.note_changed_dir(new.at)


def _take_over(
    core: Core,
    source: Standing,
    old: Place,
    there: Standing,
    new: Place,
    replaced: Replaced | None,
) -> None:
    """The path of ``there`` goes on with its history."""
    left = None
    if _can_tell(core, source):
        left = _adopt_lineage(core, old, replaced.lineage if replaced else there.lineage)
    elif replaced is not None:
        replaced = replace(replaced, pin=True)
    try:
        keep_replaced(core, replaced, new)
        _rename(core, old, new)
    except OSError:
        if left is not None:  # histories of two paths must not mix
            with contextlib.suppress(OSError):
                _adopt_lineage(core, old, left)
        raise
    if replaced is not None:
        settle_history(core, replaced, there.path)
        tell_kept(core, there.path, replaced)
    else:
        moves.keep_alone(core.lineages, there.lineage, there.path)


def _rename(core: Core, old: Place, new: Place) -> None:
    core.order.sync_changed_dirs()
    core.fs.rename(old.at, old.name, new.at, new.name)
    core.order.sync_dir(new.at)
    core.order.sync_dir(old.at)


def _sync_pin(core: Core, lineage: str) -> None:
    """The note of a pinned lineage is no hint."""
    if lineage in core.lineages.pinned and core.mode.syncs_directories:
        with (
            contextlib.suppress(FileNotFoundError),
            osfs.opened(core.fs, core.layout.history, lineage, osfs.DIRECTORY) as folder,
        ):
            core.fs.fsync(folder)


def _can_tell(core: Core, found: Standing) -> bool:
    """Whether its record can be that of one path alone: hard links have one between them."""
    return found.record is not None and not _has_other_name(core, found)


def make_durable(core: Core, found: Standing, place: Place) -> None:
    """Of what is written in place nobody else does."""
    if found.is_file and found.record is None:
        with osfs.opened(core.fs, place.at, place.name, osfs.O_RDONLY) as fd:
            core.fs.fsync(fd)


def _adopt_lineage(core: Core, place: Place, lineage: str) -> str | None:
    """Give a committed file another lineage, durably. Returns the one it leaves, if any."""
    # A commit of the target, hence a number above all that history holds of it.
    generation = core.layout.next_generation()
    with (
        osfs.opened(core.fs, place.at, place.name, osfs.O_RDONLY) as fd,
        contextlib.ExitStack() as written,
    ):
        written.enter_context(core.lineages.lock)  # who writes it may record it anew meanwhile
        try:
            record = core.layout.read_record(fd)
        except RecordDamaged:
            return None
        if record is None:
            return None
        new = replace(record, lineage=lineage, generation=generation)
        try:
            core.layout.write_record(fd, new)
            written.close()
            core.fs.fsync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                core.layout.write_record(fd, record)
            raise
        return record.lineage if record.lineage != lineage else None


def exchange(core: Core, one: Place, other: Place) -> None:
    """Swap two names, directories too. Both versions stay and keep their lineage, so history has
    nothing to keep. Durable on return as the mode says."""
    with core.order.changing(one, other), core.order.steady_directories():
        found = core.lineages.look(*one), core.lineages.look(*other)
        core.order.sync_changed_dirs()
        core.fs.exchange(one.at, one.name, other.at, other.name)
        core.order.sync_dir(other.at)
        if one.at != other.at:
            core.order.sync_dir(one.at)
        if not found[0].is_same_inode(found[1]):
            moves.exchanged(core.lineages, *found)


def link(core: Core, old: Place, new: Place) -> None:
    """Give a committed file another name. Takes no lock of a path. Not durable on return."""
    core.order.require_writable()
    found = core.lineages.look(*old)
    with contextlib.suppress(FileNotFoundError):
        core.fs.lstat(new.at, new.name)
        raise FileExistsError(errno.EEXIST, "exists", new.path)
    with moves.sharing(core.lineages, found, new.path):
        core.fs.link(old.at, old.name, new.at, new.name)


def unlink(core: Core, place: Place) -> None:
    """Delete a name and, with the last one, its history. Durable before the next publish."""
    with core.order.changing(place):
        remove(core, place)


def remove(core: Core, place: Place) -> None:
    """As :func:`unlink`, of a path whose lock the caller holds."""
    found = _found(core, place)
    _drop_sidecar(core, found, place)
    with moves.losing(core.lineages, found):
        core.fs.unlink(place.at, place.name)
        core.order.note_changed_dir(place.at)  # while its history is there


def _found(core: Core, place: Place) -> Standing:
    """As :meth:`Lineages.look`; what cannot be read can be deleted all the same."""
    status = core.fs.lstat(place.at, place.name)
    try:
        return core.lineages.look(*place)
    except (OSError, CkptfsError):
        return Standing(place.path, status)


def _drop_sidecar(core: Core, found: Standing, place: Place) -> None:
    if not core.layout.uses_sidecars or found.record is None:
        return
    if not _has_other_name(core, found):
        with (
            contextlib.suppress(OSError),
            osfs.opened(core.fs, place.at, place.name, osfs.O_RDONLY) as fd,
        ):
            core.layout.drop_sidecar(fd)


def _has_other_name(core: Core, found: Standing) -> bool:
    """Whether there may be a hard link other than the one that its own history holds."""
    if found.status is None or found.record is None:
        return False
    others = found.status.st_nlink - 1
    return others > 0 and others > links_in_history(core, found, found.record.generation)


def open_in_place(core: Core, place: Place) -> None:
    """Prepare a committed file for writing in place: its record goes first, durably, and a
    link that history may hold of this very inode is let go."""
    with (
        core.order.changing(place),
        osfs.opened(core.fs, place.at, place.name, osfs.O_RDONLY) as fd,
    ):
        found = core.lineages.look(*place)
        lineage = found.record.lineage if found.record else found.lineage
        unlink_history_of(core, fd, lineage)
        if core.lineages.names_of(lineage, found):  # of which none must miss its record
            core.lineages.pin(lineage)
            core.order.sync_dir(core.layout.history)
        core.layout.remove_record(fd)
