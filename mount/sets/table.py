"""Directories of sets that are on their way: seen by everybody under their names, and on the disk
in stage until they are complete.

Threading: ``Sets.lock``, that of the operations, guards the tables and every field of a set. What
is decided of one, or done with its name, happens under its own ``lock``, which is always taken
first, ahead of that of a version.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ckptfs.disk.locks import Rank, ranked
from ckptfs.listeners import Listeners
from ckptfs.sets.profiles import Profile
from ckptfs.store import Store

from ..processes import writers
from ..processes.ends import Process
from ..view.descriptors import Descriptor
from ..view.model import Caller, Directory
from ..writers.versions import Looking, Versions


@dataclass(eq=False)
class PendingSet:
    """A set that is not on the disk yet."""

    txid: str
    node: Directory
    at: tuple[Directory, str]  # where it will appear
    profiles: tuple[Profile, ...]  # that know its name
    writers: dict[int, Process] = field(default_factory=dict)
    ranks: int | None = None  # of the job that writes it, where a writer tells
    asked_ranks: bool = False
    changed_at: float = field(default_factory=time.monotonic)
    pause_s: float = 0.0  # the longest between two changes
    aborted: bool = False  # a file of it was not committed
    looked_at: float = 0.0  # when it was last looked through, which took so long
    look_s: float = 0.0
    marked: bool = False  # by what lies outside of it
    next_begun: bool = False
    asked: bool = False  # its writer wants it on the disk
    gone: bool = False  # published, in salvage, or removed
    lock: Any = None

    def __post_init__(self) -> None:
        self.lock = self.lock or ranked(Rank.SET, self.txid)

    @property
    def path(self) -> str:
        parent, name = self.at
        return parent.child_path(name)

    @property
    def quiet_s(self) -> float:
        return time.monotonic() - self.changed_at

    def change(self) -> None:
        """Something was made, written or closed in it."""
        self.pause_s = max(self.pause_s, self.quiet_s)
        self.changed_at = time.monotonic()


class Sets:
    """What every function about sets is handed."""

    def __init__(
        self, store: Store, versions: Versions, watched_by: Callable[[Sets], Looking]
    ) -> None:
        self.store, self.versions, self.nodes = store, versions, versions.nodes
        self.lock = versions.lock
        self.by_folder: dict[int, dict[str, PendingSet]] = {}
        self.appeared: Listeners[[PendingSet]] = Listeners()  # on the disk, as it was seen
        self.vanished: Listeners[[PendingSet]] = Listeners()  # put aside
        self._watched_by = watched_by
        self.watch = watched_by(self)

    def at(self, parent: Directory, name: str) -> PendingSet | None:
        return self.by_folder.get(parent.id, {}).get(name) if self.by_folder else None

    def below(self, parent: Directory) -> list[tuple[str, PendingSet]]:
        return list(self.by_folder.get(parent.id, {}).items())

    def any_below(self, parent: Directory) -> bool:
        return parent.id in self.by_folder

    def all(self) -> list[PendingSet]:
        with self.lock:
            return [each for folder in self.by_folder.values() for each in folder.values()]

    def holding(self, directory: Directory | None) -> PendingSet | None:
        """The outermost set that the directory is, or lies in."""
        found = None
        while self.by_folder and directory is not None:
            above = directory.parent
            if above is not None and not directory.gone:
                found = self.at(above, directory.name) or found
            directory = above
        return found

    def begin(self, txid: str, fd: int, parent: Directory, name: str) -> PendingSet:
        """The caller holds ``lock``; ``fd`` is of the directory in stage, and taken over."""
        node = self.nodes.committed(parent, name, os.fstat(fd))
        assert isinstance(node, Directory)
        node.lookups += 1  # it is known for as long as it is on its way
        self.nodes.folders.keep_open(node, Descriptor(fd))
        pending = PendingSet(txid, node, (parent, name), self.store.sets.profiles.named(name))
        self.place(pending, parent, name)
        return pending

    def place(self, pending: PendingSet, parent: Directory, name: str) -> None:
        pending.at = parent, name
        self.by_folder.setdefault(parent.id, {})[name] = pending
        self.versions.tell(parent, name)

    def unplace(self, pending: PendingSet) -> None:
        parent, name = pending.at
        folder = self.by_folder[parent.id]
        del folder[name]
        if not folder:
            del self.by_folder[parent.id]
        self.versions.tell(parent, name)

    def end(self, pending: PendingSet) -> None:
        """It is no more on its way; the caller holds ``lock``, and looks after its node."""
        pending.gone = True
        self.unplace(pending)
        for each in pending.writers.values():
            each.close()

    def wrote(self, directory: Directory, caller: Caller) -> None:
        """This process makes or writes something in the directory."""
        pending = self.holding(directory)
        if pending is None or caller.process is None:
            return
        with self.lock:
            pending.change()
            if caller.process not in pending.writers and not pending.gone:
                pending.writers[caller.process] = Process(caller.process)
            self.watch.wake()

    def learn_ranks(self, pending: PendingSet) -> None:
        """How many ranks its job has. Not to be called where requests are read: the environment of
        a process cannot be read while another thread of it waits to map a file."""
        with self.lock:
            asked = [] if pending.ranks or pending.asked_ranks else list(pending.writers)
        for process in asked:
            pending.ranks = pending.ranks or writers.world_size(process)
        pending.asked_ranks = pending.asked_ranks or bool(asked)

    def carried(self) -> list[PendingSet]:
        """For the program that goes on; the caller holds ``lock``."""
        return self.all()

    def resume(self, carried: list[PendingSet]) -> None:
        with self.lock:
            for pending in carried:
                self.by_folder.setdefault(pending.at[0].id, {})[pending.at[1]] = pending
        self.pause()
        self.go_on()

    def pause(self) -> None:
        """No thread of it is left on return."""
        self.watch.stop()

    def go_on(self) -> None:
        self.watch = self._watched_by(self)
        with self.lock:
            if self.by_folder:
                self.watch.wake()
