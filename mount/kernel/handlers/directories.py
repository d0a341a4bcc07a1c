"""Directories that are open, and what they list."""

from __future__ import annotations

from typing import Any

from ckptfs.errors import CkptfsError

from ...operations.base import Slow
from ...view.listing import parts
from ...view.model import Caller
from .. import wire
from ..answers import NO_ENTRY
from ..context import Kernel
from .shapes import then

_CACHED_LISTING = wire.FOPEN_CACHE_DIR | wire.FOPEN_KEEP_CACHE


def opendir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    handle = kernel.ops.opendir(nodeid)
    return wire.OPEN_OUT.pack(handle.id, _CACHED_LISTING if handle.cached else 0, 0)


def readdir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    handle, position, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    return then(kernel.ops.readdir(handle, position, size), b"".join)


def readdirplus(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    def look_up(name: str) -> bytes:
        if name in (".", ".."):
            return NO_ENTRY
        try:
            return kernel.answers.entry(kernel.ops.lookup(nodeid, name, caller))
        except (OSError, CkptfsError):  # gone meanwhile: a lookup tells why
            return NO_ENTRY

    def shape(entries: list[bytes]) -> bytes:
        return b"".join(look_up(parts(entry)[0]) + entry for entry in entries)

    handle, position, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    return then(kernel.ops.readdir(handle, position, size, len(NO_ENTRY)), shape)


def releasedir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> None:
    kernel.ops.releasedir(wire.RELEASE_IN.unpack_from(body)[0])


def fsyncdir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None]:
    return kernel.ops.fsync_dir(nodeid, caller)
