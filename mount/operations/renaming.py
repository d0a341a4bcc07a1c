"""Renaming and exchanging: committed files and staged versions go together.

Threading: any thread. All but the refusals is left as ``Slow``: it may wait for a commit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass

from ckptfs.versions.staged import fingerprint

from ..sets.table import PendingSet
from ..view.answers import Slow
from ..view.identity import Identity, identity, lstat
from ..view.model import Caller, Directory, Version
from ..writers import committing, naming
from . import setdirs
from .context import Mount
from .names import losing_its_name, orphan, touch, writable_parent

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_Place = tuple[Directory, str]


@dataclass(frozen=True)
class _Places:
    """Of a rename: where the name is, and where it goes."""

    old: _Place
    new: _Place

    @property
    def back(self) -> _Places:
        return _Places(self.new, self.old)

    @property
    def keys(self) -> tuple[tuple[Identity, str], tuple[Identity, str]]:
        """By which locks know them."""
        return (self.old[0].ident, self.old[1]), (self.new[0].ident, self.new[1])

    def touch(self) -> None:
        touch(self.old[0])
        touch(self.new[0])


def rename(
    mount: Mount,
    parent_id: int,
    name: str,
    new_parent_id: int,
    new_name: str,
    flags: int,
    caller: Caller,
) -> Slow[None] | None:
    """Committed files: a commit of the target. Open versions are carried along; one that its
    writer has fsynced, as it is by now, is committed first."""
    old = writable_parent(mount, parent_id, name), name
    new = writable_parent(mount, new_parent_id, new_name), new_name
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise OSError(errno.EINVAL, "not supported")

    if old == new:
        return None

    def rename() -> None:
        _publish_finished(mount, *old, caller)
        with mount.lock:
            mount.versions.tell(*old)
            mount.versions.tell(*new)
            mount.sets.wrote(new[0], caller)
        with setdirs.held(mount, old, new) as pendings:
            if pendings and _rename_set(mount, _Places(old, new), flags, caller, pendings):
                return
        with naming.held(mount.versions, *old, new) as held:
            if flags & RENAME_EXCHANGE:
                _exchange(mount, _Places(old, new), held)
            else:
                _rename(mount, _Places(old, new), flags, caller, held)

    return Slow(rename)


def _rename_set(
    mount: Mount, places: _Places, flags: int, caller: Caller, pendings: list[PendingSet]
) -> bool:
    """One name or both are of sets that are on their way. Whether all is done."""
    source, there = mount.sets.at(*places.old), mount.sets.at(*places.new)
    if flags & RENAME_NOREPLACE and there is not None:
        raise FileExistsError(errno.EEXIST, "exists")
    if flags & RENAME_EXCHANGE:
        setdirs.publish_all(mount, pendings)
        return False
    if there is not None:
        setdirs.make_way(mount, there, source or lstat(places.old[0].fd, places.old[1]))
    if source is None:
        return False
    if flags & RENAME_NOREPLACE and lstat(places.new[0].fd, places.new[1]):
        raise FileExistsError(errno.EEXIST, "exists")
    setdirs.move(mount, source, places.old, places.new, caller)
    places.touch()
    with mount.lock:
        mount.locks.renamed(*places.keys)
    return True


def _publish_finished(mount: Mount, parent: Directory, name: str, caller: Caller) -> None:
    """What was fsynced, or closed by who gives the name, and was not changed since."""
    with mount.lock:
        versions = list(mount.versions.at(parent, name))
    for version in versions:
        now = fingerprint(mount.store.fs, version.staged.fd)
        if now in (version.synced, version.closers.get(caller.process or 0)):
            committing.publish_named(mount.versions, version, caller)


def _rename(mount: Mount, places: _Places, flags: int, caller: Caller, held: list[Version]) -> None:
    (parent, name), (target, new_name) = places.old, places.new
    with mount.lock:
        moving = [v for v in mount.versions.at(parent, name) if v in held]
        replaced = [v for v in mount.versions.at(target, new_name) if v in held]
        status, taken = lstat(parent.fd, name), lstat(target.fd, new_name)
        node = mount.nodes.find(parent, name, status) if status else None
        if flags & RENAME_NOREPLACE and (taken or replaced):
            raise FileExistsError(errno.EEXIST, "exists")
        if status is None and not moving:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        if status is None and taken and stat.S_ISDIR(taken.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        there = mount.nodes.find(target, new_name, taken) if taken else None
        setdirs.require_nothing_below(mount, there)
    with mount.nodes.moving(node):
        if status is None:
            places.touch()
        elif taken is None or identity(taken) != identity(status):  # else rename(2) is nothing
            with losing_its_name(mount, target, new_name):
                _rename_committed(mount, places, status)
        with mount.lock:
            orphan(mount, replaced)
            for version in moving:
                naming.move(mount.versions, version, target, new_name, caller)
            if node is not None:
                mount.nodes.move(node, target, new_name)
                mount.caches.drop_attributes(node.id)  # its ctime has moved
            mount.locks.renamed(*places.keys)


def _exchange(mount: Mount, places: _Places, held: list[Version]) -> None:
    """Committed files and staged versions of both names; of each name one may be missing."""
    both = places.old, places.new
    with mount.lock:
        staged = [[v for v in mount.versions.at(*place) if v in held] for place in both]
        found = [lstat(folder.fd, entry) for folder, entry in both]
        nodes = [mount.nodes.find(*p, s) if s else None for p, s in zip(both, found, strict=True)]
    if not all(s or v for s, v in zip(found, staged, strict=True)):
        raise FileNotFoundError(errno.ENOENT, "no such file")
    with mount.nodes.moving(*nodes):
        _exchange_committed(mount, places, found)
        with mount.lock:
            for versions, node, place in zip(staged, nodes, reversed(both), strict=True):
                for version in versions:
                    naming.move(mount.versions, version, *place, None)
                if node is not None:
                    mount.nodes.move(node, *place)
                    mount.caches.drop_attributes(node.id)
            mount.locks.exchanged(*places.keys)


def _exchange_committed(mount: Mount, places: _Places, found: list[os.stat_result | None]) -> None:
    if all(found):
        (parent, name), (target, new_name) = places.old, places.new
        with (
            mount.metadata.unchanged_bytes(parent, name),
            mount.metadata.unchanged_bytes(target, new_name),
        ):
            mount.store.files.exchange(parent.at(name), target.at(new_name))
    elif found[0] is not None:
        _rename_committed(mount, places, found[0])
    elif found[1] is not None:
        _rename_committed(mount, places.back, found[1])
    else:
        places.touch()


def _rename_committed(mount: Mount, places: _Places, status: os.stat_result) -> None:
    (parent, name), (target, new_name) = places.old, places.new
    unchanged = mount.metadata.unchanged_bytes
    is_file = stat.S_ISREG(status.st_mode)
    with unchanged(parent, name) if is_file else contextlib.nullcontext():
        mount.store.files.rename(parent.at(name), target.at(new_name))
