"""Directories that are open, and what they list."""

from __future__ import annotations

from ...operations import closing, directories, looking
from ...view.answers import Entry
from ..context import Portable
from ..paths import caller_of, finished, on_entry

_LISTED_BYTES = 32 << 10  # as the C library asks for; libfuse takes what it has room for


def opendir(portable: Portable, path: str) -> int:
    def work(entry: Entry) -> int:
        handle = directories.opendir(portable.mount, entry.node.id)
        with portable.mount.lock:
            entry.node.lookups += 1  # known until releasedir
        return handle.id

    return on_entry(portable, path, work)


def readdir(portable: Portable, handle_id: int, position: int) -> list[bytes]:
    return finished(directories.readdir(portable.mount, handle_id, position, _LISTED_BYTES))


def releasedir(portable: Portable, _path: str | None, handle_id: int) -> None:
    node = portable.mount.handle(handle_id).node
    directories.releasedir(portable.mount, handle_id)
    looking.forget(portable.mount, node.id, 1)


def fsyncdir(portable: Portable, _path: str | None, _data_only: int, handle_id: int) -> None:
    closing.fsync_dir(
        portable.mount, portable.mount.handle(handle_id).node.id, caller_of(portable)
    ).run()
