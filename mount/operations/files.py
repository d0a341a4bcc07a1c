"""Opening, creating and closing.

An open for writing gets a version of its own, hence a node of its own: the kernel is answered
ESTALE once, looks the path up again, and opens the node that the lookup then gives.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from typing import NoReturn

from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError
from ckptfs.versions.life import State
from ckptfs.versions.staged import fingerprint

from ..processes import writers
from ..view.control import StatusFile
from ..view.descriptors import no_room
from ..view.identity import identity, lstat
from ..view.locks import Lock
from ..view.model import Caller, Directory, File, Handle, Version, Virtual, stands
from ..view.past import Generation
from ..writers import beginning, closing, committing, content, mapped, overtaking, visibility
from ..writers.content import Content
from .base import Entry, New, Slow, exists, or_nothing, own, stale
from .relay import Relay

_MUCH_BYTES = 64 << 20


class Replaced(OSError):
    """Another version stands under the name since the kernel looked it up."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "look again")


class Files(Relay):
    """Open file descriptions."""

    def open(self, nodeid: int, flags: int, caller: Caller) -> Handle | Slow[Handle]:
        node = self.nodes.get(nodeid)
        if isinstance(node, Virtual):
            return self._open_virtual(node, flags, caller)
        if not isinstance(node, File) or node.parent is None:
            raise OSError(errno.EISDIR if isinstance(node, Directory) else errno.ENXIO, "no file")
        if not self._has_room_for(caller):
            return Slow(lambda: self._refuse(node, caller))
        writing = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if not writing:
            return self._open_for_reading(node, node.parent, flags)
        own = node.version is not None and node.version.unpublished  # begun before it came in place
        if self.in_place(node.parent, node.name) and not own:
            return Slow(lambda: self._open_in_place(node, flags))
        return self._open_for_writing(node, node.parent, flags, caller)

    def _has_room_for(self, caller: Caller) -> bool:
        def held() -> int:
            return sum(
                each.user == caller.uid and each.fd >= 0 for each in [*self.handles.values()]
            )

        return self.room.for_one_more(caller.uid, held)

    def _refuse(self, node: File, caller: Caller) -> NoReturn:
        """No descriptor is left for it."""
        version = node.version
        if version is not None and caller.pid in version.expected:
            visibility.dismiss(self.versions, version, caller)
        raise no_room()

    def _open_virtual(self, node: Virtual, flags: int, caller: Caller) -> Handle | Slow[Handle]:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise PermissionError(errno.EPERM, "read-only")
        is_status = isinstance(node, StatusFile)  # which is to tell that no room is left
        if not self.room.is_left(self.room.reserve // (2 if is_status else 1)):
            raise no_room()
        if isinstance(node, Generation):
            return Slow(lambda: self._handle(node, node.open(), flags))
        if isinstance(node, StatusFile):
            handle = self._handle(node, node.open(caller.uid), flags)
            handle.relayed = True
            return handle
        raise IsADirectoryError(errno.EISDIR, "a directory")

    def _open_for_reading(self, node: File, parent: Directory, flags: int) -> Handle | Slow[Handle]:
        with self.lock:
            version = node.version
            if version is not None and version.active:
                return self._version_handle(node, version, flags)
        if not stands(node):
            return self._open_nameless(node, flags)
        if not self.store.options.verify_opens or self.store.guard.known_good(parent.fd, node.name):
            with contextlib.suppress(Replaced):
                return self._open_committed(node, flags)

        def verified() -> Handle:
            while stands(node):
                if node.ident[:2] in self.versions.extending:
                    with self.store.order.path_lock(parent.fd, node.name):
                        continue
                live = mapped.may_be_mapped(self.versions, node.ident[:2])
                found = self.store.opens.verify(parent.at(node.name), live=live)
                if found is not None and found.replaced:
                    raise stale()  # rolled back: the name stands for another inode now
                with contextlib.suppress(Replaced):
                    handle = self._open_committed(node, flags)
                    self.caches.drop_attributes(node.id)  # edited below the mount, maybe
                    return handle
            return self._open_nameless(node, flags)

        return Slow(verified)

    def _open_nameless(self, node: File, flags: int) -> Handle:
        """What has lost its name is opened by the link of a descriptor, or by who looked it up
        just before: he looks again."""
        with self.lock:
            return self._handle(node, self._reopened(node, os.O_RDONLY), flags)

    def _reopened(self, node: File, access: int) -> int:
        """A descriptor of what the node has open."""
        for handle in () if node.superseded else node.handles:
            return os.open(f"/proc/self/fd/{handle.fd}", access | os.O_CLOEXEC)
        raise stale()

    def _open_committed(self, node: File, flags: int) -> Handle:
        access = os.O_RDWR if flags & os.O_ACCMODE != os.O_RDONLY else os.O_RDONLY
        with self.lock:
            if node.superseded:
                raise stale()
            if node.ident[:2] in self.versions.extending:
                raise Replaced
            with self.inode(node) as inode:
                fd = os.open(f"/proc/self/fd/{inode}", access | os.O_CLOEXEC)
            return self._handle(node, fd, flags)

    def _open_in_place(self, node: File, flags: int) -> Handle:
        assert node.parent is not None
        self.store.order.require_writable()
        with self.store.order.path_lock(node.parent.fd, node.name):
            if not stands(node):
                raise stale()
            self.store.files.open_in_place(node.parent.at(node.name))
            node.aliased = True  # it may stay mapped when the kernel has released its last handle
            handle = self._open_committed(node, flags | os.O_RDWR)
        if flags & os.O_TRUNC:
            os.ftruncate(handle.fd, 0)
        return handle

    def _open_for_writing(
        self, node: File, parent: Directory, flags: int, caller: Caller
    ) -> Handle | Slow[Handle]:
        truncate = bool(flags & os.O_TRUNC)
        self._check_device(parent)
        with self.lock:
            version = node.version
            if version is not None and version.unpublished and self._joins(version, flags, caller):
                return self._join(node, version, flags, caller)
            expecting = self._expecting(parent, node.name, caller)
            if expecting is not None:  # /proc/self/fd/N: no LOOKUP came between the two OPENs
                self.caches.drop_name(parent.id, node.name)
                return Slow(lambda: self._open_itself(node, expecting, flags, caller))
            if not self.versions.at(parent, node.name) and not exists(parent.fd, node.name):
                return Slow(lambda: self._open_itself(node, None, flags, caller))
            if version is not None and self._is_shared(version, truncate) and stands(node):
                return self._join(node, version, flags, caller)
            if truncate:
                self._start(parent, node.name, caller, truncate=True)

        def start() -> Handle:
            while True:
                for due in self._due(parent, node.name):
                    closing.wait_settled(self.versions, due)
                begun = self._begun(parent, node.name)
                seen = self._regular(parent, node.name)
                if not truncate and not begun:
                    handle = self._open_where_it_stands(node, parent, flags, caller)
                    if handle is not None:
                        return handle
                with self.store.order.path_lock(parent.fd, node.name):
                    if self._is_written_on(node, parent, truncate):
                        raise stale()  # who looks again finds it
                    if begun and not self._begun(parent, node.name):
                        continue  # published meanwhile, and maybe mapped
                    if self._still(parent, node.name, seen):
                        self._start(parent, node.name, caller, truncate=truncate)

        return Slow(start)

    def _is_written_on(self, node: File, parent: Directory, truncate: bool) -> bool:
        """Whether others may yet write what stands there by now: a version of its own would lack
        what they add, whatever lock they hold. Of another node than this one only where that is no
        transaction: by a link of its descriptor it would be asked for again and again."""
        with self.lock:
            current = self.nodes.standing(parent, node.name)
            version = current.version if isinstance(current, File) else None
            if version is not None and version.staged.state is State.IN_PLACE:
                return True
            shared = current is node and version is not None and self._is_shared(version, truncate)
            return shared or self.in_place(parent, node.name)

    def _regular(self, parent: Directory, name: str) -> os.stat_result | None:
        """What stands there, if anything. Raises ESTALE for what has no versions: the name is
        another inode's by now."""
        status = lstat(parent.fd, name)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise stale()
        return status

    def _still(self, parent: Directory, name: str, seen: os.stat_result | None) -> bool:
        now = lstat(parent.fd, name)
        return (now and identity(now)) == (seen and identity(seen))

    def _open_where_it_stands(
        self, node: File, parent: Directory, flags: int, caller: Caller
    ) -> Handle | None:
        """Of a committed file that is mapped for writing, of a log that is added to, and of a
        database. None for all others, and where a version of it is being written: that shows the
        number of the file that it will replace, so whose mapping it is could not be told."""
        with self.lock:
            if self._begun(parent, node.name):
                return None
            current = self.nodes.standing(parent, node.name)
            version = current.version if isinstance(current, File) else None
        if version is not None and mapped.is_mapped(self.versions, version):
            if current is not node:
                raise stale()  # committed meanwhile, and found by who looks again
            return self._open_live(node, parent, flags, caller, log=False)
        found = self._content_of(node, parent)
        if found is Content.DATABASE:
            return self._open_in_place(node, flags)
        if found is not Content.OTHER and _adds_to_log(node, flags):
            return self._open_live(node, parent, flags, caller, log=True)
        return None

    def _is_shared(self, version: Version, truncate: bool) -> bool:
        """Whether another open for writing goes where the committed version stands: somebody may
        yet write there. Who truncates begins anew but where it is no transaction any more."""
        if not version.live:
            return False
        if version.is_log or version.staged.state is State.IN_PLACE:
            return True
        return not truncate and any(not handle.flushed for handle in version.handles)

    def _open_itself(
        self, node: File, needless: Version | None, flags: int, caller: Caller
    ) -> Handle:
        """A descriptor that is opened again by its link stands for the file that it has open. One
        that was replaced is kept as it is: history may hold it."""
        if needless is not None:
            visibility.dismiss(self.versions, needless, caller)
        with self.lock:
            version = node.version
            if version is None or not version.active or version.ended:
                fd = self._reopened(node, os.O_RDWR)
                if os.fstat(fd).st_nlink > 0 and not stands(node):
                    os.close(fd)
                    raise stale()
                version = beginning.revive(self.versions, node, fd)
            joined = self._join(node, version, flags, caller)
        mapped.mark_live(self.versions, version)
        return joined.run() if isinstance(joined, Slow) else joined

    def _content_of(self, node: File, parent: Directory) -> Content:
        """Of the committed file, good as it is on return; OTHER where it was replaced."""
        self.store.opens.verify(parent.at(node.name))
        if not stands(node):
            return Content.OTHER
        with osfs.opened(self.store.fs, parent.fd, node.name, os.O_RDONLY) as fd:
            return content.judge(os.fstat(fd).st_size, lambda size, at: os.pread(fd, size, at))

    def _open_live(
        self, node: File, parent: Directory, flags: int, caller: Caller, *, log: bool
    ) -> Handle | None:
        """Write where the committed file stands, unless it does no more, or a version of it was
        begun. Nobody replaces or extends it meanwhile."""
        with self.store.order.path_lock(parent.fd, node.name), self.lock:
            if self._begun(parent, node.name) or not stands(node):
                return None
            version = node.version
            if version is None or not version.live:
                with self.inode(node) as inode:
                    fd = os.open(f"/proc/self/fd/{inode}", os.O_RDWR | os.O_CLOEXEC)
                version = beginning.revive(self.versions, node, fd)
            version.is_log |= log
            handle = self._write_handle(node, version, flags, caller)
        mapped.mark_live(self.versions, version)
        return handle

    def is_joined(self, version: Version, flags: int, caller: Caller) -> bool:
        """Whether an open with these flags would go on with the version."""
        with self.lock:
            return not version.unpublished or self._joins(version, flags, caller)

    def _joins(self, version: Version, flags: int, caller: Caller) -> bool:
        """Who truncates gets a version of its own beside a writer, or N processes that save to one
        path would mix their bytes. Not where nothing was written yet by itself, or by a process
        that it descends from or that descends from it: these mean the same file."""
        if caller.pid in version.expected:
            return True
        if not version.joinable or overtaking.overtaken(self.versions, version):
            return False
        if not flags & os.O_TRUNC:
            return True
        if not overtaking.is_untouched(self.versions, version):
            return False
        empty = os.fstat(version.staged.fd).st_size == 0
        if empty and flags & os.O_ACCMODE == os.O_RDWR:
            return True
        openers = {handle.opener for handle in version.handles}
        return bool(openers) and all(writers.are_related(caller.process, o) for o in openers)

    def _join(
        self, node: File, version: Version, flags: int, caller: Caller
    ) -> Handle | Slow[Handle]:
        handle = self._write_handle(node, version, flags, caller)
        if not flags & os.O_TRUNC:
            return handle

        def cut() -> Handle:
            version.fresh = True
            try:
                with overtaking.cutting(self.versions, version):
                    self.cut(handle, 0)
            except BaseException:
                self._never_opened(handle)
                raise
            return handle

        return Slow(cut)

    def _never_opened(self, handle: Handle) -> None:
        """Its open has failed, so no RELEASE comes."""
        work = self.release(handle.id)
        if work is not None:
            with contextlib.suppress(OSError, CkptfsError):
                work.run()

    def _expecting(self, parent: Directory, name: str, caller: Caller) -> Version | None:
        for version in self.versions.at(parent, name):
            if caller.pid in version.expected:
                return version
        return None

    def _due(self, parent: Directory, name: str) -> list[Version]:
        """Versions of a path that everybody has closed, and that are not committed yet."""
        with self.lock:
            return [v for v in self.versions.at(parent, name) if v.closing and v.unpublished]

    def _begun(self, parent: Directory, name: str) -> bool:
        """Whether a version of the path is on its way; one that was just published may be listed
        yet."""
        with self.lock:
            return any(version.unpublished for version in self.versions.at(parent, name))

    def _start(self, parent: Directory, name: str, caller: Caller, *, truncate: bool) -> None:
        """Make a version for this caller, or choose the youngest that it can join, and send it
        back to look the path up again. Returns where one is to be committed first."""
        with self.lock:
            if self._due(parent, name):
                return
            self._regular(parent, name)
            for youngest in self.versions.at(parent, name)[-1:]:
                # One that its opener has abandoned may be older than what was committed since.
                joinable = youngest.joinable and not overtaking.overtaken(self.versions, youngest)
                if joinable and not truncate and not visibility.abandoned(youngest):
                    self._send_back(youngest, caller)
        version = beginning.begin(
            self.versions, parent, name, caller, exists=exists(parent.fd, name), truncate=truncate
        )
        self._send_back(version, caller)

    def _send_back(self, version: Version, caller: Caller) -> NoReturn:
        visibility.expect(self.versions, version, caller)
        raise stale()

    def _version_handle(self, node: File, version: Version, flags: int) -> Handle:
        base = version.staged.base  # before the descriptor: that may be the committed one next
        handle = self._handle(node, os.dup(version.staged.fd), flags)
        handle.base = base
        return handle

    def _write_handle(self, node: File, version: Version, flags: int, caller: Caller) -> Handle:
        handle = self._version_handle(node, version, flags)
        handle.relayed = node is not version.node
        beginning.join(self.versions, version, handle, caller)
        return handle

    def create(self, parent_id: int, name: str, flags: int, new: New) -> tuple[Entry, Handle]:
        parent = self._writable_parent(parent_id, name)
        if not self._has_room_for(new.caller):
            raise no_room()
        with self.lock:
            taken = exists(parent.fd, name) or bool(self.versions.at(parent, name))
            if taken and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "exists")
            if self.in_place(parent, name):
                return self._create_in_place(parent, name, flags, new)
            if taken:  # made by somebody else since the kernel looked
                raise stale()
            self._check_device(parent)
            version = beginning.begin(
                self.versions, parent, name, new.caller, exists=False, truncate=True
            )
            try:
                own(version.staged.fd, parent, new)
            except OSError as error:
                refusal = error
            else:
                self._touch(parent)
                flags |= os.O_CREAT  # libfuse keeps it
                handle = self._write_handle(version.node, version, flags, new.caller)
                return self._entry(version.node, os.fstat(version.staged.fd)), handle
        visibility.dismiss(self.versions, version, new.caller)
        raise refusal

    def _create_in_place(
        self, parent: Directory, name: str, flags: int, new: New
    ) -> tuple[Entry, Handle]:
        make = os.O_RDWR | os.O_CREAT | os.O_EXCL | osfs.NOFOLLOW
        try:
            fd = os.open(name, make, 0o600, dir_fd=parent.fd)
        except FileExistsError:  # made by somebody else since the kernel looked: not ours to own
            if flags & os.O_EXCL:
                raise
            raise stale() from None
        try:
            with or_nothing(parent, name):
                own(fd, parent, new)
        except BaseException:
            os.close(fd)
            raise
        self.store.order.note_changed_dir(parent.fd)
        status = os.fstat(fd)
        node = self.nodes.committed(parent, name, status)
        assert isinstance(node, File)
        node.aliased = True  # see above
        handle = self._handle(node, fd, flags)
        return self._entry(node, status), handle

    # --- closing and syncing ---------------------------------------------------------------------

    def flush(self, handle_id: int, caller: Caller) -> Slow[None] | None:
        work = closing.flush(self.versions, self.handle(handle_id), caller)
        return None if work is None else Slow(work)

    def release(self, handle_id: int) -> Slow[None] | None:
        self.store.room.before_freeing()
        with self.lock:
            handle = self.handles.pop(handle_id)
            if isinstance(handle.node, File | Virtual):
                handle.node.let_go(handle)
            self._stand_in_for_last(handle)
        work = closing.release(self.versions, handle)
        if work is None and _frees_much(handle.fd):
            work = functools.partial(os.close, handle.fd)
        else:
            os.close(handle.fd)
        with self.lock:
            self.nodes.drop_if_forgotten(handle.node)
        return None if work is None else Slow(work)

    def fsync(self, handle_id: int) -> Slow[None]:
        """The bytes are durable on return, in stage as in place; a staged name is not
        published by it."""
        handle = self.handle(handle_id)

        def sync() -> None:
            version = handle.version
            if version is not None and version.failure is not None:
                raise version.failure  # the next fsync would return 0 over lost data
            try:
                if version is not None:
                    version.synced = fingerprint(self.store.fs, version.staged.fd)
                self.store.fs.fsync(handle.fd)
                if version is not None and version.unpublished:
                    self.store.order.sync_dir(self.store.layout.stage)
            except OSError as error:
                if version is None:
                    raise
                raise committing.fail(self.versions, version, error) from None

        return Slow(sync)

    def fsync_dir(self, nodeid: int, caller: Caller) -> Slow[None]:
        """Every file of the directory that was closed before is committed on return; an empty one
        that a child of its opener has open is where its opener asks."""
        directory = self.nodes.directory(nodeid)

        def sync() -> None:
            self.store.order.require_writable()  # what is on disk is unknown
            with self.lock:
                below = [v for v in self.versions.all() if v.at and v.at[0] is directory]
            closing.close_empty(self.versions, below, caller.process)
            for version in below:
                closing.wait_settled(self.versions, version)
            self.store.order.sync_changed_dirs()
            self.store.order.sync_dir(directory.fd)

        return Slow(sync)

    def drop_set_id(self, handle: Handle) -> None:
        """A write by somebody without the right to keep them clears the set-id bits."""
        os.chown(handle.fd, -1, -1)  # an unchanged owner: the kernel clears them as for any chown

    # --- locks -----------------------------------------------------------------------------------

    def coordinates(
        self, handle_id: int, caller: Caller, lock: Lock, *, waits: bool
    ) -> Slow[None] | None:
        """Ahead of a lock: the work that makes its path one that is written in place, if another
        process has locked a version of it that is not committed. A reader that does not get the
        lock changes nothing: HDF5 locks every file that it writes or reads, alone."""
        handle, process = self.handle(handle_id), caller.process
        locks = handle.locks
        with self.lock:
            handle.owners.add(lock.owner)
            handle.locker = process or 0
            writes = handle.flags & os.O_ACCMODE != os.O_RDONLY
            if not writes and not waits and self.locks.test(locks, lock) is not None:
                return None
            versions = {
                other.version
                for other in self.handles.values()
                if other.locks is locks
                and other.locker is not None
                and other.version is not None
                and other.version.joinable
                and (process is None or other.locker != process)
            }
        if not versions:
            return None

        def share() -> None:
            for version in versions:
                place = version.at
                committing.write_in_place(self.versions, version)
                if place is not None:  # until then an open joins what is in place
                    self.locks.share((place[0].ident, place[1]))

        return Slow(share)

    def unlock_process(self, handle_id: int, owner: int) -> None:
        """A close ends the POSIX locks of its process on the file, by whichever descriptor."""
        handle = self.handle(handle_id)
        handle.owners.discard(owner)
        self.locks.drop_owner(handle.locks, owner, is_flock=False)

    def unlock_description(self, handle: Handle) -> None:
        """The last close ends the locks that the open file has: every process that took one by it
        has closed it, so whose locks are left is no process. The kernel tells of flock only."""
        for owner in handle.owners:
            for is_flock in (False, True):
                self.locks.drop_owner(handle.locks, owner, is_flock=is_flock)

    def statfs(self) -> os.statvfs_result:
        return os.fstatvfs(self.store.root)


def _frees_much(fd: int) -> bool:
    """Whether closing it may free the blocks of a long file, which takes a while."""
    status = os.fstat(fd)
    return status.st_nlink == 0 and osfs.allocated_bytes(status) >= _MUCH_BYTES


def _adds_to_log(node: File, flags: int) -> bool:
    return bool(flags & os.O_APPEND) and content.may_be_log(node.name, appends=True)
