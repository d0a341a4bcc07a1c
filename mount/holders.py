"""Who has a file open, by descriptors that no request tells of. Answers from ``/proc``.

A FLUSH tells that one descriptor is closed, not whether it was the last of its process. ``fdinfo``
shows the inode numbers of a process's descriptors without a question to the server of the files,
and takes no lock that the process may hold while it waits for that server. The descriptor that a
close(2) closes is none of the process's any more when its FLUSH comes.
"""

from __future__ import annotations

import os
from collections.abc import Set

from ckptfs.mount.writers import descendants

_INO = b"\nino:\t"
_LOOKS = 4096  # at descriptors, about 10 us each


def holds(process: int, inodes: Set[int]) -> bool:
    """Whether the process has a descriptor of a file of one of these inode numbers; True where that
    cannot be seen. Of one that has thousands of descriptors not all are looked at."""
    return _Search(inodes).finds(process)


def holds_or_gave(process: int, inodes: Set[int]) -> bool:
    """The same of what descends from it, too."""
    search = _Search(inodes)
    return any(search.finds(each) for each in descendants({process}))


class _Search:
    def __init__(self, inodes: Set[int]) -> None:
        self._inodes, self._left = inodes, _LOOKS

    def finds(self, process: int) -> bool:
        try:
            descriptors = os.listdir(f"/proc/{process}/fdinfo")
        except PermissionError:
            return True
        except OSError:  # it has ended, or is ending
            return False
        for descriptor in descriptors[: self._left]:
            self._left -= 1
            inode = _inode(f"/proc/{process}/fdinfo/{descriptor}")
            if inode is None or inode in self._inodes:
                return True
        return False


def _inode(path: str) -> int | None:
    """None where the kernel does not tell it (before Linux 5.14); 0 for one that is closed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        shown = os.read(fd, 4096)
    except OSError:
        return 0
    finally:
        os.close(fd)
    at = shown.find(_INO)
    return int(shown[at + len(_INO) :].split(None, 1)[0]) if at >= 0 else None
