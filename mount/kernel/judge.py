"""Who decides about access: the kernel, if it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import handlers, wire
from .answers import CACHED_S, Shown
from .context import Handler


@dataclass(frozen=True)
class Judge:
    handlers: Mapping[int, Handler]  # by opcode
    wanted: int  # of what the kernel offers
    shown: Shown  # what it is shown of a file
    name_s: int  # how long it may keep a name that lasts


KERNEL = Judge(
    handlers.HANDLERS,
    wire.ASYNC_READ
    | wire.POSIX_LOCKS
    | wire.FLOCK_LOCKS
    | wire.ATOMIC_O_TRUNC
    | wire.BIG_WRITES
    | wire.DONT_MASK
    | wire.POSIX_ACL
    | wire.AUTO_INVAL_DATA
    | wire.DO_READDIRPLUS
    | wire.READDIRPLUS_AUTO
    | wire.PARALLEL_DIROPS
    | wire.MAX_PAGES
    | wire.HANDLE_KILLPRIV_V2
    | wire.INIT_EXT,
    wire.attr,
    CACHED_S,
)
