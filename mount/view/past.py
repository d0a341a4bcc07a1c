"""Kept generations, as the mount shows them: ``.ckptfs/history/<path>/<generation>``, read-only.

Below ``.ckptfs/history`` every directory of the tree has its like, and every file of whose lineage
something is kept is a directory of its generations. Nothing is remembered of what stands where:
the kernel asks for each name and each attribute anew.

Who gets at a generation must be let in twice. Its directory follows the file as it is now, so what
a file denies, its past denies. The generation itself keeps the owner, mode and ACL that it had:
who may rename a file of his own over a secret one must not read the secret by that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout
from ckptfs.store import Place, Store

from . import acl
from .descriptors import Descriptor, Folder, OpenFolders
from .identity import HISTORY_ID, Identity, Listed, identity
from .model import Virtual
from .nodes import NodeTable

# Set in the inode numbers of directories here, which are no other names of those that they mirror.
_PAST = 1 << 62
_KEPT_FIELDS = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize", "st_blocks")


@dataclass(frozen=True)
class View:
    store: Store
    nodes: NodeTable

    @property
    def layout(self) -> Layout:
        return self.store.layout

    def lineage(self, at: int, name: str, path: str) -> str:
        """Of the file ``path``, ``at/name``; empty where nothing is kept of it."""
        if not osfs.is_regular(self.layout.fs.lstat(at, name)):
            return ""
        lineage = self.store.history.lineage_of(Place(at, name, path))
        return lineage if earlier.generations(self.layout, lineage) else ""


class Past(Virtual):
    """``above`` knows what the name was found in, as long as the node lives."""

    __slots__ = ("view",)

    def __init__(
        self, nodeid: int, above: Virtual | None, name: str, ident: Identity, view: View
    ) -> None:
        super().__init__(nodeid, above, name, ident)
        self.view = view

    def place_in(self, above: Virtual) -> None:
        """Of one that was made ahead of it."""
        self.above = above

    @property
    def entry(self) -> str:
        return self.name.rpartition("/")[2]

    def _like(self) -> contextlib.AbstractContextManager[int]:
        """A descriptor of what it has its owner, mode, ACL and times from."""
        raise NotImplementedError

    @staticmethod
    def _allowed(permissions: int) -> int:
        """What is left of three permission bits."""
        return permissions & 5

    def status(self) -> os.stat_result:
        with self._like() as fd:
            found = os.fstat(fd)
        mode = sum(self._allowed(found.st_mode >> shift & 7) << shift for shift in (6, 3, 0))
        kept = {key: getattr(found, key) for key in _KEPT_FIELDS}
        inode, links, size = found.st_ino, found.st_nlink, found.st_size
        kind = self.ident[2]
        if kind == stat.S_IFDIR:  # of one link, or find(1) expects no more directories in it
            inode, links, size, kept["st_blocks"] = self.ident[1], 1, 0, 0
        owner = found.st_uid, found.st_gid
        fields = (kind | mode, inode, found.st_dev, links, *owner, size, 0, 0, 0)
        return os.stat_result(fields, kept)

    def getxattr(self, key: str) -> bytes:
        if key != acl.ACCESS:
            return super().getxattr(key)
        with self._like() as fd:
            return acl.limited(os.getxattr(fd, key), self._allowed)

    def listxattr(self) -> list[str]:
        with self._like() as fd:
            return [key for key in os.listxattr(fd) if key == acl.ACCESS]


class PastDirectory(Past, Folder):
    """The like of a directory of the tree, which it opens as ``fd``."""

    __slots__ = ()

    def opened_by(self) -> OpenFolders:
        return self.view.nodes.folders

    def place(self) -> tuple[Folder, str] | None:
        return (self.above, self.entry) if isinstance(self.above, PastDirectory) else None

    def is_at(self, status: os.stat_result) -> bool:
        return _mirrored(status) == self.ident

    def _like(self) -> contextlib.AbstractContextManager[int]:
        return contextlib.nullcontext(self.fd)

    def child(self, name: str) -> Virtual:
        if self._hides(name):
            raise FileNotFoundError(errno.ENOENT, "no history of its own")
        status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return self._directory(name, status)
        lineage = self.view.lineage(self.fd, name, self._path(name))
        if not lineage:
            raise FileNotFoundError(errno.ENOENT, "nothing of it is kept")
        ident = status.st_dev, _number(lineage), stat.S_IFDIR
        whole = f"{self.name}/{name}"
        return self.view.nodes.virtual(
            (self.id, whole, ident),
            lambda nodeid: PastFile(nodeid, self, whole, ident, self.view, lineage),
        )

    def _directory(self, name: str, status: os.stat_result) -> Virtual:
        ident, whole = _mirrored(status), f"{self.name}/{name}"

        return self.view.nodes.virtual(
            (self.id, whole, ident),
            lambda nodeid: PastDirectory(nodeid, self, whole, ident, self.view),
        )

    def entries(self) -> Iterator[Listed]:
        layout = self.view.layout
        with (
            osfs.opened(layout.fs, self.fd, ".", osfs.DIRECTORY) as fd,
            os.scandir(fd) as entries,
        ):
            for entry in entries:
                if self._hides(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name, entry.inode() | _PAST, stat.S_IFDIR
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(OSError, CkptfsError):  # it cannot be told
                        lineage = self.view.lineage(self.fd, entry.name, self._path(entry.name))
                        if lineage:
                            yield entry.name, _number(lineage), stat.S_IFDIR

    def _path(self, name: str) -> str:
        """In the tree, of what this directory has the like of."""
        return f"{self.name}/{name}".removeprefix(f"{fmt.CONTROL}/{fmt.HISTORY}/")

    def _hides(self, name: str) -> bool:
        return self.id == HISTORY_ID and name == fmt.CONTROL


class PastFile(Past):
    """The directory of a file's generations: who may read the file may list and search it."""

    __slots__ = ("lineage",)

    def __init__(
        self,
        nodeid: int,
        above: PastDirectory,
        name: str,
        ident: Identity,
        view: View,
        lineage: str,
    ) -> None:
        super().__init__(nodeid, above, name, ident, view)
        self.lineage = lineage

    @staticmethod
    def _allowed(permissions: int) -> int:
        return permissions & 4 | (permissions & 4) >> 2

    @contextlib.contextmanager
    def _like(self) -> Iterator[int]:
        path = self.name.removeprefix(f"{fmt.CONTROL}/{fmt.HISTORY}/")
        assert isinstance(self.above, PastDirectory)
        at = self.above.fd
        if self.view.lineage(at, self.entry, path) != self.lineage:
            raise FileNotFoundError(errno.ENOENT, "another file has this name by now")
        flags = osfs.O_RDONLY | os.O_NONBLOCK
        with osfs.opened(self.view.layout.fs, at, self.entry, flags) as fd:
            yield fd

    def child(self, name: str) -> Virtual:
        if not (name.isascii() and name.isdigit() and str(int(name)) == name):
            raise FileNotFoundError(errno.ENOENT, "no generation")
        with self.folder() as folder:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "no generation")
        ident, whole = identity(status), f"{self.name}/{name}"
        return self.view.nodes.virtual(
            (self.id, whole, ident),
            lambda nodeid: Generation(nodeid, self, whole, ident, self.view, self),
        )

    def entries(self) -> Iterator[Listed]:
        with self.folder() as folder:
            for generation in reversed(earlier.generations(self.view.layout, self.lineage)):
                with contextlib.suppress(FileNotFoundError):
                    status = self.view.layout.fs.lstat(folder, str(generation))
                    yield str(generation), status.st_ino, stat.S_IFREG

    def folder(self) -> contextlib.AbstractContextManager[int]:
        """Where the generations lie."""
        layout = self.view.layout
        return osfs.opened(layout.fs, layout.history, self.lineage, osfs.DIRECTORY)


