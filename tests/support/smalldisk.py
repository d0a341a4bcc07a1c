"""A disk that is as small as a test wants it: what does not fit raises ENOSPC, and what is deleted
makes room. Blocks of a directory are counted, so a link takes none."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import Any

from ckptfs.disk.real import OsFs
from ckptfs.disk.space import Space
from ckptfs.store import Store
from ckptfs.tools.harness.faults import Call, Intercepted

MIB = 1 << 20
_MAKES = frozenset({"setxattr", "mkdir", "link", "rename"})


class SmallDisk(Intercepted):
    """``size_bytes`` for everything below ``directory``. With ``strict`` names and records find no
    room either while it is full."""

    def __init__(self, directory: Path, size_bytes: int, *, strict: bool = False) -> None:
        super().__init__(OsFs())
        self.directory, self.size_bytes, self.strict = directory, size_bytes, strict
        self.refused: list[str] = []
        self._alone = threading.RLock()  # what is renamed while it is counted would be missed

    def free_bytes(self) -> int:
        used: dict[int, int] = {}
        for folder, _, names in os.walk(self.directory):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(os.path.join(folder, name))
                    used[status.st_ino] = status.st_blocks * 512
        return max(0, self.size_bytes - sum(used.values()))

    def around(self, call: Call) -> Any:
        with self._alone:
            return self._around(call)

    def _around(self, call: Call) -> Any:
        if call.method == "space":
            return Space(self.free_bytes(), self.size_bytes)
        if call.method in ("write", "copy"):
            self._require(call, _length(call))
        elif self.strict and call.method in _MAKES:
            self._require(call, MIB)
        return call.run()

    def _require(self, call: Call, size_bytes: int) -> None:
        if self.free_bytes() < size_bytes:
            self.refused.append(call.method)
            raise OSError(errno.ENOSPC, "no room on the small disk")


def _length(call: Call) -> int:
    if call.method == "write":
        return len(call.arguments[1])
    _, _, start, end = call.arguments
    return int(end - start)


def version(number: int, size_bytes: int = 4 * MIB) -> bytes:
    return bytes([number]) * size_bytes


def abort(store: Store, path: str, number: int, size_bytes: int = 4 * MIB) -> None:
    staged = store.saves.stage(path, store.root, path, exists=False, truncate=True)
    OsFs().write(staged.fd, version(number, size_bytes), 0)
    store.saves.abort(staged, "its writer was killed")
    store.fs.close(staged.fd)
