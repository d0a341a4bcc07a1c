"""Generations: the earlier committed versions of a lineage, and which of them to retain.

``history/<lineage>/<generation>`` is a hard link made before the version is replaced, so keeping
costs no data. ``surplus`` is the retention policy, pure. Callers hold the path's lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from ckptfs import format as fmt
from ckptfs import osfs
from ckptfs.errors import RecordDamaged
from ckptfs.format import Record
from ckptfs.layout import Layout


def surplus(generations: Iterable[int], keep: int) -> list[int]:
    """The generations to let go of so that the newest ``keep`` remain, oldest first."""
    ordered = sorted(generations)
    return ordered[: max(0, len(ordered) - keep)]


def generations(layout: Layout, lineage: str) -> list[int]:
    """What history holds of the lineage, newest first."""
    if not lineage:
        return []
    try:
        with osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder:
            names = layout.fs.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def record_of(layout: Layout, lineage: str, generation: int) -> Record | None:
    """The record of a generation, if it is there and intact."""
    with (
        contextlib.suppress(OSError, RecordDamaged),
        osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder,
        osfs.opened(layout.fs, folder, str(generation), osfs.O_RDONLY) as fd,
    ):
        return layout.read_record(fd)
    return None


def link(
    layout: Layout, at: int, name: str, lineage: str, generation: int, path: str
) -> tuple[int, bool]:
    """Link the version at ``at/name``, that is ``path``, into history. Not durable on return.

    Returns the open directory of the lineage and whether it was made now; the caller syncs the
    folder, and history itself if so, and closes it.
    """
    fs = layout.fs
    made = True
    try:
        fs.mkdir(layout.history, lineage, 0o700)
    except FileExistsError:
        made = False
    folder = fs.open(layout.history, lineage, osfs.DIRECTORY)
    try:
        with contextlib.suppress(FileExistsError):  # linked by a commit that a crash cut short
            fs.link(at, name, folder, str(generation))
        _note_path(layout, folder, path)
    except OSError:
        fs.close(folder)
        if made:  # else the next commit would take its name for durable
            with contextlib.suppress(OSError):
                fs.rmdir(layout.history, lineage)
        raise
    return folder, made


def _note_path(layout: Layout, folder: int, path: str) -> None:
    note = fmt.history_note(path)
    with contextlib.suppress(OSError):  # a hint, and no room for it
        if layout.fs.getxattr(folder, fmt.XATTR) != note:
            layout.fs.setxattr(folder, fmt.XATTR, note)


def follow(layout: Layout, lineage: str, path: str) -> None:
    """The user renamed the file: history knows its new path, unless it was a directory's name."""
    with (
        contextlib.suppress(OSError),
        osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder,
    ):
        _note_path(layout, folder, path)


def noted_path(layout: Layout, lineage: str) -> str | None:
    """Where the file was when history last heard of it."""
    with (
        contextlib.suppress(OSError),
        osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder,
    ):
        return fmt.path_of_note(layout.fs.getxattr(folder, fmt.XATTR) or b"")
    return None


def lineages_by_path(layout: Layout) -> dict[str, str]:
    """The lineages that history has generations of, by the paths it knows them under."""
    paths = {noted_path(layout, name): name for name in layout.fs.listdir(layout.history)}
    return {path: lineage for path, lineage in paths.items() if path is not None}


def has_another_file(layout: Layout, lineage: str, inode: int) -> bool:
    """Whether the lineage is that of another file than the one with this ``inode``: then this is a
    copy that was made outside and brought the record along (``cp -a``)."""
    path = noted_path(layout, lineage) if lineage else None
    if path is None:
        return False
    try:
        with osfs.place(layout.fs, layout.root, path) as (at, name):
            status = layout.fs.lstat(at, name)
            if status.st_ino == inode or not osfs.is_regular(status):
                return False
            with osfs.opened(layout.fs, at, name, osfs.O_RDONLY) as fd:
                record = layout.read_record(fd)
                return record is not None and record.lineage == lineage
    except (OSError, RecordDamaged):
        return False


def prune(layout: Layout, lineage: str, keep: int) -> int:
    """Remove generations past the newest ``keep``. Returns how many went. Not durable."""
    going = surplus(generations(layout, lineage), keep)
    if not going:
        return 0
    with osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder:
        for generation in going:
            with contextlib.suppress(FileNotFoundError):
                if layout.uses_sidecars:
                    with osfs.opened(layout.fs, folder, str(generation), osfs.O_RDONLY) as fd:
                        layout.drop_sidecar(fd)
                layout.fs.unlink(folder, str(generation))
    return len(going)


def forget(layout: Layout, lineage: str) -> None:
    """Drop the whole lineage: its path was deleted by the user. That of a copy stays."""
    if generations(layout, lineage) and not has_another_file(layout, lineage, inode=0):
        prune(layout, lineage, 0)
        with contextlib.suppress(OSError):
            layout.fs.rmdir(layout.history, lineage)
