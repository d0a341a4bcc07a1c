"""The life of a version under its writers: when is a file finished?

A version commits at the FLUSH with which its last open write handle was closed by the process
that opened it; at the last RELEASE where no such FLUSH came (descriptors passed to children,
unknown writers); never where one of its writers was killed. After its commit it
stays *live* while a write handle or a writable mapping remains, and is sealed again when it
changed; who opens the path for writing without O_TRUNC then writes to that very inode.

What a close publishes is never less than a plain directory would hold: where nothing was written
to a version since its begin, or since somebody truncated the path once more, it does not replace
what was committed meanwhile.

Threading: ``Versions.lock`` guards the tables and every field of ``Version`` and ``Handle``.
Commits run without it, under the version's own ``staged.lock``, which is always taken first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError, WriterKilled, final
from ckptfs.records import format as fmt
from ckptfs.room.writeback import Writeback
from ckptfs.store import Store
from ckptfs.structure import Verdict
from ckptfs.telling.events import DISK_FULL, KILLED, UNKNOWN
from ckptfs.versions.life import VISIBLE, State
from ckptfs.versions.staged import Base, Fingerprint, Inode, Staged, fingerprint

from ..processes import holders, writers
from ..processes.writers import Fate
from ..view.identity import identity, lstat
from ..view.model import (
    Before,
    Caller,
    Directory,
    File,
    Handle,
    Node,
    Version,
    stands,
)
from ..view.nodes import NodeTable
from . import content
from .content import Content
from .watch import Watch

_SEALS_REMEMBERED = 10_000
_EXPECTED_S = 1.0  # how long a close waits for an open that was sent to look again
_LOG_S = 1.0  # text that is still open so long after its first write is a log


class Versions:
    """Every version that has a writer or is being committed."""

    def __init__(self, store: Store, nodes: NodeTable) -> None:
        self.store, self.nodes = store, nodes
        self.lock = threading.RLock()
        self._arrived = threading.Condition(self.lock)
        self.writeback = Writeback(store.fs, store.room)
        self.handles: dict[int, Handle] = {}
        self.extending: set[Inode] = set()  # committed files that are growing: nobody opens them
        self._sealed: OrderedDict[Inode, bytes] = OrderedDict()  # what may be mapped since
        self._by_folder: dict[int, dict[str, list[Version]]] = {}
        self.sealed: Callable[[Version], None] = lambda version: None  # published or recorded anew
        self.replaced: Callable[[Node], None] = lambda node: None  # by a commit; known until then
        # Told of each name that is going to stand for another inode.
        self.watchers: list[Callable[[Directory, str], None]] = []
        self.lingering: set[Version] = set()  # published, closed by all, mapped by somebody
        self.watch = Watch(self)

    # --- tables ----------------------------------------------------------------------------------

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

    def visible_to(self, caller: Caller, parent: Directory, name: str) -> Version | None:
        """The version that this caller's lookups of the path give, if not the committed one."""
        listed = self.at(parent, name)
        for version in reversed(listed):
            if caller.pid in version.expected:
                return version
        for version in reversed(listed):
            if not self.overtaken(version) and self._is_seen_by(caller, version):
                return version
        return None

    def _is_seen_by(self, caller: Caller, version: Version) -> bool:
        """It stays a descendant when a process between the two has ended."""
        if version.public:
            return True
        if caller.process is None or not writers.descends_from(caller.process, version.members):
            return False
        version.members.add(caller.process)
        return True

    def _place(self, version: Version, parent: Directory, name: str) -> None:
        version.at = parent, name
        version.staged.path = parent.child_path(name)
        self._by_folder.setdefault(parent.id, {}).setdefault(name, []).append(version)
        self.tell(parent, name)

    def tell(self, parent: Directory, name: str) -> None:
        for watcher in self.watchers:
            watcher(parent, name)

    def _unplace(self, version: Version) -> None:
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
                self._unlisted(parent, name)

    def _unlisted(self, parent: Directory, name: str) -> None:
        """A name that was never published leaves the directory, so its times move: the kernel
        takes a listing for true while they do not."""
        with contextlib.suppress(OSError):
            try:
                os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            except FileNotFoundError:
                osfs.touch(parent.fd)

    def move(self, version: Version, parent: Directory, name: str, by: Caller | None) -> None:
        """A rename carries the open version along; its commit lands on the new name. Everybody
        sees it there at once if a process that writes it has put it there; with None, for an
        exchange, that is left as it is."""
        if by is not None and not version.closing:
            writes = any(handle.opener == by.process for handle in version.handles)
            version.public = writes and not self.is_untouched(version)
        self._unplace(version)
        self._place(version, parent, name)
        self.nodes.move(version.node, parent, name)
        with contextlib.suppress(OSError):
            osfs.touch_status(version.staged.fd)

    def orphan(self, version: Version) -> None:
        """Its name was deleted or taken: it will never be published. Who was sent to look for it
        does not find it any more."""
        self._unplace(version)
        version.at = None
        self.store.saves.remove_name(version.staged)
        self.nodes.detach(version.node)
        version.expected.clear()
        self._end(version)

    # --- opening ---------------------------------------------------------------------------------

    def begin(
        self, parent: Directory, name: str, caller: Caller, *, exists: bool, truncate: bool
    ) -> Version:
        """Start a version of ``parent/name``, to be opened by ``caller``. May copy and verify."""
        path = parent.child_path(name)
        staged = self.store.saves.stage(
            path, parent.fd, name, exists=exists, truncate=truncate, lazily=True
        )
        process = caller.process
        with self.lock:
            node = self.nodes.staged(parent, name, os.fstat(staged.fd))
            if exists:
                found = lstat(parent.fd, name)
                node.stands_for = found.st_ino if found is not None else 0
            version = Version(
                staged,
                node,
                None,
                members={process} if process else set(),
                fresh=truncate or not exists,
                known=process is not None,
                user=caller.uid,
            )
            version.numbers = {node.ident[1], node.stands_for} - {0}
            if truncate:
                version.before = self._cut_by(process, self.at(parent, name))
                self._keep_metadata(version, self.at(parent, name))
            node.version = version
            self._place(version, parent, name)
            self.watch.wake()
        if not staged.has_hole:  # else it will most likely be copied before it is on the disk
            self.writeback.add(staged)
        return version

    def _keep_metadata(self, version: Version, others: list[Version]) -> None:
        """O_TRUNC takes away bytes alone: owner, mode and xattrs are as the youngest has them."""
        for youngest in others[-1:]:
            self.store.fs.copy_metadata(youngest.staged.fd, version.staged.fd, skip=fmt.XATTR)

    def revive(self, node: File, fd: int) -> Version:
        """The file of a node, open at ``fd``, as a version that is live: who opens it writes to
        it where it is, and its last close seals it anew."""
        osfs.spare_access_time(fd)  # it is read to be recorded
        version = Version(self.store.saves.reopen(node.path(), fd), node, None, set(), False, True)
        if node.parent is not None:
            version.at = node.parent, node.name
        version.closing = True  # it was committed: nobody joins it but as a live one
        version.numbers = {node.ident[1]}
        node.version = version
        return version

    def join(self, version: Version, handle: Handle, caller: Caller) -> None:
        """Add a write handle; the version is finished once every handle of it is closed. Of those
        that began it while nothing was written nobody can tell which is going to be used, so none
        is waited for."""
        handle.opener, handle.user = caller.process, caller.uid
        version.is_meant = False
        # Another user may hold it open for ever, and end as he likes.
        handle.bystander = version.user not in (None, caller.uid)
        with contextlib.suppress(OSError, CkptfsError):  # its close hears of it
            handle.as_joined = self._content(version)
            untouched = handle.as_joined == version.staged.as_opened
            if version.handles and version.unpublished and untouched:
                for each in (*version.handles, handle):
                    each.bystander = bool(each.flags & (os.O_CREAT | os.O_TRUNC))
        version.appends |= bool(handle.flags & os.O_APPEND)
        if handle.opener is not None and handle.flags & os.O_ACCMODE == os.O_RDWR:
            version.mappers.add(handle.opener)
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
            self.watch.wake()

    def dismiss(self, version: Version, caller: Caller) -> None:
        """This caller does not come after all; drop the version if it was begun for it alone."""
        with self.lock:
            version.expected.pop(caller.pid, None)
            self._arrived.notify_all()
            if not version.handles and not version.expected:
                version.closing = True
        if version.closing:
            self.drop(version)

    def abandoned(self, version: Version) -> bool:
        """Whether nobody has it open and whoever was to open it has died on the way."""
        return not version.handles and all(map(writers.is_gone, version.expected))

    # --- who wrote what, and when ----------------------------------------------------------------

    def _content(self, version: Version) -> Fingerprint:
        with self._looking_at(version):
            return fingerprint(self.store.fs, version.staged.fd)

    @contextlib.contextmanager
    def _looking_at(self, version: Version) -> Iterator[None]:
        """A version that cannot be looked at has failed: the close that hears of it is the last
        that anybody waits for."""
        try:
            yield
        except OSError as error:
            with self.lock:
                version.failure = version.failure or final(error)
            raise version.failure from None

    def _cut_by(self, process: int | None, versions: list[Version]) -> Before:
        """What an open with O_TRUNC takes away of the others, as they are by now. Nothing of what
        a stranger adds to the committed bytes."""
        return {
            version: self._content(version)
            for version in versions
            if version.fresh
            or all(writers.are_related(process, handle.opener) for handle in version.handles)
        }

    def is_untouched(self, version: Version) -> bool:
        """Whether no byte was written since it was begun."""
        return self._content(version) == version.staged.as_opened

    @contextlib.contextmanager
    def cutting(self, version: Version) -> Iterator[None]:
        """An O_TRUNC of what is empty moves its times and writes no byte."""
        with version.staged.lock:
            was, untouched = self._content(version), self.is_untouched(version)
            yield
            now = self._content(version)
            if untouched and was[0] == now[0] == 0 and version.unpublished:
                self._still_untouched(version, was, now)

    def _still_untouched(self, version: Version, was: Fingerprint, now: Fingerprint) -> None:
        with self.lock:
            version.staged.as_opened = now
            version.overtakers = [(by, now if at == was else at) for by, at in version.overtakers]
            for other in self.at(*version.at) if version.at else ():
                if other.before.get(version) == was:
                    other.before[version] = now

    def overtaken(self, version: Version) -> bool:
        """Whether another version of its path was committed since, and nothing was written to this
        one that the begin of the other did not take away."""
        overtakers = [at for by, at in version.overtakers if by.state in VISIBLE]
        return bool(overtakers) and self._content(version) in overtakers

    def overtakes(self, by: Staged, parent: Directory, name: str, before: Before) -> None:
        """``by`` is going to be committed at the path. Who is still on the way to open a version
        opens it after that. The caller holds ``lock``."""
        now = fingerprint(self.store.fs, by.fd)
        for other in self.at(parent, name):
            if other.staged is by or (other.expected and not other.handles):
                continue
            if any(version.staged is by and now == at for version, at in other.before.items()):
                continue  # all that ``by`` holds was taken away by the begin of the other
            if other in before:
                other.overtakers.append((by, before[other]))
            elif now != by.as_opened:  # else it changes no byte: owner, mode, xattrs
                other.overtakers.append((by, other.staged.as_opened))

    def drop(self, version: Version) -> None:
        """One that was begun for an open that never came."""
        with version.staged.lock, self.lock:
            if version.handles:
                return
            if version.unpublished:
                self._unplace(version)
                self.store.saves.discard(version.staged)
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
            handle.killed = fate is Fate.KILLED
            if fate is Fate.UNKNOWN:
                version.known = False
            if process is None or process != handle.opener:
                if fate is Fate.KILLED and writers.crashed(caller.pid):
                    version.mauled |= self._may_have_written(process, caller, handle)
                return None  # a forked child, or unknown: its RELEASE decides
            if fate is Fate.KILLED and not handle.flushed:
                version.killed |= version.user in (None, handle.user)
            if version.unpublished and not self._changed(version):
                may_map = handle.flags & os.O_ACCMODE == os.O_RDWR and fate is Fate.ALIVE
                if not may_map and not version.fresh:
                    return None

                def close() -> None:
                    if not (may_map and self._close_mapped(version, handle, process)):
                        self._close_empty(version, handle, process)

                return close
            handle.flushed = True
            if version.unpublished and not version.closed:
                now = self._content(version)
                wrote = process in handle.wrote or writers.has_written(caller.pid)
                if wrote and now != handle.as_joined:  # touch(1) moves the time of it, too
                    version.closers[process] = now
                return None
        return lambda: self._close(version)

    def _may_have_written(self, process: int | None, caller: Caller, handle: Handle) -> bool:
        """Whether a process that has the handle from its parent wrote by it. Where the kernel
        carries the data that is told from its having written at all, and to no file of its own."""
        if process in handle.wrote:
            return True
        own = any(each.opener == process for each in self.handles.values())
        return not own and writers.has_written(caller.pid)

    def _close_mapped(self, version: Version, handle: Handle, process: int) -> bool:
        """numpy.memmap("r+") closes the file that it has mapped ahead of the first store, of which
        nothing tells: the version goes live now, or its flushed stores would end with a kill."""
        if not writers.map_for_writing({process}, frozenset(version.numbers)):
            return False
        with version.staged.lock, self.lock:
            version.staged.touched = True
            handle.flushed = True
            if not version.closed:
                return True
        self._close(version)
        self.mark_live(version)
        return True

    def _close_empty(self, version: Version, handle: Handle, process: int) -> None:
        """It is whole once its openers have closed it, not where that was a duplicate, as shells
        close it before they write, nor where a child has it, for which it was opened."""
        synced = version.synced is not None and version.synced == version.staged.as_opened
        if synced or not holders.holds_or_gave(process, frozenset(version.numbers)):
            self._finish_empty(version, {handle})

    def close_empty(self, versions: Iterable[Version], process: int | None) -> None:
        """Commit those that are empty and that their opener, which asks, has closed, whatever its
        children have yet."""
        for version in versions:
            with self.lock:
                handles = set(version.handles)
                asked = version.joinable and version.fresh and version.held and not version.killed
            if not asked or process is None or {each.opener for each in handles} != {process}:
                continue
            if not holders.holds(process, frozenset(version.numbers)):
                with contextlib.suppress(OSError, CkptfsError):  # others hear of it
                    self._finish_empty(version, handles)

    def _finish_empty(self, version: Version, closed: Set[Handle]) -> None:
        """Commit it where these are all that have it open: nobody may be about to write it who
        would write in place then, be it a bystander."""
        with version.staged.lock, self.lock:
            if not version.fresh or version.killed or not self.is_untouched(version):
                return
            for handle in closed:
                handle.flushed = True
            if not all(handle.flushed for handle in version.handles):
                return
            version.is_meant = True
        self._close(version)

    def _close(self, version: Version) -> None:
        due = version.unpublished and self._is_complete(version)
        if due and not self._close_to_joiners(version):
            return  # somebody has joined meanwhile: the last close commits
        self._finish(version, released=False)

    def _close_to_joiners(self, version: Version) -> bool:
        """Whether everybody has closed it, those included who are about to open it. From then on
        an open starts a version of its own: it would write to what is being sealed."""
        with self._arrived:
            self._arrived.wait_for(lambda: not version.expected, _EXPECTED_S)
            version.expected.clear()
            version.closing = version.closed
            return version.closing

    def release(self, handle: Handle) -> Callable[[], None] | None:
        """The last duplicate is closed. Nobody waits for the work that is returned."""
        version = handle.version
        if version is None:
            return None
        with self.lock:
            version.handles.discard(handle)
            # The last that had it from its opener, so nobody has said that it is whole.
            theirs = version.user in (None, handle.user)
            version.killed |= theirs and handle.killed and not handle.flushed
            if version.handles:
                return (lambda: self._close(version)) if version.closed else None
            if not version.expected:
                version.closing = True
                # Without any FLUSH no open of it returned: who opened it was killed meanwhile.
                version.fresh = version.fresh and version.held
                finished = version.unpublished and version.at and not version.killed
                shown = finished and version.known and version.fresh
                with contextlib.suppress(OSError, CkptfsError):  # what follows hears of it
                    version.public |= bool(shown and not self.overtaken(version))
        return lambda: self._release(version)

    def _release(self, version: Version) -> None:
        if not self._close_to_joiners(version):
            return
        with version.staged.lock:
            was_live = version.live
            if self._lingers(version):
                return
            try:
                self._finish(version, released=True)
            finally:
                if was_live or not self._lingers(version):
                    self._end(version)

    def is_mapped(self, version: Version) -> bool:
        """Whether a process has the published version mapped for writing. Of its stores and of its
        end nothing tells, where the kernel carries the data."""
        with self.lock:
            mappers, numbers = frozenset(version.mappers), frozenset(version.numbers)
        return version.live and bool(mappers) and writers.map_for_writing(mappers, numbers)

    def _lingers(self, version: Version) -> bool:
        """Whether it is mapped, so that it is looked at from time to time."""
        mapped = self.is_mapped(version)
        if mapped:
            self.mark_live(version)
        with self.lock:
            version.lingering = mapped
            if mapped:
                self.lingering.add(version)
                self.watch.wake()
        return mapped

    def mark_live(self, version: Version) -> None:
        with contextlib.suppress(OSError):  # only what follows a kill of the daemon is told worse
            self.store.saves.mark_live(version.staged)

    def _changed(self, version: Version) -> bool:
        with self._looking_at(version):
            return self.store.saves.is_changed(version.staged)

    def _is_complete(self, version: Version) -> bool:
        return self._changed(version) or (version.fresh and version.is_meant)

    def settle_lingering(self, version: Version) -> None:
        """Seal it once nobody has it mapped any more."""
        with version.staged.lock:
            if not version.handles:
                with contextlib.suppress(OSError, CkptfsError):  # nobody is left to hear of it
                    self._release(version)

    def _finish(self, version: Version, *, released: bool) -> None:
        """Commit what is complete. Raises what a commit raises, once for each who closes."""
        staged = version.staged
        with staged.lock:
            if version.ended:
                return
            if version.failure is not None:
                self._abort(version, str(version.failure))
                raise version.failure
            if version.mauled and version.unpublished and self._changed(version):
                version.killed |= self._judged(version) is not Verdict.SOUND
            if version.killed and version.unpublished:
                self.publish_unfinished(version)
            if version.killed and version.unpublished:
                # Others that write it too must hear of it: 0 from close says "committed".
                version.failure = WriterKilled(
                    f"{staged.path}: a process that wrote it was killed; the bytes are in salvage"
                )
                self._abort(version, KILLED)
                raise version.failure
            if staged.state is State.SETTLED:
                if version.lingering or not version.closed:  # it changes on: durable, at least
                    self.mark_live(version)
                    self.store.saves.make_durable(staged)
                elif self.store.saves.reseal(staged):
                    self.sealed(version)
            elif version.at is None:
                if released and version.unpublished:
                    self.store.saves.discard(staged)
            elif staged.state is State.OPEN:
                try:
                    complete = self._is_complete(version) or (released and version.fresh)
                    done = version.closing and complete and self._commit_in_turn(version)
                except OSError as error:
                    self._abort(version, str(error))
                    raise
                if not done:
                    self._not_due(version, released)

    def _not_due(self, version: Version, released: bool) -> None:
        """It is overtaken, or unchanged: nobody waits for it, and who has it open may go on."""
        with self.lock:
            version.closing = released
            if released:
                self._unplace(version)
        if released:
            self.store.saves.discard(version.staged)

    def _commit_in_turn(self, version: Version) -> bool:
        """Commit it unless it is overtaken. Of one without a byte only the RELEASE tells, which
        may come behind later closes: none of them is published between the two."""
        assert version.at is not None
        parent, name = version.at
        if not version.overtakers and not self.is_untouched(version):
            self._commit(version)
            return True
        with self.store.order.path_lock(parent.fd, name):
            if self.overtaken(version):
                return False
            self._commit(version)
            return True

    def _commit(self, version: Version) -> None:
        with self.lock:
            assert version.at is not None
            parent, name = version.at
            version.staged.path = parent.child_path(name)  # a directory above may have moved
        try:
            if not version.known and self._looks_broken(version):
                self._abort(version, UNKNOWN)
                return
            self._require_room(version)
            base = version.staged.base
            with self.lock:
                self.overtakes(version.staged, parent, name, version.before)
                version.before = {}
            with self.replacing(parent, name) as old:
                self.store.saves.commit(version.staged, parent.fd, name, self._alone)
            if base is not None and not base.filled:
                self._became_committed(version, base)
            version.numbers.add(version.node.ident[1])
            self._remember_mappers(version)
            if not version.known or not version.closed:
                self.mark_live(version)
            version.node.stands_for = 0
            self.sealed(version)
            if old is not None:
                self.replaced(old)
        except (OSError, CkptfsError) as error:
            version.failure = final(error)
            raise version.failure from None
        finally:
            self.writeback.remove(version.staged)
            with self.lock:
                self._unplace(version)

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

    def _require_room(self, version: Version) -> None:
        """A write that finds no room tells its program alone, for the kernel carries it. What
        follows is a close like any other, of a version that may lack the rest."""
        full = self.store.room.look().is_full if version.is_log else False
        if full or (not version.is_log and self.store.saves.may_lack_bytes(version.staged)):
            self._abort(version, DISK_FULL)
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

    def publish_unfinished(self, version: Version) -> None:
        """A log is good as far as it goes: it is published and stays live. A database, which keeps
        transactions of its own, is written in place. Does nothing to anything else; the caller
        holds ``staged.lock``."""
        found = self._kind(version)
        if found is None or version.at is None or self.overtaken(version):
            return
        if self.store.room.look().is_full:
            return  # nothing is committed then
        if found is Content.DATABASE:
            self._expose(version)
            return
        version.closing = version.is_log = True  # who opens it now joins what is published
        self._commit(version)

    def publish_named(self, version: Version, caller: Caller) -> None:
        """A process that writes it, or did until nothing was changed any more, gives it another
        name, and so says that it is whole: it is committed, and live from here on. Not of a
        stranger, nor what is broken by its structure. Raises what a commit raises."""
        with version.staged.lock:
            if not version.joinable or version.at is None or version.killed or version.mauled:
                return
            if self.overtaken(version) or not self._is_written_by(version, caller.process):
                return
            if not self._looks_broken(version):
                version.closing = True
                self._commit(version)

    def _is_written_by(self, version: Version, process: int | None) -> bool:
        with self.lock:
            has_it = any(handle.opener == process for handle in version.handles)
            at_close = version.closers.get(process) if process is not None else None
        return has_it or (at_close is not None and at_close == self._content(version))

    def _kind(self, version: Version) -> Content | None:
        """Whether it is a log (TEXT) or a database rather than a checkpoint; see ``content``."""
        if version.is_binary:
            return None
        staged, growth = version.staged, self.store.saves
        size = self._content(version)[0]
        found = content.judge(size, lambda n, offset: growth.read(staged, n, offset))
        version.is_binary = found is Content.OTHER
        if found is Content.DATABASE:
            return found
        since, name = version.grows_since, version.at[1] if version.at else ""
        stays_open = since is not None and time.monotonic() - since >= _LOG_S
        lasts = version.appends or stays_open
        is_log = lasts and content.may_be_log(name, appends=version.appends)
        return found if found is Content.TEXT and is_log else None

    def write_in_place(self, version: Version) -> None:
        """Several processes write it under a lock, so each must see the others' bytes. Does
        nothing once its commit has begun: who comes then sees what it commits."""
        with version.staged.lock:
            if version.joinable and not self.overtaken(version):
                self._expose(version)

    def _expose(self, version: Version) -> None:
        with self.lock:
            if version.at is None:
                return
            parent, name = version.at
            version.staged.path = parent.child_path(name)
        self.writeback.remove(version.staged)
        with self.replacing(parent, name):
            self.store.saves.expose(version.staged, parent.fd, name)
        with self.lock:
            self._unplace(version)
            self.overtakes(version.staged, parent, name, version.before)
            for other in self.at(parent, name):  # truncated for the lock, not to be emptied
                other.fresh = False
        self.sealed(version)

    def _remember_mappers(self, version: Version) -> None:
        with self.lock:
            mappers = version.mappers if version.known else set()
            if mappers or not version.known:
                self._sealed[version.node.ident[:2]] = _mapping(mappers, version.numbers)
                if len(self._sealed) > _SEALS_REMEMBERED:
                    self._sealed.popitem(last=False)

    def may_be_mapped(self, inode: Inode) -> bool:
        """Sealed by this mount, and maybe still mapped for writing by who opened it so: what such
        a process has stored since is not damage."""
        with self.lock:
            if inode not in self._sealed:
                return False
            mappers, numbers = _mapped(self._sealed[inode])
        return not mappers or writers.map_for_writing(mappers, numbers)

    def may_be_written(self, inode: Inode) -> bool:
        """Without a commit: it is open for writing where it stands, or mapped."""
        live = any(version.node.ident[:2] == inode for version in self.live())
        return live or self.may_be_mapped(inode)

    def _looks_broken(self, version: Version) -> bool:
        return self._judged(version) is Verdict.BROKEN

    def _judged(self, version: Version) -> Verdict:
        return self.store.saves.verdict(version.staged)

    def _abort(self, version: Version, reason: str) -> None:
        with version.staged.lock:
            if version.unpublished:
                self.store.saves.abort(version.staged, reason)
        self.writeback.remove(version.staged)
        with self.lock:
            self._unplace(version)
            self.nodes.detach(version.node)

    def _end(self, version: Version) -> None:
        """Once, however many handles were released one after the other; not while there are any."""
        with self.lock:
            if version.ended or version.handles:
                return
            version.ended = True
            self.lingering.discard(version)
            self._unplace(version)
            if version.node.version is version:
                version.node.version = None
                self.nodes.drop_if_forgotten(version.node)
        self.writeback.remove(version.staged)
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
    def held(
        self, parent: Directory, name: str, *more: tuple[Directory, str]
    ) -> Iterator[list[Version]]:
        """No version of these paths is committed inside the block: a rename or a delete of the
        name and the publish under it exclude each other. Gives those that were there; what is
        begun inside the block is another file."""
        places = ((parent, name), *more)
        while True:
            held = self._at_all(places)
            with contextlib.ExitStack() as stack:
                for version in sorted(held, key=lambda version: version.staged.txid):
                    stack.enter_context(version.staged.lock)
                if set(self._at_all(places)) <= set(held):
                    yield held
                    return

    def _at_all(self, places: Iterable[tuple[Directory, str]]) -> list[Version]:
        with self.lock:
            return [version for place in places for version in self.at(*place)]

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
                if not version.public and self.store.saves.is_changed(version.staged):
                    self._abort(version, reason)

    def carried(self) -> dict[str, Any]:
        """For the program that goes on; the caller holds ``lock``."""
        return {
            "handles": self.handles,
            "by folder": self._by_folder,
            "sealed": self._sealed,
            "lingering": self.lingering,
            "fulls": self.store.room.doubts.fulls,
        }

    def resume(self, carried: dict[str, Any]) -> None:
        with self.lock:
            self.handles.update(carried["handles"])
            self._by_folder = carried["by folder"]
            self._sealed = carried["sealed"]
            self.lingering = carried["lingering"]
            self.store.room.doubts.fulls = carried["fulls"]
        self.pause()
        self.go_on()

    def pause(self) -> None:
        """No thread of it is left on return; nothing else changes."""
        self.watch.stop()
        self.writeback.stop()

    def go_on(self) -> None:
        self.writeback, self.watch = Writeback(self.store.fs, self.store.room), Watch(self)
        for version in self.all():
            if not version.staged.has_hole:
                self.writeback.add(version.staged)
        with self.lock:
            self.watch.wake()

    def stop(self) -> None:
        """No thread of it is left on return, and what was only mapped is sealed."""
        self.watch.stop()
        for version in list(self.lingering):
            with version.staged.lock, contextlib.suppress(OSError, CkptfsError):
                version.lingering = False
                self._finish(version, released=True)
            self._end(version)
        self.writeback.stop()


def _mapping(processes: set[int], inodes: set[int]) -> bytes:
    """Who may map which inode numbers: sets of each would take 500 bytes."""
    return array("Q", [len(processes), *processes, *inodes]).tobytes()


def _mapped(packed: bytes) -> tuple[list[int], set[int]]:
    count, *numbers = array("Q", packed)
    return numbers[:count], set(numbers[count:])
