"""What the operations share: tables, nodes, handles, and the words they answer with."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ckptfs.mount.descriptors import Room
from ckptfs.mount.locks import Locks
from ckptfs.mount.metadata import Metadata
from ckptfs.mount.model import Caller
from ckptfs.mount.nodes import (
    Node,
    NodeTable,
)
from ckptfs.mount.versions import Versions
from ckptfs.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Slow(Generic[T]):
    """The rest of an operation, to be run where it may block."""

    run: Callable[[], T]
    user: int | None = None  # whose it is, where its request does not tell


@dataclass(frozen=True)
class Entry:
    """A name, its node, and whether a binding may remember that and the attributes."""

    node: Node
    status: os.stat_result
    name_lasts: bool
    status_lasts: bool
    going: bool = False  # it is about to be looked up by who replaces it


def nothing() -> None:
    """What follows where nothing does."""


class Caches:
    """What a binding remembers of names and attributes, to be told of changes that do not come
    through it. This one remembers nothing."""

    def drop_attributes(self, nodeid: int) -> None:
        """They are asked for again once this returns. Never waits for a request."""

    def drop_name(
        self, parent_id: int, name: str, gone: int = 0, then: Callable[[], None] = nothing
    ) -> None:
        """The name is looked up again, soon after this returns; then ``then`` is called. Who
        watches the node ``gone``, if the name stood for that, is told that it is deleted."""
        then()


@dataclass(frozen=True)
class New:
    """Who makes an inode, and with which mode. The umask counts where no default ACL does."""

    caller: Caller
    mode: int
    umask: int


def stale() -> OSError:
    """The kernel looks the path up again and opens what it finds then; at most once."""
    return OSError(errno.ESTALE, "look again")


class Base:
    """Lookup and attributes of nodes; the tables that every operation works on."""

    def __init__(self, store: Store, status: Callable[[], dict[str, Any]]) -> None:
        self.store = store
        self.room = Room.of_process()
        self.nodes = NodeTable(store.root, self.room)
        self.versions = Versions(store, self.nodes)
        self.lock = self.versions.lock
        self.handles = self.versions.handles
        self.metadata = Metadata(store)
        self.locks = Locks()
        self.caches = Caches()
        self.versions.sealed = self._sealed
        self.versions.replaced = self._replaced
        store.guard.replaced = self._superseded
        store.guard.written_here = self.versions.may_be_written
