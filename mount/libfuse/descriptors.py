"""Which open file a request was made by, where libfuse hands over no more than a path."""

from __future__ import annotations

import errno

from ..processes import calls, writers
from ..view.answers import Entry
from ..view.identity import identity, lstat
from ..view.model import Caller, File, Handle
from .context import Portable
from .inodes import Place


def meant_by(
    portable: Portable, place: Place, entry: Entry, caller: Caller, truncates: bool
) -> Handle | None:
    """The open file whose descriptor the request was made by, as far as it matters: it has
    another version than its path shows, or is to be truncated and not begun anew."""
    opens, shown = portable.inodes.opens(place), identity(entry.status)
    itself = truncates and isinstance(entry.node, File) and entry.node.version is not None
    others = {o.process for o, at in opens.items() if o.handle and (itself or at != shown)}
    if not others:
        return None
    try:
        number = calls.descriptor(caller.pid, portable.mountpoint, place[1] if itself else "")
        if number is None:
            return None
        handle_id = portable.probes.look(caller.pid, number)
    except calls.Unknown:
        if caller.pid in others or writers.descends_from(caller.pid, frozenset(others)):
            raise OSError(errno.EIO, "by path or by a descriptor of another version?") from None
        return None
    return next((o.handle for o in opens if o.handle and o.handle.id == handle_id), None)


def require_alone(portable: Portable, handle_id: int) -> None:
    """Before the kernel is told what it keeps for the inode, and not for the handle."""
    node = portable.mount.handle(handle_id).node
    if handle_id not in portable.opens or not isinstance(node, File) or node.parent is None:
        return
    shown = None
    if node.version is None:
        status = lstat(node.parent.fd, node.name)
        shown = identity(status) if status else None
    if portable.inodes.meets_others(portable.opens[handle_id], shown):
        raise OSError(errno.EIO, "versions meet in one inode")
