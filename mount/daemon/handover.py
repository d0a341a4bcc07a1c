"""What a restart carries over from the program that served to the one that goes on.

Both are one process: execve(2) keeps its descriptors, by their numbers, and so the mount, the
store's lock and every open file. What the tables hold is written to a file without a name:

    header    what is read before anything else
    rest      a pickle: handles, versions, locks… ; nodes are named there by their ids
    nodes     in batches; None is the end

Threading: no request is under way, and no thread of the daemon at work.
"""

from __future__ import annotations

import io
import itertools
import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, TypeGuard, cast

from ckptfs.disk.filesystem import FileSystem
from ckptfs.disk.locks import Rank, ranked
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe
from ckptfs.versions.staged import Base

from ..kernel.session import Session
from ..operations.context import Mount
from ..view import past
from ..view.descriptors import Descriptor, OpenFolders
from ..view.identity import HISTORY_ID, ROOT_ID, Identity
from ..view.model import Directory, File, Node, Openable, Version, Virtual
from ..view.past import PastDirectory, PastFile, View

# One more whenever a class that is written here changes its fields:
# tests/mount/daemon/test_restart.py has them.
FORMAT = 6
_BATCH = 1000
_FIXED = range(ROOT_ID, HISTORY_ID + 1)
_RLOCK = type(threading.RLock())
_VIRTUAL = {kind.__name__: kind for kind in (PastDirectory, PastFile, past.Generation)}


class Row(NamedTuple):
    """A node; written as a plain tuple, for there may be a million."""

    kind: str
    id: int
    above: int
    name: str
    ident: Identity
    lookups: int
    found: bool  # by a lookup of its name
    known: bool  # to the kernel
    extra: Any  # of a directory: gone; of a file: lost; of a past one: its lineage


@dataclass
class Header:
    """``descriptors`` are all that are carried over, those named here included."""

    options: Any  # MountOptions
    changes: dict[str, dict[str, Any]]
    root: int
    lock: int
    device: int
    request: int  # is answered once the new program serves
    agreed: bool  # passthrough was agreed on with the kernel
    descriptors: list[int] = field(default_factory=list)
    version: str = ""


# --- writing -------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Nodes are left to their rows; locks begin anew."""

    def __init__(self, file: IO[bytes], fs: FileSystem) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._fs = fs
        self.nodes: dict[int, Node] = {}
        self.descriptors: set[int] = set()

    def persistent_id(self, found: Any) -> Any:
        if isinstance(found, Node):
            self.nodes[found.id] = found
            return found.id
        return "fs" if found is self._fs else None

    def reducer_override(self, found: Any) -> Any:
        if isinstance(found, _RLOCK):
            return ranked, (Rank.VERSION,)
        if isinstance(found, Base) and found.fd >= 0:
            self.descriptors.add(found.fd)
        return NotImplemented


def write(file: IO[bytes], header: Header, mount: Mount, session: Session) -> None:
    """Raises what pickle raises of what it cannot write. ``header.descriptors`` are complete on
    return."""
    body = io.BytesIO()
    with mount.lock:
        pickler = _Pickler(body, mount.store.fs)
        pickler.dump(_rest(mount, session))
        carried = {header.root, header.lock, header.device, *pickler.descriptors}
        header.descriptors = sorted(carried | _descriptors(mount, session))
        pickle.dump(FORMAT, file)
        pickle.dump(header, file)
        pickle.dump(body.getvalue(), file)
        batch: list[tuple[Any, ...]] = []
        for node in _with_parents(mount, pickler.nodes):
            batch.append(tuple(_row(node, mount)))
            if len(batch) == _BATCH:
                pickle.dump(batch, file, pickle.HIGHEST_PROTOCOL)
                batch = []
        pickle.dump(batch, file, pickle.HIGHEST_PROTOCOL)
        pickle.dump(None, file)
    file.flush()


def _rest(mount: Mount, session: Session) -> dict[str, Any]:
    store = mount.store
    return {
        "rare": {node.id: node.rare for node in mount.nodes.every() if _has_rare(node)},
        "homeless": {node.id: int(fd) for node, fd in _homeless(mount)},
        "next": (next(mount.ids), next(mount.nodes.ids)),
        "listing key": mount.listing_key,
        "versions": mount.versions.carried(),
        "sets": mount.sets.carried(),
        "locks": mount.locks.carried(),
        "session": session.carried(),
        "known good": store.guard.known(),
        "torn": store.order.torn,
        "poisoned": store.order.poisoned,
        "counts": store.counts,
        "events": store.events,
        "alarms": store.alarms.told(),
        "untold": list(store.alarms.untold),
        "tally": store.tally.told(),
    }


def _has_rare(node: Node) -> TypeGuard[Openable]:
    return isinstance(node, Openable) and node.rare is not None


def _homeless(mount: Mount) -> Iterator[tuple[Directory, Descriptor]]:
    """Directories that have lost their name, and are open for who stands in them."""
    for folder, fd in mount.nodes.folders.always_open():
        if isinstance(folder, Directory) and folder.id != ROOT_ID:
            yield folder, fd


def _descriptors(mount: Mount, session: Session) -> set[int]:
    found = {handle.fd for handle in mount.handles.values()} | session.descriptors()
    found |= {int(fd) for _, fd in _homeless(mount)}
    versions: set[Version] = {*mount.versions.all(), *mount.versions.live()}
    versions |= {handle.version for handle in mount.handles.values() if handle.version is not None}
    for node in mount.nodes.every():
        if isinstance(node, File) and not node.is_plain:
            found.add(node.fd)
            if node.version is not None:
                versions.add(node.version)
    found |= {version.staged.fd for version in versions if not version.ended}
    return found - {-1}


