"""Opening the parts of ``.ckptfs``, whatever stands in their place.

Who can write the directory, or a tool that copies it, may have left a FIFO, a link, a device or
another program's file there. A part is opened only if it is of its kind, so that nobody waits for a
FIFO or reads a device; no symlink is followed; what is read is short, and need not be what ckptfs
wrote. Stateless.
"""

from __future__ import annotations

import contextlib
import errno
import json
import stat as stat_module
from collections.abc import Iterator

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem, Status
from ckptfs.errors import WrongPart
from ckptfs.records import format as fmt

SMALL_BYTES = 1 << 16
_KINDS = {
    stat_module.S_IFDIR: "a directory",
    stat_module.S_IFREG: "a file",
    stat_module.S_IFLNK: "a symlink",
    stat_module.S_IFIFO: "a FIFO",
    stat_module.S_IFSOCK: "a socket",
    stat_module.S_IFBLK: "a device",
    stat_module.S_IFCHR: "a device",
}
_NS_MAX = (1 << 63) - 1  # of an inode's time, too


def kind(status: Status) -> str:
    return _KINDS.get(stat_module.S_IFMT(status.st_mode), "something else")


def require(fs: FileSystem, at: int, name: str, where: str) -> bool:
    """Whether the part ``at/name`` is there. ``where`` is the served directory, for the message.
    Raises WrongPart for one that is not of its kind, and OSError."""
    try:
        found = fs.lstat(at, name)
    except FileNotFoundError:
        return False
    folder = name == fmt.CONTROL or name in fmt.SUBDIRECTORIES
    if not (osfs.is_directory if folder else osfs.is_regular)(found):
        path = fmt.CONTROL if name == fmt.CONTROL else f"{fmt.CONTROL}/{name}"
        wanted = "a directory" if folder else "a file"
        raise WrongPart(
            f"{where}/{path}: {kind(found)} where {wanted} of ckptfs belongs; move it away, "
            f"then `ckptfs {'verify --repair' if name == fmt.COUNTER else 'mount'} {where}` makes "
            "it anew"
        )
    return True


def open_folder(fs: FileSystem, at: int, name: str, where: str) -> int:
    """The part, which must be there. Raises WrongPart."""
    if not require(fs, at, name, where):
        raise WrongPart(
            f"{where}/{fmt.CONTROL}/{name}: is missing; `ckptfs mount {where}` makes it anew"
        )
    return fs.open(at, name, osfs.DIRECTORY)


def read(fs: FileSystem, at: int, name: str) -> bytes:
    """The beginning of a small file. Raises OSError, for what is no file as well."""
    if not osfs.is_regular(fs.lstat(at, name)):
        raise OSError(errno.EINVAL, "not a regular file", name)
    with osfs.opened(fs, at, name, osfs.O_RDONLY) as fd:
        return fs.read(fd, SMALL_BYTES, 0)


def parse(content: bytes) -> dict[str, object]:
    """The object in a note; empty where there is none."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(content)
        if isinstance(value, dict):
            return value
    return {}


def is_time(value: object) -> bool:
    """Whether this can be a time in nanoseconds since 1970."""
    return type(value) is int and 0 <= value <= _NS_MAX


def is_count(value: object) -> bool:
    return type(value) is int and value >= 0


@contextlib.contextmanager
def closed_on_error(fs: FileSystem, fd: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        fs.close(fd)
        raise


def write_whole(fs: FileSystem, fd: int, content: bytes) -> None:
    """All of a small file, or OSError."""
    if fs.write(fd, content, 0) != len(content):
        raise OSError(errno.ENOSPC, "short write")
