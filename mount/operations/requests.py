"""What the daemon does when a command asks for it: see ``commands``, which names each."""

from __future__ import annotations

import errno
import os
import stat

from ckptfs.checking.examine import Kept
from ckptfs.history import earlier
from ckptfs.room import expendable

from ..view.answers import stale
from ..view.identity import CONTROL_ID
from ..view.model import Caller, File, Node, Virtual, stands
from ..writers import mapped, naming
from .commands import ACK, ADOPT, CLEAN, QUARANTINED, ROLLBACK, TIDY, VERIFY
from .context import Mount


def perform(mount: Mount, node: Node, key: str, value: bytes, caller: Caller) -> None:
    """In a thread that may wait. The kernel has seen to it that the caller may write the file."""
    if isinstance(node, Virtual):
        trusted = caller.uid in (0, os.geteuid(), os.fstat(mount.store.root).st_uid)
        if node.id != CONTROL_ID or not trusted:
            raise PermissionError(errno.EPERM, "not for everybody")
        _perform_on_control(mount, key, value)
    elif isinstance(node, File) and node.parent is not None:
        _perform_on_file(mount, node, key, value, caller)
    else:
        raise IsADirectoryError(errno.EISDIR, "files have versions, directories have none")


def _perform_on_file(mount: Mount, node: File, key: str, value: bytes, caller: Caller) -> None:
    """The kernel looked at the rights over this very version, so it must be what stands there."""
    assert node.parent is not None
    at, name, path = place = node.parent.at(node.name)
    store = mount.store
    with naming.held(mount.versions, node.parent, name), store.order.path_lock(at, name):
        if node.kind != stat.S_IFREG or not stands(node):
            raise stale()
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if key == VERIFY:
            if mapped.may_be_mapped(mount.versions, node.ident[:2]):
                store.files.reseal(at, name)
            store.opens.check(place, direct=True)
        elif mount.in_place(node.parent, name):
            raise OSError(errno.EOPNOTSUPP, "written in place")
        elif key == ADOPT and value != QUARANTINED:
            store.history.adopt_at(place)
            mount.caches.drop_attributes(node.id)
        elif key in (ADOPT, ROLLBACK):
            if caller.uid not in (0, status.st_uid):  # an earlier version may have been his alone
                raise PermissionError(errno.EPERM, "for the owner of the file")
            if key == ROLLBACK:
                store.history.rollback_at(place, _number(value))
            elif (
                store.history.owner_in_quarantine(path) in (caller.uid, status.st_uid)
                or not caller.uid
            ):
                store.history.take_back_at(place)
            else:
                raise PermissionError(errno.EPERM, "it was another user's")
        else:
            raise OSError(errno.EOPNOTSUPP, "no such command")


def _perform_on_control(mount: Mount, key: str, value: bytes) -> None:
    store = mount.store
    if key == VERIFY:
        kept = Kept.named(os.fsdecode(value))
        if kept is None:
            raise OSError(errno.EINVAL, "not a generation")
        store.history.set_aside(*kept)
        return
    if key == TIDY:
        store.history.tidy()
        return
    if key == ACK:
        store.alarms.ack(_number(value))
        return
    if key == CLEAN:
        items = [expendable.parse(line) for line in os.fsdecode(value).splitlines()]
        if None in items:
            raise OSError(errno.EINVAL, "not an item")
        store.room.clean(filter(None, items))
        return
    what, _, name = value.partition(b" ")
    path = os.fsdecode(name)
    if key == ROLLBACK:
        store.history.rollback(path, _number(what))
    elif key == ADOPT and what == QUARANTINED:
        store.history.take_back(path)
    elif key == ADOPT:
        known = earlier.lineages_by_path(store.layout)
        store.history.forget(path, known)
    else:
        raise OSError(errno.EOPNOTSUPP, "no such command")


def _number(value: bytes) -> int | None:
    if value in (b"", b"-"):
        return None
    if not value.isdigit():
        raise OSError(errno.EINVAL, "not a number")
    return int(value)
