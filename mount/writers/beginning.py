"""An open for writing: a version is begun for it, joined, or revived where it stands.

Threading: ``begin`` takes ``Versions.lock`` itself, for it may copy and verify first; of ``revive``
and ``join`` the caller holds it.
"""

from __future__ import annotations

import contextlib
import os

from ckptfs.disk import osfs
from ckptfs.errors import CkptfsError
from ckptfs.records import format as fmt
from ckptfs.versions.life import Turn

from ..view.identity import lstat
from ..view.model import Caller, Directory, File, Handle, Version
from . import overtaking
from .versions import Versions


def begin(
    versions: Versions,
    parent: Directory,
    name: str,
    caller: Caller,
    *,
    exists: bool,
    truncate: bool,
) -> Version:
    """Start a version of ``parent/name``, to be opened by ``caller``. May copy and verify."""
    path = parent.child_path(name)
    staged = versions.store.saves.stage(
        path, parent.fd, name, exists=exists, truncate=truncate, lazily=True
    )
    process = caller.process
    with versions.lock:
        node = versions.nodes.staged(parent, name, os.fstat(staged.fd))
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
            version.before = overtaking.cut_by(versions, process, versions.at(parent, name))
            _keep_metadata(versions, version, versions.at(parent, name))
        node.version = version
        versions.place(version, parent, name)
        versions.watch.wake()
    if not staged.has_hole:  # else it will most likely be copied before it is on the disk
        versions.writeback.add(staged)
    return version


def _keep_metadata(versions: Versions, version: Version, others: list[Version]) -> None:
    """O_TRUNC takes away bytes alone: owner, mode and xattrs are as the youngest has them."""
    for youngest in others[-1:]:
        versions.store.fs.copy_metadata(youngest.staged.fd, version.staged.fd, skip=fmt.XATTR)


def revive(versions: Versions, node: File, fd: int) -> Version:
    """The file of a node, open at ``fd``, as a version that is live: who opens it writes to
    it where it is, and its last close seals it anew."""
    osfs.spare_access_time(fd)  # it is read to be recorded
    version = Version(versions.store.saves.reopen(node.path(), fd), node, None, set(), False, True)
    if node.parent is not None:
        version.at = node.parent, node.name
    version.turn(Turn.CLOSE)  # it was committed: nobody joins it but as a live one
    version.numbers = {node.ident[1]}
    node.version = version
    return version


def join(versions: Versions, version: Version, handle: Handle, caller: Caller) -> None:
    """Add a write handle; the version is finished once every handle of it is closed. Of those
    that began it while nothing was written nobody can tell which is going to be used, so none
    is waited for."""
    handle.opener, handle.user = caller.process, caller.uid
    version.is_meant = False
    # Another user may hold it open for ever, and end as he likes.
    handle.bystander = version.user not in (None, caller.uid)
    with contextlib.suppress(OSError, CkptfsError):  # its close hears of it
        handle.as_joined = overtaking.content(versions, version)
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
    versions.arrived.notify_all()
