"""Files of ``/proc``, read whole: as bytes, since names in them may hold anything.

``status`` has a line of all groups of a process, ``children`` is given in parts of a page: one read
of some size is not all there is.
"""

from __future__ import annotations

import os

_PART_BYTES = 1 << 16
_LIMIT_BYTES = 8 << 20  # far above what the kernel writes, but for ``maps``


def read(path: str) -> bytes | None:
    """None where it cannot be read. What lies beyond some megabytes is left out."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    found = b""
    try:
        while len(found) < _LIMIT_BYTES and (part := os.read(fd, _PART_BYTES)):
            found = found + part if found else part
    except OSError:
        return None
    finally:
        os.close(fd)
    return found


def lines(path: str) -> list[bytes]:
    """Without their ends. Raises OSError."""
    with open(path, "rb") as file:
        return [line.rstrip(b"\n") for line in file]


def connection(device: int) -> int | None:
    """The minor device number of the filesystem that is served by a descriptor of ``/dev/fuse``;
    None where the kernel does not tell it."""
    for line in (read(f"/proc/self/fdinfo/{device}") or b"").splitlines():
        if line.startswith(b"fuse_connection:"):
            return int(line.split()[1])
    return None
