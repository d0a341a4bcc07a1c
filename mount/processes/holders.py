"""Who has a file open, by descriptors that no request tells of. Answers from ``/proc``.

A FLUSH tells that one descriptor is closed, not whether it was the last of its process. ``fdinfo``
shows the inode numbers of a process's descriptors without a question to the server of the files,
and takes no lock that the process may hold while it waits for that server. The descriptor that a
close(2) closes is none of the process's any more when its FLUSH comes.
"""

from __future__ import annotations

from collections.abc import Set

from .writers import CannotSee, descendants, listed

_INO = b"\nino:\t"
_LOOKS = 4096  # at descriptors, about 10 us each


def holds(process: int, inodes: Set[int]) -> bool:
    """Whether the process has a descriptor of a file of one of these inode numbers; True where that
    cannot be seen, or there are thousands of them to be looked at."""
    try:
        return _Search(inodes).finds(process)
    except CannotSee:
        return True


def holds_or_gave(process: int, inodes: Set[int]) -> bool:
    """The same of what descends from it, too."""
    search = _Search(inodes)
    try:
        return any(search.finds(each) for each in descendants({process}))
    except CannotSee:
        return True


class _Search:
    def __init__(self, inodes: Set[int]) -> None:
        self._inodes, self._left = inodes, _LOOKS

    def finds(self, process: int) -> bool:
        """Raises CannotSee."""
        folder = f"/proc/{process}/fdinfo"
        descriptors = listed(folder)
        if not descriptors:  # its first thread may have ended, and shows none then
            threads = [each for each in listed(f"/proc/{process}/task") if each != str(process)]
            if threads:
                folder = f"/proc/{process}/task/{threads[0]}/fdinfo"
                descriptors = listed(folder)
        for descriptor in descriptors:
            self._left -= 1
            if self._left < 0:
                raise CannotSee
            if _inode(f"{folder}/{descriptor}") in self._inodes:
                return True
        return False


def _inode(path: str) -> int:
    """0 of a descriptor that is closed by now. Raises CannotSee, also before Linux 5.14, which does
    not tell it."""
    try:
        with open(path, "rb", buffering=0) as file:
            shown = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        raise CannotSee from None
    at = shown.find(_INO)
    if at < 0:
        raise CannotSee
    return int(shown[at + len(_INO) :].split(None, 1)[0])