class Generation(Past):
    """One earlier version. Whoever has it open keeps it when it is let go of."""

    __slots__ = ("_file",)

    def __init__(
        self, nodeid: int, above: Virtual, name: str, ident: Identity, view: View, file: PastFile
    ) -> None:
        super().__init__(nodeid, above, name, ident, view)
        self._file = file

    def place_in(self, above: Virtual) -> None:
        super().place_in(above)
        assert isinstance(above, PastFile)
        self._file = above

    def open(self) -> int:
        """For reading. May digest it. Raises Rotten, and FileNotFoundError once it is let go of."""
        store = self.view.store
        with self._file.folder() as folder:
            if store.options.verify_opens:
                store.opens.verify_kept(Place(folder, self.entry, self.name), self._file.lineage)
            return self._open_in(folder)

    def _open_in(self, folder: int) -> int:
        fd = self.view.layout.fs.open(folder, self.entry, osfs.O_RDONLY | os.O_NONBLOCK)
        if identity(os.fstat(fd)) != self.ident:
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "another version")
        return fd

    @contextlib.contextmanager
    def _like(self) -> Iterator[int]:
        for handle in self.handles:
            yield handle.fd
            return
        with self._file.folder() as folder:
            fd = self._open_in(folder)
        try:
            yield fd
        finally:
            os.close(fd)

    def getxattr(self, key: str) -> bytes:
        if key in acl.KEYS:
            return super().getxattr(key)
        with self._like() as fd:
            return os.getxattr(fd, key)

    def listxattr(self) -> list[str]:
        with self._like() as fd:
            return os.listxattr(fd)


def unplaced(
    kind: type[Past], nodeid: int, name: str, ident: Identity, view: View, lineage: str | None
) -> Past:
    """A node of that kind, to be placed in the one that it lies in."""
    node = kind.__new__(kind)
    Past.__init__(node, nodeid, None, name, ident, view)
    if isinstance(node, PastFile):
        node.lineage = lineage or ""
    return node


def root_of_history(control: Virtual, store: Store, nodes: NodeTable) -> PastDirectory:
    """``.ckptfs/history``, the like of the root."""
    ident = _mirrored(os.fstat(store.root))
    name = f"{control.name}/{fmt.HISTORY}"
    found = PastDirectory(HISTORY_ID, control, name, ident, View(store, nodes))
    nodes.folders.keep_open(found, Descriptor(osfs.duplicate(store.root)))
    return found


def _mirrored(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino | _PAST, stat.S_IFDIR


def _number(lineage: str) -> int:
    """An inode number that follows the file through its versions."""
    try:
        number = int(lineage, 16)
    except ValueError:
        number = zlib.crc32(lineage.encode())
    return number & (_PAST - 1) | _PAST
