"""Where a mount may be: away from its own parts, and not above or below another ckptfs directory,
whose files would have two records and two histories."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ckptfs.disk import osfs
from ckptfs.disk.real import OsFs
from ckptfs.errors import CannotServe
from ckptfs.records import format as fmt
from ckptfs.records import walk

from ..processes.mounts import FS_TYPE, mounts

_ENTRIES = 100_000  # are looked at, about a second


def require_apart(directory: str, mountpoint: str, log_file: str) -> None:
    """The daemon must never meet its own mount: a request to itself is answered by nobody."""
    if _is_below(mountpoint, directory):
        raise CannotServe(f"{mountpoint}: lies in {directory}; mount over the directory or outside")
    if _is_below(log_file, mountpoint):
        raise CannotServe(f"{log_file}: lies in the mount; log outside of {mountpoint}")


@dataclass(frozen=True)
class Below:
    """What lies in a directory, as far as it is found soon; no mount is entered."""

    nested: str  # a ckptfs directory, if there is one
    files: int  # without a record, if it is about to be served for the first time

    @classmethod
    def of(cls, directory: str) -> Below:
        nested, files, known = "", 0, is_known(directory)
        for entry in _entries(directory):
            files += not known and entry.is_file(follow_symlinks=False) and not _has_record(entry)
            if not nested and entry.name == fmt.CONTROL and is_known(os.path.dirname(entry.path)):
                nested = os.path.dirname(entry.path)
        return cls(nested, files)

    def unrecorded(self, directory: str) -> list[str]:
        """A warning of its files, if it is about to be served for the first time."""
        if self.files == 0:
            return []
        files = "1 file has" if self.files == 1 else f"{self.files} files have"
        return [
            f"{files} no record yet and cannot be verified: `ckptfs adopt {directory}` takes what "
            "is there as it is"
        ]


def require_alone(directory: str, mountpoint: str, found: Below) -> list[str]:
    """Raises CannotServe where another ckptfs directory lies above or below, but for one that was
    put into a directory of ours meanwhile: a copy must not keep its mount from coming back. Of that
    a warning is returned."""
    served = [each.point for each in mounts() if each.type == FS_TYPE]
    for place in {directory, mountpoint}:
        for other in above(place):
            if other in served or is_known(other):
                raise CannotServe(
                    f"{place}: lies in {other}, which is a ckptfs directory itself: mount that "
                    f"one, or make its files plain first (`ckptfs strip {other}`)"
                )
    below = next((point for point in served if _is_below(point, directory)), found.nested)
    if not below:
        return []
    if below in served or not is_known(directory):
        raise CannotServe(
            f"{directory}: {below} in it is a ckptfs directory itself: mount that one, or make its "
            f"files plain first (`ckptfs strip {below}`)"
        )
    return [
        f"{below} is a ckptfs directory itself: its files keep their records, and are not served "
        f"as its own; move it out, or make its files plain (`ckptfs strip {below}`)"
    ]


def above(path: str) -> Iterator[str]:
    """The directories that a path lies in, the nearest first."""
    while path != "/":
        path = os.path.dirname(path)
        yield path


def is_known(directory: str) -> bool:
    """Whether it is a ckptfs directory by its parts, see ``walk.is_another``."""
    try:
        fd = osfs.open_directory(directory)
    except OSError:
        return False
    try:
        return walk.is_another(OsFs(), fd)
    finally:
        os.close(fd)


def _entries(directory: str) -> Iterator[os.DirEntry[str]]:
    """Those below, but its own ``.ckptfs``; the first of a large tree."""
    left, waiting = _ENTRIES, [directory]
    points = {each.point for each in mounts()}
    while waiting and left > 0:
        here = waiting.pop()
        with contextlib.suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                if here == directory and entry.name == fmt.CONTROL:
                    continue
                left -= 1
                yield entry
                if entry.is_dir(follow_symlinks=False) and entry.path not in points:
                    waiting.append(entry.path)


def _has_record(entry: os.DirEntry[str]) -> bool:
    """A copy with its xattrs, of a file that was served elsewhere."""
    with contextlib.suppress(OSError):
        return bool(os.getxattr(entry.path, fmt.XATTR, follow_symlinks=False))
    return False


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")
