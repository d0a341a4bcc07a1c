"""What the kernel and the daemon agree on as the mount begins, and what is let go of after."""

from __future__ import annotations

import os

from ckptfs.errors import CannotServe

from ...operations import looking
from ...view.model import Caller
from .. import wire
from ..again import NO_REPLY
from ..context import MAX_WRITE, Kernel


def init(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    major, minor, readahead, flags, flags2 = wire.INIT_IN.unpack_from(body)
    if major != wire.KERNEL_VERSION or minor < wire.MINIMUM_MINOR:
        raise CannotServe(f"the kernel speaks FUSE {major}.{minor}, too old for ckptfs")
    offered = flags | (flags2 << 32 if flags & wire.INIT_EXT else 0)
    agreed = offered & kernel.wanted
    if offered & wire.PASSTHROUGH and kernel.passthrough.enabled:
        agreed |= wire.PASSTHROUGH
        kernel.passthrough.agreed = kernel.passthrough.active = True
    return wire.INIT_OUT.pack(
        wire.KERNEL_VERSION,
        min(minor, wire.KERNEL_MINOR),
        readahead,
        agreed & 0xFFFFFFFF,
        64,
        48,
        MAX_WRITE,
        1,
        MAX_WRITE // os.sysconf("SC_PAGESIZE"),
        0,
        agreed >> 32,
        kernel.passthrough.stack_depth(kernel.mount.store.root),
    )


def destroy(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    return b""


def interrupt(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> object:
    """Ends the wait for a lock or a restart; a commit that began is finished."""
    request = wire.FORGET_IN.unpack_from(body)[0]
    kernel.mount.locks.interrupt(request)
    kernel.interrupted(request)
    return NO_REPLY


def forget(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> object:
    looking.forget(kernel.mount, nodeid, wire.FORGET_IN.unpack_from(body)[0])
    return NO_REPLY


def batch_forget(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> object:
    count, _ = wire.BATCH_FORGET_IN.unpack_from(body)
    size = wire.FORGET_ONE.size
    rest = body[wire.BATCH_FORGET_IN.size :][: count * size]
    for forgotten, lookups in wire.FORGET_ONE.iter_unpack(rest):
        looking.forget(kernel.mount, forgotten, lookups)
    return NO_REPLY
