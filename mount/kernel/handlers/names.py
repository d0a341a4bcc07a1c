"""Names: found, made, moved and taken away."""

from __future__ import annotations

import os
from typing import Any

from ...operations import looking, names, renaming, setdirs
from ...view.answers import New, Slow
from ...view.model import Caller, Virtual
from .. import wire
from ..answers import ABSENT
from ..context import Kernel
from .shapes import after, names_in, then


def lookup(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    name = names_in(body)[0]  # the buffer is the next request's where it has to wait
    undecided = setdirs.undecided(kernel.mount, nodeid)
    return after(undecided, lambda: _entry(kernel, nodeid, name, caller))


def _entry(kernel: Kernel, nodeid: int, name: str, caller: Caller) -> bytes:
    try:
        return kernel.answers.entry(kernel.again.lookup(nodeid, name, caller))
    except FileNotFoundError:
        if isinstance(kernel.mount.nodes.get(nodeid), Virtual):
            raise  # a commit may put it there, which drops no name
        return ABSENT


def readlink(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    return os.fsencode(looking.readlink(kernel.mount, nodeid))


def symlink(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    name, target = names_in(body)
    return kernel.answers.entry(names.symlink(kernel.mount, nodeid, name, target, caller))


def mknod(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    mode, device, umask, _ = wire.MKNOD_IN.unpack_from(body)
    name = names_in(body[wire.MKNOD_IN.size :])[0]
    new = New(caller, mode, umask)
    return kernel.answers.entry(
        names.mknod(kernel.mount, nodeid, name, new, wire.device_number(device))
    )


def mkdir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> bytes:
    mode, umask = wire.MKDIR_IN.unpack_from(body)
    name = names_in(body[wire.MKDIR_IN.size :])[0]
    return kernel.answers.entry(names.mkdir(kernel.mount, nodeid, name, New(caller, mode, umask)))


def unlink(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None]:
    return names.unlink(kernel.mount, nodeid, names_in(body)[0])


def rmdir(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None]:
    return names.rmdir(kernel.mount, nodeid, names_in(body)[0])


def rename(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None] | None:
    (target,) = wire.RENAME_IN.unpack_from(body)
    name, new_name = names_in(body[wire.RENAME_IN.size :])
    return renaming.rename(kernel.mount, nodeid, name, target, new_name, 0, caller)


def rename2(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Slow[None] | None:
    target, flags, _ = wire.RENAME2_IN.unpack_from(body)
    name, new_name = names_in(body[wire.RENAME2_IN.size :])
    return renaming.rename(kernel.mount, nodeid, name, target, new_name, flags, caller)


def link(kernel: Kernel, nodeid: int, caller: Caller, body: memoryview) -> Any:
    (old,) = wire.LINK_IN.unpack_from(body)
    name = names_in(body[wire.LINK_IN.size :])[0]
    return then(names.link(kernel.mount, old, nodeid, name, caller), kernel.answers.entry)
