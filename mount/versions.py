"""The life of a version under its writers: when is a file finished? (DESIGN §5)

A version commits at the FLUSH with which its last open write handle was closed by the process
that opened it; at the last RELEASE where no such FLUSH came (descriptors passed to children,
unknown writers, nothing written); never where one of its writers was killed. After its commit it
stays *live* while a write handle remains, and is sealed again when it changed.

Threading: ``Versions.lock`` guards the tables and every field of ``Version`` and ``Handle``.
Commits run without it, under the version's own ``staged.lock``, which is always taken first.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ckptfs import osfs
from ckptfs.commit import Staged
from ckptfs.errors import CkptfsError, WriterKilled
from ckptfs.mount import writers
from ckptfs.mount.locks import LockSet
from ckptfs.mount.nodes import Directory, File, Identity, Node, NodeTable
from ckptfs.mount.writers import Fate
from ckptfs.protocol import VISIBLE, State
from ckptfs.store import Store, Writeback
from ckptfs.structure import Verdict

_SEALS_REMEMBERED = 10_000
_PENDING_S = 5.0  # an open that was sent to look again and never came back
_EXPECTED_S = 1.0  # how long a close waits for it


@dataclass(frozen=True)
class Caller:
    """From the header of a request; ``pid`` is a thread id, 0 if it is unknown."""

    uid: int
    gid: int
    pid: int
    request: int = 0  # its number, for what is answered or interrupted later


@dataclass(eq=False)
class Handle:
    """One open file description."""

    id: int
    node: Node
    fd: int
    flags: int
    opener: int | None  # its process
    version: Version | None = None  # what it writes; None for readers and in-place files
    relayed: bool = False  # on another node than its version's: only the daemon can carry it
    flushed: bool = False  # closed by the process that opened it
    listing: list[tuple[str, int, int]] = field(default_factory=list)  # of a directory
    locks: LockSet | None = None  # of the path it was opened by, once it asked for a lock


@dataclass(eq=False)
class Version:
    """A staged or live version, and who takes part in it."""

    staged: Staged
    node: File
    at: tuple[Directory, str] | None  # where it will be published; None once it was deleted
    members: set[int]  # processes that opened it for writing: they see it under its name
    fresh: bool  # created or truncated: commits even if nothing was written
    known: bool  # whether its writers can be told apart
    # threads that were answered ESTALE and will open it next, since when
    expected: dict[int, float] = field(default_factory=dict)
    public: bool = False  # finished: shown to everybody though its disk work goes on
    closing: bool = False  # being committed or dropped: nobody joins it any more
    ended: bool = False  # its descriptor is closed
    killed: bool = False
    failure: OSError | CkptfsError | None = None
    handles: set[Handle] = field(default_factory=set)

    @property
    def active(self) -> bool:
        """Staged, or published while somebody can still write to it."""
        return self.staged.state is not State.ABORTED

    @property
    def joinable(self) -> bool:
        return self.unpublished and not self.closing

    @property
    def unpublished(self) -> bool:
        return self.staged.state not in VISIBLE and self.staged.state is not State.ABORTED


class Versions:
    """Every version that has a writer or is being committed."""

    def __init__(self, store: Store, nodes: NodeTable) -> None:
        self.store, self.nodes = store, nodes
        self.lock = threading.RLock()
        self._arrived = threading.Condition(self.lock)
        self.writeback = Writeback(store.fs)
        self._sealed_here: OrderedDict[Identity, None] = OrderedDict()
        self._by_path: dict[tuple[int, str], list[Version]] = {}

    # --- tables ----------------------------------------------------------------------------------

    def at(self, parent: Directory, name: str) -> list[Version]:
        """The unpublished versions of a path, oldest first."""
        return self._by_path.get((parent.id, name), [])

    def below(self, parent: Directory) -> Iterator[tuple[str, Version]]:
        for (parent_id, name), versions in self._by_path.items():
            if parent_id == parent.id:
                yield name, versions[-1]

    def all(self) -> list[Version]:
        with self.lock:
            return [version for versions in self._by_path.values() for version in versions]

    def visible_to(self, caller: Caller, parent: Directory, name: str) -> Version | None:
        """The version that this caller's lookups of the path give, if not the committed one."""
        versions = self.at(parent, name)
        for version in reversed(versions):
            if version.public or caller.pid in version.expected:
                return version
        if caller.pid > 0:
            for version in reversed(versions):
                if writers.descends_from(caller.pid, frozenset(version.members)):
                    return version
        return None

    def _place(self, version: Version, parent: Directory, name: str) -> None:
        version.at = parent, name
        version.staged.path = parent.child_path(name)
        self._by_path.setdefault((parent.id, name), []).append(version)

    def _unplace(self, version: Version) -> None:
        if version.at is None:
            return
        key = version.at[0].id, version.at[1]
        versions = self._by_path.get(key, [])
        if version in versions:
            versions.remove(version)
            if not versions:
                del self._by_path[key]

    def move(self, version: Version, parent: Directory, name: str) -> None:
        """A rename carries the open version along; its commit lands on the new name."""
        self._unplace(version)
        self._place(version, parent, name)
        self.nodes.move(version.node, parent, name)

    def orphan(self, version: Version) -> None:
        """Its name was deleted or taken: it will never be published."""
        self._unplace(version)
        version.at = None
        self.nodes.detach(version.node)

    # --- opening ---------------------------------------------------------------------------------

    def begin(
        self, parent: Directory, name: str, caller: Caller, *, exists: bool, truncate: bool
    ) -> Version:
        """Start a version of ``parent/name``, to be opened by ``caller``. May copy and verify."""
        self._sweep()
        path = parent.child_path(name)
        staged = self.store.stage(path, parent.fd, name, exists=exists, truncate=truncate)
        process = writers.thread_group(caller.pid)
        with self.lock:
            node = self.nodes.staged(parent, name, os.fstat(staged.fd))
            version = Version(
                staged,
                node,
                None,
                members={process} if process else set(),
                fresh=truncate or not exists,
                known=process is not None,
            )
            node.version = version
            self._place(version, parent, name)
        self.writeback.add(staged)
        return version

    def join(self, version: Version, handle: Handle, caller: Caller) -> None:
        """Add a write handle; the version is finished once every handle of it is closed."""
        handle.opener = writers.thread_group(caller.pid)
        if handle.opener is None:
            version.known = False
        else:
            version.members.add(handle.opener)
        handle.version = version
        version.handles.add(handle)
        version.expected.pop(caller.pid, None)
        self._arrived.notify_all()

    def expect(self, version: Version, caller: Caller) -> None:
        """This caller is sent to look the path up again, and finds this version there."""
        process = writers.thread_group(caller.pid)
        with self.lock:
            version.expected[caller.pid] = time.monotonic()
            if process is not None:
                version.members.add(process)

    def dismiss(self, version: Version, caller: Caller) -> None:
        """This caller does not come after all; drop the version if it was begun for it alone."""
        with self.lock:
            version.expected.pop(caller.pid, None)
            self._arrived.notify_all()
            if not version.handles and not version.expected:
                version.closing = True
        if version.closing:
            self._drop(version)

    def _sweep(self) -> None:
        """Drop versions whose opener was sent to look again and never came."""
        old = time.monotonic() - _PENDING_S
        for version in self.all():
            with self.lock:
                expected = version.expected.values()
                if version.handles or not expected or max(expected) > old:
                    continue
                version.expected.clear()
                version.closing = True
            self._drop(version)

    def _drop(self, version: Version) -> None:
        with version.staged.lock, self.lock:
            if version.handles:
                return
            if version.unpublished:
                self._unplace(version)
                self.store.committer.discard(version.staged)
            self._end(version)

    # --- closing ---------------------------------------------------------------------------------

    def flush(self, handle: Handle, caller: Caller) -> Callable[[], None] | None:
        """One close of one duplicate. Returns the work that the close must wait for, if any."""
        version = handle.version
        if version is None:
            return None
        process, fate = writers.fate(caller.pid)
        with self.lock:
            if process is None or process != handle.opener:
                return None  # a forked child, or unknown: its RELEASE decides
            if fate is Fate.KILLED and not handle.flushed:
                version.killed = True
            if version.unpublished and not self.store.committer.changed(version.staged):
                return None  # a duplicate, as shells close it before they write: says nothing
            handle.flushed = True
            if not all(other.flushed for other in version.handles):
                return None
        return lambda: self._close(version)

    def _close(self, version: Version) -> None:
        changed = version.unpublished and self.store.committer.changed(version.staged)
        if changed and not self._close_to_joiners(version):
            return  # somebody has joined meanwhile: the last close commits
        self._finish(version, released=False)

    def _close_to_joiners(self, version: Version) -> bool:
        """Whether everybody has closed it, those included who are about to open it. From then on
        an open starts a version of its own: it would write to what is being sealed."""
        with self._arrived:
            self._arrived.wait_for(lambda: not version.expected, _EXPECTED_S)
            version.expected.clear()
            version.closing = all(handle.flushed for handle in version.handles)
            return version.closing

    def release(self, handle: Handle) -> Callable[[], None] | None:
        """The last duplicate is closed. Nobody waits for the work that is returned."""
        version = handle.version
        if version is None:
            return None
        with self.lock:
            version.handles.discard(handle)
            if version.handles:
                if all(other.flushed for other in version.handles):
                    return lambda: self._close(version)
                return None
            if not version.expected:
                version.closing = True
                finished = version.unpublished and version.at and not version.killed
                version.public = bool(finished and version.known and version.fresh)
        return lambda: self._release(version)

    def _release(self, version: Version) -> None:
        if not self._close_to_joiners(version):
            return
        with version.staged.lock:
            try:
                self._finish(version, released=True)
            finally:
                with self.lock:
                    joined = bool(version.handles)
                if not joined:
                    self._end(version)

    def _finish(self, version: Version, *, released: bool) -> None:
        """Commit what is complete. Raises what a commit raises, once for each who closes."""
        staged = version.staged
        with staged.lock:
            if version.ended:
                return
            if version.failure is not None:
                raise version.failure
            if version.killed and version.unpublished:
                # Others that write it too must hear of it: 0 from close says "committed".
                version.failure = WriterKilled(
                    f"{staged.path}: a process that wrote it was killed; the bytes are in salvage"
                )
                self._abort(version, "its writer was killed before it closed it")
                raise version.failure
            if staged.state is State.SETTLED:
                self.store.reseal(staged)
            elif version.at is None:
                if released and version.unpublished:
                    self.store.committer.discard(staged)
            elif staged.state is State.OPEN:
                changed = self.store.committer.changed(staged)
                if version.closing and (changed or (released and version.fresh)):
                    self._commit(version)
                elif released:
                    with self.lock:
                        self._unplace(version)
                    self.store.committer.discard(staged)

    def _commit(self, version: Version) -> None:
        with self.lock:
            assert version.at is not None
            parent, name = version.at
        try:
            if not version.known and self._looks_broken(version):
                self._abort(version, "its writer is unknown and the file is not whole")
                return
            self.store.commit(version.staged, parent.fd, name)
            self._remember_seal(version.node.ident)
        except (OSError, CkptfsError) as error:
            version.failure = error
            raise
        finally:
            self.writeback.remove(version.staged)
            with self.lock:
                self._unplace(version)

    def _remember_seal(self, ident: Identity) -> None:
        with self.lock:
            self._sealed_here[ident] = None
            if len(self._sealed_here) > _SEALS_REMEMBERED:
                self._sealed_here.popitem(last=False)

    def sealed_here(self, ident: Identity) -> bool:
        """Sealed by this mount, so a store through an old mapping may have changed it since."""
        with self.lock:
            return ident in self._sealed_here

    def _looks_broken(self, version: Version) -> bool:
        staged = version.staged
        size = os.fstat(staged.fd).st_size
        judged = self.store.committer.judge(staged.path, staged.fd, size)
        return judged.verdict is Verdict.BROKEN

    def _abort(self, version: Version, reason: str) -> None:
        with version.staged.lock:
            if version.unpublished:
                self.store.abort(version.staged, reason)
        self.writeback.remove(version.staged)
        with self.lock:
            self._unplace(version)
            self.nodes.detach(version.node)

    def _end(self, version: Version) -> None:
        """Once, however many handles were released one after the other."""
        self.writeback.remove(version.staged)
        with self.lock:
            if version.ended:
                return
            version.ended = True
            self._unplace(version)
            if version.node.version is version:
                version.node.version = None
                self.nodes.drop_if_forgotten(version.node)
        with contextlib.suppress(OSError):
            os.close(version.staged.fd)

    def fail(self, version: Version, error: OSError) -> None:
        """A failed fsync is final: the version is never published, its close says why."""
        version.failure = error
        self._abort(version, f"fsync failed: {error.strerror}")

    @contextlib.contextmanager
    def held(self, parent: Directory, name: str, *more: tuple[Directory, str]) -> Iterator[None]:
        """No version of these paths is committed inside the block: a rename or a delete of the
        name and the publish under it exclude each other."""
        with self.lock:
            places = ((parent, name), *more)
            versions = {v.staged.txid: v for place in places for v in self.at(*place)}
        with contextlib.ExitStack() as stack:
            for txid in sorted(versions):
                stack.enter_context(versions[txid].staged.lock)
            yield

    def wait_settled(self, version: Version) -> None:
        """Return once a commit that is due is over; made here if its turn has not come."""
        with version.staged.lock, contextlib.suppress(OSError, CkptfsError):  # others hear of it
            if version.closing:
                self._finish(version, released=not version.handles)

    def abort_all(self, reason: str) -> None:
        """At the end of a mount that was taken away: what was open goes to salvage."""
        for version in self.all():
            if not version.public:
                self._abort(version, reason)

    # --- changes that are not writes -------------------------------------------------------------

    @contextlib.contextmanager
    def unchanged_bytes(
        self, parent: Directory, name: str, moved_to: tuple[Directory, str] | None = None
    ) -> Iterator[None]:
        """What is done inside moves the ctime of a committed file but not its bytes: if they
        were verified before, they are after."""
        guard = self.store.guard
        known = guard.known_good(parent.fd, name)
        yield
        if known:
            to, new_name = moved_to or (parent, name)
            with osfs.opened(self.store.fs, to.fd, new_name, osfs.O_RDONLY) as fd:
                guard.remember(fd)

    @contextlib.contextmanager
    def metadata_change(
        self, parent: Directory, name: str, version: Version | None
    ) -> Iterator[None]:
        """Change mode, owner, times or xattrs of a version without doubt falling on its bytes."""
        if version is not None:
            with version.staged.lock:
                if not version.ended:
                    same = not self.store.committer.changed(version.staged)
                    yield
                    self._keep_record(version.staged, same)
                    return
        agrees = self._agrees_with_record(parent, name)
        with self.unchanged_bytes(parent, name):
            yield
            if agrees:
                with osfs.opened(self.store.fs, parent.fd, name, osfs.O_RDONLY) as fd:
                    record = self.store.layout.read_record(fd)
                    if record is not None:
                        self.store.committer.rerecord_times(fd, record)

    def _keep_record(self, staged: Staged, unchanged: bool) -> None:
        store = self.store
        if unchanged and staged.state is State.SETTLED and staged.record is not None:
            staged.record = store.committer.rerecord_times(staged.fd, staged.record)
            staged.sealed = store.committer.fingerprint(staged.fd)
            store.guard.remember(staged.fd)

    def _agrees_with_record(self, parent: Directory, name: str) -> bool:
        """Whether the committed file has a record, and its size and time are as recorded."""
        store = self.store
        try:
            with osfs.opened(store.fs, parent.fd, name, osfs.O_RDONLY) as fd:
                record = store.layout.read_record(fd)
                return record is not None and store.committer.fingerprint(fd) == (
                    record.size_bytes,
                    record.mtime_ns,
                )
        except (OSError, CkptfsError):
            return False
