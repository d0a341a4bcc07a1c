"""Open files and their data."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from ...operations import closing, creating, locking, opening, relay
from ...view.answers import New, Slow
from ...view.model import Caller, Handle
from .. import wire
from ..context import Kernel
from .shapes import names_in, then

_MAX_COPY = 1 << 30  # of one copy_file_range; the caller asks again for the rest


def open_file(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    flags, open_flags = wire.OPEN_IN.unpack_from(body)

    def opened(handle: Handle) -> bytes:
        handle.user = caller.uid
        if open_flags & wire.OPEN_KILL_SUIDGID:
            relay.drop_set_id(handle)
        return kernel.answers.opened(handle)

    return then(opening.open(kernel.mount, nodeid, flags, caller), opened)


def create(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
    name = names_in(body[wire.CREATE_IN.size :])[0]
    entry, handle = creating.create(kernel.mount, nodeid, name, flags, New(caller, mode, umask))
    handle.user = caller.uid
    return kernel.answers.entry(entry) + kernel.answers.opened(handle)


def read(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes | Slow[bytes]:
    handle, offset, size, _, _, _, _ = wire.READ_IN.unpack_from(body)
    return relay.read(kernel.mount, handle, size, offset)


def write(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    handle, offset, size, flags, _, _, _ = wire.WRITE_IN.unpack_from(body)
    data = body[wire.WRITE_IN.size :][:size]
    relay.note_writer(kernel.mount, handle, caller)

    def shape(written: int) -> bytes:
        if flags & wire.WRITE_KILL_SUIDGID:
            relay.drop_set_id(kernel.mount.handle(handle))
        return wire.WRITE_OUT.pack(written, 0)

    cached = bool(flags & wire.WRITE_CACHE)
    return then(relay.write(kernel.mount, handle, data, offset, cached=cached), shape)


def flush(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None] | None:
    handle, _, _, owner = wire.FLUSH_IN.unpack_from(body)
    with contextlib.ExitStack() as stack:  # who gets the lock then sees what was closed
        stack.callback(locking.unlock_process, kernel.mount, handle, owner)
        work = closing.flush(kernel.mount, handle, caller)
        if work is None:
            return None
        commit, unlocking = work.run, stack.pop_all()

    def both() -> None:
        with unlocking:
            commit()

    return Slow(both)


def release(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None] | None:
    handle = kernel.mount.handle(wire.RELEASE_IN.unpack_from(body)[0])
    kernel.passthrough.detach(handle)
    try:
        work = closing.release(kernel.mount, handle.id)
    finally:
        locking.unlock_description(kernel.mount, handle)
    return work and replace(work, user=handle.user)


def fsync(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None]:
    return closing.fsync(kernel.mount, wire.FSYNC_IN.unpack_from(body)[0])


def fallocate(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None]:
    handle, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
    return relay.fallocate(kernel.mount, handle, mode, offset, length)


def copy_file_range(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    source, at, _, target, to, size, _ = wire.COPY_FILE_RANGE_IN.unpack_from(body)
    result = relay.copy_range(kernel.mount, source, at, target, to, min(size, _MAX_COPY))
    return then(result, lambda copied: wire.WRITE_OUT.pack(copied, 0))


def lseek(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    handle, offset, whence, _ = wire.LSEEK_IN.unpack_from(body)
    return wire.LSEEK_OUT.pack(relay.seek(kernel.mount, handle, offset, whence))
