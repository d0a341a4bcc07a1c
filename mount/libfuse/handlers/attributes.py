"""Attributes of what a path shows, and of the filesystem; extended ones, commands among them."""

from __future__ import annotations

import errno
from typing import Any

from ckptfs.disk import osfs

from ...operations import attributes, looking, xattrs
from ...view.answers import Change, Entry, Slow
from .. import library
from ..context import Portable
from ..descriptors import require_alone
from ..paths import caller_of, finished, on_entry


def get_attributes(portable: Portable, path: str | None, info: Any = None) -> dict[str, int]:
    if info:
        handle = portable.mount.handle(info.fh)
        require_alone(portable, info.fh)
        return library.attributes(looking.getattr(portable.mount, handle.node.id, handle.id))
    assert path is not None
    return on_entry(portable, path, lambda entry: library.attributes(entry.status))


def _change(portable: Portable, path: str, change: Change) -> None:
    on_entry(
        portable,
        path,
        lambda entry: attributes.setattr(portable.mount, entry.node.id, None, change),
    )


def chmod(portable: Portable, path: str, mode: int) -> None:
    _change(portable, path, Change(mode=mode))


def chown(portable: Portable, path: str, uid: int, gid: int) -> None:
    keep = -1
    _change(
        portable, path, Change(uid=None if uid == keep else uid, gid=None if gid == keep else gid)
    )


def truncate(portable: Portable, path: str | None, length: int, info: Any = None) -> None:
    if info:
        handle = portable.mount.handle(info.fh)
        finished(attributes.setattr(portable.mount, handle.node.id, handle.id, Change(size=length)))
    else:
        assert path is not None
        _change(portable, path, Change(size=length))


def utimens(portable: Portable, path: str, times: tuple[int, int] | None) -> None:
    atime, mtime = map(library.to_time, times or (osfs.UTIME_NOW, osfs.UTIME_NOW))
    _change(portable, path, Change(atime_ns=atime, mtime_ns=mtime))


def statfs(portable: Portable, _path: str) -> dict[str, int]:
    found = attributes.statfs(portable.mount)
    keys = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail")
    return {f"f_{key}": getattr(found, f"f_{key}") for key in (*keys, "namemax")}


def getxattr(portable: Portable, path: str, key: str, _position: int = 0) -> bytes:
    return on_entry(
        portable,
        path,
        lambda entry: xattrs.getxattr(portable.mount, entry.node.id, library.to_name(key)),
    )


def listxattr(portable: Portable, path: str) -> list[str]:
    caller = caller_of(portable)
    keys = on_entry(
        portable, path, lambda entry: xattrs.listxattr(portable.mount, entry.node.id, caller)
    )
    return [library.from_name(key) for key in keys]


def setxattr(
    portable: Portable, path: str, key: str, value: bytes, flags: int, _position: int = 0
) -> None:
    if key.startswith("system.posix_acl_"):  # the kernel would not go by it
        raise OSError(errno.EOPNOTSUPP, "no ACLs")

    caller = caller_of(portable)

    def work(entry: Entry) -> Slow[None] | None:
        return xattrs.setxattr(
            portable.mount, entry.node.id, library.to_name(key), value, flags, caller
        )

    on_entry(portable, path, work)


def removexattr(portable: Portable, path: str, key: str) -> None:
    on_entry(
        portable,
        path,
        lambda entry: xattrs.removexattr(portable.mount, entry.node.id, library.to_name(key)),
    )
