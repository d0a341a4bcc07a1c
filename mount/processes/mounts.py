"""Tables of mounts, as ``/proc`` tells them: nothing that is mounted is touched."""

from __future__ import annotations

import contextlib
import os
import re
from typing import NamedTuple

from . import proc

FS_TYPE = "fuse.ckptfs"
_OCTAL = re.compile(rb"\\([0-7]{3})")


class MountEntry(NamedTuple):
    """A line of a mount table."""

    id: str
    parent: str
    device: str  # major:minor, one for all mounts of a filesystem
    point: str
    groups: frozenset[str]  # of mounts whose changes reach it
    peers: str  # the group that it belongs to itself, if any
    type: str


def mounts(pid: str = "self") -> list[MountEntry]:
    """The mount table of a process, but for lines that are none. Raises OSError.

    A path or a source holds any bytes but for space, tab, newline and backslash, which are
    escaped: what else counts as white space or as the end of a line belongs to it."""
    found = []
    for line in proc.lines(f"/proc/{pid}/mountinfo"):
        with contextlib.suppress(ValueError, IndexError):
            found.append(_mount(line.split(b" ")))
    return found


def _mount(fields: list[bytes]) -> MountEntry:
    end = fields.index(b"-", 6)
    tags = [os.fsdecode(tag).partition(":") for tag in fields[6:end]]
    peers = next((number for key, _, number in tags if key == "shared"), "")
    groups = frozenset(number for _, _, number in tags if number)
    id, parent, device, _, point = map(_unescaped, fields[:5])
    return MountEntry(id, parent, device, point, groups, peers, _unescaped(fields[end + 1]))


def _unescaped(field: bytes) -> str:
    """The kernel writes what would end a field as three octal digits."""
    return os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field))


def id_of(fd: int) -> str:
    """Of the mount that a descriptor lies in; empty where there is none."""
    told = proc.lines(f"/proc/self/fdinfo/{fd}")
    return next((line.split()[1].decode() for line in told if line.startswith(b"mnt_id:")), "")


def is_there(mount: MountEntry) -> bool:
    """Whether it is in our mount table, covered or not."""
    return any((each.id, each.device) == (mount.id, mount.device) for each in mounts())


def topmost(mountpoint: str) -> MountEntry | None:
    """What is mounted at exactly this path, on top; never touches the mount."""
    here = [each for each in mounts() if each.point == mountpoint]
    below = {each.parent for each in here}
    return next((each for each in reversed(here) if each.id not in below), None)


def served(mountpoint: str, device: int | None) -> MountEntry | None:
    """The mount there that is served by this descriptor of ``/dev/fuse``, if it is on top; where
    that is not known, any that is of our type."""
    number = None if device is None else proc.connection(device)
    found = topmost(mountpoint)
    if found is None or found.type != FS_TYPE:
        return None
    return found if number is None or found.device == f"0:{number}" else None


def mounted_type(mountpoint: str) -> str | None:
    """The filesystem type of the topmost mount at exactly this path."""
    found = topmost(mountpoint)
    return found.type if found else None
