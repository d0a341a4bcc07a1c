"""To whom a new inode is given: owner, mode and ACL.

Threading: any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem

from ..view import acl
from ..view.answers import New
from ..view.model import Caller, Directory


def owner(parent: Directory, caller: Caller) -> tuple[int, int]:
    """A new inode belongs to the caller, its group to a setgid directory."""
    above = os.fstat(parent.fd)
    return caller.uid, above.st_gid if above.st_mode & stat.S_ISGID else caller.gid


def own(inode: str | int, parent: Directory, new: New) -> None:
    """Owner, mode and ACL of a new inode, before anybody can see it. ``inode`` is a descriptor, or
    a path below /proc of what was made under its own name and has inherited its ACL already."""
    uid, gid = owner(parent, new.caller)
    os.chown(inode, uid, gid)
    mode, default = new.mode & 0o7777, default_acl(parent)
    if default is None:
        mode &= ~new.umask
    elif isinstance(inode, int):
        os.setxattr(inode, acl.ACCESS, acl.inherit(default, mode))
    if default is not None:  # the rest is what chown took away, or the ACL does not hold
        mode = mode & 0o7000 | os.stat(inode).st_mode & 0o777
    status = os.stat(inode)
    if stat.S_ISDIR(status.st_mode) and os.fstat(parent.fd).st_mode & stat.S_ISGID:
        mode |= stat.S_ISGID
    if mode != stat.S_IMODE(status.st_mode):
        os.chmod(inode, mode)


def own_at(fs: FileSystem, parent: Directory, name: str, new: New) -> None:
    with osfs.opened(fs, parent.fd, name, os.O_PATH) as fd:
        own(f"/proc/self/fd/{fd}", parent, new)


@contextlib.contextmanager
def or_nothing(
    parent: Directory, name: str, remove: Callable[..., None] = os.unlink
) -> Iterator[None]:
    """What was just made there goes again where it cannot be given to its owner (a quota)."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            remove(name, dir_fd=parent.fd)
        raise


def default_acl(parent: Directory) -> bytes | None:
    try:
        return os.getxattr(parent.fd, acl.DEFAULT)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise
