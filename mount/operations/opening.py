"""Opening: of what stands under a name, in place, and for a version that is joined or begun.

An open for writing gets a version of its own, hence a node of its own: the kernel is answered
ESTALE once, looks the path up again, and opens the node that the lookup then gives.

Threading: any thread. What may copy, verify or wait for a commit is left as ``Slow``.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import NoReturn

from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError
from ckptfs.records.aside import held_bytes

from ..view.answers import Slow, stale
from ..view.control import StatusFile
from ..view.descriptors import no_room
from ..view.identity import exists
from ..view.model import Caller, Directory, File, Handle, Version, Virtual, stands
from ..view.past import Generation
from ..writers import beginning, closing, content, mapped, overtaking, visibility
from ..writers.content import Content
from . import looking
from .closing import release
from .context import Mount
from .handles import version_handle, write_handle
from .joining import (
    begun_at,
    due_at,
    expecting_at,
    is_shared,
    is_still,
    is_written_on,
    joins,
    regular_at,
    start_version,
)
from .looking import inode_of
from .names import check_device
from .relay import cut


class _NameTaken(OSError):
    """Another version stands under the name since the kernel looked it up."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "look again")


def about_to_save(mount: Mount, nodeid: int, flags: int) -> int:
    """How many bytes an open with these flags is about to write, as far as can be told."""
    if flags & os.O_ACCMODE == os.O_RDONLY or not flags & os.O_TRUNC:
        return 0
    with contextlib.suppress(OSError):
        node = mount.nodes.get(nodeid)
        if isinstance(node, File):
            held = held_bytes(looking.getattr(mount, nodeid, None))
            return mount.store.room.sizes.expected(node.name, held)
    return 0


def open(mount: Mount, nodeid: int, flags: int, caller: Caller) -> Handle | Slow[Handle]:
    node = mount.nodes.get(nodeid)
    if isinstance(node, Virtual):
        return _open_virtual(mount, node, flags, caller)
    if not isinstance(node, File) or node.parent is None:
        raise OSError(errno.EISDIR if isinstance(node, Directory) else errno.ENXIO, "no file")
    if not mount.has_room_for(caller):
        return Slow(lambda: _refuse(mount, node, caller))
    writing = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
    if not writing:
        return _open_for_reading(mount, node, node.parent, flags)
    own = node.version is not None and node.version.unpublished  # begun before it came in place
    if mount.in_place(node.parent, node.name) and not own:
        return Slow(lambda: open_in_place(mount, node, flags))
    return _open_for_writing(mount, node, node.parent, flags, caller)


def _refuse(mount: Mount, node: File, caller: Caller) -> NoReturn:
    """No descriptor is left for it."""
    version = node.version
    if version is not None and caller.pid in version.expected:
        visibility.dismiss(mount.versions, version, caller)
    raise no_room()


