"""Directories that are open, and what they list."""

from __future__ import annotations

from ...operations.base import Entry
from ..context import Portable
from ..paths import caller_of, finished, on_entry

_LISTED_BYTES = 32 << 10  # as the C library asks for; libfuse takes what it has room for


def opendir(portable: Portable, path: str) -> int:
    def work(entry: Entry) -> int:
        handle = portable.ops.opendir(entry.node.id)
        with portable.ops.lock:
            entry.node.lookups += 1  # known until releasedir
        return handle.id

    return on_entry(portable, path, work)


def readdir(portable: Portable, handle_id: int, position: int) -> list[bytes]:
    return finished(portable.ops.readdir(handle_id, position, _LISTED_BYTES))


def releasedir(portable: Portable, _path: str | None, handle_id: int) -> None:
    node = portable.ops.handle(handle_id).node
    portable.ops.releasedir(handle_id)
    portable.ops.forget(node.id, 1)


def fsyncdir(portable: Portable, _path: str | None, _data_only: int, handle_id: int) -> None:
    portable.ops.fsync_dir(portable.ops.handle(handle_id).node.id, caller_of(portable)).run()
