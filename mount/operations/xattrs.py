"""Extended attributes. Some are commands, others are not for everybody to see.

Threading: any thread. What waits for a commit that is under way is left as ``Slow``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ckptfs.records import format as fmt

from ..view.answers import Slow, T
from ..view.model import Caller, Directory, File, Node, Virtual
from . import commands, requests
from .attributes import being_written, changing, in_turn, require_changeable
from .context import Mount
from .looking import inode_of

_SELINUX = "security.selinux"


def _of_inode(mount: Mount, node: Node, ask: Callable[[int | str], T]) -> T:
    """Asked of the node's inode, by calls that only look. The kernel asks for an xattr before
    the first write to every file, ``ls -l`` for two of each."""
    with mount.lock:  # no version or handle ends in here
        if isinstance(node, Directory):
            return ask(node.fd)
        assert isinstance(node, File)
        if node.version is not None and node.version.active:
            return ask(node.version.staged.fd)
        for handle in node.handles:
            return ask(handle.fd)
        with inode_of(mount, node) as inode:
            return ask(f"/proc/self/fd/{inode}")


def getxattr(mount: Mount, nodeid: int, key: str) -> bytes:
    try:
        node = mount.nodes.get(nodeid)
        if isinstance(node, Virtual):
            return node.getxattr(key)
        return _of_inode(mount, node, lambda inode: os.getxattr(inode, key))
    except OSError as error:
        # Where SELinux runs it answers for its labels itself. ``ls`` would ask for one of
        # each file, if it were not told that there are none at all.
        if error.errno == errno.ENODATA and key == _SELINUX:
            raise OSError(errno.EOPNOTSUPP, "no labels") from None
        raise


def listxattr(mount: Mount, nodeid: int, caller: Caller) -> list[str]:
    """Ours is hidden: shutil.copy2 would carry it along. trusted.* is for root to see."""
    node = mount.nodes.get(nodeid)
    keys = node.listxattr() if isinstance(node, Virtual) else _of_inode(mount, node, os.listxattr)
    keys = [key for key in keys if key != fmt.XATTR]
    return [key for key in keys if caller.uid == 0 or not key.startswith("trusted.")]


def setxattr(
    mount: Mount, nodeid: int, key: str, value: bytes, flags: int, caller: Caller
) -> Slow[None] | None:
    if key.startswith(commands.PREFIX):
        node = mount.nodes.get(nodeid)
        return Slow(lambda: requests.perform(mount, node, key, value, caller))
    return _change_xattr(mount, nodeid, key, lambda path: os.setxattr(path, key, value, flags))


def removexattr(mount: Mount, nodeid: int, key: str) -> Slow[None] | None:
    return _change_xattr(mount, nodeid, key, lambda path: os.removexattr(path, key))


def _change_xattr(
    mount: Mount, nodeid: int, key: str, change: Callable[[str], None]
) -> Slow[None] | None:
    """The record is written by commits alone. A tool that restores a copy made below a mount
    brings one along: it is told nothing, and nothing comes of it."""
    if key.startswith(commands.PREFIX):
        raise PermissionError(errno.EPERM, "a command, which is not there to be changed")
    node = mount.nodes.get(nodeid)
    if key == fmt.XATTR:
        require_changeable(node)
        return None

    def change_all() -> None:
        for inode in (*being_written(mount, node), node):
            with changing(mount, inode) as path:
                change(path)

    return in_turn(mount, node, change_all)
