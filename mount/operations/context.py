"""What the operations of one mount work on: its store, its tables, what a binding remembers of
them, and what tells one of the other.

Threading: the tables are guarded by ``lock``, which is that of the versions; any thread.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ckptfs.store import Store

from ..sets.table import PendingSet, Sets
from ..sets.watch import SetWatch
from ..view import listing
from ..view.control import Control
from ..view.descriptors import Room
from ..view.identity import identity
from ..view.locks import Locks, LockSet
from ..view.model import Caller, Directory, File, Handle, Node, Version, Virtual, changes_unseen
from ..view.nodes import NodeTable
from ..writers import mapped
from ..writers.versions import Versions
from ..writers.watch import Watch
from .metadata import Metadata


def nothing() -> None:
    """What follows where nothing does."""


class Dropped(NamedTuple):
    """A name that the kernel is to look up again: see :meth:`Caches.drop_name`."""

    parent_id: int
    name: str
    gone: int
    then: Callable[[], None]
    begun: Callable[[], None]


class Caches:
    """What a binding remembers of names and attributes, to be told of changes that do not come
    through it. This one remembers nothing."""

    def drop_attributes(self, nodeid: int) -> None:
        """They are asked for again once this returns. Never waits for a request."""

    def drop_name(
        self,
        parent_id: int,
        name: str,
        gone: int = 0,
        then: Callable[[], None] = nothing,
        begun: Callable[[], None] = nothing,
    ) -> None:
        """The name is looked up again, soon after this returns: ``begun`` is called ahead of it,
        ``then`` after it. Who watches the node ``gone``, if the name stood for that, is told that
        it is deleted."""
        self._drop(Dropped(parent_id, name, gone, then, begun))

    def _drop(self, dropped: Dropped) -> None:
        dropped.begun()
        dropped.then()


class Mount:
    """The context of every operation; an operation is none of its methods."""

    def __init__(self, store: Store, status: Callable[[], dict[str, Any]]) -> None:
        self.store = store
        self.room = Room.of_process()
        self.nodes = NodeTable(store.root, self.room)
        self.versions = Versions(store, self.nodes, Watch)
        self.sets = Sets(store, self.versions, SetWatch)
        self.lock = self.versions.lock
        self.handles = self.versions.handles
        self.metadata = Metadata(store)
        self.locks = Locks()
        self.caches = Caches()
        self.versions.sealed.add(self._sealed)
        self.versions.replaced.add(self._replaced)
        self.sets.appeared.add(self._appeared)
        self.sets.vanished.add(self._vanished)
        store.rolled_back.add(self._superseded)
        store.guard.written_here = functools.partial(mapped.may_be_written, self.versions)
        self.guests: dict[int, Handle] = {}  # by nodes that others have open, too
        self.ids = itertools.count(1)
        self.listing_key = listing.new_key()
        self.control = Control(store, self.nodes, status)

    def _sealed(self, version: Version) -> None:
        self.caches.drop_attributes(version.node.id)
        if version.at is None:
            return
        parent, name = version.at
        self.caches.drop_attributes(parent.id)
        with self.lock:
            extended = parent.find(name, identity(os.fstat(version.staged.fd)))
        if extended is not None and extended is not version.node:
            self.caches.drop_attributes(extended.id)

    def _replaced(self, node: Node) -> None:
        """By a commit, which the kernel does not know of."""
        if isinstance(node, File):
            node.replaced = True
        if node.parent is not None:
            self.caches.drop_name(node.parent.id, node.name, node.id)

    def _appeared(self, pending: PendingSet) -> None:
        self.caches.drop_attributes(pending.at[0].id)

    def _vanished(self, pending: PendingSet) -> None:
        parent, name = pending.at
        self.caches.drop_attributes(parent.id)
        self.caches.drop_name(parent.id, name, pending.node.id)

    def _superseded(self, path: str, before: os.stat_result | None) -> None:
        """A file was rolled back: readers keep what they have open, everybody else looks the name
        up anew, or that of the directory that was made for it."""
        *folders, name = path.split("/")
        parent = self.nodes.root
        with self.lock:
            for folder in folders:
                found = self.nodes.standing(parent, folder)
                if not isinstance(found, Directory):  # the kernel knows at most that it is absent
                    name = folder
                    break
                parent = found
            old = self.nodes.find(parent, name, before) if before else None
            if isinstance(old, File):
                old.superseded = True
                self.nodes.lose(old)
            self.versions.tell(parent, name)
        self.caches.drop_attributes(parent.id)
        self.caches.drop_name(parent.id, name, old.id if old else 0)

    def count_from(self, handle_id: int, nodeid: int) -> None:
        """The numbers of an earlier program are not given again."""
        self.ids, self.nodes.ids = itertools.count(handle_id), itertools.count(nodeid)

    def handle(self, handle_id: int) -> Handle:
        try:
            return self.handles[handle_id]
        except KeyError:
            raise OSError(errno.EBADF, "unknown handle") from None

    def add_handle(self, node: Node, fd: int, flags: int) -> Handle:
        handle = Handle(next(self.ids), node, fd, flags, None)
        with self.lock:
            self.handles[handle.id] = handle
            maps = flags & os.O_ACCMODE == os.O_RDWR
            begins = maps and not (isinstance(node, File) and changes_unseen(node))
            if isinstance(node, File | Virtual):
                handle.locks = self._locks_of(node)
                node.hold(handle)
            # A mapping may change them from here on. Not where it may already: who has asked for
            # them just then, under a lock, would go on with a size from before another wrote.
            if begins:
                self.caches.drop_attributes(node.id)
        return handle

    def recall_guests(self) -> None:
        """Of an earlier program."""
        handles = self.handles.values()
        self.guests = {handle.carrier: handle for handle in handles if handle.is_guest}

    def _locks_of(self, node: File | Virtual) -> LockSet:
        """Those of its path; where it is open already those that it had then, since its name may
        stand for another file by now."""
        for handle in node.handles:
            return handle.locks
        return self.locks.of((node.parent or self.nodes.root).ident, node.name)

    def in_place(self, parent: Directory, name: str) -> bool:
        """Whether the path is written in place: by its pattern, or because of its locks."""
        return self.locks.shared(parent.ident, name) or self.store.in_place(parent.child_path(name))

    def has_room_for(self, caller: Caller) -> bool:
        def held() -> int:
            return sum(
                each.user == caller.uid and each.fd >= 0 for each in [*self.handles.values()]
            )

        return self.room.for_one_more(caller.uid, held)
