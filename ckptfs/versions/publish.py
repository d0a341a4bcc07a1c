"""Publish: sealed versions take their places, one of them or several as one step.

    keep    what is replaced is linked into history
    rename  <- the commit point; of a group its intent, which recovery carries out to the end
    settle  the directories are fsynced, and history lets go of what is past its retention

The caller holds the locks of all paths. What fails before the commit point leaves everything as it
was. A group that fails behind it makes the store read-only: the next mount carries it out.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ckptfs.disk import osfs
from ckptfs.records import format as fmt
from ckptfs.records import intents
from ckptfs.records.intents import Planned
from ckptfs.structure import Structure, Verdict
from ckptfs.versions import life, names
from ckptfs.versions.core import Core
from ckptfs.versions.life import Event, State, Step
from ckptfs.versions.order import Place, place_of
from ckptfs.versions.seal import found_sound, require_sound, seal
from ckptfs.versions.staged import Staged, inode_of
from ckptfs.versions.standing import (
    keep_replaced,
    replaced_by,
    settle_history,
    status_at,
    tell_kept,
)
from ckptfs.versions.tickets import Ticket, still_holds, ticket_after


@dataclass(frozen=True)
class Install:
    """A sealed version takes its place."""

    staged: Staged
    ticket: Ticket
    place: Place


@dataclass(frozen=True)
class Delete:
    """A name goes, with its history."""

    place: Place


Change = Install | Delete


def _installs(changes: Sequence[Change]) -> list[Install]:
    return [each for each in changes if isinstance(each, Install)]


# --- what was sealed earlier ---------------------------------------------------------------------


def publish(core: Core, changes: Sequence[Change]) -> None:
    """Durable on return, as the mode says; see above for what fails. Raises OSError (EINVAL) for
    two changes of one path, (ESTALE) where the path of a group's member leads elsewhere, and
    BrokenStructure."""
    if not changes:
        return
    core.order.require_writable()
    _require_distinct(core, changes)
    for change in changes:
        _require_possible(core, change)
    carry_out(core, [_in_turn(core, change) for change in changes])


def _require_distinct(core: Core, changes: Sequence[Change]) -> None:
    paths = {(inode_of(core.fs, each.place.at), each.place.name) for each in changes}
    versions = {each.staged.txid for each in _installs(changes)}
    if len(paths) < len(changes) or len(versions) < len(_installs(changes)):
        path = changes[0].place.path
        raise OSError(errno.EINVAL, "two changes of one path, or one version twice", path)


def _require_possible(core: Core, change: Change) -> None:
    stands = status_at(core, change.place)
    if stands is None and isinstance(change, Delete):
        raise FileNotFoundError(errno.ENOENT, "nothing to be deleted", change.place.path)
    if stands is not None and osfs.is_directory(stands):
        raise IsADirectoryError(errno.EISDIR, "is a directory", change.place.path)
    if isinstance(change, Install):
        life.advance(change.staged.state, Event.PUBLISH)


def _in_turn(core: Core, change: Change) -> Change:
    """A ticket was given earlier. Where by now something else stands there than it speaks of, the
    version gets another one, and is recorded anew."""
    if isinstance(change, Delete):
        return change
    ticket, staged, standing = change.ticket, change.staged, replaced_by(core, change.place)
    assert staged.record is not None
    if still_holds(ticket, staged.record, standing):
        verdict = Verdict(staged.record.structure)
        require_sound(staged, Structure(verdict, "by its record"), standing)
        return replace(change, ticket=replace(ticket, replaced=standing))
    staged.advance(Event.WRITTEN)
    found_sound(core, staged, standing)
    ticket = ticket_after(core, standing)
    seal(core, staged, ticket)
    return replace(change, ticket=ticket)


# --- one or several ------------------------------------------------------------------------------


def carry_out(core: Core, changes: Sequence[Change]) -> None:
    """As :func:`publish`, for who has held the locks of the paths since the tickets were given."""
    installs = _installs(changes)
    if len(changes) == 1:
        _make_ready(core, installs)
        _apply(core, changes[0], _move)
        core.order.sync_dir(changes[0].place.at)
    else:
        _apply_as_one(core, changes)
    for each in installs:
        each.staged.advance(Event.SETTLE)
        core.fs.step(Step.SETTLED)
        if each.ticket.replaced is not None:
            tell_kept(core, each.staged.path, each.ticket.replaced)
        settle_history(core, each.ticket.replaced, each.staged.path)


def _make_ready(core: Core, installs: Sequence[Install]) -> None:
    """What is replaced is kept, and what changed before is durable."""
    for each in installs:
        keep_replaced(core, each.ticket.replaced, each.place)
        core.fs.step(Step.KEPT)
    core.order.require_writable()
    core.order.sync_changed_dirs()


def _apply(core: Core, change: Change, move: Callable[[Core, str, Place], None]) -> None:
    if isinstance(change, Delete):
        names.remove(core, change.place)
        return
    move(core, change.staged.txid, change.place)
    if change.staged.state is State.SEALED:  # of a group it counts as published already
        change.staged.advance(Event.PUBLISH)
    core.fs.step(Step.PUBLISHED)


def _move(core: Core, txid: str, place: Place) -> None:
    core.fs.rename(core.layout.stage, txid, place.at, place.name)


# --- several as one ------------------------------------------------------------------------------


def _apply_as_one(core: Core, changes: Sequence[Change]) -> None:
    with core.order.steady_directories():
        _require_paths(core, changes)
        _make_ready(core, _installs(changes))
        core.order.fsync_dir(core.layout.stage)  # what the intent names is there, whenever it is
        intent = _intend(core, changes)
        try:
            _fulfil(core, changes, intent)
        except BaseException as error:
            core.order.poison(f"a part of what belongs together was published: {error}")
            raise


def _require_paths(core: Core, changes: Sequence[Change]) -> None:
    """Recovery finds each place by its path: it leads there, and is durable."""
    for each in changes:
        if not _leads_to(core, each.place):
            raise OSError(errno.ESTALE, "its directory was moved or removed", each.place.path)
    if not core.mode.syncs_directories:  # nobody has noted which of them changed
        for folder in sorted({above for each in changes for above in _above(each.place.path)}):
            with place_of(core.fs, core.layout.root, folder) as place:
                core.order.fsync_dir(place.at)


def _leads_to(core: Core, place: Place) -> bool:
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        place_of(core.fs, core.layout.root, place.path) as found,
    ):
        there = inode_of(core.fs, found.at), found.name
        return there == (inode_of(core.fs, place.at), place.name)
    return False


def _above(path: str) -> list[str]:
    """The directories on the way there."""
    *folders, _ = osfs.steps(path)
    return ["/".join(folders[:count]) for count in range(1, len(folders) + 1)]


def _intend(core: Core, changes: Sequence[Change]) -> str:
    """Give the intent its name in stage. From then on all versions count as published, for a power
    cut may keep it: as long as none is aborted, the next mount finds all of them or nothing."""
    intent = intents.new_group()
    planned = [_planned(core, change) for change in changes]
    try:
        intents.write_group(core.layout, intent, planned)
    except BaseException:
        if not _is_taken_back(core, intent):
            _count_as_published(changes)
        raise
    _count_as_published(changes)
    return intent


def _planned(core: Core, change: Change) -> Planned:
    """What stands there is known again after a power cut."""
    names.make_durable(core, core.lineages.look(*change.place), change.place)
    status = status_at(core, change.place)
    txid = change.staged.txid if isinstance(change, Install) else ""
    return Planned(change.place.path, txid, intents.stood(status) if status else None)


def _is_taken_back(core: Core, intent: str) -> bool:
    """Durably; else the store is read-only."""
    try:
        core.fs.unlink(core.layout.stage, intent)
        core.order.fsync_dir(core.layout.stage)
    except FileNotFoundError:  # it never had its name
        return True
    except OSError as error:
        core.order.poison(f"what failed to be published may be by the next mount: {error}")
        return False
    return True


def _count_as_published(changes: Sequence[Change]) -> None:
    for each in _installs(changes):
        each.staged.advance(Event.PUBLISH)


def _fulfil(core: Core, changes: Sequence[Change], intent: str) -> None:
    """The versions keep their names in stage until all directories are durable: a filesystem may
    keep that one is gone from stage, and lose where it went. The intent is gone for good before
    anybody may change what it speaks of."""
    fs, order, stage = core.fs, core.order, core.layout.stage
    order.fsync_dir(stage)
    fs.step(Step.INTENDED)
    for change in changes:
        _apply(core, change, put)
    for at in {change.place.at: None for change in changes}:
        order.fsync_dir(at)  # in each mode: the names in stage go next
    for each in _installs(changes):
        fs.unlink(stage, each.staged.txid)
    fs.unlink(stage, intent)
    order.fsync_dir(stage)


def put(core: Core, txid: str, place: Place) -> None:
    """As a rename, but the version keeps its name in stage. Does nothing where it is there."""
    fs, stage, draft = core.fs, core.layout.stage, f"{fmt.new_txid()}{fmt.PUT}"
    fs.link(stage, txid, stage, draft)
    try:
        fs.rename(stage, draft, place.at, place.name)
    finally:
        with contextlib.suppress(FileNotFoundError):  # rename(2) leaves it where that is there
            fs.unlink(stage, draft)
