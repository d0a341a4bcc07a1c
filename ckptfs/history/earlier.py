"""Generations: the earlier committed versions of a lineage, and which of them to retain.

``history/<lineage>/<generation>`` is a hard link made before the version is replaced, so keeping
costs no data. ``surplus`` is the retention policy, pure. Here is what is done to one lineage;
whose it is, is for ``lineages.py`` to say. Callers that change something hold its lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from ckptfs.disk import osfs
from ckptfs.errors import RecordDamaged
from ckptfs.records import format as fmt
from ckptfs.records.format import HistoryNote, Record
from ckptfs.records.layout import Layout

_NAMED_AT_MOST = 16  # lineages, by the note of one
NO_FOLDER = (FileNotFoundError, NotADirectoryError)  # a stray file or symlink is nobody's history


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
    except NO_FOLDER:
        return []
    return sorted(map(int, filter(is_generation, names)), reverse=True)


def is_generation(name: str) -> bool:
    """Whether an entry of a lineage is one of its generations, by its name."""
    return name.isascii() and name.isdigit() and len(name) < 20 and str(int(name)) == name


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
    layout: Layout, at: int, name: str, lineage: str, generation: int, path: str, told: str = ""
) -> tuple[int, bool]:
    """Link the version at ``at/name``, that is ``path``, into history. ``told`` is the lineage that
    its record names. Not durable on return.

    Returns the open directory of the lineage and whether it was made now; the caller syncs the
    folder, and history itself if so, and closes it.
    """
    fs = layout.fs
    made = True
    try:
        fs.mkdir(layout.history, lineage, 0o700)
    except FileExistsError:
        made = False
    try:
        folder = fs.open(layout.history, lineage, osfs.DIRECTORY)
    except NotADirectoryError as error:
        where = f"{fmt.CONTROL}/{fmt.HISTORY}/{lineage}"
        raise OSError(error.errno, f"{where} is no directory; move it away", path) from None
    try:
        with contextlib.suppress(FileExistsError):  # linked by a commit that a crash cut short
            fs.link(at, name, folder, str(generation))
        noted = _note_of(layout, folder)
        named = set(noted.of) >= {lineage, told or lineage}
        if path not in noted.paths or noted.leaving or not named:
            _set_note(layout, folder, HistoryNote((path,), of=_of(noted, lineage, told)))
    except OSError:
        fs.close(folder)
        if made:  # else the next commit would take its name for durable
            with contextlib.suppress(OSError):
                forget(layout, lineage)
        raise
    return folder, made


def pin(layout: Layout, lineage: str) -> None:
    """Mark the lineage as pinned. Durable with the names in history."""
    with contextlib.suppress(FileExistsError):
        layout.fs.mkdir(layout.history, lineage + fmt.PIN, 0o700)


def pinned(layout: Layout) -> set[str]:
    names = layout.fs.listdir(layout.history)
    return {name.removesuffix(fmt.PIN) for name in names if name.endswith(fmt.PIN)}


def lineages(layout: Layout) -> list[str]:
    """All that history has something of."""
    names = layout.fs.listdir(layout.history)
    return sorted(name for name in names if not name.endswith(fmt.PIN))


def _note_of(layout: Layout, folder: int) -> HistoryNote:
    return fmt.history_note_of(layout.fs.getxattr(folder, fmt.XATTR) or b"")


def _set_note(layout: Layout, folder: int, note: HistoryNote) -> None:
    """Whose directory it is stays, unless the note tells anew."""
    with contextlib.suppress(OSError):  # a hint, and no room for it
        noted = _note_of(layout, folder)
        note = note._replace(of=note.of or noted.of)
        if noted != note:
            layout.fs.setxattr(folder, fmt.XATTR, fmt.history_note(note))


def _of(noted: HistoryNote, lineage: str, told: str) -> tuple[str, ...]:
    """Too many say nothing."""
    of = tuple(dict.fromkeys((lineage, *noted.of, *filter(None, (told,)))))
    return of if len(of) <= _NAMED_AT_MOST else ()


def holds(layout: Layout, folder: int, lineage: str, record: Record | None) -> bool:
    """Whether a generation with this record belongs into ``folder``, the directory of the lineage:
    somebody may have swapped directories, or moved what is in them."""
    of = _note_of(layout, folder).of
    if not of:
        return True  # nobody has noted it
    return of[0] == lineage and (record is None or record.lineage in of)


def put_back(layout: Layout) -> list[str]:
    """Give directories that were swapped or renamed outside their own names. Returns the lineages
    that are in place again. Durable with the names in history."""
    own = {name: (note(layout, name) or HistoryNote()).of[:1] for name in lineages(layout)}
    wrong = {name: of[0] for name, of in own.items() if of and of[0] != name}
    taken = own.keys() - wrong.keys()
    right = {name: of for name, of in wrong.items() if of not in taken}
    if len(set(right.values())) < len(right):
        return []  # a copy of one: nobody knows which is the right one
    drafts = {fmt.new_txid(): (name, of) for name, of in right.items()}
    for draft, (name, _) in drafts.items():
        layout.fs.rename(layout.history, name, layout.history, draft)
    for draft, (_, of) in drafts.items():
        layout.fs.rename(layout.history, draft, layout.history, of)
    return sorted(right.values())


def note(layout: Layout, lineage: str) -> HistoryNote | None:
    """Whose history it is, by its last word; None where history has nothing of the lineage."""
    if not lineage:
        return None
    try:
        with osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder:
            return _note_of(layout, folder)
    except NO_FOLDER:
        return None


def set_note(layout: Layout, lineage: str, note: HistoryNote) -> None:
    """Does nothing where history has nothing of the lineage."""
    with (
        contextlib.suppress(OSError),
        osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder,
    ):
        _set_note(layout, folder, note)


def noted_path(layout: Layout, lineage: str) -> str | None:
    """A path of the lineage, where one is known and not being deleted: for messages."""
    with contextlib.suppress(OSError):
        found = note(layout, lineage)
        if found is not None and found.paths and not found.leaving:
            return found.paths[0]
    return None


def lineages_by_path(layout: Layout) -> dict[str, str]:
    """The lineages that history has generations of, by the paths it knows them under. Of several
    that name one path (see ``orphans.py``) a pinned one, or that with the newest generation."""
    found: dict[str, str] = {}
    pins = pinned(layout)
    for lineage in lineages(layout):
        noted = note(layout, lineage)
        if noted is None or noted.leaving:
            continue
        for path in noted.paths:
            other = found.setdefault(path, lineage)
            if other != lineage and rank(layout, lineage, pins) > rank(layout, other, pins):
                found[path] = lineage
    return found


def rank(layout: Layout, lineage: str, pins: set[str]) -> tuple[bool, int]:
    return lineage in pins, max(generations(layout, lineage), default=0)


def prune(layout: Layout, lineage: str, keep: int) -> int:
    """Remove generations past the newest ``keep``. Returns how many went. Not durable."""
    going = surplus(generations(layout, lineage), keep)
    if not going:
        return 0
    with osfs.opened(layout.fs, layout.history, lineage, osfs.DIRECTORY) as folder:
        for generation in going:
            with contextlib.suppress(FileNotFoundError):
                drop(layout, folder, generation)
    return len(going)


def drop(layout: Layout, folder: int, generation: int) -> bool:
    """Remove a generation from the open directory of its lineage; not what is somebody else's, and
    False then. Not durable. Raises FileNotFoundError."""
    name = str(generation)
    if not osfs.is_regular(layout.fs.lstat(folder, name)):
        return False
    if layout.uses_sidecars:
        _drop_sidecar(layout, folder, name)
    layout.fs.unlink(folder, name)
    return True


def _drop_sidecar(layout: Layout, folder: int, name: str) -> None:
    with osfs.opened(layout.fs, folder, name, osfs.O_RDONLY) as fd:
        if layout.fs.stat(fd).st_nlink == 1:  # else some path has this very version
            layout.drop_sidecar(fd)


def forget(layout: Layout, lineage: str) -> int:
    """Drop the whole lineage. Returns how many generations went. Not durable."""
    gone = prune(layout, lineage, 0) if lineage else 0
    for name in (lineage, lineage + fmt.PIN):
        with contextlib.suppress(OSError):
            layout.fs.rmdir(layout.history, name)
    return gone
