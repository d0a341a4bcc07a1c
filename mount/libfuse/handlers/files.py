"""Open files and their data, each of its own version, where the kernel has one inode for all."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any

from ...operations import closing, creating, looking, opening, relay
from ...processes import writers
from ...view.answers import Entry, Slow
from ...view.identity import Identity, exists
from ...view.model import Caller, File, Handle, Node
from ...view.past import Generation
from ...writers import visibility
from ..context import Portable
from ..descriptors import require_alone
from ..inodes import Opened, Place
from ..paths import caller_of, finished, new, on_entry, walk

# Read through shared mappings as a rule, which only the page cache can carry. What meets a version
# that is being written under the same name then gets EIO, where others read on.
_MAPPED = (".safetensors", ".npy", ".gguf")


def open_file(portable: Portable, path: str, info: Any) -> int:
    caller = caller_of(portable, opening=True)
    reads, truncates = info.flags & os.O_ACCMODE == os.O_RDONLY, bool(info.flags & os.O_TRUNC)
    opened: Opened | None = None

    def work(entry: Entry) -> Handle | Slow[Handle]:
        nonlocal opened
        if opened is not None:
            portable.inodes.leave(opened)
        node = entry.node
        version = node.version if isinstance(node, File) else None
        begins = not reads and version is None and not _in_place(portable, node)
        place = (node.parent.id if node.parent else 0), node.name
        try:
            opened = _enter(portable, place, caller, info.flags, None if begins else node.ident)
        except OSError:
            if version is not None:  # it may have been begun for this open, which does not come
                visibility.dismiss(portable.mount.versions, version, caller)
            raise
        return opening.open(portable.mount, node.id, info.flags, caller)

    try:
        handle = on_entry(portable, path, work, caller, truncates=truncates)
    except BaseException:
        if opened is not None:
            portable.inodes.leave(opened)
        raise
    assert opened is not None
    _keep(portable, opened, handle, info)
    return 0


def create(portable: Portable, path: str, mode: int, info: Any) -> int:
    caller = caller_of(portable, opening=True)
    with contextlib.ExitStack() as held:
        place = walk(portable, path, caller, held)
        opened = _enter(portable, place, caller, info.flags, None)
        try:
            entry, handle = creating.create(portable.mount, *place, info.flags, new(caller, mode))
        except BaseException:
            portable.inodes.leave(opened)
            raise
        _keep(portable, opened, handle, info)
        looking.forget(portable.mount, entry.node.id, 1)
    return 0


def _enter(
    portable: Portable, place: Place, caller: Caller, flags: int, ident: Identity | None
) -> Opened:
    process = writers.thread_group(caller.pid) or caller.pid
    opened = Opened(flags & os.O_ACCMODE != os.O_RDONLY, process, ident)
    if not portable.inodes.enter(place, opened):
        raise OSError(errno.EBUSY, "another version of it may be mapped for writing")
    return opened


def _keep(portable: Portable, opened: Opened, handle: Handle, info: Any) -> None:
    portable.inodes.complete(opened, handle, may_cache=_may_cache(portable, handle))
    portable.opens[handle.id] = opened
    info.fh = handle.id
    info.direct_io = not opened.cached


def _may_cache(portable: Portable, handle: Handle) -> bool:
    access, node = handle.flags & os.O_ACCMODE, handle.node
    # The end that an append goes to is known to the daemon alone.
    if handle.relayed or access == os.O_WRONLY or handle.flags & os.O_APPEND:
        return False
    if isinstance(node, Generation):
        return True  # of one path and number, one version
    with portable.mount.lock:
        if not isinstance(node, File) or node.parent is None:
            return False
        if _in_place(portable, node):
            return True
        staged = portable.mount.versions.at(node.parent, node.name)
        if access == os.O_RDONLY:
            return not staged and node.name.endswith(_MAPPED)
        # A new file: everybody sees this one version of it.
        return staged == [handle.version] and not exists(node.parent.fd, node.name)


def _in_place(portable: Portable, node: Node) -> bool:
    return node.parent is not None and portable.mount.in_place(node.parent, node.name)


def read(portable: Portable, _path: str | None, size: int, offset: int, info: Any) -> bytes:
    if not info.lock_owner:  # a page, for a mapping; read(2) past the page cache has an owner
        require_alone(portable, info.fh)
    return finished(relay.read(portable.mount, info.fh, size, offset))


def write(portable: Portable, _path: str | None, data: bytes, offset: int, info: Any) -> int:
    return finished(relay.write(portable.mount, info.fh, memoryview(data), offset))


def flush(portable: Portable, _path: str | None, info: Any) -> None:
    finished(closing.flush(portable.mount, info.fh, caller_of(portable)))


def release(portable: Portable, _path: str | None, info: Any) -> None:
    portable.inodes.leave(portable.opens.pop(info.fh))
    finished(closing.release(portable.mount, info.fh))


def fsync(portable: Portable, _path: str | None, _data_only: int, info: Any) -> None:
    closing.fsync(portable.mount, info.fh).run()


def ioctl(portable: Portable, handle_id: int) -> None:
    portable.probes.answer(caller_of(portable).pid, handle_id)
    raise OSError(errno.ENOTTY, "no ioctl")
