"""What stands under its name, and what a change of that name replaces: looked at, and kept in
history. The caller holds the lock of the path. Thread-safe; see ``commit.py`` for how a version
comes there, ``names.py`` for what becomes of names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from ckptfs import structure
from ckptfs.disk import osfs
from ckptfs.disk.filesystem import Status
from ckptfs.history import earlier, moves
from ckptfs.history.lineages import Standing
from ckptfs.records import format as fmt
from ckptfs.records.format import Record
from ckptfs.structure import Structure, Verdict
from ckptfs.versions.core import Core
from ckptfs.versions.order import Place


@dataclass(frozen=True)
class Replaced:
    """The version that a commit replaces, and the lineage that its path goes on with."""

    record: Record | None
    lineage: str
    verdict: Verdict
    generation: int  # its name in history
    shared: bool = False  # the lineage had other paths, which stay behind
    leaves: str = ""  # another lineage that the path had so far
    pin: bool = False  # what comes instead cannot tell its lineage


def judge(core: Core, path: str, size: int, read: Callable[[int, int], bytes]) -> Structure:
    if not core.validate:
        return Structure(Verdict.UNKNOWN, "")
    return structure.check(path.rpartition("/")[2], size, read)


def judge_open(core: Core, path: str, fd: int) -> Structure:
    size = core.fs.stat(fd).st_size
    return judge(core, path, size, lambda offset, n: core.fs.read(fd, n, offset))


def replaced_by(core: Core, place: Place) -> Replaced | None:
    """What stands at the target. A damaged record counts as none: the bytes are
    kept."""
    return replacing(core, core.lineages.look(*place), place)


def replacing(core: Core, there: Standing, place: Place) -> Replaced | None:
    """As :func:`replaced_by`, of what was looked at."""
    if not there.is_file:
        return None
    record, lineage = there.record, there.lineage
    verdict = Verdict(record.structure) if record else _judge_at(core, place)
    shared = len(there.names) > 1
    if not there.keeps:  # the history stays with other names: that of two must not mix
        new, number = fmt.new_lineage(), record.generation if record else 0
        return Replaced(record, new, verdict, number, leaves=lineage)
    return Replaced(record, lineage, verdict, _number(core, there), shared)


def _number(core: Core, there: Standing) -> int:
    """That of the record, if it is the newest of the lineage: an older version may have come
    back, or a link of another file. What has a damaged record is the first to go again."""
    number = there.record.generation if there.record else 0
    newest = max(earlier.generations(core.layout, there.lineage), default=-1)
    if there.record is None and there.lineage not in core.lineages.pinned:
        return number
    if newest < number or links_in_history(core, there, newest):
        return max(newest, number)
    return core.layout.next_generation()


def links_in_history(core: Core, there: Standing, generation: int) -> int:
    """Whether its history holds a link of what stands there, under that number."""
    assert there.status is not None
    with (
        contextlib.suppress(FileNotFoundError),
        osfs.opened(core.fs, core.layout.history, there.lineage, osfs.DIRECTORY) as folder,
    ):
        found = core.fs.lstat(folder, str(generation))
        return int(found.st_ino == there.status.st_ino)
    return 0


def _judge_at(core: Core, place: Place) -> Verdict:
    with osfs.opened(core.fs, place.at, place.name, osfs.O_RDONLY) as fd:
        return judge_open(core, place.name, fd).verdict


def status_at(core: Core, place: Place) -> Status | None:
    """Of what stands there, if anything does."""
    try:
        return core.fs.lstat(place.at, place.name)
    except FileNotFoundError:
        return None


def is_no_file(core: Core, place: Place) -> bool:
    """Whether something else than a file stands there: a symlink, a FIFO."""
    return not osfs.is_regular(core.fs.lstat(place.at, place.name))


def keep_replaced(core: Core, replaced: Replaced | None, place: Place) -> None:
    """Link the replaced version of the place into history; the link is durable on
    return."""
    if replaced is None or core.keep == 0:
        return
    lineage, number = replaced.lineage, replaced.generation
    told = replaced.record.lineage if replaced.record else ""
    folder, made = core.lineages.link(*place, lineage, number, told=told, pin=replaced.pin)
    try:
        if replaced.pin and core.mode.syncs_directories:  # its note is no hint
            core.fs.fsync(folder)
        core.order.sync_dir(folder)
        if made:
            core.order.sync_dir(core.layout.history)
    finally:
        core.fs.close(folder)


def settle_history(core: Core, replaced: Replaced | None, path: str) -> None:
    """Once the new version is settled, let go of generations past the retention, and of what
    the path has no more to do with."""
    if replaced is None:  # the lineage begins here
        return
    with contextlib.suppress(OSError):  # the next commit or mount does it
        if core.keep == 0:
            core.lineages.forget(replaced.lineage)
        with core.lineages.lock:
            earlier.prune(core.layout, replaced.lineage, core.keep)
        if replaced.leaves:
            moves.leave(core.lineages, replaced.leaves, path)
        if replaced.shared and not replaced.leaves:
            moves.keep_alone(core.lineages, replaced.lineage, path)


def tell_kept(core: Core, path: str, replaced: Replaced) -> None:
    if core.keep > 0 and replaced.record is not None:
        core.kept(path, replaced.record.size_bytes)
