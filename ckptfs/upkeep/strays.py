"""What lies in ``.ckptfs`` and belongs to no file: of a crash, or of somebody else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ckptfs.checking.examine import Condition, Finding
from ckptfs.disk import osfs
from ckptfs.disk.filesystem import FileSystem, Status
from ckptfs.history import earlier
from ckptfs.records import format as fmt
from ckptfs.records import parts
from ckptfs.records.layout import Layout
from ckptfs.upkeep.seen import Links


def leftovers(layout: Layout, links: Links) -> Iterator[Finding]:
    """Of a crash. The next mount clears them."""
    for name in sorted(layout.fs.listdir(layout.stage)):
        status = layout.fs.lstat(layout.stage, name)
        if not _may_be_staged(name, status):
            continue
        if osfs.is_regular(status):
            links.note(status)
        path = f"{fmt.CONTROL}/{fmt.STAGE}/{name}"
        yield Finding(path, Condition.LEFTOVER, status.st_size, detail="of a crash", control=True)


def strays(layout: Layout) -> Iterator[Finding]:
    """What lies in ``.ckptfs`` and cannot be of ckptfs. It is left alone."""
    yield from _not_of_ours(layout.fs, layout.stage, fmt.STAGE, _may_be_staged)
    for folder, where in (
        (layout.salvage, fmt.SALVAGE),
        (layout.quarantine, fmt.QUARANTINE),
        (layout.sidecar, fmt.SIDECAR),
        (layout.sets, fmt.SETS),
    ):
        yield from _not_of_ours(layout.fs, folder, where, lambda _, found: osfs.is_regular(found))
    yield from _not_of_ours(
        layout.fs, layout.history, fmt.HISTORY, lambda _, found: osfs.is_directory(found)
    )
    for lineage in earlier.lineages(layout):
        with (
            contextlib.suppress(*earlier.NO_FOLDER),
            osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder,
        ):
            where = f"{fmt.HISTORY}/{lineage}"
            yield from _not_of_ours(layout.fs, folder, where, lambda n, _: earlier.is_generation(n))


def _may_be_staged(name: str, status: Status) -> bool:
    is_set = name.endswith(fmt.SET)
    return osfs.is_directory(status) if is_set else osfs.is_regular(status)


def _not_of_ours(
    fs: FileSystem, folder: int, where: str, is_ours: Callable[[str, Status], bool]
) -> Iterator[Finding]:
    for name in sorted(fs.listdir(folder)):
        with contextlib.suppress(FileNotFoundError):
            status = fs.lstat(folder, name)
            if not is_ours(name, status):
                detail = f"{parts.kind(status)} that is not of ckptfs"
                path = f"{fmt.CONTROL}/{where}/{name}"
                yield Finding(path, Condition.STRAY, detail=detail, control=True)


def counter(layout: Layout, highest: int) -> Iterator[Finding]:
    """Of files that were copied from another directory, records and all, it knows nothing: each
    goes on from its own number."""
    counted = layout.stored_counter()
    if counted < highest:
        detail = f"counts to {counted}, there is generation {highest}"
        path = f"{fmt.CONTROL}/{fmt.COUNTER}"
        yield Finding(path, Condition.DAMAGED, detail=detail, control=True, highest=highest)
