"""The lock by which one daemon at a time serves a directory, and says who it is."""

from __future__ import annotations

import json
import time

from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem
from ckptfs.errors import AlreadyServed
from ckptfs.records import format as fmt
from ckptfs.records import parts
from ckptfs.records.parts import closed_on_error, write_whole

_LOOKED_AT_S = 0.2  # at least as long as a command has the lock that only sees who holds it


class ServingLock:
    def __init__(self, fs: FileSystem, control: int) -> None:
        self._fs, self._control = fs, control
        self._fd: int | None = None

    def take(self, where: str, mountpoint: str = "") -> None:
        """Be the one daemon of this directory. Raises AlreadyServed, naming the other."""
        parts.require(self._fs, self._control, fmt.LOCK, where)
        fd = self._fs.open(self._control, fmt.LOCK, osfs.O_RDWR | osfs.O_CREAT)
        with closed_on_error(self._fs, fd):
            if not _taken(fd):
                holder = parts.parse(self._fs.read(fd, 4096, 0))
                raise AlreadyServed(
                    f"{where}: served already, by process {holder.get('pid', '?')} on host "
                    f"{holder.get('host', '?')}; see `ckptfs status`"
                )
            owner = {
                "host": osfs.host_name(),
                "pid": osfs.process_id(),
                "mountpoint": mountpoint or where,  # where commands given the directory ask
            }
            self._fs.truncate(fd, 0)
            write_whole(self._fs, fd, json.dumps(owner).encode() + b"\n")
            self._fd = fd

    @property
    def fd(self) -> int:
        assert self._fd is not None
        return self._fd

    def keep(self, fd: int) -> None:
        """Go on with a lock that this process has taken, as another program."""
        self._fd = fd

    def close(self) -> None:
        if self._fd is not None:
            self._fs.close(self._fd)
            self._fd = None


def _taken(fd: int) -> bool:
    deadline = time.monotonic() + _LOOKED_AT_S
    while not osfs.try_lock(fd):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOKED_AT_S / 20)
    return True
