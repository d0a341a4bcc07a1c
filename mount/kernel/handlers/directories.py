"""Directories that are open, and what they list."""

from __future__ import annotations

from typing import Any

from ckptfs.errors import CkptfsError

from ...operations import closing, directories, looking, setdirs
from ...view.answers import Slow
from ...view.listing import parts
from ...view.model import Caller
from .. import wire
from ..answers import NO_ENTRY
from ..context import Kernel
from .shapes import after, then

_CACHED_LISTING = wire.FOPEN_CACHE_DIR | wire.FOPEN_KEEP_CACHE


def opendir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    handle = directories.opendir(kernel.mount, nodeid)
    return wire.OPEN_OUT.pack(handle.id, _CACHED_LISTING if handle.cached else 0, 0)


def readdir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    handle, position, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    return after(
        setdirs.undecided(kernel.mount, nodeid),
        lambda: then(directories.readdir(kernel.mount, handle, position, size), b"".join),
    )


def readdirplus(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    def look_up(name: str) -> bytes:
        if name in (".", ".."):
            return NO_ENTRY
        try:
            return kernel.answers.entry(looking.lookup(kernel.mount, nodeid, name, caller))
        except (OSError, CkptfsError):  # gone meanwhile: a lookup tells why
            return NO_ENTRY

    def shape(entries: list[bytes]) -> bytes:
        return b"".join(look_up(parts(entry)[0]) + entry for entry in entries)

    handle, position, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    room = len(NO_ENTRY)
    return after(
        setdirs.undecided(kernel.mount, nodeid),
        lambda: then(directories.readdir(kernel.mount, handle, position, size, room), shape),
    )


def releasedir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> None:
    directories.releasedir(kernel.mount, wire.RELEASE_IN.unpack_from(body)[0])


def fsyncdir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None]:
    return closing.fsync_dir(kernel.mount, nodeid, caller)
