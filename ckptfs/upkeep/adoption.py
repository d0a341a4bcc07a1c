"""Into ckptfs and out of it: lists of digests to check against, and plain files again."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from ckptfs.disk import osfs
from ckptfs.disk.digest import digest_file
from ckptfs.disk.filesystem import FileSystem
from ckptfs.errors import UsageError
from ckptfs.records import format as fmt
from ckptfs.records.layout import Layout
from ckptfs.records.walk import walk

_LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_TAGGED = re.compile(r"(\\?)(BLAKE3|SHA256) \((.+)\) = ([0-9a-fA-F]{64})")


class Listed(NamedTuple):
    path: str
    digest: str  # algorithm:hex


def parse_sums(text: str, algorithm: str) -> list[Listed]:
    """What ``b3sum`` or ``sha256sum`` wrote, plain or with ``--tag``. ``algorithm`` is that of the
    lines that do not name it. Raises UsageError."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if match := _TAGGED.fullmatch(line):
            escaped, name, path, value = match.groups()
            found.append(Listed(_unescaped(path, escaped), f"{name.lower()}:{value.lower()}"))
        elif match := _LINE.fullmatch(line):
            escaped, value, path = match.groups()
            found.append(Listed(_unescaped(path, escaped), f"{algorithm}:{value.lower()}"))
        else:
            raise UsageError(f"line {number}: neither `digest  path` nor `SHA256 (path) = digest`")
    return found


def _unescaped(path: str, escaped: str) -> str:
    if escaped:
        pairs = {r"\n": "\n", r"\r": "\r", r"\\": "\\"}
        path = re.sub(r"\\[nr\\]", lambda match: pairs[match[0]], path)
    return path.removeprefix("./")


def sums_line(path: str, digest: str) -> str:
    """As ``b3sum`` and ``sha256sum`` write it, and ``--check`` reads it."""
    escaped = path.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
    return f"{'' if escaped == path else chr(92)}{digest.partition(':')[2]}  {escaped}"


def digest_of(layout: Layout, path: str, algorithm: str) -> str:
    """The digest of a file as it is now. Raises OSError."""
    with (
        osfs.place(layout.fs, layout.root, path) as (at, name),
        osfs.opened(layout.fs, at, name, osfs.O_RDONLY) as fd,
    ):
        return digest_file(layout.fs, fd, layout.fs.stat(fd).st_size, algorithm)


def strip(layout: Layout) -> Iterator[str]:
    """Leave plain files only: take off every record, then remove the control directory, of which
    the caller says that nothing in it is needed any more. Yields the paths as they are done; may
    be interrupted and begun again. The caller holds the lock."""
    fs = layout.fs
    for path, _ in walk(fs, layout.root):
        with (
            contextlib.suppress(FileNotFoundError, IsADirectoryError),
            osfs.place(fs, layout.root, path) as (at, name),
            osfs.opened(fs, at, name, osfs.O_RDONLY) as fd,
        ):
            if fs.getxattr(fd, fmt.XATTR) is not None:
                fs.removexattr(fd, fmt.XATTR)
                yield path
    for name in (*fmt.SUBDIRECTORIES, fmt.CONTROL):
        _remove_tree(fs, layout.root if name == fmt.CONTROL else layout.control, name)
    fs.sync_all(layout.root)


def _remove_tree(fs: FileSystem, at: int, name: str) -> None:
    with osfs.opened(fs, at, name, osfs.DIRECTORY) as folder:
        for child in fs.listdir(folder):
            if osfs.is_directory(fs.lstat(folder, child)):
                _remove_tree(fs, folder, child)
            else:
                fs.unlink(folder, child)
    fs.rmdir(at, name)
