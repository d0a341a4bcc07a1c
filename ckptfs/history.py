"""Generations: the earlier committed versions of a lineage, and which of them to retain.

``history/<lineage>/<generation>`` is a hard link made before the version is replaced, so keeping
costs no data. ``surplus`` is the retention policy, pure. Callers hold the path's lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from ckptfs import osfs
from ckptfs.layout import Layout


def surplus(generations: Iterable[int], keep: int) -> list[int]:
    """The generations to let go of so that the newest ``keep`` remain, oldest first."""
    ordered = sorted(generations)
    return ordered[: max(0, len(ordered) - keep)]


def generations(layout: Layout, lineage: str) -> list[int]:
    """What history holds of the lineage, newest first."""
    try:
        with osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder:
            names = layout.fs.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def link(layout: Layout, at: int, name: str, lineage: str, generation: int) -> tuple[int, bool]:
    """Link the version at ``at/name`` into history. Not durable on return.

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
    except OSError:
        fs.close(folder)
        if made:  # else the next commit would take its name for durable
            with contextlib.suppress(OSError):
                fs.rmdir(layout.history, lineage)
        raise
    return folder, made


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
    """Drop the whole lineage: its path was deleted by the user."""
    if generations(layout, lineage):
        prune(layout, lineage, 0)
        with contextlib.suppress(OSError):
            layout.fs.rmdir(layout.history, lineage)
