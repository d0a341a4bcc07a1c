"""Versions under the operations on names: a rename carries them along, a delete orphans them, and
neither meets a publish of the same name.

Threading: ``held`` takes what it needs; of ``move`` and ``orphan`` the caller holds
``Versions.lock``, inside ``held``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from ckptfs.disk import osfs

from ..view.model import Caller, Directory, Version
from . import overtaking
from .versions import Versions


@contextlib.contextmanager
def held(
    versions: Versions, parent: Directory, name: str, *more: tuple[Directory, str]
) -> Iterator[list[Version]]:
    """No version of these paths is committed inside the block: a rename or a delete of the
    name and the publish under it exclude each other. Gives those that were there; what is
    begun inside the block is another file."""
    places = ((parent, name), *more)
    while True:
        held = _at_all(versions, places)
        with contextlib.ExitStack() as stack:
            for version in sorted(held, key=lambda version: version.staged.txid):
                stack.enter_context(version.staged.lock)
            if set(_at_all(versions, places)) <= set(held):
                yield held
                return


def _at_all(versions: Versions, places: Iterable[tuple[Directory, str]]) -> list[Version]:
    with versions.lock:
        return [version for place in places for version in versions.at(*place)]


def move(
    versions: Versions, version: Version, parent: Directory, name: str, by: Caller | None
) -> None:
    """A rename carries the open version along; its commit lands on the new name. Everybody
    sees it there at once if a process that writes it has put it there; with None, for an
    exchange, that is left as it is."""
    if by is not None and not version.closing:
        writes = any(handle.opener == by.process for handle in version.handles)
        version.public = writes and not overtaking.is_untouched(versions, version)
    versions.unplace(version)
    versions.place(version, parent, name)
    versions.nodes.move(version.node, parent, name)
    with contextlib.suppress(OSError):
        osfs.touch_status(version.staged.fd)


def orphan(versions: Versions, version: Version) -> None:
    """Its name was deleted or taken: it will never be published. Who was sent to look for it
    does not find it any more."""
    versions.unplace(version)
    version.at = None
    versions.store.saves.remove_name(version.staged)
    versions.nodes.detach(version.node)
    version.expected.clear()
    versions.end(version)
