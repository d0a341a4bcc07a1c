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
import errno
import functools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ckptfs import osfs
from ckptfs.errors import CkptfsError, WriterKilled, final
from ckptfs.mount import writers
from ckptfs.mount.locks import LockSet
from ckptfs.mount.nodes import Directory, File, Identity, Node, NodeTable, identity
from ckptfs.mount.writers import Fate
from ckptfs.protocol import VISIBLE, State
from ckptfs.staged import Base, Inode, Staged
from ckptfs.store import Store
from ckptfs.structure import Verdict
from ckptfs.writeback import Writeback

_SEALS_REMEMBERED = 10_000
_PENDING_S = 60.0  # an open that was sent to look again and never came back
_EXPECTED_S = 1.0  # how long a close waits for it


@dataclass(frozen=True)
class Caller:
    """From the header of a request; ``pid`` is a thread id, 0 if it is unknown."""

    uid: int
    gid: int
    pid: int
    request: int = 0  # its number, for what is answered or interrupted later

    @functools.cached_property
    def process(self) -> int | None:
        """The process of the thread; None if it is unknown."""
        return writers.thread_group(self.pid)


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
    locker: int | None = None  # the process that asked
    base: Base | None = None  # where the bytes are that ``fd`` may lack


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
    held: bool = False  # some process had a descriptor of it: a FLUSH came
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
        self.handles: dict[int, Handle] = {}
        self.extending: set[Inode] = set()  # committed files that are growing: nobody opens them
        self._sealed_here: OrderedDict[Identity, None] = OrderedDict()
        self._by_path: dict[tuple[int, str], list[Version]] = {}
        self.sealed: Callable[[Version], None] = lambda version: None  # published or recorded anew
        self._sweeper: threading.Timer | None = None

    # --- tables ----------------------------------------------------------------------------------

    def at(self, parent: Directory, name: str) -> list[Version]:
        """The unpublished versions of a path, oldest first."""
        return self._by_path.get((parent.id, name), [])

    def below(self, parent: Directory) -> Iterator[tuple[str, Version]]:
        for (parent_id, name), versions in self._by_path.items():
            if parent_id == parent.id:
                yield name, versions[-1]

    def any_below(self, parent: Directory) -> bool:
        return any(parent_id == parent.id for parent_id, _ in self._by_path)

    def all(self) -> list[Version]:
        with self.lock:
            return [version for versions in self._by_path.values() for version in versions]

    def visible_to(self, caller: Caller, parent: Directory, name: str) -> Version | None:
        """The version that this caller's lookups of the path give, if not the committed one."""
        versions = self.at(parent, name)
        for version in reversed(versions):
            if version.public or caller.pid in version.expected:
                return version
        if versions and caller.process is not None:
            for version in reversed(versions):
                if writers.descends_from(caller.process, version.members):
                    # It stays a descendant when a process between the two has ended.
                    version.members.add(caller.process)
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
        with contextlib.suppress(OSError):
            osfs.touch_status(version.staged.fd)

    def orphan(self, version: Version) -> None:
        """Its name was deleted or taken: it will never be published."""
        self._unplace(version)
        version.at = None
        self.store.committer.remove_name(version.staged)
        self.nodes.detach(version.node)

    # --- opening ---------------------------------------------------------------------------------

    def begin(
        self, parent: Directory, name: str, caller: Caller, *, exists: bool, truncate: bool
    ) -> Version:
        """Start a version of ``parent/name``, to be opened by ``caller``. May copy and verify."""
        path = parent.child_path(name)
        staged = self.store.stage(
            path, parent.fd, name, exists=exists, truncate=truncate, lazily=True
        )
        process = caller.process
        with self.lock:
            node = self.nodes.staged(parent, name, os.fstat(staged.fd))
            if exists:
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
                    node.stands_for = found.st_ino
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
        if not staged.has_hole:  # else it will most likely be copied before it is on the disk
            self.writeback.add(staged)
        return version

    def join(self, version: Version, handle: Handle, caller: Caller) -> None:
        """Add a write handle; the version is finished once every handle of it is closed."""
        handle.opener = caller.process
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
        process = caller.process
        with self.lock:
            version.expected[caller.pid] = time.monotonic()
            if process is not None:
                version.members.add(process)
            self._sweep_later()

    def dismiss(self, version: Version, caller: Caller) -> None:
        """This caller does not come after all; drop the version if it was begun for it alone."""
        with self.lock:
            version.expected.pop(caller.pid, None)
            self._arrived.notify_all()
            if not version.handles and not version.expected:
                version.closing = True
        if version.closing:
            self._drop(version)

    def abandoned(self, version: Version) -> bool:
        """Whether nobody has it open and whoever was to open it has died on the way."""
        return not version.handles and all(map(writers.is_gone, version.expected))

    def _sweep_later(self) -> None:
        if self._sweeper is None:
            self._sweeper = threading.Timer(_EXPECTED_S, self.sweep)
            self._sweeper.daemon = True
            self._sweeper.start()

    def sweep(self) -> None:
        """Drop versions whose opener was sent to look again and never came. A thread of its own
        does it: nobody who holds ``lock`` may take a ``staged.lock``."""
        old = time.monotonic() - _PENDING_S
        with self.lock:
            self._sweeper = None
        for version in self.all():
            with self.lock:
                expected = version.expected.values()
                if version.handles or not expected:
                    continue
                if max(expected) > old and not self.abandoned(version):
                    self._sweep_later()
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
            version.held = True
            if fate is Fate.UNKNOWN:
                version.known = False
            if process is None or process != handle.opener:
                return None  # a forked child, or unknown: its RELEASE decides
            if fate is Fate.KILLED and not handle.flushed:
                version.killed = True
            if version.unpublished and not self._changed(version):
                if handle.flags & os.O_ACCMODE == os.O_RDWR and fate is Fate.ALIVE:
                    return lambda: self._close_mapped(version, handle, process)
                return None  # a duplicate, as shells close it before they write: says nothing
            handle.flushed = True
            if not all(other.flushed for other in version.handles):
                return None
        return lambda: self._close(version)

    def _close_mapped(self, version: Version, handle: Handle, process: int) -> None:
        """numpy.memmap("r+") closes the file that it has mapped ahead of the first store, of which
        nothing tells: the version goes live now, or its flushed stores would end with a kill."""
        if not writers.maps_for_writing(process, version.node.stands_for or version.node.ident[1]):
            return
        with version.staged.lock, self.lock:
            version.staged.touched = True
            handle.flushed = True
            if not all(other.flushed for other in version.handles):
                return
        self._close(version)

    def _close(self, version: Version) -> None:
        changed = version.unpublished and self._changed(version)
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
                # Without any FLUSH no open of it returned: who opened it was killed meanwhile.
                version.fresh = version.fresh and version.held
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

    def _changed(self, version: Version) -> bool:
        """A version that cannot be looked at has failed: the close that hears of it is the last
        that anybody waits for."""
        try:
            return self.store.committer.changed(version.staged)
        except OSError as error:
            with self.lock:
                version.failure = version.failure or final(error)
            raise version.failure from None

    def _finish(self, version: Version, *, released: bool) -> None:
        """Commit what is complete. Raises what a commit raises, once for each who closes."""
        staged = version.staged
        with staged.lock:
            if version.ended:
                return
            if version.failure is not None:
                self._abort(version, str(version.failure))
                raise version.failure
            if version.killed and version.unpublished:
                # Others that write it too must hear of it: 0 from close says "committed".
                version.failure = WriterKilled(
                    f"{staged.path}: a process that wrote it was killed; the bytes are in salvage"
                )
                self._abort(version, "its writer was killed before it closed it")
                raise version.failure
            if staged.state is State.SETTLED:
                if self.store.reseal(staged):
                    self.sealed(version)
            elif version.at is None:
                if released and version.unpublished:
                    self.store.committer.discard(staged)
            elif staged.state is State.OPEN:
                try:
                    changed = self._changed(version)
                except OSError as error:
                    self._abort(version, str(error))
                    raise
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
            self._require_room(version)
            base = version.staged.base
            self.store.commit(version.staged, parent.fd, name, self._alone)
            if base is not None and not base.filled:
                self._became_committed(version, base)
            self._remember_seal(version.node.ident)
            version.node.stands_for = 0
            self.sealed(version)
        except (OSError, CkptfsError) as error:
            version.failure = final(error)
            raise version.failure from None
        finally:
            self.writeback.remove(version.staged)
            with self.lock:
                self._unplace(version)

    def _require_room(self, version: Version) -> None:
        """A write that finds no room tells its program alone, for the kernel carries it. What
        follows is a close like any other, of a version that may lack the rest."""
        if osfs.is_full(version.staged.fd):
            self._abort(version, "the disk is full, so it may not be whole")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def _alone(self, inode: Inode) -> Iterator[bool]:
        """Whether nobody has the inode open through the mount; nobody gets it inside then (C7)."""
        with self.lock:
            # By descriptor: a node may have been opened with a later version than its own.
            alone = not any(
                each.fd >= 0 and identity(os.fstat(each.fd))[:2] == inode
                for each in self.handles.values()
            )
            if alone:
                self.extending.add(inode)
        try:
            yield alone
        finally:
            if alone:
                with self.lock:
                    self.extending.discard(inode)

    def _became_committed(self, version: Version, base: Base) -> None:
        """What it added is in the committed file, and so is who has the version open."""
        with self.lock:
            for handle in version.handles | version.node.handles:
                self.store.fs.redirect(handle.fd, version.staged.fd)
            base.filled = True
            self.nodes.detach(version.node)
            version.node.ident = identity(os.fstat(version.staged.fd))

    def write_in_place(self, version: Version) -> None:
        """Several processes write it under a lock, so each must see the others' bytes. Does
        nothing once its commit has begun: who comes then sees what it commits."""
        with version.staged.lock:
            with self.lock:
                if not version.joinable or version.at is None:
                    return
                parent, name = version.at
            self.writeback.remove(version.staged)
            self.store.committer.expose(version.staged, parent.fd, name)
            with self.lock:
                self._unplace(version)
                for other in self.at(parent, name):  # truncated for the lock, not to be emptied
                    other.fresh = False

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
        judged = self.store.committer.judge_staged(version.staged)
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

    def fail(self, version: Version, error: OSError) -> OSError | CkptfsError:
        """A failed fsync is final: the version is never published, its close says why. Returns
        what to answer."""
        if version.failure is None:
            version.failure = final(error)
            self._abort(version, f"fsync failed: {error.strerror}")
        return version.failure

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
        """At the end of a mount that was taken away: what was open goes to salvage. What is empty
        so far, or cannot be looked at, stays in stage until the next mount; passthrough writes go
        on without us."""
        for version in self.all():
            with contextlib.suppress(OSError):
                if not version.public and self.store.committer.changed(version.staged):
                    self._abort(version, reason)

    def stop(self) -> None:
        """No thread of it is left on return."""
        with self.lock:
            sweeper = self._sweeper
        if sweeper is not None:
            sweeper.cancel()
            sweeper.join()
        self.writeback.stop()
