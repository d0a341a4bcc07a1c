"""Where a mount may be: away from its own parts, and not above or below another ckptfs directory,
whose files would have two records and two histories."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ckptfs import format as fmt
from ckptfs import osfs, walk
from ckptfs.errors import CannotServe
from ckptfs.mount.kernel.mounting import FS_TYPE, mounts

_ENTRIES = 100_000  # are looked at, about a second


def require_apart(directory: str, mountpoint: str, log_file: str) -> None:
    """The daemon must never meet its own mount: a request to itself is answered by nobody."""
    if _is_below(mountpoint, directory):
        raise CannotServe(f"{mountpoint}: lies in {directory}; mount over the directory or outside")
    if _is_below(log_file, mountpoint):
        raise CannotServe(f"{log_file}: lies in the mount; log outside of {mountpoint}")


def require_alone(directory: str, mountpoint: str) -> list[str]:
    """Raises CannotServe where another ckptfs directory lies above or below, but for one that was
    put into a directory of ours meanwhile: a copy must not keep its mount from coming back. Of that
    a warning is returned."""
    for place in {directory, mountpoint}:
        for above in _above(place):
            if _is_served(above) or is_known(above):
                raise CannotServe(
                    f"{place}: lies in {above}, which is a ckptfs directory itself: mount that "
                    f"one, or make its files plain first (`ckptfs strip {above}`)"
                )
    below = next(_served_below(directory), "") or next(nested(directory), "")
    if not below:
        return []
    if _is_served(below) or not is_known(directory):
        raise CannotServe(
            f"{directory}: {below} in it is a ckptfs directory itself: mount that one, or make its "
            f"files plain first (`ckptfs strip {below}`)"
        )
    return [
        f"{below} is a ckptfs directory itself: its files keep their records, and are not served "
        f"as its own; move it out, or make its files plain (`ckptfs strip {below}`)"
    ]


def is_known(directory: str) -> bool:
    """Whether it is a ckptfs directory by its parts, see ``walk.is_another``."""
    try:
        fd = osfs.open_directory(directory)
    except OSError:
        return False
    try:
        return walk.is_another(osfs.OsFs(), fd)
    finally:
        os.close(fd)


def unrecorded(directory: str) -> list[str]:
    """A warning of the files of a directory that is about to be served for the first time."""
    if is_known(directory):
        return []
    count = sum(1 for entry in _entries(directory) if entry.is_file(follow_symlinks=False))
    if count == 0:
        return []
    files = "1 file has" if count == 1 else f"{count} files have"
    return [
        f"{files} no record yet and cannot be verified: `ckptfs adopt {directory}` takes what is "
        "there as it is"
    ]


def nested(directory: str) -> Iterator[str]:
    """Ckptfs directories below, as far as they are found soon; no mount is entered."""
    for entry in _entries(directory):
        if entry.name == fmt.CONTROL and is_known(os.path.dirname(entry.path)):
            yield os.path.dirname(entry.path)


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


def _above(path: str) -> Iterator[str]:
    while path != "/":
        path = os.path.dirname(path)
        yield path


def _is_served(path: str) -> bool:
    return any(each.point == path and each.type == FS_TYPE for each in mounts())


def _served_below(directory: str) -> Iterator[str]:
    return (e.point for e in mounts() if e.type == FS_TYPE and _is_below(e.point, directory))


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")
