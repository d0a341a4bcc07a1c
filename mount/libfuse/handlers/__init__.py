"""What each request is answered by, under the name that the bindings call it by.

Threading: a handler runs in a thread of libfuse's, and may block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..context import Portable
from . import attributes, directories, files, names


def _init(portable: Portable, _path: str) -> None:
    portable.serves()


HANDLERS: dict[str, Callable[..., Any]] = {
    "init": _init,
    "getattr": attributes.get_attributes,
    "readlink": names.readlink,
    "mknod": names.mknod,
    "mkdir": names.mkdir,
    "unlink": names.unlink,
    "rmdir": names.rmdir,
    "symlink": names.symlink,
    "rename": names.rename,
    "link": names.link,
    "chmod": attributes.chmod,
    "chown": attributes.chown,
    "truncate": attributes.truncate,
    "utimens": attributes.utimens,
    "open": files.open_file,
    "create": files.create,
    "read": files.read,
    "write": files.write,
    "statfs": attributes.statfs,
    "flush": files.flush,
    "release": files.release,
    "fsync": files.fsync,
    "setxattr": attributes.setxattr,
    "getxattr": attributes.getxattr,
    "listxattr": attributes.listxattr,
    "removexattr": attributes.removexattr,
    "opendir": directories.opendir,
    "readdir": directories.readdir,
    "releasedir": directories.releasedir,
    "fsyncdir": directories.fsyncdir,
    "ioctl": files.ioctl,
}
