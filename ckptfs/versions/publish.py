"""Publish: sealed versions take their places, one of them or several as one step.

    keep    what is replaced is linked into history
    rename  <- the commit point; of a group its intent, which recovery carries out to the end
    settle  the directories are fsynced, and history lets go of what is past its retention

The caller holds the locks of all paths. What fails before the commit point leaves everything as it
was. A group that fails behind it makes the store read-only: the next mount carries it out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ckptfs.records import format as fmt
from ckptfs.records import intents
from ckptfs.records.intents import Planned
from ckptfs.versions import names
from ckptfs.versions.core import Core
from ckptfs.versions.life import Event, Step
from ckptfs.versions.order import Place
from ckptfs.versions.seal import require_sound, seal
from ckptfs.versions.staged import Staged
from ckptfs.versions.standing import keep_replaced, replaced_by, settle_history, tell_kept
from ckptfs.versions.tickets import Ticket, ticket_after


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


def publish(core: Core, changes: Sequence[Change]) -> None:
    """Durable on return, as the mode says; see above for what fails."""
    installs = [_in_turn(core, each) for each in changes if isinstance(each, Install)]
    for each in installs:
        keep_replaced(core, each.ticket.replaced, each.place)
        core.fs.step(Step.KEPT)
    core.order.sync_changed_dirs()
    if len(changes) == 1:
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


def _in_turn(core: Core, install: Install) -> Install:
    """What a version follows is on the disk by now, or never came there: it is recorded anew where
    that has made the history of its path another one."""
    ticket, staged = install.ticket, install.staged
    if not ticket.follows:
        return install
    replaced = replaced_by(core, install.place)
    if staged.digested is not None:
        require_sound(staged, staged.digested.structure, replaced)
    if replaced is None or replaced.lineage == ticket.lineage:
        return replace(install, ticket=replace(ticket, replaced=replaced))
    ticket = ticket_after(core, replaced)
    staged.advance(Event.WRITTEN)
    seal(core, staged, ticket)
    return replace(install, ticket=ticket)


def _apply(core: Core, change: Change, move: Callable[[Core, str, Place], None]) -> None:
    if isinstance(change, Delete):
        names.remove(core, change.place)
        return
    move(core, change.staged.txid, change.place)
    change.staged.advance(Event.PUBLISH)
    core.fs.step(Step.PUBLISHED)


def _move(core: Core, txid: str, place: Place) -> None:
    core.fs.rename(core.layout.stage, txid, place.at, place.name)


def _apply_as_one(core: Core, changes: Sequence[Change]) -> None:
    """The versions keep their names in stage until all directories are durable: a filesystem may
    keep that one is gone from stage, and lose where it went. The intent is gone for good before
    anybody may change what it speaks of."""
    fs, stage = core.fs, core.layout.stage
    with core.order.steady_directories():
        fs.fsync_dir(stage)  # what the intent names is there, whenever it is
        intent = intents.write_group(core.layout, [_planned(core, change) for change in changes])
        fs.step(Step.INTENDED)
        try:
            for change in changes:
                _apply(core, change, put)
            for at in {change.place.at: None for change in changes}:
                fs.fsync_dir(at)  # in each mode: the names in stage go next
            for change in changes:
                if isinstance(change, Install):
                    fs.unlink(stage, change.staged.txid)
            fs.unlink(stage, intent)
            fs.fsync_dir(stage)
        except BaseException as error:
            core.order.poison(f"a part of what belongs together was published: {error}")
            raise


def put(core: Core, txid: str, place: Place) -> None:
    """As a rename, but the version keeps its name in stage. Does nothing where it is there."""
    fs, stage, draft = core.fs, core.layout.stage, f"{fmt.new_txid()}{fmt.PUT}"
    fs.link(stage, txid, stage, draft)
    try:
        fs.rename(stage, draft, place.at, place.name)
    finally:
        with contextlib.suppress(FileNotFoundError):  # rename(2) leaves it where that is there
            fs.unlink(stage, draft)


def _planned(core: Core, change: Change) -> Planned:
    path = change.place.path
    if isinstance(change, Install):
        return Planned(path, change.staged.txid)
    status = core.fs.lstat(change.place.at, change.place.name)
    return Planned(path, "", intents.stood(status))
