"""The tables: every version that has a writer, is being committed, or is mapped.

What is done with them stands beside: ``beginning``, ``visibility``, ``naming``, ``closing``,
``committing``, ``mapped``, and ``overtaking`` below them.

Threading: ``Versions.lock`` guards the tables and every field of ``Version`` and ``Handle``.
Commits run without it, under the version's own ``staged.lock``, which is always taken first.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ckptfs.disk import osfs
from ckptfs.disk.locks import Rank, ranked
from ckptfs.listeners import Listeners
from ckptfs.room.writeback import Writeback
from ckptfs.store import Store
from ckptfs.versions.life import Turn
from ckptfs.versions.staged import Inode

from ..view.model import Directory, File, Handle, Node, Version, stands
from ..view.nodes import NodeTable


class Looking(Protocol):
    """A thread that looks at versions from time to time."""

    def look(self) -> None: ...
    def wake(self) -> None: ...
    def stop(self) -> None: ...


class Versions:
    """What every function about versions is handed."""

    def __init__(
        self, store: Store, nodes: NodeTable, watched_by: Callable[[Versions], Looking]
    ) -> None:
        self.store, self.nodes = store, nodes
        self.lock = ranked(Rank.TABLES)
        self.arrived = threading.Condition(self.lock)  # who was expected, or does not come
        self.writeback = Writeback(store.fs, store.room)
        self.handles: dict[int, Handle] = {}
        self.extending: set[Inode] = set()  # committed files that are growing: nobody opens them
        self.mappings: OrderedDict[Inode, bytes] = OrderedDict()  # see ``mapped``
        self._by_folder: dict[int, dict[str, list[Version]]] = {}
        self.sealed: Listeners[[Version]] = Listeners()  # published or recorded anew
        self.replaced: Listeners[[Node]] = Listeners()  # by a commit; known until then
        # Told of each name that is going to stand for another inode.
        self.watchers: list[Callable[[Directory, str], None]] = []
        self.lingering: set[Version] = set()  # published, closed by all, mapped by somebody
        self._watched_by = watched_by
        self.watch = watched_by(self)

    def at(self, parent: Directory, name: str) -> list[Version]:
        """The unpublished versions of a path, oldest first."""
        return self._by_folder.get(parent.id, {}).get(name, [])

    def below(self, parent: Directory) -> Iterator[tuple[str, Version]]:
        for name, versions in self._by_folder.get(parent.id, {}).items():
            yield name, versions[-1]

    def any_below(self, parent: Directory) -> bool:
        return parent.id in self._by_folder

    def any(self) -> bool:
        """Whether there is anything to look at from time to time."""
        return bool(self._by_folder or self.lingering or self.unmarked())

    def all(self) -> list[Version]:
        """The unpublished ones."""
        with self.lock:
            folders = self._by_folder.values()
            return [each for folder in folders for versions in folder.values() for each in versions]

    def live(self) -> list[Version]:
        """Those that are published and change on."""
        with self.lock:
            written = {handle.version for handle in self.handles.values() if handle.version}
            return [version for version in written | self.lingering if version.live]

    def unmarked(self) -> list[Version]:
        """Those of the live ones whose record does not say so yet."""
        return [version for version in self.live() if version.staged.may_be_marked]

    def tell(self, parent: Directory, name: str) -> None:
        for watcher in self.watchers:
            watcher(parent, name)

    def place(self, version: Version, parent: Directory, name: str) -> None:
        version.at = parent, name
        version.staged.path = parent.child_path(name)
        self._by_folder.setdefault(parent.id, {}).setdefault(name, []).append(version)
        self.tell(parent, name)

    def unplace(self, version: Version) -> None:
        if version.at is None:
            return
        parent, name = version.at
        versions = self.at(parent, name)
        if version in versions:
            versions.remove(version)
            if not versions:
                folder = self._by_folder[parent.id]
                del folder[name]
                if not folder:
                    del self._by_folder[parent.id]
                _unlisted(parent, name)

    @contextlib.contextmanager
    def replacing(self, parent: Directory, name: str) -> Iterator[Node | None]:
        """What stands at the path, if it is known, loses its name inside, or keeps it."""
        with self.lock:
            old = self.nodes.standing(parent, name)
        yield old
        with self.lock:
            here = isinstance(old, File) and (old.parent, old.name) == (parent, name)
            if isinstance(old, File) and here and not stands(old):
                self.nodes.lose(old)

    def end(self, version: Version) -> None:
        """Once, however many handles were released one after the other; not while there are any."""
        with self.lock:
            if version.ended or version.handles:
                return
            version.turn(Turn.END)
            version.failure = None  # its traceback leads back here: a circle, with descriptors
            self.lingering.discard(version)
            self.unplace(version)
            if version.node.version is version:
                version.node.version = None
                self.nodes.drop_if_forgotten(version.node)
        self.writeback.remove(version.staged)
        with contextlib.suppress(OSError):
            os.close(version.staged.fd)

    def carried(self) -> dict[str, Any]:
        """For the program that goes on; the caller holds ``lock``."""
        return {
            "handles": self.handles,
            "by folder": self._by_folder,
            "sealed": self.mappings,
            "lingering": self.lingering,
            "fulls": self.store.room.doubts.fulls,
        }

    def resume(self, carried: dict[str, Any]) -> None:
        with self.lock:
            self.handles.update(carried["handles"])
            self._by_folder = carried["by folder"]
            self.mappings = carried["sealed"]
            self.lingering = carried["lingering"]
            self.store.room.doubts.fulls = carried["fulls"]
        self.pause()
        self.go_on()

    def pause(self) -> None:
        """No thread of it is left on return; nothing else changes."""
        self.watch.stop()
        self.writeback.stop()

    def go_on(self) -> None:
        self.writeback = Writeback(self.store.fs, self.store.room)
        self.watch = self._watched_by(self)
        for version in self.all():
            if not version.staged.has_hole:
                self.writeback.add(version.staged)
        with self.lock:
            self.watch.wake()


def _unlisted(parent: Directory, name: str) -> None:
    """A name that was never published leaves the directory, so its times move: the kernel takes a
    listing for true while they do not."""
    with contextlib.suppress(OSError):
        try:
            os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            osfs.touch(parent.fd)
