"""What a command asks of the daemon: extended attributes that it sets through the mount.

On a file, by whoever may write it: ``user.ckptfs.verify`` (check it now), ``user.ckptfs.adopt``
(record it as it is); by its owner ``user.ckptfs.rollback`` (a generation, or nothing for the newest
good one), and ``user.ckptfs.adopt`` with ``quarantined`` (what lies there of it).
On ``.ckptfs``, by the mount's and the directory's owner: ``user.ckptfs.verify`` with the path of a
generation, ``user.ckptfs.restart`` (go on as another program: ``restart.py``; by the daemon's user
and root only, from its own namespaces), ``user.ckptfs.tidy`` (let go of what is unreachable in
history), ``user.ckptfs.ack`` (somebody has looked at the alarms up to that number),
``user.ckptfs.clean`` (let go of what its lines name: see ``expendable.parse``),
``user.ckptfs.rollback`` and ``user.ckptfs.adopt`` with what to do, ``-`` for nothing, and the path
of a file that is not there.
None can be read. What was asked for is done, and durable, on return; else an errno.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from ckptfs.checking.examine import Condition, Finding
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.room import expendable
from ckptfs.upkeep import fsck

from .base import stale
from .nodes import CONTROL_ID, File, Node, Virtual, stands

if TYPE_CHECKING:
    from .attributes import Attributes
    from .model import Caller

PREFIX = f"{fmt.XATTR}."
VERIFY, ADOPT, ROLLBACK = f"{PREFIX}verify", f"{PREFIX}adopt", f"{PREFIX}rollback"
QUARANTINED = b"quarantined"  # value of an adoption
TIDY, ACK, CLEAN = f"{PREFIX}tidy", f"{PREFIX}ack", f"{PREFIX}clean"
RESTART = f"{PREFIX}restart"
_CLEANED_AT_ONCE = 500  # an xattr has 64 KiB


# --- the asking side -----------------------------------------------------------------------------


def check(mountpoint: str, path: str) -> None:
    """Raises OSError: EIO where it has rotted and no good version is left."""
    os.setxattr(f"{mountpoint}/{path}", VERIFY, b"")


def set_aside(mountpoint: str, path: str) -> None:
    """Put a generation that has rotted into quarantine."""
    os.setxattr(f"{mountpoint}/{fmt.CONTROL}", VERIFY, os.fsencode(path))


def tidy(mountpoint: str) -> None:
    """Let history go that no path leads to."""
    os.setxattr(f"{mountpoint}/{fmt.CONTROL}", TIDY, b"")


def ack(mountpoint: str, up_to: int) -> None:
    """Say that somebody has looked at the alarms up to that number."""
    os.setxattr(f"{mountpoint}/{fmt.CONTROL}", ACK, str(up_to).encode())


def clean(mountpoint: str, names: list[str]) -> None:
    """Let go of these items of salvage, quarantine and history. What is in use stays, and so does
    the last good version of a file."""
    for start in range(0, len(names), _CLEANED_AT_ONCE):
        asked = "\n".join(names[start : start + _CLEANED_AT_ONCE])
        os.setxattr(f"{mountpoint}/{fmt.CONTROL}", CLEAN, os.fsencode(asked))


def adopt(mountpoint: str, path: str) -> bool:
    """Record the file as it is, or accept that it is not there any more. False for one that is
    written in place."""
    try:
        _on_file_or_control(mountpoint, path, ADOPT, b"")
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return False
        raise
    return True


def take_back(mountpoint: str, path: str) -> None:
    """Make what was last put into quarantine of the file its version again."""
    _on_file_or_control(mountpoint, path, ADOPT, QUARANTINED)


def rollback(mountpoint: str, path: str, to: int | None) -> None:
    _on_file_or_control(mountpoint, path, ROLLBACK, b"" if to is None else str(to).encode())


def restore(mountpoint: str, path: str) -> None:
    rollback(mountpoint, path, None)


def _on_file_or_control(mountpoint: str, path: str, key: str, value: bytes) -> None:
    try:
        if not stat.S_ISREG(os.lstat(f"{mountpoint}/{path}").st_mode):
            raise FileNotFoundError  # the command is for what it replaced
        os.setxattr(f"{mountpoint}/{path}", key, value)
    except FileNotFoundError:
        asked = b" ".join([value or b"-", os.fsencode(path)])
        os.setxattr(f"{mountpoint}/{fmt.CONTROL}", key, asked)


# --- the daemon's side ---------------------------------------------------------------------------


def perform(ops: Attributes, node: Node, key: str, value: bytes, caller: Caller) -> None:
    """In a thread that may wait. The kernel has seen to it that the caller may write the file."""
    if isinstance(node, Virtual):
        trusted = caller.uid in (0, os.geteuid(), os.fstat(ops.store.root).st_uid)
        if node.id != CONTROL_ID or not trusted:
            raise PermissionError(errno.EPERM, "not for everybody")
        _perform_on_control(ops, key, value)
    elif isinstance(node, File) and node.parent is not None:
        _perform_on_file(ops, node, key, value, caller)
    else:
        raise IsADirectoryError(errno.EISDIR, "files have versions, directories have none")


def _perform_on_file(ops: Attributes, node: File, key: str, value: bytes, caller: Caller) -> None:
    """The kernel looked at the rights over this very version, so it must be what stands there."""
    assert node.parent is not None
    at, name, path = node.parent.fd, node.name, node.path()
    store = ops.store
    with ops.versions.held(node.parent, name), store.committer.path_lock(at, name):
        if node.kind != stat.S_IFREG or not stands(node):
            raise stale()
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if key == VERIFY:
            if ops.versions.may_be_mapped(node.ident[:2]):
                store.committer.reseal_committed(at, name)
            store.check(path, at, name, direct=True)
        elif ops.in_place(node.parent, name):
            raise OSError(errno.EOPNOTSUPP, "written in place")
        elif key == ADOPT and value != QUARANTINED:
            store.adopt_at(path, at, name)
            ops.caches.drop_attributes(node.id)
        elif key in (ADOPT, ROLLBACK):
            if caller.uid not in (0, status.st_uid):  # an earlier version may have been his alone
                raise PermissionError(errno.EPERM, "for the owner of the file")
            if key == ROLLBACK:
                store.rollback_at(path, at, name, _number(value))
            elif store.owner_in_quarantine(path) in (caller.uid, status.st_uid) or not caller.uid:
                store.take_back_at(path, at, name)
            else:
                raise PermissionError(errno.EPERM, "it was another user's")
        else:
            raise OSError(errno.EOPNOTSUPP, "no such command")


def _perform_on_control(ops: Attributes, key: str, value: bytes) -> None:
    store = ops.store
    if key == VERIFY:
        generation = fsck.generation_of(os.fsdecode(value))
        if generation is None:
            raise OSError(errno.EINVAL, "not a generation")
        store.set_aside(*generation)
        return
    if key == TIDY:
        store.tidy()
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
        store.rollback(path, _number(what))
    elif key == ADOPT and what == QUARANTINED:
        store.take_back(path)
    elif key == ADOPT:
        known = earlier.lineages_by_path(store.layout)
        store.take(Finding(path, Condition.MISSING), known)
    else:
        raise OSError(errno.EOPNOTSUPP, "no such command")


def _number(value: bytes) -> int | None:
    if value in (b"", b"-"):
        return None
    if not value.isdigit():
        raise OSError(errno.EINVAL, "not a number")
    return int(value)