def _open_virtual(mount: Mount, node: Virtual, flags: int, caller: Caller) -> Handle | Slow[Handle]:
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        raise PermissionError(errno.EPERM, "read-only")
    is_status = isinstance(node, StatusFile)  # which is to tell that no room is left
    if not mount.room.is_left(mount.room.reserve // (2 if is_status else 1)):
        raise no_room()
    if isinstance(node, Generation):
        return Slow(lambda: mount.add_handle(node, node.open(), flags))
    if isinstance(node, StatusFile):
        handle = mount.add_handle(node, node.open(caller.uid), flags)
        handle.relayed = True
        return handle
    raise IsADirectoryError(errno.EISDIR, "a directory")


def _open_for_reading(
    mount: Mount, node: File, parent: Directory, flags: int
) -> Handle | Slow[Handle]:
    with mount.lock:
        version = node.version
        if version is not None and version.active:
            return version_handle(mount, node, version, flags)
    if not stands(node):
        return _open_nameless(mount, node, flags)
    if not mount.store.options.verify_opens or mount.store.guard.known_good(parent.fd, node.name):
        with contextlib.suppress(_NameTaken):
            return _open_committed(mount, node, flags)

    def verified() -> Handle:
        while stands(node):
            if node.ident[:2] in mount.versions.extending:
                with mount.store.order.path_lock(parent.fd, node.name):
                    continue
            live = mapped.may_be_mapped(mount.versions, node.ident[:2])
            found = mount.store.opens.verify(parent.at(node.name), live=live)
            if found is not None and found.replaced:
                raise stale()  # rolled back: the name stands for another inode now
            with contextlib.suppress(_NameTaken):
                handle = _open_committed(mount, node, flags)
                mount.caches.drop_attributes(node.id)  # edited below the mount, maybe
                return handle
        return _open_nameless(mount, node, flags)

    return Slow(verified)


def _open_nameless(mount: Mount, node: File, flags: int) -> Handle:
    """What has lost its name is opened by the link of a descriptor, or by who looked it up
    just before: he looks again."""
    with mount.lock:
        return mount.add_handle(node, _reopened(node, os.O_RDONLY), flags)


def _reopened(node: File, access: int) -> int:
    """A descriptor of what the node has open."""
    for handle in () if node.superseded else node.handles:
        return os.open(f"/proc/self/fd/{handle.fd}", access | os.O_CLOEXEC)
    raise stale()


def _open_committed(mount: Mount, node: File, flags: int) -> Handle:
    access = os.O_RDWR if flags & os.O_ACCMODE != os.O_RDONLY else os.O_RDONLY
    with mount.lock:
        if node.superseded:
            raise stale()
        if node.ident[:2] in mount.versions.extending:
            raise _NameTaken
        with inode_of(mount, node) as inode:
            fd = os.open(f"/proc/self/fd/{inode}", access | os.O_CLOEXEC)
        return mount.add_handle(node, fd, flags)


def open_in_place(mount: Mount, node: File, flags: int) -> Handle:
    assert node.parent is not None
    mount.store.order.require_writable()
    with mount.store.order.path_lock(node.parent.fd, node.name):
        if not stands(node):
            raise stale()
        mount.store.files.open_in_place(node.parent.at(node.name))
        node.aliased = True  # it may stay mapped when the kernel has released its last handle
        handle = _open_committed(mount, node, flags | os.O_RDWR)
    if flags & os.O_TRUNC:
        os.ftruncate(handle.fd, 0)
    return handle


def _open_for_writing(
    mount: Mount, node: File, parent: Directory, flags: int, caller: Caller
) -> Handle | Slow[Handle]:
    versions, truncate = mount.versions, bool(flags & os.O_TRUNC)
    check_device(mount.nodes, parent)
    with mount.lock:
        version = node.version
        if version is not None and version.unpublished and joins(versions, version, flags, caller):
            return _join(mount, node, version, flags, caller)
        expecting = expecting_at(versions, parent, node.name, caller)
        if expecting is not None:  # /proc/self/fd/N: no LOOKUP came between the two OPENs
            mount.caches.drop_name(parent.id, node.name)
            return Slow(lambda: _open_itself(mount, node, expecting, flags, caller))
        if not versions.at(parent, node.name) and not exists(parent.fd, node.name):
            return Slow(lambda: _open_itself(mount, node, None, flags, caller))
        if version is not None and is_shared(version, truncate) and stands(node):
            return _join(mount, node, version, flags, caller)
        if truncate:
            start_version(versions, parent, node.name, caller, truncate=True)

    def start() -> Handle:
        while True:
            for due in due_at(versions, parent, node.name):
                closing.wait_settled(versions, due)
            begun = begun_at(versions, parent, node.name)
            seen = regular_at(parent, node.name)
            if not truncate and not begun:
                handle = _open_where_it_stands(mount, node, parent, flags, caller)
                if handle is not None:
                    return handle
            with mount.store.order.path_lock(parent.fd, node.name):
                if is_written_on(mount, node, parent, truncate):
                    raise stale()  # who looks again finds it
                if begun and not begun_at(versions, parent, node.name):
                    continue  # published meanwhile, and maybe mapped
                if is_still(parent, node.name, seen):
                    start_version(versions, parent, node.name, caller, truncate=truncate)

    return Slow(start)


def _open_where_it_stands(
    mount: Mount, node: File, parent: Directory, flags: int, caller: Caller
) -> Handle | None:
    """Of a committed file that is mapped or held for writing, of a log that is added to, and of a
    database. None for all others, and where a version of it is being written: that shows the
    number of the file that it will replace, so whose mapping it is could not be told."""
    with mount.lock:
        if begun_at(mount.versions, parent, node.name):
            return None
        current = mount.nodes.standing(parent, node.name)
        version = current.version if isinstance(current, File) else None
    if version is not None and mapped.may_be_stored_to(mount.versions, version):
        if current is not node:
            raise stale()  # committed meanwhile, and found by who looks again
        return _open_live(mount, node, parent, flags, caller, log=False)
    found = _content_of(mount, node, parent)
    if found is Content.DATABASE:
        return open_in_place(mount, node, flags)
    if found is not Content.OTHER and _adds_to_log(node, flags):
        return _open_live(mount, node, parent, flags, caller, log=True)
    return None


def _open_itself(
    mount: Mount, node: File, needless: Version | None, flags: int, caller: Caller
) -> Handle:
    """A descriptor that is opened again by its link stands for the file that it has open. One
    that was replaced is kept as it is: history may hold it."""
    if needless is not None:
        visibility.dismiss(mount.versions, needless, caller)
    with mount.lock:
        version = node.version
        if version is None or not version.active or version.ended:
            fd = _reopened(node, os.O_RDWR)
            if os.fstat(fd).st_nlink > 0 and not stands(node):
                os.close(fd)
                raise stale()
            version = beginning.revive(mount.versions, node, fd)
        joined = _join(mount, node, version, flags, caller)
    mapped.mark_live(mount.versions, version)
    return joined.run() if isinstance(joined, Slow) else joined


def _content_of(mount: Mount, node: File, parent: Directory) -> Content:
    """Of the committed file, good as it is on return; OTHER where it was replaced."""
    mount.store.opens.verify(parent.at(node.name))
    if not stands(node):
        return Content.OTHER
    with osfs.opened(mount.store.fs, parent.fd, node.name, os.O_RDONLY) as fd:
        return content.judge(os.fstat(fd).st_size, lambda size, at: os.pread(fd, size, at))


def _open_live(
    mount: Mount, node: File, parent: Directory, flags: int, caller: Caller, *, log: bool
) -> Handle | None:
    """Write where the committed file stands, unless it does no more, or a version of it was
    begun. Nobody replaces or extends it meanwhile."""
    with mount.store.order.path_lock(parent.fd, node.name), mount.lock:
        if begun_at(mount.versions, parent, node.name) or not stands(node):
            return None
        version = node.version
        if version is None or not version.live:
            with inode_of(mount, node) as inode:
                fd = os.open(f"/proc/self/fd/{inode}", os.O_RDWR | os.O_CLOEXEC)
            version = beginning.revive(mount.versions, node, fd)
        version.is_log |= log
        handle = write_handle(mount, node, version, flags, caller)
    mapped.mark_live(mount.versions, version)
    return handle


def _join(
    mount: Mount, node: File, version: Version, flags: int, caller: Caller
) -> Handle | Slow[Handle]:
    handle = write_handle(mount, node, version, flags, caller)
    if not flags & os.O_TRUNC:
        return handle

    def emptied() -> Handle:
        version.fresh = True
        try:
            with overtaking.cutting(mount.versions, version):
                cut(mount, handle, 0)
        except BaseException:
            _never_opened(mount, handle)
            raise
        return handle

    return Slow(emptied)


def _never_opened(mount: Mount, handle: Handle) -> None:
    """Its open has failed, so no RELEASE comes."""
    work = release(mount, handle.id)
    if work is not None:
        with contextlib.suppress(OSError, CkptfsError):
            work.run()


def _adds_to_log(node: File, flags: int) -> bool:
    return bool(flags & os.O_APPEND) and content.may_be_log(node.name, appends=True)
