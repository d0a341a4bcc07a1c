"""Advisory locks: what is done ahead of one, and what a close ends.

Threading: any thread; only what is left as ``Slow`` waits for a commit.
"""

from __future__ import annotations

import os

from ..view.answers import Slow
from ..view.locks import Lock
from ..view.model import Caller, Handle
from ..writers import committing
from .context import Mount


def coordinates(
    mount: Mount, handle_id: int, caller: Caller, lock: Lock, *, waits: bool
) -> Slow[None] | None:
    """Ahead of a lock: the work that makes its path one that is written in place, if another
    process has locked a version of it that is not committed. A reader that does not get the
    lock changes nothing: HDF5 locks every file that it writes or reads, alone."""
    handle, process = mount.handle(handle_id), caller.process
    locks = handle.locks
    with mount.lock:
        handle.owners.add(lock.owner)
        handle.locker = process or 0
        writes = handle.flags & os.O_ACCMODE != os.O_RDONLY
        if not writes and not waits and mount.locks.test(locks, lock) is not None:
            return None
        versions = {
            other.version
            for other in mount.handles.values()
            if other.locks is locks
            and other.locker is not None
            and other.version is not None
            and other.version.joinable
            and (process is None or other.locker != process)
        }
    if not versions:
        return None

    def share() -> None:
        for version in versions:
            place = version.at
            committing.write_in_place(mount.versions, version)
            if place is not None:  # until then an open joins what is in place
                mount.locks.share((place[0].ident, place[1]))

    return Slow(share)


def unlock_process(mount: Mount, handle_id: int, owner: int) -> None:
    """A close ends the POSIX locks of its process on the file, by whichever descriptor."""
    handle = mount.handle(handle_id)
    handle.owners.discard(owner)
    mount.locks.drop_owner(handle.locks, owner, is_flock=False)


def unlock_description(mount: Mount, handle: Handle) -> None:
    """The last close ends the locks that the open file has: every process that took one by it
    has closed it, so whose locks are left is no process. The kernel tells of flock only."""
    for owner in handle.owners:
        for is_flock in (False, True):
            mount.locks.drop_owner(handle.locks, owner, is_flock=is_flock)