def _with_parents(mount: Mount, named: dict[int, Node]) -> Iterator[Node]:
    """Those of the table, and those that only something else still refers to."""
    missing = {}
    for each in (*named.values(), *(n for n in mount.nodes.every() if isinstance(n, Virtual))):
        at: Node | None = each
        while at is not None:
            if not mount.nodes.is_known(at):
                missing[at.id] = at
            at = _above(at)
    for node in mount.nodes.every():
        if node.id not in _FIXED:
            yield node
    yield from missing.values()


def _above(node: Node) -> Node | None:
    return node.above if isinstance(node, Virtual) else node.parent


def _row(node: Node, mount: Mount) -> Row:
    above, found = _above(node), False
    extra: object = None
    kind = type(node).__name__
    if isinstance(node, Virtual):
        assert kind in _VIRTUAL
        extra = node.lineage if isinstance(node, PastFile) else None
    else:
        found = node.parent is not None and node.parent.find(node.name, node.ident) is node
        extra = node.gone if isinstance(node, Directory) else mount.nodes.lost.has(node)
    return Row(
        kind,
        node.id,
        above.id if above else 0,
        node.name,
        node.ident,
        node.lookups,
        found,
        mount.nodes.is_known(node),
        extra,
    )


# --- reading -------------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], nodes: dict[int, Node], fs: FileSystem) -> None:
        super().__init__(file)
        self._nodes, self._fs = nodes, fs

    def persistent_load(self, named: Any) -> Any:
        return self._fs if named == "fs" else self._nodes[named]


class Carried:
    """What was written, read in again."""

    def __init__(self, file: IO[bytes]) -> None:
        """Raises CannotServe where it was written by a version that is too different."""
        written = pickle.load(file)
        if written != FORMAT:
            raise CannotServe(
                f"what the running daemon hands over has format {written}, this version of ckptfs "
                f"reads {FORMAT}: umount, then mount"
            )
        self.header: Header = pickle.load(file)
        self._rest: bytes = pickle.load(file)
        self._rows: list[Row] = []
        while (batch := pickle.load(file)) is not None:
            self._rows += itertools.starmap(Row, batch)

    def try_out(self) -> None:
        """Make everything from it, and nothing of that."""
        folders = OpenFolders(0)
        fixed = {n: Virtual(n, None, "", (0, n, 0)) for n in _FIXED}
        view = cast(View, None)
        self._load(self._nodes(folders, view, cast("dict[int, Node]", fixed)), OsFs())

    def restore(self, mount: Mount, session: Session) -> None:
        fixed = {number: mount.nodes.get(number) for number in _FIXED}
        history = fixed[HISTORY_ID]
        assert isinstance(history, PastDirectory)
        nodes = self._nodes(mount.nodes.folders, history.view, fixed)
        for row in self._rows:
            if row.known:
                lost = row.kind == "File" and row.extra
                mount.nodes.restore(nodes[row.id], found=row.found, lost=lost)
        rest = self._load(nodes, mount.store.fs)
        for number, rare in rest["rare"].items():
            nodes[number].rare = rare  # type: ignore[attr-defined]
        for number, fd in rest["homeless"].items():
            mount.nodes.folders.keep_open(nodes[number], Descriptor(fd))  # type: ignore[arg-type]
        mount.count_from(*rest["next"])
        mount.listing_key = rest["listing key"]
        mount.versions.resume(rest["versions"])
        mount.sets.resume(rest["sets"])
        mount.recall_guests()
        session.resume(rest["session"], agreed=self.header.agreed)
        mount.locks.resume(rest["locks"], session.granting)
        store = mount.store
        store.guard.resume(rest["known good"])
        store.order.torn |= rest["torn"]
        store.order.poisoned = rest["poisoned"]
        store.counts.update(rest["counts"])
        store.events.extend(rest["events"])
        if "alarms" in rest:  # a full disk may have no room for them
            store.alarms.resume(rest["alarms"])
            store.alarms.untold.extend(rest["untold"])
            store.tally.resume(rest["tally"])
        self._rest, self._rows = b"", []

    def _nodes(self, folders: OpenFolders, view: View, fixed: dict[int, Node]) -> dict[int, Node]:
        nodes = dict(fixed)
        for row in self._rows:
            node: Node
            if row.kind == "Directory":
                node = directory = Directory(row.id, None, row.name, row.ident, folders)
                directory.gone = row.extra
            elif row.kind == "File":
                node = File(row.id, None, row.name, row.ident)
            else:
                kind = _VIRTUAL[row.kind]
                node = past.unplaced(kind, row.id, row.name, row.ident, view, row.extra)
            node.lookups = row.lookups
            nodes[row.id] = node
        for row in self._rows:
            node = nodes[row.id]
            if isinstance(node, past.Past):
                node.place_in(cast(Virtual, nodes[row.above]))
            elif row.above:
                node.parent = cast(Directory, nodes[row.above])
        return nodes

    def _load(self, nodes: dict[int, Node], fs: FileSystem) -> dict[str, Any]:
        rest: dict[str, Any] = _Unpickler(io.BytesIO(self._rest), nodes, fs).load()
        return rest
