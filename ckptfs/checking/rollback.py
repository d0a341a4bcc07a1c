"""Rollback: a good generation takes the place of what has rotted or is gone. The caller holds the
lock of the path, where it asks for a place. Thread-safe."""

from __future__ import annotations

import contextlib

from ckptfs.checking.examine import ROTTEN, Condition, Finding, examine
from ckptfs.disk import osfs
from ckptfs.disk.filesystem import Status
from ckptfs.errors import NoSuchGeneration, Rotten
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place


def status_at(core: Core, place: Place) -> Status | None:
    with contextlib.suppress(FileNotFoundError):
        return core.fs.lstat(place.at, place.name)
    return None


def newest_good(core: Core, place: Place, finding: Finding) -> tuple[str, int]:
    """The newest good generation before the rotten one. All are before it where its record
    does not tell the lineage."""
    record = finding.record
    lineage = lineage_of(core, place)
    told = record is not None and record.lineage == lineage
    told = told and lineage not in core.lineages.pinned
    for generation in earlier.generations(core.layout, lineage):
        older = not told or (record is not None and generation < record.generation)
        if older and is_good(core, lineage, generation):
            return lineage, generation
    raise Rotten(
        f"{finding.path}: {finding.detail}, and no good generation is left; the file is where "
        "it was, restore it from a copy"
    )


def is_good(core: Core, lineage: str, generation: int, *, asked: bool = False) -> bool:
    """Proven by its record or, where a user ``asked`` for it, not disproven."""
    path = earlier.noted_path(core.layout, lineage)
    with (
        contextlib.suppress(OSError),
        osfs.opened(core.fs, core.layout.history, lineage, osfs.DIRECTORY) as folder,
    ):
        found = examine(core.layout, folder, str(generation), called=path or "")
        if not earlier.holds(core.layout, folder, lineage, found.record):
            return False
        return found.condition is Condition.OK or (asked and found.condition not in ROTTEN)
    return False


def quarantine(core: Core, place: Place, finding: Finding) -> None:
    """Give the damaged file a second name in quarantine, durable on return."""
    draft = fmt.new_txid()
    core.fs.link(place.at, place.name, core.layout.stage, draft)
    story: dict[str, object] = {"path": finding.path, "reason": finding.detail}
    core.layout.aside.put(core.layout.stage, draft, core.layout.quarantine, story)
    core.order.sync_dir(core.layout.quarantine)


def bring_back(core: Core, lineage: str, generation: int, place: Place) -> None:
    """Let that generation stand at the place. By way of stage: history lets go of the
    good version only once it is settled."""
    before = status_at(core, place)
    with osfs.opened(core.fs, core.layout.history, lineage, osfs.DIRECTORY) as folder:
        draft = fmt.new_txid()
        core.fs.link(folder, str(generation), core.layout.stage, draft)
        if before is not None and osfs.is_regular(before):
            _inherit(core, place, draft)
        _require_told(core, lineage, draft)
        core.fs.rename(core.layout.stage, draft, place.at, place.name)
        core.rolled_back(place.path, before)
        core.order.sync_dir(place.at)
        if not core.lineages.is_shared(lineage, place.path):
            with contextlib.suppress(OSError):
                core.fs.unlink(folder, str(generation))


def _require_told(core: Core, lineage: str, draft: str) -> None:
    """A version that two paths had has the lineage of one of them in its record."""
    with osfs.opened(core.fs, core.layout.stage, draft, osfs.O_RDONLY) as fd:
        record = core.layout.read_record(fd)
    if record is None or record.lineage != lineage:
        core.lineages.pin(lineage)
        core.order.sync_dir(core.layout.history)


def _inherit(core: Core, place: Place, draft: str) -> None:
    """Who may read a file may have changed since that generation: mode and ACL are those of
    the version that it replaces. But not if that is another user's, or open to more: who
    renames a file of his own onto somebody else's must not come to read what was there."""
    with (
        contextlib.suppress(FileNotFoundError),
        osfs.opened(core.fs, place.at, place.name, osfs.O_RDONLY) as replaced,
        osfs.opened(core.fs, core.layout.stage, draft, osfs.O_RDONLY) as good,
    ):
        if shows_no_more(core.fs.stat(replaced), core.fs.stat(good)):
            core.fs.copy_metadata(replaced, good, skip=fmt.XATTR)
            core.fs.fsync(good)


def lineage_of(core: Core, place: Place) -> str:
    """Whose history is that of the file; empty where it has none: see
    :meth:`Lineages.readable`."""
    return core.lineages.readable(*place)


def chosen(core: Core, lineage: str, path: str, to: int | None) -> int:
    """That generation, or the newest one, if it is good. Raises NoSuchGeneration."""
    kept = earlier.generations(core.layout, lineage)
    for generation in kept:
        if to in (None, generation) and is_good(core, lineage, generation, asked=to is not None):
            return generation
    which = "no good generation" if to is None else f"no good generation {to}"
    known = ", ".join(map(str, kept)) or "none"
    raise NoSuchGeneration(f"{path}: {which} in history; there is: {known}")


def make_folders(core: Core, path: str, to: int | None) -> None:
    """Make the directories that are gone together with ``path``, if there is a generation to
    bring back. They are for its owner alone: nobody knows who else was let in. Durable on
    return. Raises NoSuchGeneration."""
    folders = osfs.steps(path)[:-1]
    at = core.fs.open(core.layout.root, ".", osfs.DIRECTORY)
    try:
        for name in folders:
            try:
                below = core.fs.open(at, name, osfs.DIRECTORY)
            except FileNotFoundError:
                below = _make_folder(core, at, name, _status_of(core, path, to))
            core.fs.close(at)
            at = below
    finally:
        core.fs.close(at)


def _make_folder(core: Core, at: int, name: str, like: Status) -> int:
    core.order.require_writable()
    core.fs.mkdir(at, name, 0o700)
    fd = core.fs.open(at, name, osfs.DIRECTORY)
    osfs.give(fd, like)
    core.order.sync_dir(at)
    return fd


def _status_of(core: Core, path: str, to: int | None) -> Status:
    """Of the generation that is to be brought back to ``path``."""
    lineage = earlier.lineages_by_path(core.layout).get(path, "")
    generation = chosen(core, lineage, path, to)
    with osfs.opened(core.fs, core.layout.history, lineage, osfs.DIRECTORY) as folder:
        return core.fs.lstat(folder, str(generation))


def shows_no_more(now: Status, then: Status) -> bool:
    """Whether owner and mode of ``now`` let nobody in that those of ``then`` kept out."""
    return now.st_uid == then.st_uid and not now.st_mode & ~then.st_mode & 0o777
