"""Locks, which the daemon keeps for all."""

from __future__ import annotations

import fcntl
from typing import Any

from ...operations import locking
from ...view.locks import Lock, Wait
from ...view.model import Caller
from .. import wire
from ..again import NO_REPLY
from ..context import Kernel
from .shapes import after


def getlk(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    handle, lock, kind = _lock(nodeid, body)
    look = kernel.mount.locks.own if kind == fcntl.F_UNLCK else kernel.mount.locks.test
    found = look(kernel.mount.handle(handle).locks, lock)
    if found is None:
        return wire.LK_OUT.pack(lock.start, lock.end, fcntl.F_UNLCK, 0)
    kind = fcntl.F_WRLCK if found.exclusive else fcntl.F_RDLCK
    return wire.LK_OUT.pack(found.start, found.end, kind, found.pid)


def setlk(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    handle, lock, kind = _lock(nodeid, body)
    locks = kernel.mount.handle(handle).locks
    if kind == fcntl.F_UNLCK:
        kernel.mount.locks.drop(locks, lock)
        return None
    ahead = locking.coordinates(kernel.mount, handle, caller, lock, waits=False)
    return after(ahead, lambda: kernel.mount.locks.take(locks, lock))


def setlkw(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    handle, lock, kind = _lock(nodeid, body)
    if kind == fcntl.F_UNLCK:
        return setlk(kernel, nodeid, caller, body)
    locks, request = kernel.mount.handle(handle).locks, caller.request
    wait = Wait(locks, lock, request, caller.pid, kernel.answers.granting(request))

    def begin() -> object:
        kernel.mount.locks.wait(wait)
        return NO_REPLY

    return after(locking.coordinates(kernel.mount, handle, caller, lock, waits=True), begin)


def _lock(nodeid: int, body: memoryview) -> tuple[int, Lock, int]:
    """Handle, lock and kind of a lock request."""
    handle, owner, start, end, kind, pid, flags, _ = wire.LK_IN.unpack_from(body)
    is_flock, exclusive = bool(flags & wire.LK_FLOCK), kind == fcntl.F_WRLCK
    return handle, Lock(owner, start, end, exclusive, is_flock, pid, nodeid), kind
