"""How history follows names that come, go and change: what the note of a lineage says meanwhile, so
that a crash on the way loses nothing. Thread-safe; see ``lineages.py`` for the rules."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ckptfs.disk import osfs
from ckptfs.history import earlier
from ckptfs.history.lineages import Lineages, Standing
from ckptfs.records.format import HistoryNote


@contextlib.contextmanager
def sharing(lineages: Lineages, found: Standing, path: str) -> Iterator[None]:
    """``path`` becomes another name of what was ``found`` inside."""
    _share(lineages, found, path)
    try:
        yield
    except BaseException:
        lineages.renote(found.lineage, lambda old: tuple(each for each in old if each != path))
        raise
    lineages.moved(path)


def _share(lineages: Lineages, found: Standing, path: str) -> None:

    def names(old: tuple[str, ...]) -> tuple[str, ...]:
        return (*(old if found.path in old else (found.path,)), path)

    lineages.renote(found.lineage, names)


@contextlib.contextmanager
def losing(lineages: Lineages, found: Standing) -> Iterator[None]:
    """What was ``found`` loses its path inside: so does its lineage. A crash on the way must
    not read as a loss."""
    lineage, path = found.lineage, found.path
    if not lineage:
        yield
        return
    last = not any(each != path and lineages.carries(each, lineage) for each in found.names)
    if last:
        lineages.set_note(lineage, HistoryNote((path,), leaving=True))
    try:
        yield
    except BaseException:
        lineages.set_note(lineage, HistoryNote(found.names))
        raise
    with contextlib.suppress(OSError):  # the next mount does it
        leave(lineages, lineage, path)


def leave(lineages: Lineages, lineage: str, path: str) -> None:
    """``path`` has another lineage by now, or none. With the last path the history goes."""
    with lineages.lock:
        note = earlier.note(lineages.layout, lineage)
        if lineages.pins.get(path) == lineage:
            del lineages.pins[path]
        if note is None:
            return
        left = [each for each in note.paths if each != path and lineages.carries(each, lineage)]
        if left:
            lineages.set_note(lineage, HistoryNote(tuple(left)))
        else:
            lineages.forget(lineage)


def keep_alone(lineages: Lineages, lineage: str, path: str) -> None:
    """``path`` has moved on to a version that the other names do not share."""
    lineages.renote(lineage, lambda old: (path,))


@contextlib.contextmanager
def moving(lineages: Lineages, found: Standing, path: str) -> Iterator[None]:
    """What was ``found`` is renamed to ``path`` inside. Where the file cannot tell its lineage
    both paths are noted meanwhile: one of them stands, whatever happens."""
    if found.lineage in lineages.pinned:
        _share(lineages, found, path)
    try:
        yield
    except BaseException:
        lineages.set_note(found.lineage, HistoryNote(found.names))
        raise
    follow(lineages, found, path)
    lineages.moved(path)


def follow(lineages: Lineages, found: Standing, path: str) -> None:
    """What was ``found`` is at ``path`` now."""

    def names(old: tuple[str, ...]) -> tuple[str, ...]:
        new = dict.fromkeys(path if each == found.path else each for each in old)
        return tuple(new) if path in new else (path,)

    lineages.renote(found.lineage, names)


def exchanged(lineages: Lineages, first: Standing, second: Standing) -> None:
    """Both have changed places."""
    found = first.status, second.status
    if any(status and osfs.is_directory(status) for status in found):
        renamed(lineages, swapped(first.path, second.path))
    elif first.lineage != second.lineage:
        follow(lineages, first, second.path)
        follow(lineages, second, first.path)
    lineages.moved(first.path, second.path)


@contextlib.contextmanager
def moving_directory(lineages: Lineages, old: str, new: str) -> Iterator[None]:
    """A directory is renamed inside, and with it all paths below. Takes as long as history is
    wide; for pins as :meth:`moving`."""
    moved = below(old, new)
    pinned = {lineage for path, lineage in lineages.pins.items() if moved(path) != path}
    before = {lineage: earlier.note(lineages.layout, lineage) for lineage in pinned}
    for lineage in pinned:
        lineages.renote(lineage, lambda names: (*names, *map(moved, names)))
    try:
        yield
    except BaseException:
        for lineage, note in before.items():
            lineages.set_note(lineage, note or HistoryNote())
        raise
    renamed(lineages, moved)
    lineages.moved(new)


def renamed(lineages: Lineages, new: Callable[[str], str]) -> None:
    """Any paths have other names by now."""
    with contextlib.suppress(OSError):
        for lineage in earlier.lineages(lineages.layout):
            lineages.renote(lineage, lambda names: tuple(map(new, names)))


def below(old: str, new: str) -> Callable[[str], str]:
    """What becomes of a path when ``old``, a directory, is renamed to ``new``."""

    def renamed(path: str) -> str:
        return new + path[len(old) :] if path == old or path.startswith(f"{old}/") else path

    return renamed


def swapped(first: str, second: str) -> Callable[[str], str]:
    """What becomes of a path when ``first`` and ``second``, of which one may be a directory, are
    exchanged."""
    there, back = below(first, second), below(second, first)

    def renamed(path: str) -> str:
        new = there(path)
        return new if new != path else back(path)

    return renamed
