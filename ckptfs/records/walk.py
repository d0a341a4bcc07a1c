"""Every file below a directory, however deep it lies: without recursion, with few descriptors, and
never through a symlink, nor into another ckptfs directory. What comes or goes meanwhile may be seen
or not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem, Status
from ckptfs.records import format as fmt

_LEVELS_OPEN = 32
_CLOSED = -1


@dataclass(frozen=True)
class Found:
    """A regular file, ``at/name``; ``at`` is open until the next one is asked for. Or a directory
    that cannot be read: then there is no status."""

    path: str
    status: Status | None
    at: int = _CLOSED
    name: str = ""


@dataclass
class _Level:
    prefix: str  # of the paths in it
    fd: int
    inode: tuple[int, int]
    names: Iterator[str]


def walk(
    fs: FileSystem, root: int, prefix: str = "", others: list[str] | None = None
) -> Iterator[tuple[str, Status | None]]:
    """The files below ``root``, by their paths and in order. The control directory is not. Gives
    ``others`` the ckptfs directories that were left out."""
    for found in files(fs, root, prefix, but="" if prefix else fmt.CONTROL, others=others):
        yield found.path, found.status


def files(
    fs: FileSystem, root: int, prefix: str = "", but: str = "", others: list[str] | None = None
) -> Iterator[Found]:
    """The files below ``root``, in order; ``but`` is left out at the top."""
    levels: list[_Level] = []
    try:
        try:
            _enter(fs, levels, root, ".", prefix)
        except OSError:
            yield Found(prefix.rstrip("/"), None)
        while levels:
            here = levels[-1]
            name = next(here.names, "")
            if not name:
                _leave(fs, levels)
            elif name != but or len(levels) > 1:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # gone meanwhile
                    yield from _look(fs, levels, here, name, others)
    finally:
        for level in levels:
            _close(fs, level)


def _look(
    fs: FileSystem, levels: list[_Level], here: _Level, name: str, others: list[str] | None
) -> Iterator[Found]:
    status, path = fs.lstat(here.fd, name), here.prefix + name
    if osfs.is_regular(status):
        yield Found(path, status, here.fd, name)
    elif osfs.is_directory(status):
        try:
            if not _enter(fs, levels, here.fd, name, f"{path}/") and others is not None:
                others.append(path)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError:
            yield Found(path, None)


def _enter(fs: FileSystem, levels: list[_Level], at: int, name: str, prefix: str) -> bool:
    """False where it is not of this tree."""
    fd = fs.open(at, name, osfs.DIRECTORY)
    try:
        names = sorted(fs.listdir(fd))
        if levels and fmt.CONTROL in names and is_another(fs, fd):
            fs.close(fd)
            return False
        levels.append(_Level(prefix, fd, _inode(fs, fd), iter(names)))
    except BaseException:
        fs.close(fd)
        raise
    if len(levels) > _LEVELS_OPEN + 1:  # the first stays: a mount may hide it from below
        _close(fs, levels[-1 - _LEVELS_OPEN])
    return True


def is_another(fs: FileSystem, fd: int) -> bool:
    """Whether it is another ckptfs directory, whose files have records and history of its own. Of
    root or of its owner: anybody else's ``.ckptfs`` would hide the files of others."""
    try:
        with osfs.opened(fs, fd, fmt.CONTROL, osfs.DIRECTORY) as control:
            owner, theirs = fs.stat(control), fs.stat(fd)
            known = osfs.is_regular(fs.lstat(control, fmt.FORMAT))
            return known and owner.st_uid in (0, theirs.st_uid)
    except OSError:
        return False


def _leave(fs: FileSystem, levels: list[_Level]) -> None:
    left = levels.pop()
    try:
        if levels and levels[-1].fd == _CLOSED:
            _reopen(fs, levels, left.fd)
    finally:
        _close(fs, left)


def _reopen(fs: FileSystem, levels: list[_Level], below: int) -> None:
    """The last level: above ``below``, unless that was moved; else at its path. If that leads to
    another one, the rest of what was to be looked at has gone meanwhile."""
    level, top = levels[-1], levels[0]
    if below != _CLOSED:
        level.fd = fs.open(below, "..", osfs.DIRECTORY)
        if _inode(fs, level.fd) == level.inode:
            return
        _close(fs, level)
    path = f"{level.prefix}x".removeprefix(top.prefix)
    with contextlib.suppress(OSError), osfs.place(fs, top.fd, path) as (at, _):
        if _inode(fs, at) == level.inode:
            level.fd = fs.open(at, ".", osfs.DIRECTORY)
            return
    level.names = iter(())


def _close(fs: FileSystem, level: _Level) -> None:
    if level.fd != _CLOSED:
        fs.close(level.fd)
        level.fd = _CLOSED


def _inode(fs: FileSystem, fd: int) -> tuple[int, int]:
    status = fs.stat(fd)
    return status.st_dev, status.st_ino
