"""Who sees which version of a path: its writers and what descends from them, whoever was sent to
look for it, and everybody once it is finished.

Threading: of ``visible_to`` and ``abandoned`` the caller holds ``Versions.lock``; the others take
it, ``drop`` after the version's ``staged.lock``.
"""

from __future__ import annotations

import time

from ckptfs.versions.life import Turn

from ..processes import writers
from ..view.model import Caller, Directory, Version
from . import overtaking
from .versions import Versions


def visible_to(versions: Versions, caller: Caller, parent: Directory, name: str) -> Version | None:
    """The version that this caller's lookups of the path give, if not the committed one."""
    listed = versions.at(parent, name)
    for version in reversed(listed):
        if caller.pid in version.expected:
            return version
    for version in reversed(listed):
        if not overtaking.overtaken(versions, version) and _is_seen_by(caller, version):
            return version
    return None


def _is_seen_by(caller: Caller, version: Version) -> bool:
    """It stays a descendant when a process between the two has ended."""
    if version.public:
        return True
    if caller.process is None or not writers.descends_from(caller.process, version.members):
        return False
    version.members.add(caller.process)
    return True


def expect(versions: Versions, version: Version, caller: Caller) -> None:
    """This caller is sent to look the path up again, and finds this version there."""
    process = caller.process
    with versions.lock:
        version.expected[caller.pid] = time.monotonic()
        if process is not None:
            version.members.add(process)
        versions.watch.wake()


def dismiss(versions: Versions, version: Version, caller: Caller) -> None:
    """This caller does not come after all; drop the version if it was begun for it alone."""
    with versions.lock:
        version.expected.pop(caller.pid, None)
        versions.arrived.notify_all()
        if not version.handles and not version.expected:
            version.turn(Turn.CLOSE)
    if version.closing:
        drop(versions, version)


def abandoned(version: Version) -> bool:
    """Whether nobody has it open and whoever was to open it has died on the way."""
    return not version.handles and all(map(writers.is_gone, version.expected))


def drop(versions: Versions, version: Version) -> None:
    """One that was begun for an open that never came."""
    with version.staged.lock, versions.lock:
        if version.handles:
            return
        if version.unpublished:
            versions.unplace(version)
            versions.store.saves.discard(version.staged)
        versions.end(version)
