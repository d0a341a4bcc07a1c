"""Names of sets that are on their way: made, moved and taken away as any directory's.

Threading: any thread. What waits for a set's own lock is left as ``Slow``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from ckptfs.disk import osfs
from ckptfs.sets.profiles import Marker

from ..processes import writers
from ..sets import deciding
from ..sets.table import PendingSet, Sets
from ..view import acl
from ..view.answers import Entry, New, Slow
from ..view.identity import lstat
from ..view.model import Caller, Directory, Handle, Node
from .context import Mount
from .looking import entry_of
from .owning import default_acl, own

_MARKER_BYTES = 4096
_Place = tuple[Directory, str]


def gathers(mount: Mount, parent: Directory, name: str) -> bool:
    """Whether a directory of this name is a set of its own."""
    return (
        bool(mount.store.sets.profiles.named(name))
        and parent.ident[0] == mount.nodes.root.ident[0]
        and mount.sets.holding(parent) is None
        and not mount.in_place(parent, name)
    )


def make(mount: Mount, parent: Directory, name: str, new: New) -> Entry:
    """The caller holds the lock of the mount."""
    txid, fd = mount.store.sets.make(parent.child_path(name))
    try:
        default = default_acl(parent)
        if default is not None:
            os.setxattr(fd, acl.DEFAULT, default)
        own(fd, parent, new)
    except BaseException:
        os.close(fd)
        mount.store.sets.drop(txid)
        raise
    pending = mount.sets.begin(txid, fd, parent, name)
    mount.sets.wrote(pending.node, new.caller)
    _begins_after(mount.sets, pending, new.caller)
    return entry_of(mount, pending.node, os.fstat(pending.node.fd))


def _begins_after(sets: Sets, pending: PendingSet, caller: Caller) -> None:
    """Who begins the next set of a series is done with those before."""
    known, (parent, name) = sets.store.sets.profiles, pending.at
    for other, earlier in sets.below(parent):
        if earlier is not pending and known.series(other) == known.series(name):
            earlier.next_begun |= any(
                writers.are_related(caller.process, each) for each in earlier.writers
            )


def undecided(mount: Mount, directory_id: int) -> Slow[None] | None:
    """What whoever looks into this directory waits for: its job was killed in a save. It is that of
    a series, or lies in a set."""
    directory = mount.nodes.get(directory_id) if mount.sets.by_folder else None
    if not isinstance(directory, Directory):
        return None
    with mount.lock:
        asked = [pending for _, pending in mount.sets.below(directory)]
        inside = mount.sets.holding(directory)
        asked += [inside] if inside is not None else []
    failed = [each for each in asked if deciding.has_failed(mount.sets, each)]
    return Slow(lambda: deciding.wait_decided(mount.sets, failed)) if failed else None


def settled(mount: Mount, handle: Handle, work: Callable[[], None]) -> Callable[[], None]:
    """The work of a close, and what it completes: the set that the file lies in, or one beside it
    that it names, which is on the disk before its name is."""
    pending, named = mount.sets.holding(handle.node.parent), _named_by(mount, handle)
    if pending is None and not named:
        return work

    def both() -> None:
        for each in named:
            each.marked = True
            deciding.settle(mount.sets, each)
        try:
            work()
        finally:
            if pending is not None:
                pending.change()
                pending.aborted |= handle.version is not None and not handle.version.active
        if pending is not None:
            deciding.settle_after(mount.sets, pending, handle.node.name)

    return both


def _named_by(mount: Mount, handle: Handle) -> list[PendingSet]:
    """The sets of which this file is the marker, by their name or their step."""
    parent, name = handle.node.parent, handle.node.name
    if handle.version is None or parent is None or not mount.sets.any_below(parent):
        return []
    with mount.lock:
        below = mount.sets.below(parent)
    marked = [(pending, marker) for _, pending in below for marker in markers_at(pending, name)]
    if not marked:
        return []
    with contextlib.suppress(OSError):
        told = os.pread(handle.fd, _MARKER_BYTES, 0).decode("utf-8", "replace")
        return [pending for pending, marker in marked if marker.is_about(told, pending.at[1])]
    return []


def markers_at(pending: PendingSet, entry: str) -> list[Marker]:
    """Those of the set that are the entry beside it."""
    markers = [marker for profile in pending.profiles for marker in profile.markers]
    return [marker for marker in markers if marker.is_at(entry, pending.at[1])]


def remove(mount: Mount, pending: PendingSet) -> None:
    """It is empty. The caller holds its lock."""
    with mount.lock:
        if mount.versions.any_below(pending.node):
            raise OSError(errno.ENOTEMPTY, "files are being written in it")
        mount.store.sets.drop(pending.txid)
        with contextlib.suppress(OSError):
            osfs.touch(pending.at[0].fd)
        mount.sets.end(pending)
        mount.nodes.removed(pending.node, stays_open=mount.room.for_users())
        mount.nodes.forget(pending.node.id, 1)


@contextlib.contextmanager
def held(mount: Mount, *places: _Place) -> Iterator[list[PendingSet]]:
    """The sets at these places, of which none is decided inside the block."""
    while True:
        found = _at_all(mount.sets, places)
        with contextlib.ExitStack() as stack:
            for pending in sorted(found, key=lambda each: each.txid):
                stack.enter_context(pending.lock)
            if _at_all(mount.sets, places) == found:
                yield found
                return


def _at_all(sets: Sets, places: tuple[_Place, ...]) -> list[PendingSet]:
    with sets.lock:
        found = [sets.at(*place) for place in places]
    return [pending for pending in found if pending is not None]


def publish_all(mount: Mount, pendings: list[PendingSet]) -> None:
    """They stand on the disk on return: what comes next has no form for what is on its way."""
    for pending in pendings:
        deciding.publish(mount.sets, pending, unmarked=True)


def make_way(
    mount: Mount, there: PendingSet, replacing: PendingSet | os.stat_result | None
) -> None:
    """A directory is going to replace this one, which must be empty."""
    if replacing is None:
        raise FileNotFoundError(errno.ENOENT, "no such file")
    if isinstance(replacing, os.stat_result) and not stat.S_ISDIR(replacing.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    remove(mount, there)


def move(mount: Mount, pending: PendingSet, old: _Place, new: _Place, caller: Caller) -> None:
    """The caller holds the lock of the set, and none of it is being committed. Raises OSError;
    nothing is changed then."""
    target, name = new
    _clear(mount, target, name)
    marks = any(old[1] != name == each.place(old[1]) for each in pending.profiles)
    _place_at(mount, pending, new)
    pending.marked |= marks
    mount.sets.wrote(pending.node, caller)
    if gathers(mount, target, name):
        pending.profiles = mount.store.sets.profiles.named(name)
        return
    try:
        deciding.publish(mount.sets, pending, unmarked=True)
    except BaseException:
        if not pending.gone:
            _place_at(mount, pending, old)
        raise


def _place_at(mount: Mount, pending: PendingSet, place: _Place) -> None:
    with mount.lock:
        mount.sets.unplace(pending)
        mount.sets.place(pending, *place)
        mount.nodes.move(pending.node, *place)


def _clear(mount: Mount, target: Directory, name: str) -> None:
    status = lstat(target.fd, name)
    if status is not None:
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        with mount.lock:
            node = mount.nodes.find(target, name, status)
            require_nothing_below(mount, node)
        with mount.nodes.moving(node):
            os.rmdir(name, dir_fd=target.fd)
            if isinstance(node, Directory):
                with mount.lock:
                    mount.nodes.removed(node, stays_open=mount.room.for_users())


def require_nothing_below(mount: Mount, node: Node | None) -> None:
    """The disk alone knows what stands in a directory, not what is on its way there."""
    if isinstance(node, Directory) and (
        mount.versions.any_below(node) or mount.sets.any_below(node)
    ):
        raise OSError(errno.ENOTEMPTY, "files are being written in it")
