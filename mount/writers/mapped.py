"""What changes where it stands: published versions that are live, or that somebody has mapped.

Of the stores to a mapping, and of its end, nothing tells where the kernel carries the data.

Threading: any thread; ``Versions.lock`` is held for the tables, not while ``/proc`` is asked.
"""

from __future__ import annotations

import contextlib
from array import array

from ckptfs.versions.life import Turn
from ckptfs.versions.staged import Inode

from ..processes import holders, writers
from ..view.model import Version
from .versions import Versions

_SEALS_REMEMBERED = 10_000


def mark_live(versions: Versions, version: Version) -> None:
    with contextlib.suppress(OSError):  # only what follows a kill of the daemon is told worse
        versions.store.saves.mark_live(version.staged)


def is_mapped(versions: Versions, version: Version) -> bool:
    """Whether a process has the published version mapped for writing. Of its stores and of its
    end nothing tells, where the kernel carries the data."""
    with versions.lock:
        mappers, numbers = frozenset(version.mappers), frozenset(version.numbers)
    return version.live and bool(mappers) and writers.map_for_writing(mappers, numbers)


def may_be_stored_to(versions: Versions, version: Version) -> bool:
    """Whether somebody has the published version mapped, or has a descriptor of it left: of what
    its opener closed, a duplicate may be open."""
    with versions.lock:
        openers = {handle.opener for handle in version.handles if handle.flushed}
        numbers = frozenset(version.numbers)
    held = (holders.holds_or_gave(opener, numbers) for opener in openers if opener is not None)
    return version.live and (any(held) or is_mapped(versions, version))


def lingers(versions: Versions, version: Version) -> bool:
    """Whether it is mapped, so that it is looked at from time to time."""
    mapped = is_mapped(versions, version)
    if mapped:
        mark_live(versions, version)
    with versions.lock:
        version.turn(Turn.MAP if mapped else Turn.UNMAP)
        if mapped:
            versions.lingering.add(version)
            versions.watch.wake()
    return mapped


def remember_mappers(versions: Versions, version: Version) -> None:
    """Of one that somebody may have mapped: those who opened it so, or anybody."""
    with versions.lock:
        mappers = version.mappers if version.known else set()
        versions.mappings[version.node.ident[:2]] = _packed(mappers, version.numbers)
        if len(versions.mappings) > _SEALS_REMEMBERED:
            versions.mappings.popitem(last=False)


def may_be_mapped(versions: Versions, inode: Inode) -> bool:
    """Sealed by this mount, and maybe still mapped for writing by who opened it so: what such
    a process has stored since is not damage."""
    with versions.lock:
        if inode not in versions.mappings:
            return False
        mappers, numbers = _unpacked(versions.mappings[inode])
    return not mappers or writers.map_for_writing(mappers, numbers)


def may_be_written(versions: Versions, inode: Inode) -> bool:
    """Without a commit: it is open for writing where it stands, or mapped."""
    live = any(version.node.ident[:2] == inode for version in versions.live())
    return live or may_be_mapped(versions, inode)


def _packed(processes: set[int], inodes: set[int]) -> bytes:
    """Who may map which inode numbers: sets of each would take 500 bytes."""
    return array("Q", [len(processes), *processes, *inodes]).tobytes()


def _unpacked(packed: bytes) -> tuple[list[int], set[int]]:
    count, *numbers = array("Q", packed)
    return numbers[:count], set(numbers[count:])
