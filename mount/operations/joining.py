"""Which version an open for writing goes on with: one that is on its way, or a new one.

Threading: any thread; each asks under ``Versions.lock``, and what it is told may be over when that
is given back. ``start_version`` may copy and verify.
"""

from __future__ import annotations

import os
import stat
from typing import NoReturn

from ckptfs.versions.life import State

from ..processes import writers
from ..view.answers import stale
from ..view.identity import exists, identity, lstat
from ..view.model import Caller, Directory, File, Version
from ..writers import beginning, overtaking, visibility
from ..writers.versions import Versions
from .context import Mount


def is_written_on(mount: Mount, node: File, parent: Directory, truncate: bool) -> bool:
    """Whether others may yet write what stands there by now: a version of its own would lack
    what they add, whatever lock they hold. Of another node than this one only where that is no
    transaction: by a link of its descriptor it would be asked for again and again."""
    with mount.lock:
        current = mount.nodes.standing(parent, node.name)
        version = current.version if isinstance(current, File) else None
        if version is not None and version.staged.state is State.IN_PLACE:
            return True
        shared = current is node and version is not None and is_shared(version, truncate)
        return shared or mount.in_place(parent, node.name)


def regular_at(parent: Directory, name: str) -> os.stat_result | None:
    """What stands there, if anything. Raises ESTALE for what has no versions: the name is
    another inode's by now."""
    status = lstat(parent.fd, name)
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise stale()
    return status


def is_still(parent: Directory, name: str, seen: os.stat_result | None) -> bool:
    now = lstat(parent.fd, name)
    return (now and identity(now)) == (seen and identity(seen))


def is_shared(version: Version, truncate: bool) -> bool:
    """Whether another open for writing goes where the committed version stands: somebody may
    yet write there. Who truncates begins anew but where it is no transaction any more."""
    if not version.live:
        return False
    if version.is_log or version.staged.state is State.IN_PLACE:
        return True
    return not truncate and any(not handle.flushed for handle in version.handles)


def is_joined(versions: Versions, version: Version, flags: int, caller: Caller) -> bool:
    """Whether an open with these flags would go on with the version."""
    with versions.lock:
        return not version.unpublished or joins(versions, version, flags, caller)


def joins(versions: Versions, version: Version, flags: int, caller: Caller) -> bool:
    """Who truncates gets a version of its own beside a writer, or N processes that save to one
    path would mix their bytes. Not where nothing was written yet by itself, or by a process
    that it descends from or that descends from it: these mean the same file."""
    if caller.pid in version.expected:
        return True
    if not version.joinable or overtaking.overtaken(versions, version):
        return False
    if not flags & os.O_TRUNC:
        return True
    if not overtaking.is_untouched(versions, version):
        return False
    empty = os.fstat(version.staged.fd).st_size == 0
    if empty and flags & os.O_ACCMODE == os.O_RDWR:
        return True
    openers = {handle.opener for handle in version.handles}
    return bool(openers) and all(writers.are_related(caller.process, o) for o in openers)


def expecting_at(
    versions: Versions, parent: Directory, name: str, caller: Caller
) -> Version | None:
    for version in versions.at(parent, name):
        if caller.pid in version.expected:
            return version
    return None


def due_at(versions: Versions, parent: Directory, name: str) -> list[Version]:
    """Versions of a path that everybody has closed, and that are not committed yet."""
    with versions.lock:
        return [v for v in versions.at(parent, name) if v.closing and v.unpublished]


def begun_at(versions: Versions, parent: Directory, name: str) -> bool:
    """Whether a version of the path is on its way; one that was just published may be listed
    yet."""
    with versions.lock:
        return any(version.unpublished for version in versions.at(parent, name))


def start_version(
    versions: Versions, parent: Directory, name: str, caller: Caller, *, truncate: bool
) -> None:
    """Make a version for this caller, or choose the youngest that it can join, and send it
    back to look the path up again. Returns where one is to be committed first."""
    with versions.lock:
        if due_at(versions, parent, name):
            return
        regular_at(parent, name)
        for youngest in versions.at(parent, name)[-1:]:
            # One that its opener has abandoned may be older than what was committed since.
            joinable = youngest.joinable and not overtaking.overtaken(versions, youngest)
            if joinable and not truncate and not visibility.abandoned(youngest):
                _send_back(versions, youngest, caller)
    version = beginning.begin(
        versions, parent, name, caller, exists=exists(parent.fd, name), truncate=truncate
    )
    _send_back(versions, version, caller)


def _send_back(versions: Versions, version: Version, caller: Caller) -> NoReturn:
    visibility.expect(versions, version, caller)
    raise stale()
